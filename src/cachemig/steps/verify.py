"""verify: every key gets one verdict.

Four passes: the table against Redis, chunk by chunk; the tombstones of what is gone from the table; Redis against
the table, by SCAN; and what looked wrong in any of them once more after a grace delay, because a change that was on its
way looks the same as a lost one.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from psycopg import sql

from cachemig.config import Settings
from cachemig.entries.entry import EPOCH
from cachemig.entries.verdicts import REPAIRABLE, TABLE, Counts, Outcome, Verdict, outcome
from cachemig.errors import Refused
from cachemig.progress import Progress
from cachemig.source import capture, chunks, control, queries, scan
from cachemig.source.connect import Connection, source_errors, transaction
from cachemig.source.scan import Known
from cachemig.source.table import Table, inspect
from cachemig.steps import epoch
from cachemig.steps.judge import judge
from cachemig.steps.retry import Reconnecting, attempts, reason
from cachemig.stop import Stop
from cachemig.targets.redis import Found, RedisTarget

RESUME = "verify starts from the beginning each time: cachemig verify"
HEAL = "cachemig sync --once (or the running sync) delivers everything again in a new epoch; then cachemig verify"
SHOWN = 20
_SUSPECTS = 5_000
_REREADS = 4
_BATCH_KEYS = 500
_LARGE = 4 << 20


@dataclass(frozen=True)
class Case:
    """One key that is not good."""

    key: str
    verdict: Verdict
    why: str


@dataclass
class Verified:
    """Verdicts of a verification."""

    counts: Counter[Verdict] = field(default_factory=Counter)
    cases: list[Case] = field(default_factory=list)
    """The first SHOWN of each verdict that is not good."""
    faults: Counter[str] = field(default_factory=Counter)
    """Rows set aside, by name of the fault."""
    bytes: int = 0
    seconds: float = 0.0
    sample: int | None = None
    """Keys looked at, where not all were."""
    marked: int = 0
    """Keys marked for repair."""
    accept_set_aside: int = 0
    ignore_orphans: bool = False

    @property
    def outcome(self) -> Outcome:
        return outcome(self.counts, accept_set_aside=self.accept_set_aside, ignore_orphans=self.ignore_orphans)

    def document(self) -> dict[str, Any]:
        """The figures, and the first cases of each verdict that is not good."""
        return {**self.figures(), "cases": [asdict(case) for case in self.cases]}

    def figures(self) -> dict[str, Any]:
        return {
            "counts": {verdict.value: self.counts[verdict] for verdict in Verdict if self.counts[verdict]},
            "faults": dict(sorted(self.faults.items())),
            "passed": self.outcome.passed,
            "sample": self.sample,
            "accept_set_aside": self.accept_set_aside,
            "ignore_orphans": self.ignore_orphans,
            "marked": self.marked,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
        }


def verify(
    settings: Settings,
    target: RedisTarget,
    stop: Stop,
    *,
    sample: int | None = None,
    repair: bool = False,
    accept_set_aside: int = 0,
    ignore_orphans: bool = False,
    remove_orphans: bool = False,
) -> Generator[Progress, None, Verified]:
    """A verdict for every key of the table and every key under the prefix in Redis (`sample`: for so many keys of the
    table, at random). Changes nothing but the journal; with `repair` it marks bad keys changed, and sync heals them.
    An orphan may be somebody else's: it is marked, and thereby removed, only with `remove_orphans`.

    Raises SourceError or TargetError when a side cannot be read: "could not tell" is never reported as a verdict.
    """
    began = time.monotonic()
    result = Verified(accept_set_aside=accept_set_aside, ignore_orphans=ignore_orphans)
    with Reconnecting(settings) as session:
        conn = session.get()
        table = inspect(conn, settings)
        migration = _settled(conn, settings, target)
        repairable = REPAIRABLE | ({Verdict.ORPHAN} if remove_orphans else set()) if repair else frozenset[Verdict]()
        run = _Run(settings, target, stop, session, table, result, repairable, target.clock_skew_ms())
        if sample is None:
            laid_out = migration.layout == chunks.layout_of(table, migration.epoch)
            yield from run.table_against_redis(chunks.bounds(conn) if laid_out else [(None, None)])
            yield from run.tombstones_against_redis()
            yield from run.redis_against_table()
            yield from run.settle()
            result.counts[Verdict.SKIPPED] += run.skipped()
        else:
            keys = scan.sampled_keys(session.get(), table, sample)
            result.sample = len(keys)
            yield from run.keys_against_redis(keys)
            yield from run.settle()
        if _settled(session.get(), settings, target).epoch != migration.epoch:
            raise Refused("a new epoch began while this verification ran: it does not count", hint=HEAL)
        if run.repairs:
            capture.mark(session.get(), run.repairs)
            result.marked = len(run.repairs)
        result.seconds = time.monotonic() - began
        # With the settings: a gate that asks for a verification wants one of the very same.
        figures = {**result.figures(), "fingerprint": settings.fingerprint()}
        control.journal(session.get(), "verify", figures)
    return result


def _settled(conn: Connection, settings: Settings, target: RedisTarget) -> control.Migration:
    """The migration. Raises Refused where a server is not the one that was filled: nothing is reported as fine then."""
    migration = control.require(conn, settings, "verify")
    if reason := epoch.changed(migration, target.identity()):
        raise Refused(reason, hint=HEAL)
    return migration


@dataclass
class _Run:
    settings: Settings
    target: RedisTarget
    stop: Stop
    session: Reconnecting
    table: Table
    result: Verified
    repairable: frozenset[Verdict]
    skew_ms: int
    repairs: list[str] = field(default_factory=list)
    suspects: dict[str, bool] = field(default_factory=dict)
    """Keys that looked wrong; True: found in Redis without a row that was ever known."""
    looked_at: int = 0

    def table_against_redis(self, ranges: Sequence[tuple[Any, Any]]) -> Generator[Progress, None, None]:
        for done, (lower, upper) in enumerate(ranges):
            read = partial(scan.read_chunk_known, table=self.table, lower=lower, upper=upper)
            yield from self._against_redis(read, done, len(ranges))
        yield self._progress(len(ranges), len(ranges), "chunks")

    def tombstones_against_redis(self) -> Generator[Progress, None, None]:
        """A key that is gone is not counted, unless its version key is gone too: an old write would bring it back."""
        yield from self._against_redis(partial(scan.read_gone_known, table=self.table), 0, None, counted=False)

    def _against_redis(
        self,
        read: Callable[[Connection], Generator[Known, None, None]],
        done: int,
        total: int | None,
        *,
        counted: bool = True,
    ) -> Generator[Progress, None, None]:
        before, looked_at, nbytes = self.result.counts.copy(), self.looked_at, self.result.bytes
        faults = self.result.faults.copy()
        cases = len(self.result.cases)
        for attempt in attempts(self.settings, self.stop):
            self.result.counts, self.looked_at, self.result.bytes = before.copy(), looked_at, nbytes
            self.result.faults = faults.copy()
            del self.result.cases[cases:]
            with (
                attempt,
                self.session.guard() as conn,
                transaction(conn, read_only=True),
                closing(read(conn)) as entries,
            ):
                for _ in self._first_look(entries, counted=counted):
                    yield self._progress(done, total, "chunks")
            if waiting := reason(attempt.retry_state):
                yield self._progress(done, total, "chunks", waiting)
        if len(self.suspects) >= _SUSPECTS:
            yield from self.settle()

    def keys_against_redis(self, keys: Sequence[str]) -> Generator[Progress, None, None]:
        conn = self.session.get()
        for at in range(0, len(keys), _BATCH_KEYS):
            part = keys[at : at + _BATCH_KEYS]
            with (
                transaction(conn, read_only=True),
                closing(scan.read_keys_known(conn, self.table, part)) as entries,
            ):
                for _ in self._first_look(entries):
                    pass
            yield self._progress(at + len(part), len(keys), "keys")

    def redis_against_table(self) -> Generator[Progress, None, None]:
        """Looks for values whose row is gone. Every value has its row's verdict already; these have none."""
        template = self.target.template
        seen = 0
        for names in self.target.scan(template.pattern):
            keys = []
            for name in names:
                key = template.key_of(name)
                if key is not None and capture.can_be_key(key):
                    keys.append(key)
                elif key is not None:
                    self._orphan(key)
            seen += len(names)
            with transaction(self.session.get(), read_only=True), source_errors():
                query = queries.query("scan", "known_keys", **self.table.parts, keys=sql.Literal(keys))
                rows = self.session.get().execute(query).fetchall()
            for key, has_value, known, _pending in rows:
                if not has_value:
                    self.suspects[str(key)] = not known
            if len(self.suspects) >= _SUSPECTS:
                yield from self.settle()
            self.stop.check(RESUME)
            yield self._progress(seen, None, "keys in Redis")

    def settle(self) -> Generator[Progress, None, None]:
        """Reads suspects again, until they look right or have been wrong throughout."""
        for round_ in itertools.count(1):
            if not self.suspects:
                return
            yield self._progress(self.looked_at, None, "keys", note=f"reading {len(self.suspects):,} suspects again")
            self.stop.wait(self.settings.grace)
            self.stop.check(RESUME)
            again, self.suspects = self.suspects, {}
            keys = list(again)
            for at in range(0, len(keys), _BATCH_KEYS):
                conn = self.session.get()
                part = keys[at : at + _BATCH_KEYS]
                with (
                    transaction(conn, read_only=True),
                    closing(scan.read_keys_known(conn, self.table, part)) as entries,
                ):
                    for known, found in self._looked_up(entries):
                        self._judge_again(known, found, orphan=again[known.entry.key], final=round_ == _REREADS)

    def skipped(self) -> int:
        """Keys whose rows hold nothing, but for those that have a verdict already because Redis holds something."""
        conn = self.session.get()
        with transaction(conn, read_only=True), source_errors():
            row = conn.execute(queries.query("scan", "skipped_keys", **self.table.parts)).fetchone()
        return (
            max(0, int(row[0]) - self.result.counts[Verdict.SKIPPED] - self.result.counts[Verdict.RESURRECTED])
            if row
            else 0
        )

    # ---------------------------------------------------------------------------------------------------------------

    def _looked_up(self, entries: Iterable[Known]) -> Iterator[tuple[Known, Found]]:
        """Entries with what Redis holds, fetched in batches bounded by keys and bytes."""
        batch: list[Known] = []
        nbytes = 0
        for known in entries:
            batch.append(known)
            nbytes += len(known.entry.text or b"")
            if len(batch) >= _BATCH_KEYS or nbytes >= self.settings.batch_bytes:
                yield from self._fetched(batch)
                batch, nbytes = [], 0
        yield from self._fetched(batch)

    def _fetched(self, batch: list[Known]) -> Iterator[tuple[Known, Found]]:
        self.stop.check(RESUME)
        small = [known for known in batch if len(known.entry.text or b"") < _LARGE]
        large = [known for known in batch if len(known.entry.text or b"") >= _LARGE]
        batch.clear()
        yield from zip(small, self.target.fetch([known.entry.key for known in small]), strict=True)
        while large:
            yield large[-1], self.target.fetch_large(large[-1].entry.key)
            large.pop().entry.text = None  # judged: not to stand beside the next one

    def _first_look(self, entries: Iterable[Known], *, counted: bool = True) -> Iterator[None]:
        for known, found in self._looked_up(entries):
            verdict, _ = self._judge(known, found)
            self.looked_at += 1
            if TABLE[verdict].counts is Counts.GOOD or verdict is Verdict.SET_ASIDE:
                if counted:
                    self._count(known, verdict, "")
            else:
                self.suspects[known.entry.key] = False
            if self.looked_at % _BATCH_KEYS == 0:
                yield

    def _judge_again(self, known: Known, found: Found, *, orphan: bool, final: bool) -> None:
        verdict, why = self._judge(known, found)
        key = known.entry.key
        never_known = orphan and known.state is None and known.entry.version % EPOCH == 0
        if verdict is Verdict.RESURRECTED and never_known:
            verdict, why = Verdict.ORPHAN, "no row ever had this key"
        good = TABLE[verdict].counts is Counts.GOOD
        if not good and not final:
            self.suspects[key] = orphan
        elif verdict is Verdict.SKIPPED and never_known:
            pass  # it was in Redis for a moment, and no row ever had it
        else:
            self._count(known, verdict, why)

    def _judge(self, known: Known, found: Found) -> tuple[Verdict, str]:
        now_ms = int(time.time() * 1000) + self.skew_ms
        return judge(known, found, self.settings, now_ms)

    def _count(self, known: Known, verdict: Verdict, why: str) -> None:
        self.result.counts[verdict] += 1
        self.result.bytes += len(known.entry.text or b"")
        if verdict is Verdict.SET_ASIDE:
            why = known.error or ""
            self.result.faults[why.partition(":")[0]] += 1
        if TABLE[verdict].counts is not Counts.GOOD and self.result.counts[verdict] <= SHOWN:
            self.result.cases.append(Case(known.entry.key, verdict, why))
        if verdict in self.repairable:
            self.repairs.append(known.entry.key)

    def _orphan(self, key: str) -> None:
        """A name that no Postgres text can be the key of, so no row ever was."""
        shown = key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        self.result.counts[Verdict.ORPHAN] += 1
        self.result.cases.append(Case(shown, Verdict.ORPHAN, "no Postgres text can be this key"))

    def _progress(
        self, done: int, total: int | None, unit: str, waiting: str | None = None, note: str | None = None
    ) -> Progress:
        return Progress(done, total, unit, entries=self.looked_at, bytes=self.result.bytes, note=note, waiting=waiting)

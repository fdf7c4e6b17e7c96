"""verify: every key gets one verdict.

Four passes: what is expected (steps/expected.py: the table, after the drop the ledger) against Redis, part by part; the
tombstones of what is gone from the table; Redis against what is expected, by SCAN; and what looked wrong in any of them
once more after a grace delay, because a change that was on its way looks the same as a lost one.
"""

from __future__ import annotations

import itertools
import time
from array import array
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

from cachemig.config import Settings
from cachemig.entries.entry import EPOCH
from cachemig.entries.verdicts import REPAIRABLE, Counts, Outcome, Verdict, counts_as, outcome
from cachemig.errors import Refused, TableUnfit
from cachemig.ladder import Phase
from cachemig.progress import Progress
from cachemig.source import capture, control, queries
from cachemig.source.connect import Connection, source_errors, transaction
from cachemig.source.scan import Known
from cachemig.steps import epoch
from cachemig.steps.expected import Expected, Read, alone, expected_by
from cachemig.steps.judge import judge
from cachemig.steps.orders import Orders, Paused
from cachemig.steps.read_ahead import Reader
from cachemig.steps.retry import Reconnecting, attempts, reason
from cachemig.steps.shown import Shown, leaving
from cachemig.stop import Stop
from cachemig.targets.redis import Found, RedisTarget

RESUME = "verify starts from the beginning each time: cachemig verify"
HEAL = "cachemig sync --once (or the running sync) delivers everything again in a new epoch; then cachemig verify"
HEAL_FROZEN = (
    "cachemig sync --once (or the running sync) records the server as it is now, and delivers nothing again, for what "
    "Redis lost may have been newer than the column; then cachemig verify says what is missing"
)
HEAL_DROPPED = (
    "cachemig sync --once records the server as it is now; then cachemig verify says what is missing by the ledger"
)
SHOWN = 20
_SUSPECTS = 5_000
_REREADS = 4
_BATCH_KEYS = 500
_LARGE = 4 << 20
_SCAN_KEYS = 2_000
_BUCKETS = 1 << 16
"""Shares of the keys. Of a large table a few thousand changes while it is verified leave most of them balanced."""
_MASK = (1 << 64) - 1


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
    phase: Phase = Phase.DUAL_WRITE
    """When it began."""
    sample: int | None = None
    """Keys looked at, where not all were."""
    marked: int = 0
    """Keys marked for repair."""
    accept_set_aside: int = 0
    ignore_orphans: bool = False
    dry_run: bool = False
    """Nothing was written, not even into the journal: it is no verification that a gate counts. `marked`: so many would
    be."""
    statements: list[str] = field(default_factory=list)
    """Of a dry run: what would mark them."""

    @property
    def frozen(self) -> bool:
        """Redis alone is written."""
        return self.phase in (Phase.REDIS_ONLY, Phase.DROPPED)

    @property
    def outcome(self) -> Outcome:
        return outcome(
            self.counts,
            accept_set_aside=self.accept_set_aside,
            ignore_orphans=self.ignore_orphans,
            frozen=self.frozen,
        )

    def document(self) -> dict[str, Any]:
        """The figures, and the first cases of each verdict that is not good."""
        more = {"dry_run": self.dry_run, "statements": self.statements}
        return {**self.figures(), **more, "cases": [asdict(case) for case in self.cases]}

    def figures(self) -> dict[str, Any]:
        return {
            "counts": {verdict.value: self.counts[verdict] for verdict in Verdict if self.counts[verdict]},
            "faults": dict(sorted(self.faults.items())),
            "passed": self.outcome.passed,
            "phase": self.phase.value,
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
    dry_run: bool = False,
) -> Generator[Progress, None, Verified]:
    """A verdict for every key of the table (after the drop: of the ledger) and every key under the prefix in Redis
    (`sample`: for so many keys of the table, at random). Changes nothing but the journal; with `repair` it marks bad
    keys changed, and sync delivers what the column holds: heals them or, once the column is frozen, puts its state
    back. An orphan may be somebody else's: it is marked, and thereby removed, only with `remove_orphans`. `dry_run`:
    with read rights alone; neither marks nor journals.

    Raises SourceError or TargetError when a side cannot be read: "could not tell" is never reported as a verdict.
    Refused where a server is not the one that was filled, or the ladder was moved meanwhile; and for `repair` where
    nothing could be delivered.
    """
    began = time.monotonic()
    with (
        Reconnecting(settings) as session,
        Reconnecting(settings) as asking,
        closing(Reader(Reconnecting(settings), settings.batch_bytes, _size, partial(stop.check, RESUME))) as reader,
    ):
        migration = _settled(session.get(), settings, target)
        if repair:
            _require_delivery(migration)
        result = Verified(
            phase=migration.phase,
            accept_set_aside=accept_set_aside,
            ignore_orphans=ignore_orphans,
            dry_run=dry_run,
        )
        repairable = REPAIRABLE | ({Verdict.ORPHAN} if remove_orphans else set()) if repair else frozenset[Verdict]()
        run = _Run(
            settings, target, stop, session, asking, reader, Orders(settings, stop),
            expected_by(session.get(), settings, migration), alone(migration), result, repairable,
            target.clock_skew_ms(),
        )  # fmt: skip
        try:
            with leaving(Shown("verify", lambda: run.orders.limit), asking) as shown:
                yield from shown.over(asking, run.all_keys() if sample is None else run.some_keys(sample))
        except TableUnfit as exc:
            _require_unmoved(session.get(), settings, target, migration, because=exc)
            raise
        _require_unmoved(session.get(), settings, target, migration)
        if run.repairs:
            if dry_run:
                result.statements.append(queries.text("capture", "mark_keys"))
            else:
                capture.mark(session.get(), run.repairs)
            result.marked = len(run.repairs)
        result.seconds = time.monotonic() - began
        if dry_run:
            return result
        # With the settings: a gate that asks for a verification wants one of the very same.
        figures = {**result.figures(), "fingerprint": settings.fingerprint()}
        control.journal(session.get(), "verify", figures)
    return result


def _settled(conn: Connection, settings: Settings, target: RedisTarget) -> control.Migration:
    """The migration. Raises Refused where a server is not the one that was filled: nothing is reported as fine then."""
    migration = control.require(conn, settings, "verify")
    if reason := epoch.changed(migration, target.identity()):
        raise Refused(reason, hint=heal(migration.phase))
    return migration


def heal(phase: Phase) -> str:
    """What is to be done where a server is not the one that was filled."""
    return {Phase.REDIS_ONLY: HEAL_FROZEN, Phase.DROPPED: HEAL_DROPPED}.get(phase, HEAL)


def _require_delivery(migration: control.Migration) -> None:
    """Raises Refused where a key that is marked would not be delivered."""
    if migration.phase is Phase.DROPPED:
        raise Refused(
            "--repair delivers what the column holds, and the column is dropped",
            hint="cachemig verify without --repair. A key that is missing is computed again when it is next read; "
            "cachemig restore brings the column back from its archive",
        )
    if migration.fenced:
        raise Refused(
            "a rollback was begun: nothing is delivered from the frozen column any more",
            hint="cachemig rollback goes on with it; cachemig stop-writes --execute takes it back",
        )


def _require_unmoved(
    conn: Connection,
    settings: Settings,
    target: RedisTarget,
    before: control.Migration,
    because: Exception | None = None,
) -> None:
    now = _settled(conn, settings, target)
    if (now.phase is Phase.DROPPED) != (before.phase is Phase.DROPPED):
        raise Refused(
            "the column was dropped or restored while this verification ran: it does not count", hint="cachemig verify"
        ) from because
    if (now.epoch, now.frozen_epoch) != (before.epoch, before.frozen_epoch):
        raise Refused(
            "a new epoch began while this verification ran: it does not count", hint=heal(now.phase)
        ) from because


def _size(known: Known) -> int:
    return known.size


class _Odd(NamedTuple):
    """How a suspect was found."""

    never_known: bool = False
    """In Redis, without a row that was ever known."""
    empty_row: bool = False
    """In Redis, with rows that hold nothing."""


_EXPECTED = _Odd()


@dataclass
class _Run:
    settings: Settings
    target: RedisTarget
    stop: Stop
    session: Reconnecting
    asking: Reconnecting
    """A second connection, because the first is in the middle of a COPY when an order comes."""
    reader: Reader[Known]
    orders: Orders
    expected: Expected
    alone: range
    """Versions of writes to Redis alone."""
    result: Verified
    repairable: frozenset[Verdict]
    skew_ms: int
    repairs: list[str] = field(default_factory=list)
    suspects: dict[str, _Odd] = field(default_factory=dict)
    """Keys that looked wrong."""
    looked_at: int = 0
    filled: int = 0
    """Keys whose rows hold nothing, and that were written to Redis alone."""
    balance: array[int] = field(default_factory=lambda: array("Q", bytes(8 * _BUCKETS)))
    """For each share of the keys the sum of their hashes: of those that were expected and found in Redis, less those
    that SCAN names. Zero: SCAN names no other."""

    def all_keys(self) -> Generator[Progress, None, None]:
        yield from self.expected_against_redis()
        yield from self.tombstones_against_redis()
        yield from self.redis_against_expected()
        yield from self.settle()
        self.result.counts[Verdict.SKIPPED] += self.skipped()

    def some_keys(self, number: int) -> Generator[Progress, None, None]:
        keys = self.expected.sample(self.session.get(), number)
        self.result.sample = len(keys)
        yield from self.keys_against_redis(keys)
        yield from self.settle()

    def expected_against_redis(self) -> Generator[Progress, None, None]:
        with source_errors():
            reads = self.expected.reads(self.session.get())
        for done, read in enumerate(reads):
            yield from self._against_redis(read, done, len(reads))
        yield self._progress(len(reads), len(reads), self.expected.unit)

    def tombstones_against_redis(self) -> Generator[Progress, None, None]:
        """A key that is gone is not counted, unless its version key is gone too: an old write would bring it back."""
        if read := self.expected.gone():
            yield from self._against_redis(read, 0, None)

    def _against_redis(self, read: Read, done: int, total: int | None) -> Generator[Progress, None, None]:
        before, looked_at, nbytes = self.result.counts.copy(), self.looked_at, self.result.bytes
        faults = self.result.faults.copy()
        cases = len(self.result.cases)
        balance = self.balance[:]
        paused = True
        while paused:
            yield from self._while_paused(done, total, self.expected.unit)
            for attempt in attempts(self.settings, self.stop):
                self.result.counts, self.looked_at, self.result.bytes = before.copy(), looked_at, nbytes
                self.result.faults = faults.copy()
                del self.result.cases[cases:]
                self.balance = balance[:]
                with attempt:
                    paused = yield from self._part(read, done, total)
                if waiting := reason(attempt.retry_state):
                    yield self._progress(done, total, self.expected.unit, waiting)
        if len(self.suspects) >= _SUSPECTS:
            yield from self.settle()

    def _part(self, read: Read, done: int, total: int | None) -> Generator[Progress, None, bool]:
        """Looks at one part; True where it was paused, and is to be done anew: a pause holds no snapshot."""
        try:
            with closing(self.reader.read(read)) as entries:
                for _ in self._first_look(entries):
                    if self._paused():
                        raise Paused
                    yield self._progress(done, total, self.expected.unit)
        except Paused:
            return True
        return False

    def keys_against_redis(self, keys: Sequence[str]) -> Generator[Progress, None, None]:
        conn = self.session.get()
        for at in range(0, len(keys), _BATCH_KEYS):
            yield from self._while_paused(at, len(keys), "keys")
            part = keys[at : at + _BATCH_KEYS]
            with (
                transaction(conn, read_only=True),
                closing(self.expected.of(conn, part)) as entries,
            ):
                for _ in self._first_look(entries, dict.fromkeys(part, _EXPECTED)):
                    pass
            yield self._progress(at + len(part), len(keys), "keys")

    def redis_against_expected(self) -> Generator[Progress, None, None]:
        """Looks at values that nothing is expected of: their row is gone or, once the column is frozen, Redis alone has
        them. Every other one has its verdict already.

        Most need no question: where the hashes of the keys that SCAN names have the sum of those that were found, they
        are the same keys.
        """
        seen = 0
        for keys in self._scanned():
            for key in keys:
                self._weigh(key, -1)
            seen += len(keys)
            yield from self._while_paused(seen, None, "keys in Redis")
            yield self._progress(seen, None, "keys in Redis")
        if not any(self.balance):
            return
        odd: list[str] = []
        for keys in self._scanned(orphans=False):
            odd += [key for key in keys if self.balance[hash(key) % _BUCKETS]]
            if len(odd) >= _SCAN_KEYS:
                yield from self._looked_for(odd)
                odd.clear()
            yield self._progress(seen, None, "keys in Redis", note="looking for rows of some of them")
        if odd:
            yield from self._looked_for(odd)

    def _scanned(self, *, orphans: bool = True) -> Iterator[list[str]]:
        """The keys under the prefix. What can be none of Postgres's is an orphan."""
        template = self.target.template
        for names in self.target.scan(template.pattern):
            keys = []
            for name in names:
                key = template.key_of(name)
                if key is not None and capture.can_be_key(key):
                    keys.append(key)
                elif key is not None and orphans:
                    self._orphan(key)
            self.stop.check(RESUME)
            yield keys

    def _weigh(self, key: str, sign: int) -> None:
        number = hash(key)
        bucket = number % _BUCKETS
        self.balance[bucket] = (self.balance[bucket] + sign * number) & _MASK

    def _looked_for(self, keys: Sequence[str]) -> Generator[Progress, None, None]:
        """Suspects those of the keys that no part has looked at."""
        yield from self._while_paused(self.looked_at, None, "keys")
        conn = self.session.get()
        with transaction(conn, read_only=True), source_errors():
            found = self.expected.whereabouts(conn, keys)
            odd = {w.key: _Odd(not w.known, w.empty_row) for w in found if not w.looked_at}
            if odd:
                with closing(self.expected.of(conn, list(odd))) as entries:
                    for _ in self._first_look(entries, odd):
                        pass
        if len(self.suspects) >= _SUSPECTS:
            yield from self.settle()

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
                yield from self._while_paused(self.looked_at, None, "keys")
                conn = self.session.get()
                part = keys[at : at + _BATCH_KEYS]
                with (
                    transaction(conn, read_only=True),
                    closing(self.expected.of(conn, part)) as entries,
                ):
                    for known, found in self._looked_up(entries):
                        self._judge_again(known, found, again[known.entry.key], final=round_ == _REREADS)

    def skipped(self) -> int:
        """Keys whose rows hold nothing, but for those that have a verdict already because Redis holds something."""
        counts = self.result.counts
        judged = counts[Verdict.SKIPPED] + counts[Verdict.RESURRECTED] + self.filled
        return max(0, self.expected.empty(self.session.get()) - judged)

    # ---------------------------------------------------------------------------------------------------------------

    def _paused(self) -> bool:
        with self.asking.guard() as conn:
            return self.orders.look(conn) is not None

    def _while_paused(self, done: int, total: int | None, unit: str) -> Generator[Progress, None, None]:
        """Waits without a transaction: a paused verify holds up no vacuum."""
        paused = True
        while paused:
            self.stop.check(RESUME)
            for attempt in attempts(self.settings, self.stop):  # each time anew: a long pause is no failed attempt
                with attempt:
                    paused = self._paused()
                if waiting := reason(attempt.retry_state):
                    yield self._progress(done, total, unit, waiting)
            if paused:
                yield self._progress(done, total, unit, self.orders.throttled)
                self.stop.wait(0.3)

    def _looked_up(self, entries: Iterable[Known]) -> Iterator[tuple[Known, Found]]:
        """Entries with what Redis holds, fetched in batches bounded by keys and bytes."""
        batch: list[Known] = []
        nbytes = 0
        for known in entries:
            batch.append(known)
            nbytes += known.size
            if len(batch) >= _BATCH_KEYS or nbytes >= self.settings.batch_bytes:
                yield from self._fetched(batch)
                self.orders.spend(nbytes)
                batch, nbytes = [], 0
        yield from self._fetched(batch)
        self.orders.spend(nbytes)

    def _fetched(self, batch: list[Known]) -> Iterator[tuple[Known, Found]]:
        self.stop.check(RESUME)
        sizes = [known.size for known in batch]
        if self.alone:  # a value that was written to Redis alone may be of any size
            sizes = list(map(max, sizes, self.target.sizes([known.entry.key for known in batch])))
        large = [known for known, size in zip(batch, sizes, strict=True) if size >= _LARGE]
        small: list[Known] = []
        nbytes = 0
        for known, size in zip(batch, sizes, strict=True):
            if size < _LARGE:
                if nbytes + size > max(self.settings.batch_bytes, _LARGE):
                    yield from zip(small, self.target.fetch([k.entry.key for k in small]), strict=True)
                    small, nbytes = [], 0
                small.append(known)
                nbytes += size
        batch.clear()
        yield from zip(small, self.target.fetch([known.entry.key for known in small]), strict=True)
        while large:
            yield large[-1], self.target.fetch_large(large[-1].entry.key)
            large.pop().entry.text = None  # judged: not to stand beside the next one

    def _first_look(self, entries: Iterable[Known], odd: Mapping[str, _Odd] | None = None) -> Iterator[None]:
        """Counts what is good, and suspects the rest. A key that is gone counts only where it is among `odd`. Yields
        now and then."""
        yielded = time.monotonic()
        for known, found in self._looked_up(entries):
            if odd is None and known.holds and (found.value is not None or found.fault is not None):
                self._weigh(known.entry.key, 1)
            how = odd[known.entry.key] if odd else _EXPECTED
            verdict, _ = self._judge(known, found, how)
            self.looked_at += 1
            if verdict is None:
                pass
            elif self._counts(verdict) is not Counts.GOOD and verdict is not Verdict.SET_ASIDE:
                self.suspects[known.entry.key] = how
            elif known.holds or odd:
                self._count(known, verdict, "", how)
            if time.monotonic() - yielded > 0.1:
                yield
                while self.orders.held and not self._paused():
                    self.stop.check(RESUME)
                    self.orders.spend(0)
                    yield
                yielded = time.monotonic()

    def _judge_again(self, known: Known, found: Found, how: _Odd, *, final: bool) -> None:
        verdict, why = self._judge(known, found, how)
        if verdict is None:
            return
        if (
            verdict is Verdict.MISMATCH
            and found.value is not None
            and self.expected.is_equal(self.session.get(), known, found.value)
        ):
            verdict, why = Verdict.EQUIVALENT, ""
        if self._counts(verdict) is not Counts.GOOD and not final:
            self.suspects[known.entry.key] = how
        else:
            self._count(known, verdict, why, how, repair=(found.version or 0) not in self.alone)

    def _judge(self, known: Known, found: Found, how: _Odd) -> tuple[Verdict | None, str]:
        """None: it was in Redis for a moment, and no row ever had it."""
        now_ms = int(time.time() * 1000) + self.skew_ms
        verdict, why = judge(known, found, self.settings, now_ms, self.alone)
        if how.never_known and known.state is None and known.entry.version % EPOCH == 0:
            if verdict is Verdict.RESURRECTED:
                return Verdict.ORPHAN, "no row ever had this key"
            if verdict is Verdict.SKIPPED:
                return None, ""
        return verdict, why

    def _counts(self, verdict: Verdict) -> Counts:
        return counts_as(verdict, frozen=self.result.frozen)

    def _count(self, known: Known, verdict: Verdict, why: str, how: _Odd, *, repair: bool = True) -> None:
        """`repair`: what is delivered of the key would replace what Redis holds."""
        self.result.counts[verdict] += 1
        self.result.bytes += known.size
        self.filled += verdict is Verdict.NEWER and how.empty_row
        if verdict is Verdict.SET_ASIDE:
            why = known.error or ""
            self.result.faults[why.partition(":")[0]] += 1
        if self._counts(verdict) is not Counts.GOOD and self.result.counts[verdict] <= SHOWN:
            self.result.cases.append(Case(known.entry.key, verdict, why))
        if verdict in self.repairable and repair:
            self.repairs.append(known.entry.key)

    def _orphan(self, key: str) -> None:
        """A name that no Postgres text can be the key of, so no row ever was."""
        shown = key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        self.result.counts[Verdict.ORPHAN] += 1
        self.result.cases.append(Case(shown, Verdict.ORPHAN, "no Postgres text can be this key"))

    def _progress(
        self, done: int, total: int | None, unit: str, waiting: str | None = None, note: str | None = None
    ) -> Progress:
        return Progress(
            done,
            total,
            unit,
            entries=self.looked_at,
            bytes=self.result.bytes,
            note=note,
            slowed=None if waiting else self.orders.throttled,
            waiting=waiting,
        )

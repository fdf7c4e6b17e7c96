"""backfill: delivers every entry that sync does not, chunk by chunk, until an anti-join finds nothing left.

Killed at any point it loses at most the chunks in work, and any number of workers may run anywhere: they share the
chunks through the control schema, and the fence in Redis makes a double delivery harmless.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from psycopg import sql
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from cachemig import failpoints
from cachemig.config import Settings
from cachemig.entries.entry import Entry
from cachemig.errors import Interrupted, LeaseHeld, Refused
from cachemig.ladder import to_run
from cachemig.progress import Progress
from cachemig.source import capture, chunks, control, ledger, queries, scan
from cachemig.source.connect import Connection, connect, transaction
from cachemig.source.table import Table, inspect
from cachemig.steps import epoch
from cachemig.steps.delivery import Tally, deliver
from cachemig.steps.orders import Orders, Paused
from cachemig.steps.retry import Reconnecting, attempts, reason
from cachemig.stop import Stop
from cachemig.targets.redis import RedisTarget

RESUME = "run the same command again: cachemig backfill goes on where it stopped"
_ANTI_JOIN_LIMIT = 5_000


@dataclass
class Backfilled:
    """What a run of backfill did."""

    tally: Tally = field(default_factory=Tally)
    chunks: int = 0
    resumed_at: int = 0
    """Chunks that were done before this run."""
    epochs: int = 0
    """New epochs that began during this run, because a server may have lost what it had acknowledged."""
    left_over: int = 0
    """Entries that no chunk had delivered and the anti-join found."""
    repaired: int = 0
    """Corrupt values that were decoded or recomputed in the table, and delivered."""
    seconds: float = 0.0

    def figures(self) -> dict[str, Any]:
        return {
            **asdict(self.tally),
            "chunks": self.chunks,
            "epochs": self.epochs,
            "left_over": self.left_over,
            "repaired": self.repaired,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Outlook:
    """What a run would do."""

    chunks: int | None
    """None: the table would be laid out first."""
    chunks_done: int
    rows_estimated: int
    bytes_estimated: int


def preview(settings: Settings) -> Outlook:
    """What `backfill` would do now. Reads only. Raises what backfill itself would be refused for."""
    with connect(settings) as conn:
        table = inspect(conn, settings)
        migration = _ready(conn, settings, table)
        laid_out = migration.layout == chunks.layout_of(table, migration.epoch)
        totals = chunks.totals(conn)
        rows = max(0, int(table.tuples))
        return Outlook(
            totals.chunks if laid_out else None,
            totals.done if laid_out else 0,
            rows,
            int(rows * chunks.sample_width(conn, table)),
        )


def backfill(
    settings: Settings, target: RedisTarget, stop: Stop, *, restart: bool = False
) -> Generator[Progress, None, Backfilled]:
    """Delivers every entry. Returns when the anti-join finds none that is missing from the ledger.

    Raises Refused without capture, Interrupted on request, and SourceError or TargetError when a server stays away
    longer than `retry_for`; running it again goes on where it stopped.
    """
    began = time.monotonic()
    result = Backfilled()
    orders = Orders(settings, stop)
    with Reconnecting(settings) as session, Reconnecting(settings) as asking:
        started = control.now(session.get())
        while True:
            with connect(settings) as conn:
                table = inspect(conn, settings)
                migration = _ready(conn, settings, table)
                target.check()
                with _layout_lease(conn):
                    migration = _ready(conn, settings, table)
                    if restart or migration.layout != chunks.layout_of(table, migration.epoch):
                        chunks.lay_out(conn, table, migration.epoch)
                result.resumed_at = chunks.totals(conn).done
            run = _Run(settings, target, stop, table, migration.epoch, session, asking, orders, result)
            yield from run.all_chunks()
            yield from run.left_over(started)
            if run.is_of_this_epoch(session.get()):
                break
            restart = False
            result.epochs += 1
        if settings.corrupt == "recompute" and "set-aside" in ledger.counts(session.get()):
            from cachemig.steps.recompute import recompute  # NumPy's neighbours are loaded only where they are needed

            result.repaired = (yield from recompute(settings, target, stop, None)).repaired
        result.seconds = time.monotonic() - began
        control.journal(session.get(), "backfill", result.figures())
    return result


@contextmanager
def _layout_lease(conn: Connection) -> Iterator[None]:
    """The lease for laying out, which takes a moment: backfills that are started at once wait for each other."""
    with ExitStack() as stack:
        for attempt in Retrying(
            retry=retry_if_exception_type(LeaseHeld), wait=wait_fixed(0.2), stop=stop_after_delay(30), reraise=True
        ):
            with attempt:
                stack.enter_context(control.lease(conn, "layout"))
        yield


def _ready(conn: Connection, settings: Settings, table: Table) -> control.Migration:
    migration = control.require(conn, settings, "backfill")
    if not capture.installed(conn, table):
        raise Refused(
            "capture is not installed on the table: writes made meanwhile would be lost",
            hint=to_run("dual-write", migration.phase),
        )
    return migration


@dataclass
class _Run:
    settings: Settings
    target: RedisTarget
    stop: Stop
    table: Table
    epoch: int
    session: Reconnecting
    asking: Reconnecting
    """A second connection, because the first is in the middle of a COPY when an order comes."""
    orders: Orders
    result: Backfilled
    owner: str = field(default_factory=control.owner)
    totals: chunks.Totals = field(default_factory=chunks.Totals)

    def is_of_this_epoch(self, conn: Connection) -> bool:
        """What was delivered still counts: both servers are the ones that it was delivered between."""
        begun = epoch.ensure(conn, self.target)
        return begun is None and control.require(conn, self.settings, "backfill").epoch == self.epoch

    def all_chunks(self) -> Generator[Progress, None, None]:
        """Works until every chunk is done, or a new epoch has begun."""
        while True:
            done = False
            for attempt in attempts(self.settings, self.stop):
                with attempt, self.session.guard() as conn:
                    done = yield from self._one_chunk(conn)
                if waiting := reason(attempt.retry_state):
                    yield self._progress(Tally(), waiting)
            if done:
                return

    def _one_chunk(self, conn: Connection) -> Generator[Progress, None, bool]:
        """Does one chunk; True when there is none left to do in this epoch."""
        yield from self._while_paused()
        if not self.is_of_this_epoch(conn):
            return True
        self.totals = chunks.totals(conn)
        self.stop.check(RESUME)
        chunk = chunks.claim(conn, self.owner, self.epoch)
        if chunk is None:
            return (yield from self._wait_for_others(conn))
        failpoints.hit("backfill-after-claim")
        tally = Tally()
        try:
            entries = scan.read_chunk(conn, self.table, chunk.lower, chunk.upper)
            with transaction(conn, read_only=True):
                records = yield from self._delivered(entries, tally)
        except (Interrupted, Refused):
            chunks.release(conn, chunk, self.owner)
            raise
        except Paused:
            chunks.release(conn, chunk, self.owner)
            return False
        failpoints.hit("backfill-after-delivery")
        with transaction(conn):
            ledger.write(conn, records)
            failpoints.hit("backfill-after-ledger")
            figures = {**asdict(tally), "entries": tally.entries}
            if chunks.finish(conn, chunk, self.owner, figures):
                self.result.chunks += 1
        failpoints.hit("backfill-after-commit")
        self.result.tally.merge(tally)
        return not self.is_of_this_epoch(conn)

    def _wait_for_others(self, conn: Connection) -> Generator[Progress, None, bool]:
        if self.totals.done == self.totals.chunks or not self.is_of_this_epoch(conn):
            return True
        yield self._progress(Tally(), f"{self.totals.running} chunks are with other workers")
        self.stop.wait(0.3)
        return False

    def left_over(self, since: datetime) -> Generator[Progress, None, None]:
        """Delivers what no chunk had: rows that moved, or came in under an old snapshot."""
        unhandled = queries.query(
            "scan", "unhandled", **self.table.parts, since=sql.Literal(since), limit=sql.Literal(_ANTI_JOIN_LIMIT)
        )
        found = True
        while found:
            for attempt in attempts(self.settings, self.stop):
                with attempt, self.session.guard() as conn:
                    found = yield from self._one_batch(conn, unhandled)
                if waiting := reason(attempt.retry_state):
                    yield self._progress(Tally(), waiting)

    def _one_batch(self, conn: Connection, unhandled: sql.Composed) -> Generator[Progress, None, bool]:
        yield from self._while_paused()
        if not self.is_of_this_epoch(conn):
            return False
        yield self._progress(Tally(), note="looking for entries that no chunk delivered")
        with transaction(conn, read_only=True):
            rows = conn.execute(unhandled).fetchall()
        keys = [str(row[0]) for row in rows]
        if not keys:
            return False
        # Marked first, so that they are remembered should this worker die between Redis's answer and the ledger.
        capture.mark(conn, keys)
        tally = Tally()
        try:
            with transaction(conn, read_only=True):
                records = yield from self._delivered(scan.read_keys(conn, self.table, keys), tally)
        except Paused:
            return True
        with transaction(conn):
            ledger.write(conn, records)
        self.result.tally.merge(tally)
        self.result.left_over += len(keys)
        return True

    def _delivered(
        self, entries: Generator[Entry, None, None], tally: Tally
    ) -> Generator[Progress, None, list[ledger.Record]]:
        done = []
        shown = time.monotonic()
        with closing(entries), closing(deliver(self.target, entries, tally)) as records:
            for record in records:
                if record.state == "set-aside" and self.settings.corrupt == "stop":
                    raise Refused(
                        f"{record.key} is corrupt ({record.error}), and on_corrupt is stop",
                        hint="repair the row; or --on-corrupt set-aside, recompute or copy",
                    )
                done.append(record)
                failpoints.hit("backfill-during-delivery")
                self.orders.spend(record.nbytes or 0)
                if time.monotonic() - shown > 0.1:
                    self.stop.check(RESUME)
                    if self._paused_by():
                        raise Paused
                    yield self._progress(tally)
                    shown = time.monotonic()
        yield self._progress(tally)
        return done

    def _paused_by(self) -> str | None:
        with self.asking.guard() as conn:
            return self.orders.look(conn)

    def _while_paused(self) -> Generator[Progress, None, None]:
        """Waits without a transaction: a paused worker holds up no vacuum."""
        while True:
            self.stop.check(RESUME)
            if not (by := self._paused_by()):
                return
            yield self._progress(Tally(), f"paused by {by}; cachemig resume goes on")
            self.stop.wait(0.3)

    def _progress(self, tally: Tally, waiting: str | None = None, note: str | None = None) -> Progress:
        return Progress(
            self.totals.done,
            self.totals.chunks or None,
            "chunks",
            entries=self.result.tally.entries + tally.entries,
            bytes=self.result.tally.bytes + tally.bytes,
            note=note,
            waiting=waiting,
        )

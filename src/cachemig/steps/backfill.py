"""backfill: delivers every entry that sync does not, chunk by chunk, until an anti-join finds nothing left.

Killed at any point it loses at most the chunks in work, and any number of workers may run anywhere: they share the
chunks through the control schema, and the fence in Redis makes a double delivery harmless.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from psycopg import sql

from cachemig import failpoints
from cachemig.alongside import Alongside
from cachemig.config import Settings
from cachemig.entries.entry import Entry
from cachemig.errors import Interrupted, LockNotGranted, Refused, SourceError
from cachemig.ladder import to_run
from cachemig.progress import Progress
from cachemig.source import capture, chunks, control, ledger, queries, scan
from cachemig.source.connect import Connection, connect, transaction
from cachemig.source.table import Table, inspect
from cachemig.steps import dry_run, epoch
from cachemig.steps.delivery import Tally, deliver
from cachemig.steps.orders import Orders, Paused
from cachemig.steps.read_ahead import Ahead, Reader
from cachemig.steps.retry import Reconnecting, attempts, reason
from cachemig.steps.shown import Shown, leaving
from cachemig.steps.standby import Standby
from cachemig.steps.unfinished import unfinished
from cachemig.stop import Stop
from cachemig.targets.redis import RedisTarget

if TYPE_CHECKING:
    from cachemig.steps.crew import Crew, Shift

RESUME = "run the same command again: cachemig backfill goes on where it stopped"
_ANTI_JOIN_LIMIT = 5_000
_AHEAD = 2
"""Pipelines of values that may have been read ahead."""
_SPENT_AT_ONCE = 4 << 10
"""Bytes from which a limit is thought of."""
_LOOK_EVERY_S = 0.1
_STRAGGLER_S = 5.0
"""How long a process that hangs is waited for once every chunk is done: what it still does is done already."""


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

    def add(self, other: Backfilled) -> None:
        """What one worker did."""
        self.tally.merge(other.tally)
        self.chunks += other.chunks
        self.left_over += other.left_over

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
    layout: list[str] = field(default_factory=list)
    """What lays the table out, where that is to be done; with what a sample of the rows weighs just now."""
    statements: list[str] = field(default_factory=list)
    """Of each chunk. What is in %()s is known only then."""
    redis: list[str] = field(default_factory=list)
    """What would be written to Redis, in words."""


def preview(settings: Settings, *, restart: bool = False) -> Outlook:
    """What `backfill` would do now. Reads only. Raises what backfill itself would be refused for."""
    with connect(settings) as conn:
        table = inspect(conn, settings)
        migration = _ready(conn, settings, table)
        laid_out = not restart and chunks.is_laid_out(migration.layout, table, migration.epoch)
        totals = chunks.totals(conn)
        rows = max(0, int(table.tuples))
        return Outlook(
            totals.chunks if laid_out else None,
            totals.done if laid_out else 0,
            rows,
            int(rows * chunks.sample_width(conn, table)),
            [] if laid_out else chunks.statements(conn, table),
            [
                queries.text("chunks", "claim_chunk"),
                scan.chunk_statement(table).as_string(conn),
                *ledger.statements(),
                queries.text("chunks", "finish_chunk"),
            ],
            dry_run.deliveries(settings),
        )


def backfill(
    settings: Settings, target: RedisTarget, stop: Stop, *, restart: bool = False, crew: Crew | None = None
) -> Generator[Progress, None, Backfilled]:
    """Delivers every entry. Returns when the anti-join finds none that is missing from the ledger. A `crew` shares the
    chunks with this process.

    Raises Refused without capture, Interrupted on request, and SourceError or TargetError when a server stays away
    longer than `retry_for`; running it again goes on where it stopped.
    """
    began = time.monotonic()
    result = Backfilled()
    with connect(settings) as conn:
        _ready(conn, settings, inspect(conn, settings))
        started = control.now(conn)
    target.check()  # one that is not there from the start is a mistake, and not waited for
    working: list[Worker] = []

    def so_far() -> dict[str, Any]:
        result.seconds = time.monotonic() - began
        for worker in working:
            result.add(worker.result)
        return result.figures() if result.tally.entries else {}

    with unfinished(settings, "backfill", so_far):
        while True:
            table, migration, result.resumed_at = yield from _laid_out(settings, stop, restart=restart)
            with Worker.of(settings, target, stop, table, migration) as worker:
                working.append(worker)
                helped = crew.begin(migration.epoch) if crew else None
                yield from _together(worker, helped)
                yield from worker.shown.over(worker.asking, worker.left_over(started))
            with connect(settings) as conn:
                for figures in chunks.done_by(conn, helped.owners if helped else []):
                    result.tally.merge(Tally.of(figures))
                    result.chunks += 1
                result.add(working.pop().result)
                if worker.is_of_this_epoch(conn):
                    break
            restart = False
            result.epochs += 1
        with connect(settings) as conn:
            repairs = settings.corrupt == "recompute" and "set-aside" in ledger.counts(conn)
        if repairs:
            from cachemig.steps.recompute import recompute  # NumPy's neighbours are loaded only where they are needed

            result.repaired = (yield from recompute(settings, target, stop, None)).repaired
    result.seconds = time.monotonic() - began
    with connect(settings) as conn:
        control.journal(conn, "backfill", result.figures())
    return result


def help_out(settings: Settings, target: RedisTarget, stop: Stop, epoch: int) -> Generator[Progress, None, None]:
    """One of a crew: works on the chunks of this epoch until none is left, and does nothing else."""
    with connect(settings) as conn:
        table = inspect(conn, settings)
        migration = _ready(conn, settings, table)
    if migration.epoch == epoch:
        with Worker.of(settings, target, stop, table, migration) as worker:
            yield from worker.shown.over(worker.asking, worker.all_chunks())


def _together(worker: Worker, helped: Shift | None) -> Generator[Progress, None, None]:
    """This worker's progress with what the others have done added."""
    for progress in worker.shown.over(worker.asking, worker.all_chunks()):
        yield helped.added_to(progress) if helped else progress
    if helped:
        began = time.monotonic()
        while helped.at_work() and time.monotonic() - began < _STRAGGLER_S:
            worker.stop.check(RESUME)
            worker.stop.wait(0.05)


def _laid_out(
    settings: Settings, stop: Stop, *, restart: bool
) -> Generator[Progress, None, tuple[Table, control.Migration, int]]:
    """The table, divided into chunks, and how many of these are done. Waits while another worker divides it."""
    while True:
        stop.check(RESUME)
        with suppress(LockNotGranted), connect(settings) as conn:
            table = inspect(conn, settings)
            migration = _ready(conn, settings, table)
            if restart or not chunks.is_laid_out(migration.layout, table, migration.epoch):
                dividing = Progress(0, None, "chunks", note="dividing the table into chunks")
                yield dividing
                with Reconnecting(settings) as asking, leaving(Shown("backfill"), asking) as shown:
                    shown.say(asking, dividing)
                    layout = chunks.lay_out(conn, table, migration.epoch, again=restart)
                migration = replace(migration, layout=layout)
            return table, migration, chunks.totals(conn).done
        yield Progress(0, None, "chunks", waiting="another worker divides the table into chunks")


def _ready(conn: Connection, settings: Settings, table: Table) -> control.Migration:
    migration = control.require(conn, settings, "backfill")
    if not capture.installed(conn, table):
        raise Refused(
            "capture is not installed on the table: writes made meanwhile would be lost",
            hint=to_run("dual-write", migration.phase),
        )
    return migration


def _size(entry: Entry) -> int:
    return 0 if entry.text is None else len(entry.text)


class _Taken(Exception):
    """The chunk was given to another worker, because this one was silent or slow."""


@dataclass(frozen=True)
class _Work:
    chunk: chunks.Chunk
    entries: Ahead[Entry]
    """Being read already."""


@dataclass
class Worker:
    """Takes chunks and delivers them. While one is on its way to Redis the next one is being read."""

    settings: Settings
    target: RedisTarget
    stop: Stop
    table: Table
    epoch: int
    shared: list[str] | None
    session: Reconnecting
    """For ledger and finished chunks."""
    asking: Reconnecting
    """For orders, epochs and leases, at any time."""
    reader: Reader[Entry]
    standby: Standby | None
    orders: Orders
    shown: Shown
    result: Backfilled = field(default_factory=Backfilled)
    owner: str = field(default_factory=control.owner)
    totals: chunks.Totals = field(default_factory=chunks.Totals)
    next: _Work | None = None
    keeping: tuple[int, Alongside] | None = None
    renewed: float = 0.0

    @classmethod
    @contextmanager
    def of(
        cls, settings: Settings, target: RedisTarget, stop: Stop, table: Table, migration: control.Migration
    ) -> Iterator[Worker]:
        reading = replace(settings, dsn=settings.read_dsn or settings.dsn)
        with (
            Reconnecting(settings) as session,
            Reconnecting(settings) as asking,
            closing(
                Reader(Reconnecting(reading), _AHEAD * settings.batch_bytes, _size, partial(stop.check, RESUME))
            ) as reader,
        ):
            standby = Standby.of(settings, session.get(), table, migration)
            orders = Orders(settings, stop)
            worker = cls(
                settings, target, stop, table, migration.epoch, chunks.shared_of(migration.layout), session, asking,
                reader, standby, orders, Shown("backfill", lambda: orders.limit),
            )  # fmt: skip
            with leaving(worker.shown, asking):
                yield worker

    def is_of_this_epoch(self, conn: Connection) -> bool:
        """What was delivered still counts: both servers are the ones that it was delivered between."""
        begun = epoch.ensure(conn, self.target)
        return begun is None and control.require(conn, self.settings, "backfill").epoch == self.epoch

    def all_chunks(self) -> Generator[Progress, None, None]:
        """Works until every chunk is done, or a new epoch has begun."""
        try:
            while True:
                yield from self._while_paused()
                done = False
                for attempt in attempts(self.settings, self.stop):
                    with attempt, self.asking.guard() as conn:
                        done = yield from self._one_chunk(conn)
                    if waiting := reason(attempt.retry_state):
                        yield self.progress(Tally(), waiting)
                if done:
                    return
        except (Interrupted, Refused):
            with suppress(SourceError), self.asking.guard() as conn:
                self._let_go(conn)
            raise
        finally:
            self._let_go(None)
            self._settle(quietly=True)

    def _one_chunk(self, conn: Connection) -> Generator[Progress, None, bool]:
        """Does one chunk; True when there is none left to do in this epoch. Its bookkeeping goes on alongside the next
        one; where that fails, the chunk is done again."""
        if not self.is_of_this_epoch(conn):
            return True
        self.totals = chunks.totals(conn)
        self.stop.check(RESUME)
        work, self.next = self.next or self._begun(conn, self._held()), None
        if work is None:
            self._settle()
            self.totals = chunks.totals(conn)
            return (yield from self._wait_for_others(conn))
        failpoints.hit("backfill-after-claim")
        tally = Tally()
        began = time.monotonic()
        try:
            with closing(work.entries):
                self.next = self._begun(conn, [*self._held(), work.chunk.id])
                records = yield from self._delivered(iter(work.entries), tally, work)
        except (Interrupted, Refused):
            chunks.release(conn, work.chunk, self.owner)
            raise
        except Paused:
            self._let_go(conn)
            chunks.release(conn, work.chunk, self.owner)
            return False
        except _Taken:
            return False
        failpoints.hit("backfill-after-delivery")
        self._settle()
        figures = {**asdict(tally), "entries": tally.entries, "seconds": round(time.monotonic() - began, 3)}
        self.keeping = (work.chunk.id, Alongside(partial(self._keep, work.chunk, records, tally, figures)))
        return False

    def _keep(self, chunk: chunks.Chunk, records: list[ledger.Record], tally: Tally, figures: dict[str, Any]) -> None:
        """Ledger and chunk, in one transaction. In a thread of its own, which alone uses `session` meanwhile."""
        with self.session.guard() as conn:
            with transaction(conn):
                ledger.write(conn, records)
                failpoints.hit("backfill-after-ledger")
                if chunks.finish(conn, chunk, self.owner, figures):
                    self.result.chunks += 1
            failpoints.hit("backfill-after-commit")
        self.result.tally.merge(tally)

    def _settle(self, *, quietly: bool = False) -> None:
        """Waits until the bookkeeping of the last chunk is done. Raises what it raised, but `quietly`: then the chunk
        is done again by whoever comes next."""
        keeping, self.keeping = self.keeping, None
        if keeping is not None:
            keeping[1].wait() if quietly else keeping[1].result()

    def _held(self) -> list[int]:
        """Chunks that are delivered, and not done in the books yet."""
        return [] if self.keeping is None else [self.keeping[0]]

    def _begun(self, conn: Connection, held: Sequence[int]) -> _Work | None:
        """A chunk of which the reading has begun, none of those that it `held` already."""
        chunk = chunks.claim(conn, self.owner, self.epoch, held)
        if chunk is None:
            return None
        read = partial(scan.read_chunk, table=self.table, lower=chunk.lower, upper=chunk.upper, shared=self.shared)
        return _Work(chunk, self.reader.read(self.standby.reading(read) if self.standby else read))

    def _let_go(self, conn: Connection | None) -> None:
        """Ends the reading of the next chunk; with a connection the chunk is given back as well."""
        work, self.next = self.next, None
        if work is not None:
            work.entries.close()
            if conn is not None:
                chunks.release(conn, work.chunk, self.owner)

    def _wait_for_others(self, conn: Connection) -> Generator[Progress, None, bool]:
        if self.totals.done == self.totals.chunks or not self.is_of_this_epoch(conn):
            return True
        yield self.progress(Tally(), f"{self.totals.running} chunks are with other workers")
        self.stop.wait(0.3)
        return False

    def left_over(self, since: datetime) -> Generator[Progress, None, None]:
        """Delivers what no chunk had: rows that moved, or came in under an old snapshot."""
        unhandled = queries.query(
            "scan", "unhandled", **self.table.parts, since=sql.Literal(since), limit=sql.Literal(_ANTI_JOIN_LIMIT)
        )
        found = True
        while found:
            yield from self._while_paused()
            for attempt in attempts(self.settings, self.stop):
                with attempt, self.session.guard() as conn:
                    found = yield from self._one_batch(conn, unhandled)
                if waiting := reason(attempt.retry_state):
                    yield self.progress(Tally(), waiting)

    def _one_batch(self, conn: Connection, unhandled: sql.Composed) -> Generator[Progress, None, bool]:
        if not self.is_of_this_epoch(conn):
            return False
        yield self.progress(Tally(), note="looking for entries that no chunk delivered")
        with transaction(conn, read_only=True):
            conn.execute(queries.text("scan", "no_nested_loops"))
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
        self, entries: Generator[Entry, None, None], tally: Tally, work: _Work | None = None
    ) -> Generator[Progress, None, list[ledger.Record]]:
        done = []
        spent = 0
        looked = time.monotonic()
        with closing(entries), closing(deliver(self.target, entries, tally)) as records:
            for record in records:
                if record.state == "set-aside" and self.settings.corrupt == "stop":
                    raise Refused(
                        f"{record.key} is corrupt ({record.error}), and on_corrupt is stop",
                        hint="repair the row; or --on-corrupt set-aside, recompute or copy",
                    )
                done.append(record)
                failpoints.hit("backfill-during-delivery")
                spent += record.nbytes or 0
                if spent >= _SPENT_AT_ONCE:
                    self.orders.spend(spent)
                    spent = 0
                    while self.orders.held:
                        yield from self._looked(tally, work)
                        self.orders.spend(0)
                if time.monotonic() - looked > _LOOK_EVERY_S:
                    yield from self._looked(tally, work)
                    looked = time.monotonic()
        self.orders.spend(spent)
        yield self.progress(tally)
        return done

    def _looked(self, tally: Tally, work: _Work | None) -> Generator[Progress, None, None]:
        """What is to be seen to now and then. Raises Interrupted, Paused, or _Taken."""
        self.stop.check(RESUME)
        if self._paused():
            raise Paused
        if work is not None:
            self._renew(work)
        yield self.progress(tally)

    def _renew(self, work: _Work) -> None:
        """Raises _Taken where the chunk is with another worker by now."""
        if time.monotonic() - self.renewed < chunks.LEASE_S / 6:
            return
        with self.asking.guard() as conn:
            mine = chunks.renew(conn, self.owner)
        self.renewed = time.monotonic()
        if (work.chunk.id, work.chunk.attempts) not in mine:
            raise _Taken

    def _paused(self) -> bool:
        with self.asking.guard() as conn:
            return self.orders.look(conn) is not None

    def _while_paused(self) -> Generator[Progress, None, None]:
        """Waits without a transaction and without a chunk: a paused worker holds up no vacuum, and nobody."""
        paused = True
        while paused:
            self.stop.check(RESUME)
            for attempt in attempts(self.settings, self.stop):  # each time anew: a long pause is no failed attempt
                with attempt:
                    paused = self._paused()
                    if paused:
                        self._settle()
                        with self.asking.guard() as conn:
                            self._let_go(conn)
                if waiting := reason(attempt.retry_state):
                    yield self.progress(Tally(), waiting)
            if paused:
                yield self.progress(Tally(), self.orders.throttled)
                self.stop.wait(0.3)

    def progress(self, tally: Tally, waiting: str | None = None, note: str | None = None) -> Progress:
        return Progress(
            self.totals.done,
            self.totals.chunks or None,
            "chunks",
            entries=self.result.tally.entries + tally.entries,
            bytes=self.result.tally.bytes + tally.bytes,
            note=note,
            waiting=waiting,
            slowed=self.orders.throttled if waiting is None else None,
        )

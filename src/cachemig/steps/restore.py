"""restore: the column comes back after it was dropped: from its archive, and what Redis has newer from there.

The table stays in use. The column is added without a rewrite, filled in small transactions, and every row is compared
at the end. While it lasts, the column's comment says so: by that, and by what is NULL still, a restore that was killed
goes on where it was, also where no control schema is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import psycopg
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential

from cachemig.archive import location as places
from cachemig.archive import reader
from cachemig.archive.location import Place, store_errors
from cachemig.archive.reader import Block, Found, Record
from cachemig.archive.records import Manifest, RowHead
from cachemig.config import Settings
from cachemig.entries.codec import Undecodable, decode
from cachemig.entries.entry import EPOCH, Buffer
from cachemig.errors import LockNotGranted, Refused, SourceError
from cachemig.ladder import Phase
from cachemig.progress import Progress
from cachemig.source import archive as source
from cachemig.source import capture, control, queries
from cachemig.source import restore as target_side
from cachemig.source.archive import Identity
from cachemig.source.connect import Connection, connect, run, source_errors, transaction
from cachemig.source.table import Table, inspect
from cachemig.steps.retry import Reconnecting, attempts, reason
from cachemig.steps.unfinished import unfinished
from cachemig.stop import Stop
from cachemig.targets.keys import VERSION, companion
from cachemig.targets.redis import RedisTarget

RESUME = "run the same command again: cachemig restore goes on where it stopped"
SHOWN = 20
_TRIES = 30
_BATCH_ROWS = 1000
_BATCH_BYTES = 8 << 20
_BATCH_KEYS = 1000
_EMPTY = b"{}"


@dataclass(frozen=True)
class Case:
    """One row or key that is not what it should be."""

    what: str
    why: str


@dataclass(frozen=True)
class Outlook:
    """What a restore would do."""

    location: str
    sha256: str
    table: str
    column: str
    rows: int
    bytes: int
    archived_at: str
    frozen: bool
    """False: the column was in use when it was archived; what was written later is in Redis, or nowhere."""
    known: bool
    """The control schema names this very file as checked."""
    begun: bool
    """A restore of it was begun: this would go on with it."""
    statements: tuple[str, ...]
    """That make the column, in one transaction."""
    later: tuple[str, ...]
    """Constraints, indexes and statistics, made after the data."""
    triggers: tuple[str, ...]
    """Of the application, which fire for each row unless the role may set session_replication_role."""
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Restored:
    """What a run of restore did."""

    location: str
    sha256: str
    table: str
    column: str
    rows: int
    """In the archive."""
    filled: int = 0
    there_before: int = 0
    """Filled by a run before this one."""
    gone: int = 0
    """Not in the table any more."""
    from_redis: int = 0
    """Keys whose value Redis had newer."""
    emptied: int = 0
    """Keys that Redis knew to be removed, or whose newer value has expired there."""
    since: int = 0
    """Keys of rows that the archive has no value for, and Redis has."""
    verified: int = 0
    """Rows of the archive that were compared and are what they should be."""
    bad: int = 0
    """Rows that are not, and keys whose value the column does not take."""
    cases: tuple[Case, ...] = ()
    """The first SHOWN of them."""
    statements: tuple[str, ...] = ()
    """What was made after the data, by name."""
    left_out: tuple[str, ...] = ()
    """What could not be had as it was, each with its SQL."""
    finished: bool = False
    """Nothing is bad: the column is what it was, and its own comment stands there again."""
    seconds: float = 0.0

    def figures(self) -> dict[str, Any]:
        return {**asdict(self), "cases": len(self.cases), "seconds": round(self.seconds, 3)}


Settle = Callable[[Connection, Restored], Sequence[str]]


def preview(
    settings: Settings, stop: Stop, location: str, *, spool: Path | None = None
) -> Generator[Progress, None, Outlook]:
    """Reads all of the archive, and what the database has of the column. Changes nothing. Raises what a restore would
    be refused for."""
    place = places.place(location, spool or Path.cwd())
    with connect(settings) as conn, _opened(place) as file:
        found = yield from _read(file, stop, place)
        manifest = _manifest(found)
        sha256 = found.sha256.hex()
        state = _require(conn, settings, manifest, sha256)
        migration = control.find(conn)
        if migration is not None:
            control.require(conn, settings)
        statements, left_out = target_side.column_statements(conn, manifest, sha256)
        ddl = manifest.ddl
        return Outlook(
            location=place.shown,
            sha256=sha256,
            table=manifest.head.table,
            column=manifest.head.column,
            rows=manifest.rows,
            bytes=manifest.bytes,
            archived_at=manifest.finished_at,
            frozen=manifest.frozen,
            known=migration is not None and source.checked_at(conn, found.sha256) is not None,
            begun=state.there,
            statements=() if state.there else tuple(s.as_string(conn) for s in statements),
            later=(
                *(["NOT NULL"] if ddl["column"]["not_null"] else []),
                *(str(i["definition"]) for i in ddl["indexes"]),
                *(f"constraint {c['name']}: {c['definition']}" for c in ddl["constraints"]),
                *(str(s["definition"]) for s in ddl["statistics"]),
            ),
            triggers=tuple(target_side.triggers(conn, manifest.head)),
            left_out=tuple(left_out),
        )


def restore(
    settings: Settings,
    target: RedisTarget | None,
    stop: Stop,
    location: str,
    *,
    spool: Path | None = None,
    settle: Settle | None = None,
) -> Generator[Progress, None, Restored]:
    """Puts the column back and compares every row. `target` None: Redis is not asked for what is newer.

    `settle` is called once, in the transaction that ends the restore (with its journal entry, where there is a control
    schema): to move the ladder; it returns the statements that it ran. Not where something is bad; then the column's
    comment goes on to say that it is being restored, and running it again goes on.

    Raises Refused where the column is there and no restore of this archive was begun, Damaged before anything is
    changed, Interrupted on request, LockNotGranted where the table was busy at every try, SourceError or TargetError
    when a server stays away longer than `retry_for`.
    """
    began = time.monotonic()
    place = places.place(location, spool or Path.cwd())
    with Reconnecting(settings) as session, _opened(place) as file:
        found = yield from _read(file, stop, place)
        manifest = _manifest(found)
        sha256 = found.sha256.hex()
        state = _require(session.get(), settings, manifest, sha256)
        if control.find(session.get()) is not None:
            control.require(session.get(), settings)
        if target is not None:
            target.identity()  # a dead Redis is found out before anything is changed
        left_out: list[str] = []
        if not state.there:
            yield from _add_column(session.get(), settings, stop, manifest, sha256, left_out)
        table = inspect(session.get(), _without_what_is_gone(settings, session.get(), manifest.head.table))
        run = _Run(settings, stop, session, target, table, target_side.identity(table, manifest.head), file, manifest)
        with unfinished(settings, "restore", run.so_far):
            yield from run.data(found.blocks)
            yield from run.rows_since()
            yield from run.defaults()
            yield from run.belongings(left_out)
            yield from run.verify(found.blocks)
            t = run.tally
            result = Restored(
                place.shown, sha256, manifest.head.table, manifest.head.column, manifest.rows, t.filled, t.there_before,
                t.gone, t.from_redis, t.emptied, t.since, t.verified, len(t.bad), tuple(t.bad.values())[:SHOWN],
                tuple(t.statements), tuple(left_out), not t.bad, time.monotonic() - began,
            )  # fmt: skip
            if not t.bad:
                yield from _settle(session.get(), settings, manifest, result, settle, t.ran)
        if t.bad and (migration := control.find(session.get())) is not None:
            figures = {**result.figures(), "sql": t.ran}
            control.journal(session.get(), "restore", figures, phase_from=migration.phase)
    return result


def _read(file: IO[bytes], stop: Stop, place: Place) -> Generator[Progress, None, Found]:
    """All of the archive is read and checked before anything is changed."""
    found = Found()
    for item in reader.records(file, found):
        if isinstance(item, Record):
            item.finish()
        else:
            stop.check("nothing was changed")
            done = found.totals
            yield Progress(done.rows, None, "rows", bytes=done.nbytes, note=f"reading {place.shown}")
    return found


@contextmanager
def _opened(place: Place) -> Iterator[IO[bytes]]:
    """The archive as a local file that can be read at any place; a copy of a store's is removed at the end."""
    with place.local() as path:
        with store_errors(place.shown):
            file = path.open("rb")
        with file:
            yield file


def _manifest(found: Found) -> Manifest:
    assert found.manifest is not None
    return found.manifest


def _require(conn: Connection, settings: Settings, manifest: Manifest, sha256: str) -> target_side.Place:
    """The column is missing, or a restore of this very archive was begun. Raises Refused, TableUnfit."""
    head = manifest.head
    plain = head.table.replace('"', "")
    wanted = settings.table.replace('"', "")
    if wanted not in (plain, plain.partition(".")[2]) or settings.column != head.column:
        raise Refused(
            f"the archive is of {head.table}, column {head.column!r}; the settings name {settings.table}, "
            f"{settings.column!r}",
            hint="give its own table and column by --table and --column",
        )
    state = target_side.found(conn, head)
    if state.there and not target_side.is_marker(state.comment):
        raise Refused(
            f"{head.table} has its column {head.column!r}: there is nothing to restore",
            hint="to take back what a repair or an application wrote is not what an archive is for",
        )
    if state.there and state.comment != target_side.marker(sha256):
        raise Refused(
            "the column is being restored from another archive: its comment names the SHA-256 of that file",
            hint="go on with that one; or drop the column once more, and begin anew",
        )
    return state


def _without_what_is_gone(settings: Settings, conn: Connection, table: str) -> Settings:
    """The settings without columns that were dropped along: none of them is needed here."""
    order_by = settings.order_by if settings.order_by in target_side.columns(conn, table) else ""
    return replace(settings, ttl=0.0, ttl_from="now", order_by=order_by, table=table)


def _add_column(
    conn: Connection, settings: Settings, stop: Stop, manifest: Manifest, sha256: str, left_out: list[str]
) -> Generator[Progress, None, None]:
    statements, missing = target_side.column_statements(conn, manifest, sha256)
    left_out += missing

    def act() -> None:
        ran = run(conn, statements)
        if (migration := control.find(conn)) is not None:  # now, for the rest may take long, and be stopped
            control.journal(conn, "restore begun", {"archive": sha256, "sql": ran}, phase_from=migration.phase)

    yield from _in_time(conn, settings, stop, act)


def _in_time(
    conn: Connection, settings: Settings, stop: Stop, act: Callable[[], object]
) -> Generator[Progress, None, None]:
    """Runs it in a transaction that waits for locks only for `lock_timeout`, then lets the application through and
    tries again. Raises LockNotGranted when the table was busy at every try."""
    for attempt in Retrying(
        retry=retry_if_exception_type(LockNotGranted),
        wait=wait_random_exponential(multiplier=1.0, min=0.2, max=10.0),
        stop=stop_after_attempt(_TRIES),
        sleep=stop.wait,
        reraise=True,
    ):
        stop.check(RESUME)
        with attempt, transaction(conn, lock_timeout_s=settings.lock_timeout):
            act()
        if why := reason(attempt.retry_state):
            tried = attempt.retry_state.attempt_number
            yield Progress(tried, _TRIES, "tries", waiting=f"{why}; the application goes first")


def _settle(
    conn: Connection,
    settings: Settings,
    manifest: Manifest,
    result: Restored,
    settle: Settle | None,
    ran: Sequence[str],
) -> Generator[Progress, None, None]:
    def act() -> None:
        migration = control.find(conn)
        if migration is not None:
            conn.execute(queries.text("control", "lock_migration"))  # first of all locks, as everywhere
            migration = control.find(conn)
        settled = [] if settle is None else settle(conn, result)
        commented = run(conn, [target_side.final_comment(manifest)])
        if migration is not None:
            figures = {**result.figures(), "sql": [*ran, *settled, *commented]}
            control.journal(conn, "restore", figures, phase_from=migration.phase)

    yield from _in_time(conn, settings, Stop(), act)


def ladder_back(settings: Settings) -> Settle:
    """For `settle`: the ladder is as it was before the drop. Phase redis-only, with the guard on the column; the epochs
    were never changed. Nothing where there is no control schema, or where the column is not a frozen one."""

    def act(conn: Connection, result: Restored) -> Sequence[str]:
        migration = control.find(conn)
        if migration is None or migration.phase not in (Phase.REDIS_ONLY, Phase.DROPPED):
            return []
        table = inspect(conn, _without_what_is_gone(settings, conn, result.table))
        with source_errors():
            last = conn.execute(queries.text("control", "journal_last_of"), {"command": "stop-writes"}).fetchone()
            rejects = last is not None and last[1].get("guard") == "reject"
            ran = run(conn, capture.guard(table, capture.mode(conn, table), rejects=rejects))
        control.set_phase(conn, Phase.REDIS_ONLY, migration.epoch)
        return ran

    return act


@dataclass(frozen=True, slots=True)
class Archived:
    """The versions that an archive has of a key."""

    version: int | None
    delivered: int | None


def is_newer(held: int | None, archived: Archived, *, frozen: bool) -> bool:
    """Does Redis hold a state that was written after the archived one?

    Of a frozen column, every state was delivered, and the ledger has its version; whatever is above was written by an
    application. Of a key that the ledger does not know, only what begins with the epoch after the column's is newer.
    """
    if held is None or archived.version is None:
        return False
    if not frozen:
        return held > archived.version
    if archived.delivered is None:
        return held >= (archived.version // EPOCH + 1) * EPOCH
    return held > archived.delivered


def _versions_of(head: RowHead) -> Archived:
    return Archived(head.version, head.delivered)


@dataclass
class _Tally:
    filled: int = 0
    there_before: int = 0
    gone: int = 0
    from_redis: int = 0
    emptied: int = 0
    since: int = 0
    verified: int = 0
    bad: dict[object, Case] = field(default_factory=dict)
    statements: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    """The text of these."""


@dataclass
class _Run:
    settings: Settings
    stop: Stop
    session: Reconnecting
    target: RedisTarget | None
    table: Table
    rows: Identity
    file: IO[bytes]
    manifest: Manifest
    tally: _Tally = field(default_factory=_Tally)

    def so_far(self) -> dict[str, Any]:
        """What this run did, for the journal; the column itself is in `restore begun`."""
        numbers = ("filled", "from_redis", "emptied", "since")
        figures: dict[str, Any] = {name: getattr(self.tally, name) for name in numbers}
        return {**figures, "sql": self.tally.ran} if any(figures.values()) or self.tally.ran else {}

    def data(self, blocks: Sequence[Block]) -> Generator[Progress, None, None]:
        done = nbytes = 0
        for block in blocks:
            self.stop.check(RESUME)
            before = replace(self.tally, bad=dict(self.tally.bad))
            for attempt in attempts(self.settings, self.stop):
                self.tally = replace(before, bad=dict(before.bad))
                with attempt, self.session.guard() as conn:
                    yield from self._block(conn, block)
                if waiting := reason(attempt.retry_state):
                    yield Progress(done, self.manifest.rows, "rows", bytes=nbytes, waiting=waiting)
            done, nbytes = done + block.rows, nbytes + block.nbytes
            yield Progress(done, self.manifest.rows, "rows", bytes=nbytes)

    def _block(self, conn: Connection, block: Block) -> Generator[Progress, None, None]:
        """One range of rows. Repeating it does no harm: what has come back is left alone."""
        versions: dict[str, Archived] = {}

        def noted() -> Generator[Record, None, None]:
            for record in reader.read_block(self.file, block):
                if record.head.key is not None:
                    versions[record.head.key] = _versions_of(record.head)
                yield record

        with closing(noted()) as records:
            if target_side.has_nulls(conn, self.table, self.rows, block.lower, block.upper):
                while True:
                    loaded = target_side.fill(
                        conn, self.table, self.rows, records, lock_timeout_s=self.settings.lock_timeout,
                        most_rows=_BATCH_ROWS, most_bytes=_BATCH_BYTES,
                    )  # fmt: skip
                    self.tally.filled += loaded.filled
                    self.tally.gone += loaded.gone
                    self.tally.there_before += loaded.rows - loaded.filled - loaded.gone
                    if not loaded.rows:
                        break
                    self.stop.check(RESUME)
            else:
                count = 0
                for record in records:
                    record.finish()
                    count += 1
                self.tally.there_before += count
        for key in self._newer(versions):
            self._from_redis(conn, key)
            yield Progress(self.tally.from_redis, None, "keys", note="newer in Redis")

    # Redis -----------------------------------------------------------------------------------------------------------

    def _newer(self, versions: Mapping[str, Archived]) -> list[str]:
        if self.target is None:
            return []
        held = self._versions(list(versions))
        frozen = self.manifest.frozen
        return [key for key, archived in versions.items() if is_newer(held[key], archived, frozen=frozen)]

    def _versions(self, keys: Sequence[str]) -> dict[str, int | None]:
        """The version that Redis holds of each key, without its value."""
        assert self.target is not None
        found: dict[str, int | None] = {}
        for at in range(0, len(keys), _BATCH_KEYS):
            part = keys[at : at + _BATCH_KEYS]
            replies = self.target.ask([("GET", companion(VERSION, self.target.template.name(key))) for key in part])
            found |= {k: int(r) if r is not None and r.isdigit() else None for k, r in zip(part, replies, strict=True)}
        return found

    def _value(self, key: str) -> tuple[Buffer | None, str | None]:
        """What Redis holds; or why that is no value."""
        assert self.target is not None
        found = self.target.fetch_large(key)
        if found.fault is not None:
            return None, found.fault
        if found.value is None:
            return None, None
        try:
            return decode(found.value), None
        except Undecodable as exc:
            return None, str(exc)

    def _from_redis(self, conn: Connection, key: str, *, since: bool = False) -> None:
        value, fault = self._value(key)
        if fault is None and not (since and value is None):
            try:
                written = target_side.put_newest(
                    conn, self.table, key, value, lock_timeout_s=self.settings.lock_timeout
                )
            except SourceError as exc:
                if not isinstance(exc.__cause__, psycopg.DataError):
                    raise
                fault = "the column does not take what Redis holds"
            else:
                self.tally.bad.pop(key, None)
                if since:
                    self.tally.since += written
                elif value is None:
                    self.tally.emptied += written
                else:
                    self.tally.from_redis += written
                return
        if fault is not None:
            self.tally.bad[key] = Case(key, f"{fault}; what was archived stands there")

    def rows_since(self) -> Generator[Progress, None, None]:
        """Rows for which nothing was archived, and Redis holds a value of their key."""
        if self.target is None:
            return
        for attempt in attempts(self.settings, self.stop):
            with attempt, self.session.guard() as conn, Reconnecting(self.settings) as writing:
                seen = 0
                for keys in target_side.keys_without_entry(conn, self.table):
                    self.stop.check(RESUME)
                    for key in self._held(keys):
                        self._from_redis(writing.get(), key, since=True)
                    seen += len(keys)
                    yield Progress(seen, None, "keys", note="rows that the archive has no value for")
            if waiting := reason(attempt.retry_state):
                yield Progress(0, None, "keys", waiting=waiting)

    def _held(self, keys: Sequence[str]) -> list[str]:
        assert self.target is not None
        replies = self.target.ask([("EXISTS", self.target.template.name(key)) for key in keys])
        return [key for key, there in zip(keys, replies, strict=True) if there]

    # The rest of the column ------------------------------------------------------------------------------------------

    def defaults(self) -> Generator[Progress, None, None]:
        """Of a column that takes no NULL: rows that came since the drop get the default, as they would have."""
        column = self.manifest.ddl["column"]
        if not column["not_null"] or column["default"] is None:
            return
        done = 0
        while True:
            filled = 0
            for attempt in attempts(self.settings, self.stop):
                with attempt, self.session.guard() as conn:
                    filled = target_side.fill_default(conn, self.table, lock_timeout_s=self.settings.lock_timeout)
            if not filled:
                return
            done += filled
            self.stop.check(RESUME)
            yield Progress(done, None, "rows", note="rows that came since the drop: the default")

    def belongings(self, left_out: list[str]) -> Generator[Progress, None, None]:
        """Constraints, indexes, statistics."""
        with Reconnecting(self.settings) as patient:
            target_side.patient(patient.get())
            for needed in target_side.belongings(patient.get(), self.manifest, left_out):
                self.stop.check(RESUME)
                yield Progress(len(self.tally.statements), None, "statements", note=needed.what)
                if needed.alone:
                    with source_errors():
                        patient.get().execute(needed.statement)
                else:
                    act = partial(run, patient.get(), [needed.statement])
                    yield from _in_time(patient.get(), self.settings, self.stop, act)
                self.tally.statements.append(needed.what)
                self.tally.ran.append(needed.statement.as_string(patient.get()))

    # The comparison --------------------------------------------------------------------------------------------------

    def verify(self, blocks: Sequence[Block]) -> Generator[Progress, None, None]:
        """Every row of the archive: it is there again, or gone; or what Redis has newer stands there."""
        for block in blocks:
            self.stop.check(RESUME)
            for attempt in attempts(self.settings, self.stop):
                with attempt, self.session.guard() as conn:
                    self._verify(conn, block)
                if waiting := reason(attempt.retry_state):
                    yield Progress(self.tally.verified, self.manifest.rows, "rows", waiting=waiting)
            yield Progress(self.tally.verified, self.manifest.rows, "rows", note="compared")

    def _verify(self, conn: Connection, block: Block) -> None:
        heads = {}
        for record in reader.read_block(self.file, block):
            record.finish()
            heads[record.head.row] = record.head
        with source.reading(conn):
            there = source.read_digests(conn, self.table, self.rows, block.lower, block.upper, versions=False)
            absent = [row for row in heads if row not in there]
            unfilled = target_side.unfilled(conn, self.table, self.rows, absent)
        for row in unfilled:
            self._bad(row, "it is NULL")
        other = {row: head for row, head in heads.items() if row in there and there[row].sha256 != head.sha256}
        newer = set(self._newer({head.key: _versions_of(head) for head in other.values() if head.key is not None}))
        wrong = 0
        for row, head in other.items():
            if head.key not in newer or not self._is_redis(conn, row, head.key):
                self._bad(row, "it holds something else than was archived")
                wrong += 1
        self.tally.verified += len(heads) - len(absent) - wrong

    def _is_redis(self, conn: Connection, row: tuple[str, ...], key: str) -> bool:
        """What stands there is what Redis has; after it was put there once more, should it have changed meanwhile."""
        for again in (True, False):
            value, fault = self._value(key)
            if fault is not None:
                return False
            wanted = target_side.digest_of(conn, self.table, _EMPTY if value is None else value)
            if target_side.digest_at(conn, self.table, self.rows, row) == wanted:
                return True
            if again:
                target_side.put_newest(conn, self.table, key, value, lock_timeout_s=self.settings.lock_timeout)
        return False

    def _bad(self, row: tuple[str, ...], why: str) -> None:
        name = ", ".join(f"{c} {v}" for c, v in zip(self.rows.names, row, strict=True))
        self.tally.bad[row] = Case(name, why)

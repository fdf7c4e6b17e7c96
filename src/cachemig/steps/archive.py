"""archive: the column goes into one file, which is read back and compared with the table before it counts.

Killed at any point, the same command goes on where it was. No snapshot is held while the file is written; at the end
every row is compared in one snapshot, and what was written meanwhile is archived again. So the file is what the table
was at one moment, whether the column was frozen or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from cachemig import __version__
from cachemig.archive import location as places
from cachemig.archive import reader, writer
from cachemig.archive.frames import Damaged
from cachemig.archive.location import Place, StoreFailed, store_errors
from cachemig.archive.reader import Block, Found, Record
from cachemig.archive.records import Head, Manifest, RowHead
from cachemig.archive.writer import Writer
from cachemig.config import Settings
from cachemig.entries.entry import Buffer
from cachemig.errors import Refused
from cachemig.ladder import Phase
from cachemig.progress import Progress
from cachemig.source import archive as source
from cachemig.source import chunks, control, queries
from cachemig.source.archive import Identity, Mark
from cachemig.source.connect import Connection, connect, transaction
from cachemig.source.table import Table, inspect
from cachemig.steps import dry_run
from cachemig.steps.dry_run import DryRun
from cachemig.steps.retry import Reconnecting, attempts, reason
from cachemig.stop import Stop

RESUME = "run the same command again: cachemig archive goes on where it stopped"
_ROUNDS = 5
_MOST_ROWS = 20_000  # bounds what is compared at a time

Opened = Callable[[], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True)
class Archived:
    """A file that holds what the table held at `checked_at`."""

    location: str
    sha256: str
    """Of the file."""
    rows: int
    entries: int
    bytes: int
    """Of the texts."""
    file_bytes: int
    blocks: int
    checked_at: datetime
    frozen: bool
    """Nothing could be written to the column any more. If not, the table may hold something else by now."""
    resumed_at: int = 0
    """Blocks that were there before this run."""
    began_anew: str | None = None
    """Why those that were there could not be used."""
    read_again: int = 0
    """Blocks in which something was written meanwhile."""
    only_checked: bool = False
    """The file was there, and complete: it was compared again."""
    seconds: float = 0.0

    def figures(self) -> dict[str, Any]:
        return {**asdict(self), "checked_at": self.checked_at.isoformat(), "seconds": round(self.seconds, 3)}


@dataclass(frozen=True)
class Forgotten:
    """What was taken out of an archive."""

    location: str
    keys: int
    """Asked for."""
    rows: int
    """Taken out; 0: it holds none of them."""
    sha256: str
    file_bytes: int
    registered: bool
    """The control schema knows the new file."""

    def figures(self) -> dict[str, Any]:
        return asdict(self)


def archive(
    settings: Settings, stop: Stop, location: str, *, spool: Path | None = None
) -> Generator[Progress, None, Archived]:
    """Writes the archive, reads it back, compares every row with the table, and only then registers it.

    A finished archive that is there already is compared again. Raises Refused where it is another one's, or where the
    column is written faster than it can be compared; Interrupted on request; Damaged where what was written is not what
    is read; StoreFailed; SourceError when Postgres stays away longer than `retry_for`.
    """
    began = time.monotonic()
    place = places.place(location, spool or Path.cwd())
    with Reconnecting(settings) as session:
        conn = session.get()
        table = inspect(conn, settings)
        migration = control.require(conn, settings, "archive")
        rows = source.identity(conn, table)
        source.require_unambiguous(conn, table, rows)
        run = _Run(settings, stop, session, table, rows, place, _head(conn, table, rows, migration))
        if place.exists() and not place.partial.exists():
            result = yield from run.check_again()
        else:
            result = yield from run.write()
        result = replace(result, seconds=time.monotonic() - began)
        conn = session.get()
        with transaction(conn):
            _, at = source.register(
                conn, place.shown, bytes.fromhex(result.sha256), rows=result.rows, entries=result.entries,
                nbytes=result.bytes, epoch=run.head.epoch,
            )  # fmt: skip
            result = replace(result, checked_at=at)
            control.journal(conn, "archive", result.figures())
    if place.url is not None:
        place.partial.unlink(missing_ok=True)
    return result


def preview(settings: Settings, location: str, *, spool: Path | None = None) -> DryRun:
    """What `archive` would do now. Reads only, and makes no file."""
    place = places.place(location, spool or Path.cwd())
    with Reconnecting(settings) as session:
        conn = session.get()
        table = inspect(conn, settings)
        migration = control.require(conn, settings, "archive")
        rows = source.identity(conn, table)
        source.require_unambiguous(conn, table, rows)
        is_there, is_begun = place.exists(), place.partial.exists()
        notes = ["every row is read, and compared with what was written, in one snapshot"]
        if is_there and not is_begun:
            notes = ["the file is there: it would be compared again, and never written over"]
        elif is_begun:
            notes.append("an archive was begun there: it would go on")
        if migration.phase is not Phase.REDIS_ONLY:
            notes.append("the column is in use: the gate of drop-column wants one of the frozen column")
        return DryRun(
            f"cachemig archive --to {place.shown}",
            migration.phase,
            True,
            [queries.text("archive", "register"), dry_run.journal(conn, "archive")],
            files=[] if is_there and not is_begun else [place.shown],
            figures={"rows_estimated": max(0, int(table.tuples)), "column_bytes_estimated": _weight(conn, table)},
            notes=notes,
        )


def _weight(conn: Connection, table: Table) -> int:
    return int(max(0, table.tuples) * chunks.sample_width(conn, table))


def preview_forget(
    settings: Settings, stop: Stop, location: str, keys: Collection[str], *, spool: Path | None = None
) -> Generator[Progress, None, DryRun]:
    """How many rows `forget` would take out. Reads the archive, and makes no file."""
    place = places.place(location, spool or Path.cwd())
    if not place.exists():
        raise StoreFailed(f"{place.shown}: there is no archive", hint="check --to")
    with place.opened() as file:
        _, hit = yield from _search(file, stop, set(keys))
    with connect(settings) as conn:
        migration = control.find(conn)
        known = migration is not None
        shown = [dry_run.journal(conn, "archive --forget")] if known and hit else []
    rows = sum(hit.values())
    return DryRun(
        f"cachemig archive --to {place.shown} --forget",
        None if migration is None else migration.phase,
        bool(hit),
        shown,
        files=[place.shown] if hit else [],
        figures={"keys": len(set(keys)), "rows": rows, "blocks": len(hit)},
    )


def _head(conn: Connection, table: Table, rows: Identity, migration: control.Migration) -> Head:
    database, begun = source.begun(conn)
    s = table.settings
    return Head(
        database=database,
        table=table.identifier.as_string(None),
        column=s.column,
        type=table.columns[s.column],
        key_column=s.key_column,
        row_key=rows.names,
        row_types=rows.types,
        fingerprint=migration.fingerprint,
        epoch=migration.epoch,
        timeline=migration.timeline_now,
        begun=begun,
    )


@dataclass
class _Run:
    settings: Settings
    stop: Stop
    session: Reconnecting
    table: Table
    rows: Identity
    place: Place
    head: Head

    def write(self) -> Generator[Progress, None, Archived]:
        began = datetime.now(UTC).isoformat(timespec="seconds")
        with store_errors(self.place.shown):
            self.place.rewritten.unlink(missing_ok=True)
            current = Writer(self.place.partial, self.head)
        resumed, anew = current.resumed, current.began_anew
        read_again = 0
        try:
            for round_ in range(_ROUNDS):
                yield from self._blocks(current)
                manifest = self._manifest(began)
                with store_errors(self.place.shown):
                    current.finish(manifest)
                found, changed = yield from self._compared(lambda: self.place.partial.open("rb"))
                if not changed:
                    break
                if round_ == _ROUNDS - 1:
                    raise Refused(
                        f"in {len(changed):,} of {len(found.blocks):,} blocks something was written while the archive "
                        "was compared, each time: the column is still in use",
                        hint=f"cachemig stop-writes freezes it; what is done is kept: {RESUME}",
                    )
                read_again += len(changed)
                current = yield from self._rewritten(current, changed)
        finally:
            current.file.close()
        yield Progress(found.totals.rows, None, "rows", bytes=found.totals.nbytes, note=f"to {self.place.shown}")
        self.place.publish(self.place.partial)
        if self.place.url is not None and self.place.sha256() != found.sha256:
            raise StoreFailed(
                f"{self.place.shown}: what is read there is not what was sent", hint=f"nothing was registered; {RESUME}"
            )
        return self._result(found, resumed_at=resumed, began_anew=anew, read_again=read_again)

    def check_again(self) -> Generator[Progress, None, Archived]:
        """The file at the place is a finished one: an archive of this table, as it is now, or none of ours."""
        with self.place.opened() as file:
            first = next(reader.records(file, seen := Found()), None)
            if seen.head != self.head or first is None:
                assert seen.head is not None
                other = [n for n in vars(self.head) if getattr(seen.head, n) != getattr(self.head, n)]
                raise Refused(
                    f"{self.place.shown} is there already, and is an archive of another {', '.join(other)}",
                    hint="give another --to; a file is never written over",
                )
        found, changed = yield from self._compared(self.place.opened)
        if changed:
            raise Refused(
                f"{self.place.shown} is there already, and the table is another one by now: rows differ in "
                f"{len(changed):,} of its {len(found.blocks):,} blocks",
                hint="give another --to; a file is never written over",
            )
        return self._result(found, only_checked=True)

    def _result(self, found: Found, **more: Any) -> Archived:
        manifest = found.manifest
        assert manifest is not None
        return Archived(
            location=self.place.shown,
            sha256=found.sha256.hex(),
            rows=manifest.rows,
            entries=manifest.entries,
            bytes=manifest.bytes,
            file_bytes=found.size,
            blocks=manifest.blocks,
            checked_at=datetime.now(UTC),
            frozen=manifest.frozen,
            **more,
        )

    # ---------------------------------------------------------------------------------------------------------------

    def _blocks(self, current: Writer) -> Generator[Progress, None, None]:
        """Writes the blocks that are missing."""
        width = max(chunks.sample_width(self.session.get(), self.table), 1.0)
        count = int(min(max(self.settings.chunk_bytes / width, 1), _MOST_ROWS))
        while not current.whole:
            self.stop.check(RESUME)
            yield self._written(current)
            for attempt in attempts(self.settings, self.stop):
                with attempt, self.session.guard() as conn:
                    upper = source.bound(conn, self.table, self.rows, current.upper, count)
                    self._block(conn, current, upper)
                if waiting := reason(attempt.retry_state):
                    yield self._written(current, waiting)
        yield self._written(current)

    def _block(self, conn: Connection, current: Writer, upper: tuple[str, ...] | None) -> None:
        rows = source.read_rows(conn, self.table, self.rows, current.upper, upper)
        # Inside the transaction, which cannot be ended while a COPY is going on.
        with source.reading(conn), closing(rows), store_errors(self.place.shown):
            current.block(upper, self._stoppable(rows))

    def _stoppable(
        self, rows: Iterable[tuple[RowHead, Iterable[Buffer]]]
    ) -> Iterator[tuple[RowHead, Iterable[Buffer]]]:
        for row in rows:
            self.stop.check(RESUME)
            yield row
            del row

    def _manifest(self, began: str) -> Manifest:
        conn = self.session.get()
        migration = control.require(conn, self.settings)
        if migration.epoch != self.head.epoch:
            raise Refused(
                f"epoch {migration.epoch} has begun meanwhile: what was archived before has versions of another one",
                hint="run the same command again: it begins anew",
            )
        ddl = source.facts(conn, self.table)
        with transaction(conn, read_only=True):
            nulls, pending = source.nulls(conn, self.table), source.pending(conn)
        return Manifest(
            head=self.head, ddl=ddl, settings=self.settings.identity(), phase=migration.phase.value,
            frozen=migration.phase is Phase.REDIS_ONLY and pending == 0,
            rows=0, entries=0, bytes=0, blocks=0, sha256="", nulls=nulls, tool=__version__, began_at=began,
            finished_at="",
        )  # fmt: skip

    def _compared(self, opened: Opened) -> Generator[Progress, None, tuple[Found, set[int]]]:
        """Reads all of the file and all of the table, the latter in one snapshot: the blocks in which they differ."""
        result: tuple[Found, set[int]] | None = None
        for attempt in attempts(self.settings, self.stop):
            with attempt, self.session.guard() as conn:
                result = yield from self._compared_once(conn, opened)
            if waiting := reason(attempt.retry_state):
                yield Progress(0, None, "blocks", waiting=waiting)
        assert result is not None
        return result

    def _compared_once(self, conn: Connection, opened: Opened) -> Generator[Progress, None, tuple[Found, set[int]]]:
        found = Found()
        changed: set[int] = set()
        marks: dict[tuple[str, ...], Mark] = {}
        with opened() as file, source.reading(conn, one_snapshot=True):
            for item in reader.records(file, found):
                if isinstance(item, Record):
                    item.finish()
                    marks[item.head.row] = Mark(item.head.key, item.head.version, item.head.sha256)
                    continue
                self.stop.check(RESUME)
                if source.read_digests(conn, self.table, self.rows, item.lower, item.upper) != marks:
                    changed.add(item.number)
                marks = {}
                done = found.totals
                yield Progress(done.rows, None, "rows", bytes=done.nbytes, note="compared with the table")
        return found, changed

    def _rewritten(self, current: Writer, changed: Collection[int]) -> Generator[Progress, None, Writer]:
        """The file anew: what changed is read again, the rest is taken over as it is."""
        with store_errors(self.place.shown), self.place.partial.open("rb") as file:
            new = Writer(self.place.rewritten, self.head, fresh=True)
            try:
                for block in current.blocks:
                    self.stop.check(RESUME)
                    if block.number not in changed:
                        new.copy(file, block)
                        continue
                    for attempt in attempts(self.settings, self.stop):
                        with attempt, self.session.guard() as conn:
                            self._block(conn, new, block.upper)
                    yield Progress(new.totals.rows, None, "rows", bytes=new.totals.nbytes, note="read again")
                writer.replace(new.path, self.place.partial)
            except BaseException:
                new.file.close()
                raise
        current.file.close()
        return new

    def _written(self, current: Writer, waiting: str | None = None) -> Progress:
        totals = current.totals
        return Progress(totals.rows, None, "rows", entries=totals.entries, bytes=totals.nbytes, waiting=waiting)


# Taking something out ------------------------------------------------------------------------------------------------


def forget(
    settings: Settings, stop: Stop, location: str, keys: Collection[str], *, spool: Path | None = None
) -> Generator[Progress, None, Forgotten]:
    """Takes every row of these keys out of a finished archive: a copy without them is written, read back, and put in
    its place; the control schema, where there is one, knows it from then on.

    Reads no table. Other copies of the file, and a store's older versions of it, are not reached. Raises Refused where
    an unfinished archive stands beside it, Damaged, StoreFailed.
    """
    place = places.place(location, spool or Path.cwd())
    if place.partial.exists():
        raise Refused(
            f"an unfinished archive is there beside it, and may hold these keys too: {place.partial}",
            hint="finish it by cachemig archive, or remove it",
        )
    if not place.exists():
        raise StoreFailed(f"{place.shown}: there is no archive", hint="check --to")
    with connect(settings) as conn, place.local() as path:
        migration = control.find(conn)
        with store_errors(place.shown), path.open("rb") as file:
            found, hit = yield from _search(file, stop, set(keys))
            manifest = found.manifest
            assert manifest is not None
            if hit:
                new = yield from _without(place, file, stop, found, hit, set(keys))
                with place.rewritten.open("rb") as again:
                    after = reader.scan(again)
                if after.totals.rows != found.totals.rows - sum(hit.values()):
                    raise Damaged("what was written is not what is read", hint="the archive was left as it was")
                place.publish(new)
                if place.url is not None:
                    new.unlink()
                    if place.sha256() != after.sha256:
                        raise StoreFailed(f"{place.shown}: what is read there is not what was sent")
            else:
                after = found
        result = Forgotten(
            place.shown, len(set(keys)), sum(hit.values()), after.sha256.hex(), after.size, migration is not None
        )
        if migration is not None:
            _register_rest(conn, place, after, result)
    return result


def _register_rest(conn: Connection, place: Place, after: Found, result: Forgotten) -> None:
    """What is left of a checked archive counts as the archive did; also where a run died before it said so."""
    rest = after.manifest
    assert rest is not None
    with transaction(conn):
        known, was_checked = source.checked_at(conn, after.sha256), source.checked_there(conn, place.shown)
        if known is None and was_checked is not None and rest.forgotten:
            source.register(
                conn, place.shown, after.sha256, rows=rest.rows, entries=rest.entries, nbytes=rest.bytes,
                epoch=rest.head.epoch, checked_at=was_checked,
            )  # fmt: skip
        if result.rows or (known is None and rest.forgotten):
            control.journal(conn, "archive --forget", result.figures())  # the keys themselves are not kept


def _search(file: IO[bytes], stop: Stop, keys: set[str]) -> Generator[Progress, None, tuple[Found, dict[int, int]]]:
    """Reads all of an archive; by number of the block, how many rows of these keys are in it."""
    found = Found()
    hit: dict[int, int] = {}
    here = 0
    for item in reader.records(file, found):
        if isinstance(item, Record):
            here += item.head.key in keys
            item.finish()
            continue
        if here:
            hit[item.number] = here
        here = 0
        stop.check("nothing was changed")
        yield Progress(found.totals.rows, None, "rows", bytes=found.totals.nbytes, note="looked at")
    return found, hit


def _without(
    place: Place, file: IO[bytes], stop: Stop, found: Found, hit: Collection[int], keys: set[str]
) -> Generator[Progress, None, Path]:
    head, manifest = found.head, found.manifest
    assert head is not None
    assert manifest is not None
    before = found.totals.rows

    def kept(block: Block) -> Iterator[tuple[RowHead, Iterable[Buffer]]]:
        for record in reader.read_block(file, block):
            if record.head.key not in keys:
                yield record.head, record.text()

    with Writer(place.rewritten, head, fresh=True) as new:
        for block in found.blocks:
            stop.check("nothing was changed")
            if block.number in hit:
                new.block(block.upper, kept(block))
            else:
                new.copy(file, block)
            yield Progress(new.totals.rows, before, "rows", bytes=new.totals.nbytes, note="written again")
        forgotten = manifest.forgotten + before - new.totals.rows
        new.finish(replace(manifest, forgotten=forgotten))
    return new.path

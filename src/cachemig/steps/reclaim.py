"""reclaim: DROP COLUMN frees nothing, for the rows stay as they are. How much there is, and what gives it back."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg import conninfo, sql

from cachemig.config import Settings
from cachemig.errors import CachemigError, LockNotGranted, Refused, SourceError
from cachemig.progress import Progress
from cachemig.source import control, queries
from cachemig.source.connect import Connection, connect, source_errors, transaction
from cachemig.steps.drop_column.inspect import Subject, find
from cachemig.steps.drop_column.lock import Waited, run_watched
from cachemig.steps.unfinished import unfinished
from cachemig.stop import Stop

Method = Literal["none", "vacuum-full", "pg_repack"]
METHODS: tuple[Method, ...] = ("none", "vacuum-full", "pg_repack")
TRIES = 30
_LONGEST_SLEEP_S = 10.0
READ_MB_PER_S = 200.0
WRITE_MB_PER_S = 60.0
"""10^6 bytes a second, for the expected time: reading the old table, writing the new one with its WAL and its indexes.
Low figures for a server with network storage."""
_ENVIRONMENT = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
    "service": "PGSERVICE",
    "passfile": "PGPASSFILE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
}


@dataclass(frozen=True)
class Sizes:
    """Bytes on disk, of the table with its partitions, and of the whole database."""

    heap: int
    toast: int
    """Large values, of columns that were dropped too until the table is written anew."""
    indexes: int
    table: int
    """heap + toast + indexes."""
    database: int


@dataclass(frozen=True)
class Choice:
    """A way to give the space back, and its price."""

    method: Method
    available: bool
    what: str
    locks: str
    seconds: float
    """Expected: an estimate."""
    spare_bytes: int
    """Free space that it needs while it runs: an estimate from above."""


@dataclass(frozen=True)
class Outlook:
    """What there is, and what could be done."""

    table: str
    before: Sizes
    when_dropped: int | None
    """Bytes of the table when the column was dropped; None: not known."""
    freed_by_drop: int | None
    """Since then: nothing, but for what VACUUM gave back."""
    kept_bytes: int
    """What the table needs without what was dropped: an estimate."""
    column_is_there: bool
    """True: nothing is to be gained yet."""
    choices: tuple[Choice, ...]
    statements: tuple[str, ...] = ()
    """What vacuum-full runs, one after the other, each by itself."""


@dataclass(frozen=True)
class Reclaimed:
    """What was gained."""

    table: str
    method: Method
    before: Sizes
    after: Sizes
    seconds: float
    waited_s: float
    held_up_by: tuple[str, ...]

    @property
    def freed(self) -> int:
        return self.before.table - self.after.table


def outlook(settings: Settings) -> Outlook:
    """Sizes and choices. Reads only; works in every phase, and when the control schema is gone."""
    with connect(settings) as conn:
        return _outlook(conn, find(conn, settings), settings)


def reclaim(
    settings: Settings, stop: Stop, *, method: Method, tries: int = TRIES
) -> Generator[Progress, None, Reclaimed]:
    """Gives the space back by the chosen method. Wants the column gone.

    vacuum-full: table by table, each waited for `lock_timeout` at a time; whoever holds it is named and not ended.
    Stopped in the middle, a table is as it was. Raises Refused where the column is still there or the method is not at
    hand, and where the connection does not keep its settings (a pooler); LockNotGranted when a table was in use at
    every try.
    """
    with connect(settings) as conn:
        table = find(conn, settings)
        seen = _outlook(conn, table, settings)
    if seen.column_is_there:
        raise Refused(
            f"{seen.table} still has {settings.column}: there is nothing to reclaim yet", hint="cachemig drop-column"
        )
    if not next(c for c in seen.choices if c.method == method).available:
        raise Refused(f"{method} is not installed here", hint="cachemig reclaim shows what there is")
    waited, began = Waited(), time.monotonic()
    ran: list[str] = []
    if method == "vacuum-full":
        with unfinished(settings, "reclaim", lambda: {"method": method, "sql": ran} if ran else {}):
            yield from _vacuum_full(settings, stop, table, waited, tries, ran)
    elif method == "pg_repack":
        yield from _repack(settings, stop, table)
    with connect(settings) as conn:
        result = Reclaimed(
            table=table.qualified,
            method=method,
            before=seen.before,
            after=sizes(conn, table),
            seconds=round(time.monotonic() - began, 1),
            waited_s=round(waited.seconds, 1),
            held_up_by=tuple(waited.holders),
        )
        if control.find(conn) is not None:
            control.journal(
                conn,
                "reclaim",
                {
                    "method": method,
                    "table_bytes_before": result.before.table,
                    "table_bytes_after": result.after.table,
                    "database_bytes_before": result.before.database,
                    "database_bytes_after": result.after.database,
                    "sql": ran,
                    **({"ran": " ".join(repack_command(settings, table))} if method == "pg_repack" else {}),
                },
            )
    return result


def sizes(conn: Connection, table: Subject) -> Sizes:
    """Bytes as of now."""
    with source_errors():
        rows = conn.execute(queries.text("reclaim", "reclaim_sizes"), {"relids": list(table.relids)}).fetchall()
        database = conn.execute(queries.text("reclaim", "reclaim_database")).fetchone()
    assert database is not None
    heap, toast, indexes, total = (sum(int(row[n]) for row in rows) for n in (3, 4, 5, 6))
    return Sizes(heap, toast, indexes, total, int(database[0]))


def _outlook(conn: Connection, table: Subject, settings: Settings) -> Outlook:
    with transaction(conn, read_only=True), source_errors():
        before = sizes(conn, table)
        rows = conn.execute(queries.text("reclaim", "reclaim_sizes"), {"relids": list(table.relids)}).fetchall()
        kept = 0
        for row in rows:
            width = conn.execute(
                queries.text("reclaim", "reclaim_width"), {"schema": row[1], "name": row[2]}
            ).fetchone()
            if width and width[0] is not None and row[7]:
                kept += min(int(row[6]), int(row[7] * (width[0] + 28) + int(row[5])))  # 28: a row's header and pointer
            else:
                kept += int(row[6])
        there = conn.execute(
            queries.text("reclaim", "reclaim_columns"), {"oid": table.oid, "column": settings.column}
        ).fetchone()
        extension = conn.execute(queries.text("reclaim", "reclaim_repack")).fetchone()
        dropped = None
        if control.find(conn) is not None:
            dropped = conn.execute(queries.text("reclaim", "reclaim_last_drop")).fetchone()
    when_dropped = int(dropped[0]) if dropped else None
    repack = bool(extension and extension[0]) and shutil.which("pg_repack") is not None
    return Outlook(
        table=table.qualified,
        before=before,
        when_dropped=when_dropped,
        freed_by_drop=None if when_dropped is None else when_dropped - before.table,
        kept_bytes=kept,
        column_is_there=there is not None,
        choices=choices(before, kept, repack=repack),
        statements=tuple(
            queries.query("reclaim", "reclaim_vacuum_full", table=sql.Identifier(str(row[1]), str(row[2]))).as_string(
                None
            )
            for row in rows
        ),
    )


def choices(before: Sizes, kept_bytes: int, *, repack: bool) -> tuple[Choice, ...]:
    """What can be done, and its price.

    seconds = (heap + TOAST) / 200 MB/s + bytes that stay / 60 MB/s; pg_repack twice that, for it applies what changes
    meanwhile and builds indexes one by one.
    """
    seconds = (before.heap + before.toast) / (READ_MB_PER_S * 1e6) + kept_bytes / (WRITE_MB_PER_S * 1e6)
    return (
        Choice(
            "none",
            True,
            "leave it: new rows fill the space of heap pages as rows are changed and deleted, TOAST as they are; "
            "the files do not shrink",
            "none",
            0.0,
            0,
        ),
        Choice(
            "vacuum-full",
            True,
            "write the table anew; the old files are given back at the end",
            "ACCESS EXCLUSIVE all the time: every reader and writer of the table waits",
            round(seconds, 2),
            kept_bytes,
        ),
        Choice(
            "pg_repack",
            repack,
            "write a copy beside the table and exchange the two"
            + ("" if repack else "; needs the extension and the program pg_repack, which are not both there"),
            "ACCESS EXCLUSIVE for an instant at the beginning and at the end",
            round(2 * seconds, 1),
            kept_bytes,
        ),
    )


# VACUUM FULL --------------------------------------------------------------------------------------------------------


def _vacuum_full(
    settings: Settings, stop: Stop, table: Subject, waited: Waited, tries: int, ran: list[str]
) -> Generator[Progress, None, None]:
    """`ran`: the statements as they ended well, one after the other."""
    with connect(settings) as watcher, source_errors():
        parts = conn_tables(watcher, table)
        for done, part in enumerate(parts):
            for number in range(1, tries + 1):
                stop.check("cachemig reclaim --execute goes on with what is left")
                try:
                    yield from _one(settings, stop, watcher, part, waited, done, len(parts))
                    ran.append(queries.query("reclaim", "reclaim_vacuum_full", table=part).as_string(watcher))
                    break
                except LockNotGranted:
                    held = "; ".join(waited.now) or "somebody"
                    if number == tries:
                        raise LockNotGranted(
                            f"the table was in use at each of {tries} tries; it is held by {held}",
                            hint="cachemig ends nobody: wait for them, then run the same command again",
                        ) from None
                    yield Progress(number, tries, "tries", waiting=f"the table is held by {held}")
                    stop.wait(min(_LONGEST_SLEEP_S, 0.2 * 2**number))


def conn_tables(conn: Connection, table: Subject) -> list[sql.Identifier]:
    """The tables that hold rows: partitions one by one, so that each is locked only while its turn lasts."""
    rows = conn.execute(queries.text("reclaim", "reclaim_sizes"), {"relids": list(table.relids)}).fetchall()
    return [sql.Identifier(str(row[1]), str(row[2])) for row in rows]


def _one(
    settings: Settings, stop: Stop, watcher: Connection, part: sql.Identifier, waited: Waited, done: int, of: int
) -> Generator[Progress, None, None]:
    # VACUUM runs in no transaction, so its limits cannot be LOCAL: they come with the connection.
    options = f"-c lock_timeout={settings.lock_timeout * 1000:.0f} -c statement_timeout=0"
    before = conninfo.conninfo_to_dict(settings.dsn).get("options")
    with psycopg.connect(
        settings.dsn,
        autocommit=True,
        prepare_threshold=None,
        application_name="cachemig reclaim",
        connect_timeout=10,
        options=f"{before} {options}" if before else options,
    ) as conn:
        row = conn.execute(queries.text("reclaim", "reclaim_limits")).fetchone()
        assert row is not None
        if row[0] in ("0", "0ms"):
            raise Refused(
                "the connection did not keep lock_timeout, so VACUUM FULL could wait for its lock without a limit",
                hint="connect to Postgres itself, not through a pooler",
            )
        statement = queries.query("reclaim", "reclaim_vacuum_full", table=part)
        for _ in run_watched(conn, watcher, statement, stop, waited, "the table is as it was"):
            progress = watcher.execute(queries.text("reclaim", "reclaim_progress"), {"pid": row[2]}).fetchone()
            note = f"table {done + 1} of {of}: {part.as_string(watcher)}"
            if progress:
                yield Progress(int(progress[1]), int(progress[2]) or None, "blocks", note=f"{note}: {progress[0]}")
            else:
                yield Progress(done, of, "tables", note=note, waiting="; ".join(waited.now) or None)


# pg_repack ----------------------------------------------------------------------------------------------------------


def repack_command(settings: Settings, table: Subject) -> list[str]:
    """Its command line: no secret in it, nobody's session ended for it."""
    wait_s = max(1, round(settings.lock_timeout))
    name = table.identifier.as_string(None)
    return ["pg_repack", f"--table={name}", "--no-superuser-check", "--no-kill-backend", f"--wait-timeout={wait_s}"]


def environment(settings: Settings) -> dict[str, str]:
    """The connection, in libpq's own variables: argv is read by others."""
    given = conninfo.conninfo_to_dict(settings.dsn)
    named = {_ENVIRONMENT[k]: str(v) for k, v in given.items() if k in _ENVIRONMENT and v is not None}
    return {**os.environ, **named}


def _repack(settings: Settings, stop: Stop, table: Subject) -> Generator[Progress, None, None]:
    command = repack_command(settings, table)
    with subprocess.Popen(
        command,
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while process.poll() is None:
                yield Progress(0, None, "tables", note=f"pg_repack of {table.qualified}")
                stop.wait(0.5)
                stop.check("pg_repack cleans up after itself when it is stopped")
        finally:
            if process.poll() is None:
                process.terminate()
        said = process.stderr.read() if process.stderr else ""
        if process.returncode:
            last = said.strip().splitlines()[-1:] or ["no message"]
            raise CachemigError(
                f"pg_repack ended with {process.returncode}: {last[0]}", hint="cachemig reclaim shows the other ways"
            )
    if "ERROR" in said:
        raise SourceError(f"pg_repack: {said.strip().splitlines()[-1]}", hint="cachemig reclaim shows the other ways")

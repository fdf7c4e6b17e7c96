"""Steps as migration files, for teams whose pipeline must run them: written here, run there.

Each file looks at its gates itself and records the step; in a database without the migration it does nothing. What a
file cannot do is to ask Redis: the next command of the tool does that.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from psycopg import sql

from cachemig.config import Settings
from cachemig.errors import CachemigError, ConfigError, Refused
from cachemig.ladder import Phase
from cachemig.progress import Progress
from cachemig.source import capture, queries
from cachemig.source.connect import connect
from cachemig.source.table import inspect
from cachemig.steps import doctor, dual_write, init, stop_writes
from cachemig.steps.drop_column import Files, Format, as_migration, inspection, origin
from cachemig.steps.drop_column.migration import FORMATS, drop_files, executed, patience_s, written
from cachemig.steps.stop_writes import Guard
from cachemig.stop import Stop
from cachemig.targets.redis import RedisTarget

_MINE = ("-- cachemig: ", '"""cachemig: ')
"""How a file of this module begins."""


@dataclass(frozen=True)
class Wanted:
    """The flags --format, --output and --down-revision."""

    format: Format
    folder: Path
    down_revision: str | None


@dataclass(frozen=True)
class Written:
    """Files that were written."""

    step: str
    format: Format
    file: str
    reverse: str | None
    """None: it is part of the file (Alembic), or there is none."""
    then: str
    """What comes after the pipeline has run it."""
    in_the_way: tuple[str, ...] = ()
    """Why the file would be refused if it were run now."""


def wanted(format_: str | None, folder: Path | None, down_revision: str | None) -> Wanted | None:
    """None where no file is asked for. Raises ConfigError."""
    if format_ is None:
        if folder is not None or down_revision is not None:
            raise ConfigError("--output and --down-revision are for --format", hint="add --format sql")
        return None
    found = next((f for f in FORMATS if f == format_), None)
    if found is None:
        raise ConfigError(f"--format is one of {', '.join(FORMATS)}", hint="for example: --format sql")
    if down_revision is not None and found != "alembic":
        raise ConfigError("--down-revision is for --format alembic", hint="add --format alembic, or leave it out")
    return Wanted(found, folder or Path(), down_revision)


def write_init(settings: Settings, target: RedisTarget, asked: Wanted) -> Written:
    """init, bound to the database of these settings. Raises Refused where doctor finds an error."""
    doctor.gate(settings, target, "init")
    statements = init.statements(settings)
    if not statements:
        raise Refused("the control schema is there already: there is nothing to write", hint="cachemig status")
    here = origin(settings)
    block = queries.query(
        "files",
        "init_migration",
        system=sql.Literal(here.system_identifier),
        database=sql.Literal(here.database),
        statements=_lines(statements),
        settings=sql.Literal(json.dumps(settings.identity())),
        fingerprint=sql.Literal(settings.fingerprint()),
    )
    files = written(
        asked.format,
        f"init of {settings.table}",
        (block.as_string(None),),
        (queries.text("files", "init_reverse"),),
        statements=tuple(statements),
        reverse_statements=(),
        lock_timeout_s=settings.lock_timeout,
        statement_timeout_s=patience_s(settings.lock_timeout),
        down_revision=asked.down_revision,
        at=None,
    )
    return _write(files, asked, "init", "cachemig dual-write, or cachemig dual-write --format")


def write_dual_write(settings: Settings, target: RedisTarget, asked: Wanted) -> Written:
    """dual-write, and its reverse. Which servers the epoch is of stays open: the first sync begins one that knows."""
    doctor.gate(settings, target, "dual-write")
    with connect(settings) as conn:
        table = inspect(conn, settings)
        off = [part.as_string(conn) for part in capture.removal(table, ())]
    # The table's lock comes last: nobody is to wait for the rest.
    forward = [
        queries.text("files", "file_begin_epoch"),
        queries.text("capture", "mark_known"),
        *dual_write.statements(settings, enable=True),
    ]
    files = as_migration(
        forward,
        asked.format,
        f"dual-write of {table.qualified}",
        [queries.text("files", "file_not_in_work"), *off],
        command="dual-write",
        start=Phase.IDLE,
        end=Phase.DUAL_WRITE,
        lock_timeout_s=settings.lock_timeout,
        down_revision=asked.down_revision,
    )
    return _write(files, asked, "dual-write", "cachemig sync --follow as a service, and cachemig backfill")


def write_stop_writes(
    settings: Settings,
    target: RedisTarget,
    stop: Stop,
    asked: Wanted,
    guard: Guard,
    *,
    no_clients: bool = False,
    accept_expiring: int = 0,
) -> Generator[Progress, None, Written]:
    """stop-writes, which no file can reverse. Its gate `expiring` is looked at now, for that takes the recordings; the
    others are looked at by the file, when it is run."""
    shown = yield from stop_writes.preview(
        settings, target, stop, guard, no_clients=no_clients, accept_expiring=accept_expiring
    )
    unmet = [gate for gate in shown.gates if not gate.met]
    for gate in unmet:
        if gate.gate == "expiring":
            raise Refused(f"gate {gate.gate} ({gate.demands}): {gate.figure}", hint=gate.command)
    with connect(settings) as conn:
        table = inspect(conn, settings)
    block = queries.query(
        "files",
        "stop_writes_migration",
        lock_timeout=sql.Literal(f"{settings.lock_timeout * 1000:.0f}ms"),
        table_setting=sql.Literal(settings.table),
        column_setting=sql.Literal(settings.column),
        soak=sql.Literal(f"{settings.soak_cutover:g} seconds"),
        fresh=sql.Literal(f"{settings.verify_fresh:g} seconds"),
        max_lag=sql.Literal(f"{settings.cutover_max_lag:g} seconds"),
        no_clients=sql.SQL("true" if no_clients else "false"),
        statements=_lines(shown.statements),
        figures=sql.Literal(json.dumps({"guard": guard, "no_clients": no_clients})),
    )
    none = "-- There is no reverse: what is written from then on is in Redis alone, and no file can read that."
    files = written(
        asked.format,
        f"stop-writes of {table.qualified}",
        (block.as_string(None),),
        (queries.text("files", "stop_writes_reverse"),) if asked.format == "alembic" else (),
        statements=tuple(shown.statements),
        reverse_statements=(),
        lock_timeout_s=settings.lock_timeout,
        statement_timeout_s=patience_s(settings.lock_timeout),
        down_revision=asked.down_revision,
        at=None,
        tail=(none, "-- `cachemig rollback` copies it back into the column, and has the column used again."),
    )
    then = "cachemig stop-writes --execute, which waits for the applications and delivers what was on its way"
    return _write(files, asked, "stop-writes", then, tuple(f"gate {gate.gate}: {gate.figure}" for gate in unmet))


def write_drop(
    settings: Settings,
    asked: Wanted,
    *,
    with_columns: Sequence[str] = (),
    accept: Sequence[str] = (),
    no_clients: bool = False,
) -> Written:
    """The drop, which looks at all of its gates when it is run; and the empty column as its reverse."""
    found = inspection(settings, with_columns=with_columns)
    files = drop_files(
        settings,
        found,
        asked.format,
        soak_s=settings.soak_redis_only,
        accept=accept,
        no_clients=no_clients,
        down_revision=asked.down_revision,
    )
    ways = tuple(f"{d.kind} {d.name}" for d in found.in_the_way(accept))
    return _write(files, asked, "drop-column", "cachemig residue, then cachemig reclaim", ways)


def _lines(statements: Sequence[str]) -> sql.SQL:
    return sql.SQL("\n".join(executed(statements)))


def _write(files: Files, asked: Wanted, step: str, then: str, in_the_way: tuple[str, ...] = ()) -> Written:
    """Only where no file stands that is not this module's own."""
    file = asked.folder / files.name
    reverse = None if files.reverse_name is None else asked.folder / files.reverse_name
    try:
        asked.folder.mkdir(parents=True, exist_ok=True)
        for path in (file, reverse):
            if path is not None and path.exists() and not path.read_text(encoding="utf-8").startswith(_MINE):
                raise Refused(f"{path} is there, and is no file of cachemig", hint="choose another --output")
        file.write_text(files.text, encoding="utf-8")
        if reverse is not None and files.reverse is not None:
            reverse.write_text(files.reverse, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise CachemigError(
            f"{file} cannot be written: {exc}", hint="name a folder that you may write to: --output FOLDER"
        ) from exc
    return Written(step, asked.format, str(file), None if reverse is None else str(reverse), then, in_the_way)

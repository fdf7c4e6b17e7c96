"""Steps as migration files, for teams whose pipeline must run them: plain SQL, Supabase, Alembic.

A file is one statement that looks at the gates itself, so that it does all or nothing whatever transaction its runner
keeps; it records phase and journal itself; run again it changes nothing; and on a database without the migration (a
preview branch) it only says so. Pure: composing needs no connection.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from psycopg import sql

from cachemig.config import Settings, show_duration
from cachemig.ladder import Phase
from cachemig.source import queries
from cachemig.steps.drop_column.inspect import Inspection, pattern

Format = Literal["sql", "supabase", "alembic"]
FORMATS: tuple[Format, ...] = ("sql", "supabase", "alembic")
FILE_TRIES = 10
"""How often a file asks for the table's lock; the tool itself asks oftener, and names who holds it."""
_LONGEST_SLEEP_S = 5.0


@dataclass(frozen=True)
class Origin:
    """The database that a file is made for."""

    system_identifier: str
    database: str


@dataclass(frozen=True)
class Files:
    """A migration and its reverse, ready to be written."""

    name: str
    text: str
    reverse_name: str | None
    """None: the reverse is part of the file itself (Alembic)."""
    reverse: str | None
    statements: tuple[str, ...]
    """What the file does once its gates are met, for people and linters to read."""
    reverse_statements: tuple[str, ...]


def as_migration(
    statements: Sequence[str],
    format: Format,  # noqa: A002  # as the flag is called
    title: str,
    reverse: Sequence[str] = (),
    *,
    command: str | None = None,
    start: Phase | None = None,
    end: Phase | None = None,
    origin: Origin | None = None,
    lock_timeout_s: float = 2.0,
    down_revision: str | None = None,
    at: datetime | None = None,
) -> Files:
    """The statements as one migration file, and `reverse` as another one.

    `start`, `end`, `command`: the file refuses in any phase but `start`, says so and does nothing in `end`, and records
    the step; its reverse the other way round. Without them it runs wherever there is a migration. `origin` is for the
    file that makes the control schema: in any other database it does nothing, for no control schema is there to tell.
    """
    forward = _block(statements, title, start, end, command, origin)
    back = _block(reverse, f"reverse of {title}", end, start, command and f"{command} (reverse)", origin)
    return written(
        format,
        title,
        (forward,),
        (back,) if reverse else (),
        statements=tuple(statements),
        reverse_statements=tuple(reverse),
        lock_timeout_s=lock_timeout_s,
        statement_timeout_s=patience_s(lock_timeout_s),
        down_revision=down_revision,
        at=at,
    )


def drop_files(
    settings: Settings,
    inspection: Inspection,
    format: Format,  # noqa: A002
    *,
    soak_s: float,
    accept: Collection[str] = (),
    no_clients: bool = False,
    down_revision: str | None = None,
    at: datetime | None = None,
) -> Files:
    """drop-column as a migration file. Its gates: phase redis-only, the soak over, the last verification passed and
    fresh, no late write waiting, the archive read back, no application on an older phase (nor none at all, but for
    `no_clients`), nothing depending. The reverse brings back the empty column; `cachemig restore` its data."""
    names = [c.name for c in inspection.columns] or list(inspection.gone)
    table, regclass = _table(inspection.table)
    title = f"drop column {', '.join(names)} of {inspection.table}"
    notify = queries.text("drop_column", "drop_notify") if format == "supabase" or inspection.postgrest else ""
    block = queries.query(
        "drop_column",
        "drop_migration",
        lock_timeout=_milliseconds(settings.lock_timeout),
        table_setting=sql.Literal(settings.table),
        column_setting=sql.Literal(settings.column),
        soak=sql.Literal(f"{soak_s:g} seconds"),
        fresh=sql.Literal(f"{settings.verify_fresh:g} seconds"),
        pattern=sql.Literal(pattern(names)),
        accept=sql.Literal(sorted(accept)),
        no_clients=sql.SQL("true" if no_clients else "false"),
        regclass=regclass,
        lock=_bare("drop_lock", table=table),
        tries=sql.Literal(FILE_TRIES),
        own_triggers=_inner(queries.query("drop_column", "drop_own_triggers", regclass=regclass)),
        alter=alter(inspection.table, names),
        figures=figures(inspection, names),
        notify=sql.SQL(notify),
    ).as_string(None)
    note = [
        f"-- The soak is {show_duration(soak_s)}; a verification is fresh for {show_duration(settings.verify_fresh)}.",
        *(["-- Accepted by name, though its text mentions the column: " + ", ".join(sorted(accept))] if accept else []),
    ]
    recreate = inspection.recreate
    tail = ["-- When `cachemig restore` has brought back the data:"] if recreate["after_data"] else []
    tail += [f"--   {' '.join(text.split())};" for text in recreate["after_data"]]
    back = _block(
        [*recreate["column"], *([notify] if notify else [])],
        f"reverse of {title}",
        None,
        None,
        "drop-column (reverse)",
        None,
    )
    return written(
        format,
        title,
        ("\n".join([*note, block]),),
        (back,),
        statements=(alter(inspection.table, names).as_string(None),),
        reverse_statements=tuple(recreate["column"]),
        reverse_tail=tail,
        lock_timeout_s=settings.lock_timeout,
        statement_timeout_s=patience_s(settings.lock_timeout),
        down_revision=down_revision,
        at=at,
    )


# The parts of the drop, for the file and for the tool ---------------------------------------------------------------


def limits(lock_timeout_s: float, statement_timeout_s: float) -> sql.Composed:
    """The SET LOCAL statements that come first."""
    return queries.query(
        "drop_column",
        "drop_limits",
        lock_timeout=_milliseconds(lock_timeout_s),
        statement_timeout=_milliseconds(statement_timeout_s),
    )


def patience_s(lock_timeout_s: float) -> float:
    """A file waits inside one statement, so its timeout covers every try."""
    return FILE_TRIES * (lock_timeout_s + _LONGEST_SLEEP_S) + 60


def alter(table: str, names: Sequence[str]) -> sql.Composed:
    """DROP COLUMN IF EXISTS of all the columns, in one statement."""
    drops = sql.SQL(", ").join(sql.SQL("DROP COLUMN IF EXISTS {}").format(sql.Identifier(name)) for name in names)
    return queries.query("drop_column", "drop_alter", table=_table(table)[0], drops=drops)


def statements(settings: Settings, inspection: Inspection) -> list[str]:
    """What `drop-column --execute` runs, in one transaction, in order."""
    names = [c.name for c in inspection.columns] or list(inspection.gone)
    table, regclass = _table(inspection.table)
    parts: list[sql.Composed] = [
        limits(settings.lock_timeout, settings.lock_timeout + 60),
        queries.query("drop_column", "drop_lock", table=table),
        queries.query("drop_column", "drop_own_triggers", regclass=regclass),
        alter(inspection.table, names),
        queries.query("drop_column", "drop_recorded", figures=figures(inspection, names)),
    ]
    written = [part.as_string(None) for part in parts]
    return [*written, queries.text("drop_column", "drop_notify")] if inspection.postgrest else written


def figures(inspection: Inspection, names: Sequence[str]) -> sql.Literal:
    """What the journal keeps of a drop; `restore` and `reclaim` read it."""
    return sql.Literal(json.dumps(figures_of(inspection, names)))


def figures_of(inspection: Inspection, names: Sequence[str]) -> dict[str, Any]:
    return {
        "columns": list(names),
        "recreate": inspection.recreate,
        "table_bytes": inspection.table_bytes,
        "database_bytes": inspection.database_bytes,
    }


def own_triggers(table: str) -> sql.Composed:
    return queries.query("drop_column", "drop_own_triggers", regclass=_table(table)[1])


def _table(qualified: str) -> tuple[sql.Identifier, sql.Literal]:
    schema, _, name = qualified.partition(".")
    identifier = sql.Identifier(schema, name)
    return identifier, sql.Literal(identifier.as_string(None))


def _milliseconds(seconds: float) -> sql.Literal:
    return sql.Literal(f"{seconds * 1000:.0f}ms")


def _bare(name: str, **parts: sql.Composable) -> sql.Composed:
    return queries.fragment("drop_column", name, **parts)


def _inner(statement: sql.Composed) -> sql.SQL:
    """The block of a DO statement, to stand inside another one."""
    body = statement.as_string(None).partition("DO $cachemig$\n")[2].rpartition("\n$cachemig$;")[0]
    return sql.SQL((body + ";").replace("{", "{{").replace("}", "}}"))


# Files --------------------------------------------------------------------------------------------------------------


def _block(
    statements: Sequence[str],
    title: str,
    start: Phase | None,
    end: Phase | None,
    command: str | None,
    origin: Origin | None,
) -> str:
    """One DO statement that runs the others, where it may."""
    say = sql.Literal(f"cachemig: {title}: there is no migration in this database, nothing is done").as_string(None)
    lines = ["DO $cachemig$", "DECLARE", "    phase_now text;", "    tries     integer := 0;", "BEGIN"]
    if origin:
        here = (
            "pg_catalog.pg_control_system() AS c WHERE c.system_identifier::text = {} "
            "AND pg_catalog.current_database() = {}"
        )
        where = (
            sql.SQL(here).format(sql.Literal(origin.system_identifier), sql.Literal(origin.database)).as_string(None)
        )
        other = sql.Literal(f"cachemig: {title}: this is not the database that it was made for, nothing is done")
        lines += [f"    IF NOT EXISTS (SELECT FROM {where}) THEN"]
        lines += [f"        RAISE NOTICE USING MESSAGE = {other.as_string(None)};", "        RETURN;", "    END IF;"]
    if origin is None or start is not None or end is not None:
        absent = "    IF pg_catalog.to_regclass('cachemig.migration') IS NULL THEN"
        if origin is None:
            lines += [absent, f"        RAISE NOTICE USING MESSAGE = {say};", "        RETURN;", "    END IF;"]
    if start is not None or end is not None:
        lines += _phase_check(start, end, title)
    lines += executed(statements)
    if command is not None:
        lines += _recorded(command, start, end)
    return "\n".join([*lines, "END", "$cachemig$;"])


def executed(statements: Sequence[str]) -> list[str]:
    """Lines that run the statements one after the other, inside a block that declares `tries`. The table's lock is
    asked for as the drop does it: for lock_timeout at a time, then the application goes first."""
    lines = []
    for text in statements:
        run = f"EXECUTE {_quoted(text)};"
        if not re.sub(r"^\s*--.*$", "", text, flags=re.MULTILINE).lstrip().startswith("LOCK TABLE"):
            lines.append(f"    {run}")
            continue
        lines += [
            "    LOOP",
            "        tries := tries + 1;",
            "        BEGIN",
            f"            {run}",
            "            EXIT;",
            "        EXCEPTION WHEN lock_not_available THEN",
            f"            IF tries >= {FILE_TRIES} THEN",
            "                RAISE EXCEPTION USING ERRCODE = 'lock_not_available',",
            "                    MESSAGE = 'cachemig: the table was in use at every try; nothing was changed',",
            "                    HINT = 'a long transaction holds it; run this migration again when it has ended';",
            "            END IF;",
            f"            PERFORM pg_catalog.pg_sleep(least({_LONGEST_SLEEP_S}, 0.2 * 2.0 ^ tries)"
            " * (0.5 + pg_catalog.random() / 2));",
            "        END;",
            "    END LOOP;",
        ]
    return lines


def _phase_check(start: Phase | None, end: Phase | None, title: str) -> list[str]:
    lines = ["    SELECT phase INTO phase_now FROM cachemig.migration FOR UPDATE;"]
    if end is not None:
        done = sql.Literal(f"cachemig: {title}: done before, nothing is changed").as_string(None)
        lines += [
            f"    IF phase_now = '{end.value}' THEN",
            f"        RAISE NOTICE USING MESSAGE = {done};",
            "        RETURN;",
            "    END IF;",
        ]
    if start is not None:
        refused = sql.Literal(f"cachemig: {title}: refused, for it wants phase {start.value} and not ").as_string(None)
        lines += [
            f"    IF phase_now IS DISTINCT FROM '{start.value}' THEN",
            f"        RAISE EXCEPTION USING MESSAGE = {refused} || coalesce(phase_now, 'none'),",
            "            HINT = 'cachemig status says which step comes next';",
            "    END IF;",
        ]
    return lines


def _recorded(command: str, start: Phase | None, end: Phase | None) -> list[str]:
    who = "session_user || ' (migration file)'"
    lines = []
    if end is not None:  # S608: of constants and quoted literals
        lines += [
            f"    UPDATE cachemig.migration SET phase = '{end.value}', changed_at = pg_catalog.clock_timestamp(),",  # noqa: S608
            f"        changed_by = {who};",
        ]
    before = f"'{start.value}'" if start is not None else "NULL"
    lines += [
        "    INSERT INTO cachemig.journal (who, command, phase_from, phase_to, epoch)",
        f"    SELECT {who}, {sql.Literal(command).as_string(None)}, {before},"  # noqa: S608
        " phase, epoch FROM cachemig.migration;",
    ]
    return lines


def _quoted(text: str) -> str:
    """A statement as a dollar-quoted string; the tag does not occur in it."""
    tag, n = "$statement$", 0
    while tag in text:
        n += 1
        tag = f"$statement{n}$"
    return f"{tag}\n{text.strip().removesuffix(';')}\n{tag}"


def written(
    format: Format,  # noqa: A002
    title: str,
    forward: Sequence[str],
    back: Sequence[str],
    *,
    statements: tuple[str, ...],
    reverse_statements: tuple[str, ...],
    lock_timeout_s: float,
    statement_timeout_s: float,
    down_revision: str | None,
    at: datetime | None,
    tail: Sequence[str] = (),
    reverse_tail: Sequence[str] = (),
) -> Files:
    """Blocks as a file of this format. `tail`, `reverse_tail`: comments that stand at the end."""
    first = limits(lock_timeout_s, statement_timeout_s).as_string(None)
    when = at or datetime.now(UTC)
    slug = "cachemig_" + re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")[:60].rstrip("_")
    head = f"-- cachemig: {title}. It looks at its gates itself, and does all of it or nothing."
    if format == "alembic":
        text = _alembic(title, slug, first, forward, back, reverse_tail, down_revision, when)
        return Files(f"{slug}.py", text, None, None, statements, reverse_statements)

    def document(heading: str, blocks: Sequence[str], tail: Sequence[str]) -> str:
        parts = [heading, first, *blocks]
        # Supabase runs each file in a transaction of its own; a COMMIT in it would part it from its history.
        if format == "sql":
            parts = [heading, "BEGIN;", first, *blocks, "COMMIT;"]
        return "\n\n".join([*parts, *(["\n".join(tail)] if tail else [])]) + "\n"

    stamp = f"{when:%Y%m%d%H%M%S}_" if format == "supabase" else ""
    return Files(
        f"{stamp}{slug}.sql",
        document(head, forward, tail),
        # Without a stamp: where it lies beside the others, Supabase is not to take it for one more migration.
        f"{slug}.reverse.sql" if back else None,
        document(f"-- cachemig: the reverse of: {title}.", back, reverse_tail) if back else None,
        statements,
        reverse_statements,
    )


def _alembic(
    title: str,
    slug: str,
    first: str,
    forward: Sequence[str],
    back: Sequence[str],
    tail: Sequence[str],
    down_revision: str | None,
    when: datetime,
) -> str:
    revision = hashlib.sha256("\n".join([slug, *forward]).encode()).hexdigest()[:12]
    lines = [
        f'"""cachemig: {title}.',
        "",
        "It looks at its gates itself, and does all of it or nothing.",
        "",
        f"Revision ID: {revision}",
        f"Create Date: {when:%Y-%m-%d %H:%M:%S}",
        '"""',
        "",
        "from alembic import op",
        "",
        f'revision = "{revision}"',
        f"down_revision = {down_revision!r}" + ("" if down_revision else "  # the id of your last revision goes here"),
        "branch_labels = None",
        "depends_on = None",
        "",
        f"LIMITS = {_python([part + ';' for part in _each(first)])}",
        "",
        f"UPGRADE = {_python(forward)}",
        "",
        f"DOWNGRADE = {_python(back)}",
        "",
        "",
        "def upgrade() -> None:",
        "    for statement in (*LIMITS, *UPGRADE):",
        "        op.execute(statement)",
        "",
        "",
        "def downgrade() -> None:",
        "    for statement in (*LIMITS, *DOWNGRADE):",
        "        op.execute(statement)",
        *(f"    {line.replace('--', '#', 1)}" for line in tail),
    ]
    return "\n".join(lines) + "\n"


def _each(text: str) -> list[str]:
    """The statements of drop_limits, without their comment."""
    return [line.rstrip(";") for line in text.splitlines() if line.startswith("SET ")]


def _python(texts: Sequence[str]) -> str:
    """A tuple of triple-quoted strings for op.execute(), which takes a word behind a colon for a parameter."""
    shown = []
    for text in texts:
        escaped = re.sub(r"(?<![:\w\\]):(?=\w)", r"\\:", text)
        escaped = escaped.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
        shown.append(f'    """{escaped}\n""",' if "\n" in text else f'    """{escaped}""",')
    return "(\n" + "\n".join(shown) + "\n)" if shown else "()"

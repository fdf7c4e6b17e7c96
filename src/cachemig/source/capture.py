"""Capture: the triggers by which every committed write leaves a mark."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from cachemig.source import queries
from cachemig.source.chunks import Range
from cachemig.source.connect import Connection, run, source_errors
from cachemig.source.table import Table


def before_triggers(conn: Connection, table: Table) -> list[tuple[str, str]]:
    """(trigger, function) of BEFORE UPDATE triggers whose function mentions a column that capture watches."""
    with source_errors():
        rows = conn.execute(
            queries.text("catalog", "before_triggers"), {"oid": table.oid, "columns": list(table.state_columns)}
        ).fetchall()
    return [(str(name), str(function)) for name, function in rows]


def mode(conn: Connection, table: Table) -> str:
    """`columns` or `compare`: how capture must watch updates of this table."""
    if table.settings.capture != "auto":
        return table.settings.capture
    return "compare" if before_triggers(conn, table) else "columns"


def lock(table: Table, *, replace: bool) -> sql.Composed:
    strength = "ACCESS EXCLUSIVE" if replace else "SHARE ROW EXCLUSIVE"
    return queries.query("capture", "lock_table", table=table.identifier, mode=sql.SQL(strength))


def removal(table: Table, in_work: Sequence[Range]) -> list[sql.Composed]:
    """The statements that switch capture off, in order, to be run in one transaction."""
    marks = [queries.query("capture", "mark_in_work", **table.parts, range=table.range(*range_)) for range_ in in_work]
    return [*marks, lock(table, replace=True), queries.query("capture", "capture_drop", table=table.identifier)]


def remove(conn: Connection, table: Table, in_work: Sequence[Range]) -> list[str]:
    """Switches capture off, in the caller's transaction. Returns the statements that ran, for the journal: without the
    marking of chunks in work, which names keys of rows."""
    *marks, lock_table, drop = removal(table, in_work)
    with source_errors():
        for mark_in_work in marks:
            conn.execute(mark_in_work)
    return run(conn, [lock_table, drop])


def statements(table: Table, mode: str, *, replace: bool) -> list[sql.Composed]:
    """The statements that switch capture on, in order, to be run in one transaction; `replace`: what there is of it
    is removed first."""
    parts: dict[str, sql.Composable] = {"table": table.identifier, "key": sql.Identifier(table.settings.key_column)}
    triggers = _watching(
        ("capture_triggers_columns", "capture_triggers_compare"), table, mode, table.state_columns, parts
    )
    return [
        lock(table, replace=replace),
        *([queries.query("capture", "capture_drop", table=table.identifier)] if replace else []),
        queries.query("capture", "capture_function", **parts),
        queries.query("capture", "capture_truncate_function", **parts),
        triggers,
        queries.query("capture", "capture_always", table=table.identifier),
    ]


def _watching(
    names: tuple[str, str], table: Table, mode: str, watched: Sequence[str], parts: dict[str, sql.Composable]
) -> sql.Composed:
    """The triggers that fire where a row comes, goes, or is changed in one of these columns. `names`: of the
    statements, by the mode."""
    if mode == "columns":
        columns = sql.SQL(", ").join(map(sql.Identifier, watched))
        return queries.query("capture", names[0], columns=columns, **parts)
    differs = sql.SQL(" OR ").join(
        sql.SQL("OLD.{0}{1} IS DISTINCT FROM NEW.{0}{1}").format(
            sql.Identifier(c), sql.SQL("::text" if table.columns[c] == "json" else "")
        )
        for c in watched
    )
    return queries.query("capture", names[1], differs=differs, **parts)


def guard(table: Table, mode: str, *, rejects: bool) -> list[sql.Composed]:
    """The statements that put the guard in the place of capture, in order, to be run in one transaction."""
    settings = table.settings
    parts: dict[str, sql.Composable] = {"table": table.identifier, "key": sql.Identifier(settings.key_column)}
    return [
        lock(table, replace=True),
        queries.query("capture", "guard_drop", table=table.identifier),
        queries.query("capture", "capture_drop", table=table.identifier),
        queries.query(
            "capture",
            "guard_function",
            **parts,
            column=sql.Identifier(settings.column),
            new_nonempty=table.nonempty("NEW"),
            old_nonempty=table.nonempty("OLD"),
            rejects=sql.SQL("true" if rejects else "false"),
            column_text=sql.Literal(settings.column),
            table_text=sql.Literal(table.qualified),
        ),
        queries.query("capture", "guard_truncate_function", **parts),
        _watching(
            ("guard_triggers_columns", "guard_triggers_compare"),
            table,
            mode,
            (settings.column, settings.key_column),
            parts,
        ),
        queries.query("capture", "guard_always", table=table.identifier),
    ]


def unguard(table: Table) -> sql.Composed:
    """Removes the guard. Under the table's lock."""
    return queries.query("capture", "guard_drop", table=table.identifier)


def guarded(conn: Connection, table: Table) -> str | None:
    """`forward` or `reject`, where the guard is on the table and fires always; else None."""
    with source_errors():
        rows = conn.execute(queries.text("capture", "guard_installed"), {"table_oid": table.oid}).fetchall()
    if not rows or any(fires != "A" for fires, _ in rows):
        return None
    return "reject" if rows[0][1] else "forward"


def _triggers(conn: Connection, table: Table) -> list[tuple[str, str, bool]]:
    with source_errors():
        return conn.execute(queries.text("capture", "capture_installed"), {"table_oid": table.oid}).fetchall()


def has_traces(conn: Connection, table: Table) -> bool:
    """Some trigger of capture is on the table, complete or not."""
    return bool(_triggers(conn, table))


def installed_mode(conn: Connection, table: Table) -> str | None:
    """`columns` or `compare`, where every trigger of that mode is on the table and fires always; else None."""
    found = {name: at_updates for name, fires, at_updates in _triggers(conn, table) if fires == "A"}
    if not {"cachemig_capture", "cachemig_capture_truncate"} <= found.keys():
        return None
    if found["cachemig_capture"]:
        return "columns"
    return "compare" if "cachemig_capture_update" in found else None


def installed(conn: Connection, table: Table) -> bool:
    """No committed write can go unnoticed, as far as the triggers on the table go."""
    return installed_mode(conn, table) is not None


def can_be_key(key: str) -> bool:
    """Postgres text can hold it: no NUL, nothing that is not UTF-8 (SCAN finds any bytes)."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in key


def expand_truncations(conn: Connection) -> int:
    """Marks every known key where a TRUNCATE's own marks may not be all; the number of marks."""
    with source_errors():
        return conn.execute(queries.text("capture", "expand_truncations")).rowcount


def mark(conn: Connection, keys: Sequence[str]) -> None:
    """Marks keys as changed, so that sync reads and delivers each of them anew."""
    with source_errors():
        conn.execute(queries.text("capture", "mark_keys"), {"keys": list(keys)})

"""Capture: the triggers by which every committed write leaves a mark."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from cachemig.source import queries
from cachemig.source.connect import Connection, source_errors
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


def statements(table: Table, mode: str) -> list[sql.Composed]:
    """The statements that switch capture on, in order, to be run in one transaction."""
    parts = {"table": table.identifier, "key": sql.Identifier(table.settings.key_column)}
    if mode == "columns":
        columns = sql.SQL(", ").join(map(sql.Identifier, table.state_columns))
        triggers = queries.query("capture", "capture_triggers_columns", columns=columns, **parts)
    else:
        differs = sql.SQL(" OR ").join(
            sql.SQL("OLD.{0}{1} IS DISTINCT FROM NEW.{0}{1}").format(
                sql.Identifier(c), sql.SQL("::text" if table.columns[c] == "json" else "")
            )
            for c in table.state_columns
        )
        triggers = queries.query("capture", "capture_triggers_compare", differs=differs, **parts)
    return [
        queries.query("capture", "lock_table", table=table.identifier),
        queries.query("capture", "capture_drop", table=table.identifier),
        queries.query("capture", "capture_function", **parts),
        queries.query("capture", "capture_truncate_function", **parts),
        triggers,
        queries.query("capture", "capture_always", table=table.identifier),
    ]


def installed(conn: Connection, table: Table) -> bool:
    """Every trigger of capture is on the table and fires always."""
    with source_errors():
        rows = conn.execute(queries.text("capture", "capture_installed"), {"table_oid": table.oid}).fetchall()
    found = {str(name): fires for name, fires in rows}
    return {"cachemig_capture", "cachemig_capture_truncate"} <= found.keys() and all(f == "A" for f in found.values())


def mark(conn: Connection, keys: Sequence[str]) -> None:
    """Marks keys as changed, so that sync reads and delivers each of them anew."""
    with source_errors():
        conn.execute(queries.text("capture", "mark_keys"), {"keys": list(keys)})

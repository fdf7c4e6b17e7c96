"""A brownout under way, and its end. Every command asks here first, so this module loads nothing but the driver.

A row in cachemig.brownout is there exactly while the column is hidden (steps/drop_column/brownout.py). It holds the
deadline; `end_overdue()` renames back what is past it, `end()` does so at any moment.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import sql

from cachemig.config import Settings
from cachemig.errors import LockNotGranted
from cachemig.source import queries
from cachemig.source.connect import Connection, connect, run, source_errors, transaction

TRIES = 30
_FIRES = {"O": "ENABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA", "D": "DISABLE"}


@dataclass(frozen=True)
class Hidden:
    """A brownout under way."""

    table: str
    column: str
    ends_at: datetime
    who: str
    overdue: bool


def now(conn: Connection) -> Hidden | None:
    """The brownout under way, or None."""
    row = _row(conn)
    return None if row is None else Hidden(f"{row[7]}.{row[8]}", row[1], row[4], row[5], row[6])


def end_overdue(settings: Settings) -> str | None:
    """Renames back what a killed brownout left behind, once its time is over: the column, or None. One cheap question
    where there is nothing to do. Every command calls it first."""
    with connect(settings) as conn:
        hidden = now(conn)
    return end(settings) if hidden is not None and hidden.overdue else None


def end(settings: Settings) -> str | None:
    """Renames the column back, now. Returns its name, or None where no brownout is under way. Any number of callers may
    do it at once. Raises LockNotGranted when the table was in use at every try."""
    revealed = reveal(settings, journalled=True)
    return revealed[0] if revealed else None


def reveal(settings: Settings, *, journalled: bool) -> tuple[str, list[str]] | None:
    """The same: the column's name, and the statements that ran. `journalled`: nobody else records them."""
    with connect(settings) as conn:
        for left in reversed(range(TRIES)):
            try:
                return _reveal(conn, settings, journalled=journalled)
            except LockNotGranted:
                if not left:
                    raise
                time.sleep(0.2)
    return None


def _reveal(conn: Connection, settings: Settings, *, journalled: bool) -> tuple[str, list[str]] | None:
    row = _row(conn)
    if row is None:
        return None
    with transaction(conn, lock_timeout_s=settings.lock_timeout):
        if conn.execute(queries.text("drop_column", "brownout_end")).fetchone() is None:
            return None  # somebody else has done it meanwhile
        ran: list[str] = []
        if row[8] is not None:
            table = sql.Identifier(row[7], row[8])
            lock = queries.query("drop_column", "drop_lock", table=table)
            ran = run(conn, [lock, renaming(table, row[2], row[1]), *firing(table, row[3])])
        if journalled:
            from cachemig.source import control  # every command loads this module first, and few end a brownout

            control.journal(conn, "drop-column --end-brownout", {"of": row[5], "overdue": row[6], "sql": ran})
    return str(row[1]), ran


def _row(conn: Connection) -> tuple[Any, ...] | None:
    with source_errors():
        there = conn.execute(queries.text("drop_column", "brownout_there")).fetchone()
        if not there or not there[0]:
            return None
        return conn.execute(queries.text("drop_column", "brownout_now")).fetchone()


def revealing(conn: Connection) -> list[str]:
    """What renames the column back, beside the end of the row; nothing where the table is gone. Reads only."""
    row = _row(conn)
    if row is None or row[8] is None:
        return []
    table = sql.Identifier(row[7], row[8])
    parts = [
        queries.query("drop_column", "drop_lock", table=table),
        renaming(table, row[2], row[1]),
        *firing(table, row[3]),
    ]
    return [part.as_string(conn) for part in parts]


def renaming(table: sql.Identifier, old: str, new: str) -> sql.Composed:
    names = {"old": sql.Identifier(old), "new": sql.Identifier(new)}
    return queries.query("drop_column", "brownout_rename", table=table, **names)


def firing(table: sql.Identifier, triggers: dict[str, str]) -> list[sql.Composed]:
    """How these triggers are to fire."""
    return [
        queries.query(
            "drop_column", "brownout_trigger", table=table, fires=sql.SQL(_FIRES[how]), trigger=sql.Identifier(name)
        )
        for name, how in triggers.items()
    ]

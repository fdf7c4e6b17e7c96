"""Repairs of the source: reading the row that is an entry, and writing it on condition that it still holds what was
judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import psycopg
import psycopg.errors
from psycopg import sql

from cachemig.entries.entry import digest
from cachemig.errors import SourceError
from cachemig.source import control, queries
from cachemig.source.connect import Connection, source_errors, transaction
from cachemig.source.table import Table

_PAGE = 200


@dataclass(frozen=True)
class Row:
    """The row that is the entry of a key, as it was read."""

    key: str
    text: str
    columns: dict[str, str | None]
    """The columns that say where its recording is."""


@dataclass(frozen=True)
class Repair:
    """What a repair writes, and why."""

    text: str
    how: str
    fault: str
    profile: str | None
    code_version: str


@dataclass(frozen=True)
class Done:
    """A repair that was made before."""

    id: int
    key: str
    before: str
    after_sha256: bytes


class Unstorable(SourceError):
    """The column does not take the value."""

    hint = "the row stays as it was: cachemig verify --accept-set-aside N accepts it"


def set_aside(conn: Connection, after: bytes) -> list[tuple[bytes, str]]:
    """Some keys whose value is set aside, with their ids, in the order of the ids; those behind `after`."""
    with source_errors():
        rows = conn.execute(queries.text("recompute", "set_aside"), {"after": after, "limit": _PAGE}).fetchall()
    return [(bytes(number), str(key)) for number, key in rows]


def read(conn: Connection, table: Table, key: str, columns: Sequence[str]) -> Row | None:
    """The row that is the entry of the key; None where no row holds a value for it."""
    named = [sql.SQL("n.{}::text").format(sql.Identifier(c)) for c in columns]
    query = queries.query(
        "recompute",
        "read_row",
        **_parts(table, key, "n_nonempty", "n_order"),
        columns=sql.SQL("").join(sql.SQL(", ") + c for c in named),
    )
    with transaction(conn, read_only=True):
        found = conn.execute(query).fetchone()
    if found is None:
        return None
    text, *values = found
    return Row(key, str(text), dict(zip(columns, values, strict=True)))


def write(conn: Connection, table: Table, row: Row, repair: Repair, *, lock_timeout_s: float) -> bool:
    """Writes the repair and keeps what it replaces, in one transaction; False, with nothing done, where the row holds
    another value by now. Raises LockNotGranted where another transaction holds the row, Unstorable where the column
    does not take the value, such as a NUL."""
    judged = digest(row.text.encode())
    values = {
        "value": repair.text, "how": repair.how, "fault": repair.fault, "profile": repair.profile,
        "code_version": repair.code_version, "before": row.text, "judged": judged, "who": control.who(),
    }  # fmt: skip
    return _written(conn, table, row.key, "repair", values, lock_timeout_s)


def undo(conn: Connection, table: Table, done: Done, *, lock_timeout_s: float) -> bool:
    """Puts back what the repair replaced; False where the row holds something else by now. Raises LockNotGranted."""
    values = {"value": done.before, "judged": done.after_sha256, "repair": done.id}
    return _written(conn, table, done.key, "undo", values, lock_timeout_s)


def statements(table: Table, *, undo: bool = False) -> list[str]:
    """What writes a repair, or takes it back, for people: with … for what is known only then."""
    unknown = sql.Literal("…")
    names = ("judged", "value", "repair", "how", "fault", "profile", "code_version", "before", "who")
    parts = dict.fromkeys((*names, "tableoid", "ctid"), unknown)
    return [
        queries.query("recompute", "hold_row", **_parts(table, "…", "n_nonempty", "n_order")).as_string(None),
        queries.query("recompute", "undo" if undo else "repair", **_parts(table, "…"), **parts).as_string(None),
    ]


def can_undo(conn: Connection, table: Table, done: Done) -> bool:
    """Does the row still hold what the repair wrote? Reads only."""
    row = read(conn, table, done.key, ())
    return row is not None and digest(row.text.encode()) == done.after_sha256


def _written(
    conn: Connection, table: Table, key: str, statement: str, values: Mapping[str, object], lock_timeout_s: float
) -> bool:
    with transaction(conn, lock_timeout_s=lock_timeout_s):
        hold = queries.query("recompute", "hold_row", **_parts(table, key, "n_nonempty", "n_order"))
        held = conn.execute(hold).fetchone()
        if held is None:
            return False
        partition, place = map(str, held)
        query = queries.query(
            "recompute",
            statement,
            **_parts(table, key),
            tableoid=sql.SQL("{}::oid").format(sql.Literal(partition)),
            ctid=sql.SQL("{}::tid").format(sql.Literal(place)),
            **{name: sql.Literal(value) for name, value in values.items()},
        )
        try:
            return conn.execute(query).rowcount == 1
        except (psycopg.DataError, psycopg.errors.StatementTooComplex) as exc:
            raise Unstorable(f"Postgres does not take the value: {type(exc).__name__}") from exc


def repairs(conn: Connection, keys: Sequence[str] | None) -> Iterator[Done]:
    """Repairs that were not undone, the latest first."""
    before = 2**63 - 1
    while True:
        with source_errors():
            rows = conn.execute(
                queries.text("recompute", "repairs"),
                {"keys": None if keys is None else list(keys), "before": before, "limit": _PAGE},
            ).fetchall()
        for number, key, text, after in rows:
            yield Done(int(number), str(key), str(text), bytes(after))
        if len(rows) < _PAGE:
            return
        before = int(rows[-1][0])


def explain(conn: Connection, key: str, error: str) -> None:
    """Writes into the ledger why the entry stays set aside."""
    with source_errors():
        conn.execute(queries.text("recompute", "explain"), {"key": key, "error": error})


def usual_shape(conn: Connection, table: Table) -> str:
    """`summary` where most of the rows that were looked at hold that shape, else `analysis`."""
    with transaction(conn, read_only=True):
        row = conn.execute(queries.query("recompute", "shapes", **table.parts)).fetchone()
    assert row is not None
    return "summary" if int(row[1]) > int(row[0]) else "analysis"


def _parts(table: Table, key: str, *more: str) -> dict[str, sql.Composable]:
    columns, s = table.columns, table.settings
    return {
        **{name: table.parts[name] for name in ("table", "key", "column", *more)},
        "wanted": sql.Literal(key),
        "key_type": table.key_type,
        "type": sql.SQL(columns[s.column]),
    }

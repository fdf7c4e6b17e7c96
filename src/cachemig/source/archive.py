"""The table as an archive sees it: every row that holds anything, by what tells it from every other row."""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row

from cachemig.archive.records import Bound, RowHead
from cachemig.entries.entry import Buffer, digest
from cachemig.errors import TableUnfit
from cachemig.source import control, queries
from cachemig.source.connect import Connection, source_errors, transaction
from cachemig.source.scan import Field, copy_rows
from cachemig.source.table import Table

_BIGINT = struct.Struct("!q")
_RELATION = "(relation)"


@dataclass(frozen=True)
class Identity:
    """The columns that tell a row from every other one, and how a row is found by them."""

    columns: tuple[str, ...]
    types: tuple[str, ...]
    """As SQL writes them."""
    relation: bool
    """Rows of several tables that inherit: a row is told by the name of its table, too."""
    ranged: bool
    """An index orders the rows by these columns, so that a range of them can be read."""
    unique: bool
    """Postgres sees to it that no two rows are the same."""

    @property
    def names(self) -> tuple[str, ...]:
        return ((_RELATION,) if self.relation else ()) + self.columns

    def texts(self, row: str = "t") -> list[sql.Composable]:
        """One expression for each part of a row's identity, all text."""
        relation: list[sql.Composable] = [queries.fragment("archive", "relation")] if self.relation else []
        return relation + [sql.SQL("{}::text").format(sql.Identifier(row, c)) for c in self.columns]

    def range(self, lower: Bound, upper: Bound) -> sql.Composable:
        """The condition for rows from `lower` on and before `upper`; bounds are texts, without a relation."""
        left = sql.SQL("({})").format(_list([sql.Identifier("t", c) for c in self.columns]))
        parts = [
            sql.SQL("{} {} ({})").format(
                left,
                sql.SQL(operator),
                _list(
                    [sql.SQL("{}::{}").format(sql.Literal(v), sql.SQL(t)) for v, t in zip(b, self.types, strict=True)]
                ),
            )
            for operator, b in ((">=", lower), ("<", upper))
            if b is not None
        ]
        return sql.SQL(" AND ").join(parts) if parts else sql.SQL("true")

    def same(self, values: sql.Composable) -> sql.Composed:
        """The condition for the row whose identity stands in this text array."""
        first = 2 if self.relation else 1
        parts = [
            sql.SQL("{} = ({}[{}])::{}").format(sql.Identifier("t", c), values, sql.Literal(first + n), sql.SQL(t))
            for n, (c, t) in enumerate(zip(self.columns, self.types, strict=True))
        ]
        if self.relation:
            parts.append(sql.SQL("{} = {}[1]").format(queries.fragment("archive", "relation"), values))
        return sql.SQL(" AND ").join(parts)


def _list(parts: Sequence[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)


def identity(conn: Connection, table: Table) -> Identity:
    """What tells rows apart: the primary key, or another unique index over columns that are not null; else the key.
    Never the place of a row, which VACUUM FULL changes. The column itself is no part of it, for it is to go."""
    column = table.settings.column
    with source_errors():
        row = conn.execute(queries.query("archive", "inherited", oid=sql.Literal(table.oid))).fetchone()
    inherited = bool(row and row[0])
    columns: tuple[str, ...] = ()
    for index in table.indexes:
        named = tuple(c for c in index.columns if c and c != column and c in table.not_null)
        if index.is_unique and not index.is_partial and len(named) == len(index.columns):
            columns = named
            break
    unique = bool(columns)
    columns = columns or (table.settings.key_column,)
    types = tuple(table.columns[c] for c in columns)
    return Identity(columns, types, inherited, unique or table.key_indexed, unique and not inherited)


def require_unambiguous(conn: Connection, table: Table, rows: Identity) -> None:
    """Raises TableUnfit where only the key tells rows apart, and it does not."""
    if rows.unique or rows.columns != (table.settings.key_column,):
        return
    parts = {name: table.parts[name] for name in ("table", "key", "column")}
    with transaction(conn, read_only=True):
        found = conn.execute(queries.query("archive", "ambiguous", **parts)).fetchone()
    assert found is not None
    without, shared, example = found
    if without or shared:
        raise TableUnfit(
            f"{table.qualified} has neither a primary key nor a unique index over columns that are not null, and its "
            f"key does not tell rows apart: {without:,} rows without a key, {shared:,} keys of several rows"
            + (f", such as {example!r}" if example else ""),
            hint="give the table a primary key; or remove the rows that no entry comes from",
        )


@contextmanager
def reading(conn: Connection, *, one_snapshot: bool = False) -> Iterator[None]:
    """A transaction whose texts of keys are the same at any time; `one_snapshot`: and whose statements all see the
    table at one moment."""
    with transaction(conn, read_only=True):
        if one_snapshot:
            conn.execute(queries.text("archive", "one_snapshot"))
        conn.execute(queries.text("archive", "steady"))
        yield


def bound(conn: Connection, table: Table, rows: Identity, lower: Bound, count: int) -> Bound:
    """Where a block of so many rows from `lower` on ends (exclusive); None for the end of the table."""
    if not rows.ranged:
        return None
    query = queries.query(
        "archive",
        "bound",
        table=table.identifier,
        texts=_list([sql.SQL("{}::text").format(sql.Identifier("t", c)) for c in rows.columns]),
        range=rows.range(lower, None),
        order=_list([sql.Identifier("t", c) for c in rows.columns]),
        rows=sql.Literal(count),
    )
    with reading(conn):
        found = conn.execute(query).fetchone()
    return None if found is None or None in found else tuple(map(str, found))


def read_rows(
    conn: Connection, table: Table, rows: Identity, lower: Bound, upper: Bound
) -> Generator[tuple[RowHead, tuple[Buffer]], None, None]:
    """Every row of the range that holds anything, in no particular order. Runs in the caller's transaction (`reading`).

    Memory is bounded by one row. Raises TableUnfit for two rows that nothing tells apart.
    """
    parts = table.parts
    keyed = table.key_unique or table.key_indexed
    is_entry = sql.SQL("t.{} IS NOT NULL AND {} {}").format(
        parts["key"], parts["t_nonempty"], parts["winner"] if keyed else sql.SQL("")
    )
    query = queries.query(
        "archive",
        "read_rows",
        **_parts(table, rows, lower, upper),
        lifetime_from=parts["lifetime_from"],
        is_entry=is_entry,
    )
    seen: set[tuple[str, ...]] | None = None if rows.unique else set()
    width = len(rows.names)
    with closing(copy_rows(conn, query)) as copied:
        for fields in copied:
            row, (key, version, delivered, from_ms, entry, text) = _row(table, fields[:width]), fields[width:]
            if seen is not None:
                if row in seen:
                    raise TableUnfit(
                        f"two rows of {table.qualified} are both {', '.join(row)}: nothing tells them apart",
                        hint="give the table a primary key",
                    )
                seen.add(row)
            assert text is not None
            yield (
                RowHead(
                    row,
                    _text(key),
                    _integer(version),
                    _integer(delivered),
                    _integer(from_ms),
                    entry is not None and bytes(entry) == b"\x01",
                    digest(text),
                    len(text),
                ),
                (text,),
            )
            del fields, key, version, delivered, from_ms, entry, text  # not to stand beside the next one


@dataclass(frozen=True, slots=True)
class Mark:
    """What is compared of a row."""

    key: str | None
    version: int | None
    sha256: bytes


def read_digests(
    conn: Connection, table: Table, rows: Identity, lower: Bound, upper: Bound, *, versions: bool = True
) -> dict[tuple[str, ...], Mark]:
    """The rows of the range that hold anything, their texts hashed by Postgres. In the caller's transaction.
    `versions` False: there may be no control schema."""
    query = queries.query("archive", "read_digests", **_parts(table, rows, lower, upper, versions=versions))
    found: dict[tuple[str, ...], Mark] = {}
    width = len(rows.names)
    with closing(copy_rows(conn, query)) as copied:
        for fields in copied:
            key, version, sha256 = fields[width:]
            assert sha256 is not None
            found[_row(table, fields[:width])] = Mark(_text(key), _integer(version), bytes(sha256))
    return found


def _parts(
    table: Table, rows: Identity, lower: Bound, upper: Bound, *, versions: bool = True
) -> dict[str, sql.Composable]:
    key = table.parts["key"]
    nothing: dict[str, sql.Composable] = {"version": sql.SQL("NULL::bigint"), "versions": sql.SQL("")}
    return {
        **{name: table.parts[name] for name in ("table", "key", "column")},
        "row": _list(rows.texts()),
        "range": rows.range(lower, upper),
        **(
            {name: queries.fragment("archive", name, key=key) for name in ("version", "versions")}
            if versions
            else nothing
        ),
    }


def _row(table: Table, fields: Sequence[Field]) -> tuple[str, ...]:
    if None in fields:  # only a key that is no primary key can be
        raise TableUnfit(
            f"a row of {table.qualified} has no key, and nothing else tells it from others",
            hint="give the rows whose key is null a key, or remove them; then the same command again",
        )
    return tuple(str(f, "utf-8") for f in fields if f is not None)


def _text(field: Field) -> str | None:
    return None if field is None else str(field, "utf-8")


def _integer(field: Field) -> int | None:
    return None if field is None else int(_BIGINT.unpack(field)[0])


def nulls(conn: Connection, table: Table) -> int:
    """Rows that hold NULL. In the caller's transaction."""
    parts = {name: table.parts[name] for name in ("table", "column")}
    row = conn.execute(queries.query("archive", "nulls", **parts)).fetchone()
    return int(row[0]) if row else 0


def pending(conn: Connection) -> int:
    """Changes that are not delivered."""
    row = conn.execute(queries.text("archive", "pending")).fetchone()
    return int(row[0]) if row else 0


def begun(conn: Connection) -> tuple[str, str]:
    """The database, and when its migration began."""
    with source_errors():
        row = conn.execute(queries.text("archive", "begun")).fetchone()
    assert row is not None
    return str(row[0]), str(row[1])


def facts(conn: Connection, table: Table) -> dict[str, Any]:
    """The column in the catalog, as it takes to make it again. Names and expressions are qualified."""
    parameters = {"oid": table.oid, "column": table.settings.column}
    found: dict[str, Any] = {}
    with transaction(conn, read_only=True), conn.cursor(row_factory=dict_row) as cur:
        conn.execute(queries.text("archive", "qualified_names"))
        found["column"] = cur.execute(queries.text("archive", "column_facts"), parameters).fetchone()
        for name in ("grants", "constraints", "indexes", "statistics"):
            found[name] = cur.execute(queries.text("archive", f"column_{name}"), parameters).fetchall()
    if found["column"]["generated"]:
        raise TableUnfit(
            f"{table.settings.column} is a generated column: its values cannot be put back",
            hint="there is nothing to archive: what it is computed from stays in the table",
        )
    return found


# The control schema --------------------------------------------------------------------------------------------------


def register(
    conn: Connection,
    location: str,
    sha256: bytes,
    *,
    rows: int,
    entries: int,
    nbytes: int,
    epoch: int,
    checked_at: datetime | None = None,
) -> tuple[int, datetime]:
    """Names the file as checked (None: now), and voids what stood at its place. In the caller's transaction."""
    values = {
        "checked_at": checked_at,
        "who": control.who(), "location": location, "rows": rows, "entries": entries, "bytes": nbytes, "sha256": sha256,
        "epoch": epoch,
    }  # fmt: skip
    conn.execute(queries.text("archive", "void"), values)
    row = conn.execute(queries.text("archive", "check_again"), values).fetchone()
    row = row or conn.execute(queries.text("archive", "register"), values).fetchone()
    assert row is not None
    return int(row[0]), row[1]


def checked_at(conn: Connection, sha256: bytes) -> datetime | None:
    """When this file was found equal to the table; None where it never was, or another has taken its place."""
    with source_errors():
        row = conn.execute(queries.text("archive", "registered"), {"sha256": sha256}).fetchone()
    return row[2] if row else None


def checked_there(conn: Connection, location: str) -> datetime | None:
    """When the file that was at this place was found equal to the table; None where none was."""
    with source_errors():
        row = conn.execute(queries.text("archive", "at_place"), {"location": location}).fetchone()
    return row[0] if row else None

"""Putting a column back: what it takes in the catalog, and its values in small batches."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import psycopg.errors
from psycopg import sql

from cachemig.archive.reader import Record
from cachemig.archive.records import Bound, Head, Manifest
from cachemig.entries.entry import Buffer
from cachemig.errors import TableUnfit
from cachemig.source import queries
from cachemig.source.archive import Identity
from cachemig.source.connect import Connection, source_errors, transaction
from cachemig.source.table import Table

_SIGNATURE = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER = b"\xff\xff"
_TEXT = 25
_WRITE = 1 << 18
_PAGE = 1000
_RELATION = "(relation)"


def marker(sha256: str) -> str:
    """The column's comment while it is being restored."""
    return f"cachemig: being restored from the archive {sha256}"


def is_marker(comment: str | None) -> bool:
    return comment is not None and comment.startswith(marker(""))


@dataclass(frozen=True)
class Place:
    """The table that the column belongs to, and whether it has it."""

    there: bool
    comment: str | None


def found(conn: Connection, head: Head) -> Place:
    """Raises TableUnfit where there is no such table."""
    with source_errors():
        row = conn.execute(
            queries.text("restore", "found_column"), {"table": head.table, "column": head.column}
        ).fetchone()
    if row is None:
        raise TableUnfit(f"the archive is of table {head.table}, and there is none", hint="restore the table first")
    return Place(bool(row[1]), row[2])


def columns(conn: Connection, table: str) -> set[str]:
    """The columns of a table, named as an archive names it."""
    with source_errors():
        rows = conn.execute(queries.text("restore", "columns"), {"table": table}).fetchall()
    return {str(row[0]) for row in rows}


def identity(table: Table, head: Head) -> Identity:
    """How the rows of the archive are found in the table. Raises TableUnfit where they cannot be."""
    relation = head.row_key[:1] == (_RELATION,)
    columns = head.row_key[1:] if relation else head.row_key
    if missing := [c for c in columns if c not in table.columns]:
        raise TableUnfit(
            f"{table.qualified} has no column {', '.join(missing)} any more, by which the archive knows its rows",
            hint="put it back first",
        )
    types = tuple(table.columns[c] for c in columns)
    ranged = any(not i.is_partial and i.columns[: len(columns)] == columns for i in table.indexes)
    return Identity(columns, types, relation, ranged, unique=False)


def triggers(conn: Connection, head: Head) -> list[str]:
    with source_errors():
        return [str(r[0]) for r in conn.execute(queries.text("restore", "triggers"), {"table": head.table})]


# The column ----------------------------------------------------------------------------------------------------------


def column_statements(conn: Connection, manifest: Manifest, sha256: str) -> tuple[list[sql.Composed], list[str]]:
    """What makes the column, in one transaction; and what cannot be done as it was."""
    head, facts = manifest.head, manifest.ddl["column"]
    parts = _names(head)
    made = [queries.query("restore", "add_column", type=sql.SQL(head.type), **parts)]

    def add(name: str, **more: sql.Composable) -> None:
        made.append(queries.query("restore", name, **parts, **more))

    if facts["default"] is not None:
        add("set_default", default=sql.SQL(facts["default"]))
    if not facts["storage_is_default"]:
        add("set_storage", storage=sql.SQL(facts["storage"]))
    if facts["compression"]:
        add("set_compression", compression=sql.SQL(facts["compression"]))
    if facts["statistics"] is not None:
        add("set_statistics", target=sql.Literal(facts["statistics"]))
    if facts["options"]:
        add("set_options", options=_options(facts["options"]))
    left_out = []
    grants = manifest.ddl["grants"]
    with source_errors():
        names = [g["grantee"] for g in grants if not g["is_public"]]
        there = {str(r[0]) for r in conn.execute(queries.text("restore", "roles"), {"names": names})}
    for grant in grants:
        role = sql.SQL("PUBLIC") if grant["is_public"] else sql.Identifier(grant["grantee"])
        statement = queries.query(
            "restore", "grant_column", privilege=sql.SQL(grant["privilege"]), role=role,
            option=sql.SQL(" WITH GRANT OPTION" if grant["grantable"] else ""), **parts,
        )  # fmt: skip
        if grant["is_public"] or grant["grantee"] in there:
            made.append(statement)
        else:
            left_out.append(f"there is no role {grant['grantee']!r} any more: {statement.as_string(conn)}")
    add("comment_column", comment=sql.Literal(marker(sha256)))
    return made, left_out


def final_comment(manifest: Manifest) -> sql.Composed:
    """The column's own comment, in place of the marker."""
    return queries.query(
        "restore", "comment_column", comment=sql.Literal(manifest.ddl["column"]["comment"]), **_names(manifest.head)
    )


def _options(options: Sequence[str]) -> sql.Composed:
    pairs = [option.partition("=") for option in options]
    return sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, _, value in pairs
    )


def _names(head: Head) -> dict[str, sql.Composable]:
    return {"table": sql.SQL(head.table), "column": sql.Identifier(head.column)}


# Its values ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """What became of a batch."""

    rows: int
    filled: int
    gone: int
    """The table does not have them any more."""


def _load_table(conn: Connection) -> None:
    row = conn.execute(queries.text("restore", "has_load_table")).fetchone()
    if not (row and row[0]):
        conn.execute(queries.text("restore", "load_table"))


@contextmanager
def writing(conn: Connection, lock_timeout_s: float, *, by_index: bool) -> Iterator[None]:
    """A short transaction that writes rows of the application's table."""
    with transaction(conn, lock_timeout_s=lock_timeout_s):
        conn.execute(queries.text("archive", "steady"))
        try:
            with conn.transaction():
                conn.execute(queries.text("restore", "quiet"))
        except psycopg.errors.InsufficientPrivilege:
            pass
        if by_index:
            conn.execute(queries.text("restore", "by_index"))
        _load_table(conn)
        yield


def has_nulls(conn: Connection, table: Table, rows: Identity, lower: Bound, upper: Bound) -> bool:
    query = queries.query(
        "restore", "has_nulls", table=table.identifier, column=table.parts["column"], range=rows.range(lower, upper)
    )
    with transaction(conn, read_only=True):
        conn.execute(queries.text("archive", "steady"))
        row = conn.execute(query).fetchone()
    return bool(row and row[0])


def fill(
    conn: Connection,
    table: Table,
    rows: Identity,
    records: Iterator[Record],
    *,
    lock_timeout_s: float,
    most_rows: int,
    most_bytes: int,
) -> Loaded:
    """Puts the next records back, in one transaction: at most so many rows and about so many bytes. Their texts go from
    the file to Postgres in pieces. No rows: there are no more."""
    parts: dict[str, sql.Composable] = {"table": table.identifier, "same": rows.same(sql.SQL("l.row"))}
    column = table.settings.column
    with writing(conn, lock_timeout_s, by_index=rows.ranged):
        count = size = 0
        with _copying(conn) as write:
            while count < most_rows and size < most_bytes and (record := next(records, None)) is not None:
                write(_array(record.head.row) + struct.pack("!i", record.head.nbytes))
                for piece in record.text():
                    write(piece)
                count, size = count + 1, size + record.head.nbytes
        if not count:
            return Loaded(0, 0, 0)
        query = queries.query(
            "restore", "fill", column=sql.Identifier(column), type=sql.SQL(table.columns[column]), **parts
        )
        filled = conn.execute(query).rowcount
        gone = 0
        if filled < count:
            row = conn.execute(queries.query("restore", "gone", **parts)).fetchone()
            gone = int(row[0]) if row else 0
    return Loaded(count, filled, gone)


@contextmanager
def _copying(conn: Connection) -> Iterator[Callable[[Buffer], None]]:
    """A COPY into the temporary table: each row is to be written as `_array`, the length of its text, and the text.

    Source of the format: PostgreSQL documentation, COPY, "Binary Format".
    """
    waiting = bytearray(_SIGNATURE)
    with conn.cursor() as cur, cur.copy(queries.text("restore", "load")) as copy:

        def write(data: Buffer) -> None:
            nonlocal waiting
            waiting += data
            if len(waiting) >= _WRITE:
                copy.write(bytes(waiting))
                waiting = bytearray()

        yield write
        copy.write(bytes(waiting) + _TRAILER)


def _array(values: Sequence[str]) -> bytes:
    """The head of a row of two fields, and the first of them: a text[] in binary."""
    elements = b"".join(struct.pack("!i", len(v)) + v for v in (value.encode() for value in values))
    array = struct.pack("!iiIii", 1, 0, _TEXT, len(values), 1) + elements
    return struct.pack("!hi", 2, len(array)) + array


def put_newest(conn: Connection, table: Table, key: str, value: Buffer | None, *, lock_timeout_s: float) -> bool:
    """What Redis holds for the key goes where a write of the application would go; None: its rows become empty. False
    where no row has the key. Raises psycopg.DataError where the column does not take the value."""
    parts = table.parts
    common: dict[str, sql.Composable] = {
        **{name: parts[name] for name in ("table", "key")},
        "wanted": sql.Literal(key),
        "key_type": sql.SQL(table.columns[table.settings.key_column]),
    }
    column = {"column": parts["column"]}
    with writing(conn, lock_timeout_s, by_index=False):
        held = conn.execute(queries.query("restore", "hold_newest", n_order=parts["n_order"], **common)).fetchone()
        if held is None:
            return False
        if value is None:
            conn.execute(queries.query("restore", "empty_rows", **common, **column))
            return True
        _load(conn, value)
        conn.execute(
            queries.query(
                "restore", "put_newest", table=parts["table"], type=_type(table),
                tableoid=sql.SQL("{}::oid").format(sql.Literal(str(held[0]))),
                ctid=sql.SQL("{}::tid").format(sql.Literal(str(held[1]))), **column,
            )
        )  # fmt: skip
    return True


def digest_of(conn: Connection, table: Table, value: Buffer) -> bytes:
    """The SHA-256 of what the column prints once it holds this text. Raises psycopg.DataError."""
    with transaction(conn):
        _load_table(conn)
        _load(conn, value)
        row = conn.execute(queries.query("restore", "text_digest", type=_type(table))).fetchone()
    assert row is not None
    return bytes(row[0])


def _load(conn: Connection, value: Buffer) -> None:
    with _copying(conn) as write:
        write(_array(("",)) + struct.pack("!i", len(value)))
        view = memoryview(value)
        for at in range(0, len(view), _WRITE):
            write(view[at : at + _WRITE])


def _type(table: Table) -> sql.SQL:
    return sql.SQL(table.columns[table.settings.column])


def keys_without_entry(conn: Connection, table: Table) -> Iterator[list[str]]:
    """Keys of rows, none of which holds a value, a page at a time; one that gets a value meanwhile does not disturb."""
    last: str | None = None
    parts = {name: table.parts[name] for name in ("table", "key", "t_nonempty", "n_nonempty")}
    key_type = sql.SQL(table.columns[table.settings.key_column])
    while True:
        after: sql.Composable = sql.SQL("true")
        if last is not None:
            after = sql.SQL("t.{} > {}::{}").format(parts["key"], sql.Literal(last), key_type)
        query = queries.query("restore", "without_entry", after=after, limit=sql.Literal(_PAGE), **parts)
        with transaction(conn, read_only=True):
            page = [str(row[1]) for row in conn.execute(query).fetchall()]
        if page:
            yield page
        if len(page) < _PAGE:
            return
        last = page[-1]


def unfilled(
    conn: Connection, table: Table, rows: Identity, wanted: Sequence[tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Of these rows, those that are in the table and hold NULL. In the caller's transaction."""
    still: list[tuple[str, ...]] = []
    for at in range(0, len(wanted), _PAGE):
        part = wanted[at : at + _PAGE]
        values = sql.SQL(", ").join(
            sql.SQL("({}, ARRAY[{}]::text[])").format(sql.Literal(n), sql.SQL(", ").join(map(sql.Literal, row)))
            for n, row in enumerate(part)
        )
        query = queries.query(
            "restore", "unfilled", rows=values, table=table.identifier, column=table.parts["column"],
            same=rows.same(sql.SQL("r.row")),
        )  # fmt: skip
        still += [part[int(r[0])] for r in conn.execute(query).fetchall()]
    return still


def fill_default(conn: Connection, table: Table, *, lock_timeout_s: float) -> int:
    """Some rows that hold NULL get the default; how many."""
    parts = {name: table.parts[name] for name in ("table", "column")}
    with writing(conn, lock_timeout_s, by_index=False):
        return conn.execute(queries.query("restore", "fill_default", limit=sql.Literal(_PAGE), **parts)).rowcount


def digest_at(conn: Connection, table: Table, rows: Identity, row: tuple[str, ...]) -> bytes | None:
    """The SHA-256 of what the row holds now; None where it is gone, or holds NULL."""
    values = sql.SQL("ARRAY[{}]::text[]").format(sql.SQL(", ").join(map(sql.Literal, row)))
    parts = {name: table.parts[name] for name in ("table", "column")}
    query = queries.query("restore", "digest_at", same=rows.same(sql.SQL("({})").format(values)), **parts)
    with transaction(conn, read_only=True):
        conn.execute(queries.text("archive", "steady"))
        found = conn.execute(query).fetchone()
    return None if found is None or found[0] is None else bytes(found[0])


# What belongs to it --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statement:
    """One statement after the data."""

    what: str
    statement: sql.Composed
    alone: bool = False
    """Not in a transaction: CONCURRENTLY."""


def belongings(conn: Connection, manifest: Manifest, left_out: list[str]) -> Iterator[Statement]:
    """Constraints, indexes and statistics that are missing yet, one after the other: each is to be run before the next
    one is asked for. What cannot be had as it was goes to `left_out`, with its SQL."""
    yield from _not_null(conn, manifest, left_out)
    by_index = {c["index"]: c for c in manifest.ddl["constraints"] if c["index"] is not None}
    yield from _indexes(conn, manifest.ddl["indexes"], by_index, left_out)
    yield from _constraints(conn, manifest, left_out)
    for s in manifest.ddl["statistics"]:
        with source_errors():
            there = conn.execute(queries.text("restore", "statistics_are_there"), s).fetchone()
        if not (there and there[0]):
            yield Statement(f"statistics {s['name']}", sql.SQL("{};").format(sql.SQL(s["definition"])))
            yield from _comment("STATISTICS", sql.Identifier(s["schema"], s["name"]), s["comment"])


def _not_null(conn: Connection, manifest: Manifest, left_out: list[str]) -> Iterator[Statement]:
    head = manifest.head
    parts = _names(head)
    if not manifest.ddl["column"]["not_null"]:
        return
    with source_errors():
        is_so = conn.execute(
            queries.text("restore", "not_null_state"), {"table": head.table, "column": head.column}
        ).fetchone()
    name = "cachemig_restore_not_null"
    proof = {"table": parts["table"], "constraint": sql.Identifier(name)}
    if not (is_so and is_so[0]):
        with source_errors():
            row = conn.execute(queries.query("restore", "has_nulls", range=sql.SQL("true"), **parts)).fetchone()
        if row and row[0]:
            statement = queries.query("restore", "set_not_null", **parts)
            left_out.append(
                f"rows that came since the drop hold NULL, and there is no default: {_bare(conn, statement)}"
            )
            return
        definition = sql.SQL("CHECK ({} IS NOT NULL) NOT VALID").format(parts["column"])
        yield from _checked(conn, head, name, definition, validated=True)
        yield Statement("NOT NULL", queries.query("restore", "set_not_null", **parts))
    if _constraint(conn, head, name) is not None:
        yield Statement("NOT NULL", queries.query("restore", "drop_constraint", **proof))


def _constraints(conn: Connection, manifest: Manifest, left_out: list[str]) -> Iterator[Statement]:
    head = manifest.head
    table = sql.SQL(head.table)
    for c in manifest.ddl["constraints"]:
        definition = str(c["definition"])
        if c["index"] is not None and c["kind"] != "x":
            if _constraint(conn, head, c["name"]) is None:
                kind = "PRIMARY KEY" if c["kind"] == "p" else "UNIQUE"
                using = queries.query(
                    "restore", "use_index", table=table, constraint=sql.Identifier(c["name"]), kind=sql.SQL(kind),
                    index=sql.Identifier(c["index"]),
                )  # fmt: skip
                yield Statement(f"constraint {c['name']}", using)
        elif c["kind"] == "x":
            statement = f"ALTER TABLE {head.table} ADD CONSTRAINT {_quote(conn, c['name'])} {definition};"
            left_out.append(f"its index cannot be built while the table is written: {statement}")
            continue
        else:
            if "NOT VALID" not in definition and "NOT ENFORCED" not in definition:
                definition += " NOT VALID"
            yield from _checked(conn, head, c["name"], sql.SQL(definition), validated=c["validated"])
        name = sql.SQL("{} ON {}").format(sql.Identifier(c["name"]), table)
        yield from _comment("CONSTRAINT", name, c["comment"])


def _checked(
    conn: Connection, head: Head, name: str, definition: sql.Composable, *, validated: bool
) -> Iterator[Statement]:
    parts = {"table": sql.SQL(head.table), "constraint": sql.Identifier(name)}
    if _constraint(conn, head, name) is None:
        yield Statement(
            f"constraint {name}", queries.query("restore", "add_constraint", definition=definition, **parts)
        )
    if validated and _constraint(conn, head, name) is False:
        yield Statement(f"constraint {name}", queries.query("restore", "validate_constraint", **parts))


def _constraint(conn: Connection, head: Head, name: str) -> bool | None:
    """Whether it is validated; None where it is not there."""
    with source_errors():
        row = conn.execute(queries.text("restore", "constraint_state"), {"table": head.table, "name": name}).fetchone()
    return None if row is None else bool(row[0])


def _indexes(
    conn: Connection, indexes: Sequence[Mapping[str, Any]], by_index: Mapping[str, Any], left_out: list[str]
) -> Iterator[Statement]:
    """Those of partitioned tables as empty frames from above; the others built; then attached from below."""
    for i in indexes:
        if i["level"] == 0 and by_index.get(i["name"], {}).get("kind") == "x":
            continue
        with source_errors():
            there = conn.execute(queries.text("restore", "relation_is_there"), {"table": i["on_table"]}).fetchone()
        if not (there and there[0]):
            continue  # a partition that was removed since
        yield from _index(conn, i["schema"], i["name"], i, partitioned=i["partitioned"])
        yield from _comment("INDEX", sql.Identifier(i["schema"], i["name"]), i["comment"])
    for i in sorted(indexes, key=lambda i: -int(i["level"])):
        if i["parent"] is not None and (state := _index_state(conn, _quoted(i))) is not None and not state[1]:
            yield _attach(i["parent"], sql.SQL(_quoted(i)), i["name"])
        if i["partitioned"]:
            yield from _new_partitions(conn, i, left_out)


def _quoted(index: Mapping[str, Any]) -> str:
    return sql.Identifier(index["schema"], index["name"]).as_string(None)


def _index(
    conn: Connection, schema: str, name: str, like: Mapping[str, Any], *, partitioned: bool, table: str | None = None
) -> Iterator[Statement]:
    parts: dict[str, sql.Composable] = {
        "unique": sql.SQL("UNIQUE " if like["is_unique"] else ""),
        "index": sql.Identifier(name),
        "table": sql.SQL(table or like["on_table"]),
        "tail": sql.SQL(_in_tablespace(like)),
    }
    qualified = sql.Identifier(schema, name)
    state = _index_state(conn, qualified.as_string(None))
    if partitioned:
        if state is None:
            yield Statement(f"index {name}", queries.query("restore", "create_index_above", **parts))
        return
    if state is not None and not state[0]:
        yield Statement(f"index {name}", queries.query("restore", "drop_invalid_index", index=qualified), alone=True)
        state = None
    if state is None:
        yield Statement(f"index {name}", queries.query("restore", "create_index", **parts), alone=True)


def _in_tablespace(index: Mapping[str, Any]) -> str:
    tail = str(index["tail"]).strip()
    if not index["tablespace"]:
        return tail
    # TABLESPACE stands before WHERE; where a predicate is there, the default one will do.
    return tail if " WHERE " in tail else f"{tail} TABLESPACE {sql.Identifier(index['tablespace']).as_string(None)}"


def _new_partitions(conn: Connection, above: Mapping[str, Any], left_out: list[str]) -> Iterator[Statement]:
    with source_errors():
        rows = conn.execute(queries.text("restore", "partitions_without"), {"index": _quoted(above)}).fetchall()
    for schema, name, partitioned in rows:
        table = sql.Identifier(schema, name).as_string(None)
        if partitioned:
            left_out.append(f"{table} came since, and has partitions of its own: it has no index like {above['name']}")
            continue
        own = f"{name[:40]}_{above['name'][:20]}"
        yield from _index(conn, schema, own, above, partitioned=False, table=table)
        yield _attach(_quoted(above), sql.Identifier(schema, own), own)


def _attach(parent: str, index: sql.Composable, name: str) -> Statement:
    return Statement(f"index {name}", queries.query("restore", "attach_index", parent=sql.SQL(parent), index=index))


def _index_state(conn: Connection, index: str) -> tuple[bool, bool] | None:
    """Whether it is valid and whether it is attached; None where it is not there."""
    with source_errors():
        row = conn.execute(queries.text("restore", "index_state"), {"index": index}).fetchone()
    return None if row is None else (bool(row[0]), bool(row[1]))


def _comment(kind: str, name: sql.Composable, comment: str | None) -> Iterable[Statement]:
    if comment is not None:
        yield Statement(
            f"comment on {kind.lower()}",
            queries.query("restore", "comment_other", kind=sql.SQL(kind), object=name, comment=sql.Literal(comment)),
        )


def _quote(conn: Connection, name: str) -> str:
    return sql.Identifier(name).as_string(conn)


def _bare(conn: Connection, statement: sql.Composed) -> str:
    return "\n".join(line for line in statement.as_string(conn).splitlines() if not line.startswith("--"))


def patient(conn: Connection) -> None:
    """For CREATE INDEX CONCURRENTLY: this session waits as long as it takes. To be closed afterwards."""
    with source_errors():
        conn.execute(queries.text("restore", "patient_session"))
        conn.execute(queries.text("restore", "patient_locks"))

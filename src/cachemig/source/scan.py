"""Reading entries out of Postgres: one COPY (binary) a chunk or batch, streamed, its values never copied.

Memory is bounded by one row: libpq hands out each row in a buffer of its own, and the entry's text is a slice of it.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import psycopg
import psycopg.errors
from psycopg import sql

from cachemig.config import Settings
from cachemig.entries.entry import Buffer, Entry, jitter_ms
from cachemig.errors import Refused
from cachemig.source import queries
from cachemig.source.connect import Connection, source_errors, transaction
from cachemig.source.table import Table

_SIGNATURE = b"PGCOPY\n\xff\r\n\x00"
_COUNT = struct.Struct("!h")
_LENGTH = struct.Struct("!i")
_BIGINT = struct.Struct("!q")
_DOUBLE = struct.Struct("!d")
_PAGE = 5_000

Field = memoryview | None


@dataclass(slots=True)
class Known:
    """An entry together with what the migration knows of its key, as of the same snapshot."""

    entry: Entry
    pending_s: float | None
    """Age of the oldest change of the key that is not delivered; None for none."""
    state: str | None
    """The ledger's state; None where the ledger does not know the key."""
    version: int | None
    expires_at_ms: int | None
    sha256: bytes | None
    error: str | None
    bytes: int | None
    """Of the text."""
    late_s: float | None = None
    """Age of the oldest write of the key to the frozen column that is not delivered; None for none."""
    by_ledger: bool = False
    """The column is dropped: the ledger alone says what is to be there, and `entry.text` is None throughout."""

    @property
    def holds(self) -> bool:
        """There is, or was when the column was dropped, a value for the key."""
        return self.state not in (None, "removed") if self.by_ledger else self.entry.text is not None

    @property
    def size(self) -> int:
        """Bytes of the text, as far as it is known."""
        return len(self.entry.text) if self.entry.text is not None else self.bytes or 0


def copy_rows(conn: Connection, query: sql.Composed) -> Generator[list[Field], None, None]:
    """The rows of COPY (query) TO STDOUT in binary, each a list of field bytes; None for SQL NULL.

    Source of the format: PostgreSQL documentation, COPY, "Binary Format".
    """
    with source_errors(), conn.cursor() as cur, cur.copy(_copying(query)) as copy:
        # Nothing of a row is held while the next one is received: two large values would stand beside each other.
        while block := copy.read():
            data = memoryview(block)
            at = 0
            if data[:11] == _SIGNATURE:
                at = 19 + _LENGTH.unpack_from(data, 15)[0]
            while at < len(data):
                (count,) = _COUNT.unpack_from(data, at)
                if count < 0:  # the trailer
                    break
                at += 2
                row: list[Field] = []
                for _ in range(count):
                    (length,) = _LENGTH.unpack_from(data, at)
                    at += 4
                    if length < 0:
                        row.append(None)
                    else:
                        row.append(data[at : at + length])
                        at += length
                yield row
                row = []
            del block, data


def read_chunk(
    conn: Connection,
    table: Table,
    lower: Sequence[str] | None,
    upper: Sequence[str] | None,
    *,
    shared: Sequence[str] | None = None,
) -> Generator[Entry, None, None]:
    """Every entry of a range of rows, in one snapshot with its version. Runs in the caller's transaction. `shared`: as
    parts_where_shared() has it."""
    parts = {**_plain(table), **table.parts_where_shared(shared)}
    query = queries.query("scan", "read_chunk", **parts, range=table.range(lower, upper))
    yield from map(partial(_entry, table.settings), copy_rows(conn, query))


def read_keys(conn: Connection, table: Table, keys: Sequence[str]) -> Generator[Entry, None, None]:
    """The state of each of the keys, in one snapshot with its version; text None where no row holds a value."""
    query = queries.query("scan", "read_keys", **_plain(table), keys=sql.Literal(list(keys)))
    yield from map(partial(_entry, table.settings), copy_rows(conn, query))


def _copying(query: sql.Composed) -> sql.Composed:
    return sql.SQL("COPY ({}) TO STDOUT (FORMAT BINARY)").format(query)


def chunk_statement(table: Table) -> sql.Composed:
    """What reads a chunk, without its bounds: for people."""
    parts = {**_plain(table), **table.parts_where_shared(None)}
    return _copying(queries.query("scan", "read_chunk", **parts, range=sql.SQL("true")))


def keys_statement(table: Table) -> sql.Composed:
    """What reads the state of keys, without them: for people."""
    return _copying(queries.query("scan", "read_keys", **_plain(table), keys=sql.Literal(["…"])))


def read_chunk_known(
    conn: Connection,
    table: Table,
    lower: Sequence[str] | None,
    upper: Sequence[str] | None,
    *,
    shared: Sequence[str] | None = None,
) -> Generator[Known, None, None]:
    """As read_chunk, together with the ledger's row of each key."""
    parts = {**_with_ledger(table, "chunk"), "winner": table.parts_where_shared(shared)["winner"]}
    query = queries.query("scan", "read_chunk", **parts, range=table.range(lower, upper))
    yield from map(partial(_known, table.settings), copy_rows(conn, query))


def read_gone_known(conn: Connection, table: Table) -> Generator[Known, None, None]:
    """As read_chunk_known, of the keys that the ledger knows and no row holds a value for: text None."""
    query = queries.query("scan", "read_gone", **_with_ledger(table, "keys"))
    yield from map(partial(_known, table.settings), copy_rows(conn, query))


def read_keys_known(conn: Connection, table: Table, keys: Sequence[str]) -> Generator[Known, None, None]:
    """As read_keys, together with the ledger's row of each key."""
    query = queries.query("scan", "read_keys", **_with_ledger(table, "keys"), keys=sql.Literal(list(keys)))
    yield from map(partial(_known, table.settings), copy_rows(conn, query))


def read_ledger_known(
    conn: Connection, settings: Settings, lower: bytes | None, upper: bytes | None
) -> Generator[Known, None, None]:
    """What the ledger says of the keys in a range of ids."""
    bounds = [
        sql.SQL("e.key_id {} {}").format(sql.SQL(operator), sql.Literal(bound))
        for operator, bound in ((">=", lower), ("<", upper))
        if bound is not None
    ]
    within = sql.SQL(" AND ").join(bounds) if bounds else sql.SQL("true")
    query = queries.query("scan", "read_ledger", more=queries.fragment("scan", "ledger_more"), range=within)
    yield from map(partial(_known, settings, by_ledger=True), copy_rows(conn, query))


def read_ledger_keys_known(conn: Connection, settings: Settings, keys: Sequence[str]) -> Generator[Known, None, None]:
    """What the ledger says of each of the keys; state None where it does not know it."""
    query = queries.query("scan", "read_ledger_keys", **_joined("keys"), keys=sql.Literal(list(keys)))
    yield from map(partial(_known, settings, by_ledger=True), copy_rows(conn, query))


def ledger_pages(conn: Connection) -> list[tuple[bytes | None, bytes | None]]:
    """Ranges of ids, together the whole ledger, of about _PAGE rows each: ids are hashes, so they lie evenly."""
    with source_errors():
        row = conn.execute(queries.text("scan", "ledger_size")).fetchone()
    number = max(1, -(-int(row[0]) // _PAGE)) if row else 1
    bounds = [None, *((n * 2**64 // number).to_bytes(8) for n in range(1, number)), None]
    return list(pairwise(bounds))


def sampled_ledger(conn: Connection, size: int) -> list[str]:
    """At most so many keys at random of which the ledger says that something is to be there."""
    with transaction(conn, read_only=True):
        place = secrets.token_bytes(32)
        rows = conn.execute(queries.text("scan", "sample_ledger"), {"place": place, "limit": size}).fetchall()
    return [str(row[0]) for row in rows]


def digest_as_jsonb(conn: Connection, text: Buffer) -> bytes | None:
    """The digest that a jsonb column with this value would have; None for what is no jsonb. In a transaction."""
    try:
        with conn.transaction():
            value = bytes(text).decode()
            row = conn.execute(queries.text("scan", "digest_as_jsonb"), {"text": value}).fetchone()
    except (UnicodeDecodeError, psycopg.DataError, psycopg.errors.StatementTooComplex):
        return None
    return bytes(row[0]) if row else None


def sampled_keys(conn: Connection, table: Table, size: int) -> list[str]:
    """At most so many keys that hold a value, at random. Each row by itself, so that it is not a sample of pages."""
    percent = 100.0 if table.tuples < 10 * size else min(100.0, 300.0 * size / table.tuples)
    query = queries.query("scan", "sample_keys", **table.parts, percent=sql.Literal(percent), limit=sql.Literal(size))
    with transaction(conn, read_only=True):
        return [str(row[0]) for row in conn.execute(query).fetchall()]


def _plain(table: Table) -> dict[str, sql.Composable]:
    text = sql.SQL("t.{}::text").format(sql.Identifier(table.settings.column))
    return {**table.parts, "value": text, "more": sql.SQL(""), "ledger_join": sql.SQL("")}


def _with_ledger(table: Table, of: str) -> dict[str, sql.Composable]:
    return {**_plain(table), **_joined(of, key=sql.Identifier(table.settings.key_column))}


def _joined(of: str, **parts: sql.Composable) -> dict[str, sql.Composable]:
    return {
        "more": queries.fragment("scan", "ledger_more"),
        "ledger_join": queries.fragment("scan", f"ledger_join_{of}", **parts),
    }


def _entry(settings: Settings, row: list[Field]) -> Entry:
    key, text, version, lifetime_from = row[:4]
    assert key is not None
    if version is None:
        raise Refused("capture was switched off while values were read: they are not delivered", hint="cachemig status")
    name = str(key, "utf-8")
    expires_at_ms = None
    if settings.ttl and lifetime_from is not None:
        ttl_ms = int(settings.ttl * 1000)
        expires_at_ms = _integer(lifetime_from) + ttl_ms + jitter_ms(name, ttl_ms, settings.ttl_jitter)
    return Entry(name, text, _integer(version), expires_at_ms)


def _known(settings: Settings, row: list[Field], *, by_ledger: bool = False) -> Known:
    pending_s, state, version, expires_at_ms, sha256, error, nbytes, late_s = row[4:]
    return Known(
        _entry(settings, row),
        _double(pending_s),
        None if state is None else str(state, "utf-8"),
        None if version is None else _integer(version),
        None if expires_at_ms is None else _integer(expires_at_ms),
        None if sha256 is None else bytes(sha256),
        None if error is None else str(error, "utf-8"),
        None if nbytes is None else _integer(nbytes),
        _double(late_s),
        by_ledger,
    )


def _integer(field: Buffer) -> int:
    return int(_BIGINT.unpack(field)[0])


def _double(field: Field) -> float | None:
    return None if field is None else float(_DOUBLE.unpack(field)[0])

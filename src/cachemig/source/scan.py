"""Reading entries out of Postgres: one COPY (binary) a chunk or batch, streamed, its values never copied.

Memory is bounded by one row: libpq hands out each row in a buffer of its own, and the entry's text is a slice of it.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

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


def copy_rows(conn: Connection, query: sql.Composed) -> Generator[list[Field], None, None]:
    """The rows of COPY (query) TO STDOUT in binary, each a list of field bytes; None for SQL NULL.

    Source of the format: PostgreSQL documentation, COPY, "Binary Format".
    """
    statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT BINARY)").format(query)
    with source_errors(), conn.cursor() as cur, cur.copy(statement) as copy:
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
    conn: Connection, table: Table, lower: Sequence[str] | None, upper: Sequence[str] | None
) -> Generator[Entry, None, None]:
    """Every entry of a range of rows, in one snapshot with its version. Runs in the caller's transaction."""
    query = queries.query("scan", "read_chunk", **_plain(table), range=table.range(lower, upper))
    yield from map(partial(_entry, table.settings), copy_rows(conn, query))


def read_keys(conn: Connection, table: Table, keys: Sequence[str]) -> Generator[Entry, None, None]:
    """The state of each of the keys, in one snapshot with its version; text None where no row holds a value."""
    query = queries.query("scan", "read_keys", **_plain(table), keys=sql.Literal(list(keys)))
    yield from map(partial(_entry, table.settings), copy_rows(conn, query))


def read_chunk_known(
    conn: Connection, table: Table, lower: Sequence[str] | None, upper: Sequence[str] | None
) -> Generator[Known, None, None]:
    """As read_chunk, together with the ledger's row of each key."""
    query = queries.query("scan", "read_chunk", **_with_ledger(table, "chunk"), range=table.range(lower, upper))
    yield from map(partial(_known, table.settings), copy_rows(conn, query))


def read_gone_known(conn: Connection, table: Table) -> Generator[Known, None, None]:
    """As read_chunk_known, of the keys that the ledger knows and no row holds a value for: text None."""
    query = queries.query("scan", "read_gone", **_with_ledger(table, "keys"))
    yield from map(partial(_known, table.settings), copy_rows(conn, query))


def read_keys_known(conn: Connection, table: Table, keys: Sequence[str]) -> Generator[Known, None, None]:
    """As read_keys, together with the ledger's row of each key."""
    query = queries.query("scan", "read_keys", **_with_ledger(table, "keys"), keys=sql.Literal(list(keys)))
    yield from map(partial(_known, table.settings), copy_rows(conn, query))


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
    key = sql.Identifier(table.settings.key_column)
    return {
        **_plain(table),
        "more": queries.fragment("scan", "ledger_more"),
        "ledger_join": queries.fragment("scan", f"ledger_join_{of}", key=key),
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


def _known(settings: Settings, row: list[Field]) -> Known:
    pending_s, state, version, expires_at_ms, sha256, error, nbytes = row[4:]
    return Known(
        _entry(settings, row),
        None if pending_s is None else float(_DOUBLE.unpack(pending_s)[0]),
        None if state is None else str(state, "utf-8"),
        None if version is None else _integer(version),
        None if expires_at_ms is None else _integer(expires_at_ms),
        None if sha256 is None else bytes(sha256),
        None if error is None else str(error, "utf-8"),
        None if nbytes is None else _integer(nbytes),
    )


def _integer(field: Buffer) -> int:
    return int(_BIGINT.unpack(field)[0])

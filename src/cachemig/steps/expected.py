"""What is to stand in Redis of each key: by the table or, once the column is dropped, by the ledger.

Both tell the same: reads that together name every key, what is known of given keys, and which keys of Redis they know.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from psycopg import sql

from cachemig.config import Settings
from cachemig.entries.codec import Undecodable, decode
from cachemig.entries.entry import EPOCH, Buffer
from cachemig.ladder import Phase
from cachemig.source import chunks, control, queries, scan
from cachemig.source.connect import Connection, source_errors, transaction
from cachemig.source.scan import Known
from cachemig.source.table import Table, inspect

Read = Callable[[Connection], Generator[Known, None, None]]


class Whereabouts(NamedTuple):
    """What is known of a key that was found in Redis."""

    key: str
    looked_at: bool
    """It is among `reads`, and has its verdict by those."""
    empty_row: bool
    """Rows have this key, but no value."""
    known: bool
    """A row has it, or it was handled or changed once."""


class Expected(Protocol):
    """Every read runs in the caller's transaction, and knows of all keys what one snapshot says."""

    unit: str

    def reads(self, conn: Connection) -> Sequence[Read]:
        """Together every key that is to be there, in parts that can be read again each by itself."""

    def gone(self) -> Read | None:
        """Keys that are to be absent, where `reads` does not name them."""

    def of(self, conn: Connection, keys: Sequence[str]) -> Generator[Known, None, None]:
        """Of each of these keys."""

    def whereabouts(self, conn: Connection, keys: Sequence[str]) -> list[Whereabouts]:
        """Of these keys, which were found in Redis."""

    def sample(self, conn: Connection, size: int) -> list[str]:
        """At most so many keys that are to be there, at random."""

    def empty(self, conn: Connection) -> int:
        """Keys whose rows hold nothing."""

    def is_equal(self, conn: Connection, known: Known, value: Buffer) -> bool:
        """A value that was found to be another one is equal JSON all the same. Inside a transaction."""


def alone(migration: control.Migration) -> range:
    """Versions of writes to Redis alone; none while the column is in use."""
    return range(migration.base, (migration.epoch + 1) * EPOCH)


def expected_by(conn: Connection, settings: Settings, migration: control.Migration) -> Expected:
    """The table as long as it has the column, then the ledger. Raises TableUnfit, Refused."""
    if migration.phase is Phase.DROPPED:
        return ByLedger(settings)
    frozen = migration.frozen_epoch is not None
    return ByTable(inspect(conn, settings), migration.layout, migration.column_epoch, frozen)


@dataclass
class ByTable:
    """The column, frozen or in use."""

    table: Table
    layout: dict[str, Any] | None
    epoch: int
    """Of what is read from the column."""
    frozen: bool
    """What is written to it leaves no change."""
    unit = "chunks"

    def reads(self, conn: Connection) -> Sequence[Read]:
        laid_out = chunks.is_laid_out(self.layout, self.table, self.epoch)
        ranges = chunks.bounds(conn) if laid_out else [(None, None)]
        shared = chunks.shared_of(self.layout) if laid_out and not self.frozen else None
        return [
            partial(scan.read_chunk_known, table=self.table, lower=low, upper=up, shared=shared) for low, up in ranges
        ]

    def gone(self) -> Read | None:
        return partial(scan.read_gone_known, table=self.table)

    def of(self, conn: Connection, keys: Sequence[str]) -> Generator[Known, None, None]:
        return scan.read_keys_known(conn, self.table, keys)

    def whereabouts(self, conn: Connection, keys: Sequence[str]) -> list[Whereabouts]:
        query = queries.query("scan", "known_keys", **self.table.parts, keys=sql.Literal(list(keys)))
        return [Whereabouts(*row) for row in conn.execute(query).fetchall()]

    def sample(self, conn: Connection, size: int) -> list[str]:
        return scan.sampled_keys(conn, self.table, size)

    def empty(self, conn: Connection) -> int:
        with transaction(conn, read_only=True), source_errors():
            row = conn.execute(queries.query("scan", "skipped_keys", **self.table.parts)).fetchone()
        return int(row[0]) if row else 0

    def is_equal(self, conn: Connection, known: Known, value: Buffer) -> bool:  # noqa: ARG002  # as ByLedger's
        return False  # the texts were compared


@dataclass
class ByLedger:
    """What was delivered from the column, of which digest, size and expiry are left."""

    settings: Settings
    unit = "pages of the ledger"

    def reads(self, conn: Connection) -> Sequence[Read]:
        pages = scan.ledger_pages(conn)
        return [partial(scan.read_ledger_known, settings=self.settings, lower=low, upper=up) for low, up in pages]

    def gone(self) -> Read | None:
        return None

    def of(self, conn: Connection, keys: Sequence[str]) -> Generator[Known, None, None]:
        # All at once: they are without texts, and the connection is free for is_equal().
        yield from list(scan.read_ledger_keys_known(conn, self.settings, keys))

    def whereabouts(self, conn: Connection, keys: Sequence[str]) -> list[Whereabouts]:
        rows = conn.execute(queries.text("scan", "ledger_known"), {"keys": list(keys)}).fetchall()
        return [Whereabouts(*row) for row in rows]

    def sample(self, conn: Connection, size: int) -> list[str]:
        return scan.sampled_ledger(conn, size)

    def empty(self, conn: Connection) -> int:  # noqa: ARG002  # as ByTable's
        return 0  # that is no state of the ledger

    def is_equal(self, conn: Connection, known: Known, value: Buffer) -> bool:
        """The digest is that of the column's text, as jsonb prints it: Postgres is asked to print this value so."""
        if known.state not in ("delivered", "expired"):  # a value that was set aside is not to be there at all
            return False
        try:
            return known.sha256 is not None and scan.digest_as_jsonb(conn, decode(value)) == known.sha256
        except Undecodable:
            return False

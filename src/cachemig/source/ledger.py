"""The ledger: what was done with each key, written in bulk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cachemig.source import queries
from cachemig.source.connect import Connection, source_errors

_UNIX = datetime(1970, 1, 1, tzinfo=UTC)
MOST_FAULTS = 10_000


@dataclass(slots=True)
class Record:
    """A row of the ledger."""

    key: str
    version: int
    state: str
    sha256: bytes | None = None
    nbytes: int | None = None
    stored_sha256: bytes | None = None
    expires_at_ms: int | None = None
    error: str | None = None


def write(conn: Connection, records: Sequence[Record]) -> None:
    """Writes records in the caller's transaction; one with an older version than the ledger's changes nothing."""
    if not records:
        return
    with source_errors():
        conn.execute(queries.text("ledger", "ledger_load_table"))
        with conn.cursor() as cur, cur.copy(queries.text("ledger", "ledger_copy")) as copy:
            copy.set_types(["text", "int8", "text", "bytea", "int8", "bytea", "timestamptz", "text"])
            for r in records:
                expires = None if r.expires_at_ms is None else _UNIX + timedelta(milliseconds=r.expires_at_ms)
                copy.write_row((r.key, r.version, r.state, r.sha256, r.nbytes, r.stored_sha256, expires, r.error))
        conn.execute(queries.text("ledger", "ledger_upsert"))


def statements() -> list[str]:
    """What writes the ledger, for people."""
    return [queries.text("ledger", name) for name in ("ledger_load_table", "ledger_copy", "ledger_upsert")]


def counts(conn: Connection) -> dict[str, tuple[int, int]]:
    """Keys and bytes of each state."""
    with source_errors():
        rows = conn.execute(queries.text("ledger", "ledger_counts")).fetchall()
    return {str(state): (int(keys), int(total)) for state, keys, total in rows}


def faults(conn: Connection) -> tuple[list[tuple[str, str, int, str]], bool]:
    """(state, name of the fault, keys, one key) of what could not be migrated, and whether there is more of it: of each
    state MOST_FAULTS keys are looked at, so that asking takes no longer with a larger ledger."""
    with source_errors():
        rows = conn.execute(queries.text("ledger", "ledger_faults"), {"limit": MOST_FAULTS}).fetchall()
    found = [(str(state), str(name), int(n), str(key)) for state, name, n, key in rows]
    looked_at = Counter[str]()
    for state, _, keys, _ in found:
        looked_at[state] += keys
    return found, any(keys >= MOST_FAULTS for keys in looked_at.values())

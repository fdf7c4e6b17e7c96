"""Chunks: laying the table out, claiming, finishing. Any number of workers on any number of machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from cachemig.ladder import ALLOWED
from cachemig.source import control, queries
from cachemig.source.connect import Connection, source_errors, transaction
from cachemig.source.table import Table

LEASE_S = 60.0
"""Renewed while a chunk is in work. One whose worker is silent for longer may be done twice, which is harmless."""
SLOW_S = 20.0
"""A chunk that is in work for longer, and eight times longer than others took, is also given to whoever is idle."""
_SAMPLE_ROWS = 1000
_PRINTED = ((64 << 10, 50), (4 << 20, 4))
"""Most bytes stored, and how many of such values are printed to learn how long their texts are."""
_MOST_ROWS = 20_000  # bounds the ledger rows that a worker holds until its chunk is done
_ROW_BYTES = 64
_MOST_SHARED = 1000


@dataclass(frozen=True)
class Chunk:
    id: int
    lower: list[str] | None
    upper: list[str] | None
    attempts: int
    """How often it was claimed: the fencing number of this claim."""


@dataclass(frozen=True)
class Totals:
    chunks: int = 0
    done: int = 0
    running: int = 0
    entries: int = 0
    bytes: int = 0


def sample_width(conn: Connection, table: Table) -> float:
    """Mean bytes of a row's text, from a sample."""
    return _sampled(conn, table)[0]


def _sampled(conn: Connection, table: Table) -> tuple[float, float]:
    """(mean bytes of a row's text, bytes of text for each byte stored)."""
    share = min(100.0, 100 * 20 * _SAMPLE_ROWS / table.tuples) if table.tuples > 0 else 100.0
    parts = {
        "table": table.identifier,
        "column": sql.Identifier(table.settings.column),
        "tablesample": sql.SQL("TABLESAMPLE SYSTEM ({})").format(sql.Literal(share)) if share < 100 else sql.SQL(""),
    }

    def one(name: str, **more: int) -> tuple[Any, ...]:
        literals = {part: sql.Literal(value) for part, value in more.items()}
        row = conn.execute(queries.query("chunks", name, **parts, **literals)).fetchone()
        assert row is not None
        return row

    with source_errors():
        _, stored = one("sample_width", limit=_SAMPLE_ROWS)
        ratio = 1.0
        for most_bytes, limit in _PRINTED:
            found, ratio = one("sample_printed", most_bytes=most_bytes, limit=limit)
            if found:
                break
    return float(stored) * float(ratio), float(ratio)


def layout_of(table: Table, epoch: int) -> dict[str, Any]:
    """What a layout is valid for. A rewrite of the table moves blocks, but not primary keys."""
    return {
        "epoch": epoch,
        "row_key": list(table.row_key),
        "filenode": None if table.row_key else table.filenode,
    }


def is_laid_out(layout: dict[str, Any] | None, table: Table, epoch: int) -> bool:
    """The chunks are those of this table as it is, in this epoch."""
    wanted = layout_of(table, epoch)
    return layout is not None and {name: layout.get(name) for name in wanted} == wanted


def shared_of(layout: dict[str, Any] | None) -> list[str] | None:
    """The keys that several rows had when the table was laid out; None where they are many, or it is not known.

    A key that several rows have since then has a change on its way or delivered, for capture is on before.
    """
    return None if layout is None else layout.get("shared")


def lay_out(conn: Connection, table: Table, epoch: int, *, again: bool = False) -> dict[str, Any]:
    """Divides the table into chunks of about chunk_bytes each, and forgets the chunks there were, unless another worker
    has laid out the same meanwhile (`again`: all the same). Returns the layout.

    Raises LockNotGranted while another one does.
    """
    width, ratio = _sampled(conn, table)
    with transaction(conn):
        conn.execute(queries.text("chunks", "lock_chunks"))
        row = conn.execute(queries.text("chunks", "layout")).fetchone()
        found = row[0] if row else None
        if not again and found is not None and is_laid_out(found, table, epoch):
            return dict(found)
        conn.execute(queries.text("chunks", "forget_chunks"))
        conn.execute(_laying_out(conn, table, width, ratio))
        conn.execute(queries.text("chunks", "first_chunk"))
        layout = {**layout_of(table, epoch), "shared": _shared(conn, table)}
        conn.execute(queries.text("chunks", "set_layout"), {"layout": Jsonb(layout)})
    return layout


def statements(conn: Connection, table: Table) -> list[str]:
    """What lays out, for people. Reads only."""
    width, ratio = _sampled(conn, table)
    return [
        queries.text("chunks", "forget_chunks"),
        _laying_out(conn, table, width, ratio).as_string(conn),
        queries.text("chunks", "first_chunk"),
        queries.text("chunks", "set_layout"),
    ]


def _laying_out(conn: Connection, table: Table, width: float, ratio: float) -> sql.Composed:
    row = conn.execute(queries.query("chunks", "has_toast", oid=sql.Literal(table.oid))).fetchone()
    if row is None or row[0]:
        weight = sql.SQL("({} + coalesce(pg_catalog.pg_column_size(t.{}), 0) * {})::numeric").format(
            sql.Literal(_ROW_BYTES), sql.Identifier(table.settings.column), sql.Literal(ratio)
        )
    else:  # of a page at most, every one: an index has all that is needed
        weight = sql.SQL("{}::numeric").format(sql.Literal(int(width) + _ROW_BYTES))
    parts = {
        "table": table.identifier,
        "weight": weight,
        "chunk_bytes": sql.Literal(table.settings.chunk_bytes),
        "chunk_rows": sql.Literal(_MOST_ROWS),
    }
    if not table.row_key:
        return queries.query("chunks", "lay_out_blocks", **parts)
    columns = [sql.SQL("t.{}").format(sql.Identifier(c)) for c in table.row_key]
    bound = sql.SQL("ARRAY[{}]").format(sql.SQL(", ").join(sql.SQL("{}::text").format(c) for c in columns))
    return queries.query("chunks", "lay_out", **parts, bound=bound, order=sql.SQL(", ").join(columns))


def _shared(conn: Connection, table: Table) -> list[str] | None:
    if table.key_unique:
        return []
    query = queries.query(
        "chunks",
        "keys_of_several_rows",
        table=table.identifier,
        key=sql.Identifier(table.settings.key_column),
        limit=sql.Literal(_MOST_SHARED + 1),
    )
    keys = [str(row[0]) for row in conn.execute(query).fetchall()]
    return keys if len(keys) <= _MOST_SHARED else None


def claim(conn: Connection, owner: str, epoch: int, held: Sequence[int] = ()) -> Chunk | None:
    """The next chunk that nobody works on, leased to the owner, other than those that it `held`; None where there is
    none to be had now."""
    with source_errors():
        owners = [str(r[0]) for r in conn.execute(queries.text("chunks", "running_owners")).fetchall()]
        row = conn.execute(
            queries.text("chunks", "claim_chunk"),
            {
                "owner": owner,
                "seconds": LEASE_S,
                "slow_seconds": SLOW_S,
                "held": list(held),
                "dead": control.dead(owners),
                "phases": [phase.value for phase in ALLOWED["backfill"]],
                "epoch": epoch,
            },
        ).fetchone()
    if row is None:
        return None
    return Chunk(*row)


def renew(conn: Connection, owner: str) -> set[tuple[int, int]]:
    """Keeps the leases of this owner; returns (id, attempts) of the chunks that are still its own."""
    with source_errors():
        rows = conn.execute(queries.text("chunks", "renew_chunks"), {"owner": owner, "seconds": LEASE_S}).fetchall()
    return {(int(chunk_id), int(number)) for chunk_id, number in rows}


def finish(conn: Connection, chunk: Chunk, owner: str, figures: dict[str, Any]) -> bool:
    """Marks the chunk done; False where the lease was lost to another worker, and nothing is changed."""
    with source_errors():
        cur = conn.execute(
            queries.text("chunks", "finish_chunk"),
            {"id": chunk.id, "owner": owner, "attempts": chunk.attempts, "figures": Jsonb(figures)},
        )
    return cur.rowcount == 1


def done_by(conn: Connection, owners: Sequence[str]) -> list[dict[str, Any]]:
    """The figures of each chunk that one of these owners has done."""
    with source_errors():
        rows = conn.execute(queries.text("chunks", "done_by"), {"owners": list(owners)}).fetchall()
    return [dict(row[0]) for row in rows]


def release(conn: Connection, chunk: Chunk, owner: str) -> None:
    """Gives an unfinished chunk back."""
    with source_errors():
        conn.execute(
            queries.text("chunks", "release_chunk"), {"id": chunk.id, "owner": owner, "attempts": chunk.attempts}
        )


def totals(conn: Connection) -> Totals:
    with source_errors():
        row = conn.execute(queries.text("chunks", "chunk_counts")).fetchone()
    assert row is not None
    return Totals(*(int(v) for v in row))


Range = tuple[list[str] | None, list[str] | None]


def bounds(conn: Connection) -> list[Range]:
    """The ranges of all chunks, together the whole table; one open range where none is laid out."""
    with source_errors():
        rows = conn.execute(queries.text("chunks", "chunk_bounds")).fetchall()
    return [(lower, upper) for lower, upper in rows] or [(None, None)]


def in_work(conn: Connection) -> list[Range]:
    """The ranges of chunks that were begun and not finished."""
    with source_errors():
        rows = conn.execute(queries.text("chunks", "chunks_in_work")).fetchall()
    return [(lower, upper) for lower, upper in rows]

"""Chunks: laying the table out, claiming, finishing. Any number of workers on any number of machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from cachemig.ladder import ALLOWED
from cachemig.source import control, queries
from cachemig.source.connect import Connection, source_errors, transaction
from cachemig.source.table import Table

LEASE_S = 120.0
"""A chunk takes about a second; one that takes longer than this may be done twice, which is harmless."""
_SAMPLE_ROWS = 1000
_MOST_ROWS = 20_000  # bounds the ledger rows that a worker holds until its chunk is done


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
    share = min(100.0, 100 * 20 * _SAMPLE_ROWS / table.tuples) if table.tuples > 0 else 100.0
    sampling = sql.SQL("TABLESAMPLE SYSTEM ({})").format(sql.Literal(share)) if share < 100 else sql.SQL("")
    query = queries.query(
        "chunks",
        "sample_width",
        table=table.identifier,
        column=sql.Identifier(table.settings.column),
        tablesample=sampling,
        limit=sql.Literal(_SAMPLE_ROWS),
    )
    with source_errors():
        row = conn.execute(query).fetchone()
    return float(row[0]) if row else 0.0


def layout_of(table: Table, epoch: int) -> dict[str, Any]:
    """What a layout is valid for. A rewrite of the table moves blocks, but not primary keys."""
    return {
        "epoch": epoch,
        "row_key": list(table.row_key),
        "filenode": None if table.row_key else table.filenode,
    }


def lay_out(conn: Connection, table: Table, epoch: int) -> None:
    """Divides the table into chunks of about chunk_bytes each, and forgets the chunks there were."""
    width = max(sample_width(conn, table), 1.0)
    rows = int(min(max(table.settings.chunk_bytes / width, 1), _MOST_ROWS))
    with transaction(conn):
        conn.execute(queries.text("chunks", "forget_chunks"))
        if table.row_key:
            columns = [sql.SQL("t.{}").format(sql.Identifier(c)) for c in table.row_key]
            texts = sql.SQL(", ").join(sql.SQL("{}::text").format(c) for c in columns)
            conn.execute(
                queries.query(
                    "chunks",
                    "lay_out_keys",
                    table=table.identifier,
                    order=sql.SQL(", ").join(columns),
                    bound=sql.SQL("ARRAY[{}]").format(texts),
                    rows=sql.Literal(rows),
                )
            )
        else:
            found = conn.execute(queries.query("chunks", "table_blocks", oid=sql.Literal(table.oid))).fetchone()
            total = int(found[0]) if found else 0
            per_block = table.tuples / total if table.tuples > 0 and total else 1
            blocks = max(1, int(rows / max(per_block, 1)))
            conn.execute(queries.text("chunks", "lay_out_blocks"), {"blocks": blocks, "total": total})
        conn.execute(queries.text("chunks", "first_chunk"))
        conn.execute(queries.text("chunks", "set_layout"), {"layout": Jsonb(layout_of(table, epoch))})


def claim(conn: Connection, owner: str, epoch: int) -> Chunk | None:
    """The next chunk that nobody works on, leased to the owner; None where there is none to be had now."""
    with source_errors():
        owners = [str(r[0]) for r in conn.execute(queries.text("chunks", "running_owners")).fetchall()]
        row = conn.execute(
            queries.text("chunks", "claim_chunk"),
            {
                "owner": owner,
                "seconds": LEASE_S,
                "dead": control.dead(owners),
                "phases": [phase.value for phase in ALLOWED["backfill"]],
                "epoch": epoch,
            },
        ).fetchone()
    if row is None:
        return None
    return Chunk(*row)


def finish(conn: Connection, chunk: Chunk, owner: str, figures: dict[str, Any]) -> bool:
    """Marks the chunk done; False where the lease was lost to another worker, and nothing is changed."""
    with source_errors():
        cur = conn.execute(
            queries.text("chunks", "finish_chunk"),
            {"id": chunk.id, "owner": owner, "attempts": chunk.attempts, "figures": Jsonb(figures)},
        )
    return cur.rowcount == 1


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

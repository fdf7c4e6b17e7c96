"""The table itself: its size, its keys, and what of it Redis will have to hold."""

from __future__ import annotations

from contextlib import suppress

from cachemig.errors import SourceError
from cachemig.ladder import Phase
from cachemig.source import chunks, ledger, queries
from cachemig.source.connect import source_errors
from cachemig.source.table import size
from cachemig.steps import plan
from cachemig.steps.doctor.finding import Said, error, in_bytes, note, ok, warning
from cachemig.steps.doctor.subjects import Seen, Source, brief

KEY_INDEX_ROWS = 10_000
"""Without an index on the key sync scans the table for each batch: bearable up to about so many rows."""


def found(source: Source) -> Said:
    table = source.table
    rows = "rows not counted yet (never analysed)" if table.tuples < 0 else f"about {table.tuples:,.0f} rows"
    kind = "partitioned table" if table.kind == "p" else "table"
    return ok(f"{kind} {table.qualified}: {rows}, {in_bytes(size(source.conn, table))}, owner {table.owner}")


def key_unique(source: Source) -> Said:
    s = source.settings
    if source.table.key_unique:
        return ok(f"{s.key_column} is unique")
    order = f"the newest by {s.order_by}" if s.order_by else "the one with the highest primary key (order_by is empty)"
    return note(
        f"{s.key_column} is not unique: of several rows with a value, {order} is the entry",
        "cachemig plan counts such keys; set order_by to another column if that is the wrong row",
    )


def key_index(source: Source) -> Said:
    table, key = source.table, source.settings.key_column
    if table.key_indexed:
        return ok(f"{key} has an index")
    do = f"CREATE INDEX CONCURRENTLY ON {table.qualified} ({key})"
    rows, estimated = plan.count_rows(source.conn, table)
    if rows > KEY_INDEX_ROWS:
        number = f"about {rows:,}" if estimated else f"{rows:,}"
        return error(f"{key} has no index, and {table.qualified} has {number} rows: sync reads by key", do)
    query = queries.query("doctor", "shared_keys", table=table.identifier, key=table.parts["key"])
    shared = source.conn.execute(query).fetchone()
    if shared and shared[0]:
        return error(f"{key} has no index, and rows share keys: each row is compared with every other", do)
    return warning(f"{key} has no index: bearable with {rows:,} rows, but each batch of sync reads them all", do)


def row_key(source: Source) -> Said:
    if source.table.row_key:
        return ok(f"chunks are ranges of {', '.join(source.table.row_key)}")
    return warning(
        "there is no primary key or unique index over NOT NULL columns: backfill goes by blocks, and a row "
        "that moves meanwhile is found only by the last pass over the table",
        "add a primary key if you can; the result is the same without",
    )


def expect(source: Source, seen: Seen) -> None:
    """Estimates what Redis will still need: rows * (mean sampled text * ratio + 120), less what is delivered."""
    s, table = source.settings, source.table
    phase = source.migration.phase if source.migration is not None else None
    seen.alone = phase in (Phase.REDIS_ONLY, Phase.DROPPED)
    if phase is Phase.DROPPED:
        with suppress(SourceError):
            seen.delivered, seen.expected_bytes = ledger.counts(source.conn).get("delivered", (0, 0))[0], 0
        return
    # What goes wrong is told by the checks of the rights; redis-memory says that nothing could be compared.
    with suppress(SourceError), brief(source.conn), source_errors():
        rows, _ = plan.count_rows(source.conn, table)
        text = rows * chunks.sample_width(source.conn, table)
        delivered, delivered_bytes = (0, 0) if source.visible else (None, 0)
        if source.migration is not None:
            delivered, delivered_bytes = ledger.counts(source.conn).get("delivered", (0, 0))
        held = plan.expected_memory(delivered or 0, delivered_bytes, 0, s.codec)
        seen.delivered = delivered
        seen.expected_bytes = max(0, plan.expected_memory(rows, text, 0, s.codec) - held)

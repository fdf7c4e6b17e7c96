"""plan: what a migration would move, how long it would take, and what stands in the way of the drop. Reads only."""

from __future__ import annotations

import math
import struct
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from psycopg import sql

from cachemig.config import Settings, fields
from cachemig.entries.entry import jitter_ms
from cachemig.entries.shape import fault
from cachemig.errors import PrivilegeMissing, TargetError
from cachemig.ladder import Phase
from cachemig.source import control, queries
from cachemig.source.connect import Connection, connect, source_errors, transaction
from cachemig.source.scan import Field, copy_rows
from cachemig.source.table import Table, inspect, size
from cachemig.targets.faults import target_errors
from cachemig.targets.redis import RedisTarget

EXACT_ROWS = 100_000
EXACT_BYTES = 2**30
"""A table of at most so many rows and bytes is read as a whole; a larger one by a sample, unless all is asked for."""
SAMPLE_ROWS = 5_000
SAMPLE_BYTES = 2**28
_LEAST_SAMPLE_ROWS = 200
_MOST_KEYLESS = 10_000
_MOST_SHARING = 200
"""Rows of one key that a sample looks at."""
_TIMED_BYTES = 2**24
PATH_SHARE = 0.8
"""Backfill's rate as a part of COPY's alone: measured 0.8 to 1 with hashing, fence and ledger on two cores."""
BYTES_PER_KEY = 120
"""What Redis adds to name and value: dictionary entry, object headers, expiry, the allocator's rounding."""
CODEC_RATIO = {"json": 1.0, "gzip": 0.4, "zstd": 0.4}
"""Stored bytes by text bytes, as measured on analytics of recordings (gzip 1/2.3 to 1/2.6, zstd 1/2.4 to 1/3.3)."""

NOT_BEGUN = "not begun"
NOT_VISIBLE = "not visible to this role"

_MOVE = ["cachemig sync --follow", "cachemig backfill", "cachemig verify"]
_CUT_OVER = ["cachemig cutover --ramp 1,10,50,100"]
_STOP = ["cachemig residue", "cachemig stop-writes"]
_DROP = ["cachemig archive --to PLACE", "cachemig verify", "cachemig drop-column", "cachemig reclaim"]
_ALL = [*_CUT_OVER, *_STOP, *_DROP]
STEPS_AHEAD: dict[str, list[str]] = {
    NOT_BEGUN: ["cachemig doctor", "cachemig init", "cachemig dual-write", *_MOVE, *_ALL],
    NOT_VISIBLE: ["cachemig status, as a role that may see the control schema (sql/roles.sql)"],
    Phase.IDLE: ["cachemig doctor", "cachemig dual-write", *_MOVE, *_ALL],
    Phase.DUAL_WRITE: [*_MOVE, *_ALL],
    Phase.CUTOVER: _ALL,
    Phase.REDIS_ONLY: _DROP,
    Phase.DROPPED: ["cachemig reclaim", "cachemig clean"],
}

# Type as pg_identify_object() names it: how it is called here, and what becomes of it at the drop.
BLOCKS = "blocks the drop: "
_GOES = "goes with the column without a word: "
DEPENDENTS: dict[str, tuple[str, str]] = {
    "view": ("view", BLOCKS + "replace it by one without the column, before the drop"),
    "materialized view": ("materialised view", BLOCKS + "create it anew without the column, before the drop"),
    "rule": ("rule", BLOCKS + "drop it or write it anew without the column"),
    "policy": ("policy", BLOCKS + "write it anew without the column; Redis will not have its protection"),
    "default value": (
        "generated column",
        BLOCKS + "drop it, or make it an ordinary column (ALTER COLUMN .. DROP EXPRESSION)",
    ),
    "table column": (
        "generated column",
        BLOCKS + "drop it, or make it an ordinary column (ALTER COLUMN .. DROP EXPRESSION)",
    ),
    "trigger": ("trigger", BLOCKS + "write its UPDATE OF list or WHEN condition anew without the column"),
    "publication relation": ("publication", BLOCKS + "write its column list or filter anew without the column"),
    "index": ("index", _GOES + "see whether a query relies on it, on other columns of it too"),
    "table constraint": ("constraint", _GOES + "keep what it says of other columns in a new one"),
    "statistics object": ("statistics", _GOES + "plans may change; create it anew for its other columns"),
    "function": ("function", BLOCKS + "write it anew without the column"),
    "procedure": ("procedure", BLOCKS + "write it anew without the column"),
}
_OTHER = BLOCKS + "remove the dependency first"
MENTIONS = (
    "Postgres does not check it, it would fail when it is next called: "
    "see whether it means this column, and change it before the drop"
)


@dataclass(frozen=True)
class Sizes:
    """Bytes of the column's text, over rows that hold a value."""

    p50: int
    p95: int
    p99: int
    max: int
    total: int


@dataclass(frozen=True)
class Dependent:
    """Something that depends on the column, and what to do about it before the drop."""

    kind: str
    name: str
    what_to_do: str


@dataclass(frozen=True)
class Setting:
    name: str
    value: str
    origin: str


@dataclass(frozen=True)
class Plan:
    """What a migration would move. What `estimated` names is no count: of a large table so many sampled rows are read,
    and what they show is scaled up; `sizes.max` is then the largest that was seen.

    redis_bytes = text bytes of the entries * ratio (json 1, gzip and zstd 0.4)
                  + entries * (bytes of the key's name + 120).
    seconds     = text bytes of all values / (mb_per_s * 0.8), with one connection.
    """

    table: str
    column: str
    phase: str
    rows: int
    rows_estimated: bool
    sampled_rows: int | None
    table_bytes: int
    empty_rows: int
    """NULL, JSON null or {}: not entries."""
    keyless_rows: int
    """Values that no key leads to: they cannot be moved, and the drop would lose them. A count where the key column is
    NOT NULL or has an index."""
    duplicate_keys: int
    """Keys with more than one row that holds a value; one of them is the entry."""
    rows_beyond_winner: int
    corrupt: dict[str, int]
    """Winners by name of the fault: set aside, or what `on_corrupt` says."""
    expired_rows: int
    """Winners that are past their time already: not moved."""
    entries: int
    """Keys that Redis would hold."""
    sizes: Sizes
    redis_bytes: int
    redis_free_bytes: int | None
    """None: no limit is known, or Redis was not asked."""
    redis_error: str | None
    """Why Redis could not be asked."""
    mb_per_s: float | None
    """10^6 bytes of text a second, measured now by a COPY of some rows. None: nothing to copy."""
    seconds: float | None
    """Expected time of backfill."""
    estimated: list[str]
    """Names of the figures above that are estimates."""
    dependents: list[Dependent]
    settings: list[Setting]
    steps_ahead: list[str]


_SAMPLED = ("empty_rows", "duplicate_keys", "rows_beyond_winner", "corrupt", "expired_rows", "entries", "sizes")
_FORETOLD = ("redis_bytes", "mb_per_s", "seconds")


class _Row(NamedTuple):
    key: str | None
    bytes: int | None
    """None: the row holds no value."""
    fault: str | None
    """Name of what makes the value corrupt."""
    lifetime_from: int | None
    place: int


def plan(settings: Settings, target: RedisTarget | None, *, exact: bool = False) -> Plan:
    """The plan as of now. Reads only, with SELECT on the table alone, before `cachemig init` too. Takes no longer with
    a larger table, unless it is to be `exact`: then every row is read.

    Raises SourceError; RowsHidden where row-level security would falsify the counts. A Redis that cannot be reached
    is told in the plan.
    """
    free, redis_error = _redis(target)
    with connect(settings) as conn:
        phase, percent = _phase(conn)
        with transaction(conn, read_only=True):
            table = inspect(conn, settings)
            rows, rows_estimated = count_rows(conn, table, exact=exact)
            table_bytes = size(conn, table)
            if exact or (rows <= EXACT_ROWS and table_bytes <= EXACT_BYTES):
                count = _Counts(settings)
                for row in _rows(conn, table):
                    count.add(row)
                scale, keyless = 1.0, cast("int | None", count.keyless)
            else:
                count = _sampled(conn, table, rows, table_bytes)
                scale, keyless = rows / max(count.rows, 1), _keyless(conn, table)
            sampled = count.weights is not None
            mb_per_s = _measured(conn, table, rows, count)
            dependents = _dependents(conn, table)
    sizes = _sizes(count.sizes, scale)
    return Plan(
        table=table.qualified,
        column=settings.column,
        phase=phase,
        rows=rows,
        rows_estimated=rows_estimated,
        sampled_rows=count.rows if sampled else None,
        table_bytes=table_bytes,
        empty_rows=round(count.empty * scale),
        keyless_rows=round(count.keyless * scale) if keyless is None else keyless,
        duplicate_keys=round(count.shared_keys * scale),
        rows_beyond_winner=round(count.beyond * scale),
        corrupt={name: max(1, round(n * scale)) for name, n in sorted(count.corrupt.items())},
        expired_rows=round(count.expired * scale),
        entries=round(count.entries * scale),
        sizes=sizes,
        redis_bytes=expected_memory(
            count.entries * scale, count.bytes * scale, count.name_bytes * scale, settings.codec
        ),
        redis_free_bytes=free,
        redis_error=redis_error,
        mb_per_s=mb_per_s,
        seconds=round(sizes.total / 1e6 / (mb_per_s * PATH_SHARE), 1) if mb_per_s else None,
        estimated=[
            *(["rows"] if rows_estimated else []),
            *(_SAMPLED if sampled else []),
            *(["keyless_rows"] if keyless is None else []),
            *_FORETOLD,
        ],
        dependents=dependents,
        settings=_deciding(settings),
        steps_ahead=[step for step in STEPS_AHEAD[phase] if percent < 100 or step not in _CUT_OVER],
    )


# Shared with doctor -----------------------------------------------------------------------------------------------


def count_rows(conn: Connection, table: Table, *, exact: bool = False) -> tuple[int, bool]:
    """Rows of the table, and whether that is an estimate: the planner's, where it is more than EXACT_ROWS."""
    counting = sql.SQL("ALL") if exact else sql.Literal(EXACT_ROWS + 1)
    count = queries.query("plan", "count_up_to", table=table.identifier, limit=counting)
    if exact:
        return _number(conn, count), False
    with source_errors():
        row = conn.execute(queries.query("plan", "planned_rows", table=table.identifier)).fetchone()
    assert row is not None
    planned = int(cast("list[dict[str, Any]]", row[0])[0]["Plan"]["Plan Rows"])
    if planned > EXACT_ROWS:
        return planned, True
    counted = _number(conn, count)
    return counted, counted > EXACT_ROWS  # the table has grown by far since it was last analysed


def expected_memory(entries: float, text_bytes: float, name_bytes: float, codec: str) -> int:
    """Bytes of Redis's memory: text * ratio of the codec + names + 120 an entry."""
    return round(text_bytes * CODEC_RATIO[codec] + name_bytes + entries * BYTES_PER_KEY)


def free_memory(info: dict[str, Any]) -> int | None:
    """Bytes that Redis may still take, from `INFO memory`: up to maxmemory, or to the machine's memory where there is
    no maxmemory. None where neither is told."""
    limit = int(info.get("maxmemory", 0)) or int(info.get("total_system_memory", 0))
    return max(0, limit - int(info["used_memory"])) if limit and "used_memory" in info else None


def free_for_entries(target: RedisTarget) -> int | None:
    """Bytes of entries that Redis may still take. Of a cluster so many that no master takes more than it may: entries
    go to masters by their part of the slots, so the fullest one decides. None where a server does not tell."""
    free = [(free_memory(server.client.info("memory")), server.share) for server in target.servers()]
    known = [int(nbytes / share) for nbytes, share in free if nbytes is not None]
    return min(known) if len(known) == len(free) else None


def _redis(target: RedisTarget | None) -> tuple[int | None, str | None]:
    if target is None:
        return None, None
    try:
        with target_errors():
            return free_for_entries(target), None
    except TargetError as exc:
        return None, str(exc)


# Counting ---------------------------------------------------------------------------------------------------------


def _phase(conn: Connection) -> tuple[str, float]:
    """With the percentage of the keys that are read from Redis in cutover."""
    try:
        migration = control.find(conn)
    except PrivilegeMissing:
        return NOT_VISIBLE, 0
    return (NOT_BEGUN, 0) if migration is None else (migration.phase.value, migration.percent)


def _rows(conn: Connection, table: Table, share: float | None = None, most: int | None = None) -> Iterator[_Row]:
    """Every row; or of a sample of pages, `share` per cent of all, at most so many rows."""
    query = queries.query(
        "plan", "rows", **_parts(table),
        sample=sql.SQL("") if share is None else sql.SQL("TABLESAMPLE SYSTEM ({})").format(sql.Literal(share)),
        limit=sql.SQL("ALL") if most is None else sql.Literal(most),
        text=sql.SQL("{}" if table.settings.shape == "emg" else "pg_catalog.left({}, 64)").format(_TEXT),
    )  # fmt: skip
    return (_row(table.settings, fields) for fields in copy_rows(conn, query))


def _sampled(conn: Connection, table: Table, rows: int, table_bytes: int) -> _Counts:
    """What a sample of a table of so many rows shows."""
    # A quarter of the text is what it takes on disk, roughly: TOAST compresses.
    text_per_row = max(1.0, 4 * table_bytes / max(rows, 1))
    want = int(min(SAMPLE_ROWS, max(_LEAST_SAMPLE_ROWS, SAMPLE_BYTES / text_per_row)))
    share = 100 * want / max(rows, 1)
    read: list[_Row] = []
    for times in (1, 20, 400):  # pages are taken, and may hold no row
        read = list(_rows(conn, table, min(100.0, times * share), 4 * want))
        if read or times * share >= 100:
            break
    keys = [row.key for row in read if row.bytes is not None and row.key is not None]
    count = _Counts(table.settings, _weights(conn, table, rows, keys))
    for row in read:
        count.add(row)
    return count


_TEXT = sql.SQL("t.cachemig_text")
_INTEGER = struct.Struct("!i")
_BIGINT = struct.Struct("!q")


def _row(settings: Settings, fields: list[Field]) -> _Row:
    """A row of the query, its text looked at and let go."""
    key, text, nbytes, lifetime_from, place = fields
    assert place is not None
    name = None
    if text is not None and nbytes is not None:
        length = int(_INTEGER.unpack(nbytes)[0])
        found = f"too-large: {length}" if length > settings.max_value_bytes else fault(text, settings)
        name = found.partition(":")[0] if found else None
    return _Row(
        None if key is None else str(key, "utf-8"),
        None if nbytes is None else int(_INTEGER.unpack(nbytes)[0]),
        name,
        None if lifetime_from is None else int(_BIGINT.unpack(lifetime_from)[0]),
        int(_BIGINT.unpack(place)[0]),
    )


def _parts(table: Table) -> dict[str, sql.Composable]:
    kept = ("table", "key", "column", "n_nonempty", "n_order", "lifetime_from")
    # Keys of the table itself, so that the cast cannot fail; there may be no control schema yet.
    k_key = sql.SQL("k.key::{}").format(table.key_type)
    return {**{name: part for name, part in table.parts.items() if name in kept}, "k_key": k_key}


def _weights(conn: Connection, table: Table, rows: int, keys: Sequence[str]) -> dict[str, float]:
    """Of each of these keys the part of an entry that one row stands for: 1/n where n rows have it. Not named: 1."""
    if table.key_unique or not keys:
        return {}
    if not table.key_indexed:  # to look for the rows of each would be to read them all
        n = _rows_of_a_key(conn, table, rows)
        return dict.fromkeys(keys, 1 / n) if n > 1 else {}
    asked = {"keys": sql.Literal(list(set(keys))), "limit": sql.Literal(_MOST_SHARING)}
    with source_errors():
        found = conn.execute(queries.query("plan", "rows_of_keys", **_parts(table), **asked)).fetchall()
    sizes = {str(key): int(str(n)) for key, n in found}
    return {key: 1 / n for key, n in sizes.items() if n > 1}


def _rows_of_a_key(conn: Connection, table: Table, rows: int) -> float:
    """The mean by the planner's statistics; 1 where there are none."""
    parameters = {"schema": table.schema, "table": table.name, "column": table.settings.key_column}
    with source_errors():
        row = conn.execute(queries.text("plan", "distinct_keys"), parameters).fetchone()
    distinct = float(str(row[0])) if row and row[0] else 0.0
    keys = -distinct * rows if distinct < 0 else distinct  # below 0: as a part of the rows
    return max(1.0, rows / keys) if keys else 1.0


def _keyless(conn: Connection, table: Table) -> int | None:
    """Rows with a value and no key; None where only reading the whole table would tell."""
    if table.settings.key_column in table.not_null:
        return 0
    if not table.key_indexed:
        return None
    query = queries.query("plan", "keyless", **_parts(table), limit=sql.Literal(_MOST_KEYLESS))
    with source_errors():
        row = conn.execute(query).fetchone()
    assert row is not None
    looked_at, found = row
    return None if int(looked_at) >= _MOST_KEYLESS else int(found)


class _Counts:
    """What would become of the rows that are read."""

    def __init__(self, settings: Settings, weights: dict[str, float] | None = None) -> None:
        """`weights`: these are sampled rows, whose place among those of their key is not known (_weights). None: all
        rows are read."""
        self.settings = settings
        self.weights = weights
        self.now = time.time()
        self.rows = self.empty = self.keyless = 0
        self.shared_keys = self.beyond = self.expired = self.entries = self.bytes = self.name_bytes = 0.0
        self.corrupt: Counter[str] = Counter()
        self.sizes = array("q")
        self._name_extra = len(settings.key_template.replace("{key}", "").encode())

    def add(self, row: _Row) -> None:
        self.rows += 1
        if row.bytes is None:
            self.empty += 1
            return
        self.sizes.append(row.bytes)
        if row.key is None:
            self.keyless += 1
            return
        weight = 1.0
        if self.weights is not None:
            weight = self.weights.get(row.key, 1.0)
            self.shared_keys += weight if weight < 1 else 0
            self.beyond += 1 - weight
        elif row.place > 1:
            self.shared_keys += row.place == 2
            self.beyond += 1
            return
        if row.fault is not None:
            self.corrupt[row.fault] += 1
        elif _expired(row, self.settings, self.now):
            self.expired += weight
        else:
            self.entries += weight
            self.bytes += row.bytes * weight
            self.name_bytes += (self._name_extra + len(row.key.encode())) * weight


def _expired(row: _Row, settings: Settings, now: float) -> bool:
    if not settings.ttl or row.lifetime_from is None:
        return False
    ttl_ms = int(settings.ttl * 1000)
    return row.lifetime_from + ttl_ms + jitter_ms(row.key or "", ttl_ms, settings.ttl_jitter) <= now * 1000


def _sizes(sizes: Sequence[int], scale: float) -> Sizes:
    if not sizes:
        return Sizes(0, 0, 0, 0, 0)
    found = sorted(sizes)

    def rank(part: float) -> int:  # nearest rank
        return found[math.ceil(part * len(found)) - 1]

    return Sizes(rank(0.5), rank(0.95), rank(0.99), found[-1], round(sum(found) * scale))


def _measured(conn: Connection, table: Table, rows: int, count: _Counts) -> float | None:
    """10^6 bytes of text a second of a COPY of about 16 MiB; None where there is nothing to copy."""
    total = sum(count.sizes)
    if not total:
        return None
    want = max(1, min(count.rows, int(_TIMED_BYTES / (total / count.rows))))
    for share in (min(100.0, 100 * 4 * want / max(rows, 1)), 100.0):  # a small share of few pages may be none
        query = queries.query(
            "plan",
            "copied_sample",
            **_parts(table),
            limit=sql.Literal(want),
            sample=sql.SQL("TABLESAMPLE SYSTEM ({})").format(sql.Literal(share)),
        )
        began = time.perf_counter()
        copied = sum(len(text) for _, text in copy_rows(conn, query) if text is not None)
        seconds = time.perf_counter() - began
        if copied:
            return round(copied / 1e6 / seconds, 2)
    return None


def _number(conn: Connection, query: sql.Composed) -> int:
    with source_errors():
        row = conn.execute(query).fetchone()
    assert row is not None
    return int(str(row[0]))


# What stands in the way, and what decides --------------------------------------------------------------------------


def _dependents(conn: Connection, table: Table) -> list[Dependent]:
    parameters = {"oid": table.oid, "column": table.settings.column}
    with source_errors():
        known = conn.execute(queries.text("plan", "dependents"), parameters).fetchall()
        functions = conn.execute(queries.text("plan", "mentioning_functions"), parameters).fetchall()
    found = []
    for type_, identity in known:
        kind, what_to_do = DEPENDENTS.get(str(type_), (str(type_), _OTHER))
        found.append(Dependent(kind, str(identity).removeprefix("for "), what_to_do))
    return [*found, *(Dependent("function text", str(name), MENTIONS) for (name,) in functions)]


def _deciding(settings: Settings) -> list[Setting]:
    """The settings that decide what stands in Redis, and how writes are captured."""
    deciding = {f.name for f in fields() if f.metadata["identity"]} | {"capture", "accept"}
    return [Setting(*shown) for shown in settings.shown() if shown[0] in deciding]

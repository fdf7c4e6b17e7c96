"""measure: what a read costs today and from Redis, with the table's own rows, from this machine. Reads only.

The ways are interleaved, key by key in another order each time, so that a busy moment strikes all of them.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson
from psycopg import sql

from cachemig.config import Settings
from cachemig.entries.codec import decode
from cachemig.errors import Refused, TargetError
from cachemig.progress import Progress
from cachemig.service import CacheService
from cachemig.source import control, queries, scan
from cachemig.source.connect import Connection, connect, source_errors
from cachemig.source.table import Table, inspect
from cachemig.stop import Stop
from cachemig.targets.faults import target_errors
from cachemig.targets.redis import RedisTarget

KEYS = 100
ROUNDS = 3
LIST_ROWS = 50
DATABASE_GOAL_MS, CACHE_GOAL_MS = 200.0, 50.0
"""What the owner asked for: from 200 ms by the database to 50 ms by the cache."""

WHOLE_ROW = "SELECT *"
COLUMN = "SELECT column"
COLUMN_ORJSON = "SELECT column::text, orjson"
OTHERS = "SELECT all but the column"
REDIS = "Redis GET, json"
REDIS_ORJSON = "Redis GET, orjson"
SERVICE = "CacheService.get, from Redis"
LIST_WHOLE = f"list of {LIST_ROWS} rows, SELECT *"
LIST_OTHERS = f"list of {LIST_ROWS} rows, all but the column"


@dataclass(frozen=True)
class Way:
    """One way to read, in milliseconds; `n` reads."""

    name: str
    n: int
    p50: float
    p95: float
    p99: float

    @staticmethod
    def of(name: str, milliseconds: Sequence[float]) -> Way:
        """Nearest ranks of at least one figure."""
        ordered = sorted(milliseconds)

        def rank(share: float) -> float:
            return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)

        return Way(name, len(ordered), rank(0.5), rank(0.95), rank(0.99))


@dataclass
class Measured:
    """What was measured. `hits` of `keys` were in Redis; the Redis ways count those alone."""

    keys: int
    hits: int
    bytes_median: int
    ways: list[Way] = field(default_factory=list)
    redis_bytes: int | None = None
    """Redis's used_memory."""
    bytes_per_key: int | None = None
    """What Redis says that a value takes with all that belongs to it, the median."""
    advice: list[str] = field(default_factory=list)

    def way(self, name: str) -> Way | None:
        return next((way for way in self.ways if way.name == name), None)

    def ratio(self, slow: str, fast: str) -> float | None:
        """How many times as long the median of the one takes as that of the other."""
        one, other = self.way(slow), self.way(fast)
        return round(one.p50 / other.p50, 1) if one and other and other.p50 > 0 else None

    def document(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "ratios": {
                f"{WHOLE_ROW} / {name}": self.ratio(WHOLE_ROW, name) for name in (COLUMN, REDIS_ORJSON, SERVICE)
            },
            "goal_ms": {"database": DATABASE_GOAL_MS, "cache": CACHE_GOAL_MS},
        }


def measure(
    settings: Settings, target: RedisTarget, stop: Stop, *, keys: int = KEYS, rounds: int = ROUNDS
) -> Generator[Progress, None, Measured]:
    """Reads some keys at random in every way. Raises Refused where no row holds a value."""
    with connect(settings) as conn:
        table = inspect(conn, settings)
        control.require(conn, settings)
        chosen = scan.sampled_keys(conn, table, keys)
        if not chosen:
            raise Refused(f"no row of {table.qualified} holds a value", hint="cachemig plan")
        sizes = [
            len(_one(conn, queries.query("measure", "text", **_parts(table), wanted=sql.Literal(k)))) for k in chosen
        ]
        in_redis = {key for key in chosen if _value(target, key) is not None}
        result = Measured(len(chosen), len(in_redis), sorted(sizes)[len(sizes) // 2])
        with _from_redis(settings) as service:
            ways = _ways(conn, table, target, service)
            taken: dict[str, list[float]] = {name: [] for name in ways}
            total = rounds * len(chosen)
            for number in range(total):
                stop.check("cachemig measure")
                key = chosen[number % len(chosen)]
                for name in random.sample(list(ways), len(ways)):
                    if name in (REDIS, REDIS_ORJSON, SERVICE) and key not in in_redis:
                        continue
                    began = time.perf_counter()
                    ways[name](key)
                    taken[name].append((time.perf_counter() - began) * 1000)
                if number % 20 == 0:
                    yield Progress(number, total, "reads")
        for name, read in _lists(conn, table).items():
            for _ in range(rounds):
                began = time.perf_counter()
                read()
                taken.setdefault(name, []).append((time.perf_counter() - began) * 1000)
        result.ways = [Way.of(name, figures) for name, figures in taken.items() if figures]
        _memory(target, sorted(in_redis)[:50], result)
    result.advice = advice(result)
    return result


def advice(result: Measured) -> list[str]:
    """Where the time goes, in plain words; the greatest win first."""
    said = []
    lists = result.ratio(LIST_WHOLE, LIST_OTHERS)
    if lists and lists >= 2:
        said.append(
            f"lists: do not select the column ({lists:,.0f} times as fast): that needs no cache, only the columns named"
        )
    cache = result.way(SERVICE) or result.way(REDIS_ORJSON)
    parser = result.ratio(COLUMN, COLUMN_ORJSON)
    if parser and parser >= 1.3:
        said.append(
            f"a faster parser alone makes the column's own read {parser:.1f} times as fast (orjson, of the text)"
        )
    column, whole = result.way(COLUMN_ORJSON), result.way(WHOLE_ROW)
    if cache and column and whole:
        if cache.p50 >= 0.8 * column.p50:
            said.append(
                f"a single read is no faster from the cache ({cache.p50:.2f} ms) than the column, selected alone and "
                f"parsed by orjson ({column.p50:.2f} ms): the win is a smaller table, expiry and less load on Postgres"
            )
        else:
            said.append(f"a single read: {whole.p50:.2f} ms by {WHOLE_ROW}, {cache.p50:.2f} ms from the cache")
        met = "met" if cache.p95 <= CACHE_GOAL_MS else "NOT met"
        said.append(f"goal of {CACHE_GOAL_MS:.0f} ms from the cache: {met}, p95 is {cache.p95:.2f} ms")
    if not result.hits:
        said.append("none of these keys is in Redis: cachemig backfill first")
    return said


def _from_redis(settings: Settings) -> CacheService:
    """Reads Redis whatever the phase, and registers nowhere: with a pinned phase it asks Postgres for nothing."""
    return CacheService.open(
        redis_url=settings.redis_url, name="measure", phase="redis-only", settings=settings.identity()
    )


# Ways to read -------------------------------------------------------------------------------------------------------


def _ways(
    conn: Connection, table: Table, target: RedisTarget, service: CacheService
) -> dict[str, Callable[[str], object]]:
    parts = _parts(table)

    def selects(name: str) -> Callable[[str], object]:
        return lambda key: conn.execute(queries.query("measure", name, **parts, wanted=sql.Literal(key))).fetchone()

    return {
        WHOLE_ROW: selects("row"),  # psycopg parses json and jsonb as it fetches
        COLUMN: selects("column"),
        COLUMN_ORJSON: lambda key: orjson.loads(
            _one(conn, queries.query("measure", "text", **parts, wanted=sql.Literal(key)))
        ),
        OTHERS: selects("others"),
        REDIS: lambda key: json.loads(_value(target, key) or b"null"),
        REDIS_ORJSON: lambda key: orjson.loads(_value(target, key) or b"null"),
        SERVICE: service.get,
    }


def _lists(conn: Connection, table: Table) -> dict[str, Callable[[], object]]:
    parts = _parts(table)
    return {
        LIST_WHOLE: lambda: conn.execute(
            queries.query("measure", "list", **parts, limit=sql.Literal(LIST_ROWS))
        ).fetchall(),
        LIST_OTHERS: lambda: conn.execute(
            queries.query("measure", "list_others", **parts, limit=sql.Literal(LIST_ROWS))
        ).fetchall(),
    }


def _parts(table: Table) -> dict[str, sql.Composable]:
    others = [sql.SQL("n.{}").format(sql.Identifier(c)) for c in table.columns if c != table.settings.column]
    kept = ("table", "key", "column", "n_nonempty", "n_order")
    return {
        **{name: table.parts[name] for name in kept},
        "key_type": table.key_type,
        "others": sql.SQL(", ").join(others) if others else sql.SQL("NULL"),
    }


def _one(conn: Connection, query: sql.Composed) -> str:
    with source_errors():
        row = conn.execute(query).fetchone()
    return str(row[0]) if row else "null"


def _value(target: RedisTarget, key: str) -> bytes | None:
    (found,) = target.ask([("GET", target.template.name(key))])
    return bytes(decode(found)) if isinstance(found, bytes) else None


def _memory(target: RedisTarget, keys: Sequence[str], result: Measured) -> None:
    """What Redis holds in all, and for one of these keys; it may not let everybody ask."""
    try:
        with target_errors():
            result.redis_bytes = sum(int(server.client.info("memory")["used_memory"]) for server in target.servers())
            sizes = sorted(
                int(size or 0) for size in target.ask([("MEMORY", "USAGE", target.template.name(key)) for key in keys])
            )
            result.bytes_per_key = sizes[len(sizes) // 2] if sizes else None
    except TargetError:
        pass

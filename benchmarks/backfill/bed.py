"""The servers, the tables and the migrations that are measured."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import psycopg
import redis
from psycopg import sql

from benchmarks.backfill.processes import Meter
from benchmarks.capture import DURABLE
from cachemig.config import Settings, load
from cachemig.demo.payloads import HEAD, analytics
from cachemig.demo.servers import PostgresServer, RedisServer
from cachemig.source import control
from cachemig.source.connect import connect
from cachemig.steps import clean, dual_write, init
from cachemig.targets.redis import RedisTarget

# As a server that must not lose a commit runs, with room for the tables: what is measured is not its disk.
SETTINGS: Mapping[str, str] = MappingProxyType({**DURABLE, "shared_buffers": "3GB", "max_wal_size": "16GB"})
PREFIX = "analysis:"
MIDDLE = "80000000-0000-0000-0000-000000000000"
"""Halves the primary keys, which are random."""
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Size:
    """A table of `rows` values; of `pool` different ones, since neither server gains by their being equal."""

    name: str
    title: str
    rows: int
    pool: int
    sample: int
    """Rows of the naive scripts."""
    part: int
    """Rows of the smaller table, on which safeguards are turned off."""
    shapes: tuple[str, ...] = ("object",)


@dataclass(frozen=True)
class Loaded:
    """A table, and what went into it."""

    size: Size
    table: str
    rows: int
    nbytes: int
    values: Sequence[bytes] = field(repr=False)
    """The pool's values as Postgres prints them; row n holds value n % len(values)."""
    largest: int

    def key(self, n: int) -> str:
        return _key(self.size, n)

    def halves(self) -> tuple[str, str]:
        return f"id < '{MIDDLE}'", f"id >= '{MIDDLE}'"


@dataclass
class Bed:
    directory: Path
    dsn: str
    redis_url: str
    socket: Path
    admin: psycopg.Connection[tuple[Any, ...]]
    redis: redis.Redis
    meter: Meter
    _last: Settings | None = None

    @classmethod
    def start(cls, stack: ExitStack, directory: Path) -> Bed:
        postgres = stack.enter_context(PostgresServer(directory, settings=SETTINGS))
        server = stack.enter_context(RedisServer(directory))
        admin = stack.enter_context(psycopg.connect(postgres.dsn(), autocommit=True))
        client = stack.enter_context(redis.Redis.from_url(server.url))
        admin.execute((files("cachemig.demo") / "schema.sql").read_bytes())
        for name in ("run", "init"):
            (directory / name).mkdir()
        meter = Meter(postgres.pid, server.pid)
        return cls(directory, postgres.dsn(), server.url, directory / "redis.sock", admin, client, meter)

    # Tables ------------------------------------------------------------------------------------------------------

    def load(self, size: Size) -> tuple[Loaded, Loaded]:
        """The table and its smaller part."""
        pool = f"pool_{size.name.lower()}"
        self._execute("CREATE TABLE {pool} (n integer PRIMARY KEY, value jsonb)", pool=pool)
        with (
            self.admin.cursor() as cursor,
            cursor.copy(sql.SQL("COPY {} FROM STDIN").format(sql.Identifier(pool))) as copy,
        ):
            rng = Random(size.name)  # noqa: S311 - the same values every time, not cryptography
            for n in range(size.pool):
                copy.write_row((n, json.dumps(value(size.name, rng, (n + 0.5) / size.pool), ensure_ascii=False)))
        query = sql.SQL("SELECT value::text FROM {} ORDER BY n").format(sql.Identifier(pool))
        values = [str(row[0]).encode() for row in self.admin.execute(query)]
        loaded = []
        for table, rows in ((f"sessions_{size.name.lower()}", size.rows), (f"part_{size.name.lower()}", size.part)):
            self._execute("CREATE TABLE {table} (LIKE therapy_sessions INCLUDING ALL)", table=table)
            self._execute(
                "INSERT INTO {table} (patient_code, file_path, file_hash, analytics_cache, last_accessed_at)"
                " SELECT 'p', 'f', encode(sha256(convert_to({size} || ' ' || i, 'UTF8')), 'hex'), p.value,"
                " now() - random() * interval '25 days'"
                " FROM generate_series(0, {last}) AS i JOIN {pool} AS p ON p.n = i % {of}",
                table=table,
                pool=pool,
                size=sql.Literal(size.name),
                last=sql.Literal(rows - 1),
                of=sql.Literal(size.pool),
            )
            self._execute("VACUUM (ANALYZE, FREEZE) {table}", table=table)
            nbytes = sum(len(values[n % size.pool]) for n in range(rows))
            loaded.append(Loaded(size, table, rows, nbytes, values, max(map(len, values))))
        self.admin.execute("CHECKPOINT")
        return loaded[0], loaded[1]

    def change(self, table: Loaded, number: int) -> None:
        """As many committed writes of the application."""
        self._execute(
            "UPDATE {table} SET analytics_cache = analytics_cache || '{{\"reviewed\": true}}'"
            " WHERE id IN (SELECT id FROM {table} LIMIT {number})",
            table=table.table,
            number=sql.Literal(number),
        )

    def rest(self, table: Loaded) -> None:
        self._execute("VACUUM {table}", table=table.table)
        self.admin.execute("CHECKPOINT")

    def _execute(self, query: str, **parts: str | sql.Composable) -> None:
        composed = {name: sql.Identifier(part) if isinstance(part, str) else part for name, part in parts.items()}
        self.admin.execute(sql.SQL(query).format(**composed))

    # Migrations --------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        self.redis.flushall(asynchronous=False)

    def environment(self, table: Loaded, **settings: str) -> dict[str, str]:
        """Of a process of the tool; the tool's own names in the rest of the environment are not for it."""
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("PG", "CACHEMIG_")) and k != "CACHE_TTL_SECONDS"
        }
        named = {"dsn": self.dsn, "redis_url": self.redis_url, "table": table.table, "shape": "object", **settings}
        return {**kept, "PYTHONPATH": str(_ROOT), **{f"CACHEMIG_{name.upper()}": text for name, text in named.items()}}

    def migrate(self, environment: Mapping[str, str]) -> None:
        """An empty Redis, and a migration that has just begun to capture: no run gains by an earlier one."""
        self.abandon()
        settings = load({}, environment)
        with RedisTarget(settings, {}) as target:
            init.init(settings, target, self.directory / "init")
            for _ in dual_write.switch(settings, target, enable=True):
                pass
        self._last = settings

    def abandon(self) -> None:
        """No migration, no capture, an empty Redis."""
        self.flush()
        if self._last is None:
            return
        with RedisTarget(self._last, {}) as target:
            with connect(self._last) as conn:
                begun = control.find(conn) is not None
            if begun:
                for _ in dual_write.switch(self._last, target, enable=False):
                    pass
                for _ in clean.clean(self._last, target, execute=True):
                    pass
        self._last = None
        self.flush()


def tool(*arguments: str, module: str = "cachemig") -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def value(size: str, rng: Random, rank: float) -> dict[str, object]:
    """A payload. Its numbers are doubles in full precision, as those of signals are."""
    if size == "S":
        return {"channels": ["CH1"], "signal": [rng.random() * 0.004 for _ in range(87)]}
    if size == "M":
        return analytics(rng, HEAD, 19 + int(20 * rng.random()))
    numbers = round(100_000 * 10 ** (rank**3) * 0.97 - 12_000) // (4 * 24)
    payload = analytics(rng, HEAD, 24)
    payload["emg_signals"] = {
        base: {
            "sampling_rate_hz": 990.0,
            "raw": [(rng.random() - 0.5) * 0.004 for _ in range(numbers)],
            "envelope": [rng.random() * 0.0004 for _ in range(numbers)],
        }
        for base in ("CH1", "CH2")
    }
    return payload


def _key(size: Size, n: int) -> str:
    """64 hex digits, as the application's file_hash."""
    return hashlib.sha256(f"{size.name} {n}".encode()).hexdigest()

"""A migration in miniature: a table, its settings, and an oracle that shares no code with the tool."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import psycopg
import pytest
from redis import Redis
from redis.cluster import RedisCluster as ClusterClient

from cachemig.config import Settings, load
from cachemig.progress import Progress
from cachemig.steps import backfill, dual_write, init, sync, verify
from cachemig.stop import Stop
from cachemig.targets.address import address_of
from cachemig.targets.open import open_target
from tests.conftest import Servers
from tests.integration.cluster import RedisCluster, running_cluster

T = TypeVar("T")

TABLE = """
CREATE TABLE sessions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    file_hash text,
    cache jsonb DEFAULT '{}',
    hits int NOT NULL DEFAULT 0,
    seen_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON sessions (file_hash);
"""


def finish(step: Generator[Progress, None, T]) -> T:
    """Runs a step to its end and returns its result."""
    while True:
        try:
            next(step)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def client_of(url: str) -> Redis:
    """A client that returns bytes, of one server, of a cluster or of the primary that sentinels know."""
    address = address_of(url)
    if address.kind == "cluster":
        return cast(Redis, ClusterClient.from_url(address.url(address.nodes[0])))
    return open_target(load({"redis_url": url}, {}), {}).client if address.kind == "sentinel" else Redis.from_url(url)


class Migrating:
    """One table on its way to Redis."""

    def __init__(self, dsn: str, redis_url: str, prefix: str, directory: Path) -> None:
        self.dsn = dsn
        self.redis_url = redis_url
        self.prefix = prefix
        self.directory = directory
        self.conn = psycopg.connect(dsn, autocommit=True)
        self.redis = client_of(redis_url)
        self.settings = self.set()
        self.target = open_target(self.settings, {})

    def set(self, **settings: str) -> Settings:
        """Takes these settings into use, over those for the table of this module."""
        flags: dict[str, str | None] = {
            "table": "sessions",
            "column": "cache",
            "shape": "object",
            "ttl_from": "seen_at",
            "grace": "50ms",
            "lock_timeout": "200ms",
            "key_template": f"{self.prefix}{{key}}",
            **settings,
        }
        environment = {"CACHEMIG_DSN": self.dsn, "CACHEMIG_REDIS_URL": self.redis_url}
        self.settings = load(flags, environment, None)
        if hasattr(self, "target"):
            self.target.close()
        self.target = open_target(self.settings, {})
        return self.settings

    def use_redis(self, url: str) -> None:
        """Looks into another Redis from now on."""
        self.redis.close()
        self.redis = Redis.from_url(url)

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        cursor = self.conn.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []

    def put(self, key: str | None, value: Any, *, seen_at: str | None = None) -> int:
        """A new row; the value is given as Python or, if a str, as JSON text."""
        text = value if isinstance(value, str) or value is None else json.dumps(value)
        return int(
            self.execute(
                "INSERT INTO sessions (file_hash, cache, seen_at) VALUES (%s, %s, %s) RETURNING id", key, text, seen_at
            )[0][0]
        )

    def begin(self) -> None:
        init.init(self.settings, self.target, self.directory)
        finish(dual_write.switch(self.settings, self.target, enable=True))

    def backfill(self, *, restart: bool = False) -> backfill.Backfilled:
        return finish(backfill.backfill(self.settings, self.target, Stop(), restart=restart))

    def sync(self) -> sync.Synced:
        return finish(sync.sync(self.settings, self.target, Stop(), follow=False))

    def verify(self, **options: Any) -> verify.Verified:
        return finish(verify.verify(self.settings, self.target, Stop(), **options))

    def marks(self) -> list[str]:
        """Keys of the changes that are not delivered, in order."""
        return [row[0] for row in self.execute("SELECT key FROM cachemig.change ORDER BY id")]

    def in_redis(self) -> dict[str, bytes]:
        """Everything under the prefix."""
        found = {}
        for name in self.redis.scan_iter(match=f"{self.prefix}*", count=1000):
            value = self.redis.get(name)
            if isinstance(value, bytes):
                found[name.decode().removeprefix(self.prefix)] = value
        return found

    def in_postgres(self) -> dict[str, bytes]:
        """What Redis is to hold: of each key the newest row with a value, as Postgres prints it."""
        rows = self.execute("""
            SELECT DISTINCT ON (file_hash) file_hash, cache::text FROM sessions
            WHERE file_hash IS NOT NULL AND cache IS NOT NULL AND cache::text NOT IN ('{}', 'null')
            ORDER BY file_hash, created_at DESC
        """)
        return {key: text.encode() for key, text in rows}

    def close(self) -> None:
        self.conn.close()
        self.redis.close()
        self.target.close()


@pytest.fixture
def migrating(database: str, redis_url: str, prefix: str, tmp_path: Path) -> Iterator[Migrating]:
    """An empty table `sessions`, with the settings for it; nothing has begun."""
    case = Migrating(database, redis_url, prefix, tmp_path)
    case.execute(TABLE)
    yield case
    case.close()


@pytest.fixture(scope="session")
def redis_cluster(servers: Servers) -> Iterator[RedisCluster]:
    """A cluster that the tests of one worker share; each leaves every slot where it was."""
    with running_cluster(servers.programs.redis) as cluster:
        yield cluster


@pytest.fixture
def clustered(migrating: Migrating, redis_cluster: RedisCluster) -> Iterator[Migrating]:
    """`migrating` with the cluster as its target."""
    yield on(migrating, redis_cluster.url)
    for number in redis_cluster.masters():
        redis_cluster.do(number, "FLUSHALL")


def on(migrating: Migrating, url: str) -> Migrating:
    """The same with another Redis, of whatever kind."""
    migrating.redis_url = url
    migrating.redis.close()
    migrating.redis = client_of(url)
    migrating.set()
    return migrating

"""stop-writes, late writes and the way back, while workers, the rollback itself and Redis are killed.

Every key has one kind of writer, so that what must be there at the end is known: the last value that its writer saw
acknowledged, or a later one of which it had no answer.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import defaultdict
from pathlib import Path

import psycopg
import pytest

from cachemig.demo.servers import RedisServer
from cachemig.errors import CachemigError
from cachemig.service import CacheService, Options, Why
from tests.acceptance.conftest import Operator
from tests.conftest import OwnRedis

KEYS = 12
SETTINGS = {
    "CACHEMIG_SHAPE": "object", "CACHEMIG_TTL": "0", "CACHEMIG_SOAK_CUTOVER": "0s", "CACHEMIG_CLIENT_WAIT": "40s",
    "CACHEMIG_RETRY_FOR": "30s", "CACHEMIG_SHADOW_READS": "0", "CACHEMIG_TABLE": "sessions", "CACHEMIG_COLUMN": "cache",
    "CACHEMIG_CUTOVER_MAX_LAG": "60s",
}  # fmt: skip
TABLE = """
CREATE TABLE sessions (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, file_hash text UNIQUE, cache jsonb,
                       hits int NOT NULL DEFAULT 0, created_at timestamptz NOT NULL DEFAULT clock_timestamp())
"""


class Writer(threading.Thread):
    """Writes 1, 2, 3 … to keys of its own, and remembers what became of each."""

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name=name)
        self.keys = [f"{name}{n}" for n in range(KEYS)]
        self.acknowledged: dict[str, int] = dict.fromkeys(self.keys, 0)
        self.without_answer: dict[str, set[int]] = defaultdict(set)
        self.end = threading.Event()
        self.fault: BaseException | None = None
        self.writes = 0
        self._chance = random.Random(seed)

    def run(self) -> None:
        try:
            self.work()
        except BaseException as exc:  # told at the end
            self.fault = exc

    def work(self) -> None:
        raise NotImplementedError

    def next(self) -> tuple[str, int]:
        self.writes += 1
        return self._chance.choice(self.keys), self.writes

    def allowed(self, key: str) -> set[int]:
        least = self.acknowledged[key]
        return {least} | {n for n in self.without_answer[key] if n > least}


class Application(Writer):
    """By CacheService; what it reads after a write is not older than the write."""

    def __init__(self, name: str, seed: int, dsn: str, redis_url: str) -> None:
        super().__init__(name, seed)
        options = Options(poll_interval=0.1, redis_timeout=0.5, shadow_sample=0.0)
        self._cache = CacheService.open(dsn=dsn, redis_url=redis_url, environment={}, name=name, options=options)

    def work(self) -> None:
        with self._cache as cache:
            while not self.end.wait(0.003):
                key, n = self.next()
                try:
                    cache.put(key, {"n": n})
                    self.acknowledged[key] = n
                except CachemigError:
                    self.without_answer[key].add(n)
                entry = cache.get_entry(key)
                # Behind: the column is frozen, and sync has not delivered this client's last write to it yet. A miss.
                if not entry.unreachable and entry.why is not Why.BEHIND:
                    assert entry.found, (key, self.acknowledged[key], entry)
                    assert entry.value["n"] >= self.acknowledged[key], (key, self.acknowledged[key], entry)


class OldProgram(Writer):
    """Writes the column, whatever the phase; knows nothing of Redis."""

    def __init__(self, name: str, seed: int, dsn: str) -> None:
        super().__init__(name, seed)
        self._dsn = dsn

    def work(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True, application_name=self.name) as conn:
            while not self.end.wait(0.02):
                key, n = self.next()
                conn.execute(
                    "UPDATE sessions SET cache = jsonb_build_object('n', %s::int), hits = 1 WHERE file_hash = %s",
                    (n, key),
                )
                self.acknowledged[key] = n


@pytest.mark.parametrize(("seed", "seconds"), [pytest.param(n, 8.0, marks=pytest.mark.long) for n in range(1, 12)])
def test_nothing_that_was_acknowledged_is_lost(
    database: str, own_redis: OwnRedis, prefix: str, tmp_path: Path, seed: int, seconds: float
) -> None:
    chance = random.Random(seed)
    server = own_redis({"appendonly": "yes", "appendfsync": "always"}, tcp=True)
    operator = Operator(tmp_path, database, server.url, prefix)
    operator.environment |= SETTINGS
    applications = {"new-": 1, "other-": 2}
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(TABLE)
        conn.execute(
            "INSERT INTO sessions (file_hash, cache) SELECT w || n, '{\"n\": 0}' FROM generate_series(0, %s) AS n,"
            " unnest(ARRAY['new-', 'other-', 'old-']) AS w", (KEYS - 1,),
        )  # fmt: skip
    for command in (
        ("init",),
        ("dual-write",),
        ("backfill",),
        ("verify",),
        ("cutover", "--percent", "100", "--no-clients"),
    ):
        operator.fine(*command)
    writers: list[Writer] = [Application(name, seed * 10 + n, database, server.url) for name, n in applications.items()]
    writers.append(OldProgram("old-", seed * 10, database))
    workers = [operator.start("sync", "--follow") for _ in range(2)]
    try:
        for writer in writers:
            writer.start()
        operator.fine("stop-writes", "--execute")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            _strike(chance, operator, workers, server)
        for _ in range(3):
            going = operator.start("rollback")
            time.sleep(chance.uniform(0.5, 1.8))
            _strike(chance, operator, workers, server)
            going.kill()
            going.communicate()
        # Once more to dual-write would be a step further: only where it is on its way still.
        if b"redis-only" in _phase(database):
            operator.fine("rollback")
        time.sleep(0.3)
    finally:
        for writer in writers:
            writer.end.set()
        for writer in writers:
            if writer.ident:
                writer.join(60)
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert [writer.fault for writer in writers] == [None] * 3
    operator.fine("sync", "--once")
    operator.fine("backfill")
    operator.fine("verify")
    with psycopg.connect(database, autocommit=True) as conn:
        column: dict[str, int] = dict(conn.execute("SELECT file_hash, (cache ->> 'n')::int FROM sessions").fetchall())
        late = conn.execute("SELECT count(*) FROM cachemig.late_write WHERE outcome IS NULL").fetchall()
    wrong = {
        key: (column[key], writer.allowed(key))
        for writer in writers
        for key in writer.keys
        if column[key] not in writer.allowed(key)
    }
    assert (wrong, late) == ({}, [(0,)]), f"seed {seed}"
    assert min(writer.writes for writer in writers) > 20


def _phase(dsn: str) -> bytes:
    with psycopg.connect(dsn) as conn:
        row = conn.execute("SELECT phase FROM cachemig.migration").fetchone()
    assert row is not None
    return str(row[0]).encode()


def _strike(
    chance: random.Random, operator: Operator, workers: list[subprocess.Popen[str]], server: RedisServer
) -> None:
    """One fault, and a moment for it to be felt."""
    match chance.choice(("worker", "worker", "freeze", "redis")):
        case "worker":
            at = chance.randrange(len(workers))
            workers[at].kill()
            workers[at].communicate()
            workers[at] = operator.start("sync", "--follow")
        case "freeze":
            worker = chance.choice(workers)
            os.kill(worker.pid, signal.SIGSTOP)
            time.sleep(chance.uniform(0.1, 0.6))
            os.kill(worker.pid, signal.SIGCONT)
        case "redis":
            server.kill()
            time.sleep(chance.uniform(0.0, 0.3))
            server.start()
    time.sleep(chance.uniform(0.1, 0.6))

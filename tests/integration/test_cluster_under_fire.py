"""A cluster that changes while a writer, sync and backfill are at work: slots move, and masters are lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from cachemig.errors import Interrupted
from cachemig.steps import backfill as backfill_step
from cachemig.steps import sync as sync_step
from cachemig.stop import Stop
from cachemig.targets.keys import slot
from cachemig.targets.open import open_target
from tests.conftest import Servers
from tests.integration.cluster import RedisCluster, running_cluster, wait_for
from tests.integration.conftest import Migrating, client_of, finish, on

pytestmark = pytest.mark.long

KEYS = 3000


@pytest.fixture
def cluster(servers: Servers) -> Iterator[RedisCluster]:
    with running_cluster(servers.programs.redis, {"cluster-node-timeout": "1500"}) as cluster:
        yield cluster


@pytest.fixture
def filled(migrating: Migrating, cluster: RedisCluster) -> Migrating:
    """A table of many keys, some large, none of them in the cluster yet."""
    on(migrating, cluster.url)
    migrating.set(chunk_bytes="64KiB", batch_bytes="64KiB", redis_timeout="5s", retry_for="60s")
    migrating.execute(
        "INSERT INTO sessions (file_hash, cache) SELECT 'k' || n, jsonb_build_object('v', 0, 'x',"
        " repeat('y', CASE WHEN n %% 50 = 0 THEN 30000 ELSE 20 END)) FROM generate_series(1, %s) n",
        KEYS,
    )
    migrating.begin()
    return migrating


class Busy:
    """A writer and a sync that follows, until `with` ends; an error of either is raised then."""

    def __init__(self, case: Migrating) -> None:
        self.case = case
        self.stop = Stop()
        self.writes = 0
        self.errors: list[BaseException] = []

    def _write(self) -> None:
        chance = random.Random(7)
        with psycopg.connect(self.case.dsn, autocommit=True) as conn:
            while not self.stop.requested:
                key = f"k{chance.randint(1, KEYS)}"
                what = chance.random()
                if what < 0.1:
                    conn.execute("UPDATE sessions SET cache = '{}' WHERE file_hash = %s", [key])
                else:
                    conn.execute(
                        "UPDATE sessions SET cache = jsonb_build_object('v', %s::int, 'x', %s::text)"
                        " WHERE file_hash = %s",
                        [self.writes, "z" * (20_000 if what > 0.95 else 10), key],
                    )
                self.writes += 1
                time.sleep(0.002)

    def _sync(self) -> None:
        with open_target(self.case.settings, {}) as target:
            finish(sync_step.sync(self.case.settings, target, self.stop, follow=True))

    def _backfill(self) -> None:
        with open_target(self.case.settings, {}) as target:
            for _ in range(3):
                if not self.stop.requested:
                    finish(backfill_step.backfill(self.case.settings, target, self.stop, restart=True))

    def _run(self, work: Any) -> None:
        try:
            work()
        except Interrupted:
            pass
        except BaseException as exc:
            self.errors.append(exc)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        threads = [
            threading.Thread(target=self._run, args=(work,)) for work in (self._write, self._sync, self._backfill)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.request(15)
            for thread in threads:
                thread.join()
        assert self.errors == []


def ends_well(case: Migrating) -> None:
    """Everything is delivered in the end, and verify finds nothing bad; with an oracle that does not share its code."""
    case.sync()
    case.backfill()
    case.sync()
    assert case.marks() == []
    case.redis.close()
    case.redis = client_of(case.redis_url)  # the oracle's own scan goes to the masters that it knew at first
    assert case.in_redis() == case.in_postgres()
    assert case.verify().outcome.passed


def test_slots_that_move_to_and_fro(filled: Migrating, cluster: RedisCluster) -> None:
    busy = Busy(filled)
    chance = random.Random(3)
    numbers = [slot(f"{filled.prefix}k{n}".encode()) for n in range(1, 100)]
    moved = 0
    with busy.at_work():
        until = time.monotonic() + 20
        while time.monotonic() < until:
            number = chance.choice(numbers)
            target = chance.choice([n for n in range(3) if n != cluster.owner(number)])
            cluster.move_slot(number, target, pause_s=chance.choice([0, 0.02, 0.1]))
            moved += 1
    assert moved > 50
    assert busy.writes > 500
    assert filled.execute("SELECT epoch FROM cachemig.migration") == [(0,)]  # nothing was lost
    ends_well(filled)


def test_a_new_master_that_takes_slots_under_load(servers: Servers, filled: Migrating) -> None:
    with running_cluster(servers.programs.redis, spare=1) as wide:
        on(filled, wide.url)
        filled.sync()  # another Redis: a new epoch
        busy = Busy(filled)
        with busy.at_work():
            time.sleep(1)
            for number in range(0, 16384, 40):
                wide.move_slot(number, 6)
        ends_well(filled)
        assert len((filled.target.identity().run or "").split()) == 4


def test_a_master_that_is_killed_and_its_replica_takes_over(filled: Migrating, cluster: RedisCluster) -> None:
    busy = Busy(filled)
    with busy.at_work():
        time.sleep(1.5)
        cluster.servers[1].kill()
        wait_for(lambda: 4 in cluster.masters())
        time.sleep(2)
        cluster.servers[1].start()  # comes back as a replica
        wait_for(lambda: cluster.info(1)["role"] == "slave" and cluster.info(1)["master_link_status"] == "up")
        time.sleep(1)
    ends_well(filled)
    assert filled.execute("SELECT epoch > 0 FROM cachemig.migration") == [(True,)]  # something may have been lost


def test_a_failover_on_purpose_and_back(filled: Migrating, cluster: RedisCluster) -> None:
    busy = Busy(filled)
    with busy.at_work():
        for replica, master in ((3, 0), (0, 3)):
            time.sleep(1.5)
            wait_for(lambda link=replica: cluster.info(link).get("master_link_status") == "up")  # type: ignore[misc]
            cluster.do(replica, "CLUSTER", "FAILOVER")
            wait_for(lambda new=replica, old=master: new in cluster.masters() and old not in cluster.masters())  # type: ignore[misc]
    ends_well(filled)


def test_a_master_that_hangs(filled: Migrating, cluster: RedisCluster) -> None:
    """It answers nobody, and is a replica when it wakes up."""
    busy = Busy(filled)
    with busy.at_work():
        time.sleep(1)
        cluster.freeze(2)
        try:
            wait_for(lambda: 5 in cluster.masters())
            time.sleep(3)
        finally:
            cluster.thaw(2)
        time.sleep(2)
    ends_well(filled)

"""CacheService on a Redis Cluster: every call, while slots move, and with a master that is lost."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from cachemig.ladder import Phase
from cachemig.service import WriteFailed
from cachemig.service.results import Source
from cachemig.targets.keys import slot
from tests.conftest import Servers
from tests.integration.cluster import RedisCluster, running_cluster, wait_for
from tests.integration.conftest import Migrating, on
from tests.integration.serving import move, opened, opened_sync, run

KEYS = {"tiny": 2, "large": 20_000, "{braced}": 200, **{f"k{n}": 10 for n in range(10)}}


@pytest.fixture
def ready(clustered: Migrating) -> Migrating:
    """Everything is in the cluster already; phase cutover."""
    for key, size in KEYS.items():
        clustered.put(key, {"x": "y" * size})
    clustered.begin()
    clustered.backfill()
    move(clustered, Phase.CUTOVER)
    return clustered


def test_every_call_in_every_phase(ready: Migrating) -> None:
    for phase in (Phase.DUAL_WRITE, Phase.CUTOVER, Phase.REDIS_ONLY):
        move(ready, phase)
        with opened_sync(ready) as cache:
            assert cache.health().redis_reachable
            for key in ("tiny", "large", "{braced}"):
                assert cache.put(key, {"x": "z" * KEYS[key], "in": phase.value}).delivered
                entry = cache.get_entry(key)
                assert entry.value == {"x": "z" * KEYS[key], "in": phase.value}
                assert entry.source is (Source.COLUMN if phase is Phase.DUAL_WRITE else Source.REDIS)
            assert [value["x"][:1] for value in cache.get_many(KEYS)] == ["z"] * 3 + ["y"] * 10
            assert cache.invalidate("tiny").delivered
            assert cache.get("tiny") is None
            assert cache.get_or_compute("tiny", lambda: {"x": "new"}) == {"x": "new"}
            assert cache.get("tiny") == {"x": "new"}
            assert cache.get_or_compute("nobody", lambda: None) is None
            if phase is Phase.CUTOVER:
                ready.redis.delete(f"{ready.prefix}k1", f"{ready.prefix}k2")
                assert cache.warm(KEYS) == 2


def test_every_call_of_the_other_class(ready: Migrating) -> None:
    async def work() -> None:
        async with await opened(ready) as cache:
            assert (await cache.health()).redis_reachable
            assert len(await cache.get_many(KEYS)) == len(KEYS)
            assert (await cache.put("large", {"x": "w" * 30_000})).delivered
            assert (await cache.get_entry("large")).source is Source.REDIS
            assert (await cache.invalidate("large")).delivered
            assert (await cache.get("large")) is None

            async def load() -> Any:
                return {"x": "loaded"}

            assert (await cache.get_or_compute("large", load)) == {"x": "loaded"}

    run(work)
    assert ready.in_redis() == ready.in_postgres()


def test_what_it_writes_is_fenced_in_its_slot(ready: Migrating) -> None:
    """The marker that its scripts look at is the one that the command line has planted."""
    with opened_sync(ready) as cache:
        ready.target.plant_marker(7)
        assert not cache.put("tiny", {"x": 1}).delivered
        move(ready, Phase.REDIS_ONLY)
        wait_for(lambda: cache.health().phase is Phase.REDIS_ONLY)
        with pytest.raises(WriteFailed):
            cache.put("tiny", {"x": 2})


def test_a_slot_that_is_half_way(ready: Migrating, redis_cluster: RedisCluster) -> None:
    number = slot(f"{ready.prefix}tiny".encode())
    with opened_sync(ready) as cache:
        assert cache.get_entry("tiny").source is Source.REDIS
        home = redis_cluster.owner(number)
        away = (home + 1) % 3
        redis_cluster.open_slot(number, away)
        try:
            redis_cluster.move_keys(number, home, away, most=1)
            for key in KEYS:  # reads follow, of each key alone and of all together
                assert cache.get_entry(key).source is Source.REDIS
            assert len(cache.get_many(KEYS)) == len(KEYS)
            assert cache.put("tiny", {"x": "on its way"}).stored  # in Redis now, or by sync in a moment
            while redis_cluster.move_keys(number, home, away):
                pass
            redis_cluster.close_slot(number, home, away)
            assert cache.put("tiny", {"x": "arrived"}).delivered  # by MOVED
            assert cache.get_entry("tiny").source is Source.REDIS
            assert cache.health().breaker == "closed"
        finally:
            if redis_cluster.owner(number) == away:
                redis_cluster.move_slot(number, home)
        assert cache.get_entry("tiny").value == {"x": "arrived"}
    ready.sync()
    assert ready.in_redis() == ready.in_postgres()


@pytest.mark.long
def test_a_master_that_is_killed_under_an_application(servers: Servers, migrating: Migrating) -> None:
    with running_cluster(servers.programs.redis, {"cluster-node-timeout": "1500"}) as cluster:
        on(migrating, cluster.url)
        for key, size in KEYS.items():
            migrating.put(key, {"x": "y" * size})
        migrating.begin()
        migrating.backfill()
        move(migrating, Phase.CUTOVER)
        last: dict[str, int] = {}
        wrong: list[str] = []
        done = threading.Event()
        with opened_sync(migrating) as cache:

            def work(mine: list[str]) -> None:
                number = 0
                while not done.is_set():
                    for key in mine:
                        number += 1
                        cache.put(key, {"n": number})
                        last[key] = number
                        if (found := cache.get(key)) != {"n": number}:
                            wrong.append(f"{key}: {found}, not {number}")

            keys = list(KEYS)
            threads = [threading.Thread(target=work, args=(keys[n::3],)) for n in range(3)]
            for thread in threads:
                thread.start()
            time.sleep(1)
            cluster.servers[0].kill()
            wait_for(lambda: 3 in cluster.masters())
            time.sleep(3)
            done.set()
            for thread in threads:
                thread.join()
            assert wrong == []
            migrating.sync()  # a new epoch
            migrating.backfill()
            wait_for(lambda: all(cache.get_entry(key).source is Source.REDIS for key in KEYS))
            assert {key: cache.get(key) for key in KEYS} == {key: {"n": last[key]} for key in KEYS}
        migrating.sync()
        assert migrating.in_redis() == migrating.in_postgres()
        assert migrating.verify().outcome.passed

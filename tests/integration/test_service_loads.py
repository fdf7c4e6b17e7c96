"""get_or_compute: one load, in this process and among all; it loses against whatever was written meanwhile."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cachemig.ladder import Phase
from cachemig.service.companions import names
from tests.integration.conftest import Migrating
from tests.integration.serving import answering, move, opened, opened_sync, run, until

FILLED = (Phase.IDLE, Phase.DUAL_WRITE, Phase.CUTOVER, Phase.REDIS_ONLY)


@pytest.fixture
def ready(migrating: Migrating) -> Migrating:
    """Rows whose column is empty, in dual-write."""
    for key in ("a", "b"):
        migrating.put(key, {})
    migrating.begin()
    migrating.backfill()
    return migrating


@pytest.mark.parametrize("phase", FILLED)
def test_one_load_for_all_tasks(ready: Migrating, phase: Phase) -> None:
    move(ready, phase)

    async def work() -> None:
        loads = 0

        async def load() -> Any:
            nonlocal loads
            loads += 1
            await asyncio.sleep(0.1)
            return {"v": loads}

        async with await opened(ready) as cache:
            results = await asyncio.gather(*(cache.get_or_compute("a", load) for _ in range(100)))
            assert results == [{"v": 1}] * 100
            assert await cache.get_or_compute("a", load) == {"v": 1}
            assert loads == cache.stats()["loads"] == 1
            assert await cache.get("a") == {"v": 1}

    run(work)


@pytest.mark.parametrize("phase", FILLED)
def test_one_load_for_all_threads(ready: Migrating, phase: Phase) -> None:
    move(ready, phase)
    loads: list[int] = []

    def load() -> Any:
        loads.append(1)
        time.sleep(0.1)
        return {"v": 1}

    with opened_sync(ready) as cache, ThreadPoolExecutor(20) as threads:
        results = list(threads.map(lambda _: cache.get_or_compute("a", load), range(40)))
    assert results == [{"v": 1}] * 40
    assert len(loads) == 1


def test_an_error_of_the_loader_reaches_all_and_is_not_kept(ready: Migrating) -> None:
    async def work() -> None:
        async def fail() -> Any:
            await asyncio.sleep(0.05)
            raise LookupError("no recording")

        async def load() -> Any:
            return {"v": 1}

        async with await opened(ready) as cache:
            results = await asyncio.gather(*(cache.get_or_compute("a", fail) for _ in range(5)), return_exceptions=True)
            assert [type(result) for result in results] == [LookupError] * 5
            assert await cache.get_or_compute("a", load) == {"v": 1}
            cancelled = asyncio.create_task(cache.get_or_compute("b", fail))
            await asyncio.sleep(0.01)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled

    run(work)


def test_a_loader_that_asks_for_its_own_key_does_not_wait_for_itself(ready: Migrating) -> None:
    with opened_sync(ready, lease=1.0, wait_limit=0.1) as cache:
        assert cache.get_or_compute("a", lambda: cache.get_or_compute("a", lambda: {"v": 1})) == {"v": 1}


PROCESS = """
import sys, time
from cachemig.service import CacheService, Options
with CacheService.open(dsn=sys.argv[1], redis_url=sys.argv[2],
                       options=Options(redis_timeout=0.5, shadow_sample=0)) as cache:
    def load():
        print("load", flush=True)
        time.sleep(0.7)
        return {"v": 1}
    print("ready", flush=True)
    sys.stdin.readline()
    value = cache.get_or_compute("a", load)
    assert value == {"v": 1}, value
"""


@pytest.mark.long
@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.CUTOVER, Phase.REDIS_ONLY])
def test_one_load_for_all_processes(ready: Migrating, phase: Phase) -> None:
    move(ready, phase)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, ready.dsn, ready.redis_url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=30) for process in processes]
    assert [error for _, error in said] == [""] * 3
    assert "".join(out for out, _ in said).count("load") == 1


def test_a_lease_that_nobody_gives_back_is_waited_for_no_longer_than_that(ready: Migrating) -> None:
    own = names(ready.settings.key_template)
    with opened_sync(ready, wait_limit=0.3) as cache:
        ready.redis.set(own.lease("a"), "somebody who died", px=60_000)
        began = time.monotonic()
        assert cache.get_or_compute("a", lambda: {"v": 1}) == {"v": 1}
        assert 0.25 < time.monotonic() - began < 5
        assert cache.get("a") == {"v": 1}
        ready.redis.set(own.lease("b"), "somebody who died", px=200)
        assert cache.get_or_compute("b", lambda: {"v": 2}) == {"v": 2}
        assert not ready.redis.exists(own.lease("b"))


@pytest.mark.parametrize("by", ["put", "invalidate", "another-put", "another-invalidate", "sql"])
@pytest.mark.parametrize("phase", FILLED)
def test_what_is_written_during_a_load_wins(ready: Migrating, phase: Phase, by: str) -> None:
    if by == "sql" and phase in (Phase.REDIS_ONLY, Phase.IDLE):
        pytest.skip("there is no column; nothing marks a write before capture")
    if by == "another-invalidate" and phase is Phase.IDLE:
        pytest.skip("there is no version before capture, and what is empty stays empty")
    move(ready, phase)
    with opened_sync(ready) as cache, opened_sync(ready) as another:

        def load() -> Any:
            match by:
                case "put":
                    cache.put("a", {"v": "new"})
                case "invalidate":
                    cache.invalidate("a")
                case "another-put":
                    another.put("a", {"v": "new"})
                case "another-invalidate":
                    another.invalidate("a")
                case "sql":
                    ready.execute("UPDATE sessions SET cache = '{\"v\": \"new\"}' WHERE file_hash = 'a'")
            return {"v": "loaded from what was there before"}

        assert cache.get_or_compute("a", load) == {"v": "loaded from what was there before"}
        assert cache.stats()["refused_fills"] == 1
        expected = None if "invalidate" in by else {"v": "new"}
        if by == "sql":
            ready.sync()
        assert cache.get("a") == expected
        assert another.get("a") == expected
        assert cache.get_or_compute("a", lambda: {"v": "again"}) == (expected or {"v": "again"})


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.REDIS_ONLY])
def test_a_load_under_way_is_not_joined_after_an_invalidation(ready: Migrating, phase: Phase) -> None:
    """What it will find was read before: a read that begins after the invalidation must not get it."""
    move(ready, phase)
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Any:
        begun.set()
        go_on.wait(10)
        return {"v": "old"}

    with opened_sync(ready) as cache, ThreadPoolExecutor(1) as threads:
        first = threads.submit(cache.get_or_compute, "a", slow)
        begun.wait(10)
        cache.invalidate("a")
        assert cache.get_or_compute("a", lambda: {"v": "new"}) == {"v": "new"}
        go_on.set()
        assert first.result() == {"v": "old"}
        assert cache.get("a") == {"v": "new"}


def test_nothing_found_is_remembered_for_a_short_time(ready: Migrating) -> None:
    for phase in (Phase.DUAL_WRITE, Phase.CUTOVER, Phase.REDIS_ONLY):
        move(ready, phase)
        loads: list[int] = []

        def load(loads: list[int] = loads) -> Any:
            loads.append(1)

        with opened_sync(ready, negative_ttl=0.3) as cache, opened_sync(ready) as another:
            for _ in range(5):
                assert cache.get_or_compute("a", load) is None
                assert another.get_or_compute("a", load) is None
            assert len(loads) == 1
            assert not ready.in_redis()
            time.sleep(0.35)
            assert cache.get_or_compute("a", load) is None
            assert len(loads) == 2
            cache.invalidate("a")
            assert cache.get_or_compute("a", lambda: {"v": 1}) == {"v": 1}, "an invalidation takes the memory away"
            cache.invalidate("a")


def test_nothing_found_before_an_invalidation_is_not_remembered(ready: Migrating) -> None:
    with opened_sync(ready) as cache:
        assert cache.get_or_compute("a", lambda: cache.invalidate("a") and None) is None
        assert cache.get_or_compute("a", lambda: {"v": 1}) == {"v": 1}


def test_loads_are_capped_while_redis_is_dead(ready: Migrating) -> None:
    move(ready, Phase.REDIS_ONLY)

    async def work(url: str) -> None:
        now = most = 0

        async def load() -> Any:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.01)
            now -= 1
            return {"v": 1}

        async with await opened(ready, url, load_limit=4) as cache:
            results = await asyncio.gather(*(cache.get_or_compute(f"k{i}", load) for i in range(60)))
            assert results == [{"v": 1}] * 60
            assert most == 4

    with answering(None) as url:
        run(lambda: work(url))


# Expiry ------------------------------------------------------------------------------------------------------------


def test_a_stale_value_is_used_while_a_new_one_is_loaded(ready: Migrating) -> None:
    ready.execute('UPDATE cachemig.migration SET settings = settings || \'{"ttl": 0.5, "ttl_jitter": 0}\'')
    move(ready, Phase.REDIS_ONLY)
    with opened_sync(ready, stale_for=30.0, beta=0.0) as cache:
        assert cache.get_or_compute("a", lambda: {"v": 1}) == {"v": 1}
        assert not cache.get_entry("a").stale
        until(lambda: cache.get_entry("a").stale)
        loads: list[int] = []

        def load() -> Any:
            loads.append(1)
            time.sleep(0.2)
            return {"v": 2}

        began = time.monotonic()
        for _ in range(10):
            assert cache.get_or_compute("a", load) == {"v": 1}
        assert time.monotonic() - began < 0.2
        until(lambda: cache.get("a") == {"v": 2})
        assert len(loads) == 1
        assert json.loads(ready.in_redis()["a"]) == {"v": 2}
        until(lambda: cache.get_entry("a").stale)
        assert cache.get_or_compute("a", lambda: cache.put("a", {"v": "put"}) and {"v": 3}) == {"v": 2}
        until(lambda: cache.stats()["refused_fills"] == 1)
        assert cache.get("a") == {"v": "put"}


def test_an_entry_is_loaded_anew_before_it_ends(ready: Migrating) -> None:
    """XFetch: the nearer the end and the longer the load, the likelier; hits go on meanwhile."""
    ready.execute('UPDATE cachemig.migration SET settings = settings || \'{"ttl": 2, "ttl_jitter": 0}\'')
    move(ready, Phase.REDIS_ONLY)
    with opened_sync(ready, beta=20.0) as cache:
        loads: list[int] = []

        def load() -> Any:
            loads.append(1)
            time.sleep(0.1)
            return {"v": len(loads)}

        cache.get_or_compute("a", load)
        slowest, end = 0.0, time.monotonic() + 4
        while time.monotonic() < end:
            began = time.monotonic()
            assert cache.get_or_compute("a", load) is not None
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.01)
        assert len(loads) > 2
        assert cache.stats()["reads"]["redis"]["miss"] == 1, (len(loads), slowest, cache.stats())


def test_an_entry_far_from_its_end_is_left_alone(ready: Migrating) -> None:
    move(ready, Phase.REDIS_ONLY)
    with opened_sync(ready) as cache:
        cache.put("a", {"v": 1})
        for _ in range(50):
            assert cache.get_or_compute("a", lambda: pytest.fail("far from its end")) == {"v": 1}


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.REDIS_ONLY])
def test_the_phase_moves_during_a_load(ready: Migrating, phase: Phase) -> None:
    move(ready, Phase.DUAL_WRITE if phase is Phase.REDIS_ONLY else Phase.CUTOVER)
    with opened_sync(ready) as cache:

        def load() -> Any:
            move(ready, phase)
            until(lambda: cache.health().phase is phase)
            return {"v": 1}

        assert cache.get_or_compute("a", load) == {"v": 1}
        assert cache.get("a") in (None, {"v": 1})
    if phase is Phase.DUAL_WRITE:
        ready.sync()
        assert ready.in_redis() == ready.in_postgres()

"""Shadow reads: every verdict, and that nobody waits for them."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest

from cachemig.ladder import Phase
from cachemig.service import CacheService
from tests.integration.conftest import Migrating
from tests.integration.serving import answering, move, opened, opened_sync, run, until


@pytest.fixture
def ready(migrating: Migrating) -> Migrating:
    for key in ("a", "b"):
        migrating.put(key, {"v": key, "n": 1.10})
    migrating.begin()
    migrating.backfill()
    return migrating


def verdicts(cache: CacheService) -> dict[str, int]:
    return {verdict: n for verdict, n in cache.stats()["shadow"].items() if n}


def _acts_on(cache: CacheService, phase: Phase) -> bool:
    return cache.health().phase is phase


def sabotage(case: Migrating, what: str) -> None:
    name, version = f"{case.prefix}a", f"cachemig:v:{{{case.prefix}a}}"
    match what:
        case "equivalent":
            case.redis.set(name, b'{"n":1.1,  "v": "a"}')
        case "missing":
            case.redis.delete(name)
        case "mismatch":
            case.redis.set(name, b'{"v": "other"}')
        case "damaged":
            case.redis.set(name, b"\x1f\x8b--")
        case "behind":
            case.execute("UPDATE sessions SET cache = '{\"v\": 2}' WHERE file_hash = 'a'")
        case "resurrected":
            case.execute("UPDATE sessions SET cache = NULL WHERE file_hash = 'a'")
            case.sync()
            case.redis.set(name, b'{"v": "back"}')
        case "ahead":
            case.redis.set(name, b'{"v": "ahead"}')
            case.redis.set(version, 3)
        case "another-type":
            case.redis.delete(name)
            case.redis.rpush(name, "x")


@pytest.mark.parametrize(
    ("what", "verdict"),
    [
        ("nothing", "match"), ("equivalent", "equivalent"), ("missing", "missing"), ("mismatch", "mismatch"),
        ("damaged", "mismatch"), ("behind", "race"), ("resurrected", "mismatch"), ("ahead", "mismatch"),
        ("another-type", "missing"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.CUTOVER])
def test_verdicts(ready: Migrating, phase: Phase, what: str, verdict: str) -> None:
    move(ready, phase, 0)
    with opened_sync(ready, shadow_sample=1.0) as cache:
        sabotage(ready, what)
        cache.get("a")
        until(lambda: verdicts(cache))
        assert verdicts(cache) == {verdict: 1}
        assert cache.stats()["reads"]["redis"] == {"hit": 0, "miss": 0, "error": 0}


def test_the_same_in_the_background_of_a_loop(ready: Migrating) -> None:
    async def work() -> None:
        async with await opened(ready, shadow_sample=1.0) as cache:
            for _ in range(5):
                await cache.get("a")
            await cache.get_many(["a", "b"])
            await cache.get("nobody")
            import asyncio

            end = time.monotonic() + 5
            while cache.stats()["shadow"]["match"] < 8:
                assert time.monotonic() < end
                await asyncio.sleep(0.01)

    run(work)


def test_a_change_that_arrives_meanwhile_is_a_race(ready: Migrating) -> None:
    ready.redis.set(f"{ready.prefix}a", b'{"v": "old"}')
    with opened_sync(ready, shadow_sample=1.0, shadow_grace=0.5) as cache:
        cache.get("a")
        time.sleep(0.1)
        ready.execute("UPDATE sessions SET cache = '{\"v\": 3}' WHERE file_hash = 'a'")
        until(lambda: verdicts(cache))
        assert verdicts(cache) == {"race": 1}


def test_a_hanging_redis_costs_a_read_nothing(ready: Migrating) -> None:
    with answering(None) as url, opened_sync(ready, url, shadow_sample=1.0, shadow_outstanding=2) as cache:
        plain = opened_sync(ready)
        with plain:
            took: dict[str, list[float]] = {"shadow": [], "plain": []}
            for _ in range(60):
                for name, one in (("shadow", cache), ("plain", plain)):
                    began = time.perf_counter()
                    assert one.get("a") is not None
                    took[name].append(time.perf_counter() - began)
        assert sorted(took["shadow"])[30] < sorted(took["plain"])[30] * 3 + 0.002
        until(lambda: verdicts(cache).get("unreachable"))
        assert set(verdicts(cache)) <= {"unreachable", "dropped"}


def test_too_many_at_once_are_dropped(ready: Migrating) -> None:
    with opened_sync(ready, shadow_sample=1.0, shadow_outstanding=1, shadow_grace=1.0) as cache:
        ready.redis.delete(f"{ready.prefix}a")
        for _ in range(4):
            cache.get("a")
        assert verdicts(cache)["dropped"] == 3


def test_nothing_is_compared_where_it_cannot_be(ready: Migrating) -> None:
    with opened_sync(ready, shadow_sample=1.0) as cache:
        for phase, percent in ((Phase.IDLE, 0), (Phase.CUTOVER, 100), (Phase.REDIS_ONLY, 0)):
            move(ready, phase, percent)
            until(partial(_acts_on, cache, phase))
            cache.get("a")
        time.sleep(0.2)
        assert verdicts(cache) == {}


def test_the_default_is_a_sample(ready: Migrating) -> None:
    counted: Any = 0
    with opened_sync(ready, shadow_sample=0.05, shadow_outstanding=50) as cache:
        for _ in range(400):
            cache.get("a")
        until(lambda: verdicts(cache))
        time.sleep(0.2)
        counted = verdicts(cache)["match"]
    assert 2 <= counted <= 60

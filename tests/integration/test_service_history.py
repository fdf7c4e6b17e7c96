"""A history of reads: none returns a value older than its client's last write that was acknowledged before it began.

The ladder goes up and down meanwhile, sync and backfill run late, and Redis is killed, frozen and restarted.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from cachemig.errors import CachemigError
from cachemig.ladder import Phase
from cachemig.service import AsyncCacheService, WriteFailed
from cachemig.steps import dual_write
from tests.chaos.proxy import Proxy, tcp
from tests.conftest import OwnRedis
from tests.integration.conftest import Migrating, finish
from tests.integration.serving import eventually, move, opened, opened_sync, run, until

KEYS = [f"k{i}" for i in range(6)]


class History:
    """The numbers of the writes, by key. A removal has a number like any other write."""

    def __init__(self) -> None:
        self.begun = dict.fromkeys(KEYS, 0)
        self.acknowledged = dict.fromkeys(KEYS, 0)
        self.removals: dict[str, set[int]] = {key: {0} for key in KEYS}
        self.phases: set[str] = set()
        self.reads = self.hits = self.writes = self.failed = 0
        self.wrong: list[str] = []

    def check(self, key: str, value: Any, least: int, phase: Phase, source: str) -> None:
        self.reads += 1
        if value is not None:
            self.hits += 1
            if value["n"] < least:
                self.wrong.append(f"{phase.value}: {key} read {value['n']} from {source}, {least} was acknowledged")
            if value["n"] in self.removals[key]:
                self.wrong.append(f"{phase.value}: {key} read {value['n']}, which was removed")
        elif phase is not Phase.REDIS_ONLY and not any(least <= n <= self.begun[key] for n in self.removals[key]):
            self.wrong.append(f"{phase.value}: {key} was lost, {least} was acknowledged")


async def writer(
    cache: AsyncCacheService, key: str, history: History, chance: random.Random, stop: asyncio.Event
) -> None:
    while not stop.is_set():
        number = history.begun[key] + 1
        remove = chance.random() < 0.2
        if remove:
            history.removals[key].add(number)
        history.begun[key] = number
        try:
            if remove:
                await cache.invalidate(key)
            else:
                await cache.put(key, {"n": number, "pad": "x" * chance.choice([0, 100, 9000])})
        except WriteFailed:
            history.failed += 1
        else:
            history.acknowledged[key] = number
            history.writes += 1
        await asyncio.sleep(chance.random() * 0.03)


async def reader(
    cache: AsyncCacheService, key: str, history: History, chance: random.Random, stop: asyncio.Event
) -> None:
    async def load() -> Any:
        return None

    while not stop.is_set():
        least = history.acknowledged[key]
        way = chance.random()
        if way < 0.8:
            entry = await cache.get_entry(key)
            history.check(key, entry.value, least, cache._routes.now.phase, f"{entry.source} because {entry.why}")
        elif way < 0.9:
            leasts = dict(history.acknowledged)
            for other, value in zip(KEYS, await cache.get_many(KEYS), strict=True):
                history.check(other, value, leasts[other], cache._routes.now.phase, "get_many")
        else:
            history.check(key, await cache.get_or_compute(key, load), least, cache._routes.now.phase, "get_or_compute")
        await asyncio.sleep(chance.random() * 0.01)


class Workers:
    """sync all the time, and a whole backfill now and then, in threads of their own."""

    def __init__(self, case: Migrating) -> None:
        self.case = case
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._sync), threading.Thread(target=self._backfill)]

    def _sync(self) -> None:
        while not self.stop.wait(0.05):
            with suppress(CachemigError):
                self.case.sync()

    def _backfill(self) -> None:
        while not self.stop.wait(0.3):
            with suppress(CachemigError):
                self.case.backfill(restart=True)

    def __enter__(self) -> Workers:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


def up_and_down(case: Migrating) -> list[Callable[[], None]]:
    def at(phase: Phase, percent: float = 100.0) -> Callable[[], None]:
        return lambda: move(case, phase, percent)

    return [
        at(Phase.CUTOVER, 0), at(Phase.CUTOVER, 30), at(Phase.CUTOVER, 100), at(Phase.CUTOVER, 50),
        at(Phase.DUAL_WRITE), at(Phase.CUTOVER, 100), at(Phase.CUTOVER, 0), at(Phase.DUAL_WRITE),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "faults", [pytest.param("none", marks=pytest.mark.long), "kill", pytest.param("freeze", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_no_read_is_older_than_the_last_acknowledged_write(
    migrating: Migrating, own_redis: OwnRedis, faults: str, seed: int
) -> None:
    server = own_redis({"appendonly": "yes", "appendfsync": "always"}, tcp=True)
    migrating.use_redis(server.url)
    migrating.redis_url = server.url
    migrating.set(redis_timeout="2s", retry_for="5s")
    for key in KEYS:
        migrating.put(key, {})
    migrating.begin()
    migrating.backfill()
    history = History()
    over = threading.Event()

    def disturb() -> None:
        while not over.wait(0.4):
            if faults == "kill":
                server.kill()
                over.wait(0.2)
                server.start()
            elif faults == "freeze":
                os.kill(server.pid, signal.SIGSTOP)
                over.wait(0.3)
                os.kill(server.pid, signal.SIGCONT)

    async def work() -> None:
        chance = random.Random(seed)
        stop = asyncio.Event()
        async with await opened(migrating, redis_timeout=0.1) as cache:
            tasks = [
                asyncio.create_task(one(cache, key, history, random.Random(f"{seed}{key}{i}"), stop))
                for key in KEYS
                for i, one in enumerate((writer, reader, reader))
            ]
            for step in up_and_down(migrating):
                step()
                history.phases.add(f"{cache._routes.now.phase} {cache._routes.now.percent}")
                await asyncio.sleep(0.5 + chance.random() * 0.3)
                assert not [task for task in tasks if task.done()], [task for task in tasks if task.done()]
            stop.set()
            await asyncio.gather(*tasks)

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        with Workers(migrating):
            run(work)
    finally:
        over.set()
        disturbing.join()
    assert not history.wrong, history.wrong[:5]
    assert history.failed == 0
    assert history.hits > 50
    assert len(history.phases) >= 4
    until(lambda: _synced(migrating))
    assert migrating.in_redis() == migrating.in_postgres()


def _synced(case: Migrating) -> bool:
    with suppress(CachemigError):
        case.sync()
        case.sync()
        return not case.marks()
    return False


@pytest.mark.parametrize(
    "faults", [pytest.param("none", marks=pytest.mark.long), pytest.param("kill", marks=pytest.mark.long), "freeze"]
)
def test_no_read_is_older_in_redis_only(migrating: Migrating, own_redis: OwnRedis, faults: str) -> None:
    server = own_redis({"appendonly": "yes", "appendfsync": "always"}, tcp=True)
    migrating.use_redis(server.url)
    migrating.redis_url = server.url
    migrating.set()
    migrating.begin()
    move(migrating, Phase.REDIS_ONLY)
    history = History()

    async def work() -> None:
        stop = asyncio.Event()
        async with await opened(migrating, redis_timeout=0.1) as cache:
            tasks = [
                asyncio.create_task(one(cache, key, history, random.Random(f"{key}{i}"), stop))
                for key in KEYS
                for i, one in enumerate((writer, reader))
            ]
            for _ in range(8):
                await asyncio.sleep(0.4)
                if faults == "kill":
                    server.kill()
                    await asyncio.sleep(0.2)
                    await asyncio.to_thread(server.start)
                elif faults == "freeze":
                    os.kill(server.pid, signal.SIGSTOP)
                    await asyncio.sleep(0.3)
                    os.kill(server.pid, signal.SIGCONT)
                assert not [task for task in tasks if task.done()], [task for task in tasks if task.done()]
            stop.set()
            await asyncio.gather(*tasks)
            await eventually(lambda: cache._store.state != "open", 20)

    run(work)
    assert not history.wrong, history.wrong[:5]
    assert history.hits > 50
    assert (history.failed > 0) == (faults != "none")


def test_a_write_that_had_no_answer_does_not_undo_the_next_one(migrating: Migrating, own_redis: OwnRedis) -> None:
    """It is still on its way when the next one is acknowledged."""
    server = own_redis(tcp=True)
    migrating.use_redis(server.url)
    migrating.redis_url = server.url
    migrating.set()
    migrating.begin()
    move(migrating, Phase.REDIS_ONLY)
    proxy = Proxy(tcp(server.port), 1)
    try:
        with opened_sync(migrating, f"redis://127.0.0.1:{proxy.port}/0") as cache:
            for large in ("", "x" * 20_000):
                cache.put("a", {"n": 0})
                proxy.frozen.set()
                with pytest.raises(WriteFailed) as caught:
                    cache.put("a", {"n": 1, "large": large})
                assert caught.value.uncertain
                cache._store._places.sockets(None)._factory.connection_kwargs["port"] = server.port
                assert cache.put("a", {"n": 2}).delivered
                cache._store._places.sockets(None)._factory.connection_kwargs["port"] = proxy.port
                proxy.frozen.clear()
                time.sleep(0.2)
                assert cache.get("a") == {"n": 2}
                for connection in cache._store._places.sockets(None)._idle:
                    connection.disconnect()
                cache._store._places.sockets(None)._idle.clear()
    finally:
        proxy.close()


def test_dual_write_disabled_and_enabled_again(migrating: Migrating) -> None:
    for key in KEYS:
        migrating.put(key, {"n": 0})
    migrating.begin()
    migrating.backfill()

    async def work() -> None:
        async with await opened(migrating) as cache:
            for n, enable in enumerate((False, True, False, True), start=1):
                finish(dual_write.switch(migrating.settings, migrating.target, enable=enable))
                for key in KEYS:
                    await cache.put(key, {"n": n})
                    assert await cache.get(key) == {"n": n}

    run(work)
    migrating.sync()
    assert migrating.in_redis() == migrating.in_postgres()


BOUND_S = 3.0
"""Between clients: what the poll interval (0.1 s here), a breaker's longest pause and a sync that runs add up to, on a
busy machine."""


@pytest.mark.parametrize("faults", [pytest.param("none", marks=pytest.mark.long), "kill"])
def test_another_client_reads_nothing_older_than_the_bound(
    migrating: Migrating, own_redis: OwnRedis, faults: str
) -> None:
    """One process writes, others read: a value that was replaced, and acknowledged, longer ago than the bound is seen
    by nobody; where Redis answers, it is seen by nobody at all."""
    server = own_redis({"appendonly": "yes", "appendfsync": "always"}, tcp=True)
    migrating.use_redis(server.url)
    migrating.redis_url = server.url
    migrating.set(redis_timeout="2s", retry_for="5s")
    migrating.put("k", {"n": 0})
    migrating.begin()
    migrating.backfill()
    acknowledged: list[tuple[float, int, bool]] = [(0.0, 0, True)]
    wrong: list[str] = []
    reads = [0]
    over = threading.Event()

    def write() -> None:
        number = 0
        with opened_sync(migrating) as cache:
            while not over.wait(0.01):
                number += 1
                delivered = cache.put("k", {"n": number}).delivered
                acknowledged.append((time.monotonic(), number, delivered))

    def read() -> None:
        with opened_sync(migrating) as cache:
            while not over.wait(0.003):
                began, known = time.monotonic(), list(acknowledged)
                entry = cache.get_entry("k")
                reads[0] += 1
                least = max(n for at, n, _ in known if at < began - BOUND_S)
                if faults == "none" and known[-1][2]:
                    least = known[-1][1]
                if entry.value is None or entry.value["n"] < least:
                    wrong.append(f"{entry.value} from {entry.source}, {least} was acknowledged")

    def disturb() -> None:
        while faults == "kill" and not over.wait(0.5):
            server.kill()
            over.wait(0.2)
            server.start()

    threads = [threading.Thread(target=work) for work in (write, read, read, disturb)]
    for thread in threads:
        thread.start()
    try:
        with Workers(migrating):
            for step in up_and_down(migrating):
                step()
                time.sleep(0.6)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:5]
    assert reads[0] > 100
    assert len(acknowledged) > 50

"""CacheService while Redis is dead, hanging, slow, full or lying, and while Postgres is away."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from cachemig.demo.servers import RedisServer
from cachemig.errors import SourceUnavailable
from cachemig.ladder import Phase
from cachemig.service import AsyncCacheService, CacheService, Options, Source, Why, WriteFailed
from tests.chaos.proxy import Proxy, tcp
from tests.conftest import OwnPostgres, OwnRedis
from tests.integration.conftest import TABLE, Migrating
from tests.integration.serving import answering, move, opened, opened_sync, opening, run, until

KEPT = {"appendonly": "yes", "appendfsync": "always"}
STATED = Options(poll_interval=0.1, shadow_sample=0.0)
"""The times that are promised."""


@pytest.fixture
def ready(migrating: Migrating) -> Migrating:
    for key in ("a", "b", "c"):
        migrating.put(key, {"v": key})
    migrating.begin()
    migrating.backfill()
    return migrating


def with_own_redis(case: Migrating, server: RedisServer) -> None:
    """The same migration, on a Redis that can be killed."""
    case.use_redis(server.url)
    case.redis_url = server.url
    case.target.close()
    case.set()
    case.target.plant_marker(0)
    case.execute("UPDATE cachemig.migration SET redis_marker = NULL")  # sync takes this Redis for a new one
    case.sync()


@contextmanager
def broken(how: str) -> Iterator[str]:
    """The URL of a Redis that is no Redis."""
    replies: dict[str, tuple[bytes | None, float]] = {
        "hanging": (None, 0),
        "garbage": (b"HTTP/1.1 400 Bad Request\r\n\r\n", 0),
        "nonsense": (b":1\r\n", 0),
        "too-much": (b"$1\r\na\r\n" * 9, 0),
        "slow": (b"*2\r\n$-1\r\n$-1\r\n" * 5, 0.03),
        "closing": (b"", 0),
        "loading": (b"-LOADING Redis is loading the dataset in memory\r\n", 0),
        "denying": (b"-NOPERM this user has no permissions\r\n", 0),
    }
    if how == "dead":
        yield "redis://127.0.0.1:1/0"
        return
    reply, drip = replies[how]
    with answering(reply, drip_s=drip) as url:
        yield url


BROKEN = ("dead", "hanging", "garbage", "nonsense", "too-much", "slow", "loading", "denying")


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.CUTOVER])
def test_a_broken_redis_costs_no_error_and_little_time(ready: Migrating, phase: Phase, how: str) -> None:
    move(ready, phase)

    async def work(url: str) -> None:
        options = {**opening(ready, url), "options": STATED}
        async with await AsyncCacheService.open(**options) as cache:
            got, put = [], []
            for n in range(40):
                began = time.perf_counter()
                assert await cache.get("b") == {"v": "b"}
                got.append(time.perf_counter() - began)
                began = time.perf_counter()
                written = await cache.put("a", {"v": n})
                put.append(time.perf_counter() - began)
                assert written.stored
                assert not written.delivered
                assert await cache.get("a") == {"v": n}
            assert await cache.get_or_compute("c", load) == {"v": "c"}
            assert await cache.get_many(["a", "c"]) == [{"v": 39}, {"v": "c"}]
            await cache.invalidate("c")
            assert await cache.get("c") is None
            assert await cache.get_or_compute("c", load) == {"v": "loaded"}
            stats = cache.stats()
            assert stats["reads"]["redis"]["hit"] == stats["reads"]["redis"]["miss"] == 0
            assert (stats["fallback"] > 80) == (phase is Phase.CUTOVER)
            assert stats["writes"]["redis_failed"] >= 40
            if phase is Phase.CUTOVER:
                entry = await cache.get_entry("b")
                assert entry.source is Source.COLUMN
                assert entry.why in ((Why.REFUSED, Why.BREAKER) if how == "denying" else (Why.BREAKER, Why.UNREACHABLE))
            if how not in ("nonsense", "denying"):
                assert stats["breaker_open"] >= 1
            assert statistics.median(got) < 0.05
            assert statistics.median(put) < 0.05
            assert max(got) < 3  # the hidden retries of redis-py would take 4 s

    async def load() -> Any:
        return {"v": "loaded"}

    with broken(how) as url:
        run(lambda: work(url))


@pytest.mark.parametrize("how", ["dead", "hanging", "garbage", "loading", "denying"])
def test_a_broken_redis_in_redis_only(ready: Migrating, how: str) -> None:
    move(ready, Phase.REDIS_ONLY)
    with broken(how) as url, opened_sync(ready, url) as cache:
        assert cache.get("a") is None
        entry = cache.get_entry("a")
        assert entry.unreachable
        assert entry.source is Source.NOWHERE
        assert cache.get_many(["a", "b"]) == [None, None]
        assert cache.get_or_compute("a", lambda: {"v": "computed"}) == {"v": "computed"}
        with pytest.raises(WriteFailed, match="the write failed") as caught:
            cache.put("a", {"v": 2})
        assert caught.value.hint
        with pytest.raises(WriteFailed, match="the write failed"):
            cache.invalidate("a")
        stats = cache.stats()
        assert stats["reads"]["redis"]["miss"] == 0
        assert stats["writes"]["ok"] == 0
        assert stats["writes"]["redis_failed"] >= 2
        assert not cache.health().redis_reachable


def test_a_write_that_may_have_been_taken_says_so(ready: Migrating, own_redis: OwnRedis) -> None:
    server = own_redis(KEPT, tcp=True)
    with_own_redis(ready, server)
    move(ready, Phase.REDIS_ONLY)
    with opened_sync(ready) as cache:
        first = cache.put("a", {"v": 1}).version or 0  # connected, and the script is known
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(WriteFailed) as caught:
                cache.put("a", {"v": 2})
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert caught.value.uncertain
        until(lambda: ready.in_redis()["a"] == b'{"v":2}')  # whole, with its version
        assert (cache.get_entry("a").version or 0) > first
        server.kill()
        with pytest.raises(WriteFailed) as caught:
            cache.put("a", {"v": 3})
        assert not caught.value.uncertain


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.CUTOVER, Phase.REDIS_ONLY])
def test_redis_killed_and_restarted(ready: Migrating, own_redis: OwnRedis, phase: Phase) -> None:
    """With what it had acknowledged; for it forgets nothing, no read may be older than the last write."""
    server = own_redis(KEPT, tcp=True)
    with_own_redis(ready, server)
    move(ready, phase)

    async def work() -> None:
        async with await opened(ready, redis_timeout=0.5) as cache:
            await cache.put("a", {"v": 1})
            assert await cache.get("a") == {"v": 1}
            server.kill()
            if phase is Phase.REDIS_ONLY:
                with pytest.raises(WriteFailed):
                    await cache.put("a", {"v": 2})
                assert (await cache.get_entry("a")).unreachable
                last = 1
            else:
                assert not (await cache.put("a", {"v": 2})).delivered
                assert await cache.get("a") == {"v": 2}
                last = 2
            server.start()
            assert await cache.get("a") in ({"v": last}, None if phase is Phase.REDIS_ONLY else {"v": last})
            end = time.monotonic() + 15
            while not (await cache.health()).redis_reachable:
                await asyncio.sleep(0.05)
                assert time.monotonic() < end
            assert await cache.get("a") == {"v": last}, "Redis still holds 1"
            if phase is Phase.CUTOVER:
                assert (await cache.get_entry("a")).source is Source.REDIS, "the read has healed it"
            assert (await cache.put("a", {"v": 3})).delivered
            assert await cache.get("a") == {"v": 3}
            assert (await cache.health()).breaker == "closed"

    run(work)


def test_a_restart_of_redis_between_two_calls_costs_no_error(ready: Migrating, own_redis: OwnRedis) -> None:
    server = own_redis(KEPT, tcp=True)
    with_own_redis(ready, server)
    move(ready, Phase.CUTOVER)
    with opened_sync(ready) as cache:
        assert cache.get_entry("a").source is Source.REDIS
        server.restart()
        assert cache.get_entry("a").source is Source.REDIS

    async def work() -> None:
        async with await opened(ready) as cache:
            assert (await cache.get_entry("a")).source is Source.REDIS
            await asyncio.to_thread(server.restart)
            await asyncio.sleep(0.05)
            assert (await cache.get_entry("a")).source is Source.REDIS

    run(work)


def test_a_redis_that_came_back_without_its_last_second(ready: Migrating, own_redis: OwnRedis) -> None:
    server = own_redis(KEPT, tcp=True)
    with_own_redis(ready, server)
    move(ready, Phase.CUTOVER)
    with opened_sync(ready) as cache:
        old = ready.redis.dump(f"{ready.prefix}a"), ready.redis.get(f"cachemig:v:{{{ready.prefix}a}}")
        cache.put("a", {"v": 2})
        assert cache.get_entry("a").source is Source.REDIS
        ready.redis.restore(f"{ready.prefix}a", 0, old[0], replace=True)  # type: ignore[arg-type]
        ready.redis.delete(f"cachemig:v:{{{ready.prefix}a}}")
        entry = cache.get_entry("a")
        assert (entry.value, entry.source, entry.why) == ({"v": 2}, Source.COLUMN, Why.BEHIND)
        assert cache.get_entry("a").source is Source.REDIS


def test_a_full_redis(ready: Migrating, own_redis: OwnRedis) -> None:
    server = own_redis({"maxmemory-policy": "noeviction"}, tcp=True)
    with_own_redis(ready, server)
    move(ready, Phase.CUTOVER)
    with opened_sync(ready) as cache:
        ready.redis.config_set("maxmemory", "1")
        for value in ({"v": 2}, {"big": "x" * 50_000}):
            assert not cache.put("a", value).delivered
            assert cache.get("a") == value
        assert cache.get_entry("b").source is Source.REDIS, "what is there can be read"
        assert cache.invalidate("b").delivered, "and removed"
        assert cache.get("b") is None
        assert cache.get_or_compute("b", lambda: {"v": 3}) == {"v": 3}
        assert cache.health().breaker == "closed"
        move(ready, Phase.CUTOVER)
        ready.redis.config_set("maxmemory", "0")
        ready.sync()
        assert ready.in_redis() == ready.in_postgres()
        move(ready, Phase.REDIS_ONLY)
        until(lambda: cache.health().phase is Phase.REDIS_ONLY)
        ready.redis.config_set("maxmemory", "1")
        for value in ({"v": 9}, {"big": "y" * 50_000}):
            with pytest.raises(WriteFailed, match="full") as caught:
                cache.put("c", value)
            assert not caught.value.uncertain
            assert cache.get("c") == {"v": "c"}
        cache.invalidate("c")
        assert cache.get("c") is None


def test_undecodable_bytes_are_an_error_and_are_healed(ready: Migrating) -> None:
    move(ready, Phase.CUTOVER)
    with opened_sync(ready) as cache:
        for damaged in (b"{", b"\x1f\x8bnot gzip", b"\x28\xb5\x2f\xfdnot zstd", b"\xff\xfe", b""):
            ready.redis.set(f"{ready.prefix}a", damaged)
            entry = cache.get_entry("a")
            assert (entry.value, entry.source, entry.why) == ({"v": "a"}, Source.COLUMN, Why.UNDECODABLE)
            assert cache.get_entry("a").source is Source.REDIS
        ready.redis.delete(f"{ready.prefix}a")
        ready.redis.rpush(f"{ready.prefix}a", "of another type")
        assert cache.get("a") == {"v": "a"}
        stats = cache.stats()
        assert stats["reads"]["redis"]["error"] == 5
        assert stats["fallback"] == 5
        assert stats["breaker_open"] == 0


def test_a_cut_connection_costs_one_fallback(ready: Migrating, own_redis: OwnRedis) -> None:
    server = own_redis(KEPT, tcp=True)
    with_own_redis(ready, server)
    move(ready, Phase.CUTOVER)
    proxy = Proxy(tcp(server.port), 7)
    try:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        with opened_sync(ready, url) as cache:
            for n in range(30):
                if n % 3 == 0:
                    proxy.cut("from" if n % 2 else "to")
                if n % 7 == 0:
                    proxy.drop_all()
                assert cache.put("a", {"v": n, "big": "x" * 300 * n}).stored
                assert cache.get("a")["v"] == n
    finally:
        proxy.close()


def test_large_values_have_time(ready: Migrating) -> None:
    """A reply that goes on coming is not given up, however short the limit for its beginning."""
    move(ready, Phase.CUTOVER)
    reply = b'*2\r\n$2000002\r\n"' + b"y" * 2_000_000 + b'"\r\n$-1\r\n'
    times = {"redis_timeout": 0.2, "bytes_per_s": 1e6}
    with answering(reply, drip_s=0.02, piece=64 * 1024, login=True) as url:  # more than half a second
        with opened_sync(ready, url, **times) as cache:
            assert cache.get_entry("a").source is Source.REDIS

        async def work() -> None:
            async with await opened(ready, url, **times) as cache:
                entry = await cache.get_entry("a")
                assert entry.source is Source.REDIS
                assert entry.value == "y" * 2_000_000

        run(work)


def test_large_values_pass(ready: Migrating) -> None:
    value = {"x": "y" * 20_000_000}
    for phase in (Phase.CUTOVER, Phase.REDIS_ONLY):
        move(ready, phase)
        with opened_sync(ready) as cache:
            assert cache.put("a", value).delivered
            assert cache.get_entry("a").source is Source.REDIS

        async def work() -> None:
            async with await opened(ready) as cache:
                assert (await cache.put("a", value)).delivered
                entry = await cache.get_entry("a")
                assert entry.source is Source.REDIS
                assert entry.value == value

        run(work)


# Postgres ------------------------------------------------------------------------------------------------------------


def test_while_postgres_cannot_be_asked_the_last_phase_holds(
    own_postgres: OwnPostgres, redis_url: str, prefix: str, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = own_postgres({"synchronous_commit": "on"}, tcp=True)
    case = Migrating(server.dsn(), redis_url, prefix, tmp_path)
    case.execute(TABLE)
    case.put("a", {"v": "secret-value"})
    case.begin()
    case.backfill()
    move(case, Phase.CUTOVER)
    with caplog.at_level(logging.DEBUG), opened_sync(case, postgres_timeout=4) as cache:
        assert cache.get("a") == {"v": "secret-value"}
        server.kill()
        time.sleep(0.5)
        assert cache.get_entry("a").source is Source.REDIS
        with pytest.raises(SourceUnavailable):
            cache.put("a", {"v": 2})
        assert cache.health().phase is Phase.CUTOVER
        server.start()
        until(lambda: _put(cache))
        case.conn.close()
        case = Migrating(server.dsn(), redis_url, prefix, tmp_path)
        until(lambda: (cache.health().last_heartbeat_s or 9) < 0.3)
        server.restart()  # every connection of the pool is dead by now, and nobody notices
        assert cache.put("a", {"v": 4}).delivered
        case.redis.delete(f"{prefix}a")
        assert cache.get("a") == {"v": 4}
    assert "secret-value" not in caplog.text
    case.close()


def _put(cache: CacheService) -> bool:
    try:
        return cache.put("a", {"v": 3}).stored
    except SourceUnavailable:
        return False


def test_open_says_that_postgres_does_not_answer(ready: Migrating) -> None:
    options = {**opening(ready, postgres_timeout=0.3), "dsn": "host=127.0.0.1 port=1 dbname=x"}
    with pytest.raises(SourceUnavailable):
        CacheService.open(**options)


# A client that was frozen ------------------------------------------------------------------------------------------

FROZEN = """
import sys, json
from cachemig.service import CacheService, Options
cache = CacheService.open(dsn=sys.argv[1], redis_url=sys.argv[2], name="frozen",
                          options=Options(poll_interval=0.1, lease_margin=0.2, redis_timeout=0.5, shadow_sample=0))
print("ready", flush=True)
for line in sys.stdin:
    what, key, value = json.loads(line)
    if what == "put":
        cache.put(key, value)
        print("null", flush=True)
    else:
        print(json.dumps(cache.get(key)), flush=True)
cache.close()
"""


def test_a_client_frozen_during_a_transition_and_thawed_after_it(ready: Migrating) -> None:
    import subprocess
    import sys

    with subprocess.Popen(
        [sys.executable, "-c", FROZEN, ready.dsn, ready.redis_url],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(what: str, key: str, value: Any = None) -> Any:
            process.stdin.write(json.dumps([what, key, value]) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return None

        def answer() -> Any:
            return json.loads(process.stdout.readline())  # type: ignore[union-attr]

        def live() -> int:
            return int(
                ready.execute("SELECT count(*) FROM cachemig.client WHERE lease_until > clock_timestamp()")[0][0]
            )

        assert process.stdout.readline() == "ready\n"
        try:
            move(ready, Phase.CUTOVER)
            until(lambda: ready.execute("SELECT phase FROM cachemig.client") == [("cutover",)])
            os.kill(process.pid, signal.SIGSTOP)
            until(lambda: live() == 0)
            # Back to dual-write, and further: nobody keeps Redis up to date any more.
            ready.execute("UPDATE cachemig.migration SET phase = 'idle', percent = 0")
            ready.execute("UPDATE sessions SET cache = '{\"v\": \"new\"}' WHERE file_hash = 'a'")
            assert json.loads(ready.in_redis()["a"]) == {"v": "a"}
            ask("get", "a")
            os.kill(process.pid, signal.SIGCONT)
            assert answer() == {"v": "new"}, "it asks for the phase before it reads"
            until(lambda: live() == 1)
            # Frozen in a phase with a column, thawed in one without.
            os.kill(process.pid, signal.SIGSTOP)
            until(lambda: live() == 0)
            move(ready, Phase.REDIS_ONLY)
            ask("put", "a", {"v": "thawed"})
            os.kill(process.pid, signal.SIGCONT)
            answer()
            assert json.loads(ready.in_redis()["a"]) == {"v": "thawed"}
            assert ready.execute("SELECT cache FROM sessions WHERE file_hash = 'a'") == [({"v": "new"},)]
            # And back: its write to Redis alone would be lost.
            os.kill(process.pid, signal.SIGSTOP)
            until(lambda: live() == 0)
            ready.target.plant_marker(2)
            ready.execute("UPDATE cachemig.migration SET phase = 'dual-write', epoch = 2")
            ask("put", "a", {"v": "again"})
            os.kill(process.pid, signal.SIGCONT)
            answer()
            assert ready.execute("SELECT cache FROM sessions WHERE file_hash = 'a'") == [({"v": "again"},)]
        finally:
            os.kill(process.pid, signal.SIGCONT)
            process.stdin.close()
            assert process.wait(20) == 0


def test_no_word_of_a_value_or_a_password_in_the_log(
    ready: Migrating, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    move(ready, Phase.CUTOVER)
    url = "redis://:hush-hush@127.0.0.1:1/0"
    with caplog.at_level(logging.DEBUG), opened_sync(ready, url) as cache:
        cache.put("a", {"patient": "Mrs Secret"})
        cache.get("a")
        move(ready, Phase.REDIS_ONLY)
        until(lambda: cache.health().phase is Phase.REDIS_ONLY)
        with pytest.raises(WriteFailed) as caught:
            cache.put("a", {"patient": "Mrs Secret"})
        said = caplog.text + str(caught.value) + str(caught.value.__cause__) + "".join(capfd.readouterr())
    assert "Secret" not in said
    assert "hush" not in said


def test_a_loop_that_is_busy_is_not_taken_for_a_redis_that_hangs(ready: Migrating) -> None:
    move(ready, Phase.CUTOVER)

    async def work() -> None:
        async with await AsyncCacheService.open(**{**opening(ready), "options": STATED}) as cache:
            await cache.get("a")

            async def blocks() -> None:
                time.sleep(0.12)  # longer than Redis is given, right after the request was sent

            for _ in range(5):
                entry, _ = await asyncio.gather(cache.get_entry("a"), blocks())
                assert entry.source is Source.REDIS
            assert cache.stats()["breaker_open"] == 0

    run(work)


def test_the_stated_options_are_the_defaults() -> None:
    assert Options() == replace(STATED, poll_interval=2.0, shadow_sample=0.05)

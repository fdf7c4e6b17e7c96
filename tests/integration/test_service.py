"""CacheService, asynchronous and not, in every phase, on servers that are well."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cachemig.errors import NotInitialised
from cachemig.ladder import Phase, bucket
from cachemig.service import AsyncCacheService, CacheService, Closed, Source, Why
from cachemig.service.companions import names
from cachemig.source import functions
from cachemig.source.table import inspect
from cachemig.steps.resync import resync
from tests.integration.conftest import Migrating
from tests.integration.serving import move, opened, opened_sync, opening, run, until


@pytest.fixture
def ready(migrating: Migrating) -> Migrating:
    """Three keys, in dual-write, all of them in Redis."""
    for key in ("a", "b", "c"):
        migrating.put(key, {"v": key})
    migrating.begin()
    migrating.backfill()
    return migrating


@pytest.mark.parametrize("phase", Phase)
def test_what_is_put_is_got_and_what_is_invalidated_is_gone(ready: Migrating, phase: Phase) -> None:
    move(ready, phase)

    async def work() -> None:
        async with await opened(ready) as cache:
            assert await cache.get("a") == ({"v": "a"})
            written = await cache.put("a", {"v": 2, "text": "ünï"})
            assert written.stored
            assert written.delivered == (phase is not Phase.IDLE)
            assert await cache.get("a") == {"v": 2, "text": "ünï"}
            assert (await cache.invalidate("a")).stored
            assert await cache.get("a") is None
            assert await cache.get("a", default=7) == 7
            entry = await cache.get_entry("a")
            assert not entry.found
            assert not entry.unreachable
            await cache.put("a", {"v": 3})
            await cache.put("a", {})
            assert await cache.get("a") is None
            assert await cache.get_many(["c", "nobody", "b", "c"]) == [{"v": "c"}, None, {"v": "b"}, {"v": "c"}]

    run(work)


@pytest.mark.parametrize("phase", Phase)
def test_the_same_without_asyncio(ready: Migrating, phase: Phase) -> None:
    move(ready, phase)
    with opened_sync(ready) as cache:
        assert cache.put("a", [1, 2]).stored
        assert cache.get("a") == [1, 2]
        cache.invalidate("a")
        assert cache.get("a") is None
        assert cache.get_many(["c", "a", "b"]) == [{"v": "c"}, None, {"v": "b"}]
        assert cache.get_or_compute("b", lambda: pytest.fail("it is there")) == {"v": "b"}
        assert cache.health().phase is phase


@pytest.mark.parametrize("phase", Phase)
def test_where_a_read_comes_from(ready: Migrating, phase: Phase) -> None:
    move(ready, phase, 50)
    keys = [f"k{i}" for i in range(20)]
    for key in keys:
        ready.put(key, {"v": key})
    if phase in (Phase.DUAL_WRITE, Phase.CUTOVER):
        ready.sync()
    in_redis = {
        Phase.IDLE: [], Phase.DUAL_WRITE: [], Phase.CUTOVER: [key for key in keys if bucket(key) < 50],
    }.get(phase, keys)  # fmt: skip

    async def work() -> None:
        async with await opened(ready) as cache:
            entries = [await cache.get_entry(key) for key in keys]
            assert [entry.key for entry in entries if entry.source is Source.REDIS] == in_redis

    run(work)
    if phase is Phase.CUTOVER:
        assert 0 < len(in_redis) < len(keys)


def test_a_value_is_plain_json_for_anybody(ready: Migrating) -> None:
    with opened_sync(ready) as cache:
        cache.put("a", {"big": "x" * 20_000})
        assert json.loads(ready.in_redis()["a"]) == {"big": "x" * 20_000}
        move(ready, Phase.REDIS_ONLY)
        for size in (3, 50_000):
            cache.put("a", {"n": "y" * size})
            assert ready.in_redis()["a"] == b'{"n":"%s"}' % (b"y" * size)
            ttl = ready.redis.pttl(f"{ready.prefix}a")
            assert isinstance(ttl, int)
            assert 0 < ttl - 30 * 86_400_000 + 5000 < 0.1 * 30 * 86_400_000 + 10_000
        assert not list(ready.redis.scan_iter(match=f"cachemig:t:{{{ready.prefix}*"))


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_codecs(migrating: Migrating, codec: str) -> None:
    migrating.set(codec=codec)
    migrating.put("a", {"v": 1})
    migrating.begin()
    migrating.backfill()
    move(migrating, Phase.CUTOVER)
    with opened_sync(migrating) as cache:
        assert cache.get_entry("a").source is Source.REDIS
        cache.put("a", {"v": "z" * 30_000})
        assert migrating.in_redis()["a"][:2] in (b"\x1f\x8b", b"\x28\xb5")
        assert cache.get("a") == {"v": "z" * 30_000}
        migrating.redis.set(f"{migrating.prefix}a", b'{"plain": true}', keepttl=True)
        assert cache.get("a") == {"plain": True}
        assert migrating.verify().outcome.bad == 1  # the plain text above is another value
        move(migrating, Phase.REDIS_ONLY)
        cache.put("a", {"v": 3})
        assert migrating.in_redis()["a"][:2] in (b"\x1f\x8b", b"\x28\xb5")
        assert cache.get("a") == {"v": 3}


def test_numbers_that_orjson_does_not_take(ready: Migrating) -> None:
    ready.execute("UPDATE sessions SET cache = '{\"n\": 1e400}' WHERE file_hash = 'a'")
    with opened_sync(ready) as cache:
        assert cache.get("a") == {"n": float("inf")} or cache.get("a")["n"] > 10**300


def test_what_a_write_delivers_is_what_sync_would(ready: Migrating) -> None:
    """Else verify would call it bad."""
    with opened_sync(ready) as cache:
        cache.put("a", {"v": 1.10, "z": [1], "a": None})
        cache.put("b", {"big": "x" * 100_000})
        cache.invalidate("c")
    before = ready.in_redis()
    ready.sync()
    assert ready.in_redis() == before == ready.in_postgres()
    verified = ready.verify()
    assert verified.outcome.passed
    assert not verified.outcome.pending


def test_a_corrupt_value_is_not_delivered(ready: Migrating) -> None:
    with opened_sync(ready) as cache:
        written = cache.put("a", "a string, and shape is object")
        assert written.delivered
        assert "a" not in ready.in_redis()
        move(ready, Phase.CUTOVER)
        assert cache.get("a") == "a string, and shape is object"
        assert "a" not in ready.in_redis()


def test_a_key_without_a_row_has_nowhere_to_go(ready: Migrating) -> None:
    with opened_sync(ready) as cache:
        assert not cache.put("nobody", {"v": 1}).stored
        assert cache.get("nobody") is None
        assert not cache.invalidate("nobody").stored
        move(ready, Phase.REDIS_ONLY)
        assert cache.put("nobody", {"v": 1}).stored
        assert cache.get("nobody") == {"v": 1}


def test_a_miss_in_cutover_is_filled_with_its_version(ready: Migrating) -> None:
    ready.execute("UPDATE sessions SET cache = cache || '{\"more\": 1}' WHERE file_hash = 'a'")
    ready.sync()
    move(ready, Phase.CUTOVER)
    large = {"big": "x" * 30_000}
    with opened_sync(ready) as cache:
        cache.put("b", large)
        for key in "ab":
            ready.redis.delete(f"{ready.prefix}{key}")
        ready.put("late", {"v": 1})
        for key, value in (("a", {"v": "a", "more": 1}), ("b", large), ("late", {"v": 1})):
            entry = cache.get_entry(key)
            assert (entry.value, entry.source, entry.why) == (value, Source.COLUMN, Why.MISS)
            assert cache.get_entry(key).source is Source.REDIS
        assert cache.get_many(["nobody", "late"]) == [None, {"v": 1}]
        assert cache.get("nobody") is None
        assert cache.stats()["reads"]["redis"] == {"hit": 4, "miss": 5, "error": 0}
    ready.sync()
    assert ready.verify().outcome.passed


def test_a_read_leaves_no_tombstone(ready: Migrating) -> None:
    move(ready, Phase.CUTOVER)
    with opened_sync(ready) as cache:
        assert cache.get("nobody") is None
        assert not ready.redis.exists(f"cachemig:v:{{{ready.prefix}nobody}}")
        ready.execute("DELETE FROM sessions WHERE file_hash = 'a'")
        assert cache.get("a") == {"v": "a"}  # sync has not been here
        ready.redis.delete(f"{ready.prefix}a")
        assert cache.get("a") is None
        assert not ready.redis.exists(f"cachemig:v:{{{ready.prefix}a}}")


def test_a_read_does_not_remove_what_should_not_be_there(ready: Migrating) -> None:
    """Only sync does, and writes: a corrupt value is not delivered, and no tombstone either."""
    move(ready, Phase.CUTOVER)
    ready.execute("UPDATE sessions SET cache = '\"corrupt\"' WHERE file_hash = 'a'")
    ready.redis.delete(f"{ready.prefix}a")
    with opened_sync(ready) as cache:
        assert cache.get("a") == "corrupt"
        assert not ready.redis.exists(f"{ready.prefix}a", f"cachemig:v:{{{ready.prefix}a}}")


def test_nothing_reaches_redis_before_capture(migrating: Migrating) -> None:
    migrating.put("a", {"v": 1})
    migrating.begin()
    migrating.execute("UPDATE cachemig.migration SET phase = 'idle'")
    with opened_sync(migrating) as cache:
        cache.put("a", {"v": 2})
        assert cache.get("a") == {"v": 2}
        lease = names(migrating.settings.key_template).lease("nobody")
        assert cache.get_or_compute("nobody", lambda: {"v": migrating.redis.exists(lease)}) == {"v": 0}
        cache.invalidate("a")
        assert cache.warm(["a"]) == 0
        assert not migrating.in_redis()


def test_warm(ready: Migrating) -> None:
    keys = [f"k{i}" for i in range(250)]
    for key in keys:
        ready.put(key, {"v": key})
    with opened_sync(ready) as cache:
        assert cache.warm([*keys, "nobody", "a", "k1"]) == 250
        assert cache.warm(keys) == 0
        assert ready.in_redis() == ready.in_postgres()
        move(ready, Phase.REDIS_ONLY)
        until(lambda: cache.health().phase is Phase.REDIS_ONLY)
        assert cache.warm(["x"]) == 0


# Transactions of the application's own ------------------------------------------------------------------------------


def test_a_write_in_a_transaction_is_delivered_after_its_commit(ready: Migrating) -> None:
    move(ready, Phase.CUTOVER)

    async def work() -> None:
        async with await opened(ready) as cache, await psycopg.AsyncConnection.connect(ready.dsn) as conn:
            pending = await cache.put_in(conn, "a", {"v": 2})
            assert pending.stored
            assert not await pending.deliver()  # not committed: not delivered, whoever calls
            assert json.loads(ready.in_redis()["a"]) == {"v": "a"}
            assert await cache.get("a") == {"v": "a"}
            await conn.commit()
            assert await cache.get("a") == {"v": 2}, "before deliver() the column is asked"
            assert await pending.deliver()
            assert json.loads(ready.in_redis()["a"]) == {"v": 2}
            forgotten = await cache.put_in(conn, "b", {"v": 3})
            await conn.commit()
            del forgotten
            assert await cache.get("b") == {"v": 3}
            gone = await cache.put_in(conn, "c", {"v": 4})
            await conn.rollback()
            assert not await gone.deliver()
            gone.rolled_back()
            assert (await cache.get_entry("c")).source is Source.REDIS
            emptied = await cache.put_in(conn, "a", None)
            await conn.commit()
            assert await emptied.deliver()
            assert await cache.get("a") is None
        ready.sync()
        assert ready.in_redis() == ready.in_postgres()

    run(work)


def test_a_write_in_a_transaction_goes_to_redis_where_the_column_is_over(ready: Migrating) -> None:
    move(ready, Phase.REDIS_ONLY)
    with opened_sync(ready) as cache, psycopg.connect(ready.dsn) as conn:
        pending = cache.put_in(conn, "a", {"v": 2})
        assert cache.get("a") == {"v": "a"}
        conn.commit()
        assert pending.deliver()
        assert cache.get("a") == {"v": 2}


# Phases -----------------------------------------------------------------------------------------------------------


def test_a_client_follows_the_phase_says_so_and_leaves(ready: Migrating) -> None:
    def row() -> tuple[Any, ...]:
        return ready.execute("SELECT phase, percent, epoch, lease_until > clock_timestamp() FROM cachemig.client")[0]

    def acts_on(percent: float) -> bool:
        return row() == ("cutover", percent, 0, True)

    with opened_sync(ready) as cache:
        until(lambda: row() == ("dual-write", 0.0, 0, True))
        for percent in (1.0, 50.0, 100.0, 0.0):
            move(ready, Phase.CUTOVER, percent)
            until(partial(acts_on, percent), 5.0)
            assert cache.health().percent == percent
        move(ready, Phase.DUAL_WRITE)
        until(lambda: row() == ("dual-write", 0.0, 0, True), 5.0)
        assert ready.execute("SELECT stats -> 'reads' ? 'redis' FROM cachemig.client") == [(True,)]
        move(ready, Phase.REDIS_ONLY)
        until(lambda: row() == ("redis-only", 100.0, 1, True), 5.0)
    assert row()[3] is False


def test_an_answer_of_the_column_corrects_the_phase_at_once(ready: Migrating) -> None:
    with opened_sync(ready, poll_interval=60) as cache:
        move(ready, Phase.CUTOVER)
        cache.get("a")
        assert cache.get_entry("a").source is Source.REDIS
        move(ready, Phase.REDIS_ONLY)
        ready.execute('UPDATE sessions SET cache = \'{"v": "frozen"}\'')
        assert cache.put("a", {"v": 2}).delivered
        assert cache.health().phase is Phase.REDIS_ONLY
        assert cache.get("a") == {"v": 2}
        assert ready.execute("SELECT cache FROM sessions WHERE file_hash = 'a'") == [({"v": "frozen"},)]
        ready.target.plant_marker(2)  # back to dual-write, in a later epoch
        ready.execute("UPDATE cachemig.migration SET phase = 'dual-write', epoch = 2")
        assert cache.put("a", {"v": 3}).delivered
        assert cache.get_entry("a").source is Source.COLUMN
        assert cache.get("a") == {"v": 3}


def test_several_clients_follow_from_one_phase_to_the_next(ready: Migrating) -> None:
    caches = [opened_sync(ready) for _ in range(3)]
    move(ready, Phase.CUTOVER)
    until(lambda: ready.execute("SELECT count(*) FROM cachemig.client WHERE phase = 'cutover'") == [(3,)], 2.0)
    for cache in caches:
        cache.close()
        cache.close()
        with pytest.raises(Closed):
            cache.get("a")


def test_a_write_of_an_old_epoch_is_refused_by_redis(ready: Migrating) -> None:
    """Two clients in redis-only; the ladder goes back and up again while one of them cannot know."""
    move(ready, Phase.REDIS_ONLY)
    with opened_sync(ready, poll_interval=60) as cache:
        versions = [cache.put("a", {"v": n}).version or 0 for n in range(3)]
        assert versions == sorted(set(versions))
        assert {version // 2**40 for version in versions} == {1}
        ready.target.plant_marker(2)
        ready.execute("UPDATE cachemig.migration SET frozen_epoch = 2, epoch = 3")
        assert (cache.put("a", {"v": 3}).version or 0) // 2**40 == 3
        assert cache.health().epoch == 3


def test_after_a_server_lost_writes_no_value_of_the_epoch_before_is_read(ready: Migrating) -> None:
    """Redis came back with an older state: until sync has delivered the new epoch, the column answers."""
    move(ready, Phase.CUTOVER, 100)
    ready.execute("UPDATE sessions SET cache = '{\"v\": 2}' WHERE file_hash = 'a'")
    ready.sync()
    old = f"{ready.prefix}a"
    ready.redis.set(old, '{"v": 1}')
    resync(ready.settings, ready.target, [])
    with opened_sync(ready) as cache:
        entry = cache.get_entry("a")
        assert (entry.value, entry.source, entry.why) == ({"v": 2}, Source.COLUMN, Why.BEHIND)
        assert ready.redis.get(old) == b'{"v": 2}'  # filled, with the version of this epoch
        assert cache.get_entry("a").source is Source.REDIS


def test_before_init_there_is_nothing_to_open(migrating: Migrating) -> None:
    with pytest.raises(NotInitialised):
        opened_sync(migrating)

    async def work() -> None:
        with pytest.raises(NotInitialised):
            await opened(migrating)

    run(work)


def test_pinned_after_clean(ready: Migrating) -> None:
    identity = ready.settings.identity()
    for key in ready.redis.scan_iter(match="cachemig:[vi]:*"):
        if ready.prefix.encode() in key:
            ready.redis.delete(key)
    options = {**opening(ready), "phase": "dropped", "settings": identity}
    del options["dsn"]
    with CacheService.open(**options) as cache:
        assert cache.get("a") == {"v": "a"}
        cache.put("a", {"v": 2})
        assert cache.get("a") == {"v": 2}
        assert cache.get_or_compute("new", lambda: {"v": 1}) == {"v": 1}
        assert json.loads(ready.in_redis()["new"]) == {"v": 1}

        def late() -> Any:
            cache.invalidate("new2")
            return {"v": 1}

        assert cache.get_or_compute("new2", late) == {"v": 1}
        assert cache.get("new2") is None
        cache.invalidate("a")
        assert not ready.redis.exists(f"cachemig:v:{{{ready.prefix}a}}")
        assert cache.health().last_heartbeat_s is None
    with pytest.raises(Exception, match="pinned"):
        CacheService.open(**{**options, "phase": "cutover"})


def test_a_pool_of_the_applications_own(ready: Migrating) -> None:
    from psycopg.rows import dict_row
    from psycopg_pool import AsyncConnectionPool

    async def work() -> None:
        async with AsyncConnectionPool(
            ready.dsn, kwargs={"row_factory": dict_row}, min_size=1, max_size=3, open=False
        ) as pool:
            options = {**opening(ready), "pool": pool}
            del options["dsn"]
            async with await AsyncCacheService.open(**options) as cache:
                await cache.put("a", {"v": 5})
                assert await cache.get("a") == {"v": 5}
            async with pool.connection() as conn:
                row: Any = await (await conn.execute("SELECT 1 AS one")).fetchone()
                assert row == {"one": 1}

    run(work)
    assert ready.execute("SELECT cache FROM sessions WHERE file_hash = 'a'") == [({"v": 5},)]


# Many at once -------------------------------------------------------------------------------------------------------


def test_many_tasks_and_many_threads(ready: Migrating) -> None:
    move(ready, Phase.CUTOVER)
    failures: list[BaseException] = []

    async def work() -> None:
        async with await opened(ready, redis_connections=5) as cache:

            async def one(i: int) -> None:
                for n in range(10):
                    if i % 10 == 0:
                        await cache.put("abc"[i % 3], {"v": n})
                    assert await cache.get("abc"[i % 3]) is not None

            await asyncio.gather(*(one(i) for i in range(50)))
            assert cache.stats()["reads"]["redis"]["error"] == 0
            assert len(cache._store._places.sockets(None)._idle) <= 5

    run(work)
    with opened_sync(ready, redis_connections=5) as cache:

        def one(i: int) -> None:
            try:
                for n in range(10):
                    if i % 10 == 0:
                        cache.put("abc"[i % 3], {"v": n})
                    assert cache.get("abc"[i % 3]) is not None
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=one, args=(i,)) for i in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    ready.sync()
    assert ready.in_redis() == ready.in_postgres()


@pytest.mark.parametrize("phase", [Phase.CUTOVER, Phase.REDIS_ONLY])
def test_a_read_during_a_write_misses_nothing(ready: Migrating, phase: Phase) -> None:
    """It may get the old value or the new one, but one of them."""
    move(ready, phase)

    async def work() -> None:
        async with await opened(ready) as cache:
            await cache.put("a", {"v": 0})

            async def reads() -> None:
                for _ in range(300):
                    assert (await cache.get_entry("a")).found

            async def writes() -> None:
                for n in range(100):
                    await cache.put("a", {"v": n})

            await asyncio.gather(reads(), reads(), reads(), writes())

    run(work)


def test_no_key_of_the_tool_is_left_behind_but_versions(ready: Migrating) -> None:
    with opened_sync(ready) as cache:
        cache.get_or_compute("nobody", lambda: None)
        move(ready, Phase.REDIS_ONLY)
        cache.get_or_compute("new", lambda: {"v": 1})
        cache.put("new", {"v": 2})
    own = names(ready.settings.key_template)
    assert not ready.redis.exists(own.lease("new"), own.negative("new"), own.lease("nobody"))
    ttl = ready.redis.pttl(own.negative("nobody"))
    assert isinstance(ttl, int)
    assert 0 < ttl <= 10_000


def test_a_role_that_may_not_see_every_row(ready: Migrating) -> None:
    """It delivers nothing itself, sync does; and reads its own writes from the column meanwhile."""
    role = f"cachemig_test_app_{ready.prefix[1:-1]}"
    ready.execute(f"CREATE ROLE {role} LOGIN")
    try:
        ready.execute(f"GRANT SELECT, UPDATE ON sessions TO {role}")
        ready.execute("ALTER TABLE sessions ENABLE ROW LEVEL SECURITY")
        ready.execute(f"CREATE POLICY mine ON sessions TO {role} USING (file_hash <> 'c')")
        ready.set(app_roles=role)
        with psycopg.connect(ready.dsn) as conn, conn.transaction():
            for statement in functions.statements(conn, inspect(conn, ready.settings)):
                conn.execute(statement)
        move(ready, Phase.CUTOVER)
        with CacheService.open(**{**opening(ready), "dsn": make_conninfo(ready.dsn, user=role)}) as cache:
            written = cache.put("a", {"v": 2})
            assert (written.stored, written.delivered, written.version) == (True, False, None)
            assert json.loads(ready.in_redis()["a"]) == {"v": "a"}
            assert cache.get("a") == {"v": 2}
            assert not cache.put("c", {"v": 2}).stored
            assert cache.get_entry("b").source is Source.REDIS
            ready.redis.delete(f"{ready.prefix}b")
            assert cache.get("b") == {"v": "b"}
            assert "b" not in ready.in_redis()
            cache.invalidate("b")
            assert cache.get_or_compute("b", lambda: {"v": "loaded"}) == {"v": "loaded"}
            assert cache.get("b") == {"v": "loaded"}
            cache.invalidate("b")
            assert cache.get_or_compute("b", lambda: cache.invalidate("b") and {"v": "late"}) == {"v": "late"}
            assert cache.get("b") is None
        ready.sync()
        assert ready.in_redis() == ready.in_postgres()
    finally:
        ready.execute(f"DROP OWNED BY {role}")
        ready.execute(f"DROP ROLE {role}")


def test_an_application_that_forgets_to_close_ends_all_the_same(ready: Migrating) -> None:
    code = (
        "import sys\nfrom cachemig.service import CacheService\n"
        "cache = CacheService.open(dsn=sys.argv[1], redis_url=sys.argv[2])\nprint(cache.get('a'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ready.dsn, ready.redis_url], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, "{'v': 'a'}\n")

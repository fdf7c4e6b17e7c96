"""Redis behind sentinels: the primary is found, also when it is another one; and deliveries that wait for replicas."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from cachemig import errors
from cachemig.config import load
from cachemig.ladder import Phase
from cachemig.steps import doctor
from cachemig.steps import sync as sync_step
from cachemig.steps.doctor import Level
from cachemig.stop import Stop
from cachemig.targets.open import open_target
from cachemig.targets.redis import Write
from tests.conftest import Servers
from tests.integration.cluster import wait_for
from tests.integration.conftest import Migrating, finish, on
from tests.integration.serving import move, opened, opened_sync, run
from tests.integration.watched import SERVICE, Watched, watched_by_a_sentinel


@pytest.fixture(scope="module")
def watched(servers: Servers) -> Iterator[Watched]:
    with watched_by_a_sentinel(servers.programs.redis) as watched:
        yield watched


def behind(migrating: Migrating, watched: Watched) -> Migrating:
    """With the sentinel's primary as target; the oracle looks at server 0."""
    on(migrating, watched.url)
    migrating.use_redis(watched.servers[0].url)
    return migrating


def test_the_primary_is_found(migrating: Migrating, watched: Watched) -> None:
    behind(migrating, watched)
    for number in range(30):
        migrating.put(f"k{number}", {"n": number, "x": "y" * (20_000 if number == 3 else 10)})
    found = {f.name: f for f in doctor.examine(migrating.settings, migrating.target)}
    assert [f for f in found.values() if f.level is Level.ERROR] == []
    assert f"127.0.0.1:{watched.servers[0].port}, the primary of {SERVICE}" in found["redis-reachable"].what
    assert "does not leave this machine" in found["redis-transport"].what
    migrating.begin()
    assert migrating.backfill().tally.delivered == 30
    assert migrating.in_redis() == migrating.in_postgres()
    assert migrating.verify().outcome.passed


def test_a_name_that_no_sentinel_knows(watched: Watched) -> None:
    settings = load({"redis_url": watched.url.replace(SERVICE, "another")}, {})
    with open_target(settings, {}) as target, pytest.raises(errors.TargetUnavailable, match="another"):
        target.check()


def test_an_application_finds_the_primary(migrating: Migrating, watched: Watched) -> None:
    behind(migrating, watched)
    migrating.put("a", {"a": 1})
    migrating.begin()
    migrating.backfill()
    move(migrating, Phase.CUTOVER)
    with opened_sync(migrating) as cache:
        assert cache.get_entry("a").source.value == "redis"
        assert cache.put("a", {"a": 2}).delivered
        assert cache.health().redis_reachable

    async def asynchronously() -> None:
        async with await opened(migrating) as cache:
            assert (await cache.get_entry("a")).source.value == "redis"
            assert (await cache.put("a", {"a": 3})).delivered

    run(asynchronously)
    assert migrating.in_redis() == migrating.in_postgres()


# Replicas ---------------------------------------------------------------------------------------------------------


def test_a_delivery_counts_when_replicas_have_it(migrating: Migrating, watched: Watched) -> None:
    behind(migrating, watched).set(wait_replicas="1")
    assert [r.written for r in migrating.target.deliver([Write("a", 1, b"1")])] == [True]
    assert watched.clients[1].get(f"{migrating.prefix}a") == b"1"
    migrating.set(wait_replicas="2", redis_timeout="500ms")
    with pytest.raises(errors.TargetUnavailable, match="only 1 of 2 replicas"):
        list(migrating.target.deliver([Write("a", 2, b"2")]))


def test_a_replica_that_hangs_is_waited_for(migrating: Migrating, watched: Watched) -> None:
    behind(migrating, watched)
    migrating.begin()
    migrating.set(wait_replicas="1", redis_timeout="1s", retry_for="20s")
    migrating.put("a", {"a": 1})
    waited = []
    watched.send(1, signal.SIGSTOP)
    try:
        for progress in sync_step.sync(migrating.settings, migrating.target, Stop(), follow=False):
            if progress.waiting:
                waited.append(progress.waiting)
                watched.send(1, signal.SIGCONT)
    finally:
        watched.send(1, signal.SIGCONT)
    assert "only 0 of 1 replica" in waited[0]
    assert migrating.marks() == []


# A primary that is lost -------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_another_primary_in_the_middle(servers: Servers, migrating: Migrating, how: signal.Signals) -> None:
    with watched_by_a_sentinel(servers.programs.redis) as watched:
        behind(migrating, watched)
        migrating.set(chunk_bytes="16KiB", redis_timeout="2s", retry_for="60s")
        migrating.execute(
            "INSERT INTO sessions (file_hash, cache) SELECT 'k' || n, '{\"v\": 1}' FROM generate_series(1, 3000) n"
        )
        migrating.begin()
        stop = Stop()
        failures: list[BaseException] = []

        def follow() -> None:
            try:
                with open_target(migrating.settings, {}) as target:
                    finish(sync_step.sync(migrating.settings, target, stop, follow=True))
            except errors.Interrupted:
                pass
            except BaseException as exc:
                failures.append(exc)

        follower = threading.Thread(target=follow)
        follower.start()
        try:
            migrating.backfill()
            move(migrating, Phase.CUTOVER)
            with opened_sync(migrating) as cache:
                assert cache.put("k1", {"v": 2}).delivered
                watched.send(0, how)
                for number in range(40):
                    assert cache.put(f"k{number + 1}", {"v": 3}).stored
                    assert cache.get(f"k{number + 1}") == {"v": 3}
                    time.sleep(0.1)
                wait_for(lambda: watched.primary == 1)
                if how is signal.SIGSTOP:
                    watched.send(0, signal.SIGCONT)
                wait_for(lambda: cache.put("k1", {"v": 4}).delivered)
                wait_for(lambda: cache.get_entry("k1").source.value == "redis")
            time.sleep(1)
        finally:
            stop.request(15)
            follower.join()
        assert failures == []
        migrating.use_redis(watched.servers[1].url)
        migrating.sync()
        migrating.backfill()
        migrating.sync()
        assert migrating.in_redis() == migrating.in_postgres()
        assert migrating.verify().outcome.passed
        assert migrating.execute("SELECT epoch > 0 FROM cachemig.migration") == [(True,)]

"""Orders from another terminal are taken within a second; a key that Redis refuses does not hold up the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from cachemig.steps import backfill as backfill_step
from cachemig.steps import orders
from cachemig.steps import sync as sync_step
from cachemig.stop import Stop
from tests.integration.conftest import Migrating, finish


@pytest.fixture
def filled(migrating: Migrating) -> Migrating:
    migrating.execute(
        "INSERT INTO sessions (file_hash, cache) SELECT 'k' || n, jsonb_build_object('v', repeat('x', 10000))"
        " FROM generate_series(1, 600) AS n"
    )
    migrating.set(batch_bytes="64KiB", chunk_bytes="512KiB")
    migrating.begin()
    return migrating


def until(condition: Callable[[], bool], seconds: float = 20) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)
    return time.monotonic() - began


def test_pause_and_resume_in_the_middle_of_a_backfill(filled: Migrating) -> None:
    filled.set(batch_bytes="64KiB", chunk_bytes="512KiB", max_rate="1MiB")
    running = backfill_step.backfill(filled.settings, filled.target, Stop())
    while next(running).entries < 50:
        pass
    orders.give(filled.settings, paused=True)
    began = time.monotonic()
    while not (progress := next(running)).waiting:
        assert time.monotonic() - began < 5
    assert "paused by" in progress.waiting
    held = len(filled.in_redis())
    for _ in range(3):
        assert next(running).waiting
    assert len(filled.in_redis()) == held < 600
    # While it waits it holds no chunk and no transaction.
    assert filled.execute("SELECT count(*) FROM cachemig.chunk WHERE state = 'running'") == [(0,)]
    assert filled.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cachemig' AND datname = current_database()"
        " AND backend_xmin IS NOT NULL"
    ) == [(0,)]
    orders.give(filled.settings, paused=False, max_rate=0)
    assert finish(running).tally.delivered >= 600
    assert filled.in_redis() == filled.in_postgres()


def test_a_limit_is_kept_and_can_be_changed_live(filled: Migrating) -> None:
    filled.set(batch_bytes="64KiB", chunk_bytes="512KiB", max_rate="2MiB")
    done = threading.Event()

    def work() -> None:
        finish(backfill_step.backfill(filled.settings, filled.target, Stop()))
        done.set()

    thread = threading.Thread(target=work)
    began = time.monotonic()
    thread.start()
    assert not done.wait(1.5)  # 6 MB at 2 MiB a second take three seconds
    assert len(filled.in_redis()) * 10_000 < 2 * 2**20 * (time.monotonic() - began + 1)
    orders.give(filled.settings, max_rate=0)
    until(done.is_set)
    thread.join()
    assert filled.in_redis() == filled.in_postgres()


def test_pause_and_resume_of_a_follower(filled: Migrating) -> None:
    filled.backfill()
    stop = Stop()
    thread = threading.Thread(target=lambda: finish(sync_step.sync(filled.settings, filled.target, stop, follow=True)))
    thread.start()
    try:
        orders.give(filled.settings, paused=True)
        time.sleep(1.0)
        filled.execute("UPDATE sessions SET cache = '{\"v\": 1}' WHERE file_hash = 'k1'")
        time.sleep(0.7)
        assert filled.marks() == ["k1"]
        orders.give(filled.settings, paused=False)
        assert until(lambda: filled.marks() == []) < 3
    finally:
        stop.request(15)
        thread.join()


def test_orders_are_journalled_and_shown(filled: Migrating) -> None:
    from cachemig.steps import status

    orders.give(filled.settings, paused=True, max_rate=1000)
    told = status.status(filled.settings).orders
    assert told.paused_by is not None
    assert told.max_rate == 1000
    commands = [row[0] for row in filled.execute("SELECT command FROM cachemig.journal ORDER BY id DESC LIMIT 2")]
    assert commands == ["throttle", "pause"]


def test_a_poisoned_key_is_set_aside_after_bounded_tries_and_the_rest_flows(filled: Migrating) -> None:
    filled.backfill()
    poisoned = f"cachemig:v:{{{filled.prefix}k7}}"
    filled.redis.rpush(poisoned, "x")
    filled.execute("UPDATE sessions SET cache = '{\"v\": 1}' WHERE file_hash IN ('k6', 'k7', 'k8')")
    result = filled.sync()
    assert result.tally.failed == sync_step.TRIES
    assert filled.marks() == []
    assert filled.in_redis()["k6"] == filled.in_redis()["k8"] == b'{"v": 1}'
    assert filled.execute("SELECT key, split_part(error, ':', 1) FROM cachemig.entry WHERE state = 'failed'") == [
        ("k7", "redis")
    ]
    filled.redis.delete(poisoned)
    filled.verify(repair=True)
    filled.sync()
    assert filled.verify().outcome.passed


def test_a_key_that_is_refused_for_a_moment_is_delivered_all_the_same(
    filled: Migrating, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.backfill()
    poisoned = f"cachemig:v:{{{filled.prefix}k7}}"
    filled.redis.rpush(poisoned, "x")
    filled.execute("UPDATE sessions SET cache = '{\"v\": 1}' WHERE file_hash = 'k7'")
    running = sync_step.sync(filled.settings, filled.target, Stop(), follow=True)
    next(running)
    filled.redis.delete(poisoned)
    while filled.marks():
        next(running)
    running.close()
    assert filled.in_redis()["k7"] == b'{"v": 1}'
    assert filled.execute("SELECT count(*) FROM cachemig.entry WHERE state = 'failed'") == [(0,)]


def test_a_hot_key_does_not_starve_others(filled: Migrating) -> None:
    """Thousands of changes of one key, folded by the batch; a single change of another one behind them gets through."""
    filled.backfill()
    filled.execute("INSERT INTO cachemig.change (key) SELECT 'k1' FROM generate_series(1, 5000)")
    filled.execute("UPDATE sessions SET cache = '{\"v\": 2}' WHERE file_hash = 'k2'")
    began = time.monotonic()
    result = filled.sync()
    assert result.changes == 5001
    assert result.tally.delivered <= 12  # once a batch, not once a change
    assert time.monotonic() - began < 20
    assert filled.in_redis()["k2"] == b'{"v": 2}'

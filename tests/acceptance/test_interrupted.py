"""Killed, stopped and resumed, while writers run."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from redis import Redis

from cachemig.demo.application import Application
from cachemig.demo.payloads import Planted
from tests.acceptance.conftest import Operator

Table = psycopg.Connection[tuple[Any, ...]]


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def done(conn: Table) -> int:
    row = conn.execute("SELECT count(*) FROM cachemig.chunk WHERE state = 'done'").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.long
def test_killed_ten_times_in_a_row_with_writers_running(operator: Operator, sessions: Callable[[int], Planted]) -> None:
    """SIGKILL at random; each run goes on; at the end nothing is bad but the rows that were planted corrupt."""
    planted = sessions(1200)
    operator.environment["CACHEMIG_CHUNK_BYTES"] = "256KiB"
    operator.environment["CACHEMIG_BATCH_BYTES"] = "64KiB"
    operator.fine("init")
    operator.fine("dual-write")
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    kills = 0
    with (
        Application(operator.dsn, seed=1, rate_per_s=60),
        Application(operator.dsn, seed=2, rate_per_s=60),
        psycopg.connect(operator.dsn, autocommit=True) as watch,
    ):
        follower = operator.start("sync", "--follow")
        while kills < 10:
            before = done(watch)
            worker = operator.start("backfill")
            # From before its first chunk to long after its last one.
            time.sleep(chance.uniform(0.3, 1.0))
            worker.send_signal(signal.SIGKILL)
            worker.communicate()
            kills += 1
            assert done(watch) >= before
            if chance.random() < 0.3:
                follower.kill()
                follower.communicate()
                follower = operator.start("sync", "--follow")
        operator.fine("backfill")
        finished = done(watch)
        follower.send_signal(signal.SIGTERM)
        _, errors = follower.communicate(timeout=30)
        assert follower.returncode == 0, errors
    assert finished > 5
    operator.fine("sync", "--once")
    ended = operator.fine("verify", "--accept-set-aside", str(len(planted.corrupt)), "--json")
    counts = ended.document["counts"]
    assert set(counts) <= {"match", "expired", "skipped", "set-aside"}
    assert counts["set-aside"] == len(planted.corrupt)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)]
)
def test_stopped_and_resumed(
    operator: Operator, table: Table, redis: Redis, prefix: str, number: signal.Signals, code: int
) -> None:
    table.execute(
        "INSERT INTO therapy_sessions SELECT n, 'k' || n,"
        " jsonb_build_object('channels_analyzed', 1, 'v', repeat(md5(n::text), 100)), NULL, NULL"
        " FROM generate_series(10, 20000) AS n"
    )
    operator.environment["CACHEMIG_CHUNK_BYTES"] = "512KiB"
    operator.fine("init")
    operator.fine("dual-write")
    worker = operator.start("backfill")
    wait_for(lambda: done(table) >= 2)
    worker.send_signal(number)
    _, errors = worker.communicate(timeout=30)
    assert worker.returncode == code, errors
    assert "cachemig backfill" in errors
    before = done(table)
    assert 2 <= before < table.execute("SELECT count(*) FROM cachemig.chunk").fetchone()[0]  # type: ignore[index]
    assert table.execute("SELECT count(*) FROM cachemig.chunk WHERE state = 'running'").fetchone() == (0,)
    resumed = operator.fine("backfill", "--json").document
    assert resumed["resumed_at"] == before
    assert len(list(redis.scan_iter(match=f"{prefix}*", count=10000))) == 19993
    operator.fine("verify")


def test_a_second_ctrl_c_stops_at_once(operator: Operator, table: Table) -> None:
    operator.fine("init")
    operator.fine("dual-write")
    worker = operator.start("sync", "--follow")
    with table.transaction():
        # The worker waits for this lock, so the first Ctrl-C cannot be answered.
        table.execute("LOCK TABLE cachemig.change")
        wait_for(lambda: bool(table.execute("SELECT FROM pg_locks WHERE NOT granted").rowcount))
        worker.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert worker.poll() is None
        worker.send_signal(signal.SIGINT)
        _, errors = worker.communicate(timeout=10)
    assert worker.returncode == 130
    assert "Traceback" not in errors


def test_a_service_stopped_by_its_manager_ends_well(operator: Operator, table: Table) -> None:
    operator.fine("init")
    operator.fine("dual-write")
    worker = operator.start("sync", "--follow")
    table.execute("UPDATE therapy_sessions SET analytics_cache = '{\"v\": 9}'")
    wait_for(lambda: not table.execute("SELECT FROM cachemig.change").rowcount)
    worker.send_signal(signal.SIGTERM)
    out, errors = worker.communicate(timeout=30)
    assert worker.returncode == 0, errors
    assert "2 changes delivered" in out

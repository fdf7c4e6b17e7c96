"""Limits for the sake of others: what real servers say slows work down or pauses it, is named, and ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from redis import Redis

from cachemig.config import Settings
from cachemig.demo.servers import RedisServer
from cachemig.errors import LimitUnknown
from cachemig.progress import Progress
from cachemig.source import queries
from cachemig.source.connect import connect
from cachemig.steps import backfill as backfill_step
from cachemig.steps import neighbour, orders, pace
from cachemig.steps import sync as sync_step
from cachemig.steps import verify as verify_step
from cachemig.steps.orders import Orders
from cachemig.stop import Stop
from cachemig.targets.redis import RedisTarget
from tests.conftest import OwnPostgres, OwnRedis, Servers
from tests.integration.conftest import TABLE, Migrating, finish
from tests.integration.standbys import Pair, pair_of

LIMIT_S = 20


@pytest.fixture
def filled(migrating: Migrating, monkeypatch: pytest.MonkeyPatch) -> Migrating:
    """A table, and a control law in a hurry."""
    monkeypatch.setattr(orders, "_EVERY_S", 0.05)
    monkeypatch.setattr(pace, "SETTLE_S", 0.1)
    monkeypatch.setattr(pace, "STEP", 8 * 2**20)
    monkeypatch.setattr(pace, "PATIENCE_S", 0.3)
    for module in (pace, neighbour):
        monkeypatch.setattr(module, "CALM_S", 0.2)
    migrating.execute(
        "INSERT INTO sessions (file_hash, cache) SELECT 'k' || n, jsonb_build_object('v', repeat('x', 10000))"
        " FROM generate_series(1, 100) AS n"
    )
    migrating.begin()
    return migrating


@contextmanager
def busy(dsn: str, sessions: int, program: str = "app") -> Iterator[None]:
    """So many active sessions of a program."""
    with ExitStack() as stack:
        conns = [
            stack.enter_context(psycopg.connect(dsn, autocommit=True, application_name=program))
            for _ in range(sessions)
        ]
        threads = [threading.Thread(target=_sleep, args=(conn,)) for conn in conns]
        for thread in threads:
            thread.start()
        pids = [conn.info.backend_pid for conn in conns]
        with psycopg.connect(dsn, autocommit=True) as look:
            until(
                lambda: (
                    look.execute(
                        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid = ANY (%s)", (pids,)
                    ).fetchone()
                    == (sessions,)
                )
            )
        try:
            yield
        finally:
            for conn in conns:
                conn.cancel_safe()
            for thread in threads:
                thread.join()


def _sleep(conn: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled):
        conn.execute("SELECT pg_sleep(60)")


def until(condition: Any) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < LIMIT_S
        time.sleep(0.01)


def said(progress: Progress) -> str:
    return f"{progress.slowed or ''} {progress.waiting or ''}"


def run_until(step: Generator[Progress, None, Any], text: str) -> Progress:
    """Runs the step until a status line says this."""
    began = time.monotonic()
    for progress in step:
        if text in said(progress):
            return progress
        assert time.monotonic() - began < LIMIT_S, said(progress)
    raise AssertionError(f"it ended, and never said {text!r}")


def told(step: Generator[Progress, None, Any], text: str) -> str:
    return said(run_until(step, text))


def test_active_sessions_pause_a_backfill_until_they_end(filled: Migrating) -> None:
    filled.set(max_load="1", batch_bytes="64KiB", chunk_bytes="256KiB")
    running = backfill_step.backfill(filled.settings, filled.target, Stop())
    with busy(filled.dsn, 2):
        while (paused := run_until(running, "paused: ")).waiting is None:
            pass
        assert "2 active sessions in Postgres, max_load is 1" in paused.waiting
        held = len(filled.in_redis())
        for _ in range(3):
            assert "max_load is 1" in str(next(running).waiting)
        assert len(filled.in_redis()) == held < 100
        # A worker that waits holds up no vacuum.
        assert filled.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cachemig' AND backend_xmin IS NOT NULL"
            " AND datname = current_database()"
        ) == [(0,)]
    assert finish(running).tally.delivered >= 100
    assert filled.in_redis() == filled.in_postgres()


def test_a_short_pause_stops_a_verify_in_the_middle_of_a_part_and_begins_none_anew(
    filled: Migrating, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.backfill()
    monkeypatch.setattr(pace, "PATIENCE_S", 60.0)
    filled.set(max_load="1", batch_bytes="64KiB", max_rate="500KiB")
    running = verify_step.verify(filled.settings, filled.target, Stop())
    seen = [0]
    while seen[-1] < 20:
        seen.append(next(running).entries)
    with busy(filled.dsn, 2):
        stopped = run_until(running, "paused: 2 active sessions")
        for _ in range(3):
            progress = next(running)
            assert (progress.entries, progress.waiting) == (stopped.entries, None)
    result = finish(running)
    assert 20 <= stopped.entries < 100
    assert result.figures()["counts"] == {"match": 100}


def test_a_short_pause_of_a_sample_ends(filled: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    filled.backfill()
    monkeypatch.setattr(pace, "PATIENCE_S", 60.0)
    monkeypatch.setattr(verify_step, "_BATCH_KEYS", 20)  # of the later ones each begins in a pause
    filled.set(max_load="1", batch_bytes="64KiB")
    ended = threading.Event()
    results = []

    def work() -> None:
        results.append(filled.verify(sample=100))
        ended.set()

    thread = threading.Thread(target=work)
    with busy(filled.dsn, 2):
        thread.start()
        assert not ended.wait(1.0)
    assert ended.wait(LIMIT_S)
    thread.join()
    assert results[0].outcome.passed


def test_active_sessions_slow_a_sync_down_and_as_many_as_allowed_do_not(filled: Migrating) -> None:
    filled.backfill()
    filled.set(max_load="2")
    for _ in range(30):
        filled.execute("UPDATE sessions SET cache = jsonb_build_object('v', repeat('y', 10000))")
    running = sync_step.sync(filled.settings, filled.target, Stop(), follow=True)
    with busy(filled.dsn, 2):
        assert next(running).slowed is next(running).waiting is None
        with busy(filled.dsn, 1):
            assert "MiB/s: 3 active sessions in Postgres, max_load is 2" in told(running, "slowed to ")
        while filled.marks():
            next(running)
    running.close()
    assert filled.in_redis() == filled.in_postgres()


def test_a_sync_keeps_to_a_rate_that_a_batch_is_far_above(filled: Migrating) -> None:
    for _ in range(sync_step.LIMITED_BATCH // 100 + 1):  # two batches of changes, and the first is of 1 MB
        filled.execute("UPDATE sessions SET cache = cache || '{\"reviewed\": true}'")
    filled.set(max_rate="1MiB")
    began = time.monotonic()
    assert filled.sync().changes == sync_step.LIMITED_BATCH + 100
    assert 0.7 < time.monotonic() - began < LIMIT_S


def test_a_verify_pauses_and_counts_every_key_once(filled: Migrating) -> None:
    filled.backfill()
    filled.set(max_load="1")
    running = verify_step.verify(filled.settings, filled.target, Stop())
    with busy(filled.dsn, 2):
        told(running, "paused: 2 active sessions")
    result = finish(running)
    assert result.outcome.passed
    assert result.figures()["counts"] == {"match": 100}


def test_a_verify_takes_orders_in_the_middle_of_a_part(filled: Migrating) -> None:
    filled.execute("INSERT INTO sessions (file_hash, cache) SELECT file_hash || 'b', cache FROM sessions")
    filled.backfill()
    filled.set(max_rate="500KiB", batch_bytes="64KiB")
    running = verify_step.verify(filled.settings, filled.target, Stop())
    began = time.monotonic()
    while next(running).entries < 60:
        pass
    assert time.monotonic() - began > 0.8  # 600 KB
    orders.give(filled.settings, paused=True)
    paused = run_until(running, "paused by")
    assert "cachemig resume goes on" in said(paused)
    assert paused.entries < 150
    assert filled.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cachemig' AND backend_xmin IS NOT NULL"
        " AND datname = current_database()"
    ) == [(0,)]
    orders.give(filled.settings, paused=False, max_rate=0)
    assert finish(running).figures()["counts"] == {"match": 200}


def test_sessions_of_cachemig_itself_do_not_count(filled: Migrating) -> None:
    filled.set(max_load="1")
    watching = Orders(filled.settings, Stop(), {})
    with busy(filled.dsn, 2, program="cachemig"):
        assert look(filled.settings, again=watching) is None
    assert watching.throttled is None


def look(settings: Settings, *, again: Orders | None = None) -> str | None:
    with connect(settings) as conn:
        return (again or Orders(settings, Stop(), {})).look(conn)


def test_a_window_pauses_everything(filled: Migrating) -> None:
    filled.set(pause_windows="00:00-24:00", pause_windows_zone="Europe/Berlin")
    stop = Stop()
    for step in (
        backfill_step.backfill(filled.settings, filled.target, stop),
        sync_step.sync(filled.settings, filled.target, stop, follow=True),
        verify_step.verify(filled.settings, filled.target, stop),
    ):
        with closing(step):
            assert "pause_windows has 00:00-24:00 (Europe/Berlin)" in told(step, "pause")
    assert filled.in_redis() == {}


def test_a_redis_that_answers_late(filled: Migrating, own_redis: OwnRedis) -> None:
    server = own_redis()
    filled.redis_url = server.url
    settings = filled.set(max_redis_latency="5ms")
    watching = Orders(settings, Stop(), {})
    assert look(settings, again=watching) is None
    with holding(server):
        until(lambda: look(settings, again=watching))
        assert "max_redis_latency is 5 ms" in str(watching.throttled)
        assert "Redis answers in " in str(watching.throttled)
    until(lambda: look(settings, again=watching) is None)


@contextmanager
def holding(server: RedisServer) -> Iterator[None]:
    """Somebody's scripts keep Redis busy for 30 ms each."""
    ended = threading.Event()

    def hold() -> None:
        with Redis.from_url(server.url) as client:
            while not ended.is_set():
                client.eval("local n = 0 for i = 1, 2000000 do n = n + i end return n", 0)

    threads = [threading.Thread(target=hold) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_a_redis_with_little_room(filled: Migrating, own_redis: OwnRedis) -> None:
    server = own_redis({"maxmemory": "20mb", "maxmemory-policy": "noeviction"})
    filled.redis_url = server.url
    filled.set(min_redis_memory="19.5MiB")
    with Redis.from_url(server.url) as admin:
        running = sync_step.sync(filled.settings, filled.target, Stop(), follow=False)
        assert " free, min_redis_memory is 19.5 MiB" in told(running, "paused: Redis has ")
        admin.config_set("maxmemory", "64mb")
        finish(running)
        admin.config_set("maxmemory", "0")  # then it is what the machine has
        assert look(filled.set(min_redis_memory="1MiB")) is None
        assert "free" in str(look(filled.set(min_redis_memory="9999999GiB")))


@pytest.mark.long
def test_each_master_of_a_cluster_is_asked(clustered: Migrating) -> None:
    clustered.begin()
    assert look(clustered.set(max_redis_latency="1s", min_redis_memory="1MiB")) is None
    assert str(look(clustered.set(min_redis_memory="9999999GiB"))).count("min_redis_memory is") == 3


@pytest.fixture
def role(filled: Migrating) -> Iterator[str]:
    """One that may see its own sessions alone. Roles belong to the whole server."""
    name = f"mover_{filled.prefix[:-1]}"
    filled.execute(f"CREATE ROLE {name} LOGIN; GRANT USAGE ON SCHEMA cachemig TO {name}")
    filled.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA cachemig TO {name}")
    yield name
    filled.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_role_that_cannot_see_other_sessions_stops_and_says_which_grant_is_missing(
    filled: Migrating, role: str
) -> None:
    owner = filled.dsn
    filled.dsn = make_conninfo(owner, user=role)
    settings = filled.set(max_load="100", retry_for="300ms")
    watching = Orders(settings, Stop(), {})
    with closing(psycopg.connect(make_conninfo(owner, user=role))):
        paused = str(look(settings, again=watching))
    assert "cannot tell whether max_load is kept" in paused
    assert "GRANT pg_read_all_stats" in paused
    time.sleep(0.3)
    with pytest.raises(LimitUnknown, match="max_load") as refused:
        look(settings, again=watching)
    assert "GRANT pg_read_all_stats" in str(refused.value.hint)
    assert "--max-load 0" in str(refused.value.hint)
    filled.execute(f"GRANT pg_read_all_stats TO {role}")
    assert look(settings) is None


def test_sessions_that_do_not_tell_what_they_do(filled: Migrating) -> None:
    filled.set(max_load="100")
    with psycopg.connect(filled.dsn, autocommit=True) as silent:
        silent.execute("SET track_activities = off")
        assert "track_activities" in str(look(filled.settings))
    until(lambda: look(filled.settings) is None)


def test_a_question_without_an_answer_stops_work_and_in_the_end_the_run(filled: Migrating) -> None:
    """The delivery itself has a Redis; only the address that is asked is nobody's."""
    filled.execute("UPDATE sessions SET hits = 1, cache = '{\"v\": 1}'")
    target = filled.target
    filled.target = RedisTarget(filled.settings, {})
    filled.redis_url = f"unix://{filled.directory}/nobody.sock"
    filled.set(max_redis_latency="1s", retry_for="500ms")
    running = sync_step.sync(filled.settings, target, Stop(), follow=False)
    assert "Redis cannot be reached" in told(running, "paused: cannot tell whether max_redis_latency is kept")
    with pytest.raises(LimitUnknown) as ended:
        finish(running)
    assert "--max-redis-latency 0" in str(ended.value.hint)
    target.close()
    assert len(filled.marks()) == 100
    assert filled.in_redis() == {}


def test_what_halted_is_not_said_to_have_slowed(filled: Migrating) -> None:
    settings = filled.set(max_load="1")
    watching = Orders(settings, Stop(), {})
    with busy(filled.dsn, 2):
        until(lambda: look(settings, again=watching) or watching.throttled)
    with psycopg.connect(filled.dsn, autocommit=True) as silent:
        silent.execute("SET track_activities = off")
        until(lambda: "track_activities" in str(look(settings, again=watching)))
    until(lambda: look(settings, again=watching) is None)
    assert "slowed to " in str(watching.throttled)
    assert "2 active sessions" in str(watching.throttled)


def test_a_slow_answer_of_postgres_is_none(filled: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    real = queries.text

    def slow(file: str, name: str) -> str:
        return "SELECT 0, 0, 0 FROM pg_sleep(10)" if file == "neighbour" else real(file, name)

    monkeypatch.setattr(neighbour, "_ANSWER_S", 0.1)
    monkeypatch.setattr(queries, "text", slow)
    filled.set(max_load="100")
    assert "statement timeout" in str(look(filled.settings))


# Standbys ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(own_postgres: OwnPostgres, servers: Servers) -> Iterator[Pair]:
    with pair_of(own_postgres, servers) as pair:
        yield pair


def test_a_standby_that_falls_behind(pair: Pair, filled: Migrating, tmp_path: Path) -> None:
    primary, standby = pair.primary, pair.standby
    case = Migrating(primary.dsn(), filled.redis_url, filled.prefix, tmp_path / "other")
    with closing(case), psycopg.connect(standby, autocommit=True) as replica:
        case.directory.mkdir()
        case.execute(TABLE)
        case.begin()
        settings = case.set(max_standby_lag="1s")
        watching = Orders(settings, Stop(), {})
        until(lambda: case.execute("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == [(1,)])
        assert look(settings, again=watching) is None
        replica.execute("SELECT pg_wal_replay_pause()")
        case.put("k1", {"v": 1})

        def behind() -> bool:
            case.execute("UPDATE sessions SET hits = hits + 1")
            look(settings, again=watching)
            time.sleep(0.05)
            return watching.throttled is not None

        until(behind)
        assert "standby replica1 is " in str(watching.throttled)
        assert "behind, max_standby_lag is 1 s" in str(watching.throttled)
        replica.execute("SELECT pg_wal_replay_resume()")
        until(lambda: look(settings, again=watching) is None)

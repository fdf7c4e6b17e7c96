"""sync delivers every change and folds exactly what it delivered."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

from cachemig.entries.verdicts import Verdict
from cachemig.errors import Refused, TargetError
from cachemig.source import ledger, queries, scan
from cachemig.source.standing import backlog
from cachemig.source.table import inspect
from cachemig.steps import delivery
from cachemig.steps import sync as step
from cachemig.stop import Stop
from cachemig.targets.redis import RedisTarget
from tests.integration.conftest import Migrating, finish


@pytest.fixture
def moved(migrating: Migrating) -> Migrating:
    """Keys a, b and c, in both places; capture is on."""
    for key in "abc":
        migrating.put(key, {"v": 1})
    migrating.begin()
    migrating.backfill()
    return migrating


def versions(migrating: Migrating) -> dict[str, int]:
    return dict(migrating.execute("SELECT key, count FROM cachemig.version"))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sessions SET cache = '{\"v\": 2}' WHERE file_hash = 'a'",
        "UPDATE sessions SET cache = '{}' WHERE file_hash = 'a'",
        "UPDATE sessions SET cache = NULL WHERE file_hash = 'a'",
        "DELETE FROM sessions WHERE file_hash = 'a'",
        "UPDATE sessions SET file_hash = 'z' WHERE file_hash = 'a'",
        "UPDATE sessions SET file_hash = 'b' WHERE file_hash = 'a'",
        "INSERT INTO sessions (file_hash, cache) VALUES ('d', '{\"v\": 1}'), ('a', '{\"v\": 3}')",
        "TRUNCATE sessions",
    ],
)
def test_after_sync_redis_equals_postgres(moved: Migrating, statement: str) -> None:
    moved.execute(statement)
    assert moved.in_redis() != moved.in_postgres() or "TO 'b'" in statement
    moved.sync()
    assert moved.in_redis() == moved.in_postgres()
    assert moved.marks() == []
    assert moved.verify().outcome.passed


@pytest.mark.parametrize("isolation", list(psycopg.IsolationLevel))
def test_a_truncate_under_an_old_snapshot_removes_what_it_could_not_see(
    moved: Migrating, isolation: psycopg.IsolationLevel
) -> None:
    with psycopg.connect(moved.dsn) as old:
        old.isolation_level = isolation
        old.execute("SELECT 1 FROM pg_catalog.pg_class LIMIT 1")  # takes the snapshot
        moved.put("late", {"v": 1})
        moved.sync()
        assert "late" in moved.in_redis()
        before = moved.target.fetch(["late"])[0].version
        old.execute("TRUNCATE sessions")
    assert backlog(moved.conn).changes > 0
    waiting = moved.verify()
    assert waiting.counts[Verdict.PENDING] == 4
    assert waiting.outcome.passed
    moved.execute("UPDATE cachemig.change SET at = now() - interval '31 s'")
    moved.execute("UPDATE cachemig.truncation SET at = now() - interval '31 s'")
    assert moved.verify().counts[Verdict.RESURRECTED] == 4
    moved.sync()
    assert moved.in_redis() == {}
    after = moved.target.fetch(["late"])[0].version
    assert (before, after) == (1, 2)  # a late delivery of what stood there before is refused
    assert backlog(moved.conn).changes == 0
    assert moved.verify().outcome.passed


def test_versions_count_changes(moved: Migrating) -> None:
    for n in range(3):
        moved.execute("UPDATE sessions SET cache = jsonb_build_object('v', %s::int) WHERE file_hash = 'a'", n)
    moved.execute("DELETE FROM sessions WHERE file_hash = 'b'")
    moved.sync()
    assert versions(moved) == {"a": 3, "b": 1}
    found = {f.key: f.version for f in moved.target.fetch(["a", "b", "c"])}
    assert found == {"a": 3, "b": 1, "c": None}


def test_a_value_put_back_after_a_clear_is_newer_than_the_tombstone(moved: Migrating) -> None:
    moved.execute("UPDATE sessions SET cache = '{}' WHERE file_hash = 'a'")
    moved.sync()
    moved.execute("UPDATE sessions SET cache = '{\"v\": 1}' WHERE file_hash = 'a'")
    moved.sync()
    assert moved.in_redis()["a"] == b'{"v": 1}'


def test_a_change_that_comes_in_during_delivery_stays(moved: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fold takes exactly the ids that were seen before the values were read."""
    deliver = delivery.deliver

    def deliver_slowly(target: RedisTarget, entries: Iterator[object], tally: object) -> Iterator[object]:
        yield from deliver(target, entries, tally)  # type: ignore[arg-type]
        monkeypatch.undo()
        with psycopg.connect(moved.dsn, autocommit=True) as writer:
            writer.execute("UPDATE sessions SET cache = '{\"v\": 3}' WHERE file_hash = 'a'")

    moved.execute("UPDATE sessions SET cache = '{\"v\": 2}' WHERE file_hash = 'a'")
    monkeypatch.setattr(step, "deliver", deliver_slowly)
    result = finish(step.sync(moved.settings, moved.target, Stop(), follow=False))
    assert result.changes == 1
    assert moved.marks() == ["a"]
    assert moved.in_redis()["a"] == b'{"v": 2}'
    assert versions(moved) == {"a": 1}
    moved.sync()
    assert moved.in_redis()["a"] == b'{"v": 3}'
    assert versions(moved) == {"a": 2}


def test_a_crash_between_delivery_and_fold_costs_a_repeat_and_nothing_else(
    moved: Migrating, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise ZeroDivisionError

    moved.execute("UPDATE sessions SET cache = '{\"v\": 2}' WHERE file_hash = 'a'")
    monkeypatch.setattr(ledger, "write", crash)
    with pytest.raises(ZeroDivisionError):
        moved.sync()
    monkeypatch.undo()
    assert moved.in_redis()["a"] == b'{"v": 2}'
    assert moved.marks() == ["a"]
    moved.sync()
    assert moved.in_redis() == moved.in_postgres()
    assert moved.target.fetch(["a"])[0].version == 1


def test_a_worker_that_wakes_up_late_does_no_harm(moved: Migrating) -> None:
    """Its snapshot is older than what another worker has delivered meanwhile."""
    moved.execute("UPDATE sessions SET cache = '{\"v\": 2}' WHERE file_hash = 'a'")
    with psycopg.connect(moved.dsn) as late, late.transaction():
        entries = list(scan.read_keys(late, inspect(moved.conn, moved.settings), ["a"]))
    moved.execute("UPDATE sessions SET cache = '{\"v\": 3}' WHERE file_hash = 'a'")
    moved.sync()
    tally = delivery.Tally()
    list(delivery.deliver(moved.target, (e for e in entries), tally))
    assert tally.older == 1
    assert moved.in_redis()["a"] == b'{"v": 3}'


def test_backfill_and_sync_at_once_with_writers(migrating: Migrating) -> None:
    for n in range(400):
        migrating.put(f"k{n}", {"v": 0, "pad": "x" * 500})
    migrating.set(chunk_bytes="16KiB")
    migrating.begin()
    stop = Stop()
    errors: list[BaseException] = []

    def write(seed: int) -> None:
        try:
            with psycopg.connect(migrating.dsn, autocommit=True) as conn:
                for n in range(150):
                    key = f"k{(n * 7 + seed * 13) % 400}"
                    if n % 5 == 0:
                        conn.execute("DELETE FROM sessions WHERE file_hash = %s", [key])
                    elif n % 5 == 1:
                        conn.execute("INSERT INTO sessions (file_hash, cache) VALUES (%s, '{\"v\": -1}')", [key])
                    else:
                        conn.execute(
                            "UPDATE sessions SET cache = jsonb_build_object('v', %s::int) WHERE file_hash = %s",
                            [n, key],
                        )
        except BaseException as exc:
            errors.append(exc)

    def follow() -> None:
        try:
            with RedisTarget(migrating.settings, {}) as target:
                finish(step.sync(migrating.settings, target, stop, follow=True))
        except BaseException as exc:
            errors.append(exc)

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    followers = [threading.Thread(target=follow) for _ in range(2)]
    for thread in writers + followers:
        thread.start()
    migrating.backfill()
    for thread in writers:
        thread.join()
    stop.request(2)
    for thread in followers:
        thread.join()
    assert errors == []
    migrating.sync()
    assert migrating.marks() == []
    assert migrating.in_redis() == migrating.in_postgres()
    assert migrating.verify().outcome.passed


def test_following_ends_when_asked(moved: Migrating) -> None:
    stop = Stop()
    running = step.sync(moved.settings, moved.target, stop, follow=True)
    next(running)
    moved.execute("UPDATE sessions SET cache = '{\"v\": 2}' WHERE file_hash = 'a'")
    began = time.monotonic()
    while next(running).done == 0:
        assert time.monotonic() - began < 10
    stop.request(15)
    assert finish(running).changes == 1
    assert moved.in_redis() == moved.in_postgres()


def test_following_ends_when_capture_is_switched_off(moved: Migrating) -> None:
    from cachemig.steps import dual_write

    running = step.sync(moved.settings, moved.target, Stop(), follow=True)
    next(running)
    finish(dual_write.switch(moved.settings, moved.target, enable=False))
    with pytest.raises(Refused):
        finish(running)


def test_two_workers_fold_the_same_keys_without_a_deadlock(moved: Migrating) -> None:
    moved.execute("INSERT INTO cachemig.change (key) SELECT 'k' || n % 50 FROM generate_series(1, 4000) AS n")
    errors: list[BaseException] = []

    def drain() -> None:
        try:
            with RedisTarget(moved.settings, {}) as target:
                finish(step.sync(moved.settings, target, Stop(), follow=False))
        except BaseException as exc:
            errors.append(exc)

    workers = [threading.Thread(target=drain) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []
    moved.sync()
    assert moved.marks() == []
    assert sum(versions(moved).values()) == 4000


def test_a_dead_redis_keeps_every_change(moved: Migrating) -> None:
    moved.execute("UPDATE sessions SET cache = '{\"v\": 2}' WHERE file_hash = 'a'")
    url = moved.redis_url
    moved.set(redis_url="redis://127.0.0.1:1", retry_for="200ms")
    with pytest.raises(TargetError):
        moved.sync()
    assert moved.marks() == ["a"]
    moved.set(redis_url=url)
    moved.sync()
    assert moved.in_redis() == moved.in_postgres()


def test_the_backlog_is_told(moved: Migrating) -> None:
    assert step.preview(moved.settings).figures["changes"] == 0
    moved.execute("UPDATE sessions SET cache = '{\"v\": 2}'")
    told = step.preview(moved.settings)
    assert told.figures["changes"] == 3
    assert told.figures["oldest_s"] is not None
    assert 0 <= told.figures["oldest_s"] < 60
    assert "LIMIT 100000" in queries.text("sync", "backlog")


def _rewrite(dsn: str, key: str, done: threading.Event, written: list[int]) -> None:
    """Writes one key as fast as Postgres takes it."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SET synchronous_commit = off")
        while not done.is_set():
            written[0] += 1
            conn.execute(
                "UPDATE sessions SET cache = jsonb_build_object('v', %s::int) WHERE file_hash = %s", [written[0], key]
            )


def _follow(moved: Migrating, stop: Stop) -> None:
    with RedisTarget(moved.settings, {}) as target:
        finish(step.sync(moved.settings, target, stop, follow=True))


def test_a_hot_key_does_not_hold_up_the_others(moved: Migrating) -> None:
    stop, done, written = Stop(), threading.Event(), [0]
    threads = [
        threading.Thread(target=_rewrite, args=(moved.dsn, "a", done, written)),
        threading.Thread(target=_follow, args=(moved, stop)),
    ]
    for thread in threads:
        thread.start()
    try:
        time.sleep(1.0)
        for n in range(20):
            before = written[0]
            moved.execute("UPDATE sessions SET cache = jsonb_build_object('v', %s::int) WHERE file_hash = 'b'", n)
            while moved.in_redis()["b"] != b'{"v": %d}' % n:
                assert written[0] - before < 20_000, "b waits behind the writes of a"
                time.sleep(0.002)
    finally:
        done.set()
        threads[0].join()
        stop.request(15)
        threads[1].join()
    moved.sync()
    assert moved.in_redis() == moved.in_postgres()
    assert versions(moved)["a"] == written[0]


@pytest.mark.long
def test_change_stays_small_while_its_rows_turn_over(moved: Migrating) -> None:
    """Autovacuum, told by the table's own settings to look at numbers of rows, keeps up with what sync deletes."""
    moved.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
    moved.execute("SELECT pg_reload_conf()")
    stop, done, written = Stop(), threading.Event(), [0]
    threads = [
        threading.Thread(target=_rewrite, args=(moved.dsn, "a", done, written)),
        threading.Thread(target=_follow, args=(moved, stop)),
    ]
    for thread in threads:
        thread.start()
    sizes = []
    try:
        for _ in range(40):
            time.sleep(1.0)
            sizes.append(int(moved.execute("SELECT pg_total_relation_size('cachemig.change')")[0][0]))
    finally:
        done.set()
        threads[0].join()
        stop.request(15)
        threads[1].join()
        moved.execute("ALTER SYSTEM RESET autovacuum_naptime")
        moved.execute("SELECT pg_reload_conf()")
    assert written[0] > 20_000
    # Half of the time is enough to grow to what is needed; from then on space is used again.
    assert max(sizes[20:]) < 1.5 * max(sizes[:20]), sizes
    assert max(sizes) < 16 << 20, sizes

"""When a server may have lost what it acknowledged, that is noticed, and everything is delivered again."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cachemig.demo.servers import PostgresServer, RedisServer
from cachemig.entries.entry import EPOCH
from cachemig.errors import Refused, TargetEpochPassed
from cachemig.source import control, scan
from cachemig.source.table import inspect
from cachemig.steps import backfill as backfill_step
from cachemig.steps import delivery, dual_write, resync
from cachemig.steps import epoch as epoch_step
from cachemig.stop import Stop
from cachemig.targets.redis import Write
from tests.conftest import OwnPostgres, OwnRedis
from tests.integration.conftest import TABLE, Migrating, finish


@pytest.fixture
def server(own_redis: OwnRedis) -> RedisServer:
    """A Redis that keeps what it acknowledged over a restart."""
    return own_redis({"appendonly": "yes", "appendfsync": "always"})


@pytest.fixture
def moved(migrating: Migrating, server: RedisServer) -> Migrating:
    """k0 … k9 in both places; k0 changed, k1 deleted: each has a version key."""
    migrating.set(redis_url=server.url)
    migrating.use_redis(server.url)
    for n in range(10):
        migrating.put(f"k{n}", {"v": n})
    migrating.begin()
    migrating.backfill()
    migrating.execute("UPDATE sessions SET cache = '{\"v\": 100}' WHERE file_hash = 'k0'")
    migrating.execute("DELETE FROM sessions WHERE file_hash = 'k1'")
    migrating.sync()
    assert migrating.verify().outcome.passed
    return migrating


def all_refused(migrating: Migrating, writes: list[Write]) -> None:
    """None of these writes changes anything, each in a delivery of its own."""
    for write in writes:
        with contextlib.suppress(TargetEpochPassed):
            assert not any(receipt.written for receipt in migrating.target.deliver([write]))


def epoch(migrating: Migrating) -> int:
    return int(migrating.execute("SELECT epoch FROM cachemig.migration")[0][0])


def recovered(migrating: Migrating, expected_epoch: int) -> None:
    """Verify refuses; sync begins the epoch; then all is well, and no write of the old epoch is accepted."""
    with pytest.raises(Refused) as refused:
        migrating.verify()
    assert "sync" in str(refused.value.hint)
    assert migrating.sync().epochs == 1
    assert epoch(migrating) == expected_epoch
    assert migrating.in_redis() == migrating.in_postgres()
    migrating.backfill()
    assert migrating.verify().outcome.passed
    late = [Write("k0", 0, b"old"), Write("k1", 0, b"old"), Write("k1", 3, b"old"), Write("k5", 0, b"old")]
    late += [Write("never seen", 5, b"old"), Write("k1", 1, b"x" * 10_000)]
    all_refused(migrating, late)
    assert migrating.in_redis() == migrating.in_postgres()


def test_a_flushed_redis(moved: Migrating) -> None:
    moved.redis.flushall()  # its own server
    recovered(moved, 1)


def lose_its_data(server: RedisServer) -> None:
    shutil.rmtree(server.directory / "appendonlydir", ignore_errors=True)
    (server.directory / "appendonly.aof").unlink(missing_ok=True)  # before Redis 7


def test_a_redis_restarted_without_its_data(moved: Migrating, server: RedisServer) -> None:
    server.kill()
    lose_its_data(server)
    server.start()
    recovered(moved, 1)


def test_a_redis_restarted_with_its_data_may_have_lost_the_last_of_it(moved: Migrating, server: RedisServer) -> None:
    server.kill()
    server.start()
    assert len(moved.in_redis()) == 9
    recovered(moved, 1)


def test_another_redis(moved: Migrating, own_redis: OwnRedis) -> None:
    other = own_redis()
    moved.set(redis_url=other.url)
    moved.use_redis(other.url)
    recovered(moved, 1)


def test_the_same_redis_is_no_new_one(moved: Migrating) -> None:
    for _ in range(3):
        assert moved.sync().epochs == 0
        assert moved.backfill().epochs == 0
    assert epoch(moved) == 0


def test_a_redis_lost_in_the_middle_of_a_backfill(moved: Migrating, server: RedisServer) -> None:
    moved.execute(
        "INSERT INTO sessions (file_hash, cache) SELECT 'n' || n, '{\"v\": 1}' FROM generate_series(1, 300) n"
    )
    moved.sync()
    moved.set(redis_url=server.url, chunk_bytes="512", retry_for="20s")
    running = backfill_step.backfill(moved.settings, moved.target, Stop(), restart=True)
    lost = False
    while True:
        try:
            progress = next(running)
        except StopIteration as end:
            result: backfill_step.Backfilled = end.value
            break
        if progress.done > 3 and not lost:
            server.kill()
            lose_its_data(server)
            server.start()
            lost = True
    assert result.epochs == 1
    moved.sync()
    assert moved.in_redis() == moved.in_postgres()
    assert moved.verify().outcome.passed


def test_resync_of_some_keys_and_of_all(moved: Migrating) -> None:
    moved.redis.set(f"{moved.prefix}k5", "wrong", keepttl=True)
    assert resync.preview(moved.settings, moved.target, ["k5"]).figures == {"marked": 1}
    assert resync.resync(moved.settings, moved.target, ["k5"]) == resync.Resynced(1, None)
    assert moved.sync().tally.delivered == 1
    assert moved.verify().outcome.passed
    assert resync.preview(moved.settings, moved.target, []).figures == {"epoch": 1, "marked": 10}
    assert resync.resync(moved.settings, moved.target, []) == resync.Resynced(10, 1)
    moved.sync()
    assert moved.target.fetch(["k5"])[0].version == EPOCH + 2
    moved.backfill()
    assert moved.verify().outcome.passed


def test_two_workers_that_notice_the_same_thing_begin_one_epoch(moved: Migrating) -> None:
    moved.redis.flushall()
    first = epoch_step.begin(moved.conn, moved.target, "first", expected=0)
    assert first is not None
    assert first.epoch == 1
    assert epoch_step.begin(moved.conn, moved.target, "second", expected=0) is None
    assert epoch_step.ensure(moved.conn, moved.target) is None


@pytest.fixture
def own_migrating(
    own_postgres: OwnPostgres, server: RedisServer, tmp_path: Path
) -> Iterator[tuple[Migrating, PostgresServer]]:
    """A migration on a Postgres of its own, to be killed and promoted."""
    postgres = own_postgres({"synchronous_commit": "on"})
    case = Migrating(postgres.dsn(), server.url, "t:", tmp_path)
    case.execute(TABLE)
    for n in range(5):
        case.put(f"k{n}", {"v": n})
    case.begin()
    case.backfill()
    yield case, postgres
    case.close()


def test_a_postgres_that_lost_commits_in_a_failover(own_migrating: tuple[Migrating, PostgresServer]) -> None:
    """What the lost commits had put into Redis goes: the counts there are ahead of those in Postgres."""
    case, postgres = own_migrating
    ((data,),) = case.execute("SHOW data_directory")
    case.conn.close()
    postgres.stop()
    standby = Path(f"{data}-standby")
    subprocess.run(["cp", "-a", data, standby], check=True)
    postgres.start()
    case.conn = psycopg.connect(case.dsn, autocommit=True)
    case.execute("UPDATE sessions SET cache = '{\"v\": 77}' WHERE file_hash = 'k0'")
    case.execute("UPDATE sessions SET cache = '{\"v\": 78}' WHERE file_hash = 'k0'")
    case.execute("DELETE FROM sessions WHERE file_hash = 'k1'")
    case.put("lost", {"v": 1})
    case.sync()
    assert case.in_redis()["k0"] == b'{"v": 78}'
    assert "lost" in case.in_redis()
    case.conn.close()
    postgres.kill()
    shutil.rmtree(data)
    standby.rename(data)
    (Path(data) / "standby.signal").touch()
    shutil.chown(Path(data) / "standby.signal", Path(data).stat().st_uid, Path(data).stat().st_gid)
    postgres.start()
    case.conn = psycopg.connect(case.dsn, autocommit=True)
    case.execute("SELECT pg_promote()")
    with pytest.raises(Refused, match="timeline 00000002, was on 00000001"):
        case.verify()
    assert case.sync().epochs == 1
    case.backfill()
    assert case.in_redis() == case.in_postgres() == {f"k{n}": b'{"v": %d}' % n for n in range(5)}
    assert case.verify().outcome.passed


def test_an_epoch_begins_above_every_version_that_redis_holds(moved: Migrating) -> None:
    """As when the control schema was dropped by hand, or Postgres was restored from an old backup."""
    moved.target.client.set(f"cachemig:v:{{{moved.prefix}k5}}", 7 * EPOCH + 3)
    moved.target.client.set(f"cachemig:v:{{{moved.prefix}never}}", 2 * EPOCH)
    moved.target.client.set(f"{moved.prefix}never", "{}")
    resync.resync(moved.settings, moved.target, [])
    assert epoch(moved) == 8
    moved.sync()
    moved.backfill()
    assert moved.in_redis() == moved.in_postgres()
    assert moved.verify().outcome.passed


def test_beginning_anew_over_what_an_earlier_migration_left(moved: Migrating) -> None:
    moved.execute("DROP TRIGGER cachemig_capture ON sessions")
    moved.execute("DROP TRIGGER cachemig_capture_truncate ON sessions")
    moved.execute("DROP SCHEMA cachemig CASCADE")
    moved.execute("DELETE FROM sessions WHERE file_hash = 'k0'")
    moved.execute("UPDATE sessions SET cache = '{\"v\": 0}' WHERE file_hash = 'k5'")
    moved.begin()
    assert epoch(moved) == 1
    moved.sync()
    assert moved.backfill().tally.older == 0
    assert moved.in_redis() == moved.in_postgres()
    assert moved.verify().outcome.passed


def test_a_worker_that_sleeps_through_a_new_epoch_delivers_nothing(moved: Migrating) -> None:
    """Its snapshot is of before; the key is one that nobody knew, so no version key is there to refuse it."""
    with psycopg.connect(moved.dsn) as late, late.transaction():
        moved.put("new", {"v": 1})
        entries = list(scan.read_keys(late, inspect(late, moved.settings), ["new"]))
    assert entries[0].text is not None
    finish(dual_write.switch(moved.settings, moved.target, enable=False))
    moved.execute("DELETE FROM sessions WHERE file_hash = 'new'")  # unnoticed
    finish(dual_write.switch(moved.settings, moved.target, enable=True))
    with pytest.raises(TargetEpochPassed):
        list(delivery.deliver(moved.target, (e for e in entries), delivery.Tally()))
    moved.sync()
    moved.backfill()
    assert moved.in_redis() == moved.in_postgres()
    assert moved.verify().outcome.passed


def test_what_is_read_while_capture_is_off_is_not_delivered(moved: Migrating) -> None:
    finish(dual_write.switch(moved.settings, moved.target, enable=False))
    table = inspect(moved.conn, moved.settings)
    with pytest.raises(Refused, match="capture was switched off"):
        list(scan.read_chunk(moved.conn, table, None, None))
    with pytest.raises(Refused, match="capture was switched off"):
        list(scan.read_keys(moved.conn, table, ["k5"]))


def test_a_key_on_its_way_is_marked_again_by_a_new_epoch(moved: Migrating) -> None:
    """The worker that has it may fold its change after it delivered to a Redis that was lost."""
    moved.put("on its way", {"v": 1})
    resync.resync(moved.settings, moved.target, [])
    assert moved.marks().count("on its way") == 2


def test_an_epoch_whose_commit_was_lost_is_not_used_twice(moved: Migrating) -> None:
    moved.target.plant_marker(4)  # as after a failover that lost the commit of epoch 4
    assert moved.sync().epochs == 1
    assert epoch(moved) == 5
    moved.backfill()
    assert moved.verify().outcome.passed


def test_a_key_of_a_chunk_in_work_is_remembered_when_capture_goes_off(migrating: Migrating) -> None:
    """Its worker died between Redis's answer and the ledger; the row goes while nobody looks. Found by the model."""
    migrating.put("a", {"v": 1})
    migrating.put("b", {"v": 1})
    migrating.begin()
    running = backfill_step.backfill(migrating.settings, migrating.target, Stop())
    while len(migrating.in_redis()) < 2:
        next(running)
    running.close()  # as if killed: the ledger knows nothing
    assert migrating.execute("SELECT count(*) FROM cachemig.entry") == [(0,)]
    finish(dual_write.switch(migrating.settings, migrating.target, enable=False))
    migrating.execute("DELETE FROM sessions WHERE file_hash = 'a'")
    finish(dual_write.switch(migrating.settings, migrating.target, enable=True))
    migrating.sync()
    migrating.backfill()
    assert migrating.in_redis() == migrating.in_postgres() == {"b": b'{"v": 1}'}
    migrating.sync()
    assert migrating.verify().outcome.passed


def test_switching_off_does_not_take_back_an_epoch_that_began_meanwhile(moved: Migrating) -> None:
    """`dual-write --disable` had read epoch 0; a worker began epoch 1 before it came to write. Found by chaos."""
    stale = control.find(moved.conn)
    assert stale is not None
    assert epoch_step.begin(moved.conn, moved.target, "meanwhile", expected=0) is not None
    dual_write._switch(moved.conn, moved.settings, inspect(moved.conn, moved.settings), stale, None)
    assert epoch(moved) == 1
    # And none begins while capture is off.
    assert epoch_step.begin(moved.conn, moved.target, "too late", expected=1) is None
    moved.redis.flushall()
    assert epoch_step.ensure(moved.conn, moved.target) is None
    finish(dual_write.switch(moved.settings, moved.target, enable=True))
    assert epoch(moved) == 2
    moved.sync()
    moved.backfill()
    assert moved.verify().outcome.passed

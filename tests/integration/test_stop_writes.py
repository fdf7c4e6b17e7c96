"""stop-writes and the way back on real servers: guard, late writes, epochs without the column, what is copied back."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg

from cachemig.entries.entry import EPOCH
from cachemig.errors import LockNotGranted, Refused
from cachemig.ladder import Phase
from cachemig.service import Source, WriteFailed
from cachemig.source import capture, control, standing
from cachemig.source.table import inspect
from cachemig.steps import copy_back, cutover, retry, rollback, stop_writes
from cachemig.stop import Stop
from tests.integration.conftest import Migrating, finish
from tests.integration.serving import opened_sync, until

OPENLY = {"soak_cutover": "0s", "soak_redis_only": "0s"}


class Frozen:
    """A table that is or was in redis-only."""

    def __init__(self, migrating: Migrating) -> None:
        self.m = migrating

    def stop(self, guard: stop_writes.Guard = "forward") -> stop_writes.Stopped:
        m = self.m
        return finish(
            stop_writes.stop_writes(m.settings, m.target, Stop(), guard, no_clients=True, accept_expiring=1000)
        )

    def back(self, **options: Any) -> cutover.Moved:
        return finish(rollback.rollback(self.m.settings, self.m.target, Stop(), **options))

    def late(self) -> standing.Late:
        return standing.late(self.m.conn)

    def outcomes(self) -> list[tuple[Any, ...]]:
        return self.m.execute("SELECT key, kind, value, outcome FROM cachemig.late_write ORDER BY id")

    def value(self, key: str) -> bytes | None:
        found = self.m.redis.get(f"{self.m.prefix}{key}")
        assert found is None or isinstance(found, bytes)
        return found

    def version(self, key: str) -> int:
        return self.m.target.versions([key])[0]

    def alone(self, key: str, value: bytes | None) -> int:
        """An acknowledged write of an application to Redis alone."""
        epoch = int(self.m.execute("SELECT epoch FROM cachemig.migration")[0][0])
        status, version, _ = self.m.target.write_alone(key, value, None, epoch=epoch, expected=self.version(key))
        assert status == 1
        return version

    def take_up(self) -> None:
        """What a worker does that dies before it delivers."""
        self.m.execute(
            "UPDATE cachemig.late_write SET taken_version = %s, taken_marker = m.redis_marker"
            " FROM cachemig.migration AS m WHERE outcome IS NULL",
            self.version("a"),
        )

    def state(self) -> tuple[Any, ...]:
        return self.m.execute("SELECT phase, percent, epoch, frozen_epoch FROM cachemig.migration")[0]

    def column(self) -> dict[str, str]:
        return {key: value.decode() for key, value in self.m.in_postgres().items()}


@pytest.fixture
def read(migrating: Migrating) -> Frozen:
    """All reads come from Redis."""
    migrating.set(**OPENLY)
    for key in "abc":
        migrating.put(key, {"v": key})
    migrating.begin()
    migrating.backfill()
    assert migrating.verify().outcome.passed
    finish(cutover.cutover(migrating.settings, migrating.target, Stop(), 100, no_clients=True))
    return Frozen(migrating)


@pytest.fixture
def frozen(read: Frozen) -> Frozen:
    read.stop()
    return read


# The step -----------------------------------------------------------------------------------------------------------


def test_the_column_is_frozen_in_one_step(read: Frozen) -> None:
    m = read.m
    m.execute("UPDATE sessions SET cache = '{\"v\": \"last\"}' WHERE file_hash = 'a'")
    result = read.stop()
    assert (result.changed, result.guard, result.epoch, result.drained.changes) == (True, "forward", 1, 1)
    assert {gate.gate for gate in result.gates} == {
        "clients", "capture", "servers", "soak", "verify", "lag", "expiring",
    }  # fmt: skip
    assert {gate.gate for gate in result.gates if not gate.met} == set()
    assert read.state() == ("redis-only", 100, 1, 0)
    assert (read.value("a"), read.version("a")) == (b'{"v": "last"}', 1)
    assert m.target.identity().epoch == 0, "what is read of the column keeps its epoch"
    table = inspect(m.conn, m.settings)
    assert (capture.installed(m.conn, table), capture.guarded(m.conn, table)) == (False, "forward")
    assert m.execute(
        "SELECT command, phase_from, phase_to FROM cachemig.journal ORDER BY id DESC OFFSET 1 LIMIT 1"
    ) == [("stop-writes", "cutover", "redis-only")]
    again = read.stop()
    assert (again.changed, again.epoch) == (False, 1)
    assert read.stop("reject").changed is False
    assert capture.guarded(m.conn, table) == "reject"


def test_its_gates(migrating: Migrating) -> None:
    m = migrating
    m.put("a", {"v": 1})
    m.begin()
    m.backfill()
    m.verify()
    with pytest.raises(Refused) as caught:
        Frozen(m).stop()
    assert caught.value.hint == "cachemig cutover"
    finish(cutover.cutover(m.settings, m.target, Stop(), 100, no_clients=True))
    before = m.execute("SELECT m::text FROM cachemig.migration AS m")
    shown = finish(stop_writes.preview(m.settings, m.target, Stop(), "forward"))
    assert {gate.gate: gate.met for gate in shown.gates} == {
        "clients": False, "capture": True, "servers": True, "soak": False, "verify": True, "lag": True,
        "expiring": False,
    }  # fmt: skip
    assert shown.refused
    assert any("CREATE TRIGGER cachemig_guard" in statement for statement in shown.statements)
    with pytest.raises(Refused, match=r"gate soak .*wanted: 1d"):
        Frozen(m).stop()
    assert m.execute("SELECT m::text FROM cachemig.migration AS m") == before
    assert not Frozen(m).outcomes()


def test_entries_that_expire_want_a_recording(read: Frozen, tmp_path: Any) -> None:
    m = read.m
    m.execute("ALTER TABLE sessions ADD path text")
    m.execute("UPDATE sessions SET path = file_hash || '.c3d'")
    (tmp_path / "a.c3d").write_bytes(b"x")

    def expiring(accepted: int = 0) -> str:
        shown = finish(stop_writes.preview(m.settings, m.target, Stop(), "forward", accept_expiring=accepted))
        (gate,) = [gate for gate in shown.gates if gate.gate == "expiring"]
        found.append(gate.met)
        return gate.figure

    found: list[bool] = []
    assert expiring() == "3 of 3 entries with an expiry have no recording"
    m.set(**OPENLY, recordings_location=f"{tmp_path}/{{path}}")
    assert expiring() == "2 of 3 entries with an expiry have no recording"
    assert expiring(2) == "2 of 3 entries with an expiry have no recording, accepted: 2"
    (tmp_path / "b.c3d").write_bytes(b"x")
    (tmp_path / "c.c3d").write_bytes(b"x")
    assert expiring() == "every entry that expires has a recording"
    assert found == [False, False, True, True]


def test_a_writer_that_holds_the_table_goes_first(read: Frozen) -> None:
    with psycopg.connect(read.m.dsn) as other:
        other.execute("UPDATE sessions SET cache = '{\"v\": \"slow\"}' WHERE file_hash = 'b'")
        thread = threading.Timer(0.8, other.commit)
        thread.start()
        read.stop()
        thread.join()
    assert read.value("b") == b'{"v": "slow"}'
    assert not read.outcomes()


# The guard ----------------------------------------------------------------------------------------------------------


def test_a_late_write_is_kept_and_delivered_and_its_writer_named(frozen: Frozen) -> None:
    m = frozen.m
    with psycopg.connect(m.dsn, application_name="old-worker", autocommit=True) as old:
        old.execute("UPDATE sessions SET cache = '{\"v\": \"late\"}', hits = hits + 1 WHERE file_hash = 'a'")
        old.execute("INSERT INTO sessions (file_hash, cache) VALUES ('new', '{\"v\": 1}'), ('none', '{}')")
        old.execute("UPDATE sessions SET cache = NULL WHERE file_hash = 'b'")
    assert m.execute("SELECT hits FROM sessions WHERE file_hash = 'a'") == [(1,)], "the rest of the statement succeeds"
    assert frozen.late().waiting == 3
    assert m.sync().late == 3
    assert (frozen.value("a"), frozen.value("new"), frozen.value("b")) == (b'{"v": "late"}', b'{"v": 1}', None)
    assert frozen.version("b") // EPOCH == frozen.version("new") // EPOCH == 1
    late = frozen.late()
    assert (late.waiting, late.writes, late.deletes) == (0, 3, 0)
    assert late.writers[0][0].startswith("old-worker (user ")


def test_what_is_no_late_write(frozen: Frozen) -> None:
    m = frozen.m
    m.execute("UPDATE sessions SET cache = cache, hits = 7")  # an ORM that writes back every column
    m.execute("UPDATE sessions SET hits = hits + 1")
    m.execute("INSERT INTO sessions (file_hash) VALUES ('d')")
    m.execute("UPDATE sessions SET cache = NULL WHERE file_hash = 'd'")
    m.execute("INSERT INTO sessions (file_hash, cache) VALUES (NULL, '{\"v\": 1}')")
    with m.conn.transaction(force_rollback=True):
        m.execute("UPDATE sessions SET cache = '{\"v\": 9}'")
    assert frozen.outcomes() == []


def test_a_row_that_goes_takes_its_key_along(frozen: Frozen) -> None:
    m = frozen.m
    m.execute(
        "INSERT INTO sessions (file_hash, cache, created_at)"
        " VALUES ('a', '{\"v\": \"older\"}', now() - interval '1 day')"
    )
    m.sync()  # a late write; then the row goes that was newer
    frozen.alone("a", None)
    m.redis.delete(f"{m.prefix}a", f"cachemig:v:{{{m.prefix}a}}")
    m.execute("DELETE FROM sessions WHERE id = (SELECT min(id) FROM sessions WHERE file_hash = 'a')")
    m.execute("UPDATE sessions SET file_hash = 'moved' WHERE file_hash = 'b'")
    m.execute("DELETE FROM sessions WHERE file_hash = 'c'")
    m.sync()
    assert {key: outcome for key, kind, _, outcome in frozen.outcomes() if kind == "delete"} == {
        "a": "superseded", "b": "delivered", "c": "delivered",
    }  # fmt: skip
    assert (frozen.value("a"), frozen.value("b"), frozen.value("c")) == (b'{"v": "older"}', None, None)
    late = frozen.late()
    assert (late.writes, late.deletes) == (1, 3)
    m.execute("TRUNCATE sessions")
    m.sync()
    assert m.in_redis() == {}


def test_reject_names_cachemig(read: Frozen) -> None:
    read.stop("reject")
    m = read.m
    for statement in (
        "UPDATE sessions SET cache = '{\"v\": 9}' WHERE file_hash = 'a'",
        "INSERT INTO sessions (file_hash, cache) VALUES ('x', '{\"v\": 9}')",
        "UPDATE sessions SET cache = '{}' WHERE file_hash = 'a'",
    ):
        with pytest.raises(pg.ObjectNotInPrerequisiteState, match=r"^cachemig: cache of public.sessions is not"):
            m.execute(statement)
    m.execute("UPDATE sessions SET cache = cache, hits = 1")
    m.execute("DELETE FROM sessions WHERE file_hash = 'c'")
    m.sync()
    assert read.value("c") is None
    assert (read.late().writes, read.late().deletes) == (0, 1)


def test_an_application_role_needs_no_right_on_the_control_schema(frozen: Frozen) -> None:
    m = frozen.m
    m.execute("DROP ROLE IF EXISTS late_app")
    m.execute("CREATE ROLE late_app")
    m.execute("GRANT SELECT, UPDATE ON sessions TO late_app")
    with m.conn.transaction():
        m.execute("SET LOCAL ROLE late_app")
        m.execute("UPDATE sessions SET cache = '{\"v\": 2}' WHERE file_hash = 'a'")
    assert "user late_app" in frozen.late().writers[0][0]
    m.execute("DROP OWNED BY late_app")
    m.execute("DROP ROLE late_app")


# Late writes and writes to Redis alone ------------------------------------------------------------------------------


def test_a_late_write_replaces_what_was_there_when_it_was_taken_up_and_nothing_newer(frozen: Frozen) -> None:
    m = frozen.m
    frozen.alone("a", b'{"v": "alone"}')
    m.execute("UPDATE sessions SET cache = '{\"v\": \"late\"}' WHERE file_hash = 'a'")
    m.sync()
    assert frozen.value("a") == b'{"v": "late"}'
    # Taken up; then its worker dies, and an application writes.
    m.execute("UPDATE sessions SET cache = '{\"v\": \"later\"}' WHERE file_hash = 'a'")
    frozen.take_up()
    frozen.alone("a", b'{"v": "newest"}')
    m.sync()
    assert frozen.value("a") == b'{"v": "newest"}'
    assert [outcome for *_, outcome in frozen.outcomes()] == ["delivered", "superseded"]


def test_delivered_and_not_recorded_it_is_not_delivered_twice(frozen: Frozen) -> None:
    m = frozen.m
    m.execute("UPDATE sessions SET cache = '{\"v\": \"late\"}' WHERE file_hash = 'a'")
    m.sync()
    version = frozen.version("a")
    m.execute("UPDATE cachemig.late_write SET outcome = NULL, done_at = NULL")
    m.sync()
    assert (frozen.version("a"), frozen.outcomes()[0][3]) == (version, "superseded")


def test_only_the_last_of_several_is_delivered(frozen: Frozen) -> None:
    m = frozen.m
    for n in range(5):
        m.execute("UPDATE sessions SET cache = %s WHERE file_hash = 'a'", f'{{"v": {n}}}')
    m.sync()
    assert [outcome for *_, outcome in frozen.outcomes()] == ["superseded"] * 4 + ["delivered"]
    assert frozen.value("a") == b'{"v": 4}'


def test_redis_lost_the_version_that_it_was_taken_up_with(frozen: Frozen) -> None:
    m = frozen.m
    frozen.alone("a", b'{"v": "alone"}')
    m.execute("UPDATE sessions SET cache = '{\"v\": \"late\"}' WHERE file_hash = 'a'")
    frozen.take_up()
    m.redis.delete(f"{m.prefix}a", f"cachemig:v:{{{m.prefix}a}}")
    m.sync()
    assert frozen.value("a") == b'{"v": "late"}'


def test_one_that_was_taken_up_is_finished_before_the_next(frozen: Frozen) -> None:
    """Its value may be on its way: arriving, it would be taken for a write that is newer than the next one."""
    m = frozen.m
    m.execute("UPDATE sessions SET cache = '{\"v\": 1}' WHERE file_hash = 'a'")
    frozen.take_up()
    m.execute("UPDATE sessions SET cache = '{\"v\": 2}' WHERE file_hash = 'a'")
    m.sync()
    assert frozen.value("a") == b'{"v": 2}'
    assert [outcome for *_, outcome in frozen.outcomes()] == ["delivered", "delivered"]


def test_the_last_of_the_column_is_no_newer_write(frozen: Frozen) -> None:
    m = frozen.m
    m.execute("UPDATE sessions SET cache = '{\"v\": \"late\"}' WHERE file_hash = 'a'")
    frozen.take_up()
    m.redis.set(f"cachemig:v:{{{m.prefix}a}}", "3")  # a change from before the freeze arrives
    m.sync()
    assert frozen.value("a") == b'{"v": "late"}'


def test_versions_do_not_come_again(frozen: Frozen) -> None:
    """A late write is taken up; Redis loses all it has, and an application writes the key."""
    m = frozen.m
    frozen.alone("a", b'{"v": 1}')
    m.execute("UPDATE sessions SET cache = '{\"v\": \"late\"}' WHERE file_hash = 'a'")
    frozen.take_up()
    taken = frozen.version("a")
    m.redis.flushdb()
    frozen.alone("a", b'{"v": "newest"}')
    assert frozen.version("a") != taken
    m.sync()
    assert frozen.value("a") == b'{"v": "newest"}'
    # The same with a key that Redis knew nothing of: only the marker tells.
    m.execute("UPDATE sessions SET cache = '{\"v\": \"late\"}' WHERE file_hash = 'b'")
    m.execute("UPDATE cachemig.late_write SET taken_version = 0, taken_marker = 'of another' WHERE outcome IS NULL")
    assert m.target.write_alone("b", b"{}", None, epoch=9, expected=0, marker="of another")[0] == 0
    m.sync()
    assert frozen.value("b") == b'{"v": "late"}'


def test_a_corrupt_late_write_stays_in_the_column(frozen: Frozen) -> None:
    m = frozen.m
    m.execute("UPDATE sessions SET cache = '[1]' WHERE file_hash = 'a'")
    m.sync()
    assert frozen.outcomes() == [("a", "write", "[1]", "set-aside")]
    assert (frozen.value("a"), frozen.late().failed) == (b'{"v": "a"}', 1)
    m.execute("UPDATE sessions SET cache = '[2]' WHERE file_hash = 'b'")
    m.sync()
    frozen.alone("b", b'{"v": "newer"}')
    moved = frozen.back()
    assert moved.copied is not None
    assert moved.copied.late == 1
    assert (frozen.column()["a"], frozen.column()["b"]) == ("[1]", '{"v": "newer"}')


def test_what_was_on_its_way_loses_against_a_write_to_redis_alone(read: Frozen) -> None:
    m = read.m
    m.execute("UPDATE sessions SET cache = '{\"v\": \"last\"}' WHERE file_hash = 'a'")
    finish(_only_freeze(read))
    version = read.alone("a", b'{"v": "alone"}')
    assert version // EPOCH == 1
    m.sync()
    assert (read.value("a"), m.marks()) == (b'{"v": "alone"}', [])


def _only_freeze(case: Frozen) -> Any:
    m = case.m
    table = inspect(m.conn, m.settings)
    return stop_writes._freeze(m.conn, m.settings, m.target, table, "forward", [])


def test_a_follower_delivers_late_writes_and_goes_on_after_the_way_back(frozen: Frozen) -> None:
    m = frozen.m
    stop = Stop()
    from cachemig.steps import sync

    worker = threading.Thread(target=lambda: finish(sync.sync(m.settings, m.target, stop, follow=True)))
    worker.start()
    try:
        m.execute("UPDATE sessions SET cache = '{\"v\": \"late\"}' WHERE file_hash = 'a'")
        until(lambda: frozen.value("a") == b'{"v": "late"}')
        frozen.back()
        m.execute("UPDATE sessions SET cache = '{\"v\": \"after\"}' WHERE file_hash = 'a'")
        until(lambda: frozen.value("a") == b'{"v": "after"}')
    finally:
        stop.request(2)
        worker.join(30)


# Epochs -------------------------------------------------------------------------------------------------------------


def test_a_flushed_redis_is_noticed_and_nothing_old_comes_back(frozen: Frozen) -> None:
    m = frozen.m
    frozen.alone("a", b'{"v": "alone"}')
    m.redis.flushdb()
    frozen.alone("b", b'{"v": "goes on"}')
    with pytest.raises(Refused, match="flushed"):
        m.verify()
    assert m.sync().epochs == 1
    assert frozen.state() == ("redis-only", 100, 2, 0)
    assert m.target.identity().epoch == 0
    assert m.in_redis() == {"b": b'{"v": "goes on"}'}
    assert frozen.alone("b", b'{"v": 2}') // EPOCH == 2
    assert m.sync().epochs == 0


# The way back -------------------------------------------------------------------------------------------------------


def test_back_with_what_redis_has_newer(frozen: Frozen) -> None:
    m = frozen.m
    m.put("d", None)
    m.put("e", {"v": "e"})  # a late write
    m.sync()
    frozen.alone("a", b'{"v":"alone","n":1.10}')
    frozen.alone("b", None)
    frozen.alone("c", b'{"v": "c"}')  # equal
    frozen.alone("d", b'{"v": "d"}')
    m.execute("UPDATE sessions SET cache = '{\"v\": \"late\"}' WHERE file_hash = 'e'")
    before = m.execute("SELECT hits, seen_at FROM sessions ORDER BY id")
    assert rollback.preview(m.settings, m.target).copies == 5
    moved = frozen.back()
    copied = moved.copied
    assert copied is not None
    assert (copied.keys, copied.written, copied.emptied, copied.late, copied.left) == (5, 2 + 1, 1, 1, {})
    assert frozen.state() == ("cutover", 100, 2, None)
    assert frozen.column() == {
        "a": '{"n": 1.10, "v": "alone"}', "c": '{"v": "c"}', "d": '{"v": "d"}', "e": '{"v": "late"}',
    }  # fmt: skip
    assert m.execute("SELECT hits, seen_at FROM sessions ORDER BY id") == before
    table = inspect(m.conn, m.settings)
    assert (capture.installed(m.conn, table), capture.guarded(m.conn, table)) == (True, None)
    m.sync()
    m.backfill()
    assert m.verify().outcome.passed
    assert m.in_redis() == m.in_postgres()


def test_a_write_to_redis_alone_that_comes_after_is_refused(frozen: Frozen) -> None:
    m = frozen.m
    frozen.back()
    assert m.target.write_alone("a", b'{"v": "too late"}', None, epoch=1, expected=0)[0] == 2


def test_what_was_copied_back_is_not_undone_by_an_older_late_write(frozen: Frozen) -> None:
    m = frozen.m
    m.execute("UPDATE sessions SET cache = '{\"v\": \"late\"}' WHERE file_hash = 'a'")
    frozen.take_up()  # its worker dies
    frozen.alone("a", b'{"v": "newer"}')
    moved = frozen.back()
    assert moved.copied is not None
    assert moved.copied.late == 0
    assert frozen.column()["a"] == '{"v": "newer"}'


def test_given_up_behind_the_fence_writes_go_on(frozen: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    m = frozen.m
    monkeypatch.setattr(retry, "LOCK_TRIES", 1)
    with psycopg.connect(m.dsn) as busy:
        busy.execute("SELECT count(*) FROM sessions")  # holds the table until it ends
        with pytest.raises(LockNotGranted):
            frozen.back()
    assert not control.require(m.conn, m.settings).fenced
    running = rollback.rollback(m.settings, m.target, Stop())
    frozen.alone("a", b'{"v": "alone"}')
    while not control.require(m.conn, m.settings).fenced:
        next(running)
    running.close()  # as a second Ctrl-C does
    assert not control.require(m.conn, m.settings).fenced
    frozen.alone("b", b'{"v": "goes on"}')
    frozen.back()
    assert (frozen.column()["a"], frozen.column()["b"]) == ('{"v": "alone"}', '{"v": "goes on"}')


def test_the_fence_goes_with_what_redis_loses(frozen: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    m = frozen.m
    fence, times = copy_back._fence, []

    def fence_and_lose(*arguments: Any) -> Any:
        prepared = fence(*arguments)
        times.append(prepared)
        if len(times) == 1:
            m.redis.flushdb()
            assert m.sync().epochs == 0, "writers would learn of the epoch, and pass"
            frozen.alone("a", b'{"v": "behind the fence"}')
        return prepared

    monkeypatch.setattr(copy_back, "_fence", fence_and_lose)
    frozen.back()
    assert len(times) == 2
    assert frozen.column()["a"] == '{"v": "behind the fence"}'


def test_what_has_no_place_is_refused_or_given_up_by_number(frozen: Frozen) -> None:
    m = frozen.m
    frozen.alone("nobody", b'{"v": 1}')
    frozen.alone("a", b'"\\u0000"')
    frozen.alone("b", b'{"v": "alone"}')
    with pytest.raises(Refused, match=r"2 keys have a value .*nobody: no row has this key") as caught:
        frozen.back()
    assert caught.value.hint is not None
    assert "--accept-left 2" in caught.value.hint
    assert frozen.state() == ("redis-only", 100, 1, 0)
    frozen.alone("c", b'{"v": "goes on"}')
    moved = frozen.back(accept_left=2)
    assert moved.copied is not None
    assert set(moved.copied.left) == {"nobody", "a"}
    assert frozen.column()["b"] == '{"v": "alone"}'
    m.sync()
    assert "nobody" not in m.in_redis()


def test_died_behind_the_fence(frozen: Frozen) -> None:
    m = frozen.m
    migration = control.require(m.conn, m.settings)
    copy_back._fence(m.conn, migration, m.target)
    assert control.require(m.conn, m.settings).fenced
    with opened_sync(m) as cache, pytest.raises(WriteFailed):
        cache.put("a", {"v": 2})
    assert m.sync().epochs == 0, "the marker is known"
    frozen.stop()  # it is to stay in redis-only
    assert not control.require(m.conn, m.settings).fenced
    frozen.alone("a", b'{"v": 3}')
    copy_back._fence(m.conn, control.require(m.conn, m.settings), m.target)
    frozen.back()  # or to go on
    assert frozen.column()["a"] == '{"v": 3}'


@pytest.mark.parametrize("seed", range(3))
def test_writers_go_on_while_it_goes_back(frozen: Frozen, seed: int) -> None:
    """Every write that was acknowledged, on either side of the way back, is in the column and in Redis."""
    m = frozen.m
    keys = [f"w{n}" for n in range(20)]
    for key in keys:
        m.put(key, {"n": -1})
    m.sync()
    acknowledged: dict[str, int] = {}
    end = threading.Event()

    def write() -> None:
        with opened_sync(m) as cache:
            n = seed
            while not end.is_set():
                n += 1
                key = keys[n * 7 % len(keys)]
                try:
                    cache.put(key, {"n": n})
                    acknowledged[key] = n
                except WriteFailed:
                    time.sleep(0.01)
                entry = cache.get_entry(key)
                assert entry.value["n"] >= acknowledged.get(key, -1), "a read after an own write"

    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            write()
        except BaseException as exc:  # told below
            failed.append(exc)

    writer = threading.Thread(target=guarded)
    writer.start()
    try:
        time.sleep(0.5)
        m.set(**OPENLY, client_wait="20s")
        frozen.back()
        time.sleep(0.5)
    finally:
        end.set()
        writer.join(30)
    assert not failed, failed
    m.sync()
    column = frozen.column()
    assert {key: column[key] for key in acknowledged} == {key: f'{{"n": {n}}}' for key, n in acknowledged.items()}
    assert m.in_redis() == m.in_postgres()


def test_an_application_through_the_whole_of_it(read: Frozen) -> None:
    m = read.m
    m.set(**OPENLY, client_wait="20s")
    with opened_sync(m) as cache:
        cache.put("a", {"v": 1})
        read.stop()
        assert cache.health().phase is Phase.REDIS_ONLY
        assert (cache.put("a", {"v": 2}).version or 0) // EPOCH == 1
        cache.invalidate("b")
        assert m.in_postgres()["a"] == b'{"v": 1}'
        assert (cache.get("b"), cache.get_entry("c").source) == (None, Source.REDIS)
        read.back()
        assert cache.health().phase is Phase.CUTOVER
        assert cache.get("a") == {"v": 2}
        assert cache.get("b") is None
        assert cache.put("a", {"v": 3}).stored
        assert m.in_postgres()["a"] == b'{"v": 3}'
        assert cache.get("a") == {"v": 3}

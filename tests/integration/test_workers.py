"""Several workers share a backfill: none of them is needed, and no chunk counts twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace

import psycopg
import pytest

from cachemig.errors import Interrupted, Refused
from cachemig.progress import Progress
from cachemig.source import chunks, control, scan
from cachemig.source.connect import connect, transaction
from cachemig.source.table import inspect
from cachemig.steps import backfill as step
from cachemig.steps.crew import Crew
from cachemig.steps.delivery import Tally, deliver
from cachemig.steps.standby import Standby
from cachemig.stop import Stop
from tests.conftest import OwnPostgres, Servers
from tests.integration.conftest import TABLE, Migrating, finish
from tests.integration.standbys import Pair, pair_of

ROWS = 600


@pytest.fixture
def begun(migrating: Migrating) -> Migrating:
    """600 rows of 1 KB in 40 chunks or so."""
    migrating.execute(
        "INSERT INTO sessions (file_hash, cache)"
        " SELECT 'k' || n, jsonb_build_object('v', repeat(md5(n::text), 32)) FROM generate_series(1, %s) AS n",
        ROWS,
    )
    migrating.execute("ANALYZE sessions")
    migrating.set(chunk_bytes="16KiB", batch_bytes="4KiB")
    migrating.begin()
    return migrating


@pytest.fixture
def crew(begun: Migrating) -> Iterator[Callable[[int], Crew]]:
    crews: list[Crew] = []

    def start(number: int) -> Crew:
        crews.append(Crew(number, lambda stop, epoch: step.help_out(begun.settings, begun.target, stop, epoch)))
        return crews[-1]

    yield start
    for one in crews:
        one.__exit__()


def whole(case: Migrating) -> None:
    """Every value is there, and every row was counted once."""
    assert case.in_redis() == case.in_postgres()
    assert case.execute("SELECT sum((figures ->> 'delivered')::int) FROM cachemig.chunk") == [(ROWS,)]
    assert case.execute("SELECT count(*) FROM cachemig.chunk WHERE state <> 'done'") == [(0,)]
    assert case.verify().outcome.passed


def test_processes_share_the_chunks(begun: Migrating, crew: Callable[[int], Crew]) -> None:
    begun.set(chunk_bytes="16KiB", batch_bytes="4KiB", max_rate="200KiB")
    result = finish(step.backfill(begun.settings, begun.target, Stop(), crew=crew(2)))
    whole(begun)
    ((owners, number),) = begun.execute("SELECT count(DISTINCT owner), count(*) FROM cachemig.chunk")
    assert owners > 1
    assert result.chunks == number > 20
    assert result.tally.delivered == ROWS


def test_one_that_is_killed_is_done_without(begun: Migrating, crew: Callable[[int], Crew]) -> None:
    begun.set(chunk_bytes="16KiB", batch_bytes="4KiB", max_rate="200KiB")
    others = crew(2)
    notes = set()
    killed = False
    running = step.backfill(begun.settings, begun.target, Stop(), crew=others)
    for progress in running:
        notes.add(progress.note)
        if not killed and progress.done >= 3:
            held = begun.execute("SELECT DISTINCT owner FROM cachemig.chunk WHERE state = 'running'")
            pids = [member.process.pid for member in others._members]
            victim = next((pid for (owner,) in held if (pid := int(owner.split(":")[1])) in pids), None)
            if victim is not None:
                os.kill(victim, signal.SIGKILL)
                killed = True
    assert killed
    assert "1 of the workers were killed" in notes
    whole(begun)


def test_one_that_hangs_holds_up_nothing(begun: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its chunk is given to others long before its lease ends, and it is gone in the end."""

    def hang(_stop: Stop, epoch: int) -> Generator[Progress, None, None]:
        with connect(begun.settings) as conn:
            assert chunks.claim(conn, control.owner(), epoch)
        yield Progress(0, None, "chunks")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)

    monkeypatch.setattr(chunks, "SLOW_S", 0.5)
    monkeypatch.setattr(step, "_STRAGGLER_S", 0.2)
    monkeypatch.setattr("cachemig.steps.crew._PATIENCE_S", 0.2)
    begun.set(chunk_bytes="16KiB", batch_bytes="4KiB", max_rate="400KiB")
    began = time.monotonic()
    with Crew(1, hang) as crew:
        finish(step.backfill(begun.settings, begun.target, Stop(), crew=crew))
        (hung,) = crew._members
        assert hung.progress is not None
        assert hung.process.is_alive()
    assert not hung.process.is_alive()
    assert time.monotonic() - began < chunks.LEASE_S / 2
    assert begun.execute("SELECT max(attempts) FROM cachemig.chunk") == [(2,)]
    whole(begun)


def test_what_one_of_them_is_refused_ends_the_run(begun: Migrating, crew: Callable[[int], Crew]) -> None:
    begun.set(chunk_bytes="16KiB", batch_bytes="4KiB", max_rate="200KiB", on_corrupt="stop")
    begun.execute("UPDATE sessions SET cache = '[1]' WHERE id % 50 = 0")
    with pytest.raises(Refused, match="on_corrupt is stop"):
        finish(step.backfill(begun.settings, begun.target, Stop(), crew=crew(2)))


def test_the_crew_ends_with_the_run(begun: Migrating, crew: Callable[[int], Crew]) -> None:
    begun.set(chunk_bytes="16KiB", batch_bytes="4KiB", max_rate="100KiB")
    stop = Stop()
    with crew(2) as others:
        running = step.backfill(begun.settings, begun.target, stop, crew=others)
        while next(running).done < 3:
            pass
        stop.request(2)
        with pytest.raises(Interrupted):
            finish(running)
    assert not any(member.process.is_alive() for member in others._members)
    assert begun.execute("SELECT count(*) FROM cachemig.chunk WHERE state = 'running'") == [(0,)]
    begun.set(chunk_bytes="16KiB")
    begun.backfill()
    whole(begun)


@pytest.mark.long
def test_a_slow_chunk_is_taken_over_and_the_slow_worker_counts_for_nothing(
    begun: Migrating, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "SLOW_S", 0.5)
    monkeypatch.setattr(chunks, "LEASE_S", 6.0)  # renewed every second
    monkeypatch.setattr(step, "_STRAGGLER_S", 10.0)
    slow = replace(begun.settings, batch_keys=1, max_rate=2048)
    with Crew(1, lambda stop, epoch: step.help_out(slow, begun.target, stop, epoch)) as crew:
        began = time.monotonic()
        result = finish(step.backfill(begun.settings, begun.target, Stop(), crew=crew))
        assert time.monotonic() - began < 6
        theirs = begun.execute("SELECT count(*) FROM cachemig.chunk WHERE owner = %s", crew._members[0].owner)
    assert begun.execute("SELECT max(attempts) FROM cachemig.chunk") == [(2,)]
    assert theirs == [(0,)]
    assert result.tally.delivered == ROWS
    whole(begun)


@pytest.mark.long
def test_a_chunk_of_another_host_is_waited_for_as_long_as_its_lease_is_renewed(
    begun: Migrating, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "SLOW_S", 2.0)
    begun.backfill()
    begun.execute(
        "UPDATE cachemig.chunk SET state = 'running', owner = 'elsewhere:1:1', claimed_at = clock_timestamp(),"
        " lease_until = clock_timestamp() + interval '1 h' WHERE id = 2"
    )
    running = step.backfill(begun.settings, begun.target, Stop())
    seen = [next(running) for _ in range(5)]
    assert "1 chunks are with other workers" in {progress.waiting for progress in seen}
    began = time.monotonic()
    assert finish(running).chunks == 1
    assert 0.5 < time.monotonic() - began < 10


def test_ctrl_c_does_not_wait_for_a_locked_table(begun: Migrating) -> None:
    begun.set(chunk_bytes="16KiB", batch_bytes="4KiB", max_rate="100KiB")
    stop = Stop()
    with psycopg.connect(begun.dsn) as blocker:
        running = step.backfill(begun.settings, begun.target, stop)
        while next(running).done < 2:
            pass

        def lock() -> None:
            blocker.execute("LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE")
            time.sleep(0.5)
            stop.request(2)

        locking = threading.Thread(target=lock)
        locking.start()
        began = time.monotonic()
        with pytest.raises(Interrupted):
            finish(running)
        locking.join()
        assert time.monotonic() - began < 8
        assert begun.execute("SELECT count(*) FROM cachemig.chunk WHERE state <> 'done'") != [(0,)]


# Reading from a standby -------------------------------------------------------------------------------------------


@pytest.fixture
def pair(own_postgres: OwnPostgres, servers: Servers) -> Iterator[Pair]:
    with pair_of(own_postgres, servers) as pair:
        yield pair


@pytest.fixture
def beside(pair: Pair, migrating: Migrating) -> Iterator[Migrating]:
    """A migration on the primary of the pair."""
    directory = migrating.directory / "beside"
    directory.mkdir()
    case = Migrating(pair.primary.dsn(), migrating.redis_url, migrating.prefix, directory)
    with closing(case):
        case.execute(TABLE)
        case.execute("CREATE UNIQUE INDEX ON sessions (file_hash)")
        for n in range(100):
            case.put(f"k{n}", {"v": n})
        yield case


def test_values_are_read_from_a_standby_that_has_replayed_the_capture(beside: Migrating, pair: Pair) -> None:
    beside.set(read_dsn=pair.standby, retry_for="20s", order_by="")
    with psycopg.connect(pair.standby, autocommit=True) as standby:
        pair.catch_up(beside.conn)
        standby.execute("SELECT pg_wal_replay_pause()")
        beside.begin()
        beside.execute("DELETE FROM sessions WHERE file_hash = 'k7'")
        running = step.backfill(beside.settings, beside.target, Stop())
        progress = next(running)
        while not (progress.waiting or "").startswith("The standby has not replayed"):
            progress = next(running)
        assert beside.in_redis() == {}
        standby.execute("SELECT pg_wal_replay_resume()")
        finish(running)
        read = standby.execute("SELECT seq_scan + idx_scan FROM pg_stat_user_tables WHERE relname = 'sessions'")
        assert read.fetchone() != (0,)
    beside.sync()
    assert beside.in_redis() == beside.in_postgres()
    assert "k7" not in beside.in_redis()
    assert beside.verify().outcome.passed


def test_what_the_standby_does_not_show_yet_is_newer_all_the_same(beside: Migrating, pair: Pair) -> None:
    beside.set(read_dsn=pair.standby, order_by="")
    beside.begin()
    migration = control.find(beside.conn)
    assert migration is not None
    pair.catch_up(beside.conn)
    with psycopg.connect(pair.standby, autocommit=True) as standby:
        standby.execute("SELECT pg_wal_replay_pause()")
        beside.execute("UPDATE sessions SET cache = '{\"v\": \"new\"}' WHERE file_hash IN ('k1', 'k2')")
        beside.execute("DELETE FROM sessions WHERE file_hash = 'k3'")
        beside.sync()
        # As a run that was begun before these writes.
        behind = Standby("0/0", migration.epoch, migration.redis_marker)
        table = inspect(beside.conn, beside.settings)
        read = behind.reading(lambda conn: scan.read_chunk(conn, table, None, None))
        with transaction(standby, read_only=True):
            entries = {entry.key: entry for entry in read(standby)}
        assert bytes(entries["k1"].text or b"") == b'{"v": 1}'
        assert "k3" in entries
        tally = Tally()
        list(deliver(beside.target, entries.values(), tally))
        assert (tally.delivered, tally.older) == (100, 3)
        standby.execute("SELECT pg_wal_replay_resume()")
    assert beside.in_redis() == beside.in_postgres()


def test_no_standby_is_read_where_keys_may_be_shared(beside: Migrating, pair: Pair) -> None:
    beside.execute("DROP INDEX sessions_file_hash_idx1")
    beside.set(read_dsn=pair.standby)
    beside.begin()
    with pytest.raises(Refused, match="no unique constraint covers file_hash"):
        beside.backfill()


@pytest.mark.parametrize("wrong", ["the primary", "another database"])
def test_what_is_no_standby_of_this_database(
    beside: Migrating, pair: Pair, wrong: str, own_postgres: OwnPostgres, servers: Servers
) -> None:
    if wrong == "the primary":
        beside.set(read_dsn=pair.primary.dsn(), order_by="")
        beside.begin()
        with pytest.raises(Refused, match="does not lead to a standby"):
            beside.backfill()
        return
    beside.set(read_dsn=pair.standby, order_by="")
    beside.begin()
    pair.catch_up(beside.conn)
    migration = control.find(beside.conn)
    assert migration is not None
    other = Standby("0/0", migration.epoch, "another marker")
    with psycopg.connect(pair.standby) as conn, pytest.raises(Refused, match="of another database"):
        list(other.reading(lambda _: iter(()))(conn))  # type: ignore[arg-type, return-value]

"""cutover and rollback on real servers: every gate is met by the very command that it names; clients are waited for; a
ramp goes on, waits, or goes back by itself. Clients are rows that a test writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from cachemig.errors import Exit, Interrupted, LeaseHeld, Refused, SettingsDiffer
from cachemig.ladder import Phase, bucket
from cachemig.progress import Progress
from cachemig.source import control
from cachemig.source.connect import connect
from cachemig.steps import clients, cutover, doctor, dual_write, epoch, gates, resync, rollback
from cachemig.steps.status import status
from cachemig.stop import Stop
from tests.integration.conftest import Migrating, T, finish

FAST = {"client_wait": "300ms", "retry_for": "2s"}


class Ladder:
    """A migration, the commands that move its reads, and clients."""

    def __init__(self, migrating: Migrating) -> None:
        self.m = migrating

    def cut(self, percent: float, *, no_clients: bool = False) -> cutover.Moved:
        m = self.m
        return finish(cutover.cutover(m.settings, m.target, Stop(), percent, no_clients=no_clients))

    def back(self) -> cutover.Moved:
        return finish(rollback.rollback(self.m.settings, self.m.target, Stop()))

    def ramp(self, percents: list[float], hold: float, stop: Stop | None = None, **options: Any) -> Any:
        return cutover.ramp(self.m.settings, self.m.target, stop or Stop(), percents, hold, **options)

    def at(self) -> tuple[str, float]:
        phase, percent = self.m.execute("SELECT phase, percent FROM cachemig.migration")[0]
        return phase, percent

    def client(
        self, name: str, phase: str | None = "dual-write", percent: float = 0.0, *, lease_s: float = 60.0, **stats: Any
    ) -> None:
        """A heartbeat."""
        self.m.execute(
            "INSERT INTO cachemig.client AS c (id, name, phase, percent, epoch, lease_until, stats)"
            " VALUES (%s, %s, %s, %s, 0, clock_timestamp() + %s * interval '1 second', %s) ON CONFLICT (id) DO UPDATE"
            " SET phase = excluded.phase, percent = excluded.percent, seen_at = clock_timestamp(),"
            " lease_until = excluded.lease_until, stats = excluded.stats",
            name, name, phase, percent, lease_s, Jsonb(stats),
        )  # fmt: skip

    def follows(self, name: str, **stats: Any) -> None:
        """A heartbeat of a client that acts on what is in force."""
        self.client(name, *self.at(), **stats)

    def journal(self, command: str) -> list[dict[str, Any]]:
        rows = self.m.execute(
            "SELECT figures || jsonb_build_object('from', phase_from, 'to', phase_to, 'who', who) FROM cachemig.journal"
            " WHERE command = %s ORDER BY id", command,
        )  # fmt: skip
        return [row[0] for row in rows]

    def refused(self, percent: float = 10.0, **options: Any) -> Refused:
        before, lines = self.at(), len(self.journal("cutover"))
        with pytest.raises(Refused) as caught:
            self.cut(percent, **options)
        assert (self.at(), len(self.journal("cutover"))) == (before, lines)
        assert self.m.execute("SELECT count(*) FROM cachemig.lease") == [(0,)]
        assert caught.value.exit_code is Exit.REFUSED
        return caught.value


def gates_of(refused: Refused) -> list[str]:
    """The gates that a refusal names, in order."""
    return [line.split()[1] for line in str(refused).splitlines() if line.startswith("gate ")]


@pytest.fixture
def ladder(migrating: Migrating) -> Ladder:
    """Ten entries, moved and verified; nobody is registered."""
    for n in range(10):
        migrating.put(f"k{n}", {"v": n})
    migrating.set(**FAST)
    migrating.begin()
    migrating.backfill()
    assert migrating.verify().outcome.passed
    return Ladder(migrating)


def until(running: Generator[Progress, None, T], seen: Callable[[Progress], object], seconds: float = 10) -> Progress:
    """Goes on with a step until its progress shows this."""
    end = time.monotonic() + seconds
    while not seen(progress := next(running)):
        assert time.monotonic() < end, progress
    return progress


# Gates: each is met by the command that it names ------------------------------------------------------------------


def test_up_down_and_back(ladder: Ladder) -> None:
    moved = ladder.cut(10, no_clients=True)
    assert (moved.phase, moved.percent, moved.phase_before, moved.changed) == (
        Phase.CUTOVER,
        10,
        Phase.DUAL_WRITE,
        True,
    )
    assert [gate.met for gate in moved.gates] == [True] * 7
    assert ladder.at() == ("cutover", 10)
    assert not ladder.cut(10, no_clients=True).changed
    assert ladder.cut(12.5, no_clients=True).percent_before == 10
    assert ladder.cut(0).gates == []  # down has none, and needs no word about clients
    back = ladder.back()
    assert (back.phase, back.percent, back.phase_before, back.changed) == (Phase.DUAL_WRITE, 0, Phase.CUTOVER, True)
    assert ladder.at() == ("dual-write", 0)
    assert not ladder.back().changed
    lines = [(f["from"], f["percent_from"], f["to"], f["percent"]) for f in ladder.journal("cutover")]
    assert lines == [
        ("dual-write", 0, "cutover", 10), ("cutover", 10, "cutover", 12.5), ("cutover", 12.5, "cutover", 0)
    ]  # fmt: skip
    assert [(f["from"], f["percent_from"], f["to"]) for f in ladder.journal("rollback")] == [
        ("cutover", 0, "dual-write")
    ]
    first = ladder.journal("cutover")[0]
    assert first["no_clients"] is True
    assert first["gates"]["verify"].startswith("passed, ")
    assert set(first["gates"]) == {"clients", "capture", "servers", "backfill", "verify", "lag", "shadow"}


def test_nobody_is_registered(ladder: Ladder) -> None:
    refused = ladder.refused()
    assert gates_of(refused) == ["clients"]
    assert "--no-clients" in str(refused.hint)
    ladder.cut(10, no_clients=True)
    assert gates_of(ladder.refused(20)) == ["clients"]  # each time anew


def test_a_client_of_the_phase_before_the_last(ladder: Ladder) -> None:
    ladder.client("web-1", "idle")
    ladder.client("web-2")
    ladder.client("gone", "idle", lease_s=-1)
    refused = ladder.refused(no_clients=True)
    assert gates_of(refused) == ["clients"]
    assert "1 of 2 live clients do not act on dual-write: web-1 (acts on idle" in str(refused)
    ladder.client("web-1", lease_s=-1)
    ladder.client("web-2", lease_s=-1)
    ladder.cut(10, no_clients=True)
    ladder.client("web-1", "cutover", 1.0)
    assert "web-1 (acts on cutover 1 %" in str(ladder.refused(20))


def test_entries_that_were_never_delivered(ladder: Ladder) -> None:
    # Rows that left no mark, as a restore under session_replication_role or a detached partition leaves them.
    ladder.m.execute("ALTER TABLE sessions DISABLE TRIGGER USER")
    ladder.m.put("unseen", {"v": 1})
    ladder.m.execute("ALTER TABLE sessions ENABLE ALWAYS TRIGGER cachemig_capture")
    ladder.m.execute("ALTER TABLE sessions ENABLE ALWAYS TRIGGER cachemig_capture_truncate")
    refused = ladder.refused(no_clients=True)
    assert gates_of(refused) == ["backfill"]
    assert "1 keys are to be delivered" in str(refused)
    assert refused.hint == "cachemig backfill"
    ladder.m.backfill()
    ladder.m.sync()
    assert ladder.cut(10, no_clients=True).changed


def test_an_entry_that_redis_refused(ladder: Ladder) -> None:
    ladder.m.execute("UPDATE cachemig.entry SET state = 'failed', error = 'x' WHERE key = 'k3'")
    assert gates_of(ladder.refused(no_clients=True)) == ["backfill"]
    ladder.m.backfill()
    ladder.m.sync()
    assert ladder.cut(10, no_clients=True).changed


def test_a_lag_of_sync(ladder: Ladder) -> None:
    ladder.m.execute("UPDATE sessions SET cache = '{\"v\": 100}' WHERE file_hash = 'k0'")
    ladder.cut(1, no_clients=True)  # a moment old is no lag
    ladder.m.execute("UPDATE cachemig.change SET at = at - interval '6 seconds'")
    refused = ladder.refused(no_clients=True)
    assert gates_of(refused) == ["lag"]
    assert "the oldest change is 6." in str(refused)
    assert str(refused.hint).startswith("cachemig sync --once")
    ladder.m.sync()
    assert ladder.cut(10, no_clients=True).changed


def test_capture_that_is_gone(ladder: Ladder) -> None:
    ladder.m.execute("DROP TRIGGER cachemig_capture ON sessions")
    refused = ladder.refused(no_clients=True)
    assert (gates_of(refused), refused.hint) == (["capture"], "cachemig dual-write")
    finish(dual_write.switch(ladder.m.settings, ladder.m.target, enable=True))
    assert gates_of(ladder.refused(no_clients=True)) == ["verify"]  # of the epoch before
    ladder.m.sync()
    ladder.m.backfill()
    ladder.m.verify()
    ladder.cut(10, no_clients=True)
    ladder.m.execute("DROP TRIGGER cachemig_capture ON sessions")
    assert ladder.refused(20, no_clients=True).hint == "cachemig rollback, then cachemig dual-write"
    assert status(ladder.m.settings).next_command == "cachemig rollback, then cachemig dual-write"
    with pytest.raises(Refused) as caught:  # what Redis holds now may be old: reads go back first
        finish(dual_write.switch(ladder.m.settings, ladder.m.target, enable=True))
    assert caught.value.hint == "cachemig rollback"
    ladder.back()
    assert finish(dual_write.switch(ladder.m.settings, ladder.m.target, enable=True)).changed


def test_doctor_wants_capture_in_cutover_too(ladder: Ladder) -> None:
    def said() -> doctor.Finding:
        return next(f for f in doctor.examine(ladder.m.settings, ladder.m.target) if f.name == "capture-missing")

    ladder.cut(10, no_clients=True)
    assert said().level is doctor.Level.OK
    ladder.m.execute("DROP TRIGGER cachemig_capture ON sessions")
    assert said().level is doctor.Level.ERROR
    assert str(said().do).startswith("cachemig rollback, then cachemig dual-write")


# Freshness --------------------------------------------------------------------------------------------------------

Spoil = Callable[[Ladder], object]
STALE: dict[str, tuple[Spoil, str]] = {
    "an hour old": (
        lambda c: c.m.execute("UPDATE cachemig.journal SET at = at - interval '61 minutes' WHERE command = 'verify'"),
        "the last one is 3,66",
    ),
    "none at all": (lambda c: c.m.execute("DELETE FROM cachemig.journal WHERE command = 'verify'"), "there was none"),
    "a sample alone": (
        lambda c: (c.m.execute("DELETE FROM cachemig.journal WHERE command = 'verify'"), c.m.verify(sample=5)),
        "there was none",
    ),
    "failed since": (
        lambda c: (
            c.m.redis.delete(f"{c.m.prefix}k3"), c.m.verify(), c.m.verify(sample=1), c.m.verify(repair=True),
            c.m.sync(),
        ),
        "did not pass",
    ),
    "of the epoch before": (
        lambda c: (
            resync.resync(c.m.settings, c.m.target, []), c.m.sync(), c.m.backfill(),
        ),
        "the last one is of epoch 0, this is epoch 1",
    ),
    "of other settings": (
        lambda c: c.m.execute(
            "UPDATE cachemig.journal SET figures = figures || '{\"fingerprint\": \"x\"}' WHERE command = 'verify'"
        ),
        "the last one was of other settings",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STALE)
def test_a_verification_that_does_not_count(ladder: Ladder, case: str) -> None:
    spoil, said = STALE[case]
    spoil(ladder)
    refused = ladder.refused(no_clients=True)
    assert (gates_of(refused), refused.hint) == (["verify"], "cachemig verify")
    assert said in str(refused)
    ladder.m.verify(sample=5)  # a later sample changes nothing, either way
    assert gates_of(ladder.refused(no_clients=True)) == ["verify"]
    assert status(ladder.m.settings).next_command == "cachemig verify"
    assert ladder.m.verify().outcome.passed
    ladder.m.verify(sample=5)
    assert ladder.cut(10, no_clients=True).changed


def test_how_fresh_is_a_setting(ladder: Ladder) -> None:
    ladder.m.execute("UPDATE cachemig.journal SET at = at - interval '61 minutes' WHERE command = 'verify'")
    ladder.m.set(**FAST, verify_fresh="2h")
    assert ladder.cut(10, no_clients=True).changed


def test_settings_that_are_not_those_of_the_migration(ladder: Ladder) -> None:
    ladder.m.set(**FAST, codec="gzip")
    with pytest.raises(SettingsDiffer):
        ladder.cut(10, no_clients=True)


def test_a_redis_that_was_flushed(ladder: Ladder) -> None:
    """Reads stay where they are: a miss is answered by the column. The way up is closed until all is verified anew."""
    ladder.cut(10, no_clients=True)
    ladder.m.redis.delete(ladder.m.target.marker_key, *(f"{ladder.m.prefix}k{n}" for n in range(10)))
    refused = ladder.refused(20, no_clients=True)
    assert gates_of(refused) == ["servers"]
    assert "Redis was flushed or is another server" in str(refused)
    assert str(refused.hint).startswith("cachemig sync --once")
    assert ladder.m.sync().epochs == 1
    assert ladder.at() == ("cutover", 10)
    assert gates_of(ladder.refused(20, no_clients=True)) == ["verify"]
    assert ladder.cut(5).changed  # down it goes all the same
    ladder.m.backfill()
    assert ladder.m.verify().outcome.passed
    assert ladder.cut(20, no_clients=True).changed
    assert ladder.m.in_redis() == ladder.m.in_postgres()


def test_a_redis_that_was_restarted_and_one_that_is_dead(ladder: Ladder) -> None:
    m = ladder.m
    m.execute("UPDATE cachemig.migration SET redis_run = 'another'")
    refused = ladder.refused(no_clients=True)
    assert gates_of(refused) == ["servers"]
    assert "Redis was restarted or failed over" in str(refused)
    m.sync()
    m.backfill()
    m.verify()
    ladder.cut(50, no_clients=True)
    m.redis_url = "redis://127.0.0.1:1/0"
    m.set(**FAST)
    assert ladder.cut(10).changed  # nobody asks Redis on the way down
    assert ladder.back().changed


# Work goes on in cutover ------------------------------------------------------------------------------------------


def test_every_worker_works_in_cutover_and_a_new_epoch_keeps_phase_and_percentage(ladder: Ladder) -> None:
    m = ladder.m
    ladder.cut(37.5, no_clients=True)
    m.put("k10", {"v": 10})
    assert m.sync().changes == 1
    assert m.backfill(restart=True).chunks == 1
    assert resync.resync(m.settings, m.target, ["k1"]).marked == 1
    begun = resync.resync(m.settings, m.target, [])
    assert begun.epoch == 1
    assert ladder.at() == ("cutover", 37.5)
    with connect(m.settings) as conn:
        assert epoch.ensure(conn, m.target) is None
        assert epoch.begin(conn, m.target, "a test", expected=1) is not None
    assert ladder.at() == ("cutover", 37.5)
    m.sync()
    m.backfill()
    assert m.verify().outcome.passed
    assert not finish(dual_write.switch(m.settings, m.target, enable=True)).changed
    with pytest.raises(Refused) as caught:
        finish(dual_write.switch(m.settings, m.target, enable=False))
    assert caught.value.hint == "cachemig rollback"
    assert ladder.at() == ("cutover", 37.5)


def test_from_other_phases(ladder: Ladder) -> None:
    finish(dual_write.switch(ladder.m.settings, ladder.m.target, enable=False))
    assert ladder.refused().hint == "cachemig dual-write"
    assert (ladder.back().changed, ladder.at()) == (False, ("idle", 0))
    ladder.m.execute("UPDATE cachemig.migration SET phase = 'redis-only'")
    assert ladder.refused().hint == "cachemig rollback"
    ladder.m.execute("UPDATE cachemig.migration SET phase = 'dropped'")
    assert ladder.refused().hint == "cachemig restore, then cachemig rollback"
    with pytest.raises(Refused, match="rollback is not allowed") as caught:
        ladder.back()
    assert caught.value.hint == "cachemig restore"


def test_which_keys_move(ladder: Ladder) -> None:
    """The same in SQL, for programs that do not import anything."""
    keys = [f"k{n}" for n in range(200)] + ["schlüssel", "a\\b", ""]
    rows = ladder.m.execute(
        "SELECT k, ('x' || encode(substr(cachemig.key_id(k), 1, 4), 'hex'))::bit(32)::bigint * 100::float8 / 4294967296"
        " FROM unnest(%s::text[]) AS k", keys,
    )  # fmt: skip
    assert dict(rows) == {key: bucket(key) for key in keys}


# Shadow reads -----------------------------------------------------------------------------------------------------


def test_shadow_reads_too_few_enough_and_wrong(ladder: Ladder) -> None:
    m = ladder.m
    ladder.client("web-1", shadow={"match": 600, "race": 500})
    ladder.client("web-2", shadow={"match": 300, "equivalent": 99})
    refused = ladder.refused()
    assert gates_of(refused) == ["shadow"]
    assert "999 compared since epoch 0 began (wanted: 1,000)" in str(refused)
    assert "--shadow-reads" in str(refused.hint)
    m.set(**FAST, shadow_reads="999")
    with pytest.raises(Refused, match="do not act on it"):  # nobody follows; but it was taken
        ladder.cut(1)
    assert ladder.at() == ("cutover", 1)
    for name in ("web-1", "web-2"):
        ladder.follows(name, shadow={"match": 5000, "mismatch": name == "web-2" and 1})
    refused = ladder.refused()
    assert gates_of(refused) == ["shadow"]
    assert "1 mismatch of 10,001 compared" in str(refused)
    # What satisfies it: all is delivered anew, and counted from 0.
    assert "cachemig resync --all" in str(refused.hint)
    resync.resync(m.settings, m.target, [])
    m.sync()
    m.backfill()
    m.verify()
    assert "0 compared since epoch 1 began" in str(ladder.refused())
    ladder.follows("web-1", shadow={"match": 5998})
    ladder.follows("web-2", shadow={"match": 5001, "mismatch": 1})
    ladder.client("web-3", *ladder.at(), shadow={"match": 5, "missing": 1})
    done = cutover.cutover(m.settings, m.target, Stop(), 10)
    until(done, lambda p: p.waiting)
    for name in ("web-1", "web-2", "web-3"):
        ladder.follows(name, shadow={"match": 6000})
    assert finish(done).changed


# Clients ----------------------------------------------------------------------------------------------------------


def test_every_live_client_is_waited_for_and_named(ladder: Ladder) -> None:
    ladder.m.set(client_wait="20s")
    for name in ("web-1", "web-2", "frozen"):
        ladder.client(name)
    ladder.client("frozen", lease_s=2)
    running = cutover.cutover(ladder.m.settings, ladder.m.target, Stop(), 10)
    progress = next(running)
    assert (progress.done, progress.total, progress.unit) == (0, 3, "clients")
    assert progress.waiting is not None
    assert all(f"{name} (acts on dual-write" in progress.waiting for name in ("web-1", "web-2", "frozen"))
    assert ladder.at() == ("cutover", 10)
    ladder.follows("web-1")
    assert "web-1" not in str(until(running, lambda p: p.done == 1).waiting)
    ladder.client("web-2", "cutover", 1.0)  # another percentage is another step
    assert next(running).done == 1
    ladder.follows("web-2")
    with connect(ladder.m.settings) as conn:
        assert {c.name for c in clients.waiting_for(conn, Phase.CUTOVER, 10.0)} <= {"frozen"}
    moved = finish(running)  # as soon as the lease of the frozen one has ended
    assert (moved.clients, moved.changed) == (["web-1", "web-2"], True)
    assert moved.seconds < 15


def test_a_client_that_does_not_follow_is_named_and_the_phase_stays(ladder: Ladder) -> None:
    ladder.client("web-1")
    ladder.client("web-2")
    running = cutover.cutover(ladder.m.settings, ladder.m.target, Stop(), 10)
    next(running)
    ladder.follows("web-1")
    with pytest.raises(Refused) as caught:
        finish(running)
    assert "the phase is cutover 10 % now and stays so" in str(caught.value)
    assert "1 of 2 live clients" in str(caught.value)
    assert "web-2 (acts on dual-write" in str(caught.value)
    assert str(caught.value.hint).endswith("or go back: cachemig cutover --percent 0")
    assert ladder.at() == ("cutover", 10)
    assert gates_of(ladder.refused(20)) == ["clients"]  # never more than one step apart
    ladder.follows("web-2")
    moved = ladder.cut(10)  # the same command waits again
    assert (moved.changed, moved.clients) == (False, ["web-1", "web-2"])
    with pytest.raises(Refused) as caught:
        ladder.cut(50)
    assert str(caught.value.hint).endswith("or go back: cachemig cutover --percent 10")
    with pytest.raises(Refused, match=r"the phase is dual-write now and stays so.*web-1 .acts on cutover 10 %"):
        ladder.back()
    assert ladder.at() == ("dual-write", 0)


def test_stopped_and_killed_while_it_waits(ladder: Ladder) -> None:
    ladder.client("web-1")
    stop = Stop()
    running = cutover.cutover(ladder.m.settings, ladder.m.target, stop, 10)
    next(running)
    stop.request(15)
    with pytest.raises(Interrupted) as stopped:
        finish(running)
    assert stopped.value.exit_code is Exit.TERMINATED
    assert "cachemig cutover --percent 10" in str(stopped.value.hint)
    assert ladder.at() == ("cutover", 10)
    ladder.follows("web-1")
    assert not ladder.cut(10).changed
    killed = cutover.cutover(ladder.m.settings, ladder.m.target, Stop(), 20)
    next(killed)
    killed.close()
    assert ladder.at() == ("cutover", 20)
    ladder.follows("web-1")
    assert ladder.cut(20).clients == ["web-1"]
    assert [line["percent"] for line in ladder.journal("cutover")] == [10, 20]


def test_another_operator_goes_back_while_clients_are_waited_for(ladder: Ladder) -> None:
    ladder.m.set(client_wait="20s")
    ladder.client("web-1")
    running = cutover.cutover(ladder.m.settings, ladder.m.target, Stop(), 10)
    next(running)
    assert finish(rollback.rollback(ladder.m.settings, ladder.m.target, Stop())).changed
    assert ladder.at() == ("dual-write", 0)
    with pytest.raises(Refused, match="has moved on to dual-write while cutover 10 % was waited for"):
        finish(running)


def test_two_operators_at_once(ladder: Ladder) -> None:
    with connect(ladder.m.settings) as conn, control.lease(conn, "ladder"):
        with pytest.raises(LeaseHeld) as caught:
            ladder.cut(10, no_clients=True)
        assert caught.value.exit_code is Exit.LEASE_HELD
        with pytest.raises(LeaseHeld):
            ladder.back()
    assert ladder.at() == ("dual-write", 0)
    assert ladder.cut(10, no_clients=True).changed


def test_what_changes_while_the_gates_are_looked_at(ladder: Ladder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that ran out, and a new epoch: the step is not taken on what was seen before."""
    look = gates.look
    meanwhile: list[str] = []

    def slow(*args: Any, **options: Any) -> Any:
        seen = look(*args, **options)
        ladder.m.execute(meanwhile[0])
        return seen

    monkeypatch.setattr(gates, "look", slow)
    for statement in (
        "UPDATE cachemig.migration SET epoch = epoch + 1",
        "UPDATE cachemig.migration SET epoch = 0, phase = 'cutover', percent = 5",
        "UPDATE cachemig.lease SET owner = 'elsewhere:1:1', fence = fence + 1",
    ):
        meanwhile[:] = [statement]
        ladder.m.execute("UPDATE cachemig.migration SET epoch = 0, phase = 'dual-write', percent = 0")
        with pytest.raises(LeaseHeld, match="while the gates were looked at"):
            ladder.cut(10, no_clients=True)
        assert ladder.at() != ("cutover", 10)
    assert ladder.journal("cutover") == []


def test_previews_change_nothing(ladder: Ladder) -> None:
    m = ladder.m
    before = m.execute("SELECT xmin::text, m::text FROM cachemig.migration m")
    lines = m.execute("SELECT count(*) FROM cachemig.journal")
    shown = cutover.preview(m.settings, m.target, [10.0])
    assert (shown.refused, [g.gate for g in shown.gates if not g.met]) == (True, ["clients"])
    shown = cutover.preview(m.settings, m.target, [1.0, 10.0], ramp=True, no_clients=True)
    assert (shown.refused, shown.percent_after, shown.then) == (False, 1.0, [10.0])
    assert rollback.preview(m.settings, m.target).phase_after is Phase.DUAL_WRITE
    assert m.execute("SELECT xmin::text, m::text FROM cachemig.migration m") == before
    assert m.execute("SELECT count(*) FROM cachemig.journal") == lines
    assert m.execute("SELECT count(*) FROM cachemig.lease") == [(0,)]


# Ramps ------------------------------------------------------------------------------------------------------------


def reads(hit: int = 0, error: int = 0) -> dict[str, Any]:
    return {"redis": {"hit": hit, "miss": 0, "error": error}}


class Fleet(threading.Thread):
    """Clients that follow the phase at each poll, and report what a test tells them."""

    def __init__(self, ladder: Ladder, stats: Callable[[tuple[str, float], int], dict[str, Any]]) -> None:
        super().__init__()
        self.dsn, self.stats, self.ended = ladder.m.dsn, stats, threading.Event()
        self.seen: list[tuple[str, float]] = []

    def run(self) -> None:
        tick = 0
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            while not self.ended.wait(0.05):
                at: Any = conn.execute("SELECT phase, percent FROM cachemig.migration").fetchone()
                if self.seen[-1:] != [at]:
                    self.seen.append(at)
                tick += 1
                conn.execute(
                    "INSERT INTO cachemig.client (id, name, phase, percent, epoch, lease_until, stats)"
                    " VALUES ('app', 'app', %s, %s, 0, clock_timestamp() + interval '1 minute', %s)"
                    " ON CONFLICT (id) DO UPDATE SET phase = excluded.phase, percent = excluded.percent,"
                    " lease_until = excluded.lease_until, stats = excluded.stats",
                    [*at, Jsonb(self.stats(at, tick))],
                )

    def __enter__(self) -> Fleet:
        self.start()
        end = time.monotonic() + 10
        while not self.seen:
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()


@pytest.fixture
def quick(ladder: Ladder, monkeypatch: pytest.MonkeyPatch) -> Ladder:
    """Ramps look at the clients twenty times as often."""
    monkeypatch.setattr(cutover, "LOOK_S", 0.05)
    ladder.m.set(**FAST | {"client_wait": "10s"})
    return ladder


def test_a_ramp_goes_up_step_by_step(quick: Ladder) -> None:
    with Fleet(quick, lambda at, tick: {"reads": reads(hit=10 * tick), "fallback": 0}) as fleet:
        result = finish(quick.ramp([1.0, 10.0, 100.0], 0.6))
    assert [held.percent for held in result.held] == [1.0, 10.0, 100.0]
    assert all(held.seconds >= 0.6 and held.figures["reads"]["redis"]["hit"] > 20 for held in result.held)
    assert (result.phase, result.percent) == (Phase.CUTOVER, 100.0)
    assert quick.at() == ("cutover", 100)
    assert fleet.seen == [("dual-write", 0), ("cutover", 1), ("cutover", 10), ("cutover", 100)]
    assert [line["percent"] for line in quick.journal("cutover")] == [1, 10, 100]
    watched = quick.journal("ramp")
    assert [(line["percent"], line["broken"]) for line in watched] == [(1, None), (10, None), (100, None)]
    assert watched[0]["limits"]["ramp_max_errors"] is not None or watched[0]["figures"]["reads"]["redis"]["hit"] < 500
    with Fleet(quick, lambda at, tick: {}):
        assert finish(quick.ramp([1.0, 10.0], 0.1)).held == []  # it is above all of that


Stats = Callable[[int], dict[str, Any]]
LIMITS: dict[str, tuple[Stats, str]] = {
    "errors": (lambda n: {"reads": reads(hit=100 * n, error=2 * n)}, "ramp_max_errors: 0.0196"),
    "fallbacks": (lambda n: {"reads": reads(hit=100 * n), "fallback": 6 * n}, "ramp_max_fallback: 0.06"),
    "a mismatch": (lambda n: {"shadow": {"mismatch": n}}, "ramp_max_mismatch: "),
    "slower": (
        lambda n: {"latency_ms": {"redis": {"p95": 9, "n": 500}, "column": {"p95": 3, "n": 500}}},
        "ramp_max_slowdown: 3 times",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LIMITS)
def test_a_ramp_goes_back_by_itself(quick: Ladder, case: str) -> None:
    stats, said = LIMITS[case]

    def reported(at: tuple[str, float], tick: int) -> dict[str, Any]:
        return stats(tick) if at == ("cutover", 10) else {}

    with Fleet(quick, reported) as fleet, pytest.raises(Refused) as caught:
        finish(quick.ramp([1.0, 10.0, 100.0], 0.5))
    assert f"went back from cutover 10 % to cutover 1 %: {said}" in str(caught.value)
    assert str(caught.value.hint).endswith("cachemig cutover --ramp 10,100")
    assert quick.at() == ("cutover", 1)
    assert fleet.seen == [("dual-write", 0), ("cutover", 1), ("cutover", 10), ("cutover", 1)]
    last = quick.journal("cutover")[-1]
    assert (last["percent_from"], last["percent"]) == (10, 1)
    assert last["because"].startswith(said)
    assert quick.journal("ramp")[-1]["broken"] == last["because"]


def test_a_limit_that_is_broken_at_once_leads_back_to_dual_write(quick: Ladder) -> None:
    with (
        Fleet(quick, lambda at, tick: {"shadow": {"mismatch": tick if at[0] == "cutover" else 0}}),
        pytest.raises(Refused, match="went back from cutover 50 % to dual-write: ramp_max_mismatch"),
    ):
        finish(quick.ramp([50.0], 5))
    assert quick.at() == ("dual-write", 0)


def test_limits_are_settings(quick: Ladder) -> None:
    quick.m.set(**FAST, ramp_max_mismatch="1000000", ramp_max_errors="1", ramp_max_fallback="1", ramp_max_slowdown="9")
    with Fleet(
        quick,
        lambda at, tick: {
            "reads": reads(hit=1, error=9 * tick), "fallback": 9 * tick,
            "latency_ms": {"redis": {"p95": 9, "n": 500}, "column": {"p95": 3, "n": 500}},
        },
    ):  # fmt: skip
        assert finish(quick.ramp([10.0], 0.3)).percent == 10


def test_what_was_counted_before_a_step_does_not_break_it(quick: Ladder) -> None:
    """Nor does what a client that is dead counted yesterday."""
    quick.client("dead", lease_s=-60, reads=reads(hit=1, error=900), latency_ms={"redis": {"p95": 900, "n": 900}})
    stats = {"reads": reads(hit=900, error=900), "fallback": 500}
    latency = {"latency_ms": {path: {"p95": 3, "n": 500} for path in ("redis", "column")}}
    with Fleet(quick, lambda at, tick: {**stats, **latency}):
        assert finish(quick.ramp([10.0], 0.3)).percent == 10


def test_a_ramp_waits_while_sync_lags(quick: Ladder) -> None:
    with Fleet(quick, lambda at, tick: {}):
        running = quick.ramp([1.0, 10.0], 0.8)
        until(running, lambda p: p.note and p.note.startswith("cutover 1 %"))
        quick.m.put("k50", {"v": 1})
        quick.m.execute("UPDATE cachemig.change SET at = at - interval '60 seconds'")
        shown = until(running, lambda p: p.waiting)
        assert "sync lags by 60 s (limit: 5 s)" in str(shown.waiting)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            assert next(running).waiting
        assert quick.at() == ("cutover", 1)
        quick.m.sync()
        result = finish(running)
    assert result.percent == 10
    assert result.held[0].seconds > 1.6  # the time stood still meanwhile


def test_a_ramp_waits_for_sync_before_it_begins_and_gives_up(quick: Ladder) -> None:
    quick.m.put("k50", {"v": 1})
    quick.m.execute("UPDATE cachemig.change SET at = at - interval '60 seconds'")
    quick.m.set(**FAST | {"retry_for": "300ms"})
    running = quick.ramp([1.0], 0.1, no_clients=True)
    assert "is cachemig sync --follow running?" in str(next(running).waiting)
    with pytest.raises(Refused) as caught:
        finish(running)
    assert gates_of(caught.value) == ["lag"]
    assert quick.at() == ("dual-write", 0)


def test_a_gate_ends_a_ramp_where_it_is(quick: Ladder) -> None:
    with Fleet(quick, lambda at, tick: {}):
        running = quick.ramp([1.0, 10.0], 0.3)
        until(running, lambda p: p.note and p.note.startswith("cutover 1 %"))
        quick.m.execute("UPDATE cachemig.journal SET at = at - interval '61 minutes' WHERE command = 'verify'")
        with pytest.raises(Refused) as caught:
            finish(running)
    assert (gates_of(caught.value), quick.at()) == (["verify"], ("cutover", 1))


def test_a_ramp_that_is_stopped_goes_on_where_it_was(quick: Ladder) -> None:
    stop = Stop()
    with Fleet(quick, lambda at, tick: {}) as fleet:
        running = quick.ramp([1.0, 10.0, 50.0], 0.3, stop)
        until(running, lambda p: p.note and p.note.startswith("cutover 10 %"))
        stop.request(2)
        with pytest.raises(Interrupted) as caught:
            finish(running)
        assert (caught.value.exit_code, quick.at()) == (Exit.INTERRUPTED, ("cutover", 10))
        assert "cachemig cutover --ramp 10,50; to go back: cachemig rollback" in str(caught.value.hint)
        assert [held.percent for held in finish(quick.ramp([1.0, 10.0, 50.0], 0.1)).held] == [10, 50]
    assert fleet.seen == [("dual-write", 0), ("cutover", 1), ("cutover", 10), ("cutover", 50)]


def test_a_ramp_that_is_repeated_and_fails_goes_to_the_percentage_below(quick: Ladder) -> None:
    with Fleet(quick, lambda at, tick: {"shadow": {"mismatch": tick if at == ("cutover", 10) else 0}}):
        quick.m.execute("UPDATE cachemig.migration SET phase = 'cutover', percent = 10")
        with pytest.raises(Refused, match="went back from cutover 10 % to cutover 1 %"):
            finish(quick.ramp([1.0, 10.0, 50.0], 5))


def test_another_operator_ends_a_ramp(quick: Ladder) -> None:
    with Fleet(quick, lambda at, tick: {}):
        running = quick.ramp([1.0, 10.0], 30)
        until(running, lambda p: p.note and p.note.startswith("cutover 1 %"))
        began = time.monotonic()
        assert quick.back().changed
        assert time.monotonic() - began < 5
        with pytest.raises(Refused, match="has moved the ladder to dual-write meanwhile"):
            finish(running)
        assert time.monotonic() - began < 10  # long before the time is over
    assert quick.at() == ("dual-write", 0)


def test_another_operator_moves_the_ladder_before_the_first_step_of_a_ramp(quick: Ladder) -> None:
    quick.m.put("k50", {"v": 1})
    quick.m.execute("UPDATE cachemig.change SET at = at - interval '60 seconds'")
    running = quick.ramp([60.0], 0.1, no_clients=True)
    assert next(running).waiting
    quick.m.execute("UPDATE cachemig.migration SET phase = 'cutover', percent = 50")
    quick.m.sync()
    with pytest.raises(Refused, match="has moved the ladder to cutover 50 % meanwhile; the ramp left it at dual-write"):
        finish(running)
    assert quick.at() == ("cutover", 50)


def test_a_ramp_without_clients_watches_the_clock_alone(quick: Ladder) -> None:
    with pytest.raises(Refused):
        finish(quick.ramp([1.0], 0.1))
    result = finish(quick.ramp([1.0, 100.0], 0.1, no_clients=True))
    assert (result.percent, result.held[0].figures["reads"]["redis"]) == (100.0, {})


# Status -----------------------------------------------------------------------------------------------------------


def test_status_says_what_clients_act_on_and_report(ladder: Ladder) -> None:
    m = ladder.m
    assert status(m.settings).next_command.startswith("cachemig cutover --ramp 1,10,50,100 --no-clients")
    ladder.cut(10, no_clients=True)
    assert status(m.settings).next_command.startswith("cachemig cutover --ramp 50,100 --no-clients")
    latency = {"redis": {"p50": 1, "p95": 2, "p99": 3, "n": 10}}
    ladder.follows("web-1", reads=reads(hit=9, error=1), shadow={"match": 5}, fallback=1, latency_ms=latency)
    ladder.client("web-2", "dual-write", reads=reads(hit=10))
    ladder.client("dead", "dual-write", lease_s=-1, reads=reads(hit=1000))
    shown = status(m.settings)
    assert (shown.phase, shown.percent) == (Phase.CUTOVER, 10)
    assert [(c.name, c.acting) for c in shown.clients] == [
        ("web-1", "acts on cutover 10 %"), ("web-2", "acts on dual-write")
    ]  # fmt: skip
    assert shown.reported["reads"]["redis"] == {"hit": 19, "error": 1}
    assert (shown.reported["fallback"], shown.reported["shadow"]) == (1, {"match": 5})
    assert shown.reported["latency_ms"]["redis"]["p95"] == 2
    assert shown.next_command.startswith("wait for the clients that do not act on cutover 10 % yet: web-2")
    ladder.follows("web-2")
    assert status(m.settings).next_command.startswith("cachemig cutover --ramp 50,100, with")
    m.execute("UPDATE cachemig.migration SET percent = 100")
    assert "cachemig rollback" in status(m.settings).next_command
    m.put("k20", {"v": 1})
    m.execute("UPDATE cachemig.migration SET percent = 50")
    m.execute("UPDATE cachemig.change SET at = at - interval '60 seconds'")
    assert status(m.settings).next_command == "cachemig sync --follow"

"""redis-only: what reads tells newer values from wrong ones, sees late writes, and replaces nothing that is newer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cachemig.cli import render
from cachemig.cli.screen import Screen
from cachemig.entries.verdicts import Verdict
from cachemig.errors import Refused
from cachemig.source import standing
from cachemig.steps import archive, clean, doctor, measure, orders, plan, reclaim, recompute, residue, resync
from cachemig.steps import status as status_step
from cachemig.steps import verify as step
from cachemig.steps.stop_writes import stop_writes
from cachemig.stop import Stop
from cachemig.targets.redis import Found, RedisTarget
from tests.integration import frozen
from tests.integration.conftest import Migrating, finish
from tests.integration.frozen import SABOTAGE, value, write

Said = pytest.CaptureFixture[str]


@pytest.fixture
def every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """No case is left out of the list."""
    monkeypatch.setattr(step, "SHOWN", 10**6)


@pytest.fixture
def only(migrating: Migrating) -> Migrating:
    frozen.moved(migrating, {"a": "plain", "b": "changed", "c": "cleared"})
    frozen.freeze(migrating)
    return migrating


def shown(case: Migrating, capsys: Said) -> tuple[status_step.Status, str]:
    result = status_step.status(case.settings)
    render.status(Screen(results_to_stderr=False), result)
    return result, capsys.readouterr().out


# verify -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("every_case")
def test_every_damage_is_found_and_what_the_column_has_is_put_back(migrating: Migrating) -> None:
    frozen.moved(migrating, frozen.keys())
    frozen.freeze(migrating)
    expected = frozen.sabotage(migrating, "redis-only")
    result = migrating.verify(accept_set_aside=1)
    assert frozen.found(result.cases) == expected
    assert not result.outcome.passed

    newer = sum("newer" in name for name in expected) - 1  # without its version it is no newer one
    orphans = 1
    assert migrating.verify(accept_set_aside=1, repair=True).marked == len(expected) - newer - orphans
    migrating.sync()
    left = {name: verdict for name, verdict in expected.items() if not SABOTAGE[name].heals}
    assert frozen.found(migrating.verify(accept_set_aside=1).cases) == left


def test_what_applications_do_is_newer_and_good(migrating: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen.moved(migrating, frozen.GOOD)
    frozen.freeze(migrating)
    frozen.live_on(migrating)
    by_itself: list[str] = []
    fetch_large = RedisTarget.fetch_large

    def counting(target: RedisTarget, key: str) -> Found:
        by_itself.append(key)
        return fetch_large(target, key)

    monkeypatch.setattr(RedisTarget, "fetch_large", counting)
    result = migrating.verify(accept_set_aside=1)
    assert by_itself == ["large"]  # which is small in the column
    assert +result.counts == frozen.COUNTS | {Verdict.SKIPPED: 1}  # empty
    assert result.outcome.passed
    sample = migrating.verify(sample=1000, accept_set_aside=1)
    assert sample.outcome.passed
    assert sum(sample.counts.values()) == sample.sample == 9


def test_chunk_by_chunk_as_before(migrating: Migrating) -> None:
    for n in range(6):
        migrating.put(f"k{n}", {"v": n})
    migrating.set(chunk_bytes="1")
    migrating.begin()
    migrating.backfill()
    frozen.freeze(migrating)
    seen = [p.total for p in step.verify(migrating.settings, migrating.target, Stop()) if p.unit == "chunks"]
    assert 6 in seen


def test_a_late_write_is_pending_until_it_is_delivered(only: Migrating) -> None:
    for key in ("a", "b"):
        write(only, key, {"v": "newer, and to be replaced"})
    only.execute("UPDATE sessions SET cache = '{\"v\": 5}' WHERE file_hash = 'a'")
    only.execute("DELETE FROM sessions WHERE file_hash = 'b'")
    only.put("new", {"v": 6})
    write(only, "c", {"v": "newer"})
    only.execute("UPDATE sessions SET cache = NULL WHERE file_hash = 'c'")  # as empty as before: no write
    result = only.verify()
    assert +result.counts == {Verdict.PENDING: 3, Verdict.NEWER: 1}
    assert result.outcome.passed
    only.sync()
    result = only.verify()
    assert +result.counts == {Verdict.NEWER: 3}  # a, new, c; of b a tombstone is left
    assert only.in_redis().keys() == {"a", "new", "c"}


def test_before_the_column_is_frozen_nothing_is_newer(migrating: Migrating) -> None:
    frozen.moved(migrating, {"a": "plain"})
    write(migrating, "a", {"v": "newer"})
    migrating.redis.set(frozen.version(migrating, "a"), 2**40)
    assert +migrating.verify().counts == {Verdict.CORRUPT: 1}


def test_a_flushed_redis_is_not_filled_again_but_by_choice(only: Migrating, capsys: Said) -> None:
    write(only, "b", {"v": "newer"})
    for name in only.redis.scan_iter(match=f"*{only.prefix}*", count=1000):
        only.redis.delete(name)
    with pytest.raises(Refused, match="flushed") as refused:
        only.verify()
    assert "delivers nothing again" in (refused.value.hint or "")
    assert only.sync().epochs == 1
    assert only.in_redis() == {}
    write(only, "d", {"v": "after"})
    result = only.verify()
    assert {case.key: case.verdict for case in result.cases} == {
        "a": Verdict.MISSING, "b": Verdict.MISSING, "c": Verdict.CORRUPT,  # c: its tombstone
    }  # fmt: skip
    assert result.counts[Verdict.NEWER] == 1
    render.verified(Screen(results_to_stderr=False), result)
    assert "may be older than what Redis has lost" in capsys.readouterr().out.replace("\n", " ")
    write(only, "a", {"v": "computed again"})
    assert only.verify(repair=True).marked == 2
    only.sync()
    assert only.in_redis() == {
        "a": b'{"v": "computed again"}', "b": b'{"v": 2}', "d": b'{"v": "after"}',
    }  # fmt: skip
    result = only.verify()
    assert +result.counts == {Verdict.MATCH: 1, Verdict.NEWER: 2, Verdict.SKIPPED: 1}
    assert result.outcome.passed


def test_an_orphan_is_removed_on_request(only: Migrating) -> None:
    only.redis.set(value(only, "nobody"), "{}")
    assert +only.verify().counts == {Verdict.MATCH: 2, Verdict.SKIPPED: 1, Verdict.ORPHAN: 1}
    assert only.verify(ignore_orphans=True).outcome.passed
    assert only.verify(repair=True, remove_orphans=True).marked == 1
    only.sync()
    assert only.in_redis().keys() == {"a", "b"}
    assert only.verify().outcome.passed
    ((epoch,),) = only.execute("SELECT epoch FROM cachemig.migration")
    assert standing.fresh(standing.last_verification(only.conn), epoch, only.settings)[0]


def test_a_column_that_is_dropped_meanwhile_is_no_verdict(only: Migrating) -> None:
    running = step.verify(only.settings, only.target, Stop())
    next(running)
    frozen.drop_it(only)
    with pytest.raises(Refused, match="dropped or restored while this verification ran"):
        finish(running)


def fence(case: Migrating) -> None:
    """As a rollback that was killed in the middle leaves it."""
    case.target.plant_marker(99)
    case.execute("UPDATE cachemig.migration SET redis_marker = %s", case.target.identity().marker)


# status -------------------------------------------------------------------------------------------------------------


def test_status_leads_on_to_the_drop(only: Migrating, tmp_path: Path, capsys: Said) -> None:
    only.set(soak_redis_only="2m")
    only.execute("UPDATE cachemig.migration SET changed_at = now() - interval '1 h'")
    result, text = shown(only, capsys)
    assert (result.guard, result.fenced, result.column_is_there, result.laid_out) == ("forward", False, True, True)
    assert result.next_command.startswith("cachemig archive")
    assert "on: a write to the column is brought to Redis" in text

    only.execute("SET application_name = 'old-job'")
    only.execute("UPDATE sessions SET cache = '{\"v\": 5}' WHERE file_hash = 'a'")
    result, text = shown(only, capsys)
    assert result.late is not None
    assert (result.late.waiting, result.late.writes) == (1, 1)
    assert "1 by old-job (user" in text
    assert result.next_command.startswith("cachemig sync")
    only.sync()

    finish(archive.archive(only.settings, Stop(), str(tmp_path / "a.zst")))
    result, text = shown(only, capsys)
    assert result.soak is not None
    assert 0 < result.soak.rest_s <= 120  # the late write began it anew
    assert result.next_command.startswith("wait for ")
    assert "a.zst" in text
    assert "over in" in text

    only.set(soak_redis_only="0")
    assert shown(only, capsys)[0].next_command == "cachemig verify, then cachemig drop-column"
    only.verify()
    assert shown(only, capsys)[0].next_command == "cachemig drop-column"

    only.execute("UPDATE sessions SET cache = '{\"v\": 6}' WHERE file_hash = 'a'")
    only.sync()
    assert shown(only, capsys)[0].next_command.startswith("cachemig archive")  # it was written since


def test_status_tells_a_fence_and_a_missing_guard(only: Migrating, capsys: Said) -> None:
    fence(only)
    assert only.verify().outcome.passed
    with pytest.raises(Refused, match="a rollback was begun") as refused:
        only.verify(repair=True)
    assert "cachemig rollback" in (refused.value.hint or "")
    result, text = shown(only, capsys)
    assert result.fenced
    assert "FENCED" in text
    assert result.next_command.startswith("cachemig rollback")
    finish(stop_writes(only.settings, only.target, Stop(), "reject", no_clients=True))
    result, text = shown(only, capsys)
    assert (result.fenced, result.guard) == (False, "reject")
    only.execute("ALTER TABLE sessions DISABLE TRIGGER cachemig_guard")
    result, text = shown(only, capsys)
    assert result.guard is None
    assert "MISSING" in text
    assert result.next_command.startswith("cachemig stop-writes")


def test_status_before_it_names_the_soak(migrating: Migrating, capsys: Said) -> None:
    frozen.moved(migrating, {"a": "plain"})
    migrating.execute("UPDATE cachemig.migration SET phase = 'cutover', percent = 100")
    result, _ = shown(migrating, capsys)
    assert result.soak is not None
    assert result.soak.wanted_s == 86400
    assert result.next_command.startswith("cachemig residue")
    assert "cachemig stop-writes, in " in result.next_command
    assert result.late is None


# The other commands -------------------------------------------------------------------------------------------------


def test_doctor_looks_at_the_guard(only: Migrating) -> None:
    found = {f.name: f for f in doctor.examine(only.settings, only.target)}
    assert found["guard"].level is doctor.Level.OK
    assert found["capture-missing"].level is doctor.Level.OK
    assert found["redis-persistence"].level in (doctor.Level.ERROR, doctor.Level.WARNING)  # it is alone
    only.execute("ALTER TABLE sessions DISABLE TRIGGER cachemig_guard")
    found = {f.name: f for f in doctor.examine(only.settings, only.target)}
    assert found["guard"].level is doctor.Level.ERROR
    assert "cachemig stop-writes" in (found["guard"].do or "")


def test_what_reads_the_frozen_column_works(only: Migrating) -> None:
    found = plan.plan(only.settings, only.target)
    assert (found.phase, found.entries, found.dependents) == ("redis-only", 2, [])  # the guard is the tool's own
    assert found.steps_ahead[0].startswith("cachemig archive")
    assert finish(measure.measure(only.settings, only.target, Stop(), keys=2, rounds=1)).hits == 2
    assert residue.residue(only.settings).still_there == ("cache",)
    assert reclaim.outlook(only.settings).column_is_there
    assert orders.give(only.settings, paused=True).paused_by
    assert orders.give(only.settings, paused=False, max_rate=1000).max_rate == 1000


REFUSED: dict[str, tuple[Callable[[Migrating], Any], str, str]] = {
    "resync": (lambda m: resync.resync(m.settings, m.target, ["a"]), "older than what Redis", "verify --repair"),
    "resync --all": (lambda m: resync.resync(m.settings, m.target, []), "older than what Redis", "cachemig rollback"),
    "recompute": (
        lambda m: finish(recompute.recompute(m.settings, m.target, Stop(), None)), "not allowed", "cachemig rollback",
    ),
    "recompute --undo": (
        lambda m: finish(recompute.undo(m.settings, m.target, Stop(), None)), "not allowed", "cachemig rollback",
    ),
    "clean": (
        lambda m: finish(clean.clean(m.settings, m.target, execute=True)), "not allowed", "cachemig",
    ),
    "backfill": (lambda m: m.backfill(), "not allowed", "cachemig rollback"),
}  # fmt: skip


def test_what_would_bring_back_older_values_is_refused(only: Migrating) -> None:
    before = only.in_redis()
    for name, (call, why, hint) in REFUSED.items():
        with pytest.raises(Refused, match=why) as refused:
            call(only)
        assert hint in (refused.value.hint or ""), name
    assert (only.marks(), only.in_redis()) == ([], before)

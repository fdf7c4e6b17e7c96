"""dropped: the ledger is what verify compares with, and no command wants a column that is not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cachemig.cli import render
from cachemig.cli.screen import Screen
from cachemig.entries.verdicts import Verdict
from cachemig.errors import CachemigError, Exit, Refused, TableUnfit
from cachemig.ladder import Phase
from cachemig.report.documents import plain
from cachemig.report.junit import write_junit
from cachemig.source import scan, standing
from cachemig.source.table import inspect
from cachemig.steps import (
    archive,
    backfill,
    clean,
    compare,
    doctor,
    dual_write,
    init,
    measure,
    orders,
    plan,
    reclaim,
    recompute,
    residue,
    resync,
    rollback,
    stop_writes,
    sync,
)  # fmt: skip
from cachemig.steps import status as status_step
from cachemig.steps import verify as step
from cachemig.steps.drop_column import brownout
from cachemig.stop import Stop
from tests.integration import frozen
from tests.integration.conftest import Migrating, finish
from tests.integration.frozen import value, version, write

Said = pytest.CaptureFixture[str]


@pytest.fixture
def gone(migrating: Migrating) -> Migrating:
    frozen.moved(migrating, {"a": "plain", "b": "changed", "c": "cleared"})
    frozen.freeze(migrating)
    frozen.drop_it(migrating)
    return migrating


# verify -------------------------------------------------------------------------------------------------------------


def test_every_damage_is_found(migrating: Migrating, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(step, "SHOWN", 10**6)
    frozen.moved(migrating, frozen.keys())
    frozen.freeze(migrating)
    frozen.drop_it(migrating)
    expected = frozen.sabotage(migrating, "dropped")
    result = migrating.verify(accept_set_aside=1)
    assert frozen.found(result.cases) == expected
    assert not result.outcome.passed
    write_junit(tmp_path / "verify.xml", result)
    assert 'failures="7"' in (tmp_path / "verify.xml").read_text()
    monkeypatch.setattr(scan, "_PAGE", 3)  # no key is lost between two pages, and none is seen twice
    assert migrating.verify(accept_set_aside=1).counts == result.counts


def test_what_applications_do_is_newer_and_good(migrating: Migrating, tmp_path: Path) -> None:
    frozen.moved(migrating, frozen.GOOD)
    frozen.freeze(migrating)
    frozen.drop_it(migrating)
    frozen.live_on(migrating)
    result = migrating.verify(accept_set_aside=1)
    assert +result.counts == frozen.COUNTS
    assert result.outcome.passed
    write_junit(tmp_path / "verify.xml", result)
    assert 'type="newer"' not in (tmp_path / "verify.xml").read_text()
    sample = migrating.verify(sample=5, accept_set_aside=1)
    assert sum(sample.counts.values()) == sample.sample == 5
    assert migrating.verify(sample=1000, accept_set_aside=1).sample == 9


def test_a_codec_is_decoded(migrating: Migrating) -> None:
    migrating.set(codec="gzip")
    migrating.put("a", {"v": "x" * 3000})
    migrating.begin()
    migrating.backfill()
    migrating.set(codec="gzip", **frozen.NO_SOAK)
    migrating.execute("UPDATE cachemig.migration SET phase = 'dropped', frozen_epoch = epoch, epoch = epoch + 1")
    migrating.execute("ALTER TABLE sessions DROP COLUMN cache CASCADE")
    assert +migrating.verify().counts == {Verdict.MATCH: 1}
    write(migrating, "b", migrating.redis.get(value(migrating, "a")))
    assert +migrating.verify().counts == {Verdict.MATCH: 1, Verdict.NEWER: 1}


def test_values_that_expire_are_not_missing(gone: Migrating) -> None:
    gone.redis.delete(value(gone, "b"))
    assert +gone.verify().counts == {Verdict.MISSING: 1, Verdict.MATCH: 1}
    gone.execute("UPDATE cachemig.entry SET expires_at = now() - interval '1 s' WHERE key = 'b'")
    assert +gone.verify().counts == {Verdict.EXPIRED: 1, Verdict.MATCH: 1}
    # One past its time that a read filled again, since the row was used.
    gone.execute("UPDATE cachemig.entry SET state = 'expired', expires_at = now() - interval '9 d' WHERE key = 'a'")
    assert +gone.verify().counts == {Verdict.EXPIRED: 1, Verdict.MATCH: 1}
    gone.redis.setrange(value(gone, "a"), 6, "9")
    assert [case.verdict for case in gone.verify().cases] == [Verdict.MISMATCH]


def test_a_flushed_redis_is_recorded_and_nothing_is_filled(gone: Migrating, capsys: Said) -> None:
    for name in gone.redis.scan_iter(match=f"*{gone.prefix}*", count=1000):
        gone.redis.delete(name)
    with pytest.raises(Refused, match="flushed") as refused:
        gone.verify()
    assert "sync --once" in (refused.value.hint or "")
    assert gone.sync().epochs == 1
    write(gone, "a", {"v": "computed again"})
    result = gone.verify()
    assert {case.key: case.verdict for case in result.cases} == {"b": Verdict.MISSING, "c": Verdict.CORRUPT}
    assert result.counts[Verdict.NEWER] == 1
    render.verified(Screen(results_to_stderr=False), result)
    said = capsys.readouterr().out
    assert "--repair" not in said
    assert "computed again when it is read" in said
    with pytest.raises(Refused, match="the column is dropped") as refused:
        gone.verify(repair=True)
    assert "cachemig restore" in (refused.value.hint or "")


def test_neither_row_nor_table_is_needed(gone: Migrating) -> None:
    gone.redis.set(value(gone, "nobody"), "{}")
    assert [case.verdict for case in gone.verify().cases] == [Verdict.ORPHAN]
    gone.execute("ALTER TABLE sessions RENAME TO visits")
    result = gone.verify(ignore_orphans=True)
    assert result.outcome.passed
    assert result.phase is Phase.DROPPED
    ((phase, figures),) = gone.execute(
        "SELECT phase_to, figures FROM cachemig.journal WHERE command = 'verify' ORDER BY id DESC LIMIT 1"
    )
    assert (phase, figures["fingerprint"], figures["passed"]) == ("dropped", gone.settings.fingerprint(), True)
    ((epoch,),) = gone.execute("SELECT epoch FROM cachemig.migration")
    assert standing.fresh(standing.last_verification(gone.conn), epoch, gone.settings)[0]
    assert finish(clean.clean(gone.settings, gone.target, execute=False)).ledger == 3


# The other commands -------------------------------------------------------------------------------------------------


def test_what_needs_no_column_works(gone: Migrating, capsys: Said) -> None:
    result = status_step.status(gone.settings)
    assert (result.phase, result.column_is_there, result.guard, result.soak) == (Phase.DROPPED, False, None, None)
    assert result.next_command.startswith("cachemig reclaim")
    assert "cachemig clean" in result.next_command
    render.status(Screen(results_to_stderr=False), result)
    assert "not there" in capsys.readouterr().out
    assert json.loads(json.dumps(result.document(), default=plain))["late"]["waiting"] == 0

    found = {f.name: f for f in doctor.examine(gone.settings, gone.target)}
    of_postgres = {name: f.level for name, f in found.items() if name in doctor.postgres.AFTER_DROP}
    assert of_postgres == dict.fromkeys(doctor.postgres.AFTER_DROP, doctor.Level.OK)
    assert "key-index" not in found
    assert found["redis-memory"].level is not doctor.Level.NOTE
    assert found["redis-foreign-keys"].level is doctor.Level.OK

    assert residue.residue(gone.settings).still_there == ()
    assert not reclaim.outlook(gone.settings).column_is_there
    assert orders.give(gone.settings, paused=True).paused_by
    assert orders.give(gone.settings, paused=False, max_rate=1000).max_rate == 1000
    assert sync.preview(gone.settings).changes == 0
    assert gone.sync().epochs == 0


REFUSED: dict[str, Callable[[Migrating], Any]] = {
    "plan": lambda m: plan.plan(m.settings, m.target),
    "measure": lambda m: finish(measure.measure(m.settings, m.target, Stop())),
    "resync": lambda m: resync.resync(m.settings, m.target, ["a"]),
    "resync --all --dry-run": lambda m: resync.preview(m.settings, m.target, []),
    "recompute": lambda m: finish(recompute.recompute(m.settings, m.target, Stop(), None)),
    "recompute --undo": lambda m: finish(recompute.undo(m.settings, m.target, Stop(), None)),
    "recompute --compare": lambda m: finish(
        compare.compare(replace(m.settings, recordings_location="/nowhere/{file_hash}"), Stop(), None, sample=1)
    ),
    "init": lambda m: init.init(m.settings, m.target, m.directory),
    "dual-write": lambda m: finish(dual_write.switch(m.settings, m.target, enable=True)),
    "backfill": lambda m: m.backfill(),
    "backfill --dry-run": lambda m: backfill.preview(m.settings),
    "archive": lambda m: finish(archive.archive(m.settings, Stop(), str(m.directory / "a.zst"))),
    "stop-writes": lambda m: finish(stop_writes.stop_writes(m.settings, m.target, Stop(), "forward")),
    "rollback": lambda m: finish(rollback.rollback(m.settings, m.target, Stop())),
}


def test_what_wants_the_column_says_that_it_is_gone(gone: Migrating) -> None:
    for name, call in REFUSED.items():
        with pytest.raises(CachemigError) as refused:
            call(gone)
        assert refused.value.exit_code == Exit.REFUSED, (name, refused.value)
        assert "dropped" in str(refused.value), name
        assert "cachemig restore" in (refused.value.hint or ""), name
    gone.set(column="another")
    with pytest.raises(TableUnfit, match="has no column 'another'"):
        inspect(gone.conn, gone.settings)


def test_a_brownout_says_so(migrating: Migrating) -> None:
    frozen.moved(migrating, {"a": "plain"})
    frozen.freeze(migrating)
    migrating.execute(f"ALTER TABLE sessions RENAME COLUMN cache TO {brownout.hidden_name('cache')}")
    with pytest.raises(Refused, match="hidden by a brownout") as refused:
        migrating.verify()
    assert refused.value.hint == brownout.END
    assert not status_step.status(migrating.settings).column_is_there


def test_clean_ends_it(gone: Migrating) -> None:
    """But not while a trigger of it is left somewhere, which would go unnoticed."""
    write(gone, "a", {"v": "newer"})
    gone.execute("CREATE FUNCTION cachemig.guard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    gone.execute("CREATE TABLE elsewhere ()")
    gone.execute("CREATE TRIGGER cachemig_guard AFTER INSERT ON elsewhere EXECUTE FUNCTION cachemig.guard()")
    with pytest.raises(Refused, match="the guard of the frozen column is still on the table") as refused:
        finish(clean.clean(gone.settings, gone.target, execute=True))
    assert refused.value.hint == "DROP TRIGGER cachemig_guard ON elsewhere"
    gone.execute(refused.value.hint or "")
    removed = finish(clean.clean(gone.settings, gone.target, execute=True))
    assert (removed.ledger, removed.own_keys) == (3, 3)
    assert gone.in_redis().keys() == {"a", "b"}
    assert gone.redis.get(version(gone, "a")) is None
    assert gone.execute("SELECT to_regnamespace('cachemig')") == [(None,)]


def test_clean_waits_for_the_guard_before_the_migration_too(migrating: Migrating) -> None:
    migrating.begin()
    migrating.execute("UPDATE cachemig.migration SET phase = 'idle'")
    with pytest.raises(Refused, match="capture is still on the table") as refused:
        finish(clean.clean(migrating.settings, migrating.target, execute=True))
    assert (refused.value.hint or "").startswith("cachemig dual-write --disable")

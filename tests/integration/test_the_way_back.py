"""The last steps with nothing put there by hand: stop-writes, archive, drop-column under its gates, reclaim, writes to
Redis alone, restore, and rollback all the way down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cachemig.errors import Refused
from cachemig.ladder import Phase
from cachemig.service import CacheService
from cachemig.source import capture, control
from cachemig.source.table import inspect
from cachemig.steps import archive, cutover, drop_column, dual_write, reclaim, restore, rollback, stop_writes
from cachemig.steps.drop_column.gated import WAITING
from cachemig.stop import Stop
from tests.integration.conftest import Migrating, finish
from tests.integration.serving import opened_sync

OPENLY = {"soak_cutover": "0s", "soak_redis_only": "0s"}


class Finishing:
    """A migration from redis-only on."""

    def __init__(self, migrating: Migrating) -> None:
        self.m = migrating

    @property
    def file(self) -> Path:
        return self.m.directory / "a.zst"

    def archive(self) -> None:
        finish(archive.archive(self.m.settings, Stop(), str(self.file)))

    def outlook(self, **options: Any) -> drop_column.Outlook:
        return drop_column.outlook(self.m.settings, self.m.target, no_clients=True, **options)

    def unmet(self) -> set[str]:
        return {gate.gate for gate in self.outlook().gates if not gate.met}

    def dropping(self, **options: Any) -> Any:
        return drop_column.execute(self.m.settings, self.m.target, Stop(), **{"no_clients": True, **options})

    def drop(self, **options: Any) -> drop_column.Dropped:
        result = finish(self.dropping(**options))
        assert isinstance(result, drop_column.Dropped)
        return result

    def restore(self) -> restore.Restored:
        m = self.m
        settle = restore.ladder_back(m.settings)
        return finish(restore.restore(m.settings, m.target, Stop(), str(self.file), settle=settle))

    def back(self) -> cutover.Moved:
        return finish(rollback.rollback(self.m.settings, self.m.target, Stop()))

    def state(self) -> tuple[Any, ...]:
        return self.m.execute("SELECT phase, epoch, frozen_epoch FROM cachemig.migration")[0]

    def texts(self) -> dict[int, str | None]:
        return dict(self.m.execute("SELECT id, cache::text FROM sessions ORDER BY 1"))

    def has_column(self) -> bool:
        found = "SELECT 1 FROM pg_attribute WHERE attrelid = 'sessions'::regclass AND attname = 'cache'"
        return bool(self.m.execute(found))


@pytest.fixture
def finishing(migrating: Migrating) -> Finishing:
    """Phase redis-only, with the column frozen by the step itself. Its soaks last no time."""
    migrating.set(**OPENLY)
    for n in range(30):
        migrating.put(f"key-{n}", {"n": n, "text": 'x\u00fc\\"' * 20, "f": [1.10, 2e-7]})
    migrating.put("shared", {"older": True})
    migrating.put("shared", {"newer": True})
    migrating.put("empty", {})
    migrating.put(None, {"no": "key"})
    migrating.put("nothing", None)
    migrating.begin()
    migrating.backfill()
    assert migrating.verify().outcome.passed
    finish(cutover.cutover(migrating.settings, migrating.target, Stop(), 100, no_clients=True))
    stopped = stop_writes.stop_writes(
        migrating.settings, migrating.target, Stop(), "reject", no_clients=True, accept_expiring=1000
    )
    assert finish(stopped).changed
    return Finishing(migrating)


# The gates of the drop ----------------------------------------------------------------------------------------------


def test_each_gate_is_met_by_the_command_that_it_names(finishing: Finishing) -> None:
    m = finishing.m
    m.execute("CREATE VIEW v AS SELECT cache FROM sessions")
    assert finishing.unmet() == {"verify", "archive", "dependents"}
    with pytest.raises(Refused) as refused:
        finishing.drop()
    for named in ("gate verify", "→ cachemig verify", "→ cachemig archive --to PLACE", "in the way: view public.v"):
        assert named in str(refused.value)
    assert finishing.has_column()
    m.execute("DROP VIEW v")
    assert m.verify().outcome.passed
    assert finishing.unmet() == {"archive"}
    finishing.archive()
    assert finishing.unmet() == set()
    shown = finishing.outlook()
    assert not shown.refused
    assert any("DROP COLUMN" in statement for statement in shown.statements)
    assert drop_column.outlook(m.settings, m.target).refused, "nobody is registered"
    m.set(**OPENLY | {"soak_redis_only": "1h"})
    assert finishing.unmet() == {"soak"}
    m.set(**OPENLY)
    assert finishing.drop().changed
    assert finishing.state()[0] == "dropped"
    ((figures,),) = m.execute("SELECT figures FROM cachemig.journal WHERE command = 'drop-column'")
    assert figures["no_clients"] is True
    assert set(figures["gates"]) == {gate.gate for gate in shown.gates}
    assert not finishing.drop().changed
    assert finishing.outlook().done
    assert finishing.outlook().gates == []


def test_without_a_migration_and_in_other_phases_it_only_looks(migrating: Migrating) -> None:
    shown = drop_column.outlook(migrating.settings, migrating.target)
    assert [(gate.gate, gate.met, gate.command) for gate in shown.gates] == [("phase", False, "cachemig init")]
    migrating.begin()
    shown = drop_column.outlook(migrating.settings, migrating.target)
    assert [gate.command for gate in shown.gates] == ["cachemig cutover"]
    with pytest.raises(Refused, match="not allowed in phase 'dual-write'"):
        finish(drop_column.execute(migrating.settings, migrating.target, Stop()))


def test_a_late_write_that_commits_while_the_lock_is_waited_for_stops_the_drop(finishing: Finishing) -> None:
    m = finishing.m
    stop_again = stop_writes.stop_writes(m.settings, m.target, Stop(), "forward")
    assert not finish(stop_again).changed  # the guard lets it through from now on
    assert m.verify().outcome.passed
    finishing.archive()
    with psycopg.connect(m.dsn) as old:
        old.execute("UPDATE sessions SET cache = '{\"late\": 1}' WHERE file_hash = 'key-1'")
        step = finishing.dropping()
        next(step)
        old.commit()
    with pytest.raises(Refused, match="1 wait to be delivered"):
        finish(step)
    assert finishing.has_column()
    m.sync()
    assert m.in_redis()["key-1"] == b'{"late": 1}'
    assert finishing.unmet() == {"archive"}, "the archive does not have it"
    assert m.execute("SELECT count(*) FROM cachemig.lease") == [(0,)]


def test_rows_that_go_meanwhile_are_waited_for_until_sync_has_brought_them_to_redis(finishing: Finishing) -> None:
    m = finishing.m
    assert m.verify().outcome.passed
    finishing.archive()
    with psycopg.connect(m.dsn) as application:
        application.execute("DELETE FROM sessions WHERE file_hash = 'key-1'")
        step = finishing.dropping()
        next(step)
        application.commit()
        while next(step).waiting != WAITING:
            pass
    m.sync()
    assert finish(step).changed
    assert not finishing.has_column()
    assert "key-1" not in m.in_redis()


def test_a_column_that_is_gone_already_is_only_recorded(finishing: Finishing) -> None:
    finishing.m.execute("DROP TRIGGER cachemig_guard ON sessions; ALTER TABLE sessions DROP COLUMN cache")
    assert finishing.outlook().gates == []
    assert finishing.drop().changed
    assert finishing.state()[0] == "dropped"


# There and back -----------------------------------------------------------------------------------------------------


def written_alone(service: CacheService) -> dict[str, Any]:
    """What an application writes when there is no column any more; by key, None for what it removes."""
    values: dict[str, Any] = {
        "key-1": {"n": 1001, "after": "the drop"},
        "shared": {"newest": True},
        "empty": {"now": 1},
    }
    for key, value in values.items():
        assert service.put(key, value).version
    service.invalidate("key-2")
    return {**values, "key-2": None}


def test_from_redis_only_over_the_drop_and_back_to_idle_nothing_is_lost(finishing: Finishing) -> None:
    m = finishing.m
    before, (phase, epoch, frozen) = finishing.texts(), finishing.state()
    others = m.execute("SELECT id, file_hash, hits, seen_at, created_at FROM sessions ORDER BY id")
    assert (phase, epoch, frozen) == ("redis-only", 1, 0)
    assert m.verify().outcome.passed
    finishing.archive()
    assert finishing.drop().changed
    assert finish(reclaim.reclaim(m.settings, Stop(), method="vacuum-full")).after.table > 0
    with opened_sync(m) as service:
        alone = written_alone(service)
        m.execute("INSERT INTO sessions (file_hash) VALUES ('came since')")
        service.put("came since", {"new": 1})
    assert m.verify().outcome.passed, "with the ledger"

    result = finishing.restore()
    assert result.finished
    assert (result.bad, result.left_out) == (0, ())
    assert (result.from_redis, result.emptied, result.since) == (3, 1, 1)
    assert finishing.state() == ("redis-only", 1, 0), "as before the drop"
    table = inspect(m.conn, m.settings)
    assert capture.guarded(m.conn, table) == "reject", "as it was told to stop-writes"
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        m.execute("UPDATE sessions SET cache = '[1]' WHERE file_hash = 'key-3'")
    assert m.execute(
        "SELECT phase_from, phase_to, figures ->> 'verified' FROM cachemig.journal WHERE command = 'restore'"
    ) == [("dropped", "redis-only", "34")]
    with opened_sync(m) as service:
        assert service.get("key-1") == alone["key-1"]
        service.put("key-3", {"after": "the restore"})
    alone["key-3"] = {"after": "the restore"}

    assert (moved := finishing.back()).phase is Phase.CUTOVER
    assert moved.copied is not None
    assert (moved.copied.written, moved.copied.emptied, moved.copied.left) == (1, 0, {}), "restore brought the others"
    assert finishing.back().phase is Phase.DUAL_WRITE
    m.sync()
    assert m.verify().outcome.passed
    assert m.in_redis() == m.in_postgres()
    finish(dual_write.switch(m.settings, m.target, enable=False))
    assert finishing.state()[0] == "idle"

    after, keys = finishing.texts(), dict(m.execute("SELECT id, file_hash FROM sessions"))
    newest = {key: row for row, key in sorted(keys.items())}
    for row, text in before.items():
        if keys[row] in alone and newest[keys[row]] == row:
            value = alone[keys[row]]
            assert json.loads(text_of(after[row])) == ({} if value is None else value)
        else:
            assert after[row] == text, keys[row]
    assert after[newest["came since"]] == '{"new": 1}'
    assert [
        (row[0], row[1]) for row in m.execute("SELECT id, file_hash FROM sessions ORDER BY id") if row[0] in before
    ] == [(row[0], row[1]) for row in others]
    assert m.execute("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'cachemig%%'") == [(0,)]


def text_of(value: str | None) -> str:
    assert value is not None
    return value


def test_another_drop_wants_another_archive(finishing: Finishing) -> None:
    m = finishing.m
    assert m.verify().outcome.passed
    finishing.archive()
    assert finishing.drop().changed
    assert finishing.restore().finished
    assert finishing.unmet() == {"archive"}
    m.directory.joinpath("a.zst").unlink()
    finishing.archive()
    assert finishing.drop().changed


def test_a_restore_where_other_settings_hold_is_refused_before_anything_is_changed(finishing: Finishing) -> None:
    m = finishing.m
    assert m.verify().outcome.passed
    finishing.archive()
    finishing.drop()
    m.set(**OPENLY | {"key_template": "other:{key}"})
    with pytest.raises(Exception, match="not the settings that this migration was begun with"):
        finishing.restore()
    assert not finishing.has_column()


def test_restore_without_a_control_schema(finishing: Finishing) -> None:
    m = finishing.m
    before = finishing.texts()
    finishing.archive()
    m.execute("DROP TRIGGER cachemig_guard ON sessions; DROP TRIGGER cachemig_guard_truncate ON sessions")
    m.execute("ALTER TABLE sessions DROP COLUMN cache; DROP SCHEMA cachemig CASCADE")
    assert finishing.restore().finished
    assert finishing.texts() == before
    assert control.find(m.conn) is None

"""sql/by_hand: the very files a DBA runs with psql, without the tool."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import psycopg
import pytest

from cachemig.demo.servers import postgres_bin_dir
from cachemig.source import queries
from cachemig.steps import archive, cutover, dual_write, init, rollback, stop_writes
from cachemig.stop import Stop
from tests.conftest import REPOSITORY
from tests.integration.conftest import TABLE, Migrating, finish
from tests.integration.dropping import DONE, freeze, has_column, state

SCRIPTS = queries.directory() / "by_hand"


def psql(migrating: Migrating, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    given = {"table": "sessions", "column": "cache", "key": "file_hash", **variables}
    flags = [part for name, value in given.items() for part in ("-v", f"{name}={value}")]
    program = postgres_bin_dir() / "psql"
    return subprocess.run(
        [str(program) if program.exists() else "psql", "-X", "-d", migrating.dsn, *flags, "-f", str(SCRIPTS / script)],
        capture_output=True,
        text=True,
    )


def fine(migrating: Migrating, script: str, **variables: str) -> str:
    ran = psql(migrating, script, **variables)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_inspection_names_what_blocks_vanishes_and_breaks(migrating: Migrating) -> None:
    migrating.execute("""
        CREATE VIEW a_view AS SELECT cache FROM sessions;
        CREATE INDEX an_index ON sessions ((cache ->> 'a'));
        CREATE FUNCTION reader() RETURNS text LANGUAGE sql AS $$ SELECT 'the cache' $$;
        CREATE PUBLICATION p FOR TABLE sessions;
    """)
    with psycopg.connect(migrating.dsn, application_name="report") as report:
        report.execute("SELECT 1 FROM sessions")
        out = fine(migrating, "60_inspect_column.sql")
    rows = [[cell.strip() for cell in line.split("|")] for line in out.splitlines()]
    assert ["BLOCKS", "view", "public.a_view", ""] in rows
    assert [row for row in rows if row[:3] == ["VANISHES", "index", "public.an_index"] and "CREATE INDEX" in row[3]]
    assert ["reader()", "{}"] in rows
    assert any("report" in row for row in rows)
    assert ["publication", "p"] in rows


def test_the_drop_is_recorded_where_there_is_a_migration(migrating: Migrating) -> None:
    migrating.begin()
    assert "refused in phase dual-write" in psql(migrating, "70_drop_column.sql").stderr
    assert has_column(migrating)
    migrating.execute("DROP TRIGGER cachemig_capture ON sessions; DROP TRIGGER cachemig_capture_truncate ON sessions")
    migrating.execute("DROP SCHEMA cachemig CASCADE")
    freeze(migrating)
    assert "no live application" in psql(migrating, "70_drop_column.sql").stderr
    assert "soak is not over" in psql(migrating, "70_drop_column.sql", soak="9 days", no_clients="true").stderr
    migrating.execute("CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT 'cache' $$")
    assert "functions mention" in psql(migrating, "70_drop_column.sql", no_clients="true").stderr
    assert has_column(migrating)
    fine(migrating, "70_drop_column.sql", no_clients="true", accept="{f()}")
    assert state(migrating) == DONE
    assert migrating.execute("SELECT to_regprocedure('cachemig.guard()')") == [(None,)]


def test_the_drop_waits_two_seconds_and_never_cascades(migrating: Migrating) -> None:
    migrating.execute("CREATE VIEW a_view AS SELECT cache FROM sessions")
    assert "other objects depend on it" in psql(migrating, "70_drop_column.sql").stderr
    migrating.execute("DROP VIEW a_view")
    with psycopg.connect(migrating.dsn) as report:
        report.execute("SELECT 1 FROM sessions")
        assert "lock timeout" in psql(migrating, "70_drop_column.sql").stderr
    assert has_column(migrating)
    fine(migrating, "70_drop_column.sql")
    assert not has_column(migrating)


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.iterdir()))
def test_each_says_why_it_is_safe(script: str) -> None:
    head = (SCRIPTS / script).read_text().split("\\set")[0]
    assert f"-f sql/by_hand/{script}" in head
    assert any(word in head for word in ("Safe on a live system, because", "Reads only", "NOT for busy hours"))


def test_they_are_the_statements_that_the_tool_runs() -> None:
    before = {path.name: path.read_text() for path in SCRIPTS.iterdir()}
    written = subprocess.run(
        [sys.executable, "-c", "import by_hand, json; print(json.dumps({n: f() for n, f in by_hand.FILES.items()}))"],
        cwd=REPOSITORY / "scripts",
        capture_output=True,
        text=True,
        check=True,
    )
    for name, text in json.loads(written.stdout).items():
        assert before[name] == text, "python scripts/by_hand.py writes it anew"


def catalog(m: Migrating) -> dict[str, Any]:
    """What the tool made: functions by their text, triggers, tables with their columns and indexes."""
    return {
        "functions": dict(
            m.execute(
                "SELECT oid::regprocedure::text, pg_get_functiondef(oid) || coalesce(proacl::text, '')"
                " FROM pg_proc WHERE pronamespace = 'cachemig'::regnamespace"
            )
        ),
        "triggers": dict(
            m.execute(
                "SELECT tgname, pg_get_triggerdef(oid) || tgenabled::text FROM pg_trigger"
                " WHERE tgrelid = 'sessions'::regclass AND NOT tgisinternal"
            )
        ),
        "columns": m.execute(
            "SELECT attrelid::regclass::text, attname, atttypid, attnotnull FROM pg_attribute WHERE attrelid IN"
            " (SELECT oid FROM pg_class WHERE relnamespace = 'cachemig'::regnamespace) ORDER BY 1, attnum"
        ),
    }


def test_by_hand_and_by_the_tool_lead_to_the_same(migrating: Migrating) -> None:
    """init, dual-write and stop-writes: what each leaves in the catalog, and that the tool goes on from there."""
    m = migrating
    ways: dict[str, list[dict[str, Any]]] = {"tool": [], "hand": []}
    m.set(soak_cutover="0s")
    settings = json.dumps(m.settings.identity(), sort_keys=True)
    for way, found in ways.items():
        m.put("a", {"v": 1})
        if way == "tool":
            init.init(m.settings, m.target, m.directory)
            finish(dual_write.switch(m.settings, m.target, enable=True))
        else:
            fine(m, "10_init.sql", settings=settings)
            assert not init.init(m.settings, m.target, m.directory).created
            fine(m, "20_dual_write.sql", order_by="created_at")
            assert "not in phase idle" in psql(m, "20_dual_write.sql").stderr
            m.put("b", {"v": 2})
            assert m.sync().epochs == 1
            assert not finish(dual_write.switch(m.settings, m.target, enable=True)).changed, "it adds the functions"
        found.append(catalog(m))
        m.backfill()
        assert m.verify().outcome.passed
        finish(cutover.cutover(m.settings, m.target, Stop(), 100, no_clients=True))
        if way == "tool":
            step = stop_writes.stop_writes(m.settings, m.target, Stop(), "reject", no_clients=True, accept_expiring=9)
            assert finish(step).changed
        else:
            assert "no live application" in psql(m, "50_stop_writes.sql", soak="0").stderr
            assert "soak is not over" in psql(m, "50_stop_writes.sql", no_clients="true").stderr
            fine(m, "50_stop_writes.sql", soak="0", no_clients="true", guard="reject")
            assert not finish(stop_writes.stop_writes(m.settings, m.target, Stop(), "reject")).changed
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
                m.put("late", {"v": 1})
        found.append(catalog(m))
        if way == "hand":
            break
        m.execute("DROP TABLE sessions; DROP SCHEMA cachemig CASCADE")
        m.execute(TABLE)
    for by_tool, by_hand in zip(*ways.values(), strict=True):
        for kind, expected in by_tool.items():
            assert by_hand[kind] == expected
    assert m.verify().outcome.passed
    finish(archive.archive(m.settings, Stop(), str(m.directory / "a.zst")))
    fine(m, "70_drop_column.sql", soak="0", no_clients="true")
    assert state(m) == DONE


def test_rollback_leads_back_from_stop_writes_by_hand(migrating: Migrating) -> None:
    m = migrating
    m.put("a", {"v": 1})
    m.begin()
    m.backfill()
    m.verify()
    finish(cutover.cutover(m.settings, m.target, Stop(), 100, no_clients=True))
    fine(m, "50_stop_writes.sql", soak="0", no_clients="true")
    m.execute("UPDATE sessions SET cache = '{\"late\": 1}'")
    m.sync()
    assert finish(rollback.rollback(m.settings, m.target, Stop())).phase == "cutover"
    assert m.execute("SELECT cache FROM sessions") == [({"late": 1},)]


def test_the_settings_of_a_migration_by_hand_are_the_defaults_where_none_are_given(migrating: Migrating) -> None:
    m = migrating
    defaults = {"key_template": "analysis:{key}", "ttl_from": "last_accessed_at", "shape": "emg"}
    m.execute("ALTER TABLE sessions ADD COLUMN last_accessed_at timestamptz")
    m.set(**defaults)
    fine(m, "10_init.sql")
    assert not init.init(m.settings, m.target, m.directory).created


def test_the_space_comes_back(migrating: Migrating) -> None:
    migrating.execute(
        "INSERT INTO sessions (file_hash, cache) SELECT 'k', jsonb_build_object('v', (SELECT string_agg(md5(n::text ||"
        " m::text), '') FROM generate_series(1, 300) AS m)) FROM generate_series(1, 100) AS n"
    )
    fine(migrating, "70_drop_column.sql")
    size = "SELECT pg_total_relation_size('sessions')"
    before = migrating.execute(size)[0][0]
    assert "== After" in fine(migrating, "80_reclaim.sql")
    assert migrating.execute(size)[0][0] < before / 4

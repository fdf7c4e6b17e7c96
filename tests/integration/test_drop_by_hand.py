"""sql/by_hand: the very files a DBA runs with psql, without the tool."""

from __future__ import annotations

import subprocess

import psycopg
import pytest

from cachemig.demo.servers import postgres_bin_dir
from cachemig.source import queries
from tests.integration.conftest import Migrating
from tests.integration.dropping import DONE, freeze, has_column, state

SCRIPTS = queries.directory() / "by_hand"


def psql(migrating: Migrating, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    given = {"table": "public.sessions", "column": "cache", **variables}
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
    assert "not in phase" in psql(migrating, "70_drop_column.sql").stderr
    assert has_column(migrating)
    migrating.execute("DROP TRIGGER cachemig_capture ON sessions; DROP TRIGGER cachemig_capture_truncate ON sessions")
    migrating.execute("DROP SCHEMA cachemig CASCADE")
    freeze(migrating)
    fine(migrating, "70_drop_column.sql")
    assert state(migrating) == DONE


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


@pytest.mark.parametrize("script", ["60_inspect_column.sql", "80_reclaim.sql"])
def test_each_says_why_it_is_safe(script: str) -> None:
    assert (SCRIPTS / script).read_text().startswith("-- ")


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

"""reclaim: the drop frees nothing, VACUUM FULL all of it, and nobody is ended for it."""

from __future__ import annotations

import psycopg
import pytest

from cachemig.config import load
from cachemig.errors import Interrupted, LockNotGranted, Refused
from cachemig.steps import reclaim as step
from cachemig.steps.drop_column.inspect import Subject
from cachemig.steps.reclaim import Reclaimed, environment, outlook, reclaim, repack_command
from cachemig.stop import Stop
from tests.integration.conftest import Migrating, finish
from tests.integration.dropping import dropped, freeze

FILL = """
INSERT INTO sessions (file_hash, cache)
SELECT 'k' || n,
    jsonb_build_object('v', (SELECT string_agg(md5(n::text || m::text), '') FROM generate_series(1, 300) AS m))
FROM generate_series(1, 300) AS n;
ANALYZE sessions
"""


def reclaimed(migrating: Migrating, method: step.Method = "vacuum-full", tries: int = 2) -> Reclaimed:
    return finish(reclaim(migrating.settings, Stop(), method=method, tries=tries))


def gone(migrating: Migrating) -> None:
    migrating.execute(FILL)
    freeze(migrating)
    assert dropped(migrating).changed


def test_the_drop_frees_nothing_and_vacuum_full_all_of_it(migrating: Migrating) -> None:
    migrating.execute(FILL)
    freeze(migrating)
    full = outlook(migrating.settings)
    assert full.column_is_there
    assert full.before.toast > 2_000_000
    assert full.before.table == full.before.heap + full.before.toast + full.before.indexes
    ((table, database),) = migrating.execute(
        "SELECT pg_total_relation_size('sessions'), pg_database_size(current_database())"
    )
    assert full.before.table == table
    assert full.before.database == pytest.approx(database, rel=0.01)
    with pytest.raises(Refused, match="still has cache"):
        reclaimed(migrating)

    assert dropped(migrating).changed
    left = outlook(migrating.settings)
    assert left.freed_by_drop == 0
    assert left.when_dropped == full.before.table
    assert not left.column_is_there
    assert left.kept_bytes < full.before.table / 10, "an estimate without what was dropped"

    result = reclaimed(migrating)
    assert result.after.toast < 100_000
    assert result.freed > 2_000_000
    assert result.before.database - result.after.database > 2_000_000
    assert result.after.table < 2 * left.kept_bytes + 100_000
    assert migrating.execute("SELECT count(*), count(DISTINCT file_hash) FROM sessions") == [(300, 300)]
    ((figures,),) = migrating.execute("SELECT figures FROM cachemig.journal WHERE command = 'reclaim'")
    assert figures["table_bytes_before"] - figures["table_bytes_after"] == result.freed


def test_the_choices_and_their_price(migrating: Migrating) -> None:
    gone(migrating)
    choices = {c.method: c for c in outlook(migrating.settings).choices}
    assert list(choices) == ["none", "vacuum-full", "pg_repack"]
    assert choices["none"].available
    assert choices["vacuum-full"].available
    assert not choices["pg_repack"].available, "its extension is not there"
    assert "every reader and writer" in choices["vacuum-full"].locks
    assert choices["vacuum-full"].seconds > 0
    assert choices["vacuum-full"].spare_bytes > 0
    with pytest.raises(Refused, match="not installed"):
        reclaimed(migrating, "pg_repack")
    kept = reclaimed(migrating, "none")
    assert kept.freed == 0


def test_each_partition_is_written_anew(migrating: Migrating) -> None:
    migrating.execute("""
        CREATE TABLE parts (id int, file_hash text, cache jsonb, hits int, seen_at timestamptz, created_at timestamptz)
            PARTITION BY LIST (hits);
        CREATE TABLE part_0 PARTITION OF parts FOR VALUES IN (0);
        CREATE TABLE part_1 PARTITION OF parts FOR VALUES IN (1);
        CREATE INDEX ON parts (file_hash);
        INSERT INTO parts (file_hash, hits, cache) SELECT 'k' || n, n % 2, jsonb_build_object('v',
            (SELECT string_agg(md5(n::text || m::text), '') FROM generate_series(1, 300) AS m))
            FROM generate_series(1, 100) AS n;
    """)
    migrating.set(table="parts")
    freeze(migrating)
    dropped(migrating)
    toast = "SELECT sum(pg_total_relation_size(reltoastrelid)) FROM pg_class WHERE relname IN ('part_0', 'part_1')"
    assert migrating.execute(toast)[0][0] > 500_000
    assert reclaimed(migrating).freed > 500_000
    assert migrating.execute(toast)[0][0] < 100_000


def test_a_blocker_is_named_and_given_up_for(migrating: Migrating) -> None:
    gone(migrating)
    with psycopg.connect(migrating.dsn, application_name="nightly report") as report:
        report.execute("SELECT count(*) FROM sessions")
        running = reclaim(migrating.settings, Stop(), method="vacuum-full", tries=2)
        said = []
        with pytest.raises(LockNotGranted, match="nightly report"):
            for progress in running:
                said.append(progress.waiting or "")
        assert any("nightly report" in text for text in said)
        assert report.execute("SELECT 1").fetchone() == (1,)
    assert reclaimed(migrating).freed > 0


def test_a_stop_while_it_waits_leaves_the_table_as_it_is(migrating: Migrating) -> None:
    gone(migrating)
    stop = Stop()
    before = outlook(migrating.settings).before.table
    with psycopg.connect(migrating.dsn) as report:
        report.execute("SELECT count(*) FROM sessions")
        running = reclaim(migrating.set(lock_timeout="20s"), stop, method="vacuum-full")
        next(running)
        stop.request(2)
        with pytest.raises(Interrupted):
            finish(running)
    assert outlook(migrating.settings).before.table == before


def test_it_works_when_the_control_schema_is_gone(migrating: Migrating) -> None:
    gone(migrating)
    migrating.execute("DROP SCHEMA cachemig CASCADE")
    assert outlook(migrating.settings).freed_by_drop is None
    assert reclaimed(migrating).freed > 2_000_000


def test_pg_repack_gets_no_secret_in_argv_and_ends_nobody() -> None:
    dsn = "host=db user=me password=hidden dbname=app sslmode=require"
    settings = load({}, {"CACHEMIG_DSN": dsn}, None)
    command = repack_command(settings, Subject(1, "public", "T a", "r", (1,)))
    assert command[0] == "pg_repack"
    assert '--table="public"."T a"' in command
    assert "--no-kill-backend" in command
    assert "hidden" not in " ".join(command)
    found = environment(settings)
    assert (found["PGHOST"], found["PGPASSWORD"], found["PGSSLMODE"]) == ("db", "hidden", "require")

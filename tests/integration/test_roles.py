"""sql/roles.sql, run by psql: each role can do its commands, and no more."""

from __future__ import annotations

import subprocess
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import cachemig
from cachemig.config import Settings, load
from cachemig.demo.servers import PostgresServer, postgres_bin_dir
from cachemig.errors import PrivilegeMissing, RowsHidden
from cachemig.ladder import Phase
from cachemig.source import control, queries
from cachemig.source.connect import connect, transaction
from cachemig.steps import doctor
from cachemig.steps.archive import archive
from cachemig.steps.backfill import backfill
from cachemig.steps.clean import clean
from cachemig.steps.cutover import cutover
from cachemig.steps.dual_write import switch
from cachemig.steps.init import init
from cachemig.steps.plan import plan
from cachemig.steps.report import report
from cachemig.steps.rollback import rollback
from cachemig.steps.status import status
from cachemig.steps.stop_writes import stop_writes
from cachemig.steps.sync import sync
from cachemig.steps.verify import verify
from cachemig.stop import Stop
from cachemig.targets.redis import RedisTarget
from tests.conftest import OwnPostgres
from tests.integration.conftest import finish

DEMO = Path(cachemig.__file__).parent / "demo" / "schema.sql"


def psql(dsn: str, *variables: str) -> subprocess.CompletedProcess[str]:
    script = queries.directory() / "roles.sql"
    return subprocess.run(
        [postgres_bin_dir() / "psql", "-X", "-q", "-d", dsn, *(f"-v{v}" for v in variables), "-f", script],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def postgres(own_postgres: OwnPostgres) -> PostgresServer:
    """A server of its own, because roles belong to a whole server. PUBLIC has lost what a careful DBA revokes."""
    server = own_postgres()
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute("CREATE ROLE clinic LOGIN; GRANT USAGE, CREATE ON SCHEMA public TO clinic")
        conn.execute("REVOKE ALL ON DATABASE postgres FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC")
        conn.execute("GRANT CONNECT ON DATABASE postgres TO clinic")
        conn.execute("SET ROLE clinic")
        conn.execute(DEMO.read_text())
        conn.execute(
            "INSERT INTO therapy_sessions (patient_code, file_path, file_hash, analytics_cache)"
            " SELECT 'p', 'f', 'hash' || n, '{\"a\": 1}' FROM generate_series(1, 50) AS n"
        )
    return server


class Actors:
    def __init__(self, server: PostgresServer, redis_url: str, prefix: str) -> None:
        self.server, self.redis_url, self.prefix = server, redis_url, prefix

    def settings(self, role: str) -> Settings:
        environment = {"CACHEMIG_DSN": self.server.dsn(user=role), "CACHEMIG_REDIS_URL": self.redis_url}
        return load({"key_template": f"{self.prefix}{{key}}", "shape": "object"}, environment)

    def target(self, role: str) -> RedisTarget:
        return RedisTarget(self.settings(role), {})


@pytest.fixture
def actors(postgres: PostgresServer, redis_url: str, prefix: str) -> Actors:
    return Actors(postgres, redis_url, prefix)


def test_each_role_runs_its_commands(actors: Actors, tmp_path: Path) -> None:
    done = psql(actors.server.dsn())
    assert (done.returncode, done.stderr) == (0, "")
    owner, worker, reader = (f"cachemig_{name}" for name in ("owner", "worker", "reader"))
    with actors.target(owner) as target:
        assert init(actors.settings(owner), target, tmp_path).created
        assert finish(switch(actors.settings(owner), target, enable=True)).changed
    with actors.target(worker) as target:
        assert finish(backfill(actors.settings(worker), target, Stop())).tally.delivered == 50
        with psycopg.connect(actors.server.dsn(user="clinic")) as application:
            application.execute("UPDATE therapy_sessions SET analytics_cache = '{\"a\": 2}' WHERE file_hash = 'hash7'")
        assert finish(sync(actors.settings(worker), target, Stop(), follow=False)).changes == 1
        assert target.fetch(["hash7"])[0].value == b'{"a": 2}'
        found = {f.name: f for f in doctor.examine(actors.settings(worker), target)}
        assert [f for f in found.values() if f.level is doctor.Level.ERROR] == []
    with actors.target(reader) as target:
        assert status(actors.settings(reader)).phase is Phase.DUAL_WRITE
        assert plan(actors.settings(reader), target).phase == "dual-write"
        assert report(actors.settings(reader), target).phase == "dual-write"
        errors = [f.name for f in doctor.examine(actors.settings(reader), target) if f.level is doctor.Level.ERROR]
        assert errors == ["control-schema", "temporary-tables"]  # what it may not do is told
    with actors.target(owner) as target:
        finish(switch(actors.settings(owner), target, enable=False))
        assert finish(clean(actors.settings(owner), target, execute=True)).control_schema


@pytest.mark.parametrize("forced", [False, True])
def test_stopping_the_writes_and_going_back(actors: Actors, tmp_path: Path, forced: bool) -> None:
    owner, worker = "cachemig_owner", "cachemig_worker"
    with psycopg.connect(actors.server.dsn(user="clinic"), autocommit=True) as application:
        if forced:
            application.execute("ALTER TABLE therapy_sessions ENABLE ROW LEVEL SECURITY")
            application.execute("ALTER TABLE therapy_sessions FORCE ROW LEVEL SECURITY")
            application.execute("CREATE POLICY all_rows ON therapy_sessions USING (true)")
        assert psql(actors.server.dsn()).returncode == 0
        mine = replace(actors.settings(owner), soak_cutover=0.0)
        with actors.target(owner) as target:
            init(mine, target, tmp_path)
            finish(switch(mine, target, enable=True))
        with actors.target(worker) as target:
            finish(backfill(actors.settings(worker), target, Stop()))
            assert finish(verify(actors.settings(worker), target, Stop())).outcome.passed
        with actors.target(owner) as target:
            finish(cutover(mine, target, Stop(), 100, no_clients=True))
            finish(stop_writes(mine, target, Stop(), "forward", no_clients=True, accept_expiring=50))
            application.execute("UPDATE therapy_sessions SET analytics_cache = '{\"a\": 3}' WHERE file_hash = 'hash7'")
        with actors.target(worker) as target:
            assert finish(sync(actors.settings(worker), target, Stop(), follow=False)).late == 1
            assert target.fetch(["hash7"])[0].value == b'{"a": 3}'
            assert finish(verify(actors.settings(worker), target, Stop())).outcome.passed
            assert finish(archive(actors.settings(worker), Stop(), str(tmp_path / "column.zst"))).frozen
            target.write_alone("hash8", b'{"a":4}', None, epoch=1, expected=0)
        with actors.target(owner) as target:
            moved = finish(rollback(mine, target, Stop()))
            assert moved.copied is not None
            assert (moved.phase, moved.copied.keys, moved.copied.written) == (Phase.CUTOVER, 2, 1)
        found = application.execute("SELECT analytics_cache FROM therapy_sessions WHERE file_hash = 'hash8'").fetchone()
        assert found == ({"a": 4},)


def test_the_worker_repairs_the_column_where_it_was_told_to_and_nothing_else(actors: Actors, tmp_path: Path) -> None:
    owner, worker = "cachemig_owner", "cachemig_worker"
    psql(actors.server.dsn())
    with actors.target(owner) as target:
        init(actors.settings(owner), target, tmp_path)
        finish(switch(actors.settings(owner), target, enable=True))
    with psycopg.connect(actors.server.dsn(user="clinic"), autocommit=True) as application:
        application.execute(
            "UPDATE therapy_sessions SET analytics_cache = to_jsonb('{\"a\": 3}'::text) WHERE file_hash = 'hash7'"
        )
        with actors.target(worker) as target:
            settings = replace(actors.settings(worker), on_corrupt="recompute")
            with pytest.raises(PrivilegeMissing):
                finish(backfill(settings, target, Stop()))
            assert psql(actors.server.dsn(), "repair=analytics_cache").stderr == ""
            assert finish(backfill(settings, target, Stop())).repaired == 1
            assert target.fetch(["hash7"])[0].value == b'{"a": 3}'
        with (
            psycopg.connect(actors.server.dsn(user=worker)) as conn,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            conn.execute("UPDATE therapy_sessions SET status = 'failed'")


def test_running_it_again_changes_nothing(postgres: PostgresServer) -> None:
    def rights() -> list[Any]:
        with psycopg.connect(postgres.dsn()) as conn:
            return conn.execute(
                "SELECT array_agg(acl ORDER BY acl) FROM (SELECT relacl::text AS acl FROM pg_class UNION ALL"
                " SELECT nspacl::text FROM pg_namespace UNION ALL SELECT defaclacl::text FROM pg_default_acl UNION ALL"
                " SELECT datacl::text FROM pg_database UNION ALL SELECT rolname || rolbypassrls FROM pg_roles UNION ALL"
                " SELECT roleid || ' ' || member FROM pg_auth_members) AS a"
            ).fetchall()

    assert psql(postgres.dsn()).returncode == 0
    once = rights()
    again = psql(postgres.dsn(), "table=public.therapy_sessions")
    assert (again.returncode, again.stderr) == (0, "")
    assert rights() == once


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("cachemig_reader", "DELETE FROM cachemig.change"),
        ("cachemig_reader", "CREATE TEMPORARY TABLE t ()"),
        ("cachemig_reader", "UPDATE therapy_sessions SET analytics_cache = NULL"),
        ("cachemig_worker", "UPDATE therapy_sessions SET analytics_cache = NULL"),
        ("cachemig_worker", "DROP TABLE cachemig.entry"),
        ("cachemig_worker", "CREATE TABLE cachemig.another ()"),
        ("cachemig_worker", "ALTER TABLE therapy_sessions DISABLE TRIGGER ALL"),
        ("cachemig_owner", "CREATE SCHEMA another"),
    ],
)
def test_no_role_may_do_more(actors: Actors, tmp_path: Path, role: str, statement: str) -> None:
    assert psql(actors.server.dsn()).returncode == 0
    with actors.target("cachemig_owner") as target:
        init(actors.settings("cachemig_owner"), target, tmp_path)
    with connect(actors.settings(role)) as conn, pytest.raises(PrivilegeMissing), transaction(conn):
        conn.execute(statement)


@pytest.mark.parametrize("forced", [False, True])
def test_row_level_security_hides_nothing_from_the_roles(actors: Actors, tmp_path: Path, forced: bool) -> None:
    with psycopg.connect(actors.server.dsn(user="clinic"), autocommit=True) as conn:
        conn.execute("ALTER TABLE therapy_sessions ENABLE ROW LEVEL SECURITY")
        if forced:
            conn.execute("ALTER TABLE therapy_sessions FORCE ROW LEVEL SECURITY")
    assert psql(actors.server.dsn()).returncode == 0
    with actors.target("cachemig_owner") as target:
        assert init(actors.settings("cachemig_owner"), target, tmp_path).created
        finish(switch(actors.settings("cachemig_owner"), target, enable=True))
    with actors.target("cachemig_worker") as target:
        assert finish(backfill(actors.settings("cachemig_worker"), target, Stop())).tally.delivered == 50
    assert plan(actors.settings("cachemig_reader"), None).rows == 50
    with psycopg.connect(actors.server.dsn(), autocommit=True) as conn:
        conn.execute("ALTER ROLE cachemig_reader NOBYPASSRLS")
    with pytest.raises(RowsHidden):
        plan(actors.settings("cachemig_reader"), None)


def test_without_row_level_security_no_role_bypasses_it(postgres: PostgresServer) -> None:
    assert psql(postgres.dsn()).returncode == 0
    with psycopg.connect(postgres.dsn()) as conn:
        row = conn.execute("SELECT count(*) FROM pg_roles WHERE rolname ~ '^cachemig_' AND rolbypassrls").fetchone()
    assert row == (0,)


def test_membership_in_a_superuser_is_not_granted(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.dsn(), autocommit=True) as conn:
        conn.execute("ALTER TABLE therapy_sessions OWNER TO postgres")
    done = psql(postgres.dsn())
    assert done.returncode == 0
    assert "belongs to the superuser postgres" in done.stderr
    with psycopg.connect(postgres.dsn()) as conn:
        row = conn.execute("SELECT pg_has_role('cachemig_owner', 'postgres', 'MEMBER')").fetchone()
    assert row == (False,)


def test_the_owner_runs_it_where_nobody_is_superuser(actors: Actors, tmp_path: Path) -> None:
    with psycopg.connect(actors.server.dsn(), autocommit=True) as conn:
        conn.execute("ALTER ROLE clinic CREATEROLE; ALTER DATABASE postgres OWNER TO clinic")
        conn.execute("ALTER SCHEMA public OWNER TO clinic")
    for _ in range(2):
        done = psql(actors.server.dsn(user="clinic"), "owner_role=clinic")
        assert (done.returncode, done.stderr) == (0, "")
    with actors.target("clinic") as target:
        assert init(actors.settings("clinic"), target, tmp_path).created
        finish(switch(actors.settings("clinic"), target, enable=True))
    with actors.target("cachemig_worker") as target:
        assert finish(backfill(actors.settings("cachemig_worker"), target, Stop())).tally.delivered == 50


def test_a_table_that_is_not_there_leaves_nothing_done(postgres: PostgresServer) -> None:
    done = psql(postgres.dsn(), "table=public.nothing")
    assert done.returncode != 0
    assert "public.nothing" in done.stderr
    with psycopg.connect(postgres.dsn()) as conn:
        assert conn.execute("SELECT count(*) FROM pg_roles WHERE rolname ~ '^cachemig_'").fetchone() == (0,)


def test_another_name_needs_no_quoting_by_hand(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.dsn(), autocommit=True) as conn:
        conn.execute('CREATE SCHEMA "My Clinic"; CREATE TABLE "My Clinic"."the table" ()')
        conn.execute('ALTER TABLE "My Clinic"."the table" OWNER TO clinic')
    done = psql(postgres.dsn(), 'table="My Clinic"."the table"')
    assert (done.returncode, done.stderr) == (0, "")
    dsn = make_conninfo(postgres.dsn(), user="cachemig_reader")
    with closing(psycopg.connect(dsn)) as conn:
        conn.execute('SELECT * FROM "My Clinic"."the table"')
        assert control.find(conn) is None

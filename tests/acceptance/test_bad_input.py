"""Bad input gets a clear error, the next command and the right exit code; nothing is lost, nothing secret is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.acceptance.conftest import Ended, Operator
from tests.conftest import OwnPostgres, OwnRedis

Table = psycopg.Connection[tuple[Any, ...]]


def told(ended: Ended, code: int, *texts: str) -> None:
    assert ended.code == code, ended
    assert "error: " in ended.err
    assert "hint: " in ended.err
    for text in texts:
        assert text in ended.err


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--table", "nowhere"], "table 'nowhere' does not exist"),
        (["--table", "nowhere.sessions"], "does not exist"),
        (["--column", "nothing"], "has no column 'nothing'"),
        (["--key-column", "nothing"], "has no column 'nothing'"),
        (["--ttl-from", "nothing"], "--ttl-from now"),
        (["--order-by", "nothing"], "--order-by ''"),
        (["--column", "file_hash"], "is of type text, not json or jsonb"),
        (["--ttl-from", "file_hash"], "not a timestamp"),
        (["--codec", "lz4"], "is not one of json, gzip, zstd"),
        (["--ttl", "soon"], "is not a duration"),
        (["--key-template", "fixed"], "must contain {key} exactly once"),
        (["--redis-url", "http://localhost"], "redis://"),
        (["--config", "missing.toml"], "no such file"),
        (["--dsn", "host=db password=hunter2"], "must not contain a password"),
        (["--redis-url", "redis://:hunter2@db/0"], "must not contain a password"),
    ],
)
def test_wrong_settings(operator: Operator, table: Table, flags: list[str], text: str) -> None:
    ended = operator("init", *flags)
    told(ended, 2, text)
    assert "hunter2" not in ended.err + ended.out
    assert table.execute("SELECT to_regnamespace('cachemig')").fetchone() == (None,)


def test_a_misspelt_setting_is_guessed(operator: Operator) -> None:
    (operator.directory / "cachemig.toml").write_text('tabel = "x"\n')
    told(operator("status"), 2, "did you mean 'table'?")


def test_unknown_commands_and_flags_are_usage_errors(operator: Operator) -> None:
    told(operator("backfil"), 2, "did you mean 'backfill'?", "cachemig backfill --help")
    told(operator("backfill", "--fast"), 2, "backfill has no option --fast", "cachemig backfill --help")
    ended = operator("archive", "--json")
    told(ended, 2, "archive wants --to PLACE")
    assert ended.document["exit_code"] == 2
    told(operator("status", CACHEMIG_TABEL="x"), 2, "CACHEMIG_TABEL is no setting; did you mean 'CACHEMIG_TABLE'?")


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "hint"),
    [
        (["status"], 2, "NotInitialised", "cachemig init"),
        (["plan", "--table", "nowhere"], 2, "TableUnfit", "cachemig doctor --show-config"),
        (["status", "--dsn", "host=127.0.0.1 port=1 user=u"], 1, "SourceUnavailable", "cachemig doctor"),
        (["archive", "--to", "no/where.zst"], 2, "NotInitialised", "cachemig init"),
        (["cutover"], 2, "ConfigError", "cachemig cutover --ramp"),
        (["status", "--ttl", "x"], 2, "ConfigError", "lifetime of an entry"),
    ],
)
def test_errors_as_documents(
    operator: Operator, table: Table, arguments: list[str], code: int, kind: str, hint: str
) -> None:
    ended = operator(*arguments, "--json")
    told(ended, code)
    assert (ended.document["exit_code"], ended.document["error"]) == (code, kind)
    assert hint in ended.document["hint"]


LOCAL = [Path(folder) / ".s.PGSQL.5432" for folder in ("/var/run/postgresql", "/tmp")]


@pytest.mark.skipif(any(map(Path.exists, LOCAL)), reason="a Postgres of this machine is what nothing leads to")
def test_nothing_configured(operator: Operator) -> None:
    for command in ("status", "plan", "backfill"):
        told(operator(command, CACHEMIG_DSN=None), 1, "export CACHEMIG_DSN=", "cachemig demo")
    assert "export CACHEMIG_DSN" not in operator("status", CACHEMIG_DSN="host=127.0.0.1 port=1 user=u").err
    doctor = operator("doctor", CACHEMIG_DSN=None)
    assert doctor.code == 3
    assert "then: cachemig doctor" not in doctor.out


def test_commands_before_their_time(operator: Operator, table: Table) -> None:
    for command in ("dual-write", "backfill", "sync", "verify", "status", "clean"):
        told(operator(command), 2, "cachemig init")
    operator.fine("init")
    for command in ("backfill", "sync", "verify"):
        told(operator(command), 3, "cachemig dual-write")


def test_other_settings_than_the_migration_was_begun_with(operator: Operator, table: Table) -> None:
    operator.fine("init")
    told(operator("dual-write", "--codec", "zstd"), 2, "codec: 'json' then, 'zstd' now (--codec)")


def test_a_postgres_that_is_not_there(operator: Operator, table: Table) -> None:
    told(operator("status", CACHEMIG_DSN="host=127.0.0.1 port=1 user=u password=hunter2"), 1, "cachemig doctor")
    told(operator("status", "--dsn", "nonsense"), 2, "dsn")


def test_a_redis_that_is_not_there(operator: Operator, table: Table) -> None:
    operator.fine("init")
    operator.fine("dual-write")
    ended = operator("backfill", "--redis-url", "redis://127.0.0.1:1/0")
    told(ended, 1, "Redis cannot be reached")
    operator.fine("backfill")


def test_wrong_passwords(operator: Operator, table: Table, own_redis: OwnRedis, own_postgres: OwnPostgres) -> None:
    operator.fine("init")
    operator.fine("dual-write")
    server = own_redis({"requirepass": "secret-word"})
    url = "unix://" + server.url.partition("@")[2]
    told(operator("backfill", CACHEMIG_REDIS_URL=url), 2, "REDISCLI_AUTH")
    ended = operator("backfill", CACHEMIG_REDIS_URL=url, REDISCLI_AUTH="hunter2")
    told(ended, 2, "REDISCLI_AUTH")
    assert "hunter2" not in ended.err
    postgres = own_postgres(tcp=True)
    with psycopg.connect(postgres.dsn(), autocommit=True) as conn:
        conn.execute("CREATE ROLE visitor LOGIN PASSWORD 'right'")
        (path,) = conn.execute("SHOW hba_file").fetchone() or ("",)
        with open(path, "w") as hba:  # noqa: PTH123
            hba.write(
                "host all visitor 127.0.0.1/32 scram-sha-256\nlocal all all trust\n"
                "host all postgres 127.0.0.1/32 trust\n"
            )
        conn.execute("SELECT pg_reload_conf()")
        dsn = f"host=127.0.0.1 port={postgres.port} user=visitor dbname=postgres"
        ended = operator("status", CACHEMIG_DSN=dsn, PGPASSWORD="hunter2")
        told(ended, 2, "PGPASSWORD")
        assert "hunter2" not in ended.err


def test_without_privileges(operator: Operator, table: Table) -> None:
    table.execute("DROP ROLE IF EXISTS cachemig_test_visitor")
    table.execute("CREATE ROLE cachemig_test_visitor LOGIN")
    try:
        dsn = operator.dsn.replace("user=postgres", "user=cachemig_test_visitor")
        told(operator("init", CACHEMIG_DSN=dsn), 3, "cachemig doctor")
        operator.fine("init")
        operator.fine("dual-write")
        told(operator("backfill", CACHEMIG_DSN=dsn), 1, "roles.sql")
        table.execute("GRANT USAGE ON SCHEMA cachemig TO cachemig_test_visitor")
        table.execute("GRANT ALL ON ALL TABLES IN SCHEMA cachemig TO cachemig_test_visitor")
        table.execute("GRANT SELECT ON therapy_sessions TO cachemig_test_visitor")
        table.execute("ALTER TABLE therapy_sessions ENABLE ROW LEVEL SECURITY")
        told(operator("backfill", CACHEMIG_DSN=dsn), 1, "row-level security", "BYPASSRLS")
    finally:
        table.execute("DROP OWNED BY cachemig_test_visitor")
        table.execute("DROP ROLE cachemig_test_visitor")


def test_a_server_that_takes_no_writes(operator: Operator, table: Table) -> None:
    operator.fine("init")
    operator.fine("dual-write")
    read_only = operator.dsn + " options='-c default_transaction_read_only=on'"
    told(operator("backfill", CACHEMIG_DSN=read_only), 1, "read-only", "point the DSN at the primary")
    told(operator("dual-write", "--disable", CACHEMIG_DSN=read_only), 1, "read-only")
    operator.fine("backfill")


def test_a_real_standby_is_refused(operator: Operator, own_postgres: OwnPostgres) -> None:
    server = own_postgres()
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(
            "CREATE TABLE therapy_sessions (id int PRIMARY KEY, file_hash text UNIQUE, analytics_cache jsonb,"
            " last_accessed_at timestamptz, created_at timestamptz)"
        )
        (data,) = conn.execute("SHOW data_directory").fetchone() or ("",)
    operator.fine("init", CACHEMIG_DSN=server.dsn())
    operator.fine("dual-write", CACHEMIG_DSN=server.dsn())
    server.stop()
    (Path(data) / "standby.signal").touch()
    server.start()
    told(operator("backfill", CACHEMIG_DSN=server.dsn()), 1, "read-only standby", "point the DSN at the primary")
    doctor = operator("doctor", CACHEMIG_DSN=server.dsn())
    assert doctor.code == 3
    assert "standby" in doctor.out


def test_another_run_holds_the_lease(operator: Operator, table: Table) -> None:
    operator.fine("init")
    table.execute("INSERT INTO cachemig.lease VALUES ('ladder', 'elsewhere:1:1', now() + interval '1 min')")
    told(operator("dual-write"), 5, "elsewhere")
    table.execute("UPDATE cachemig.lease SET expires_at = now() - interval '1 s'")
    operator.fine("dual-write")


def test_unexpected_errors_show_no_traceback_and_no_secret(operator: Operator, table: Table) -> None:
    operator.fine("init")
    table.execute("ALTER TABLE cachemig.chunk RENAME TO gone")
    ended = operator("status")
    assert ended.code in (1, 2)
    assert "error: " in ended.err

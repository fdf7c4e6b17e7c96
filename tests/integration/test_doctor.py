"""doctor: each finding is provoked on a real server, and is not there before."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cachemig import errors
from cachemig.demo.servers import PostgresServer
from cachemig.source import queries
from cachemig.steps import doctor, dual_write
from cachemig.steps.doctor import Finding, Level, clocks, subjects
from cachemig.steps.doctor.finding import look as look_at
from cachemig.targets.redis import RedisTarget
from tests.conftest import OwnPostgres, OwnRedis
from tests.integration.conftest import TABLE, Migrating, finish

POSTGRES = [name for name, _ in doctor.SERVER_CHECKS + doctor.TABLE_CHECKS]
REDIS = [name for name, _ in doctor.REDIS_CHECKS]


def look(migrating: Migrating) -> dict[str, Finding]:
    found = doctor.examine(migrating.settings, migrating.target)
    named = {f.name: f for f in found}
    assert len(named) == len(found)
    for f in found:
        assert (f.do is None) == (f.level is Level.OK) or f.level in (Level.ERROR, Level.WARNING), f
    return named


def levels(found: dict[str, Finding], level: Level) -> list[str]:
    return [name for name, f in found.items() if f.level is level]


class Role:
    """A role without any right but those that a test gives it."""

    def __init__(self, migrating: Migrating) -> None:
        self.migrating, self.name, self.password = migrating, f"doctor_{secrets.token_hex(4)}", secrets.token_hex(8)
        self.run("CREATE ROLE {} LOGIN PASSWORD " + f"'{self.password}'")

    def run(self, statement: str) -> None:
        self.migrating.conn.execute(sql.SQL(statement).format(sql.Identifier(self.name)))

    def look(self) -> dict[str, Finding]:
        """What doctor finds as this role."""
        dsn, self.migrating.dsn = self.migrating.dsn, self.dsn
        try:
            self.migrating.set()
            return look(self.migrating)
        finally:
            self.migrating.dsn = dsn
            self.migrating.set()

    @property
    def dsn(self) -> str:
        return make_conninfo(self.migrating.dsn, user=self.name, password=self.password)

    def drop(self) -> None:
        self.run("DROP OWNED BY {}")
        self.run("DROP ROLE {}")


@pytest.fixture
def role(migrating: Migrating) -> Iterator[Role]:
    made = Role(migrating)
    yield made
    made.drop()


def test_every_check_says_what_it_found(migrating: Migrating) -> None:
    found = look(migrating)
    assert list(found) == [*POSTGRES, *REDIS, "clock-skew"]
    assert levels(found, Level.ERROR) == []
    assert levels(found, Level.WARNING) == []
    assert "PostgreSQL 1" in found["postgres-reachable"].what
    assert "redis_version" in found["redis-reachable"].what
    assert "public.sessions" in found["table"].what
    doctor.gate(migrating.settings, migrating.target, "init")


def test_nothing_is_left_behind(migrating: Migrating) -> None:
    before = set(migrating.redis.scan_iter(match="cachemig:t:{doctor*"))
    look(migrating)
    assert set(migrating.redis.scan_iter(match="cachemig:t:{doctor*")) <= before
    assert migrating.in_redis() == {}
    assert migrating.execute("SELECT to_regnamespace('cachemig')") == [(None,)]


def test_gate_names_every_error_until_it_is_accepted(migrating: Migrating, own_redis: OwnRedis) -> None:
    migrating.redis_url = own_redis({"maxmemory-policy": "allkeys-lru"}).url
    migrating.execute("DROP INDEX sessions_file_hash_idx")
    migrating.execute("INSERT INTO sessions (file_hash) VALUES ('a'), ('a')")
    migrating.set()
    with pytest.raises(errors.Refused, match=r"init: doctor finds 2 errors: key-index: .*; redis-eviction: ") as raised:
        doctor.gate(migrating.settings, migrating.target, "init")
    assert "cachemig doctor" in (raised.value.hint or "")
    assert "--accept key-index,redis-eviction" in (raised.value.hint or "")
    migrating.set(accept="redis-eviction")
    with pytest.raises(errors.Refused, match="doctor finds an error: key-index"):
        doctor.gate(migrating.settings, migrating.target, "init")
    migrating.set(accept="redis-eviction,key-index")
    doctor.gate(migrating.settings, migrating.target, "init")


def test_a_gate_offers_no_acceptance_where_it_makes_no_sense(migrating: Migrating) -> None:
    migrating.set(table="nothing")
    with pytest.raises(errors.Refused, match="table: ") as raised:
        doctor.gate(migrating.settings, migrating.target, "init")
    assert "--accept" not in (raised.value.hint or "")


# Postgres ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("host=/nowhere dbname=x password=s3cret", "cannot be reached"),
        ("host=x password=two s3cret words", "cannot be parsed"),
        ("postgresql://u:s3cret@[x/y", "cannot be parsed"),
    ],
)
def test_postgres_that_cannot_be_reached(migrating: Migrating, dsn: str, expected: str) -> None:
    migrating.dsn = dsn
    migrating.set()
    found = look(migrating)
    assert list(found) == ["postgres-reachable", *REDIS, "clock-skew"]  # the other side is looked at
    assert found["postgres-reachable"].level is Level.ERROR
    assert expected in found["postgres-reachable"].what
    assert "s3cret" not in str(found)
    assert levels(found, Level.ERROR) == ["postgres-reachable"]
    assert found["redis-memory"].level is Level.NOTE


def test_a_wrong_role(migrating: Migrating) -> None:
    migrating.dsn = make_conninfo(migrating.dsn, user="nobody_of_this_name", password="s3cret")
    migrating.set()
    found = look(migrating)
    assert found["postgres-reachable"].level is Level.ERROR
    assert "refused the login" in found["postgres-reachable"].what
    assert "s3cret" not in str(found)


def test_read_only(migrating: Migrating) -> None:
    migrating.dsn = make_conninfo(migrating.dsn, options="-c default_transaction_read_only=on")
    migrating.set()
    assert levels(look(migrating), Level.ERROR) == ["postgres-primary"]


def test_a_standby(migrating: Migrating, own_postgres: OwnPostgres) -> None:
    server = own_postgres()
    with psycopg.connect(server.dsn()) as conn:
        conn.execute(TABLE)
    server.stop()
    data = next(server.directory.rglob("PG_VERSION"))
    while (data.parent.parent / "PG_VERSION").exists():
        data = data.parent
    signal = data.parent / "standby.signal"
    signal.touch()
    signal.chmod(0o666)
    server.start()
    migrating.dsn = server.dsn()
    migrating.set()
    found = look(migrating)
    assert found["postgres-primary"].level is Level.ERROR
    assert "standby" in found["postgres-primary"].what


def test_abilities_are_probed(migrating: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    # No server before 14 is at hand: let the probe ask for what no server has.
    real = queries.statements
    statements = dict(real("doctor"))
    statements["abilities"] = statements["abilities"].replace("pg_get_function_sqlbody", "pg_get_no_such_thing")
    monkeypatch.setattr(queries, "statements", lambda file: statements if file == "doctor" else real(file))
    assert levels(look(migrating), Level.ERROR) == ["postgres-abilities"]


def test_a_table_that_is_unfit(migrating: Migrating) -> None:
    migrating.set(column="hits")
    found = look(migrating)
    assert found["table"].level is Level.ERROR
    assert "integer" in found["table"].what
    assert "table-owner" not in found
    assert list(found)[-1] == "clock-skew"


def test_what_a_role_lacks(migrating: Migrating, role: Role) -> None:
    role.run("REVOKE ALL ON DATABASE " + migrating.conn.info.dbname + " FROM PUBLIC")
    role.run("GRANT CONNECT ON DATABASE " + migrating.conn.info.dbname + " TO {}")
    found = role.look()
    assert levels(found, Level.ERROR) == ["table-select", "table-owner", "control-schema", "temporary-tables"]
    assert "SELECT on public.sessions" in found["table-select"].what
    assert "may not create one" in found["control-schema"].what
    role.run("GRANT CREATE, TEMPORARY ON DATABASE " + migrating.conn.info.dbname + " TO {}")
    role.run("GRANT SELECT ON sessions TO {}")
    assert levels(role.look(), Level.ERROR) == ["table-owner"]
    role.run("GRANT USAGE, CREATE ON SCHEMA public TO {}")
    role.run("ALTER TABLE sessions OWNER TO {}")
    assert levels(role.look(), Level.ERROR) == []
    role.run("ALTER TABLE sessions OWNER TO CURRENT_USER")


def test_a_control_schema_that_another_role_made(migrating: Migrating, role: Role) -> None:
    migrating.begin()
    role.run("GRANT SELECT ON sessions TO {}")
    found = role.look()
    assert levels(found, Level.ERROR) == ["table-owner", "control-schema"]
    assert found["capture-missing"].level is Level.NOTE
    assert found["redis-foreign-keys"].level is Level.OK  # unseen, neither is an error
    role.run("GRANT USAGE ON SCHEMA cachemig TO {}")
    role.run("GRANT SELECT ON ALL TABLES IN SCHEMA cachemig TO {}")
    found = role.look()
    assert levels(found, Level.ERROR) == ["control-schema"]
    assert "chunk, client, entry, journal, late_write, lease" in found["control-schema"].what
    assert found["table-owner"].level is Level.NOTE  # capture is on already
    role.run("GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA cachemig TO {}")
    assert levels(role.look(), Level.ERROR) == []


def test_an_empty_control_schema_made_for_the_role(migrating: Migrating, role: Role) -> None:
    role.run("CREATE SCHEMA cachemig")
    role.run("GRANT USAGE ON SCHEMA cachemig TO {}")
    role.run("GRANT SELECT ON sessions TO {}")
    assert "no CREATE on schema cachemig" in role.look()["control-schema"].what
    role.run("GRANT CREATE ON SCHEMA cachemig TO {}")
    assert role.look()["control-schema"].level is Level.OK


def test_row_level_security(migrating: Migrating, role: Role) -> None:
    role.run("GRANT SELECT ON sessions TO {}")
    role.run("ALTER TABLE sessions ENABLE ROW LEVEL SECURITY")
    migrating.execute("CREATE POLICY own_rows ON sessions USING (hits = 0)")
    found = role.look()
    assert found["row-level-security"].level is Level.ERROR
    assert found["redis-memory"].level is Level.NOTE  # a count would have been wrong
    assert look(migrating)["row-level-security"].level is Level.OK
    role.run("GRANT USAGE, CREATE ON SCHEMA public TO {}")
    role.run("ALTER TABLE sessions OWNER TO {}")
    assert role.look()["row-level-security"].level is Level.OK
    migrating.execute("ALTER TABLE sessions FORCE ROW LEVEL SECURITY")
    assert "forced" in role.look()["row-level-security"].what
    role.run("ALTER ROLE {} BYPASSRLS")
    assert role.look()["row-level-security"].level is Level.OK
    role.run("ALTER TABLE sessions OWNER TO CURRENT_USER")


def test_protection_that_redis_will_not_have(migrating: Migrating, role: Role) -> None:
    def said() -> str:
        finding = look(migrating)["lost-protection"]
        assert finding.level is Level.WARNING
        return finding.what

    role.run("GRANT SELECT ON sessions TO {}")
    assert f"only {role.name} and the owner may read the table" in said()
    role.run("REVOKE SELECT ON sessions FROM {}")
    assert look(migrating)["lost-protection"].level is Level.OK
    role.run("GRANT SELECT (cache) ON sessions TO {}")
    assert f"on the column itself: {role.name}" in said()
    role.run("REVOKE SELECT (cache) ON sessions FROM {}")
    migrating.execute("ALTER TABLE sessions ENABLE ROW LEVEL SECURITY")
    migrating.execute("CREATE POLICY own_rows ON sessions USING (hits = 0)")
    assert "policies: own_rows" in said()
    migrating.execute("DROP POLICY own_rows ON sessions; ALTER TABLE sessions DISABLE ROW LEVEL SECURITY")
    migrating.execute("GRANT SELECT ON sessions TO PUBLIC")
    assert look(migrating)["lost-protection"].level is Level.OK


def test_keys_that_are_not_unique(migrating: Migrating) -> None:
    assert "the newest by created_at" in look(migrating)["key-unique"].what
    migrating.set(order_by="")
    found = look(migrating)["key-unique"]
    assert (found.level, "primary key" in found.what) == (Level.NOTE, True)
    migrating.execute("CREATE UNIQUE INDEX ON sessions (file_hash)")
    assert look(migrating)["key-unique"].level is Level.OK


def test_a_key_without_an_index(migrating: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    migrating.execute("DROP INDEX sessions_file_hash_idx")
    migrating.execute("INSERT INTO sessions (file_hash) VALUES ('a'), ('b')")
    found = look(migrating)["key-index"]
    assert found.level is Level.WARNING
    assert found.do is not None
    assert "CREATE INDEX CONCURRENTLY ON public.sessions (file_hash)" in found.do
    migrating.execute("INSERT INTO sessions (file_hash) VALUES ('b')")
    assert look(migrating)["key-index"].level is Level.ERROR
    migrating.execute("DELETE FROM sessions WHERE file_hash = 'b'")
    migrating.execute("INSERT INTO sessions (file_hash) SELECT n::text FROM generate_series(1, 10001) AS n")
    assert look(migrating)["key-index"].level is Level.ERROR


def test_a_table_without_a_primary_key(migrating: Migrating) -> None:
    migrating.execute("ALTER TABLE sessions DROP CONSTRAINT sessions_pkey")
    assert levels(look(migrating), Level.WARNING) == ["primary-key"]


def test_before_triggers(migrating: Migrating) -> None:
    migrating.execute("""
        CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.cache = '{}'; RETURN NEW; END $$
    """)
    trigger = "CREATE TRIGGER stamped BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION stamp()"
    migrating.execute(trigger)
    found = look(migrating)["before-triggers"]
    assert (found.level, "stamped (stamp())" in found.what) == (Level.NOTE, True)
    migrating.set(capture="columns")
    assert look(migrating)["before-triggers"].level is Level.ERROR
    migrating.set()
    migrating.execute("DROP TRIGGER stamped ON sessions")
    migrating.begin()
    migrating.execute(trigger)
    found = look(migrating)["before-triggers"]
    assert (found.level, "--disable" in (found.do or "")) == (Level.ERROR, True)
    for enable in (False, True):
        finish(dual_write.switch(migrating.settings, migrating.target, enable=enable))
    assert look(migrating)["before-triggers"].level is Level.NOTE


def test_a_partitioned_table(migrating: Migrating) -> None:
    migrating.execute("""
        CREATE TABLE parted (LIKE sessions, PRIMARY KEY (id, hits)) PARTITION BY LIST (hits);
        CREATE TABLE part PARTITION OF parted FOR VALUES IN (0);
        CREATE INDEX ON parted (file_hash);
    """)
    migrating.set(table="parted")
    found = look(migrating)
    assert levels(found, Level.WARNING) == ["partitions"]
    assert found["partitions"].what.startswith("1 partitions")
    assert "partitioned table" in found["table"].what
    assert levels(found, Level.ERROR) == []


def test_a_table_that_others_inherit_from(migrating: Migrating) -> None:
    migrating.execute("CREATE TABLE heir () INHERITS (sessions)")
    found = look(migrating)["partitions"]
    assert (found.level, "heir" in found.what) == (Level.ERROR, True)


def test_a_long_transaction(migrating: Migrating) -> None:
    migrating.set(lock_timeout="10ms")
    with psycopg.connect(migrating.dsn, application_name="nightly job") as other:
        other.execute("SELECT count(*) FROM sessions")
        assert look(migrating)["long-transactions"].level is Level.OK  # a reader is not in the way
        other.execute("INSERT INTO sessions (file_hash) VALUES ('a')")
        found = look(migrating)["long-transactions"]
        assert found.level is Level.WARNING
        assert f"pid {other.info.backend_pid}" in found.what
        assert "nightly job" in found.what
        assert " s old" in found.what
        migrating.set(lock_timeout="1h")
        assert look(migrating)["long-transactions"].level is Level.OK


def test_a_lock_that_stops_reading_is_waited_for_briefly(migrating: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "LOCK_TIMEOUT_S", 0.1)
    with psycopg.connect(migrating.dsn) as other:
        other.execute("LOCK TABLE sessions")
        found = look(migrating)
    # Not an error: the same look a moment later may succeed, and dual-write itself waits for the lock again and again.
    assert levels(found, Level.ERROR) == []
    assert found["table"].level is Level.WARNING
    assert "in use" in found["table"].what


@pytest.mark.parametrize(
    "harm",
    [
        "DROP TRIGGER cachemig_capture ON sessions",
        "DROP TRIGGER cachemig_capture_truncate ON sessions",
        "ALTER TABLE sessions DISABLE TRIGGER cachemig_capture",
        "ALTER TABLE sessions ENABLE TRIGGER cachemig_capture",
    ],
)
def test_capture_that_is_broken(migrating: Migrating, harm: str) -> None:
    migrating.begin()
    assert look(migrating)["capture-missing"].level is Level.OK
    migrating.execute(harm)
    assert levels(look(migrating), Level.ERROR) == ["capture-missing"]
    with pytest.raises(errors.Refused, match="capture-missing"):
        doctor.gate(migrating.settings, migrating.target, "verify")
    doctor.gate(migrating.settings, migrating.target, "dual-write")  # which mends it


def test_capture_that_compares_and_lost_its_update_trigger(migrating: Migrating) -> None:
    migrating.set(capture="compare")
    migrating.begin()
    assert look(migrating)["capture-missing"].level is Level.OK
    migrating.execute("DROP TRIGGER cachemig_capture_update ON sessions")
    assert levels(look(migrating), Level.ERROR) == ["capture-missing"]


def test_capture_that_nobody_wants(migrating: Migrating) -> None:
    migrating.begin()
    migrating.execute("UPDATE cachemig.migration SET phase = 'idle'")
    assert look(migrating)["capture-missing"].level is Level.WARNING


def behind(dsn: str, directory: Path, port: int) -> str:
    """The server's Unix socket under another port."""
    where = conninfo_to_dict(dsn)
    real = Path(str(where["host"])) / f".s.PGSQL.{where['port']}"
    (directory / f".s.PGSQL.{port}").symlink_to(real)
    return make_conninfo(dsn, host=str(directory), port=port)


def test_the_port_of_a_pooler(migrating: Migrating, own_postgres: OwnPostgres, tmp_path: Path) -> None:
    migrating.dsn = behind(migrating_server(own_postgres).dsn(), tmp_path, 6543)
    migrating.set()
    found = look(migrating)["pooler"]
    assert (found.level, "6543" in found.what) == (Level.NOTE, True)


def migrating_server(own_postgres: OwnPostgres) -> PostgresServer:
    server = own_postgres()
    with psycopg.connect(server.dsn()) as conn:
        conn.execute(TABLE)
    return server


@pytest.fixture
def pooler(own_postgres: OwnPostgres, tmp_path: Path) -> Iterator[str]:
    """The DSN of a stand-in for a pooler: as PgBouncer does, it hands out a process number of its own."""
    server = migrating_server(own_postgres)
    where = conninfo_to_dict(server.dsn())
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / ".s.PGSQL.5433"))
    listener.listen()

    def relay(read: socket.socket, write: socket.socket, change: Callable[[bytes], bytes]) -> None:
        while data := read.recv(65536):
            write.sendall(change(data))
        write.shutdown(socket.SHUT_WR)

    def falsify(data: bytes) -> bytes:
        at = data.find(b"K\x00\x00\x00\x0c")  # BackendKeyData: length 12, process number, key
        return data[: at + 5] + b"\x00\x00\x00\x01" + data[at + 9 :] if at >= 0 else data

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            upstream = socket.socket(socket.AF_UNIX)
            upstream.connect(f"{where['host']}/.s.PGSQL.{where['port']}")
            back = threading.Thread(target=relay, args=(upstream, client, falsify))
            back.start()
            relay(client, upstream, bytes)
            back.join()
            client.close()
            upstream.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield make_conninfo(server.dsn(), host=str(tmp_path), port=5433)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_a_pooler_betrays_itself_by_its_process_number(migrating: Migrating, pooler: str) -> None:
    migrating.dsn = pooler
    migrating.set()
    found = look(migrating)
    assert found["pooler"].level is Level.NOTE
    assert levels(found, Level.ERROR) == []


def test_postgres_over_the_network_in_the_clear(migrating: Migrating, own_postgres: OwnPostgres) -> None:
    server = own_postgres(tcp=True)
    with psycopg.connect(server.dsn()) as conn:
        conn.execute(TABLE)
    migrating.dsn = server.dsn()
    migrating.set()
    assert look(migrating)["postgres-transport"].level is Level.OK
    # 0.0.0.0 reaches this machine, and is not a loopback address
    migrating.dsn = make_conninfo(server.dsn(), host="0.0.0.0", hostaddr="")
    migrating.set()
    found = look(migrating)
    assert levels(found, Level.WARNING) == ["postgres-transport"]
    assert "not encrypted" in found["postgres-transport"].what


# Redis ------------------------------------------------------------------------------------------------------------


def redis_of(migrating: Migrating, url: str) -> dict[str, Finding]:
    migrating.redis_url = url
    migrating.set()
    return look(migrating)


def test_redis_that_cannot_be_reached(migrating: Migrating) -> None:
    found = redis_of(migrating, "unix://:s3cret@/nowhere/redis.sock")
    assert list(found) == [*POSTGRES, "redis-reachable", "clock-skew"]
    assert found["redis-reachable"].level is Level.ERROR
    assert "s3cret" not in str(found)


def test_a_wrong_password(migrating: Migrating, own_redis: OwnRedis) -> None:
    server = own_redis({"requirepass": "s3cret"})
    assert levels(redis_of(migrating, server.url), Level.ERROR) == []
    found = redis_of(migrating, server.url.replace("s3cret", "n0tit"))
    assert list(found)[-2:] == ["redis-reachable", "clock-skew"]
    assert "refused the login" in found["redis-reachable"].what
    assert "n0tit" not in str(found)
    found = redis_of(migrating, server.url.replace(":s3cret@", ""))
    assert found["redis-reachable"].level is Level.ERROR


def test_a_server_names_itself(migrating: Migrating) -> None:
    said = look(migrating)["redis-reachable"].what
    info = migrating.redis.info("server")
    if "valkey_version" in info:
        assert said.startswith("valkey at ")
        assert f"valkey_version {info['valkey_version']}, redis_version 7.2.4" in said
    else:
        assert f"(redis_version {info['redis_version']})" in said


ACL = "probe on >s3cret ~* +@all"


@pytest.mark.parametrize(
    ("rules", "lacking"),
    [
        (f"{ACL} -eval", "scripts (EVAL)"),
        (f"{ACL} -evalsha", "EVALSHA"),
        (f"{ACL} -script", "SCRIPT LOAD"),
        (f"{ACL} -unlink", "UNLINK"),
        (f"{ACL} -scan", "SCAN"),
        (f"{ACL} -time", "TIME"),
        (f"{ACL} -info", "INFO"),
        (f"{ACL} -set", "scripts (EVAL)"),
        ("probe on >s3cret ~cachemig:* +@all", "UNLINK under the prefix"),
    ],
)
def test_abilities_of_the_user_are_tried(migrating: Migrating, own_redis: OwnRedis, rules: str, lacking: str) -> None:
    server = own_redis({"user": rules})
    found = redis_of(migrating, server.url.replace("unix://", "unix://probe:s3cret@"))
    assert levels(found, Level.ERROR) == ["redis-abilities"]
    assert f"{lacking} (" in found["redis-abilities"].what
    assert "s3cret" not in str(found)


def test_config_that_is_forbidden(migrating: Migrating, own_redis: OwnRedis) -> None:
    server = own_redis({"user": f"{ACL} -config", "maxmemory-policy": "allkeys-lfu"})
    found = redis_of(migrating, server.url.replace("unix://", "unix://probe:s3cret@"))
    assert levels(found, Level.ERROR) == ["redis-eviction"]
    assert "hidden" in found["redis-persistence"].what


def test_a_replica(migrating: Migrating, own_redis: OwnRedis) -> None:
    primary = own_redis(tcp=True)
    found = redis_of(migrating, own_redis({"replicaof": f"127.0.0.1 {primary.port}"}).url)
    assert levels(found, Level.ERROR) == ["redis-role"]
    assert "slave" in found["redis-role"].what
    assert found["redis-abilities"].level is Level.NOTE


def test_a_node_of_a_cluster(migrating: Migrating, own_redis: OwnRedis) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        bus = free.getsockname()[1]
    server = own_redis({"cluster-enabled": "yes", "cluster-port": str(bus)}, tcp=True)
    found = redis_of(migrating, server.url)
    assert "redis-cluster" in levels(found, Level.ERROR)
    assert "redis_url is that of one server" in found["redis-cluster"].what
    assert "redis+cluster://" in str(found["redis-cluster"].do)


@pytest.mark.parametrize(
    ("policy", "ttl", "level"),
    [
        ("allkeys-lru", "30d", Level.ERROR),
        ("allkeys-random", "0", Level.ERROR),
        ("volatile-lru", "30d", Level.WARNING),
        ("volatile-ttl", "0", Level.OK),
        ("noeviction", "30d", Level.OK),
    ],
)
def test_eviction(migrating: Migrating, own_redis: OwnRedis, policy: str, ttl: str, level: Level) -> None:
    migrating.redis_url = own_redis({"maxmemory-policy": policy}).url
    migrating.set(ttl=ttl)
    found = look(migrating)["redis-eviction"]
    assert (found.level, policy in found.what) == (level, True)


def test_memory_against_what_is_needed(migrating: Migrating, own_redis: OwnRedis) -> None:
    migrating.execute(
        "INSERT INTO sessions (file_hash, cache) SELECT 'k' || n, jsonb_build_object('x', repeat('y', 5000))"
        " FROM generate_series(1, 2000) AS n"
    )  # 10 MB

    def level(policy: str = "noeviction") -> Level:
        migrating.redis.config_set("maxmemory-policy", policy)
        found = look(migrating)["redis-memory"]
        assert "9.8 MiB" in found.what or migrating.settings.codec != "json"
        return found.level

    migrating.redis_url = own_redis({"maxmemory": "100mb"}).url
    migrating.redis = migrating.redis.from_url(migrating.redis_url)
    migrating.set()
    assert level() is Level.OK
    used = migrating.redis.info("memory")["used_memory"]
    migrating.redis.config_set("maxmemory", used + 11 * 2**20)
    assert level() is Level.WARNING
    migrating.redis.config_set("maxmemory", used + 5 * 2**20)
    assert level() is Level.ERROR
    assert level("volatile-lru") is Level.WARNING
    migrating.set(codec="zstd")
    assert level() in (Level.OK, Level.WARNING)
    migrating.redis.config_set("maxmemory", 0)
    assert "the machine's memory" in look(migrating)["redis-memory"].what
    migrating.redis.close()


def test_what_is_delivered_already_is_not_needed_again(migrating: Migrating, own_redis: OwnRedis) -> None:
    migrating.execute(
        "INSERT INTO sessions (file_hash, cache) SELECT 'k' || n, jsonb_build_object('x', repeat('y', 5000))"
        " FROM generate_series(1, 1000) AS n"
    )
    migrating.redis_url = own_redis({"maxmemory": "12mb"}).url
    migrating.set()
    migrating.begin()
    migrating.backfill()
    found = look(migrating)
    assert found["redis-memory"].level is Level.OK
    assert found["redis-memory"].what.startswith("about 0 bytes")
    assert "1,000 keys were delivered" in found["redis-foreign-keys"].what


@pytest.mark.parametrize(
    ("config", "level", "word"),
    [
        ({}, Level.NOTE, "neither"),
        ({"save": "3600 1"}, Level.NOTE, "snapshots only"),
        ({"appendonly": "yes"}, Level.OK, "append-only"),
    ],
)
def test_persistence(
    migrating: Migrating, own_redis: OwnRedis, config: dict[str, str], level: Level, word: str
) -> None:
    found = redis_of(migrating, own_redis(config).url)["redis-persistence"]
    assert (found.level, word in found.what) == (level, True)


def test_redis_over_the_network_in_the_clear(migrating: Migrating, own_redis: OwnRedis) -> None:
    server = own_redis(tcp=True)
    assert redis_of(migrating, server.url)["redis-transport"].level is Level.OK
    found = redis_of(migrating, f"redis://0.0.0.0:{server.port}/0")["redis-transport"]
    assert found.level is Level.WARNING
    assert "TLS" in found.what
    assert "password" in found.what
    server = own_redis({"requirepass": "s3cret"}, tcp=True)
    found = redis_of(migrating, f"redis://:s3cret@0.0.0.0:{server.port}/0")["redis-transport"]
    assert found.level is Level.WARNING
    assert "password" not in found.what


def test_keys_of_others_under_the_prefix(migrating: Migrating) -> None:
    migrating.redis.set(f"{migrating.prefix}theirs", b"s3cret")
    found = look(migrating)["redis-foreign-keys"]
    assert (found.level, "1 keys match" in found.what) == (Level.WARNING, True)
    migrating.put("mine", {"a": 1})
    migrating.begin()
    migrating.backfill()
    assert look(migrating)["redis-foreign-keys"].level is Level.OK


def test_a_connection_that_breaks_in_between(migrating: Migrating, own_redis: OwnRedis) -> None:
    server = own_redis()
    migrating.redis_url = server.url
    migrating.set()
    with RedisTarget(migrating.settings, {}) as target:
        subject = subjects.Target(migrating.settings, target, subjects.Seen(), target.servers()[0])
        server.kill()
        found = look_at("redis-role", dict(doctor.REDIS_CHECKS)["redis-role"], subject)
    assert (found.level, "could not be looked at" in found.what) == (Level.ERROR, True)


# Both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offsets", "level"),
    [
        ({"Postgres": 0.0, "Redis": 0.3}, Level.OK),
        ({"Postgres": -1.5, "Redis": 1.5}, Level.WARNING),
        ({"Redis": -3.0}, Level.WARNING),
        ({"Postgres": 61.0, "Redis": 61.0}, Level.ERROR),
        ({}, Level.NOTE),
    ],
)
def test_clocks_that_differ(offsets: dict[str, float], level: Level) -> None:
    found = clocks.finding(subjects.Seen(clocks=offsets))
    assert (found.name, found.level) == ("clock-skew", level)


def test_the_clocks_of_both_servers_are_read(migrating: Migrating) -> None:
    found = look(migrating)["clock-skew"]
    assert found.level is Level.OK
    assert "Postgres" in found.what
    assert "Redis" in found.what


def test_no_finding_holds_a_secret(migrating: Migrating, own_redis: OwnRedis) -> None:
    server = own_redis({"requirepass": "s3cret"})
    migrating.dsn = make_conninfo(migrating.dsn, password="s3cret")
    found = redis_of(migrating, server.url)
    assert "s3cret" in migrating.settings.dsn
    assert "s3cret" not in str(found)

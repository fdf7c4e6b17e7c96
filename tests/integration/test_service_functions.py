"""What applications call in SQL: value and version together, one winner of a race, no right that a role has not got."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg import errors as pg
from psycopg import sql
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb

from cachemig.errors import ConfigError, Refused
from cachemig.source import functions, queries
from cachemig.source.connect import connect
from cachemig.source.table import inspect
from cachemig.steps import dual_write, init
from cachemig.steps.clean import clean
from tests.integration.conftest import Migrating, finish

EPOCH = 2**40
UUID = str(uuid.UUID(int=255))


def rows(conn: psycopg.Connection[Any], statement: str, *values: Any) -> list[Any]:
    with conn.cursor(row_factory=namedtuple_row) as cur:
        return cur.execute(statement, values or None).fetchall()


def one(conn: psycopg.Connection[Any], statement: str, *values: Any) -> Any:
    (row,) = rows(conn, statement, *values)
    return row


def get(case: Migrating, key: str | None) -> Any:
    return one(case.conn, "SELECT * FROM cachemig.get(%s)", key)


def put(case: Migrating, key: str | None, value: Any, if_version: int | None = None) -> Any:
    return one(case.conn, "SELECT * FROM cachemig.put(%s, %s, %s)", key, Jsonb(value), if_version)


def invalidate(case: Migrating, key: str) -> Any:
    return one(case.conn, "SELECT * FROM cachemig.invalidate(%s)", key)


def at(case: Migrating, phase: str, percent: float = 0) -> None:
    case.execute("UPDATE cachemig.migration SET phase = %s, percent = %s", phase, percent)


def column(case: Migrating, key: str) -> list[str | None]:
    return [r[0] for r in case.execute("SELECT cache::text FROM sessions WHERE file_hash = %s ORDER BY id", key)]


@pytest.fixture
def serving(migrating: Migrating) -> Migrating:
    """One row, capture on, the key unique."""
    migrating.execute("ALTER TABLE sessions ADD UNIQUE (file_hash)")
    migrating.put("a", {"v": 1})
    migrating.begin()
    return migrating


# Phases -----------------------------------------------------------------------------------------------------------


def test_before_dual_write_the_column_is_served_and_nothing_may_be_delivered(migrating: Migrating) -> None:
    migrating.put("a", {"v": 1}, seen_at="2026-01-01T00:00:00Z")
    init.init(migrating.settings, migrating.target, migrating.directory)
    assert get(migrating, "a") == ("idle", 0.0, -1, "column", '{"v": 1}', None, 1767225600000)
    assert put(migrating, "a", {"v": 2}) == ("idle", 0.0, -1, "written", '{"v": 2}', None, 1767225600000)
    assert column(migrating, "a") == ['{"v": 2}']
    assert put(migrating, "a", {"v": 3}, 7).outcome == "changed"  # a version of a time that is over
    assert invalidate(migrating, "a") == ("idle", 0.0, -1, "written", None)
    assert get(migrating, "a").value is None


@pytest.mark.parametrize("phase", ["dual-write", "cutover"])
def test_with_capture_each_write_raises_the_version(serving: Migrating, phase: str) -> None:
    at(serving, phase, 30 if phase == "cutover" else 0)
    percent = 30.0 if phase == "cutover" else 0.0
    assert get(serving, "a")[:3] == (phase, percent, 0)
    assert get(serving, "a").version == 0
    assert put(serving, "a", {"v": 2})[3:6] == ("written", '{"v": 2}', 1)
    assert serving.marks() == ["a"]
    serving.sync()
    assert get(serving, "a").version == 1  # folded
    assert put(serving, "a", {"v": 3}).version == 2
    assert invalidate(serving, "a")[3:] == ("written", 3)
    assert get(serving, "a")[4:6] == (None, 3)
    serving.execute("UPDATE cachemig.migration SET epoch = 5")
    assert get(serving, "a").version == 5 * EPOCH + 3


@pytest.mark.parametrize("phase", ["redis-only", "dropped"])
def test_once_writes_have_moved_the_column_is_neither_read_nor_written(serving: Migrating, phase: str) -> None:
    at(serving, phase)
    assert get(serving, "a") == (phase, 0.0, 0, "redis", None, None, None)
    assert put(serving, "a", {"v": 2})[3:] == ("elsewhere", None, None, None)
    assert invalidate(serving, "a")[3:] == ("elsewhere", None)
    assert (column(serving, "a"), serving.marks()) == (['{"v": 1}'], [])


def test_they_work_when_the_column_is_gone(serving: Migrating) -> None:
    at(serving, "dropped")
    serving.execute("ALTER TABLE sessions DROP COLUMN cache CASCADE")
    assert get(serving, "a").value is None
    assert put(serving, "a", {"v": 2}).outcome == "elsewhere"
    assert serving.execute("SELECT cachemig.read_from('a')") == [("redis",)]


@pytest.mark.parametrize("percent", [0, 0.001, 1, 10, 33.3, 50, 99.9, 100])
def test_a_key_is_read_from_where_python_says(serving: Migrating, percent: float) -> None:
    at(serving, "cutover", percent)
    chosen = random.Random(percent)
    keys = [f"{chosen.getrandbits(64):x}" for _ in range(990)] + [
        "",
        " ",
        "é",
        "日本",
        "\\",
        "\\x00",
        "'",
        "%",
        "{}",
        "🫀",
    ]
    buckets = {k: int.from_bytes(hashlib.sha256(k.encode()).digest()[:4], "big") * 100.0 / 2**32 for k in keys}
    found = rows(serving.conn, "SELECT k, cachemig.read_from(k) FROM unnest(%s::text[]) AS k", keys)
    assert dict(found) == {k: "redis" if buckets[k] < percent else "column" for k in keys}
    many = rows(serving.conn, "SELECT key, reads_from FROM cachemig.get_many(%s)", keys)
    assert many == found
    assert serving.execute("SELECT cachemig.read_from(NULL)") == [("column",)]


def test_the_bucket_is_the_same_number_to_the_last_bit(serving: Migrating) -> None:
    key = "hash"
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") * 100.0 / 2**32
    at(serving, "cutover", bucket)  # a key is in Redis where its bucket is BELOW the percentage
    assert serving.execute("SELECT cachemig.read_from(%s)", key) == [("column",)]
    serving.execute("UPDATE cachemig.migration SET percent = percent + 1e-13")
    assert serving.execute("SELECT cachemig.read_from(%s)", key) == [("redis",)]


# Values and keys --------------------------------------------------------------------------------------------------


def test_many_keys_come_in_their_order(serving: Migrating) -> None:
    serving.put("b", {"v": 2})
    found = rows(serving.conn, "SELECT key, value FROM cachemig.get_many(%s)", ["b", "x", None, "a", "b"])
    assert found == [("b", '{"v": 2}'), ("x", None), (None, None), ("a", '{"v": 1}'), ("b", '{"v": 2}')]
    assert rows(serving.conn, "SELECT * FROM cachemig.get_many('{}')") == []
    assert rows(serving.conn, "SELECT * FROM cachemig.get_many(NULL)") == []


@pytest.mark.parametrize("empty", [None, {}, "SQL NULL"])
def test_to_put_an_empty_value_is_to_invalidate(migrating: Migrating, empty: Any) -> None:
    migrating.put("a", {"v": 1})
    migrating.put("a", {"v": 2})
    migrating.begin()
    value = None if empty == "SQL NULL" else Jsonb(empty)
    done = one(migrating.conn, "SELECT * FROM cachemig.put(%s, %s)", "a", value)
    assert done[3:6] == ("written", None, 2)
    assert column(migrating, "a") == ["{}", "{}"]  # with one of them alone the older row would win
    assert get(migrating, "a")[4:6] == (None, 2)


@pytest.mark.parametrize(
    "key",
    [
        "",
        " a ",
        "it's",
        'a"b',
        "a\\b",
        "\\x61",
        "%s",
        "$service$",
        "{}",
        "日本語",
        "e\u0301",
        "🫀",
        "a\nb",
        "x" * 20_000,
    ],
)
def test_any_key_is_a_key(serving: Migrating, key: str) -> None:
    assert put(serving, key, {"v": 1})[3:6] == ("no-row", None, 0)
    serving.put(key, {})
    assert put(serving, key, {"v": key})[3:6] == ("written", json.dumps({"v": key}, ensure_ascii=False), 2)
    assert get(serving, key)[4:6] == (json.dumps({"v": key}, ensure_ascii=False), 2)
    assert get(serving, key + " ")[4:6] == (None, 0)
    assert invalidate(serving, key)[3:] == ("written", 3)


def test_no_key_at_all(serving: Migrating) -> None:
    serving.put(None, {"v": 1})
    assert get(serving, None)[3:] == ("column", None, None, None)
    assert put(serving, None, {"v": 2})[3:6] == ("no-row", None, None)
    assert one(serving.conn, "SELECT * FROM cachemig.invalidate(NULL)")[3:] == ("no-row", None)


@pytest.mark.parametrize(
    ("type_", "key", "others"),
    [
        ("uuid", UUID, ["nonsense", "", UUID.upper(), f"{{{UUID}}}"]),
        ("varchar(64)", "k" * 64, ["k" * 65, "k" * 64 + " ", "k" * 63]),
        ("char(8)", "abc", ["abc ", "abcdefghi", "ABC"]),
        ("bigint", "42", ["042", "42.0", "9" * 40, "x", " 42"]),
        ("numeric", "1.5", ["1.50", "NaN", "1,5"]),
        ("name", "abc", ["abcd", "x" * 100]),
        ("short", "abc", ["toolong", ""]),
        ("mood", "good", ["bad", "GOOD"]),
        ("text COLLATE nocase", "Abc", ["abc", "ABC"]),
        ("citext", "Abc", ["abc", "ABC"]),
    ],
)  # fmt: skip
def test_a_key_of_another_type_is_its_own_text_and_no_other(
    migrating: Migrating, type_: str, key: str, others: list[str]
) -> None:
    migrating.execute("CREATE DOMAIN short AS text CHECK (length(VALUE) BETWEEN 1 AND 4)")
    migrating.execute("CREATE TYPE mood AS ENUM ('good', 'so-so')")
    if "nocase" in type_:
        try:
            migrating.execute(
                "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            )
        except pg.FeatureNotSupported as exc:
            pytest.skip(str(exc))
    if type_ == "citext":
        type_ = citext(migrating)
    migrating.execute(f"ALTER TABLE sessions ALTER file_hash TYPE {type_} USING NULL")
    migrating.execute("ALTER TABLE sessions ADD UNIQUE (file_hash)")
    migrating.put(key, {"v": 1})
    migrating.begin()
    assert get(migrating, key)[4:6] == ('{"v": 1}', 0)
    assert put(migrating, key, {"v": 2})[3:6] == ("written", '{"v": 2}', 1)
    assert migrating.marks() == [key]
    for other in others:
        # Equal or not to the column's type: under its name Redis holds nothing, and its version is another one's.
        assert get(migrating, other)[4:6] == (None, 0)
        assert put(migrating, other, {"v": 3})[3:6] == ("no-row", None, 0)
        assert invalidate(migrating, other)[3:] == ("no-row", 0)
    by_row = "SELECT g.value, g.version, g.reads_from FROM sessions AS s, cachemig.get(s.file_hash::text) AS g"
    assert rows(migrating.conn, by_row) == [('{"v": 2}', 1, "column")]  # with the column's collation
    many = rows(migrating.conn, "SELECT key, value FROM cachemig.get_many(%s)", [*others, key])
    assert many == [*((other, None) for other in others), (key, '{"v": 2}')]


def citext(case: Migrating) -> str:
    """A type whose equality is not in pg_catalog; its name, where this Postgres has it."""
    if not case.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'citext'"):
        pytest.skip("this Postgres has no citext")
    case.execute("CREATE SCHEMA extensions; CREATE EXTENSION citext SCHEMA extensions")
    return "extensions.citext"


def test_a_key_column_of_another_type_is_taken_up_by_dual_write(migrating: Migrating) -> None:
    init.init(migrating.settings, migrating.target, migrating.directory)
    migrating.execute("ALTER TABLE sessions ALTER file_hash TYPE uuid USING file_hash::uuid")
    key = str(uuid.uuid4())
    migrating.put(key, {"v": 1})
    finish(dual_write.switch(migrating.settings, migrating.target, enable=True))
    assert get(migrating, key).value == '{"v": 1}'
    finish(dual_write.switch(migrating.settings, migrating.target, enable=False))
    migrating.execute("ALTER TABLE sessions ALTER file_hash TYPE text")
    migrating.put("x", {"v": 2})
    finish(dual_write.switch(migrating.settings, migrating.target, enable=True))
    assert get(migrating, "x").value == '{"v": 2}'


def test_names_that_need_quoting(migrating: Migrating) -> None:
    migrating.execute("DROP TABLE sessions")
    migrating.execute('CREATE SCHEMA "My Schema"')
    migrating.execute("""
        CREATE TABLE "My Schema"."Se""ss'io%ns" (
            "I d" int PRIMARY KEY, "File Hash" text, "Ca%che {x}" jsonb, "S een" timestamptz, created_at timestamptz
        )
    """)
    migrating.set(
        table='"My Schema"."Se""ss\'io%ns"', column="Ca%che {x}", key_column="File Hash", ttl_from="S een"
    )  # fmt: skip
    migrating.execute("""INSERT INTO "My Schema"."Se""ss'io%ns" VALUES (1, 'a', '{"v": 1}', 'epoch', 'epoch')""")
    migrating.begin()
    assert get(migrating, "a")[3:] == ("column", '{"v": 1}', 0, 0)
    assert put(migrating, "a", {"v": 2})[3:] == ("written", '{"v": 2}', 1, 0)
    assert invalidate(migrating, "a")[3:] == ("written", 2)


def test_columns_named_as_the_functions_own(migrating: Migrating) -> None:
    migrating.execute("DROP TABLE sessions")
    migrating.execute(
        "CREATE TABLE k (version int PRIMARY KEY, key text UNIQUE, value jsonb, phase timestamptz, keys int, hides int,"
        " of_key int, new_value int, outcome int)"
    )
    migrating.set(table="k", column="value", key_column="key", order_by="version", ttl_from="phase")
    migrating.execute("INSERT INTO k VALUES (1, 'a', '{\"v\": 1}', 'epoch')")
    migrating.begin()
    assert get(migrating, "a")[3:] == ("column", '{"v": 1}', 0, 0)
    assert put(migrating, "a", {"v": 2})[3:] == ("written", '{"v": 2}', 1, 0)


def test_a_json_column(migrating: Migrating) -> None:
    migrating.execute("ALTER TABLE sessions ALTER cache DROP DEFAULT, ALTER cache TYPE json")
    migrating.put("a", '{"b":  1,"a":2}')
    migrating.begin()
    assert get(migrating, "a").value == '{"b":  1,"a":2}'
    assert put(migrating, "a", {"v": 2})[3:6] == ("written", '{"v": 2}', 1)
    assert invalidate(migrating, "a")[3:] == ("written", 2)
    assert column(migrating, "a") == ["{}"]


def test_a_partitioned_table(migrating: Migrating) -> None:
    migrating.execute("DROP TABLE sessions")
    migrating.execute(
        "CREATE TABLE sessions (id bigint PRIMARY KEY, file_hash text, cache jsonb DEFAULT '{}', seen_at timestamptz,"
        " created_at timestamptz NOT NULL DEFAULT clock_timestamp()) PARTITION BY RANGE (id)"
    )
    migrating.execute("CREATE INDEX ON sessions (file_hash)")
    migrating.execute("CREATE TABLE low PARTITION OF sessions FOR VALUES FROM (1) TO (3)")
    migrating.execute("CREATE TABLE high PARTITION OF sessions FOR VALUES FROM (3) TO (9)")
    for n, key in enumerate(["a", "b", "a", "b"], 1):
        migrating.execute(
            "INSERT INTO sessions (id, file_hash, cache) VALUES (%s, %s, %s)",
            n, key, Jsonb({"v": n}),
        )  # fmt: skip
    migrating.begin()
    assert get(migrating, "a").value == '{"v": 3}'
    assert put(migrating, "a", {"v": 7})[3:6] == ("written", '{"v": 7}', 1)
    assert column(migrating, "a") == ['{"v": 1}', '{"v": 7}']
    assert invalidate(migrating, "a")[3:] == ("written", 3)
    assert column(migrating, "b") == ['{"v": 2}', '{"v": 4}']


def test_a_table_without_any_unique_key(migrating: Migrating) -> None:
    migrating.execute("DROP TABLE sessions")
    migrating.execute("CREATE TABLE sessions (file_hash text, cache jsonb); CREATE INDEX ON sessions (file_hash)")
    migrating.set(order_by="", ttl_from="now", accept="no-primary-key,no-key-index,no-unique-key")
    for n in (1, 2, 3):
        migrating.execute("INSERT INTO sessions VALUES ('a', %s)", Jsonb({"v": n}))
    migrating.begin()
    before = get(migrating, "a")
    done = put(migrating, "a", {"v": 7})
    assert (done.outcome, done.version, done.lifetime_from_ms) == ("written", 1, None)
    held = sorted(r[0] for r in migrating.execute("SELECT cache::text FROM sessions"))
    assert sorted([*held, before.value]) == sorted(['{"v": 1}', '{"v": 2}', '{"v": 3}', '{"v": 7}'])
    assert done.value == get(migrating, "a").value
    assert invalidate(migrating, "a").outcome == "written"
    assert migrating.execute("SELECT DISTINCT cache::text FROM sessions") == [("{}",)]


def test_the_newest_row_is_written_though_an_older_one_holds_the_value(migrating: Migrating) -> None:
    migrating.put("a", {"v": 1})
    migrating.put("a", {})
    migrating.begin()
    assert get(migrating, "a").value == '{"v": 1}'
    assert put(migrating, "a", {"v": 2})[3:6] == ("written", '{"v": 2}', 1)
    assert column(migrating, "a") == ['{"v": 1}', '{"v": 2}']
    assert invalidate(migrating, "a").outcome == "written"
    assert column(migrating, "a") == ["{}", "{}"]


@pytest.mark.parametrize("mode", ["columns", "compare"])
def test_to_invalidate_what_is_empty_already_still_raises_the_version(migrating: Migrating, mode: str) -> None:
    """A load that began before the invalidation must not be accepted after it."""
    migrating.set(capture=mode)
    migrating.put("a", {})
    migrating.begin()
    loading = get(migrating, "a").version
    done = invalidate(migrating, "a")
    assert (done.outcome, done.version) == ("written", loading + 1)
    assert put(migrating, "a", {"v": "of the load"}, loading).outcome == "changed"
    assert put(migrating, "a", {"v": 2}, done.version)[3:6] == ("written", '{"v": 2}', loading + 2)


def test_a_trigger_that_swallows_the_write(serving: Migrating) -> None:
    serving.execute("CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    serving.execute("CREATE TRIGGER no BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION no()")
    assert put(serving, "a", {"v": 2})[3:6] == ("no-row", '{"v": 1}', 0)


# As RPC -----------------------------------------------------------------------------------------------------------


def test_arguments_have_names(serving: Migrating) -> None:
    """PostgREST passes a JSON object's members by name."""
    for call in (
        "heartbeat(client => 'c', name => 'n')",
        "heartbeat(client => 'c', name => 'n', phase => 'idle', percent => 0, epoch => 0, lease_s => 9, stats => '{}')",
        "leave(client => 'c')",
        "read_from(key => 'a')",
        "get(key => 'a')",
        "get_many(keys => '{a}')",
        "put(key => 'a', value => '{\"v\": 1}')",
        "put(key => 'a', value => null, if_version => 7)",
        "invalidate(key => 'a')",
    ):
        serving.execute(f"SELECT * FROM cachemig.{call}")


def test_what_reads_works_in_a_read_only_transaction_and_what_writes_does_not(serving: Migrating) -> None:
    volatility = dict(
        serving.execute(
            "SELECT proname::text, provolatile::text FROM pg_proc WHERE pronamespace = 'cachemig'::regnamespace"
            " AND proname = ANY (%s)", list(functions.FUNCTIONS),
        )
    )  # fmt: skip
    reading = {"read_from", "get", "get_many"}
    assert volatility == {name: "s" if name in reading else "v" for name in functions.FUNCTIONS}
    for call in ("read_from('a')", "get('a')", "get_many('{a}')"):
        with serving.conn.transaction():
            serving.execute("SET TRANSACTION READ ONLY")
            serving.execute(f"SELECT * FROM cachemig.{call}")
    for call in ("put('a', '1')", "invalidate('a')", "heartbeat('c', 'n')"):
        with pytest.raises(pg.ReadOnlySqlTransaction), serving.conn.transaction():
            serving.execute("SET TRANSACTION READ ONLY")
            serving.execute(f"SELECT * FROM cachemig.{call}")


# Roles ------------------------------------------------------------------------------------------------------------


class Roles(NamedTuple):
    anon: str
    authenticated: str
    service_role: str


@pytest.fixture
def roles(migrating: Migrating) -> Iterator[Roles]:
    """Supabase's three. Roles belong to the whole server, so with names that no other test has."""
    unique = secrets.token_hex(4)
    names = Roles(*(f"{name}_{unique}" for name in Roles._fields))
    for name in names:
        migrating.execute(f"CREATE ROLE {name}" + (" BYPASSRLS" if name == names.service_role else ""))
    yield names
    for name in names:
        migrating.execute(f"DROP OWNED BY {name}")
        migrating.execute(f"DROP ROLE {name}")


@pytest.fixture
def clinic(migrating: Migrating, roles: Roles) -> Migrating:
    """Patients see and write their own rows; `hers` is nobody's that asks here."""
    migrating.execute("ALTER TABLE sessions ADD owner text")
    migrating.execute(f"GRANT SELECT, UPDATE ON sessions TO {roles.authenticated}, {roles.service_role}")
    migrating.execute("ALTER TABLE sessions ENABLE ROW LEVEL SECURITY")
    migrating.execute("CREATE POLICY own ON sessions USING (owner = current_setting('app.me', true))")
    for key, owner in (("mine", "me"), ("hers", "she")):
        migrating.put(key, {"of": owner})
        migrating.execute("UPDATE sessions SET owner = %s WHERE file_hash = %s", owner, key)
    migrating.set(app_roles=",".join(roles))
    migrating.begin()
    return migrating


@contextmanager
def acting(case: Migrating, role: str) -> Iterator[None]:
    """As PostgREST does: one transaction, SET LOCAL."""
    with case.conn.transaction():
        case.execute(f"SET LOCAL ROLE {role}; SET LOCAL app.me = 'me'")
        yield


def test_a_hidden_row_is_neither_read_nor_written(clinic: Migrating, roles: Roles) -> None:
    with acting(clinic, roles.authenticated):
        assert get(clinic, "mine")[4:6] == ('{"of": "me"}', None)
        assert put(clinic, "mine", {"of": "me", "v": 2})[3:6] == ("written", '{"v": 2, "of": "me"}', None)
        assert get(clinic, "hers")[4:6] == (None, None)
        assert put(clinic, "hers", {"v": 2})[3:6] == ("no-row", None, None)
        assert invalidate(clinic, "hers")[3:] == ("no-row", None)
        for version in (0, 1, 2):  # nothing is to be learnt by trying
            assert put(clinic, "mine", {"v": 2}, version).outcome == "changed"
            assert put(clinic, "hers", {"v": 2}, version).outcome == "no-row"
        for key in ("mine", "hers"):
            assert clinic.execute("SELECT cachemig.version_of(%s)", key) == [(None,)]
    assert clinic.marks() == ["mine"]
    assert column(clinic, "hers") == ['{"of": "she"}']


def test_a_role_that_bypasses_row_level_security_sees_all(clinic: Migrating, roles: Roles) -> None:
    with acting(clinic, roles.service_role):
        assert get(clinic, "hers")[4:6] == ('{"of": "she"}', 0)
        assert put(clinic, "hers", {"v": 2}, 0)[3:6] == ("written", '{"v": 2}', 1)
        assert invalidate(clinic, "hers")[3:] == ("written", 2)
    clinic.execute("ALTER TABLE sessions DISABLE ROW LEVEL SECURITY")
    with acting(clinic, roles.authenticated):
        assert get(clinic, "hers").version == 2


def test_a_function_of_somebody_elses_rights_sees_what_both_may_see(clinic: Migrating, roles: Roles) -> None:
    """Both the role whose rights are in force and the one that the session acts as must see every row."""
    clinic.execute(f"""
        CREATE FUNCTION public.asks() RETURNS bigint LANGUAGE sql SECURITY DEFINER
            AS 'SELECT version FROM cachemig.get(''mine'')';
        GRANT CREATE ON SCHEMA public TO {roles.authenticated};
        ALTER FUNCTION public.asks() OWNER TO {roles.authenticated};
    """)
    assert clinic.execute("SELECT version FROM cachemig.get('mine')") == [(0,)]
    assert clinic.execute("SELECT public.asks()") == [(None,)]  # the policy hides rows from the function's owner
    clinic.execute("ALTER FUNCTION public.asks() OWNER TO CURRENT_USER")
    with acting(clinic, roles.authenticated):
        assert clinic.execute("SELECT public.asks()") == [(None,)]
    with acting(clinic, roles.service_role):
        assert clinic.execute("SELECT public.asks()") == [(0,)]


def test_a_policy_for_writes_is_heard(clinic: Migrating, roles: Roles) -> None:
    clinic.execute("DROP POLICY own ON sessions")
    clinic.execute("CREATE POLICY all_read ON sessions FOR SELECT USING (true)")
    with acting(clinic, roles.authenticated):
        assert get(clinic, "hers")[4:6] == ('{"of": "she"}', None)
        assert put(clinic, "hers", {"v": 2}).outcome == "no-row"
        assert invalidate(clinic, "hers").outcome == "no-row"
    clinic.execute("CREATE POLICY w ON sessions FOR UPDATE USING (true) WITH CHECK (cache ->> 'of' = owner)")
    with acting(clinic, roles.authenticated):
        assert put(clinic, "mine", {"of": "me"}).outcome == "written"
        with pytest.raises(pg.InsufficientPrivilege, match="row-level security"), clinic.conn.transaction():
            put(clinic, "mine", {"of": "she"})


def test_a_role_without_rights_on_the_table_gets_none(clinic: Migrating, roles: Roles) -> None:
    clinic.execute("ALTER TABLE sessions DISABLE ROW LEVEL SECURITY")
    clinic.execute("UPDATE sessions SET cache = cache")
    with acting(clinic, roles.anon):
        for call in ("get('hers')", "get_many('{hers}')", "put('hers', '1')", "invalidate('hers')"):
            with pytest.raises(pg.InsufficientPrivilege, match="sessions"), clinic.conn.transaction():
                clinic.execute(f"SELECT * FROM cachemig.{call}")
        assert clinic.execute("SELECT cachemig.version_of('hers')") == [(None,)]
        clinic.execute("SELECT cachemig.touch('hers')")
        assert clinic.execute("SELECT cachemig.read_from('hers')") == [("column",)]
    assert clinic.marks() == ["mine", "hers"] or clinic.marks() == ["hers", "mine"]
    clinic.execute(f"REVOKE UPDATE ON sessions FROM {roles.authenticated}")
    with acting(clinic, roles.authenticated):
        assert get(clinic, "hers").version == 1
        with pytest.raises(pg.InsufficientPrivilege), clinic.conn.transaction():
            put(clinic, "hers", {"v": 2})
        clinic.execute("SELECT cachemig.touch('hers')")
    assert len(clinic.marks()) == 2


def test_rights_on_the_columns_in_question_are_enough(clinic: Migrating, roles: Roles) -> None:
    clinic.execute("ALTER TABLE sessions DISABLE ROW LEVEL SECURITY")
    clinic.execute(
        f"GRANT SELECT (id, file_hash, cache, seen_at, created_at), UPDATE (cache) ON sessions TO {roles.anon}"
    )
    with acting(clinic, roles.anon):
        assert get(clinic, "hers")[4:6] == ('{"of": "she"}', 0)


def test_no_role_sees_the_control_schema(clinic: Migrating, roles: Roles) -> None:
    tables = [r[0] for r in clinic.execute("SELECT tablename::text FROM pg_tables WHERE schemaname = 'cachemig'")]
    assert {"change", "version", "entry", "client", "migration"} <= set(tables)
    for role in roles:
        with acting(clinic, role):
            for table in tables:
                for statement in (f"SELECT FROM cachemig.{table}", f"DELETE FROM cachemig.{table}"):
                    with pytest.raises(pg.InsufficientPrivilege), clinic.conn.transaction():
                        clinic.execute(statement)
            with pytest.raises(pg.InsufficientPrivilege, match="sees_all"), clinic.conn.transaction():
                clinic.execute("SELECT cachemig.sees_all('SELECT')")


def test_a_role_that_is_not_named_may_call_nothing(clinic: Migrating, roles: Roles) -> None:
    signatures = {**functions.FUNCTIONS, **functions.HELPERS, **functions.OWN}
    clinic.execute(f"CREATE ROLE other_{roles.anon}; GRANT USAGE ON SCHEMA cachemig TO other_{roles.anon}")
    try:
        for name, types in signatures.items():
            held = clinic.execute(
                "SELECT has_function_privilege(%s, %s, 'EXECUTE')",
                f"other_{roles.anon}", f"cachemig.{name}({', '.join(types)})",
            )  # fmt: skip
            assert held == [(False,)], name
        found = clinic.execute(
            "SELECT proname::text FROM pg_proc WHERE pronamespace = 'cachemig'::regnamespace AND proname !~ '^capture'"
        )
        assert {name for (name,) in found} == {*signatures, "key_id"}
    finally:
        clinic.execute(f"DROP OWNED BY other_{roles.anon}; DROP ROLE other_{roles.anon}")


def test_dual_write_takes_up_other_roles(clinic: Migrating, roles: Roles) -> None:
    clinic.set(app_roles=roles.service_role)
    assert not finish(dual_write.switch(clinic.settings, clinic.target, enable=True)).changed
    with acting(clinic, roles.service_role):
        get(clinic, "hers")
    with (
        acting(clinic, roles.authenticated),
        pytest.raises(pg.InsufficientPrivilege, match="function get"),
        clinic.conn.transaction(),
    ):
        get(clinic, "mine")
    clinic.set(app_roles=f"{roles.authenticated},{roles.service_role}")
    finish(dual_write.switch(clinic.settings, clinic.target, enable=True))
    with acting(clinic, roles.authenticated):
        assert get(clinic, "mine").value


def test_a_role_that_does_not_exist_is_named(migrating: Migrating) -> None:
    migrating.set(app_roles="pg_monitor,nobody-here")
    with pytest.raises(ConfigError, match="app_roles: there is no role 'nobody-here'"):
        migrating.begin()
    assert migrating.execute("SELECT to_regnamespace('cachemig')") == [(None,)]


def test_the_callers_search_path_redirects_nothing_and_serves_its_triggers(clinic: Migrating, roles: Roles) -> None:
    clinic.execute("""
        CREATE SCHEMA app;
        CREATE TABLE app.audit (who text);
        CREATE FUNCTION public.audited() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
        $$ BEGIN INSERT INTO audit VALUES (NEW.owner); RETURN NULL; END $$;
        CREATE TRIGGER audited AFTER UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION audited();
        CREATE SCHEMA hostile;
        CREATE TABLE hostile.migration AS SELECT 'redis-only'::text AS phase, 0::float8 AS percent, 0 AS epoch;
        CREATE TABLE hostile.sessions AS SELECT * FROM public.sessions;
        CREATE TABLE hostile.change (key text, id bigint);
        CREATE TABLE hostile.pg_class AS SELECT oid, relname, relnamespace, relowner, false AS relrowsecurity,
            relforcerowsecurity FROM pg_catalog.pg_class;
        CREATE FUNCTION hostile.has_column_privilege(name, oid, text, text) RETURNS boolean LANGUAGE sql
            AS 'SELECT true';
    """)
    with acting(clinic, roles.authenticated):
        clinic.execute("SET LOCAL search_path = hostile, app, pg_catalog")
        assert put(clinic, "mine", {"v": 2})[0:6] == ("dual-write", 0.0, 0, "written", '{"v": 2}', None)
        assert get(clinic, "hers")[4:6] == (None, None)
        assert clinic.execute("SELECT cachemig.version_of('hers')") == [(None,)]
    assert clinic.execute("SELECT who FROM app.audit") == [("me",)]
    fixed = clinic.execute(
        "SELECT proname::text, 'search_path=pg_catalog, pg_temp' = ANY (proconfig) FROM pg_proc"
        " WHERE pronamespace = 'cachemig'::regnamespace AND prosecdef"
    )
    assert {name for name, _ in fixed} >= {
        "heartbeat",
        "leave",
        "read_from",
        "route",
        "sees_all",
        "touch",
        "version_of",
    }
    assert all(is_fixed for _, is_fixed in fixed)


# Races ------------------------------------------------------------------------------------------------------------


def together(case: Migrating, *jobs: Callable[[psycopg.Connection[Any]], None]) -> None:
    """Runs the jobs at once, each with a connection of its own; the first exception is raised here."""
    failed: list[BaseException] = []

    def run(job: Callable[[psycopg.Connection[Any]], None]) -> None:
        try:
            with psycopg.connect(case.dsn, autocommit=True) as conn:
                conn.execute("SET lock_timeout = '30s'")
                job(conn)
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def test_a_version_is_of_one_value_and_never_goes_back(serving: Migrating) -> None:
    seen: dict[int, str | None] = {}
    agreed = threading.Lock()
    over = threading.Event()

    def note(version: int, value: str | None) -> None:
        with agreed:
            assert seen.setdefault(version, value) == value, version

    def writes(conn: psycopg.Connection[Any]) -> None:
        """Raw SQL, as from a program that knows nothing of us; and a worker folds meanwhile."""
        try:
            for n in range(150):
                conn.execute("UPDATE public.sessions SET cache = %s WHERE file_hash = 'a'", (Jsonb({"raw": n}),))
                if n % 10 == 0:
                    conn.execute(
                        queries.text("sync", "fold_changes"),
                        {"ids": [r[0] for r in conn.execute("SELECT id FROM cachemig.change")]},
                    )
        finally:
            over.set()

    def puts(conn: psycopg.Connection[Any]) -> None:
        last, n = -1, 0
        while not over.is_set():
            n += 1
            with conn.transaction():  # the caller's own, which goes on after the put
                done = one(conn, "SELECT * FROM cachemig.put('a', %s)", Jsonb({"put": n, "by": id(conn)}))
                conn.execute("SELECT pg_sleep(0.001)")
            assert done.outcome == "written"
            assert json.loads(done.value) == {"put": n, "by": id(conn)}
            assert done.version > last
            last = done.version
            note(done.version, done.value)

    def serialized(conn: psycopg.Connection[Any]) -> None:
        while not over.is_set():
            try:
                with conn.transaction():
                    conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                    before = one(conn, "SELECT * FROM cachemig.get('a')")
                    done = one(conn, "SELECT * FROM cachemig.put('a', '{\"rr\": 1}')")
                    assert done.version == before.version + 1
                    assert one(conn, "SELECT * FROM cachemig.get('a')").version == done.version
            except pg.SerializationFailure:
                continue
            note(done.version, done.value)

    def reads(conn: psycopg.Connection[Any]) -> None:
        last = -1
        while not over.is_set():
            found = one(conn, "SELECT * FROM cachemig.get('a')")
            (many,) = rows(conn, "SELECT * FROM cachemig.get_many('{a}')")
            assert last <= found.version <= many.version
            last = many.version
            note(found.version, found.value)
            note(many.version, many.value)

    together(serving, writes, puts, puts, serialized, reads, reads)
    assert len(seen) > 30
    assert get(serving, "a").version == serving.execute(
        "SELECT (SELECT coalesce(sum(count), 0) FROM cachemig.version) + (SELECT count(*) FROM cachemig.change)"
    )[0][0]  # fmt: skip


def test_a_concurrent_write_is_a_serialization_error_in_repeatable_read(serving: Migrating) -> None:
    with psycopg.connect(serving.dsn) as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        before = one(conn, "SELECT * FROM cachemig.get('a')")
        serving.execute("UPDATE sessions SET cache = '{\"v\": 2}'")
        assert one(conn, "SELECT * FROM cachemig.get('a')") == before
        with pytest.raises(pg.SerializationFailure):
            conn.execute("SELECT * FROM cachemig.put('a', '{\"v\": 3}', %s)", (before.version,))


def test_of_many_with_one_version_one_writes(migrating: Migrating) -> None:
    for n in range(5):  # several rows of the key, and the order of their ids is not that of the winner
        row = migrating.put("a", {"v": n})
        migrating.execute("UPDATE sessions SET created_at = now() - interval '1 day' * %s WHERE id = %s", n, row)
    migrating.begin()
    for attempt in range(10):
        version = get(migrating, "a").version
        start = threading.Barrier(6)
        done: list[Any] = []

        def tries(
            conn: psycopg.Connection[Any],
            version: int = version,
            start: threading.Barrier = start,
            done: list[Any] = done,
            attempt: int = attempt,
        ) -> None:
            value = {"attempt": attempt, "by": id(conn)}
            start.wait()
            done.append((one(conn, "SELECT * FROM cachemig.put('a', %s, %s)", Jsonb(value), version), value))

        def empties(conn: psycopg.Connection[Any], start: threading.Barrier = start) -> None:
            start.wait()
            conn.execute("SELECT * FROM cachemig.invalidate('b')")

        together(migrating, *[tries] * 5, empties)
        assert sorted(d.outcome for d, _ in done) == ["changed"] * 4 + ["written"]
        (winner,) = [(d, value) for d, value in done if d.outcome == "written"]
        assert json.loads(winner[0].value) == winner[1]
        assert winner[0].version == version + 1
        assert {d.version for d, _ in done} == {version + 1}
        assert {d.value for d, _ in done} == {winner[0].value}  # who was refused is told what stands there now


def test_writers_of_many_rows_take_their_locks_in_one_order(migrating: Migrating) -> None:
    for n in range(8):
        row = migrating.put("a", {"v": n})
        migrating.execute("UPDATE sessions SET created_at = now() - interval '1 day' * %s WHERE id = %s", n, row)
    migrating.begin()

    def empties(conn: psycopg.Connection[Any]) -> None:
        for _ in range(40):
            assert one(conn, "SELECT * FROM cachemig.invalidate('a')").outcome == "written"

    def puts(conn: psycopg.Connection[Any]) -> None:
        for n in range(40):
            assert one(conn, "SELECT * FROM cachemig.put('a', %s)", Jsonb({"v": n})).outcome == "written"

    together(migrating, empties, puts, empties, puts)  # a deadlock would be an exception


def test_a_row_that_changes_while_it_is_waited_for_is_read_anew(serving: Migrating) -> None:
    with psycopg.connect(serving.dsn) as writer:
        writer.execute("UPDATE sessions SET cache = '{\"v\": 2}' WHERE file_hash = 'a'")
        found: list[Any] = []
        waiting = threading.Thread(target=lambda: found.append(put(serving, "a", {"v": 3}, 0)))
        waiting.start()
        with psycopg.connect(serving.dsn, autocommit=True) as looking:
            while not looking.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall():
                assert waiting.is_alive()
        writer.commit()
        waiting.join()
    assert found[0][3:6] == ("changed", '{"v": 2}', 1)


# Clients ----------------------------------------------------------------------------------------------------------


def client(case: Migrating, name: str) -> Any:
    return one(
        case.conn,
        "SELECT *, extract(epoch FROM lease_until - clock_timestamp()) AS left_s FROM cachemig.client WHERE id = %s",
        name,
    )


def test_a_client_registers_reports_and_leaves(serving: Migrating) -> None:
    beat = "SELECT * FROM cachemig.heartbeat(%s, %s, %s, %s, %s, %s, %s)"
    first = one(serving.conn, beat, "c1", "api", None, None, None, 30, None)
    assert first == ("dual-write", 0.0, 0, serving.settings.identity())
    row = client(serving, "c1")
    assert (row.name, row.phase, row.percent, row.epoch, row.stats) == ("api", None, None, None, {})
    assert 29 < row.left_s <= 30
    at(serving, "cutover", 12.5)
    stats = {"reads": {"redis": {"hit": 7}}, "ü": [1.5, None]}
    assert one(serving.conn, beat, "c1", "api", "dual-write", 0, 0, 5, Jsonb(stats))[:3] == ("cutover", 12.5, 0)
    one(serving.conn, beat, "c2", "api", None, None, None, 30, None)
    again = client(serving, "c1")
    assert again.started_at == row.started_at
    assert again.seen_at > row.seen_at
    assert (again.phase, again.percent, again.epoch, again.stats) == ("dual-write", 0.0, 0, stats)
    assert 4 < again.left_s <= 5
    one(serving.conn, beat, "c1", "api", "cutover", 12.5, 0, 5, None)
    assert client(serving, "c1").stats == stats  # none given: those from before
    serving.execute("SELECT cachemig.leave('c1')")
    serving.execute("SELECT cachemig.leave('nobody')")
    assert client(serving, "c1").left_s <= 0
    assert client(serving, "c1").stats == stats
    assert client(serving, "c2").left_s > 0
    one(serving.conn, beat, "c1", "api", None, None, None, 5, None)  # a new life
    assert client(serving, "c1").started_at > row.started_at
    assert (client(serving, "c1").phase, client(serving, "c1").stats) == (None, {})


@pytest.mark.parametrize(
    ("lease_s", "left"), [("1e308", 3600), ("'NaN'", 3600), ("'Infinity'", 3600), ("-5", 0), ("NULL", 30)]
)
def test_no_lease_holds_up_the_ladder_for_ever(serving: Migrating, lease_s: str, left: float) -> None:
    serving.execute(f"SELECT * FROM cachemig.heartbeat('c', NULL, lease_s => {lease_s})")
    row = client(serving, "c")
    assert left - 5 < row.left_s <= left
    assert row.name == "c"


def test_a_dead_clients_row_stays_a_day(serving: Migrating) -> None:
    for name in ("dead", "dead-long", "old"):
        serving.execute("SELECT * FROM cachemig.heartbeat(%s, 'api')", name)
    serving.execute("UPDATE cachemig.client SET lease_until = now() - interval '23 hours' WHERE id = 'dead'")
    serving.execute("UPDATE cachemig.client SET lease_until = now() - interval '25 hours' WHERE id = 'dead-long'")
    serving.execute("UPDATE cachemig.client SET lease_until = now() - interval '9 days' WHERE id = 'old'")
    serving.execute("SELECT * FROM cachemig.heartbeat('old', 'api', 'dual-write')")  # renews, does not register
    assert serving.execute("SELECT id FROM cachemig.client ORDER BY id") == [("dead",), ("dead-long",), ("old",)]
    serving.execute("SELECT * FROM cachemig.heartbeat('new', 'api')")
    assert serving.execute("SELECT id FROM cachemig.client ORDER BY id") == [("dead",), ("new",), ("old",)]


def test_clean_waits_for_live_clients(serving: Migrating) -> None:
    serving.execute("SELECT * FROM cachemig.heartbeat('c1', 'api', lease_s => 60)")
    serving.execute("SELECT * FROM cachemig.heartbeat('c2', 'gone', lease_s => 0)")
    finish(dual_write.switch(serving.settings, serving.target, enable=False))
    for execute in (False, True):
        with pytest.raises(Refused, match="api") as refused:
            finish(clean(serving.settings, serving.target, execute=execute))
        assert "gone" not in str(refused.value)
        assert "cachemig clean" in (refused.value.hint or "")
    serving.execute("SELECT cachemig.leave('c1')")
    assert finish(clean(serving.settings, serving.target, execute=True)).control_schema
    assert serving.execute("SELECT 1 FROM pg_proc WHERE proname = 'heartbeat'") == []


# Making them ------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_them(migrating: Migrating, roles: Roles) -> None:
    migrating.set(app_roles=roles.anon)
    shown = "\n".join(init.statements(migrating.settings))
    for name in {**functions.FUNCTIONS, **functions.HELPERS, **functions.OWN}:
        assert f"CREATE OR REPLACE FUNCTION cachemig.{name}(" in shown
    assert f'GRANT USAGE ON SCHEMA cachemig TO "{roles.anon}"' in shown
    migrating.execute(shown)  # it is the very SQL that is run
    migrating.execute("DROP SCHEMA cachemig CASCADE")
    init.init(migrating.settings, migrating.target, migrating.directory)
    switched = "\n".join(dual_write.statements(migrating.settings, enable=True))
    assert "FUNCTION cachemig.put(" in switched
    assert switched.index("FUNCTION cachemig.put(") < switched.index("LOCK TABLE")
    assert "FUNCTION cachemig.put(" not in "\n".join(dual_write.statements(migrating.settings, enable=False))


def test_they_do_not_stand_in_the_way_of_the_applications_own_ddl(migrating: Migrating) -> None:
    init.init(migrating.settings, migrating.target, migrating.directory)
    migrating.execute("ALTER TABLE sessions DROP COLUMN seen_at, ALTER file_hash TYPE varchar(80)")
    migrating.execute("ALTER TABLE sessions RENAME TO others; DROP TABLE others")


# Cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["text", "uuid", "varchar(64)", "citext"])
def test_a_call_reads_by_index_alone(migrating: Migrating, type_: str) -> None:
    if type_ == "citext":
        type_ = citext(migrating)
    migrating.execute(f"ALTER TABLE sessions ALTER file_hash TYPE {type_} USING NULL")
    migrating.execute(
        "INSERT INTO sessions (file_hash, cache)"
        f" SELECT md5(n::text)::uuid::text::{type_}, '{{\"v\": 1}}' FROM generate_series(1, 20000) AS n"
    )
    migrating.begin()
    migrating.execute("INSERT INTO cachemig.change (key) SELECT file_hash::text FROM sessions")
    migrating.execute(
        "INSERT INTO cachemig.version SELECT cachemig.key_id(file_hash::text), file_hash::text, 1 FROM sessions"
    )
    migrating.execute("ANALYZE")
    keys = [r[0] for r in migrating.execute("SELECT md5(n::text)::uuid::text FROM generate_series(1, 20) AS n")]
    for statement, values in (
        ("SELECT * FROM cachemig.get(%s)", [keys[0]]),
        ("SELECT * FROM cachemig.get_many(%s)", [keys]),
        ("SELECT * FROM cachemig.put(%s, '{\"v\": 2}', 2)", [keys[0]]),
        ("SELECT * FROM cachemig.invalidate(%s)", [keys[0]]),
    ):
        with migrating.conn.transaction():
            before = scanned(migrating)
            for _ in range(8):  # beyond the five times of a custom plan
                migrating.execute(statement, *values)
            after = scanned(migrating)
        for name in ("sessions", "change", "version"):
            assert after[name][0] == before[name][0], f"{statement} reads {name} from end to end"
            assert after[name][1] > before[name][1]


def scanned(case: Migrating) -> dict[str, tuple[int, int]]:
    """(sequential scans, index scans) of each table in this transaction."""
    found = case.execute("SELECT relname::text, seq_scan, coalesce(idx_scan, 0) FROM pg_stat_xact_user_tables")
    return {name: (sequential, index) for name, sequential, index in found}


def test_what_is_composed_names_the_schema_of_the_key_types_equality(migrating: Migrating) -> None:
    with connect(migrating.settings) as conn:
        made = functions.statements(conn, inspect(conn, migrating.settings))
        text = "\n".join(statement.as_string(conn) for statement in made)
    assert 'n."file_hash" OPERATOR("pg_catalog".=) cachemig.typed_key(' in text
    assert sql.Identifier("public", "sessions").as_string(None) in text

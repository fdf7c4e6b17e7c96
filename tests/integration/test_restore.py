"""restore: after a real DROP COLUMN and VACUUM FULL every row holds what it held, byte for byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cachemig.archive import Damaged
from cachemig.errors import LockNotGranted, Refused, TableUnfit
from cachemig.source import archive as source
from cachemig.source import control
from cachemig.source import restore as restoring
from cachemig.source.connect import Connection
from cachemig.source.table import inspect
from cachemig.steps import archive, restore
from cachemig.steps.restore import is_newer
from cachemig.stop import Stop
from cachemig.targets.keys import VERSION, companion
from tests.integration.conftest import Migrating, finish

E = 2**40

ALL_OF_IT = """
    ALTER TABLE sessions ALTER COLUMN cache SET STORAGE EXTERNAL;
    ALTER TABLE sessions ALTER COLUMN cache SET COMPRESSION pglz;
    ALTER TABLE sessions ALTER COLUMN cache SET STATISTICS 77;
    ALTER TABLE sessions ALTER COLUMN cache SET (n_distinct = -0.5);
    ALTER TABLE sessions ADD CONSTRAINT "no %s arrays" CHECK (jsonb_typeof(cache) <> 'number' OR hits > 1000);
    ALTER TABLE sessions ADD CONSTRAINT later CHECK (cache <> '[77]') NOT VALID;
    CREATE INDEX by_n ON sessions ((cache ->> 'n')) WHERE cache ? 'n';
    CREATE INDEX "odd ""USING"" %s" ON sessions USING gin (cache jsonb_path_ops);
    CREATE UNIQUE INDEX as_constraint ON sessions (id, cache);
    ALTER TABLE sessions ADD CONSTRAINT as_constraint UNIQUE USING INDEX as_constraint;
    CREATE STATISTICS "of it" (ndistinct) ON hits, (cache ->> 'n') FROM sessions;
    COMMENT ON COLUMN sessions.cache IS 'what it''s for: 100 % {cache}';
    COMMENT ON INDEX by_n IS 'for the list';
    COMMENT ON CONSTRAINT later ON sessions IS 'some day';
    GRANT SELECT (cache), UPDATE (cache) ON sessions TO PUBLIC;
"""


@pytest.fixture
def clinic(migrating: Migrating) -> Migrating:
    """Rows of every kind; everything that a column can have."""
    migrating.execute(ALL_OF_IT)
    migrating.begin()
    for n in range(60):
        migrating.put(f"key-{n}", {"n": n, "text": 'x\u00fc\\"' * 20})
    migrating.put("shared", {"older": True})
    migrating.put("shared", {"newer": True})
    migrating.put("empty", {})
    migrating.put("json-null", "null")
    migrating.put("corrupt", '"[1, 2"')
    migrating.put("odd % {key} \u00fc 'x' \"y\"\n", [1.10])
    migrating.put(None, {"no": "key"})
    migrating.put("nothing", None)
    migrating.backfill()
    migrating.sync()
    return migrating


def freeze(case: Migrating) -> None:
    """What stop-writes leaves behind: no capture, another epoch, the phase."""
    case.execute("DROP TRIGGER cachemig_capture ON sessions; DROP TRIGGER cachemig_capture_truncate ON sessions")
    case.execute("UPDATE cachemig.migration SET phase = 'redis-only', epoch = epoch + 1")


def texts(case: Migrating, table: str = "sessions", row: str = "id") -> dict[Any, str | None]:
    return dict(case.execute(f"SELECT {row}, cache::text FROM {table} t ORDER BY 1"))


def facts(case: Migrating) -> dict[str, Any]:
    found = source.facts(case.conn, inspect(case.conn, case.settings))
    found["column"].pop("attnum")
    return found


def archived(case: Migrating) -> Path:
    to = case.directory / "a.zst"
    finish(archive.archive(case.settings, Stop(), str(to)))
    return to


def drop(case: Migrating, table: str = "sessions") -> None:
    case.execute(f"ALTER TABLE {table} DROP COLUMN cache")
    case.execute(f"VACUUM FULL {table}")
    case.execute("UPDATE cachemig.migration SET phase = 'dropped'")


def run(case: Migrating, to: Path, *, redis: bool = True, **options: Any) -> restore.Restored:
    return finish(restore.restore(case.settings, case.target if redis else None, Stop(), str(to), **options))


def in_redis(case: Migrating, key: str, value: str | None, version: int) -> None:
    """What an application writes in redis-only."""
    name = f"{case.prefix}{key}"
    if value is None:
        case.redis.delete(name)
    else:
        case.redis.set(name, value)
    case.redis.set(companion(VERSION, name), version)


def test_everything_is_as_it_was(clinic: Migrating) -> None:
    freeze(clinic)
    before, column = texts(clinic), facts(clinic)
    to = archived(clinic)
    others = clinic.execute("SELECT id, file_hash, hits, seen_at, created_at FROM sessions ORDER BY id")
    drop(clinic)
    result = run(clinic, to)
    assert result.finished
    assert (result.filled, result.gone, result.bad, result.left_out) == (67, 0, 0, ())
    assert (result.rows, result.verified) == (67, 67)
    assert (result.from_redis, result.emptied, result.since) == (0, 0, 0)
    assert texts(clinic) == before
    assert facts(clinic) == column
    assert clinic.execute("SELECT id, file_hash, hits, seen_at, created_at FROM sessions ORDER BY id") == others
    clinic.execute("INSERT INTO sessions (file_hash) VALUES ('new')")
    assert clinic.execute("SELECT cache FROM sessions WHERE file_hash = 'new'") == [({},)]
    with pytest.raises(psycopg.errors.CheckViolation):
        clinic.put("bad", "77")
    with pytest.raises(Refused, match="nothing to restore"):
        run(clinic, to)


def test_without_a_control_schema(clinic: Migrating) -> None:
    before = texts(clinic)
    to = archived(clinic)
    clinic.execute("DROP TRIGGER cachemig_capture ON sessions; DROP TRIGGER cachemig_capture_truncate ON sessions")
    drop(clinic)
    clinic.execute("DROP SCHEMA cachemig CASCADE")
    assert run(clinic, to).finished
    assert texts(clinic) == before


def test_what_redis_has_newer_comes_from_redis(clinic: Migrating) -> None:
    freeze(clinic)
    before = texts(clinic)
    to = archived(clinic)
    drop(clinic)
    in_redis(clinic, "key-1", '{"n": 1001,   "b":1.10}', E)  # from what was held in the epoch before
    in_redis(clinic, "key-2", '{"n": 2002}', E + 7)
    in_redis(clinic, "shared", '{"newest": true}', E + 2)
    in_redis(clinic, "key-3", None, E + 9)  # removed there
    in_redis(clinic, "empty", "[1]", E + 3)
    clinic.redis.set(f"{clinic.prefix}key-4", '{"n": 4004}')  # with a version of before the freeze: not newer
    clinic.execute("DELETE FROM sessions WHERE file_hash IN ('key-5', 'key-6')")
    clinic.execute("UPDATE sessions SET hits = 5 WHERE file_hash = 'key-7'")
    clinic.execute("INSERT INTO sessions (file_hash) VALUES ('late'), ('late and unknown'), ('key-8')")
    in_redis(clinic, "late", '{"late": 1}', E)
    result = run(clinic, to)
    assert result.finished
    assert result.filled == 65
    assert (result.gone, result.from_redis, result.emptied, result.since, result.bad) == (2, 4, 1, 1, 0)
    after = texts(clinic)
    rows = dict(clinic.execute("SELECT id, file_hash FROM sessions"))
    changed = {rows[n]: text for n, text in after.items() if before.get(n) != text}
    assert changed == {
        "key-1": '{"b": 1.10, "n": 1001}',
        "key-2": '{"n": 2002}',
        "shared": '{"newest": true}',
        "key-3": "{}",
        "empty": "[1]",
        "late": '{"late": 1}',
    }
    # Of the shared key the older row is as it was.
    assert [text for n, text in after.items() if rows[n] == "shared"] == ['{"older": true}', '{"newest": true}']
    assert after[max(rows)] is None


def test_redis_is_not_asked_where_that_is_wanted(clinic: Migrating) -> None:
    freeze(clinic)
    before = texts(clinic)
    to = archived(clinic)
    drop(clinic)
    in_redis(clinic, "key-1", "[]", E + 100)
    assert run(clinic, to, redis=False).finished
    assert texts(clinic) == before


def test_what_the_column_does_not_take_is_named(clinic: Migrating) -> None:
    freeze(clinic)
    before = texts(clinic)
    to = archived(clinic)
    drop(clinic)
    in_redis(clinic, "key-1", '{"n": "\\u0000"}', E + 100)
    in_redis(clinic, "key-2", "no JSON", E + 100)
    in_redis(clinic, "key-3", "\x1f\x8bdamaged", E + 100)
    result = run(clinic, to)
    assert not result.finished
    assert result.bad == 3
    assert {case.what for case in result.cases} == {"key-1", "key-2", "key-3"}
    assert texts(clinic) == before
    for key in ("key-1", "key-2", "key-3"):
        in_redis(clinic, key, '{"mended": 1}', E + 101)
    again = run(clinic, to)
    assert again.finished
    assert (again.from_redis, again.filled, again.there_before) == (3, 0, 67)


@pytest.mark.parametrize(
    ("held", "version", "delivered", "frozen", "newer"),
    [
        (None, E + 5, 5, True, False),
        (5, E + 5, 5, True, False),
        (E, E + 5, 5, True, True),  # written from what an earlier epoch had left
        (E + 5, E + 5, 5, True, True),  # and six times since: the same number as the frozen column's
        (E + 5, E + 5, E + 5, True, False),  # delivered in the epoch that froze it
        (E + 6, E + 5, E + 5, True, True),
        (4, E + 5, None, True, False),
        (E + 6, E + 5, None, True, False),  # of the column's own epoch
        (2 * E, E + 5, None, True, True),  # of the one that a write to Redis alone has
        (E, None, None, True, False),
        (4, 5, 5, False, False),  # a change that was on its way
        (6, 5, 5, False, True),
        (5, 5, 3, False, False),
        (E, 5, 5, False, True),
    ],
)
def test_newer(held: int | None, version: int | None, delivered: int | None, frozen: bool, newer: bool) -> None:
    assert is_newer(held, restore.Archived(version, delivered), frozen=frozen) is newer


def test_the_ladder_moves_with_the_journal_or_not_at_all(clinic: Migrating) -> None:
    freeze(clinic)
    to = archived(clinic)
    drop(clinic)
    seen: list[restore.Restored] = []

    def settle(conn: Connection, result: restore.Restored) -> list[str]:
        conn.execute("UPDATE cachemig.migration SET phase = 'redis-only'")
        seen.append(result)
        if len(seen) == 1:
            raise Refused("not yet")
        return []

    with pytest.raises(Refused, match="not yet"):
        run(clinic, to, settle=settle)
    assert control.require(clinic.conn, clinic.settings).phase == "dropped"
    run(clinic, to, settle=settle)
    assert control.require(clinic.conn, clinic.settings).phase == "redis-only"
    assert clinic.execute("SELECT phase_from, phase_to, figures ->> 'verified' FROM cachemig.journal"
                          " WHERE command = 'restore' AND NOT figures ? 'unfinished'") == [
        ("dropped", "redis-only", "67")
    ]  # fmt: skip


def test_a_preview_changes_nothing(clinic: Migrating) -> None:
    freeze(clinic)
    to = archived(clinic)
    drop(clinic)
    outlook = finish(restore.preview(clinic.settings, Stop(), str(to)))
    assert outlook.rows == 67
    assert outlook.known
    assert outlook.frozen
    assert not outlook.begun
    assert any("ADD COLUMN" in s for s in outlook.statements)
    assert any("jsonb_path_ops" in s for s in outlook.later)
    assert clinic.execute(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = 'sessions'::regclass AND attname = 'cache'"
    ) == [(0,)]


# Refusals and damage -------------------------------------------------------------------------------------------------


def test_a_damaged_archive_is_found_before_anything_is_changed(clinic: Migrating) -> None:
    freeze(clinic)
    to = archived(clinic)
    drop(clinic)
    data = bytearray(to.read_bytes())
    data[len(data) // 2] ^= 1
    to.write_bytes(data)
    with pytest.raises(Damaged):
        run(clinic, to)
    assert clinic.execute(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = 'sessions'::regclass AND attname = 'cache'"
    ) == [(0,)]


def test_another_table_or_archive_is_refused(clinic: Migrating) -> None:
    freeze(clinic)
    to = archived(clinic)
    with pytest.raises(Refused, match="nothing to restore"):
        run(clinic, to)
    drop(clinic)
    clinic.execute("ALTER TABLE sessions ADD COLUMN cache jsonb; COMMENT ON COLUMN sessions.cache IS '"
                   + restoring.marker("of another") + "'")  # fmt: skip
    with pytest.raises(Refused, match="from another archive"):
        run(clinic, to)
    clinic.execute("ALTER TABLE sessions DROP COLUMN cache, DROP COLUMN id")
    with pytest.raises(TableUnfit, match="no column id any more"):
        run(clinic, to)
    clinic.execute("DROP TABLE sessions")
    with pytest.raises(TableUnfit, match="there is none"):
        run(clinic, to)


def test_a_value_that_does_not_arrive_is_found(clinic: Migrating) -> None:
    """A trigger that fires always changes one value and takes another away."""
    freeze(clinic)
    to = archived(clinic)
    drop(clinic)
    clinic.execute("""
        CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.file_hash = 'key-1' THEN NEW.cache := '[666]'; END IF;
            IF NEW.file_hash = 'key-2' THEN NEW.cache := NULL; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER spoil BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION spoil();
        ALTER TABLE sessions ENABLE ALWAYS TRIGGER spoil;
    """)
    result = run(clinic, to)
    assert not result.finished
    assert {(case.what, case.why) for case in result.cases} == {
        ("id 2", "it holds something else than was archived"),
        ("id 3", "it is NULL"),
    }
    assert result.verified == 65
    comment = clinic.execute("SELECT col_description('sessions'::regclass, attnum) FROM pg_attribute"
                             " WHERE attrelid = 'sessions'::regclass AND attname = 'cache'")[0][0]  # fmt: skip
    assert restoring.is_marker(comment)


def test_triggers_of_the_application_do_not_fire(clinic: Migrating) -> None:
    clinic.execute("""
        ALTER TABLE sessions ADD COLUMN updated_at timestamptz;
        CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN NEW.updated_at := now(); RETURN NEW; END $$;
        CREATE TRIGGER touch BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION touch();
    """)
    freeze(clinic)
    to = archived(clinic)
    drop(clinic)
    assert finish(restore.preview(clinic.settings, Stop(), str(to))).triggers == ("touch",)
    assert run(clinic, to).finished
    assert clinic.execute("SELECT count(*) FROM sessions WHERE updated_at IS NOT NULL") == [(0,)]


# Kinds of tables -----------------------------------------------------------------------------------------------------


def test_json_as_it_was_written(migrating: Migrating) -> None:
    migrating.execute("ALTER TABLE sessions ALTER COLUMN cache DROP DEFAULT, ALTER COLUMN cache TYPE json")
    migrating.begin()
    migrating.execute("""INSERT INTO sessions (file_hash, cache) VALUES ('w', E'  {"b" : 1.10,\\n"a":1e2, "a":2}  ')""")
    migrating.put("x", None)
    freeze(migrating)
    before = texts(migrating)
    to = archived(migrating)
    drop(migrating)
    in_redis(migrating, "x", '{"b" :  1}', E)
    assert run(migrating, to).finished
    assert texts(migrating) == {**before, 2: '{"b" :  1}'}


def test_not_null(migrating: Migrating) -> None:
    migrating.execute("ALTER TABLE sessions ALTER COLUMN cache SET NOT NULL")
    migrating.begin()
    for n in range(5):
        migrating.put(f"key-{n}", {"n": n})
    freeze(migrating)
    before, column = texts(migrating), facts(migrating)
    to = archived(migrating)
    drop(migrating)
    migrating.execute("INSERT INTO sessions (file_hash) VALUES ('late')")
    assert run(migrating, to).finished
    assert texts(migrating) == {**before, 6: "{}"}
    assert facts(migrating) == column
    assert migrating.execute("SELECT count(*) FROM pg_constraint WHERE conname LIKE 'cachemig%'") == [(0,)]


def test_not_null_without_a_default_is_left_to_somebody_who_knows(migrating: Migrating) -> None:
    migrating.execute("ALTER TABLE sessions ALTER COLUMN cache SET NOT NULL, ALTER COLUMN cache DROP DEFAULT")
    migrating.begin()
    migrating.put("key", {"n": 1})
    freeze(migrating)
    to = archived(migrating)
    drop(migrating)
    migrating.execute("INSERT INTO sessions (file_hash) VALUES ('late')")
    result = run(migrating, to)
    assert result.finished
    assert "SET NOT NULL" in result.left_out[0]


def test_a_partitioned_table_with_a_composite_key_of_odd_names(migrating: Migrating) -> None:
    migrating.execute('''
        DROP TABLE sessions;
        CREATE TABLE sessions (
            "odd %s {x} ""y""" timestamptz NOT NULL, id int NOT NULL, file_hash text, cache jsonb DEFAULT '{}',
            seen_at timestamptz, created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            PRIMARY KEY ("odd %s {x} ""y""", id)
        ) PARTITION BY RANGE ("odd %s {x} ""y""");
        CREATE TABLE "p 1" PARTITION OF sessions FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
        CREATE TABLE p2 PARTITION OF sessions FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY LIST (id);
        CREATE TABLE p2a PARTITION OF p2 DEFAULT;
        CREATE INDEX ON sessions (file_hash);
        CREATE INDEX by_n ON sessions ((cache ->> 'n'));
        CREATE INDEX own ON "p 1" USING gin (cache);
    ''')
    migrating.begin()
    migrating.execute("""
        INSERT INTO sessions SELECT '2025-06-01'::timestamptz + n * interval '10 days', n, 'k' || n,
               jsonb_build_object('n', n) FROM generate_series(1, 40) AS n
    """)
    freeze(migrating)
    row = 't."odd %s {x} ""y"""::text || t.id'
    before, column = texts(migrating, row=row), facts(migrating)
    migrating.set(chunk_bytes="200")
    to = archived(migrating)
    drop(migrating)
    migrating.execute("CREATE TABLE p3 PARTITION OF sessions FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')")
    result = run(migrating, to)
    assert result.finished
    assert texts(migrating, row=row) == before
    after = facts(migrating)
    new = [i for i in after["indexes"] if i["on_table"] == "public.p3"]
    assert len(new) == 1
    assert new[0]["parent"] == "public.by_n"
    assert [i for i in after["indexes"] if i not in new] == column["indexes"]
    assert after["column"] == column["column"]
    assert migrating.execute("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == [(0,)]


def test_tables_that_inherit(clinic: Migrating) -> None:
    clinic.execute("CREATE TABLE child () INHERITS (sessions); CREATE INDEX of_child ON child ((cache ->> 'n'))")
    clinic.execute("INSERT INTO child (id, file_hash, cache) VALUES (1, 'of child', '[3]'), (2, 'key-7', '[4]')")
    freeze(clinic)
    row = "t.tableoid::regclass::text || t.id"
    before, column = texts(clinic, row=row), facts(clinic)
    to = archived(clinic)
    drop(clinic)
    assert run(clinic, to).finished
    assert texts(clinic, row=row) == before
    assert facts(clinic) == column


def test_a_table_without_a_primary_key(migrating: Migrating) -> None:
    migrating.execute("ALTER TABLE sessions DROP CONSTRAINT sessions_pkey, ALTER COLUMN id DROP IDENTITY")
    migrating.begin()
    migrating.execute(
        "INSERT INTO sessions (id, file_hash, cache) SELECT n, 'k' || n, '[1]' FROM generate_series(1, 9) AS n"
    )
    freeze(migrating)
    before = texts(migrating)
    to = archived(migrating)
    drop(migrating)
    assert run(migrating, to).finished
    assert texts(migrating) == before


def test_row_level_security(clinic: Migrating) -> None:
    clinic.execute("ALTER TABLE sessions ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    freeze(clinic)
    before = texts(clinic)
    to = archived(clinic)
    drop(clinic)
    role = f"r{os.getpid()}_{time.monotonic_ns()}"
    clinic.execute(f"CREATE ROLE {role} LOGIN BYPASSRLS; ALTER TABLE sessions OWNER TO {role}")
    clinic.execute(
        f"GRANT ALL ON SCHEMA public, cachemig TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA cachemig TO {role}"
    )
    dsn = clinic.dsn
    try:
        clinic.dsn = f"{dsn} user={role}"
        clinic.set()
        # Not allowed to set session_replication_role, and it does not matter.
        assert run(clinic, to).finished
        assert texts(clinic) == before
    finally:
        clinic.dsn = dsn
        clinic.execute(f"ALTER TABLE sessions OWNER TO CURRENT_USER; DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_role_that_is_gone_and_an_exclusion_are_said(migrating: Migrating) -> None:
    role = f"r{os.getpid()}_{time.monotonic_ns()}"
    migrating.execute(f"CREATE ROLE {role}; GRANT SELECT (cache) ON sessions TO {role} WITH GRANT OPTION")
    migrating.execute("ALTER TABLE sessions ADD CONSTRAINT apart EXCLUDE USING btree (cache WITH =)")
    migrating.begin()
    migrating.put("key", {"n": 1})
    freeze(migrating)
    to = archived(migrating)
    drop(migrating)
    migrating.execute(f"DROP ROLE {role}")
    result = run(migrating, to)
    assert result.finished
    grant, exclusion = result.left_out
    assert f"no role '{role}'" in grant
    assert "WITH GRANT OPTION" in grant
    assert "EXCLUDE USING btree (cache WITH =)" in exclusion


def test_with_columns_that_were_dropped_along(clinic: Migrating) -> None:
    freeze(clinic)
    before = texts(clinic)
    to = archived(clinic)
    drop(clinic)
    clinic.execute("ALTER TABLE sessions DROP COLUMN seen_at, DROP COLUMN created_at")
    assert run(clinic, to).finished
    assert texts(clinic) == before


# On a live system ----------------------------------------------------------------------------------------------------


def test_applications_go_on(clinic: Migrating) -> None:
    freeze(clinic)
    before = texts(clinic)
    clinic.set(chunk_bytes="500")
    to = archived(clinic)
    drop(clinic)
    stop = threading.Event()
    slowest, errors = [0.0], []

    def work() -> None:
        with psycopg.connect(clinic.dsn, autocommit=True) as conn:
            while not stop.is_set():
                at = time.monotonic()
                try:
                    conn.execute("UPDATE sessions SET hits = hits + 1 WHERE file_hash = 'key-7'")
                    conn.execute("SELECT file_hash, hits FROM sessions WHERE id < 20").fetchall()
                    conn.execute("INSERT INTO sessions (file_hash) VALUES ('of the writer')")
                except psycopg.Error as exc:
                    errors.append(exc)
                slowest[0] = max(slowest[0], time.monotonic() - at)

    writers = [threading.Thread(target=work) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        result = run(clinic, to)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert not errors
    assert result.finished
    assert slowest[0] < 2
    after = texts(clinic)
    assert {n: after[n] for n in before} == before


def test_a_transaction_that_holds_the_table_is_waited_for(clinic: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    freeze(clinic)
    before = texts(clinic)
    to = archived(clinic)
    drop(clinic)
    waited = []
    with psycopg.connect(clinic.dsn) as blocker:
        blocker.execute("SELECT FROM sessions LIMIT 1")
        step = restore.restore(clinic.settings, clinic.target, Stop(), str(to))
        for progress in step:
            if progress.waiting:
                waited.append(progress.waiting)
                # Nobody queues behind the restore for longer than lock_timeout.
                clinic.execute("SELECT count(*) FROM sessions")
                if len(waited) == 2:
                    blocker.rollback()
                    break
        assert finish(step).finished
    assert "the application goes first" in waited[0]
    assert texts(clinic) == before
    drop(clinic)
    monkeypatch.setattr(restore, "_TRIES", 2)
    with psycopg.connect(clinic.dsn) as blocker:
        blocker.execute("SELECT FROM sessions LIMIT 1")
        with pytest.raises(LockNotGranted):
            run(clinic, to)


KILLED = """
import os, signal, sys, json
from pathlib import Path
from cachemig.config import load
from cachemig.steps import restore
from cachemig.stop import Stop
from cachemig.targets.redis import RedisTarget
flags, environment, to, at = json.loads(sys.argv[1])
settings = load(flags, environment, None)
for number, progress in enumerate(restore.restore(settings, RedisTarget(settings, {}), Stop(), to)):
    if number == at:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_at_any_point_the_same_command_ends_it(clinic: Migrating) -> None:
    freeze(clinic)
    clinic.set(chunk_bytes="1500")
    before, column = texts(clinic), facts(clinic)
    to = archived(clinic)
    drop(clinic)
    in_redis(clinic, "key-1", '{"n": 1001}', E)
    in_redis(clinic, "key-40", None, E)
    flags = {
        "table": "sessions", "column": "cache", "shape": "object", "ttl_from": "seen_at",
        "key_template": f"{clinic.prefix}{{key}}", "chunk_bytes": "1500",
    }  # fmt: skip
    environment = {"CACHEMIG_DSN": clinic.dsn, "CACHEMIG_REDIS_URL": clinic.redis_url}
    at = 0
    while True:
        arguments = json.dumps([flags, environment, str(to), at])
        done = subprocess.run([sys.executable, "-c", KILLED, arguments], capture_output=True, text=True)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        at += 5
    assert at > 20
    expected = {**before, 2: '{"n": 1001}', 41: "{}"}
    assert texts(clinic) == expected
    assert facts(clinic) == column
    assert clinic.execute("SELECT count(*) FROM cachemig.journal WHERE command = 'restore'") == [(1,)]


def test_what_was_written_since_stays(clinic: Migrating) -> None:
    """By an instance that was forgotten: it is not written over, and it is named."""
    freeze(clinic)
    to = archived(clinic)
    drop(clinic)
    for progress in restore.restore(clinic.settings, clinic.target, Stop(), str(to)):
        if progress.done and progress.note is None:
            break
    clinic.execute("UPDATE sessions SET cache = NULL WHERE id = 3")
    clinic.execute("UPDATE sessions SET cache = '[555]' WHERE id = 2")
    result = run(clinic, to)
    assert [case.what for case in result.cases] == ["id 2"]
    assert result.filled == 1
    assert texts(clinic)[2] == "[555]"


def test_an_index_that_was_interrupted_is_built_anew(clinic: Migrating) -> None:
    freeze(clinic)
    column = facts(clinic)
    to = archived(clinic)
    drop(clinic)
    seen = False
    for progress in restore.restore(clinic.settings, clinic.target, Stop(), str(to)):
        if progress.note == "index by_n":
            seen = True
            break
    assert seen
    clinic.execute("CREATE INDEX by_n ON sessions (hits)")
    clinic.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'by_n'::regclass")
    assert run(clinic, to).finished
    assert facts(clinic) == column


# Size ----------------------------------------------------------------------------------------------------------------

PEAK = """
import json, resource, sys
from cachemig.config import load
from cachemig.steps import restore
from cachemig.stop import Stop
from cachemig.targets.redis import RedisTarget
flags, environment, to = json.loads(sys.argv[1])
settings = load(flags, environment, None)
target = RedisTarget(settings, {})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in restore.restore(settings, target, Stop(), to): pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.long
def test_a_large_value_is_never_in_memory(migrating: Migrating) -> None:
    migrating.begin()
    migrating.execute("""
        INSERT INTO sessions (file_hash, cache)
        SELECT 'large-' || n, to_jsonb((
            SELECT string_agg(md5((n * 1000000 + i)::text), '') FROM generate_series(1, 1600000) i))
        FROM generate_series(1, 2) AS n
    """)
    freeze(migrating)
    before = migrating.execute("SELECT id, sha256(convert_to(cache::text, 'UTF8')) FROM sessions")
    to = archived(migrating)
    drop(migrating)
    flags = {"table": "sessions", "column": "cache", "shape": "object", "ttl_from": "seen_at",
             "key_template": f"{migrating.prefix}{{key}}"}  # fmt: skip
    environment = {"CACHEMIG_DSN": migrating.dsn, "CACHEMIG_REDIS_URL": migrating.redis_url}
    arguments = json.dumps([flags, environment, str(to)])
    done = subprocess.run([sys.executable, "-c", PEAK, arguments], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 51_200_000
    assert migrating.execute("SELECT id, sha256(convert_to(cache::text, 'UTF8')) FROM sessions") == before

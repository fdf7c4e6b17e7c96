"""Every committed write that may change a key's value leaves a mark; no other does."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors as pg

from cachemig.errors import LockNotGranted, Refused
from cachemig.steps import dual_write, retry
from tests.integration.conftest import TABLE, Migrating, finish


@pytest.fixture
def captured(migrating: Migrating) -> Migrating:
    """Two rows, capture on, no mark yet."""
    migrating.put("a", {"v": 1})
    migrating.put("b", {"v": 1})
    migrating.begin()
    assert migrating.marks() == []
    return migrating


@pytest.mark.parametrize(
    ("statement", "marks"),
    [
        ("INSERT INTO sessions (file_hash, cache) VALUES ('c', '{\"v\": 1}')", ["c"]),
        ("INSERT INTO sessions (file_hash) SELECT 'k' || n FROM generate_series(1, 3) AS n", ["k1", "k2", "k3"]),
        ("INSERT INTO sessions (cache) VALUES ('{\"v\": 1}')", []),
        ("UPDATE sessions SET cache = '{\"v\": 2}' WHERE file_hash = 'a'", ["a"]),
        ("UPDATE sessions SET cache = NULL WHERE file_hash = 'a'", ["a"]),
        ("UPDATE sessions SET cache = '{}'", ["a", "b"]),
        ("UPDATE sessions SET hits = hits + 1", []),
        ("UPDATE sessions SET seen_at = now()", []),
        ("UPDATE sessions SET file_hash = 'z' WHERE file_hash = 'a'", ["a", "z"]),
        ("UPDATE sessions SET file_hash = NULL WHERE file_hash = 'a'", ["a"]),
        ("UPDATE sessions SET created_at = now() WHERE file_hash = 'a'", ["a"]),
        ("DELETE FROM sessions WHERE file_hash = 'a'", ["a"]),
        ("INSERT INTO sessions (file_hash) VALUES ('a'), ('a')", ["a", "a"]),
    ],
)
def test_a_write_leaves_its_marks(captured: Migrating, statement: str, marks: list[str]) -> None:
    captured.execute(statement)
    assert captured.marks() == marks


def test_truncate_marks_every_key_of_the_table(captured: Migrating) -> None:
    captured.execute("TRUNCATE sessions")
    assert sorted(captured.marks()) == ["a", "b"]


def test_a_rolled_back_write_leaves_no_mark(captured: Migrating) -> None:
    with pytest.raises(ZeroDivisionError), captured.conn.transaction():
        captured.put("c", {"v": 1})
        raise ZeroDivisionError
    with captured.conn.transaction():
        captured.put("d", {"v": 1})
        with pytest.raises(pg.DivisionByZero), captured.conn.transaction():
            captured.put("e", {"v": 1})
            captured.execute("SELECT 1/0")
    assert captured.marks() == ["d"]


def test_a_replica_role_does_not_silence_capture(captured: Migrating) -> None:
    with captured.conn.transaction():
        captured.execute("SET LOCAL session_replication_role = replica")
        captured.execute("DELETE FROM sessions")
    assert captured.marks() == ["a", "b"]


def test_a_writer_without_any_right_on_the_control_schema_is_captured(captured: Migrating) -> None:
    captured.execute("DROP ROLE IF EXISTS cachemig_test_app")
    captured.execute("CREATE ROLE cachemig_test_app")
    try:
        captured.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON sessions TO cachemig_test_app")
        with captured.conn.transaction():
            captured.execute("SET LOCAL ROLE cachemig_test_app")
            captured.execute("UPDATE sessions SET cache = '{\"v\": 9}' WHERE file_hash = 'a'")
            with pytest.raises(pg.InsufficientPrivilege), captured.conn.transaction():
                captured.execute("SELECT * FROM cachemig.change")
        assert captured.marks() == ["a"]
    finally:
        captured.execute("DROP OWNED BY cachemig_test_app")
        captured.execute("DROP ROLE cachemig_test_app")


def test_a_hostile_search_path_does_not_redirect_capture(captured: Migrating) -> None:
    captured.execute("CREATE SCHEMA hostile")
    captured.execute("CREATE TABLE hostile.change (key text)")
    with captured.conn.transaction():
        captured.execute("SET LOCAL search_path = hostile, public")
        captured.execute("DELETE FROM public.sessions WHERE file_hash = 'a'")
    assert captured.marks() == ["a"]


def test_writers_do_not_wait_for_each_other_or_for_a_worker(captured: Migrating) -> None:
    with psycopg.connect(captured.dsn) as other, captured.conn.transaction():
        other.execute("SET lock_timeout = '100ms'")
        captured.execute("UPDATE sessions SET cache = '{\"v\": 2}' WHERE file_hash = 'a'")  # not committed yet
        captured.execute("SELECT id FROM cachemig.change FOR UPDATE")  # as a worker does
        other.execute("INSERT INTO sessions (file_hash, cache) VALUES ('a', '{\"v\": 3}')")
        other.commit()
    assert captured.marks() == ["a", "a"]


def test_a_before_trigger_that_changes_the_column_is_captured(migrating: Migrating) -> None:
    migrating.execute("""
        CREATE FUNCTION clear() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.hits > 5 THEN NEW.cache := '{}'; END IF; RETURN NEW; END $$
    """)
    migrating.execute("CREATE TRIGGER clear BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION clear()")
    migrating.put("a", {"v": 1})
    migrating.begin()
    migrating.execute("UPDATE sessions SET hits = 1")
    assert migrating.marks() == []
    migrating.execute("UPDATE sessions SET hits = 9")  # names another column, changes this one
    assert migrating.marks() == ["a"]


def test_a_json_column_is_compared_by_its_text(migrating: Migrating) -> None:
    migrating.execute("ALTER TABLE sessions ALTER cache DROP DEFAULT, ALTER cache TYPE json")
    migrating.set(capture="compare")
    migrating.put("a", {"v": 1})
    migrating.begin()
    migrating.execute("UPDATE sessions SET cache = cache, hits = 1")
    assert migrating.marks() == []
    migrating.execute("UPDATE sessions SET cache = '{\"v\":  1}'")
    assert migrating.marks() == ["a"]


def test_names_that_need_quoting(migrating: Migrating) -> None:
    migrating.execute("DROP TABLE sessions")
    migrating.execute('CREATE SCHEMA "My Schema"')
    quoted = TABLE.replace("sessions", '"My Schema"."Se""ssions"').replace("file_hash", '"File Hash"')
    migrating.execute(quoted.replace("cache ", '"Ca%che {x}" '))
    migrating.set(table='"My Schema"."Se""ssions"', column="Ca%che {x}", key_column="File Hash")
    migrating.execute('INSERT INTO "My Schema"."Se""ssions" ("File Hash", "Ca%che {x}") VALUES (\'a\', \'{"v": 1}\')')
    migrating.begin()
    migrating.execute('UPDATE "My Schema"."Se""ssions" SET "Ca%che {x}" = \'{"v": 2}\'')
    assert migrating.marks() == ["a"]
    migrating.sync()
    migrating.backfill()
    assert migrating.in_redis() == {"a": b'{"v": 2}'}
    assert migrating.verify().outcome.passed


def test_capture_waits_briefly_for_the_table_and_lets_the_application_through(
    captured: Migrating, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "LOCK_TRIES", 2)
    with psycopg.connect(captured.dsn) as writer:
        writer.execute("UPDATE sessions SET hits = 1")  # holds the table until it commits
        step = dual_write.switch(captured.settings, captured.target, enable=False)
        waiting = next(step)
        assert waiting.waiting is not None
        assert "the application goes first" in waiting.waiting
        with pytest.raises(LockNotGranted):
            finish(step)
    captured.execute("DELETE FROM sessions WHERE file_hash = 'a'")
    assert captured.marks() == ["a"]  # nothing was changed by the tries that failed
    assert finish(dual_write.switch(captured.settings, captured.target, enable=False)).changed


def test_disabling_and_enabling_begins_a_new_epoch_and_reads_every_key_again(captured: Migrating) -> None:
    captured.backfill()
    assert captured.in_redis().keys() == {"a", "b"}
    finish(dual_write.switch(captured.settings, captured.target, enable=False))
    captured.execute("DELETE FROM sessions WHERE file_hash = 'a'")  # nobody notices
    captured.execute("UPDATE sessions SET cache = '{\"v\": 2}' WHERE file_hash = 'b'")
    with pytest.raises(Refused):
        captured.backfill()
    result = finish(dual_write.switch(captured.settings, captured.target, enable=True))
    assert (result.epoch, result.marked) == (1, 2)
    captured.sync()
    assert captured.in_redis() == captured.in_postgres() == {"b": b'{"v": 2}'}
    captured.backfill()
    assert captured.verify().outcome.passed


def test_enabling_twice_changes_nothing(captured: Migrating) -> None:
    again = finish(dual_write.switch(captured.settings, captured.target, enable=True))
    assert (again.changed, again.epoch) == (False, 0)


@pytest.mark.parametrize("trigger", ["cachemig_capture", "cachemig_capture_update", "cachemig_capture_truncate"])
def test_a_lost_trigger_is_noticed_and_put_back_in_a_new_epoch(migrating: Migrating, trigger: str) -> None:
    migrating.set(capture="compare")
    migrating.put("a", {"v": 1})
    migrating.begin()
    migrating.backfill()
    migrating.execute(f"DROP TRIGGER {trigger} ON sessions")
    migrating.execute("UPDATE sessions SET cache = '{\"v\": 2}'")
    with pytest.raises(Refused, match="capture is not installed"):
        migrating.backfill()
    again = finish(dual_write.switch(migrating.settings, migrating.target, enable=True))
    assert (again.changed, again.epoch) == (True, 1)
    migrating.sync()
    assert migrating.in_redis() == migrating.in_postgres()


def test_a_before_trigger_that_comes_later_changes_the_mode_of_capture(captured: Migrating) -> None:
    captured.execute("""
        CREATE FUNCTION clear() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN NEW.cache := '{}'; RETURN NEW; END $$
    """)
    captured.execute("CREATE TRIGGER clear BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION clear()")
    again = finish(dual_write.switch(captured.settings, captured.target, enable=True))
    assert (again.changed, again.mode) == (True, "compare")
    captured.sync()
    captured.execute("UPDATE sessions SET hits = 1 WHERE file_hash = 'a'")
    assert captured.marks() == ["a"]

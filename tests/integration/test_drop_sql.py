"""drop-column: SQL that the strictest linter accepts, all or nothing, and harmless to whoever else uses the table."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from cachemig.errors import Interrupted, LockNotGranted, NotInitialised, Refused
from cachemig.ladder import Phase
from cachemig.source.brownout import end, end_overdue, now
from cachemig.steps import dual_write
from cachemig.steps.drop_column import Files, Format, as_migration, inspection, origin, preview
from cachemig.steps.drop_column.brownout import brownout
from cachemig.steps.drop_column.migration import FORMATS, drop_files
from cachemig.stop import Stop
from tests.conftest import OwnPostgres
from tests.integration.conftest import TABLE, Migrating, finish
from tests.integration.dropping import (
    DONE,
    UNTOUCHED,
    child,
    dropped,
    dropping,
    freeze,
    has_column,
    state,
    until,
)

WEEK_S = 7 * 86400.0
formats = pytest.mark.parametrize("format_", FORMATS)


def files(migrating: Migrating, format_: Format = "sql", **options: object) -> Files:
    with_columns = options.pop("with_columns", ())
    found = inspection(migrating.settings, with_columns=with_columns)  # type: ignore[arg-type]
    options = {"soak_s": WEEK_S, "no_clients": True, "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), **options}
    return drop_files(migrating.settings, found, format_, **options)  # type: ignore[arg-type]


# The linter --------------------------------------------------------------------------------------------------------


def squawk(path: Path, *flags: str) -> list[str]:
    """Names of the rules that are broken."""
    ran = subprocess.run(
        [str(Path(sys.executable).with_name("squawk")), "--reporter", "json", *flags, str(path)],
        capture_output=True,
        text=True,
    )
    found = [str(finding["rule_name"]) for finding in json.loads(ran.stdout)]
    assert ran.returncode == (1 if found else 0), ran.stderr
    return found


def as_sql(written: Files, format_: Format, directory: Path) -> dict[str, Path]:
    """Each file as the SQL that reaches the server."""
    if format_ == "alembic":
        return alembic_sql(directory, written)
    found = {}
    for name, text in ((written.name, written.text), (written.reverse_name, written.reverse)):
        if name is not None and text is not None:
            (directory / name).write_text(text)
            found["reverse" if name == written.reverse_name else "forward"] = directory / name
    return found


@formats
def test_squawk_accepts_the_files_of_every_format(migrating: Migrating, format_: Format, tmp_path: Path) -> None:
    migrating.execute("CREATE INDEX of_it ON sessions ((cache ->> 'a')); COMMENT ON COLUMN sessions.cache IS 'x'")
    written = files(migrating, format_, with_columns=("hits",))
    for path in as_sql(written, format_, tmp_path).values():
        assert squawk(path, *(["--assume-in-transaction"] if format_ == "supabase" else [])) == []


@formats
def test_squawk_accepts_what_a_file_does_inside_its_block(
    migrating: Migrating, format_: Format, tmp_path: Path
) -> None:
    """A linter does not look into a block: here are its statements, as they stand in it."""
    written = files(migrating, format_)
    first = written.text if format_ != "alembic" else files(migrating, "sql").text
    limits = "\n".join(line for line in first.splitlines() if line.startswith("SET LOCAL"))
    for name, statements in (("forward", written.statements), ("back", written.reverse_statements)):
        assert statements
        path = tmp_path / f"{name}.sql"
        path.write_text("\n".join(["BEGIN;", limits, *(s.rstrip(";") + ";" for s in statements), "COMMIT;"]))
        assert squawk(path) == []
    assert all(statement.strip() in written.text.replace("\\\\", "\\") for statement in written.statements)


def test_squawk_accepts_what_the_tool_itself_runs(migrating: Migrating, tmp_path: Path) -> None:
    migrating.begin()
    path = tmp_path / "run.sql"
    path.write_text("BEGIN;\n" + "\n".join(preview(migrating.settings).statements) + "\nCOMMIT;\n")
    assert squawk(path) == []


def test_only_the_drop_of_the_column_is_kept_from_squawk_and_says_why(migrating: Migrating, tmp_path: Path) -> None:
    text = "\n".join(preview(migrating.settings).statements)
    ignored = [line for line in text.splitlines() if "squawk-ignore" in line]
    assert ignored == ["-- squawk-ignore ban-drop-column"]
    before = text.split(ignored[0])[0].splitlines()[-1]
    assert before.startswith("-- "), "the reason"
    path = tmp_path / "bare.sql"
    path.write_text("BEGIN;\n" + text.replace(ignored[0], "") + "\nCOMMIT;\n")
    assert squawk(path) == ["ban-drop-column"], "squawk does look"


@formats
def test_the_sql_is_careful(migrating: Migrating, format_: Format) -> None:
    for text in (files(migrating, format_).text, "\n".join(preview(migrating.settings).statements)):
        code = "\n".join(line.partition("--")[0] for line in text.splitlines())
        assert "CASCADE" not in code.upper()
        assert "DROP COLUMN IF EXISTS" in code
        assert "ALTER TABLE IF EXISTS" in code
        for setting in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "application_name"):
            assert f"SET LOCAL {setting} = " in code
        assert "lock_timeout = 0" not in code


# The step ----------------------------------------------------------------------------------------------------------


def test_it_drops_and_records_in_one_transaction(migrating: Migrating) -> None:
    migrating.execute("CREATE INDEX of_it ON sessions ((cache ->> 'a'))")
    migrating.put("a", {"a": 1})
    freeze(migrating)
    assert state(migrating) == UNTOUCHED
    result = dropped(migrating)
    assert state(migrating) == DONE
    assert result.changed
    assert (result.table, result.columns, result.tries) == ("public.sessions", ("cache",), 1)
    assert result.triggers_removed == ("cachemig_guard", "cachemig_guard_truncate")
    assert result.vanished == ("index public.of_it",)
    assert result.locked_ms < 5000
    assert migrating.execute("SELECT to_regprocedure('cachemig.guard()'), to_regprocedure('cachemig.capture()')") == [
        (None, None)
    ]
    (row,) = migrating.execute("SELECT phase_from, phase_to, figures FROM cachemig.journal ORDER BY id DESC LIMIT 1")
    assert row[:2] == ("redis-only", "dropped")
    assert row[2]["columns"] == ["cache"]
    assert row[2]["table_bytes"] > 0
    for statement in (*row[2]["recreate"]["column"], *row[2]["recreate"]["after_data"]):
        migrating.execute(statement)
    assert has_column(migrating)
    assert migrating.execute("SELECT cache FROM sessions") == [({},)]  # its default
    migrating.execute("ALTER TABLE sessions DROP COLUMN cache")
    again = dropped(migrating)
    assert not again.changed


def test_related_columns_go_in_the_same_pass(migrating: Migrating) -> None:
    freeze(migrating)
    result = dropped(migrating, with_columns=("hits", "seen_at", "never_there"))
    assert result.columns == ("cache", "hits", "seen_at", "never_there")
    assert not any(has_column(migrating, column=name) for name in result.columns)
    assert has_column(migrating, column="file_hash")


def test_a_column_that_somebody_dropped_by_hand_is_recorded(migrating: Migrating) -> None:
    freeze(migrating)
    migrating.execute("DROP TRIGGER cachemig_guard ON sessions")
    migrating.execute("ALTER TABLE sessions DROP COLUMN cache")
    assert dropped(migrating).changed
    assert state(migrating) == DONE


@pytest.mark.parametrize("shape", ["partitioned", "inherited"])
def test_partitioned_and_inherited_tables(migrating: Migrating, shape: str) -> None:
    if shape == "partitioned":
        migrating.execute("""
            CREATE TABLE parts (id int, file_hash text, cache jsonb, hits int, seen_at timestamptz,
                created_at timestamptz) PARTITION BY LIST (hits);
            CREATE TABLE part PARTITION OF parts FOR VALUES IN (0);
        """)
    else:
        migrating.execute("CREATE TABLE parts (LIKE sessions)")
    migrating.execute("CREATE INDEX ON parts (file_hash)")
    migrating.set(table="parts")
    freeze(migrating)
    if shape == "inherited":  # doctor lets none be migrated that has heirs, but one may come later
        migrating.execute("CREATE TABLE part () INHERITS (parts)")
    assert preview(migrating.settings).inspection.children == ("part",)
    assert dropped(migrating).changed
    assert state(migrating, "parts") == DONE
    assert not has_column(migrating, "part")


def test_a_policy_on_other_columns_stays_in_force(migrating: Migrating) -> None:
    migrating.execute("""
        ALTER TABLE sessions ENABLE ROW LEVEL SECURITY;
        CREATE POLICY mine ON sessions USING (hits = 0);
        CREATE POLICY by_cache ON sessions FOR UPDATE USING (cache IS NOT NULL);
    """)
    freeze(migrating)
    with pytest.raises(Refused, match="policy by_cache on public"):
        dropped(migrating)
    assert state(migrating) == UNTOUCHED
    migrating.execute("ALTER POLICY by_cache ON sessions USING (hits = 0)")
    assert dropped(migrating).changed
    assert migrating.execute("SELECT count(*) FROM pg_policy") == [(2,)]


def test_what_depends_on_it_refuses_and_is_never_dropped(migrating: Migrating) -> None:
    migrating.execute("CREATE VIEW v AS SELECT cache FROM sessions")
    migrating.execute("CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT 'of the cache' $$")
    freeze(migrating)
    with pytest.raises(Refused, match=r"view public\.v \(blocks\); function text f\(\) \(breaks\)") as refusal:
        dropped(migrating)
    assert refusal.value.hint
    assert state(migrating) == UNTOUCHED
    migrating.execute("DROP VIEW v")
    with pytest.raises(Refused, match=r"f\(\)"):
        dropped(migrating)
    assert preview(migrating.settings, accept=("f()",)).in_the_way == ()
    assert dropped(migrating, accept=("f()",)).changed


def test_what_came_to_depend_on_it_at_the_last_moment_is_refused_by_postgres(migrating: Migrating) -> None:
    freeze(migrating)

    def at_the_last_moment(conn: psycopg.Connection[tuple[object, ...]]) -> None:
        conn.execute("CREATE VIEW v AS SELECT cache FROM sessions")

    with pytest.raises(Exception, match="other objects depend on it"):
        dropped(migrating, gate_inside=at_the_last_moment)
    assert state(migrating) == UNTOUCHED


def test_a_gate_is_asked_under_the_lease_and_refuses(migrating: Migrating) -> None:
    freeze(migrating)
    held = []

    def gate(conn: psycopg.Connection[tuple[object, ...]]) -> None:
        held.append(conn.execute("SELECT count(*) FROM cachemig.lease WHERE name = 'ladder'").fetchone())
        raise Refused("not yet")

    with pytest.raises(Refused, match="not yet"):
        dropped(migrating, gate=gate)
    assert held == [(1,)]
    assert state(migrating) == UNTOUCHED
    assert migrating.execute("SELECT count(*) FROM cachemig.lease") == [(0,)]


def test_only_from_redis_only_and_only_with_a_migration(migrating: Migrating) -> None:
    with pytest.raises(NotInitialised):
        dropped(migrating)
    migrating.begin()
    with pytest.raises(Refused, match="dual-write"):
        dropped(migrating)
    assert has_column(migrating)


def test_another_run_that_took_the_lease_meanwhile_wins(migrating: Migrating) -> None:
    freeze(migrating)

    def robbed(conn: psycopg.Connection[tuple[object, ...]]) -> None:
        migrating.execute("UPDATE cachemig.lease SET fence = fence + 1, owner = 'another:1:2'")

    with pytest.raises(Exception, match="another run"):
        dropped(migrating, gate=robbed)
    assert state(migrating) == UNTOUCHED


def test_postgrest_is_told_in_the_same_transaction(migrating: Migrating) -> None:
    freeze(migrating)
    with psycopg.connect(migrating.dsn, autocommit=True, application_name="PostgREST 12") as listener:
        listener.execute("LISTEN pgrst")
        assert dropped(migrating).notified
        (notice,) = listener.notifies(timeout=5, stop_after=1)
        assert (notice.channel, notice.payload) == ("pgrst", "reload schema")
        assert not listener.execute("SELECT FROM pg_attribute WHERE attname = 'cache'").rowcount


# A blocker ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def blocker(migrating: Migrating) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(migrating.dsn, application_name="nightly report") as conn:
        conn.execute("SELECT count(*) FROM sessions")
        yield conn


def test_a_blocker_is_named_not_killed_and_given_up_for(migrating: Migrating) -> None:
    freeze(migrating)
    with blocker(migrating) as report:
        step = dropping(migrating, tries=2)
        waiting = []
        with pytest.raises(LockNotGranted, match=r"each of 2 tries.*nightly report, idle in transaction") as given_up:
            for progress in step:
                waiting.append(progress.waiting or "")
        assert given_up.value.hint
        assert any("nightly report" in text and f"pid {report.info.backend_pid} " in text for text in waiting)
        assert report.execute("SELECT 'alive'").fetchone() == ("alive",)
        assert state(migrating) == UNTOUCHED
    result = dropped(migrating)
    assert result.changed
    assert state(migrating) == DONE


def test_it_goes_on_when_the_blocker_is_gone(migrating: Migrating) -> None:
    freeze(migrating)
    with blocker(migrating) as report:
        step = dropping(migrating, tries=20)
        assert "nightly report" in (next(step).waiting or "")
        report.rollback()
        result = finish(step)
    assert result.changed
    assert "nightly report" in result.held_up_by[0]


def test_a_prepared_transaction_that_holds_it_is_named(migrating: Migrating, own_postgres: OwnPostgres) -> None:
    server = own_postgres({"max_prepared_transactions": "2"})
    with contextlib.closing(
        Migrating(server.dsn(), migrating.redis_url, migrating.prefix, migrating.directory)
    ) as other:
        other.execute(TABLE)
        freeze(other)
        other.execute("BEGIN")
        other.execute("INSERT INTO sessions (file_hash) VALUES ('x')")
        other.execute("PREPARE TRANSACTION 'forgotten'")
        (session,) = inspection(other.settings).sessions
        assert session.who == "prepared transaction forgotten of postgres"
        with pytest.raises(LockNotGranted, match="prepared transaction"):
            dropped(other, tries=1)
        other.execute("COMMIT PREPARED 'forgotten'")
        assert dropped(other).changed


def test_a_stop_while_it_waits_changes_nothing(migrating: Migrating) -> None:
    freeze(migrating)
    stop = Stop()
    migrating.set(lock_timeout="60s")
    with blocker(migrating):
        step = dropping(migrating, stop=stop)
        next(step)
        stop.request(signal.SIGINT)
        with pytest.raises(Interrupted):
            finish(step)
    assert state(migrating) == UNTOUCHED
    assert migrating.execute("SELECT count(*) FROM cachemig.lease") == [(0,)]


def test_a_second_ctrl_c_while_it_waits_leaves_nothing_behind(migrating: Migrating) -> None:
    freeze(migrating)
    with blocker(migrating):
        step = dropping(migrating)
        next(step)
        step.close()  # as KeyboardInterrupt in the caller does
        assert migrating.execute("SELECT count(*) FROM pg_locks WHERE NOT granted") == [(0,)]
        assert migrating.execute("SELECT count(*) FROM cachemig.lease") == [(0,)]
    assert state(migrating) == UNTOUCHED


def test_readers_and_writers_that_do_not_name_it_see_no_error_and_wait_no_longer_than_the_lock_timeout(
    migrating: Migrating,
) -> None:
    migrating.set(lock_timeout="300ms")
    for n in range(200):
        migrating.put(f"k{n}", {"n": n})
    freeze(migrating)
    ended, errors, slowest, done = threading.Event(), [], [0.0], [0]

    def application(statement: str) -> None:
        with psycopg.connect(migrating.dsn, autocommit=True) as conn:
            while not ended.is_set():
                began = time.monotonic()
                try:
                    conn.execute(statement, prepare=True)
                except psycopg.Error as exc:
                    errors.append(repr(exc))
                slowest[0] = max(slowest[0], time.monotonic() - began)
                done[0] += 1

    threads = [
        threading.Thread(target=application, args=(statement,))
        for statement in (
            "SELECT id, file_hash, hits FROM sessions ORDER BY id LIMIT 20",
            "UPDATE sessions SET hits = hits + 1 WHERE id % 50 = 0",
            "INSERT INTO sessions (file_hash) VALUES ('new')",
        )
    ]
    with blocker(migrating) as report:
        for thread in threads:
            thread.start()
        until(lambda: done[0] > 50)
        step = dropping(migrating, tries=20)
        while "goes first" not in (next(step).waiting or ""):  # one try was in vain, with everybody queueing behind it
            pass
        report.rollback()
        assert finish(step).changed
        before = done[0]
        until(lambda: done[0] > before + 50)
        ended.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert slowest[0] < 0.3 + 0.7, "lock_timeout, and what two busy cores add"
    assert state(migrating) == DONE


# Killed ------------------------------------------------------------------------------------------------------------

SLEEPS = {
    "in the drop itself": (
        "CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); END $$;"
        "CREATE EVENT TRIGGER slow ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION slow()"
    ),
    "while it is recorded": (
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$;"
        "CREATE TRIGGER slow BEFORE INSERT ON cachemig.journal FOR EACH ROW EXECUTE FUNCTION slow()"
    ),
    "in the commit": (
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$;"
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON cachemig.journal DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION slow()"
    ),
}


@pytest.mark.parametrize("point", ["while it waits for the lock", *SLEEPS])
def test_killed_at_each_point_it_is_done_or_not_done(migrating: Migrating, point: str) -> None:
    freeze(migrating)
    with contextlib.ExitStack() as stack:
        if point in SLEEPS:
            migrating.execute(SLEEPS[point])
        else:
            stack.enter_context(blocker(migrating))
            migrating.set(lock_timeout="2s")
        process = child(migrating)
        waits = "wait_event = 'PgSleep'" if point in SLEEPS else "wait_event_type = 'Lock'"
        query = f"SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'cachemig%%' AND {waits}"
        until(lambda: migrating.execute(query))
        process.kill()
        process.communicate()
    gone = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'cachemig%%' AND datname = current_database()"
    until(lambda: not migrating.execute(gone))
    # Postgres finishes a commit that it was told; anything before it comes to nothing.
    assert state(migrating) == (DONE if point == "in the commit" else UNTOUCHED)
    if point in SLEEPS:
        migrating.execute("DROP EVENT TRIGGER IF EXISTS slow; DROP FUNCTION slow() CASCADE")
    migrating.set(lock_timeout="2s")
    assert dropped(migrating).changed == (point != "in the commit"), "the dead owner's lease is taken over"
    assert state(migrating) == DONE


# Migration files ---------------------------------------------------------------------------------------------------


def run_file(dsn: str, text: str, *, in_pieces: bool = False) -> list[str]:
    """Runs a file over a connection of its own, as psql does (`in_pieces`: each statement by itself); its notices."""
    notices: list[str] = []
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        if in_pieces:
            block = text[text.index("DO $cachemig$") : text.rindex("$cachemig$;") + len("$cachemig$;")]
            before, after = text.split(block)
            for statement in (*before.split(";\n"), block, *after.split(";\n")):
                if any(line and not line.startswith("--") for line in statement.splitlines()):
                    conn.execute(statement)
        else:
            conn.execute(text)
    return [n for n in notices if n.startswith("cachemig")]


def alembic_project(directory: Path, written: Files) -> Path:
    (directory / "versions").mkdir(exist_ok=True)
    (directory / "versions" / written.name).write_text(written.text)
    (directory / "script.py.mako").write_text("")
    (directory / "env.py").write_text(
        "from alembic import context\n"
        "from sqlalchemy import create_engine\n"
        "from sqlalchemy.pool import NullPool\n"
        "url = context.config.get_main_option('sqlalchemy.url')\n"
        "if context.is_offline_mode():\n"
        "    context.configure(url=url, dialect_opts={'paramstyle': 'named'})\n"
        "    with context.begin_transaction():\n"
        "        context.run_migrations()\n"
        "else:\n"
        "    engine = create_engine(url, poolclass=NullPool, creator=context.config.attributes['creator'])\n"
        "    with engine.connect() as connection:\n"
        "        context.configure(connection=connection)\n"
        "        with context.begin_transaction():\n"
        "            context.run_migrations()\n"
        "    engine.dispose()\n"
    )
    return directory


def alembic_sql(directory: Path, written: Files) -> dict[str, Path]:
    """What alembic makes of the file, by its --sql."""
    import io

    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(alembic_project(directory, written)))
    config.set_main_option("path_separator", "os")
    config.set_main_option("sqlalchemy.url", "postgresql+psycopg://")
    revision = written.text.partition('revision = "')[2].partition('"')[0]
    found = {}
    for name in ("forward", "reverse"):
        config.output_buffer = io.StringIO()
        if name == "forward":
            command.upgrade(config, "head", sql=True)
        else:
            command.downgrade(config, f"{revision}:base", sql=True)
        text = config.output_buffer.getvalue()
        # its own table is not ours to judge
        kept = [part for part in text.split("\n\n") if "alembic_version" not in part]
        found[name] = directory / f"{name}.sql"
        found[name].write_text("\n\n".join(kept))
    return found


def alembic_run(directory: Path, written: Files, dsn: str, *, down: bool = False) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(alembic_project(directory, written)))
    config.set_main_option("path_separator", "os")
    config.set_main_option("sqlalchemy.url", "postgresql+psycopg://")
    config.attributes["creator"] = lambda: psycopg.connect(dsn)
    if down:
        command.downgrade(config, "base")
    else:
        command.upgrade(config, "head")


def apply(migrating: Migrating, format_: Format, written: Files, directory: Path, *, down: bool = False) -> None:
    if format_ == "alembic":
        alembic_run(directory, written, migrating.dsn, down=down)
        return
    text = written.reverse if down else written.text
    assert text is not None
    run_file(migrating.dsn, text)


@formats
def test_a_file_drops_when_its_gates_are_met_and_its_reverse_brings_the_column_back(
    migrating: Migrating, format_: Format, tmp_path: Path
) -> None:
    migrating.execute("COMMENT ON COLUMN sessions.cache IS 'note: 100 % :cached'")
    freeze(migrating)
    written = files(migrating, format_)
    apply(migrating, format_, written, tmp_path)
    assert state(migrating) == DONE
    ((who,),) = migrating.execute("SELECT who FROM cachemig.journal ORDER BY id DESC LIMIT 1")
    assert who.endswith(" (migration file)")
    apply(migrating, format_, written, tmp_path, down=True)
    assert has_column(migrating)
    assert migrating.execute(
        "SELECT col_description('sessions'::regclass, attnum) FROM pg_attribute"
        " WHERE attrelid = 'sessions'::regclass AND attname = 'cache'"
    ) == [("note: 100 % :cached",)]
    assert migrating.execute("SELECT phase FROM cachemig.migration") == [("dropped",)], "restore takes that step"


@formats
def test_on_a_database_without_a_migration_a_file_does_nothing(
    migrating: Migrating, format_: Format, tmp_path: Path
) -> None:
    migrating.put("a", {"a": 1})
    written = files(migrating, format_)
    apply(migrating, format_, written, tmp_path)
    apply(migrating, format_, written, tmp_path, down=True)
    assert migrating.execute("SELECT cache FROM sessions") == [({"a": 1},)]
    migrating.execute("DROP TABLE sessions")  # a preview branch may not even have the table
    if format_ != "alembic":
        assert "it stays" in run_file(migrating.dsn, written.text)[0]


def test_a_file_run_statement_by_statement_outside_a_transaction_is_still_all_or_nothing(migrating: Migrating) -> None:
    freeze(migrating)
    written = files(migrating, "supabase")
    assert "BEGIN;" not in written.text.split("DO $cachemig$")[0]
    migrating.execute("CREATE VIEW v AS SELECT cache FROM sessions")
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        run_file(migrating.dsn, written.text, in_pieces=True)
    assert state(migrating) == UNTOUCHED
    migrating.execute("DROP VIEW v")
    run_file(migrating.dsn, written.text, in_pieces=True)
    assert state(migrating) == DONE
    assert run_file(migrating.dsn, written.text)[0].startswith("cachemig: nothing to do")


def test_supabase_sends_a_file_as_one_pipeline(migrating: Migrating) -> None:
    """As its command line does: extended protocol, one Sync at the end, the history's row behind it."""
    freeze(migrating)
    text = files(migrating, "supabase").text
    block = text[text.index("DO $cachemig$") :]
    limits = [line for line in text.splitlines() if line.startswith("SET LOCAL")]
    migrating.execute("CREATE TABLE history (version text)")
    with psycopg.connect(migrating.dsn, autocommit=True) as conn, conn.pipeline():
        for statement in (*limits, block, "INSERT INTO history VALUES ('1')"):
            conn.execute(statement)
    assert state(migrating) == DONE
    assert migrating.execute("SELECT * FROM history") == [("1",)]


SPOILED = {
    "phase": ("UPDATE cachemig.migration SET phase = 'cutover'", "refused in phase cutover"),
    "table": (
        'UPDATE cachemig.migration SET settings = settings || \'{"table": "another"}\'',
        "of another table or column",
    ),
    "soak": ("UPDATE cachemig.journal SET at = now() - interval '6 days' WHERE command = 'stop-writes'", "soak"),
    "late write": (
        "INSERT INTO cachemig.late_write (key, kind, writer, outcome) VALUES ('a', 'write', 'x', 'delivered')",
        "with the last late write",
    ),
    "late write that waits": (
        "INSERT INTO cachemig.late_write (at, key, kind, writer) VALUES (now() - interval '8 days', 'a', 'write', 'x')",
        "1 late writes wait",
    ),
    "row that went and waits": (
        "INSERT INTO cachemig.late_write (key, kind, writer) VALUES ('a', 'delete', 'x')",
        "1 late writes wait",
    ),
    "no verify": ("DELETE FROM cachemig.journal WHERE command = 'verify'", "no verification"),
    "failed verify": (
        "UPDATE cachemig.journal SET figures = figures || '{\"passed\": false}' WHERE command = 'verify'",
        "no verification",
    ),
    "old verify": (
        "UPDATE cachemig.journal SET at = now() - interval '2 h' WHERE command = 'verify'",
        "no verification",
    ),
    "verify of a sample": (
        "UPDATE cachemig.journal SET figures = figures || '{\"sample\": 10}' WHERE command = 'verify'",
        "no verification",
    ),
    "verify of another epoch": ("UPDATE cachemig.journal SET epoch = 7 WHERE command = 'verify'", "no verification"),
    "verify with other settings": (
        "UPDATE cachemig.journal SET figures = figures || '{\"fingerprint\": \"x\"}' WHERE command = 'verify'",
        "no verification",
    ),
    "no archive": ("DELETE FROM cachemig.archive", "no archive was read back"),
    "archive not read back": ("UPDATE cachemig.archive SET checked_at = NULL", "no archive was read back"),
    "archive of before": (
        "UPDATE cachemig.archive SET checked_at = now() - interval '9 days'",
        "no archive was read back",
    ),
    "archive of before a late write": (
        "INSERT INTO cachemig.late_write (at, key, kind, writer, outcome) VALUES (now() - interval '7 days 1 h', 'a',"
        " 'write', 'x', 'delivered'); UPDATE cachemig.archive SET checked_at = now() - interval '7 days 2 h'",
        "or last written",
    ),
    "nobody is registered": ("", "no live application"),
    "client": (
        "INSERT INTO cachemig.client (id, name, phase, lease_until) VALUES ('1', 'old app', 'cutover', now() + '1 h')",
        "older phase: old app",
    ),
    "client that has taken up nothing": (
        "INSERT INTO cachemig.client (id, name, lease_until) VALUES ('1', 'new app', now() + '1 h')",
        "older phase: new app",
    ),
    "function": ("CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT 'cache' $$", "functions mention"),
    "view": ("CREATE VIEW v AS SELECT cache FROM sessions", "other objects depend on it"),
}


@pytest.mark.parametrize("gate", list(SPOILED))
def test_each_gate_of_a_file_refuses(migrating: Migrating, gate: str) -> None:
    freeze(migrating)
    written = files(migrating, no_clients=gate != "nobody is registered")
    spoil, why = SPOILED[gate]
    migrating.execute(spoil or "SELECT")
    with pytest.raises(psycopg.Error, match=why):
        run_file(migrating.dsn, written.text)
    assert has_column(migrating)
    assert state(migrating)[2:] == (0, 2)


def test_a_dead_client_and_an_accepted_function_do_not_refuse(migrating: Migrating) -> None:
    freeze(migrating)
    migrating.execute(
        "INSERT INTO cachemig.client (id, name, phase, lease_until)"
        " VALUES ('1', 'old', 'cutover', now() - interval '1 h')"
    )
    migrating.execute("CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT 'cache' $$")
    written = files(migrating, accept=["f()"])
    assert "Accepted by name" in written.text
    run_file(migrating.dsn, written.text)
    assert state(migrating) == DONE


def test_a_file_waits_for_a_blocker_in_short_tries_and_then_gives_up(migrating: Migrating) -> None:
    migrating.set(lock_timeout="50ms")
    freeze(migrating)
    text = files(migrating).text.replace("tries >= 10", "tries >= 3")
    with blocker(migrating):
        with pytest.raises(psycopg.errors.LockNotAvailable, match="in use at every try"):
            run_file(migrating.dsn, text)
        assert state(migrating) == UNTOUCHED
    run_file(migrating.dsn, text)
    assert state(migrating) == DONE


@formats
def test_any_step_can_be_a_file(migrating: Migrating, format_: Format, tmp_path: Path) -> None:
    """dual-write's own statements: bodies in dollar quotes, comments, several statements in one text."""
    migrating.begin()
    finish(dual_write.switch(migrating.settings, migrating.target, enable=False))
    forward = dual_write.statements(migrating.settings, enable=True)
    written = as_migration(
        forward,
        format_,
        "dual-write",
        ["DROP TRIGGER cachemig_capture ON sessions", "DROP TRIGGER cachemig_capture_truncate ON sessions;"],
        command="dual-write",
        start=Phase.IDLE,
        end=Phase.DUAL_WRITE,
    )
    for path in as_sql(written, format_, tmp_path).values():
        assert squawk(path, *(["--assume-in-transaction"] if format_ == "supabase" else [])) == []
    triggers = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'cachemig%%'"
    apply(migrating, format_, written, tmp_path)
    assert migrating.execute(triggers) == [(2,)]
    assert migrating.execute("SELECT phase FROM cachemig.migration") == [("dual-write",)]
    if format_ != "alembic":  # which remembers what it ran
        apply(migrating, format_, written, tmp_path)
    assert migrating.execute("SELECT count(*) FROM cachemig.journal WHERE who LIKE '%% (migration file)'") == [(1,)]
    apply(migrating, format_, written, tmp_path, down=True)
    assert migrating.execute(triggers) == [(0,)]
    assert migrating.execute("SELECT phase FROM cachemig.migration") == [("idle",)]
    migrating.execute("UPDATE cachemig.migration SET phase = 'cutover'")
    with pytest.raises(Exception, match="wants phase idle and not cutover"):
        apply(migrating, format_, written, tmp_path)
    assert migrating.execute(triggers) == [(0,)]


def test_the_file_that_begins_a_migration_does_so_in_its_own_database_alone(migrating: Migrating) -> None:
    here = origin(migrating.settings)
    for made_for, made in (
        (replace(here, system_identifier="1"), False),
        (replace(here, database="another"), False),
        (here, True),
    ):
        written = as_migration(["CREATE TABLE begun (a int)"], "sql", "init", ["DROP TABLE begun"], origin=made_for)
        notices = run_file(migrating.dsn, written.text)
        assert (migrating.execute("SELECT to_regclass('begun') IS NOT NULL") == [(True,)]) is made
        assert bool(notices) is not made
    run_file(migrating.dsn, written.reverse or "")
    assert migrating.execute("SELECT to_regclass('begun')") == [(None,)]


def test_odd_names_in_a_file(migrating: Migrating, tmp_path: Path) -> None:
    migrating.execute("""
        CREATE SCHEMA "Odd $s$ :x"; CREATE TABLE "Odd $s$ :x"."T %a'" (file_hash text, "c' :(x)%" jsonb);
    """)
    migrating.set(table="Odd $s$ :x.T %a'", column="c' :(x)%", order_by="", ttl="0")
    written = files(migrating, "alembic")
    migrating.begin()
    migrating.execute("UPDATE cachemig.migration SET phase = 'redis-only', changed_at = now() - interval '8 days'")
    with pytest.raises(Exception, match="no verification"):
        alembic_run(tmp_path, written, migrating.dsn)


# Brownout ----------------------------------------------------------------------------------------------------------


def test_a_brownout_hides_the_column_and_brings_it_back(migrating: Migrating) -> None:
    migrating.put("a", {"a": 1})
    migrating.execute("CREATE VIEW v AS SELECT cache FROM sessions")
    freeze(migrating)
    before = migrating.execute("SELECT tgname, tgenabled FROM pg_trigger WHERE tgname LIKE 'cachemig%%' ORDER BY 1")
    step = brownout(migrating.settings, Stop(), seconds=0.6, baseline_s=0)
    next(step)
    assert "hidden" in (next(step).note or "")
    with pytest.raises(psycopg.errors.UndefinedColumn):
        migrating.execute("SELECT cache FROM sessions")
    migrating.execute("SELECT * FROM v")
    migrating.execute("INSERT INTO sessions (file_hash) VALUES ('b')")
    migrating.execute("UPDATE sessions SET hits = hits + 1")
    with psycopg.connect(migrating.dsn, autocommit=True) as conn:
        hidden = now(conn)
    assert hidden is not None
    assert not hidden.overdue
    with pytest.raises(Refused, match="hidden by a brownout"):
        dropped(migrating)
    result = finish(step)
    assert result.quiet
    assert result.ended_early is None
    assert migrating.execute("SELECT cache FROM sessions WHERE file_hash = 'a'") == [({"a": 1},)]
    after = migrating.execute("SELECT tgname, tgenabled FROM pg_trigger WHERE tgname LIKE 'cachemig%%' ORDER BY 1")
    assert after == before
    assert state(migrating)[:3] == (True, "redis-only", 0)


def test_a_brownout_ends_early_when_transactions_fail(migrating: Migrating) -> None:
    freeze(migrating)
    step = brownout(migrating.settings, Stop(), seconds=60, baseline_s=0)
    next(step)
    next(step)
    for _ in range(30):
        with contextlib.suppress(psycopg.Error), psycopg.connect(migrating.dsn, autocommit=True) as old:
            old.execute("SELECT cache FROM sessions")
    result = finish(step)
    assert result.ended_early is not None
    assert "rolled back" in result.ended_early
    assert not result.quiet
    assert has_column(migrating)


def test_a_brownout_ends_early_when_applications_report_errors(migrating: Migrating) -> None:
    freeze(migrating)
    step = brownout(migrating.settings, Stop(), seconds=60, baseline_s=0)
    next(step)
    next(step)
    migrating.execute(
        "INSERT INTO cachemig.client (id, name, phase, lease_until, stats) VALUES ('1', 'dashboard', 'redis-only',"
        ' now(), \'{"reads": {"column": {"error": 2}}}\')'
    )
    result = finish(step)
    assert result.ended_early == "applications report 2 errors (dashboard)"
    assert has_column(migrating)


def test_a_stopped_brownout_is_over_at_once(migrating: Migrating) -> None:
    freeze(migrating)
    stop = Stop()
    step = brownout(migrating.settings, stop, seconds=60, baseline_s=0)
    next(step)
    next(step)
    stop.request(signal.SIGTERM)
    assert finish(step).ended_early == "stopped on request"
    assert has_column(migrating)
    step = brownout(migrating.settings, Stop(), seconds=60, baseline_s=0)
    next(step)
    next(step)
    step.close()
    assert has_column(migrating)


def test_a_killed_brownout_is_ended_by_the_next_command_after_its_time(migrating: Migrating) -> None:
    freeze(migrating)
    process = child(migrating, 2.0)
    until(lambda: not has_column(migrating))
    process.kill()
    process.communicate()
    assert end_overdue(migrating.settings) is None, "its time is not over"
    assert not has_column(migrating)
    until(lambda: end_overdue(migrating.settings) == "cache")
    assert has_column(migrating)
    assert end_overdue(migrating.settings) is None
    assert migrating.execute("SELECT 1 FROM pg_trigger WHERE tgname LIKE 'cachemig%%' AND tgenabled = 'D'") == []


def test_a_brownout_can_be_ended_at_any_moment_by_anybody(migrating: Migrating) -> None:
    assert end(migrating.settings) is None
    freeze(migrating)
    process = child(migrating, 60.0)
    until(lambda: not has_column(migrating))
    process.kill()
    process.communicate()
    ended = []
    threads = [threading.Thread(target=lambda: ended.append(end(migrating.settings))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, ended)) == ["None", "None", "cache"]
    assert has_column(migrating)


def test_a_brownout_only_where_the_drop_would_be_allowed(migrating: Migrating) -> None:
    migrating.begin()
    with pytest.raises(Refused, match="dual-write"):
        finish(brownout(migrating.settings, Stop(), seconds=1))
    assert has_column(migrating)

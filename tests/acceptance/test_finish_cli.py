"""The last steps as an operator types them: stop-writes, archive, drop-column, reclaim, restore."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import subprocess
import time
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import pytest
from redis import Redis

from tests.acceptance.conftest import Ended, Operator

Table = psycopg.Connection[tuple[Any, ...]]
COLUMN = "analytics_cache"


class Quick(Operator):
    """Types commands too, in this very process: these tests are of many commands, and starting each takes a second."""

    def __call__(self, *arguments: str, **environment: str | None) -> Ended:
        from cachemig.cli.app import app

        out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
        with (
            mock.patch.dict(os.environ, self.environment, clear=True),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            os.chdir(self.directory)
            try:
                app(list(arguments), prog_name="cachemig")
            finally:
                os.chdir(before)
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, out.getvalue(), err.getvalue())


@pytest.fixture
def operator(tmp_path: Path, database: str, redis_url: str, prefix: str) -> Operator:
    return Quick(tmp_path, database, redis_url, prefix)


def test_an_archive_is_written_compared_and_forgets(operator: Operator, table: Table, tmp_path: Path) -> None:
    operator.fine("init")
    operator.fine("dual-write")
    place = tmp_path / "cache.zst"
    written = operator.fine("archive", "--to", str(place))
    assert "written, read back and compared: 2 rows" in written.out
    assert "still written to" in written.out
    assert place.stat().st_mode & 0o777 == 0o600
    again = json.loads(operator.fine("archive", "--to", str(place), "--json").out)
    assert (again["rows"], again["only_checked"]) == (2, True)
    assert table.execute("SELECT count(*) FROM cachemig.archive WHERE checked_at IS NOT NULL").fetchone() != (0,)
    assert "1 rows of 1 keys" in operator.fine("archive", "--to", str(place), "--forget", "h1").out
    place.write_bytes(place.read_bytes()[:-10])
    assert operator("archive", "--to", str(place)).code == 1


def test_reclaim_shows_by_default_and_refuses_while_the_column_is_there(operator: Operator, table: Table) -> None:
    shown = operator.fine("reclaim")
    assert "nothing is to be gained yet" in shown.out
    assert json.loads(operator.fine("reclaim", "--json").out)["column_is_there"] is True
    assert operator("reclaim", "--method", "vacuum-full", "--execute").code == 3
    assert operator("reclaim", "--method", "magic").code == 2
    table.execute("ALTER TABLE therapy_sessions DROP COLUMN analytics_cache")
    done = operator.fine("reclaim", "--method", "vacuum-full", "--execute")
    assert "before" in done.out


@pytest.fixture
def ready(operator: Operator, table: Table) -> Operator:
    """All reads come from Redis; the soaks last no time, openly."""
    (operator.directory / "cachemig.toml").write_text(
        'soak_cutover = "0s"\nsoak_redis_only = "0s"\nlock_timeout = "1s"\n'
    )
    for command in (["init"], ["dual-write"], ["backfill"], ["verify"]):
        operator.fine(*command)
    operator.fine("cutover", "--percent", "100", "--no-clients")
    return operator


@pytest.fixture
def frozen(ready: Operator) -> Operator:
    ready.fine("stop-writes", "--execute", "--no-clients", "--accept-expiring", "2")
    return ready


def state(table: Table) -> tuple[Any, ...]:
    """Everything that a command could have changed in Postgres."""
    columns = table.execute(
        "SELECT attname, attisdropped, col_description(attrelid, attnum) FROM pg_attribute"
        " WHERE attrelid = 'therapy_sessions'::regclass AND attnum > 0 ORDER BY attnum"
    ).fetchall()
    triggers = table.execute("SELECT tgname, tgenabled FROM pg_trigger ORDER BY 1").fetchall()
    control = [
        table.execute(f"SELECT xmin::text, t::text FROM cachemig.{name} AS t ORDER BY 2").fetchall()
        for name in ("migration", "journal", "archive", "late_write", "lease")
    ]
    return columns, triggers, control, table.execute("SELECT xmin::text, t::text FROM therapy_sessions AS t").fetchall()


def phase(table: Table) -> str:
    row = table.execute("SELECT phase FROM cachemig.migration").fetchone()
    assert row is not None
    return str(row[0])


def has_column(table: Table) -> bool:
    query = "SELECT FROM pg_attribute WHERE attrelid = 'therapy_sessions'::regclass AND attname = %s"
    return table.execute(query, [COLUMN]).rowcount == 1


def test_from_stop_writes_to_the_drop_and_back(ready: Operator, table: Table, redis: Redis, prefix: str) -> None:
    texts: dict[int, str] = dict(table.execute(f"SELECT id, {COLUMN}::text FROM therapy_sessions").fetchall())
    refused = ready("stop-writes")
    assert refused.code == 3
    assert "NOT MET" in refused.out
    assert "next: cachemig stop-writes --no-clients" in refused.out
    stopped = ready.fine("stop-writes", "--execute", "--no-clients", "--accept-expiring", "2")
    assert "phase redis-only" in stopped.out

    refused = ready("drop-column", "--execute", "--confirm", COLUMN, "--no-clients")
    assert refused.code == 3
    assert "hint: cachemig verify" in refused.err
    assert "→ cachemig archive --to PLACE" in refused.err
    ready.fine("verify")
    ready.fine("archive", "--to", "cache.zst")
    before = state(table)
    shown = ready.fine("drop-column", "--no-clients", "--with", "last_accessed_at")
    assert "DROP COLUMN IF EXISTS" in shown.out
    assert "last_accessed_at: in no archive" in shown.out
    command = f"cachemig drop-column --with last_accessed_at --no-clients --execute --confirm {COLUMN}"
    assert f"then {command}" in shown.out
    document = ready.fine("drop-column", "--no-clients", "--json").document
    assert all(gate["met"] for gate in document["gates"])
    assert document["inspection"]["table"] == "public.therapy_sessions"
    assert state(table) == before

    in_a_process = Operator(ready.directory, ready.dsn, ready.redis_url, prefix)
    assert "is dropped" in in_a_process.fine("drop-column", "--execute", "--confirm", COLUMN, "--no-clients").out
    assert (phase(table), has_column(table)) == ("dropped", False)
    assert "was so already" in ready.fine("drop-column", "--execute", "--confirm", COLUMN).out
    assert "was dropped before" in ready.fine("drop-column").out
    done = ready.fine("reclaim", "--method", "vacuum-full", "--execute", "--json").document
    assert done["after"]["database"] > 0

    before = state(table)
    assert "nothing is changed yet" in ready.fine("restore", "--from", "cache.zst").out
    outlook = ready.fine("restore", "--from", "cache.zst", "--json").document
    assert (outlook["rows"], outlook["known"], outlook["frozen"]) == (2, True, True)
    assert state(table) == before
    restored = in_a_process.fine("restore", "--from", "cache.zst", "--execute", "--json").document
    assert (restored["finished"], restored["filled"]) == (True, 2)
    assert dict(table.execute(f"SELECT id, {COLUMN}::text FROM therapy_sessions").fetchall()) == texts
    assert phase(table) == "redis-only"
    again = ready("restore", "--from", "cache.zst")
    assert (again.code, "nothing to restore" in again.err) == (3, True)
    assert "phase cutover, 100 %" in ready.fine("rollback").out
    assert "phase dual-write" in ready.fine("rollback").out
    ready.fine("dual-write", "--disable")
    ready.fine("clean", "--execute")
    assert dict(table.execute(f"SELECT id, {COLUMN}::text FROM therapy_sessions").fetchall()) == texts


def test_what_is_bad_after_a_restore_is_told_by_the_exit_code(frozen: Operator, table: Table) -> None:
    frozen.fine("verify")
    frozen.fine("archive", "--to", "cache.zst")
    frozen.fine("drop-column", "--execute", "--confirm", COLUMN, "--no-clients")
    table.execute(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.analytics_cache := '[6]';"
        " RETURN NEW; END $$; CREATE TRIGGER spoil BEFORE UPDATE ON therapy_sessions FOR EACH ROW"
        " EXECUTE FUNCTION spoil(); ALTER TABLE therapy_sessions ENABLE ALWAYS TRIGGER spoil"
    )
    bad = frozen("restore", "--from", "cache.zst", "--without-redis", "--execute")
    assert bad.code == 3
    assert "is not back yet" in bad.out
    assert "it holds something else than was archived" in bad.out
    assert phase(table) == "dropped"
    gone = frozen("restore", "--from", "elsewhere.zst", "--execute")
    assert gone.code == 1
    assert "elsewhere.zst" in gone.err


def test_the_drop_wants_the_columns_name_and_changes_nothing_without_it(frozen: Operator, table: Table) -> None:
    frozen.fine("verify")
    frozen.fine("archive", "--to", "cache.zst")
    before = state(table)
    unasked = frozen("drop-column", "--execute", "--no-clients")
    assert (unasked.code, f"--confirm {COLUMN}" in unasked.err) == (2, True)
    wrong = frozen("drop-column", "--execute", "--no-clients", "--confirm", "therapy_sessions")
    assert (wrong.code, "nothing is changed" in wrong.err) == (2, True)
    for flags in (["--brownout", "1s"], ["--end-brownout"], ["--format", "sql"]):
        assert frozen("drop-column", "--execute", "--confirm", COLUMN, *flags).code == 2
    assert frozen("drop-column", "--confirm", COLUMN).code == 2
    assert frozen("drop-column", "--brownout", "soon").code == 2
    assert frozen("drop-column", "--with", "file_hash").code == 2
    assert state(table) == before
    assert typed(frozen, "drop-column", "--execute", "--no-clients", answer="something") == 2
    assert state(table) == before
    assert typed(frozen, "drop-column", "--execute", "--no-clients", answer=COLUMN) == 0
    assert not has_column(table)


def typed(operator: Operator, *arguments: str, answer: str) -> int:
    """The exit code at a terminal, where the question for the column's name is answered."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        operator.command(*arguments),
        cwd=operator.directory,
        env=operator.environment | {"TERM": "xterm"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    while b"Type the column" not in shown:
        shown += os.read(master, 1000)
    os.write(master, f"{answer}\n".encode())
    try:
        while os.read(master, 1000):
            pass
    except OSError:  # the other end is closed
        pass
    os.close(master)
    return process.wait(30)


def test_what_depends_on_the_column_is_shown_with_what_to_do(frozen: Operator, table: Table) -> None:
    table.execute(
        "CREATE VIEW v AS SELECT analytics_cache FROM therapy_sessions;"
        "CREATE INDEX i ON therapy_sessions ((analytics_cache ->> 'a'));"
        "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT 'analytics_cache' $$;"
    )
    shown = frozen("drop-column")
    assert shown.code == 3
    for text in ("in the way", "public.v", "DROP VIEW and CREATE VIEW", "f()", "goes with it", "CREATE INDEX i ON"):
        assert text in shown.out, text
    table.execute("DROP VIEW v")
    accepted = frozen("drop-column", "--accept-mention", "f()", "--json").document
    assert accepted["in_the_way"] == []
    assert accepted["accepted"] == ["f()"]


def test_before_redis_only_it_shows_what_it_would_meet_and_names_the_way(operator: Operator, table: Table) -> None:
    for commands, way in (
        ([], "cachemig init"),
        (["init"], "cachemig dual-write"),
        (["dual-write"], "cachemig cutover"),
    ):
        for command in commands:
            operator.fine(command)
        shown = operator("drop-column")
        assert shown.code == 3
        assert "would drop analytics_cache" in shown.out
        assert f"next: {way}" in shown.out
    refused = operator("drop-column", "--execute", "--confirm", COLUMN)
    assert (refused.code, "not allowed in phase" in refused.err) == (3, True)
    assert operator("drop-column", "--brownout", "1s").code == 3


@pytest.mark.long
def test_a_brownout_and_one_that_was_killed(frozen: Operator, table: Table) -> None:
    done = frozen.fine("drop-column", "--brownout", "1s", "--json").document
    assert (done["quiet"], done["ended_early"]) == (True, None)
    assert has_column(table)
    assert "no brownout" in frozen.fine("drop-column", "--end-brownout").out
    for ended_by in ("--end-brownout", "time"):
        process = frozen.start("drop-column", "--brownout", "60s" if ended_by == "--end-brownout" else "2s")
        while has_column(table):
            time.sleep(0.05)
        process.kill()
        process.communicate()
        hidden = frozen("drop-column")
        if ended_by == "--end-brownout":
            assert (hidden.code, "cachemig drop-column --end-brownout" in hidden.err) == (3, True)
            assert "has its name again" in frozen.fine("drop-column", "--end-brownout").out
        else:
            time.sleep(2)
            assert f"a brownout was over: {COLUMN} has its name again" in frozen.fine("status").err
        assert has_column(table)


@pytest.mark.parametrize("format_", ["sql", "supabase", "alembic"])
def test_steps_as_files(operator: Operator, table: Table, format_: str) -> None:
    flags = ["--format", format_, "--output", "files"]
    assert operator("init", "--format", "csv").code == 2
    assert "have the pipeline run it" in operator.fine("init", *flags).out
    assert table.execute("SELECT to_regclass('cachemig.migration')").fetchone() == (None,)
    operator.fine("init")
    written = operator.fine("dual-write", *flags, "--json").document
    assert phase(table) == "idle"
    assert Path(operator.directory, written["file"]).exists()
    assert (written["reverse"] is None) is (format_ == "alembic")
    assert "present" not in operator.fine("drop-column", *flags).out
    assert operator("stop-writes", *flags).code == 3, "it looks at what expires, and that is for cutover"
    assert operator("dual-write", "--disable", *flags).code == 2
    assert len(list(Path(operator.directory, "files").iterdir())) == (3 if format_ == "alembic" else 6)

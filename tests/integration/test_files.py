"""Steps as files that a pipeline runs: what each does, refuses, and leaves to the tool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cachemig.errors import ConfigError, Refused
from cachemig.source import capture
from cachemig.source.table import inspect
from cachemig.steps import cutover, dual_write, files, init, status, stop_writes
from cachemig.steps.drop_column.migration import FORMATS, Files, Format
from cachemig.stop import Stop
from tests.integration.conftest import Migrating, finish
from tests.integration.dropping import freeze, has_column
from tests.integration.test_drop_sql import alembic_run, alembic_sql, run_file, squawk

OPENLY = {"soak_cutover": "0s", "soak_redis_only": "0s"}


@dataclass
class Pipeline:
    """Writes files and runs them, as a pipeline does: it has no Redis."""

    m: Migrating
    format: Format

    @property
    def asked(self) -> files.Wanted:
        found = files.wanted(self.format, self.m.directory, None)
        assert found is not None
        return found

    def init(self) -> files.Written:
        return files.write_init(self.m.settings, self.m.target, self.asked)

    def dual_write(self) -> files.Written:
        return files.write_dual_write(self.m.settings, self.m.target, self.asked)

    def stop_writes(self, **options: Any) -> files.Written:
        m = self.m
        options = {"no_clients": True, "accept_expiring": 100, **options}
        return finish(files.write_stop_writes(m.settings, m.target, Stop(), self.asked, "forward", **options))

    def drop(self, **options: Any) -> files.Written:
        return files.write_drop(self.m.settings, self.asked, **{"no_clients": True, **options})

    def run(self, written: files.Written, *, down: bool = False, dsn: str | None = None) -> list[str]:
        """Its notices."""
        where = dsn or self.m.dsn
        if self.format == "alembic":
            alembic_run(self.project(written), self.as_files(written), where, down=down)
            return []
        path = written.reverse if down else written.file
        assert path is not None
        return run_file(where, Path(path).read_text())

    def project(self, written: files.Written) -> Path:
        """A folder of its own for each, for alembic runs all that lie there."""
        folder = self.m.directory / f"of-{written.step}"
        folder.mkdir(exist_ok=True)
        return folder

    def as_files(self, written: files.Written) -> Files:
        path = Path(written.file)
        text = path.read_text()
        return Files(path.name, text, None, None, (), ())

    def linted(self, written: files.Written) -> list[str]:
        """What squawk finds in the file and its reverse."""
        paths = [Path(p) for p in (written.file, written.reverse) if p is not None]
        if self.format == "alembic":
            paths = list(alembic_sql(self.project(written), self.as_files(written)).values())
        flags = ["--assume-in-transaction"] if self.format == "supabase" else []
        return [rule for path in paths for rule in squawk(path, *flags)]


@pytest.fixture(params=FORMATS)
def pipeline(request: pytest.FixtureRequest, migrating: Migrating) -> Pipeline:
    migrating.set(**OPENLY)
    return Pipeline(migrating, request.param)


@pytest.fixture
def plain(migrating: Migrating) -> Pipeline:
    migrating.set(**OPENLY)
    return Pipeline(migrating, "sql")


def phase(m: Migrating) -> tuple[Any, ...]:
    return m.execute("SELECT phase, epoch, frozen_epoch FROM cachemig.migration")[0]


def triggers(m: Migrating) -> set[str]:
    return {row[0] for row in m.execute("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'cachemig%%'")}


def forget_alembic(m: Migrating) -> None:
    """Each file is a project of its own here; in a real one they are one chain of revisions."""
    m.execute("DROP TABLE IF EXISTS alembic_version")


def test_a_whole_migration_by_files_with_the_tool_for_the_data_alone(pipeline: Pipeline) -> None:
    m = pipeline.m
    for key in "abc":
        m.put(key, {"v": key})

    written = pipeline.init()
    assert pipeline.linted(written) == []
    pipeline.run(written)
    assert phase(m) == ("idle", -1, None)
    assert not init.init(m.settings, m.target, m.directory).created, "it is what the tool makes"
    forget_alembic(m)

    written = pipeline.dual_write()
    assert pipeline.linted(written) == []
    pipeline.run(written)
    assert phase(m) == ("dual-write", 0, None)
    assert triggers(m) == {"cachemig_capture", "cachemig_capture_truncate"}
    assert m.execute("SELECT redis_run, redis_marker, timeline FROM cachemig.migration") == [(None, None, None)]
    m.put("d", {"v": "d"})
    assert m.sync().epochs == 1, "the servers are known from here on"
    assert phase(m) == ("dual-write", 1, None)
    assert m.sync().epochs == 0
    m.backfill()
    assert m.verify().outcome.passed
    assert m.in_redis() == m.in_postgres()
    assert not finish(dual_write.switch(m.settings, m.target, enable=True)).changed
    finish(cutover.cutover(m.settings, m.target, Stop(), 100, no_clients=True))
    forget_alembic(m)

    written = pipeline.stop_writes()
    assert pipeline.linted(written) == []
    assert written.reverse is None
    m.execute("UPDATE sessions SET cache = '{\"v\": \"last\"}' WHERE file_hash = 'a'")
    pipeline.run(written)
    assert phase(m) == ("redis-only", 2, 1)
    assert capture.guarded(m.conn, inspect(m.conn, m.settings)) == "forward"
    assert finish(stop_writes.stop_writes(m.settings, m.target, Stop(), "forward")).drained.changes == 1
    assert m.in_redis()["a"] == b'{"v": "last"}'
    ((who, figures),) = m.execute("SELECT who, figures FROM cachemig.journal WHERE phase_to = 'redis-only'"
                                  " AND phase_from = 'cutover'")  # fmt: skip
    assert who.endswith(" (migration file)")
    assert figures["guard"] == "forward"
    if pipeline.format == "alembic":
        with pytest.raises(Exception, match="what was written since is in Redis alone"):
            pipeline.run(written, down=True)
    else:
        assert "`cachemig rollback` copies it back" in Path(written.file).read_text()
    forget_alembic(m)
    assert m.verify().outcome.passed

    written = pipeline.drop()
    assert pipeline.linted(written) == []
    with pytest.raises(Exception, match="no archive was read back"):
        pipeline.run(written)
    assert has_column(m)


def test_reverses(pipeline: Pipeline) -> None:
    m = pipeline.m
    m.put("a", {"v": 1})
    begun = pipeline.init()
    pipeline.run(begun)
    forget_alembic(m)
    on = pipeline.dual_write()
    pipeline.run(on)
    if pipeline.format != "alembic":  # which goes by what it ran
        with pytest.raises(Exception, match="refused in phase dual-write"):
            pipeline.run(begun, down=True)
        assert any("done before" in notice for notice in pipeline.run(on))
    pipeline.run(on, down=True)
    assert (phase(m)[0], triggers(m)) == ("idle", set())
    if pipeline.format != "alembic":
        pipeline.run(on)
        assert phase(m)[:2] == ("dual-write", 1), "another epoch"
        pipeline.run(on, down=True)
        pipeline.run(begun, down=True)
        assert m.execute("SELECT to_regnamespace('cachemig')") == [(None,)]
        pipeline.run(begun, down=True)
    assert m.execute("SELECT cache FROM sessions") == [({"v": 1},)]


def test_without_a_migration_they_do_nothing(pipeline: Pipeline) -> None:
    """A preview branch: another database, that may hold the table or not."""
    m = pipeline.m
    m.begin()
    m.put("a", {"v": 1})
    m.backfill()
    m.verify()
    finish(cutover.cutover(m.settings, m.target, Stop(), 100, no_clients=True))
    stop = pipeline.stop_writes()
    m.execute("UPDATE cachemig.migration SET phase = 'idle'")
    on = pipeline.dual_write()
    m.execute("DROP TRIGGER cachemig_capture ON sessions; DROP TRIGGER cachemig_capture_truncate ON sessions")
    m.execute("DROP SCHEMA cachemig CASCADE")
    before = m.execute("SELECT count(*) FROM pg_class")
    begun = pipeline.init()
    other = psycopg.conninfo.make_conninfo(m.dsn, dbname=f"{m.conn.info.dbname}_branch")
    m.execute(f'CREATE DATABASE "{m.conn.info.dbname}_branch" TEMPLATE template0')
    try:
        for written in (begun, on, stop):
            notices = pipeline.run(written, dsn=other)
            assert pipeline.format == "alembic" or "nothing is done" in notices[0]
            with psycopg.connect(other, autocommit=True) as conn:
                assert conn.execute("SELECT to_regnamespace('cachemig')").fetchone() == (None,)
                conn.execute("DROP TABLE IF EXISTS alembic_version")
    finally:
        m.execute(f'DROP DATABASE "{m.conn.info.dbname}_branch" WITH (FORCE)')
    for written in (on, stop):
        pipeline.run(written)
        forget_alembic(m)
    assert m.execute("SELECT count(*) FROM pg_class") == before


SPOILED = {
    "phase": ("UPDATE cachemig.migration SET phase = 'dual-write'", "refused in phase dual-write"),
    "percent": ("UPDATE cachemig.migration SET percent = 50", "with 50 % of the keys"),
    "soak": ("UPDATE cachemig.migration SET changed_at = now() - interval '23 hours'", "soak is not over"),
    "table": ('UPDATE cachemig.migration SET settings = settings || \'{"column": "x"}\'', "of another table or column"),
    "no verify": ("DELETE FROM cachemig.journal WHERE command = 'verify'", "no verification"),
    "old verify": ("UPDATE cachemig.journal SET at = now() - interval '2 h'", "no verification"),
    "verify of another epoch": ("UPDATE cachemig.migration SET epoch = epoch + 1", "no verification"),
    "failed verify": (
        "UPDATE cachemig.journal SET figures = figures || '{\"passed\": false}' WHERE command = 'verify'",
        "no verification",
    ),
    "lag": ("INSERT INTO cachemig.change (key, at) VALUES ('a', now() - interval '1 minute')", "sync lags"),
    "client at another percentage": (
        "INSERT INTO cachemig.client (id, name, phase, percent, lease_until)"
        " VALUES ('1', 'old app', 'cutover', 50, now() + '1 h')",
        "older phase: old app",
    ),
    "nobody is registered": ("SELECT", "no live application"),
}


@pytest.mark.parametrize("gate", list(SPOILED))
def test_each_gate_of_stop_writes_refuses(migrating: Migrating, gate: str) -> None:
    m = migrating
    m.put("a", {"v": 1})
    m.begin()
    m.backfill()
    m.verify()
    finish(cutover.cutover(m.settings, m.target, Stop(), 100, no_clients=True))
    m.execute("UPDATE cachemig.migration SET changed_at = now() - interval '25 hours'")
    written = Pipeline(m, "sql").stop_writes(no_clients=gate != "nobody is registered")
    spoil, why = SPOILED[gate]
    m.execute(spoil)
    before = phase(m)
    with pytest.raises(psycopg.Error, match=why):
        run_file(m.dsn, Path(written.file).read_text())
    assert (phase(m), triggers(m)) == (before, {"cachemig_capture", "cachemig_capture_truncate"})


def test_entries_that_expire_are_looked_at_when_the_file_is_written(plain: Pipeline) -> None:
    m = plain.m
    m.put("a", {"v": 1})
    m.begin()
    m.backfill()
    m.verify()
    finish(cutover.cutover(m.settings, m.target, Stop(), 100, no_clients=True))
    with pytest.raises(Refused, match="gate expiring") as refused:
        plain.stop_writes(accept_expiring=0)
    assert "--accept-expiring 1" in (refused.value.hint or "")
    assert list(m.directory.glob("cachemig_*")) == []


def test_a_backfill_that_was_begun_keeps_the_reverse_of_dual_write_from_running(plain: Pipeline) -> None:
    m = plain.m
    m.begin()
    on = plain.dual_write()
    m.execute("INSERT INTO cachemig.chunk (id, state, attempts) VALUES (1, 'running', 1)")
    with pytest.raises(psycopg.Error, match="a backfill was begun"):
        plain.run(on, down=True)
    assert phase(m)[0] == "dual-write"


def test_a_file_waits_for_the_table_in_short_tries(plain: Pipeline) -> None:
    m = plain.m
    m.set(lock_timeout="50ms", **OPENLY)
    init.init(m.settings, m.target, m.directory)
    written = plain.dual_write()
    text = Path(written.file).read_text().replace("tries >= 10", "tries >= 3")
    with psycopg.connect(m.dsn) as report:
        report.execute("UPDATE sessions SET hits = 1; LOCK TABLE sessions")
        with pytest.raises(psycopg.errors.LockNotAvailable, match="in use at every try"):
            run_file(m.dsn, text)
        assert (phase(m)[0], triggers(m)) == ("idle", set())
    run_file(m.dsn, text)
    assert phase(m)[0] == "dual-write"


def test_status_tells_what_a_file_did(plain: Pipeline) -> None:
    plain.run(plain.init())
    plain.run(plain.dual_write())
    found = status.status(plain.m.settings)
    assert (found.phase, found.capture) == ("dual-write", True)
    assert found.by.endswith(" (migration file)")


def test_what_is_not_its_own_is_not_written_over(plain: Pipeline) -> None:
    freeze(plain.m)
    written = plain.drop()
    assert Path(plain.drop().file).read_text() == Path(written.file).read_text(), "it is written anew"
    Path(written.file).write_text("-- somebody's\n")
    with pytest.raises(Refused, match="is no file of cachemig"):
        plain.drop()
    assert Path(written.file).read_text() == "-- somebody's\n"


def test_what_is_in_the_way_now_is_said(plain: Pipeline) -> None:
    freeze(plain.m)
    plain.m.execute("CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT 'cache' $$")
    assert plain.drop().in_the_way == ("function text f()",)
    assert plain.drop(accept=("f()",)).in_the_way == ()


@pytest.mark.parametrize(
    ("format_", "folder", "revision"),
    [(None, Path(), None), (None, None, "a"), ("csv", None, None), ("sql", None, "a")],
)
def test_flags_that_do_not_fit(format_: str | None, folder: Path | None, revision: str | None) -> None:
    with pytest.raises(ConfigError):
        files.wanted(format_, folder, revision)

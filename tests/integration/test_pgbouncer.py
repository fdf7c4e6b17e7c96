"""Through PgBouncer: a whole migration with several workers and writers, and nothing left in the server's sessions.

Skipped where there is no `pgbouncer` (Debian: apt-get install pgbouncer).
"""

from __future__ import annotations

import json
import os
import pwd
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cachemig.demo.servers import UNPRIVILEGED_USER
from tests.acceptance.conftest import Operator
from tests.chaos.table import TABLE
from tests.conftest import fresh_directory

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
PORT = 6432  # of a Unix socket in a directory of its own, so it is free
POOL = {"transaction": 3, "session": 30}
"""Server sessions: in transaction mode fewer than clients, so that each is handed from one to the next."""
ROWS = 1500

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed"),
]


class Pooler:
    """One PgBouncer in front of one database."""

    def __init__(self, directory: Path, dsn: str, mode: str) -> None:
        behind = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if value}
        self.mode = mode
        self.direct = dsn
        self.dsn = make_conninfo(host=str(directory), hostaddr="", port=PORT, dbname=behind["dbname"], user="any")
        self._console = make_conninfo(self.dsn, dbname="pgbouncer")
        self._log = directory / "pgbouncer.log"
        server = " ".join(f"{name}={behind[name]}" for name in ("host", "port", "user", "password") if name in behind)
        configuration = directory / "pgbouncer.ini"
        configuration.write_text(f"""
[databases]
{behind["dbname"]} = {server} dbname={behind["dbname"]}

[pgbouncer]
listen_addr =
listen_port = {PORT}
unix_socket_dir = {directory}
auth_type = any
admin_users = any
pool_mode = {mode}
default_pool_size = {POOL[mode]}
""")
        account = pwd.getpwnam(UNPRIVILEGED_USER) if os.geteuid() == 0 else None  # pgbouncer does not run as root
        if account is not None:
            for path in (directory, configuration):
                os.chown(path, account.pw_uid, account.pw_gid)
        assert PROGRAM is not None
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [PROGRAM, str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                user=None if account is None else account.pw_uid,
                group=None if account is None else account.pw_gid,
                extra_groups=None if account is None else [],
            )

    def __enter__(self) -> Pooler:
        wait_for(self._answers)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def shown(self, what: str) -> list[dict[str, Any]]:
        """The answer of the admin console."""
        with psycopg.connect(self._console, autocommit=True) as conn:
            cursor = conn.execute(f"SHOW {what}".encode())
            assert cursor.description is not None
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            with psycopg.connect(self.dsn, connect_timeout=5):
                return True
        except psycopg.OperationalError:
            return False


@pytest.fixture(params=list(POOL))
def pooler(request: pytest.FixtureRequest, database: str) -> Iterator[Pooler]:
    with fresh_directory() as directory, Pooler(directory, database, request.param) as running:
        yield running


class Writer(threading.Thread):
    """An application behind the pooler. It leaves nothing in its session either, or the test would blame cachemig."""

    def __init__(self, dsn: str, seed: int) -> None:
        super().__init__(name=f"writer-{seed}")
        self.dsn = dsn
        self.chance = random.Random(seed)
        self.committed = 0
        self.error: BaseException | None = None
        self._end = threading.Event()

    def end(self) -> None:
        self._end.set()
        self.join()

    def run(self) -> None:
        chance = self.chance
        writes: list[Callable[[], tuple[str, tuple[Any, ...]]]] = [
            lambda: (
                "UPDATE therapy_sessions SET analytics_cache = %s WHERE file_hash = %s",
                (self.value(), self.key()),
            ),
            lambda: (
                "INSERT INTO therapy_sessions (file_hash, analytics_cache) VALUES (%s, %s)",
                (self.key(), self.value()),
            ),
            lambda: ("UPDATE therapy_sessions SET analytics_cache = '{}' WHERE file_hash = %s", (self.key(),)),
            lambda: ("UPDATE therapy_sessions SET cache_hits = cache_hits + 1 WHERE file_hash = %s", (self.key(),)),
            lambda: ("DELETE FROM therapy_sessions WHERE file_hash = %s", (self.key(),)),
        ]
        try:
            with psycopg.connect(self.dsn, autocommit=True, prepare_threshold=None) as conn:
                while not self._end.wait(chance.expovariate(80)):
                    try:
                        with conn.transaction():
                            for _ in range(chance.choice([1, 1, 3])):
                                conn.execute(*chance.choices(writes, [50, 25, 8, 10, 7])[0]())
                        self.committed += 1
                    except psycopg.errors.DeadlockDetected:  # two writers with several rows each
                        continue
        except BaseException as exc:
            self.error = exc

    def key(self) -> str:
        return f"k{self.chance.randrange(400)}"

    def value(self) -> str:
        return json.dumps({"n": self.chance.random(), "pad": "x" * int(self.chance.paretovariate(0.8) * 20 % 30_000)})


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def settings(conn: psycopg.Connection[Any]) -> dict[str, str]:
    """All but those that come into being with the first function in PL/pgSQL."""
    query = "SELECT name, setting FROM pg_settings WHERE name NOT LIKE 'plpgsql.%'"
    return dict(conn.execute(query).fetchall())


def sessions_of_the_server(pooler: Pooler, stack: ExitStack) -> dict[int, psycopg.Connection[Any]]:
    """A client in each of the server's sessions: so many transactions as are open at once have one each."""
    found = {}
    for _ in range(POOL[pooler.mode]):
        conn = stack.enter_context(psycopg.connect(pooler.dsn, application_name="next", prepare_threshold=None))
        row = conn.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        found[int(row[0])] = conn
    return found


def test_a_migration_through_a_pooler(pooler: Pooler, tmp_path: Path, redis_url: str, prefix: str) -> None:
    with psycopg.connect(pooler.direct, autocommit=True) as conn:
        conn.execute(TABLE)
        conn.execute(
            "INSERT INTO therapy_sessions (file_hash, analytics_cache) SELECT 'k' || n %% 400,"
            " jsonb_build_object('n', n, 'pad', repeat('x', n %% 3000)) FROM generate_series(1, %s) AS n",
            (ROWS,),
        )
    operator = Operator(tmp_path, pooler.dsn, redis_url, prefix)
    operator.environment["CACHEMIG_SHAPE"] = "object"
    operator.environment["CACHEMIG_CHUNK_BYTES"] = "32KiB"
    operator.environment["CACHEMIG_BATCH_BYTES"] = "16KiB"
    writers = [Writer(pooler.dsn, seed) for seed in range(3)]
    try:
        for writer in writers:
            writer.start()
        operator.fine("init")
        operator.fine("dual-write")
        operator.fine("pause")
        workers = [operator.start("sync", "--follow"), operator.start("backfill"), operator.start("backfill")]
        try:
            time.sleep(2)
            status = operator.fine("status", "--json").document
            assert status["orders"]["paused_by"]
            assert status["chunks"]["done"] == 0
            assert all(worker.poll() is None for worker in workers)
            operator.fine("resume")
            for backfill in workers[1:]:
                out, err = backfill.communicate(timeout=90)
                assert backfill.returncode == 0, out + err
            assert operator.fine("status", "--json").document["phase"] == "dual-write"
            operator.fine("verify")  # while writers write and sync delivers
            workers[0].send_signal(signal.SIGTERM)
            out, err = workers[0].communicate(timeout=60)
            assert workers[0].returncode == 0, out + err
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
                    worker.communicate()
    finally:
        for writer in writers:
            writer.end()
    assert [writer.error for writer in writers] == [None] * 3
    assert sum(writer.committed for writer in writers) > 100
    operator.fine("sync", "--once")
    verified = operator.fine("verify", "--json").document
    assert verified["passed"]
    assert verified["cases"] == []
    _expect_nothing_left(pooler)


def _expect_nothing_left(pooler: Pooler) -> None:
    """What one client did to a session of the server, the next one does not see."""
    (pool,) = [row for row in pooler.shown("STATS") if row["database"] != "pgbouncer"]
    assert pool["total_xact_count"] > 100  # it all went this way
    with ExitStack() as stack:
        fresh = stack.enter_context(psycopg.connect(pooler.direct, application_name="next"))
        fresh_settings = settings(fresh)
        sessions = sessions_of_the_server(pooler, stack)
        assert len(sessions) == POOL[pooler.mode]
        for pid, conn in sessions.items():
            assert settings(conn) == fresh_settings
            for what in ("pg_prepared_statements", "pg_listening_channels()"):
                assert conn.execute(f"SELECT * FROM {what}".encode()).fetchall() == []
            locks = "SELECT locktype, mode FROM pg_locks WHERE pid = %s AND locktype = 'advisory'"
            assert conn.execute(locks, (pid,)).fetchall() == []
            held = "SELECT name FROM pg_cursors WHERE is_holdable"
            assert conn.execute(held).fetchall() == []
            own = conn.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind = 'r'"
            ).fetchall()
            # The one thing that stays: an empty table of this name, which whoever comes next may find there or not.
            assert own in ([], [("cachemig_load",)])
            if own:
                assert conn.execute("SELECT count(*) FROM pg_temp.cachemig_load").fetchall() == [(0,)]
                assert pooler.mode == "transaction"

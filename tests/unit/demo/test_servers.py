"""The throw-away servers: that they serve, and above all that they go away and leave the machine as it was."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from redis import Redis

from cachemig.demo import servers as module
from cachemig.demo.servers import PostgresServer, RedisServer, ServerError, postgres_bin_dir, what_root_does

Postgres = Callable[..., PostgresServer]
Valkey = Callable[..., RedisServer]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="is about what happens as root")


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cachemig-", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o711)  # for the directories in it that a Postgres started by root is to reach
        yield directory


def one(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def alive(pid: int) -> bool:
    """A zombie is not alive; a killed child of a killed parent may stay one for a moment."""
    state = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.strip().startswith("Z")


def ends(pid: int, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Without the last resort of waiting for the time-out and sending SIGKILL."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < module.STOP_TIMEOUT_S / 2


# Postgres -----------------------------------------------------------------------------------------------------------


def test_postgres_is_utf8_and_knows_letters_beyond_ascii(own_postgres: Postgres) -> None:
    server = own_postgres()
    assert one(server.dsn(), "show server_encoding") == "UTF8"
    assert one(server.dsn(), "select lower('ÄÉ')") == "äé"


def test_postgres_settings_win_over_defaults_and_alter_system_over_both(own_postgres: Postgres) -> None:
    server = own_postgres({"wal_level": "logical", "application_name": r"it's \ here", "work_mem": "5MB"})
    assert one(server.dsn(), "show fsync") == "off"
    assert one(server.dsn(), "show wal_level") == "logical"
    assert one(server.dsn(), "select setting from pg_settings where name = 'application_name'") == r"it's \ here"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("alter system set work_mem = '6MB'")
    server.restart()
    assert one(server.dsn(), "show work_mem") == "6MB"


def test_postgres_starts_a_cluster_of_its_own(directory: Path) -> None:
    with PostgresServer(directory) as server:
        assert one(server.dsn(), "select current_user") == "postgres"
        server.start()  # does nothing
        pid = server.pid
    assert not server.running
    assert not alive(pid)
    with pytest.raises(ServerError, match="not running"):
        _ = server.pid
    server.stop()


@pytest.mark.parametrize("tcp", [False, True])
def test_postgres_keeps_commits_and_address_over_a_power_cut(own_postgres: Postgres, tcp: bool) -> None:
    server = own_postgres({"synchronous_commit": "on"}, tcp=tcp)
    dsn = server.dsn()
    with psycopg.connect(dsn) as connection:
        connection.execute("create table t as select 42 as n")
    open_session = psycopg.connect(dsn)
    postmaster = server.pid
    children = module._live_children(postmaster)
    assert len(children) >= 4
    with at_once():
        server.kill()
    assert not server.running
    assert not [pid for pid in (postmaster, *children) if alive(pid)]
    with pytest.raises(psycopg.OperationalError):
        open_session.execute("select 1")
    open_session.close()
    server.start()
    assert one(dsn, "select n from t") == 42
    server.restart()
    assert one(dsn, "select n from t") == 42
    assert server.dsn() == dsn


def test_postgres_stops_though_it_was_paused(own_postgres: Postgres) -> None:
    server = own_postgres()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    with at_once():
        server.stop()
    assert not alive(pid)


def test_postgres_says_why_it_does_not_start(own_postgres: Postgres, directory: Path) -> None:
    with pytest.raises(ServerError, match=r'(?s)ended at once.*"shared_buffers": "nonsense"'):
        own_postgres({"shared_buffers": "nonsense"})
    with pytest.raises(ServerError, match=r"there is no .*/initdb"):
        PostgresServer(directory, bin_dir=directory).start()


def test_postgres_dsn_is_not_diverted_by_the_environment(
    own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody_else:
        monkeypatch.setenv("PGHOSTADDR", "127.0.0.1")
        monkeypatch.setenv("PGHOST", "127.0.0.1")
        monkeypatch.setenv("PGPORT", str(somebody_else.getsockname()[1]))
        for tcp in (False, True):
            assert one(own_postgres(tcp=tcp).dsn(), "select 1") == 1


def test_a_socket_path_too_long_is_refused_at_once() -> None:
    deep = Path("/tmp", "d" * 100)
    for refused in (lambda: PostgresServer(deep), lambda: RedisServer(deep)):
        with pytest.raises(ServerError, match="path of the Unix socket has 1"):
            refused()
    PostgresServer(deep, tcp=True)


# As root ------------------------------------------------------------------------------------------------------------


def test_what_root_does_is_said_to_root_only() -> None:
    said = what_root_does()
    assert (said is not None and "`nobody`" in said) if os.geteuid() == 0 else said is None


def snapshot(tree: Path) -> dict[Path, tuple[int, int, int]]:
    return {path: (s.st_mode, s.st_uid, s.st_gid) for path in (tree, *tree.rglob("*")) if (s := path.lstat())}


@as_root
def test_programs_that_nobody_cannot_reach_are_copied_and_not_opened(directory: Path) -> None:
    """A virtualenv below /root, as `pip install` with a strict umask leaves it."""
    closed = directory / "closed"
    prefix = postgres_bin_dir().parent
    installed = closed / "site-packages" / prefix.parent.name / prefix.name
    shutil.copytree(prefix, installed, symlinks=True, ignore=shutil.ignore_patterns("include"))
    libraries = prefix.parent.with_name(f"{prefix.parent.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, closed / "site-packages" / libraries.name)
    for path in closed.rglob("*"):
        path.chmod(path.lstat().st_mode & 0o700)
    closed.chmod(0o700)
    before = snapshot(closed)

    with PostgresServer(directory / "run", bin_dir=installed / "bin") as server:
        assert one(server.dsn(), "select 1") == 1
        assert one(server.dsn(), "select count(*) from pg_extension where extname = 'plpgsql'") == 1
        with psycopg.connect(server.dsn()) as connection:
            connection.execute("do $$ begin perform to_tsvector('english', 'running'); end $$")
        server.restart()
    assert snapshot(closed) == before


@as_root
def test_the_server_runs_as_nobody_who_is_given_one_directory(directory: Path) -> None:
    directory.chmod(0o700)
    with PostgresServer(directory) as server:
        owner = subprocess.run(["ps", "-o", "user=", "-p", str(server.pid)], capture_output=True, text=True, check=True)
        assert owner.stdout.strip() == "nobody"
        assert (directory.stat().st_uid, directory.stat().st_mode & 0o777) == (0, 0o711)
        assert (directory / "pg").stat().st_mode & 0o777 == 0o700


@as_root
def test_a_closed_parent_is_named_and_stays_closed(directory: Path) -> None:
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ServerError, match=rf"cannot pass through {closed} to"):
        PostgresServer(closed / "run").start()
    assert closed.stat().st_mode & 0o777 == 0o700


# Redis --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tcp", [False, True])
def test_redis_keeps_nothing_unless_told(own_redis: Valkey, tcp: bool) -> None:
    server = own_redis(tcp=tcp)
    url = server.url
    with Redis.from_url(url) as client:
        client.set("k", "v")
    server.restart()
    assert server.url == url
    with Redis.from_url(url) as client:
        assert client.get("k") is None


def test_redis_finds_its_data_again_after_a_kill_when_told(own_redis: Valkey) -> None:
    server = own_redis({"appendonly": "yes", "appendfsync": "always"})
    with Redis.from_url(server.url) as client:
        client.set("k", "v")
    server.kill()
    assert not server.running
    server.start()
    with Redis.from_url(server.url) as client:
        assert client.get("k") == b"v"


def test_redis_takes_a_configuration_and_a_password(own_redis: Valkey) -> None:
    server = own_redis({"maxmemory": "3mb", "maxmemory-policy": "allkeys-lru", "requirepass": "a:@/b?"})
    with Redis.from_url(server.url) as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(3 * 1024 * 1024)}
    arguments = subprocess.run(["ps", "-o", "args=", "-p", str(server.pid)], capture_output=True, text=True, check=True)
    assert "a:@/b?" not in arguments.stdout


def test_redis_says_why_it_does_not_start(own_redis: Valkey, directory: Path) -> None:
    with pytest.raises(ServerError, match=r"(?s)ended at once.*no-such-directive"):
        own_redis({"no-such-directive": "1"})
    with pytest.raises(ServerError, match=r"there is no .*/absent"):
        RedisServer(directory, binary=directory / "absent").start()


def test_redis_stops_though_it_was_paused(own_redis: Valkey) -> None:
    server = own_redis()
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    with at_once():
        server.stop()
    assert not alive(pid)


# Both ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PostgresServer, RedisServer])
def test_a_port_lost_to_another_process_is_replaced(
    kind: type[PostgresServer] | type[RedisServer], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is a server of the same kind, so that answering is no proof of being the right one."""
    choose = module._free_port
    with kind(directory / "winner", tcp=True) as winner:
        choices = iter([winner.port])
        monkeypatch.setattr(module, "_free_port", lambda: next(choices, None) or choose())
        with kind(directory / "loser", tcp=True) as loser:
            assert loser.port != winner.port
            assert loser.pid != winner.pid
            assert winner.running


@pytest.mark.long
@pytest.mark.parametrize("kind", ["PostgresServer", "RedisServer"])
@pytest.mark.parametrize(
    ("ending", "survives"),
    [
        ("pass", False),
        ("raise SystemExit(3)", False),
        ("os.kill(os.getpid(), signal.SIGKILL)", False),
        ("os.fork() or sys.exit(); os.wait(); assert server.running; os.kill(os.getpid(), signal.SIGKILL)", False),
        ("server.detach()", True),
        ("server.detach(); os.kill(os.getpid(), signal.SIGKILL)", True),
    ],
)
def test_a_server_outlives_python_only_when_detached(directory: Path, kind: str, ending: str, survives: bool) -> None:
    program = f"""
import os, signal, sys, time
from pathlib import Path
from cachemig.demo.servers import {kind}
server = {kind}(Path({str(directory)!r}))
server.start()
print(server.pid, flush=True)
{ending}
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    pid = int(done.stdout)
    if not survives:
        assert ends(pid)
        return
    try:
        time.sleep(0.3)
        assert alive(pid)
        assert os.getsid(pid) == pid, "a Ctrl-C or hang-up of the terminal would reach it"
    finally:
        os.kill(pid, signal.SIGTERM if kind == "RedisServer" else signal.SIGINT)
        assert ends(pid)


# The fixtures made of them ------------------------------------------------------------------------------------------

FIXTURES_IN_USE = """
import os
import psycopg

def test_given(servers, database, redis, prefix):
    assert servers.name == "given"
    assert not [name for name in os.environ if name.startswith(("PG", "CACHEMIG_REDIS"))]
    with psycopg.connect(database) as connection:
        assert connection.info.dbname.startswith("cachemig_test_")
    assert redis.get("somebody's") == b"1"
    for name in ("a", "b:c"):
        redis.mset({prefix + name: 1, f"cachemig:v:{{{prefix}{name}}}": 1, f"cachemig:t:{{{prefix}{name}}}:x": 1})
"""


def test_fixtures_leave_given_servers_as_they_were(own_postgres: Postgres, own_redis: Valkey, tmp_path: Path) -> None:
    postgres, valkey = own_postgres(), own_redis()
    somebodys = {b"somebody's", b"cachemig:v:{somebody's}"}
    (tmp_path / "test_given.py").write_text(FIXTURES_IN_USE)
    tests = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), *sys.path]),
        "CACHEMIG_TEST_DSN": postgres.dsn(),
        "CACHEMIG_TEST_REDIS_URL": valkey.url,
        "CACHEMIG_REDIS_URL": "redis://127.0.0.1:1",
        "PGHOST": "127.0.0.1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "conftest", "-c", os.devnull, str(tmp_path)]
    with Redis.from_url(valkey.url) as client:
        for key in somebodys:
            client.set(key, 1)
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "1 passed" in done.stdout, done.stdout + done.stderr
        assert set(client.keys()) == somebodys
    assert one(postgres.dsn(), "select count(*) from pg_database where datname like 'cachemig%'") == 0


def test_a_database_is_empty_and_new(database: str) -> None:
    assert one(database, "select count(*) from pg_class where relnamespace = 'public'::regnamespace") == 0


@pytest.mark.long
def test_long_tests_run_only_when_asked_for(request: pytest.FixtureRequest) -> None:
    assert request.config.getoption("--long")

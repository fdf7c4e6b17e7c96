"""The command line as a user calls it: a process of its own, with its own environment and working directory."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cachemig.demo.load import load
from cachemig.demo.payloads import Planted
from tests.conftest import SETS, Fleet, Servers
from tests.schemas import validated

ROOT = Path(__file__).parents[2]
CLEAN = ("PG", "CACHEMIG_", "REDISCLI_AUTH", "CACHE_TTL_SECONDS", "FORCE_COLOR", "COLUMNS")


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """As its published schema says."""
        return validated(json.loads(self.out))


class Operator:
    """Types commands."""

    def __init__(self, directory: Path, dsn: str, redis_url: str, prefix: str) -> None:
        self.directory = directory
        self.dsn = dsn
        self.redis_url = redis_url
        kept = {k: v for k, v in os.environ.items() if not k.startswith(CLEAN)}
        self.environment = kept | {
            "CACHEMIG_DSN": dsn,
            "CACHEMIG_REDIS_URL": redis_url,
            "CACHEMIG_KEY_TEMPLATE": f"{prefix}{{key}}",
            "CACHEMIG_GRACE": "100ms",
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cachemig", *arguments]

    def __call__(self, *arguments: str, **environment: str | None) -> Ended:
        merged = self.environment | {k: v for k, v in environment.items() if v is not None}
        for name in [k for k, v in environment.items() if v is None]:
            merged.pop(name, None)
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.directory,
            env=merged,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert "Traceback" not in done.stdout + done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    def fine(self, *arguments: str, **environment: str | None) -> Ended:
        ended = self(*arguments, **environment)
        assert ended.code == 0, ended
        return ended

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.directory,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


@dataclass(frozen=True)
class Installed:
    """The built wheel, and a clean virtual environment that has it."""

    wheel: Path
    bin: Path


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Installed:
    """Made once for all workers: the wheel, and an environment with nothing of cachemig's but the wheel. What the wheel
    requires comes from the environment that runs the tests, for an index may be out of reach, and takes its time."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared if worker_id == "master" else shared.parent) / "installed"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            _install(folder)
            (folder / "done").touch()
    (wheel,) = folder.glob("*.whl")
    return Installed(wheel, folder / "venv" / "bin")


def _install(folder: Path) -> None:
    def run(*command: str | Path) -> None:
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    # Names only: a .pth of theirs, by which an editable install is found, is not followed.
    theirs = [path for path in sys.path if path.endswith("-packages")]
    (packages / "requirements.pth").write_text("\n".join(theirs) + "\n")


@pytest.fixture(scope="session", params=list(SETS)[:1])
def servers(request: pytest.FixtureRequest, fleet: Fleet) -> Servers:
    """One set is enough here: what differs between servers, the integration tests look at."""
    name: str = request.param
    return fleet.servers(name)


@pytest.fixture
def operator(tmp_path: Path, database: str, redis_url: str, prefix: str) -> Operator:
    """An operator in an empty directory, whose environment names the servers of this test."""
    return Operator(tmp_path, database, redis_url, prefix)


@pytest.fixture
def sessions(database: str) -> Callable[[int], Planted]:
    """Loads the demo's table with so many rows."""

    def rows(count: int) -> Planted:
        with psycopg.connect(database, autocommit=True) as conn:
            return load(conn, count, seed=7)

    return rows


@pytest.fixture
def table(database: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """therapy_sessions with two rows, in the smallest shape that the default settings fit."""
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            "CREATE TABLE therapy_sessions (id int PRIMARY KEY, file_hash text UNIQUE, analytics_cache jsonb,"
            " last_accessed_at timestamptz, created_at timestamptz)"
        )
        conn.execute(
            "INSERT INTO therapy_sessions"
            " VALUES (1, 'h1', '{\"channels_analyzed\": 1}'), (2, 'h2', '{\"channels_analyzed\": 2}')"
        )
        yield conn

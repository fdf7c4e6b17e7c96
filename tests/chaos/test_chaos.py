"""A short storm in the ordinary suite; scripts/chaos goes on for as long as one likes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from cachemig.failpoints import POINTS
from tests.chaos import oracle, table
from tests.chaos.__main__ import failure
from tests.chaos.plan import plan
from tests.chaos.round import Round
from tests.chaos.stand import Directories, Stand
from tests.chaos.tool import Tool
from tests.conftest import REPOSITORY

KEYS = [f"k{n}" for n in range(12)]


@pytest.fixture(scope="module")
def directories() -> Iterator[Directories]:
    with Directories() as made:
        yield made


# On a busy machine a storm of seconds takes a minute or two.
# The seeds are chosen for what they bring together; that they still do is asserted.
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("seed", "seconds", "kinds"),
    [
        (268, 5.0, {"kill-worker", "stop-worker", "cut-replies", "postgres-failover"}),
        pytest.param(113, 8.0, {"postgres-failover", "promote", "redis-wipe", "redis-full"}, marks=pytest.mark.long),
        pytest.param(173, 8.0, {"postgres-failover", "capture-gap", "redis-flush"}, marks=pytest.mark.long),
    ],
)
def test_nothing_is_lost_and_nothing_stale(
    seed: int, seconds: float, kinds: set[str], directories: Directories
) -> None:
    chosen = plan(seed, seconds)
    assert kinds <= {fault.kind for fault in chosen.faults}
    result = Round(chosen, directories).run()
    assert not result.violations, failure(result, [])
    assert result.committed > 100
    assert result.keys + result.without > 0
    assert result.looks > 0


# One step of a worker at a time ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stand(directories: Directories) -> Iterator[Stand]:
    """Servers, and a migration that has been filled."""
    with Stand(directories, 1, replica=False, standby=False) as made:
        table.create(made.dsn, KEYS, 30)
        tool = Tool(directories.fresh("tool"), made.dsn, made.redis_url, {})
        for command in ("init", "dual-write", "backfill"):
            assert tool(command).code == 0
        yield made


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def worker(stand: Stand, directory: Path, armed: str = "") -> Tool:
    settings = {"CACHEMIG_TEST_FAILPOINTS": armed, "CACHEMIG_BATCH_KEYS": "5"}
    return Tool(directory, stand.dsn, stand.redis_url, settings)


def write(stand: Stand, what: str) -> None:
    """Another value for every key but two, one of which is gone, the other without a value."""
    with psycopg.connect(stand.dsn, autocommit=True) as conn:
        conn.execute("UPDATE therapy_sessions SET analytics_cache = jsonb_build_object('n', %s || id)", (what,))
        conn.execute("DELETE FROM therapy_sessions WHERE file_hash = 'k1'")
        conn.execute("UPDATE therapy_sessions SET analytics_cache = '{}' WHERE file_hash = 'k2'")
        conn.execute("INSERT INTO therapy_sessions (file_hash, analytics_cache) VALUES ('k1', '{}')")


def command_of(point: str) -> tuple[str, str]:
    return ("backfill", "--restart") if point.startswith("backfill") else ("sync", "--once")


def expect_right(stand: Stand) -> None:
    with stand.client() as redis:
        judgement = oracle.judge(stand.dsn, redis)
    assert (judgement.wrong, judgement.unfolded) == ({}, 0)
    assert judgement.keys == len(KEYS) - 2


def test_a_worker_reaches_every_failpoint(stand: Stand, directory: Path) -> None:
    armed = worker(stand, directory, ",".join(f"{name}=sleep:0:1" for name in POINTS))
    write(stand, "reached ")
    said = "".join(armed(*command).err for command in (("backfill", "--restart"), ("sync", "--once")))
    assert {line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("failpoint")} == set(POINTS)
    expect_right(stand)


@pytest.mark.long
@pytest.mark.parametrize("point", POINTS)
def test_a_worker_is_killed_at(point: str, stand: Stand, directory: Path) -> None:
    write(stand, f"killed {point} ")
    ended = worker(stand, directory, f"{point}=kill:1")(*command_of(point))
    assert (ended.code, f"failpoint {point}: kill" in ended.err) == (-signal.SIGKILL, True)
    write(stand, f"afterwards {point} ")
    for command in (("sync", "--once"), ("backfill",)):
        assert worker(stand, directory)(*command).code == 0
    expect_right(stand)


@pytest.mark.long
@pytest.mark.parametrize("point", POINTS)
def test_a_worker_freezes_at(point: str, stand: Stand, directory: Path) -> None:
    """It wakes up when the keys that it has read have other values, and others have delivered them."""
    write(stand, f"frozen {point} ")
    frozen = subprocess.Popen(
        [sys.executable, "-m", "cachemig", *command_of(point)],
        cwd=directory,
        env=worker(stand, directory, f"{point}=stop:1").environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        stopped = os.waitid(os.P_PID, frozen.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert stopped is not None
        assert stopped.si_code == os.CLD_STOPPED
        write(stand, f"meanwhile {point} ")
        with subprocess.Popen(
            [sys.executable, "-m", "cachemig", "sync", "--once"],
            cwd=directory,
            env=worker(stand, directory).environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as other:
            # Or less, where the frozen one holds locks that the other needs.
            with suppress(subprocess.TimeoutExpired):
                other.wait(1.0)
            end = time.monotonic() + 60
            while frozen.poll() is None:
                assert time.monotonic() < end
                frozen.send_signal(signal.SIGCONT)  # it stops at each hit
                time.sleep(0.01)
            assert frozen.returncode == 0
            assert other.wait(60) == 0
    finally:
        frozen.kill()
        frozen.wait()
    assert worker(stand, directory)("sync", "--once").code == 0
    expect_right(stand)


# An interrupt ---------------------------------------------------------------------------------------------------------


def left_of(mark: str) -> dict[int, Path]:
    """Processes with these bytes in their environment, and where each works."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (process / "environ").read_bytes():
                found[int(process.name)] = (process / "cwd").readlink()
    return found


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after_s", [0.3, 3.0, 7.0])
def test_an_interrupt_leaves_nothing_behind(number: signal.Signals, after_s: float, tmp_path: Path) -> None:
    """The figures are printed all the same; no server, no worker, no file is left."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.chaos", "--seed", "2", "--minutes", "5"],
        cwd=REPOSITORY,
        env=os.environ | {"TMPDIR": str(tmp_path)},  # servers inherit it too
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as storm:
        assert storm.stdout is not None
        storm.stdout.readline()
        time.sleep(after_s)
        directories = {path for path in left_of(str(tmp_path)).values() if path.name.startswith("cachemig-")}
        assert after_s < 5 or directories
        storm.send_signal(number)
        out, err = storm.communicate(timeout=60)
    assert (storm.returncode, "Traceback" in err) == (130, False), err
    assert out.rstrip().endswith("0 violations")
    assert left_of(str(tmp_path)) == {}
    assert [path for path in directories if path.exists()] == []

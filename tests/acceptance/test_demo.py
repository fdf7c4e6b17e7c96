"""The demo proves what it claims, and cleans up after itself."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "CACHEMIG_"))}


def demo(tmp_path: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cachemig", "demo", "--rows", "300", *arguments],
        cwd=tmp_path,
        text=True,
        env=ENVIRONMENT | {"CACHEMIG_DSN": "host=nowhere", "TMPDIR": "/tmp"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "PASSED: nothing is bad, 5 accepted" in done.stdout
    assert "4 recomputed (profile head, shape analysis), 3 decoded" in done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


def directory_of(told: str) -> Path:
    found = re.search(r"in (/tmp/cachemig-demo-\w+)", told)
    assert found
    return Path(found[1])


def test_the_demo_ends_with_the_proof_and_leaves_nothing_behind(tmp_path: Path) -> None:
    told = demo(tmp_path)
    assert len(re.findall(r"^\$ cachemig ", told, re.MULTILINE)) == 36
    assert len(re.findall("none failed", told)) == 2  # of the writes, and of the reads, to the end
    assert "1 by nightly-job" in told
    assert "is dropped, at try" in told
    assert re.search(r"compared +\d+  are what they should be", told)
    assert re.search(r"The frontend made [\d,]{4,} reads", told)
    assert not directory_of(told).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_keep_leaves_the_servers_to_try_commands(tmp_path: Path) -> None:
    told = demo(tmp_path, "--keep")
    exports = dict(shlex.split(line)[1].split("=", 1) for line in told.splitlines() if line.startswith("  export "))
    pids = [int(pid) for pid in re.findall(r"kill (\d+) (\d+)", told)[0]]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cachemig", "status"],
            cwd=directory_of(told),
            env=ENVIRONMENT | exports,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "redis-only" in done.stdout
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
            time.sleep(0.1)
        subprocess.run(["rm", "-r", str(directory_of(told))], check=True)

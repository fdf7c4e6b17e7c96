"""Values of 2 bytes and of 100 MB pass, and memory stays bounded."""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

import psycopg
import pytest
from redis import Redis

from tests.acceptance.conftest import Operator

Table = psycopg.Connection[tuple[Any, ...]]
MB = 2**20

# Not ru_maxrss, where Linux tells: that one also counts what the process was before it became this program.
MEASURED = """
import pathlib, re, resource, runpy, sys
sys.argv = ["cachemig", *sys.argv[1:]]
try:
    runpy.run_module("cachemig", run_name="__main__")
finally:
    status = pathlib.Path("/proc/self/status")
    peak = re.search(r"VmHWM:\\s*(\\d+)", status.read_text())[1] if status.exists() else None
    print("peak", peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def peak_mb(operator: Operator, *arguments: str) -> float:
    """Peak resident memory of a command that ends well."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        cwd=operator.directory,
        env=operator.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stderr.rsplit("peak", 1)[1]) / (1024 if sys.platform == "linux" else MB)


@pytest.mark.long
def test_from_2_bytes_to_100_mb_in_bounded_memory(operator: Operator, table: Table, redis: Redis, prefix: str) -> None:
    """The worker needs under 120 MB or four times the largest value, whichever is more, whatever the table holds."""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    operator.environment |= {"CACHEMIG_SHAPE": "any"}
    operator.fine("init")
    operator.fine("dual-write")
    operator.fine("sync", "--once")
    table.execute(
        "INSERT INTO therapy_sessions SELECT n, 'm' || n,"
        " jsonb_build_object('channels_analyzed', 1, 'v', repeat(md5(n::text), 32768)), NULL, NULL"
        " FROM generate_series(10, 160) AS n"
    )
    assert peak_mb(operator, "backfill") < 120  # 150 values of 1 MB
    table.execute("INSERT INTO therapy_sessions VALUES (3, 'two bytes', '[]', NULL, NULL)")
    for number in range(3):
        table.execute(
            "INSERT INTO therapy_sessions "
            "VALUES (%s, %s, jsonb_build_object('channels_analyzed', 1, 'v', repeat('x', 100 << 20)), NULL, NULL)",
            [1000 + number, f"large{number}"],
        )
    assert peak_mb(operator, "sync", "--once") < 400
    assert redis.get(f"{prefix}two bytes") == b"[]"
    assert redis.strlen(f"{prefix}large2") == 100 * MB + len('{"v": "", "channels_analyzed": 1}')
    assert peak_mb(operator, "backfill", "--restart") < 400
    assert peak_mb(operator, "verify") < 500

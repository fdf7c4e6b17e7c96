"""What a person sees: at a terminal, off one, and how fast."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from typing import Any

import psycopg
from typer.testing import CliRunner

from cachemig.cli.app import app
from tests.acceptance.conftest import Operator

Table = psycopg.Connection[tuple[Any, ...]]


def at_a_terminal(operator: Operator, *arguments: str) -> tuple[int, str]:
    """Runs a command in a pseudo-terminal of 80 columns; its exit code and everything it drew."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        operator.command(*arguments),
        cwd=operator.directory,
        stdin=child,
        stdout=child,
        stderr=child,
        env=operator.environment | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
        close_fds=True,
    )
    os.close(child)
    drawn = b""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if select.select([parent], [], [], 0.1)[0]:
            try:
                part = os.read(parent, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            drawn += part
        elif process.poll() is not None:
            break
    os.close(parent)
    return process.wait(timeout=10), drawn.decode()


def test_progress_moves_at_a_terminal(operator: Operator, table: Table) -> None:
    table.execute(
        "INSERT INTO therapy_sessions SELECT n, 'k' || n,"
        " jsonb_build_object('channels_analyzed', 1, 'v', repeat(md5(n::text), 100)), NULL, NULL"
        " FROM generate_series(10, 8000) AS n"
    )
    operator.fine("init")
    operator.fine("dual-write")
    code, drawn = at_a_terminal(operator, "backfill", "--chunk-bytes", "1MiB")
    assert code == 0
    assert "\x1b[" in drawn
    assert re.search(r"backfill: [\d,]+ of [\d,]+ chunks", drawn)
    assert "backfill is complete" in drawn
    code, drawn = at_a_terminal(operator, "verify")
    assert code == 0
    assert "PASSED" in drawn
    assert max(len(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)) for line in drawn.splitlines()) <= 200


def test_nothing_moves_off_a_terminal(operator: Operator, table: Table) -> None:
    operator.fine("init", FORCE_COLOR="1")
    operator.fine("dual-write", FORCE_COLOR="1")
    ended = operator.fine("backfill", FORCE_COLOR="1")
    assert "\x1b" not in ended.out + ended.err
    assert "\r" not in ended.out + ended.err
    assert "backfill is complete" in ended.out
    assert ended.err == ""  # shorter than 30 s: not a single line of progress


def test_a_closed_pipe_is_not_an_error(operator: Operator) -> None:
    shell = f"{sys.executable} -m cachemig doctor --show-config | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell],
        cwd=operator.directory,
        env=operator.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("setting")


def test_every_command_has_help_with_an_example(operator: Operator) -> None:
    listed = re.findall(r"^│ ([a-z][a-z-]+) ", operator.fine("--help").out, re.MULTILINE)
    assert {"init", "doctor", "plan", "dual-write", "sync", "backfill", "verify", "status", "demo", "clean"} <= set(
        listed
    )
    for name in listed:
        shown = CliRunner().invoke(app, [name, "--help"])
        assert shown.exit_code == 0
        assert f"Example: cachemig {name}" in re.sub(r"\s+", " ", shown.output), name

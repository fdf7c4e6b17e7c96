"""What a person sees: at a terminal, off one, and how fast."""

from __future__ import annotations

import os
import pty
import re
import select
import statistics
import subprocess
import sys
import time
from typing import Any

import psycopg
from typer.testing import CliRunner

from cachemig.cli.app import app
from tests.acceptance.conftest import Operator

Table = psycopg.Connection[tuple[Any, ...]]
LIGHT = ("typer", "rich", "cachemig.cli.app")
HEAVY = ("psycopg", "redis", "numpy", "scipy", "ezc3d", "tenacity", "zstandard")


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


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['cachemig', '--help']\n"
        "from cachemig.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "backfill" in done.stdout


def test_importing_the_package_loads_neither_typer_nor_numpy() -> None:
    program = f"import sys, cachemig; print([m for m in {LIGHT + HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_answers_soon(operator: Operator) -> None:
    """0.3 s on an idle machine; a shared one is given ten times that, so that only a blunder fails."""
    times = []
    for _ in range(3):
        began = time.monotonic()
        operator.fine("--help")
        times.append(time.monotonic() - began)
    assert statistics.median(times) < 3


def test_every_command_has_help_with_an_example(operator: Operator) -> None:
    listed = re.findall(r"^│ ([a-z][a-z-]+) ", operator.fine("--help").out, re.MULTILINE)
    assert {"init", "doctor", "plan", "dual-write", "sync", "backfill", "verify", "status", "demo", "clean"} <= set(
        listed
    )
    for name in listed:
        shown = CliRunner().invoke(app, [name, "--help"])
        assert shown.exit_code == 0
        assert f"Example: cachemig {name}" in re.sub(r"\s+", " ", shown.output), name

"""The README's commands run as they stand, in order."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import psycopg

from tests.acceptance.conftest import Operator

ROOT = Path(__file__).parents[2]


def commands() -> list[str]:
    """What stands behind a `$ ` in the README."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line.strip()[2:] for block in blocks for line in block.splitlines() if line.strip().startswith("$ ")]


def test_the_first_two_commands_are_the_demo_and_the_tests() -> None:
    assert commands()[:2] == ["scripts/demo", "scripts/test"]
    for script in commands()[:2]:
        assert os.access(ROOT / script, os.X_OK)


def test_moving_a_table_as_the_readme_says(operator: Operator, table: psycopg.Connection[tuple[Any, ...]]) -> None:
    mine = [c for c in commands()[2:] if not c.startswith("pip ")]
    exports = [c for c in mine if c.startswith("export ")]
    assert [re.match(r"export (\w+)=", c).group(1) for c in exports] == ["CACHEMIG_DSN", "CACHEMIG_REDIS_URL"]  # type: ignore[union-attr]
    typed = [c for c in mine if not c.startswith("export ")]
    assert all(c.startswith("cachemig ") for c in typed)
    assert {c.split()[1] for c in typed} >= {
        "doctor",
        "plan",
        "init",
        "dual-write",
        "sync",
        "backfill",
        "verify",
        "status",
    }
    # `cachemig` is this checkout; the servers and the template are the test's (the environment goes before the file).
    shim = operator.directory / "bin" / "cachemig"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {" ".join(operator.command())} "$@"\n')
    shim.chmod(0o755)
    path = {"PATH": f"{shim.parent}:{os.environ['PATH']}"}
    follow = "cachemig sync --follow &"
    assert follow in typed
    # These say with exit code 3 that something is in the way, or a gate is not met; the README shows them to be read.
    looks = ("cachemig residue", "cachemig stop-writes", "cachemig drop-column")
    typed = [f"{command} || [ $? = 3 ]" if command.startswith(looks) else command for command in typed]
    script = "\n".join(["set -e", *typed]).replace(follow, f"{follow}\nfollower=$!")
    done = subprocess.run(
        ["bash", "-c", f"{script}\nkill $follower; wait $follower"],
        cwd=operator.directory,
        env=operator.environment | path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout


def test_every_command_that_the_readme_names_exists(operator: Operator) -> None:
    text = (ROOT / "README.md").read_text()
    listed = operator.fine("--help").out
    for name in set(re.findall(r"`cachemig ([a-z-]+)", text)):
        assert re.search(rf"│ {name} ", listed), name

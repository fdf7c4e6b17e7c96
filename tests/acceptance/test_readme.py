"""The README's commands run as they stand, in order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import psycopg

from cachemig import __version__
from tests.acceptance.conftest import Installed, Operator

ROOT = Path(__file__).parents[2]


def commands() -> list[str]:
    """What stands behind a `$ ` in the README."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line.strip()[2:] for block in blocks for line in block.splitlines() if line.strip().startswith("$ ")]


def test_the_first_two_commands_are_the_demo_and_the_tests() -> None:
    assert commands()[:2] == ["scripts/demo", "scripts/test"]
    for script in commands()[:2]:
        assert os.access(ROOT / script, os.X_OK)


def test_moving_a_table_as_the_readme_says(
    installed: Installed, operator: Operator, table: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """A newcomer's path: the wheel in a clean environment, then every line as it stands, in one shell, in an empty
    folder. Only the two exports name this test's servers instead."""
    mine = commands()[2:]
    assert mine.pop(0) == "pip install ."  # is what `installed` has done
    exports = [c for c in mine if c.startswith("export ")]
    assert exports == mine[: len(exports)]
    names = [c.removeprefix("export ").partition("=")[0] for c in exports]
    assert names == ["CACHEMIG_DSN", "CACHEMIG_REDIS_URL"]
    typed = mine[len(exports) :]
    assert {c.split()[1] for c in typed if c.startswith("cachemig ")} >= {
        "doctor",
        "plan",
        "init",
        "dual-write",
        "sync",
        "backfill",
        "verify",
        "status",
        "measure",
        "cutover",
        "rollback",
        "stop-writes",
        "archive",
        "drop-column",
        "reclaim",
    }
    follow = "cachemig sync --follow &"
    assert follow in typed
    # These say with exit code 3 that something is in the way, or a gate is not met; the README shows them to be read.
    looks = ("cachemig residue", "cachemig stop-writes", "cachemig drop-column")
    script = ["set -e", *(f"export {name}={shlex.quote(operator.environment[name])}" for name in names)]
    for command in typed:
        script.append(f"echo {shlex.quote('$ ' + command)}")
        script.append(f"{command} || [ $? = 3 ]" if command.startswith(looks) else command)
        if command == follow:
            script.append("follower=$!; trap 'kill $follower; wait $follower' EXIT")
    environment = {k: v for k, v in operator.environment.items() if not k.startswith(("CACHEMIG_", "PYTHON"))}
    # The template keeps the keys of tests apart; whatever the README says of it goes before, being a flag.
    kept = {"CACHEMIG_KEY_TEMPLATE": operator.environment["CACHEMIG_KEY_TEMPLATE"], "CACHEMIG_GRACE": "100ms"}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=operator.directory,
        env=environment | kept | {"PATH": f"{installed.bin}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout
    shown = [line[2:] for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert shown == typed
    assert (operator.directory / "cachemig.toml").exists()
    assert (operator.directory / "analytics_cache.zst").stat().st_size


def test_what_a_newcomer_runs_is_the_wheel(installed: Installed, tmp_path: Path) -> None:
    program = "import cachemig, sys; print(cachemig.__file__); print(*sys.path, sep='\\n')"
    said = subprocess.run(
        [installed.bin / "python", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert Path(said[0]).is_relative_to(installed.bin.parent)
    assert not any(Path(path).is_relative_to(ROOT / "src") for path in said[1:] if path)
    version = subprocess.run([installed.bin / "cachemig", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"cachemig {__version__}\n"


def test_every_command_that_the_readme_names_exists(operator: Operator) -> None:
    text = (ROOT / "README.md").read_text()
    listed = operator.fine("--help").out
    for name in set(re.findall(r"`cachemig ([a-z-]+)", text)):
        assert re.search(rf"│ {name} ", listed), name

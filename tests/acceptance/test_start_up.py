"""What a command loads before it begins to work. A look at sys.modules, since times depend on the machine."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import psycopg
import pytest

from tests.acceptance.conftest import Operator

Table = psycopg.Connection[tuple[Any, ...]]
# pydantic: with it Typer converts options, of which few are given. rich.markdown: only Typer's help loads it.
RECOMPUTE = {"numpy", "scipy", "ezc3d", "matplotlib", "cachemig.emg", "cachemig.recordings"}
STORES = {"fsspec", "orjson", "cachemig.archive", "cachemig.steps.archive", "cachemig.steps.drop_column"}
NEVER = RECOMPUTE | STORES | {"pydantic", "cachemig.service"}
SCREEN = {"rich.markdown", "typer.rich_utils", "pygments"}
REDIS = {"redis", "zstandard", "cachemig.targets.redis", "cachemig.steps.delivery"}
SERVERS = REDIS | {"psycopg", "tenacity", "asyncio", "cachemig.source", "cachemig.steps"}
_WATCHED = """
import atexit, sys
atexit.register(lambda: print("loaded:", *sys.modules, file=sys.stderr))
sys.argv = ["cachemig", *{arguments!r}]
from cachemig.cli import main
main()
"""


def loaded(operator: Operator, *arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED.format(arguments=arguments)],
        cwd=operator.directory,
        env=operator.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("loaded: ")
    return set(last.split()[1:])


@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        (["--help"], NEVER | SERVERS),
        (["backfill", "--help"], NEVER | SERVERS),
        (["--version"], NEVER | SERVERS | SCREEN),
    ],
    ids=["help", "help of a command", "version"],
)
def test_help_needs_no_driver(operator: Operator, arguments: list[str], without: set[str]) -> None:
    assert loaded(operator, *arguments) & without == set()


def test_a_command_loads_what_it_uses(operator: Operator, table: Table) -> None:
    operator.fine("init")
    operator.fine("dual-write")
    for arguments, without in (
        (["status", "--column", "analytics_cache"], NEVER | SCREEN | REDIS),
        (["status", "--history", "--json"], NEVER | SCREEN | REDIS),
        (["pause"], NEVER | SCREEN | REDIS | {"tenacity"}),
        (["resume"], NEVER | SCREEN | REDIS | {"tenacity"}),
        # orjson: the shape emg is looked at field by field.
        (["plan"], (NEVER | SCREEN | REDIS) - {"redis", "cachemig.targets.redis", "orjson"}),
        (["backfill"], (NEVER | SCREEN) - {"orjson"}),
        (["verify"], (NEVER | SCREEN) - {"orjson"}),
    ):
        assert loaded(operator, *arguments) & without == set(), arguments


def test_importing_the_package_loads_next_to_nothing() -> None:
    program = "import sys; before = set(sys.modules); import cachemig; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"cachemig", "__future__"}

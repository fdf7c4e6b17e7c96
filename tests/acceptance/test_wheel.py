"""The built wheel holds everything that the source tree does."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cachemig.source import queries
from tests.acceptance.conftest import Installed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def wheel(installed: Installed) -> Path:
    return installed.wheel


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "src/cachemig", "sql"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    expected = {
        name.replace("src/cachemig/", "cachemig/").replace("sql/", "cachemig/sql/", name.startswith("sql/"))
        for name in tracked
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {"cachemig/sql/capture.sql", "cachemig/targets/deliver.lua", "cachemig/py.typed"} <= held


def test_the_wheel_runs_and_finds_its_sql(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        "from cachemig.source import queries; print(queries.directory()); print(sorted(queries.statements('capture')))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {program}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert done[0] == str(tmp_path / "cachemig" / "sql")
    assert done[1] == str(sorted(queries.statements("capture")))


def test_the_source_tree_finds_its_sql() -> None:
    assert queries.directory() == ROOT / "sql" or queries.directory().parent.name == "cachemig"
    assert {file.stem for file in (ROOT / "sql").glob("*.sql")} >= {
        "control",
        "capture",
        "scan",
        "sync",
        "ledger",
        "chunks",
    }

"""scripts/bench: that each benchmark runs, and writes what it is to write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchmarks.report import between_marks

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["backfill", "capture", "emg", "neighbour", "scale", "service"])
def test_a_quick_run(name: str, tmp_path: Path) -> None:
    more = ["--docs", str(tmp_path)] if name in ("backfill", "neighbour", "scale") else []
    done = bench(name, "--quick", "--json", str(tmp_path / "figures.json"), *more)
    assert done.returncode == 0, done.stderr
    assert "| ---" in done.stdout
    assert json.loads((tmp_path / "figures.json").read_text())["benchmark"] == name


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_document_is_written_between_its_marks(tmp_path: Path) -> None:
    begin, end = "<!-- begin: scripts/bench backfill -->", "<!-- end: scripts/bench backfill -->"
    document = tmp_path / "performance.md"
    document.write_text(f"Before.\n\n{begin}\nold\n{end}\n\nAfter.\n")
    done = bench("backfill", "--quick", "--only", "M", "--parts", "ceilings,tool,price,resume", "--docs", str(tmp_path))
    assert done.returncode == 0, done.stderr
    text = document.read_text()
    assert text.startswith(f"Before.\n\n{begin}\n")
    assert text.endswith(f"{end}\n\nAfter.\n")
    assert "\nold\n" not in text
    assert "| cachemig backfill, two processes, json " in text
    assert "| without the fence " in text
    drawing = "".join(ElementTree.parse(tmp_path / "performance.svg").getroot().itertext())
    assert "cachemig backfill, two processes, json" in drawing


def test_what_stands_between_the_marks_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    document = tmp_path / "docs" / "performance.md"
    between_marks(document, "scripts/bench x", "first")
    document.write_text(f"Before.\n\n{document.read_text()}\nAfter.\n")
    between_marks(document, "scripts/bench x", r"sec\1ond")
    begin, end = "<!-- begin: scripts/bench x -->", "<!-- end: scripts/bench x -->"
    assert document.read_text() == f"Before.\n\n{begin}\n\nsec\\1ond\n\n{end}\n\nAfter.\n"
    with pytest.raises(SystemExit, match="exactly once"):
        between_marks(document, "scripts/bench y", "third")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )

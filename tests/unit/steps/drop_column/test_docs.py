"""docs/drop-column.md: each test that the hazard table names exists."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[3]
TEXT = (TESTS.parent / "docs" / "drop-column.md").read_text(encoding="utf-8")


def hazards() -> list[list[str]]:
    table = TEXT.split("\n## Hazards\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    return rows[2:]


def test_each_hazard_names_a_test_that_exists() -> None:
    there = set()
    for path in TESTS.rglob("test_*.py"):
        there |= set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(hazards()) > 25
    for row in hazards():
        assert len(row) == 4, row
        assert row[3].strip("`") in there, row[0]


def test_files_it_names_exist() -> None:
    for name in re.findall(r"(\d\d_\w+\.sql)", TEXT):
        assert (TESTS.parent / "sql" / "by_hand" / name).exists()

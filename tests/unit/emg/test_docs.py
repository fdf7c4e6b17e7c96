"""docs/emg.md, against the code that it describes."""

from __future__ import annotations

import re
from pathlib import Path

from cachemig.emg.errors import NAMES
from cachemig.emg.profile import ERA, HEAD
from cachemig.emg.validation import FEWEST_SAMPLES

TEXT = (Path(__file__).parents[3] / "docs" / "emg.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    return TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0].split("\n### ")[0]


def test_every_name_of_an_error_is_there_with_its_meaning_and_no_other() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", section("Why a recording is refused"), re.MULTILINE)
    assert rows == list(NAMES.items())


def test_the_profiles_differ_as_the_table_says() -> None:
    table = section("Two profiles")
    rows = {cells[0]: cells[1:] for cells in re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", table, re.MULTILINE)}

    def in_both(row: str, head: object, era: object) -> None:
        assert rows[row] == (head, era)

    in_both("`processing_version`", f"`{HEAD.processing_version}`", f"`{ERA.processing_version}`")
    in_both("bursts this close are one contraction", f"{HEAD.merge_ms} ms", f"{ERA.merge_ms} ms")
    for field in ("mvc_count_field", "duration_count_field", "mvc_threshold_field"):
        assert (f"`{getattr(HEAD, field)}`", f"`{getattr(ERA, field)}`") in rows.values()
    assert HEAD.refractory_ms == 0
    in_both("a contraction this soon after another is dropped", "–", f"{ERA.refractory_ms} ms")
    assert (ERA.shortest_recording_s, ERA.longest_recording_s) == (None, None)
    in_both(
        "a recording is analysed from",
        f"{HEAD.shortest_recording_s:g} s and {FEWEST_SAMPLES:,} samples",
        f"{FEWEST_SAMPLES:,} samples",
    )
    in_both("up to", f"{HEAD.longest_recording_s:g} s", "any length")

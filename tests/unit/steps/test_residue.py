"""residue: names as code writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachemig.steps.residue import camel, in_file


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("analytics_cache", ("analyticsCache", "AnalyticsCache")),
        ("a_b_c", ("aBC", "ABC")),
        ("cache", ()),
        ("_cache", ()),
        ("__", ()),
    ],
)
def test_variants_of_a_name(name: str, variants: tuple[str, ...]) -> None:
    assert camel(name) == variants


def test_a_line_that_has_both_forms_is_one_mention_of_the_name_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    path.write_text("analyticsCache: analytics_cache\nanalyticscache\nANALYTICS_CACHE\n")
    found = in_file(tmp_path, path, ["analytics_cache"])
    assert found is not None
    assert [(m.line, m.variant) for m in found] == [(1, False), (3, False)]


def test_a_file_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert in_file(tmp_path, tmp_path / "none.py", ["x"]) is None

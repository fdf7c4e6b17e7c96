"""Charts: whatever they are given, they are whole SVG, escaped, and say in words what they show."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from cachemig.report import charts

HOSTILE = "<b>\"'&</svg><script>"


@pytest.mark.parametrize(
    "drawn",
    [
        charts.histogram(HOSTILE, [(HOSTILE, 3), ("b", 0)], lambda n: f"{n:g}{HOSTILE}"),
        charts.histogram("none", [], str),
        charts.histogram("zeros", [("a", 0)], str),
        charts.steps(HOSTILE, [3, 0, 5], lambda n: f"{n:g}{HOSTILE}", labels=[HOSTILE, "b"]),
        charts.steps("one", [0], str, labels=["a", "b"]),
        charts.bars(HOSTILE, [(HOSTILE, 3, ""), ("b", 0, "before")], lambda n: f"{n:g}{HOSTILE}"),
        charts.lanes(HOSTILE, [(HOSTILE, 0, 0.5, HOSTILE), ("b", 0.5, 1, "x")], [HOSTILE, "b"]),
    ],
)
def test_every_chart_is_an_image_with_words(drawn: str) -> None:
    svg = ElementTree.fromstring(drawn)  # our own
    assert svg.get("role") == "img"
    assert svg.get("aria-label")
    assert [child.tag for child in svg][:2] == ["title", "desc"]
    assert not {e.tag for e in svg.iter()} & {"b", "script"}


@pytest.mark.parametrize(("number", "above"), [(0, 1), (1, 1), (2387, 4000), (483, 500), (4001, 5000), (0.3, 0.4)])
def test_an_axis_ends_at_a_round_number(number: float, above: float) -> None:
    assert charts._above(number, 1) == pytest.approx(above)


def test_a_bar_is_as_long_as_its_number() -> None:
    drawn = ElementTree.fromstring(charts.bars("t", [("a", 50, ""), ("b", 100, "")], str))
    bars = list(drawn.iter("rect"))
    assert [e.get("width") for e in bars if "bar" in str(e.get("class"))] == ["50.00%", "100.00%"]

"""From labels to muscles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.emg.channels import Muscle, base, muscles, names, table
from cachemig.emg.recording import Recording


def numbered(*labels: str, channels: int | None = None) -> Recording:
    """Channel i holds the number i."""
    count = len(labels) if channels is None else channels
    return Recording(labels, np.arange(float(count))[:, np.newaxis] * np.ones((1, 3)), 990.0)


def shown(found: list[Muscle]) -> list[tuple[str, int, int, str, int | None]]:
    """Base, rank, number of the raw channel, source, number of the activated one."""
    return [
        (one.base, one.rank, int(one.raw[0]), one.source, None if one.activated is None else int(one.activated[0]))
        for one in found
    ]


def test_labels_are_stripped_and_missing_ones_are_numbered_from_one() -> None:
    assert names((" CH1 Raw\t", "", "x"), 5) == ["CH1 Raw", "", "x", "CH4", "CH5"]
    assert names(("a", "b", "c"), 2) == ["a", "b"]


def test_the_table_has_every_channel_under_its_raw_name_too() -> None:
    signals = table(numbered("CH1 Raw", "CH1 activated", "EMG"))
    assert {name: int(signal[0]) for name, signal in signals.items()} == {
        "CH1 Raw": 0,
        "CH1 activated": 1,
        "CH1 activated Raw": 1,
        "EMG": 2,
        "EMG Raw": 2,
    }


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("CH1 Raw", "CH1"),
        ("CH1 activated", "CH1"),
        ("CH1 activated Raw", "CH1"),
        ("CH1 Raw activated", "CH1"),
        ("CH1 Raw left", "CH1 left"),
        ("a Raw Raw", "a"),
        ("CH1 raw", "CH1 raw"),
        ("CH1 Activated", "CH1 Activated"),
        ("CH1Raw", "CH1Raw"),
        ("a R Rawaw", "a Raw"),  # deleted once, not until none is left
        ("a R activatedaw", "a Raw"),  # " Raw" first, then " activated"
    ],
)
def test_base_names(name: str, of: str) -> None:
    assert base(name) == of


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (
            ("CH1 Raw", "CH2 Raw", "CH1 activated", "CH2 activated"),
            [("CH1", 0, 0, "RAW", 2), ("CH2", 1, 1, "RAW", 3)],
        ),
        (("b", "a", "B"), [("B", 0, 2, "RAW", None), ("a", 1, 1, "RAW", None), ("b", 2, 0, "RAW", None)]),
        (("CH10", "CH9"), [("CH10", 0, 0, "RAW", None), ("CH9", 1, 1, "RAW", None)]),
        (("CH1 Raw", "CH1"), [("CH1", 0, 1, "RAW", None)]),  # the later one under the same name
        (("CH1", "CH1 Raw"), [("CH1", 0, 1, "RAW", None)]),
        (("x", "x"), [("x", 0, 1, "RAW", None)]),
        (("a activated", "b"), [("b", 1, 1, "RAW", None)]),  # nothing raw for a; its rank is used up
        (("a Raw x", "b"), [("b", 1, 1, "RAW", None)]),
        (("a R Rawaw", "a Raw"), [("a", 0, 1, "RAW", None), ("a Raw", 1, 1, "BASE (a Raw)", None)]),
        (("",), [("", 0, 0, "RAW", None)]),
        (
            ("é", "z", "𝄞", "\uffff"),
            [
                ("z", 0, 1, "RAW", None),
                ("é", 1, 0, "RAW", None),
                ("\uffff", 2, 3, "RAW", None),
                ("𝄞", 3, 2, "RAW", None),
            ],
        ),  # code points, not UTF-16 units
    ],
)
def test_muscles(labels: tuple[str, ...], found: list[tuple[str, int, int, str, int | None]]) -> None:
    assert shown(muscles(numbered(*labels))) == found


def test_channels_without_a_label() -> None:
    assert shown(muscles(numbered("CH2 activated", channels=3))) == [
        ("CH2", 0, 1, "RAW", 0),
        ("CH3", 1, 2, "RAW", None),
    ]


parts = st.lists(st.sampled_from(["CH1", "CH2", "a", " Raw", " activated", " ", " R", "aw"]), max_size=4).map("".join)


@given(labels=st.lists(parts, min_size=1, max_size=5))
def test_any_labels(labels: list[str]) -> None:
    recording = numbered(*labels)
    found = muscles(recording)
    assert [one.rank for one in found] == sorted({one.rank for one in found})
    assert [one.base for one in found] == sorted({one.base for one in found})
    stripped = [label.strip() for label in labels]
    for one in found:
        named = stripped[int(one.raw[0])]
        assert named in ({one.base, f"{one.base} Raw"})
        assert named not in stripped[int(one.raw[0]) + 1 :]  # the last of equal names
        if one.activated is not None:
            assert stripped[int(one.activated[0])] == f"{one.base} activated"

"""The shapes of the EMG application: each fault by its name, and never a word of the value."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.config import Settings
from cachemig.demo import payloads
from cachemig.entries.emg_shape import fault
from cachemig.entries.shape import CORRUPT
from cachemig.entries.shape import fault as any_fault

SHARED = Path(__file__).parents[4] / "shared" / "data" / "expected"
MARK = "S3CR3T"

ANALYSIS: dict[str, Any] = {
    "analytics": {
        f"{MARK} 1": {
            "rms": 8.3e-05, "mav": 3.5e-05, "mpf": 84.5, "mdf": None, "fatigue_index_fi_nsm5": 2.5e-13,
            "rms_temporal_stats": {"mean_value": 5.7e-05, "std_value": None, "valid_windows": 149},
            "contraction_count": 2, "avg_duration_ms": 450.5, "min_duration_ms": 1.0, "max_duration_ms": 900.0,
            "total_time_under_tension_ms": 901.0, "avg_amplitude": 1e-4, "max_amplitude": 4e-4,
            "contractions": [
                {"start_time_ms": 10.0, "end_time_ms": 910.0, "duration_ms": 900.0, "mean_amplitude": 1.5e-4,
                 "max_amplitude": 4e-4, "is_good": True, "meets_mvc": True, "meets_duration": True},
                {"start_time_ms": 2000, "end_time_ms": 2001, "duration_ms": 1, "mean_amplitude": 1e-5,
                 "max_amplitude": 2e-5, "is_good": False, "meets_mvc": True, "meets_duration": False},
            ],
            "good_contraction_count": 1, "mvc_compliant_count": 2, "duration_compliant_count": 1,
            "mvc75_threshold": 1e-4, "duration_threshold_actual_value": 2000.0, "compliance_rate": 0.5,
            "signal": [1.0, 2.0],
        },
    },
    "processing_params": {}, "processing_version": "2.1.0", "cached_at": "2025-09-27T00:00:00.000000",
}  # fmt: skip
SUMMARY: dict[str, Any] = {
    "channels": ["CH1", "CH2"],
    "summary": {"total_channels": 2, "overall_compliance": 0.25, "cached_at": "2025-08-20T10:00:00+00:00"},
}
SESSION: dict[str, Any] = {
    "session_id": "1", "analytics": ANALYSIS["analytics"], "summary": {}, "metadata": {}, "cache_version": "2.1",
}  # fmt: skip


def said(document: Any) -> str | None:
    return fault(json.dumps(document).encode())


@pytest.mark.parametrize(
    "document",
    [
        ANALYSIS,
        SUMMARY,
        SESSION,
        {"channels_analyzed": 3},
        {**ANALYSIS, "analytics": {}},
        {**ANALYSIS, "processing_version": "v2.1.0", "another": 1},
        {**SUMMARY, "summary": {"total_channels": 2, "overall_compliance": 0}},
    ],
)
def test_sound(document: dict[str, Any]) -> None:
    assert said(document) is None


Change = Callable[[Any, Any, Any], object]
"""Changes the document, its first channel's record, or that one's first contraction."""

FAULTS: dict[str, tuple[Change, str]] = {
    "nothing known": (lambda d, c, k: d.clear(), "unknown-shape: an object, but none that the application writes"),
    "no params": (lambda d, c, k: d.pop("processing_params"), "missing-field: processing_params"),
    "no time": (lambda d, c, k: d.pop("cached_at"), "missing-field: cached_at"),
    "no version": (lambda d, c, k: d.pop("processing_version"), "missing-field: processing_version"),
    "another version": (
        lambda d, c, k: d.update(processing_version="3"),
        "unknown-version: processing_version is not one of 2.1.0, v2.1.0",
    ),
    "a version that is a number": (lambda d, c, k: d.update(processing_version=2), "wrong-type: processing_version"),
    "analytics as a list": (lambda d, c, k: d.update(analytics=[]), "wrong-type: analytics"),
    "a channel that is none": (lambda d, c, k: d["analytics"].update(x=1), "wrong-type: channel 2: not an object"),
    "no rms": (lambda d, c, k: c.pop("rms"), "missing-field: channel 1: rms"),
    "rms is null": (lambda d, c, k: c.update(rms=None), "wrong-type: channel 1: rms is null"),
    "rms is NaN": (lambda d, c, k: c.update(rms="NaN"), "number-as-string: channel 1: rms"),
    "rms is true": (lambda d, c, k: c.update(rms=True), "wrong-type: channel 1: rms"),
    "rms is negative": (lambda d, c, k: c.update(rms=-1e-9), "impossible-number: channel 1: rms is negative"),
    "mpf is Infinity": (lambda d, c, k: c.update(mpf="Infinity"), "number-as-string: channel 1: mpf"),
    "mpf is negative": (lambda d, c, k: c.update(mpf=-1), "impossible-number: channel 1: mpf is negative"),
    "a statistic is a string": (
        lambda d, c, k: c["rms_temporal_stats"].update(std_value="-Infinity"),
        "number-as-string: channel 1: rms_temporal_stats",
    ),
    "a statistic is a list": (
        lambda d, c, k: c["rms_temporal_stats"].update(std_value=[]), "wrong-type: channel 1: rms_temporal_stats"
    ),
    "statistics are none": (
        lambda d, c, k: c.update(mdf_temporal_stats=1), "wrong-type: channel 1: mdf_temporal_stats"
    ),
    "tension is negative": (
        lambda d, c, k: c.update(total_time_under_tension_ms=-1),
        "negative-duration: channel 1: total_time_under_tension_ms"
    ),
    "a threshold is negative": (
        lambda d, c, k: c.update(duration_threshold_actual_value=-1),
        "negative-duration: channel 1: duration_threshold_actual_value",
    ),
    "too many contractions": (
        lambda d, c, k: c.update(contraction_count=3),
        "count-mismatch: channel 1: contraction_count is not the number of contractions",
    ),
    "half a contraction": (
        lambda d, c, k: c.update(contraction_count=1.5), "impossible-number: channel 1: contraction_count is no count"
    ),
    "fewer than none": (
        lambda d, c, k: c.update(contraction_count=-1), "impossible-number: channel 1: contraction_count is no count"
    ),
    "too many good ones": (
        lambda d, c, k: c.update(good_contraction_count=2),
        "count-mismatch: channel 1: good_contraction_count is not the number of contractions with is_good",
    ),
    "too few, by its older name": (
        lambda d, c, k: c.update(mvc_contraction_count=0),
        "count-mismatch: channel 1: mvc_contraction_count is not the number of contractions with meets_mvc",
    ),
    "too few of the long ones": (
        lambda d, c, k: c.update(duration_compliance_rate=0),
        "count-mismatch: channel 1: duration_compliance_rate is not the number of contractions with meets_duration",
    ),
    "contractions are none": (lambda d, c, k: c.update(contractions={}), "wrong-type: channel 1: contractions"),
    "one is none": (
        lambda d, c, k: c["contractions"].__setitem__(1, 7), "wrong-type: channel 1: contraction 2 is not an object"
    ),
    "it ends before it starts": (
        lambda d, c, k: k.update(end_time_ms=5.0), "negative-duration: channel 1: contraction 1 ends before it starts"
    ),
    "it lasts less than nothing": (
        lambda d, c, k: k.update(duration_ms=-900.0), "negative-duration: channel 1: contraction 1 duration_ms"
    ),
    "it starts before the recording": (
        lambda d, c, k: k.update(start_time_ms=-1.0), "negative-duration: channel 1: contraction 1 start_time_ms"
    ),
    "it lasts longer than it takes": (
        lambda d, c, k: k.update(duration_ms=901.0),
        "impossible-number: channel 1: contraction 1 duration_ms is not the time from its start to its end",
    ),
    "its amplitude is negative": (
        lambda d, c, k: k.update(max_amplitude=-1.0),
        "impossible-number: channel 1: contraction 1 max_amplitude is negative",
    ),
    "its amplitude is NaN": (
        lambda d, c, k: k.update(mean_amplitude="nan"), "number-as-string: channel 1: mean_amplitude"
    ),
    "a flag is missing": (lambda d, c, k: k.pop("is_good"), "missing-field: channel 1: is_good"),
    "a flag is a number": (lambda d, c, k: k.update(meets_mvc=1), "wrong-type: channel 1: meets_mvc"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), FAULTS.values(), ids=FAULTS.keys())
def test_each_fault_has_its_name(change: Change, expected: str) -> None:
    document = copy.deepcopy(ANALYSIS)
    (channel,) = document["analytics"].values()
    change(document, channel, channel["contractions"][0])
    assert said(document) == expected
    assert expected.partition(":")[0] in CORRUPT
    assert any_fault(json.dumps(document).encode(), Settings()) == expected


SUMMARY_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a count of another list": (
        {"total_channels": 3}, "count-mismatch: total_channels is not the number of channels"
    ),
    "no count": ({"total_channels": None}, "wrong-type: total_channels is null"),
    "no share": ({"overall_compliance": 1.5}, "impossible-number: overall_compliance is no share"),
    "a share in words": ({"overall_compliance": "NaN"}, "number-as-string: overall_compliance"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), SUMMARY_FAULTS.values(), ids=SUMMARY_FAULTS.keys())
def test_faults_of_a_summary(change: dict[str, Any], expected: str) -> None:
    assert said({**SUMMARY, "summary": {**SUMMARY["summary"], **change}}) == expected


def test_faults_of_the_other_shapes() -> None:
    assert said({"channels": [1], "summary": {}}) == "wrong-type: channels are not all names"
    assert said({"channels_analyzed": -1}) == "impossible-number: channels_analyzed is no count"
    assert said({**SESSION, "cache_version": "1"}) == "unknown-version: cache_version is not one of 2.1"
    assert fault(b'{"channels_analyzed": 1e400}') == "impossible-number: one that no double can hold"
    deep = b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}"
    assert fault(deep) == "unparsable: nested too deeply, or with half a surrogate pair"
    assert fault(b'{"a": "\\ud800"}') == "unparsable: nested too deeply, or with half a surrogate pair"


def test_a_channel_whose_analysis_failed_keeps_its_counts() -> None:
    """The application then writes an empty list beside real counts."""
    document = copy.deepcopy(ANALYSIS)
    (channel,) = document["analytics"].values()
    channel.update(contractions=[], errors={"contractions": "failed"})
    assert said(document) is None
    channel.update(errors={"other": "failed"})
    assert said(document) is not None


def test_every_name_has_its_case() -> None:
    by_look = {"double-encoded", "not-an-object", "too-large", "unparsable"}
    assert {expected.partition(":")[0] for _, expected in FAULTS.values()} | by_look == set(CORRUPT)


@pytest.mark.parametrize("path", sorted(SHARED.glob("*/*.json")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_the_application_computes_is_sound(path: Path) -> None:
    assert fault(path.read_bytes()) is None


def test_the_demos_payloads_are_sound_but_for_the_planted_ones() -> None:
    faults = [
        any_fault(row.analytics_cache.encode(), Settings())
        for row in payloads.rows(600, 3)
        if row.analytics_cache not in (None, "{}")
    ]
    assert sum(found is not None for found in faults) == sum(payloads.CORRUPT.values())


values = st.recursive(
    st.just(MARK) | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just(MARK), inner, max_size=2),
    max_leaves=4,
)


@given(data=st.data(), value=values)
def test_whatever_stands_anywhere_it_ends_in_a_name_and_says_nothing_of_the_value(
    data: st.DataObject, value: Any
) -> None:
    document = copy.deepcopy(data.draw(st.sampled_from([ANALYSIS, SUMMARY, SESSION, {"channels_analyzed": 1}])))
    at: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], dict | list) or not at[key] or data.draw(st.booleans()):
            at[key] = value
            break
        at = at[key]
    found = said(document)
    assert found is None or (found.partition(":")[0] in CORRUPT and MARK not in found)

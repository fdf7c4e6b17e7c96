"""The payload: its keys and types, what is left out of it, and that JSON can hold it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachemig.emg.channel import expected_contractions
from cachemig.emg.payload import analytics, payload, processing_params, summary_payload
from cachemig.emg.profile import ERA, HEAD, PROFILES, Options, Profile
from cachemig.emg.recording import Recording
from tests.unit.emg.signals import Signal, activated, noise, recording, with_bursts

AT = datetime(2025, 8, 20, 12, 30, 15, 123456, tzinfo=timezone(timedelta(hours=2)))
RATE_HZ = 990.0
BURSTS_S = [(1.0, 2.0), (4.0, 7.0)]


def emg(seed: int = 1, seconds: float = 12.0) -> Signal:
    return with_bursts(noise(seconds, RATE_HZ, seed), RATE_HZ, BURSTS_S)


FIELDS = {
    "expected_contractions",
    "rms",
    "mav",
    "mpf",
    "mdf",
    "fatigue_index_fi_nsm5",
    "rms_temporal_stats",
    "mav_temporal_stats",
    "fatigue_index_temporal_stats",
    "mpf_temporal_stats",
    "mdf_temporal_stats",
    "signal_processing",
    "contraction_count",
    "avg_duration_ms",
    "min_duration_ms",
    "max_duration_ms",
    "total_time_under_tension_ms",
    "avg_amplitude",
    "max_amplitude",
    "contractions",
    "good_contraction_count",
    "duration_threshold_actual_value",
    "mvc_estimation_method",
}
OWN_FIELDS = {
    "head": {"mvc_compliant_count", "duration_compliant_count", "mvc75_threshold", "compliance_rate"},
    "era": {"mvc_contraction_count", "duration_contraction_count", "mvc_threshold_actual_value"},
}


@pytest.mark.parametrize("profile", PROFILES)
def test_fields_of_a_record(profile: str) -> None:
    (record,) = analytics(recording({"CH1": emg()}, RATE_HZ), PROFILES[profile], Options()).values()
    assert record.keys() == FIELDS | OWN_FIELDS[profile]
    assert record["contraction_count"] == 2


@pytest.mark.parametrize("profile", PROFILES)
def test_no_contraction(profile: str) -> None:
    silent = recording({"CH1": emg(), "CH1 activated": np.zeros(round(12 * RATE_HZ))}, RATE_HZ)
    (record,) = analytics(silent, PROFILES[profile], Options()).values()
    assert record.keys() == (FIELDS | OWN_FIELDS[profile]) - {"compliance_rate"}
    assert record["contractions"] == []
    for name in ("avg_duration_ms", "min_duration_ms", "max_duration_ms", "total_time_under_tension_ms"):
        assert json.dumps(record[name]) == "0.0"
    for name in ("avg_amplitude", "max_amplitude"):
        assert json.dumps(record[name]) == "0.0"
    assert record["contraction_count"] == record["good_contraction_count"] == 0


def test_good_contractions_are_a_part_of_all() -> None:
    (record,) = analytics(
        recording({"CH1": emg()}, RATE_HZ), HEAD, Options(contraction_duration_threshold_ms=2000)
    ).values()
    assert [one["is_good"] for one in record["contractions"]] == [False, True]
    assert (record["good_contraction_count"], record["mvc_compliant_count"]) == (1, 2)
    assert record["duration_compliant_count"] == 1
    assert record["compliance_rate"] == 0.5


def test_contractions_are_judged_by_the_applied_threshold_not_the_reported_one() -> None:
    made = recording({"CH1": emg()}, RATE_HZ)
    strongest = analytics(made, HEAD, Options())["CH1"]["max_amplitude"]
    options = Options(session_mvc_threshold_percentage=None, session_mvc_values={"CH1": strongest / 0.72})
    record = analytics(made, HEAD, options)["CH1"]
    assert record["mvc_compliant_count"] == 0
    assert record["mvc75_threshold"] == pytest.approx(strongest / 0.72 * 0.7)
    assert record["mvc75_threshold"] < strongest


@pytest.mark.parametrize("mvc", [None, 2.0])
def test_no_duration_threshold_is_no_error(mvc: float | None) -> None:
    options = Options(
        contraction_duration_threshold_ms=None,
        session_mvc_threshold_percentages={"CH1": None},
        session_mvc_value=mvc,
    )
    (record,) = analytics(recording({"CH1": emg()}, RATE_HZ), HEAD, options).values()
    assert record["duration_threshold_actual_value"] is None
    assert "errors" not in record
    assert record["contraction_count"] == 2
    assert record["good_contraction_count"] == record["mvc_compliant_count"]


def test_threshold_factor_is_for_the_envelope_only() -> None:
    raw = emg()
    plain = recording({"CH1": raw}, RATE_HZ)
    gated = recording({"CH1": raw, "CH1 activated": activated(raw, RATE_HZ, BURSTS_S)}, RATE_HZ)
    insensitive = Options(threshold_factor=1.0)
    assert analytics(plain, HEAD, insensitive)["CH1"]["contraction_count"] == 0
    assert analytics(gated, HEAD, insensitive) == analytics(gated, HEAD, Options())
    assert analytics(gated, HEAD, insensitive)["CH1"]["contraction_count"] == 2


def test_a_muscle_with_a_fault_is_left_out_and_keeps_its_rank() -> None:
    broken = emg()
    broken[100] = np.nan
    signals = {"a": np.zeros(len(broken)), "b": emg(2), "c": broken, "d": emg(3)}
    options = Options(
        session_expected_contractions=9, session_expected_contractions_ch1=1, session_expected_contractions_ch2=2
    )
    found = analytics(recording(signals, RATE_HZ), HEAD, options)
    assert {name: record["expected_contractions"] for name, record in found.items()} == {"b": 2, "d": 9}


def test_a_short_recording_has_no_analytics_in_head() -> None:
    short = recording({"CH1": emg(seconds=6.0)}, RATE_HZ)
    assert payload(short, HEAD, Options(), AT)["analytics"] == {}
    assert analytics(short, ERA, Options()).keys() == {"CH1"}
    assert summary_payload(short, HEAD, Options(), None) == {
        "channels": [],
        "summary": {"total_channels": 0, "overall_compliance": 0.0},
    }


@pytest.mark.parametrize(
    ("rank", "of_all", "first", "second", "expected"),
    [
        (0, None, None, None, None),
        (0, 5, None, None, 5),
        (0, 5, 0, 7, 0),
        (1, 5, 6, 7, 7),
        (1, 5, 6, None, 5),
        (2, 5, 6, 7, 5),
        (2, None, 6, 7, None),
    ],
)
def test_expected_contractions(
    rank: int, of_all: int | None, first: int | None, second: int | None, expected: int | None
) -> None:
    options = Options(
        session_expected_contractions=of_all,
        session_expected_contractions_ch1=first,
        session_expected_contractions_ch2=second,
    )
    assert expected_contractions(rank, options) == expected


def test_the_full_entry() -> None:
    entry = payload(recording({"CH1": emg()}, RATE_HZ), HEAD, Options(), AT)
    assert list(entry) == ["analytics", "processing_params", "processing_version", "cached_at"]
    assert entry["processing_version"] == "2.1.0"
    assert entry["cached_at"] == "2025-08-20T10:30:15.123456"
    assert json.dumps(entry["processing_params"]) == json.dumps(
        {
            "sampling_rate_hz": 990.0,
            "processing_version": "2.1.0",
            "filter_low_cutoff_hz": 20.0,
            "filter_high_cutoff_hz": 500.0,
            "filter_order": 4,
            "rms_window_ms": 50.0,
            "rms_overlap_percent": 50.0,
            "mvc_window_seconds": 3.0,
            "mvc_threshold_percentage": 75.0,
            "threshold_factor": 0.1,
            "min_duration_ms": 100,
            "smoothing_window": 100,
            "activated_threshold_factor": 0.05,
            "merge_threshold_ms": 200,
            "refractory_period_ms": 0,
        }
    )


def test_the_full_entry_of_era() -> None:
    entry = payload(recording({"CH1": emg()}, RATE_HZ), ERA, Options(), AT)
    assert entry["processing_version"] == "v2.1.0"
    assert entry["processing_params"] == {}


@pytest.mark.parametrize("rate_hz", [None, 0.0])
def test_params_without_a_rate_and_with_other_options(rate_hz: float | None) -> None:
    made = Recording(("CH1",), np.zeros((1, 10)), rate_hz)
    options = Options(
        threshold_factor=1, min_duration_ms=5, smoothing_window_samples=6, session_mvc_threshold_percentage=None
    )
    params = processing_params(made, HEAD, options)
    assert json.dumps(params["sampling_rate_hz"]) == "2000"
    assert json.dumps(params["threshold_factor"]) == "1.0"
    assert params["mvc_threshold_percentage"] is None
    assert (params["min_duration_ms"], params["smoothing_window"]) == (5, 6)
    options = Options(session_mvc_threshold_percentage=60)
    assert json.dumps(processing_params(made, HEAD, options)["mvc_threshold_percentage"]) == "60.0"


def test_the_short_entry() -> None:
    raw = emg()
    made = recording({"b": raw, "a": raw, "a activated": np.zeros(len(raw)), "z": np.zeros(len(raw))}, RATE_HZ)
    entry = summary_payload(made, HEAD, Options(), AT)
    assert entry == {
        "channels": ["a", "b"],
        "summary": {
            "total_channels": 2,
            "overall_compliance": 0.25,  # b's 0.5, and 0 for a, which has none
            "cached_at": "2025-08-20T10:30:15.123456+00:00",
        },
    }
    assert summary_payload(made, ERA, Options(), None)["summary"] == {"total_channels": 2, "overall_compliance": 0.0}


def test_the_whole_second_has_its_microseconds() -> None:
    made = Recording(("CH1",), np.zeros((1, 10)), None)
    whole = datetime(2025, 9, 27, tzinfo=UTC)
    assert payload(made, ERA, Options(), whole)["cached_at"] == "2025-09-27T00:00:00.000000"


def test_a_time_without_a_zone_is_refused() -> None:
    made = Recording(("CH1",), np.zeros((1, 10)), None)
    naive = AT.replace(tzinfo=None)
    with pytest.raises(ValueError, match="cached_at"):
        payload(made, HEAD, Options(), naive)
    with pytest.raises(ValueError, match="cached_at"):
        summary_payload(made, HEAD, Options(), naive)


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


# What a file's float32 may hold, and what it may not: of a raw signal only the former, for such a muscle is left out.
held = [0.0, 1e-45, -1e-12, 1e-10, 1e-6, -5.5e-3, 1.0, 32768.0, -1e20, 3.4e38, -3.4e38]
not_held = [1e300, -1e308, np.inf, -np.inf, np.nan]
options = st.builds(
    Options,
    threshold_factor=st.sampled_from([-1.0, 0.0, 0.1, 1e12]),
    min_duration_ms=st.sampled_from([-100, 0, 100, 10**12]),
    smoothing_window_samples=st.sampled_from([-1, 0, 1, 100, 10**12]),
    session_mvc_threshold_percentage=st.sampled_from([None, 0.0, 75.0, -1e12]),
    contraction_duration_threshold_ms=st.sampled_from([None, 0, 2000, 1e12]),
    session_mvc_value=st.sampled_from([None, 0.0, 1e12]),
    session_mvc_values=st.sampled_from([{}, {"a": None}, {"a": 1e12}]),
    session_mvc_threshold_percentages=st.sampled_from([{}, {"a": None}, {"a": 1e12}]),
    session_duration_thresholds_s=st.sampled_from([{}, {"a": None}, {"a": 1e12}]),
)


@st.composite
def made_up(draw: st.DrawFn, values: list[float], length: int) -> Signal:
    """Steps, or noise on steps, with single samples replaced."""
    levels = draw(st.lists(st.sampled_from(values), min_size=1, max_size=6))
    volts = draw(st.sampled_from([0.0, 1e-10, 1e-6, 1e-3, 1e30]))
    random = np.random.default_rng(draw(st.integers(0, 9)))
    signal = np.resize(np.repeat(levels, length // len(levels)), length) + volts * random.standard_normal(length)
    for at in draw(st.lists(st.integers(0, length - 1), max_size=4)):
        signal[at] = draw(st.sampled_from(values))
    return signal


@settings(max_examples=150)
@given(
    data=st.data(),
    length=st.sampled_from([1, 1000, 3000]),
    rate_hz=st.none() | st.sampled_from([5.0, 19.9, 40.0, 40.000001, 99.0, 990.0]) | st.floats(1.0, 1e6),
    profile=st.sampled_from([HEAD, ERA]),
    options=options,
)
def test_every_payload_is_plain_and_finite(
    data: st.DataObject, length: int, rate_hz: float | None, profile: Profile, options: Options
) -> None:
    channels = {"a": np.clip(data.draw(made_up(held, length)), -3.4e38, 3.4e38)}
    if data.draw(st.booleans()):
        channels["a activated"] = data.draw(made_up(held + not_held, length))
    made = recording(channels, rate_hz)
    for entry in (payload(made, profile, options, AT), summary_payload(made, profile, options, AT)):
        assert {type(leaf) for leaf in leaves(entry)} <= {int, float, str, bool, type(None)}
        assert json.loads(json.dumps(entry, allow_nan=False)) == entry

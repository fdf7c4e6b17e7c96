"""The measures of a signal, and their statistics over windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.emg.spectrum import metrics, spectral
from cachemig.emg.windows import statistics, temporal_statistics, windows
from tests.unit.emg import reference
from tests.unit.emg.agreement import disagreements
from tests.unit.emg.signals import Signal, noise


def tone(frequency_hz: float, rate_hz: float, samples: int) -> Signal:
    return np.asarray(np.sin(2 * np.pi * frequency_hz * np.arange(samples) / rate_hz), dtype=np.float64)


def one_row(values: Signal, rate_hz: float) -> dict[str, float | None]:
    return {
        name: None if np.isnan(value[0]) else float(value[0])
        for name, value in metrics(values[np.newaxis], rate_hz)._asdict().items()
    }


@pytest.mark.parametrize("samples", [256, 257, 383, 384, 385, 990, 5000])
@pytest.mark.parametrize("rate_hz", [990.0, 1234.5])
def test_one_row_as_the_reference(samples: int, rate_hz: float) -> None:
    values = noise(samples / rate_hz, rate_hz, samples) + 1e-6
    assert disagreements(one_row(values, rate_hz), reference.five(values.tolist(), rate_hz)) == []


def test_rows_do_not_touch_each_other() -> None:
    rows = np.stack([noise(1.0, 990.0, seed) for seed in range(4)])
    rows[2] = 3e-4
    together = metrics(rows, 990.0)
    for row in range(4):
        alone = metrics(rows[row : row + 1], 990.0)
        for ours, theirs in zip(together, alone, strict=True):
            assert ours[row] == pytest.approx(theirs[0], rel=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    "values",
    [
        noise(255 / 990, 990.0, 1),
        np.full(2000, 0.25),
        0.99e-10 * np.where(np.arange(2000) % 2, 1.0, -1.0),
        np.concatenate([np.zeros(256), np.ones(127)]),  # varies, but in no complete segment
    ],
    ids=["too short", "constant", "nearly constant", "no power"],
)
def test_no_spectrum(values: Signal) -> None:
    found = one_row(values, 990.0)
    assert [found[name] for name in ("mpf", "mdf", "fatigue_index")] == [None] * 3
    assert found["rms"] is not None


def test_no_fatigue_index_where_its_denominator_is_0() -> None:
    values = 2e-162 * tone(1.0, 256.0, 1000)
    values[900:] = 1.0  # behind the last complete segment
    found = one_row(values, 1.0)
    assert found["mpf"] is not None
    assert found["fatigue_index"] is None


def test_a_tone_has_its_own_frequency() -> None:
    rate_hz = 1024.0
    mpf, mdf, fatigue = (float(value[0]) for value in spectral(tone(100.0, rate_hz, 8192)[np.newaxis], rate_hz))
    assert mpf == pytest.approx(100.0, rel=1e-3)
    assert mdf == 100.0
    assert fatigue == pytest.approx(100.0**-6, rel=0.05)


def test_the_offset_is_in_the_amplitude_and_not_in_the_spectrum() -> None:
    values = tone(100.0, 1024.0, 8192)
    still, moved = one_row(values, 1024.0), one_row(values + 5, 1024.0)
    assert moved["mav"] == pytest.approx(5.0)
    assert moved["rms"] == pytest.approx(np.sqrt(25.5))
    assert moved["mpf"] == pytest.approx(still["mpf"], rel=1e-9)


@pytest.mark.parametrize(
    ("samples", "rate_hz", "count", "length"),
    [
        (989, 990.0, 0, 990),
        (990, 990.0, 1, 990),
        (990 + 494, 990.0, 1, 990),
        (990 + 495, 990.0, 2, 990),  # both ends inclusive
        (5000, 1234.5, 7, 1234),
        (10, 3.5, 8, 3),  # a step of one
        (10, 1.9, 0, 1),
        (10, 1.0, 0, 1),
        (10, 2.0, 9, 2),
    ],
)
def test_windows(samples: int, rate_hz: float, count: int, length: int) -> None:
    values = np.arange(float(samples))
    found = windows(values, rate_hz)
    assert found.shape == (count, length)
    step = max(1, int(length * 0.5))
    assert found[:, 0].tolist() == [float(step * at) for at in range(count)]


@pytest.mark.parametrize("seconds", [0.5, 1.0, 1.6, 2.0, 7.3])
@pytest.mark.parametrize("rate_hz", [200.0, 990.0, 1234.5])
def test_temporal_statistics_as_the_reference(seconds: float, rate_hz: float) -> None:
    values = noise(seconds, rate_hz, 4)
    ours = {f"{name}_temporal_stats": found for name, found in temporal_statistics(values, rate_hz).items()}
    assert disagreements(ours, reference.over_time(values.tolist(), rate_hz)) == []


def test_constant_windows_count_only_where_they_are_defined() -> None:
    values = np.concatenate([np.full(3000, 1e-3), noise(2.5, 1000.0, 5)])
    found = temporal_statistics(values, 1000.0)
    assert found["rms"]["valid_windows"] == 10
    assert found["mpf"]["valid_windows"] == found["mdf"]["valid_windows"] == 5
    assert found["fatigue_index"]["valid_windows"] == 5


finite = st.floats(-1e6, 1e6) | st.just(float("nan"))


@given(values=st.lists(finite, max_size=8))
def test_statistics_as_the_reference(values: list[float]) -> None:
    ours = statistics(np.array(values, dtype=np.float64))
    theirs = reference.five_numbers([value for value in values if value == value])
    assert ours.keys() == theirs.keys()
    assert ours["valid_windows"] == theirs["valid_windows"]
    for name, value in theirs.items():
        if value is None:
            assert name == "coefficient_of_variation" or ours[name] is None
        elif name != "coefficient_of_variation":  # a mean near zero is rounding, here and there
            assert ours[name] == pytest.approx(value, rel=1e-9, abs=1e-9)


def test_few_windows_and_a_mean_of_zero() -> None:
    nothing = dict.fromkeys(("mean_value", "std_value", "min_value", "max_value", "coefficient_of_variation"))
    assert statistics(np.array([1.0, 2.0, np.nan])) == {**nothing, "valid_windows": 2}
    assert statistics(np.empty(0)) == {**nothing, "valid_windows": 0}
    assert statistics(np.array([-1.0, 0.0, 1.0])) == {
        "mean_value": 0.0,
        "std_value": 1.0,
        "min_value": -1.0,
        "max_value": 1.0,
        "valid_windows": 3,
        "coefficient_of_variation": None,
    }

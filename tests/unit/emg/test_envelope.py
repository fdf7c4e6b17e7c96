"""The envelope: its steps one by one, and at every sampling rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal

from cachemig.emg.envelope import envelope, moving_average, zero_phase
from tests.unit.emg import reference
from tests.unit.emg.signals import noise

numbers = st.floats(-1e3, 1e3, allow_nan=False)


@given(values=st.lists(numbers, min_size=1, max_size=40), window=st.integers(1, 100))
def test_moving_average_as_the_definition(values: list[float], window: int) -> None:
    ours = moving_average(np.array(values), window)
    assert len(ours) == len(values)
    assert np.allclose(ours, reference.box(values, window), rtol=1e-12, atol=1e-12)


def test_an_even_window_reaches_further_back() -> None:
    pulse = np.zeros(12)
    pulse[5] = 4.0
    assert moving_average(pulse, 4).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert moving_average(pulse, 3)[3:8] == pytest.approx([0, 4 / 3, 4 / 3, 4 / 3, 0])


def test_there_are_zeros_beyond_the_ends() -> None:
    assert moving_average(np.ones(6), 4).tolist() == [0.5, 0.75, 1.0, 1.0, 1.0, 0.75]


@pytest.mark.parametrize("kind", ["highpass", "lowpass"])
@pytest.mark.parametrize("rate_hz", [500.0, 990.0, 1234.5])
def test_sections_give_what_the_transfer_function_gives(kind: str, rate_hz: float) -> None:
    values = np.abs(noise(2.0, rate_hz, 1)) + 1e-6
    b, a = signal.butter(4, 15.0 / (rate_hz / 2), btype=kind)
    expected = signal.filtfilt(b, a, values)
    ours = zero_phase(values, 15.0, kind, rate_hz)
    assert np.max(np.abs(ours - expected)) <= 1e-10 * np.max(np.abs(expected))


@pytest.mark.parametrize(
    ("rate_hz", "steps", "window"),
    [
        (990.0, "High-pass Full-wave Low-pass Moving", 49),
        (1000.0, "High-pass Full-wave Low-pass Moving", 50),
        (40.1, "High-pass Full-wave Low-pass Moving", 2),
        (40.0, "Full-wave Low-pass Moving", 2),
        (20.1, "Full-wave Low-pass Moving", 1),
        (20.0, "Full-wave Moving", 1),
        (19.9, "Full-wave", None),
    ],
)
def test_steps_that_a_rate_allows(rate_hz: float, steps: str, window: int | None) -> None:
    done = envelope(noise(1000 / rate_hz, rate_hz, 2), rate_hz)
    assert [step.split()[0] for step in done.steps] == steps.split()
    assert done.parameters.get("smoothing_window_samples") == window
    assert ("highpass_cutoff_hz" in done.parameters) is ("High-pass" in steps)
    assert ("filter_order" in done.parameters) is ("lowpass_cutoff_hz" in done.parameters) is ("Low-pass" in steps)
    assert ("smoothing_window_ms" in done.parameters) is (window is not None)


def test_what_is_said_of_the_steps() -> None:
    done = envelope(noise(2.0, 990.0, 3), 990.0)
    assert done.steps == [
        "High-pass filter: 20.0Hz, order 4",
        "Full-wave rectification",
        "Low-pass filter for envelope: 10.0Hz, order 4",
        "Moving average smoothing: 50.0ms window (49 samples)",
    ]
    assert done.parameters == {
        "highpass_cutoff_hz": 20.0,
        "rectification_enabled": True,
        "lowpass_cutoff_hz": 10.0,
        "filter_order": 4,
        "smoothing_window_ms": 50.0,
        "smoothing_window_samples": 49,
    }


@given(rate_hz=st.floats(1.0, 1e6), seed=st.integers(0, 99))
def test_finite_at_every_rate(rate_hz: float, seed: int) -> None:
    raw = np.random.default_rng(seed).standard_normal(1000)
    done = envelope(raw, rate_hz)
    assert done.volts.shape == raw.shape
    assert np.all(np.abs(done.volts) <= 100)

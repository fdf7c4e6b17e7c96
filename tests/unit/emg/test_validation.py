"""Which signals are not analysed, and for which reason first."""

from __future__ import annotations

import numpy as np
import pytest

from cachemig.emg.profile import ERA, HEAD
from cachemig.emg.validation import LARGEST_SAMPLE, fault


def wave(samples: int, amplitude: float = 1.0) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Population standard deviation = amplitude, exactly."""
    return amplitude * np.where(np.arange(samples) % 2, 1.0, -1.0)


@pytest.mark.parametrize(
    ("samples", "rate_hz", "head", "era"),
    [
        (998, 10.0, "too-few-samples", "too-few-samples"),
        (999, 50.0, "too-few-samples", "too-few-samples"),
        (1000, 100.0, None, None),
        (999, 1e4, "too-few-samples", "too-few-samples"),
        (1000, 100.2, "too-short", None),
        (9900, 990.0, None, None),
        (9898, 990.0, "too-short", None),
        (6000, 10.0, None, None),
        (6002, 10.0, "too-long", None),
    ],
)
def test_lengths(samples: int, rate_hz: float, head: str | None, era: str | None) -> None:
    assert fault(wave(samples), rate_hz, HEAD) == head
    assert fault(wave(samples), rate_hz, ERA) == era


@pytest.mark.parametrize(("std", "found"), [(1e-10, None), (0.999e-10, "no-variation"), (0.0, "no-variation")])
def test_variation(std: float, found: str | None) -> None:
    assert fault(wave(20_000, std), 1000.0, HEAD) == found
    assert fault(wave(20_000, std), 1000.0, ERA) == found


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 4e38, 1e308, -1e308])
@pytest.mark.parametrize("at", [0, 777, -1])
def test_samples_that_no_file_holds(bad: float, at: int) -> None:
    values = wave(20_000)
    values[at] = bad
    assert fault(values, 1000.0, HEAD) == "not-finite"
    assert fault(values, 1000.0, ERA) == "not-finite"


def test_the_largest_sample_that_a_file_holds() -> None:
    assert fault(wave(20_000, LARGEST_SAMPLE), 1000.0, HEAD) is None


def test_the_first_reason_wins() -> None:
    silent, broken = np.zeros(2000), np.full(2000, np.nan)
    assert fault(silent[:10], 1000.0, HEAD) == "too-few-samples"
    assert fault(broken[:10], 1.0, HEAD) == "too-few-samples"
    assert fault(silent, 1000.0, HEAD) == fault(broken, 1000.0, HEAD) == "too-short"
    assert fault(silent, 1.0, HEAD) == fault(broken, 1.0, HEAD) == "too-long"
    assert fault(silent, 1000.0, ERA) == "no-variation"
    assert fault(broken, 1000.0, ERA) == "not-finite"

"""How the measures of a raw signal change over a recording: statistics over windows of one second."""

from __future__ import annotations

import math

import numpy as np

from cachemig.emg.recording import FloatArray, samples_in
from cachemig.emg.spectrum import Metrics, metrics

WINDOW_MS = 1000
OVERLAP_PERCENT = 50.0
FEWEST_WINDOWS = 3

Statistics = dict[str, float | int | None]


def windows(raw: FloatArray, rate_hz: float) -> FloatArray:
    """All whole windows of a signal, shape (windows, samples of one), as a view; no row where none fits."""
    length = samples_in(WINDOW_MS, rate_hz)
    if length <= 1 or len(raw) < length:
        return np.empty((0, max(length, 1)))
    step = max(1, math.trunc(length * (1 - OVERLAP_PERCENT / 100)))
    return np.lib.stride_tricks.sliding_window_view(raw, length)[::step]


def temporal_statistics(raw: FloatArray, rate_hz: float) -> dict[str, Statistics]:
    """Statistics over windows of each of the five measures, by the measure's name."""
    rows = windows(raw, rate_hz)
    if not len(rows):
        return {name: statistics(np.empty(0)) for name in Metrics._fields}
    return {name: statistics(values) for name, values in metrics(rows, rate_hz)._asdict().items()}


def statistics(values: FloatArray) -> Statistics:
    """Mean, sample standard deviation (n - 1), extremes and coefficient of variation of what is not NaN.

    All None for fewer than three values; the coefficient is None for a mean of zero.
    """
    valid = values[~np.isnan(values)]
    if len(valid) < FEWEST_WINDOWS:
        return {
            "mean_value": None,
            "std_value": None,
            "min_value": None,
            "max_value": None,
            "valid_windows": len(valid),
            "coefficient_of_variation": None,
        }
    mean, std = float(np.mean(valid)), float(np.std(valid, ddof=1))
    return {
        "mean_value": mean,
        "std_value": std,
        "min_value": float(valid.min()),
        "max_value": float(valid.max()),
        "valid_windows": len(valid),
        "coefficient_of_variation": std / mean if mean else None,
    }

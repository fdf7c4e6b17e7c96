"""Made-up EMG: noise, bursts, drift, saturation. Seeded, so the same everywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cachemig.emg.recording import Recording

Signal = NDArray[np.float64]

SATURATION_V = 5.5e-3


def noise(seconds: float, rate_hz: float, seed: int, volts: float = 2e-6) -> Signal:
    """Noise with the slope of EMG: what a short moving average makes of white noise."""
    white = np.random.default_rng(seed).standard_normal(round(seconds * rate_hz))
    return np.asarray(volts * np.convolve(white, [0.5, 0.3, 0.2], "same"), dtype=np.float64)


def with_bursts(rest: Signal, rate_hz: float, bursts_s: list[tuple[float, float]], factor: float = 60.0) -> Signal:
    """The signal, louder from start to end of each burst."""
    loud = rest.copy()
    for start_s, end_s in bursts_s:
        part = slice(round(start_s * rate_hz), round(end_s * rate_hz))
        loud[part] *= factor
    return loud


def with_drift(values: Signal, volts: float) -> Signal:
    return values + np.linspace(-volts, volts, len(values)) + volts / 3


def saturated(values: Signal, gain: float) -> Signal:
    return np.clip(values * gain, -SATURATION_V, SATURATION_V)


def activated(raw: Signal, rate_hz: float, bursts_s: list[tuple[float, float]]) -> Signal:
    """A game's activated channel: the raw signal where it takes the muscle for active, zeros elsewhere."""
    gate = np.zeros_like(raw)
    for start_s, end_s in bursts_s:
        gate[round(start_s * rate_hz) : round(end_s * rate_hz)] = 1.0
    return raw * gate


def recording(channels: dict[str, Signal], rate_hz: float | None) -> Recording:
    return Recording(tuple(channels), np.stack(list(channels.values())), rate_hz)

"""Which signals are not analysed at all."""

from __future__ import annotations

from typing import Literal

import numpy as np

from cachemig.emg.profile import Profile
from cachemig.emg.recording import FloatArray

Fault = Literal["too-few-samples", "too-short", "too-long", "no-variation", "not-finite"]

FEWEST_SAMPLES = 1000
LEAST_STD_V = 1e-10
"""A signal with less variation is taken for constant; whatever its PSD shows is rounding."""

LARGEST_SAMPLE = float(np.finfo(np.float32).max)


def fault(raw: FloatArray, rate_hz: float, profile: Profile) -> Fault | None:
    """Why a raw signal, shape (samples,), cannot be analysed; the first reason that holds, or None.

    A sample beyond the range of a C3D file's float32 counts as not finite. So all that is computed from a signal
    without fault is finite.
    """
    samples = len(raw)
    duration_s = samples / rate_hz
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinite samples: the last test is theirs
        std = float(np.std(raw))
    if samples < FEWEST_SAMPLES:
        return "too-few-samples"
    if profile.shortest_recording_s is not None and duration_s < profile.shortest_recording_s:
        return "too-short"
    if profile.longest_recording_s is not None and duration_s > profile.longest_recording_s:
        return "too-long"
    if std < LEAST_STD_V:
        return "no-variation"
    if not bool(np.all(np.abs(raw) <= LARGEST_SAMPLE)):
        return "not-finite"
    return None

"""A recording as arrays: what was read from a C3D file, before anything is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

FALLBACK_SAMPLING_RATE_HZ = 2000
"""Used where the file names no rate. An integer: the payload shows it as one."""

LOWEST_SAMPLING_RATE_HZ = 1.0
HIGHEST_SAMPLING_RATE_HZ = 1e6


@dataclass(frozen=True, eq=False)
class Recording:
    """Analog channels in volts, equally long and sampled at one rate.

    `labels` are those of ANALOG:LABELS, as they stand in the file; there may be fewer or more than channels.
    `samples` has the shape (channels, samples), float64, offset and scale already applied. `sampling_rate_hz` is None
    or 0 where the file has none.

    ValueError: no channel or no sample; not a float64 matrix; a rate that no EMG amplifier has (below 1 Hz, above
    1 MHz, NaN). Such a rate is damage, and would end in overflow or in filters of a million taps.
    """

    labels: tuple[str, ...]
    samples: FloatArray
    sampling_rate_hz: float | None

    def __post_init__(self) -> None:
        if self.samples.ndim != 2 or self.samples.dtype != np.float64:
            raise ValueError(f"samples: a float64 matrix is wanted, not {self.samples.ndim}-d {self.samples.dtype}")
        if not self.samples.size:
            raise ValueError("the recording has no analog samples")
        rate = self.sampling_rate_hz
        if rate and not LOWEST_SAMPLING_RATE_HZ <= rate <= HIGHEST_SAMPLING_RATE_HZ:
            raise ValueError(f"a sampling rate of {rate:g} Hz; 1 Hz to 1 MHz is possible")

    @property
    def rate_hz(self) -> float:
        """The rate to compute with, Hz: the file's, else the fallback."""
        return float(self.sampling_rate_hz or FALLBACK_SAMPLING_RATE_HZ)


def samples_in(ms: float, rate_hz: float) -> int:
    """Whole samples in a time, truncated toward zero.

    First the division, then the product: (ms/1000)*rate and ms*rate/1000 can lie on either side of an integer.
    """
    return math.trunc((ms / 1000) * rate_hz)

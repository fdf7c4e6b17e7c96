"""Amplitude and spectral measures of raw EMG, one per row of a matrix.

The signal is taken as recorded: offset, drift and saturation are in every figure.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from cachemig.emg.recording import FloatArray
from cachemig.emg.validation import LEAST_STD_V

SEGMENT_SAMPLES = 256

BoolArray = NDArray[np.bool_]


class Metrics(NamedTuple):
    """One value per row, shape (rows,). NaN stands for "not defined" in the three that come from a spectrum."""

    rms: FloatArray
    """Root mean square, volts."""
    mav: FloatArray
    """Mean absolute value, volts."""
    mpf: FloatArray
    """Mean power frequency, Hz."""
    mdf: FloatArray
    """Median frequency, Hz: the lowest bin with half the power at or below it, so a multiple of rate/256."""
    fatigue_index: FloatArray
    """FInsm5: the spectral moment of order -1 over that of order 5, Hz^-6."""


def metrics(rows: FloatArray, rate_hz: float) -> Metrics:
    """The five measures of each row of `rows`, shape (rows, samples), volts.

    RMS and MAV: Phinyomark et al., "Feature reduction and selection for EMG signal classification", Expert Syst. Appl.
    39 (2012). Spectral ones: see `spectral`.
    """
    rms = np.sqrt(np.mean(np.square(rows), axis=1))
    mav = np.mean(np.abs(rows), axis=1)
    return Metrics(rms, mav, *spectral(rows, rate_hz))


def spectral(rows: FloatArray, rate_hz: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean frequency, median frequency and FInsm5 of each row; NaN where a row has fewer than 256 samples, does not
    vary, or has no power.

    The density is Welch's (IEEE Trans. Audio Electroacoust. 15, 1967) with scipy.signal.welch's defaults: periodic
    Hann windows of 256 samples, half overlapping, each without its mean. Mean and median frequency: Stulen and De
    Luca, IEEE Trans. Biomed. Eng. 28 (1981). FInsm5: Dimitrov et al., "Muscle fatigue during dynamic contractions
    assessed by new spectral indices", Med. Sci. Sports Exerc. 38 (2006).
    """
    undefined = np.full(len(rows), np.nan)
    if rows.shape[1] < SEGMENT_SAMPLES:
        return undefined, undefined, undefined
    frequencies_hz, power = _welch(rows, rate_hz)
    total = power.sum(axis=1)
    defined = (np.std(rows, axis=1) >= LEAST_STD_V) & (total > 0)
    mpf = _quotient(power @ frequencies_hz, total, defined)
    half = np.cumsum(power, axis=1) >= (0.5 * total)[:, np.newaxis]
    mdf = np.where(defined, frequencies_hz[np.argmax(half, axis=1)], np.nan)

    positive_hz, power = frequencies_hz[1:], power[:, 1:]
    fifth = power @ positive_hz**5
    fatigue_index = _quotient(power @ (1 / positive_hz), fifth, defined & (fifth > 0))
    return mpf, mdf, fatigue_index


def _welch(rows: FloatArray, rate_hz: float) -> tuple[FloatArray, FloatArray]:
    """Bins in Hz, and the density of each row, shape (rows, bins).

    The segments are cut here and are the rows of one call, their mean taken here too: given longer rows, SciPy goes
    from segment to segment in Python, which takes several times as long.
    """
    segments = np.lib.stride_tricks.sliding_window_view(rows, SEGMENT_SAMPLES, axis=1)[:, :: SEGMENT_SAMPLES // 2]
    frequencies_hz: FloatArray
    densities: FloatArray  # shape (rows, segments, bins)
    frequencies_hz, densities = signal.welch(segments, fs=rate_hz, nperseg=SEGMENT_SAMPLES)
    return frequencies_hz, densities.mean(axis=1)


def _quotient(above: FloatArray, below: FloatArray, defined: BoolArray) -> FloatArray:
    quotient = np.full(len(above), np.nan)
    np.divide(above, below, out=quotient, where=defined)
    return quotient

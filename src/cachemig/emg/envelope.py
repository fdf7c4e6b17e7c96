"""The linear envelope of a raw EMG: high-pass, rectification, low-pass, moving average.

The usual chain of De Luca, "The use of surface electromyography in biomechanics", J. Appl. Biomech. 13 (1997).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import signal

from cachemig.emg.recording import FloatArray, samples_in

HIGHPASS_CUTOFF_HZ = 20.0
LOWPASS_CUTOFF_HZ = 10.0
FILTER_ORDER = 4
SMOOTHING_WINDOW_MS = 50.0

# filtfilt's default for a 4th-order transfer function (three times the number of its coefficients). The default of
# sosfiltfilt is another one, and the ends of the envelope depend on it.
PADDING_SAMPLES = 3 * (FILTER_ORDER + 1)


@dataclass(frozen=True, eq=False)
class Envelope:
    """`volts`, shape (samples,), may dip below zero. `steps` and `parameters` say what was done, as the payload does;
    a step that the sampling rate makes impossible is in neither.
    """

    volts: FloatArray
    steps: list[str]
    parameters: dict[str, Any]


def moving_average(values: FloatArray, window_samples: int) -> FloatArray:
    """Mean over a window of the same number of samples everywhere, with zeros beyond both ends; as long as `values`.

    An odd window is centred; an even one reaches one sample further back than forward. NumPy's "same" convolution
    with a box, but never longer than `values`, as that is where the box is the longer one.
    """
    box = np.ones(window_samples) / window_samples
    centre = (window_samples - 1) // 2
    return np.convolve(values, box)[centre : centre + len(values)]


def zero_phase(values: FloatArray, cutoff_hz: float, kind: str, rate_hz: float) -> FloatArray:
    """Butterworth of order 4, forward and backward (effective order 8, no delay); odd extension by 15 samples.

    scipy.signal.sosfiltfilt; Gustafsson, "Determining the initial states in forward-backward filtering", IEEE Trans.
    Signal Process. 44 (1996), is about such ends.

    The application filters by one transfer function instead. Rounding of its coefficients puts its gain at 0 Hz off by
    3e-11 at 1 kHz, 4e-10 at 2 kHz, 7e-9 at 4 kHz, 3e-7 at 10 kHz, differently on each CPU, and makes it unstable
    further up. Sections agree with it to 1e-9 wherever it is that good itself, and are finite at every rate.
    """
    sections = signal.butter(FILTER_ORDER, cutoff_hz / (rate_hz / 2), btype=kind, output="sos")
    filtered: FloatArray = signal.sosfiltfilt(sections, values, padlen=PADDING_SAMPLES)
    return filtered


def envelope(raw: FloatArray, rate_hz: float) -> Envelope:
    """The envelope of a raw signal, shape (samples,), volts; of more than 15 samples."""
    volts = raw
    steps = []
    parameters: dict[str, Any] = {}
    nyquist_hz = rate_hz / 2

    if HIGHPASS_CUTOFF_HZ / nyquist_hz < 1:
        volts = zero_phase(volts, HIGHPASS_CUTOFF_HZ, "highpass", rate_hz)
        steps.append(f"High-pass filter: {HIGHPASS_CUTOFF_HZ}Hz, order {FILTER_ORDER}")
        parameters["highpass_cutoff_hz"] = HIGHPASS_CUTOFF_HZ

    volts = np.abs(volts)
    steps.append("Full-wave rectification")
    parameters["rectification_enabled"] = True

    if LOWPASS_CUTOFF_HZ / nyquist_hz < 1:
        volts = zero_phase(volts, LOWPASS_CUTOFF_HZ, "lowpass", rate_hz)
        steps.append(f"Low-pass filter for envelope: {LOWPASS_CUTOFF_HZ}Hz, order {FILTER_ORDER}")
        parameters["lowpass_cutoff_hz"] = LOWPASS_CUTOFF_HZ
        parameters["filter_order"] = FILTER_ORDER

    window_samples = samples_in(SMOOTHING_WINDOW_MS, rate_hz)
    if window_samples > 0:
        volts = moving_average(volts, window_samples)
        steps.append(f"Moving average smoothing: {SMOOTHING_WINDOW_MS}ms window ({window_samples} samples)")
        parameters["smoothing_window_ms"] = SMOOTHING_WINDOW_MS
        parameters["smoothing_window_samples"] = window_samples

    return Envelope(volts, steps, parameters)

"""Finding contractions in a timing signal, and measuring them in an envelope.

Times go by the timing signal (the game's activated channel, where it recorded one), amplitudes by the envelope. Order:
smooth, level, runs, shortest duration and refractory time, merge, split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cachemig.emg.envelope import moving_average
from cachemig.emg.recording import FloatArray, samples_in

SILENCE = 1e-9
"""A smoothed timing signal that stays below this holds no contraction."""

LONGEST_CONTRACTION_MS = 10_000

Run = tuple[int, int]
"""Start and end as indices, the end exclusive; but for a run that reaches the last sample, whose end is that sample."""


@dataclass(frozen=True)
class Detection:
    """`factor` is the detection level as a part of the smoothed signal's maximum. `smoothing_window_samples` counts
    samples, not milliseconds, whatever the rate.
    """

    factor: float
    smoothing_window_samples: int
    min_duration_ms: float
    merge_ms: float
    refractory_ms: float


@dataclass(frozen=True)
class Contraction:
    """One contraction; field by field what the payload holds."""

    start_time_ms: float
    end_time_ms: float
    duration_ms: float
    mean_amplitude: float
    max_amplitude: float
    is_good: bool
    meets_mvc: bool
    meets_duration: bool


def detect(timing: FloatArray, rate_hz: float, how: Detection) -> list[Run]:
    """The contractions in a timing signal, shape (samples,), in time order.

    None in a signal that is silent or shorter than the smoothing window, nor with a window of 0. A timing signal with
    NaN or infinite samples has no level, and so no contraction.
    """
    window = how.smoothing_window_samples
    if window <= 0 or len(timing) < window:
        return []
    smooth = moving_average(np.abs(timing), window)
    peak = float(smooth.max())
    if not SILENCE <= peak < np.inf:
        return []
    refractory = samples_in(how.refractory_ms, rate_hz)
    found = runs_above(smooth, peak * how.factor)
    found = long_enough(found, samples_in(how.min_duration_ms, rate_hz), refractory)
    found = merged(found, samples_in(how.merge_ms, rate_hz))
    return split(found, samples_in(LONGEST_CONTRACTION_MS, rate_hz), max(1, refractory))


def runs_above(values: FloatArray, level: float) -> list[Run]:
    """Every stretch of samples above the level, and not at it."""
    above = values > level
    edges = np.flatnonzero(above[1:] != above[:-1]) + 1
    bounds: list[int] = edges.tolist()
    if above[0]:
        bounds.insert(0, 0)
    if above[-1]:
        bounds.append(len(values) - 1)  # not len(values): such a run is one sample short
    return list(zip(bounds[::2], bounds[1::2], strict=True))


def long_enough(runs: list[Run], shortest_samples: int, refractory_samples: int) -> list[Run]:
    """The runs that last, without those that begin too soon after the last one kept.

    Only the very first run is free of the second rule. Where it was too short itself, the next one is measured from
    sample 0, although nothing was kept before it.
    """
    kept: list[Run] = []
    for rank, (start, end) in enumerate(runs):
        if end - start < shortest_samples:
            continue
        last_end = kept[-1][1] if kept else 0
        if rank > 0 and start - last_end < refractory_samples:
            continue
        kept.append((start, end))
    return kept


def merged(runs: list[Run], gap_samples: int) -> list[Run]:
    """The runs, with those joined that lie at most the gap apart; a gap of 0 joins nothing."""
    joined: list[Run] = []
    for start, end in runs:
        if gap_samples > 0 and joined and start - joined[-1][1] <= gap_samples:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def split(runs: list[Run], longest_samples: int, pause_samples: int) -> list[Run]:
    """The runs, with those longer than allowed cut into pieces, a pause between two. Pieces may be of any length."""
    pieces: list[Run] = []
    for start, end in runs:
        if end - start <= longest_samples:
            pieces.append((start, end))
            continue
        for cut in range(start, end, longest_samples + pause_samples):
            pieces.append((cut, min(cut + longest_samples, end)))
    return pieces


def measure(
    runs: list[Run], envelope: FloatArray, rate_hz: float, mvc_v: float | None, duration_ms: float | None
) -> list[Contraction]:
    """Times, amplitudes and verdicts of the runs. Amplitudes are of |envelope|, shape (samples,), in volts, from start
    to end with both samples; the duration is the difference of the two. A threshold of None is never met; good is
    what meets all thresholds that there are, and at least one.
    """
    amplitude = np.abs(envelope)
    contractions = []
    for start, end in runs:
        segment = amplitude[start : end + 1]
        lasted_ms = ((end - start) / rate_hz) * 1000
        strongest = float(segment.max())
        meets_mvc = mvc_v is not None and strongest >= mvc_v
        meets_duration = duration_ms is not None and lasted_ms >= duration_ms
        asked = [met for met, limit in ((meets_mvc, mvc_v), (meets_duration, duration_ms)) if limit is not None]
        contractions.append(
            Contraction(
                start_time_ms=(start / rate_hz) * 1000,
                end_time_ms=(end / rate_hz) * 1000,
                duration_ms=lasted_ms,
                mean_amplitude=float(segment.mean()),
                max_amplitude=strongest,
                is_good=bool(asked) and all(asked),
                meets_mvc=meets_mvc,
                meets_duration=meets_duration,
            )
        )
    return contractions

"""The same analytics, written a second time, as slowly and as plainly as possible, to compare with.

Nothing of the package's own arithmetic is imported. Loops over samples, one SciPy call per window and per filter, and
the filters in the form of one transfer function, as the application has them. That form is good to 1e-9 up to about
2 kHz only, so recordings to compare with are not sampled faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import signal

Samples = list[float]
Pair = tuple[int, int]


@dataclass
class Rules:
    """A profile, once more, by hand."""

    version: str
    merge_ms: int
    refractory_ms: int
    absolute: bool
    limits_s: tuple[float, float] | None
    mvc_count: str
    duration_count: str
    threshold: str
    compliance: bool


RULES = {
    "head": Rules(
        version="2.1.0",
        merge_ms=200,
        refractory_ms=0,
        absolute=False,
        limits_s=(10.0, 600.0),
        mvc_count="mvc_compliant_count",
        duration_count="duration_compliant_count",
        threshold="mvc75_threshold",
        compliance=True,
    ),
    "era": Rules(
        version="v2.1.0",
        merge_ms=150,
        refractory_ms=50,
        absolute=True,
        limits_s=None,
        mvc_count="mvc_contraction_count",
        duration_count="duration_contraction_count",
        threshold="mvc_threshold_actual_value",
        compliance=False,
    ),
}


@dataclass
class Session:
    """The settings of a session, once more."""

    factor: float = 0.10
    min_ms: int = 100
    window: int = 100
    percentage: float | None = 75.0
    duration_ms: float | None = 2000
    mvc: float | None = None
    mvcs: dict[str, float | None] = field(default_factory=dict)
    percentages: dict[str, float | None] = field(default_factory=dict)
    durations_s: dict[str, float | None] = field(default_factory=dict)


def mean(values: Samples) -> float:
    return math.fsum(values) / len(values)


def deviation(values: Samples, less: int = 0) -> float:
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - less))


def box(values: Samples, width: int) -> Samples:
    """Output j is the mean of inputs j + (width-1)//2 - k for k in 0 … width-1, those outside being 0."""
    shift = (width - 1) // 2
    return [
        math.fsum(values[max(0, j + shift - width + 1) : max(0, j + shift + 1)]) / width for j in range(len(values))
    ]


def one_spectrum(x: Samples, fs: float) -> tuple[float | None, float | None, float | None]:
    if len(x) < 256 or deviation(x) < 1e-10:
        return None, None, None
    f, p = signal.welch(np.array(x), fs, nperseg=256)
    total = math.fsum(p)
    if total == 0:
        return None, None, None
    mpf = math.fsum(float(a * b) for a, b in zip(f, p, strict=True)) / total
    running = 0.0
    mdf = None
    for a, b in zip(f, p, strict=True):
        running += float(b)
        if running >= 0.5 * total:
            mdf = float(a)
            break
    below = math.fsum(float(b * a**5) for a, b in zip(f, p, strict=True) if a > 0)
    above = math.fsum(float(b / a) for a, b in zip(f, p, strict=True) if a > 0)
    return mpf, mdf, above / below if below else None


def five(x: Samples, fs: float) -> dict[str, float | None]:
    mpf, mdf, fatigue = one_spectrum(x, fs)
    return {
        "rms": math.sqrt(mean([v * v for v in x])),
        "mav": mean([abs(v) for v in x]),
        "mpf": mpf,
        "mdf": mdf,
        "fatigue_index": fatigue,
    }


def over_time(x: Samples, fs: float) -> dict[str, dict[str, Any]]:
    width = int(1.0 * fs)
    step = max(1, int(width * 0.5))
    found: dict[str, Samples] = {name: [] for name in ("rms", "mav", "mpf", "mdf", "fatigue_index")}
    at = 0
    while width > 1 and at + width <= len(x):
        for name, value in five(x[at : at + width], fs).items():
            if value is not None:
                found[name].append(value)
        at += step
    return {f"{name}_temporal_stats": five_numbers(values) for name, values in found.items()}


def five_numbers(values: Samples) -> dict[str, Any]:
    if len(values) < 3:
        numbers: list[float | None] = [None] * 5
    else:
        m, s = mean(values), deviation(values, 1)
        numbers = [m, s, min(values), max(values), s / m if m != 0 else None]
    names = ("mean_value", "std_value", "min_value", "max_value", "coefficient_of_variation")
    return {**dict(zip(names, numbers, strict=True)), "valid_windows": len(values)}


def valid(x: Samples, fs: float, rules: Rules) -> bool:
    if len(x) < 1000:
        return False
    if rules.limits_s and not rules.limits_s[0] <= len(x) / fs <= rules.limits_s[1]:
        return False
    return all(math.isfinite(v) for v in x) and deviation(x) >= 1e-10


def smooth_envelope(x: Samples, fs: float) -> tuple[Samples, list[str], dict[str, Any]]:
    v = np.array(x)
    steps: list[str] = []
    said: dict[str, Any] = {}
    if 20.0 / (fs / 2) < 1:
        v = signal.filtfilt(*signal.butter(4, 20.0 / (fs / 2), btype="high"), v)
        steps.append("High-pass filter: 20.0Hz, order 4")
        said["highpass_cutoff_hz"] = 20.0
    v = abs(v)
    steps.append("Full-wave rectification")
    said["rectification_enabled"] = True
    if 10.0 / (fs / 2) < 1:
        v = signal.filtfilt(*signal.butter(4, 10.0 / (fs / 2), btype="low"), v)
        steps.append("Low-pass filter for envelope: 10.0Hz, order 4")
        said |= {"lowpass_cutoff_hz": 10.0, "filter_order": 4}
    width = int(50.0 / 1000.0 * fs)
    values: Samples = v.tolist()
    if width:
        values = box(values, width)
        steps.append(f"Moving average smoothing: 50.0ms window ({width} samples)")
        said |= {"smoothing_window_ms": 50.0, "smoothing_window_samples": width}
    return values, steps, said


def percentile_95(values: Samples) -> float:
    ordered = sorted(values)
    place = 0.95 * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def limits(base: str, envelope: Samples, rules: Rules, session: Session) -> tuple[float, float, str]:
    """Threshold that judges, threshold that is reported, method."""
    own, whole = session.percentages.get(base), session.percentage
    value = session.mvcs.get(base)
    if value is not None:
        percentage = own if own is not None else whole if whole is not None else 75.0
        judged, method = value * (percentage / 100), "user_provided"
    elif session.mvc is not None and whole is not None:
        judged, method = session.mvc * whole / 100, "global_provided"
    else:
        value = percentile_95([abs(v) for v in envelope] if rules.absolute else envelope)
        judged = value * ((whole if whole else 75.0) / 100)
        method = "backend_estimation"
    if own is None and value is not None:
        return judged, value * ((whole if whole else 70) / 100), method
    return judged, judged, method


def runs(above: list[bool]) -> list[Pair]:
    found: list[Pair] = []
    start: int | None = None
    for at, is_above in enumerate(above):
        if is_above and start is None:
            start = at
        elif not is_above and start is not None:
            found.append((start, at))
            start = None
    if start is not None:
        found.append((start, len(above) - 1))
    return found


def kept(candidates: list[Pair], shortest: int, gap: int, longest: int, pause: int) -> list[Pair]:
    """All counts in samples; `pause` is the refractory time."""
    lasting: list[Pair] = []
    last_end = 0
    first = True
    for start, end in candidates:
        ok = end - start >= shortest
        if pause > 0 and not first and start - last_end < pause:
            ok = False
        first = False
        if ok:
            lasting.append((start, end))
            last_end = end
    joined: list[list[int]] = []
    for start, end in lasting:
        if gap > 0 and joined and start - joined[-1][1] <= gap:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    pieces: list[Pair] = []
    for start, end in joined:
        if end - start > longest:
            at = start
            while at < end:
                stop = min(at + longest, end)
                pieces.append((at, stop))
                at = stop + max(1, pause)
        else:
            pieces.append((start, end))
    return pieces


def find(timing: Samples, fs: float, factor: float, window: int, min_ms: float, rules: Rules) -> list[Pair]:
    if window <= 0 or len(timing) < window:
        return []
    smooth = box([abs(v) for v in timing], window)
    top = max(smooth)
    if top < 1e-9:
        return []
    return kept(
        runs([v > top * factor for v in smooth]),
        int(min_ms / 1000 * fs),
        int(rules.merge_ms / 1000 * fs),
        int(10000 / 1000 * fs),
        int(rules.refractory_ms / 1000 * fs),
    )


def record(
    x: Samples, activated: Samples | None, base: str, fs: float, rules: Rules, session: Session
) -> dict[str, Any]:
    envelope, steps, said = smooth_envelope(x, fs)
    if base in session.durations_s:
        own_s = session.durations_s[base]
        shortest_ms = None if own_s is None else own_s * 1000.0
    else:
        shortest_ms = None if session.duration_ms is None else float(session.duration_ms)
    judged, reported, method = limits(base, envelope, rules, session)
    where = (
        find(envelope, fs, session.factor, session.window, session.min_ms, rules)
        if activated is None
        else find(activated, fs, 0.05, session.window, session.min_ms, rules)
    )
    found = []
    for start, end in where:
        part = [abs(v) for v in envelope[start : end + 1]]
        lasted = (end - start) / fs * 1000
        strong, long = max(part) >= judged, shortest_ms is not None and lasted >= shortest_ms
        found.append(
            {
                "start_time_ms": start / fs * 1000,
                "end_time_ms": end / fs * 1000,
                "duration_ms": lasted,
                "mean_amplitude": mean(part),
                "max_amplitude": max(part),
                "is_good": strong if shortest_ms is None else strong and long,
                "meets_mvc": strong,
                "meets_duration": long,
            }
        )
    lengths = [c["duration_ms"] for c in found]
    whole = five(x, fs)
    good = len([c for c in found if c["is_good"]])
    result: dict[str, Any] = {
        "expected_contractions": None,
        "rms": whole["rms"],
        "mav": whole["mav"],
        "mpf": whole["mpf"],
        "mdf": whole["mdf"],
        "fatigue_index_fi_nsm5": whole["fatigue_index"],
        **over_time(x, fs),
        "signal_processing": {
            "source": "RAW",
            "processing_steps": steps,
            "parameters_used": said,
            "quality_metrics": {
                "valid": True,
                "message": "Signal quality acceptable",
                "original_signal_stats": described(x),
                "processed_signal_stats": described(envelope),
            },
        },
        "contraction_count": len(found),
        "avg_duration_ms": mean(lengths) if found else 0.0,
        "min_duration_ms": min(lengths) if found else 0.0,
        "max_duration_ms": max(lengths) if found else 0.0,
        "total_time_under_tension_ms": math.fsum(lengths),
        "avg_amplitude": mean([c["mean_amplitude"] for c in found]) if found else 0.0,
        "max_amplitude": max(c["max_amplitude"] for c in found) if found else 0.0,
        "contractions": found,
        "good_contraction_count": good,
        rules.mvc_count: len([c for c in found if c["meets_mvc"]]),
        rules.duration_count: len([c for c in found if c["meets_duration"]]),
        rules.threshold: reported,
        "duration_threshold_actual_value": shortest_ms,
        "mvc_estimation_method": method,
    }
    if rules.compliance and found:
        result["compliance_rate"] = good / len(found)
    return result


def described(values: Samples) -> dict[str, Any]:
    return {
        "mean": mean(values),
        "std": deviation(values),
        "min": min(values),
        "max": max(values),
        "samples": len(values),
    }


def analytics(
    muscles: dict[str, tuple[NDArray[np.float64], NDArray[np.float64] | None]],
    fs: float,
    profile: str,
    session: Session,
) -> dict[str, dict[str, Any]]:
    """Muscles by name: raw signal, and activated signal or None."""
    rules = RULES[profile]
    return {
        base: record(x.tolist(), None if activated is None else activated.tolist(), base, fs, rules, session)
        for base, (x, activated) in sorted(muscles.items())
        if valid(x.tolist(), fs, rules)
    }

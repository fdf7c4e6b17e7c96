"""The record of one muscle, as the payload holds it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from cachemig.emg.channels import Muscle
from cachemig.emg.contractions import Contraction, Detection, detect, measure
from cachemig.emg.envelope import Envelope, envelope
from cachemig.emg.profile import Options, Profile
from cachemig.emg.recording import FloatArray
from cachemig.emg.spectrum import metrics
from cachemig.emg.thresholds import duration_threshold_ms, mvc_threshold
from cachemig.emg.windows import temporal_statistics

ACTIVATED_FACTOR = 0.05
"""Detection level in an activated channel; `threshold_factor` is for the envelope only."""


def record(muscle: Muscle, rate_hz: float, profile: Profile, options: Options) -> dict[str, Any]:
    """The record of a muscle whose raw signal has no fault: plain Python values, every float finite."""
    raw = muscle.raw
    smooth = envelope(raw, rate_hz)
    mvc = mvc_threshold(muscle.base, smooth.volts, profile, options)
    duration_ms = duration_threshold_ms(muscle.base, options)
    runs = (
        detect(smooth.volts, rate_hz, _detection(options.threshold_factor, profile, options))
        if muscle.activated is None
        else detect(muscle.activated, rate_hz, _detection(ACTIVATED_FACTOR, profile, options))
    )
    contractions = measure(runs, smooth.volts, rate_hz, mvc.applied_v, duration_ms)
    return {
        "expected_contractions": expected_contractions(muscle.rank, options),
        **_signal_metrics(raw, rate_hz),
        "signal_processing": _signal_processing(muscle, smooth),
        **_contraction_figures(contractions, profile),
        profile.mvc_threshold_field: mvc.reported_v,
        "duration_threshold_actual_value": duration_ms,
        "mvc_estimation_method": mvc.method,
    }


def expected_contractions(rank: int, options: Options) -> int | None:
    """How many contractions are asked of the muscle of this rank; the first two may have numbers of their own."""
    own = {0: options.session_expected_contractions_ch1, 1: options.session_expected_contractions_ch2}.get(rank)
    return options.session_expected_contractions if own is None else own


def _detection(factor: float, profile: Profile, options: Options) -> Detection:
    return Detection(
        factor=factor,
        smoothing_window_samples=options.smoothing_window_samples,
        min_duration_ms=options.min_duration_ms,
        merge_ms=profile.merge_ms,
        refractory_ms=profile.refractory_ms,
    )


def _signal_metrics(raw: FloatArray, rate_hz: float) -> dict[str, Any]:
    whole = metrics(raw[np.newaxis], rate_hz)._asdict()
    figures: dict[str, Any] = {
        "fatigue_index_fi_nsm5" if name == "fatigue_index" else name: None if np.isnan(value[0]) else float(value[0])
        for name, value in whole.items()
    }
    for name, statistics in temporal_statistics(raw, rate_hz).items():
        figures[f"{name}_temporal_stats"] = statistics
    return figures


def _signal_processing(muscle: Muscle, smooth: Envelope) -> dict[str, Any]:
    return {
        "source": muscle.source,
        "processing_steps": smooth.steps,
        "parameters_used": smooth.parameters,
        "quality_metrics": {
            "valid": True,
            "message": "Signal quality acceptable",
            "original_signal_stats": _described(muscle.raw),
            "processed_signal_stats": _described(smooth.volts),
        },
    }


def _described(values: FloatArray) -> dict[str, Any]:
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
        "min": float(values.min()),
        "max": float(values.max()),
        "samples": len(values),
    }


def _contraction_figures(contractions: list[Contraction], profile: Profile) -> dict[str, Any]:
    count = len(contractions)
    durations_ms = [contraction.duration_ms for contraction in contractions]
    good = sum(contraction.is_good for contraction in contractions)
    figures: dict[str, Any] = {
        "contraction_count": count,
        "avg_duration_ms": sum(durations_ms) / count if count else 0.0,
        "min_duration_ms": min(durations_ms, default=0.0),
        "max_duration_ms": max(durations_ms, default=0.0),
        "total_time_under_tension_ms": sum(durations_ms, start=0.0),
        "avg_amplitude": sum(contraction.mean_amplitude for contraction in contractions) / count if count else 0.0,
        "max_amplitude": max((contraction.max_amplitude for contraction in contractions), default=0.0),
        "contractions": [asdict(contraction) for contraction in contractions],
        "good_contraction_count": good,
        profile.mvc_count_field: sum(contraction.meets_mvc for contraction in contractions),
        profile.duration_count_field: sum(contraction.meets_duration for contraction in contractions),
    }
    if profile.has_compliance_rate and count:  # absent, not 0, where nothing was detected
        figures["compliance_rate"] = good / count
    return figures

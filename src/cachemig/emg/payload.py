"""The two shapes in which analytics stood in the application's cache column."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cachemig.emg.channel import ACTIVATED_FACTOR, record
from cachemig.emg.channels import muscles
from cachemig.emg.envelope import FILTER_ORDER
from cachemig.emg.profile import Options, Profile
from cachemig.emg.recording import FALLBACK_SAMPLING_RATE_HZ, Recording
from cachemig.emg.summary import summary_of
from cachemig.emg.validation import fault


def analytics(recording: Recording, profile: Profile, options: Options) -> dict[str, dict[str, Any]]:
    """The records of all muscles by base name, in code-point order.

    A muscle whose raw signal has a fault is left out without a word, as the application leaves it out; so the result
    may be empty.
    """
    return {
        muscle.base: record(muscle, recording.rate_hz, profile, options)
        for muscle in muscles(recording)
        if fault(muscle.raw, recording.rate_hz, profile) is None
    }


def payload(recording: Recording, profile: Profile, options: Options, cached_at: datetime) -> dict[str, Any]:
    """The full entry: analytics, how they were made, and when, in UTC without a zone.

    Plain Python values that json.dumps takes with allow_nan=False. ValueError: `cached_at` without a time zone.
    """
    return {
        "analytics": analytics(recording, profile, options),
        "processing_params": processing_params(recording, profile, options),
        "processing_version": profile.processing_version,
        "cached_at": _utc(cached_at).replace(tzinfo=None).isoformat(timespec="microseconds"),
    }


def summary_payload(
    recording: Recording, profile: Profile, options: Options, cached_at: datetime | None
) -> dict[str, Any]:
    """The short entry: names of the analysed muscles, and their mean compliance.

    A muscle without contractions, or of a profile without compliance rates, counts as 0, and so does a recording
    without muscles. `cached_at` None leaves the time out, as the application did in the end. ValueError: as above.
    """
    return summary_of(analytics(recording, profile, options), cached_at)


def processing_params(recording: Recording, profile: Profile, options: Options) -> dict[str, Any]:
    """What the application says of a run, types included; {} where it said nothing.

    Not all of it is true: no filter has a 500 Hz cut-off, and no RMS or MVC window exists. The names are kept for
    whoever reads them.
    """
    if not profile.has_processing_params:
        return {}
    percentage = options.session_mvc_threshold_percentage
    return {
        "sampling_rate_hz": (
            float(recording.sampling_rate_hz) if recording.sampling_rate_hz else FALLBACK_SAMPLING_RATE_HZ
        ),
        "processing_version": profile.processing_version,
        "filter_low_cutoff_hz": 20.0,
        "filter_high_cutoff_hz": 500.0,
        "filter_order": FILTER_ORDER,
        "rms_window_ms": 50.0,
        "rms_overlap_percent": 50.0,
        "mvc_window_seconds": 3.0,
        "mvc_threshold_percentage": None if percentage is None else float(percentage),
        "threshold_factor": float(options.threshold_factor),
        "min_duration_ms": options.min_duration_ms,
        "smoothing_window": options.smoothing_window_samples,
        "activated_threshold_factor": ACTIVATED_FACTOR,
        "merge_threshold_ms": profile.merge_ms,
        "refractory_period_ms": profile.refractory_ms,
    }


def _utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("cached_at: a time zone is wanted")
    return moment.astimezone(UTC)

"""What a contraction is measured against: a force (a part of the MVC) and a duration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cachemig.emg.profile import Options, Profile
from cachemig.emg.recording import FloatArray

MVC_PERCENTILE = 95
APPLIED_PERCENTAGE = 75.0
REPORTED_PERCENTAGE = 70.0
"""The application falls back on 75 % to judge contractions and on 70 % to report the threshold. With the default
percentage neither is used."""


@dataclass(frozen=True)
class MvcThreshold:
    """`applied_v` judges the contractions; `reported_v` is the one in the payload."""

    applied_v: float
    reported_v: float
    method: str


def duration_threshold_ms(base: str, options: Options) -> float | None:
    """The least duration of a therapeutic contraction, ms; None where there is to be none.

    A muscle with a value of its own, None included, does not fall back on the session's.
    """
    if base in options.session_duration_thresholds_s:
        own_s = options.session_duration_thresholds_s[base]
        return None if own_s is None else float(own_s * 1000.0)
    session_ms = options.contraction_duration_threshold_ms
    return None if session_ms is None else float(session_ms)


def mvc_threshold(base: str, envelope: FloatArray, profile: Profile, options: Options) -> MvcThreshold:
    """The level that a contraction's peak must reach: of the muscle's own MVC, else of the session's, else of an
    estimate, the 95th percentile of the whole envelope (shape (samples,), volts), rest included.

    A muscle's own percentage applies only to its own MVC value. A percentage of None in the mapping is one that is
    not set; the application divides by it in a log line and reports a channel of zeros, which is not copied.
    """
    session = options.session_mvc_threshold_percentage
    own = options.session_mvc_threshold_percentages.get(base)
    mvc_v = options.session_mvc_values.get(base)

    if mvc_v is not None:
        percentage = next(p for p in (own, session, APPLIED_PERCENTAGE) if p is not None)
        applied_v, method = mvc_v * (percentage / 100), "user_provided"
    elif options.session_mvc_value is not None and session is not None:
        applied_v, method = options.session_mvc_value * session / 100, "global_provided"
    else:
        mvc_v = float(np.percentile(np.abs(envelope) if profile.percentile_of_magnitude else envelope, MVC_PERCENTILE))
        applied_v, method = mvc_v * ((session or APPLIED_PERCENTAGE) / 100), "backend_estimation"

    reported_v = applied_v
    if own is None and mvc_v is not None:
        reported_v = mvc_v * ((session or REPORTED_PERCENTAGE) / 100)
    return MvcThreshold(float(applied_v), float(reported_v), method)

"""Thresholds: what was set for the muscle, for the session, and what is estimated."""

from __future__ import annotations

import numpy as np
import pytest

from cachemig.emg.profile import ERA, HEAD, Options
from cachemig.emg.thresholds import MvcThreshold, duration_threshold_ms, mvc_threshold

ENVELOPE = np.arange(101.0)  # its 95th percentile is 95


def threshold(options: Options) -> MvcThreshold:
    return mvc_threshold("b", ENVELOPE, HEAD, options)


@pytest.mark.parametrize(
    ("own", "session", "applied", "reported"),
    [
        (50.0, 60.0, 100.0, 100.0),
        (50.0, None, 100.0, 100.0),
        (0.0, 60.0, 0.0, 0.0),
        (None, 60.0, 120.0, 120.0),
        (None, 0.0, 0.0, 140.0),
        (None, None, 150.0, 140.0),
    ],
)
def test_of_the_muscles_own_mvc(own: float | None, session: float | None, applied: float, reported: float) -> None:
    options = Options(
        session_mvc_values={"b": 200.0, "other": 1.0},
        session_mvc_value=7.0,
        session_mvc_threshold_percentages={} if own is None else {"b": own},
        session_mvc_threshold_percentage=session,
    )
    assert threshold(options) == MvcThreshold(applied, reported, "user_provided")


@pytest.mark.parametrize("own", [None, 50.0])
@pytest.mark.parametrize("session", [60.0, 0.0])
def test_of_the_sessions_mvc(own: float | None, session: float) -> None:
    options = Options(
        session_mvc_values={"b": None},
        session_mvc_value=200.0,
        session_mvc_threshold_percentages={"b": own},
        session_mvc_threshold_percentage=session,
    )
    assert threshold(options) == MvcThreshold(2 * session, 2 * session, "global_provided")


@pytest.mark.parametrize(
    ("own", "session", "mvc", "applied", "reported"),
    [
        (None, 75.0, None, 71.25, 71.25),
        (None, 60.0, None, 57.0, 57.0),
        (None, 0.0, None, 71.25, 66.5),
        (None, None, None, 71.25, 66.5),
        (None, None, 200.0, 71.25, 66.5),  # no session percentage, so no session threshold
        (50.0, None, None, 71.25, 71.25),  # the muscle's own percentage is of its own MVC only
        (50.0, 60.0, None, 57.0, 57.0),
    ],
)
def test_of_an_estimate(
    own: float | None, session: float | None, mvc: float | None, applied: float, reported: float
) -> None:
    found = threshold(
        Options(
            session_mvc_value=mvc,
            session_mvc_threshold_percentages={"b": own},
            session_mvc_threshold_percentage=session,
        )
    )
    assert found.method == "backend_estimation"
    assert (found.applied_v, found.reported_v) == pytest.approx((applied, reported), rel=1e-12)


def test_the_estimate_is_linear_between_samples_and_of_the_magnitude_in_era() -> None:
    envelope = np.array([-100.0, 0.0, 1.0, 2.0])
    assert mvc_threshold("b", envelope, HEAD, Options()).applied_v == pytest.approx(1.85 * 0.75)
    assert mvc_threshold("b", envelope, ERA, Options()).applied_v == pytest.approx((2 + 0.85 * 98) * 0.75)


@pytest.mark.parametrize(
    ("own", "session", "found"),
    [
        ({}, 2000, 2000.0),
        ({}, None, None),
        ({"other": 1.0}, 2000, 2000.0),
        ({"b": 1.5}, 2000, 1500.0),
        ({"b": 0}, 2000, 0.0),
        ({"b": None}, 2000, None),
        ({"b": 1.5}, None, 1500.0),
    ],
)
def test_duration(own: dict[str, float | None], session: float | None, found: float | None) -> None:
    options = Options(session_duration_thresholds_s=own, contraction_duration_threshold_ms=session)
    threshold_ms = duration_threshold_ms("b", options)
    assert threshold_ms == found
    assert type(threshold_ms) is type(found)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1e13])
def test_options_are_finite(number: float) -> None:
    with pytest.raises(ValueError, match="session_mvc_value"):
        Options(session_mvc_value=number)
    with pytest.raises(ValueError, match="session_mvc_values"):
        Options(session_mvc_values={"CH1": number})

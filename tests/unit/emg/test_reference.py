"""Made-up recordings, against the naive reference."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from cachemig.emg.payload import analytics
from cachemig.emg.profile import PROFILES, Options
from tests.unit.emg import reference
from tests.unit.emg.agreement import disagreements
from tests.unit.emg.signals import Signal, activated, noise, recording, saturated, with_bursts, with_drift

BURSTS_S = [(0.0, 0.6), (1.5, 1.58), (1.7, 2.6), (2.72, 3.1), (5.0, 7.4), (7.55, 7.8), (9.0, 9.05), (12.4, 13.0)]

Muscles = dict[str, tuple[Signal, Signal | None]]


@dataclass(frozen=True)
class Case:
    rate_hz: float
    muscles: Muscles
    options: Options = field(default_factory=Options)
    session: reference.Session = field(default_factory=reference.Session)


def bursts(rate_hz: float, seed: int) -> Signal:
    return with_bursts(noise(13.0, rate_hz, seed), rate_hz, BURSTS_S)


def pair(rate_hz: float, seed: int) -> Muscles:
    """One muscle with an activated channel, one without."""
    left, right = bursts(rate_hz, seed), with_drift(bursts(rate_hz, seed + 1), 3e-5)
    return {"CH1": (left, activated(left, rate_hz, BURSTS_S)), "CH2": (right, None)}


CASES = {
    "990 Hz": Case(990.0, pair(990.0, 1)),
    "1000 Hz": Case(1000.0, pair(1000.0, 2)),
    "2000 Hz": Case(2000.0, pair(2000.0, 3)),
    "1234.5 Hz": Case(1234.5, pair(1234.5, 4)),
    "100 Hz, too slow for a spectrum of one second": Case(100.0, pair(100.0, 5)),
    "saturated": Case(990.0, {"CH1": (saturated(bursts(990.0, 6), 90.0), None)}),
    "rest only": Case(990.0, {"CH1": (noise(13.0, 990.0, 7), np.zeros(12_870)), "CH2": (noise(13.0, 990.0, 8), None)}),
    "one long contraction": Case(990.0, {"CH1": (with_bursts(noise(25.0, 990.0, 9), 990.0, [(1.0, 24.2)]), None)}),
    "overrides of each muscle": Case(
        1000.0,
        {
            name: (bursts(1000.0, 20 + seed), None)
            for seed, name in enumerate(("Biceps", "Gastrocnemius", "Soleus", "Vastus"))
        },
        Options(
            threshold_factor=0.2,
            min_duration_ms=60,
            smoothing_window_samples=51,
            session_mvc_threshold_percentage=60.0,
            session_mvc_value=9e-5,
            session_mvc_values={"Biceps": 8e-5, "Gastrocnemius": 7e-5, "Soleus": None},
            session_mvc_threshold_percentages={"Biceps": 50.0, "Vastus": 40.0, "Soleus": None},
            session_duration_thresholds_s={"Biceps": 0.5, "Gastrocnemius": None},
        ),
        reference.Session(
            factor=0.2,
            min_ms=60,
            window=51,
            percentage=60.0,
            mvc=9e-5,
            mvcs={"Biceps": 8e-5, "Gastrocnemius": 7e-5, "Soleus": None},
            percentages={"Biceps": 50.0, "Vastus": 40.0, "Soleus": None},
            durations_s={"Biceps": 0.5, "Gastrocnemius": None},
        ),
    ),
    "no percentage, no duration": Case(
        990.0,
        pair(990.0, 30),
        Options(session_mvc_threshold_percentage=None, contraction_duration_threshold_ms=None),
        reference.Session(percentage=None, duration_ms=None),
    ),
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_as_the_reference(case: Case, profile: str) -> None:
    channels: dict[str, Signal] = {}
    for name, (raw, active) in case.muscles.items():
        channels[f"{name} Raw"] = raw
        if active is not None:
            channels[f"{name} activated"] = active
    ours = analytics(recording(channels, case.rate_hz), PROFILES[profile], case.options)
    theirs = reference.analytics(case.muscles, case.rate_hz, profile, case.session)
    assert ours.keys() == case.muscles.keys()
    assert disagreements(ours, theirs) == []


def test_the_cases_are_not_empty_ones() -> None:
    case = CASES["990 Hz"]
    found = reference.analytics(case.muscles, case.rate_hz, "head", case.session)
    assert [one["contraction_count"] for one in found.values()] == [5, 5]
    case = CASES["one long contraction"]
    found = reference.analytics(case.muscles, case.rate_hz, "head", case.session)
    assert [one["contraction_count"] for one in found.values()] == [3]

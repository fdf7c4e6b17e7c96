"""The two versions of the algorithm as data, and the settings of a session. No NumPy here.

`processing_version` does not tell versions apart (both strings were used for several algorithms), so whoever stores a
recomputed payload should record the profile's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

LARGEST_OPTION = 1e12


@dataclass(frozen=True)
class Profile:
    """All in which the versions of the application differ; the rest is common to them."""

    name: str
    processing_version: str
    merge_ms: int
    refractory_ms: int
    percentile_of_magnitude: bool
    """MVC estimate from |envelope| rather than from the envelope, which dips below zero."""
    shortest_recording_s: float | None
    longest_recording_s: float | None
    mvc_count_field: str
    duration_count_field: str
    mvc_threshold_field: str
    has_compliance_rate: bool
    has_processing_params: bool


HEAD = Profile(
    name="head",
    processing_version="2.1.0",
    merge_ms=200,
    refractory_ms=0,
    percentile_of_magnitude=False,
    shortest_recording_s=10.0,
    longest_recording_s=600.0,
    mvc_count_field="mvc_compliant_count",
    duration_count_field="duration_compliant_count",
    mvc_threshold_field="mvc75_threshold",
    has_compliance_rate=True,
    has_processing_params=True,
)
"""The application's latest version, of September 2025."""

ERA = Profile(
    name="era",
    processing_version="v2.1.0",
    merge_ms=150,
    refractory_ms=50,
    percentile_of_magnitude=True,
    shortest_recording_s=None,
    longest_recording_s=None,
    mvc_count_field="mvc_contraction_count",
    duration_count_field="duration_contraction_count",
    mvc_threshold_field="mvc_threshold_actual_value",
    has_compliance_rate=False,
    has_processing_params=False,
)
"""What ran in August 2025, while the application wrote to the column."""

PROFILES = {profile.name: profile for profile in (HEAD, ERA)}


@dataclass(frozen=True)
class Options:
    """What a session may set; the defaults are those the application's webhook passes.

    Mappings go by base name. None means "not set", in a mapping too, with one exception: a duration threshold of None
    there means that this muscle has none.

    ValueError: a number that is not finite or beyond 1e12 (its products could be infinite, and JSON has no infinity).
    """

    threshold_factor: float = 0.10
    min_duration_ms: int = 100
    smoothing_window_samples: int = 100
    session_mvc_threshold_percentage: float | None = 75.0
    contraction_duration_threshold_ms: float | None = 2000
    session_mvc_value: float | None = None
    session_mvc_values: Mapping[str, float | None] = field(default_factory=dict)
    session_mvc_threshold_percentages: Mapping[str, float | None] = field(default_factory=dict)
    session_duration_thresholds_s: Mapping[str, float | None] = field(default_factory=dict)
    session_expected_contractions: int | None = None
    session_expected_contractions_ch1: int | None = None
    session_expected_contractions_ch2: int | None = None

    def __post_init__(self) -> None:
        for of in fields(self):
            value = getattr(self, of.name)
            for number in value.values() if isinstance(value, Mapping) else (value,):
                if number is not None and not abs(number) <= LARGEST_OPTION:  # so that NaN is refused too
                    raise ValueError(f"{of.name}: {number} is not a finite number of at most {LARGEST_OPTION:g}")

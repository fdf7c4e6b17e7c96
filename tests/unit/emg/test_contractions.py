"""Finding contractions and measuring them: each rule by itself, and all together against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cachemig.emg.contractions import Detection, Run, detect, long_enough, measure, merged, runs_above, split
from tests.unit.emg import reference
from tests.unit.emg.signals import Signal

PLAIN = Detection(factor=0.5, smoothing_window_samples=1, min_duration_ms=0, merge_ms=0, refractory_ms=0)


def signal(*stretches: tuple[float, int]) -> Signal:
    """Levels, each held for a number of samples."""
    return np.concatenate([np.full(length, level) for level, length in stretches])


def test_runs_are_strictly_above_and_end_exclusive() -> None:
    assert runs_above(signal((0, 3), (2, 4), (1, 2), (3, 1), (0, 1)), 1.0) == [(3, 7), (9, 10)]
    assert runs_above(signal((1, 5)), 1.0) == []


def test_a_run_at_the_first_sample_starts_at_0() -> None:
    assert runs_above(signal((2, 4), (0, 4)), 1.0) == [(0, 4)]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (signal((0, 4), (2, 4)), [(4, 7)]),
        (signal((2, 5)), [(0, 4)]),
        (signal((0, 4), (2, 1)), [(4, 4)]),
        (signal((2, 1)), [(0, 0)]),
    ],
)
def test_a_run_at_the_last_sample_ends_there(values: Signal, found: list[Run]) -> None:
    assert runs_above(values, 1.0) == found


def test_a_run_lasts_at_least_the_minimum() -> None:
    assert long_enough([(0, 9), (20, 30), (40, 51)], 10, 0) == [(20, 30), (40, 51)]


def test_the_refractory_time_counts_from_the_last_run_kept() -> None:
    runs = [(0, 10), (14, 16), (18, 30), (34, 50), (55, 70)]
    assert long_enough(runs, 10, 5) == [(0, 10), (18, 30), (55, 70)]
    assert long_enough(runs, 10, 0) == [(0, 10), (18, 30), (34, 50), (55, 70)]


def test_the_refractory_time_counts_from_sample_0_where_the_first_run_was_dropped() -> None:
    assert long_enough([(2, 20)], 10, 50) == [(2, 20)]
    assert long_enough([(0, 1), (20, 40)], 10, 50) == []  # the application's quirk: nothing was kept before
    assert long_enough([(0, 1), (49, 70)], 10, 50) == []
    assert long_enough([(0, 1), (50, 70)], 10, 50) == [(50, 70)]


def test_runs_merge_over_a_gap_and_not_over_a_longer_one() -> None:
    assert merged([(0, 10), (15, 20), (25, 30), (36, 40)], 5) == [(0, 30), (36, 40)]
    assert merged([(0, 10), (10, 20)], 0) == [(0, 10), (10, 20)]


@pytest.mark.parametrize(
    ("run", "pause", "pieces"),
    [
        ((5, 105), 1, [(5, 105)]),
        ((5, 106), 1, [(5, 105)]),  # what is left of it lies in the pause
        ((5, 107), 1, [(5, 105), (106, 107)]),
        ((0, 250), 1, [(0, 100), (101, 201), (202, 250)]),
        ((0, 250), 30, [(0, 100), (130, 230)]),
        ((0, 261), 30, [(0, 100), (130, 230), (260, 261)]),
    ],
)
def test_a_long_run_is_split(run: Run, pause: int, pieces: list[Run]) -> None:
    assert split([run], 100, pause) == pieces


def test_ten_seconds_are_the_most() -> None:
    values = signal((0, 50), (1, 2501), (0, 50))
    assert detect(values, 100.0, PLAIN) == [(50, 1050), (1051, 2051), (2052, 2551)]
    paused = detect(values, 100.0, replace(PLAIN, refractory_ms=50))
    assert paused == [(50, 1050), (1055, 2055), (2060, 2551)]


def test_the_minimum_comes_before_merging() -> None:
    two_bursts = signal((0, 500), (1, 60), (0, 50), (1, 60), (0, 500))
    assert detect(two_bursts, 1000.0, replace(PLAIN, min_duration_ms=100, merge_ms=200)) == []
    assert detect(two_bursts, 1000.0, replace(PLAIN, min_duration_ms=60, merge_ms=200)) == [(500, 670)]


def test_the_level_is_a_part_of_the_smoothed_maximum() -> None:
    values = signal((0, 20), (1, 1), (0, 20), (0.4, 20), (0, 20))  # smoothed over 4: 0.25 and 0.4
    smooth = replace(PLAIN, smoothing_window_samples=4)
    assert detect(values, 100.0, replace(smooth, factor=0.7)) == [(42, 61)]
    assert len(detect(values, 100.0, replace(smooth, factor=0.6))) == 2
    assert detect(-values, 100.0, smooth) == detect(values, 100.0, smooth)


@pytest.mark.parametrize(
    ("values", "window"),
    [
        (signal((1, 50)), 0),
        (signal((1, 50)), -3),
        (signal((1, 50)), 51),
        (signal((0, 50)), 5),
        (signal((0.999e-9, 50)), 1),
        (signal((1, 50), (np.nan, 1), (1, 50)), 5),
        (signal((1, 50), (np.inf, 1), (1, 50)), 5),
    ],
    ids=["no window", "negative window", "shorter than the window", "silent", "nearly silent", "NaN", "infinite"],
)
def test_nothing_to_find(values: Signal, window: int) -> None:
    assert detect(values, 100.0, replace(PLAIN, smoothing_window_samples=window)) == []


def test_just_enough_to_find() -> None:
    assert detect(signal((1, 50)), 100.0, replace(PLAIN, smoothing_window_samples=50)) != []
    assert detect(signal((1e-9, 50)), 100.0, PLAIN) == [(0, 49)]


stretches = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0]), st.integers(1, 90)), min_size=1, max_size=9)


@given(
    stretches=stretches,
    window=st.integers(0, 12),
    min_ms=st.sampled_from([0, 30, 100, 250]),
    merge_ms=st.sampled_from([0, 50, 150, 200]),
    refractory_ms=st.sampled_from([0, 50, 300]),
    factor=st.sampled_from([0.05, 0.1, 0.3]),
    rate_hz=st.sampled_from([7.0, 10.0, 99.0, 123.45]),
)
@example([(4.0, 1), (0.0, 3), (4.0, 30)], 1, 100, 0, 300, 0.3, 99.0)
def test_as_the_reference(
    stretches: list[tuple[float, int]],
    window: int,
    min_ms: int,
    merge_ms: int,
    refractory_ms: int,
    factor: float,
    rate_hz: float,
) -> None:
    values = signal(*stretches)
    rules = replace(reference.RULES["head"], merge_ms=merge_ms, refractory_ms=refractory_ms)
    # Not at a tie: there rounding decides, in the application too.
    smooth = reference.box(values.tolist(), window) if window else [1.0]
    level = max(smooth) * factor
    if any(abs(value - level) < 1e-9 for value in smooth):
        return
    how = Detection(factor, window, min_ms, merge_ms, refractory_ms)
    assert detect(values, rate_hz, how) == reference.find(values.tolist(), rate_hz, factor, window, min_ms, rules)


@given(
    bounds=st.lists(st.integers(0, 400), min_size=2, max_size=16, unique=True).map(sorted),
    shortest=st.integers(0, 40),
    gap=st.integers(0, 40),
    longest=st.integers(1, 90),
    pause=st.integers(0, 40),
)
def test_rules_for_runs_as_the_reference(bounds: list[int], shortest: int, gap: int, longest: int, pause: int) -> None:
    runs = list(zip(bounds[::2], bounds[1::2], strict=False))
    ours = split(merged(long_enough(runs, shortest, pause), gap), longest, max(1, pause))
    assert ours == reference.kept(runs, shortest, gap, longest, pause)


def test_amplitude_takes_both_ends_and_duration_their_difference() -> None:
    envelope = np.array([0.0, 1.0, -2.0, 3.0, 7.0, 0.0])
    (found,) = measure([(1, 4)], envelope, 100.0, 3.0, 30.0)
    assert found.max_amplitude == 7.0
    assert found.mean_amplitude == 13 / 4
    assert (found.start_time_ms, found.end_time_ms, found.duration_ms) == (10.0, 40.0, 30.0)
    (last,) = measure([(5, 5)], envelope, 100.0, 3.0, 30.0)
    assert (last.mean_amplitude, last.duration_ms) == (0.0, 0.0)
    (magnitude,) = measure([(1, 2)], envelope, 100.0, None, None)
    assert (magnitude.mean_amplitude, magnitude.max_amplitude) == (1.5, 2.0)


@pytest.mark.parametrize(
    ("mvc_v", "duration_ms", "meets_mvc", "meets_duration", "is_good"),
    [
        (2.0, 20.0, True, True, True),
        (2.1, 20.0, False, True, False),
        (2.0, 20.1, True, False, False),
        (2.0, None, True, False, True),
        (2.1, None, False, False, False),
        (None, 20.0, False, True, True),
        (None, 20.1, False, False, False),
        (None, None, False, False, False),
    ],
)
def test_verdicts(
    mvc_v: float | None, duration_ms: float | None, meets_mvc: bool, meets_duration: bool, is_good: bool
) -> None:
    (found,) = measure([(0, 2)], np.array([1.0, 2.0, 2.0]), 100.0, mvc_v, duration_ms)
    assert (found.meets_mvc, found.meets_duration, found.is_good) == (meets_mvc, meets_duration, is_good)

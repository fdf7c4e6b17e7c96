"""The control law by a clock that is given: what a complaint takes, what calm gives back, how waits add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.steps.neighbour import History
from cachemig.steps.pace import CALM_S, FLOOR, SETTLE_S, START, STEP, Bucket, Duty, Pace

MIB = 2**20


def test_without_a_complaint_there_is_no_limit() -> None:
    pace = Pace()
    for now in range(100):
        pace.fine(now)
    assert (pace.rate, pace.paused, pace.slowed) == (None, False, False)


def test_a_complaint_halves_what_was_measured_and_calm_adds_to_it() -> None:
    pace = Pace()
    pace.too_fast(10.0, 100 * MIB)
    assert pace.rate == 50 * MIB
    assert pace.slowed
    for tick in range(1, 21):
        pace.fine(10.0 + tick / 2)
    assert pace.rate == 50 * MIB + 10 * STEP
    pace.too_fast(20.5, 200 * MIB)  # it burst for a moment, but the limit was lower
    assert pace.rate == pytest.approx((50 * MIB + 10 * STEP) / 2)


def test_a_cut_is_given_time_to_show() -> None:
    pace = Pace()
    pace.too_fast(0.0, 64 * MIB)
    pace.too_fast(SETTLE_S / 2, 64 * MIB)
    assert pace.rate == 32 * MIB
    pace.too_fast(SETTLE_S, 32 * MIB)
    assert pace.rate == 16 * MIB


def test_a_limit_is_forgotten_well_above_the_rate_that_was_too_much() -> None:
    pace = Pace()
    pace.too_fast(0.0, 10 * MIB)
    now = 0.0
    while pace.slowed:
        now += 0.5
        pace.fine(now)
        assert now < 60
    assert now > 5
    assert pace.rate is None


def test_a_careful_start_goes_on_growing() -> None:
    pace = Pace(START)
    for tick in range(200):
        pace.fine(tick / 2)
    assert pace.rate is not None
    assert pace.rate > 10 * START
    assert not pace.slowed


def test_below_the_floor_it_pauses_until_it_has_been_calm() -> None:
    pace, now = Pace(), 0.0
    while not pace.paused:
        pace.too_fast(now, 100 * MIB)
        now += SETTLE_S
        assert now < 20
    paused = []
    for after_s, complaint in ((0, False), (CALM_S / 2, False), (CALM_S * 0.9, True), (CALM_S, False)):
        pace.too_fast(now + after_s, 0.0) if complaint else pace.fine(now + after_s)
        paused.append(pace.paused)
    pace.fine(now + CALM_S * 2)
    assert [*paused, pace.paused] == [True, True, True, True, False]
    assert pace.rate is not None
    assert FLOOR <= pace.rate <= FLOOR + STEP


def test_a_worker_that_did_nothing_yet_is_slowed_before_it_is_paused() -> None:
    pace = Pace()
    pace.too_fast(0.0, 0.0)
    assert (pace.rate, pace.paused) == (FLOOR, False)


@given(
    st.lists(
        st.tuples(st.floats(0.01, 10.0), st.booleans(), st.floats(0, 1e9)),
        max_size=60,
    ),
    st.sampled_from([None, float(START)]),
)
def test_what_holds_whatever_happens(told: list[tuple[float, bool, float]], start: float | None) -> None:
    pace, now = Pace(start), 0.0
    for elapsed, complaint, measured in told:
        now += elapsed
        before, was_paused = pace.rate, pace.paused
        if complaint:
            pace.too_fast(now, measured)
            assert pace.slowed
            assert pace.rate is not None
            if before is not None:
                assert pace.rate <= before
            assert pace.paused >= was_paused
        else:
            pace.fine(now)
            if before is not None and pace.rate is not None:
                assert before <= pace.rate <= before + STEP  # a long silence says no more than a second of it
            assert pace.paused <= was_paused
        assert pace.rate is None or pace.rate >= FLOOR


@pytest.mark.parametrize("rates", [(100.0, 4.0), (8.0, 8.0), (60.0, 1.0)])
def test_workers_that_do_not_know_of_each_other_come_to_equal_shares(rates: tuple[float, float]) -> None:
    paces = [Pace(rate * MIB) for rate in rates]
    used = [0.0, 0.0]
    for tick in range(1200):
        measured = [pace.rate or 0.0 for pace in paces]
        for pace, rate in zip(paces, measured, strict=True):
            if sum(measured) > 40 * MIB:
                pace.too_fast(tick / 2, rate)
            else:
                pace.fine(tick / 2)
        if tick >= 600:
            used = [total + rate for total, rate in zip(used, measured, strict=True)]
    assert used[0] / used[1] == pytest.approx(1.0, abs=0.1)
    assert 20 * MIB < sum(used) / 600 < 40 * MIB


@given(st.lists(st.tuples(st.integers(0, 5 * MIB), st.floats(0.0, 3.0)), min_size=1, max_size=40))
def test_a_rate_is_kept_over_any_time(pieces: list[tuple[int, float]]) -> None:
    rate, now, sent = 1.0 * MIB, 0.0, 0
    bucket = Bucket(now)
    for nbytes, work_s in pieces:
        now += work_s
        bucket.add(nbytes, rate, now)
        sent += nbytes
        now += bucket.wait_s(rate, now)
        assert sent <= rate * (now + 0.11)


def test_what_was_not_used_is_not_saved_up() -> None:
    bucket = Bucket(0.0)
    bucket.add(MIB, MIB, 1.0)
    bucket.add(5 * MIB, MIB, 3600.0)
    assert bucket.wait_s(MIB, 3600.0) == pytest.approx(5.0, abs=0.11)


def test_what_was_sent_without_a_limit_is_not_held_against_a_later_one() -> None:
    bucket = Bucket(0.0)
    bucket.add(1000 * MIB, None, 1.0)
    bucket.add(MIB, MIB, 1.0)
    assert bucket.wait_s(MIB, 1.0) == pytest.approx(1.0, abs=0.11)
    assert bucket.wait_s(None, 1.0) == 0


@pytest.mark.parametrize("part", [0.1, 0.25, 0.5, 0.9])
def test_duty_is_the_part_of_the_time_that_is_worked(part: float) -> None:
    duty, now, worked = Duty(part, 0.0), 0.0, 0.0
    for _ in range(200):
        duty.looked(now)
        for _ in range(3):  # orders are looked at in the middle of it
            now += 0.01
            duty.looked(now)
        worked += 0.03
        duty.worked(now)
        if (wait_s := min(duty.wait_s, 0.25)) >= 0.01:
            now += wait_s
            duty.rested(wait_s, now)
        duty.idle(now)
        now += 0.2  # until the next change: no work
        duty.looked(now)
        now += 0.3  # for other workers
    assert worked / (now - 200 * 0.5) == pytest.approx(part, rel=0.1)


def test_a_very_long_piece_of_work_is_not_paid_for_without_end() -> None:
    duty = Duty(0.01, 0.0)
    duty.worked(3600.0)
    assert 1 < duty.wait_s < 15


@given(st.lists(st.tuples(st.floats(0.05, 2.0), st.integers(0, 1000)), min_size=1, max_size=100), st.data())
def test_the_lag_of_a_standby_is_never_said_to_be_more_than_it_is(
    written: list[tuple[float, int]], data: st.DataObject
) -> None:
    history, now, end = History(4.0), 0.0, 0
    ends = []
    for elapsed, more in written:
        now, end = now + elapsed, end + more
        ends.append((now, end))
        history.add(now, end)
    replayed = data.draw(st.integers(0, end))
    really = next((now - at for at, e in ends if e > replayed), 0.0)
    told = history.behind_s(now, replayed)
    assert told <= really
    if really > 4.0:
        assert told > really - 4.0 * 0.6

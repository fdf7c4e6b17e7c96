from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cachemig.service.breaker import PAUSES_S, Breaker, Permit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def breaker(clock: Clock, chance: float = 1.0) -> Breaker:
    return Breaker(clock, lambda: chance)


def fail(one: Breaker, times: int = 1) -> None:
    for _ in range(times):
        permit = one.permit()
        assert permit is not None
        one.failed(permit)


def test_three_failures_within_a_second_open_it_even_with_successes_between() -> None:
    clock = Clock()
    one = breaker(clock)
    for _ in range(2):
        fail(one)
        one.succeeded(Permit.CALL)
        clock.now += 0.4
    assert one.state == "closed"
    fail(one)
    assert one.state == "open"
    assert one.permit() is None
    assert one.opened == 1


def test_three_in_a_row_open_it_however_seldom_they_are() -> None:
    clock = Clock()
    one = breaker(clock)
    for _ in range(3):
        assert one.state == "closed"
        fail(one)
        clock.now += 60
    assert one.state != "closed"


def test_failures_far_apart_with_successes_between_do_not() -> None:
    clock = Clock()
    one = breaker(clock)
    for _ in range(20):
        fail(one)
        one.succeeded(Permit.CALL)
        clock.now += 0.6
    assert one.state == "closed"


def test_one_probe_at_a_time_after_pauses_that_grow_to_ten_seconds() -> None:
    clock = Clock()
    one = breaker(clock)
    fail(one, 3)
    pauses = []
    for _ in range(7):
        began = clock.now
        while (permit := one.permit()) is None:
            assert one.blocked
            clock.now += 0.01
        pauses.append(round(clock.now - began, 1))
        assert permit is Permit.PROBE
        assert one.permit() is None
        assert one.state == "half-open"
        one.failed(permit)
    assert pauses == [0.5, 1, 2, 4, 8, 10, 10]
    clock.now += 10.1
    probe = one.permit()
    assert probe is Permit.PROBE
    one.succeeded(probe)
    assert one.state == "closed"
    fail(one, 3)
    clock.now += PAUSES_S[0] + 0.01
    assert one.permit() is Permit.PROBE, "and the pauses begin anew"


def test_jitter_shortens_a_pause_by_up_to_half() -> None:
    for chance, pause in ((0.0, 0.25), (0.5, 0.375)):
        clock = Clock()
        one = breaker(clock, chance)
        fail(one, 3)
        clock.now += pause - 0.01
        assert one.permit() is None
        clock.now += 0.02
        assert one.permit() is Permit.PROBE


def test_a_cancelled_probe_leaves_the_place_to_another() -> None:
    clock = Clock()
    one = breaker(clock)
    fail(one, 3)
    clock.now += 1
    probe = one.permit()
    assert probe is Permit.PROBE
    one.abandoned(probe)
    assert one.permit() is Permit.PROBE


def test_a_late_success_of_an_earlier_call_does_not_close_it() -> None:
    clock = Clock()
    one = breaker(clock)
    early = one.permit()
    assert early is not None
    fail(one, 3)
    one.succeeded(early)
    assert one.permit() is None


@given(st.lists(st.sampled_from(["ok", "fail", "cancel", "wait"]), max_size=60))
def test_it_never_gets_stuck(events: list[str]) -> None:
    clock = Clock()
    one = breaker(clock)
    for event in events:
        permit = one.permit()
        if permit is not None:
            {"ok": one.succeeded, "fail": one.failed, "cancel": one.abandoned, "wait": one.abandoned}[event](permit)
        clock.now += 0.3
    clock.now += PAUSES_S[1]
    permit = one.permit()
    assert permit is not None
    one.succeeded(permit)
    assert one.state == "closed"

from __future__ import annotations

import time

import pytest

from cachemig.entries.entry import EPOCH
from cachemig.ladder import Phase
from cachemig.service.route import PINNED, Floors, Route, Routes, Unanswered, allows

DUAL, HALF, ALONE = Route(Phase.DUAL_WRITE, 0, 1), Route(Phase.CUTOVER, 50, 1), Route(Phase.REDIS_ONLY, 0, 2)


@pytest.mark.parametrize(
    ("phase", "writes_column", "uses_redis"),
    [
        (Phase.IDLE, True, False), (Phase.DUAL_WRITE, True, True), (Phase.CUTOVER, True, True),
        (Phase.REDIS_ONLY, False, True), (Phase.DROPPED, False, True),
    ],
)  # fmt: skip
def test_what_a_phase_allows(phase: Phase, writes_column: bool, uses_redis: bool) -> None:
    route = Route(phase, 100, 0)
    assert (route.writes_column, route.has_column, route.uses_redis) == (writes_column, writes_column, uses_redis)


def test_an_answer_that_was_overtaken_changes_nothing() -> None:
    routes = Routes(DUAL)
    early = time.monotonic()
    assert routes.learn(HALF, time.monotonic())
    assert not routes.learn(DUAL, early)
    assert routes.now == HALF
    assert routes.learn(HALF, early), "it says the same"
    assert routes.learn(DUAL, time.monotonic())
    assert routes.now == DUAL


def test_a_route_is_acknowledged_when_no_write_to_redis_alone_is_under_way_by_another() -> None:
    routes = Routes(DUAL)
    assert routes.acts_on() == DUAL
    routes.learn(ALONE, time.monotonic())
    assert routes.acts_on() == ALONE
    with routes.writing(ALONE) as first, routes.writing(ALONE) as second:
        assert first
        assert second
        routes.learn(HALF, time.monotonic())
        assert routes.acts_on() == ALONE
        with routes.writing(ALONE) as late:
            assert not late
        with routes.writing(HALF) as fresh:
            assert fresh
    assert routes.acts_on() == HALF


def test_a_write_that_raises_is_no_longer_under_way() -> None:
    routes = Routes(ALONE)
    with pytest.raises(KeyError), routes.writing(ALONE):
        raise KeyError
    routes.learn(DUAL, time.monotonic())
    assert routes.acts_on() == DUAL


def test_floors() -> None:
    floors = Floors(2)
    assert allows(floors.of("a"), 0, HALF)
    floors.raise_to("a", EPOCH + 5)
    floors.raise_to("a", EPOCH + 3)
    assert not allows(floors.of("a"), EPOCH + 4, HALF)
    assert allows(floors.of("a"), EPOCH + 5, HALF)
    assert not allows(floors.of("a"), EPOCH + 4, Route(Phase.REDIS_ONLY, 0, 1)), "written in this epoch"
    assert not allows(floors.of("a"), EPOCH + 4, ALONE), "sync has not delivered it yet"
    assert allows(floors.of("a"), 2 * EPOCH, ALONE), "a write to Redis alone is newer"
    assert allows(floors.of("a"), 0, Route(Phase.DROPPED, 0, PINNED))
    floors.forget("a", EPOCH + 4)
    assert not allows(floors.of("a"), 0, HALF)
    floors.forget("a", EPOCH + 5)
    assert allows(floors.of("a"), 0, HALF)
    floors.raise_to("b", None)
    assert not allows(floors.of("b"), 2**52, HALF), "which version it has is not known"
    floors.raise_to("b", 7)
    assert allows(floors.of("b"), 7, HALF), "a later write, of a known version"
    for key in "cde":
        floors.raise_to(key, 1)
    assert allows(floors.of("b"), 0, HALF)
    assert not allows(floors.of("e"), 0, HALF)


def test_unanswered() -> None:
    unanswered = Unanswered(2)
    for name in ("1", "2"):
        unanswered.add("a", name)
    assert unanswered.of("a") == ("1", "2")
    unanswered.add("a", "3")
    unanswered.remove("a", ("1", "2"))
    assert unanswered.of("a") == ("3",)
    unanswered.remove("a", ("3",))
    assert unanswered.of("a") == ()
    for key in "bcd":
        unanswered.add(key, "1")
    assert [unanswered.of(key) for key in "bcd"] == [(), ("1",), ("1",)]

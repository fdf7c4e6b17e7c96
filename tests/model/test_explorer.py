"""The explorer itself: on counters small enough to check by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.model.explorer import System, explore


def up(most: int) -> System[int]:
    """Counts up to `most` by ones and threes, and rests there."""

    def steps(n: int) -> Iterator[tuple[str, int]]:
        for by in (1, 3):
            if n + by <= most:
                yield f"+{by}", n + by

    return System(0, steps, lambda n: [], lambda n: None, lambda n: None)


def test_visits_every_state_once() -> None:
    found = explore(up(9))
    assert (found.states, found.transitions, found.rests, found.violation) == (10, 9 + 7, 1, None)
    assert found.depth == 4  # eight is 3 + 3 + 1 + 1


def test_a_counterexample_is_a_shortest_one() -> None:
    found = explore(replace(up(9), always=lambda n: "seven" if n == 7 else None))
    assert found.violation is not None
    assert (found.violation.what, len(found.violation.history), found.violation.history[-1][1]) == ("seven", 3, 7)


def test_judges_a_state_at_rest() -> None:
    found = explore(replace(up(4), at_rest=lambda n: f"ended at {n}"))
    assert found.violation is not None
    assert found.violation.what == "ended at 4"


def test_what_may_happen_does_not_bring_it_to_rest() -> None:
    found = explore(
        System(
            0,
            will=lambda n: [("on", (n + 1) % 3)] if n < 3 else [],
            may=lambda n: [("off", 3)] if n < 3 else [],
            always=lambda n: None,
            at_rest=lambda n: None,
        )
    )
    assert found.violation is not None
    assert found.violation.what == "goes on for ever"


def test_an_exploration_that_is_cut_short_is_an_error() -> None:
    with pytest.raises(OverflowError):
        explore(up(100), most=50)

"""Explores every state that a set of rules can reach, breadth first: a counterexample is a shortest one.

Knows nothing of the protocol. A step has a name and leads to a state. What `will` happen goes on until nothing of it is
left: the system is at rest. What `may` happen can come in between at any moment, or never.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True)
class System(Generic[S]):
    start: S
    will: Callable[[S], Iterable[tuple[str, S]]]
    may: Callable[[S], Iterable[tuple[str, S]]]
    always: Callable[[S], str | None]
    """What is wrong with a state, wherever it occurs."""
    at_rest: Callable[[S], str | None]
    """What is wrong with a state in which nothing is left that will happen."""


@dataclass(frozen=True)
class Violation(Generic[S]):
    what: str
    history: list[tuple[str, S]]
    """The steps from the start, each with the state it led to."""


@dataclass(frozen=True)
class Exploration(Generic[S]):
    states: int
    transitions: int
    rests: int
    """States at rest."""
    depth: int
    seconds: float
    violation: Violation[S] | None


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """States hold no cycles, and looking for some costs a quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_no_garbage_collection()
def explore(system: System[S], most: int = 1_000_000) -> Exploration[S]:
    """Visits every reachable state, until one is found wrong.

    From each of them the system comes to rest by what will happen alone, or that is what is wrong.
    Raises OverflowError beyond `most` states: an exploration that was cut short proves nothing.
    """
    began = time.monotonic()
    number: dict[S, int] = {system.start: 0}
    states: list[S] = [system.start]
    parents: list[tuple[int, str]] = [(-1, "")]
    depths: list[int] = [0]
    backwards: list[list[int]] = [[]]
    """From where a state is reached by a step that will happen."""
    rests: list[int] = []
    transitions = 0
    violation: Violation[S] | None = None

    def visit(name: str, after: S) -> int:
        known = number.get(after)
        if known is None:
            known = number[after] = len(states)
            if known >= most:
                raise OverflowError(f"more than {most:,} states")
            states.append(after)
            parents.append((at, name))
            depths.append(depths[at] + 1)
            backwards.append([])
        return known

    def history(at: int) -> list[tuple[str, S]]:
        path = []
        while at:
            before, name = parents[at]
            path.append((name, states[at]))
            at = before
        return path[::-1]

    at = 0
    while at < len(states):
        state = states[at]
        resting = True
        for name, after in system.will(state):
            resting = False
            transitions += 1
            backwards[visit(name, after)].append(at)
        wrong = system.always(state) or (system.at_rest(state) if resting else None)
        if wrong:
            violation = Violation(wrong, history(at))
            break
        if resting:
            rests.append(at)
        for name, after in system.may(state):
            transitions += 1
            visit(name, after)
        at += 1
    else:
        stuck = _never_rests(backwards, rests)
        if stuck is not None:
            violation = Violation("goes on for ever", history(stuck))
    return Exploration(len(states), transitions, len(rests), max(depths), time.monotonic() - began, violation)


def _never_rests(backwards: list[list[int]], rests: list[int]) -> int | None:
    """The first state from which no state at rest can be reached; None if there is none."""
    reached = bytearray(len(backwards))
    waiting = list(rests)
    for rest in rests:
        reached[rest] = 1
    while waiting:
        for before in backwards[waiting.pop()]:
            if not reached[before]:
                reached[before] = 1
                waiting.append(before)
    first = reached.find(0)
    return None if first < 0 else first

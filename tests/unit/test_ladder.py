"""The ladder, rung by rung: a new phase or command fails here until its arrows are written down."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.ladder import (
    ALLOWED,
    GATES,
    ROUTES,
    STEPS,
    Phase,
    bucket,
    gates,
    is_up,
    reads_from,
    step,
    to_run,
    way_to,
    writes_to,
)

IDLE, DUAL_WRITE, CUTOVER, REDIS_ONLY, DROPPED = Phase

# What the design allows; of these, the ones that no command takes yet.
COMMANDS: dict[tuple[Phase, Phase], str | None] = {
    (IDLE, IDLE): None,
    (IDLE, DUAL_WRITE): "dual-write",
    (IDLE, CUTOVER): None,
    (IDLE, REDIS_ONLY): None,
    (IDLE, DROPPED): None,
    (DUAL_WRITE, IDLE): "dual-write --disable",
    (DUAL_WRITE, DUAL_WRITE): None,
    (DUAL_WRITE, CUTOVER): "cutover",
    (DUAL_WRITE, REDIS_ONLY): None,
    (DUAL_WRITE, DROPPED): None,
    (CUTOVER, IDLE): None,
    (CUTOVER, DUAL_WRITE): "rollback",
    (CUTOVER, CUTOVER): "cutover",
    (CUTOVER, REDIS_ONLY): "stop-writes",
    (CUTOVER, DROPPED): None,
    (REDIS_ONLY, IDLE): None,
    (REDIS_ONLY, DUAL_WRITE): None,
    (REDIS_ONLY, CUTOVER): "rollback",
    (REDIS_ONLY, REDIS_ONLY): None,
    (REDIS_ONLY, DROPPED): "drop-column",
    (DROPPED, IDLE): None,
    (DROPPED, DUAL_WRITE): None,
    (DROPPED, CUTOVER): None,
    (DROPPED, REDIS_ONLY): "restore",
    (DROPPED, DROPPED): None,
}

CUTOVER_GATES = ("clients", "capture", "servers", "backfill", "verify", "lag", "shadow")

# What has to be run first, in order; None: nothing, the command is allowed; (): no command leads there.
FIRST: dict[str, tuple[tuple[str, ...] | None, ...]] = {
    # command: idle, dual-write, cutover, redis-only, dropped
    "dual-write": (None, None, ("rollback",), ("rollback", "rollback"), ("restore", "rollback", "rollback")),
    "dual-write --disable": (None, None, ("rollback",), ("rollback", "rollback"), ("restore", "rollback", "rollback")),
    "backfill": (("dual-write",), None, None, ("rollback",), ("restore", "rollback")),
    "sync": (("dual-write",), None, None, None, None),
    "resync": (("dual-write",), None, None, ("rollback",), ("restore", "rollback")),
    "verify": (("dual-write",), None, None, None, None),
    "recompute": (("dual-write",), None, None, ("rollback",), ("restore", "rollback")),
    "archive": (None, None, None, None, ("restore",)),
    "cutover": (("dual-write",), None, None, ("rollback",), ("restore", "rollback")),
    "rollback": (None, None, None, None, ("restore",)),
    "stop-writes": (("dual-write", "cutover"), ("cutover",), None, None, ("restore",)),
    "drop-column": (("dual-write", "cutover", "stop-writes"), ("cutover", "stop-writes"), ("stop-writes",), None, None),
    "clean": (None, ("dual-write --disable",), ("rollback", "dual-write --disable"), ("drop-column",), None),
}


def test_the_phases_are_those_of_the_design() -> None:
    assert [phase.value for phase in Phase] == ["idle", "dual-write", "cutover", "redis-only", "dropped"]


def test_every_pair_and_every_command_is_written_down_here() -> None:
    assert set(COMMANDS) == set(itertools.product(Phase, Phase))
    assert set(FIRST) == set(ALLOWED)
    assert {len(row) for row in FIRST.values()} == {len(Phase)}


@pytest.mark.parametrize(("pair", "command"), COMMANDS.items(), ids=lambda value: str(value))
def test_a_pair_of_phases_is_a_step_or_refused(pair: tuple[Phase, Phase], command: str | None) -> None:
    found = step(*pair)
    assert (found and found.command) == command
    if found:
        assert (found.start, found.end) == pair
        assert set(found.gates) <= set(GATES)


def test_no_arrow_is_drawn_twice() -> None:
    assert len({(s.start, s.end) for s in STEPS}) == len(STEPS)


def test_every_gate_is_before_some_step() -> None:
    assert {name for s in STEPS for name in s.gates} == set(GATES)


# Every pair of (phase, percent): what is asked before. Written out, because the percentage decides within cutover.
BEFORE: dict[tuple[tuple[Phase, float], tuple[Phase, float]], tuple[str, ...]] = {
    ((IDLE, 0), (DUAL_WRITE, 0)): ("doctor",),
    ((DUAL_WRITE, 0), (IDLE, 0)): (),
    ((DUAL_WRITE, 0), (CUTOVER, 0)): CUTOVER_GATES,
    ((DUAL_WRITE, 0), (CUTOVER, 10)): CUTOVER_GATES,
    ((CUTOVER, 10), (CUTOVER, 10)): (),
    ((CUTOVER, 10), (CUTOVER, 10.5)): CUTOVER_GATES,
    ((CUTOVER, 0), (CUTOVER, 100)): CUTOVER_GATES,
    ((CUTOVER, 10), (CUTOVER, 9.5)): (),
    ((CUTOVER, 100), (CUTOVER, 0)): (),
    ((CUTOVER, 100), (DUAL_WRITE, 0)): (),
    ((CUTOVER, 100), (REDIS_ONLY, 0)): ("clients", "capture", "servers", "soak", "verify", "lag", "expiring"),
    ((REDIS_ONLY, 0), (CUTOVER, 100)): (),
    ((REDIS_ONLY, 0), (DROPPED, 0)): ("clients", "servers", "soak", "verify", "late-writes", "archive", "dependents"),
    ((DROPPED, 0), (REDIS_ONLY, 0)): (),
}


@pytest.mark.parametrize(("pair", "names"), BEFORE.items(), ids=lambda value: str(value))
def test_the_gates_of_a_step(pair: tuple[tuple[Phase, float], tuple[Phase, float]], names: tuple[str, ...]) -> None:
    assert gates(*pair) == names


def test_up_is_away_from_the_column() -> None:
    stages = [
        (IDLE, 0.0),
        (DUAL_WRITE, 0.0),
        (CUTOVER, 0.0),
        (CUTOVER, 0.5),
        (CUTOVER, 100.0),
        (REDIS_ONLY, 0.0),
        (DROPPED, 0.0),
    ]
    for (i, lower), (j, upper) in itertools.product(enumerate(stages), repeat=2):
        assert is_up(lower, upper) is (i < j)


@pytest.mark.parametrize(
    ("command", "phase", "first"),
    [(command, phase, first) for command, row in FIRST.items() for phase, first in zip(Phase, row, strict=True)],
)
def test_what_leads_to_a_phase_that_allows_a_command(command: str, phase: Phase, first: tuple[str, ...] | None) -> None:
    assert way_to(command, phase) == (first or ())
    assert (phase in ALLOWED[command]) is (first is None)


def test_what_to_type() -> None:
    assert to_run("dual-write", IDLE) == "cachemig dual-write"
    assert to_run("dual-write", CUTOVER) == "cachemig rollback, then cachemig dual-write"
    assert to_run("clean", CUTOVER) == ("cachemig rollback, then cachemig dual-write --disable, then cachemig clean")


def test_every_phase_but_the_first_can_be_left_downwards() -> None:
    order = list(Phase)
    for phase in order[1:]:
        assert any(step(phase, lower) for lower in order[: order.index(phase)])


def test_an_unknown_command_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        way_to("no-such-command", IDLE)


# Routes -----------------------------------------------------------------------------------------------------------

READS = {
    # phase: of a key with bucket 6.27 at 0, 6, 7 and 100 %
    IDLE: ["column", "column", "column", "column"],
    DUAL_WRITE: ["column", "column", "column", "column"],
    CUTOVER: ["column", "column", "redis", "redis"],
    REDIS_ONLY: ["redis", "redis", "redis", "redis"],
    DROPPED: ["redis", "redis", "redis", "redis"],
}
WRITES = {
    IDLE: ("column",),
    DUAL_WRITE: ("column", "redis"),
    CUTOVER: ("column", "redis"),
    REDIS_ONLY: ("redis",),
    DROPPED: ("redis",),
}
# Written down, because clients of every version and language must agree on them for ever.
BUCKETS = {
    "": 88.94159947521985,
    "a": 79.13742703385651,
    "94d2266b942891c7": 3.2840105704963207,
    "schlüssel": 80.0483379047364,
}


@pytest.mark.parametrize("phase", Phase)
def test_routes(phase: Phase) -> None:
    key = next(k for n in range(10_000) if 6.2 < bucket(k := f"k{n}") < 6.3)
    assert [reads_from(phase, percent, key) for percent in (0, 6, 7, 100)] == READS[phase]
    assert writes_to(phase) == WRITES[phase]
    assert set(ROUTES) == set(READS) == set(WRITES) == set(Phase)


def test_buckets_never_move() -> None:
    assert {key: bucket(key) for key in BUCKETS} == BUCKETS


@given(key=st.text(st.characters(codec="utf-8")))
def test_a_bucket_is_that_of_the_key_id(key: str) -> None:
    number = bucket(key)
    assert 0 <= number < 100
    assert number == int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 2**32 * 100
    assert reads_from(CUTOVER, 0, key) == "column"
    assert reads_from(CUTOVER, 100, key) == "redis"


@given(key=st.text(st.characters(codec="utf-8")), percents=st.tuples(st.floats(0, 100), st.floats(0, 100)))
def test_a_key_that_has_moved_stays_moved_as_the_percentage_rises(key: str, percents: tuple[float, float]) -> None:
    low, high = sorted(percents)
    if reads_from(CUTOVER, low, key) == "redis":
        assert reads_from(CUTOVER, high, key) == "redis"


def test_buckets_are_even() -> None:
    share = sum(reads_from(CUTOVER, 10, f"key-{n}") == "redis" for n in range(20_000)) / 20_000
    assert 0.09 < share < 0.11

"""The ladder, rung by rung: a new phase or command fails here until its arrows are written down."""

from __future__ import annotations

import pytest

from cachemig.ladder import ALLOWED, STEPS, Phase, command_to_allow, step

IDLE, DUAL_WRITE = Phase.IDLE, Phase.DUAL_WRITE

COMMANDS: dict[tuple[Phase, Phase], str | None] = {
    (IDLE, IDLE): None,
    (IDLE, DUAL_WRITE): "dual-write",
    (DUAL_WRITE, IDLE): "dual-write --disable",
    (DUAL_WRITE, DUAL_WRITE): None,
}

# What has to be run first; None: nothing, the command is allowed.
FIRST: dict[tuple[str, Phase], str | None] = {
    ("backfill", IDLE): "dual-write",
    ("backfill", DUAL_WRITE): None,
    ("sync", IDLE): "dual-write",
    ("sync", DUAL_WRITE): None,
    ("verify", IDLE): "dual-write",
    ("verify", DUAL_WRITE): None,
    ("clean", IDLE): None,
    ("clean", DUAL_WRITE): "dual-write --disable",
}


def test_the_phases_are_those_of_the_design() -> None:
    assert [phase.value for phase in Phase] == ["idle", "dual-write"]


def test_every_pair_and_every_command_is_written_down_here() -> None:
    assert set(COMMANDS) == {(start, end) for start in Phase for end in Phase}
    assert set(FIRST) == {(command, phase) for command in ALLOWED for phase in Phase}


@pytest.mark.parametrize(("pair", "command"), COMMANDS.items(), ids=lambda value: str(value))
def test_a_pair_of_phases_is_a_step_or_refused(pair: tuple[Phase, Phase], command: str | None) -> None:
    found = step(*pair)
    assert (found and found.command) == command
    if found:
        assert (found.start, found.end) == pair
        assert found.gate


def test_no_arrow_is_drawn_twice() -> None:
    assert len({(s.start, s.end) for s in STEPS}) == len(STEPS)


@pytest.mark.parametrize(("of", "first"), FIRST.items(), ids=lambda value: str(value))
def test_what_leads_to_a_phase_that_allows_a_command(of: tuple[str, Phase], first: str | None) -> None:
    command, phase = of
    assert command_to_allow(command, phase) == first
    assert (phase in ALLOWED[command]) == (first is None)


def test_every_phase_but_the_first_can_be_left_downwards() -> None:
    order = list(Phase)
    for phase in order[1:]:
        assert any(step(phase, lower) for lower in order[: order.index(phase)])


def test_an_unknown_command_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        command_to_allow("no-such-command", IDLE)

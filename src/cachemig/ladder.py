"""The ladder: the phases of a migration and the steps between them. Pure; nothing here does I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where an application reads and writes (docs/architecture.md, "The ladder")."""

    IDLE = "idle"
    DUAL_WRITE = "dual-write"


@dataclass(frozen=True)
class Step:
    """One arrow of the ladder: the command that takes it, and what must hold before."""

    start: Phase
    end: Phase
    command: str
    gate: str


# Every pair that is not here is refused. A step onto the same phase repeats it and changes nothing.
STEPS: tuple[Step, ...] = (
    Step(Phase.IDLE, Phase.DUAL_WRITE, "dual-write", "doctor finds no error"),
    Step(Phase.DUAL_WRITE, Phase.IDLE, "dual-write --disable", "none: it can always be undone"),
)

# What a phase allows beside steps: backfill without capture would lose the writes that come in meanwhile, and
# removing the control schema under a live trigger would make every write of the application fail.
ALLOWED: dict[str, frozenset[Phase]] = {
    "backfill": frozenset({Phase.DUAL_WRITE}),
    "sync": frozenset({Phase.DUAL_WRITE}),
    "verify": frozenset({Phase.DUAL_WRITE}),
    "recompute": frozenset({Phase.DUAL_WRITE}),  # the repaired value is delivered by capture and sync
    "clean": frozenset({Phase.IDLE}),
}


def step(start: Phase, end: Phase) -> Step | None:
    """The step from one phase to another, or None where the ladder has no such arrow."""
    return next((s for s in STEPS if (s.start, s.end) == (start, end)), None)


def command_to_allow(command: str, phase: Phase) -> str | None:
    """The command that leads from this phase to one in which `command` is allowed; None where it is allowed now."""
    allowed = ALLOWED[command]
    if phase in allowed:
        return None
    return next(s.command for s in STEPS if s.start == phase and s.end in allowed)

"""The ladder: the phases of a migration, where each of them reads and writes, and the steps between them.

Pure; nothing here does I/O. What is not in these tables is refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Store = Literal["column", "redis"]


class Phase(StrEnum):
    """Where an application reads and writes (docs/architecture.md, "The ladder")."""

    IDLE = "idle"
    DUAL_WRITE = "dual-write"
    CUTOVER = "cutover"
    """With a percentage of the keys, 0 to 100, whose reads go to Redis."""
    REDIS_ONLY = "redis-only"
    DROPPED = "dropped"


@dataclass(frozen=True)
class Route:
    """`reads` None: by key. `writes`: in this order, the first one decides."""

    reads: Store | None
    writes: tuple[Store, ...]


ROUTES: dict[Phase, Route] = {
    Phase.IDLE: Route("column", ("column",)),
    Phase.DUAL_WRITE: Route("column", ("column", "redis")),
    Phase.CUTOVER: Route(None, ("column", "redis")),
    Phase.REDIS_ONLY: Route("redis", ("redis",)),
    Phase.DROPPED: Route("redis", ("redis",)),
}

CAPTURED = frozenset({Phase.DUAL_WRITE, Phase.CUTOVER})
"""Phases in which every write to the column is to leave a mark."""

# What a step up demands. How each is measured, and the command that satisfies it: steps/gates.py, steps/doctor.
GATES: dict[str, str] = {
    "doctor": "doctor finds no error",
    "clients": "every live client acts on the phase before",
    "capture": "every write to the column leaves a mark",
    "servers": "both servers are the ones that were filled",
    "backfill": "every entry of the table was delivered in this epoch",
    "verify": "a verification of all keys has passed, a short time ago, in this epoch and with these settings",
    "lag": "sync keeps up",
    "shadow": "where live clients compare in the shade: often enough, and without a mismatch",
    "soak": "the phase before has lasted long enough, undisturbed",
    "expiring": "no entry would expire that could not be computed from a recording again",
    "late-writes": "what was written to the frozen column has been delivered",
    "archive": "the column is archived as it stands, and read back",
    "dependents": "nothing depends on the column",
}

_CUTOVER = ("clients", "capture", "servers", "backfill", "verify", "lag", "shadow")


@dataclass(frozen=True)
class Step:
    """One arrow of the ladder: the command that takes it, and what must hold before."""

    start: Phase
    end: Phase
    command: str
    gates: tuple[str, ...] = ()
    """Names in GATES, in the order in which they are looked at."""


# Every pair that is not here is refused. A step onto the same phase repeats it and changes nothing; but within cutover
# it sets the percentage, and has gates where it raises it.
STEPS: tuple[Step, ...] = (
    Step(Phase.IDLE, Phase.DUAL_WRITE, "dual-write", ("doctor",)),
    Step(Phase.DUAL_WRITE, Phase.IDLE, "dual-write --disable"),
    Step(Phase.DUAL_WRITE, Phase.CUTOVER, "cutover", _CUTOVER),
    Step(Phase.CUTOVER, Phase.CUTOVER, "cutover", _CUTOVER),
    Step(Phase.CUTOVER, Phase.DUAL_WRITE, "rollback"),
    Step(
        Phase.CUTOVER,
        Phase.REDIS_ONLY,
        "stop-writes",
        ("clients", "capture", "servers", "soak", "verify", "lag", "expiring"),
    ),
    Step(Phase.REDIS_ONLY, Phase.CUTOVER, "rollback"),
    Step(
        Phase.REDIS_ONLY,
        Phase.DROPPED,
        "drop-column",
        ("clients", "servers", "soak", "verify", "late-writes", "archive", "dependents"),
    ),
    Step(Phase.DROPPED, Phase.REDIS_ONLY, "restore"),
)

# What a phase allows beside steps: backfill without capture would lose the writes that come in meanwhile, and removing
# the control schema under a live trigger would make every write of the application fail. Once the column is frozen
# nothing may be delivered from it again, but for the last changes.
ALLOWED: dict[str, frozenset[Phase]] = {
    "dual-write": frozenset({Phase.IDLE, Phase.DUAL_WRITE}),
    "dual-write --disable": frozenset({Phase.IDLE, Phase.DUAL_WRITE}),
    "backfill": CAPTURED,
    # Drains what was written before the column was frozen, and brings later writes to Redis.
    "sync": CAPTURED | {Phase.REDIS_ONLY, Phase.DROPPED},
    "resync": CAPTURED,
    "verify": CAPTURED | {Phase.REDIS_ONLY, Phase.DROPPED},  # after the drop, with the ledger
    "recompute": CAPTURED,  # the repaired value is delivered by capture and sync
    "archive": frozenset(Phase) - {Phase.DROPPED},
    "cutover": CAPTURED,
    "rollback": CAPTURED | {Phase.IDLE, Phase.REDIS_ONLY},
    "stop-writes": frozenset({Phase.CUTOVER, Phase.REDIS_ONLY}),
    "drop-column": frozenset({Phase.REDIS_ONLY, Phase.DROPPED}),
    "clean": frozenset({Phase.IDLE, Phase.DROPPED}),
}


def step(start: Phase, end: Phase) -> Step | None:
    """The step from one phase to another, or None where the ladder has no such arrow."""
    return next((s for s in STEPS if (s.start, s.end) == (start, end)), None)


def is_up(start: tuple[Phase, float], end: tuple[Phase, float]) -> bool:
    """Does this lead further away from the column? (phase, percent) each; a higher percentage does."""
    order = list(Phase)
    return (order.index(end[0]), end[1]) > (order.index(start[0]), start[1])


def gates(start: tuple[Phase, float], end: tuple[Phase, float]) -> tuple[str, ...]:
    """Names of the gates before this step. Within cutover only the way up has any: back is always open."""
    found = step(start[0], end[0])
    if found is None or (start[0] is end[0] and not is_up(start, end)):
        return ()
    return found.gates


def way_to(command: str, phase: Phase) -> tuple[str, ...]:
    """The commands that lead, one after the other, to the nearest phase in which `command` is allowed; none where it is
    allowed now, or where none leads there yet."""
    ways: dict[Phase, tuple[str, ...]] = {phase: ()}
    for at in (queue := [phase]):
        if at in ALLOWED[command]:
            return ways[at]
        for arrow in STEPS:
            if arrow.start is at and arrow.end not in ways:
                ways[arrow.end] = (*ways[at], arrow.command)
                queue.append(arrow.end)
    return ()


def to_run(command: str, phase: Phase) -> str:
    """What to type in this phase, so that `command` runs: itself, after the steps that lead to where it may."""
    return ", then ".join(f"cachemig {name}" for name in (*way_to(command, phase), command))


def bucket(key: str) -> float:
    """Where a key stands among all: 0 <= bucket < 100, evenly, and the same everywhere for ever.

    The first four bytes of the SHA-256 of its UTF-8, big endian, as a part of 2^32. SQL: the same of cachemig.key_id.
    """
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") * 100.0 / 2**32


def reads_from(phase: Phase, percent: float, key: str) -> Store:
    """Where a read of this key goes. `percent` counts in cutover alone. A miss there is looked up in the column, from
    redis-only on it is a miss."""
    return ROUTES[phase].reads or ("redis" if bucket(key) < percent else "column")


def writes_to(phase: Phase) -> tuple[Store, ...]:
    """Where a write goes, in this order: what the first one has is true, and the second follows."""
    return ROUTES[phase].writes

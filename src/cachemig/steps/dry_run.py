"""Dry runs: what a command would do now, without doing any of it.

A dry run reads, and with SELECT alone: it writes no row, takes no lease, plants no marker, tries no scratch key in
Redis, leaves no file. Commands whose outlook has a shape of its own (cutover, stop-writes, drop-column, ...) keep it;
all others show this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from cachemig import ladder
from cachemig.config import Settings
from cachemig.ladder import Phase
from cachemig.source import queries
from cachemig.source.connect import Connection
from cachemig.steps import doctor
from cachemig.steps.gates import Measured
from cachemig.targets.redis import RedisTarget

AFTERWARDS = "what was done, in figures"
LATER = {"who": "whoever runs it", "owner": "this run", "fence": "of its lease"}
"""Stand in a shown statement for what is known only when the step is taken."""


@dataclass(frozen=True)
class DryRun:
    """What a command would do now."""

    command: str
    phase: Phase | None
    """None: there is no migration yet."""
    changes: bool
    """False: it is so already, or there is nothing to do."""
    statements: list[str] = field(default_factory=list)
    """Every SQL statement that would be run, in order."""
    redis: list[str] = field(default_factory=list)
    """What would be written to Redis, in words."""
    files: list[str] = field(default_factory=list)
    """That would be written."""
    figures: dict[str, Any] = field(default_factory=dict)
    gates: list[Measured] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        return any(not gate.met for gate in self.gates)


def filled_in(conn: Connection, file: str, name: str, parameters: Mapping[str, Any]) -> str:
    """A named statement as the server would get it, its parameters written as literals. What is known only later is
    the same in every dry run, so that two of them can be compared."""
    return psycopg.ClientCursor(conn).mogrify(queries.text(file, name), {**parameters, **LATER})


def journal(conn: Connection, command: str, phase: Phase | None = None) -> str:
    """The line that the step would write into the journal."""
    return filled_in(
        conn,
        "control",
        "journal",
        {
            "command": command,
            "phase_from": phase and phase.value,
            "figures": Jsonb({"...": AFTERWARDS}),
        },
    )


def deliveries(settings: Settings) -> list[str]:
    """What workers write to Redis for each entry."""
    name = settings.key_template
    expiry = "without expiry" if not settings.ttl else "with its expiry"
    return [
        f"SET {name}, {expiry}, and cachemig:v:{{{name}}}, its version: both by the script deliver.lua, which refuses "
        "an older state; a value of 8 KiB or more under a temporary key first, then renamed",
        f"a key without a value: UNLINK {name}, and its version stays",
    ]


def doctor_gate(settings: Settings, target: RedisTarget, command: str) -> Measured:
    """The gate `doctor`, looked at with read rights alone: what is wrong with this role's rights does not count."""
    found = [
        finding
        for finding in doctor.examine(settings, target, writes=False)
        if finding.level is doctor.Level.ERROR
        and finding.name not in settings.accept
        and doctor.MENDED_BY.get(finding.name) != command
    ]
    figure = "; ".join(f"{finding.name}: {finding.what}" for finding in found) or "none, as far as reading tells"
    return Measured("doctor", ladder.GATES["doctor"], not found, figure, "cachemig doctor")

"""doctor: what would make a migration fail or go wrong, found before it does. Writes nothing but scratch keys in Redis,
and with `writes` False not even those.

Every check says what it found, so that the list shows what was looked at. No finding holds a secret or a value.
"""

from __future__ import annotations

from dataclasses import replace

from cachemig import errors
from cachemig.config import Settings
from cachemig.steps.doctor import clocks, postgres, redis
from cachemig.steps.doctor.finding import Finding, Findings, Level
from cachemig.steps.doctor.postgres import SERVER_CHECKS, TABLE_CHECKS
from cachemig.steps.doctor.redis import REDIS_CHECKS
from cachemig.steps.doctor.subjects import Seen
from cachemig.targets.redis import RedisTarget

__all__ = ["REDIS_CHECKS", "SERVER_CHECKS", "TABLE_CHECKS", "Finding", "Findings", "Level", "examine", "gate"]

ACCEPTABLE = frozenset(
    {"table-owner", "control-schema", "key-index", "before-triggers", "redis-eviction", "redis-memory"}
)
"""Errors that an operator may know to be harmless in his case, or that another role's commands do not meet."""

OF_THE_ROLE = frozenset({"table-owner", "control-schema", "temporary-tables"})
"""Errors about the role that asks. One that only looks is not the one that takes the step."""

MENDED_BY = {"capture-missing": "dual-write", "before-triggers": "dual-write"}
"""Errors that the command itself removes, and so is not refused for."""


def gate(settings: Settings, target: RedisTarget, command: str) -> None:
    """Raises Refused, naming every error that is neither accepted by name nor what the command itself mends."""
    found = [
        f
        for f in examine(settings, target)
        if f.level is Level.ERROR and f.name not in settings.accept and MENDED_BY.get(f.name) != command
    ]
    if not found:
        return
    acceptable = [f.name for f in found if f.name in ACCEPTABLE]
    hint = "cachemig doctor tells what to do about each"
    if acceptable:
        hint += f"; to go on in spite of what you know to be harmless: --accept {','.join(acceptable)}"
    number = "an error" if len(found) == 1 else f"{len(found)} errors"
    raise errors.Refused(
        f"{command}: doctor finds {number}: " + "; ".join(f"{f.name}: {f.what}" for f in found), hint=hint
    )


def examine(settings: Settings, target: RedisTarget, *, writes: bool = True) -> list[Finding]:
    """A finding of every check. Where a server cannot be reached that is its only one, and the other's checks run.

    `writes` False: with read rights alone. Redis is asked nothing that needs more, and no scratch key is written.
    """
    seen = Seen(writes=writes)
    found = [*postgres.findings(settings, seen), *redis.findings(settings, target, seen), clocks.finding(seen)]
    return found if writes else [_as_seen_by_a_reader(finding) for finding in found]


def _as_seen_by_a_reader(finding: Finding) -> Finding:
    if finding.level is not Level.ERROR or finding.name not in OF_THE_ROLE:
        return finding
    return replace(finding, level=Level.NOTE, what=f"{finding.what}; but it only looks")

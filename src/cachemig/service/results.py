"""What CacheService answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cachemig.ladder import Phase


class Source(StrEnum):
    """Where an answer came from."""

    REDIS = "redis"
    COLUMN = "column"
    NOWHERE = "nowhere"
    """Redis did not answer, and there is no column to ask any more: nothing is known of the key."""


class Why(StrEnum):
    """Why it came from there."""

    ROUTE = "route"
    """This is where a read of the key goes in this phase."""
    MISS = "miss"
    """Redis did not have it."""
    BEHIND = "behind"
    """Redis had an older value than this process has written."""
    UNDECODABLE = "undecodable"
    """Redis had bytes that are no JSON."""
    REFUSED = "refused"
    """Redis answered with an error."""
    UNREACHABLE = "unreachable"
    """Redis did not answer, or not in time."""
    BREAKER = "breaker-open"
    """Redis has not answered lately, and was not asked."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a key: found, absent, or unreachable (`source` nowhere). `value` is None where not found."""

    key: str
    found: bool
    value: Any
    source: Source
    why: Why
    version: int | None = None
    stale: bool = False
    """Past its ttl, and kept for `stale_for`."""

    @property
    def unreachable(self) -> bool:
        return self.source is Source.NOWHERE


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a write that did not fail."""

    stored: bool
    """False: no row of the table has this key, so the column had nowhere to put it."""
    delivered: bool
    """Redis holds it; where not (and the phase wants it there), sync delivers."""
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """How this client stands."""

    phase: Phase
    percent: float
    epoch: int
    breaker: str
    last_heartbeat_s: float | None
    """Age of Postgres's last answer; None where the phase is pinned."""
    redis_reachable: bool

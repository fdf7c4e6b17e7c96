"""What a long step reports while it runs: yielded by the library, drawn by cli/."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A figure of a running step. `total` None means that the total is unknown, so no percentage is shown."""

    done: int
    total: int | None
    unit: str
    entries: int = 0
    bytes: int = 0
    backlog: int | None = None
    note: str | None = None
    """What is being done, where the figures do not tell."""
    slowed: str | None = None
    """Why it moves slower than it could, and how fast."""
    waiting: str | None = None
    """Why nothing moves at the moment (Redis is full, a server is away), and for how long it is waited for."""

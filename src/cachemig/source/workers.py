"""Workers as others see them: what each running backfill, sync and verify is at (steps/shown.py writes it)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cachemig.source import control, queries
from cachemig.source.connect import Connection, source_errors


@dataclass(frozen=True)
class Running:
    """A worker that was seen within a lease's time."""

    owner: str
    command: str
    started_at: datetime
    seen_s: float
    """So long ago."""
    done: int
    total: int | None
    unit: str
    entries: int
    bytes: int
    rate_bytes_s: int
    note: str | None
    slowed: str | None
    """Why it goes slower than it could."""
    waiting: str | None
    """Why nothing moves."""

    @property
    def name(self) -> str:
        """host:pid"""
        return self.owner.rpartition(":")[0]

    @property
    def reason(self) -> str | None:
        return self.waiting or self.slowed


def running(conn: Connection) -> list[Running]:
    """Workers of all machines; of this one without those that were killed."""
    with source_errors():
        rows = conn.execute(queries.text("control", "workers"), {"lease_s": control.LEASE_S}).fetchall()
    found = [Running(*row) for row in rows]
    dead = set(control.dead([worker.owner for worker in found]))
    return [worker for worker in found if worker.owner not in dead]

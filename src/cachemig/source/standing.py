"""Where things stand, as the control schema tells it: asked by status, and by the gates of every step up.

Reads only. Loads nothing but the driver, for status is to answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cachemig.config import Settings, show_duration
from cachemig.source import queries
from cachemig.source.connect import Connection, source_errors


@dataclass(frozen=True)
class Backlog:
    """Changes that are not delivered yet. `oldest_s` None: there are none."""

    changes: int
    oldest_s: float | None


def backlog(conn: Connection) -> Backlog:
    row = conn.execute(queries.text("sync", "backlog")).fetchone()
    assert row is not None
    return Backlog(int(row[0]), None if row[1] is None else float(row[1]))


@dataclass(frozen=True)
class Late:
    """What was written to the frozen column so far. Every count ends at 100,000, which then means that or more."""

    waiting: int
    """Not delivered yet."""
    writes: int
    last_write: datetime | None
    deletes: int
    """Rows that went, whose keys were removed from Redis; no write to the column."""
    failed: int
    """Refused by Redis, or corrupt: they stand in the column alone."""
    oldest_s: float | None
    """Of those that wait."""
    last_write_s: float | None
    """Since the last write."""
    writers: list[tuple[str, int, datetime]]
    """Who wrote, how often among the last 100,000 writes, and when last."""


def late(conn: Connection) -> Late:
    with source_errors():
        row = conn.execute(queries.text("late_write", "late_totals")).fetchone()
        writers = conn.execute(queries.text("late_write", "late_writers")).fetchall()
    assert row is not None
    waiting, writes, last, deletes, failed, oldest_s, last_s = row
    return Late(waiting, writes, last, deletes, failed, oldest_s, last_s, [(w, n, at) for w, n, at in writers])


@dataclass(frozen=True)
class Verification:
    """The last one of all keys, from the journal."""

    age_s: float
    epoch: int
    passed: bool
    fingerprint: str | None


def last_verification(conn: Connection) -> Verification | None:
    """The last verification of all keys, whatever it found."""
    with source_errors():
        row = conn.execute(queries.text("cutover", "last_verification")).fetchone()
    return Verification(*row) if row else None


def fresh(last: Verification | None, epoch: int, settings: Settings) -> tuple[bool, str]:
    """Does this verification count, and the figure that says so."""
    if last is None:
        return False, "there was none of all keys"
    age, limit = f"{last.age_s:,.0f} s old", f"at most {show_duration(settings.verify_fresh)}"
    if last.epoch != epoch:
        return False, f"the last one is of epoch {last.epoch}, this is epoch {epoch}"
    if last.fingerprint != settings.fingerprint():
        return False, "the last one was of other settings"
    if not last.passed:
        return False, f"the last one, {age}, did not pass"
    if last.age_s > settings.verify_fresh:
        return False, f"the last one is {age}, wanted: {limit}"
    return True, f"passed, {age} (wanted: {limit})"


@dataclass(frozen=True)
class Registered:
    """A file that was read back and found equal to the table."""

    id: int
    at: datetime
    who: str
    location: str
    rows: int
    entries: int
    nbytes: int
    sha256: bytes
    epoch: int
    checked_at: datetime


def newest_archive(conn: Connection) -> Registered | None:
    """The archive that was checked last: what the gate of drop-column looks at."""
    with source_errors():
        row = conn.execute(queries.text("archive", "newest")).fetchone()
    return Registered(*row) if row else None


@dataclass(frozen=True)
class Disk:
    """Bytes on disk: of the table with its partitions, large values and indexes; and of the whole database."""

    table: int
    database: int


def on_disk(conn: Connection, oid: int) -> Disk:
    with source_errors():
        row = conn.execute(queries.text("report", "report_on_disk"), {"oid": oid}).fetchone()
    assert row is not None
    return Disk(int(row[0]), int(row[1]))

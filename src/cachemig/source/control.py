"""The control schema: the migration's own state, its journal and its leases."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from cachemig.config import Settings
from cachemig.entries.entry import EPOCH
from cachemig.errors import LeaseHeld, NotInitialised, Refused, SettingsDiffer
from cachemig.ladder import ALLOWED, Phase, way_to
from cachemig.source import queries
from cachemig.source.connect import Connection, source_errors

LEASE_S = 60.0
LOOK_AGAIN: ContextVar[Callable[[Connection], None] | None] = ContextVar("LOOK_AGAIN", default=None)
"""Called where the lease was taken, before the step: what a plan was made of is looked at where nobody can move the
ladder any more (steps/apply.py). Raises what refuses the step."""


@dataclass(frozen=True)
class Migration:
    """The one migration of a database."""

    phase: Phase
    percent: float
    """Of the keys, those read from Redis in phase `cutover`."""
    epoch: int
    frozen_epoch: int | None
    """Of the column from stop-writes on; what is read of it keeps that epoch. None: the column is in use."""
    settings: dict[str, Any]
    fingerprint: str
    layout: dict[str, Any] | None
    changed_at: datetime
    changed_by: str
    timeline: str | None
    redis_run: str | None
    redis_marker: str | None
    timeline_now: str | None
    """Of the Postgres that answered; `timeline` is that of the one that capture was committed on."""

    @property
    def base(self) -> int:
        """The lowest version of a write to Redis alone; whatever is read from the frozen column is below."""
        return (self.column_epoch + 1) * EPOCH

    @property
    def column_epoch(self) -> int:
        """The epoch of what is read from the column."""
        return self.epoch if self.frozen_epoch is None else self.frozen_epoch

    @property
    def fenced(self) -> bool:
        """A rollback was begun that no write to Redis alone may come after, and has not ended."""
        planted = (self.redis_marker or "").partition(":")[0]
        return self.frozen_epoch is not None and planted.isdigit() and int(planted) > self.epoch


def find(conn: Connection) -> Migration | None:
    """The migration of this database, or None where `cachemig init` has not been run."""
    with source_errors():
        there = conn.execute(queries.text("control", "has_control")).fetchone()
        if not there or not there[0]:
            return None
        row = conn.execute(queries.text("control", "migration")).fetchone()
    if row is None:
        return None
    phase, *rest = row
    return Migration(Phase(phase), *rest)


def require(conn: Connection, settings: Settings, command: str | None = None) -> Migration:
    """The migration, if these are its settings and its phase allows the command.

    Raises NotInitialised, SettingsDiffer, or Refused with the commands that lead to such a phase.
    """
    migration = find(conn)
    if migration is None:
        raise NotInitialised
    if migration.fingerprint != settings.fingerprint():
        mine = settings.identity()
        differing = [
            f"{name}: {migration.settings.get(name)!r} then, {value!r} now ({settings.origins.get(name, 'default')})"
            for name, value in mine.items()
            if migration.settings.get(name) != value
        ]
        raise SettingsDiffer(
            "these are not the settings that this migration was begun with: " + "; ".join(differing),
            hint="set them back; to begin anew: cachemig dual-write --disable, then cachemig clean --execute",
        )
    if command is not None and migration.phase not in ALLOWED[command]:
        raise Refused(
            f"{command} is not allowed in phase {migration.phase.value!r}",
            hint=", then ".join(f"cachemig {way}" for way in way_to(command, migration.phase)) or None,
        )
    return migration


def now(conn: Connection) -> datetime:
    """The time by Postgres's clock, which the times in the control schema are of."""
    with source_errors():
        row = conn.execute(queries.text("control", "now")).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


def who() -> str:
    """The operator, for the journal: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def journal(conn: Connection, command: str, figures: dict[str, Any], *, phase_from: Phase | None = None) -> None:
    """Writes what a command changed. In the caller's transaction, where it has one."""
    with source_errors():
        conn.execute(
            queries.text("control", "journal"),
            {
                "who": who(),
                "command": command,
                "phase_from": phase_from and phase_from.value,
                "figures": Jsonb(figures),
            },
        )


@dataclass(frozen=True)
class Line:
    """One line of the journal."""

    id: int
    at: datetime
    who: str
    command: str
    phase_from: str | None
    phase_to: str | None
    epoch: int | None
    figures: dict[str, Any]


def history(conn: Connection, limit: int, *, whole: bool = False) -> list[Line]:
    """The last lines of the journal, newest last; `whole`: with the statements that were run."""
    with source_errors():
        rows = conn.execute(queries.text("control", "whole_history" if whole else "history"), {"limit": limit})
        return [Line(*row) for row in rows]


def set_phase(conn: Connection, phase: Phase, epoch: int) -> None:
    with source_errors():
        conn.execute(queries.text("control", "set_phase"), {"phase": phase.value, "epoch": epoch, "who": who()})


def owner(pid: int | None = None) -> str:
    """This process (or another one of this host), for leases: host, pid, and when it started, so that a reused pid is
    not mistaken for it."""
    pid = pid or os.getpid()
    return f"{socket.gethostname()}:{pid}:{_started(pid)}"


def dead(owners: list[str]) -> list[str]:
    """Those of the owners that were processes of this host and are gone: their leases need not be waited for."""
    gone = []
    for name in owners:
        host, pid, started = name.rsplit(":", 2)
        if host == socket.gethostname() and _started(int(pid)) != started:
            gone.append(name)
    return gone


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot; '' where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123  # one read of a kernel file
            return stat.read().rsplit(b")", 1)[1].split()[19].decode()
    except (OSError, IndexError):
        pass
    try:  # no /proc, as on macOS: a live pid is taken for the owner
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "alive"
    return "alive"


@contextmanager
def lease(conn: Connection, name: str) -> Iterator[int]:
    """Holds a lease for a short step; yields its fencing number. Raises LeaseHeld, naming the holder."""
    with source_errors():
        row = conn.execute(queries.text("control", "lease_holder"), {"name": name}).fetchone()
        taken = conn.execute(
            queries.text("control", "take_lease"),
            {"name": name, "owner": owner(), "seconds": LEASE_S, "dead": dead([str(row[0])] if row else [])},
        ).fetchone()
    if taken is None:
        holder = f" by {str(row[0]).rsplit(':', 1)[0]}" if row else ""
        raise LeaseHeld(f"the lease {name!r} is held{holder}")
    fence = int(taken[0])
    try:
        if look := LOOK_AGAIN.get():
            LOOK_AGAIN.set(None)  # once: what comes after is this very run's own doing
            look(conn)
        yield fence
    finally:
        if not conn.closed:
            conn.execute(queries.text("control", "release_lease"), {"name": name, "owner": owner(), "fence": fence})

"""Orders: pause, resume and limits, given in one terminal and taken by workers in all others within a second."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachemig.config import Settings
from cachemig.source import control, queries
from cachemig.source.connect import Connection, connect, source_errors, transaction
from cachemig.steps.neighbour import Neighbour, in_mib
from cachemig.steps.pace import Bucket, Duty
from cachemig.stop import Stop

if TYPE_CHECKING:
    from cachemig.steps.dry_run import DryRun

_EVERY_S = 0.5
_MOST_SLEEP_S = 0.25
_LEAST_SLEEP_S = 0.01
"""Shorter waits are added up: a sleep is never that exact."""


class Paused(Exception):
    """An operator paused the migration: what is in work is given back, and waited for outside of any transaction."""


@dataclass(frozen=True)
class Given:
    """What is in force. `max_rate`: bytes a second for each worker; None: each worker's own setting, 0: no limit."""

    paused_by: str | None
    max_rate: int | None


def read(conn: Connection) -> Given:
    with source_errors():
        row = conn.execute(queries.text("control", "orders")).fetchone()
    return Given(*row) if row else Given(None, None)


def give(settings: Settings, *, paused: bool | None = None, max_rate: int | None = None) -> Given:
    """Gives an order; what is None stays as it is. Journalled."""
    with connect(settings) as conn:
        control.require(conn, settings)
        with transaction(conn):
            if paused is not None:
                conn.execute(queries.text("control", "set_paused"), {"by": control.who() if paused else None})
                control.journal(conn, "pause" if paused else "resume", {})
            if max_rate is not None:
                conn.execute(queries.text("control", "set_max_rate"), {"max_rate": max_rate})
                control.journal(conn, "throttle", {"max_rate": max_rate})
        return read(conn)


def preview(settings: Settings, *, paused: bool | None = None, max_rate: int | None = None) -> DryRun:
    """What `give` would do now. Reads only."""
    from cachemig.steps import dry_run  # loads Redis's client, which status can do without

    with connect(settings) as conn:
        migration, given = control.require(conn, settings), read(conn)
        command = "throttle" if paused is None else "pause" if paused else "resume"
        set_it: tuple[str, dict[str, str | int | None]] = ("set_max_rate", {"max_rate": max_rate})
        if paused is not None:
            set_it = ("set_paused", {"by": dry_run.LATER["who"] if paused else None})
        changes = given.max_rate != max_rate if paused is None else (given.paused_by is not None) != paused
        shown = [dry_run.filled_in(conn, "control", *set_it), dry_run.journal(conn, command)]
        now = f"paused by {given.paused_by}" if given.paused_by else "workers go on"
        return dry_run.DryRun(f"cachemig {command}", migration.phase, changes, shown, notes=[f"now: {now}"])


class Orders:
    """The orders as one worker follows them, and the limits that it keeps by itself (steps/neighbour.py)."""

    def __init__(self, settings: Settings, stop: Stop, environment: Mapping[str, str] | None = None) -> None:
        """`environment`: where the password of Redis may be; this process's own, where none is given."""
        now = time.monotonic()
        self._own_rate = settings.max_rate
        self._stop = stop
        self._looked = 0.0
        self._given = Given(None, None)
        self._neighbour = Neighbour(settings, os.environ if environment is None else environment)
        self._bucket = Bucket(now)
        self._duty = Duty(settings.duty, now) if settings.duty < 1 else None
        self._spent = 0
        self._spent_since = now
        self._measured = 0.0

    def look(self, conn: Connection) -> str | None:
        """Who or what paused the migration, None for nobody; what is in work is to be given back. A short pause only
        has `spend` wait. Asks at most twice a second; `conn` must not be in a transaction.

        Raises LimitUnknown where a limit is set and for `retry_for` nobody could tell whether it is kept.
        """
        now = time.monotonic()
        if now - self._looked >= _EVERY_S:
            self._given = read(conn)
            if self._neighbour.asks:
                rate = self._spent / (now - self._spent_since)
                self._measured = (self._measured + rate) / 2 if self._measured else rate
                self._neighbour.look(conn, self._measured)
            self._looked = self._spent_since = time.monotonic()
            self._spent = 0
        if self._duty:
            self._duty.looked(time.monotonic())
        return self._given.paused_by or self._neighbour.paused_for_long

    @property
    def throttled(self) -> str | None:
        """What to say of it in a status line; None where nothing holds up the work but a limit by hand."""
        if self._given.paused_by:
            return f"paused by {self._given.paused_by}; cachemig resume goes on"
        if self._neighbour.paused:
            return f"paused: {self._neighbour.paused}"
        if self._neighbour.slowed:
            return f"slowed to {in_mib(self._rate or 0)}/s: {self._neighbour.slowed}"
        return None

    @property
    def limit(self) -> str | None:
        """The limit by hand, for who looks at the worker from outside."""
        by_hand = self._own_rate if self._given.max_rate is None else self._given.max_rate
        if not by_hand:
            return None
        whose = "max_rate" if self._given.max_rate is None else "cachemig throttle"
        return f"limited to {in_mib(by_hand)}/s by {whose}"

    def spend(self, nbytes: int) -> None:
        """Waits until these bytes are within the rate, and the rest that follows work is over; a moment at most, so
        that orders are seen. While it is `held`, `spend(0)` waits on."""
        rate = self._rate
        self._spent += nbytes
        if not self.limited:
            return
        now = time.monotonic()
        self._bucket.add(nbytes, rate, now)
        if self._duty and nbytes:
            self._duty.worked(now)
        elif self._duty:
            self._duty.idle(now)
        if self.held:
            wait_s = min(self._ahead_s, _MOST_SLEEP_S)
            self._stop.wait(wait_s)
            if self._duty:
                self._duty.rested(wait_s, time.monotonic())

    @property
    def limited(self) -> bool:
        """A rate or a duty is to be kept."""
        return bool(self._rate or self._duty or self._neighbour.paused)

    @property
    def held(self) -> bool:
        """It went further than rate and duty allow by now."""
        return self._ahead_s >= _LEAST_SLEEP_S

    @property
    def _ahead_s(self) -> float:
        if self._neighbour.paused:
            return _EVERY_S
        rest_s = self._duty.wait_s if self._duty else 0.0
        return max(rest_s, self._bucket.wait_s(self._rate, time.monotonic()))

    @property
    def _rate(self) -> float | None:
        by_hand = self._own_rate if self._given.max_rate is None else self._given.max_rate
        return min((rate for rate in (by_hand, self._neighbour.pace.rate) if rate), default=None)

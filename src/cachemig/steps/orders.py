"""Orders: pause, resume and limits, given in one terminal and taken by workers in all others within a second."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cachemig.config import Settings
from cachemig.source import control, queries
from cachemig.source.connect import Connection, connect, source_errors, transaction
from cachemig.stop import Stop

_EVERY_S = 0.5
_MOST_SLEEP_S = 0.25


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


class Orders:
    """The orders as one worker follows them."""

    def __init__(self, settings: Settings, stop: Stop) -> None:
        self._own_rate = settings.max_rate
        self._stop = stop
        self._looked = 0.0
        self._given = Given(None, None)
        self._began = time.monotonic()
        self._spent = 0

    def look(self, conn: Connection) -> str | None:
        """Who paused the migration, None for nobody. Asks at most twice a second."""
        if time.monotonic() - self._looked >= _EVERY_S:
            before, self._given = self._given, read(conn)
            self._looked = time.monotonic()
            if before.max_rate != self._given.max_rate:
                self._began, self._spent = time.monotonic(), 0
        return self._given.paused_by

    def spend(self, nbytes: int) -> None:
        """Waits as long as it takes for these bytes to be within the rate."""
        rate = self._own_rate if self._given.max_rate is None else self._given.max_rate
        self._spent += nbytes
        if not rate:
            return
        ahead_s = self._spent / rate - (time.monotonic() - self._began)
        if ahead_s > 0:
            self._stop.wait(min(ahead_s, _MOST_SLEEP_S))
        elif ahead_s < -1:  # what was not used is not saved up for a burst
            self._began, self._spent = time.monotonic(), 0

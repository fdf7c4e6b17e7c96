# Generated from clients_async.py by scripts/generate-sync: change that one.
"""This process as a client of the ladder: it registers, asks for the phase, says what it acts on, and leaves."""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
import time
from collections.abc import Callable
from typing import Any

from cachemig.errors import CachemigError
from cachemig.service._sync import Background, Event, Lock, within
from cachemig.service.column_sync import Column
from cachemig.service.options import Options
from cachemig.service.route import Route, Routes

_DRAIN_S = 0.01
_LEAVE_S = 2.0
_log = logging.getLogger("cachemig.service")


class Client:
    """Keeps `routes` up to date. While Postgres cannot be asked, the last known route holds."""

    def __init__(
        self, column: Column, routes: Routes, options: Options, name: str, stats: Callable[[], dict[str, Any]]
    ) -> None:
        self.id = secrets.token_hex(8)
        self._column = column
        self._routes = routes
        self._options = options
        self._name = name
        self._stats = stats
        self._lock = Lock()
        self._wake = Event()
        self._stop = Event()
        self._thread = Background(2)
        self._closed = False
        self._told: Route | None = None
        self._ticked_at = time.monotonic()
        self._frozen = False
        self.last_beat: float | None = None
        """When Postgres last answered, by time.monotonic()."""

    def register(self) -> dict[str, Any]:
        """The first word to Postgres; returns the migration's settings. Raises SourceError or NotInitialised."""
        return self._beat()

    def start(self) -> None:
        self._tick()
        self._thread.start(self._run)
        self._thread.start(self._watch)

    def beat_now(self) -> None:
        """Asks for the phase at once. Raises SourceError."""
        self._beat()

    def wake(self) -> None:
        """Something speaks for another phase: ask before the interval is over."""
        self._wake.set()

    def after_a_freeze(self) -> None:
        """Where this process was frozen, its lease may be over and the ladder further on: it asks before it goes on.

        Once, and an attempt that fails counts too: a dead Postgres holds nobody up.
        """
        self._tick()
        if self._frozen and not self._closed:
            with self._lock:  # whoever comes meanwhile waits for the answer too
                if self._frozen:
                    with contextlib.suppress(CachemigError, TimeoutError):
                        within(self._options.poll_interval, self._beat)
                    self._frozen = False

    def close(self) -> None:
        """Leaves: the ladder does not wait for this client any more."""
        self._closed = True
        self._stop.set()
        self._wake.set()
        self._thread.close()
        with contextlib.suppress(CachemigError, TimeoutError):
            within(_LEAVE_S, self._leave)

    def _tick(self) -> None:
        """A freeze is told by a clock that went on while nothing here did. Half as long as can cost the lease."""
        now = time.monotonic()
        if now - self._ticked_at > self._options.poll_interval:
            self._frozen = True
        self._ticked_at = now

    def _watch(self) -> None:
        while not self._stop.wait_for(self._options.poll_interval / 4):
            self._tick()

    def _run(self) -> None:
        while True:
            # A client that has taken something up says so at once: a step waits for it.
            acts_on = self._routes.acts_on()
            if acts_on == self._told and acts_on == self._routes.now:
                self._wake.wait_for(self._options.poll_interval * random.uniform(0.8, 1.0))  # noqa: S311
            elif acts_on != self._routes.now:
                self._wake.wait_for(_DRAIN_S)
            self._wake.clear()
            if self._closed:
                return
            try:
                within(self._options.client_lease, self._beat)
            except CachemigError as exc:
                _log.warning("the phase cannot be asked for; the last one known holds: %s", type(exc).__name__)
                self._wake.wait_for(self._options.poll_interval)
            except TimeoutError:
                _log.warning("the phase cannot be asked for; the last one known holds: no answer")

    def _leave(self) -> None:
        self._column.leave(self.id)

    def _beat(self) -> dict[str, Any]:
        asked_at = time.monotonic()
        acts_on = self._routes.acts_on() if self.last_beat is not None else None
        route, settings = self._column.heartbeat(
            self.id, self._name, acts_on, self._options.client_lease, self._stats()
        )
        self.last_beat = time.monotonic()
        self._told = acts_on
        if not self._routes.learn(route, asked_at):
            self._wake.set()
        return settings

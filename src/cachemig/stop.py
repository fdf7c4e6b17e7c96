"""Stopping on request: the step finishes the pipeline in flight and saves."""

from __future__ import annotations

import threading

from cachemig.errors import Interrupted


class Stop:
    """Set by a signal handler, looked at by steps between batches."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.signal_number = 2

    def request(self, signal_number: int) -> None:
        self.signal_number = signal_number
        self._event.set()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> None:
        """Sleeps, or returns at once when a stop is requested."""
        self._event.wait(seconds)

    def check(self, hint: str) -> None:
        """Raises Interrupted, with the command that resumes, if a stop was requested."""
        if self.requested:
            raise Interrupted(hint=hint, signal_number=self.signal_number)

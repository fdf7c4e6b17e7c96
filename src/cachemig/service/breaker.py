"""A circuit breaker: a server that does not answer is asked by one call now and then, not by all of them."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum

FAILURES = 3
WITHIN_S = 1.0
PAUSES_S = (0.5, 10.0)


class Permit(Enum):
    CALL = "call"
    PROBE = "probe"
    """The one call that finds out whether the server is back."""


class Breaker:
    """Opens after FAILURES failures within WITHIN_S, or as many in a row; then lets one probe through after a pause
    that doubles with each failed probe, shortened by up to half at random, so that processes do not knock together.

    Every permit is to be given back by `succeeded`, `failed` or `abandoned`. May be used from any thread.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, chance: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._in_a_row = 0
        self._open_until: float | None = None
        self._pause_s = PAUSES_S[0]
        self._probing = False
        self.opened = 0
        """How often it has opened."""

    @property
    def state(self) -> str:
        """closed, open, or half-open while a probe is due or under way."""
        with self._lock:
            if self._open_until is None:
                return "closed"
            return "half-open" if self._probing or self._clock() >= self._open_until else "open"

    @property
    def blocked(self) -> bool:
        """Whether a call would get no permit now."""
        with self._lock:
            return self._open_until is not None and (self._probing or self._clock() < self._open_until)

    def permit(self) -> Permit | None:
        """Whether a call may be made now; None: no."""
        with self._lock:
            if self._open_until is None:
                return Permit.CALL
            if self._probing or self._clock() < self._open_until:
                return None
            self._probing = True
            return Permit.PROBE

    def succeeded(self, permit: Permit) -> None:
        if permit is Permit.CALL and not self._in_a_row:
            return
        with self._lock:
            if permit is Permit.PROBE:
                self._probing = False
                self._open_until = None
                self._pause_s = PAUSES_S[0]
                self._failures.clear()
            # A call that was made before it opened says nothing of now: only a probe closes.
            self._in_a_row = 0

    def failed(self, permit: Permit) -> None:
        with self._lock:
            now = self._clock()
            if permit is Permit.PROBE:
                self._probing = False
                self._pause_s = min(self._pause_s * 2, PAUSES_S[1])
                self._open_until = now + self._pause()
                return
            self._failures.append(now)
            self._in_a_row += 1
            often = len(self._failures) == FAILURES and now - self._failures[0] <= WITHIN_S
            if self._open_until is None and (often or self._in_a_row >= FAILURES):
                self.opened += 1
                self._in_a_row = 0
                self._failures.clear()
                self._open_until = now + self._pause()

    def abandoned(self, permit: Permit) -> None:
        """The call was cancelled: nothing is known of the server."""
        if permit is Permit.PROBE:
            with self._lock:
                self._probing = False

    def _pause(self) -> float:
        return self._pause_s * (0.5 + 0.5 * self._chance())

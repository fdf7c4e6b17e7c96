"""Looking at a server again and again, in a thread of its own: whoever reads what was seen never waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

from cachemig.errors import CachemigError

T = TypeVar("T")
SLOW_S = 2.0
"""A server that has not answered for so long is said to be silent."""
_GIVEN_UP_S = 15.0
"""Then another thread asks, over another connection: this one may never hear an answer."""


@dataclass(frozen=True)
class Seen(Generic[T]):
    value: T | None
    """Of the last answer; None: there was none yet."""
    age_s: float
    """How long ago that was."""
    error: CachemigError | None
    """Why there is no newer one; None: there is no reason to say so."""
    silent_s: float
    """So long an answer has been waited for."""

    @property
    def fault(self) -> str | None:
        """Why nothing newer is known, in words."""
        if self.silent_s > SLOW_S:
            return f"no answer for {self.silent_s:.0f} s"
        return None if self.error is None else str(self.error)


class Eye(Generic[T]):
    """`opened` gives what asks, with its connections; it is entered in the thread, and anew by the next one."""

    def __init__(self, opened: Callable[[], AbstractContextManager[Callable[[], T]]], every_s: float) -> None:
        self._opened = opened
        self._every_s = every_s
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._answered = threading.Event()
        self._value: T | None = None
        self._error: CachemigError | None = None
        self._at = self._waits_since = self._asked = time.monotonic()
        self._waits = True
        self._number = 0
        self._begin()

    def _begin(self) -> None:
        self._number += 1
        self._asked = time.monotonic()
        # A daemon: whoever ends waits for no server.
        thread = threading.Thread(target=self._run, args=(self._number,), daemon=True, name="cachemig eye")
        thread.start()

    def _run(self, number: int) -> None:
        while not self._closed.is_set():
            try:
                with self._opened() as ask:
                    while self._look(number, ask):
                        pass
                return
            except CachemigError as exc:  # it could not be opened
                if not self._heard(number, None, exc):
                    return

    def _look(self, number: int, ask: Callable[[], T]) -> bool:
        """False where nobody wants to know any more."""
        with self._lock:
            if number != self._number:
                return False
            self._asked = time.monotonic()
            if not self._waits:
                self._waits, self._waits_since = True, self._asked
        try:
            return self._heard(number, ask(), None)
        except CachemigError as exc:
            return self._heard(number, None, exc)
        except Exception as exc:  # noqa: BLE001  # the thread goes on, and the view says what is wrong
            return self._heard(number, None, _unknown(exc))

    def _heard(self, number: int, value: T | None, error: CachemigError | None) -> bool:
        with self._lock:
            if number != self._number:
                return False
            self._waits, self._error = False, error
            if value is not None:
                self._value, self._at = value, time.monotonic()
        self._answered.set()
        return not self._closed.wait(self._every_s)

    def first(self, seconds: float) -> Seen[T]:
        """Waits for the first answer, or the first error, so long at most."""
        self._answered.wait(seconds)
        return self.seen()

    def seen(self) -> Seen[T]:
        now = time.monotonic()
        with self._lock:
            if self._waits and now - self._asked > _GIVEN_UP_S:
                self._begin()
            silent_s = now - self._waits_since if self._waits else 0.0
            return Seen(self._value, now - self._at, self._error, silent_s)

    def close(self) -> None:
        self._closed.set()


def _unknown(exc: Exception) -> CachemigError:
    return CachemigError(f"internal error: {type(exc).__name__}", hint="please report it, with what was done before")

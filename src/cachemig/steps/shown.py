"""What a worker shows of itself: a row of its own in cachemig.worker, for status and watch.

For people alone: nothing depends on the row, and no fault in writing it reaches the worker.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from cachemig.errors import CachemigError, SourceUnavailable
from cachemig.progress import Progress
from cachemig.source import control, queries
from cachemig.steps.retry import Reconnecting

T = TypeVar("T")
_EVERY_S = 2.0
_SOON_S = 0.5
"""After so long where it begins or ends to wait."""
_AFTER_A_FAULT_S = 30.0
_LONGEST = 300
"""Characters of a reason."""


class Shown:
    """This worker's row."""

    def __init__(self, command: str, limit: Callable[[], str | None] = lambda: None) -> None:
        """`limit`: what holds up the work that its own status line does not tell, for whoever runs it has said so."""
        self._command = command
        self._limit = limit
        self._id = secrets.token_hex(8)
        self._owner = control.owner()
        self._next = self._last = 0.0
        self._waiting = False
        self._bytes = 0
        self._rate: float | None = None

    def over(self, session: Reconnecting, steps: Generator[Progress, None, T]) -> Generator[Progress, None, T]:
        """Passes on what the worker yields, and says it. `session`: for connections that nothing else is done on
        while something is yielded."""
        while True:
            try:
                progress = next(steps)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            self.say(session, progress)
            yield progress

    def say(self, session: Reconnecting, progress: Progress) -> None:
        """Writes what the worker is at: every two seconds, and soon where it begins or ends to wait. Raises nothing of
        what Postgres says to it; then it asks no more for a while."""
        now = time.monotonic()
        turned = bool(progress.waiting) != self._waiting and now - self._last >= _SOON_S
        if now < self._next and not (turned and self._next - now < _EVERY_S):
            return
        if self._last:
            rate = max(0, progress.bytes - self._bytes) / (now - self._last)
            self._rate = rate if self._rate is None else (self._rate + rate) / 2
        self._last, self._bytes, self._waiting = now, progress.bytes, bool(progress.waiting)
        written = self._write(
            session,
            "worker_seen",
            owner=self._owner,
            command=self._command,
            done=progress.done,
            total=progress.total,
            unit=progress.unit,
            entries=progress.entries,
            bytes=progress.bytes,
            rate_bytes_s=0 if progress.waiting else round(self._rate or 0),
            note=_short(progress.note),
            slowed=_short(progress.slowed or (None if progress.waiting else self._limit())),
            waiting=_short(progress.waiting),
        )
        self._next = time.monotonic() + (_EVERY_S if written else _AFTER_A_FAULT_S)

    def leave(self, session: Reconnecting) -> None:
        """The row goes; where Postgres is away it is ignored soon."""
        self._write(session, "worker_gone")
        self._next = 0.0

    def _write(self, session: Reconnecting, name: str, **values: str | int | None) -> bool:
        parts = {part: sql.Literal(value) for part, value in {"id": self._id, **values}.items()}
        try:
            conn = session.get()
            if conn.info.transaction_status is TransactionStatus.IDLE:
                conn.execute(queries.query("control", name, **parts))
        except (psycopg.Error, CachemigError):
            return False
        return True


@contextmanager
def leaving(shown: Shown, session: Reconnecting) -> Iterator[Shown]:
    """At the end the row goes, unless it is Postgres that is away."""
    try:
        yield shown
    except SourceUnavailable:
        raise
    except BaseException:
        shown.leave(session)
        raise
    shown.leave(session)


def _short(text: str | None) -> str | None:
    """One line, no longer than is read."""
    return None if text is None else " ".join(text.replace("\x00", "").split())[:_LONGEST]

"""Retrying while a server is away or full: with a limit, jitter, and the reason shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import psycopg
from tenacity import (
    AttemptManager,
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
)
from tenacity.wait import wait_random_exponential

from cachemig import errors
from cachemig.config import Settings
from cachemig.source.connect import Connection, connect, source_errors
from cachemig.stop import Stop

TRANSIENT = (
    errors.SourceUnavailable,
    errors.SourceBehind,
    errors.SourceReadOnly,  # a standby that is about to be promoted
    errors.TargetUnavailable,
    errors.TargetFull,
    errors.TargetReadOnly,  # a failover that the client has not noticed yet
    errors.LockNotGranted,
    errors.TargetEpochPassed,  # the next attempt reads anew
)


def attempts(settings: Settings, stop: Stop) -> Iterator[AttemptManager]:
    """Attempts at one unit of work, until it succeeds or servers have been away for `retry_for`; then the error of the
    last attempt is raised. An error that waiting does not mend is raised at once."""
    limit = stop_after_delay(settings.retry_for)
    return iter(
        Retrying(
            retry=retry_if_exception_type(TRANSIENT),
            wait=wait_random_exponential(multiplier=0.2, min=0.05, max=10.0),
            stop=lambda state: stop.requested or limit(state),
            sleep=stop.wait,
            reraise=True,
        )
    )


LOCK_TRIES = 30


def lock_attempts() -> Iterator[AttemptManager]:
    """Tries at a step that takes the table's lock, for `lock_timeout` each; in between the application goes first."""
    return iter(
        Retrying(
            retry=retry_if_exception_type(errors.LockNotGranted),
            wait=wait_random_exponential(multiplier=1.0, min=0.2, max=10.0),
            stop=stop_after_attempt(LOCK_TRIES),
            reraise=True,
        )
    )


def reason(state: RetryCallState) -> str | None:
    """Why the attempt failed and will be repeated, in one line; None if it succeeded."""
    if state.outcome is None or not isinstance(state.outcome.exception(), TRANSIENT):
        return None
    return str(state.outcome.exception())


class Reconnecting:
    """A connection that is opened when first needed, and anew after `drop()`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = ExitStack()
        self._conn: Connection | None = None

    def get(self) -> Connection:
        if self._conn is None:
            self._conn = self._stack.enter_context(connect(self._settings))
        return self._conn

    @contextmanager
    def guard(self) -> Iterator[Connection]:
        """The connection for one attempt: after any error it is dropped, and a driver's error leaves mapped."""
        try:
            with source_errors():
                yield self.get()
        except BaseException:
            self.drop()
            raise

    def cancel(self) -> None:
        """Has the server end what it does on this connection, if it does anything. From another thread."""
        if (conn := self._conn) is not None:
            with suppress(psycopg.Error):
                conn.cancel_safe(timeout=10.0)

    def drop(self) -> None:
        self._conn = None
        self._stack.close()

    def __enter__(self) -> Reconnecting:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()

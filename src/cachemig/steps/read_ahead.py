"""Reading ahead: Postgres goes on printing values while earlier ones are on their way to Redis."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Generic, TypeVar

from cachemig.source.connect import Connection, transaction
from cachemig.steps.retry import Reconnecting

_BATCH_BYTES = 256 << 10
_BATCH_ENTRIES = 256
_PATIENCE_S = 1.0
_LOOK_EVERY_S = 0.2

T = TypeVar("T")
Read = Callable[[Connection], Generator[T, None, None]]


class _Abandoned(Exception):
    """Nobody wants the rest."""


class Reader(Generic[T]):
    """A connection of its own, and one read after the other on it, in threads: at most `most_bytes` of values are in
    memory that nobody has taken yet, or one larger value. To be closed."""

    def __init__(
        self, session: Reconnecting, most_bytes: int, size: Callable[[T], int], check: Callable[[], None]
    ) -> None:
        """`size`: of a value, in bytes. `check` raises where whoever waits for a read is to stop."""
        self._session = session
        self._size = size
        self._check = check
        self._room = _Room(most_bytes)
        self._last: Ahead[T] | None = None

    def read(self, read: Read[T]) -> Ahead[T]:
        """Begins as soon as the reads before it have ended. In a read-only transaction."""
        self._last = Ahead(self._session, self._room, read, self._last, self._size, self._check)
        return self._last

    def close(self) -> None:
        if self._last is not None:
            self._last.close()
        self._session.drop()


class _Room:
    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.held = 0
        self.changed = threading.Condition()


class Ahead(Generic[T]):
    """What a read yields, in its order; what it raised is raised here. To be closed."""

    def __init__(
        self,
        session: Reconnecting,
        room: _Room,
        read: Read[T],
        before: Ahead[T] | None,
        size: Callable[[T], int],
        check: Callable[[], None],
    ) -> None:
        self._size = size
        self._check = check
        self._session = session
        self._room = room
        self._batches: deque[tuple[list[T], int]] = deque()
        self._ended = self._abandoned = False
        self._error: BaseException | None = None
        # A daemon: an interpreter that is told to end at once waits for no server.
        self._thread = threading.Thread(target=self._run, args=(read, before), daemon=True, name="cachemig reader")
        self._thread.start()

    def __iter__(self) -> Generator[T, None, None]:
        room = self._room
        while True:
            with room.changed:
                while not self._batches and not self._ended:
                    room.changed.wait(_LOOK_EVERY_S)
                    self._check()
                if not self._batches:
                    break
                batch, nbytes = self._batches.popleft()
            try:
                yield from batch
            finally:  # whoever took these holds them within bounds of its own
                batch.clear()
                with room.changed:
                    room.held -= nbytes
                    room.changed.notify_all()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends the read, if it goes on."""
        room = self._room
        with room.changed:
            self._abandoned = True
            room.held -= sum(nbytes for _, nbytes in self._batches)
            self._batches.clear()
            room.changed.notify_all()
        self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():  # it waits for Postgres
            self._session.cancel()
            self._thread.join()

    def _run(self, read: Read[T], before: Ahead[T] | None) -> None:
        while before is not None and before._thread.is_alive() and not self._abandoned:
            before._thread.join(0.1)
        del before
        try:
            if not self._abandoned:
                with self._session.guard() as conn, transaction(conn, read_only=True), closing(read(conn)) as entries:
                    self._take(entries)
        except _Abandoned:
            pass
        except BaseException as exc:  # noqa: BLE001  # raised where the entries are wanted
            self._error = exc
        with self._room.changed:
            self._ended = True
            self._room.changed.notify_all()

    def _take(self, entries: Generator[T, None, None]) -> None:
        batch: list[T] = []
        nbytes = 0
        for entry in entries:
            batch.append(entry)
            nbytes += self._size(entry)
            if nbytes >= _BATCH_BYTES or len(batch) >= _BATCH_ENTRIES:
                del entry  # a large one must not outlive its delivery here
                self._put(batch, nbytes)
                batch, nbytes = [], 0
        self._put(batch, nbytes)

    def _put(self, batch: list[T], nbytes: int) -> None:
        room = self._room
        with room.changed:
            if not self._abandoned:
                self._batches.append((batch, nbytes))
                room.held += nbytes
                room.changed.notify_all()
            del batch
            # Before the next value is read, not after: two large ones would stand beside each other.
            while room.held > room.most_bytes and not self._abandoned:
                room.changed.wait()
            if self._abandoned:
                raise _Abandoned

"""Where this client reads and writes now, what it has told the ladder of it, and which of its own writes it must not
read past. Everything here may be used from any thread."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cachemig.ladder import Phase, reads_from, writes_to

PINNED = -2
"""The epoch of a client without a control schema: it looks at no marker and at no version."""
_PER_KEY = 32
UNKNOWN_FOR_S = 30.0
"""So long is a key read from the column after an own write whose version is not known."""


@dataclass(frozen=True, slots=True)
class Route:
    """A phase, the percentage that goes with it, and the epoch."""

    phase: Phase
    percent: float = 0.0
    epoch: int = -1

    def reads_redis(self, key: str) -> bool:
        return reads_from(self.phase, self.percent, key) == "redis"

    @property
    def writes_column(self) -> bool:
        return writes_to(self.phase)[0] == "column"

    @property
    def has_column(self) -> bool:
        """Whether the column may still be read."""
        return self.writes_column

    @property
    def uses_redis(self) -> bool:
        """Whether anything may be in Redis: nobody delivers before capture has committed."""
        return "redis" in writes_to(self.phase)

    @property
    def pinned(self) -> bool:
        return self.epoch == PINNED


class Routes:
    """The route now, learned from Postgres, and the one that this client has acknowledged."""

    def __init__(self, route: Route) -> None:
        self._lock = threading.Lock()
        self._route = route
        self._learned_at = 0.0
        self._generation = 0
        self._writing: Counter[int] = Counter()
        self._acted_on: Route | None = None

    @property
    def now(self) -> Route:
        return self._route

    def learn(self, route: Route, asked_at: float) -> bool:
        """Takes a route over that Postgres was asked for at `asked_at`; False where it may be older than what is known.

        Answers can overtake each other. One that was asked for before the present route was known may tell of a time
        before it, and would take back what was acknowledged: then somebody is to ask again.
        """
        with self._lock:
            if route == self._route:
                return True
            if asked_at < self._learned_at:
                return False
            self._route = route
            self._generation += 1
            self._learned_at = time.monotonic()
            return True

    @contextmanager
    def writing(self, route: Route) -> Iterator[bool]:
        """Around a write that goes to Redis alone. Yields False, and the write is not to be made, where the route is
        another one by now."""
        with self._lock:
            holds = route == self._route
            generation = self._generation
            self._writing[generation] += holds
        try:
            yield holds
        finally:
            if holds:
                with self._lock:
                    self._writing[generation] -= 1
                    if not self._writing[generation]:
                        del self._writing[generation]

    def acts_on(self) -> Route | None:
        """The route to acknowledge: the present one, as soon as no write to Redis alone is under way by an older one.

        Only these are waited for. A write to the column asks for the phase in its own transaction, and what it delivers
        afterwards carries a version, so late or not it cannot harm; a read does nothing. A write to Redis alone is
        counted by Redis itself: one that comes after a rollback has copied back would be acknowledged and lost.
        """
        with self._lock:
            if not any(generation < self._generation for generation in self._writing):
                self._acted_on = self._route
            return self._acted_on


class Unanswered:
    """Writes to Redis alone that had no answer, by key: they may still be on their way, and the next write of the key
    takes them back. Bounded: the latest ones."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._names: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    def add(self, key: str, name: str) -> None:
        with self._lock:
            self._names[key] = (*self._names.pop(key, ()), name)[-_PER_KEY:]
            while len(self._names) > self._size:
                self._names.popitem(last=False)

    def of(self, key: str) -> tuple[str, ...]:
        return self._names.get(key, ())

    def remove(self, key: str, names: tuple[str, ...]) -> None:
        """They have been taken back."""
        with self._lock:
            if left := tuple(name for name in self._names.pop(key, ()) if name not in names):
                self._names[key] = left


Floor = tuple[int, float]
"""The lowest version that may be read, and until when (time.monotonic) no version may."""


class Floors:
    """The versions of this process's own writes: a value of a lower version is older than what was acknowledged.

    Redis may be behind for many reasons (a delivery that failed, a transaction whose delivery was forgotten, a server
    that came back without its last second); whatever it was, such a value is not returned. Bounded: the keys written
    last.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._floors: OrderedDict[str, Floor] = OrderedDict()

    def raise_to(self, key: str, version: int | None) -> None:
        """After a write of this version; None where Postgres does not tell it (row-level security)."""
        with self._lock:
            known, _ = self._floors.pop(key, (0, 0.0))
            # A version that is known is that of a later state than the one before, whose version was not.
            until = time.monotonic() + UNKNOWN_FOR_S if version is None else 0.0
            self._floors[key] = (max(known, version or 0), until)
            while len(self._floors) > self._size:
                self._floors.popitem(last=False)

    def forget(self, key: str, version: int) -> None:
        """The write of this version was rolled back."""
        with self._lock:
            if self._floors.get(key, (0, 0.0))[0] == version:
                del self._floors[key]

    def of(self, key: str) -> Floor | None:
        """To be asked for before the read begins: a write that ends while it is under way may be read past."""
        return self._floors.get(key)


def allows(floor: Floor | None, version: int, route: Route) -> bool:
    """Whether a value of this version may be returned.

    Where the column is not to be asked any more, that makes it a miss until sync has delivered the write.
    """
    if floor is None or route.pinned:
        return True
    return version >= floor[0] and floor[1] <= time.monotonic()

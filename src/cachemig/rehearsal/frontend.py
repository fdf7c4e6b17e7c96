"""A simulated frontend: looks keys up, and stores some anew, through CacheService, as an application would."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from cachemig.service import CacheService, Options


@dataclass
class Reads:
    """What the frontend has read, and how often it stored what it read."""

    sources: Counter[str] = field(default_factory=Counter)
    puts: int = 0
    failed: int = 0
    last_error: str | None = None
    """Its kind: the text may hold a key."""
    milliseconds: list[float] = field(default_factory=list)

    @property
    def p50_ms(self) -> float | None:
        ordered = sorted(self.milliseconds)
        return ordered[len(ordered) // 2] if ordered else None


class Frontend:
    """Reads random keys about `rate_per_s` times a second from `with` to its end, and with `writes` stores one in
    twenty anew. An error counts in `reads.failed`."""

    def __init__(
        self, dsn: str, redis_url: str, keys: Sequence[str], *, seed: int, rate_per_s: float, writes: bool = False
    ) -> None:
        self.reads = Reads()
        self._writes = writes
        self._chance = random.Random(seed)
        self._pause_s = 1 / rate_per_s
        self._done = threading.Event()
        self._keys = keys
        # Every read from the column is compared, so that a demo of seconds has as many comparisons as a day elsewhere.
        options = Options(poll_interval=0.5, shadow_sample=1.0, shadow_outstanding=64)
        self._cache = CacheService.open(dsn=dsn, redis_url=redis_url, name="frontend", options=options)
        self._thread = threading.Thread(target=self._run, name="frontend")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._cache.close()

    def _run(self) -> None:
        while not self._done.wait(self._pause_s):
            began = time.perf_counter()
            try:
                entry = self._cache.get_entry(key := self._chance.choice(self._keys))
                if self._writes and entry.found and self._chance.random() < 0.05:
                    self._cache.put(key, entry.value)
                    self.reads.puts += 1
            except Exception as exc:  # noqa: BLE001  # counted: a rehearsal claims that there is hardly any
                self.reads.failed += 1
                self.reads.last_error = type(exc).__name__
                continue
            self.reads.milliseconds.append((time.perf_counter() - began) * 1000)
            self.reads.sources[entry.source.value] += 1

"""What a client reports of itself: counts since it started, and latencies of its last calls."""

from __future__ import annotations

import threading
from typing import Any, Literal

RING = 2048
Path = Literal["redis", "column"]
Outcome = Literal["hit", "miss", "error"]
VERDICTS = ("match", "equivalent", "race", "missing", "mismatch", "unreachable", "dropped")


class Ring:
    """The last RING durations."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._next = 0

    def add(self, value: float) -> None:
        if len(self._values) < RING:
            self._values.append(value)
        else:
            self._values[self._next] = value
            self._next = (self._next + 1) % RING

    def quantiles_ms(self) -> dict[str, float]:
        """p50, p95 and p99 by the nearest rank, and how many calls they are of; without calls only n = 0."""
        ordered = sorted(self._values)
        if not ordered:
            return {"n": 0}
        last = len(ordered) - 1
        named = {f"p{q}": round(ordered[min(last, len(ordered) * q // 100)] * 1000, 3) for q in (50, 95, 99)}
        return {**named, "n": len(ordered)}


class Stats:
    """May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reads: dict[str, dict[str, int]] = {
            p: dict.fromkeys(("hit", "miss", "error"), 0) for p in ("redis", "column")
        }
        self._writes = {"ok": 0, "redis_failed": 0}
        self._shadow = dict.fromkeys(VERDICTS, 0)
        self._counts = {"fallback": 0, "loads": 0, "refused_fills": 0}
        self._rings = {"redis": Ring(), "column": Ring()}

    def read(self, path: Path, outcome: Outcome, seconds: float | None = None, times: int = 1) -> None:
        with self._lock:
            self._reads[path][outcome] += times
            if seconds is not None:
                self._rings[path].add(seconds)

    def wrote(self, outcome: Literal["ok", "redis_failed"]) -> None:
        with self._lock:
            self._writes[outcome] += 1

    def shadow(self, verdict: str) -> None:
        with self._lock:
            self._shadow[verdict] += 1

    def count(self, name: Literal["fallback", "loads", "refused_fills"], times: int = 1) -> None:
        with self._lock:
            self._counts[name] += times

    def document(self, breaker_open: int) -> dict[str, Any]:
        """All of it, in the form in which it is stored with the client's row."""
        with self._lock:
            return {
                "reads": {path: dict(outcomes) for path, outcomes in self._reads.items()},
                "fallback": self._counts["fallback"],
                "writes": dict(self._writes),
                "shadow": dict(self._shadow),
                "loads": self._counts["loads"],
                "refused_fills": self._counts["refused_fills"],
                "breaker_open": breaker_open,
                "latency_ms": {path: ring.quantiles_ms() for path, ring in self._rings.items()},
            }

"""Clients: applications that route by phase. Each says in its heartbeat what it acts on; steps wait for live ones.

A client is live while its lease runs. One that froze or lost its way to Postgres is not waited for once its lease has
ended: it must not serve by the old route after that either, which is the client's own duty.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cachemig.config import Settings
from cachemig.errors import Refused
from cachemig.ladder import Phase
from cachemig.progress import Progress
from cachemig.source import control, queries
from cachemig.source.connect import Connection, source_errors
from cachemig.steps.retry import Reconnecting, attempts, reason
from cachemig.stop import Stop

POLL_S = 0.2
PATHS = ("redis", "column")
COMPARED = ("match", "equivalent", "missing", "mismatch")
"""Shadow reads that came to an answer; the others (race, unreachable, dropped) did not."""


@dataclass(frozen=True)
class Client:
    id: str
    name: str
    phase: str | None
    """What it acts on, with `percent`; None: it is registered and has not taken up anything."""
    percent: float | None
    epoch: int | None
    started_at: datetime
    seen_at: datetime
    seen_s: float
    live: bool
    stats: dict[str, Any]

    @property
    def acting(self) -> str:
        """What it acts on, in words."""
        if self.phase is None:
            return "has taken up nothing yet"
        return f"acts on {stage(self.phase, self.percent or 0.0)}"

    def acts_on(self, phase: Phase, percent: float) -> bool:
        """It has taken up this very step; the percentage counts in cutover alone."""
        return self.phase == phase and (phase is not Phase.CUTOVER or self.percent == percent)


def stage(phase: str, percent: float) -> str:
    """Phase and percentage in words: `dual-write`, `cutover 10 %`."""
    return f"{phase} {percent:g} %" if phase == Phase.CUTOVER else str(phase)


def everyone(conn: Connection) -> list[Client]:
    """Clients, those that died within a day too."""
    with source_errors():
        rows = conn.execute(queries.text("cutover", "clients")).fetchall()
    return [Client(*row) for row in rows]


def live(conn: Connection) -> list[Client]:
    return [client for client in everyone(conn) if client.live]


def waiting_for(conn: Connection, phase: Phase, percent: float) -> list[Client]:
    """Live clients that do not act on this yet."""
    return [client for client in live(conn) if not client.acts_on(phase, percent)]


def named(clients: Iterable[Client]) -> str:
    """Clients and what they act on, for a message."""
    return ", ".join(f"{c.name} ({c.acting}, seen {c.seen_s:.0f} s ago)" for c in clients)


def shadow_so_far(conn: Connection) -> dict[str, Any]:
    """What each client has compared since it started; kept in the journal where an epoch begins."""
    with source_errors():
        row = conn.execute(queries.text("cutover", "shadow_so_far")).fetchone()
    return row[0] if row else {}


def follow(
    session: Reconnecting, settings: Settings, stop: Stop, phase: Phase, percent: float, *, again: str, back: str
) -> Generator[Progress, None, list[Client]]:
    """Waits until every live client acts on the step that was taken, and names those that do not yet.

    Raises Refused after `client_wait`, where another run has moved on meanwhile, and Interrupted on request. The step
    stays taken: `again` is the command that goes on waiting, `back` the one that undoes it.
    """
    began = time.monotonic()
    while True:
        behind, others = [], []
        for attempt in attempts(settings, stop):
            with attempt, session.guard() as conn:
                migration = control.require(conn, settings)
                others = live(conn)
                behind = [client for client in others if not client.acts_on(phase, percent)]
            if waiting := reason(attempt.retry_state):
                yield Progress(0, None, "clients", waiting=waiting)
        at = stage(phase, percent)
        if (migration.phase, migration.percent) != (phase, percent):
            raise Refused(
                f"{migration.changed_by} has moved on to {stage(migration.phase, migration.percent)} while {at} was "
                "waited for",
                hint="cachemig status",
            )
        if not behind:
            return others
        if time.monotonic() - began >= settings.client_wait:
            raise Refused(
                f"the phase is {at} now and stays so, but {len(behind)} of {len(others)} live clients do not act on it "
                f"after {settings.client_wait:g} s: {named(behind)}",
                hint=f"see to them and wait again: {again}; or go back: {back}",
            )
        stop.check(f"{at} is in force; to wait for the clients again: {again}; to go back: {back}")
        yield Progress(len(others) - len(behind), len(others), "clients", waiting=f"for {named(behind)}")
        stop.wait(POLL_S)


# What they report -------------------------------------------------------------------------------------------------


def _number(value: object) -> float:
    """Stats come from programs of other people: what is no number, or below 0, counts nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        return 0.0
    return float(value)


def _numbers(value: object) -> dict[str, float]:
    return {str(name): _number(n) for name, n in value.items()} if isinstance(value, Mapping) else {}


@dataclass
class Report:
    """What clients report, added up. All counts are since each of them started, or since another report."""

    reads: dict[str, Counter[str]] = field(default_factory=lambda: {path: Counter() for path in PATHS})
    """By path: hit, miss, error."""
    fallback: int = 0
    """Reads that were meant for Redis and came from the column, because Redis did not answer."""
    writes: Counter[str] = field(default_factory=Counter)
    shadow: Counter[str] = field(default_factory=Counter)
    latency_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    """By path: p50, p95, p99 of the last calls, and their number n. Over several clients the mean of theirs, weighted
    by n, which is exact only where they are alike."""

    @property
    def compared(self) -> int:
        return sum(self.shadow[verdict] for verdict in COMPARED)

    def total(self, path: str) -> int:
        return sum(self.reads[path].values())

    @property
    def hit_rate(self) -> float | None:
        """Of the reads from Redis; one that failed is no hit."""
        return round(self.reads["redis"]["hit"] / asked, 4) if (asked := self.total("redis")) else None

    def since(self, before: Report) -> Report:
        """The counts since another report; latencies are those of the last calls."""
        reads = {path: self.reads[path] - before.reads[path] for path in PATHS}
        fallback = max(0, self.fallback - before.fallback)
        return Report(reads, fallback, self.writes - before.writes, self.shadow - before.shadow, dict(self.latency_ms))

    def figures(self) -> dict[str, Any]:
        """For the journal and for documents; what is 0 is left out."""
        return {
            "reads": {path: {k: n for k, n in self.reads[path].items() if n} for path in PATHS},
            "fallback": self.fallback,
            "writes": {k: n for k, n in self.writes.items() if n},
            "shadow": {k: n for k, n in self.shadow.items() if n},
            "latency_ms": self.latency_ms,
        }


def report(stats: Iterable[Mapping[str, Any]]) -> Report:
    """The sum of what these clients report."""
    total = Report()
    weighted: dict[str, defaultdict[str, float]] = {path: defaultdict(float) for path in PATHS}
    calls: Counter[str] = Counter()
    for one in stats:
        reads, latency = one.get("reads"), one.get("latency_ms")
        for path in PATHS:
            total.reads[path].update(_counts(reads.get(path)) if isinstance(reads, Mapping) else {})
            times = _numbers(latency.get(path)) if isinstance(latency, Mapping) else {}
            n = int(times.pop("n", 0))
            calls[path] += n
            for name, ms in times.items():
                weighted[path][name] += ms * n
        total.fallback += int(_number(one.get("fallback")))
        total.writes.update(_counts(one.get("writes")))
        total.shadow.update(_counts(one.get("shadow")))
    total.latency_ms = {
        path: {**{name: round(ms / calls[path], 3) for name, ms in weighted[path].items()}, "n": calls[path]}
        for path in PATHS
        if calls[path]
    }
    return total


def since(reports: Mapping[str, Report], before: Mapping[str, Report]) -> Report:
    """The sum of what each client has counted since; one that began later counts from 0."""
    total = Report()
    for name, one in reports.items():
        part = one.since(before.get(name, Report()))
        for path in PATHS:
            total.reads[path] += part.reads[path]
        total.fallback += part.fallback
        total.writes += part.writes
        total.shadow += part.shadow
    return total


def _counts(value: object) -> dict[str, int]:
    return {name: int(n) for name, n in _numbers(value).items()}


def shadow_since_epoch(conn: Connection, clients: Iterable[Client]) -> Counter[str]:
    """Shadow reads of these clients since this epoch began, by verdict: what was compared with an earlier state of
    Redis does not count."""
    with source_errors():
        row = conn.execute(queries.text("cutover", "shadow_before")).fetchone()
    before = row[0] if row else {}
    total: Counter[str] = Counter()
    for client in clients:
        total += Counter(_counts(client.stats.get("shadow"))) - Counter(_counts(before.get(client.id)))
    return total

"""watch: what there is to see while a migration runs, as often as somebody looks. Reads only.

Postgres and Redis are asked in threads of their own: one that is away, or silent, holds up neither the other one nor
the view, which says so and goes on by itself when it is back.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

from cachemig.config import Settings
from cachemig.errors import SourceReadOnly, SourceUnavailable
from cachemig.steps import clients, redis_memory, status
from cachemig.steps.clients import Report
from cachemig.steps.eye import Eye
from cachemig.steps.redis_memory import Memory
from cachemig.steps.retry import Reconnecting
from cachemig.steps.status import Status

WINDOW_S = 60.0
"""Rates are those of so long."""
_LEAST_S = 5.0
"""A shorter time says nothing of the time that is left."""
_FIRST_S = 2.0
"""Longest wait for the first answers; then the view begins without them."""


@dataclass(frozen=True)
class View:
    """What is known at one moment."""

    at: datetime
    """By the clock of this machine."""
    status: Status | None
    """The last one that Postgres told, with what Redis told; None: there was none yet."""
    age_s: float
    """So old is that of Postgres."""
    postgres_fault: str | None
    """Why there is none newer."""
    redis_fault: str | None
    reads: Report
    """What live clients have reported within `reads_s`."""
    reads_s: float | None
    """None: since each of them started."""
    left_s: float | None
    """Until the backfill is complete, at the pace of the last minute; None: it cannot be told."""

    @property
    def rate_bytes_s(self) -> int:
        """Of all workers of the backfill together."""
        workers = [] if self.status is None else self.status.workers
        return sum(worker.rate_bytes_s for worker in workers if worker.command == "backfill")


@dataclass(frozen=True)
class _Sample:
    at: float
    chunks_done: int
    reports: dict[str, Report]


class Watcher:
    """A context manager: at its end nobody asks any more."""

    def __init__(self, settings: Settings, environment: Mapping[str, str], every_s: float) -> None:
        self._postgres: Eye[Status] = Eye(lambda: _asking(settings), every_s)
        self._redis: Eye[Memory] = Eye(lambda: redis_memory.asking(settings, environment), every_s)
        self._samples: deque[_Sample] = deque()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._postgres.close()
        self._redis.close()

    def begin(self) -> None:
        """Waits a moment for the first answers. Raises what Postgres says, unless it is only away: it may be back, and
        a wrong password will not mend."""
        seen = self._postgres.first(_FIRST_S)
        if seen.error is not None and not isinstance(seen.error, SourceUnavailable | SourceReadOnly):
            raise seen.error
        self._redis.first(redis_memory.ANSWER_S)

    def view(self) -> View:
        """What is known now. Waits for nobody."""
        told, memory = self._postgres.seen(), self._redis.seen()
        now = time.monotonic()
        known = told.value
        if known is not None:
            known = replace(known, redis=memory.value if memory.fault is None else None)
        sample = self._sampled(now, known, fresh=told.fault is None)
        oldest = self._samples[0] if self._samples else None
        reads, reads_s = Report(), None
        if known is not None and sample is not None and oldest is not None:
            reads, reads_s = clients.since(sample.reports, oldest.reports), now - oldest.at
            if reads_s < _LEAST_S or not reads.total("redis") + reads.total("column"):
                reads, reads_s = clients.report(client.stats for client in known.clients), None
        return View(
            at=datetime.now().astimezone(),
            status=known,
            age_s=told.age_s,
            postgres_fault=told.fault,
            redis_fault=memory.fault,
            reads=reads,
            reads_s=reads_s,
            left_s=_left_s(known, oldest, now),
        )

    def _sampled(self, now: float, known: Status | None, *, fresh: bool) -> _Sample | None:
        if known is None:
            return None
        reports = {client.id: clients.report([client.stats]) for client in known.clients}
        sample = _Sample(now, known.chunks.done, reports)
        if self._samples and sample.chunks_done < self._samples[-1].chunks_done:  # laid out anew
            self._samples.clear()
        if fresh:
            self._samples.append(sample)
        while len(self._samples) > 1 and now - self._samples[0].at > WINDOW_S:
            self._samples.popleft()
        return sample


def _left_s(known: Status | None, oldest: _Sample | None, now: float) -> float | None:
    if known is None or oldest is None or now - oldest.at < _LEAST_S:
        return None
    done = known.chunks.done - oldest.chunks_done
    ahead = known.chunks.chunks - known.chunks.done
    return ahead * (now - oldest.at) / done if done > 0 and ahead > 0 else None


@contextmanager
def _asking(settings: Settings) -> Iterator[Callable[[], Status]]:
    with Reconnecting(settings) as session:

        def ask() -> Status:
            with session.guard() as conn:
                return status.look(conn, settings)

        yield ask

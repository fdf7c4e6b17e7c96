"""The pace of one worker: additive increase, multiplicative decrease. Pure: times are given.

Workers that share servers need not know of each other: each halves its own rate and adds the same to it again, so that
their rates draw together (Chiu and Jain, "Analysis of the increase and decrease algorithms for congestion avoidance",
1989).
"""

from __future__ import annotations

FLOOR = 256 * 2**10
"""Bytes a second. What is too fast even at this pace pauses."""
START = 4 * 2**20
STEP = 2 * 2**20
"""What the rate gains in each second without a complaint."""
SETTLE_S = 1.0
"""A cut shows within this time; there is no second one before."""
_MOST_GAP_S = 1.0
"""A longer time in which nobody asked says no more than this."""
CALM_S = 2.0
"""So long without a complaint ends a pause."""
PATIENCE_S = 5.0
"""A shorter pause is waited out in the middle of a chunk, which a worker that gives it back would begin anew: where
pauses come again and again it would never end."""


class Pace:
    """`rate` in bytes a second, None for no limit; while `paused` there is none at all."""

    def __init__(self, start: float | None = None) -> None:
        self.rate = start
        self.paused = False
        self._paused_at = 0.0
        self._start = start
        self._before: float | None = None
        """The rate that was too much."""
        self._cut = -SETTLE_S
        self._seen: float | None = None
        self._calm_since: float | None = None

    @property
    def slowed(self) -> bool:
        """It was too fast, and is not back at twice that rate."""
        return self._before is not None

    def too_fast(self, now: float, measured: float) -> None:
        """A complaint. `measured`: bytes a second of late, which a limit may be far above."""
        self._seen, self._calm_since = now, None
        if self.paused or now - self._cut < SETTLE_S:
            return
        self._cut = now
        rate = min(measured or FLOOR * 2, self.rate or measured or FLOOR * 2)
        self._before = rate
        self.rate = max(FLOOR, rate / 2)
        self.paused = rate / 2 < FLOOR
        self._paused_at = now

    def paused_for_long(self, now: float) -> bool:
        return self.paused and now - self._paused_at >= PATIENCE_S

    def fine(self, now: float) -> None:
        """No complaint since the last time that anything was said."""
        elapsed = 0.0 if self._seen is None else min(now - self._seen, _MOST_GAP_S)
        self._seen = now
        if self._calm_since is None:
            self._calm_since = now
        if self.paused:
            self.paused = now - self._calm_since < CALM_S
            return
        if self.rate is not None:
            self.rate += STEP * elapsed
            if self._before is not None and self.rate > 2 * max(self._before, START):
                self._before = None
                self.rate = self._start and self.rate


class Bucket:
    """Bytes that went out ahead of the rate. `wait_s`: how long it takes for them to be within it."""

    _SAVED_S = 0.1
    """What is not used is not saved up for a burst, but for the little by which a sleep is too long."""

    def __init__(self, now: float) -> None:
        self._ahead = 0.0
        self._at = now

    def add(self, nbytes: int, rate: float | None, now: float) -> None:
        if not rate:
            self._ahead = 0.0
        else:
            self._ahead = max(-self._SAVED_S * rate, self._ahead - rate * (now - self._at)) + nbytes
        self._at = now

    def wait_s(self, rate: float | None, now: float) -> float:
        return max(0.0, self._ahead / rate - (now - self._at)) if rate else 0.0


class Duty:
    """A part of the time for work, the rest for others, a moment after each piece of work."""

    _MOST_REST_S = 10.0
    """A worker that waited long for a server was no burden meanwhile."""
    _MOST_GAP_S = 0.25

    def __init__(self, part: float, now: float) -> None:
        self._rest_per_work = 1 / part - 1
        self._rest = 0.0
        self._at = now
        self._working = False

    def looked(self, now: float) -> None:
        """In the middle of work, or before it. A longer time since anything was said was one of waiting."""
        if self._working and now - self._at < self._MOST_GAP_S:
            self.worked(now)
        self._working, self._at = True, now

    def idle(self, now: float) -> None:
        """There was nothing to do, or nothing could be done."""
        self._working, self._at = False, now

    def worked(self, now: float) -> None:
        self._rest = min(self._rest + (now - self._at) * self._rest_per_work, self._MOST_REST_S)
        self._at = now

    def rested(self, seconds: float, now: float) -> None:
        self._rest = max(0.0, self._rest - seconds)
        self._at = now

    @property
    def wait_s(self) -> float:
        return self._rest

"""Who else uses the servers, and how they are: what slows work down or pauses it, by the limits an operator names.

Each worker asks for itself, at most twice a second and between batches. A limit that is not named asks nothing. A
question without an answer stops work as well as a bad answer does: what cannot be told is not taken for fine.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from cachemig import errors, windows
from cachemig.config import Settings
from cachemig.source import queries
from cachemig.source.connect import Connection, transaction
from cachemig.steps.pace import CALM_S, START, Pace

if TYPE_CHECKING:
    import redis

    from cachemig.targets.redis import RedisTarget

T = TypeVar("T")
_ANSWER_S = 1.0
"""Longest wait for an answer of either server."""
_PINGS = 3
"""The median of so many: one that this process itself was late for is no slow server."""
GRANT = "GRANT pg_read_all_stats TO the role of cachemig"


@dataclass(frozen=True)
class Complaint:
    """What speaks against going on. `halts`: going slower would not mend it."""

    text: str
    halts: bool = False


class Neighbour:
    """The limits as one worker keeps them."""

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        self.pace = Pace(START if settings.gentle else None)
        self._settings = settings
        self._environment = environment
        self._zone = windows.zone(settings.pause_windows_zone)
        self._history = History(settings.max_standby_lag)
        self._target: RedisTarget | None = None
        self._untold_since: float | None = None
        self._halted_until = 0.0
        self._why_halted = self._why_slowed = ""
        probes: list[tuple[str, Callable[[Connection], Iterator[Complaint]]]] = [
            ("max_load", self._load),
            ("max_standby_lag", self._standbys),
            ("max_redis_latency", self._latency),
            ("min_redis_memory", self._memory),
        ]
        self._probes = [(name, probe) for name, probe in probes if getattr(settings, name)]

    @property
    def asks(self) -> bool:
        """Some limit is named."""
        return bool(self._probes or self._settings.pause_windows or self.pace.rate)

    @property
    def paused(self) -> str | None:
        """Why nothing goes on."""
        if time.monotonic() < self._halted_until:
            return self._why_halted
        return self._why_slowed if self.pace.paused else None

    @property
    def paused_for_long(self) -> str | None:
        """The same, where it is not for a moment only."""
        now = time.monotonic()
        return self.paused if now < self._halted_until or self.pace.paused_for_long(now) else None

    @property
    def slowed(self) -> str | None:
        """Why it goes on slower."""
        return self._why_slowed if self.pace.slowed else None

    def look(self, conn: Connection, measured: float) -> None:
        """Asks. `measured`: bytes a second that this worker did of late.

        Raises LimitUnknown where a question had no answer for `retry_for`; SourceUnavailable is for who reconnects.
        """
        found = list(self._complaints(conn))
        halting = [complaint.text for complaint in found if complaint.halts]
        slowing = [complaint.text for complaint in found if not complaint.halts]
        now = time.monotonic()
        if halting:
            self._halted_until, self._why_halted = now + CALM_S, "; ".join(halting)
        if slowing:
            self._why_slowed = "; ".join(slowing)
            self.pace.too_fast(now, measured)
        elif not halting:
            self.pace.fine(now)

    def _complaints(self, conn: Connection) -> Iterator[Complaint]:
        if (window := windows.current(self._settings.pause_windows, datetime.now(self._zone))) is not None:
            yield Complaint(f"pause_windows has {window} ({self._settings.pause_windows_zone})", halts=True)
            return  # nothing is to be slowed down, so nobody is asked
        untold = None
        for name, probe in self._probes:
            try:
                yield from probe(conn)
            except (errors.SourceUnavailable, errors.ConfigError):
                raise
            except errors.CachemigError as exc:
                untold = untold or errors.LimitUnknown(
                    f"cannot tell whether {name} is kept: {exc}", hint=f"{_mended_by(exc)}; or --{_flag(name)} 0"
                )
                yield Complaint(f"{untold} ({_mended_by(exc)})", halts=True)
        if untold is None:
            self._untold_since = None
            return
        now = time.monotonic()
        self._untold_since = self._untold_since or now
        if now - self._untold_since > self._settings.retry_for:
            raise untold

    # Questions to Postgres ---------------------------------------------------------------------------------------

    def _load(self, conn: Connection) -> Iterator[Complaint]:
        ((active, hidden, silent),) = _asked(conn, "sessions")
        if hidden:
            raise errors.PrivilegeMissing(f"{hidden} sessions of other roles cannot be looked into", hint=GRANT)
        if silent:
            raise errors.SourceError(f"{silent} sessions do not tell what they do", hint="track_activities is to be on")
        if active > self._settings.max_load:
            sessions = "1 active session" if active == 1 else f"{active} active sessions"
            yield Complaint(f"{sessions} in Postgres, max_load is {self._settings.max_load}")

    def _standbys(self, conn: Connection) -> Iterator[Complaint]:
        limit_s = self._settings.max_standby_lag
        now = time.monotonic()
        for name, hidden, told_s, silent_s, replayed, written in _asked(conn, "standbys"):
            if hidden:
                raise errors.PrivilegeMissing("standbys cannot be looked into", hint=GRANT)
            self._history.add(now, written)
            told = told_s if silent_s is not None and silent_s < limit_s else None
            lag_s = self._history.behind_s(now, replayed) if told is None else told
            if replayed < written and lag_s > limit_s:
                yield Complaint(f"standby {name} is {lag_s:.0f} s behind, max_standby_lag is {limit_s:g} s")

    # Questions to Redis ------------------------------------------------------------------------------------------

    def _latency(self, _: Connection) -> Iterator[Complaint]:
        limit_s = self._settings.max_redis_latency
        for name, took_s in self._of_each_server(_round_trip_s):
            if took_s > limit_s:
                yield Complaint(
                    f"Redis{name} answers in {took_s * 1000:.1f} ms, max_redis_latency is {limit_s * 1000:g} ms"
                )

    def _memory(self, _: Connection) -> Iterator[Complaint]:
        least = self._settings.min_redis_memory
        for name, free in self._of_each_server(_free_bytes):
            if free < least:
                yield Complaint(f"Redis{name} has {in_mib(free)} free, min_redis_memory is {in_mib(least)}", halts=True)

    def _of_each_server(self, ask: Callable[[redis.Redis], T]) -> list[tuple[str, T]]:
        """By connections of their own: on another one a PING would wait for the delivery before it."""
        from cachemig.targets.faults import target_errors  # only where a limit wants it: loading redis-py takes time
        from cachemig.targets.open import open_target

        if self._target is None:
            answer_s = max(_ANSWER_S, 2 * self._settings.max_redis_latency)
            self._target = open_target(replace(self._settings, redis_timeout=answer_s), self._environment)
        with target_errors():
            return [(f" {server.name}" if server.name else "", ask(server.client)) for server in self._target.servers()]


class History:
    """When the WAL ended where: what tells the lag of a standby that does not tell it itself. Pure."""

    _SAMPLES = 100

    def __init__(self, limit_s: float) -> None:
        self._every_s = limit_s / self._SAMPLES
        self._ends: deque[tuple[float, int]] = deque(maxlen=4 * self._SAMPLES)

    def add(self, now: float, written: int) -> None:
        if not self._ends or (written > self._ends[-1][1] and now - self._ends[-1][0] >= self._every_s):
            self._ends.append((now, written))

    def behind_s(self, now: float, replayed: int) -> float:
        """How long ago the first WAL was seen that is not replayed; never more than it really is."""
        return next((now - at for at, written in self._ends if written > replayed), 0.0)


def _asked(conn: Connection, name: str) -> list[tuple[Any, ...]]:
    with transaction(conn, read_only=True):
        conn.execute(f"SET LOCAL statement_timeout = '{_ANSWER_S * 1000:.0f}ms'")
        return conn.execute(queries.text("neighbour", name)).fetchall()


def _mended_by(exc: errors.CachemigError) -> str:
    return exc.hint or "see what the server is busy with"


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _round_trip_s(client: redis.Redis) -> float:
    client.ping()  # late by the time of connecting
    took_s = []
    for _ in range(_PINGS):
        began = time.monotonic()
        client.ping()
        took_s.append(time.monotonic() - began)
    return sorted(took_s)[_PINGS // 2]


def _free_bytes(client: redis.Redis) -> int:
    memory: Any = client.info("memory")
    most = int(memory.get("maxmemory", 0)) or int(memory.get("total_system_memory", 0))
    if not most:
        raise errors.TargetError(
            "Redis tells neither maxmemory nor total_system_memory", hint="leave min_redis_memory out"
        )
    return max(0, most - int(memory["used_memory"]))


def in_mib(nbytes: float) -> str:
    return f"{nbytes / 2**20:,.1f} MiB"

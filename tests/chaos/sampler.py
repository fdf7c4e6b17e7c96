"""Watches both sides while everything goes on, so that what is wrong shows at once, also where a later write heals it:

- versions never go back;
- one version never has two values: what Redis holds is what Postgres held when it had that version;
- a change is folded only when Redis has a state that contains it.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any, cast

import psycopg
from redis import RedisError

from tests.chaos.oracle import EPOCH, STATES, show
from tests.chaos.stand import VERSION, Stand, value_key
from tests.chaos.tool import PREFIX

EVERY_S = 0.1
# Version and value at one instant. The first bytes of a value tell which write it is of.
_LOOK = """
local found = {}
for i = 1, #KEYS, 2 do
    local value = redis.call('GET', KEYS[i + 1])
    found[#found + 1] = redis.call('GET', KEYS[i]) or '0'
    found[#found + 1] = value and (string.len(value) .. ' ' .. string.sub(value, 1, 24)) or ''
end
return found
"""


# The epoch, and whether it is one of this Postgres and not of one that was failed over from.
RECORDED = """
SELECT epoch, timeline = left(pg_walfile_name(pg_current_wal_lsn()), 8) FROM cachemig.migration
"""


@dataclass(frozen=True)
class Wrong:
    key: str
    at: float
    """Unix time."""
    what: str
    emptied: bool = False
    """One of two values is none: an eviction does that, and a TRUNCATE. It is not MVCC-safe: whoever reads with a
    snapshot of before it finds nothing under a version of before it."""


class Sampler(threading.Thread):
    def __init__(self, stand: Stand, began: float) -> None:
        super().__init__(name="sampler", daemon=True)
        self.stand = stand
        self.began = began
        self.seen: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=40))
        """Of each key the states that were seen last."""
        self.wrong: list[Wrong] = []
        self.looks = 0
        self.error: BaseException | None = None
        self._value_of: dict[tuple[str, int], tuple[str, str]] = {}
        self._last: dict[tuple[str, str], int] = {}
        self._emptied: set[tuple[str, int]] = set()
        self._folded: dict[str, tuple[int, int, int]] = {}
        """Epoch, changes folded, changes not folded, as of the last look at Postgres."""
        self._losses = 0
        self._failovers = 0
        self._set_back = False
        """Postgres lacks commits, and no worker has recorded yet that it has: counts have begun to repeat."""
        self._watched_from = 0.0
        self._lock = threading.Lock()
        self._end = threading.Event()

    def end(self) -> None:
        self._end.set()
        if self.ident is not None:
            self.join()

    def watch_values_from(self, epoch: float) -> None:
        """In an epoch in which capture was off, or is about to be, values change without their versions."""
        with self._lock:
            self._watched_from = epoch

    def run(self) -> None:
        try:
            while not self._end.wait(EVERY_S):
                with self.stand.redis_lock:
                    self._look_at_redis()
                self._look_at_postgres()
        except BaseException as exc:
            self.error = exc

    def _look_at_redis(self) -> None:
        try:
            with self.stand.client() as client:
                names = list(client.scan_iter(match=VERSION + b"*", count=1000))
                pairs = [key for name in names for key in (name, value_key(name))]
                answers = cast("list[bytes]", cast(Any, client).eval(_LOOK, len(pairs), *pairs)) if pairs else []
        except RedisError:
            return
        self.looks += 1
        found = {
            value_key(name).decode().removeprefix(PREFIX): (int(answers[2 * i]), answers[2 * i + 1].decode())
            for i, name in enumerate(names)
        }
        with self._lock:
            before = {key for side, key in self._last if side == "Redis"}
            if self.stand.losses != self._losses:
                self._losses = self.stand.losses
                for key in before:
                    del self._last["Redis", key]
            for key, (version, value) in found.items():
                self._compare("Redis", key, version, value)
            for key, (epoch, folded, pending) in self._folded.items():
                self._expect_delivered(key, found.get(key, (0, ""))[0], epoch, folded, pending)
            for side, key in [place for place in self._last if place[0] == "Redis" and place[1] not in found]:
                self._report(key, f"its version key is gone; it was {show(self._last.pop((side, key)))}")

    def _look_at_postgres(self) -> None:
        try:
            with (
                self.stand.postgres_lock,
                psycopg.connect(self.stand.dsn, autocommit=True, application_name="chaos-sampler") as conn,
            ):
                failovers = self.stand.failovers
                recorded = conn.execute(RECORDED).fetchone()
                rows = conn.execute(STATES).fetchall()
        except psycopg.OperationalError:
            return
        assert recorded is not None
        with self._lock:
            if failovers != self._failovers:
                self._failovers, self._set_back = failovers, True
                self._emptied.clear()
                for place in [place for place in self._last if place[0] == "Postgres"]:
                    del self._last[place]
            if self._set_back and recorded[1]:
                self._set_back = False
                self._watched_from = max(self._watched_from, recorded[0])
                self._value_of.clear()
            self._folded.clear()
            for key, version, size, start, folded, pending, truncated in rows:
                value = "" if size is None else f"{size} {start}"
                self._compare("Postgres", key, int(version), value, truncated=truncated)
                self._folded[key] = int(version) // EPOCH, int(folded), int(pending)

    def _compare(self, side: str, key: str, version: int, value: str, *, truncated: bool = False) -> None:
        before = self._last.get((side, key), 0)
        self._last[side, key] = version
        if version < before:
            self._report(key, f"its version in {side} went back: {show(before)}, then {show(version)}")
        other, first = self._value_of.setdefault((key, version), (side, value))
        state = f"version {show(version)} in {side}: {value or 'none'}"
        if version != before or first != value:
            self.seen[key].append(f"{time.time() - self.began:8.3f} s  {state}")
        if first != value and version // EPOCH >= self._watched_from and not self._set_back:
            two = f"{first or 'none'} in {other}, then {value or 'none'} in {side}"
            self._report(key, f"two values of version {show(version)}: {two}", emptied=not first or not value)
            self._value_of[key, version] = side, value
            if side == "Postgres" and not value:
                self._emptied.add((key, version))
        elif side == "Postgres" and (key, version) in self._emptied and not truncated:
            self._emptied.discard((key, version))
            self._report(key, f"emptied without a change: {show(version)}")  # seen twice: no matter of snapshots

    def _expect_delivered(self, key: str, version: int, epoch: int, folded: int, pending: int) -> None:
        """Redis, looked at later than Postgres, holds whatever was folded. (A new epoch marks the key in the same
        transaction, so there a change is pending until it has arrived.)"""
        if self._losses:
            return
        here = version // EPOCH == epoch and version % EPOCH < folded
        if here or (version // EPOCH < epoch and folded and not pending):
            state = f"{epoch}/{folded} and {pending} changes pending"
            self._report(key, f"folded and not delivered: {state} in Postgres, then {show(version)} in Redis")

    def _report(self, key: str, what: str, *, emptied: bool = False) -> None:
        now = time.time()
        self.wrong.append(Wrong(key, now, f"at {now - self.began:.3f} s: {what}", emptied))

"""Shadow reads: while the column is authoritative for a key, what Redis holds is compared with it in the background."""

from __future__ import annotations

import random
import time

from cachemig.config import Settings
from cachemig.entries.codec import Undecodable, decode
from cachemig.entries.compare import same_json
from cachemig.errors import CachemigError
from cachemig.service._async import Background, sleep
from cachemig.service.column_async import AsyncColumn, Found
from cachemig.service.companions import Names
from cachemig.service.faults import Refused, Unreachable
from cachemig.service.options import Options
from cachemig.service.redis_async import AsyncRedisStore, Held
from cachemig.service.stats import Stats
from cachemig.service.values import State, state_of

_EXPIRY_MS = 5000
"""An entry this close to its end may be gone on one clock and not on the other."""


class AsyncShadow:
    """Never adds latency and never raises: a comparison that cannot be made is counted."""

    def __init__(self, column: AsyncColumn, store: AsyncRedisStore, options: Options, stats: Stats) -> None:
        self._column = column
        self._store = store
        self._options = options
        self._stats = stats
        self._background = Background(max(1, options.shadow_outstanding))

    def sample(self, key: str, found: Found, settings: Settings, names: Names) -> None:
        """Compares now and then what a read from the column found; returns at once."""
        if found.version is None or random.random() >= self._options.shadow_sample:  # noqa: S311
            return
        if not self._background.start(self._compare, key, found, settings, names):
            self._stats.shadow("dropped")

    async def close(self) -> None:
        await self._background.close()

    async def _compare(self, key: str, found: Found, settings: Settings, names: Names) -> None:
        try:
            verdict = await self._verdict(key, found, settings, names)
        except (Unreachable, Refused, CachemigError):
            verdict = "unreachable"
        self._stats.shadow(verdict)

    async def _verdict(self, key: str, found: Found, settings: Settings, names: Names) -> str:
        held = (await self._store.read(names, [key]))[0]
        verdict = judge(key, found, held, settings)
        if verdict in ("match", "equivalent"):
            return verdict
        await sleep(self._options.shadow_grace)
        # Redis first: what it holds was committed before, so a later look at the column is not behind.
        later = (await self._store.read(names, [key]))[0]
        again = await self._column.get(key)
        if again.version is None:
            return "race"  # the phase has moved
        return judge(key, again, later, settings, late=held)


def judge(key: str, found: Found, held: Held, settings: Settings, late: Held | None = None) -> str:
    """A verdict on what the column and Redis hold. `late`: what Redis held at first, where this is the second look."""
    assert found.version is not None
    expected = state_of(key, None if found.text is None else found.text.encode(), found.lifetime_from_ms, settings)
    verdict = _compared(expected, held, found)
    if verdict in ("match", "equivalent"):
        return verdict if late is None else "race"  # it has arrived meanwhile
    if held.version < found.version:
        return "race"  # behind: the change is on its way, and how long it takes is the lag, not a difference
    if expected.expires_at_ms is not None and expected.expires_at_ms - time.time() * 1000 < _EXPIRY_MS:
        return "race"
    return verdict


def _compared(expected: State, held: Held, found: Found) -> str:
    if held.value is None or expected.stored is None:
        if held.value is None and expected.stored is None:
            return "match"
        return "missing" if held.value is None else "mismatch"
    if held.value == expected.stored:
        return "match"
    assert found.text is not None
    try:
        text = decode(held.value)
    except Undecodable:
        return "mismatch"
    column = found.text.encode()
    return "match" if bytes(text) == column else "equivalent" if same_json(text, column) else "mismatch"

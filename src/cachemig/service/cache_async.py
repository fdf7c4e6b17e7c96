"""CacheService: what an application reads and writes its cache with, while the cache moves from a column to Redis."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from cachemig.config import Settings
from cachemig.entries.codec import Undecodable, decode, encode
from cachemig.entries.entry import EPOCH
from cachemig.errors import CachemigError, ConfigError
from cachemig.ladder import Phase
from cachemig.service._async import (
    Background,
    Connection,
    ConnectionPool,
    Flight,
    Flights,
    Loader,
    Semaphore,
    make_pool,
    sleep,
)
from cachemig.service.clients_async import AsyncClient
from cachemig.service.column_async import AsyncColumn, Found, Stored
from cachemig.service.companions import Names, names
from cachemig.service.errors import Closed, Unreadable, WriteFailed
from cachemig.service.faults import Refused, Unreachable
from cachemig.service.options import Options
from cachemig.service.redis_async import AsyncRedisStore, Delivery, Held, Lease, Order
from cachemig.service.results import Entry, Health, Source, Why, Written
from cachemig.service.route import PINNED, Floor, Floors, Route, Routes, Unanswered, allows
from cachemig.service.shadow_async import AsyncShadow
from cachemig.service.stats import Stats
from cachemig.service.values import ABSENT, State, dumps, expiry, is_empty, loads, settings_of, state_of
from cachemig.targets.address import address_of

_DEFAULT_REDIS = "redis://localhost:6379/0"
_TURNS = 4
"""How often a call follows a phase that moves under it."""
_WARM_KEYS = 100
_WAIT_S = (0.02, 0.25)
_DURATIONS = 10_000
_HEAL = frozenset({Why.MISS, Why.BEHIND, Why.UNDECODABLE})
"""Redis has answered, and is to be given what the column holds."""
_log = logging.getLogger("cachemig.service")


@dataclass(frozen=True, slots=True)
class _Look:
    """An entry, and how long Redis will keep it."""

    entry: Entry
    ttl_ms: int | None = None


class AsyncPending:
    """A write made in a transaction of the application's own, to be delivered to Redis after its commit."""

    def __init__(self, cache: AsyncCacheService, key: str, text: bytes | None, stored: Stored) -> None:
        self._cache = cache
        self._key = key
        self._text = text
        self._stored = stored

    @property
    def stored(self) -> bool:
        """False: no row of the table has this key."""
        return self._stored.outcome != "no-row"

    async def deliver(self) -> bool:
        """To be awaited after the commit; whether Redis holds the write now. Where it does not, sync delivers.

        What is delivered is read anew, by another connection: a write that is not committed, or was rolled back, is
        never delivered. In redis-only, where there is no column to write, the write itself is made here, and
        WriteFailed raised where it fails.
        """
        return await self._cache._deliver_pending(self._key, self._text, self._stored)

    def rolled_back(self) -> None:
        """Optional: reads of the key need not go to the column any more."""
        if self._stored.version is not None:
            self._cache._floors.forget(self._key, self._stored.version)


class AsyncCacheService:
    """A cache of JSON values in a column of Postgres, in Redis, or in both: as the phase of the migration says.

    Follows the phase within `poll_interval`. No read of this process returns a value older than its last acknowledged
    write. Redis dead, hanging, slow, full or answering nonsense costs no error while the column is there; what
    Postgres refuses is raised, as SourceError, as it would be without this library.
    """

    def __init__(self, column: AsyncColumn | None, store: AsyncRedisStore, options: Options, name: str) -> None:
        """Use `open`."""
        self._column_or_none = column
        self._store = store
        self._options = options
        self._stats = Stats()
        self._routes = Routes(Route(Phase.IDLE))
        self._floors = Floors(options.remembered_writes)
        self._client = None if column is None else AsyncClient(column, self._routes, options, name, self.stats)
        self._shadow = None if column is None else AsyncShadow(column, store, options, self._stats)
        self._unanswered = Unanswered(options.remembered_writes)
        self._flights = Flights()
        self._background = Background(options.load_limit)
        self._loads = Semaphore(options.load_limit)
        self._durations: dict[str, float] = {}
        self._pool: ConnectionPool[Any] | None = None
        self._settings = Settings()
        self._names: Names = names(self._settings.key_template, clustered=store.clustered)
        self._closed = False

    @classmethod
    async def open(
        cls,
        *,
        dsn: str | None = None,
        pool: ConnectionPool[Any] | None = None,
        redis_url: str | None = None,
        name: str = "api",
        environment: Mapping[str, str] | None = None,
        options: Options | None = None,
        phase: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Self:
        """Registers as a client of the migration; its settings come from Postgres, so that the command line and the
        application cannot disagree.

        Without `dsn` and `pool`: CACHEMIG_DSN, or PG* variables as psql takes them. Without `redis_url`:
        CACHEMIG_REDIS_URL. With `phase` and `settings` the phase is pinned and Postgres never asked: for the time after
        `cachemig clean`, when there is no control schema any more. Open after a fork, not before it.

        Raises NotInitialised before `cachemig init`, SourceError where Postgres does not answer, ConfigError. A dead
        Redis is no error.
        """
        environment = os.environ if environment is None else environment
        options = options or Options()
        url = redis_url or environment.get("CACHEMIG_REDIS_URL") or _DEFAULT_REDIS
        try:
            address_of(url)
        except ValueError as exc:
            raise ConfigError(f"redis_url {exc}", hint="redis://HOST:6379/0") from None
        store = AsyncRedisStore(url, environment, options)
        if phase is not None:
            route = Route(Phase(phase), epoch=PINNED)
            if settings is None or route.has_column:
                raise ConfigError(
                    "a pinned phase is redis-only or dropped, and needs settings: key_template, ttl, codec …",
                    hint="give settings as well, or leave phase out",
                )
            cache = cls(None, store, options, name)
            cache._routes.learn(route, time.monotonic())
            cache._take_settings(dict(settings))
            return cache
        own = pool is None
        if pool is None:
            pool = make_pool(dsn if dsn is not None else environment.get("CACHEMIG_DSN", ""), options)
            await pool.open()
        cache = cls(AsyncColumn(pool, options), store, options, name)
        cache._pool = pool if own else None
        assert cache._client is not None
        try:
            cache._take_settings(await cache._client.register())
        except BaseException:
            await store.close()
            if own:
                await pool.close()
            raise
        cache._client.start()
        return cache

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Leaves the ladder and closes what `open` has opened. Loads under way are cancelled."""
        if self._closed:
            return
        self._closed = True
        await self._background.close()
        await self._flights.close()
        if self._shadow is not None:
            await self._shadow.close()
        if self._client is not None:
            await self._client.close()
        await self._store.close()
        if self._pool is not None:
            await self._pool.close()

    # Reading -------------------------------------------------------------------------------------------------------

    async def get(self, key: str, default: Any = None) -> Any:
        """The value; `default` where there is none, or in redis-only where Redis does not answer: `get_entry` tells."""
        look = (await self._look([key]))[key]
        return look.entry.value if look.entry.found else default

    async def get_entry(self, key: str) -> Entry:
        """The value with where it came from, and why from there: found, absent and unreachable are three answers."""
        return (await self._look([key]))[key].entry

    async def get_many(self, keys: Iterable[str], default: Any = None) -> list[Any]:
        """Values in the order of the keys, with at most one round trip to Redis (each master of a cluster) and one to
        Postgres (and one to give Redis what it did not have)."""
        keys = list(keys)
        looks = await self._look(keys)
        return [looks[key].entry.value if looks[key].entry.found else default for key in keys]

    async def _look(self, keys: Sequence[str], *, ttl: bool = False) -> dict[str, _Look]:
        self._refuse_if_closed()
        if self._client is not None:
            await self._client.after_a_freeze()
        route = self._routes.now
        looks: dict[str, _Look] = {}
        left = list(dict.fromkeys(keys))
        for _ in range(_TURNS):
            why: dict[str, Why] = {}
            in_redis = [key for key in left if route.reads_redis(key)]
            if in_redis:
                looks |= await self._look_into_redis(in_redis, route, why, ttl=ttl or bool(self._options.stale_for))
            left = [key for key in left if key not in looks]
            if not left:
                break
            found = await self._look_into_column(left)
            answer = found[left[0]]
            self._learn(answer.route, answer.asked_at)
            if answer.route.has_column:
                looks |= await self._from_column(found, why)
                break
            route = answer.route  # the column is not to be used any more: Redis has it
        # A phase that moves at every turn: nothing was found out.
        nothing = {key: _Look(Entry(key, False, None, Source.NOWHERE, Why.ROUTE)) for key in left if key not in looks}
        return looks | nothing

    async def _look_into_redis(
        self, keys: list[str], route: Route, why: dict[str, Why], *, ttl: bool
    ) -> dict[str, _Look]:
        """What Redis answers for; with a column to fall back on, the other keys are left to it, with the reason."""
        began = time.monotonic()
        floors = [self._floors.of(key) for key in keys]
        try:
            held = await self._store.read(self._names, keys, ttl=ttl)
        except (Unreachable, Refused) as exc:
            reason = _reason(exc)
            self._stats.read("redis", "error", None if reason is Why.BREAKER else time.monotonic() - began, len(keys))
            if route.has_column:
                self._stats.count("fallback", len(keys))
                why |= dict.fromkeys(keys, reason)
                return {}
            return {key: _Look(Entry(key, False, None, Source.NOWHERE, reason)) for key in keys}
        seconds: float | None = time.monotonic() - began
        looks = {}
        for key, one, floor in zip(keys, held, floors, strict=True):
            entry = self._judged(key, one, floor, route)
            outcome = "hit" if entry.found else "error" if entry.why is Why.UNDECODABLE else "miss"
            self._stats.read("redis", outcome, seconds)  # type: ignore[arg-type]
            seconds = None  # one call, one duration
            if entry.found or not route.has_column:
                looks[key] = _Look(entry, one.ttl_ms)
            else:
                why[key] = entry.why
                self._stats.count("fallback", outcome == "error")
        return looks

    def _judged(self, key: str, held: Held, floor: Floor | None, route: Route) -> Entry:
        def absent(why: Why) -> Entry:
            return Entry(key, False, None, Source.REDIS, why, max(held.version, 0))

        # A server that may have lost writes begins an epoch: until sync has been there, what Redis holds of the one
        # before may be older than the column.
        if not allows(floor, held.version, route) or (route.has_column and held.version // EPOCH < route.epoch):
            return absent(Why.BEHIND)
        if held.value is None:
            return absent(Why.MISS)
        try:
            value = loads(decode(held.value))
        except (Undecodable, ValueError):
            return absent(Why.UNDECODABLE)
        stale = (
            held.ttl_ms is not None and bool(self._options.stale_for) and held.ttl_ms < self._options.stale_for * 1000
        )
        return Entry(key, True, value, Source.REDIS, Why.ROUTE, held.version, stale)

    async def _look_into_column(self, keys: list[str]) -> dict[str, Found]:
        began = time.monotonic()
        try:
            found = await self._column.get_many(keys)
        except CachemigError:
            self._stats.read("column", "error", time.monotonic() - began, len(keys))
            raise
        seconds: float | None = time.monotonic() - began
        for one in found.values():
            if one.route.has_column:
                self._stats.read("column", "miss" if one.text is None else "hit", seconds)
                seconds = None
        return found

    async def _from_column(self, found: dict[str, Found], why: dict[str, Why]) -> dict[str, _Look]:
        looks, fills = {}, []
        for key, one in found.items():
            reason = why.get(key, Why.ROUTE)
            try:
                value = None if one.text is None else loads(one.text)
            except ValueError:
                raise Unreadable from None
            looks[key] = _Look(Entry(key, one.text is not None, value, Source.COLUMN, reason, one.version))
            if reason in _HEAL:
                if (fill := self._fill(key, one)) is not None:
                    fills.append(fill)
            elif reason is Why.ROUTE and self._shadow is not None and one.route.uses_redis:
                self._shadow.sample(key, one, self._settings, self._names)
        if fills:
            with contextlib.suppress(Unreachable, Refused):  # the reads are answered all the same
                await self._deliver(fills, invalidates=False)
        return looks

    def _fill(self, key: str, found: Found) -> Delivery | None:
        """What a read has to deliver. Never a tombstone: that no row was seen is no order to remove something."""
        if found.text is None or found.version is None:
            return None
        state = state_of(key, found.text.encode(), found.lifetime_from_ms, self._settings)
        return None if state.stored is None else Delivery(key, found.version, state)

    # Writing -------------------------------------------------------------------------------------------------------

    async def put(self, key: str, value: Any) -> Written:
        """Stores a value; None and {} are no entries, and remove what is there.

        While the column is there it is committed to Postgres and then delivered to Redis, whose failure is no error:
        sync delivers. Raises SourceError where Postgres refuses it; in redis-only WriteFailed where Redis does.
        """
        return await self._write(key, None if is_empty(value) else dumps(value))

    async def invalidate(self, key: str) -> Written:
        """Removes a value. No load that began before brings it back. Raises as put does."""
        return await self._write(key, None)

    async def put_in(self, conn: Connection, key: str, value: Any) -> AsyncPending:
        """Stores a value in the application's own transaction. After its commit, `await pending.deliver()`; where that
        is forgotten sync delivers, and until then this process reads the key from the column."""
        self._refuse_if_closed()
        if is_empty(value):
            text = None
            stored = await self._column.invalidate_in(conn, key)
        else:
            text = dumps(value)
            stored = await self._column.put_in(conn, key, text)
        self._flights.supersede(key)
        self._learn(stored.route, stored.asked_at)
        if stored.outcome == "written" and stored.route.uses_redis:
            self._floors.raise_to(key, stored.version)
        return AsyncPending(self, key, text, stored)

    async def _deliver_pending(self, key: str, text: bytes | None, stored: Stored) -> bool:
        self._flights.supersede(key)
        if stored.outcome == "elsewhere":
            return (await self._write(key, text)).delivered
        if not stored.route.uses_redis or stored.version is None:
            return False
        now = await self._column.get(key)
        self._learn(now.route, now.asked_at)
        if now.version is None or now.version < stored.version:
            return False  # not committed
        state = state_of(key, None if now.text is None else now.text.encode(), now.lifetime_from_ms, self._settings)
        return await self._delivered(Delivery(key, now.version, state))

    async def _write(self, key: str, text: bytes | None) -> Written:
        self._refuse_if_closed()
        if self._client is not None:
            await self._client.after_a_freeze()
        self._flights.supersede(key)
        for _ in range(_TURNS):
            route = self._routes.now
            if route.writes_column:
                column = self._column
                stored = await (column.invalidate(key) if text is None else column.put(key, text))
                self._learn(stored.route, stored.asked_at)
                if stored.outcome != "elsewhere":
                    return await self._committed(key, stored, removes=text is None)
                if self._routes.now.writes_column:
                    await self._beat_now()
                continue
            with self._routes.writing(route) as holds:
                if not holds:
                    continue
                status, number = await self._write_to_redis_alone(key, text, route)
            if status == 1:
                return Written(stored=True, delivered=True, version=None if route.pinned else number)
            await self._beat_now()
            if self._routes.now == route:
                break
        self._stats.wrote("redis_failed")
        raise WriteFailed(
            "the write was refused: Redis is not of the epoch that this migration is in", hint="cachemig status"
        )

    async def _committed(self, key: str, stored: Stored, *, removes: bool) -> Written:
        """After a commit to the column: delivers it."""
        self._stats.wrote("ok")
        if not stored.route.uses_redis:
            self._flights.supersede(key)
            return Written(stored.outcome == "written", delivered=False, version=stored.version)
        if stored.outcome == "written" or removes:
            self._floors.raise_to(key, stored.version)
        self._flights.supersede(key)
        delivered = False
        if stored.version is None or (stored.outcome == "no-row" and not removes):
            with contextlib.suppress(Unreachable, Refused):
                await self._store.end_loads(self._names, key)
        else:
            text = None if stored.text is None else stored.text.encode()
            state = state_of(key, text, stored.lifetime_from_ms, self._settings)
            delivered = await self._delivered(Delivery(key, stored.version, state))
        return Written(stored.outcome == "written", delivered, stored.version)

    async def _delivered(self, delivery: Delivery) -> bool:
        try:
            return await self._deliver([delivery], invalidates=True)
        except (Unreachable, Refused) as exc:
            self._stats.wrote("redis_failed")
            _log.debug("a write was committed and not delivered, sync will: %s", exc)
            return False

    async def _deliver(self, deliveries: list[Delivery], *, invalidates: bool) -> bool:
        passed = await self._store.deliver(self._names, deliveries, invalidates=invalidates)
        if passed and self._client is not None:
            self._client.wake()  # a later epoch has begun
        return not passed

    async def _write_to_redis_alone(self, key: str, text: bytes | None, route: Route) -> tuple[int, int]:
        order = Order("" if route.pinned else str(route.epoch), takes_back=self._unanswered.of(key))
        try:
            status, number = await self._store.write(self._names, key, self._state_alone(key, text), order)
        except Unreachable as exc:
            if exc.sent:
                self._unanswered.add(key, order.name)
            self._stats.wrote("redis_failed")
            raise WriteFailed(f"the write failed: Redis did not answer ({exc.why})", uncertain=exc.sent) from exc
        except Refused as exc:
            self._stats.wrote("redis_failed")
            raise WriteFailed(f"the write failed: {exc}") from exc
        except BaseException:  # cancelled: it may be on its way as well
            self._unanswered.add(key, order.name)
            raise
        if status == 1:
            if not route.pinned:
                self._floors.raise_to(key, number)
            self._unanswered.remove(key, order.takes_back)
            self._flights.supersede(key)
            self._stats.wrote("ok")
        return status, number

    def _state_alone(self, key: str, text: bytes | None) -> State:
        """What a write to Redis alone stores: the lifetime begins now, longer where a stale value is allowed."""
        if text is None:
            return ABSENT
        expires_at_ms = expiry(key, self._settings, int(time.time() * 1000))
        if expires_at_ms is not None:
            expires_at_ms += int(self._options.stale_for * 1000)
        return State(encode(self._settings.codec, text), expires_at_ms)

    # Loading -------------------------------------------------------------------------------------------------------

    async def get_or_compute(self, key: str, loader: Loader) -> Any:
        """The value, or what the loader finds, which is stored; None where it finds nothing.

        One load per key in this process and, as long as Redis answers, among all processes; an error of the loader
        reaches everybody who waits for it. What was loaded is not stored where the key was written or invalidated
        meanwhile; the caller gets it all the same. No error of Redis is raised.
        """
        look = (await self._look([key], ttl=not self._routes.now.has_column))[key]
        if look.entry.found:
            if self._is_due(look):
                self._background.start(self._refresh, key, loader, look.entry)
            return look.entry.value
        return await self._flights.join(key, lambda flight: self._load(flight, key, loader, look.entry))

    def _is_due(self, look: _Look) -> bool:
        """Whether to load anew although there is a value: past its ttl, or near to it with a probability that grows.

        XFetch: Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015.
        """
        if look.ttl_ms is None:
            return False
        remaining_s = look.ttl_ms / 1000 - self._options.stale_for
        if remaining_s <= 0:
            return True
        delta_s = self._durations.get(look.entry.key) or self._durations.get("", 0.0)
        return -delta_s * self._options.beta * math.log(1.0 - random.random()) >= remaining_s  # noqa: S311

    async def _refresh(self, key: str, loader: Loader, entry: Entry) -> None:
        token = secrets.token_hex(8)
        lease = await self._acquire(key, token)
        if lease is None or not lease.ours:
            return
        try:
            if self._routes.now.pinned or lease.version == entry.version:
                await self._flights.join(key, lambda flight: self._fetch(flight, key, loader, entry, token))
        finally:
            await self._release(key, token)

    async def _load(self, flight: Flight, key: str, loader: Loader, entry: Entry) -> Any:
        token = secrets.token_hex(8)
        until = time.monotonic() + self._options.wait_limit
        pause, seen = _WAIT_S[0], None
        while (lease := await self._acquire(key, token)) is not None:
            if lease.nothing:
                return None
            known = (lease.version, lease.holds_value)
            if not lease.ours and seen in (None, known) and time.monotonic() < until:
                seen = known
                await sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                pause = min(pause * 1.5, _WAIT_S[1])
                continue
            if not lease.ours and time.monotonic() >= until:
                break  # whoever has it takes too long
            try:
                changed = lease.holds_value or entry.version is None or lease.version > entry.version
                if changed or seen is not None:  # somebody may have stored it meanwhile
                    entry = (await self._look([key]))[key].entry
                    if entry.found:
                        return entry.value
                if lease.ours:
                    return await self._fetch(flight, key, loader, entry, token)
            finally:
                if lease.ours:
                    await self._release(key, token)
            seen = known
        return await self._fetch(flight, key, loader, entry, None)

    async def _fetch(self, flight: Flight, key: str, loader: Loader, entry: Entry, token: str | None) -> Any:
        """Loads, and keeps what was loaded if nobody has written meanwhile."""
        async with self._loads:
            self._stats.count("loads")
            began = time.monotonic()
            value = await loader()
            self._took(key, time.monotonic() - began)
        if value is None and token is not None:
            await self._release(key, token, self._options.negative_ttl)
        if not is_empty(value):
            text = dumps(value)
            try:
                if not await self._keep(flight, key, text, entry, token):
                    self._stats.count("refused_fills")
            except (Unreachable, Refused):
                self._stats.wrote("redis_failed")
            except CachemigError as exc:
                _log.warning("a loaded value could not be stored: %s", type(exc).__name__)
        return value

    async def _keep(self, flight: Flight, key: str, text: bytes, entry: Entry, token: str | None) -> bool:
        """Stores a loaded value; False where it is refused, because what it was loaded for is not the last word."""
        route = self._routes.now
        if flight.superseded:
            return False
        if route.writes_column:
            if entry.version is None:
                # No version to go by (idle, or row-level security). What can be told: a write of this process, a write
                # of another one that took the lease away, and a value that is there now.
                if token is not None and not await self._release(key, token):
                    return False
                if (await self._column.get(key)).text is not None or flight.superseded:
                    return False
            stored = await self._column.put(key, text, entry.version)
            self._learn(stored.route, stored.asked_at)
            if stored.outcome == "written" and stored.route.uses_redis:
                self._floors.raise_to(key, stored.version)
                if stored.version is not None and stored.text is not None:
                    state = state_of(key, stored.text.encode(), stored.lifetime_from_ms, self._settings)
                    await self._deliver([Delivery(key, stored.version, state)], invalidates=False)
            return stored.outcome in ("written", "no-row")
        if entry.source is not Source.REDIS or (route.pinned and token is None):
            return False  # nothing is known of what was there before the load
        with self._routes.writing(route) as holds:
            if not holds:
                return False
            order = Order("", lease=token or "") if route.pinned else Order(str(route.epoch), expected=entry.version)
            status, number = await self._store.write(self._names, key, self._state_alone(key, text), order)
        if status == 1 and not route.pinned:
            self._floors.raise_to(key, number)
        if status == 2 and self._client is not None:
            self._client.wake()
        return status == 1

    async def _acquire(self, key: str, token: str) -> Lease | None:
        """None: Redis is not in use yet, or does not answer; then there is no lease to be had."""
        if not self._routes.now.uses_redis:
            return None
        try:
            return await self._store.acquire(self._names, key, token, self._options.lease)
        except (Unreachable, Refused):
            return None

    async def _release(self, key: str, token: str, negative_s: float = 0.0) -> bool:
        try:
            return await self._store.release(self._names, key, token, negative_s)
        except (Unreachable, Refused):
            return False  # it ends by itself

    def _took(self, key: str, seconds: float) -> None:
        """Remembers how long a load takes, of the key and of all."""
        mean = self._durations.get("", seconds)
        if len(self._durations) >= _DURATIONS:
            self._durations = {}
        self._durations |= {key: seconds, "": mean + (seconds - mean) / 8}

    # The rest ------------------------------------------------------------------------------------------------------

    async def warm(self, keys: Iterable[str]) -> int:
        """Gives Redis those of the keys that it does not hold and the column does, a hundred at a time; how many they
        were. Nothing is done where Redis does not answer, nor in phases without one of the two."""
        self._refuse_if_closed()
        keys = list(dict.fromkeys(keys))
        filled = 0
        for at in range(0, len(keys), _WARM_KEYS):
            route = self._routes.now
            if not (route.uses_redis and route.has_column):
                break
            try:
                missing = await self._store.missing(self._names, keys[at : at + _WARM_KEYS])
                found = await self._column.get_many(missing) if missing else {}
                fills = [fill for key, one in found.items() if (fill := self._fill(key, one)) is not None]
                if fills and await self._deliver(fills, invalidates=False):
                    filled += len(fills)
            except (Unreachable, Refused):
                break
        return filled

    def stats(self) -> dict[str, Any]:
        """Counts since this client started, and quantiles of its last 2,048 calls; as the ladder sees them."""
        return self._stats.document(self._store.opened)

    async def health(self) -> Health:
        """How this client stands; asks Redis, and Postgres not."""
        try:
            await self._store.ping()
            reachable = True
        except (Unreachable, Refused):
            reachable = False
        route = self._routes.now
        last = None if self._client is None else self._client.last_beat
        age = None if last is None else time.monotonic() - last
        return Health(route.phase, route.percent, route.epoch, self._store.state, age, reachable)

    @property
    def _column(self) -> AsyncColumn:
        if self._column_or_none is None:
            raise ConfigError(
                "the phase is pinned: there is no column to write to or read from", hint="open it without phase"
            )
        return self._column_or_none

    async def _beat_now(self) -> None:
        if self._client is not None:
            await self._client.beat_now()

    def _learn(self, route: Route, asked_at: float) -> None:
        if route != self._routes.now:
            self._routes.learn(route, asked_at)
            if self._client is not None:
                self._client.wake()  # to acknowledge it, or to ask again where the answer was overtaken

    def _take_settings(self, identity: dict[str, Any]) -> None:
        self._settings = settings_of(identity)
        self._names = names(self._settings.key_template, clustered=self._store.clustered)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise Closed


def _reason(exc: Unreachable | Refused) -> Why:
    if isinstance(exc, Refused):
        return Why.REFUSED
    return Why.BREAKER if exc.why == "breaker-open" else Why.UNREACHABLE

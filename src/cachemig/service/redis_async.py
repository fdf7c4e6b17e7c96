"""The Redis side: every call is behind the breaker, and says by an exception that it could not tell."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from redis import exceptions as rx

from cachemig import errors
from cachemig.entries.entry import Buffer
from cachemig.service._async import Semaphore, Sockets
from cachemig.service.breaker import Breaker, Permit
from cachemig.service.companions import ACQUIRE, DELIVER, DELIVER_LARGE, RELEASE, WRITE, Names, Script
from cachemig.service.faults import Refused, Unreachable
from cachemig.service.options import Options
from cachemig.service.values import State
from cachemig.targets.faults import mapped
from cachemig.targets.redis import LARGE
from cachemig.targets.resp import pack

_TEMPORARY_MS = b"120000"
_CALL_KEYS = 32


@dataclass(frozen=True, slots=True)
class Held:
    """What Redis holds under a key. `version` 0: none. `ttl_ms` None: not asked for, or no expiry."""

    value: bytes | None
    version: int
    ttl_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A state to be delivered under its version."""

    key: str
    version: int
    state: State


@dataclass(frozen=True, slots=True)
class Lease:
    """The answer to who may load a key."""

    ours: bool
    nothing: bool
    """The loader found nothing a short time ago."""
    version: int
    holds_value: bool


@dataclass(frozen=True, slots=True)
class Order:
    """A write to Redis alone: under which epoch ('' for no versions), and on which conditions."""

    epoch: str
    expected: int | None = None
    """The version that is to be there still."""
    lease: str = ""
    """The lease that is to be held still."""
    takes_back: tuple[str, ...] = ()
    """Names of earlier writes that had no answer."""
    name: str = field(default_factory=lambda: secrets.token_hex(6))


class AsyncRedisStore:
    """One Redis. Raises Unreachable or Refused, never anything of redis-py's."""

    def __init__(self, url: str, environment: Mapping[str, str], options: Options) -> None:
        credentials: dict[str, Any] = {}
        try:
            if environment.get("REDISCLI_AUTH") and urlsplit(url).password is None:
                credentials["password"] = environment["REDISCLI_AUTH"]
            self._sockets = Sockets(url, options, credentials)
        except (ValueError, TypeError) as exc:
            # The cause quotes the part that it does not understand, which may be a piece of a password.
            raise errors.ConfigError(
                "redis_url: not a valid URL; characters such as / ? # @ in a password are to be percent-encoded"
            ) from exc
        self.breaker = Breaker()
        self._slots = Semaphore(options.redis_connections)

    async def close(self) -> None:
        await self._sockets.close()

    async def ping(self) -> None:
        await self._call(pack(b"PING"), 0, 1)

    # Reading -------------------------------------------------------------------------------------------------------

    async def read(self, names: Names, keys: Sequence[str], *, ttl: bool = False) -> list[Held]:
        """Values and versions of all keys, in one round trip; `ttl`: and how long they will stay."""
        found = [part for key in keys for part in (names.value(key), names.version(key))]
        packed = pack(b"MGET", *found)
        for key in keys if ttl else ():
            packed += pack(b"PTTL", names.value(key))
        held, *ttls = await self._call(packed, 0, 1 + (len(keys) if ttl else 0))
        if not isinstance(held, list) or len(held) != len(found):
            raise Unreachable("not an answer of Redis", sent=True)
        return [
            Held(_value(held[2 * i]), _number(held[2 * i + 1]), _ttl(ttls[i]) if ttl else None)
            for i in range(len(keys))
        ]

    async def missing(self, names: Names, keys: Sequence[str]) -> list[str]:
        """Those of the keys that hold no value."""
        packed: list[Buffer] = []
        for key in keys:
            packed += pack(b"EXISTS", names.value(key))
        replies = await self._call(packed, 0, len(keys))
        return [key for key, reply in zip(keys, replies, strict=True) if reply == 0]

    # Writing -------------------------------------------------------------------------------------------------------

    async def deliver(self, names: Names, deliveries: Sequence[Delivery], *, invalidates: bool) -> int:
        """Delivers states under their versions, by targets/deliver.lua; the number of keys for which a later epoch has
        begun. A newer state that is there already is as good. `invalidates`: leases and negative entries go too, so
        that no load that began before is kept."""
        small = [d for d in deliveries if d.state.stored is None or len(d.state.stored) < LARGE]
        large = [d for d in deliveries if d.state.stored is not None and len(d.state.stored) >= LARGE]
        answers: list[int] = []
        extra = (
            [name for d in deliveries for name in (names.lease(d.key), names.negative(d.key))] if invalidates else []
        )
        tail = pack(b"DEL", *extra) if extra else []
        for at in range(0, len(small), _CALL_KEYS):
            part = small[at : at + _CALL_KEYS]
            keys = [names.marker, *(n for d in part for n in (names.version(d.key), names.value(d.key)))]
            arguments: list[Buffer] = []
            for d in part:
                arguments += (
                    b"%d" % d.version,
                    b"%d" % (d.state.expires_at_ms or 0),
                    b"remove" if d.state.stored is None else b"set",
                    d.state.stored or b"",
                )
            nbytes = sum(len(d.state.stored or b"") for d in part)
            answers += _answers(await self._script([], DELIVER, keys, arguments, tail, nbytes), len(part))
            tail = []
        for d in large:
            assert d.state.stored is not None
            own = names.temporary(d.key, secrets.token_hex(6))
            before = pack(b"SET", own, d.state.stored, b"PX", _TEMPORARY_MS)
            keys = [names.marker, names.version(d.key), names.value(d.key), own]
            arguments = [b"%d" % d.version, b"%d" % (d.state.expires_at_ms or 0)]
            reply = await self._script(before, DELIVER_LARGE, keys, arguments, tail, len(d.state.stored))
            answers += _answers(reply, 1)
            tail = []
        if any(answer < 0 for answer in answers):
            raise Refused("Redis lost a temporary key: it is evicting")
        return sum(answer == 2 for answer in answers)

    async def write(self, names: Names, key: str, state: State, order: Order) -> tuple[int, int]:
        """A write to Redis alone, by write.lua: (1, version) written, (0, version held) the conditions do not hold any
        more, (2, epoch) another epoch has begun, (3, 0) it was taken back."""
        stored = state.stored
        large = stored is not None and len(stored) >= LARGE
        own = names.temporary(key, order.name)
        before = pack(b"SET", own, stored or b"", b"PX", _TEMPORARY_MS) if large else []
        keys = [
            *(names.marker, names.version(key), names.value(key), names.lease(key), names.negative(key), own),
            *(names.taken_back(key, name) for name in (order.name, *order.takes_back)),
        ]
        arguments: list[Buffer] = [
            order.epoch.encode(),
            b"%d" % (state.expires_at_ms or 0),
            b"remove" if stored is None else b"rename" if large else b"set",
            b"" if large else stored or b"",
            b"" if order.expected is None else b"%d" % order.expected,
            order.lease.encode(),
        ]
        reply = await self._script(before, WRITE, keys, arguments, [], len(stored or b""))
        status, number = _answers(reply[:2] if isinstance(reply, list) else reply, 2)
        if status < 0:
            raise Refused("Redis lost a temporary key: it is evicting")
        return status, number

    async def end_loads(self, names: Names, key: str) -> None:
        """Takes away the lease and the negative entry: what is loaded now is not to be kept."""
        await self._call(pack(b"DEL", names.lease(key), names.negative(key)), 0, 1)

    # Leases --------------------------------------------------------------------------------------------------------

    async def acquire(self, names: Names, key: str, token: str, seconds: float) -> Lease:
        keys = [names.lease(key), names.negative(key), names.version(key), names.value(key)]
        arguments: list[Buffer] = [token.encode(), b"%d" % (seconds * 1000)]
        status, version, holds = _answers(await self._script([], ACQUIRE, keys, arguments, [], 0), 3)
        return Lease(status == 1, status == 2, version, holds == 1)

    async def release(self, names: Names, key: str, token: str, negative_s: float = 0.0) -> bool:
        """Gives the lease back, leaving a negative entry; False where it was taken away meanwhile."""
        arguments: list[Buffer] = [token.encode(), b"%d" % (negative_s * 1000)]
        keys = [names.lease(key), names.negative(key)]
        return bool(await self._script([], RELEASE, keys, arguments, [], 0) == 1)

    # The wire ------------------------------------------------------------------------------------------------------

    async def _script(
        self,
        before: list[Buffer],
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[Buffer],
        after: list[Buffer],
        nbytes: int,
    ) -> Any:
        """The script's reply; `before` and `after` are commands in the same round trip."""
        tail: list[Buffer] = [b"%d" % len(keys), *keys, *arguments]
        packed = [*before, *pack(b"EVALSHA", script.sha, *tail), *after]
        count = 1 + bool(before) + bool(after)
        try:
            return (await self._call(packed, nbytes, count))[bool(before)]
        except _NoScript:  # the first call, or Redis was restarted: send it along
            packed = [*before, *pack(b"EVAL", script.body, *tail), *after]
            return (await self._call(packed, nbytes, count))[bool(before)]

    async def _call(self, packed: Sequence[Buffer], nbytes: int, replies: int) -> list[Any]:
        if self.breaker.blocked:
            raise Unreachable("breaker-open")
        async with self._slots:
            permit = self.breaker.permit()  # here, for it may have opened while this call waited
            if permit is None:
                raise Unreachable("breaker-open")
            try:
                # Not for the probe: it is the one that is to try.
                found = await self._sockets.exchange(
                    packed, nbytes, replies, lambda: permit is Permit.CALL and self.breaker.blocked
                )
            except Unreachable:
                self.breaker.failed(permit)
                raise
            except BaseException:
                self.breaker.abandoned(permit)
                raise
        for reply in found:
            if isinstance(reply, Exception):
                text = str(reply)
                if text.startswith("NOSCRIPT"):
                    self.breaker.succeeded(permit)
                    raise _NoScript
                fault = mapped(rx.ResponseError(text))
                if isinstance(fault, errors.TargetUnavailable):  # loading, or a script that does not end
                    self.breaker.failed(permit)
                    raise Unreachable(text.partition(" ")[0])
                self.breaker.succeeded(permit)
                raise Refused(str(fault) if type(fault) is not errors.TargetError else text.partition(" ")[0])
        self.breaker.succeeded(permit)
        return found


class _NoScript(Exception):
    pass


def _value(reply: Any) -> bytes | None:
    if reply is not None and not isinstance(reply, bytes):
        raise Unreachable("not an answer of Redis", sent=True)
    return reply


def _number(reply: Any) -> int:
    if reply is None:
        return 0
    try:
        return int(reply)
    except (TypeError, ValueError):
        return -1  # not a version: of no use, and below any


def _ttl(reply: Any) -> int | None:
    return reply if isinstance(reply, int) and reply >= 0 else None


def _answers(reply: Any, count: int) -> list[int]:
    if not isinstance(reply, list) or len(reply) != count or not all(isinstance(r, int) for r in reply):
        raise Unreachable("not an answer of Redis", sent=True)
    return reply

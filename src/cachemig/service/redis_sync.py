# Generated from redis_async.py by scripts/generate-sync: change that one.
"""The Redis side: every call is behind the breaker, and says by an exception that it could not tell."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis import exceptions as rx

from cachemig import errors
from cachemig.entries.entry import Buffer
from cachemig.service._sync import Semaphore, sleep
from cachemig.service.breaker import Breaker, Permit
from cachemig.service.companions import ACQUIRE, DELIVER, DELIVER_LARGE, RELEASE, WRITE, Names, Script
from cachemig.service.faults import Refused, Unreachable
from cachemig.service.options import Options
from cachemig.service.places_sync import Places
from cachemig.service.values import State
from cachemig.targets.address import Node, address_of
from cachemig.targets.faults import mapped
from cachemig.targets.redis import LARGE
from cachemig.targets.resp import pack
from cachemig.targets.topology import redirection

_TEMPORARY_MS = b"120000"
_CALL_KEYS = 32
_TURNS_S = (0.0, 0.0, 0.0, 0.01, 0.02, 0.05, 0.1)
"""Pauses before a call goes out again: at once to where a slot has moved, later where it is on its way."""


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


@dataclass(slots=True, eq=False)
class _Call:
    """Commands on the keys of one slot, to go to one server together."""

    slot: int
    commands: list[list[Buffer]]
    nbytes: int = 0
    to: Node | None = None
    """Instead of the slot's owner, behind ASKING."""
    replies: list[Any] = field(default_factory=list)

    @property
    def parts(self) -> list[Buffer]:
        asking = _ASKING if self.to is not None else []
        return [part for command in self.commands for part in (*asking, *command)]

    @property
    def count(self) -> int:
        return len(self.commands) * (1 if self.to is None else 2)


class RedisStore:
    """One Redis, or a cluster. Raises Unreachable or Refused, never anything of redis-py's."""

    def __init__(self, url: str, environment: Mapping[str, str], options: Options) -> None:
        credentials: dict[str, Any] = {}
        try:
            address = address_of(url)
            if environment.get("REDISCLI_AUTH") and not address.has_password:
                credentials["password"] = environment["REDISCLI_AUTH"]
            self._places = Places(address, options, credentials)
        except (ValueError, TypeError) as exc:
            # The cause quotes the part that it does not understand, which may be a piece of a password.
            raise errors.ConfigError(
                "redis_url: not a valid URL; characters such as / ? # @ in a password are to be percent-encoded",
                hint="redis://HOST:6379/0, with the password in REDISCLI_AUTH",
            ) from exc
        self.clustered = self._places.clustered
        self._breakers: dict[Node | None, Breaker] = {}
        self._slots = Semaphore(options.redis_connections)

    def close(self) -> None:
        self._places.close()

    def ping(self) -> None:
        for node in self._places.all():
            self._exchange(node, [_Call(0, [pack(b"PING")])])

    @property
    def opened(self) -> int:
        """How often the breaker of a server has opened."""
        return sum(breaker.opened for breaker in list(self._breakers.values()))

    @property
    def state(self) -> str:
        """The breaker's; of several the worst."""
        states = {breaker.state for breaker in list(self._breakers.values())}
        return next((state for state in ("open", "half-open") if state in states), "closed")

    # Reading -------------------------------------------------------------------------------------------------------

    def read(self, names: Names, keys: Sequence[str], *, ttl: bool = False) -> list[Held]:
        """Values and versions of all keys, in one round trip; `ttl`: and how long they will stay."""
        if self.clustered:
            return self._read_apart(names, keys, ttl=ttl)
        found = [part for key in keys for part in (names.value(key), names.version(key))]
        commands = [pack(b"MGET", *found), *(pack(b"PTTL", names.value(key)) for key in keys if ttl)]
        held, *ttls = self._call(0, commands)
        _require_list(held, len(found))
        return [
            Held(_value(held[2 * i]), _number(held[2 * i + 1]), _ttl(ttls[i]) if ttl else None)
            for i in range(len(keys))
        ]

    def _read_apart(self, names: Names, keys: Sequence[str], *, ttl: bool) -> list[Held]:
        """One round trip to each master. The version first: the value beside it is as new or newer. A key whose slot is
        being moved is read command by command, for one of its keys may be at the next master by now."""
        calls = []
        for key in keys:
            commands = [
                pack(b"MGET", names.version(key)),
                pack(b"MGET", names.value(key)),
            ]  # MGET takes a list for none
            commands += [pack(b"PTTL", names.value(key))] if ttl else []
            calls.append(_Call(names.slot(key), commands))
        self._pass(calls)
        found = []
        for call in calls:
            if any(isinstance(reply, Exception) for reply in call.replies):
                call.replies = [(self._call(call.slot, [command]))[0] for command in call.commands]
            version, value, *left = call.replies
            _require_list(version, 1)
            _require_list(value, 1)
            found.append(Held(_value(value[0]), _number(version[0]), _ttl(left[0]) if ttl else None))
        return found

    def missing(self, names: Names, keys: Sequence[str]) -> list[str]:
        """Those of the keys that hold no value."""
        calls = [_Call(names.slot(key), [pack(b"EXISTS", names.value(key))]) for key in keys]
        replies = self._calls(calls)
        return [key for key, (reply,) in zip(keys, replies, strict=True) if reply == 0]

    # Writing -------------------------------------------------------------------------------------------------------

    def deliver(self, names: Names, deliveries: Sequence[Delivery], *, invalidates: bool) -> int:
        """Delivers states under their versions, by targets/deliver.lua; the number of keys for which a later epoch has
        begun. A newer state that is there already is as good. `invalidates`: leases and negative entries go too, so
        that no load that began before is kept."""
        answers: list[int] = []
        together: dict[int, list[Delivery]] = {}
        for d in deliveries:
            together.setdefault(names.slot(d.key), []).append(d)
        for number, those in together.items():
            answers += self._deliver(names, number, those, invalidates=invalidates)
        if any(answer < 0 for answer in answers):
            raise Refused("Redis lost a temporary key: it is evicting")
        return sum(answer == 2 for answer in answers)

    def _deliver(self, names: Names, number: int, deliveries: Sequence[Delivery], *, invalidates: bool) -> list[int]:
        """Delivers states of one slot."""
        small = [d for d in deliveries if d.state.stored is None or len(d.state.stored) < LARGE]
        large = [d for d in deliveries if d.state.stored is not None and len(d.state.stored) >= LARGE]
        answers: list[int] = []
        marker = names.marker(deliveries[0].key)
        extra = (
            [name for d in deliveries for name in (names.lease(d.key), names.negative(d.key))] if invalidates else []
        )
        tail = pack(b"DEL", *extra) if extra else []
        for at in range(0, len(small), _CALL_KEYS):
            part = small[at : at + _CALL_KEYS]
            keys = [marker, *(n for d in part for n in (names.version(d.key), names.value(d.key)))]
            arguments: list[Buffer] = []
            for d in part:
                arguments += (
                    b"%d" % d.version,
                    b"%d" % (d.state.expires_at_ms or 0),
                    b"remove" if d.state.stored is None else b"set",
                    d.state.stored or b"",
                )
            nbytes = sum(len(d.state.stored or b"") for d in part)
            answers += _answers(self._script(number, [], DELIVER, keys, arguments, tail, nbytes), len(part))
            tail = []
        for d in large:
            assert d.state.stored is not None
            own = names.temporary(d.key, secrets.token_hex(6))
            before = pack(b"SET", own, d.state.stored, b"PX", _TEMPORARY_MS)
            keys = [marker, names.version(d.key), names.value(d.key), own]
            arguments = [b"%d" % d.version, b"%d" % (d.state.expires_at_ms or 0)]
            reply = self._script(number, before, DELIVER_LARGE, keys, arguments, tail, len(d.state.stored))
            answers += _answers(reply, 1)
            tail = []
        return answers

    def write(self, names: Names, key: str, state: State, order: Order) -> tuple[int, int]:
        """A write to Redis alone, by write.lua: (1, version) written, (0, version held) the conditions do not hold any
        more, (2, epoch) another epoch has begun, (3, 0) it was taken back."""
        stored = state.stored
        large = stored is not None and len(stored) >= LARGE
        own = names.temporary(key, order.name)
        before = pack(b"SET", own, stored or b"", b"PX", _TEMPORARY_MS) if large else []
        keys = [
            *(names.marker(key), names.version(key), names.value(key), names.lease(key), names.negative(key), own),
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
        reply = self._script(names.slot(key), before, WRITE, keys, arguments, [], len(stored or b""))
        status, number = _answers(reply[:2] if isinstance(reply, list) else reply, 2)
        if status < 0:
            raise Refused("Redis lost a temporary key: it is evicting")
        return status, number

    def end_loads(self, names: Names, key: str) -> None:
        """Takes away the lease and the negative entry: what is loaded now is not to be kept."""
        # Two commands: of two keys, one may be at the slot's next master by now.
        self._call(names.slot(key), [pack(b"DEL", names.lease(key)), pack(b"DEL", names.negative(key))])

    # Leases --------------------------------------------------------------------------------------------------------

    def acquire(self, names: Names, key: str, token: str, seconds: float) -> Lease:
        keys = [names.lease(key), names.negative(key), names.version(key), names.value(key)]
        arguments: list[Buffer] = [token.encode(), b"%d" % (seconds * 1000)]
        status, version, holds = _answers(self._script(names.slot(key), [], ACQUIRE, keys, arguments, [], 0), 3)
        return Lease(status == 1, status == 2, version, holds == 1)

    def release(self, names: Names, key: str, token: str, negative_s: float = 0.0) -> bool:
        """Gives the lease back, leaving a negative entry; False where it was taken away meanwhile."""
        arguments: list[Buffer] = [token.encode(), b"%d" % (negative_s * 1000)]
        keys = [names.lease(key), names.negative(key)]
        return bool(self._script(names.slot(key), [], RELEASE, keys, arguments, [], 0) == 1)

    # The wire ------------------------------------------------------------------------------------------------------

    def _script(
        self,
        number: int,
        before: list[Buffer],
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[Buffer],
        after: list[Buffer],
        nbytes: int,
    ) -> Any:
        """The script's reply; `before` and `after` are commands in the same round trip."""
        tail: list[Buffer] = [b"%d" % len(keys), *keys, *arguments]

        def commands(*head: Buffer) -> list[list[Buffer]]:
            return [command for command in (before, pack(*head, *tail), after) if command]

        try:
            return (self._call(number, commands(b"EVALSHA", script.sha), nbytes))[bool(before)]
        except _NoScript:  # the first call, or Redis was restarted: send it along
            return (self._call(number, commands(b"EVAL", script.body), nbytes))[bool(before)]

    def _call(self, number: int, commands: list[list[Buffer]], nbytes: int = 0) -> list[Any]:
        return (self._calls([_Call(number, commands, nbytes)]))[0]

    def _calls(self, calls: Sequence[_Call]) -> list[list[Any]]:
        """The replies of each call; those of one server go out together. Follows slots that move."""
        left = list(calls)
        for pause in _TURNS_S:
            if pause:
                sleep(pause)
            left = self._pass(left)
            if not left:
                return [call.replies for call in calls]
        raise Refused("the key's slot is being moved")

    def _pass(self, calls: Sequence[_Call]) -> list[_Call]:
        """One round trip to each server; the calls that were not for the server they went to."""
        routed: dict[Node | None, list[_Call]] = {}
        for call in calls:
            routed.setdefault(call.to or self._places.of(call.slot), []).append(call)
        left = []
        for node, mine in routed.items():
            self._exchange(node, mine)
            left += [call for call in mine if self._goes_out_again(call, node)]
        return left

    def _goes_out_again(self, call: _Call, node: Node | None) -> bool:
        """Whether the call is another node's, or its keys are between two of them."""
        error = next((str(reply) for reply in call.replies if isinstance(reply, Exception)), None)
        if error is None or node is None:
            return False
        where = redirection(error, node)
        call.to = where.node if where is not None and where.asking else None
        if where is not None and not where.asking:
            self._places.moved(where)
        return True

    def _exchange(self, node: Node | None, calls: Sequence[_Call]) -> None:
        """Fills in the replies. An error that is not for a cluster's client to follow is raised."""
        breaker = self._breakers.setdefault(node, Breaker())
        if breaker.blocked:
            self._places.doubt(node)
            raise Unreachable("breaker-open")
        with self._slots:
            permit = breaker.permit()  # here, for it may have opened while this call waited
            if permit is None:
                raise Unreachable("breaker-open")
            try:
                # Not for the probe: it is the one that is to try.
                found = self._places.sockets(node).exchange(
                    [part for call in calls for part in call.parts],
                    sum(call.nbytes for call in calls),
                    sum(call.count for call in calls),
                    lambda: permit is Permit.CALL and breaker.blocked,
                )
            except Unreachable:
                breaker.failed(permit)
                self._places.doubt(node)
                raise
            except BaseException:
                breaker.abandoned(permit)
                raise
        for reply in found:
            if isinstance(reply, Exception):
                text = str(reply)
                if text.startswith("NOSCRIPT"):
                    breaker.succeeded(permit)
                    raise _NoScript
                if node is not None and text.startswith(_FOLLOWED):
                    continue
                fault = mapped(rx.ResponseError(text))
                if isinstance(fault, errors.TargetUnavailable):  # loading, or a script that does not end
                    breaker.failed(permit)
                    self._places.doubt(node)
                    raise Unreachable(text.partition(" ")[0])
                breaker.succeeded(permit)
                if isinstance(fault, errors.TargetReadOnly):  # a primary no more
                    self._places.doubt(node)
                raise Refused(str(fault) if type(fault) is not errors.TargetError else text.partition(" ")[0])
        breaker.succeeded(permit)
        at = 0
        for call in calls:
            replies = found[at : at + call.count]
            at += call.count
            # Of a pair the second one is the command's; ASKING itself is answered by OK.
            call.replies = replies if call.to is None else replies[1::2]


_ASKING = pack(b"ASKING")
_FOLLOWED = ("MOVED ", "ASK ", "TRYAGAIN")


class _NoScript(Exception):
    pass


def _require_list(reply: Any, length: int) -> None:
    if not isinstance(reply, list) or len(reply) != length:
        raise Unreachable("not an answer of Redis", sent=True)


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

"""Redis (or Valkey): fenced delivery in pipelines, and reading back.

Delivery packs RESP itself and keeps one pipeline in flight, because Postgres is to be the slower side; connecting,
TLS and authentication are redis-py's.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import secrets
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import redis
from redis import exceptions as rx
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from cachemig import errors, failpoints
from cachemig.alongside import Alongside
from cachemig.config import Settings
from cachemig.entries.entry import Buffer
from cachemig.targets.address import Address, address_of
from cachemig.targets.faults import CLUSTER_HINT, mapped, target_errors
from cachemig.targets.keys import LEASE, MARKER, NEGATIVE, TAKEN_BACK, VERSION, KeyTemplate, companion, temporary
from cachemig.targets.resp import pack, send

Command = Sequence[str | bytes | int]
LARGE = 8 * 1024
"""Bytes from which a value goes in by SET and RENAME: measured as the cheaper way from about here on."""
CALL_KEYS = 32
_PIECE_BYTES = 4 << 20
_TEMPORARY_MS = 2 * 60 * 1000
_DELIVERER = secrets.token_hex(8)
_DELIVERY = itertools.count()
"""Together the temporary key's own token: of this process, and within it of one delivery. A fork takes its own."""
os.register_at_fork(after_in_child=lambda: globals().update(_DELIVERER=secrets.token_hex(8)))
LATER_EPOCH = 2

_HERE = Path(__file__).parent
SCRIPTS = {name: (_HERE / f"{name}.lua").read_bytes() for name in ("deliver", "deliver_large")}
_WRITE_ALONE = (_HERE / "write.lua").read_text()
_SHA = {name: hashlib.sha1(body, usedforsecurity=False).hexdigest().encode() for name, body in SCRIPTS.items()}


@dataclass(slots=True)
class Write:
    """What is to be done with one key. `value` None removes it; `expires_at_ms` is Unix time, None for no expiry."""

    key: str
    version: int
    value: Buffer | None
    expires_at_ms: int | None = None


@dataclass(slots=True)
class Receipt:
    """What became of a write. Not written and without error: Redis holds a newer state, which is as good."""

    write: Write
    written: bool
    error: str | None = None


@dataclass(slots=True)
class Found:
    """What Redis holds under a key. `ttl_ms` None: no expiry. `fault`: why the value could not be read as one."""

    key: str
    value: Buffer | None
    version: int | None
    ttl_ms: int | None
    fault: str | None = None


@dataclass(frozen=True)
class Identity:
    """Which Redis it is. A restart, a failover and a replacement change `run`; FLUSHALL takes `marker` away."""

    run: str | None
    marker: str | None

    @property
    def epoch(self) -> int:
        """The epoch that the marker was planted for; -1 where there is none."""
        number = (self.marker or "").partition(":")[0]
        return int(number) if number.isdigit() else -1


@dataclass(frozen=True)
class Server:
    """One server that takes entries. `name` is '' where there is no other."""

    name: str
    client: redis.Redis
    share: float = 1.0
    """Part of the entries that are its own."""


@dataclass
class _Call:
    writes: list[Write]
    replies: int = 1
    packed: list[Buffer] = field(default_factory=list)


class RedisTarget:
    """One Redis server, or whichever server sentinels call the primary. A dead server raises TargetUnavailable, and is
    never mistaken for an absent key."""

    client: redis.Redis

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        self.settings = settings
        self.template = KeyTemplate(settings.key_template)
        self._options: dict[str, Any] = {
            "protocol": 2,
            "socket_connect_timeout": min(10.0, settings.redis_timeout),
            "socket_timeout": settings.redis_timeout,
            "retry": Retry(NoBackoff(), 0),  # retrying is the step's business: with a limit, and the reason shown
        }
        try:
            self.address = address_of(settings.redis_url)
            if environment.get("REDISCLI_AUTH") and not self.address.has_password:
                self._options["password"] = environment["REDISCLI_AUTH"]
            self._open()
        except (ValueError, TypeError) as exc:
            # The cause quotes the part that it does not understand, which may be a piece of a password.
            raise errors.ConfigError(
                "redis_url: not a valid URL; characters such as / ? # @ in a password are to be percent-encoded",
                hint="redis://HOST:6379/0, with the password in REDISCLI_AUTH",
            ) from exc

    def _open(self) -> None:
        """Makes what connects when it is first used. Raises ValueError or TypeError for a wrong URL."""
        if self.address.kind == "sentinel":
            self.client = _of_sentinels(self.address, self._options)
        else:
            self.client = redis.Redis.from_url(self.settings.redis_url, **self._options)

    def close(self) -> None:
        self.client.close()

    def __enter__(self) -> RedisTarget:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ping(self) -> None:
        """Raises TargetError where a server does not answer."""
        with target_errors():
            self.client.ping()

    def check(self) -> None:
        """Writes, reads and removes one scratch key by the same path as a value.

        Raises TargetError for what would stop every write; a full server is not such an error, a run waits for it.
        """
        with target_errors():
            if int(self.client.info("cluster").get("cluster_enabled", 0)):
                raise errors.TargetError("redis_url is that of one server, and leads to a node of a Redis Cluster",
                                         hint=CLUSTER_HINT)  # fmt: skip
        self.probe("probe")

    def probe(self, tag: str) -> None:
        """What `check` does, on keys with this tag."""
        version, value, other = (f"cachemig:v:{{{tag}}}", f"cachemig:t:{{{tag}}}", f"cachemig:t:{{{tag}}}:t")
        deliver, deliver_large = (SCRIPTS[name] for name in ("deliver", "deliver_large"))
        soon = str(int(time.time() * 1000) + 60_000)
        # No marker is looked at, so that a migration under way does not refuse the probe as of an old epoch.
        commands: list[Command] = [("EVAL", deliver, 3, other, version, value, "0", soon, "set", "")]
        for expiry in (soon, "0"):  # PEXPIREAT and PERSIST: a script that lacks one would stop half way
            commands.append(("SET", other, "", "PX", 60_000))
            commands.append(("EVAL", deliver_large, 4, version, version, value, other, "0", expiry))
        commands += [("STRLEN", value), ("GETRANGE", value, 0, 0), ("PTTL", value)]
        commands += [("DEL", name) for name in (value, version, other)]
        for command in commands:
            try:
                self.ask([command])
            except errors.TargetFull:
                return

    def ask(self, commands: Sequence[Command], *, raises: bool = True) -> list[Any]:
        """The replies of commands on one key each, or on keys of one cluster slot; they go out together. An error reply
        is raised; without `raises` it is an element like any other."""
        replies: list[Any] = []
        pool = self.client.connection_pool
        with target_errors():
            connection: Any = pool.get_connection()
            try:
                send(connection, chain.from_iterable(pack(*map(as_bytes, command)) for command in commands))
                for _ in commands:
                    try:
                        replies.append(connection.read_response())
                    except rx.ResponseError as exc:
                        replies.append(exc)
            except BaseException:
                connection.disconnect()
                raise
            finally:
                pool.release(connection)
            if raises and (error := next((reply for reply in replies if isinstance(reply, Exception)), None)):
                raise error
        return replies

    def servers(self) -> list[Server]:
        """The servers that take entries, to be asked about themselves."""
        return [Server("", self.client)]

    def numbers(self, names: Sequence[str]) -> list[int]:
        """The numbers under these keys (by their full names); what is no number is left out."""
        replies = self.ask([("GET", name) for name in names], raises=False)
        return [int(reply) for reply in replies if isinstance(reply, bytes) and reply.isdigit()]

    def identity(self) -> Identity:
        """Which Redis this is: its run, and the marker that this migration planted there."""
        with target_errors():
            info = self.client.info("server")
            marker = cast("bytes | None", self.client.get(self.marker_key))
            return Identity(info.get("run_id"), marker.decode() if marker is not None else None)

    def plant_marker(self, epoch: int) -> None:
        """Sets the marker that tells this Redis from an empty or another one. It never expires. From here on no write
        of an earlier epoch is accepted."""
        with target_errors():
            self.client.set(self.marker_key, f"{epoch}:{secrets.token_hex(16)}")

    def remove_marker(self) -> None:
        self.remove([self.marker_key])

    @property
    def marker_key(self) -> str:
        return companion(MARKER, self.template.name(""))

    def _marker_of(self, _name: str) -> str:
        """The marker that a script is to look at for this value key."""
        return self.marker_key

    def clock_skew_ms(self) -> int:
        """How far Redis's clock is ahead of this machine's, to within the round trip; of several the one that is
        furthest off."""
        skews = []
        with target_errors():
            for server in self.servers():
                before = time.time()
                seconds, micros = server.client.time()
                skews.append(int((seconds + micros / 1e6 - (before + time.time()) / 2) * 1000))
        return max(skews, key=abs)

    # Delivery ------------------------------------------------------------------------------------------------------

    def deliver(self, writes: Iterable[Write]) -> Generator[Receipt, None, None]:
        """A receipt for every write, in no particular order, each as soon as Redis has acknowledged it.

        Reads `writes` as it sends: at most two pipelines of batch_bytes are in memory, or one larger value. Raises
        TargetError when the server as a whole refuses; what has no receipt then may or may not have been written,
        and delivering it again is harmless.
        """
        pool = self.client.connection_pool
        with target_errors():
            connection: Any = pool.get_connection()
            sending: Alongside | None = None
            try:
                self._load_scripts(connection)
                in_flight: list[_Call] = []
                spoilt: list[Write] = []
                for batch, nbytes in batches(writes, self.settings.batch_bytes, self.settings.batch_keys):
                    calls = [self._packed(call) for call in _calls(batch)]
                    if sending:
                        sending.result()
                    # Redis reads nothing while it works, and a pipeline is larger than what the socket holds.
                    sending = Alongside(partial(_sent, connection, calls))
                    yield from self._receive(connection, in_flight, spoilt)
                    in_flight = calls
                    # What goes out again must not meet the replies of this pipeline; nor is a second huge value read.
                    if spoilt or self.settings.wait_replicas or nbytes > self.settings.batch_bytes:
                        sending.result()
                        yield from self._rest(connection, in_flight, spoilt)
                        in_flight = []
                if sending:
                    sending.result()
                yield from self._rest(connection, in_flight, spoilt)
            except BaseException:
                # Replies may still be on their way: the connection cannot be used again.
                connection.disconnect()
                raise
            finally:
                if sending:
                    sending.wait()
                pool.release(connection)

    def _rest(self, connection: Any, calls: Sequence[_Call], spoilt: list[Write]) -> Iterator[Receipt]:
        """The receipts of all that is on its way, and of what was spoilt by another key of its call, one by one."""
        receipts = chain(self._receive(connection, calls, spoilt), self._one_by_one(connection, spoilt))
        if self.settings.wait_replicas:
            held = list(receipts)
            self._acknowledged_by_replicas(connection)
            receipts = chain(held)
        yield from receipts

    def _one_by_one(self, connection: Any, spoilt: list[Write]) -> Iterator[Receipt]:
        for write in spoilt:
            single = self._packed(_Call([write]))
            send(connection, single.packed)
            yield from self._receive(connection, [single], [])
        spoilt.clear()

    def _load_scripts(self, connection: Any) -> None:
        # Each time: the server may have been restarted or failed over since, and it costs one round trip a delivery.
        for body in SCRIPTS.values():
            connection.send_command("SCRIPT", "LOAD", body)
        for _ in SCRIPTS:
            connection.read_response()

    def _packed(self, call: _Call) -> _Call:
        first = call.writes[0]
        if first.value is not None and len(first.value) >= LARGE:
            call.replies = 2
            call.packed = list(chain(*packed_large(self.template, self._marker_of(first.key), first)))
        else:
            call.packed = packed_small(self.template, self._marker_of(first.key), call.writes)
        return call

    def _receive(self, connection: Any, calls: Sequence[_Call], spoilt: list[Write]) -> Iterator[Receipt]:
        """Receipts by the replies to these calls; the writes of a call that one of its keys spoils are put into
        `spoilt`."""
        for call in calls:
            reply, error = None, None
            for _ in range(call.replies):
                try:
                    reply = connection.read_response()
                except rx.ResponseError as exc:
                    reply, error = None, error or exc
            if error is not None:
                raise_if_of_the_server(error)
            if error is not None and len(call.writes) > 1:
                spoilt += call.writes
            elif error is not None:
                yield Receipt(call.writes[0], False, str(error))
            else:
                for write, answer in zip(call.writes, cast("list[int]", reply), strict=True):
                    if answer < 0:
                        raise errors.TargetUnavailable("Redis lost a temporary key: it is evicting")
                    if answer == LATER_EPOCH:
                        raise errors.TargetEpochPassed
                    yield Receipt(write, answer == 1)
            call.packed = []

    def _acknowledged_by_replicas(self, connection: Any) -> None:
        """Waits until `wait_replicas` replicas have what was written over this connection. No reply may be on its way
        there.

        Raises TargetUnavailable where they are fewer after redis_timeout, or ten seconds.
        """
        wanted = self.settings.wait_replicas
        if not wanted:
            return
        # Shorter than the socket's own limit: the reply is to arrive, and say how many there are.
        limit_ms = int(min(self.settings.redis_timeout * 0.8, 10.0) * 1000)
        send(connection, pack(b"WAIT", b"%d" % wanted, b"%d" % limit_ms))
        count = connection.read_response()
        if count < wanted:
            replicas = "replica has" if wanted == 1 else "replicas have"
            raise errors.TargetUnavailable(
                f"only {count} of {wanted} {replicas} what was written", hint="look after them, or lower wait_replicas"
            )

    def write_alone(
        self,
        key: str,
        value: Buffer | None,
        expires_at_ms: int | None,
        *,
        epoch: int,
        expected: int,
        marker: str | None = None,
    ) -> tuple[int, int, str]:
        """A write to Redis alone, by write.lua: (1, version, '') written; (0, version held, marker) where one of them
        is another than expected; (2, epoch, '') where a later epoch has begun. `value` None removes."""
        name = self.template.name(key)
        own = f"{companion(TAKEN_BACK, name)}:{secrets.token_hex(6)}"
        keys = [self._marker_of(name), companion(VERSION, name), name]
        keys += [companion(LEASE, name), companion(NEGATIVE, name), temporary(name, "none"), own]
        what = "remove" if value is None else "set"
        stored = b"" if value is None else bytes(value)
        arguments: list[str | bytes] = [str(epoch), str(expires_at_ms or 0), what, stored, str(expected), ""]
        arguments += [marker] if marker is not None else []
        (reply,) = self.ask([("EVAL", _WRITE_ALONE, len(keys), *keys, *arguments)])
        status, number, *planted = reply
        return int(status), int(number), planted[0].decode() if planted else ""

    def versions(self, keys: Sequence[str]) -> list[int]:
        """The version that Redis holds of each key; 0 for none."""
        replies = self.ask([("GET", companion(VERSION, self.template.name(key))) for key in keys])
        return [int(reply) if reply is not None and reply.isdigit() else 0 for reply in replies]

    # Reading back --------------------------------------------------------------------------------------------------

    def fetch(self, keys: Sequence[str]) -> list[Found]:
        """What Redis holds under each of the keys, in their order. Value, version and expiry are not read at one
        instant: a key that changes meanwhile may look wrong, and is to be read again."""
        commands: list[Command] = []
        for key in keys:
            name = self.template.name(key)
            commands += (("GET", name), ("GET", companion(VERSION, name)), ("PTTL", name))
        replies = self.ask(commands, raises=False)
        return [_found(key, *replies[3 * i : 3 * i + 3]) for i, key in enumerate(keys)]

    def fetch_large(self, key: str) -> Found:
        """As fetch, for one key whose value is large: read piece by piece into one buffer, not copied."""
        name = self.template.name(key)
        version_key = companion(VERSION, name)
        length, version, pttl, exists = self.ask(
            [("STRLEN", name), ("GET", version_key), ("PTTL", name), ("EXISTS", name)], raises=False
        )
        if isinstance(exists, Exception):
            return _found(key, exists, version, pttl)
        if not isinstance(length, int) or not exists:
            return _found(key, None if isinstance(length, int) else length, version, pttl)
        value = bytearray(length)
        for at in range(0, length, _PIECE_BYTES):
            (piece,) = self.ask([("GETRANGE", name, at, at + _PIECE_BYTES - 1)])
            value[at : at + len(piece)] = piece
        return _found(key, value, version, pttl)

    def sizes(self, keys: Sequence[str]) -> list[int]:
        """Bytes that Redis holds under each of the keys; 0 for none, and for what is no string."""
        replies = self.ask([("STRLEN", self.template.name(key)) for key in keys], raises=False)
        return [reply if isinstance(reply, int) else 0 for reply in replies]

    def remove(self, names: Sequence[str]) -> None:
        """Removes keys by their full names."""
        self.ask([("UNLINK", name) for name in names])

    def scan(self, pattern: str, count: int = 2000) -> Iterator[list[str]]:
        """Names that match the pattern, in batches; a name that is there throughout is seen at least once."""
        return scanned(self.client, pattern, count)


def _of_sentinels(address: Address, options: Mapping[str, Any]) -> redis.Redis:
    """A client of whichever server the sentinels call the primary: at each new connection they are asked anew."""
    given = {**options, **parse_url(address.url(address.nodes[0]))}  # type: ignore[no-untyped-call]
    del given["host"], given["port"]
    if given.pop("connection_class", None) is not None:
        given["ssl"] = True
    shared = {name: value for name, value in given.items() if name.startswith(("socket_", "ssl"))}
    asked = {**shared, **dict(address.sentinel_login), "protocol": 2, "retry": options["retry"]}
    sentinels: Any = Sentinel(address.nodes, sentinel_kwargs=asked, **given)  # type: ignore[no-untyped-call]
    return cast(redis.Redis, sentinels.master_for(address.service))


def scanned(client: redis.Redis, pattern: str, count: int) -> Iterator[list[str]]:
    cursor = 0
    while True:
        with target_errors():
            cursor, found = cast("tuple[int, list[bytes]]", client.scan(cursor=cursor, match=pattern, count=count))
        if found:
            yield [name.decode("utf-8", "surrogateescape") for name in found]
        if cursor == 0:
            return


def _sent(connection: Any, calls: Sequence[_Call]) -> None:
    with sending_pipeline():
        send(connection, chain.from_iterable(call.packed for call in calls))


@contextmanager
def sending_pipeline() -> Iterator[None]:
    """The places where tests stop a worker."""
    failpoints.hit("target-before-send")
    yield
    failpoints.hit("target-after-send")


def raise_if_of_the_server(error: rx.ResponseError) -> None:
    """Raises the TargetError for an error reply that says something of the server, not of the keys of the call."""
    fault = mapped(error)
    if isinstance(
        fault, errors.TargetFull | errors.TargetReadOnly | errors.TargetUnavailable | errors.TargetAuthFailed
    ):
        raise fault from error
    if isinstance(error, rx.NoScriptError):
        raise errors.TargetUnavailable("Redis was restarted: its scripts are gone") from error


def as_bytes(part: str | bytes | int) -> bytes:
    return part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")


def _found(key: str, value: Any, version: Any, pttl: Any) -> Found:
    for reply in (value, version, pttl):
        if isinstance(reply, Exception):
            fault = mapped(reply)
            if isinstance(fault, errors.TargetUnavailable | errors.TargetAuthFailed | errors.TargetForbidden):
                raise fault from reply  # could not tell
            return Found(key, None, None, None, str(reply))
    number = None
    if version is not None:
        try:
            number = int(version)
        except ValueError:
            return Found(key, value, None, None, "the version key holds no number")
    return Found(key, value, number, None if pttl is None or pttl < 0 else int(pttl))


def packed_large(template: KeyTemplate, marker: str, write: Write) -> list[list[Buffer]]:
    """Two commands: SET under a temporary key, and the script that renames it. The value is not copied."""
    assert write.value is not None
    name = template.name(write.key)
    own = temporary(name, f"{_DELIVERER}-{next(_DELIVERY):x}").encode()
    keys = (marker.encode(), companion(VERSION, name).encode(), name.encode(), own)
    arguments = (b"%d" % write.version, b"%d" % (write.expires_at_ms or 0))
    return [
        pack(b"SET", own, write.value, b"PX", b"%d" % _TEMPORARY_MS),
        pack(b"EVALSHA", _SHA["deliver_large"], b"4", *keys, *arguments),
    ]


def packed_small(template: KeyTemplate, marker: str, writes: Sequence[Write]) -> list[Buffer]:
    """One call of the script for all of them. Written out, because for small values this is most of what a delivery
    costs here."""
    keys: list[Buffer] = []
    arguments: list[Buffer] = []
    value: Any
    for write in writes:
        name = template.name(write.key)
        key, version_key = name.encode(), companion(VERSION, name).encode()
        keys.append(b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(version_key), version_key, len(key), key))
        version, expiry = b"%d" % write.version, b"%d" % (write.expires_at_ms or 0)
        what, value = (b"remove", b"") if write.value is None else (b"set", write.value)
        arguments.append(
            b"$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
            % (len(version), version, len(expiry), expiry, len(what), what, len(value), value)
        )
    number = b"%d" % (1 + 2 * len(writes))
    head = b"*%d\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
        4 + 6 * len(writes), _SHA["deliver"], len(number), number, len(marker.encode()), marker.encode(),
    )  # fmt: skip
    return [head, *keys, *arguments]


def batches(writes: Iterable[Write], most_bytes: int, most_keys: int) -> Iterator[tuple[list[Write], int]]:
    batch: list[Write] = []
    nbytes = 0
    for write in writes:
        batch.append(write)
        nbytes += len(write.key) * 3 + (0 if write.value is None else len(write.value))
        if nbytes >= most_bytes or len(batch) >= most_keys:
            yield batch, nbytes
            batch, nbytes = [], 0
    if batch:
        yield batch, nbytes


def _calls(batch: Sequence[Write]) -> Iterator[_Call]:
    """Small values share a call of the script, a large one has its own."""
    small: list[Write] = []
    for write in batch:
        if write.value is not None and len(write.value) >= LARGE:
            yield _Call([write])
        else:
            small.append(write)
    for at in range(0, len(small), CALL_KEYS):
        yield _Call(small[at : at + CALL_KEYS])

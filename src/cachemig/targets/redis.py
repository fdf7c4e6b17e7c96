"""Redis (or Valkey): fenced delivery in pipelines, and reading back.

Delivery packs RESP itself and keeps one pipeline in flight, because Postgres is to be the slower side; connecting,
TLS and authentication are redis-py's.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import redis
from redis import exceptions as rx
from redis.backoff import NoBackoff
from redis.retry import Retry

from cachemig import errors, failpoints
from cachemig.config import Settings
from cachemig.entries.entry import Buffer
from cachemig.targets.faults import mapped, target_errors
from cachemig.targets.keys import LEASE, MARKER, NEGATIVE, TAKEN_BACK, VERSION, KeyTemplate, companion, temporary
from cachemig.targets.resp import pack, send

LARGE = 8 * 1024
"""Bytes from which a value goes in by SET and RENAME: measured as the cheaper way from about here on."""
_CALL_KEYS = 32
_PIECE_BYTES = 4 << 20
_TEMPORARY_MS = 2 * 60 * 1000
_LATER_EPOCH = 2

_HERE = Path(__file__).parent
_SCRIPTS = {name: (_HERE / f"{name}.lua").read_bytes() for name in ("deliver", "deliver_large")}
_WRITE_ALONE = (_HERE / "write.lua").read_text()
_SHA = {name: hashlib.sha1(body, usedforsecurity=False).hexdigest().encode() for name, body in _SCRIPTS.items()}


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


@dataclass
class _Call:
    writes: list[Write]
    replies: int = 1
    packed: list[Buffer] = field(default_factory=list)


class RedisTarget:
    """One Redis server. A dead server raises TargetUnavailable, and is never mistaken for an absent key."""

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        self.settings = settings
        self.template = KeyTemplate(settings.key_template)
        options: dict[str, Any] = {}
        try:
            if environment.get("REDISCLI_AUTH") and urlsplit(settings.redis_url).password is None:
                options["password"] = environment["REDISCLI_AUTH"]
            self.client = redis.Redis.from_url(
                settings.redis_url,
                protocol=2,
                socket_connect_timeout=min(10.0, settings.redis_timeout),
                socket_timeout=settings.redis_timeout,
                retry=Retry(NoBackoff(), 0),  # retrying is the step's business: with a limit, and the reason shown
                **options,
            )
        except (ValueError, TypeError) as exc:
            # The cause quotes the part that it does not understand, which may be a piece of a password.
            raise errors.ConfigError(
                "redis_url: not a valid URL; characters such as / ? # @ in a password are to be percent-encoded"
            ) from exc

    def close(self) -> None:
        self.client.close()

    def __enter__(self) -> RedisTarget:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Writes, reads and removes one scratch key by the same path as a value.

        Raises TargetError for what would stop every write; a full server is not such an error, a run waits for it.
        """
        version, value, other = "cachemig:v:{probe}", "cachemig:t:{probe}", "cachemig:t:{probe}:t"
        deliver, deliver_large = (_SCRIPTS[name].decode() for name in ("deliver", "deliver_large"))
        soon = str(int(time.time() * 1000) + 60_000)
        with target_errors():
            try:
                # No marker is looked at, so that a migration under way does not refuse the probe as of an old epoch.
                self.client.eval(deliver, 3, other, version, value, "0", soon, "set", "")
                for expiry in (soon, "0"):  # PEXPIREAT and PERSIST: a script that lacks one would stop half way
                    self.client.set(other, "", px=60_000)
                    self.client.eval(deliver_large, 4, version, version, value, other, "0", expiry)
                self.client.strlen(value)
                self.client.getrange(value, 0, 0)
                self.client.pttl(value)
                self.client.delete(value, version, other)
            except rx.ResponseError as exc:
                if not isinstance(mapped(exc), errors.TargetFull):
                    raise

    def numbers(self, names: Sequence[str]) -> list[int]:
        """The numbers under these keys (by their full names); what is no number is left out."""
        with target_errors():
            pipe = self.client.pipeline(transaction=False)
            for name in names:
                pipe.get(name)
            replies = pipe.execute(raise_on_error=False)
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

    @property
    def marker_key(self) -> str:
        return companion(MARKER, self.template.name(""))

    def clock_skew_ms(self) -> int:
        """How far Redis's clock is ahead of this machine's, to within the round trip."""
        with target_errors():
            before = time.time()
            seconds, micros = self.client.time()
            return int((seconds + micros / 1e6 - (before + time.time()) / 2) * 1000)

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
            try:
                self._load_scripts(connection)
                in_flight: list[_Call] = []
                for batch, nbytes in _batches(writes, self.settings.batch_bytes, self.settings.batch_keys):
                    calls = [self._packed(call) for call in _calls(batch)]
                    failpoints.hit("target-before-send")
                    send(connection, chain.from_iterable(call.packed for call in calls))
                    failpoints.hit("target-after-send")
                    yield from self._receive(connection, in_flight)
                    in_flight = calls
                    if nbytes > self.settings.batch_bytes:  # do not read a second huge value beside this one
                        yield from self._receive(connection, in_flight)
                        in_flight = []
                yield from self._receive(connection, in_flight)
            except BaseException:
                # Replies may still be on their way: the connection cannot be used again.
                connection.disconnect()
                raise
            finally:
                pool.release(connection)

    def _load_scripts(self, connection: Any) -> None:
        # Each time: the server may have been restarted or failed over since, and it costs one round trip a delivery.
        for body in _SCRIPTS.values():
            connection.send_command("SCRIPT", "LOAD", body)
        for _ in _SCRIPTS:
            connection.read_response()

    def _packed(self, call: _Call) -> _Call:
        names = [(companion(VERSION, name), name) for name in (self.template.name(w.key) for w in call.writes)]
        marker = self.marker_key.encode()
        first = call.writes[0]
        if first.value is not None and len(first.value) >= LARGE:
            version_key, name = names[0]
            own_key = temporary(name, secrets.token_hex(6)).encode()
            call.replies = 2
            call.packed = [
                *pack(b"SET", own_key, first.value, b"PX", b"%d" % _TEMPORARY_MS),
                *pack(
                    b"EVALSHA",
                    _SHA["deliver_large"],
                    b"4",
                    marker,
                    version_key.encode(),
                    name.encode(),
                    own_key,
                    b"%d" % first.version,
                    b"%d" % (first.expires_at_ms or 0),
                ),
            ]
            return call
        arguments: list[Buffer] = []
        for w in call.writes:
            arguments += (
                b"%d" % w.version,
                b"%d" % (w.expires_at_ms or 0),
                b"remove" if w.value is None else b"set",
                b"" if w.value is None else w.value,
            )
        keys = [marker, *(part.encode() for pair in names for part in pair)]
        call.packed = pack(b"EVALSHA", _SHA["deliver"], b"%d" % len(keys), *keys, *arguments)
        return call

    def _receive(self, connection: Any, calls: Sequence[_Call]) -> Iterator[Receipt]:
        again: list[Write] = []
        for call in calls:
            reply, error = None, None
            for _ in range(call.replies):
                try:
                    reply = connection.read_response()
                except rx.ResponseError as exc:
                    reply, error = None, error or exc
            if error is not None:
                fault = mapped(error)
                if isinstance(
                    fault,
                    errors.TargetFull | errors.TargetReadOnly | errors.TargetUnavailable | errors.TargetAuthFailed,
                ):
                    raise fault from error
                if isinstance(error, rx.NoScriptError):
                    raise errors.TargetUnavailable("Redis was restarted: its scripts are gone") from error
            if error is not None and len(call.writes) > 1:
                again += call.writes  # one key of the call spoils it: find out which
            elif error is not None:
                yield Receipt(call.writes[0], False, str(error))
            else:
                for write, answer in zip(call.writes, cast("list[int]", reply), strict=True):
                    if answer < 0:
                        raise errors.TargetUnavailable("Redis lost a temporary key: it is evicting")
                    if answer == _LATER_EPOCH:
                        raise errors.TargetEpochPassed
                    yield Receipt(write, answer == 1)
            call.packed = []
        for write in again:
            single = self._packed(_Call([write]))
            send(connection, single.packed)
            yield from self._receive(connection, [single])

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
        keys = [self.marker_key, companion(VERSION, name), name, companion(LEASE, name), companion(NEGATIVE, name)]
        keys += [temporary(name, "none"), own]
        what = "remove" if value is None else "set"
        stored = b"" if value is None else bytes(value)
        arguments: list[str | bytes] = [str(epoch), str(expires_at_ms or 0), what, stored, str(expected), ""]
        arguments += [marker] if marker is not None else []
        with target_errors():
            status, number, *planted = cast("list[Any]", self.client.eval(_WRITE_ALONE, len(keys), *keys, *arguments))
        return int(status), int(number), planted[0].decode() if planted else ""

    def versions(self, keys: Sequence[str]) -> list[int]:
        """The version that Redis holds of each key; 0 for none."""
        with target_errors():
            pipe = self.client.pipeline(transaction=False)
            for key in keys:
                pipe.get(companion(VERSION, self.template.name(key)))
            return [int(reply) if reply is not None and reply.isdigit() else 0 for reply in pipe.execute()]

    # Reading back --------------------------------------------------------------------------------------------------

    def fetch(self, keys: Sequence[str]) -> list[Found]:
        """What Redis holds under each of the keys, in their order. Value, version and expiry are not read at one
        instant: a key that changes meanwhile may look wrong, and is to be read again."""
        with target_errors():
            pipe = self.client.pipeline(transaction=False)
            for key in keys:
                name = self.template.name(key)
                pipe.get(name)
                pipe.get(companion(VERSION, name))
                pipe.pttl(name)
            replies = pipe.execute(raise_on_error=False)
            for reply in replies:
                if isinstance(reply, Exception) and not isinstance(reply, rx.ResponseError):
                    raise reply
        return [_found(key, *replies[3 * i : 3 * i + 3]) for i, key in enumerate(keys)]

    def fetch_large(self, key: str) -> Found:
        """As fetch, for one key whose value is large: read piece by piece into one buffer, not copied."""
        name = self.template.name(key)
        with target_errors():
            pipe = self.client.pipeline(transaction=False)
            pipe.strlen(name)
            pipe.get(companion(VERSION, name))
            pipe.pttl(name)
            length, version, pttl = pipe.execute(raise_on_error=False)
            if not isinstance(length, int) or not self.client.exists(name):
                return _found(key, None if isinstance(length, int) else length, version, pttl)
            value = bytearray(length)
            for at in range(0, length, _PIECE_BYTES):
                piece = cast(bytes, self.client.getrange(name, at, at + _PIECE_BYTES - 1))
                value[at : at + len(piece)] = piece
        return _found(key, value, version, pttl)

    def remove(self, names: Sequence[str]) -> None:
        """Removes keys by their full names."""
        with target_errors():
            pipe = self.client.pipeline(transaction=False)
            for name in names:
                pipe.unlink(name)
            pipe.execute()

    def scan(self, pattern: str, count: int = 2000) -> Iterator[list[str]]:
        """Names that match the pattern, in batches; a name that is there throughout is seen at least once."""
        cursor = 0
        while True:
            with target_errors():
                cursor, found = cast(
                    "tuple[int, list[bytes]]", self.client.scan(cursor=cursor, match=pattern, count=count)
                )
            if found:
                yield [name.decode("utf-8", "surrogateescape") for name in found]
            if cursor == 0:
                return


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


def _batches(writes: Iterable[Write], most_bytes: int, most_keys: int) -> Iterator[tuple[list[Write], int]]:
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
    for at in range(0, len(small), _CALL_KEYS):
        yield _Call(small[at : at + _CALL_KEYS])

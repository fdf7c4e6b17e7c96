"""The fence in Redis: a state is never replaced by an older one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from redis import Redis

from cachemig.config import load
from cachemig.entries.entry import EPOCH, Buffer
from cachemig.errors import (
    TargetAuthFailed,
    TargetForbidden,
    TargetFull,
    TargetReadOnly,
    TargetUnavailable,
)
from cachemig.targets.keys import VERSION, companion
from cachemig.targets.redis import LARGE, SCRIPTS, RedisTarget, Write, _calls
from tests.conftest import OwnRedis

SMALL_OR_LARGE = pytest.mark.parametrize("length", [10, LARGE + 1], ids=["small", "large"])


@pytest.fixture
def target(redis_url: str, prefix: str) -> Iterator[RedisTarget]:
    with RedisTarget(load({"redis_url": redis_url, "key_template": prefix + "{key}"}, {}), {}) as target:
        yield target


def text(mark: str, length: int) -> bytes:
    return ("{" + mark * length + "}").encode()


def put(target: RedisTarget, *writes: Write) -> list[bool]:
    receipts = list(target.deliver(writes))
    assert all(r.error is None for r in receipts)
    return [r.written for r in sorted(receipts, key=lambda r: writes.index(r.write))]


@SMALL_OR_LARGE
def test_an_older_state_changes_nothing(target: RedisTarget, length: int) -> None:
    assert put(target, Write("k", 9, text("a", length))) == [True]
    # 10 > 9 as numbers, not as strings
    assert put(target, Write("k", 10, text("b", length))) == [True]
    assert put(target, Write("k", 9, text("a", length))) == [False]
    (found,) = target.fetch(["k"])
    assert (found.value, found.version) == (text("b", length), 10)


@SMALL_OR_LARGE
def test_an_equal_version_heals_a_value_that_was_lost(
    target: RedisTarget, redis: Redis, prefix: str, length: int
) -> None:
    put(target, Write("k", 3, text("a", length)))
    redis.delete(f"{prefix}k")
    assert put(target, Write("k", 3, text("a", length))) == [True]
    assert target.fetch(["k"])[0].value == text("a", length)


@SMALL_OR_LARGE
def test_a_tombstone_keeps_an_older_value_out(target: RedisTarget, length: int) -> None:
    put(target, Write("k", 1, text("a", length)))
    assert put(target, Write("k", 2, None)) == [True]
    assert put(target, Write("k", 1, text("a", length)), Write("k", 0, text("a", length))) == [False, False]
    (found,) = target.fetch(["k"])
    assert (found.value, found.version) == (None, 2)


@SMALL_OR_LARGE
def test_version_0_needs_no_version_key_and_is_refused_where_one_is(
    target: RedisTarget, redis: Redis, prefix: str, length: int
) -> None:
    assert put(target, Write("k", 0, text("a", length))) == [True]
    assert redis.exists(companion(VERSION, f"{prefix}k")) == 0
    put(target, Write("k", 1, text("b", length)))
    assert put(target, Write("k", 0, text("a", length))) == [False]
    assert target.fetch(["k"])[0].value == text("b", length)


@SMALL_OR_LARGE
def test_versions_of_late_epochs_are_compared_exactly(target: RedisTarget, length: int) -> None:
    last = 8191 * EPOCH + EPOCH - 1
    assert last < 2**53
    put(target, Write("k", last, text("b", length)))
    assert put(target, Write("k", last - 1, text("a", length))) == [False]
    assert target.fetch(["k"])[0].version == last


@SMALL_OR_LARGE
def test_expiry_is_absolute_and_an_entry_without_one_loses_an_older_one(target: RedisTarget, length: int) -> None:
    at = int(time.time() * 1000) + 60_000
    put(target, Write("k", 1, text("a", length), at))
    ttl_ms = target.fetch(["k"])[0].ttl_ms
    assert ttl_ms is not None
    assert 50_000 < ttl_ms <= 60_500
    put(target, Write("k", 1, text("a", length), None))
    assert target.fetch(["k"])[0].ttl_ms is None


def test_a_large_value_leaves_no_temporary_key(target: RedisTarget, redis: Redis, prefix: str) -> None:
    put(target, Write("k", 2, text("a", LARGE)), Write("k", 1, text("b", LARGE)))
    assert list(redis.scan_iter(match=f"cachemig:t:*{prefix}*")) == []


def test_two_senders_of_one_large_value_do_not_mix(target: RedisTarget) -> None:
    """The older one SETs its temporary key between the newer one's SET and script: found by the model."""
    older, newer = Write("k", 1, text("a", LARGE)), Write("k", 2, text("b", LARGE))
    packed = [target._packed(call) for write in (newer, older) for call in _calls([write])]
    # The wire order of the two commands of each: newer SET, older SET, newer script, older script.
    (new_set, new_script), (old_set, old_script) = (_commands(call.packed) for call in packed)
    connection: Any = target.client.connection_pool.get_connection()
    for body in SCRIPTS.values():
        connection.send_command("SCRIPT", "LOAD", body)
        connection.read_response()
    replies = []
    for command in (new_set, old_set, new_script, old_script):
        connection.send_packed_command(command)
        replies.append(connection.read_response())
    target.client.connection_pool.release(connection)
    assert replies[2:] == [[1], [0]]
    (found,) = target.fetch(["k"])
    assert (found.value, found.version) == (text("b", LARGE), 2)


def _commands(packed: Sequence[Buffer]) -> tuple[list[bytes], list[bytes]]:
    """The SET and the script call that one large write is packed as."""
    joined = b"".join(bytes(part) for part in packed)
    at = joined.rindex(b"*", 0, joined.rindex(b"EVALSHA"))
    return [joined[:at]], [joined[at:]]


def test_many_keys_of_all_sizes_in_one_delivery(target: RedisTarget) -> None:
    writes = [Write(f"k{n}", n % 3, text("x", n * n % 20_000)) for n in range(1500)]
    assert all(put(target, *writes))
    found = target.fetch([w.key for w in writes])
    assert [f.value for f in found] == [w.value for w in writes]


@pytest.mark.parametrize(
    "key", ["a b", "'quoted\"", "{braced}", "}{", "a{b}c{d}", "ключ🔑", "x" * 10_240, "\r\n", "*?[x]"]
)
@SMALL_OR_LARGE
def test_any_key_is_possible(target: RedisTarget, redis: Redis, prefix: str, key: str, length: int) -> None:
    put(target, Write(key, 1, text("a", length)))
    assert redis.get(f"{prefix}{key}") == text("a", length)
    assert put(target, Write(key, 0, text("b", length))) == [False]
    redis.delete(companion(VERSION, f"{prefix}{key}"))


def test_a_key_of_another_type_is_replaced(target: RedisTarget, redis: Redis, prefix: str) -> None:
    redis.rpush(f"{prefix}k", "x")
    assert target.fetch(["k"])[0].fault is not None
    put(target, Write("k", 0, b"{}"))
    assert target.fetch(["k"])[0].value == b"{}"


def test_one_key_that_redis_refuses_does_not_spoil_its_neighbours(
    target: RedisTarget, redis: Redis, prefix: str
) -> None:
    redis.rpush(companion(VERSION, f"{prefix}k3"), "not a number")
    receipts = list(target.deliver([Write(f"k{n}", 1, b"{}") for n in range(6)]))
    refused = [r for r in receipts if r.error is not None]
    assert [r.write.key for r in refused] == ["k3"]
    assert "WRONGTYPE" in str(refused[0].error)
    assert sum(r.written for r in receipts) == 5


def test_a_full_server_refuses_value_and_version_together(own_redis: OwnRedis) -> None:
    server = own_redis({"maxmemory": "3mb", "maxmemory-policy": "noeviction"})
    with RedisTarget(load({"redis_url": server.url}, {}), {}) as target:
        with pytest.raises(TargetFull):
            list(target.deliver(Write(f"k{n}", 1, b"x" * 1000) for n in range(20_000)))
        values = set(target.client.scan_iter(match="analysis:*", count=1000))
        versions = set(target.client.scan_iter(match="cachemig:v:*", count=1000))
        assert len(values) == len(versions) > 0
        # A tombstone gets through all the same: nothing stale is left because there is no room.
        name = next(iter(values)).decode()
        assert put(target, Write(name.removeprefix("analysis:"), 2, None)) == [True]
        assert target.client.get(name) is None
        target.check()  # not an error that stops a run


def test_what_a_server_refuses_as_a_whole(own_redis: OwnRedis) -> None:
    server = own_redis({"requirepass": "secret-word"})
    url = "unix://" + server.url.partition("@")[2]  # without the password
    assert "secret" not in url
    with Redis.from_url(server.url, password="secret-word") as admin:
        admin.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@read", "+ping")
        with RedisTarget(load({}, {"CACHEMIG_REDIS_URL": url}), {}) as target, pytest.raises(TargetAuthFailed):
            target.check()
        with RedisTarget(load({}, {"CACHEMIG_REDIS_URL": url}), {"REDISCLI_AUTH": "secret-word"}) as target:
            target.check()
            with pytest.raises(TargetForbidden):
                as_reader = url.replace("unix://", "unix://reader:pw@")
                with RedisTarget(load({}, {"CACHEMIG_REDIS_URL": as_reader}), {}) as reader:
                    reader.check()
            admin.execute_command("ACL", "SETUSER", "writer", "on", ">pw", "~*", "+@all")
            as_writer = url.replace("unix://", "unix://writer@")
            with RedisTarget(load({"redis_url": as_writer}, {}), {"REDISCLI_AUTH": "pw"}) as writer:
                writer.check()
            admin.execute_command("REPLICAOF", "127.0.0.1", "1")
            with pytest.raises(TargetReadOnly):
                target.check()
            with pytest.raises(TargetReadOnly):
                list(target.deliver([Write("k", 0, b"{}")]))


def test_a_dead_server_is_unavailable_and_never_a_miss(own_redis: OwnRedis) -> None:
    server = own_redis()
    with RedisTarget(load({"redis_url": server.url}, {}), {}) as target:
        put(target, Write("k", 0, b"{}"))
        server.kill()
        for call in (target.check, lambda: target.fetch(["k"]), lambda: list(target.deliver([Write("k", 0, b"{}")]))):
            with pytest.raises(TargetUnavailable):
                call()
        server.start()  # without its data, and without its scripts
        assert put(target, Write("k", 0, b"{}")) == [True]


def test_a_key_that_spoils_its_call_while_the_next_pipeline_is_on_its_way(
    redis_url: str, redis: Redis, prefix: str
) -> None:
    """What goes out again one by one must not take the replies to others for its own."""
    settings = load({"redis_url": redis_url, "key_template": prefix + "{key}", "batch_keys": "4"}, {})
    redis.rpush(f"cachemig:v:{{{prefix}k1}}", "x")
    writes = [Write(f"k{n}", 1, text("x", LARGE + 1 if n % 4 == 0 else 10)) for n in range(16)]
    lengths = {write.key: len(write.value or b"") for write in writes}
    with RedisTarget(settings, {}) as target:
        receipts = {r.write.key: r for r in target.deliver(iter(writes))}
        held = {found.key: len(found.value or b"") for found in target.fetch(list(lengths))}
    assert [key for key, receipt in receipts.items() if not receipt.written] == ["k1"]
    assert "WRONGTYPE" in str(receipts["k1"].error)
    assert held == lengths | {"k1": 0}

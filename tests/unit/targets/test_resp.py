"""Packing of pipelines: what a server would read, in bounded batches, large values not copied."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.config import Settings
from cachemig.entries.entry import Buffer
from cachemig.targets import redis as module
from cachemig.targets.keys import TEMPORARY, VERSION, companion, owner_of_temporary, slot
from cachemig.targets.redis import LARGE, RedisTarget, Write, _Call, _calls, batches
from cachemig.targets.resp import pack, send

SLICE = 64 * 1024


def commands(data: bytes) -> list[list[bytes]]:
    """The commands in a RESP stream, which must end with the last of them."""
    at = 0

    def line(kind: bytes) -> int:
        nonlocal at
        end = data.index(b"\r\n", at)
        assert data[at : at + 1] == kind
        number = int(data[at + 1 : end])
        at = end + 2
        return number

    found = []
    while at < len(data):
        command = []
        for _ in range(line(b"*")):
            length = line(b"$")
            command.append(data[at : at + length])
            at += length
            assert data[at : at + 2] == b"\r\n"
            at += 2
        found.append(command)
    return found


class Wire:
    """Records what is sent, part by part."""

    def __init__(self) -> None:
        self.parts: list[Buffer] = []

    def send_packed_command(self, parts: Any) -> None:
        self.parts += parts

    @property
    def data(self) -> bytes:
        return b"".join(self.parts)


@pytest.fixture
def target() -> Iterator[RedisTarget]:
    with RedisTarget(Settings(), {}) as target:  # connects only when first used
        yield target


def sent(target: RedisTarget, writes: list[Write]) -> Wire:
    wire = Wire()
    send(wire, [part for call in _calls(writes) for part in target._packed(call).packed])
    return wire


# Arguments of all sizes around the one from which they are not copied.
sizes = st.integers(0, 40) | st.integers(LARGE - 2, LARGE + 2) | st.just(SLICE) | st.just((1 << 20) + 1)
arguments = st.lists(
    sizes.map(os.urandom) | st.sampled_from([b"", b"\r\n", b"$-1\r\n", b"*3\r\n"]), min_size=1, max_size=8
)


@given(arguments=arguments, as_view=st.booleans())
def test_a_command_is_packed_as_redis_reads_it(arguments: list[bytes], as_view: bool) -> None:
    given_: list[Buffer] = [memoryview(a) for a in arguments] if as_view else [*arguments]
    parts = pack(*given_)
    assert commands(b"".join(parts)) == [arguments]
    large = [argument for argument in given_ if len(argument) >= LARGE]
    assert [part for part in map(id, parts) if part in set(map(id, large))] == list(map(id, large)), "copied"


@given(sequence=st.lists(arguments, max_size=4))
def test_many_commands_are_sent_in_their_order(sequence: list[list[bytes]]) -> None:
    wire = Wire()
    send(wire, [part for command in sequence for part in pack(*command)])
    assert commands(wire.data) == sequence


def test_large_arguments_are_sent_from_their_own_memory_in_slices() -> None:
    large = os.urandom(5 << 20)
    wire = Wire()
    send(wire, pack(b"SET", b"before", b"x", b"PX", b"1", memoryview(large)))
    own = [part for part in wire.parts if isinstance(part, memoryview)]
    assert all(part.obj is large for part in own)
    assert b"".join(own) == large
    assert max(len(part) for part in wire.parts) <= 1 << 20, "one sendall is one timeout of the socket"
    assert sum(len(part) for part in wire.parts if not isinstance(part, memoryview)) < 100


def test_nothing_to_send() -> None:
    wire = Wire()
    send(wire, [])
    assert wire.data == b""


writes_of_sizes = st.lists(st.none() | st.integers(0, 300), max_size=60).map(
    lambda all_: [Write(f"k{n}", 0, None if size is None else b"x" * size) for n, size in enumerate(all_)]
)


@given(writes=writes_of_sizes, most_bytes=st.integers(1, 1000), most_keys=st.integers(1, 20))
def test_batches_are_bounded_and_lose_nothing(writes: list[Write], most_bytes: int, most_keys: int) -> None:
    found = list(batches(iter(writes), most_bytes, most_keys))
    assert [id(write) for batch, _ in found for write in batch] == [id(write) for write in writes]
    for batch, nbytes in found:
        weights = [len(w.key) * 3 + len(w.value or b"") for w in batch]
        assert nbytes == sum(weights)
        assert 1 <= len(batch) <= most_keys
        assert sum(weights[:-1]) < most_bytes, "it was full before its last write"
    for batch, nbytes in found[:-1]:
        assert nbytes >= most_bytes or len(batch) == most_keys, "sent before it was full"


def test_a_batch_leaves_before_the_next_write_is_read() -> None:
    read = 0

    def writes() -> Iterator[Write]:
        nonlocal read
        for n in range(10):
            read += 1
            yield Write(f"{n}", 0, b"x" * 100)

    waiting = batches(writes(), 250, 512)
    next(waiting)
    assert read == 3


@given(
    values=st.lists(
        st.sampled_from([None, b"", b"s", b"x" * (LARGE - 1), b"x" * LARGE, b"x" * (3 * LARGE)]), max_size=90
    )
)
def test_small_values_share_calls_and_large_ones_do_not(values: list[bytes | None]) -> None:
    writes = [Write(f"k{n}", 0, value) for n, value in enumerate(values)]
    calls = list(_calls(writes))
    assert sorted(w.key for call in calls for w in call.writes) == sorted(w.key for w in writes)
    for call in calls:
        large = [w for w in call.writes if w.value is not None and len(w.value) >= LARGE]
        assert 1 <= len(call.writes) <= 32
        assert not large or len(call.writes) == 1
    small = [call for call in calls if len(call.writes[0].value or b"") < LARGE]
    assert all(len(call.writes) == 32 for call in small[:-1])


def test_small_writes_become_one_call_of_the_script(target: RedisTarget) -> None:
    writes = [
        Write("a", 0, b"{}", 1_700_000_000_000),
        Write("b", 2**40 + 3, None),
        Write("c{x}", 7, memoryview(b'{"a":1}'), None),
    ]
    (command,) = commands(sent(target, writes).data)
    names = ["analysis:a", "analysis:b", "analysis:c{x}"]
    assert command == [
        b"EVALSHA",
        module._SHA["deliver"],
        b"7",
        target.marker_key.encode(),
        *(part.encode() for name in names for part in (companion(VERSION, name), name)),
        *(b"0", b"1700000000000", b"set", b"{}"),
        *(b"%d" % (2**40 + 3), b"0", b"remove", b""),
        *(b"7", b"0", b"set", b'{"a":1}'),
    ]


def test_a_large_write_goes_in_by_a_temporary_key(target: RedisTarget) -> None:
    value = memoryview(os.urandom(LARGE))
    wire = sent(target, [Write("a", 5, value, 1_700_000_000_000)])
    set_, rename = commands(wire.data)
    temporary = set_[1]
    assert temporary.startswith(companion(TEMPORARY, "analysis:a").encode() + b":")
    assert owner_of_temporary(temporary.decode()) == "analysis:a"
    assert slot(temporary) == slot(b"analysis:a")
    assert set_ == [b"SET", temporary, bytes(value), b"PX", b"120000"]
    assert commands(sent(target, [Write("a", 5, value)]).data)[0][1] != temporary, "each delivery has its own"
    assert rename == [
        b"EVALSHA",
        module._SHA["deliver_large"],
        b"4",
        target.marker_key.encode(),
        companion(VERSION, "analysis:a").encode(),
        b"analysis:a",
        temporary,
        b"5",
        b"1700000000000",
    ]
    call = target._packed(_Call([Write("a", 5, value)]))
    assert call.replies == 2
    assert any(part is value for part in call.packed)


@given(key=st.text(max_size=10), size=sizes, version=st.integers(0, 2**53 - 1))
def test_every_key_is_declared_and_the_value_arrives_whole(key: str, size: int, version: int) -> None:
    value = os.urandom(size)
    with RedisTarget(Settings(), {}) as target:
        sent_ = commands(sent(target, [Write(key, version, value)]).data)
    script = sent_[-1]
    declared = script[3 : 3 + int(script[2])]
    name = f"analysis:{key}"
    assert declared[1:3] == [companion(VERSION, name).encode(), name.encode()]
    assert b"%d" % version in script[3 + len(declared) :]
    assert value in (script if size < LARGE else sent_[0])
    assert len(sent_) == (1 if size < LARGE else 2)


def test_the_scripts_are_named_by_their_sha1() -> None:
    assert set(module.SCRIPTS) == {"deliver", "deliver_large"}
    assert all(len(sha) == 40 for sha in module._SHA.values())

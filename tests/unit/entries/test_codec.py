"""Codecs: what went in comes out, and damage is noticed."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cachemig.entries.codec import ENCODERS, Undecodable, decode, encode
from cachemig.entries.entry import Buffer

MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
TEXTS = {
    "shortest": b"{}",
    "repetitive": json.dumps({"a": [1, 2, 3] * 40, "b": "x" * 50}).encode(),
    "numbers": json.dumps([random.Random(seed).random() for seed in range(30)]).encode(),
}

json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
).map(lambda value: json.dumps(value, ensure_ascii=False).encode())

codecs = pytest.mark.parametrize("codec", ["json", "gzip", "zstd"])
frames = pytest.mark.parametrize("codec", ["gzip", "zstd"])


def outcome(stored: Buffer) -> bytes | None:
    """The text, or None where it cannot be decoded; any other exception is a fault of the codec."""
    try:
        return bytes(decode(stored))
    except Undecodable:
        return None


def is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def damaged(frame: bytes) -> Iterator[tuple[int, bytes]]:
    """Every change of one byte of a short frame; of a longer one every flip of a bit and three more values."""
    for at, byte in enumerate(frame):
        others = range(256) if len(frame) < 80 else [byte ^ 1 << bit for bit in range(8)] + [0, 255, byte ^ 0xA5]
        for other in others:
            if other != byte:
                yield at, frame[:at] + bytes([other]) + frame[at + 1 :]


def test_the_codecs_are_those_of_the_settings() -> None:
    assert list(ENCODERS) == ["json", "gzip", "zstd"]


@codecs
@given(text=json_texts)
def test_round_trip(codec: str, text: bytes) -> None:
    stored = encode(codec, text)
    assert bytes(decode(stored)) == text
    assert bytes(encode(codec, text)) == bytes(stored), "equal texts must give equal bytes"


@codecs
def test_views_of_a_larger_buffer_need_no_copy(codec: str) -> None:
    text = TEXTS["numbers"]
    view = memoryview(b"before" + text + b"after")[6 : 6 + len(text)]
    stored = encode(codec, view)
    assert bytes(stored) == bytes(encode(codec, text))
    assert bytes(decode(memoryview(bytes(stored)))) == text
    assert bytes(decode(bytearray(stored))) == text


def test_json_is_verbatim_and_not_copied() -> None:
    view = memoryview(TEXTS["numbers"])
    assert encode("json", view) is view
    assert decode(view) is view


@codecs
def test_a_value_of_megabytes(codec: str) -> None:
    text = b'"' + random.Random(1).randbytes(1 << 21).hex().encode() + b'"'
    assert bytes(decode(encode(codec, text))) == text


@frames
def test_a_frame_is_known_by_its_first_bytes_and_smaller(codec: str) -> None:
    stored = bytes(encode(codec, TEXTS["repetitive"]))
    assert stored.startswith(MAGIC[codec])
    assert len(stored) < len(TEXTS["repetitive"]) / 2


def test_gzip_holds_no_time() -> None:
    assert bytes(encode("gzip", b"{}"))[4:8] == bytes(4), "equal texts must give equal bytes tomorrow too (RFC 1952)"


def test_other_readers_can_use_the_frames() -> None:
    text = TEXTS["numbers"]
    assert gzip.decompress(encode("gzip", text)) == text
    assert zstandard.ZstdDecompressor().decompress(encode("zstd", text)) == text  # asks for the content size


@given(text=json_texts)
def test_json_is_never_taken_for_a_frame(text: bytes) -> None:
    assert not any(text.startswith(magic) for magic in MAGIC.values())
    assert decode(text) is text


@pytest.mark.parametrize("name", TEXTS)
@frames
def test_a_damaged_byte_never_gives_another_text(codec: str, name: str) -> None:
    text = TEXTS[name]
    frame = bytes(encode(codec, text))
    magic = len(MAGIC[codec])
    found = {at for at, bad in damaged(frame) if at >= magic and outcome(bad) not in (None, text)}
    assert not found, f"{len(found)} of {len(frame)} bytes can be changed to give another text without a word"


@frames
@pytest.mark.parametrize("name", TEXTS)
def test_a_frame_whose_first_bytes_are_damaged_is_never_json(codec: str, name: str) -> None:
    """It is taken for verbatim text then; no reader can take it for a value."""
    text = TEXTS[name]
    for at, bad in damaged(bytes(encode(codec, text))):
        if at < len(MAGIC[codec]) and (found := outcome(bad)) is not None:
            assert found == text or not is_json(found)


@frames
@pytest.mark.parametrize("name", TEXTS)
def test_a_cut_frame_is_undecodable(codec: str, name: str) -> None:
    frame = bytes(encode(codec, TEXTS[name]))
    for length in range(len(MAGIC[codec]), len(frame)):
        assert outcome(frame[:length]) is None
    for length in range(len(MAGIC[codec])):
        assert not is_json(bytes(decode(frame[:length])))


@frames
@given(rubbish=st.binary(max_size=60))
def test_rubbish_behind_the_magic_number_is_undecodable(codec: str, rubbish: bytes) -> None:
    # A frame by chance would have to hold a matching CRC; an empty zstd frame can come about, and gives no JSON.
    found = outcome(MAGIC[codec] + rubbish)
    assert found is None or not is_json(found)


def test_frames_after_one_another() -> None:
    one, two = bytes(encode("zstd", b"{}")), bytes(encode("zstd", b"[1]"))
    assert outcome(one + two) is None
    assert outcome(one + b"\0") is None
    # gzip members add up by its own definition (RFC 1952, 2.2); the sum of two JSON texts is no JSON object.
    one, two = bytes(encode("gzip", b"{}")), bytes(encode("gzip", b"[1]"))
    assert outcome(one + two) == b"{}[1]"
    assert outcome(one + b"x") is None
    assert outcome(one + two[:-1]) is None


def test_an_unknown_codec_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        encode("brotli", b"{}")

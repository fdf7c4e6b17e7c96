"""Every check on a recording's bytes: a good one passes, and each damage is refused by its own name."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cachemig.demo.recordings import RATE_HZ, SUBFRAMES, aborted, recording_bytes
from cachemig.emg import checks
from cachemig.emg.checks import Header, after_reading, before_reading, check_rate, contents
from cachemig.emg.errors import NAMES, RecordingError

WHOLE = recording_bytes(1, 1.0)
HEADER = before_reading(WHOLE)
FRAME_BYTES = 496

Damage = Callable[[bytes], bytes]


def bytes_at(position: int, new: bytes) -> Damage:
    return lambda data: data[:position] + new + data[position + len(new) :]


def word(position: int, value: int) -> Damage:
    return bytes_at(position, struct.pack("<H", value))


def record(name: str, group: int) -> int:
    """Where the link of a parameter's record stands; its type and dimensions follow after two bytes."""
    key = bytes([group]) + name.encode()
    return WHOLE.index(key) + len(key)


def value(name: str, new: bytes, group: int = 1) -> Damage:
    """Of a parameter without dimensions."""
    return bytes_at(record(name, group) + 4, new)


def both(*damages: Damage) -> Damage:
    def apply(data: bytes) -> bytes:
        for damage in damages:
            data = damage(data)
        return data

    return apply


def single(number: float) -> bytes:
    return struct.pack("<f", number)


def short(number: int) -> bytes:
    return struct.pack("<H", number)


DAMAGES: dict[str, tuple[str, Damage]] = {
    "nothing": ("too-small", lambda data: b""),
    "cut inside the header": ("too-small", lambda data: data[:300]),
    "one byte short of two blocks": ("too-small", lambda data: data[:1023]),
    "zeros": ("not-a-c3d", lambda data: bytes(len(data))),
    "text": ("not-a-c3d", lambda data: b"not a recording\n" * 100),
    "another magic": ("not-a-c3d", bytes_at(1, b"\x51")),
    "parameters in the header's block": ("not-a-c3d", bytes_at(0, b"\x01")),
    "parameters beyond the end": ("not-a-c3d", bytes_at(0, b"\xff")),
    "MIPS": ("byte-order", bytes_at(515, b"\x56")),
    "DEC": ("byte-order", bytes_at(515, b"\x55")),
    "a positive scale": ("integer-data", bytes_at(12, single(1.0))),
    "no scale": ("integer-data", bytes_at(12, single(0.0))),
    "a scale that is NaN": ("integer-data", bytes_at(12, single(np.nan))),
    "an infinite scale": ("integer-data", bytes_at(12, single(-np.inf))),
    "a positive POINT:SCALE": ("integer-data", value("SCALE", single(1.0))),
    "aborted": ("aborted", aborted),
    "aborted, data start known": ("aborted", both(word(8, 0), value("FRAMES", short(0)))),
    "last before first": ("header", both(word(6, 9), word(8, 5))),
    "first frame 0": ("header", both(word(6, 0), word(8, 32))),
    "data start 0": ("header", word(16, 0)),
    "data start 2": ("header", word(16, 2)),
    "FRAMES 65535 with data start 0": ("header", both(word(8, 65535), word(16, 0), value("FRAMES", short(65535)))),
    "no analog value": ("no-channels", word(4, 0)),
    "no sub-frame": ("header", word(18, 0)),
    "sub-frames that do not divide": ("header", word(18, 29)),
    "one byte missing": ("truncated", lambda data: data[:-1]),
    "a frame missing": ("truncated", lambda data: data[:-FRAME_BYTES]),
    "half of it": ("truncated", lambda data: data[: len(data) // 2]),
    "cut inside the parameters": ("truncated", lambda data: data[:1100]),
    "one byte more": ("too-long", lambda data: data + b"\0"),
    "padded to a block": ("too-long", lambda data: data + bytes(512 - len(data) % 512)),
    "another last frame": ("truncated", word(8, 34)),
    "another first frame": ("too-long", word(6, 2)),
    "more points": ("truncated", word(2, 2)),
    "data start 3": ("too-long", word(16, 3)),
    "FRAMES wrong": ("frames", value("FRAMES", short(32))),
    "a frame less in header and length": ("frames", lambda data: word(8, 32)(data)[:-FRAME_BYTES]),
    "FRAMES a text": ("parameters", bytes_at(record("FRAMES", 1) + 2, b"\xff")),
    "no FRAMES": ("parameters", bytes_at(record("FRAMES", 1) - 6, b"FRAMED")),
    "POINT:USED wrong": ("layout", value("USED", short(2))),
    "ANALOG:USED wrong": ("layout", value("USED", short(3), 2)),
    "POINT:DATA_START wrong": ("layout", value("DATA_START", short(5))),
    "half the sub-frames": ("layout", word(18, 15)),
    "ANALOG:RATE wrong": ("rate", value("RATE", single(991.0), 2)),
    "ANALOG:RATE 0": ("rate", value("RATE", single(0.0), 2)),
    "both rates 0": ("rate", both(value("RATE", single(0.0)), value("RATE", single(0.0), 2))),
    "both rates negative": ("rate", both(value("RATE", single(-33.0)), value("RATE", single(-990.0), 2))),
    "both rates infinite": ("rate", both(value("RATE", single(np.inf)), value("RATE", single(np.inf), 2))),
    "a rate NaN": ("rate", value("RATE", single(np.nan), 2)),
    "POINT:RATE wrong": ("rate", value("RATE", single(50.0))),
    "a parameter of 255 dimensions": ("parameters", bytes_at(record("SCALE", 2) + 3, b"\xff")),
    "dimensions 7 times 255": ("parameters", bytes_at(record("SCALE", 2) + 3, b"\x07" + b"\xff" * 7)),
    "a link of zero": ("parameters", bytes_at(record("USED", 2), short(0))),
    "a link into itself": ("parameters", bytes_at(record("USED", 2), short(1))),
    "a link past the section": ("parameters", bytes_at(record("USED", 2), short(4000))),
    "a link past the end of the file": ("parameters", bytes_at(record("USED", 2), short(65535))),
    "an unknown type": ("parameters", bytes_at(record("USED", 2) + 2, b"\x03")),
    "a dimension less": ("parameters", bytes_at(record("LABELS", 2) + 4, b"\x0c")),
    "a long description": ("parameters", bytes_at(record("USED", 2) + 6, b"\xff")),
    "a name that is not ASCII": ("parameters", bytes_at(record("USED", 2) - 4, b"\xff")),
    "a name that cannot be printed": ("parameters", bytes_at(record("BITS", 2) - 4, b"\x07")),
    "a parameter of no group": ("parameters", bytes_at(record("BITS", 2) - 5, b"\x63")),
    "a parameter twice": ("parameters", bytes_at(record("CONTACT", 7) - 7, b"VERSION")),
    **{
        f"no {name}": ("parameters", bytes_at(record(name, 2) - 1, b"#"))
        for name in ("LABELS", "SCALE", "GEN_SCALE", "OFFSET")
    },
    "texts of four bytes": ("parameters", bytes_at(record("GEN_SCALE", 2) + 2, b"\xfc")),
    "a rate without a value": (
        "parameters",
        both(bytes_at(record("RATE", 2) - 4, b"RATX"), bytes_at(record("BITS", 2) - 4, b"RATE")),
    ),
    "a group twice": ("parameters", bytes_at(WHOLE.index(b"\xfeANALOG"), b"\xff")),
    "a NUL in a label": ("labels", lambda data: data.replace(b"CH1 Raw", b"CH\0 Raw")),
    "a line's end in a label": ("labels", lambda data: data.replace(b"CH1 Raw", b"CH1\nRaw")),
    "no room for parameters": ("parameters", bytes_at(514, b"\x00")),
    "parameters end too early": ("parameters", bytes_at(514, b"\x01")),
    "no end of the parameters": (
        "parameters",
        lambda data: data[:1024] + b"\x01" * 512 + data[1536:],
    ),
}  # fmt: skip


def test_a_whole_recording_passes() -> None:
    assert before_reading(WHOLE) == Header(2, 1, 120, 1, 33, -1.0, 4, 30)
    assert (HEADER.frames, HEADER.channels, HEADER.samples, HEADER.file_bytes) == (33, 4, 990, len(WHOLE))


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_refused_by_name(what: str) -> None:
    name, damage = DAMAGES[what]
    assert damage(WHOLE) != WHOLE
    with pytest.raises(RecordingError) as caught:
        before_reading(damage(WHOLE))
    assert caught.value.name == name


def test_a_file_over_the_limit_is_refused() -> None:
    before_reading(WHOLE, len(WHOLE))
    with pytest.raises(RecordingError, match=r"^too-large"):
        before_reading(WHOLE, len(WHOLE) - 1)


def test_a_length_that_the_header_does_not_give_is_never_accepted() -> None:
    for length in (*range(0, len(WHOLE), 97), *range(len(WHOLE) - 600, len(WHOLE)), len(WHOLE) + 1, len(WHOLE) + 496):
        with pytest.raises(RecordingError):
            before_reading((WHOLE + bytes(1000))[:length])


def test_the_header_counts_frames_beyond_a_signed_word() -> None:
    """The longest recording there can be: FRAMES is a 16-bit integer, to be taken without a sign."""
    frames = 65535
    longest = both(word(8, frames), value("FRAMES", short(frames)))(WHOLE)[:1536] + bytes(frames * FRAME_BYTES)
    assert before_reading(longest).frames == frames
    assert len(longest) <= checks.MAX_BYTES


# After reading ----------------------------------------------------------------------------------------------------

GOOD = np.full((4, 990), 1e-4)


def spoilt(number: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    samples = GOOD.copy()
    samples[2, 500] = number
    return samples


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("channels", GOOD[:3]),
        ("channels", np.zeros((8, 990))),
        ("samples", GOOD[:, :-1]),
        ("samples", np.zeros((4, 0))),
        ("samples", np.zeros((4, 1020))),
        ("not-finite", spoilt(np.nan)),
        ("not-finite", spoilt(np.inf)),
        ("not-finite", spoilt(-np.inf)),
        ("out-of-range", spoilt(1.0)),
        ("out-of-range", spoilt(-1.0)),
        ("out-of-range", spoilt(32768.0)),
    ],
)  # fmt: skip
def test_what_was_read_is_held_against_the_header(
    name: str, samples: np.ndarray[tuple[int, int], np.dtype[np.float64]]
) -> None:
    after_reading(HEADER, GOOD, RATE_HZ, 33.0)
    with pytest.raises(RecordingError) as caught:
        after_reading(HEADER, samples, RATE_HZ, 33.0)
    assert caught.value.name == name


def test_a_rate_that_was_read_must_fit_too() -> None:
    with pytest.raises(RecordingError, match=r"^rate"):
        after_reading(HEADER, GOOD, RATE_HZ, 34.0)


def test_rates_are_compared_as_single_floats() -> None:
    point_rate = float(np.float32(100 / 3))
    check_rate(float(np.float32(1000.0)), point_rate, SUBFRAMES)
    with pytest.raises(RecordingError):
        check_rate(1000.01, point_rate, SUBFRAMES)


# Files ------------------------------------------------------------------------------------------------------------


def test_contents_are_the_files_bytes(tmp_path: Path) -> None:
    path = tmp_path / "recording.c3d"
    path.write_bytes(WHOLE)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert contents(path) == contents(link) == WHOLE
    assert contents(path, len(WHOLE)) == WHOLE


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "large").write_bytes(bytes(2000))
    for path, name in (
        (tmp_path, "not-a-file"),
        (tmp_path / "fifo", "not-a-file"),
        (tmp_path / "endless", "not-a-file"),
        (tmp_path / "loop", "not-a-file"),
        (tmp_path / "nul\0byte", "not-a-file"),
        (tmp_path / "nowhere", "missing"),
        (tmp_path / "large", "too-large"),
    ):
        with pytest.raises(RecordingError) as caught:
            contents(path, 1999)
        assert caught.value.name == name, path


# The error --------------------------------------------------------------------------------------------------------


def test_an_error_says_its_name_and_what_it_means() -> None:
    error = RecordingError("truncated", "half of it")
    assert str(error) == f"truncated: {NAMES['truncated']} (half of it)"
    assert (error.name, error.detail, error.exit_code) == ("truncated", "half of it", 1)
    assert error.hint
    assert str(RecordingError("missing")) == "missing: there is no such file"
    assert RecordingError("missing", hint="ask").hint == "ask"


def test_only_known_names() -> None:
    with pytest.raises(KeyError):
        RecordingError("mystery")


def test_no_message_holds_what_the_file_says() -> None:
    secret = WHOLE.replace(b"Nobody", b"ANNA M")
    for name, damage in DAMAGES.values():
        with pytest.raises(RecordingError) as caught:
            before_reading(damage(secret))
        assert caught.value.name == name
        assert "ANNA" not in str(caught.value)

"""What must be true of a recording before ezc3d sees its bytes, and of what ezc3d made of them.

ezc3d trusts a file: it reads one that was cut short without an error, takes floats for integers where a sign is wrong,
and crashes on a damaged parameter. A file that passes here is, as far as its own words can tell, whole. The checks are
those of the recordings of the game, which are narrower than the format: Intel's byte order, float samples, nothing
after the last frame. Offsets and words as in the C3D user guide, header section and parameter section.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cachemig.emg.errors import RecordingError

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

BLOCK_BYTES = 512
LEAST_BYTES = 2 * BLOCK_BYTES
"""A header and one block of parameters."""
MAX_BYTES = 32 << 20
"""65,535 frames, as many as the header can count, of a game's recording take 32.5 million bytes."""
MAX_VOLTS = 1.0
"""A hundred times what the game's sensors can give; garbage read as floats is nearly always beyond it."""

_MAGIC = 0x50
_INTEL = 84
_HEADER = struct.Struct("<BBHHHHHfHHf")
_CHAR, _BYTE, _INTEGER, _FLOAT = -1, 1, 2, 4
_RELATIVE = 1e-6  # rates are float32

Parameters = Mapping[tuple[str, str], "Parameter"]


@dataclass(frozen=True)
class Header:
    """The words of the first block that say where the samples are."""

    parameter_block: int
    points: int
    analogs_per_frame: int
    first: int
    last: int
    scale: float
    data_block: int
    subframes: int

    @property
    def frames(self) -> int:
        return self.last - self.first + 1

    @property
    def channels(self) -> int:
        return self.analogs_per_frame // self.subframes

    @property
    def samples(self) -> int:
        """Of each channel."""
        return self.frames * self.subframes

    @property
    def data_offset(self) -> int:
        return (self.data_block - 1) * BLOCK_BYTES

    @property
    def frame_bytes(self) -> int:
        """Four floats a point, one an analog value."""
        return (4 * self.points + self.analogs_per_frame) * 4

    @property
    def file_bytes(self) -> int:
        return self.data_offset + self.frames * self.frame_bytes


@dataclass(frozen=True)
class Parameter:
    """One parameter, its values as they stand in the file."""

    kind: int
    dimensions: tuple[int, ...]
    values: bytes


def contents(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file, read once: what is checked is what is read. A FIFO or a directory is not waited for.

    Raises RecordingError `missing`, `not-a-file`, `too-large`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise RecordingError("missing") from exc
    except (OSError, ValueError) as exc:
        raise RecordingError("not-a-file", type(exc).__name__) from exc
    parts, left = [], max_bytes + 1
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RecordingError("not-a-file")
        while left and (part := os.read(descriptor, left)):
            parts.append(part)
            left -= len(part)
    except OSError as exc:
        raise RecordingError("not-a-file", type(exc).__name__) from exc
    finally:
        os.close(descriptor)
    if not left:
        raise RecordingError("too-large", f"limit {max_bytes:,} bytes")
    return b"".join(parts)


def before_reading(data: bytes, max_bytes: int = MAX_BYTES) -> Header:
    """The header of a file whose own words all agree; RecordingError at the first that does not.

    Nothing is allocated or looped over that the file's size does not bound.
    """
    if len(data) < LEAST_BYTES:
        raise RecordingError("too-small", f"{len(data)} bytes")
    if len(data) > max_bytes:
        raise RecordingError("too-large", f"{len(data):,} bytes, limit {max_bytes:,}")
    header = _header(data)
    _check_header(header, data)
    parameters = _parameters(data, header)
    _check_parameters(header, parameters)
    return header


def after_reading(header: Header, samples: NDArray[float64], rate_hz: float, point_rate_hz: float) -> None:
    """What ezc3d gave, held against the header: shape, rate and plausible volts; RecordingError at the first misfit."""
    channels, per_channel = samples.shape
    if channels != header.channels:
        raise RecordingError("channels", f"{channels}, not {header.channels}")
    if per_channel != header.samples:
        raise RecordingError("samples", f"{per_channel}, not {header.samples}")
    check_rate(rate_hz, point_rate_hz, header.subframes)
    lowest, highest = float(samples.min()), float(samples.max())  # both hand on a NaN
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise RecordingError("not-finite")
    if max(-lowest, highest) >= MAX_VOLTS:
        raise RecordingError("out-of-range")


def check_rate(rate_hz: float, point_rate_hz: float, subframes: int) -> None:
    """RecordingError `rate` unless every frame lasts as long as its sub-frames do."""
    agree = math.isclose(rate_hz, point_rate_hz * subframes, rel_tol=_RELATIVE)
    if not (agree and math.isfinite(rate_hz) and rate_hz > 0):
        raise RecordingError("rate", f"{rate_hz:g} Hz, and {point_rate_hz:g} Hz times {subframes}")


def _header(data: bytes) -> Header:
    """RecordingError `not-a-c3d`, `byte-order`: what would make every other word meaningless."""
    block, magic, points, analogs, first, last, _, scale, data_block, subframes, _ = _HEADER.unpack_from(data)
    if magic != _MAGIC or block < 2 or block * BLOCK_BYTES > len(data):
        raise RecordingError("not-a-c3d")
    if data[(block - 1) * BLOCK_BYTES + 3] != _INTEL:
        raise RecordingError("byte-order")
    return Header(block, points, analogs, first, last, scale, data_block, subframes)


def _check_header(header: Header, data: bytes) -> None:
    if not (header.scale < 0 and math.isfinite(header.scale)):
        raise RecordingError("integer-data")
    if header.last == 0:
        raise RecordingError("aborted", f"{len(data) - LEAST_BYTES:,} bytes were recorded")
    if header.first < 1 or header.frames < 1:
        raise RecordingError("header", f"frames {header.first} to {header.last}")
    if header.data_block < 3:
        raise RecordingError("header", f"data begin in block {header.data_block}")
    if header.analogs_per_frame == 0:
        raise RecordingError("no-channels")
    if header.subframes == 0 or header.analogs_per_frame % header.subframes:
        raise RecordingError("header", f"{header.analogs_per_frame} values in {header.subframes} sub-frames")
    if len(data) != header.file_bytes:
        name = "truncated" if len(data) < header.file_bytes else "too-long"
        raise RecordingError(name, f"{len(data):,} bytes, not {header.file_bytes:,}")


def _parameters(data: bytes, header: Header) -> Parameters:
    """Every parameter by group and name. A record whose parts do not fill it exactly is damage: ezc3d follows such a
    file out of its memory.

    A record is: length of the name, group number, name, distance to the next record, then for a group (negative number)
    a description, for a parameter type, dimensions, values, description.
    """
    start = (header.parameter_block - 1) * BLOCK_BYTES
    end = min(start + data[start + 2] * BLOCK_BYTES, header.data_offset)
    position = start + 4
    groups: dict[int, str] = {}
    found: dict[tuple[int, str], Parameter] = {}
    try:
        # A name's length is negative where the parameter is locked.
        while length := abs(_signed(data, position)):
            number = _signed(data, position + 1)
            link = position + 2 + length
            name = data[position + 2 : link].decode("ascii").upper()
            following = link + int.from_bytes(data[link : link + 2], "little")
            if number < 0:
                found_twice = -number in groups
                groups[-number] = name
                position = link + 2
            else:
                found_twice = (number, name) in found
                found[number, name], position = _parameter(data, link + 2)
            position += 1 + data[position]  # the description
            if position != following or position >= end or found_twice or not name.isprintable():
                raise RecordingError("parameters", f"at byte {link}")
        return {(groups[number], name): parameter for (number, name), parameter in found.items()}
    except (IndexError, KeyError, UnicodeDecodeError) as exc:
        raise RecordingError("parameters") from exc


def _signed(data: bytes, position: int) -> int:
    value = data[position]
    return value - 256 if value > 127 else value


def _parameter(data: bytes, position: int) -> tuple[Parameter, int]:
    """The parameter whose type stands at `position`, and where its description begins."""
    kind = _signed(data, position)
    dimensions = tuple(data[position + 2 : position + 2 + data[position + 1]])
    position += 2 + data[position + 1]
    size = math.prod(dimensions) * abs(kind)
    if kind not in (_CHAR, _BYTE, _INTEGER, _FLOAT):
        raise RecordingError("parameters", f"at byte {position}")
    return Parameter(kind, dimensions, data[position : position + size]), position + size


def _check_parameters(header: Header, parameters: Parameters) -> None:
    """ezc3d takes some of these words from the header and some from the parameters; so they must be the same."""
    frames = _number(parameters, "POINT", "FRAMES")
    if frames != header.frames:
        raise RecordingError("frames", f"{frames:g}, and {header.frames} in the header")
    expected = {
        ("POINT", "USED"): header.points,
        ("POINT", "DATA_START"): header.data_block,
        ("ANALOG", "USED"): header.channels,
    }
    for (group, name), number in expected.items():
        found = _number(parameters, group, name)
        if found != number:
            raise RecordingError("layout", f"{group}:{name} is {found:g}, not {number}")
    if not _number(parameters, "POINT", "SCALE") < 0:
        raise RecordingError("integer-data", "POINT:SCALE")
    for name in ("LABELS", "SCALE", "GEN_SCALE", "OFFSET"):
        if ("ANALOG", name) not in parameters:
            raise RecordingError("parameters", f"ANALOG:{name} is missing")  # ezc3d would make one up
    if any(byte < 0x20 or byte == 0x7F for byte in parameters["ANALOG", "LABELS"].values):
        raise RecordingError("labels", "control characters")  # at a NUL, ezc3d would cut the label
    check_rate(_number(parameters, "ANALOG", "RATE"), _number(parameters, "POINT", "RATE"), header.subframes)


def _number(parameters: Parameters, group: str, name: str) -> float:
    parameter = parameters.get((group, name))
    if parameter is None or math.prod(parameter.dimensions) != 1:
        raise RecordingError("parameters", f"{group}:{name} is not one number")
    match parameter.kind:
        case kind if kind == _FLOAT:
            return float(struct.unpack("<f", parameter.values)[0])
        case kind if kind == _INTEGER:
            return int.from_bytes(parameter.values, "little")  # counts up to 65,535 frames: unsigned
        case kind if kind == _BYTE:
            return parameter.values[0]
        case _:
            raise RecordingError("parameters", f"{group}:{name} is not a number")

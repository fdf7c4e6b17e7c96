"""Recordings damaged at random, by seed: no crash and no hang of the tool, and nothing accepted that is not as it was.

`python -m tests.integration.test_reader_fuzz [EDITS] [SEED]` prints how many edits end how; docs/emg.md quotes it.
"""

from __future__ import annotations

import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from random import Random
from types import MappingProxyType

import numpy as np
import pytest

from cachemig.demo.recordings import LABELS, recording_bytes
from cachemig.emg.errors import RecordingError
from cachemig.emg.isolated import Isolated, Limits
from tests.integration.test_isolated_reader import RECORDINGS, straight

SYNTHETIC = recording_bytes(1, 2.0)
HEAD_BYTES = 1536  # header and parameters
LIMITS = Limits(seconds=10, memory_bytes=1 << 30)
TOLD_WORDS = (0, 1, 2, 3, 4, 5, 30, 60, 120, 127, 128, 255, 256, 32767, 32768, 65535)

Edit = Callable[[Random, bytearray], None]


def _byte(random: Random, data: bytearray) -> None:
    data[random.randrange(HEAD_BYTES)] = random.randrange(256)


def _bytes(random: Random, data: bytearray) -> None:
    for _ in range(random.randint(2, 12)):
        _byte(random, data)


def _bit(random: Random, data: bytearray) -> None:
    data[random.randrange(HEAD_BYTES)] ^= 1 << random.randrange(8)


def _word(random: Random, data: bytearray) -> None:
    struct.pack_into("<H", data, random.randrange(HEAD_BYTES - 1), random.choice(TOLD_WORDS))


def _header_word(random: Random, data: bytearray) -> None:
    for _ in range(random.randint(1, 2)):
        struct.pack_into("<H", data, 2 * random.randrange(12), random.choice(TOLD_WORDS))


def _parameter_value(random: Random, data: bytearray) -> None:
    name = random.choice((b"USED", b"RATE", b"FRAMES", b"SCALE", b"DATA_START", b"LABELS", b"GEN_SCALE", b"OFFSET"))
    places = [at for at in range(len(data[:HEAD_BYTES])) if data.startswith(name, at)]
    for _ in range(random.randint(1, 3)):
        data[random.choice(places) + len(name) + random.randrange(12)] = random.choice((*range(16), 127, 128, 254, 255))


def _zeros(random: Random, data: bytearray) -> None:
    start = random.randrange(HEAD_BYTES)
    end = start + random.randint(1, 64)
    data[start:end] = bytes(end - start)


def _shifted(random: Random, data: bytearray) -> None:
    """The length stays, what stands where does not."""
    start, by = random.randrange(HEAD_BYTES), random.randint(1, 8)
    del data[start : start + by]
    data += bytes(by)


def _cut(random: Random, data: bytearray) -> None:
    del data[random.randrange(len(data)) :]


def _cut_at_a_frame(random: Random, data: bytearray) -> None:
    del data[-496 * random.randint(1, 20) :]


def _longer(random: Random, data: bytearray) -> None:
    data += random.randbytes(random.choice((1, 2, 496, 512, random.randint(1, 5000))))


def _hole(random: Random, data: bytearray) -> None:
    start = random.randrange(len(data))
    del data[start : start + random.randint(1, 2000)]


def _samples(random: Random, data: bytearray) -> None:
    for _ in range(random.randint(1, 20)):
        data[random.randrange(HEAD_BYTES, len(data))] = random.randrange(256)


EDITS: Mapping[str, Edit] = MappingProxyType(
    {
        "a byte of the header or parameters": _byte,
        "2 to 12 such bytes": _bytes,
        "a bit of them": _bit,
        "a word of them": _word,
        "1 or 2 words of the header": _header_word,
        "values or dimensions of a parameter": _parameter_value,
        "zeros over up to 64 bytes of them": _zeros,
        "up to 8 bytes lost, the length kept": _shifted,
        "cut anywhere": _cut,
        "cut between two frames": _cut_at_a_frame,
        "longer": _longer,
        "up to 2,000 bytes lost": _hole,
        "1 to 20 bytes of the samples": _samples,
    }
)


def edited(data: bytes, seed: int) -> tuple[str, bytes]:
    """The kind of the edit, and the recording after it; the same for the same seed."""
    random = Random(seed)
    kind = list(EDITS)[seed % len(EDITS)]
    damaged = bytearray(data)
    EDITS[kind](random, damaged)
    return kind, bytes(damaged)


def outcome(isolated: Isolated, data: bytes, damaged: bytes) -> str:
    """The name of a refusal, or what differs in an accepted file; AssertionError where that was not to be accepted."""
    began = time.monotonic()
    try:
        recording = isolated.read(damaged)
    except RecordingError as exc:
        return exc.name  # which can only be one of NAMES
    finally:
        assert time.monotonic() - began < LIMITS.seconds + 10, "a hang"
    good = straight(data)
    assert _size_by_the_header(damaged) == len(damaged), "the sizes differ"
    assert recording.samples.shape == good.shape, "another shape"
    assert recording.samples.shape == (4, struct.unpack_from("<H", damaged, 8)[0] * 30)
    assert recording.sampling_rate_hz == 990.0, "another rate"
    labels = "" if recording.labels == LABELS else ", other labels"
    if np.array_equal(recording.samples, good):
        return "accepted, the same samples" + labels
    if damaged[HEAD_BYTES:] != data[HEAD_BYTES:]:
        # Nothing in a file tells that its samples were other ones; the hash of the whole file does.
        assert np.array_equal(recording.samples, straight(damaged), equal_nan=True)
        return "accepted, edited samples" + labels
    # The records of ANALOG after its labels: scales and offsets.
    scaling = slice(data.index(b"\x02LABELS") + 60, data.index(b"\x02LABELS") + 210)
    assert damaged[scaling] != data[scaling], "other values, and no reason for it"
    return "accepted, edited scale or offset" + labels


def _size_by_the_header(data: bytes) -> int:
    points, analogs, first, last = struct.unpack_from("<HHHH", data, 2)
    (data_block,) = struct.unpack_from("<H", data, 16)
    return int((data_block - 1) * 512 + (last - first + 1) * (4 * points + analogs) * 4)


def count(data: bytes, seeds: range, isolated: Isolated) -> Counter[tuple[str, str]]:
    """How edits of these seeds end, by kind and outcome."""
    outcomes: Counter[tuple[str, str]] = Counter()
    for seed in seeds:
        kind, damaged = edited(data, seed)
        try:
            outcomes[kind, outcome(isolated, data, damaged)] += 1
        except AssertionError as exc:
            raise AssertionError(f"seed {seed}, {kind}: {exc}") from exc
    return outcomes


def by_outcome(outcomes: Counter[tuple[str, str]]) -> Counter[str]:
    totals: Counter[str] = Counter()
    for (_, name), number in outcomes.items():
        totals[name] += number
    return totals


def _check(outcomes: Counter[tuple[str, str]], edits: int) -> None:
    totals = by_outcome(outcomes)
    assert totals.total() == edits
    # The edits must reach what they are meant to test.
    assert {"truncated", "parameters"} <= set(totals)
    assert any(name.startswith("accepted") for name in totals)
    assert not {name for kind, name in outcomes if kind.startswith("cut") and name.startswith("accepted")}


def test_edits_of_a_synthetic_recording() -> None:
    with Isolated(LIMITS) as isolated:
        _check(count(SYNTHETIC, range(650), isolated), 650)
        assert isolated.children_started == 1, "the checks let something through that killed a child"


@pytest.mark.skipif(not RECORDINGS, reason="no recordings")
def test_edits_of_a_real_recording() -> None:
    data = RECORDINGS[0].read_bytes()
    with Isolated(LIMITS) as isolated:
        _check(count(data, range(130), isolated), 130)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_many_edits() -> None:
    for data in (SYNTHETIC, *(path.read_bytes() for path in RECORDINGS[:1])):
        with Isolated(LIMITS) as isolated:
            _check(count(data, range(10_000, 16_000), isolated), 6000)


def main(edits: int = 6000, seed: int = 10_000) -> None:
    for what, data in (("synthetic", SYNTHETIC), *(("real", path.read_bytes()) for path in RECORDINGS[:1])):
        with Isolated(LIMITS) as isolated:
            outcomes = count(data, range(seed, seed + edits), isolated)
            print(
                f"{what}, {len(data):,} bytes, seeds {seed} to {seed + edits - 1}; {isolated.children_started} children"
            )
        for name, number in sorted(by_outcome(outcomes).items(), key=lambda item: -item[1]):
            print(f"{number:7,}  {name}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

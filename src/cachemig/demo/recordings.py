"""Synthetic C3D recordings like those of the game: two muscles, raw and activated. The same seed gives the same bytes.

ezc3d writes them, and what it writes otherwise than the game is put right byte by byte in `_as_the_game_writes`.
Nothing in them comes from a patient.
"""

from __future__ import annotations

import math
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import float64
    from numpy.random import Generator
    from numpy.typing import NDArray

POINT_RATE_HZ = 33
SUBFRAMES = 30
RATE_HZ = POINT_RATE_HZ * SUBFRAMES
LABELS = ("CH1 Raw", "CH2 Raw", "CH1 activated", "CH2 activated")
SATURATION_V = 5.5e-3
"""Where the sensor's range ends."""

_REST_V = 4e-6
_BLOCK_BYTES = 512
# Offsets of words in the header.
_LAST_FRAME, _MAXIMUM_GAP, _DATA_BLOCK = 8, 10, 16


def recording_bytes(seed: int, seconds: float = 30.0, *, saturated: bool = False) -> bytes:
    """A whole recording, rounded up to a frame: rest, a burst every two to four seconds, a slow drift of the baseline.

    `saturated` makes the first muscle's sensor reach the end of its range now and then. Below 10 s an analysis of the
    head profile is empty.
    """
    import ezc3d
    import numpy as np

    frames = math.ceil(seconds * POINT_RATE_HZ)
    samples = _samples(np.random.default_rng(seed), frames * SUBFRAMES, saturated)
    file = ezc3d.c3d()
    parameters = file["parameters"]
    parameters["POINT"]["RATE"]["value"] = [float(POINT_RATE_HZ)]
    parameters["POINT"]["LABELS"]["value"] = ["PlayerPosition"]
    parameters["ANALOG"]["RATE"]["value"] = [float(RATE_HZ)]
    parameters["ANALOG"]["LABELS"]["value"] = list(LABELS)
    for group, name, value in (
        ("SUBJECTS", "PLAYER_NAME", "Nobody"),
        ("SUBJECTS", "GAME_SCORE", float(seed % 50)),
        ("INFO", "SYSTEM", "OpenFeasyo"),
        ("INFO", "EVENT", "gameplay"),
        ("INFO", "GAME_NAME", "Synthetic"),
        ("INFO", "DURATION", math.ceil(seconds)),
        ("INFO", "TIME", ["2026", "3", "1", "12", "0"]),
    ):
        file.add_parameter(group, name, value)
    # The player's position, in the game's units: thousands. Taken for volts, it would be refused.
    at = np.arange(frames) * 4.0
    file["data"]["points"] = np.array([300 + at, 300 + 200 * np.sin(at / 100), 0 * at, 1 + 0 * at])[:, np.newaxis]
    file["data"]["analogs"] = samples[np.newaxis]
    with tempfile.TemporaryDirectory(prefix="cachemig-") as directory:
        path = Path(directory, "recording.c3d")
        file.write(str(path))
        return _as_the_game_writes(path.read_bytes(), frames)


def aborted(recording: bytes) -> bytes:
    """The same recording, had the game been closed in the middle of it: the samples are there, the counts are not."""
    data = bytearray(recording)
    struct.pack_into("<H", data, _LAST_FRAME, 0)
    struct.pack_into("<H", data, _DATA_BLOCK, 0)
    # A record goes: length of the name, group, name, link (2 bytes), type, number of dimensions, value.
    name = b"\x01FRAMES"
    struct.pack_into("<H", data, data.index(name) + len(name) + 4, 0)
    return bytes(data)


def _as_the_game_writes(written: bytes, frames: int) -> bytes:
    """No padding after the last frame, where ezc3d fills the last block, and no gap to interpolate over."""
    data = bytearray(written)
    struct.pack_into("<H", data, _MAXIMUM_GAP, 0)
    (data_block,) = struct.unpack_from("<H", data, _DATA_BLOCK)
    values_per_frame = 4 + len(LABELS) * SUBFRAMES  # one point
    return bytes(data[: (data_block - 1) * _BLOCK_BYTES + frames * values_per_frame * 4])


def _samples(random: Generator, count: int, saturated: bool) -> NDArray[float64]:
    """Volts, shape (channels, count), in the order of LABELS."""
    import numpy as np

    seconds = np.arange(count) / RATE_HZ
    raw, activated = [], []
    for _ in range(2):
        strength = np.zeros(count)
        at = random.uniform(0.5, 1.5)
        while at < seconds[-1]:
            length = random.uniform(0.3, 2.5)
            inside = (seconds >= at) & (seconds < at + length)
            strength[inside] = random.uniform(0.3, 1.0) * np.sin(np.pi * (seconds[inside] - at) / length)
            at += length + random.uniform(1.0, 2.0)
        noise = np.convolve(random.normal(size=count), [0.6, 0.3, -0.3, -0.6], mode="same")
        drift = 2e-5 * np.sin(2 * np.pi * seconds / random.uniform(15, 25) + random.uniform(0, np.pi))
        raw.append((_REST_V + 1.5e-4 * strength) * noise + drift)
        activated.append(1.5e-4 * strength * np.abs(noise))
    if saturated:
        for at in random.uniform(0, seconds[-1], size=3):
            raw[0][(seconds >= at) & (seconds < at + 0.05)] = SATURATION_V * random.choice([-1.0, 1.0])
    volts: NDArray[float64] = np.clip(np.array(raw + activated), -SATURATION_V, SATURATION_V)
    return volts

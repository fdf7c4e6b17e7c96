"""The demo's recordings: whole, repeatable, worth an analysis, and laid out like those of the game."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

import numpy as np
import pytest

from cachemig.demo.recordings import LABELS, RATE_HZ, SATURATION_V, aborted, recording_bytes
from cachemig.emg import reader
from cachemig.emg.checks import before_reading
from cachemig.emg.errors import RecordingError
from cachemig.emg.payload import payload
from cachemig.emg.profile import PROFILES, Options


@pytest.mark.parametrize("seconds", [0.01, 1.0, 12.3])
def test_the_size_follows_from_the_header_to_the_byte(seconds: float) -> None:
    data = recording_bytes(1, seconds)
    points, analogs, first, last = struct.unpack_from("<HHHH", data, 2)
    (data_block,) = struct.unpack_from("<H", data, 16)
    assert len(data) == (data_block - 1) * 512 + (last - first + 1) * (4 * points + analogs) * 4
    assert seconds * RATE_HZ <= before_reading(data).samples < seconds * RATE_HZ + 30


def test_the_header_is_the_games() -> None:
    """All but the number of frames, as in the recordings of the game."""
    header = struct.unpack_from("<BBHHHHHfHHf", recording_bytes(1, 1.0))
    assert header == (2, 80, 1, 120, 1, 33, 0, -1.0, 4, 30, 33.0)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    assert recording_bytes(5, 1.0) == recording_bytes(5, 1.0) != recording_bytes(6, 1.0)


def test_it_reads_as_two_muscles() -> None:
    recording = reader.read(recording_bytes(2, 2.0))
    assert recording.labels == LABELS
    assert recording.samples.shape == (4, 1980)
    assert recording.sampling_rate_hz == RATE_HZ


def test_saturation_reaches_the_end_of_the_range_in_one_muscle() -> None:
    saturated = np.abs(reader.read(recording_bytes(3, 12.0, saturated=True)).samples).max(axis=1)
    assert saturated[0] == np.float32(SATURATION_V)
    assert (saturated[1:] < SATURATION_V / 2).all()


def test_an_analysis_finds_contractions_in_both_muscles() -> None:
    for seed in range(3):
        recording = reader.read(recording_bytes(seed, 20.0))
        for profile in PROFILES.values():
            analytics = payload(recording, profile, Options(), datetime.now(UTC))["analytics"]
            assert list(analytics) == ["CH1", "CH2"]
            assert all(3 <= record["contraction_count"] <= 15 for record in analytics.values())


def test_an_aborted_one_differs_in_three_words_and_is_known_as_aborted() -> None:
    whole = recording_bytes(1, 1.0)
    broken = aborted(whole)
    differing = [at for at, (a, b) in enumerate(zip(whole, broken, strict=True)) if a != b]
    assert differing[:2] == [8, 16]
    assert len(differing) == 3
    with pytest.raises(RecordingError) as caught:
        before_reading(broken)
    assert caught.value.name == "aborted"

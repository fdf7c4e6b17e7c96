"""Recordings of the game, against what the application's own code computed from them.

The recordings are not part of the repository; they are looked for beside it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cachemig.emg.payload import payload
from cachemig.emg.profile import PROFILES, Options
from cachemig.emg.recording import Recording
from tests.unit.emg.agreement import disagreements, largest_deviation

DATA = Path(__file__).parents[4] / "shared" / "data"
RECORDINGS = sorted((DATA / "recordings").glob("*.c3d"))
AT = datetime(2025, 9, 27, tzinfo=UTC)

pytestmark = pytest.mark.skipif(not RECORDINGS, reason="no recordings beside the repository")


def read(path: Path) -> Recording:
    import ezc3d

    file = ezc3d.c3d(str(path))
    analog = file["parameters"]["ANALOG"]
    return Recording(
        labels=tuple(analog["LABELS"]["value"]),
        samples=file["data"]["analogs"][0],
        sampling_rate_hz=float(analog["RATE"]["value"][0]),
    )


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_a_recording_gives_what_the_application_computed(path: Path, profile: str) -> None:
    expected = json.loads((DATA / "expected" / profile / f"{path.stem}.json").read_text())
    ours = payload(read(path), PROFILES[profile], Options(), AT)
    assert disagreements(ours, expected) == []
    assert largest_deviation(ours, expected) < 1e-10  # ten times better than promised, but for the processed minimum
    assert json.loads(json.dumps(ours, allow_nan=False)) == ours

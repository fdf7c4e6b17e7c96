"""What a recording may be, and how a time becomes a number of samples."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from cachemig.emg.recording import Recording, samples_in

ONE = np.zeros((1, 1))


@pytest.mark.parametrize(
    ("samples", "rate_hz"),
    [
        (np.zeros((0, 100)), 990.0),
        (np.zeros((2, 0)), 990.0),
        (np.zeros(100), 990.0),
        (np.zeros((2, 100), dtype=np.float32), 990.0),
        (ONE, -990.0),
        (ONE, 0.5),
        (ONE, 1.1e6),
        (ONE, float("nan")),
        (ONE, float("inf")),
    ],
)
def test_no_recording(samples: np.ndarray[tuple[int, ...], np.dtype[np.float64]], rate_hz: float) -> None:
    with pytest.raises(ValueError):
        Recording(("CH1",), samples, rate_hz)


@pytest.mark.parametrize(("rate_hz", "used"), [(None, 2000.0), (0.0, 2000.0), (990.0, 990.0), (1.0, 1.0)])
def test_the_rate_falls_back(rate_hz: float | None, used: float) -> None:
    assert Recording((), ONE, rate_hz).rate_hz == used


@pytest.mark.parametrize(
    ("ms", "rate_hz", "samples"),
    [
        (50.0, 990.0, 49),
        (1000, 1234.5, 1234),
        (150, 990.0, 148),
        (0, 990.0, 0),
        (55, 1000.0, 55),
        (1001, 1000.0, 1000),  # 1001 * 1000 / 1000 would be 1001
        (10_000, 990.0, 9900),
    ],
)
def test_samples_are_truncated_in_this_order(ms: float, rate_hz: float, samples: int) -> None:
    assert samples_in(ms, rate_hz) == samples


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("cachemig", "numpy scipy ezc3d"),
        ("cachemig.emg", "numpy scipy ezc3d"),
        ("cachemig.emg.profile", "numpy scipy ezc3d"),
        ("cachemig.emg.recording", "scipy ezc3d"),
        ("cachemig.emg.channels", "scipy ezc3d"),
    ],
)
def test_what_an_import_does_not_load(module: str, absent: str) -> None:
    program = f"import sys, {module}; print([name for name in {absent.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

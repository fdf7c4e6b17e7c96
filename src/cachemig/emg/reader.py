"""Reads one recording with ezc3d. To be imported in a child process alone (child.py): a bad file can crash ezc3d."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ezc3d
import numpy as np
from numpy.typing import NDArray

from cachemig.emg import checks
from cachemig.emg.errors import RecordingError
from cachemig.emg.recording import Recording


def read(source: bytes | Path, max_bytes: int = checks.MAX_BYTES, *, aborted_as_is: bool = False) -> Recording:
    """Labels, samples in volts and rate of a recording that passed every check of checks.py; else RecordingError.

    The bytes that are checked are the ones that ezc3d gets, whatever happens to the file meanwhile. The rate is never
    None here: a file whose rate cannot be confirmed is refused. `aborted_as_is`: an aborted recording gives what its
    header says, one frame of zeros, which is what the application takes it for.
    """
    data = source if isinstance(source, bytes) else checks.contents(source, max_bytes)
    header = None
    try:
        header = checks.before_reading(data, max_bytes)
    except RecordingError as exc:
        if exc.name != "aborted" or not aborted_as_is:
            raise
    with _as_file(data) as name:
        labels, samples, rate_hz, point_rate_hz = _read(name)
    if header is not None:
        checks.after_reading(header, samples, rate_hz, point_rate_hz)
    _check_labels(labels)
    try:
        return Recording(tuple(labels), samples, rate_hz)
    except ValueError as exc:  # shape and size have been checked, so it is the rate
        raise RecordingError("rate", f"{rate_hz:g} Hz") from exc


def _read(name: str) -> tuple[list[str], NDArray[np.float64], float, float]:
    """Labels, samples (channels, samples), ANALOG:RATE and POINT:RATE.

    The layer under `ezc3d.c3d` is used because that one also makes arrays of points, residuals, camera masks and every
    parameter: more time, and more for a damaged file to go wrong in.
    """
    try:
        file = ezc3d.ezc3d.c3d(name, ezc3d.ezc3d.Options())
        parameters = file.parameters()
        analog, point = parameters.group("ANALOG"), parameters.group("POINT")
        labels = list(analog.parameter("LABELS").valuesAsString())
        rates = list(analog.parameter("RATE").valuesAsDouble())
        point_rates = list(point.parameter("RATE").valuesAsDouble())
        # Offset, scale and general scale are in, and the sub-frames of all frames stand in the order of time.
        samples = np.asarray(file.get_analogs(), dtype=np.float64)
    except MemoryError as exc:
        raise RecordingError("out-of-memory") from exc
    except Exception as exc:
        if "bad_alloc" in str(exc):
            raise RecordingError("out-of-memory") from exc
        raise RecordingError("unreadable", type(exc).__name__) from exc  # its text may hold text of the file
    if samples.ndim != 3 or samples.shape[0] != 1:
        raise RecordingError("samples", "not one table")
    if len(rates) != 1 or len(point_rates) != 1:
        raise RecordingError("rate", "not one number")
    return labels, samples[0], float(rates[0]), float(point_rates[0])


def _check_labels(labels: list[str]) -> None:
    """A label becomes a key of JSON, and jsonb does not take every character; nor does a game write any other."""
    for number, label in enumerate(labels, start=1):
        if not label.isprintable():
            raise RecordingError("labels", f"label {number}")


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A name under which ezc3d, which takes nothing else, finds these bytes. On Linux they are never on a disk.

    Elsewhere it is a file that only this user can read; it is gone when the block ends, or with the directory that
    isolated.py keeps for this process.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("recording", os.MFD_CLOEXEC)
        with open(descriptor, "wb", buffering=0) as memory:  # noqa: PTH123 - a descriptor, not a path
            _write(memory.fileno(), data)
            yield f"/proc/self/fd/{descriptor}"
    else:
        with tempfile.NamedTemporaryFile(prefix="recording-", suffix=".c3d", buffering=0) as file:
            _write(file.fileno(), data)
            yield file.name


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]

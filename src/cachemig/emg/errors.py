"""What can go wrong with one recording, each by a short name that reports and tests count by.

No message holds a label, a sample, or anything else that a patient's file says.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from cachemig.errors import CachemigError

NAMES: Mapping[str, str] = MappingProxyType(
    {
        # before ezc3d sees it
        "missing": "there is no such file",
        "not-a-file": "not a regular file that can be read",
        "too-small": "smaller than any C3D file",
        "too-large": "larger than the limit",
        "not-a-c3d": "the first two bytes are not those of a C3D file",
        "byte-order": "not in Intel's byte order, the only one that the game writes",
        "integer-data": "the scale is not negative: the samples would be taken for 16-bit integers",
        "aborted": "the game never wrote the final header",
        "header": "the words of the header contradict each other",
        "no-channels": "there is no analog channel",
        "truncated": "shorter than the header says",
        "too-long": "longer than the header says",
        "parameters": "the parameter section is damaged",
        "frames": "POINT:FRAMES is not the number of frames in the header",
        "layout": "a parameter contradicts the header",
        "rate": "ANALOG:RATE is not POINT:RATE times the sub-frames",
        # after reading
        "unreadable": "ezc3d cannot read it",
        "channels": "another number of channels was read than the header says",
        "samples": "another number of samples was read than the header says",
        "labels": "a label is not printable text",
        "not-finite": "a sample is NaN or infinite",
        "out-of-range": "a sample is 1 V or more",
        # of the process that reads
        "crashed": "the process that read it died",
        "timed-out": "reading took too long",
        "out-of-memory": "reading took too much memory",
        "failed": "it was read, and could not be analysed",
    }
)
"""Every name there is, and what it means."""


class RecordingError(CachemigError):
    """A recording cannot be used."""

    hint = "fetch the file from its source again; docs/emg.md says what each name means"

    def __init__(self, name: str, detail: str = "", *, hint: str | None = None) -> None:
        meaning = NAMES[name]
        super().__init__(f"{name}: {meaning} ({detail})" if detail else f"{name}: {meaning}", hint=hint)
        self.name = name
        self.detail = detail


class ReaderUnavailable(CachemigError):
    """The process that reads recordings does not start."""

    hint = "numpy and ezc3d must be importable: python -c 'import numpy, ezc3d'"

"""Sessions of the demo that have a recording: synthetic, analysed as the application would; some are then corrupted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg

from cachemig.demo.recordings import aborted, recording_bytes
from cachemig.emg.isolated import Isolated
from cachemig.emg.profile import ERA, HEAD, Options

_INSERT = """
INSERT INTO public.therapy_sessions
    (patient_code, file_path, file_hash, file_size_bytes, status, analytics_cache, last_accessed_at)
VALUES (%(patient_code)s, %(file_path)s, %(file_hash)s, %(size)s, 'completed', %(value)s, now())
"""


@dataclass(frozen=True)
class Uploads:
    """What was planted. Each session by its file_hash."""

    sound: tuple[str, ...]
    corrupt: Mapping[str, str]
    """What was done to it: their recordings are whole."""
    lost: Mapping[str, str]
    """What was done to it: these cannot be computed anew."""


def plant(conn: psycopg.Connection[tuple[object, ...]], directory: Path, seed: int) -> Uploads:
    """Writes ten recordings into the directory, and a row for each into `therapy_sessions`."""
    directory.mkdir()
    sound: list[str] = []
    corrupt: dict[str, str] = {}
    lost: dict[str, str] = {}
    with Isolated() as reader:
        for number in range(10):
            data = recording_bytes(seed * 100 + number, 12.0 + 2 * number, saturated=number == 3)
            analysis = reader.analyse(data, ERA if number == 1 else HEAD, Options(), datetime.now(UTC))
            kept = aborted(data) if number == 9 else data
            key = hashlib.sha256(kept).hexdigest()
            value, what = _corrupted(analysis, number)
            (directory / f"session-{number}.c3d").write_bytes(kept)
            conn.execute(
                _INSERT,
                {
                    "patient_code": f"P{number:03d}",
                    "file_path": f"session-{number}.c3d",
                    "file_hash": key,
                    "size": len(kept),
                    "value": json.dumps(value),
                },
            )
            if what is None:
                sound.append(key)
            elif number == 9:
                lost[key] = f"{what}, and its recording was aborted"
            else:
                corrupt[key] = what
    return Uploads(tuple(sound), MappingProxyType(corrupt), MappingProxyType(lost))


def _corrupted(analysis: dict[str, Any], number: int) -> tuple[Any, str | None]:
    """Of ten analyses five stay as they are."""
    channel = next(iter(analysis["analytics"].values()))
    match number:
        case 5:
            channel["contractions"].pop()
            return analysis, "a contraction is missing from its list"
        case 6:
            channel["rms"] = "NaN"
            return analysis, "an RMS is the string NaN"
        case 7:
            channel["contractions"][0]["duration_ms"] *= -1
            return analysis, "a contraction lasts less than nothing"
        case 8:
            return json.dumps(analysis)[:-100], "JSON in a string, cut short"
        case 9:
            return [analysis], "an array"
    return analysis, None

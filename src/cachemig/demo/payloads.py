"""Rows of the demo's `therapy_sessions`: the same count and seed give the same rows, byte for byte, for the same `now`.

The values are those of EMG.md §11-13 with plausible random numbers in full double precision; among them stand, in known
numbers, the oddities a migration must survive. Only the standard library is imported: a demo starts at once.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from random import Random
from types import MappingProxyType
from typing import NamedTuple

MINIMUM_ROWS = 50
"""Fewer rows than this cannot hold every oddity."""

Json = dict[str, object]

_FS_HZ = 990.0
_TEMPORAL = ("rms", "mav", "fatigue_index", "mpf", "mdf")


class Kind(StrEnum):
    """What a planted row is; every row is of exactly one kind."""

    HEAD = "head"  # S1, fields of the head profile
    ERA = "era"  # S1, fields of the era profile
    BARE = "bare"  # S1 of a recording without one valid channel, 0.5 KB
    SUMMARY = "summary"  # S2
    SIGNALS = "signals"  # S1 with the signals in it, 100 KB to 2 MB
    NEVER_ACCESSED = "never_accessed"  # S1, last_accessed_at is NULL
    NEWER = "newer"  # S1, the session that wins a shared file_hash
    OLDER = "older"  # S1, the session that loses it
    EXPIRED = "expired"  # S1, last read more than 45 days ago
    WITHOUT_HASH = "without_hash"  # S1, but file_hash is NULL
    EMPTY = "empty"  # S0
    NULL = "null"  # S4
    DOUBLE_ENCODED = "double_encoded"  # corrupt: a JSON string that holds an S1
    TRUNCATED = "truncated"  # corrupt: a JSON string that holds an S1 cut short
    ARRAY = "array"  # corrupt: an S1 inside an array
    NUMBER = "number"  # corrupt
    TEXT = "text"  # corrupt: a JSON string that is no JSON


CORRUPT: Mapping[Kind, int] = MappingProxyType(
    {Kind.DOUBLE_ENCODED: 3, Kind.TRUNCATED: 1, Kind.ARRAY: 1, Kind.NUMBER: 1, Kind.TEXT: 1}
)
"""The corrupt rows: as many of each kind in every data set, whatever its size."""

# Share of the rows, and the least number of them. What is left over is HEAD and ERA.
_SHARES: Mapping[Kind, tuple[float, int]] = {
    Kind.BARE: (0.02, 1),
    Kind.SUMMARY: (0.07, 2),
    Kind.SIGNALS: (0.01, 1),
    Kind.NEVER_ACCESSED: (0.01, 1),
    Kind.NEWER: (0.02, 2),
    Kind.OLDER: (0.02, 2),
    Kind.EXPIRED: (0.03, 3),
    Kind.WITHOUT_HASH: (0.005, 2),
    Kind.EMPTY: (0.12, 5),
    Kind.NULL: (0.03, 3),
}
_DELIVERED = (Kind.HEAD, Kind.ERA, Kind.BARE, Kind.SUMMARY, Kind.SIGNALS, Kind.NEVER_ACCESSED, Kind.NEWER)


class DemoRow(NamedTuple):
    """One row, its fields in the order of COPY; the two jsonb columns as text."""

    id: uuid.UUID
    patient_code: str
    file_path: str
    file_hash: str | None
    file_size_bytes: int
    status: str
    game_metadata: str
    analytics_cache: str | None
    cache_hits: int
    last_accessed_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class CorruptRow:
    """Where a corrupt value was planted; its file_hash belongs to no other planted row."""

    kind: Kind
    id: uuid.UUID
    file_hash: str


@dataclass(frozen=True)
class Planted:
    """What `rows(count, seed)` holds, to the row: the sum over `kinds` is `rows`."""

    rows: int
    seed: int
    kinds: Mapping[Kind, int]
    corrupt: tuple[CorruptRow, ...]

    @property
    def keys(self) -> int:
        """Keys that a backfill puts into Redis if nobody writes and nothing corrupt is repaired."""
        return sum(self.kinds[kind] for kind in _DELIVERED)

    @property
    def decodable(self) -> int:
        """How many of the corrupt rows are repaired by decoding alone."""
        return self.kinds[Kind.DOUBLE_ENCODED]


@dataclass(frozen=True)
class Profile:
    """What differs between the two generations of the analysis (EMG.md §1.2)."""

    version: str
    mvc_count: str
    duration_count: str
    mvc_threshold: str
    compliance: bool
    params: Mapping[str, object]
    first_day: datetime
    days: int


HEAD = Profile(
    version="2.1.0",
    mvc_count="mvc_compliant_count",
    duration_count="duration_compliant_count",
    mvc_threshold="mvc75_threshold",
    compliance=True,
    params={
        "sampling_rate_hz": _FS_HZ,
        "processing_version": "2.1.0",
        "filter_low_cutoff_hz": 20.0,
        "filter_high_cutoff_hz": 500.0,
        "filter_order": 4,
        "rms_window_ms": 50.0,
        "rms_overlap_percent": 50.0,
        "mvc_window_seconds": 3.0,
        "mvc_threshold_percentage": 75.0,
        "threshold_factor": 0.1,
        "min_duration_ms": 100,
        "smoothing_window": 100,
        "activated_threshold_factor": 0.05,
        "merge_threshold_ms": 200,
        "refractory_period_ms": 0,
    },
    first_day=datetime(2025, 9, 27, 9, tzinfo=UTC),
    days=60,
)
ERA = Profile(
    version="v2.1.0",
    mvc_count="mvc_contraction_count",
    duration_count="duration_contraction_count",
    mvc_threshold="mvc_threshold_actual_value",
    compliance=False,
    params={},
    first_day=datetime(2025, 8, 19, 9, tzinfo=UTC),
    days=9,
)


def rows(count: int, seed: int, *, now: datetime | None = None) -> Iterator[DemoRow]:
    """Exactly `count` rows, of the kinds that `planted(count, seed)` names, in an order that tells nothing.

    Ages are counted back from `now` (aware; the current time if None). Raises ValueError below MINIMUM_ROWS.
    """
    moment = now or datetime.now(UTC)
    return (_row(slot, seed, moment) for slot in _layout(count, seed))


def planted(count: int, seed: int) -> Planted:
    """What `rows(count, seed)` yields, without making it. Raises ValueError below MINIMUM_ROWS."""
    corrupt = tuple(
        CorruptRow(slot.kind, _session_id(slot, seed), _file_hash(slot.recording, seed))
        for slot in _layout(count, seed)
        if slot.kind in CORRUPT
    )
    return Planted(count, seed, MappingProxyType(_census(count)), corrupt)


def analytics(rng: Random, profile: Profile, contractions: int, channels: int = 2) -> Json:
    """An S1 payload with every field its profile has: 2.3 KB a channel and 235 bytes a contraction, roughly, as JSON.

    `contractions` are shared out over the channels; `compliance_rate` (head) is absent where a channel has none,
    `errors` where nothing failed. Raises ValueError for more than 100 contractions.
    """
    if not 0 <= contractions <= 100:
        raise ValueError(f"{contractions} contractions do not fit into the shortest recording")
    samples = rng.randrange(12_000, 90_000)
    share = [0.0, *sorted(rng.uniform(0.3, 0.7) for _ in range(channels - 1)), 1.0]
    counts = [round(upper * contractions) - round(lower * contractions) for lower, upper in pairwise(share)]
    cached_at = profile.first_day + timedelta(seconds=rng.random() * 86_400 * profile.days)
    return {
        "analytics": {f"CH{i}": _channel(rng, profile, n, samples) for i, n in enumerate(counts, start=1)},
        "processing_params": dict(profile.params),
        "processing_version": profile.version,
        "cached_at": _naive(cached_at),
    }


def session_analytics(rng: Random) -> str:
    """The JSON text of an S1 payload of 2 to 18 KB, as an application writes it after one session."""
    channels = 1 if rng.random() < 0.2 else 2
    profile = HEAD if rng.random() < 0.8 else ERA
    return json.dumps(analytics(rng, profile, rng.randrange(0, 24 * channels), channels), ensure_ascii=False)


def game_metadata(rng: Random, patient_code: str) -> str:
    """The JSON text of a session's game metadata (EMG.md §14, head)."""
    frames = rng.randrange(12_000, 90_000)
    score = float(rng.randrange(0, 120))
    return json.dumps(
        {
            "system": "GHOSTLY",
            "game_name": "Ghostly",
            "level": str(rng.randrange(1, 64)),
            "level_name": rng.choice(("Forêt", "Cavern", "Château", "Harbour")),
            "version": "3.0.1",
            "therapist_id": f"T{rng.randrange(1, 20):03}",
            "group_id": rng.choice("AB"),
            "player_name": patient_code,
            "game_score": score,
            "score": score,
            "sampling_rate": _FS_HZ,
            "channel_names": ["CH1 Raw", "CH1 activated", "CH2 Raw", "CH2 activated"],
            "channel_count": 4,
            "frame_count": frames,
            "duration_seconds": frames / _FS_HZ,
        },
        ensure_ascii=False,
    )


class _Slot(NamedTuple):
    number: int  # of the row
    recording: int  # rows with one number share a file_hash
    kind: Kind
    rank: float  # 0 to 1 among the rows of its kind


def _census(count: int) -> dict[Kind, int]:
    if count < MINIMUM_ROWS:
        raise ValueError(f"{count} rows cannot hold every oddity; ask for {MINIMUM_ROWS} or more")
    census = {kind: max(least, round(share * count)) for kind, (share, least) in _SHARES.items()}
    census.update(CORRUPT)
    rest = count - sum(census.values())
    census[Kind.HEAD] = rest - rest // 3
    census[Kind.ERA] = rest // 3
    return census


def _layout(count: int, seed: int) -> list[_Slot]:
    slots: list[_Slot] = []
    newest: list[int] = []  # recordings that an older session shares
    for kind, number_of_kind in sorted(_census(count).items()):  # by name: NEWER comes before OLDER
        for i in range(number_of_kind):
            number = len(slots)
            recording = newest[i] if kind is Kind.OLDER else number
            slots.append(_Slot(number, recording, kind, i / max(1, number_of_kind - 1)))
            if kind is Kind.NEWER:
                newest.append(number)
    Random(f"{seed} order").shuffle(slots)
    return slots


def _row(slot: _Slot, seed: int, now: datetime) -> DemoRow:
    rng = Random(f"{seed} row {slot.number}")
    kind = slot.kind
    patient_code = f"P{rng.randrange(1, 80):03}"
    accessed, created = _times(rng, kind, now)
    value = _value(rng, kind, slot.rank)
    idle = kind in (Kind.EMPTY, Kind.NULL)
    return DemoRow(
        id=_session_id(slot, seed),
        patient_code=patient_code,
        file_path=f"{patient_code}/Ghostly_Emg_{created:%Y%m%d_%H-%M-%S}-{rng.randrange(10_000):04}.c3d",
        file_hash=None if kind is Kind.WITHOUT_HASH else _file_hash(slot.recording, seed),
        file_size_bytes=rng.randrange(200_000, 3_000_000),
        status=rng.choice(("pending", "failed")) if idle else "completed",
        game_metadata=game_metadata(rng, patient_code),
        analytics_cache=value,
        cache_hits=0 if accessed is None else rng.randrange(0, 40),
        last_accessed_at=accessed,
        created_at=created,
        updated_at=accessed or created,  # the table's trigger moves updated_at with every access
    )


def _times(rng: Random, kind: Kind, now: datetime) -> tuple[datetime | None, datetime]:
    """last_accessed_at and created_at, far enough from the 30 days of the default ttl that no run crosses them."""
    nearest, farthest = {Kind.EXPIRED: (45, 300), Kind.NEWER: (0, 8), Kind.OLDER: (12, 25)}.get(kind, (0, 25))
    accessed = now - timedelta(days=rng.uniform(nearest, farthest))
    created = accessed - timedelta(days=rng.uniform(0, 3))
    never = kind in (Kind.EMPTY, Kind.NULL, Kind.NEVER_ACCESSED)
    return None if never else accessed, created


def _value(rng: Random, kind: Kind, rank: float) -> str | None:
    payload: object
    match kind:
        case Kind.NULL:
            return None
        case Kind.EMPTY:
            payload = {}
        case Kind.SUMMARY:
            payload = _summary(rng)
        case Kind.BARE:
            payload = {**analytics(rng, HEAD, 0), "analytics": {}}
        case Kind.SIGNALS:
            payload = _with_signals(rng, round(100_000 * 20 ** (rank**3)))
        case Kind.NUMBER:
            payload = rng.randrange(1, 100)
        case Kind.TEXT:
            payload = "[object Object]"
        case _:
            profile = ERA if kind is Kind.ERA or (kind is not Kind.HEAD and rng.random() < 0.4) else HEAD
            payload = analytics(rng, profile, 18 + int(32 * rng.random() ** 2))
            if kind is Kind.ARRAY:
                payload = [payload]
            elif kind in (Kind.DOUBLE_ENCODED, Kind.TRUNCATED):
                inner = json.dumps(payload, ensure_ascii=False)
                payload = inner if kind is Kind.DOUBLE_ENCODED else inner[: len(inner) * 2 // 3]
    return json.dumps(payload, ensure_ascii=False)


def _summary(rng: Random) -> Json:
    summary: Json = {"total_channels": 2, "overall_compliance": rng.choice((0.0, rng.random()))}
    if rng.random() < 0.7:  # the last versions that wrote this shape left it out
        moment = datetime(2025, 8, 14, 17, tzinfo=UTC) + timedelta(seconds=rng.random() * 86_400 * 12)
        summary["cached_at"] = moment.isoformat(timespec="microseconds")
    return {"channels": ["CH1", "CH2"], "summary": summary}


def _with_signals(rng: Random, size: int) -> Json:
    """An S1 with signal arrays: `size` bytes of JSON, give or take a tenth."""
    samples = (size - 12_000) // (4 * 23)  # four arrays; a number takes 23 bytes
    random = rng.random
    payload = analytics(rng, HEAD, 24)
    payload["emg_signals"] = {
        base: {
            "sampling_rate_hz": _FS_HZ,
            "raw": [(random() - 0.5) * 0.004 for _ in range(samples)],
            "envelope": [random() * 0.0004 for _ in range(samples)],
        }
        for base in ("CH1", "CH2")
    }
    return payload


def _channel(rng: Random, profile: Profile, contractions: int, samples: int) -> Json:
    level = 10 ** rng.uniform(-5.0, -3.9)  # volts
    threshold = level * rng.uniform(0.5, 1.0)
    failed = rng.random() < 0.01
    peak = level * rng.uniform(4.0, 9.0)
    found = _contractions(rng, contractions, samples, threshold, peak)
    durations = [contraction["duration_ms"] for contraction in found]
    good = sum(contraction["is_good"] for contraction in found)
    record: Json = {
        "expected_contractions": rng.choice((None, None, 12)),
        "rms": level * rng.uniform(1.5, 3.0),
        "mav": level * rng.uniform(0.8, 1.4),
        "mpf": None if failed else rng.uniform(40.0, 130.0),
        "mdf": None if failed else rng.randrange(8, 30) * _FS_HZ / 256,
        "fatigue_index_fi_nsm5": None if failed else 10 ** rng.uniform(-14, -12),
    }
    typical = (level * 2, level, 3e-13, 80.0, 60.0)
    for name, mean in zip(_TEMPORAL, typical, strict=True):
        record[f"{name}_temporal_stats"] = _temporal(rng, mean * rng.uniform(0.7, 1.3), int(samples / _FS_HZ * 2) - 1)
    record["signal_processing"] = _processing(rng, level, peak, samples)
    record |= {
        "contraction_count": len(found),
        "avg_duration_ms": sum(durations) / len(found) if found else 0.0,
        "min_duration_ms": min(durations, default=0.0),
        "max_duration_ms": max(durations, default=0.0),
        "total_time_under_tension_ms": float(sum(durations)),
        "avg_amplitude": sum(contraction["mean_amplitude"] for contraction in found) / len(found) if found else 0.0,
        "max_amplitude": max((contraction["max_amplitude"] for contraction in found), default=0.0),
        "contractions": found,
        "good_contraction_count": good,
        profile.mvc_count: sum(contraction["meets_mvc"] for contraction in found),
        profile.duration_count: sum(contraction["meets_duration"] for contraction in found),
        profile.mvc_threshold: threshold,
        "duration_threshold_actual_value": 2000.0,
        "mvc_estimation_method": "user_provided" if rng.random() < 0.1 else "backend_estimation",
    }
    if profile.compliance and found:
        record["compliance_rate"] = good / len(found)
    if failed:
        record["errors"] = {"mpf": "Spectral analysis failed – fewer than 256 usable samples"}
    return record


class _Contraction(dict[str, float]):
    """A contraction's fields; the three flags are bool, which is an int."""


def _contractions(rng: Random, count: int, samples: int, threshold: float, peak: float) -> list[_Contraction]:
    """In time order, within the recording, never overlapping; times are whole samples, in ms."""
    random = rng.random
    found = []
    room = samples // max(1, count)
    for i in range(count):
        length = 99 + int(min(room - 120, 2600) * random() ** 3)
        start = i * room + int((room - length) * random())
        duration_ms = length / _FS_HZ * 1000
        mean = threshold * (0.7 + random())
        highest = min(peak, mean * (1.1 + random()))
        meets_mvc, meets_duration = highest >= threshold, duration_ms >= 2000.0
        found.append(
            _Contraction(
                start_time_ms=start / _FS_HZ * 1000,
                end_time_ms=(start + length) / _FS_HZ * 1000,
                duration_ms=duration_ms,
                mean_amplitude=mean,
                max_amplitude=highest,
                is_good=meets_mvc and meets_duration,
                meets_mvc=meets_mvc,
                meets_duration=meets_duration,
            )
        )
    return found


def _temporal(rng: Random, mean: float, windows: int) -> Json:
    variation = rng.uniform(0.1, 1.5)
    return {
        "mean_value": mean,
        "std_value": mean * variation,
        "min_value": mean * rng.uniform(0.1, 0.7),
        "max_value": mean * rng.uniform(1.5, 4.0),
        "valid_windows": windows,
        "coefficient_of_variation": variation,
    }


def _processing(rng: Random, level: float, peak: float, samples: int) -> Json:
    return {
        "source": "RAW",
        "processing_steps": [
            "High-pass filter: 20.0Hz, order 4",
            "Full-wave rectification",
            "Low-pass filter for envelope: 10.0Hz, order 4",
            "Moving average smoothing: 50.0ms window (49 samples)",
        ],
        "parameters_used": {
            "highpass_cutoff_hz": 20.0,
            "rectification_enabled": True,
            "lowpass_cutoff_hz": 10.0,
            "filter_order": 4,
            "smoothing_window_ms": 50.0,
            "smoothing_window_samples": 49,
        },
        "quality_metrics": {
            "valid": True,
            "message": "Signal quality acceptable",
            "original_signal_stats": {
                "mean": -level * rng.random() / 3,
                "std": level * rng.uniform(1.5, 3.0),
                "min": -peak * rng.uniform(2.0, 4.0),
                "max": peak * rng.uniform(2.0, 4.0),
                "samples": samples,
            },
            "processed_signal_stats": {
                "mean": level * rng.uniform(0.5, 0.9),
                "std": level * rng.uniform(0.5, 1.5),
                "min": -level * rng.random() / 10,
                "max": peak,
                "samples": samples,
            },
        },
    }


def _session_id(slot: _Slot, seed: int) -> uuid.UUID:
    return uuid.UUID(bytes=hashlib.sha256(f"session {seed} {slot.number}".encode()).digest()[:16], version=4)


def _file_hash(recording: int, seed: int) -> str:
    return hashlib.sha256(f"recording {seed} {recording}".encode()).hexdigest()


def _naive(moment: datetime) -> str:
    """UTC without a zone suffix, as the application wrote `cached_at` in S1."""
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds")

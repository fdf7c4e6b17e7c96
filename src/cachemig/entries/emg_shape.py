"""The shapes that an EMG application keeps in its analytics column, and what makes one of them corrupt.

| | |
|---|---|
| analysis | `analytics` by channel, `processing_params`, `processing_version`, `cached_at` |
| summary | `channels`, `summary` |
| count | `channels_analyzed`; seen in test databases |
| session | `session_id`, `analytics`, `summary`, `metadata`, `cache_version` |

Fields that are not named here are let pass, so that an application may add its own.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import orjson

from cachemig.entries.entry import Buffer

VERSIONS = ("2.1.0", "v2.1.0")
CACHE_VERSIONS = ("2.1",)

# Fields of a channel's record: what they hold, and whether null is an answer too.
_AMOUNTS = ("rms", "mav", "avg_amplitude", "max_amplitude")
_FREQUENCIES = ("mpf", "mdf", "fatigue_index_fi_nsm5", "mvc75_threshold", "mvc_threshold_actual_value")
_DURATIONS = ("avg_duration_ms", "min_duration_ms", "max_duration_ms", "total_time_under_tension_ms")
_NULLABLE_DURATIONS = ("duration_threshold_actual_value",)
# The flag of a contraction, and the names that the number of contractions with it has had.
_COUNTED = {
    "is_good": ("good_contraction_count",),
    "meets_mvc": ("mvc_compliant_count", "mvc_contraction_count", "mvc75_compliance_rate"),
    "meets_duration": ("duration_compliant_count", "duration_contraction_count", "duration_compliance_rate"),
}
_STATISTICS = (
    "rms_temporal_stats", "mav_temporal_stats", "fatigue_index_temporal_stats", "mpf_temporal_stats",
    "mdf_temporal_stats",
)  # fmt: skip
_CONTRACTION = itemgetter(
    "start_time_ms", "end_time_ms", "duration_ms", "mean_amplitude", "max_amplitude", "is_good", "meets_mvc",
    "meets_duration",
)  # fmt: skip
_TYPES = (float,) * 5 + (bool,) * 3
_NUMBER_OR_NULL = {float, int, type(None)}


class _Fault(Exception):
    """`name: detail` of the first thing that is wrong. Never a word of the value: a label may be a patient's."""


def fault(text: Buffer) -> str | None:
    """Why this JSON object is none of the known shapes, or a corrupt one, as `name: detail`; None for a sound one."""
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        if "infinity" in str(exc):  # 1e400: jsonb holds it, no double does
            return "impossible-number: one that no double can hold"
        return "unparsable: nested too deeply, or with half a surrogate pair"
    try:
        _check(document)
    except _Fault as exc:
        return str(exc)
    return None


def _check(document: dict[str, Any]) -> None:
    if "session_id" in document and "analytics" in document:
        _channels(_field(document, "analytics", dict))
        _known(document, "cache_version", CACHE_VERSIONS)
    elif "analytics" in document:
        _channels(_field(document, "analytics", dict))
        _field(document, "processing_params", dict)
        _field(document, "cached_at", str)
        _known(document, "processing_version", VERSIONS)
    elif "channels" in document and "summary" in document:
        channels, summary = _field(document, "channels", list), _field(document, "summary", dict)
        if not all(isinstance(name, str) for name in channels):
            raise _Fault("wrong-type: channels are not all names")
        _same(_count(summary, "total_channels"), len(channels), "total_channels", "channels")
        if not 0 <= _number(summary, "overall_compliance") <= 1:
            raise _Fault("impossible-number: overall_compliance is no share")
    elif "channels_analyzed" in document:
        _count(document, "channels_analyzed")
    else:
        raise _Fault("unknown-shape: an object, but none that the application writes")


def _channels(analytics: dict[str, Any]) -> None:
    for rank, record in enumerate(analytics.values(), 1):
        try:
            if not isinstance(record, dict):
                raise _Fault("wrong-type: not an object")
            _channel(record)
        except _Fault as exc:
            name, _, detail = str(exc).partition(": ")
            raise _Fault(f"{name}: channel {rank}: {detail}") from None


def _channel(record: dict[str, Any]) -> None:
    errors = record.get("errors") or {}
    for name in _AMOUNTS:
        _not_negative(_number(record, name), name)
    for name in _FREQUENCIES:
        if record.get(name) is not None:
            _not_negative(_number(record, name), name)
    for name in _DURATIONS:
        _duration(_number(record, name), name)
    for name in _NULLABLE_DURATIONS:
        if record.get(name) is not None:
            _duration(_number(record, name), name)
    for name in _STATISTICS:
        if name in record:
            values = _field(record, name, dict).values()
            if not _NUMBER_OR_NULL.issuperset(map(type, values)):
                for value in values:
                    _number_or_null(value, name)
    contractions = _field(record, "contractions", list)
    for at, contraction in enumerate(contractions, 1):
        _contraction(contraction, at)
    if "contractions" in errors:
        return  # the channel's analysis failed after it had counted
    _same(_count(record, "contraction_count"), len(contractions), "contraction_count", "contractions")
    for flag, names in _COUNTED.items():
        for name in names:
            if name in record:
                with_flag = sum(map(itemgetter(flag), contractions))
                _same(_count(record, name), with_flag, name, f"contractions with {flag}")


def _contraction(contraction: Any, at: int) -> None:
    try:  # most of a value's fields are in its contractions: a look at all eight of one at once
        start, end, length, mean, largest, *_ = fields = _CONTRACTION(contraction)
        if (
            tuple(map(type, fields)) == _TYPES
            and 0 <= start <= end
            and mean >= 0
            and largest >= 0
            and abs(end - start - length) <= 1e-6 * length + 1e-6
        ):
            return
    except (KeyError, TypeError, IndexError):
        pass  # and field by field, to say which
    where = f"contraction {at}"
    if not isinstance(contraction, dict):
        raise _Fault(f"wrong-type: {where} is not an object")
    start, end, length = (
        _duration(_number(contraction, name), f"{where} {name}")
        for name in ("start_time_ms", "end_time_ms", "duration_ms")
    )
    if end < start:
        raise _Fault(f"negative-duration: {where} ends before it starts")
    if abs(end - start - length) > 1e-6 * length + 1e-6:
        raise _Fault(f"impossible-number: {where} duration_ms is not the time from its start to its end")
    for name in ("mean_amplitude", "max_amplitude"):
        _not_negative(_number(contraction, name), f"{where} {name}")
    for flag in _COUNTED:
        _field(contraction, flag, bool)


# Fields -----------------------------------------------------------------------------------------------------------


def _field(of: dict[str, Any], name: str, type_: type) -> Any:
    if name not in of:
        raise _Fault(f"missing-field: {name}")
    if not isinstance(of[name], type_):
        raise _Fault(f"wrong-type: {name}")
    return of[name]


def _known(document: dict[str, Any], name: str, versions: tuple[str, ...]) -> None:
    if _field(document, name, str) not in versions:
        raise _Fault(f"unknown-version: {name} is not one of {', '.join(versions)}")


def _number(of: dict[str, Any], name: str) -> float:
    if name not in of:
        raise _Fault(f"missing-field: {name}")
    value = _number_or_null(of[name], name)
    if value is None:
        raise _Fault(f"wrong-type: {name} is null")
    return value


def _number_or_null(value: Any, name: str) -> float | None:
    if isinstance(value, str):
        raise _Fault(f"number-as-string: {name}")
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise _Fault(f"wrong-type: {name}")
    return value


def _count(of: dict[str, Any], name: str) -> float:
    value = _number(of, name)
    if value < 0 or value != int(value):
        raise _Fault(f"impossible-number: {name} is no count")
    return value


def _not_negative(value: float, name: str) -> None:
    if value < 0:
        raise _Fault(f"impossible-number: {name} is negative")


def _duration(value: float, name: str) -> float:
    if value < 0:
        raise _Fault(f"negative-duration: {name}")
    return value


def _same(counted: float, listed: int, count: str, of: str) -> None:
    if counted != listed:
        raise _Fault(f"count-mismatch: {count} is not the number of {of}")

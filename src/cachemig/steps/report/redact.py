"""What may leave: of texts that commands and servers wrote only what is known to hold no key and no value. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_TEXTS = frozenset(
    {
        "accepted", "because", "began_anew", "broken", "capture", "checked_at", "column", "columns", "ended_early",
        "guard", "held_up_by", "location", "method", "phase", "reason", "sha256", "table",
    }
)  # fmt: skip
"""Figures whose texts the tool makes itself, of names and reasons. No other text of a figure is shown."""
_NAME = re.compile(r"[a-z][a-z0-9_.% -]{0,40}", re.IGNORECASE)
_FAULT = re.compile(r"[a-z][a-z-]{0,40}")
_ELSEWHERE = frozenset({"sql", "recreate", "settings", "shadow", "fingerprint", "cases"})
"""Shown in a place of their own; `shadow` is by client, and `cases` are keys."""


def safe(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, and the texts that are known to hold no key and no value."""
    kept: dict[str, Any] = {}
    for name, value in figures.items():
        if name in _ELSEWHERE or not _NAME.fullmatch(name):
            continue
        if name == "faults" and isinstance(value, dict):
            kept[name] = faults(value)
        elif name == "gates" and isinstance(value, dict):
            kept[name] = {k: v for k, v in value.items() if isinstance(v, str)}
        elif isinstance(value, dict):
            kept[name] = safe(value)
        elif value is None or isinstance(value, bool | int | float):
            kept[name] = value
        elif name in _TEXTS and isinstance(value, str | list):
            kept[name] = value if isinstance(value, str) else [v for v in value if isinstance(v, str)]
    return kept


def fault_name(error: str) -> str:
    """The name of a fault, of what the ledger says about a key: what stands behind the name may hold the key. Of what
    Redis said, its word for it."""
    name, _, rest = error.partition(":")
    if name == "redis" and (said := re.match(r" ?([A-Z]{2,20})\b", rest)):
        return f"redis: {said[1]}"
    return name if _FAULT.fullmatch(name) else "not named"


def faults(found: Mapping[str, Any]) -> dict[str, int]:
    named: dict[str, int] = {}
    for fault, keys in found.items():
        if isinstance(keys, int):
            named[fault_name(fault)] = named.get(fault_name(fault), 0) + keys
    return named


def rehearsed(document: Mapping[str, Any], *, show_keys: bool) -> dict[str, Any]:
    """What `cachemig rehearse` wrote, as far as it is known. What its commands printed may name keys of the rows
    that it was given, and is taken over only with `show_keys`."""
    kept: dict[str, Any] = {
        name: str(document[name]) for name in ("verdict", "reason") if _is_plain(document.get(name))
    }
    kept |= _seconds(document)
    kept["steps"] = []
    steps = document.get("steps")
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict):
            names = ("command", "why", "exit_code", *(("output",) if show_keys else ()))
            plain = {name: str(step[name]) for name in names if _is_plain(step.get(name))}
            kept["steps"].append(plain | _seconds(step))
    for name in ("sql", "lint"):
        value = document.get(name)
        kept[name] = [_told(item) for item in (value if isinstance(value, list) else [])]
    return kept


def _seconds(found: Mapping[str, Any]) -> dict[str, float]:
    seconds = found.get("seconds")
    return {"seconds": seconds} if isinstance(seconds, int | float) and 0 <= seconds < math.inf else {}


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def _told(item: object) -> str:
    if isinstance(item, dict):
        return " · ".join(f"{name}: {value}" for name, value in item.items() if _is_plain(value))
    return str(item)

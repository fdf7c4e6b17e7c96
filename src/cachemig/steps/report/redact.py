"""What may leave: of texts that commands and servers wrote only what is known to hold no key and no value. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from cachemig.emg import errors as emg
from cachemig.entries.shape import CORRUPT
from cachemig.entries.verdicts import Verdict
from cachemig.ladder import GATES
from cachemig.recordings import errors as recordings

_TEXTS = frozenset(
    {
        "accepted", "because", "began_anew", "broken", "capture", "checked_at", "column", "columns", "ended_early",
        "guard", "held_up_by", "location", "method", "phase", "reason", "sha256", "table",
    }
)  # fmt: skip
"""Figures whose texts the tool makes itself, of names and reasons. No other text of a figure is shown."""
_NAME = re.compile(r"[a-z][a-z_]{0,30}")
"""Of a figure: the commands choose it."""
_FAULTS = frozenset({"redis", "written-meanwhile", *CORRUPT, *emg.NAMES, *recordings.NAMES})
"""Every name of a fault. Whatever stands in its place may be a key, however much it looks like a name."""
_WITHIN = frozenset(
    {
        "hit", "miss", "error", "redis", "column", "n", "p50", "p95", "p99", "ok", "redis_failed", "race",
        "unreachable", "dropped", "reads", "fallback", "writes", "shadow", "latency_ms", *Verdict,
    }
)  # fmt: skip
"""Names inside of a figure that counts by name. What clients count by is made by other programs."""


def safe(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, and the texts that are known to hold no key and no value."""
    kept: dict[str, Any] = {}
    for name, value in figures.items():
        if not _NAME.fullmatch(name):
            continue
        if isinstance(value, dict):
            if inner := _within(name, value):
                kept[name] = inner
        elif _is_number(value):
            kept[name] = value
        elif name in _TEXTS and isinstance(value, str | list):
            kept[name] = value if isinstance(value, str) else [v for v in value if isinstance(v, str)]
    return kept


def reported(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what clients reported."""
    inner = {k: reported(v) if isinstance(v, dict) else v for k, v in figures.items() if k in _WITHIN}
    return {k: v for k, v in inner.items() if isinstance(v, dict) or _is_number(v)}


def _within(name: str, value: Mapping[str, Any]) -> dict[str, Any]:
    match name:
        case "faults" | "left":
            return faults(value)
        case "gates":
            return {gate: figure for gate, figure in value.items() if gate in GATES and isinstance(figure, str)}
        case "limits":
            return {k: v for k, v in value.items() if k.startswith("ramp_") and _NAME.fullmatch(k) and _is_number(v)}
        case "counts" | "figures":
            return reported(value)
    return {}


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float)


def fault_name(error: str) -> str:
    """The name of a fault, of what the ledger says about a key: what stands behind the name may hold the key. Of what
    Redis said, its word for it."""
    name, _, rest = error.partition(":")
    if name == "redis" and (said := re.match(r" ?([A-Z]{2,20})\b", rest)):
        return f"redis: {said[1]}"
    return name if name in _FAULTS else "not named"


def faults(found: Mapping[str, Any]) -> dict[str, int]:
    named: dict[str, int] = {}
    for fault, keys in found.items():
        if isinstance(keys, int):
            named[fault_name(fault)] = named.get(fault_name(fault), 0) + keys
    return named


def rehearsed(document: Mapping[str, Any], *, show_keys: bool) -> dict[str, Any]:
    """What `cachemig rehearse` wrote, as far as it is known. What its commands printed may name keys of the rows
    that it was given, and is taken over only with `show_keys`."""
    kept: dict[str, Any] = _seconds(document)
    kept["steps"] = []
    steps = document.get("steps")
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict):
            names = ("command", "why", "exit_code", *(("output",) if show_keys else ()))
            plain = {name: str(step[name]) for name in names if _is_plain(step.get(name))}
            kept["steps"].append(plain | _seconds(step))
    if isinstance(document.get("passed"), bool):
        kept["verdict"] = "It passed." if document["passed"] else "It said no."
    kept["reasons"], kept["notes"], kept["lint"] = (_texts(document, name) for name in ("reasons", "notes", "lint"))
    return kept | {"linter": str(document["linter"]) if document.get("linter") else None}


def _texts(document: Mapping[str, Any], name: str) -> list[str]:
    value = document.get(name)
    return [str(item) for item in value if _is_plain(item)] if isinstance(value, list) else []


def _seconds(found: Mapping[str, Any]) -> dict[str, float]:
    seconds = found.get("seconds")
    return {"seconds": seconds} if isinstance(seconds, int | float) and 0 <= seconds < math.inf else {}


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float)

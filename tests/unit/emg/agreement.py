"""When two payloads agree: everything but floats exactly, types included; floats to 1e-9 of the larger one.

The mean and minimum of the processed signal may lie near zero, where only an absolute difference has a meaning: it is
1e-12 times the processed maximum, added.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

RELATIVE = 1e-9
FLOOR = 1e-12

Path = tuple[str | int, ...]


def disagreements(ours: Any, theirs: Any) -> list[str]:
    """Each difference that is too large, with its path."""
    return [
        f"{path}: {left!r} is not {right!r}"
        for path, left, right, allowed in _pairs(ours, theirs, (), 0.0)
        if not _agree(left, right, allowed)
    ]


def largest_deviation(ours: Any, theirs: Any) -> float:
    """The largest relative difference of two floats, outside processed_signal_stats."""
    return max(
        (
            abs(left - right) / max(abs(left), abs(right))
            for path, left, right, _ in _pairs(ours, theirs, (), 0.0)
            if isinstance(left, float) and isinstance(right, float) and left != right
            if "processed_signal_stats" not in path
        ),
        default=0.0,
    )


def _pairs(ours: Any, theirs: Any, path: Path, allowed: float) -> Iterator[tuple[Path, Any, Any, float]]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        yield (*path, "keys"), sorted(ours), sorted(theirs), 0.0
        for key in ours.keys() & theirs.keys():
            near_zero = path[-1:] == ("processed_signal_stats",) and key in ("min", "mean")
            inner = FLOOR * theirs["max"] if near_zero else 0.0
            yield from _pairs(ours[key], theirs[key], (*path, key), inner)
    elif isinstance(ours, list) and isinstance(theirs, list):
        yield (*path, "length"), len(ours), len(theirs), 0.0
        for index, (left, right) in enumerate(zip(ours, theirs, strict=False)):
            yield from _pairs(left, right, (*path, index), 0.0)
    else:
        yield path, ours, theirs, allowed


def _agree(left: Any, right: Any, allowed: float) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return bool(abs(left - right) <= RELATIVE * max(abs(left), abs(right)) + allowed)
    return bool(left == right)

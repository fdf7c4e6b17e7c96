"""What a rehearsal found: the document that is kept beside a pull request."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Step:
    """One command, as a person would have typed it."""

    command: str
    why: str
    exit_code: int
    seconds: float
    output: str
    """What it told; empty where it wrote to a terminal itself."""


@dataclass(frozen=True)
class Ran:
    """What one command executed in Postgres, but for reading and moving rows."""

    command: str
    sql: tuple[str, ...]


@dataclass(frozen=True)
class Traffic:
    """What simulated programs did meanwhile."""

    changes: int
    changes_failed: int
    reads: int
    reads_failed: int
    update_p50_ms: float | None
    update_p99_ms: float | None
    read_p50_ms: float | None


@dataclass(frozen=True)
class Rehearsed:
    """The verdict first: `passed`, or why not."""

    passed: bool
    reasons: tuple[str, ...]
    """What said no: a gate, a dependent, the linter, or a command that failed."""
    notes: tuple[str, ...]
    """What is not as it would be in production."""
    table: str
    column: str
    rows: int
    steps: tuple[Step, ...]
    sql: tuple[Ran, ...]
    lint: tuple[str, ...]
    linter: str | None
    """None: none is installed."""
    traffic: Traffic
    versions: dict[str, str]
    began: str
    seconds: float

    def document(self) -> dict[str, Any]:
        return asdict(self)


_WORD = re.compile(r"[^\s,;:()\[\]'\"]+")
_SHORTEST = 4
"""Characters. A shorter key tells little, and every figure would be taken for one."""


def without_keys(found: Rehearsed, keys: Collection[str]) -> Rehearsed:
    """The same, each key replaced by the first digits of its SHA-256: rows of a sample may be a patient's."""
    known = frozenset(key for key in keys if len(key) >= _SHORTEST)
    others = sorted((key for key in known if not _WORD.fullmatch(key)), key=len, reverse=True)
    of_several_words = re.compile("|".join(map(re.escape, others))) if others else None

    def hidden(match: re.Match[str]) -> str:
        text = match[0]
        return f"key-{hashlib.sha256(text.encode()).hexdigest()[:12]}" if text in known else text

    def clean(text: str) -> str:
        return _WORD.sub(hidden, of_several_words.sub(hidden, text) if of_several_words else text)

    return replace(
        found,
        reasons=tuple(map(clean, found.reasons)),
        notes=tuple(map(clean, found.notes)),
        steps=tuple(replace(s, command=clean(s.command), output=clean(s.output)) for s in found.steps),
    )

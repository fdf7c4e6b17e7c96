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


def without_keys(found: Rehearsed, keys: Collection[str]) -> Rehearsed:
    """The same, each key replaced by the first digits of its SHA-256: rows of a sample may be a patient's."""
    known = frozenset(keys)

    def hidden(match: re.Match[str]) -> str:
        word = match[0]
        return f"key-{hashlib.sha256(word.encode()).hexdigest()[:12]}" if word in known else word

    def clean(text: str) -> str:
        return _WORD.sub(hidden, text)

    return replace(
        found,
        reasons=tuple(map(clean, found.reasons)),
        notes=tuple(map(clean, found.notes)),
        steps=tuple(replace(s, command=clean(s.command), output=clean(s.output)) for s in found.steps),
    )

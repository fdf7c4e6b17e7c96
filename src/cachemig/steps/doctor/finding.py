"""What a check says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from cachemig import errors
from cachemig.source.connect import source_errors
from cachemig.targets.faults import target_errors


class Level(StrEnum):
    """What a finding means for a step."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"
    """A gate refuses, unless the finding is accepted by name."""


@dataclass(frozen=True)
class Finding:
    """What a check found, and what to do about it. `name` never changes: scripts and `--accept` rely on it."""

    name: str
    level: Level
    what: str
    do: str | None = None


@dataclass(frozen=True)
class Findings:
    """A finding of every check."""

    findings: list[Finding]
    accepted: list[str] = field(default_factory=list)
    """Names of errors that are known, and refuse no step."""


Said = tuple[Level, str, str | None]
Subject = TypeVar("Subject")
Check = Callable[[Subject], Said]


def ok(what: str) -> Said:
    return Level.OK, what, None


def note(what: str, do: str) -> Said:
    return Level.NOTE, what, do


def warning(what: str, do: str) -> Said:
    return Level.WARNING, what, do


def error(what: str, do: str | None) -> Said:
    return Level.ERROR, what, do and do.removesuffix(", then: cachemig doctor")  # which is what runs


def look(name: str, check: Check[Subject], subject: Subject) -> Finding:
    """The finding of a check; one that cannot be carried out says so, and why."""
    try:
        with source_errors(), target_errors():
            return Finding(name, *check(subject))
    except errors.CachemigError as exc:
        gone = isinstance(exc, errors.SourceUnavailable | errors.TargetUnavailable)
        level = Level.ERROR if gone else Level.WARNING
        return Finding(name, level, f"could not be looked at: {exc}", exc.hint)


def in_bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"

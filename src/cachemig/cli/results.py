"""What commands show beside the results of steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Configuration:
    """Every setting: its name, its value with secrets masked, and where it comes from."""

    settings: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Plotted:
    """A drawing."""

    file: str


@dataclass(frozen=True)
class BrownoutEnded:
    """The column that has its name again; None: no brownout was under way."""

    ended: str | None


@dataclass(frozen=True)
class ErrorDocument:
    """Why a command could not do what it was asked."""

    error: str
    """The name of its kind: Refused, SourceUnavailable, .."""
    message: str
    hint: str | None
    exit_code: int


@dataclass(frozen=True)
class DryRunOutcome:
    """One command of `cachemig ci`."""

    name: str
    command: str
    exit_code: int
    error: str | None
    """Why it could not look; None where it did."""
    failures: list[str]
    """Names of checks that say no."""
    document: str | None
    """Its --json document, in the folder."""
    junit: str | None


@dataclass(frozen=True)
class DryRuns:
    """What `cachemig ci` found, and where it lies."""

    folder: str
    phase: str
    runs: list[DryRunOutcome]
    plan: str | None
    """The plan file that `cachemig apply` takes."""
    exit_code: int

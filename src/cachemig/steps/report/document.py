"""What a report holds, as data; saved and read back it is the same."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cachemig.errors import ConfigError

SCHEMA = "cachemig/report/1"
"""As every document of the command line names its own (docs/schemas)."""


@dataclass(frozen=True)
class Conclusion:
    """The first line of the report, and what stands behind it."""

    tone: str
    """`good`: safe to drop, or proven equal; `wait`: not yet; `bad`: something was found to be wrong."""
    line: str
    why: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """One line of the journal. Of its figures only numbers, and texts that are known to name no key."""

    at: str
    who: str
    command: str
    phase_from: str | None
    phase_to: str | None
    epoch: int | None
    figures: dict[str, Any]


@dataclass(frozen=True)
class Stretch:
    """The time spent in one phase."""

    phase: str
    percent: float | None
    """In cutover."""
    since: str
    until: str


@dataclass(frozen=True)
class Counted:
    """A verdict: how many keys have it, and what that means."""

    verdict: str
    keys: int
    means: str
    counts: str
    """good, neither, accepted, bad."""


@dataclass(frozen=True)
class Checked:
    """A verification of all keys."""

    at: str
    who: str
    epoch: int
    passed: bool
    phase: str
    same_settings: bool
    since_drop: bool
    bytes: int
    seconds: float
    accept_set_aside: int
    counts: list[Counted]
    faults: dict[str, int]


@dataclass(frozen=True)
class Exceptional:
    """Keys that could not be migrated for the same reason."""

    state: str
    fault: str
    keys: int
    named: list[str]


@dataclass(frozen=True)
class Ledger:
    """The ledger in figures."""

    share: float
    """Of its pages, that were read; below 1 all figures are estimates."""
    states: list[tuple[str, int, int]]
    """(state, keys, bytes)."""
    sizes: list[tuple[int, int]]
    """(n, keys): of 2^(n-1) bytes up to below 2^n."""
    expiries: list[tuple[int | None, int]]
    """(hours from now, keys); None: they do not expire."""


@dataclass(frozen=True)
class Slot:
    """Part of the time that backfill took."""

    at: str
    seconds: float
    entries: float
    bytes: float


@dataclass(frozen=True)
class Reading:
    """What clients reported, at one time: their reads by path, and latencies."""

    at: str
    what: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Size:
    """Bytes on disk at one time."""

    at: str
    what: str
    table: int
    database: int


@dataclass(frozen=True)
class Ran:
    """SQL that one command has run, or (`undo`) that makes again what it removed."""

    at: str
    command: str
    statements: list[str]
    undo: bool = False


@dataclass(frozen=True)
class Report:
    """The proof of a migration, to be read by who approves it."""

    at: str
    """By Postgres's clock, UTC as all times."""
    by: str
    keys_shown: bool
    table: str
    column: str
    phase: str
    percent: float
    epoch: int
    since: str
    since_by: str
    conclusion: Conclusion
    versions: dict[str, str]
    targets: dict[str, str]
    redis_fault: str | None
    fingerprint: str
    settings: list[tuple[str, str, str, bool]]
    """(name, value, origin, it decides what stands in Redis)."""
    gates: list[dict[str, Any]]
    """Of drop-column, where they could be measured."""
    stretches: list[Stretch]
    journal: list[Line]
    journal_left_out: dict[str, int]
    """By command: earlier lines that are not listed."""
    checked: Checked | None
    exceptions: list[Exceptional]
    more_exceptions: bool
    repairs: list[tuple[str, str, int, int]]
    """(how, fault, keys, taken back)."""
    late: dict[str, Any] | None
    ledger: Ledger
    throughput: list[Slot]
    readings: list[Reading]
    sizes: list[Size]
    archive: dict[str, Any] | None
    ran: list[Ran]
    next_command: str
    rehearsal: dict[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """As JSON has it: what is drawn from it, and from what was saved of it, is the same."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document


def read_document(path: Path) -> dict[str, Any]:
    """A document that `--run-json` saved. Raises ConfigError where it is none."""
    document = read_object(path)
    if document.get("schema") != SCHEMA:
        raise ConfigError(
            f"{path}: not a document of this version's report", hint="cachemig report --run-json FILE saves one"
        )
    return document


def read_rehearsal(path: Path) -> dict[str, Any]:
    """What `cachemig rehearse --output` wrote. Raises ConfigError where it is something else."""
    document = read_object(path)
    if not str(document.get("schema")).startswith("cachemig/rehearse/"):
        raise ConfigError(f"{path}: not the document of a rehearsal", hint="cachemig rehearse --output FILE writes one")
    return document


def read_object(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises ConfigError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", hint="cachemig report --help") from None
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{path}: cannot be read as JSON: {exc}", hint="cachemig report --help") from exc
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds no JSON object", hint="cachemig report --help")
    return document

"""compare: how far a recompute is from what is stored, field by field, so that a profile can be chosen before any value
is replaced by it. Reads only."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from cachemig.config import Settings
from cachemig.emg.errors import RecordingError
from cachemig.emg.isolated import Isolated, Pool
from cachemig.emg.profile import PROFILES, Options
from cachemig.emg.summary import summary_of
from cachemig.entries.shape import fault
from cachemig.errors import Refused
from cachemig.progress import Progress
from cachemig.recordings import RecordingUnavailable
from cachemig.source import control, repair, scan
from cachemig.source.repair import Row
from cachemig.source.table import inspect
from cachemig.steps.recompute import Workshop, workers
from cachemig.steps.retry import Reconnecting
from cachemig.stop import Stop

TOLERANCE = 1e-9
"""Relative: the last bits depend on the processor."""
Path = tuple[str | int, ...]
_TIMES: tuple[Path, ...] = (("cached_at",), ("summary", "cached_at"))
Leaf = int | float | str | bool | None


@dataclass
class Deviation:
    """What one field of the recomputed payloads is like, against the stored ones."""

    compared: int = 0
    equal: int = 0
    """Numbers within TOLERANCE, everything else exactly."""
    only_one_side: int = 0
    """The field stands in the stored payload alone, or in the recomputed one alone."""
    largest: float = 0.0
    """Relative deviation, of numbers."""

    def add(self, stored: Leaf, computed: Leaf) -> None:
        self.compared += 1
        if is_number(stored) and is_number(computed):
            assert isinstance(stored, int | float)
            assert isinstance(computed, int | float)
            deviation = relative(stored, computed)
            self.largest = max(self.largest, deviation)
            self.equal += deviation <= TOLERANCE
        else:
            self.equal += stored == computed


@dataclass
class Compared:
    """By profile, by field. A field of all channels, contractions and entries is one field."""

    entries: int = 0
    profiles: dict[str, dict[str, Deviation]] = field(default_factory=dict)
    alike: dict[str, int] = field(default_factory=dict)
    """Entries in which nothing but the time differs, by profile."""
    left: dict[str, int] = field(default_factory=dict)
    """Entries that were not compared, by name of the reason."""

    @property
    def closest(self) -> str | None:
        """The profile that gives most fields as they are stored; None where none was compared."""

        def equal(profile: str) -> tuple[int, int]:
            fields = self.profiles[profile].values()
            return self.alike[profile], sum(f.equal for f in fields) - sum(f.only_one_side for f in fields)

        return max(self.profiles, key=equal) if self.entries else None

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "closest": self.closest}


def compare(
    settings: Settings, stop: Stop, keys: Sequence[str] | None, *, sample: int
) -> Generator[Progress, None, Compared]:
    """Recomputes sound entries (these keys, or some at random) by every profile. Changes nothing.

    Raises Refused where no recordings are configured.
    """
    result = Compared(profiles={name: {} for name in PROFILES}, alike=dict.fromkeys(PROFILES, 0))
    if not settings.recordings_location:
        raise Refused(
            "recordings_location is not set: there is nothing to compare with", hint="cachemig recompute --help"
        )
    with Reconnecting(settings) as session:
        conn = session.get()
        table = inspect(conn, settings)
        control.require(conn, settings)
        workshop = Workshop.of(settings, conn, table, stop)
        wanted = keys if keys is not None else scan.sampled_keys(conn, table, sample)
        with Pool(workers(), workshop.limits) as pool:
            rows = (row for key in wanted if (row := repair.read(session.get(), table, key, workshop.columns)))
            for outcome in pool.map(lambda reader, row: _both(workshop, reader, row), rows):
                stop.check("cachemig recompute --compare")
                if isinstance(outcome, str):
                    result.left[outcome] = result.left.get(outcome, 0) + 1
                else:
                    _add(result, *outcome)
                yield Progress(result.entries, len(wanted), "entries")
    return result


def _both(workshop: Workshop, reader: Isolated, row: Row) -> tuple[dict[str, Any], dict[str, dict[str, Any]]] | str:
    """What is stored, and what each profile computes; or the name of the reason why not."""
    if found := fault(row.text.encode(), workshop.settings):
        return found.partition(":")[0]
    stored = json.loads(row.text)
    if not isinstance(stored, dict) or not ("analytics" in stored or "channels" in stored):
        return "another-shape"
    assert workshop.source is not None
    now = datetime.now(UTC)
    try:
        fetched = workshop.source.fetch(row.columns)
        fetched.require(row.key)
        payloads = {p.name: reader.analyse(fetched.data, p, Options(), now) for p in PROFILES.values()}
    except (RecordingError, RecordingUnavailable) as exc:
        return exc.name
    if "analytics" not in stored:
        payloads = {name: summary_of(payload["analytics"], now) for name, payload in payloads.items()}
    return stored, payloads


def _add(result: Compared, stored: dict[str, Any], payloads: dict[str, dict[str, Any]]) -> None:
    result.entries += 1
    one = {path: leaf for path, leaf in leaves(stored) if path not in _TIMES}
    for profile, payload in payloads.items():
        fields = result.profiles[profile]
        other = {path: leaf for path, leaf in leaves(payload) if path not in _TIMES}
        alike = True
        for path in one.keys() | other.keys():
            deviation = fields.setdefault(general(path), Deviation())
            if path in one and path in other:
                before = deviation.equal
                deviation.add(one[path], other[path])
                alike &= deviation.equal > before
            else:
                deviation.only_one_side += 1
                alike = False
        result.alike[profile] += alike


# Pure ---------------------------------------------------------------------------------------------------------------


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Leaf]]:
    """Every value of a document that is no object or list, with its path; an empty one counts as None."""
    if isinstance(value, dict | list) and value:
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, name))
    else:
        yield path, None if isinstance(value, dict | list) else value


def general(path: Path) -> str:
    """The path without names of channels and numbers of elements: a label may be a patient's. What is said of the run
    as a whole is one field."""
    if path[:1] == ("processing_params",):
        return "processing_params"
    parts: list[str] = []
    for at, part in enumerate(path):
        if isinstance(part, int):
            parts[-1] += "[]"
        else:
            parts.append("*" if at == 1 and path[0] == "analytics" else part)
    return ".".join(parts)


def is_number(value: Leaf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def relative(a: float, b: float) -> float:
    """|a - b| by the larger of the two magnitudes; 0 where both are 0."""
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0

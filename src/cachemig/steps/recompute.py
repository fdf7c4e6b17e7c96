"""recompute: corrupt values are repaired in the table: decoded, or computed anew from the recording they came from.

The column is written, not Redis: on condition that it still holds what was judged, and what it held is kept
(cachemig.repair). Capture marks the key as it does for any write, and sync delivers it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cachemig import __version__
from cachemig.config import Settings
from cachemig.emg.errors import RecordingError
from cachemig.emg.isolated import Isolated, Limits, Pool
from cachemig.emg.profile import PROFILES, Options
from cachemig.emg.summary import summary_of
from cachemig.entries.shape import fault
from cachemig.errors import ConfigError, LockNotGranted
from cachemig.progress import Progress
from cachemig.recordings import Recordings, RecordingUnavailable, open_source
from cachemig.source import control, repair
from cachemig.source.connect import Connection
from cachemig.source.repair import Repair, Row
from cachemig.source.table import Table, inspect
from cachemig.steps import sync
from cachemig.steps.retry import Reconnecting, attempts, reason
from cachemig.steps.unfinished import unfinished
from cachemig.stop import Stop
from cachemig.targets.redis import RedisTarget

RESUME = "run the same command again: what was repaired stays repaired"
SHOWN = 20
_NESTED = 8


@dataclass(frozen=True)
class Case:
    """One key, and what became of it or why nothing did."""

    key: str
    what: str
    """decoded, recomputed, sound, gone, or the name of the reason why not."""
    why: str


@dataclass
class Recomputed:
    """What a run of recompute did. `dry_run`: what it would do."""

    profile: str
    shape: str
    dry_run: bool
    looked_at: int = 0
    decoded: int = 0
    recomputed: int = 0
    sound: int = 0
    """Left alone: not corrupt, or not any more."""
    left: dict[str, int] = field(default_factory=dict)
    """Still corrupt, by name of the reason."""
    cases: list[Case] = field(default_factory=list)
    """The first SHOWN of each kind."""
    seconds: float = 0.0
    statements: list[str] = field(default_factory=list)
    """Of a dry run: what would write each repair."""

    @property
    def repaired(self) -> int:
        return self.decoded + self.recomputed

    def add(self, case: Case) -> None:
        self.looked_at += 1
        match case.what:
            case "decoded":
                self.decoded += 1
            case "recomputed":
                self.recomputed += 1
            case "sound" | "gone":
                self.sound += 1
            case name:
                self.left[name] = self.left.get(name, 0) + 1
        if sum(shown.what == case.what for shown in self.cases) < SHOWN:
            self.cases.append(case)

    def figures(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("cases", "statements")}


@dataclass(frozen=True)
class Undone:
    """What was taken back."""

    undone: int
    changed_since: int
    """Left alone: the application has written these since."""
    dry_run: bool = False
    """Nothing was put back: so many would be."""
    statements: list[str] = field(default_factory=list)
    """Of a dry run: what would put each back."""


def recompute(
    settings: Settings,
    target: RedisTarget,
    stop: Stop,
    keys: Sequence[str] | None,
    *,
    force: bool = False,
    annotate: bool = False,
    dry_run: bool = False,
) -> Generator[Progress, None, Recomputed]:
    """Repairs the corrupt values of these keys, or of every key that is set aside (None), and has them delivered.

    A sound value is left alone but with `force`. What cannot be repaired stays set aside, its reason in the ledger; no
    file can end the run. `annotate` writes into each payload that it was recomputed.

    Raises ConfigError for a location that names no column of the table, SourceError when Postgres stays away.
    """
    began = time.monotonic()
    with Reconnecting(settings) as session:
        conn = session.get()
        control.require(conn, settings, "recompute")
        table = inspect(conn, settings)
        workshop = Workshop.of(settings, conn, table, stop, force=force, annotate=annotate)
        result = Recomputed(workshop.profile, workshop.shape, dry_run)
        if dry_run:
            result.statements += repair.statements(table)
        wanted = keys if keys is not None else _set_aside(session)

        def so_far() -> dict[str, Any]:
            result.seconds = time.monotonic() - began
            return result.figures() if result.repaired and not dry_run else {}

        with unfinished(settings, "recompute", so_far), Pool(workers(), workshop.limits) as pool:
            rows = _rows(session, table, wanted, workshop.columns, result)
            for row, product in pool.map(workshop.work, rows):
                stop.check(RESUME)
                for attempt in attempts(settings, stop):
                    with attempt, session.guard() as conn:
                        case = _settle(conn, settings, table, row, product, dry_run=dry_run)
                    if waiting := reason(attempt.retry_state):
                        yield _progress(result, waiting)
                result.add(case)
                yield _progress(result)
        result.seconds = time.monotonic() - began
        if not dry_run:
            control.journal(session.get(), "recompute", result.figures())
    if result.repaired and not dry_run:
        yield from sync.sync(settings, target, stop, follow=False)
    return result


def undo(
    settings: Settings, target: RedisTarget, stop: Stop, keys: Sequence[str] | None, *, dry_run: bool = False
) -> Generator[Progress, None, Undone]:
    """Puts back what repairs of these keys (None: all) replaced, where the application has not written since.
    `dry_run`: only counts them."""
    undone = changed = 0
    with Reconnecting(settings) as session:
        control.require(session.get(), settings, "recompute")
        table = inspect(session.get(), settings)

        def so_far() -> dict[str, Any]:
            return {"undone": undone, "changed_since": changed} if undone and not dry_run else {}

        with unfinished(settings, "recompute --undo", so_far):
            for done in repair.repairs(session.get(), keys):
                stop.check(RESUME)
                if dry_run:
                    was_undone = repair.can_undo(session.get(), table, done)
                else:
                    was_undone = repair.undo(session.get(), table, done, lock_timeout_s=settings.lock_timeout)
                undone, changed = undone + was_undone, changed + (not was_undone)
                yield Progress(undone + changed, None, "keys")
        if dry_run:
            return Undone(undone, changed, dry_run=True, statements=repair.statements(table, undo=True))
        control.journal(session.get(), "recompute --undo", {"undone": undone, "changed_since": changed})
    if undone:
        yield from sync.sync(settings, target, stop, follow=False)
    return Undone(undone, changed)


@dataclass(frozen=True)
class OfFile:
    """The payload of a recording. `warning`: why it is not worth much."""

    payload: dict[str, Any]
    warning: str | None

    def document(self) -> dict[str, Any]:
        return self.payload


def of_file(settings: Settings, file: Path) -> OfFile:
    """The payload of a recording, by the profile of the settings. Asks no server, writes nothing.

    Raises RecordingError for whatever is wrong with the file, but for an aborted one: that gives the empty analytics
    which the application computes, and a warning. No entry is ever repaired with them.
    """
    profile, now = PROFILES[settings.recompute_profile], datetime.now(UTC)
    with Isolated(Limits(file_bytes=settings.recordings_max_bytes)) as reader:
        try:
            return OfFile(reader.analyse(file, profile, Options(), now), None)
        except RecordingError as exc:
            if exc.name != "aborted":
                raise
            payload = reader.analyse(file, profile, Options(), now, aborted_as_is=True)
            return OfFile(payload, f"{exc}: the application's analytics of it are empty, and so are these")


# Making a repair ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failed:
    """Why there is no repair."""

    name: str
    detail: str


Product = Repair | Failed | None
"""None: the value is sound."""


@dataclass(frozen=True)
class Workshop:
    """What it takes to repair a value; used by several threads at once."""

    settings: Settings
    source: Recordings | None
    shape: str
    force: bool = False
    annotate: bool = False

    @classmethod
    def of(
        cls,
        settings: Settings,
        conn: Connection,
        table: Table,
        stop: Stop,
        *,
        force: bool = False,
        annotate: bool = False,
    ) -> Workshop:
        source = None
        if settings.recordings_location:
            source = open_recordings(settings, stop)
            if unknown := [name for name in source.columns if name not in table.columns]:
                raise ConfigError(
                    f"recordings_location names {', '.join(unknown)}, which {settings.table} does not have",
                    hint=f"its columns are {', '.join(sorted(table.columns))}",
                )
        shape = settings.recompute_shape
        if shape == "auto":
            shape = repair.usual_shape(conn, table)
        return cls(settings, source, shape, force, annotate)

    @property
    def profile(self) -> str:
        return self.settings.recompute_profile

    @property
    def columns(self) -> tuple[str, ...]:
        return self.source.columns if self.source else ()

    @property
    def limits(self) -> Limits:
        return Limits(file_bytes=self.settings.recordings_max_bytes)

    def work(self, reader: Isolated, row: Row) -> tuple[Row, Product]:
        """The repair of a value. Never raises for a value or a recording."""
        found = fault(row.text.encode(), self.settings)
        if found is None and not self.force:
            return row, None
        found = found or "none: asked for by name"
        if found.startswith("double-encoded") and (inner := decoded(row.text, self.settings)) is not None:
            return row, Repair(inner, "decoded", found, None, __version__)
        if found.startswith("too-large") and not self.force:
            return row, Failed(
                "too-large", "it is not damaged: raise max_value_bytes, or recompute it by --key and --force"
            )
        try:
            text = self._recomputed(reader, row)
        except (RecordingError, RecordingUnavailable) as exc:
            return row, Failed(exc.name, exc.detail or str(exc))
        return row, Repair(text, "recomputed", found, self.profile, __version__)

    def _recomputed(self, reader: Isolated, row: Row) -> str:
        if self.source is None:
            raise RecordingUnavailable("not-configured", "recordings_location is not set")
        fetched = self.source.fetch(row.columns)
        fetched.require(row.key)
        now = datetime.now(UTC)
        payload = reader.analyse(fetched.data, PROFILES[self.profile], Options(), now)
        document = summary_of(payload["analytics"], now) if self.shape == "summary" else payload
        if self.annotate:
            document["recomputed"] = {"by": f"cachemig {__version__}", "profile": self.profile, "at": now.isoformat()}
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
        if found := fault(text.encode(), self.settings):
            raise RecordingError("failed", f"the result would be corrupt too: {found}")
        return text


def open_recordings(settings: Settings, stop: Stop) -> Recordings:
    """The place of the recordings. Raises RecordingUnavailable where the location is no good."""
    return open_source(
        settings.recordings_location,
        max_bytes=settings.recordings_max_bytes,
        timeout=settings.recordings_timeout,
        endpoint=settings.recordings_endpoint,
        environment=os.environ,
        stop=stop,
    )


def decoded(text: str, settings: Settings) -> str | None:
    """The JSON inside a JSON string, however often it was encoded; None where that is not a sound value.

    Its own text is taken, never printed anew, so that no number changes.
    """
    for _ in range(_NESTED):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, str):
            break
        text = value
    try:
        return text if value == {} or fault(text.encode(), settings) is None else None
    except UnicodeEncodeError:  # half a surrogate pair
        return None


def workers() -> int:
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


# Rows in, repairs out -----------------------------------------------------------------------------------------------


def _set_aside(session: Reconnecting) -> Iterator[str]:
    """Keys that are set aside, each once, also while they are being repaired."""
    after = b""
    while page := repair.set_aside(session.get(), after):
        yield from (key for _, key in page)
        after = page[-1][0]


def _rows(
    session: Reconnecting, table: Table, keys: Sequence[str] | Iterator[str], columns: Sequence[str], result: Recomputed
) -> Iterator[Row]:
    for key in keys:
        row = repair.read(session.get(), table, key, columns)
        if row is None:
            result.add(Case(key, "gone", "no row holds a value for it"))
        else:
            yield row


def _settle(conn: Connection, settings: Settings, table: Table, row: Row, product: Product, *, dry_run: bool) -> Case:
    """Writes the repair, or into the ledger why there is none."""
    match product:
        case None:
            return Case(row.key, "sound", "it is not corrupt")
        case Failed(name, detail):
            if not dry_run:
                found = fault(row.text.encode(), settings) or ""
                repair.explain(conn, row.key, f"{found}; not repaired: {name}: {detail}")
            return Case(row.key, name, detail)
        case Repair():
            try:
                if dry_run or repair.write(conn, table, row, product, lock_timeout_s=settings.lock_timeout):
                    return Case(row.key, product.how, product.fault)
            except LockNotGranted:
                return Case(row.key, "locked", "another transaction holds the row; run it again")
            except repair.Unstorable as exc:
                return Case(row.key, "unstorable", str(exc))
            return Case(row.key, "written-meanwhile", "the application wrote the value meanwhile; run it again")


def _progress(result: Recomputed, waiting: str | None = None) -> Progress:
    return Progress(result.looked_at, None, "keys", entries=result.repaired, waiting=waiting)

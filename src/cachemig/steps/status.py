"""status: where the migration stands. Reads only, and stays cheap on a large table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cachemig.config import Settings
from cachemig.ladder import Phase
from cachemig.source import capture, chunks, control, ledger, queries
from cachemig.source.connect import connect, source_errors, transaction
from cachemig.source.table import inspect
from cachemig.steps.orders import Given, read
from cachemig.steps.sync import Backlog, backlog


@dataclass(frozen=True)
class Last:
    """The last run of a command, from the journal."""

    at: str
    figures: dict[str, Any]
    epoch: int


@dataclass(frozen=True)
class Status:
    table: str
    column: str
    phase: Phase
    epoch: int
    since: str
    by: str
    capture: bool
    """The triggers are on the table and fire always."""
    backlog: Backlog
    orders: Given
    chunks: chunks.Totals
    laid_out: bool
    faults: list[tuple[str, str, int, str]]
    """(state, fault, keys, one key) of entries that could not be migrated."""
    backfill: Last | None
    verify: Last | None
    next_command: str

    def document(self) -> dict[str, Any]:
        return asdict(self)


def status(settings: Settings) -> Status:
    """The migration's state. Raises NotInitialised before `cachemig init`."""
    with connect(settings) as conn, transaction(conn, read_only=True):
        migration = control.require(conn, settings)
        table = inspect(conn, settings)

        def last(command: str) -> Last | None:
            with source_errors():
                row = conn.execute(queries.text("control", "journal_last_of"), {"command": command}).fetchone()
            return Last(row[0].isoformat(), row[1], row[2]) if row else None

        has_capture = capture.installed(conn, table)
        totals = chunks.totals(conn)
        laid_out = migration.layout == chunks.layout_of(table, migration.epoch)
        verified = last("verify")
        return Status(
            table=table.qualified,
            column=settings.column,
            phase=migration.phase,
            epoch=migration.epoch,
            since=migration.changed_at.isoformat(),
            by=migration.changed_by,
            capture=has_capture,
            backlog=backlog(conn),
            orders=read(conn),
            chunks=totals,
            laid_out=laid_out,
            faults=ledger.faults(conn),
            backfill=last("backfill"),
            verify=verified,
            next_command=_next(migration, has_capture, laid_out and totals.done == totals.chunks, verified),
        )


def _next(migration: control.Migration, has_capture: bool, filled: bool, verified: Last | None) -> str:
    if migration.phase is Phase.IDLE or not has_capture:
        return "cachemig dual-write"
    if not filled:
        return "cachemig backfill"
    if verified is None or verified.epoch != migration.epoch or not verified.figures.get("passed"):
        return "cachemig verify"
    return "cachemig sync --follow keeps Redis equal from here on"

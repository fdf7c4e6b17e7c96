"""status: where the migration stands. Reads only, and stays cheap on a large table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cachemig.config import Settings
from cachemig.ladder import Phase, to_run
from cachemig.source import capture, chunks, control, ledger, queries
from cachemig.source.connect import connect, source_errors, transaction
from cachemig.source.table import inspect
from cachemig.steps import clients, gates
from cachemig.steps.clients import Client, stage
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
    percent: float
    """Of the keys, those read from Redis in phase `cutover`."""
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
    clients: list[Client]
    """The live ones."""
    reported: dict[str, Any]
    """What they report, added up (clients.Report)."""
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
        behind = backlog(conn)
        live = clients.live(conn)
        return Status(
            table=table.qualified,
            column=settings.column,
            phase=migration.phase,
            percent=migration.percent,
            epoch=migration.epoch,
            since=migration.changed_at.isoformat(),
            by=migration.changed_by,
            capture=has_capture,
            backlog=behind,
            orders=read(conn),
            chunks=totals,
            laid_out=laid_out,
            faults=ledger.faults(conn),
            backfill=last("backfill"),
            verify=last("verify"),
            clients=live,
            reported=clients.report(client.stats for client in live).figures(),
            next_command=_next(
                settings,
                migration,
                has_capture=has_capture,
                filled=laid_out and totals.done == totals.chunks,
                fresh=gates.fresh(gates.last_verification(conn), migration.epoch, settings)[0],
                lag_s=behind.oldest_s,
                live=live,
            ),
        )


def _next(
    settings: Settings,
    migration: control.Migration,
    *,
    has_capture: bool,
    filled: bool,
    fresh: bool,
    lag_s: float | None,
    live: list[Client],
) -> str:
    """The command that leads on, in the order of the gates; those look closer, and may find more."""
    at = (migration.phase, migration.percent)
    behind = [client for client in live if not client.acts_on(*at)]
    if migration.phase is Phase.IDLE or not has_capture:
        return to_run("dual-write", migration.phase)
    if not filled:
        return "cachemig backfill"
    if at == (Phase.CUTOVER, 100.0):
        return "cachemig sync --follow keeps Redis equal from here on; cachemig rollback goes back"
    if not fresh:
        return "cachemig verify"
    if lag_s is not None and lag_s >= settings.cutover_max_lag:
        return "cachemig sync --follow"
    if behind:
        return f"wait for the clients that do not act on {stage(*at)} yet: {clients.named(behind)}"
    ahead = ",".join(f"{p:g}" for p in (1, 10, 50, 100) if at[0] is not Phase.CUTOVER or p > at[1])
    return f"cachemig cutover --ramp {ahead}{'' if live else ' --no-clients'}, with cachemig sync --follow running"

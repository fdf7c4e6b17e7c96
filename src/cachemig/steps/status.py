"""status: where the migration stands. Reads only. Takes no longer on a larger table: whatever grows with it is counted
up to a limit, and said to be more than that."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from cachemig.config import Settings, show_duration
from cachemig.ladder import Phase, to_run
from cachemig.source import capture, chunks, control, ledger, queries, standing, workers
from cachemig.source.connect import Connection, connect, source_errors, transaction
from cachemig.source.standing import Backlog, Late, Registered
from cachemig.source.table import inspect
from cachemig.source.workers import Running
from cachemig.steps import clients
from cachemig.steps.clients import Client, stage
from cachemig.steps.orders import Given, read
from cachemig.steps.redis_memory import Memory

_LINES = 8
_FROZEN = frozenset({Phase.REDIS_ONLY, Phase.DROPPED})


@dataclass(frozen=True)
class Last:
    """The last run of a command, from the journal."""

    at: str
    figures: dict[str, Any]
    epoch: int


@dataclass(frozen=True)
class Soak:
    """How long the phase has lasted undisturbed."""

    held_s: float
    wanted_s: float
    rest_s: float
    """0: it is over."""


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
    column_is_there: bool
    guard: str | None
    """`forward` or `reject`: what becomes of a write to the frozen column. None: no guard is on the table."""
    fenced: bool
    """A rollback was begun: writes to Redis alone are refused until it ends, or is taken back."""
    late: Late | None
    """Writes to the column since it was frozen; None while it is in use."""
    soak: Soak | None
    """Where the next step up wants one."""
    archive: Registered | None
    """The one that was compared with the table last."""
    backlog: Backlog
    orders: Given
    chunks: chunks.Totals
    laid_out: bool
    faults: list[tuple[str, str, int, str]]
    """(state, fault, keys, one key) of entries that could not be migrated."""
    more_faults: bool
    """There are more of them than were looked at: the numbers in `faults` are at least these."""
    backfill: Last | None
    verify: Last | None
    clients: list[Client]
    """The live ones."""
    reported: dict[str, Any]
    """What they report, added up (clients.Report)."""
    hit_rate: float | None
    """Of their reads from Redis; None: there were none."""
    workers: list[Running]
    journal: list[control.Line]
    """The last lines, newest last, without what is long."""
    next_command: str
    redis: Memory | None = None
    """None: it was not asked."""

    def document(self) -> dict[str, Any]:
        return asdict(self)


def status(settings: Settings) -> Status:
    """The migration's state. Raises NotInitialised before `cachemig init`."""
    with connect(settings) as conn:
        return look(conn, settings)


@dataclass(frozen=True)
class History:
    """The last lines of the journal, newest last."""

    lines: list[control.Line]


def history(settings: Settings, limit: int) -> History:
    """With everything that was recorded."""
    with connect(settings) as conn:
        control.require(conn, settings)
        return History(control.history(conn, limit, whole=True))


def look(conn: Connection, settings: Settings) -> Status:
    """The same over a connection that is there."""
    with transaction(conn, read_only=True):
        migration = control.require(conn, settings)
        frozen = migration.frozen_epoch is not None or migration.phase in _FROZEN
        table = inspect(conn, settings, column_may_be_gone=frozen)

        def last(command: str) -> Last | None:
            with source_errors():
                row = conn.execute(queries.text("control", "journal_last_of"), {"command": command}).fetchone()
            return Last(row[0].isoformat(), row[1], row[2]) if row else None

        has_capture = capture.installed(conn, table)
        totals = chunks.totals(conn)
        faults, more_faults = ledger.faults(conn)
        laid_out = chunks.is_laid_out(migration.layout, table, migration.column_epoch)
        guard = capture.guarded(conn, table)
        late = standing.late(conn) if frozen else None
        archived = standing.newest_archive(conn)
        soak = _soak(settings, migration, control.now(conn), late)
        behind = standing.backlog(conn)
        live = clients.live(conn)
        reported = clients.report(client.stats for client in live)
        return Status(
            table=table.qualified,
            column=settings.column,
            phase=migration.phase,
            percent=migration.percent,
            epoch=migration.epoch,
            since=migration.changed_at.isoformat(),
            by=migration.changed_by,
            capture=has_capture,
            column_is_there=settings.column in table.columns,
            guard=guard,
            fenced=migration.fenced,
            late=late,
            soak=soak,
            archive=archived,
            backlog=behind,
            orders=read(conn),
            chunks=totals,
            laid_out=laid_out,
            faults=faults,
            more_faults=more_faults,
            backfill=last("backfill"),
            verify=last("verify"),
            clients=live,
            reported=reported.figures(),
            hit_rate=reported.hit_rate,
            workers=workers.running(conn),
            journal=control.history(conn, _LINES),
            next_command=_next(
                settings,
                migration,
                has_capture=has_capture,
                filled=laid_out and totals.done == totals.chunks,
                fresh=standing.fresh(standing.last_verification(conn), migration.epoch, settings)[0],
                lag_s=behind.oldest_s,
                live=live,
                guard=guard,
                late=late,
                soak=soak,
                archived=archived is not None and _covers(archived, migration, late),
            ),
        )


def _soak(settings: Settings, migration: control.Migration, now: datetime, late: Late | None) -> Soak | None:
    """As the gate `soak` counts it: a late write begins it anew."""
    since = migration.changed_at
    if migration.phase is Phase.REDIS_ONLY:
        wanted_s = settings.soak_redis_only
        if late is not None and late.last_write is not None:
            since = max(since, late.last_write)
    elif (migration.phase, migration.percent) == (Phase.CUTOVER, 100.0):
        wanted_s = settings.soak_cutover
    else:
        return None
    held_s = (now - since).total_seconds()
    return Soak(round(held_s, 1), wanted_s, round(max(0.0, wanted_s - held_s), 1))


def _covers(archive: Registered, migration: control.Migration, late: Late | None) -> bool:
    """As the gate `archive` has it: nothing has written the column since it was compared."""
    last = late.last_write if late is not None else None
    return archive.checked_at >= max(migration.changed_at, last or migration.changed_at)


def _next(
    settings: Settings,
    migration: control.Migration,
    *,
    has_capture: bool,
    filled: bool,
    fresh: bool,
    lag_s: float | None,
    live: list[Client],
    guard: str | None,
    late: Late | None,
    soak: Soak | None,
    archived: bool,
) -> str:
    """The command that leads on, in the order of the gates; those look closer, and may find more."""
    at = (migration.phase, migration.percent)
    if migration.phase is Phase.DROPPED:
        return (
            "cachemig reclaim, which gives the column's space back; once applications are opened with "
            "phase='redis-only', and ask Postgres no more: cachemig clean. cachemig restore brings the column back"
        )
    if migration.phase is Phase.REDIS_ONLY:
        return _to_the_drop(migration, guard=guard, late=late, soak=soak, archived=archived, fresh=fresh)
    behind = [client for client in live if not client.acts_on(*at)]
    if migration.phase is Phase.IDLE or not has_capture:
        return to_run("dual-write", migration.phase)
    if not filled:
        return "cachemig backfill"
    if at == (Phase.CUTOVER, 100.0):
        follow = "cachemig residue, which names who still writes the column; then cachemig stop-writes"
        if soak is not None and soak.rest_s:
            follow += f", in {_shown(soak.rest_s)} when the soak is over; cachemig sync --follow keeps Redis equal"
        return f"{follow}. cachemig rollback goes back"
    if not fresh:
        return "cachemig verify"
    if lag_s is not None and lag_s >= settings.cutover_max_lag:
        return "cachemig sync --follow"
    if behind:
        return f"wait for the clients that do not act on {stage(*at)} yet: {clients.named(behind)}"
    ahead = ",".join(f"{p:g}" for p in (1, 10, 50, 100) if at[0] is not Phase.CUTOVER or p > at[1])
    return f"cachemig cutover --ramp {ahead}{'' if live else ' --no-clients'}, with cachemig sync --follow running"


def _to_the_drop(
    migration: control.Migration,
    *,
    guard: str | None,
    late: Late | None,
    soak: Soak | None,
    archived: bool,
    fresh: bool,
) -> str:
    """In redis-only, in the order in which things are best done."""
    if migration.fenced:
        return (
            "cachemig rollback goes on with the one that was begun; cachemig stop-writes --execute takes it back, and "
            "lets writes to Redis in again"
        )
    if guard is None:
        return "cachemig stop-writes --execute, which puts the guard back: writes to the column go unnoticed"
    if late is not None and late.waiting:
        return "cachemig sync --follow, which brings late writes to Redis"
    if not archived:
        return "cachemig archive --to PLACE"
    if soak is not None and soak.rest_s:
        return (
            f"wait for {_shown(soak.rest_s)} without a write to the column; then cachemig verify, cachemig drop-column"
        )
    return "cachemig drop-column" if fresh else "cachemig verify, then cachemig drop-column"


def _shown(seconds: float) -> str:
    """Rounded up, to as much as there is to wait for."""
    unit = 3600 if seconds > 7200 else 60 if seconds > 120 else 1
    return show_duration(max(1, math.ceil(seconds / unit)) * unit)

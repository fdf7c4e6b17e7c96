"""dual-write: switches capture on, and off again."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from psycopg import sql

from cachemig.config import Settings
from cachemig.errors import LeaseHeld
from cachemig.ladder import ALLOWED, CAPTURED, Phase
from cachemig.progress import Progress
from cachemig.source import capture, chunks, control, functions, ledger, queries
from cachemig.source.connect import Connection, connect, run, transaction
from cachemig.source.table import Table, inspect
from cachemig.steps import clients, doctor, dry_run, epoch
from cachemig.steps.dry_run import DryRun
from cachemig.steps.retry import lock_attempts, reason
from cachemig.targets.redis import RedisTarget


@dataclass(frozen=True)
class Switched:
    """The state after the step."""

    phase: Phase
    changed: bool
    """False: it was so already."""
    epoch: int
    mode: str | None = None
    marked: int = 0
    """Keys marked because nothing is known of the time without capture."""


def statements(settings: Settings, *, enable: bool) -> list[str]:
    """The SQL that the step would run, in one transaction. Reads only."""
    with connect(settings) as conn:
        table = inspect(conn, settings)
        migration = control.require(conn, settings)
        if migration.phase not in ALLOWED["dual-write"]:
            if not _is_so(conn, table, migration, enable):
                control.require(conn, settings, "dual-write" if enable else "dual-write --disable")
            return [statement.as_string(conn) for statement in functions.statements(conn, table)] if enable else []
        return [statement.as_string(conn) for statement in _statements(conn, table, enable)]


def preview(settings: Settings, target: RedisTarget, *, enable: bool) -> DryRun:
    """What the step would do now, its gate included. Reads only."""
    shown = statements(settings, enable=enable)
    command = "dual-write" if enable else "dual-write --disable"
    with connect(settings) as conn:
        table = inspect(conn, settings)
        migration = control.require(conn, settings)
        if _is_so(conn, table, migration, enable):
            notes = ["it is so already; the functions that applications call are made anew"] if enable else []
            renewed = [statement.as_string(conn) for statement in functions.statements(conn, table)] if enable else []
            return DryRun(f"cachemig {command}", migration.phase, bool(renewed), renewed, notes=notes)
        number = epoch.foresee(migration, target) if enable else migration.epoch
        phase = Phase.DUAL_WRITE if enable else Phase.IDLE
        after = [dry_run.filled_in(conn, "control", "set_phase", {"phase": phase.value, "epoch": number})]
        if enable:
            after += [
                queries.text("capture", "mark_known"),
                dry_run.filled_in(conn, "control", "set_identities", {"run": target.identity().run, "marker": "…"}),
            ]
        recorded = dry_run.journal(conn, command, migration.phase)
        return DryRun(
            f"cachemig {command}",
            migration.phase,
            True,
            [queries.text("control", "lock_migration"), *shown, *after, recorded],
            redis=[f"SET {target.marker_key}: the marker of epoch {number}"] if enable else [],
            figures={"epoch": number, "marked": sum(n for n, _ in ledger.counts(conn).values())} if enable else {},
            gates=[dry_run.doctor_gate(settings, target, "dual-write")] if enable else [],
            notes=["in one transaction; the table's lock is asked for lock_timeout at a time"],
        )


def _statements(conn: Connection, table: Table, enable: bool) -> list[sql.Composed]:
    if not enable:
        return capture.removal(table, chunks.in_work(conn))
    triggers = capture.statements(table, capture.mode(conn, table), replace=capture.has_traces(conn, table))
    # Before the table's lock, which the application waits for: nobody waits for these.
    return [*functions.statements(conn, table), *triggers]


def _is_so(conn: Connection, table: Table, migration: control.Migration, enable: bool) -> bool:
    """The migration is in the wanted phase (or one above it), and the triggers are what the table needs now."""
    found = capture.installed_mode(conn, table)
    if not enable:
        return migration.phase is Phase.IDLE and found is None
    # A trigger that compares also notices what UPDATE OF does.
    enough = found == "compare" or (found is not None and found == capture.mode(conn, table))
    return migration.phase in CAPTURED and enough


def switch(settings: Settings, target: RedisTarget, *, enable: bool) -> Generator[Progress, None, Switched]:
    """Commits capture, or removes it; nothing in between is ever visible to the application.

    Waits for the table's lock only for `lock_timeout` at a time, then lets the application through and tries again.
    Raises Refused when doctor finds an error or reads have moved already, LockNotGranted when the table was busy at
    every try.
    """
    with connect(settings) as conn:
        table = inspect(conn, settings)
        migration = control.require(conn, settings)
        if enable:
            doctor.gate(settings, target, "dual-write")
        with control.lease(conn, "ladder"):
            migration = control.require(conn, settings)
            if _is_so(conn, table, migration, enable):
                if enable:  # app_roles or the key column's type may be others now
                    _renew_functions(conn, table, migration)
                return Switched(migration.phase, False, migration.epoch)
            # In cutover reads are to go back first: what Redis holds is not to be trusted after a time without capture.
            control.require(conn, settings, "dual-write" if enable else "dual-write --disable")
            # Before the table's lock is asked for: nobody is to wait for Redis.
            prepared = epoch.prepare(migration, target) if enable else None
            for attempt in lock_attempts():
                with attempt:
                    result = _switch(conn, settings, table, migration, prepared)
                if why := reason(attempt.retry_state):
                    tried = attempt.retry_state.attempt_number
                    yield Progress(tried, None, "tries", waiting=f"{why}; the application goes first")
    return result


def _renew_functions(conn: Connection, table: Table, migration: control.Migration) -> None:
    with transaction(conn):
        ran = run(conn, functions.statements(conn, table))
        control.journal(conn, "dual-write", {"renewed": "functions", "sql": ran}, phase_from=migration.phase)


def _switch(
    conn: Connection, settings: Settings, table: Table, migration: control.Migration, prepared: epoch.Prepared | None
) -> Switched:
    wanted = Phase.IDLE if prepared is None else Phase.DUAL_WRITE
    marked = 0
    with transaction(conn, lock_timeout_s=settings.lock_timeout):
        # First of all locks, and before the table's: a worker that begins an epoch meanwhile holds this one while it
        # looks into Redis. What it wrote must not be overwritten by what was read before.
        number = conn.execute(queries.text("control", "lock_migration")).fetchone()[0]  # type: ignore[index]  # require() saw it
        now = control.find(conn)
        if now is None or now.phase is not migration.phase:  # the lease ran out while the table was waited for
            raise LeaseHeld("another run has moved the ladder meanwhile")
        if prepared is None:
            ran = capture.remove(conn, table, chunks.in_work(conn))
        else:
            ran = run(conn, _statements(conn, table, enable=True))
        if prepared is None:
            control.set_phase(conn, wanted, number)
        else:
            # What happened without capture is unknown, so each enabling begins a new epoch.
            number, marked = epoch.record(conn, wanted, prepared)
        mode = None if prepared is None else capture.mode(conn, table)
        control.journal(
            conn,
            "dual-write --disable" if prepared is None else "dual-write",
            {"capture": mode, "epoch": number, "marked": marked, "shadow": clients.shadow_so_far(conn), "sql": ran},
            phase_from=migration.phase,
        )
    return Switched(wanted, True, number, mode, marked)

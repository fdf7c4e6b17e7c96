"""stop-writes: the column is frozen, and Redis is the only place that a write goes to.

One transaction in Postgres: a guard takes the place of capture, the column keeps its epoch, and writes to Redis alone
get the next one. So nothing that is still on its way from the column can replace what is written from now on, and there
is no moment at which a write could go unnoticed. Until the column is dropped, `rollback` takes it back.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from psycopg import sql

from cachemig import ladder
from cachemig.config import Settings
from cachemig.errors import LeaseHeld
from cachemig.ladder import Phase
from cachemig.progress import Progress
from cachemig.source import capture, control, queries, repair, standing
from cachemig.source.connect import Connection, run, transaction
from cachemig.source.standing import Late
from cachemig.source.table import Table, inspect
from cachemig.steps import clients, dry_run, gates
from cachemig.steps.gates import Expiring, Measured
from cachemig.steps.recompute import open_recordings
from cachemig.steps.retry import Reconnecting, lock_attempts, reason
from cachemig.steps.sync import Synced, sync
from cachemig.stop import Stop
from cachemig.targets.redis import RedisTarget

Guard = Literal["forward", "reject"]
GUARDS: tuple[Guard, ...] = ("forward", "reject")
_PAGE = 500
_OPENED_AT_ONCE = 8


@dataclass(frozen=True)
class Preview:
    """What stop-writes would do now."""

    command: str
    phase: Phase
    percent: float
    guard: Guard
    statements: list[str]
    """In one transaction."""
    gates: list[Measured]
    clients: list[str]
    """Names of the live clients that would be waited for."""
    records: list[str] = field(default_factory=list)
    """The statements that record the step, in the same transaction."""

    @property
    def refused(self) -> bool:
        return any(not gate.met for gate in self.gates)


@dataclass(frozen=True)
class Stopped:
    """The column is frozen."""

    changed: bool
    """False: it was so already."""
    guard: Guard
    epoch: int
    gates: list[Measured]
    clients: list[str] = field(default_factory=list)
    drained: Synced = field(default_factory=Synced)
    """What was still on its way from the column, or was written to it since."""
    late: Late | None = None
    seconds: float = 0.0


def command_for(guard: Guard, accept_expiring: int) -> str:
    """What was typed, but for --execute."""
    return (
        "cachemig stop-writes"
        + (f" --guard {guard}" if guard != "forward" else "")
        + (f" --accept-expiring {accept_expiring}" if accept_expiring else "")
    )


def preview(
    settings: Settings,
    target: RedisTarget,
    stop: Stop,
    guard: Guard,
    *,
    no_clients: bool = False,
    accept_expiring: int = 0,
) -> Generator[Progress, None, Preview]:
    """What `stop-writes` would do now, gates included. Reads only."""
    command = command_for(guard, accept_expiring)
    with Reconnecting(settings) as session:
        conn = session.get()
        migration = control.require(conn, settings, "stop-writes")
        table = inspect(conn, settings)
        measured = yield from _measured(
            session, settings, target, stop, table, command, no_clients=no_clients, accept_expiring=accept_expiring
        )
        return Preview(
            command,
            migration.phase,
            migration.percent,
            guard,
            [statement.as_string(conn) for statement in statements(conn, table, guard)],
            measured,
            [client.name for client in clients.live(conn)],
            _recording(conn, migration),
        )


def _recording(conn: Connection, migration: control.Migration) -> list[str]:
    figures = dry_run.journal(conn, "stop-writes", migration.phase)
    if migration.phase is not Phase.CUTOVER:
        return [figures]
    return [dry_run.filled_in(conn, "cutover", "freeze", {"epoch": migration.epoch}), figures]


def statements(conn: Connection, table: Table, guard: Guard) -> list[sql.Composed]:
    """The statements that freeze the column, in order, to be run in one transaction that moves the phase too."""
    return capture.guard(table, capture.mode(conn, table), rejects=guard == "reject")


def stop_writes(
    settings: Settings,
    target: RedisTarget,
    stop: Stop,
    guard: Guard,
    *,
    no_clients: bool = False,
    accept_expiring: int = 0,
) -> Generator[Progress, None, Stopped]:
    """Freezes the column, waits until every live client writes to Redis alone, and delivers what was on its way.

    Repeated it waits and delivers again, and sets the guard. Raises Refused where a gate is not met, and where a client
    does not follow within `client_wait` (the step stays taken then); LockNotGranted where the table was in use at every
    try, with nothing changed.
    """
    began = time.monotonic()
    command = f"{command_for(guard, accept_expiring)} --execute"
    with Reconnecting(settings) as session:
        conn = session.get()
        table = inspect(conn, settings)
        measured = yield from _measured(
            session, settings, target, stop, table, command, no_clients=no_clients, accept_expiring=accept_expiring
        )
        gates.require(measured, command)
        changed = yield from _freeze(session.get(), settings, target, table, guard, measured)
        others = yield from clients.follow(
            session, settings, stop, Phase.REDIS_ONLY, 100.0, again=command, back="cachemig rollback"
        )
        drained = yield from sync(settings, target, stop, follow=False)
        migration = control.require(session.get(), settings, "stop-writes")
        return Stopped(
            changed,
            guard,
            migration.epoch,
            measured,
            [client.name for client in others],
            drained,
            standing.late(session.get()),
            round(time.monotonic() - began, 3),
        )


def _measured(
    session: Reconnecting,
    settings: Settings,
    target: RedisTarget,
    stop: Stop,
    table: Table,
    command: str,
    *,
    no_clients: bool,
    accept_expiring: int,
) -> Generator[Progress, None, list[Measured]]:
    migration = control.require(session.get(), settings, "stop-writes")
    if migration.phase is Phase.REDIS_ONLY:
        return []
    expiring = yield from _expiring(session, settings, stop, table, accept_expiring)
    migration = control.require(session.get(), settings, "stop-writes")
    seen = gates.look(
        session.get(), settings, target, migration, command=command, no_clients=no_clients, expiring=expiring
    )
    return gates.measure(ladder.gates((Phase.CUTOVER, 100.0), (Phase.REDIS_ONLY, 100.0)), seen)


def _expiring(
    session: Reconnecting, settings: Settings, stop: Stop, table: Table, accepted: int
) -> Generator[Progress, None, Expiring]:
    """Looks for the recording of every entry that expires. Without recordings none has one; where all are accepted
    nothing is looked for."""
    conn = session.get()
    with transaction(conn, read_only=True):
        row = conn.execute(queries.text("cutover", "expiring_count")).fetchone()
    of = int(row[0]) if row else 0
    if not of or not settings.recordings_location or accepted >= of:
        return Expiring(of, of, accepted)
    recordings = open_recordings(settings, stop)
    without, looked_at, after = 0, 0, b""
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        while page := conn.execute(queries.text("cutover", "expiring"), {"after": after, "limit": _PAGE}).fetchall():
            rows = [repair.read(conn, table, str(key), recordings.columns) for _, key in page]
            there = pool.map(recordings.is_there, [row.columns for row in rows if row is not None])
            without += sum(not found for found in there)
            after = bytes(page[-1][0])
            looked_at += len(page)
            stop.check("nothing was changed; the same command looks again")
            yield Progress(looked_at, of, "recordings")
    return Expiring(without, of, accepted)


def _freeze(
    conn: Connection, settings: Settings, target: RedisTarget, table: Table, guard: Guard, measured: list[Measured]
) -> Generator[Progress, None, bool]:
    with control.lease(conn, "ladder") as fence:
        migration = control.require(conn, settings, "stop-writes")
        if migration.phase is Phase.REDIS_ONLY:
            if migration.fenced:
                _unfence(conn, target, migration)
            if capture.guarded(conn, table) == guard:
                return False
        for attempt in lock_attempts():
            with attempt, transaction(conn, lock_timeout_s=settings.lock_timeout):
                # First of all locks, as in dual_write.
                conn.execute(queries.text("control", "lock_migration"))
                figures = {"guard": guard, "sql": run(conn, statements(conn, table, guard))}
                if migration.phase is Phase.CUTOVER:
                    _record(conn, migration, fence, {**figures, "gates": {g.gate: g.figure for g in measured}})
                else:
                    control.journal(conn, "stop-writes", figures, phase_from=Phase.REDIS_ONLY)
            if why := reason(attempt.retry_state):
                tried = attempt.retry_state.attempt_number
                yield Progress(tried, None, "tries", waiting=f"{why}; the application goes first")
    return migration.phase is Phase.CUTOVER


def _record(conn: Connection, migration: control.Migration, fence: int, figures: dict[str, Any]) -> None:
    done = conn.execute(
        queries.text("cutover", "freeze"),
        {"who": control.who(), "epoch": migration.epoch, "owner": control.owner(), "fence": fence},
    ).rowcount
    if not done:
        raise LeaseHeld(
            "another run has moved the ladder, or a new epoch has begun, while the gates were looked at",
            hint="cachemig status, then the same command again",
        )
    control.journal(conn, "stop-writes", figures, phase_from=Phase.CUTOVER)


def _unfence(conn: Connection, target: RedisTarget, migration: control.Migration) -> None:
    """A rollback was begun and is not to be ended: writes to Redis alone are accepted again."""
    assert migration.frozen_epoch is not None
    with transaction(conn):
        conn.execute(queries.text("control", "lock_migration"))
        target.plant_marker(migration.frozen_epoch)
        identity = target.identity()
        conn.execute(queries.text("control", "set_identities"), {"run": identity.run, "marker": identity.marker})
        control.journal(
            conn, "stop-writes", {"because": "a rollback was begun and not ended"}, phase_from=migration.phase
        )

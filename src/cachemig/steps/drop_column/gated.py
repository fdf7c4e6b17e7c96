"""drop-column as a command: everything that a drop would meet beside the gates, and the drop under them."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from cachemig import ladder
from cachemig.config import Settings
from cachemig.ladder import Phase
from cachemig.progress import Progress
from cachemig.source import control, queries
from cachemig.source.connect import Connection, connect, source_errors, transaction
from cachemig.steps import gates
from cachemig.steps.drop_column import brownout, migration
from cachemig.steps.drop_column.inspect import Inspection, inspection, look
from cachemig.steps.drop_column.run import Dropped, NotYet, drop
from cachemig.steps.gates import Measured
from cachemig.stop import Stop
from cachemig.targets.redis import RedisTarget

WAITING = "rows that went wait to be removed from Redis; nothing was changed"
_NAMES = ladder.gates((Phase.REDIS_ONLY, 100.0), (Phase.DROPPED, 100.0))


@dataclass(frozen=True)
class Outlook:
    """What drop-column would do and meet now."""

    command: str
    column: str
    """What --confirm is to name."""
    phase: Phase | None
    """None: there is no migration."""
    done: bool
    """The column was dropped before."""
    statements: tuple[str, ...]
    """In one transaction."""
    inspection: Inspection
    in_the_way: tuple[str, ...]
    """Names of what must be changed, or accepted, first."""
    accepted: tuple[str, ...]
    not_archived: tuple[str, ...]
    """Columns that go along, and that no archive has."""
    gates: list[Measured]

    @property
    def refused(self) -> bool:
        return any(not gate.met for gate in self.gates)


def command_for(with_columns: Sequence[str], accept: Sequence[str], *, no_clients: bool = False) -> str:
    """What was typed, but for --execute and --confirm."""
    parts = ["cachemig drop-column"]
    if with_columns:
        parts.append(f"--with {','.join(with_columns)}")
    parts += [f"--accept-mention {shlex.quote(name)}" for name in accept]
    if no_clients:
        parts.append("--no-clients")
    return " ".join(parts)


def outlook(
    settings: Settings,
    target: RedisTarget,
    *,
    with_columns: Sequence[str] = (),
    accept: Sequence[str] = (),
    no_clients: bool = False,
) -> Outlook:
    """What `drop-column` would do now, in whatever phase, and without a migration too. Reads only."""
    command = command_for(with_columns, accept, no_clients=no_clients)
    with connect(settings) as conn:
        state = control.find(conn)
        if state is not None:
            control.require(conn, settings)
            brownout.refuse(conn)
        found = inspection(settings, with_columns=with_columns)
        ways = _ways(found, accept)
        measured: list[Measured] = []
        if state is None or state.phase not in (Phase.REDIS_ONLY, Phase.DROPPED):
            measured = [_phase(state)]
        elif state.phase is Phase.REDIS_ONLY and settings.column not in found.gone:
            measured = _measured(conn, settings, target, state, command, no_clients, ways)
    return Outlook(
        command=command,
        column=settings.column,
        phase=None if state is None else state.phase,
        done=state is not None and state.phase is Phase.DROPPED,
        statements=tuple(migration.statements(settings, found)),
        inspection=found,
        in_the_way=ways,
        accepted=tuple(accept),
        not_archived=tuple(c.name for c in found.columns if c.name != settings.column),
        gates=measured,
    )


def execute(
    settings: Settings,
    target: RedisTarget,
    stop: Stop,
    *,
    with_columns: Sequence[str] = (),
    accept: Sequence[str] = (),
    no_clients: bool = False,
) -> Generator[Progress, None, Dropped]:
    """Drops the column where every gate is met: measured under the lease before each try, and what can change by itself
    once more under the table's lock. A column that somebody has dropped already is only recorded.

    Raises as drop() does; Refused names each gate that is not met, its figure, and the command that satisfies it.
    """
    command = f"{command_for(with_columns, accept, no_clients=no_clients)} --execute"
    looked_at: list[tuple[Any, ...]] = []
    figures: dict[str, Any] = {"accepted": list(accept), "no_clients": no_clients}

    def gate(conn: Connection) -> None:
        now = _unchanged(conn)
        # Rows that went since the gates were met. On the first try, and of writes, it is the gates that speak.
        if looked_at and now[3] and now[:3] == looked_at[0][:3]:
            raise NotYet(WAITING, hint="keep cachemig sync --follow running")
        looked_at[:] = [now]
        state = control.require(conn, settings, "drop-column")
        with transaction(conn, read_only=True, lock_timeout_s=settings.lock_timeout):
            found = look(conn, settings, with_columns)
        if settings.column in found.gone:
            return
        measured = _measured(conn, settings, target, state, command, no_clients, _ways(found, accept))
        figures["gates"] = {gate.gate: gate.figure for gate in measured}
        gates.require(measured, command)

    def gate_inside(conn: Connection) -> None:
        now = _unchanged(conn)
        if now[:3] != looked_at[0][:3]:
            raise NotYet("phase, epoch or late writes have changed since the gates were looked at", hint=command)
        if now[3]:
            raise NotYet(WAITING, hint="keep cachemig sync --follow running")

    return drop(
        settings, stop, with_columns=with_columns, accept=accept, gate=gate, gate_inside=gate_inside, figures=figures
    )


def _unchanged(conn: Connection) -> tuple[Any, ...]:
    with source_errors():
        row = conn.execute(queries.text("drop_column", "drop_unchanged")).fetchone()
    assert row is not None
    return row


def _measured(
    conn: Connection,
    settings: Settings,
    target: RedisTarget,
    state: control.Migration,
    command: str,
    no_clients: bool,
    ways: Sequence[str],
) -> list[Measured]:
    seen = gates.look(conn, settings, target, state, command=command, no_clients=no_clients, in_the_way=ways)
    return gates.measure(_NAMES, seen)


def _phase(state: control.Migration | None) -> Measured:
    """In place of gates that only redis-only has."""
    if state is None:
        return Measured("phase", "the column is frozen", False, "there is no migration", "cachemig init")
    way = ladder.way_to("drop-column", state.phase)
    return Measured("phase", "the column is frozen", False, f"phase {state.phase.value}", f"cachemig {way[0]}")


def _ways(found: Inspection, accept: Collection[str]) -> tuple[str, ...]:
    return tuple(f"{d.kind} {d.name}" for d in found.in_the_way(accept))

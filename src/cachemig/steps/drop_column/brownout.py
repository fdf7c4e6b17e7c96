"""Brownout: the drop, rehearsed. The column is renamed for some minutes, so that whatever still names it fails as it
would after the drop, and renamed back.

How it comes back, whatever happens: a row in cachemig.brownout is written by the transaction that renames the column
and deleted by the one that renames it back. So the row is there exactly while the column is hidden. It holds the
deadline; every command first renames back what is past it (source/brownout.py).
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass

from psycopg import sql
from psycopg.types.json import Jsonb

from cachemig.config import Settings, show_duration
from cachemig.errors import LockNotGranted, Refused
from cachemig.ladder import Phase
from cachemig.progress import Progress
from cachemig.source import control, queries
from cachemig.source.brownout import TRIES, firing, now, renaming, reveal, revealing
from cachemig.source.connect import Connection, connect, run, source_errors, transaction
from cachemig.steps import dry_run
from cachemig.steps.drop_column.inspect import find
from cachemig.steps.dry_run import DryRun
from cachemig.stop import Stop

SUFFIX = "__cachemig_brownout"
LOOK_EVERY_S = 0.5
MORE_ROLLBACKS = 2.0
"""So many times the rate before, and five more, end it early: other things roll back too."""
_FEW_ROLLBACKS = 5
END = "cachemig drop-column --end-brownout"


@dataclass(frozen=True)
class Browned:
    """How a brownout ended."""

    table: str
    column: str
    seconds: float
    """How long the column was hidden."""
    ended_early: str | None
    """Why; None: it lasted as long as it was meant to, and nothing was seen."""
    rollbacks: int
    """Transactions of this database that were rolled back meanwhile, whatever for."""
    rollbacks_expected: float
    """At the rate before it."""
    client_errors: int
    """That applications reported meanwhile."""
    quiet: bool


def brownout(
    settings: Settings, stop: Stop, *, seconds: float, baseline_s: float | None = None
) -> Generator[Progress, None, Browned]:
    """Hides the column for `seconds`, or until something fails: more rollbacks than before, or errors of applications.

    Wants phase redis-only, as the drop does. Stopped or failed, the column is back before this returns; killed, it is
    back when the next command finds the deadline past, or `end()` is called.
    """
    with connect(settings) as conn:
        _ready(conn, settings)
        rate = yield from _rate_before(conn, stop, min(10.0, seconds / 10) if baseline_s is None else baseline_s)
        with control.lease(conn, "ladder"):
            table, ran = _hide(conn, settings, stop, seconds)
        began, why = time.monotonic(), None
        first = _errors(conn)
        try:
            while (passed := time.monotonic() - began) < seconds:
                yield Progress(
                    round(passed), round(seconds), "seconds", note=f"{settings.column} is hidden; Ctrl-C brings it back"
                )
                stop.wait(min(LOOK_EVERY_S, seconds - passed))
                if stop.requested:
                    why = "stopped on request"
                    break
                if why := _trouble(first, _errors(conn), rate * passed):
                    break
        except BaseException:
            reveal(settings, journalled=True)
            raise
        revealed = reveal(settings, journalled=False)
        last, hidden_s = _errors(conn), time.monotonic() - began
        result = Browned(
            table=table,
            column=settings.column,
            seconds=round(hidden_s, 1),
            ended_early=why,
            rollbacks=last[0] - first[0],
            rollbacks_expected=round(rate * hidden_s, 1),
            client_errors=max(0, last[1] - first[1]),
            quiet=why is None,
        )
        ran += revealed[1] if revealed else []  # another command may have ended it
        figures = {"seconds": result.seconds, "ended_early": why, "rollbacks": result.rollbacks, "sql": ran}
        control.journal(conn, "drop-column --brownout", figures)
        return result


def preview(settings: Settings, *, seconds: float) -> DryRun:
    """What a brownout of so many seconds would run, to hide the column and to bring it back. Reads only."""
    with connect(settings) as conn:
        state = _ready(conn, settings)
        table = find(conn, settings)
        hidden = hidden_name(settings.column)
        own = conn.execute(queries.text("drop_column", "brownout_own_triggers"), {"oid": table.oid}).fetchall()
        begin = {
            "oid": table.oid,
            "column": settings.column,
            "hidden": hidden,
            "triggers": Jsonb(dict(own)),
            "seconds": seconds,
        }
        return DryRun(
            f"cachemig drop-column --brownout {show_duration(seconds)}",
            state.phase,
            True,
            [
                queries.text("drop_column", "brownout_create"),
                queries.query("drop_column", "drop_lock", table=table.identifier).as_string(conn),
                *(
                    statement.as_string(conn)
                    for statement in firing(table.identifier, dict.fromkeys((str(name) for name, _ in own), "D"))
                ),
                dry_run.filled_in(conn, "drop_column", "brownout_begin", begin),
                renaming(table.identifier, settings.column, hidden).as_string(conn),
                queries.text("drop_column", "brownout_end"),
                renaming(table.identifier, hidden, settings.column).as_string(conn),
                *(statement.as_string(conn) for statement in firing(table.identifier, dict(own))),
                dry_run.journal(conn, "drop-column --brownout"),
            ],
            notes=["in two transactions: the column is hidden in between"],
        )


def preview_end(settings: Settings) -> DryRun:
    """What --end-brownout would do now. Reads only."""
    with connect(settings) as conn:
        state, hidden = control.find(conn), now(conn)
        return DryRun(
            "cachemig drop-column --end-brownout",
            None if state is None else state.phase,
            hidden is not None,
            [] if hidden is None else [queries.text("drop_column", "brownout_end"), *revealing(conn)],
            notes=["no brownout is under way" if hidden is None else f"{hidden.column} would have its name again"],
        )


def refuse(conn: Connection) -> None:
    """Raises Refused while a brownout is under way: the column has another name then."""
    hidden = now(conn)
    if hidden is not None:
        raise Refused(
            f"{hidden.column} is hidden by a brownout of {hidden.who} until {hidden.ends_at:%H:%M:%S %Z}", hint=END
        )


def _ready(conn: Connection, settings: Settings) -> control.Migration:
    state = control.require(conn, settings)
    if state.phase is not Phase.REDIS_ONLY:
        raise Refused(
            f"a brownout is not allowed in phase {state.phase.value!r}: applications may still read the column",
            hint="cachemig status says which step comes next",
        )
    refuse(conn)
    return state


def _rate_before(conn: Connection, stop: Stop, seconds: float) -> Generator[Progress, None, float]:
    first, began = _errors(conn), time.monotonic()
    yield Progress(
        0, None, "seconds", note=f"watching for {show_duration(round(seconds, 3))} how often transactions fail anyway"
    )
    stop.wait(seconds)
    return float((_errors(conn)[0] - first[0]) / max(0.001, time.monotonic() - began))


def _errors(conn: Connection) -> tuple[int, int, str | None]:
    with source_errors():
        row = conn.execute(queries.text("drop_column", "brownout_errors")).fetchone()
    assert row is not None
    return int(row[0]), int(row[1]), row[2]


def _trouble(first: tuple[int, int, str | None], last: tuple[int, int, str | None], expected: float) -> str | None:
    if last[1] > first[1]:
        return f"applications report {last[1] - first[1]} errors" + (f" ({last[2]})" if last[2] else "")
    rollbacks = last[0] - first[0]
    if rollbacks > expected * MORE_ROLLBACKS + _FEW_ROLLBACKS:
        return f"{rollbacks} transactions were rolled back, where {expected:.0f} were to be expected"
    return None


def _hide(conn: Connection, settings: Settings, stop: Stop, seconds: float) -> tuple[str, list[str]]:
    table = find(conn, settings)
    for left in reversed(range(TRIES)):
        stop.check("nothing was changed")
        try:
            with transaction(conn, lock_timeout_s=settings.lock_timeout):
                create = sql.SQL(queries.text("drop_column", "brownout_create"))
                ran = run(conn, [create, queries.query("drop_column", "drop_lock", table=table.identifier)])
                own = conn.execute(queries.text("drop_column", "brownout_own_triggers"), {"oid": table.oid}).fetchall()
                ran += run(conn, firing(table.identifier, dict.fromkeys((str(name) for name, _ in own), "D")))
                conn.execute(
                    queries.text("drop_column", "brownout_begin"),
                    {
                        "oid": table.oid,
                        "column": settings.column,
                        "hidden": hidden_name(settings.column),
                        "triggers": Jsonb(dict(own)),
                        "seconds": seconds,
                        "who": control.who(),
                    },
                )
                ran += run(conn, [renaming(table.identifier, settings.column, hidden_name(settings.column))])
            return table.qualified, ran
        except LockNotGranted:
            if not left:
                raise
            stop.wait(0.5)
    raise AssertionError("the last try raises or returns")


def hidden_name(column: str) -> str:
    """What the column is called meanwhile: no longer than Postgres's 63 bytes."""
    return column.encode()[: 63 - len(SUFFIX)].decode(errors="ignore") + SUFFIX

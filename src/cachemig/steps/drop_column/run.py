"""The drop itself: looked at again under the lease, in one short transaction, tried until the table is free or the
limit is reached. Its reversible rehearsal is brownout.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random_exponential

from cachemig.config import Settings
from cachemig.errors import LeaseHeld, LockNotGranted, Refused, SourceUnavailable
from cachemig.ladder import Phase
from cachemig.progress import Progress
from cachemig.source import control, queries
from cachemig.source.connect import Connection, connect, run, source_errors, transaction
from cachemig.steps.drop_column import brownout, migration
from cachemig.steps.drop_column.inspect import Inspection, find, inspection, look, named
from cachemig.steps.drop_column.lock import Waited, run_watched
from cachemig.steps.drop_column.migration import Origin
from cachemig.stop import Stop

TRIES = 30
STATEMENT_TIMEOUT_S = 60.0
"""Beyond the lock's own: the drop changes the catalog alone and needs milliseconds."""
AGAIN = "nothing was changed; run the same command again: cachemig drop-column --execute"

Gate = Callable[[Connection], None]


class NotYet(Refused):
    """Something is under way that ends by itself: the step is tried again."""


@dataclass(frozen=True)
class Preview:
    """What a drop would run, and meet."""

    statements: tuple[str, ...]
    inspection: Inspection
    in_the_way: tuple[str, ...]
    """Names of what must be changed, or accepted, first."""
    phase: Phase | None
    done: bool
    """The migration is in phase `dropped` already."""


@dataclass(frozen=True)
class Dropped:
    """The state after the step."""

    changed: bool
    """False: it was so already."""
    table: str
    columns: tuple[str, ...]
    tries: int = 0
    waited_s: float = 0.0
    """For the table's lock, all tries together."""
    held_up_by: tuple[str, ...] = ()
    locked_ms: float = 0.0
    """How long the lock was held: so long others waited, beyond `lock_timeout` at each try."""
    triggers_removed: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()
    """What went with the columns."""
    recreate: tuple[str, ...] = ()
    """SQL that makes it again, column first; the journal keeps it too."""
    table_bytes: int = 0
    """Of the table with its indexes; the drop frees nothing of it."""
    notified: bool = False
    """PostgREST was told to read the schema anew."""


def preview(settings: Settings, *, with_columns: Sequence[str] = (), accept: Collection[str] = (),
            stop: Stop | None = None, watch_s: float = 0.0) -> Preview:  # fmt: skip
    """What drop() would do. Reads only, and works in every phase and without a migration."""
    found = inspection(settings, with_columns=with_columns, stop=stop, watch_s=watch_s)
    with connect(settings) as conn:
        state = control.find(conn)
    return Preview(
        statements=tuple(migration.statements(settings, found)),
        inspection=found,
        in_the_way=tuple(f"{d.kind} {d.name}" for d in found.in_the_way(accept)),
        phase=None if state is None else state.phase,
        done=state is not None and state.phase is Phase.DROPPED,
    )


def drop(
    settings: Settings,
    stop: Stop,
    *,
    with_columns: Sequence[str] = (),
    accept: Collection[str] = (),
    gate: Gate,
    gate_inside: Gate | None = None,
    tries: int = TRIES,
    figures: Mapping[str, Any] | None = None,
) -> Generator[Progress, None, Dropped]:
    """Drops the column, and `with_columns` with it, in one transaction with phase, journal and NOTIFY: all or nothing.

    `gate` raises where the drop is not allowed; it is asked under the lease `ladder` before each try, `gate_inside`
    (for what is cheap, and opens no transaction) once more under the table's lock, when no write to the column can come
    any more. Where one of them raises NotYet the step is tried again. Waits for the table for `lock_timeout` at each of
    `tries`; those who hold it are named in the progress, and never ended. `accept`: see Inspection.in_the_way().
    `figures` are kept in the journal too; they are read when the step is recorded.

    Raises Refused, naming what depends on the column; LockNotGranted when the table was in use at every try, with
    nothing changed; Interrupted likewise.
    """
    names = named(settings, with_columns)
    with connect(settings) as conn, connect(settings) as watcher:
        state = control.require(conn, settings)
        if state.phase is Phase.DROPPED:
            return Dropped(False, find(conn, settings).qualified, names)
        brownout.refuse(conn)
        waited = Waited()
        for attempt in _retrying(stop, tries, waited):
            number = attempt.retry_state.attempt_number
            with attempt, control.lease(conn, "ladder") as fence:
                stop.check(AGAIN)
                _only_from_redis_only(control.require(conn, settings))
                gate(conn)
                with transaction(conn, read_only=True, lock_timeout_s=settings.lock_timeout):
                    found = look(conn, settings, with_columns)
                _nothing_in_the_way(found, accept)
                running = _try(conn, watcher, settings, stop, found, names, fence, gate_inside, waited, number, figures)
                with closing(running):
                    while True:
                        try:
                            next(running)
                        except StopIteration as end:
                            result: Dropped = end.value
                            break
                        yield Progress(number, tries, "tries", waiting=_waiting(waited))
            outcome = attempt.retry_state.outcome
            failed = None if outcome is None else outcome.exception()
            if isinstance(failed, LockNotGranted | SourceUnavailable | NotYet):
                stop.check(AGAIN)
                why = str(failed) if isinstance(failed, NotYet) else f"{_waiting(waited)}; the application goes first"
                yield Progress(number, tries, "tries", waiting=why)
        return result


def origin(settings: Settings) -> Origin:
    """The database of these settings, for a file that is to do nothing in any other one."""
    with connect(settings) as conn, source_errors():
        row = conn.execute(queries.text("drop_column", "drop_origin")).fetchone()
    assert row is not None
    return Origin(str(row[0]), str(row[1]))


def _try(
    conn: Connection,
    watcher: Connection,
    settings: Settings,
    stop: Stop,
    found: Inspection,
    names: Sequence[str],
    fence: int,
    gate_inside: Gate | None,
    waited: Waited,
    number: int,
    figures: Mapping[str, Any] | None,
) -> Generator[None, None, Dropped]:
    table = find(conn, settings)
    with source_errors(), transaction(conn, lock_timeout_s=settings.lock_timeout):
        # Before any lock that an application could wait for.
        conn.execute(migration.limits(settings.lock_timeout, settings.lock_timeout + STATEMENT_TIMEOUT_S))
        conn.execute(queries.text("control", "lock_migration"))
        lock = queries.query("drop_column", "drop_lock", table=table.identifier)
        yield from run_watched(conn, watcher, lock, stop, waited, AGAIN)
        locked = time.monotonic()
        if gate_inside is not None:
            gate_inside(conn)
        triggers = [str(row[0]) for row in _own_triggers(conn, table.oid)]
        ran = [lock.as_string(conn)]
        ran += run(conn, [migration.own_triggers(found.table), migration.alter(found.table, names)])
        moved = conn.execute(
            queries.text("drop_column", "drop_record"),
            {"who": control.who(), "owner": control.owner(), "fence": fence},
        ).rowcount
        if not moved:
            raise LeaseHeld("another run has moved the ladder meanwhile")
        if found.postgrest:
            ran.append(queries.text("drop_column", "drop_notify"))
        kept = {**migration.figures_of(found, names), **(figures or {}), "sql": ran}
        control.journal(conn, "drop-column", kept, phase_from=Phase.REDIS_ONLY)
        if found.postgrest:
            conn.execute(queries.text("drop_column", "drop_notify"))
    recreate = found.recreate
    return Dropped(
        changed=True,
        table=found.table,
        columns=tuple(names),
        tries=number,
        waited_s=round(waited.seconds, 1),
        held_up_by=tuple(waited.holders),
        locked_ms=round((time.monotonic() - locked) * 1000, 1),
        triggers_removed=tuple(triggers),
        vanished=tuple(f"{d.kind} {d.name}" for d in found.dependents if d.effect == "vanishes"),
        recreate=(*recreate["column"], *recreate["after_data"]),
        table_bytes=found.table_bytes,
        notified=found.postgrest,
    )


def _own_triggers(conn: Connection, oid: int) -> list[tuple[object, ...]]:
    return conn.execute(queries.text("drop_column", "brownout_own_triggers"), {"oid": oid}).fetchall()


def _retrying(stop: Stop, tries: int, waited: Waited) -> Retrying:
    """Until the table is free. A lock that was not granted in time, or would have been a deadlock, changed nothing."""
    limit = stop_after_attempt(tries)

    def again(exc: BaseException) -> bool:
        # A deadlock is told as a rollback by the server; a lost connection could not be gone on with here.
        deadlock = isinstance(exc, SourceUnavailable) and "rolled back" in str(exc)
        return deadlock or isinstance(exc, LockNotGranted | NotYet)

    def done(state: RetryCallState) -> bool:
        return stop.requested or limit(state)

    def given_up(state: RetryCallState) -> None:
        stop.check(AGAIN)
        last = None if state.outcome is None else state.outcome.exception()
        if isinstance(last, NotYet):
            raise last
        raise LockNotGranted(
            f"the table was in use at each of {tries} tries, nothing was changed; {_waiting(waited)}",
            hint="cachemig ends nobody: wait for them, or end them yourself; then run the same command again",
        )

    return Retrying(
        retry=retry_if_exception(again),
        wait=wait_random_exponential(multiplier=1.0, min=0.2, max=10.0),
        stop=done,
        sleep=stop.wait,
        retry_error_callback=given_up,
    )


def _waiting(waited: Waited) -> str:
    if not waited.now:
        return "the table is in use"
    return f"the table is held by {'; '.join(waited.now)}"


def _only_from_redis_only(state: control.Migration) -> None:
    if state.phase is not Phase.REDIS_ONLY:
        raise Refused(
            f"drop-column is not allowed in phase {state.phase.value!r}: applications may still use the column",
            hint="cachemig status says which step comes next",
        )


def _nothing_in_the_way(found: Inspection, accept: Collection[str]) -> None:
    if ways := found.in_the_way(accept):
        raise Refused(
            "drop-column: something depends on the column, or names it: "
            + "; ".join(f"{d.kind} {d.name} ({d.effect.value})" for d in ways),
            hint="cachemig drop-column tells what to do about each; nothing is ever dropped by CASCADE",
        )

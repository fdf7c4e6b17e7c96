"""The table's lock: asked for again and again, never waited for without a limit, its holders named and never ended."""

from __future__ import annotations

import select
from collections.abc import Generator
from dataclasses import dataclass, field

import psycopg
from psycopg import sql
from psycopg.pq import ExecStatus

from cachemig.source import queries
from cachemig.source.connect import Connection, source_errors
from cachemig.steps.drop_column.inspect import who
from cachemig.stop import Stop

FIRST_LOOK_S = 0.05
LOOK_EVERY_S = 0.2
_DONE = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)


@dataclass
class Waited:
    """Who was in the way so far, in the order in which they were seen."""

    seconds: float = 0.0
    holders: list[str] = field(default_factory=list)
    now: list[str] = field(default_factory=list)
    """Those of the last look."""
    pids: list[int] = field(default_factory=list)


def run_watched(
    conn: Connection, watcher: Connection, statement: sql.Composed, stop: Stop, waited: Waited, hint: str
) -> Generator[None, None, None]:
    """Runs a statement that may wait for a lock, and meanwhile looks who holds it, over another connection.

    Yields at every look. Raises what the statement raised, mapped; Interrupted, with `hint`, when a stop was requested
    meanwhile. The session is ready for the next statement however this ends.
    """
    row = conn.execute(queries.text("doctor", "session")).fetchone()
    assert row is not None
    raw = conn.pgconn
    raw.send_query(statement.as_bytes(conn))
    failed: psycopg.Error | None = None
    finished, pause_s = False, FIRST_LOOK_S
    try:
        while not finished:
            ready, _, _ = select.select([raw.socket], [], [], pause_s)
            if ready:
                raw.consume_input()
            while not raw.is_busy():
                result = raw.get_result()
                if result is None:
                    finished = True
                    break
                if result.status not in _DONE:
                    failed = failed or psycopg.errors.error_from_result(result, encoding="utf-8")
            if not finished and not ready:
                waited.seconds += pause_s
                pause_s = LOOK_EVERY_S
                _look(watcher, int(row[0]), waited)
                if stop.requested:
                    conn.cancel_safe(timeout=5)
                yield
    finally:
        if not finished:  # the caller was stopped: the rollback that follows needs a session that listens
            conn.cancel_safe(timeout=5)
            while raw.get_result() is not None:
                pass
    if failed is not None:
        stop.check(hint)
        with source_errors():
            raise failed


def _look(watcher: Connection, pid: int, waited: Waited) -> None:
    with source_errors():
        rows = watcher.execute(queries.text("drop_column", "drop_blocked_by"), {"pid": pid}).fetchall()
    waited.now = [who(*row) for row in rows]
    for row, name in zip(rows, waited.now, strict=True):
        if row[0] not in waited.pids:
            waited.pids.append(row[0])
            waited.holders.append(name)

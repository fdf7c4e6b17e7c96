"""Late writes: what programs wrote to the column after it was frozen, brought to Redis.

A late write counts as made when it is taken up: the version that Redis holds then is recorded, and it replaces that one
and nothing newer. So repeating is harmless, and no write that was acknowledged after the taking up is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from psycopg import sql

from cachemig.entries.entry import Entry
from cachemig.errors import TargetError
from cachemig.source import capture, control, queries
from cachemig.source.connect import Connection, transaction
from cachemig.source.table import Table
from cachemig.steps.delivery import plan
from cachemig.targets.redis import RedisTarget

BATCH = 200


def deliver(conn: Connection, table: Table, target: RedisTarget, allowed: Callable[[], control.Migration]) -> int:
    """Delivers what waits; how many were settled, 0 where none waits or another worker is at it.

    `allowed` is asked in each transaction, and raises where the phase is another one by now.
    """
    with transaction(conn):
        migration = allowed()
        # The lock is held from before the versions are read until they are recorded: two late writes of a key must not
        # be taken up with the same version.
        if not _alone(conn):
            return 0
        new = conn.execute(queries.text("late_write", "late_new"), {"limit": BATCH}).fetchall()
        if new and migration.redis_marker:
            versions = target.versions([str(key) for _, key in new])
            _take_up(conn, [(id_, v, migration.redis_marker) for (id_, _), v in zip(new, versions, strict=True)])
    with transaction(conn):
        migration = allowed()
        if not _alone(conn):
            return 0
        found = conn.execute(
            queries.query("late_write", "late_taken", **_parts(table), limit=sql.Literal(BATCH))
        ).fetchall()
        if not found:
            return 0
        outcomes, again = _deliver(target, found, migration)
        # A row of a key that other rows have, too: the column's own value may be another one's by now.
        capture.mark(conn, [str(key) for _, key, kind, *_, has_row in found if kind == "delete" and has_row])
        if outcomes:
            ids, names, errors = zip(*outcomes, strict=True)
            conn.execute(
                queries.text("late_write", "late_done"),
                {"ids": list(ids), "outcomes": list(names), "errors": list(errors)},
            )
        if again:
            _take_up(conn, again)
    return len(outcomes) + len(again)


def _alone(conn: Connection) -> bool:
    row = conn.execute(queries.text("late_write", "late_alone")).fetchone()
    return bool(row and row[0])


def _take_up(conn: Connection, taken: list[tuple[int, int, str]]) -> None:
    """Records the version, and the marker, that each is to replace."""
    ids, versions, markers = zip(*taken, strict=True)
    conn.execute(
        queries.text("late_write", "late_take_up"),
        {"ids": list(ids), "versions": list(versions), "markers": list(markers)},
    )


def _deliver(
    target: RedisTarget, found: list[tuple[Any, ...]], migration: control.Migration
) -> tuple[list[tuple[int, str, str | None]], list[tuple[int, int, str]]]:
    outcomes: list[tuple[int, str, str | None]] = []
    again: list[tuple[int, int, str]] = []
    for id_, key, kind, value, taken, marker, has_row in found:
        if kind == "delete" and has_row:  # another row has the key
            outcomes.append((id_, "superseded", None))
            continue
        record, write = plan(
            Entry(key, None if value is None else value.encode(), 1), target.settings, int(time.time() * 1000)
        )
        if record.state == "set-aside" or write is None:
            outcomes.append((id_, "set-aside", record.error))
            continue
        try:
            status, held, planted = target.write_alone(
                key, write.value, write.expires_at_ms, epoch=migration.epoch, expected=taken, marker=marker
            )
        except TargetError as exc:
            if type(exc) is not TargetError:  # it says something of the server, not of the key
                raise
            outcomes.append((id_, "failed", str(exc)))
            continue
        if status == 1:
            outcomes.append((id_, "delivered", None))
        elif status == 0 and held > taken and held >= migration.base:  # below: the last of the column came in between
            outcomes.append((id_, "superseded", None))
        elif status == 0 and planted == migration.redis_marker:
            # With what the script found, not with what is read now: somebody may have written since.
            again.append((id_, held, planted))
    return outcomes, again


def _parts(table: Table) -> dict[str, sql.Composable]:
    return {name: table.parts[name] for name in ("table", "key", "k_key")}

"""sync: delivers committed changes, oldest first; the steps of a worker in docs/architecture.md, "The protocol"."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from cachemig import failpoints
from cachemig.config import Settings
from cachemig.errors import Interrupted
from cachemig.ladder import Phase
from cachemig.progress import Progress
from cachemig.source import capture, control, ledger, queries, scan
from cachemig.source.connect import Connection, connect, transaction
from cachemig.source.standing import backlog, late
from cachemig.source.table import Table, inspect
from cachemig.steps import dry_run, epoch, late_writes
from cachemig.steps.delivery import Tally, deliver
from cachemig.steps.dry_run import DryRun
from cachemig.steps.orders import Orders
from cachemig.steps.retry import Reconnecting, attempts, reason
from cachemig.steps.shown import Shown, leaving
from cachemig.steps.unfinished import unfinished
from cachemig.stop import Stop
from cachemig.targets.redis import RedisTarget

RESUME = "cachemig sync --follow takes up where this stopped; nothing is lost meanwhile"
BATCH = 2_000
LIMITED_BATCH = 200
"""Where a rate or a duty is to be kept: a batch goes out at once, and what it is too much is waited for after it."""
TRIES = 3
"""How often a key that Redis refuses is tried before it is recorded as failed."""
_IDLE_S = (0.05, 1.0)
_COUNT_EVERY_S = 0.5


@dataclass
class Synced:
    """What a run of sync did."""

    changes: int = 0
    epochs: int = 0
    """New epochs that this run began, because a server may have lost what it had acknowledged."""
    late: int = 0
    """Writes to the frozen column that were brought to Redis, or found to be superseded there."""
    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0

    def figures(self) -> dict[str, Any]:
        return {
            "changes": self.changes,
            "epochs": self.epochs,
            "late": self.late,
            **asdict(self.tally),
            "seconds": round(self.seconds, 3),
        }


def preview(settings: Settings) -> DryRun:
    """What `sync` would deliver now. Reads only."""
    with connect(settings) as conn:
        migration = control.require(conn, settings, "sync")
        behind = backlog(conn)
        if migration.phase is Phase.DROPPED:
            return DryRun(
                "cachemig sync", migration.phase, False, notes=["the column is dropped: nothing is delivered"]
            )
        table = inspect(conn, settings)
        waiting = late(conn).waiting if migration.frozen_epoch is not None else 0
        oldest = "" if behind.oldest_s is None else f", the oldest {behind.oldest_s:.1f} s old"
        return DryRun(
            "cachemig sync",
            migration.phase,
            bool(behind.changes or waiting),
            [
                queries.text("sync", "take_changes"),
                scan.keys_statement(table).as_string(conn),
                *ledger.statements(),
                queries.text("sync", "fold_changes"),
                dry_run.journal(conn, "sync"),
            ],
            dry_run.deliveries(settings),
            figures={"changes": behind.changes, "oldest_s": behind.oldest_s, "late_writes": waiting},
            notes=[f"would deliver {behind.changes:,} changes{oldest}"]
            + ([f"would bring {waiting:,} late writes to Redis"] if waiting else []),
        )


def sync(settings: Settings, target: RedisTarget, stop: Stop, *, follow: bool) -> Generator[Progress, None, Synced]:
    """Delivers changes until none is left (`follow`: until a stop is requested, which then is the normal end).

    A change is folded only after Redis has acknowledged its key's state; on any error it stays and comes round again.
    Once the column is frozen: what was changed before, and what is written to it all the same (late_writes). Ends where
    the column is dropped.
    """
    began = time.monotonic()
    result = Synced()
    with connect(settings) as conn:
        if control.require(conn, settings, "sync").phase is Phase.DROPPED:
            result.epochs += epoch.ensure(conn, target) is not None
            return result
        table = inspect(conn, settings)
        target.check()
    idle_s = _IDLE_S[0]
    behind: int | None = None
    counted = 0.0
    orders = Orders(settings, stop)
    poison = Poison()

    def so_far() -> dict[str, Any]:
        result.seconds = time.monotonic() - began
        return result.figures() if result.changes or result.late else {}

    with (
        unfinished(settings, "sync", so_far),
        Reconnecting(settings) as session,
        leaving(Shown("sync", lambda: orders.limit), session) as shown,
    ):

        def told(progress: Progress) -> Progress:
            shown.say(session, progress)
            return progress

        while not stop.requested:
            taken, late, begun, paused_by = 0, 0, None, None
            dropped = held = False
            batch = BATCH
            for attempt in attempts(settings, stop):
                with attempt, session.guard() as conn:
                    if paused_by := orders.look(conn):
                        break
                    if held := orders.held:
                        orders.spend(0)
                        break
                    if begun := epoch.ensure(conn, target):
                        break
                    phase = control.require(conn, settings, "sync").phase
                    if dropped := phase is Phase.DROPPED:
                        break
                    before = result.tally.bytes
                    batch = LIMITED_BATCH if orders.limited else BATCH
                    taken = _batch(conn, settings, table, target, result, poison, batch)
                    if phase is Phase.REDIS_ONLY:
                        late = late_writes.deliver(
                            conn, table, target, partial(control.require, conn, settings, "sync")
                        )
                    orders.spend(result.tally.bytes - before)
                    if taken < batch and not follow:
                        # Before it is said to be done: what went to a Redis that is not the one that was filled is
                        # delivered again.
                        begun = epoch.ensure(conn, target)
                if waiting := reason(attempt.retry_state):
                    yield told(_progress(result, None, waiting))
            if paused_by:
                yield told(_progress(result, None, orders.throttled))
                stop.wait(0.3)
                continue
            if held:
                yield told(_progress(result, None, slowed=orders.throttled))
                continue
            if begun is not None:
                result.epochs += 1
                yield told(_progress(result, begun.marked, note=f"epoch {begun.epoch}: {begun.reason}"))
                continue
            result.late += late
            if dropped or (taken < batch and not late and not follow and not poison.waiting):
                break
            if taken == late == 0:
                yield told(_progress(result, 0, slowed=orders.throttled))
                stop.wait(idle_s)
                idle_s = min(idle_s * 2, _IDLE_S[1])
            else:
                idle_s = _IDLE_S[0]
                if time.monotonic() - counted > _COUNT_EVERY_S:  # up to 100,000 rows are counted
                    behind, counted = backlog(session.get()).changes, time.monotonic()
                yield told(_progress(result, behind, slowed=orders.throttled))
        if figures := so_far():
            control.journal(session.get(), "sync", figures)
    if stop.requested and not follow:
        raise Interrupted(hint=RESUME, signal_number=stop.signal_number)
    return result


class Poison:
    """Keys that Redis refuses: tried again a few times, then recorded as failed, so that the rest flows."""

    def __init__(self) -> None:
        self._failures: Counter[str] = Counter()

    @property
    def waiting(self) -> bool:
        """Some key is to be tried again."""
        return bool(self._failures)

    def postponed(self, records: list[ledger.Record]) -> set[str]:
        """Keys that failed in this batch and are to be tried again: their changes are not folded yet."""
        again = set()
        for record in records:
            self._failures[record.key] += record.state == "failed"
            if record.state == "failed" and self._failures[record.key] < TRIES:
                again.add(record.key)
            else:
                del self._failures[record.key]
        return again


def _batch(
    conn: Connection, settings: Settings, table: Table, target: RedisTarget, result: Synced, poison: Poison, batch: int
) -> int:
    """Takes, delivers and folds a batch of at most so many changes; the number of changes taken."""
    tally = Tally()
    capture.expand_truncations(conn)
    with transaction(conn):
        control.require(conn, settings, "sync")
        changes = conn.execute(queries.text("sync", "take_changes"), {"limit": batch}).fetchall()
        if not changes:
            return 0
        failpoints.hit("sync-after-take")
        keys = list(dict.fromkeys(str(key) for _, key in changes))
        # A new statement, so a new snapshot: it sees every change that the locked rows were committed with.
        with closing(scan.read_keys(conn, table, keys)) as entries, closing(deliver(target, entries, tally)) as records:
            done = list(records)
        failpoints.hit("sync-after-delivery")
        again = poison.postponed(done)
        ledger.write(conn, [record for record in done if record.key not in again])
        failpoints.hit("sync-after-ledger")
        conn.execute(
            queries.text("sync", "fold_changes"), {"ids": [change_id for change_id, key in changes if key not in again]}
        )
        failpoints.hit("sync-after-fold")
    failpoints.hit("sync-after-commit")
    result.changes += len(changes)
    result.tally.merge(tally)
    return len(changes)


def _progress(
    result: Synced, backlog: int | None, waiting: str | None = None, note: str | None = None, slowed: str | None = None
) -> Progress:
    return Progress(
        result.changes,
        None,
        "changes",
        entries=result.tally.entries,
        bytes=result.tally.bytes,
        backlog=backlog,
        note=note,
        slowed=slowed,
        waiting=waiting,
    )

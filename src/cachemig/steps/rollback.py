"""rollback: one phase down, with nothing lost. From cutover at once, and it asks nobody: not Redis, not the clients.

Within the poll interval of the applications every read comes from the column again. What Redis holds stays and is kept
equal, so that a cutover can begin anew. From redis-only Redis is asked for what it has newer (copy_back).
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace

from cachemig.config import Settings
from cachemig.ladder import Phase
from cachemig.progress import Progress
from cachemig.source import control
from cachemig.source.connect import connect
from cachemig.steps import clients, epoch
from cachemig.steps.copy_back import copy_back, end_statements, newer
from cachemig.steps.cutover import Moved, Preview, move_statements, take
from cachemig.steps.retry import Reconnecting
from cachemig.stop import Stop
from cachemig.targets.redis import RedisTarget

_COMMAND = "cachemig rollback"


def preview(settings: Settings, target: RedisTarget) -> Preview:
    """What `rollback` would do now. Reads only."""
    with connect(settings) as conn:
        migration = control.require(conn, settings, "rollback")
        at = (migration.phase, migration.percent)
        copies = None
        after = at
        shown: list[str] = []
        redis: list[str] = []
        match migration.phase:
            case Phase.REDIS_ONLY:
                after = (Phase.CUTOVER, 100.0)
                copies = len({key for found in newer(target, migration.base) for key, _ in found})
                number = epoch.foresee(migration, target)
                redis = [f"SET {target.marker_key}: the fence, the marker of epoch {number}"]
                shown = end_statements(conn, settings, target, migration, number)
            case Phase.CUTOVER:
                after = (Phase.DUAL_WRITE, 0.0)
                shown = move_statements(conn, migration, after)
        names = [client.name for client in clients.live(conn)]
        return Preview(_COMMAND, *at, *after, [], [], names, copies, shown, redis)


def rollback(
    settings: Settings, target: RedisTarget, stop: Stop, *, accept_left: int = 0
) -> Generator[Progress, None, Moved]:
    """One phase down. From redis-only to cutover, with what Redis has newer copied back (copy_back); from cutover to
    dual-write, without asking Redis; there it says that it is there already. Waits for the live clients: those that do
    not follow within `client_wait` are named (Refused), and the phase stays.

    Raises LeaseHeld while another run looks at the gates of a step.
    """
    began = time.monotonic()
    with Reconnecting(settings) as session:
        conn = session.get()
        migration = control.require(conn, settings, "rollback")
        if migration.phase is Phase.IDLE:
            return Moved(Phase.IDLE, 0.0, Phase.IDLE, 0.0, changed=False, gates=[])
        if migration.phase is Phase.REDIS_ONLY:
            copied = yield from copy_back(session, settings, target, stop, accept_left=accept_left)
            before = (migration.phase, migration.percent)
            moved = Moved(Phase.CUTOVER, 100.0, *before, changed=True, gates=[], copied=copied)
        else:
            moved = take(conn, settings, None, (Phase.DUAL_WRITE, 0.0), command=_COMMAND)
        others = yield from clients.follow(
            session, settings, stop, moved.phase, moved.percent, again=_COMMAND, back="cachemig cutover --percent 0"
        )
    names = [client.name for client in others]
    return replace(moved, clients=names, seconds=round(time.monotonic() - began, 3))

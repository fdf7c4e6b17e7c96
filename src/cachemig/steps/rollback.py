"""rollback: one phase down, at once and with nothing lost. It asks nobody: not Redis, not the clients.

Within the poll interval of the applications every read comes from the column again. What Redis holds stays and is kept
equal, so that a cutover can begin anew.
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
from cachemig.steps import clients
from cachemig.steps.cutover import Moved, Preview, take
from cachemig.steps.retry import Reconnecting
from cachemig.stop import Stop

_COMMAND = "cachemig rollback"


def preview(settings: Settings) -> Preview:
    """What `rollback` would do now. Reads only."""
    with connect(settings) as conn:
        migration = control.require(conn, settings, "rollback")
        at = (migration.phase, migration.percent)
        after = (Phase.DUAL_WRITE, 0.0) if migration.phase is Phase.CUTOVER else at
        return Preview(_COMMAND, *at, *after, [], [], [client.name for client in clients.live(conn)])


def rollback(settings: Settings, stop: Stop) -> Generator[Progress, None, Moved]:
    """From cutover to dual-write; from there on it says that it is there already. Waits for the live clients: those
    that do not follow within `client_wait` are named (Refused), and the phase stays.

    Raises LeaseHeld while another run looks at the gates of a step.
    """
    began = time.monotonic()
    with Reconnecting(settings) as session:
        conn = session.get()
        migration = control.require(conn, settings, "rollback")
        if migration.phase is Phase.IDLE:
            return Moved(Phase.IDLE, 0.0, Phase.IDLE, 0.0, changed=False, gates=[])
        moved = take(conn, settings, None, (Phase.DUAL_WRITE, 0.0), command=_COMMAND)
        others = yield from clients.follow(
            session, settings, stop, moved.phase, moved.percent, again=_COMMAND, back="cachemig cutover --percent 0"
        )
    names = [client.name for client in others]
    return replace(moved, clients=names, seconds=round(time.monotonic() - began, 3))

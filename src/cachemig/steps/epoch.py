"""Epochs: when either server may have lost what it acknowledged, everything is delivered again, above all that was.

A new epoch raises every version (entries/entry.py), so that no write of an earlier one is accepted where the new state
has arrived; voids the chunks and verifications; and marks every key that was ever handled, so that sync reads it anew.

In cutover the phase and its percentage stay. A flushed Redis has only misses, and those are answered by the column:
slow, but right, and better than every client changing its route at the worst moment. What cannot be done any more is
to raise the percentage: backfill and verify are void, and the gates ask for both in the new epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

from cachemig.entries.entry import EPOCH
from cachemig.errors import Refused
from cachemig.ladder import Phase
from cachemig.source import capture, control, queries
from cachemig.source.connect import Connection, transaction
from cachemig.steps import clients
from cachemig.targets.keys import VERSION, escape, owner_of
from cachemig.targets.redis import Identity, RedisTarget

LAST = 8191
_BATCH = 10_000


@dataclass(frozen=True)
class Begun:
    epoch: int
    marked: int
    reason: str


def changed(migration: control.Migration, identity: Identity) -> str | None:
    """Why either server may not be in the state that this migration left it in; None if nothing speaks for it."""
    if migration.timeline_now != migration.timeline:
        return f"Postgres is on timeline {migration.timeline_now}, was on {migration.timeline}: commits may be lost"
    if identity.marker != migration.redis_marker:
        return "Redis was flushed or is another server: its marker is gone"
    if not runs(identity.run) <= runs(migration.redis_run):
        return "Redis was restarted or failed over: writes may be lost"
    return None


def runs(recorded: str | None) -> set[str]:
    """The run ids of an identity. Of a cluster there is one for each master: one that left is no reason for a new
    epoch, its slots went with their values; one that is new may be a replica that took over."""
    return set((recorded or "").split())


def ensure(conn: Connection, target: RedisTarget) -> Begun | None:
    """Begins a new epoch if either server has changed; None, and two cheap questions, if not."""
    migration = control.find(conn)
    if migration is None or migration.phase is Phase.IDLE:  # without capture no epoch can begin
        return None
    if (
        migration.fenced
    ):  # nor behind the fence of a rollback, which notices by itself: writers would learn of it, and pass
        return None
    reason = changed(migration, target.identity())
    return begin(conn, target, reason, expected=migration.epoch, noticed=True) if reason else None


def begin(conn: Connection, target: RedisTarget, reason: str, *, expected: int, noticed: bool = False) -> Begun | None:
    """Begins an epoch after `expected`, in one transaction; None if another worker was first. `noticed`: only if either
    server is still another one than was recorded."""
    with transaction(conn):
        row = conn.execute(queries.text("control", "lock_migration")).fetchone()
        if row is None or row[0] != expected:
            return None
        migration = control.find(conn)
        assert migration is not None
        if (
            migration.phase is Phase.IDLE
            or migration.fenced
            or (noticed and changed(migration, target.identity()) is None)
        ):
            return None
        if migration.frozen_epoch is None:
            number, marked = record(conn, migration.phase, prepare(migration, target))
        else:
            number, marked = _without_the_column(conn, migration, target), 0
        figures = {"reason": reason, "marked": marked, "shadow": clients.shadow_so_far(conn)}
        control.journal(conn, "new epoch", figures, phase_from=migration.phase)
    return Begun(number, marked, reason)


def _without_the_column(conn: Connection, migration: control.Migration, target: RedisTarget) -> int:
    """From stop-writes on: the verifications are void, and nothing is delivered again. What Redis lost may have been
    newer than the column; a miss is computed again, a stale value would stay. The marker keeps the column's epoch, so
    that the last changes from before it was frozen can be delivered."""
    assert migration.frozen_epoch is not None
    _, highest = _look_into(target)
    number = _above(migration, target, highest)
    target.plant_marker(migration.frozen_epoch)
    control.set_phase(conn, migration.phase, number)
    identity = target.identity()
    conn.execute(queries.text("control", "set_identities"), {"run": identity.run, "marker": identity.marker})
    return number


def _above(migration: control.Migration, target: RedisTarget, highest: int) -> int:
    number = max(migration.epoch, target.identity().epoch, highest) + 1
    if number > LAST:
        raise Refused("8,192 epochs are used up", hint="cachemig dual-write --disable, then clean, and begin anew")
    return number


def foresee(migration: control.Migration, target: RedisTarget) -> int:
    """The number of the epoch that would begin now. Reads only."""
    return _above(migration, target, _look_into(target)[1])


@dataclass(frozen=True)
class Prepared:
    """An epoch that has begun in Redis and is to be recorded in Postgres."""

    number: int
    identity: Identity
    owners: list[str]
    """Keys that Redis holds a version of."""


def prepare(migration: control.Migration, target: RedisTarget) -> Prepared:
    """Begins the epoch in Redis: above the migration's last one, above the marker's and above every version held there
    (a Postgres that was failed over or restored may know less than Redis).

    In this order: once the marker is planted no late write of an earlier epoch is accepted, so what is looked at after
    that is all there is. Should it not come to be recorded, the next look finds a marker that nobody knows, and a
    higher epoch begins; the other way round a flushed Redis could be taken for a filled one.
    """
    _, highest = _look_into(target)
    number = _above(migration, target, highest)
    target.plant_marker(number)
    owners, _ = _look_into(target)
    return Prepared(number, target.identity(), owners)


def record(conn: Connection, phase: Phase, prepared: Prepared) -> tuple[int, int]:
    """Records phase and epoch, in the caller's transaction; returns the epoch with the number of keys marked. The
    percentage stays as it is.

    Marked is every key that was ever handled or is on its way, and every one that Redis holds a version of: it is
    thereby replaced or removed. A value without a version key may be somebody else's, and is left to verify.
    """
    control.set_phase(conn, phase, prepared.number)
    marked = conn.execute(queries.text("capture", "mark_known")).rowcount
    for at in range(0, len(prepared.owners), _BATCH):
        part = prepared.owners[at : at + _BATCH]
        marked += conn.execute(queries.text("capture", "mark_unknown"), {"keys": part}).rowcount
    identity = prepared.identity
    conn.execute(queries.text("control", "set_identities"), {"run": identity.run, "marker": identity.marker})
    return prepared.number, marked


def _look_into(target: RedisTarget) -> tuple[list[str], int]:
    """Keys that Redis holds a version of, and the highest epoch among these versions; -1 where there is none."""
    owners, highest = [], -1
    for names in target.scan(f"{VERSION}{{*{escape(target.template.after)}*"):
        mine = {name: target.template.key_of(owner_of(name, VERSION)) for name in names}
        held = target.numbers([name for name, key in mine.items() if key is not None])
        owners += [key for key in mine.values() if key is not None and capture.can_be_key(key)]
        highest = max([highest, *(number // EPOCH for number in held)])
    return owners, highest

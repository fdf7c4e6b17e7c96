"""The rules of the time after Postgres: stop-writes, redis-only, a Redis that loses its data then, and the way back."""

from __future__ import annotations

from tests.model import epochs
from tests.model.postgres import mark, snapshot
from tests.model.state import (
    EPOCH,
    Flaw,
    Flaws,
    Held,
    Message,
    Row,
    State,
    Steps,
    clock,
    name,
    replaced,
    sent,
    spent,
    what,
)


def base(s: State) -> int:
    """The lowest version of a redis-only write: above every version that a read of the frozen column can have."""
    return (s.epoch + 1 + s.raised) * EPOCH


def stop_writes(s: State, flaws: Flaws) -> Steps:
    """One transaction sets the guard on the column and the phase; the column keeps its epoch, and sync drains."""
    if s.phase == "dual-write" and not s.rollback:
        yield "stop-writes", _nothing_copied(s._replace(phase="redis-only"))


def redis_only_writes(s: State, flaws: Flaws) -> Steps:
    """A client of the new phase (or one that met the guard) writes to Redis alone. It knows nothing of a rollback."""
    if s.phase != "dual-write" and s.left.redis_writes:
        after = spent(s, "redis_writes")._replace(serial=s.serial + 1)
        for key in range(len(s.folded)):
            for value in (after.serial, 0):
                message = Message(key, base(s), 0, value, redis_only=True, alive=True)
                yield f"a redis-only writer sends {what(value)} for {name(key)}", sent(after, message)


# Redis loses its data ----------------------------------------------------------------------------------------------


def loses(s: State, flaws: Flaws) -> Steps:
    """Redis loses everything: values, versions, and the marker."""
    if s.left.flushes and s.phase != "dual-write":
        yield "Redis loses its data", _lost(spent(s, "flushes"), tuple(Held() for _ in s.held), 0)._replace(marker=-1)


def loses_at_last(s: State, flaws: Flaws) -> Steps:
    """The same after rollback has ended."""
    if s.left.flushes and s.rollback == "ended":
        yield "Redis loses its data", _lost(spent(s, "flushes"), tuple(Held() for _ in s.held), 0)


def comes_back(s: State, flaws: Flaws) -> Steps:
    """Redis is started again with what was on its disk, or fails over to a replica that had fallen behind."""
    if s.left.saves and s.phase != "dual-write":
        yield "Redis saves its data", spent(s, "saves")._replace(saved=(s.held, s.planted))
    if s.saved and s.phase != "dual-write":
        yield "Redis comes back with what it had saved", _lost(s._replace(saved=None), *s.saved)


def _lost(s: State, held: tuple[Held, ...], planted: int) -> State:
    """What Redis alone had is lost, and nobody's fault. A guarded write that it never had is owed still."""
    on_its_way = {m.key for m in s.late if not m.redis_only}
    on_its_way |= {c.key for c in s.changes}
    on_its_way |= {key for w in s.workers for key in w.keys}
    on_its_way |= {m.key for w in s.workers for m in w.unacknowledged if not m.redis_only}
    waiting = {g.key: (g.as_of, g.value) for g in s.guarded if g.taken >= 0 and not g.settled}
    keys = range(len(held))
    return s._replace(
        held=held,
        planted=planted,
        unnoticed=True,
        losses=s.losses + 1,
        past=tuple(clock(s, key) for key in keys),
        acknowledged=tuple(min(s.acknowledged[key], held[key].as_of) for key in keys),
        owed=tuple(s.owed[key] if s.owed[key][0] <= held[key].as_of else waiting.get(key, (0, 0)) for key in keys),
        forgotten=tuple(0 if key in on_its_way or held[key].as_of else s.acknowledged[key] for key in keys),
    )


def notices(s: State, flaws: Flaws) -> Steps:
    """Redis has another run id. In redis-only nothing is marked: only what was waiting is delivered of the column. A
    fence stays, and stays above the epoch of the writers."""
    if s.phase == "dual-write":
        yield from epochs.notices(s, flaws)
    elif s.unnoticed:
        raised = s.raised + (s.phase == "redis-only" or Flaw.FENCE_OVERTAKEN in flaws)
        after = s._replace(unnoticed=False, raised=raised, planted=s.epoch, marker=s.losses)
        if s.phase == "fenced" and Flaw.FENCE_LIFTED not in flaws:
            after = after._replace(planted=s.fence)
        if Flaw.MARKED_AFTER_LOSS in flaws:
            after = mark(after, list(range(len(s.folded))))
        yield "the loss is noticed, and the marker is planted again", after


# The way back ------------------------------------------------------------------------------------------------------


def rollback_begins(s: State, flaws: Flaws) -> Steps:
    if s.phase == "redis-only" and not s.rollback and s.left.rollbacks:
        yield "rollback begins", _nothing_copied(spent(s, "rollbacks")._replace(rollback="runs"))


def rollback_copies(s: State, flaws: Flaws) -> Steps:
    """The first pass, while writers write: so little is left for the last."""
    if s.rollback == "runs" and s.phase == "redis-only":
        for key, seen in enumerate(s.copied):
            if seen < 0:
                yield _copied(s, key, flaws)


def rollback_fences(s: State, flaws: Flaws) -> Steps:
    """A later epoch is planted in Redis and recorded in Postgres: no redis-only write is accepted from here on, and
    nothing is delivered from the frozen column."""
    if s.rollback == "runs" and s.phase == "redis-only" and all(seen >= 0 for seen in s.copied):
        after = s._replace(
            phase="fenced", fence=s.epoch + 2 + s.raised, checked=(Flaw.LAST_PASS_OMITTED in flaws,) * len(s.held)
        )
        if Flaw.FENCE_LAST not in flaws:
            after = _planted(after)
        yield "rollback plants its fence", after


def rollback_copies_rest(s: State, flaws: Flaws) -> Steps:
    """The last pass: keys whose version is higher than the one that they were copied at."""
    if s.phase == "fenced":
        for key, checked in enumerate(s.checked):
            if not checked:
                after = s._replace(checked=replaced(s.checked, key, True))
                if s.held[key].version <= s.copied[key]:
                    yield f"rollback finds {name(key)} as it was copied", after
                else:
                    yield _copied(after, key, flaws)


def rollback_ends(s: State, flaws: Flaws) -> Steps:
    """One transaction: guarded writes that are still waiting are applied, a new epoch begins with the number that was
    planted, all keys are marked. Where Redis has lost its data meanwhile, and the marker with it, somebody may have
    written: fence and last pass once more."""
    if s.phase != "fenced" or not all(s.checked):
        return
    lost = s.losses != s.fenced_at or (s.planted != s.fence and Flaw.FENCE_LIFTED not in flaws)
    if lost and not flaws & {Flaw.FENCE_LAST, Flaw.FENCE_UNCHECKED}:
        yield (
            "rollback finds its marker gone, and plants it again",
            _planted(s)._replace(checked=(False,) * len(s.held)),
        )
        return
    after = s._replace(guarded=())
    for g in s.guarded:
        applied = Row(g.as_of or clock(after, g.key) + 1, g.value)
        if g.taken < 0:
            after = after._replace(owed=replaced(after.owed, g.key, (applied.as_of, applied.value)))
        if Flaw.GUARDED_NOT_APPLIED not in flaws:
            after = after._replace(rows=replaced(after.rows, s.key_of.index(g.key), applied))
    after = after._replace(phase="dual-write", rollback="ended", epoch=s.fence, planted=s.fence)
    after = after._replace(copied=(), checked=(), raised=0, fence=0)
    if Flaw.ROLLBACK_UNMARKED not in flaws:
        after = mark(after, list(range(len(s.folded))))
    yield "rollback ends: writes go to Postgres again", after


def rollback_dies(s: State, flaws: Flaws) -> Steps:
    """What it has copied is forgotten. Once it has fenced, it is run again; before, perhaps never."""
    if s.left.crashes and s.rollback == "runs":
        after = _nothing_copied(spent(s, "crashes"))
        if s.phase == "redis-only":
            yield "rollback dies", after._replace(rollback="")
        else:
            yield "rollback dies, and is run again", after._replace(checked=(Flaw.RESUMED_ENDS in flaws,) * len(s.held))


def _planted(s: State) -> State:
    return s._replace(planted=s.fence, fenced_at=s.losses)


def _nothing_copied(s: State) -> State:
    return s._replace(copied=(-1,) * len(s.held), checked=())


def _copied(s: State, key: int, flaws: Flaws) -> tuple[str, State]:
    """One transaction: what a redis-only writer has written is copied back; a removal clears the row, and so does a
    value that Redis has evicted: the column's own is older. Guarded writes that it has overtaken are done with it."""
    held, row = s.held[key], s.key_of.index(key)
    s = s._replace(copied=replaced(s.copied, key, held.version))
    if held.version < (s.epoch + 1) * EPOCH or (not held.value and Flaw.ROLLBACK_VALUES_ONLY in flaws):
        return f"rollback finds nothing newer for {name(key)}", s
    if Flaw.GUARDED_ALL_APPLIED not in flaws:
        overtaken = [g for g in s.guarded if g.key == key and 0 <= g.taken < held.version]
        s = s._replace(guarded=tuple(g for g in s.guarded if g not in overtaken))
    as_of, value = snapshot(s, key)
    after = s._replace(rows=replaced(s.rows, row, Row(max(as_of, held.as_of), held.value)))
    if held.value == value:
        return f"rollback finds {name(key)} equal", after
    return f"rollback writes {what(held.value)} to {name(key)}", after

"""The rules of the time after Postgres: stop-writes, redis-only, and the way back."""

from __future__ import annotations

from tests.model.postgres import commit, mark, snapshot
from tests.model.state import EPOCH, Flaw, Flaws, Message, Row, State, Steps, clock, name, replaced, sent, spent, what


def base(s: State) -> int:
    """The lowest version of a redis-only write: above every version that a read of the frozen column can have."""
    return (s.epoch + 1) * EPOCH


def stop_writes(s: State, flaws: Flaws) -> Steps:
    """One transaction sets the guard on the column and the phase; the column keeps its epoch, and sync drains."""
    if s.phase == "dual-write" and not any(s.copied):
        yield "stop-writes", s._replace(phase="redis-only", copied=(False,) * len(s.folded))


def redis_only_writes(s: State, flaws: Flaws) -> Steps:
    """A client of the new phase (or one that met the guard) writes to Redis alone."""
    still = s.phase == "stopped" and Flaw.ROLLBACK_RUNNING in flaws
    if (s.phase == "redis-only" or still) and s.left.redis_writes:
        after = spent(s, "redis_writes")._replace(serial=s.serial + 1)
        for key in range(len(s.folded)):
            for value in (after.serial, 0):
                message = Message(key, base(s), 0, value, redis_only=True, alive=True)
                yield f"a redis-only writer sends {what(value)} for {name(key)}", sent(after, message)


def rollback_begins(s: State, flaws: Flaws) -> Steps:
    """The first step of rollback: every live redis-only writer has acknowledged, and has nothing on its way."""
    if s.phase == "redis-only" and s.left.rollbacks:
        after = spent(s, "rollbacks")._replace(phase="stopped")
        if Flaw.ROLLBACK_RUNNING in flaws:
            yield "rollback begins", after
        elif not any(m.alive for m in s.late):
            yield "rollback begins: the redis-only writers have stopped", after


def rollback_copies(s: State, flaws: Flaws) -> Steps:
    """Each key that a redis-only writer has written is copied back, where the digests differ; a removal clears the row,
    and so does a value that Redis has evicted: the column's own is older. Capture marks it like any write."""
    if s.phase == "stopped":
        for key, held in enumerate(s.held):
            if s.copied[key]:
                continue
            after = s._replace(copied=replaced(s.copied, key, True))
            newer = held.version >= base(s) and (held.value or Flaw.ROLLBACK_VALUES_ONLY not in flaws)
            if newer and held.value != snapshot(s, key)[1]:
                yield (
                    f"rollback writes {what(held.value)} to {name(key)}",
                    commit(after, s.key_of.index(key), held.value),
                )
            elif newer:
                rows = replaced(s.rows, s.key_of.index(key), Row(clock(s, key), held.value))
                yield f"rollback finds {name(key)} equal", after._replace(rows=rows)
            else:
                yield f"rollback finds nothing newer for {name(key)}", after


def rollback_ends(s: State, flaws: Flaws) -> Steps:
    """The last step: the guard goes, a new epoch begins above the one of the redis-only writes, all keys are marked."""
    if s.phase != "dual-write" and s.copied and all(s.copied):
        after = s._replace(phase="dual-write", epoch=s.epoch + 2)
        if Flaw.ROLLBACK_COPIED_ONLY not in flaws:
            after = mark(after, list(range(len(s.folded))))
        yield "rollback ends: writes go to Postgres again", after

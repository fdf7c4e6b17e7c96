"""Writes of old programs after stop-writes: they stay in the row, the guard notes them, and sync delivers them.

In this model `late` is whatever arrives late; so a row of cachemig.late_write is called a guarded write here.
"""

from __future__ import annotations

from tests.model.after_postgres import base
from tests.model.protocol import named, put, workers_of
from tests.model.state import (
    GUARDED,
    IDLE,
    Flaw,
    Flaws,
    Guarded,
    Message,
    Row,
    State,
    Steps,
    Worker,
    clock,
    name,
    replaced,
    shown,
    spent,
    what,
)


def guarded_writes(s: State, flaws: Flaws) -> Steps:
    """A program of the old way writes the column and commits; its transaction leaves a guarded write."""
    if s.left.guarded and s.phase != "dual-write":
        after = spent(s, "guarded")._replace(serial=s.serial + 1)
        for i, row in enumerate(s.rows):
            for value in (after.serial, 0) if row.value else (after.serial,):
                key = s.key_of[i]
                noted = (*s.guarded, Guarded(after.serial, key, value))
                rows = replaced(s.rows, i, Row(row.as_of, value))
                yield (
                    f"an old program writes {what(value)} to {name(key)}, guarded write {after.serial}",
                    after._replace(rows=rows, guarded=noted),
                )


def takes_up(s: State, flaws: Flaws) -> Steps:
    """Reads the version that Redis holds, records it, commits, and sends. What was taken up before is gone on with, as
    recorded; only then comes the next of the key: the last, and those before it are done with.

    One step up to the commit, since it is done under a lock of the key's guarded writes. That one is needed.
    """
    idle = next((i for i, w in workers_of(s) if w == IDLE), None)
    if idle is None or s.phase == "dual-write" or s.marker < 0:
        return
    for key in range(len(s.held)):
        waiting = [g for g in s.guarded if g.key == key]
        if waiting:
            g = waiting[-1]
            if Flaw.GUARDED_LEFT not in flaws:
                g = next((w for w in waiting if w.taken >= 0), g)
            if g.taken < 0 and Flaw.GUARDED_UNLOCKED in flaws:
                seen = s.held[key].version
                read = Worker("seen", GUARDED, (g.id,), answered=seen, marker=s.marker)
                yield f"a worker reads version {shown(seen)} for guarded write {g.id}", put(s, idle, read)
                continue
            after = _without(s, [w.id for w in waiting if w.id < g.id])
            if g.taken < 0 or Flaw.GUARDED_UNRECORDED in flaws:
                after, g = _recorded(after, g, s.held[key].version, s.marker)
                step = f"a worker takes up guarded write {g.id} at {shown(g.taken)}"
            else:
                step = f"a worker goes on with guarded write {g.id}, taken up at {shown(g.taken)}"
            if Flaw.GUARDED_DONE_EARLY in flaws:
                after = _without(after, [g.id])
            yield _send(after, idle, g, step)


def records(s: State, flaws: Flaws) -> Steps:
    """The second half of the taking up, where nothing is locked; that nothing else was taken up is looked at all the
    same."""
    for i, w in workers_of(s):
        if w.stage == "seen":
            g = next((g for g in s.guarded if g.id in w.ids), None)
            if g is None or any(other.taken >= 0 for other in s.guarded if other.key == g.key):
                yield "the worker finds the guarded write taken up or done", put(s, i, IDLE)
            else:
                after = _without(s, [other.id for other in s.guarded if other.key == g.key and other.id < g.id])
                after, g = _recorded(after, g, w.answered, w.marker)
                yield _send(after, i, g, f"the worker records {shown(g.taken)} for guarded write {g.id}")


def settles(s: State, flaws: Flaws) -> Steps:
    """Delivered or superseded: done. Superseded by a redis-only write alone: what the frozen column puts there is older
    than any guarded write. Where Redis has lost what it held, or the column has arrived meanwhile: taken up anew, at
    the version and the marker in the answer. To read it again would be to overwrite who wrote since."""
    for i, w in workers_of(s):
        if w.stage == "acked" and w.task == GUARDED:
            g = next((g for g in s.guarded if g.id in w.ids), None)
            if g and w.outcome == "lower" and Flaw.GUARDED_LOWER_DONE not in flaws:
                if w.marker < 0:
                    yield "the worker leaves the guarded write until the marker is planted again", put(s, i, IDLE)
                    continue
                seen = s.held[g.key].version if Flaw.GUARDED_READ_AGAIN in flaws else w.answered
                after, g = _recorded(s, g, seen, w.marker)
                yield _send(after, i, g, f"the worker takes guarded write {g.id} up anew at {shown(g.taken)}")
            else:
                yield "the worker is done with the guarded write", put(_without(s, list(w.ids)), i, IDLE)


def _recorded(s: State, g: Guarded, seen: int, marker: int) -> tuple[State, Guarded]:
    g = g._replace(taken=seen, marker=marker, as_of=g.as_of or clock(s, g.key) + 1)
    s = s._replace(owed=replaced(s.owed, g.key, max(s.owed[g.key], (g.as_of, g.value))))
    return s._replace(guarded=tuple(g if old.id == g.id else old for old in s.guarded)), g


def _send(s: State, i: int, g: Guarded, step: str) -> tuple[str, State]:
    m = Message(g.key, base(s), g.as_of, g.value, True, guarded=g.id, expected=g.taken, marker=g.marker)
    return f"{step}, and sends {named(m)}", put(s, i, Worker("sent", GUARDED, (g.id,), unacknowledged=(m,)))


def _without(s: State, ids: list[int]) -> State:
    return s._replace(guarded=tuple(g for g in s.guarded if g.id not in ids))

"""The rules of the protocol while Postgres is the source of truth: who may do what next, and what it does.

Reads as the specification: each rule is a function from a state to the steps that can be taken in it. `flaws` are rules
removed on purpose; without any, this is what steps/sync.py, steps/backfill.py, sql/*.sql and targets/*.lua have to do.
Locks on change rows and leases of chunks are left out: they only spare double work, so everything must hold without.
"""

from __future__ import annotations

from tests.model.postgres import snapshot, version
from tests.model.script import arrive, outcome
from tests.model.state import (
    ANTI_JOIN,
    EPOCH,
    GUARDED,
    IDLE,
    SYNC,
    Flaw,
    Flaws,
    Message,
    Record,
    State,
    Steps,
    Worker,
    distinct,
    holds,
    name,
    received,
    replaced,
    sent,
    shown,
    spent,
)

# Redis and the wires -----------------------------------------------------------------------------------------------


def arrivals(s: State, flaws: Flaws) -> Steps:
    """A write reaches Redis: of a worker that waits for it, or of a sender long gone."""
    for i, w in workers_of(s):
        for n, m in enumerate(w.unacknowledged):
            rest = w.unacknowledged[:n] + w.unacknowledged[n + 1 :]
            if _to_be_staged(m, flaws):
                after = put(s, i, w._replace(unacknowledged=(*rest, m._replace(staged=True))))
                yield f"Redis takes {named(m)} under the temporary key", _staged(after, m)
            elif m.staged and not s.temporary[m.key][1]:
                yield "Redis finds no temporary key, the worker begins again", put(s, i, IDLE)
            elif (answer := outcome(s, m, flaws)) == "fenced":
                yield f"Redis refuses {named(m)}: a later epoch; the worker gives up", put(s, i, IDLE)
            else:
                on = w._replace(unacknowledged=rest, stage="sent" if rest else "acked")
                if m.guarded:
                    on = on._replace(outcome=answer, answered=s.held[m.key].version, marker=s.marker)
                after = put(s, i, on)
                takes = "refuses" if answer in ("higher", "lower") else "takes"
                yield f"Redis {takes} the worker's write of {named(m)}", arrive(after, m, flaws)
    for m in distinct(s.late):
        if m.version < 0:
            continue
        if _to_be_staged(m, flaws):
            after = sent(received(s, m), m._replace(staged=True))
            yield f"{named(m)} arrives under the temporary key", _staged(after, m)
        elif m.staged and not s.temporary[m.key][1]:
            yield "Redis finds no temporary key", received(s, m)
        else:
            yield f"a write of {named(m)} arrives", arrive(received(s, m), m, flaws)


def _to_be_staged(m: Message, flaws: Flaws) -> bool:
    return Flaw.SHARED_TEMPORARY in flaws and m.value != 0 and not m.staged


def _staged(s: State, m: Message) -> State:
    return s._replace(temporary=replaced(s.temporary, m.key, (m.as_of, m.value)))


def evictions(s: State, flaws: Flaws) -> Steps:
    """Redis drops a value, never a version key."""
    if s.left.evictions:
        for key, held in enumerate(s.held):
            if held.value:
                gone = s._replace(held=replaced(s.held, key, held._replace(value=0, evicted=True)))
                yield f"Redis evicts {name(key)}", spent(gone, "evictions")


# Workers -----------------------------------------------------------------------------------------------------------


def take(s: State, flaws: Flaws) -> Steps:
    """An idle worker takes changes, a chunk that is not done, or what the anti-join finds."""
    idle = next((i for i, w in workers_of(s) if w == IDLE), None)
    if idle is None or not s.capture:
        return
    ids = tuple(c.id for c in s.changes)
    if ids and Flaw.LOCK_AND_READ in flaws:
        seen = tuple(snapshot(s, key) for key in range(len(s.folded)))
        yield "a worker begins to read and lock in one statement", put(s, idle, Worker("half", SYNC, half=seen))
        return
    for batch in (ids, ids[:1]) if len(ids) > 1 else (ids,) if ids else ():
        keys = _keys(s, batch)
        taken = put(s, idle, Worker("took", SYNC, batch, keys))
        if Flaw.FOLD_FIRST in flaws:
            taken = fold(put(s, idle, Worker("took", SYNC, (), keys)), batch, keys, flaws)
        yield f"a worker takes {_changes(batch)}", taken
    for chunk, done in enumerate(s.chunks_done):
        if not done:
            claimed = put(s, idle, Worker("took", s.epoch * EPOCH + chunk))
            yield f"a worker claims chunk {chunk + 1}", claimed
    if Flaw.NO_ANTI_JOIN not in flaws and (missing := unhandled(s)):
        yield "the anti-join finds keys that no chunk delivered", put(s, idle, Worker("took", ANTI_JOIN, (), missing))


def unhandled(s: State) -> tuple[int, ...]:
    """Keys with a value that the ledger does not know in this epoch, and no change brings round."""
    if not s.chunks_done or not all(s.chunks_done):
        return ()
    marked = {c.key for c in s.changes}
    return tuple(
        key
        for key, record in enumerate(s.ledger)
        if snapshot(s, key)[1]
        and key not in marked
        and (record is None or not record.delivered or record.version < s.epoch * EPOCH)
    )


def read(s: State, flaws: Flaws) -> Steps:
    """Value and version in one statement, and off they go. Nothing is delivered of what was read without capture."""
    for i, w in workers_of(s):
        if w.stage == "took":
            if not s.capture and Flaw.PHASE_READ_BEFORE not in flaws:
                yield "the worker finds that capture is off, and gives up", put(s, i, IDLE)
                continue
            keys = _rows_of_chunk(s, w.task, flaws) if w.task >= 0 else w.keys
            if Flaw.VALUE_FIRST in flaws:
                half = tuple(snapshot(s, key) for key in keys)
                yield "the worker reads the value", put(s, i, w._replace(stage="half", keys=keys, half=half))
            elif Flaw.VERSION_FIRST in flaws:
                half = tuple((version(s, key, flaws), 0) for key in keys)
                yield "the worker reads the version", put(s, i, w._replace(stage="half", keys=keys, half=half))
            else:
                yield _send(s, i, w, [(key, version(s, key, flaws), *snapshot(s, key)) for key in keys], flaws)
        elif w.stage == "half":
            yield _second_half(s, i, w, flaws)


def _second_half(s: State, i: int, w: Worker, flaws: Flaws) -> tuple[str, State]:
    if Flaw.LOCK_AND_READ in flaws:
        ids = tuple(c.id for c in s.changes)
        w = w._replace(ids=ids, keys=_keys(s, ids))
        return _send(s, i, w, [(key, version(s, key, flaws), *w.half[key]) for key in w.keys], flaws)
    if Flaw.VALUE_FIRST in flaws:
        pairs = zip(w.keys, w.half, strict=True)
        return _send(s, i, w, [(key, version(s, key, flaws), *seen) for key, seen in pairs], flaws)
    return _send(s, i, w, [(k, half[0], *snapshot(s, k)) for k, half in zip(w.keys, w.half, strict=True)], flaws)


def _rows_of_chunk(s: State, task: int, flaws: Flaws) -> tuple[int, ...]:
    """Keys of a chunk's rows that hold a value. Rows are in the order of the primary key: chunk n holds row n."""
    place = s.blocks if Flaw.BLOCK_CHUNKS in flaws else range(len(s.rows))
    return tuple(s.key_of[i] for i, row in enumerate(s.rows) if place[i] == task % EPOCH and row.value)


def _send(s: State, i: int, w: Worker, seen: list[tuple[int, int, int, int]], flaws: Flaws) -> tuple[str, State]:
    """At version 0 nothing can be in Redis that would have to be removed."""
    messages = tuple(Message(*entry) for entry in seen if entry[1] or entry[3])
    records = tuple((key, Record(counted, value != 0)) for key, counted, _, value in seen)
    sent = w._replace(stage="sent" if messages else "acked", keys=(), half=(), unacknowledged=messages, records=records)
    after = put(s, i, sent)
    if w.task >= 0 and Flaw.CHUNK_DONE_EARLY in flaws:
        after = _chunk_done(after, w.task)
    return f"the worker reads and sends {' and '.join(map(named, messages)) or 'nothing'}", after


def finish(s: State, flaws: Flaws) -> Steps:
    """Everything is acknowledged: the ledger is written, the ids are folded or the chunk is done, and it commits."""
    for i, w in workers_of(s):
        if w.stage == "acked" and w.task != GUARDED:
            ledger = s.ledger
            for key, record in w.records:
                known = ledger[key]
                if known is None or record.version >= known.version:
                    ledger = replaced(ledger, key, record)
            after = put(s, i, IDLE)._replace(ledger=ledger)
            if w.task >= 0:
                yield f"the worker marks chunk {w.task % EPOCH + 1} done", _chunk_done(after, w.task)
            elif w.ids:
                yield (
                    f"the worker folds {_changes(w.ids)}",
                    fold(after, w.ids, tuple(key for key, _ in w.records), flaws),
                )
            else:
                yield "the worker writes the ledger", after


def fold(s: State, ids: tuple[int, ...], keys: tuple[int, ...], flaws: Flaws) -> State:
    """Deletes changes and adds the number of those deleted: one that another worker folded is not counted again."""
    by_key = Flaw.FOLD_BY_KEY in flaws
    gone = [c for c in s.changes if (c.key in keys if by_key else c.id in ids)]
    folded = s.folded
    for c in gone:
        if Flaw.NUMBER_AS_VERSION in flaws:
            folded = replaced(folded, c.key, max(folded[c.key], c.id))
        elif Flaw.FOLD_UNCOUNTED not in flaws:
            folded = replaced(folded, c.key, folded[c.key] + 1)
    return s._replace(changes=tuple(c for c in s.changes if c not in gone), folded=folded)


def crashes(s: State, flaws: Flaws) -> Steps:
    """A worker or an application dies. What it has sent is lost, or arrives later."""
    if not s.left.crashes:
        return
    dead = spent(s, "crashes")
    for i, w in workers_of(s):
        if w != IDLE:
            yield f"the worker dies ({w.stage})", put(dead, i, IDLE)
            if w.unacknowledged:
                yield (
                    f"the worker dies ({w.stage}), its writes still on their way",
                    sent(put(dead, i, IDLE), *w.unacknowledged),
                )
    for m in distinct(s.late):
        if m.alive:
            yield (
                "a redis-only writer dies, its write still on its way",
                sent(received(dead, m), m._replace(alive=False)),
            )


def errors(s: State, flaws: Flaws) -> Steps:
    """Redis answers the write of one key with an error."""
    if s.left.errors:
        failed = spent(s, "errors")
        for i, w in workers_of(s):
            for n, m in enumerate(w.unacknowledged):
                if Flaw.FOLD_REFUSED not in flaws:
                    yield f"Redis has an error for {name(m.key)}; the worker gives up", put(failed, i, IDLE)
                    continue
                rest = w.unacknowledged[:n] + w.unacknowledged[n + 1 :]
                records = tuple((k, r._replace(delivered=r.delivered and k != m.key)) for k, r in w.records)
                on = w._replace(unacknowledged=rest, records=records, stage="sent" if rest else "acked")
                yield f"Redis has an error for {name(m.key)}; the worker notes it", put(failed, i, on)


# Small things ------------------------------------------------------------------------------------------------------


def workers_of(s: State) -> list[tuple[int, Worker]]:
    """One of each kind: workers are alike, and sorted."""
    return [(i, w) for i, w in enumerate(s.workers) if not i or w != s.workers[i - 1]]


def put(s: State, i: int, w: Worker) -> State:
    return s._replace(workers=tuple(sorted(replaced(s.workers, i, w))))


def _chunk_done(s: State, task: int) -> State:
    """A chunk of an epoch that is over has been laid out anew: nothing is marked."""
    if task // EPOCH != s.epoch:
        return s
    return s._replace(chunks_done=replaced(s.chunks_done, task % EPOCH, True))


def _keys(s: State, ids: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(c.key for c in s.changes if c.id in ids))


def named(m: Message) -> str:
    if m.guarded:
        at = f"(guarded, expects {shown(m.expected)})"
    else:
        at = f"(redis-only, base {shown(m.version)})" if m.redis_only else f"at {shown(m.version)}"
    return f"{holds(m.key, m.value)} {at}"


def _changes(ids: tuple[int, ...]) -> str:
    return f"change{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids))}"

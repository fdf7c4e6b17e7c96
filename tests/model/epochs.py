"""Beginning an epoch: capture off and on again, a Redis that lost its data, a Postgres that lost commits."""

from __future__ import annotations

from tests.model.postgres import mark, snapshot
from tests.model.state import IDLE, SYNC, Budget, Flaw, Flaws, Held, State, Steps, Worker, sent, spent


def capture_off(s: State, flaws: Flaws) -> Steps:
    """`dual-write --disable`. Its lock waits for every transaction that has read the table; keys that a chunk may have
    delivered without the ledger knowing it yet are marked while capture still sees what happens to them."""
    if s.left.gaps and s.capture and not any(_holds_table(w) for w in s.workers):
        if Flaw.LEDGER_ONLY not in flaws:
            unknown = [k for k, r in enumerate(s.ledger) if r is None and snapshot(s, k)[1]]
            s = mark(s, unknown)
        yield "capture is switched off", spent(s, "gaps")._replace(capture=False)


def capture_on(s: State, flaws: Flaws) -> Steps:
    """`dual-write`: the first begins epoch 0, any other a new epoch."""
    if not s.capture:
        first = s.epoch < 0
        after = s._replace(capture=True)
        yield "capture is switched on", _new_epoch(after, flaws) if not first else after._replace(epoch=0)


def flushes(s: State, flaws: Flaws) -> Steps:
    """Redis loses everything, versions too."""
    if s.left.flushes:
        empty = tuple(Held() for _ in s.held)
        yield "Redis loses its data", spent(s, "flushes")._replace(held=empty, planted=0, unnoticed=True)


def failovers(s: State, flaws: Flaws) -> Steps:
    """Postgres goes over to a replica that had fallen behind: commits are gone, the tool's own too."""
    if s.left.failovers and not s.replica:
        behind = s._replace(left=Budget(), held=(), late=(), workers=())
        yield "the replica falls behind", s._replace(replica=(behind,))
    if s.left.failovers and s.replica:
        r = s.replica[0]
        over = sent(spent(s, "failovers"), *[m for w in s.workers for m in w.unacknowledged])
        over = over._replace(rows=r.rows, changes=r.changes, folded=r.folded, ledger=r.ledger)
        over = over._replace(chunks_done=r.chunks_done, epoch=r.epoch, replica=(), unnoticed=True)
        yield "Postgres fails over to the replica", over._replace(workers=(IDLE,) * len(s.workers))


def quiet_failovers(s: State, flaws: Flaws) -> Steps:
    """A failover at a moment when nothing is on its way to Redis."""
    quiet = not s.late and all(w == IDLE for w in s.workers)
    return failovers(s, flaws) if quiet or not s.replica else iter(())


def notices(s: State, flaws: Flaws) -> Steps:
    """Redis has another run id, or Postgres another timeline. What only Redis knows by now is marked too."""
    if s.unnoticed:
        if Flaw.REDIS_UNSCANNED not in flaws:
            s = mark(s, [k for k, h in enumerate(s.held) if h.version and not s.ledger[k]])
        yield "the loss is noticed: a new epoch", _new_epoch(s._replace(unnoticed=False), flaws)


def _new_epoch(s: State, flaws: Flaws) -> State:
    """Marks every key ever handled, also those of changes that a worker may be about to fold for the old epoch."""
    if Flaw.EPOCH_UNMARKED not in flaws:
        in_work = set() if Flaw.CHANGES_UNMARKED in flaws else {c.key for c in s.changes}
        s = mark(s, [key for key, record in enumerate(s.ledger) if record or key in in_work])
    epoch = s.epoch if Flaw.EPOCH_REUSED in flaws else max(s.epoch, s.planted)
    epoch += Flaw.EPOCH_KEPT not in flaws
    return s._replace(epoch=epoch, planted=epoch, chunks_done=(False,) * len(s.chunks_done))


def _holds_table(w: Worker) -> bool:
    """The worker's transaction has read the application's table: sync's lasts until it has folded."""
    return w.stage in ("half", "sent") or (w.stage == "acked" and w.task == SYNC)

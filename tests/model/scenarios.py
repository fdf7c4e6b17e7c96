"""The bounded configurations that are explored, and the flaws that must be found in them.

Keys do not touch each other in the protocol (script, count and fold go key by key), so one key shows what there is to
see; `two keys` has the batch that they share. Every scenario has writes that arrive after their sender has died.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.model import after_postgres as after
from tests.model import applications as app
from tests.model import epochs, guarded
from tests.model import protocol as p
from tests.model.explorer import System
from tests.model.properties import always, at_rest
from tests.model.state import IDLE, RIGHT, Budget, Flaw, Flaws, Held, Record, Row, Rule, State, Steps

PRESENT, ABSENT = Row(1, 1), Row(1, 0)
WORKERS: tuple[Rule, ...] = (p.take, p.read, p.arrivals, p.finish)
AFTER: tuple[Rule, ...] = (guarded.takes_up, guarded.records, guarded.settles, *WORKERS)
ROLLBACK: tuple[Rule, ...] = (
    after.rollback_copies,
    after.rollback_fences,
    after.rollback_copies_rest,
    after.rollback_ends,
)
ROLLBACK_MAY: tuple[Rule, ...] = (after.rollback_begins, after.rollback_dies)


@dataclass(frozen=True)
class Scenario:
    name: str
    about: str
    start: State
    will: tuple[Rule, ...]
    """What goes on until nothing of it is left."""
    may: tuple[Rule, ...]
    """What happens within the budget, at any moment or never."""
    at_least: int
    """States that an exploration has at least: one that finds fewer has lost a rule."""
    end_only: bool = False

    def system(self, flaws: Flaws = RIGHT, *, end_only: bool = False) -> System[State]:
        """`end_only`: judged only where everything has come to rest, so that a counterexample shows the damage."""

        def steps(rules: tuple[Rule, ...]) -> Callable[[State], Steps]:
            return lambda s: (step for rule in rules for step in rule(s, flaws))

        nothing = end_only or self.end_only
        return System(self.start, steps(self.will), steps(self.may), (lambda s: None) if nothing else always, at_rest)


def start(row: Row = PRESENT, *, delivered: bool = False, chunks: int = 0, workers: int = 1, **left: int) -> State:
    """One key with one row; `delivered`: Redis and the ledger know it already."""
    return State(
        rows=(row,),
        key_of=(0,),
        held=(Held(0, row.as_of, row.value) if delivered else Held(),),
        ledger=(Record(0, True) if delivered else None,),
        chunks_done=(False,) * chunks,
        workers=(IDLE,) * workers,
        left=Budget(**left),
    )


SCENARIOS = {
    s.name: s
    for s in (
        Scenario(
            "sync",
            "3 changes by programs that know nothing of Redis; 2 workers, 2 crashes",
            start(delivered=True, workers=2, writes=3, crashes=2),
            WORKERS,
            (app.writes, p.crashes),
            60_000,
        ),
        Scenario(
            "dual write",
            "2 changes by the application; 1 worker, 1 crash; 2 read-through fills, an eviction",
            start(delivered=True, writes=2, crashes=1, fills=2, evictions=1),
            (app.counts_late, *WORKERS),
            (app.dual_writes, app.fills, p.evictions, p.crashes),
            11_000,
        ),
        Scenario(
            "two keys",
            "2 changes of 2 keys in one batch; 2 workers, 1 crash, 1 error of Redis for one key",
            start(workers=2, writes=2, crashes=1, errors=1)._replace(
                rows=(PRESENT, ABSENT),
                key_of=(0, 1),
                held=(Held(0, 1, 1), Held()),
                ledger=(Record(0, True), None),
                folded=(0, 0),
                marked=(0, 0),
                acknowledged=(0, 0),
                owed=((0, 0), (0, 0)),
                forgotten=(0, 0),
                past=(0, 0),
                temporary=((0, 0), (0, 0)),
            ),
            WORKERS,
            (app.writes, p.errors, p.crashes),
            12_000,
        ),
        Scenario(
            "backfill",
            "2 chunks, 2 workers, 1 crash; 2 changes; an update of another column moves the row",
            start(chunks=2, workers=2, writes=2, crashes=1, moves=1)._replace(blocks=(1,)),
            WORKERS,
            (app.writes, app.moves, p.crashes),
            72_000,
        ),
        Scenario(
            "backfill alone",
            "the same with 1 worker",
            start(chunks=2, writes=2, crashes=1, moves=1)._replace(blocks=(1,)),
            WORKERS,
            (app.writes, app.moves, p.crashes),
            5_500,
        ),
        Scenario(
            "shared key",
            "2 rows with one key; 2 transactions, ids and commits in different orders; 1 worker, 1 crash",
            start(delivered=True, writes=2, crashes=1)._replace(rows=(PRESENT, ABSENT), key_of=(0, 0)),
            (app.commits, *WORKERS),
            (app.begins, p.crashes),
            12_000,
        ),
        Scenario(
            "enabling",
            "capture is switched on while the application writes (2 changes); backfill, 1 worker, 1 crash",
            start(chunks=1, writes=2, crashes=1)._replace(capture=False, epoch=-1),
            (epochs.capture_on, *WORKERS),
            (app.dual_writes, p.crashes),
            5_000,
        ),
        Scenario(
            "epochs",
            "capture off and on again in the middle of backfill; 2 changes, noticed or not; 1 worker, 1 crash",
            start(chunks=1, writes=2, crashes=1, gaps=1),
            (epochs.capture_on, *WORKERS),
            (app.writes, epochs.capture_off, p.crashes),
            21_000,
        ),
        Scenario(
            "epochs, new key",
            "the same with a key that is inserted meanwhile; 3 changes",
            start(ABSENT, chunks=1, writes=3, crashes=1, gaps=1),
            (epochs.capture_on, *WORKERS),
            (app.writes, epochs.capture_off, p.crashes),
            39_000,
        ),
        Scenario(
            "lost redis",
            "Redis loses its data in the middle of backfill, noticed later; 2 changes, 1 worker, 1 crash",
            start(chunks=1, writes=2, crashes=1, flushes=1),
            (epochs.notices, *WORKERS),
            (app.writes, epochs.flushes, p.crashes),
            19_000,
        ),
        Scenario(
            "failover",
            "Postgres fails over to a replica that lacks commits of a known key; 2 changes, 1 worker",
            start(delivered=True, writes=2, failovers=1),
            (epochs.notices, *WORKERS),
            (app.dual_writes, epochs.failovers),
            8_500,
            end_only=True,  # states do go back, in Postgres itself
        ),
        Scenario(
            "failover, new key",
            "the same with a key that the replica has never heard of, and nothing on its way",
            start(ABSENT, chunks=1, writes=2, failovers=1),
            (epochs.notices, *WORKERS),
            (app.dual_writes, epochs.quiet_failovers),
            14_000,
            end_only=True,
        ),
        Scenario(
            "both fail",
            "Redis loses its data, and Postgres the commit of the new epoch; 1 change, 1 worker",
            start(delivered=True, writes=1, flushes=1, failovers=1),
            (epochs.notices, *WORKERS),
            (app.dual_writes, epochs.flushes, epochs.failovers),
            6_500,
            end_only=True,
        ),
        Scenario(
            "stop-writes",
            "clients of both phases, 1 + 2 writes; a fill from the frozen column, an eviction; 1 worker, 1 crash",
            start(delivered=True, writes=1, crashes=1, fills=1, evictions=1, redis_writes=2),
            WORKERS,
            (app.dual_writes, app.fills, p.evictions, after.stop_writes, after.redis_only_writes, p.crashes),
            9_300,
        ),
        Scenario(
            "guarded writes",
            "2 of old programs after stop-writes, 1 dual write before, 1 redis-only; 1 worker, 1 crash",
            start(delivered=True, writes=1, crashes=1, redis_writes=1, guarded=2),
            AFTER,
            (app.writes, after.stop_writes, after.redis_only_writes, guarded.guarded_writes, p.crashes),
            29_000,
        ),
        Scenario(
            "guarded, two workers",
            "2 of old programs, 1 dual write before; 2 workers, no crash",
            start(delivered=True, workers=2, writes=1, guarded=2),
            AFTER,
            (app.writes, after.stop_writes, guarded.guarded_writes, p.crashes),
            2_000,
        ),
        Scenario(
            "lost in redis-only",
            "Redis loses its data, noticed later; 1 write before, 2 redis-only; 1 worker, 1 crash",
            start(delivered=True, writes=1, crashes=1, redis_writes=2, flushes=1),
            (after.notices, *WORKERS),
            (app.writes, after.stop_writes, after.redis_only_writes, after.loses, p.crashes),
            6_100,
        ),
        Scenario(
            "lost, guarded writes",
            "the same with 1 write of an old program, none before, no crash",
            start(delivered=True, redis_writes=2, flushes=1, guarded=1),
            (after.notices, *AFTER),
            (after.stop_writes, after.redis_only_writes, after.loses, guarded.guarded_writes, p.crashes),
            8_200,
        ),
        Scenario(
            "lost, two guarded writes",
            "Redis loses its data, noticed later; 2 writes of old programs, 1 redis-only; 1 worker, 1 crash",
            start(delivered=True, crashes=1, redis_writes=1, flushes=1, guarded=2),
            (after.notices, *AFTER),
            (after.stop_writes, after.redis_only_writes, after.loses, guarded.guarded_writes, p.crashes),
            29_000,
        ),
        Scenario(
            "came back, guarded writes",
            "Redis comes back with an earlier state; 2 redis-only writes, 1 of an old program; 1 worker, no crash",
            start(delivered=True, redis_writes=2, saves=1, guarded=1),
            (after.notices, *AFTER),
            (after.stop_writes, after.redis_only_writes, after.comes_back, guarded.guarded_writes, p.crashes),
            17_000,
        ),
        Scenario(
            "rollback",
            "from redis-only back to Postgres, fenced; 2 writes before and after, 1 in between; 1 worker, 1 crash",
            start(delivered=True, writes=2, crashes=1, redis_writes=1, rollbacks=1),
            (*ROLLBACK, *WORKERS),
            (app.writes, after.stop_writes, after.redis_only_writes, *ROLLBACK_MAY, p.crashes),
            25_000,
        ),
        Scenario(
            "rollback, two writers",
            "the same with 2 redis-only writes, and 1 before or after",
            start(delivered=True, writes=1, crashes=1, redis_writes=2, rollbacks=2),
            (*ROLLBACK, *WORKERS),
            (app.writes, after.stop_writes, after.redis_only_writes, *ROLLBACK_MAY, p.crashes),
            23_000,
        ),
        Scenario(
            "rollback, guarded writes",
            "2 of old programs, 1 redis-only; 1 worker, 1 crash",
            start(delivered=True, crashes=1, redis_writes=1, rollbacks=1, guarded=2),
            (*ROLLBACK, *AFTER),
            (after.stop_writes, after.redis_only_writes, guarded.guarded_writes, *ROLLBACK_MAY, p.crashes),
            43_000,
        ),
        Scenario(
            "rollback, lost redis",
            "Redis loses its data before or during it, noticed later; 2 redis-only writes; 1 crash",
            start(delivered=True, crashes=1, redis_writes=2, flushes=1, rollbacks=1),
            (after.notices, *ROLLBACK, *WORKERS),
            (after.stop_writes, after.redis_only_writes, after.loses, *ROLLBACK_MAY, p.crashes),
            16_000,
        ),
        Scenario(
            "rollback, lost, guarded",
            "the same with 1 write of an old program, 1 redis-only, no crash",
            start(delivered=True, redis_writes=1, flushes=1, rollbacks=1, guarded=1),
            (after.notices, *ROLLBACK, *AFTER),
            (after.stop_writes, after.redis_only_writes, after.loses, guarded.guarded_writes, *ROLLBACK_MAY, p.crashes),
            13_000,
        ),
    )
}


@dataclass(frozen=True)
class Variant:
    """A protocol with rules removed, and where that must show."""

    flaws: Flaws
    scenario: str
    shows: str = ""
    """What the counterexample must say."""
    end_only: bool = True

    @property
    def name(self) -> str:
        return "; ".join(sorted(self.flaws))

    def system(self) -> System[State]:
        return SCENARIOS[self.scenario].system(self.flaws, end_only=self.end_only)


WRONG = (
    Variant(Flaws({Flaw.PLAIN_SET}), "sync", "lost an update"),
    Variant(Flaws({Flaw.SET_NX}), "sync", "lost an update"),
    Variant(Flaws({Flaw.VALUE_FIRST}), "sync", "lost an update"),
    Variant(Flaws({Flaw.VERSION_FIRST}), "sync", "stepped back", end_only=False),
    Variant(Flaws({Flaw.LOCK_AND_READ}), "sync", "lost an update"),
    Variant(Flaws({Flaw.SHARED_TEMPORARY}), "sync", "lost an update"),
    Variant(Flaws({Flaw.FOLD_BY_KEY}), "sync", "lost an update"),
    Variant(Flaws({Flaw.FOLD_UNCOUNTED}), "sync", "lost an update"),
    Variant(Flaws({Flaw.FOLD_FIRST}), "sync", "lost an update"),
    Variant(Flaws({Flaw.TOMBSTONE_FORGETS}), "sync", "resurrected"),
    Variant(Flaws({Flaw.FOLD_REFUSED}), "two keys", "lost an update"),
    Variant(Flaws({Flaw.NUMBER_AS_VERSION}), "shared key", "lost an update"),
    Variant(Flaws({Flaw.SENT_BEFORE_COMMIT}), "dual write", "lost an update"),
    Variant(Flaws({Flaw.COUNTED_AFTER_COMMIT}), "dual write", "lost an update"),
    Variant(Flaws({Flaw.CAPTURE_LAST}), "enabling", "resurrected"),
    Variant(Flaws({Flaw.CHUNK_DONE_EARLY, Flaw.NO_ANTI_JOIN}), "backfill alone", "missing"),
    Variant(Flaws({Flaw.BLOCK_CHUNKS, Flaw.NO_ANTI_JOIN}), "backfill alone", "missing"),
    Variant(Flaws({Flaw.EPOCH_UNMARKED}), "epochs", "resurrected"),
    Variant(Flaws({Flaw.EPOCH_KEPT}), "failover", "lost an update"),
    Variant(Flaws({Flaw.LEDGER_ONLY}), "epochs", "resurrected"),
    Variant(Flaws({Flaw.PHASE_READ_BEFORE}), "epochs, new key", "resurrected"),
    Variant(Flaws({Flaw.CHANGES_UNMARKED}), "lost redis", "resurrected"),
    Variant(Flaws({Flaw.REDIS_UNSCANNED}), "failover, new key", "resurrected"),
    Variant(Flaws({Flaw.EPOCH_REUSED}), "both fail", "lost an update"),
    Variant(Flaws({Flaw.SAME_VERSION}), "stop-writes", "acknowledged write is lost"),
    Variant(Flaws({Flaw.COLUMN_IN_NEW_EPOCH}), "stop-writes", "acknowledged write is lost"),
    Variant(Flaws({Flaw.GUARDED_UNCONDITIONAL}), "guarded writes", "acknowledged write is lost"),
    Variant(Flaws({Flaw.GUARDED_UNRECORDED}), "guarded writes", "acknowledged write is lost"),
    Variant(Flaws({Flaw.GUARDED_DONE_EARLY}), "guarded writes", "guarded write is lost"),
    Variant(Flaws({Flaw.GUARDED_LEFT}), "guarded writes", "guarded write is lost"),
    Variant(Flaws({Flaw.GUARDED_OUTRANKED}), "guarded, two workers", "guarded write is lost"),
    Variant(Flaws({Flaw.GUARDED_READ_AGAIN}), "guarded writes", "acknowledged write is lost"),
    Variant(Flaws({Flaw.GUARDED_UNLOCKED}), "guarded, two workers", "guarded write is lost"),
    Variant(Flaws({Flaw.GUARDED_LOWER_DONE}), "lost, guarded writes", "guarded write is lost"),
    Variant(Flaws({Flaw.GUARDED_ANY_MARKER}), "lost, two guarded writes", "guarded write is lost"),
    Variant(Flaws({Flaw.VERSION_REPEATS}), "lost, guarded writes", "acknowledged write is lost"),
    Variant(Flaws({Flaw.MARKED_AFTER_LOSS}), "lost in redis-only", "has come back"),
    Variant(Flaws({Flaw.FENCE_LAST}), "rollback", "lacks the newest write"),
    Variant(Flaws({Flaw.LAST_PASS_OMITTED}), "rollback", "lacks the newest write"),
    Variant(Flaws({Flaw.RESUMED_ENDS}), "rollback", "lacks the newest write"),
    Variant(Flaws({Flaw.ROLLBACK_VALUES_ONLY}), "rollback", "lacks the newest write"),
    Variant(Flaws({Flaw.ROLLBACK_UNMARKED}), "rollback, guarded writes", "in Redis"),
    Variant(Flaws({Flaw.LATE_WRITE_ACCEPTED}), "rollback", "lacks the newest write"),
    Variant(Flaws({Flaw.GUARDED_NOT_APPLIED}), "rollback, guarded writes", "lacks a guarded write"),
    Variant(Flaws({Flaw.GUARDED_ALL_APPLIED}), "rollback, guarded writes", "lacks the newest write"),
    Variant(Flaws({Flaw.FENCE_LIFTED}), "rollback, lost redis", "lacks the newest write"),
    Variant(Flaws({Flaw.FENCE_OVERTAKEN}), "rollback, lost redis", "lacks the newest write"),
    Variant(Flaws({Flaw.FENCE_UNCHECKED}), "rollback, lost redis", "lacks the newest write"),
)

# Each of these has a second line of defence: alone, none is wrong.
HARMLESS = (
    Variant(Flaws({Flaw.CHUNK_DONE_EARLY}), "backfill alone"),
    Variant(Flaws({Flaw.BLOCK_CHUNKS}), "backfill alone"),
    Variant(Flaws({Flaw.NO_ANTI_JOIN}), "backfill alone"),
    Variant(Flaws({Flaw.EPOCH_KEPT}), "epochs"),
    Variant(Flaws({Flaw.VERSION_FIRST}), "two keys"),  # in the end; on the way Redis may step back
)

LIMITS = (
    (
        Scenario(
            "failover, late write of a new key",
            "a write of a lost commit arrives after the new epoch has begun, for a key of which nothing is known",
            start(ABSENT, chunks=1, writes=1, failovers=1),
            (epochs.notices, *WORKERS),
            (app.dual_writes, epochs.failovers),
            1,
            end_only=True,
        ),
        "resurrected",
    ),
    (
        Scenario(
            "rollback, then lost redis",
            "Redis loses the marker after rollback has ended, and then a redis-only write arrives that was sent before",
            start(delivered=True, redis_writes=1, flushes=1, rollbacks=1),
            (after.notices, *ROLLBACK, *WORKERS),
            (after.stop_writes, after.redis_only_writes, after.loses_at_last, *ROLLBACK_MAY),
            1,
            end_only=True,
        ),
        "lacks the newest write",
    ),
)
"""Not covered by the protocol, and what they show. In the first, neither Postgres nor Redis remembers the key: verify
finds it, and fails. In the second, a Redis without a marker cannot know that it is not the only place any more."""

"""The state of the model: what Postgres, Redis, the wires and the workers hold, for one or two keys.

Values are numbers, so that "which write is this" can be asked of any copy: a row's value is the serial number of the
write that made it (0: no value). `as_of` is never looked at by a rule, only by the properties: it says after how many
writes of its key a state was true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Literal, NamedTuple, TypeVar

T = TypeVar("T")

EPOCH = 1000
"""Changes of a key that an epoch has room for; 2^40 in the tool."""
UNKNOWN = -1
"""`as_of` of what a transaction read while its own write was not committed: no moment in the history of the key."""


class Flaw(StrEnum):
    """A rule removed or replaced. The tool's protocol is the model without any."""

    PLAIN_SET = "plain SET, no version compared"
    SET_NX = "SET NX, so that nothing is ever overwritten"
    VALUE_FIRST = "value read in one snapshot, version in a later one"
    VERSION_FIRST = "version read in one snapshot, value in a later one"
    LOCK_AND_READ = "changes locked and values read in one statement"
    SHARED_TEMPORARY = "large values wait for the script under one temporary key, shared by all senders"
    FOLD_BY_KEY = "all changes of the key folded, not the ids that were seen"
    FOLD_UNCOUNTED = "changes deleted without adding their number to the version"
    FOLD_FIRST = "folded before Redis has acknowledged"
    FOLD_REFUSED = "folded although Redis returned an error for the key"
    NUMBER_AS_VERSION = "version is the highest change id (or xid), not a count"
    TOMBSTONE_FORGETS = "a tombstone deletes the version key too"
    SENT_BEFORE_COMMIT = "the application delivers before its commit, which may fail"
    COUNTED_AFTER_COMMIT = "the application reads its version after the commit"
    CAPTURE_LAST = "delivery begins before capture has committed"
    CHUNK_DONE_EARLY = "a chunk is marked done before Redis has acknowledged it"
    BLOCK_CHUNKS = "chunks are ranges of blocks"
    NO_ANTI_JOIN = "complete when all chunks are done, no anti-join"
    EPOCH_UNMARKED = "a new epoch marks no keys"
    CHANGES_UNMARKED = "a new epoch marks the keys of the ledger, but not those of changes in work"
    REDIS_UNSCANNED = "a new epoch after a loss does not look for version keys that the ledger does not know"
    EPOCH_REUSED = "the number of a new epoch is taken from Postgres alone, which may have lost one"
    EPOCH_KEPT = "capture switched on again in the old epoch"
    LEDGER_ONLY = "capture is switched off without marking the keys that the ledger does not know yet"
    PHASE_READ_BEFORE = "the phase is checked before the read, not in the snapshot of the read"
    COLUMN_IN_NEW_EPOCH = "after stop-writes, reads of the frozen column count in the new epoch"
    SAME_VERSION = "a redis-only writer leaves the version as it is"
    FENCE_LAST = "rollback fences only when it ends, after its last pass"
    LAST_PASS_OMITTED = "rollback ends with the fence, without a last pass"
    RESUMED_ENDS = "a rollback that goes on after its death takes the last pass as done"
    ROLLBACK_VALUES_ONLY = "rollback copies values back, but not removals"
    ROLLBACK_UNMARKED = "rollback marks no keys"
    LATE_WRITE_ACCEPTED = "a redis-only write takes stored + 1 in a later epoch too"
    FENCE_LIFTED = "after a loss sync plants the marker of the frozen epoch, whatever rollback has fenced"
    FENCE_OVERTAKEN = "a loss that is noticed after the fence raises the epoch of redis-only writers"
    FENCE_UNCHECKED = "rollback ends without looking whether its marker is still there"
    GUARDED_UNCONDITIONAL = "a guarded write is delivered whatever version is held"
    GUARDED_READ_AGAIN = "a guarded write is taken up anew at a version read later than the answer that refused it"
    GUARDED_UNRECORDED = "the version at the taking up is not recorded, each worker reads it anew"
    GUARDED_UNLOCKED = "the guarded writes of a key are not locked between reading the version and recording it"
    GUARDED_DONE_EARLY = "a guarded write is marked done before it is delivered"
    GUARDED_LEFT = "a guarded write is left for a later one of its key, though its delivery is on its way"
    GUARDED_OUTRANKED = "any higher version supersedes a guarded write, also one of the frozen column"
    GUARDED_LOWER_DONE = "a guarded write that is refused because Redis holds a lower version is done"
    GUARDED_ANY_MARKER = "a guarded write is delivered whatever marker is there, also after a loss"
    GUARDED_NOT_APPLIED = "rollback does not apply the guarded writes that are undelivered"
    GUARDED_ALL_APPLIED = "rollback applies every guarded write that is undelivered, also what was overtaken"
    VERSION_REPEATS = "after a loss, versions of redis-only writes begin again at the base of the epoch"
    MARKED_AFTER_LOSS = "a loss in redis-only marks all keys"


Flaws = frozenset[Flaw]
RIGHT: Flaws = frozenset()


class Row(NamedTuple):
    """A committed row of the application's table; cleared, deleted and not yet inserted are one state."""

    as_of: int
    value: int


class Held(NamedTuple):
    """What Redis holds of a key. Version 0 stands for no version key."""

    version: int = 0
    as_of: int = 0
    value: int = 0
    evicted: bool = False


class Message(NamedTuple):
    """A write on its way to Redis. `version` -1: not counted yet; for a redis-only write: the base of its epoch."""

    key: int
    version: int
    as_of: int
    value: int
    redis_only: bool = False
    alive: bool = False
    """Its sender waits for the answer."""
    staged: bool = False
    """Its value is under the temporary key (where senders share one; else nobody can see the two steps)."""
    guarded: int = 0
    """The guarded write that it delivers."""
    expected: int = -1
    """The version that is to be held still."""
    marker: int = 0
    """The marker that is to be there still."""


class Record(NamedTuple):
    """A row of the ledger."""

    version: int
    delivered: bool


class Change(NamedTuple):
    id: int
    key: int


class Guarded(NamedTuple):
    """An undone row of cachemig.late_write: an old program has written the column in redis-only."""

    id: int
    key: int
    value: int
    taken: int = -1
    """The version that Redis held when it was taken up; -1: it has not been."""
    marker: int = 0
    """The marker that was there."""
    as_of: int = 0
    """It counts as made when it was first taken up."""
    settled: bool = False
    """Redis has accepted it, or holds something newer; nobody may know yet. Only the properties look at it."""


SYNC, ANTI_JOIN, GUARDED = -1, -2, -3


class Worker(NamedTuple):
    """A worker of sync or backfill: idle, took, half (flawed readers only), sent, acked."""

    stage: str = "idle"
    task: int = SYNC
    """SYNC, ANTI_JOIN, GUARDED, or epoch * EPOCH + number of a chunk."""
    ids: tuple[int, ...] = ()
    keys: tuple[int, ...] = ()
    half: tuple[tuple[int, int], ...] = ()
    unacknowledged: tuple[Message, ...] = ()
    records: tuple[tuple[int, Record], ...] = ()
    outcome: str = ""
    """What Redis has answered to the delivery of a guarded write, and the version and the marker that it held."""
    answered: int = -1
    marker: int = 0


IDLE = Worker()


class Transaction(NamedTuple):
    """An open transaction of an application: it has changed a row, and nobody sees it yet."""

    row: int
    id: int
    value: int
    message: Message | None = None


class Budget(NamedTuple):
    """How often each thing may still happen; this is what bounds a scenario."""

    writes: int = 0
    crashes: int = 0
    errors: int = 0
    fills: int = 0
    evictions: int = 0
    moves: int = 0
    gaps: int = 0
    flushes: int = 0
    failovers: int = 0
    redis_writes: int = 0
    rollbacks: int = 0
    guarded: int = 0
    saves: int = 0


Phase = Literal["dual-write", "redis-only", "fenced"]
"""Fenced: rollback has begun its last pass. To everybody else it is redis-only still."""


class State(NamedTuple):
    # Postgres
    rows: tuple[Row, ...]
    key_of: tuple[int, ...]
    """Key of each row."""
    changes: tuple[Change, ...] = ()
    folded: tuple[int, ...] = (0,)
    ledger: tuple[Record | None, ...] = (None,)
    chunks_done: tuple[bool, ...] = ()
    blocks: tuple[int, ...] = ()
    """Block of each row, where rows move."""
    open: tuple[Transaction, ...] = ()
    last_id: int = 0
    marked: tuple[int, ...] = (0,)
    """How many changes of each key are marks of the tool, not writes."""
    capture: bool = True
    phase: Phase = "dual-write"
    epoch: int = 0
    """Of the column: from stop-writes on it is the frozen one."""
    raised: int = 0
    """How many epochs have begun in redis-only: redis-only writers count in this one, the column does not."""
    guarded: tuple[Guarded, ...] = ()
    rollback: Literal["", "runs", "ended"] = ""
    copied: tuple[int, ...] = ()
    """The version of each key when rollback last looked at it; -1: it has not. Forgotten when rollback dies."""
    fence: int = 0
    """The epoch that rollback has recorded before it planted it; 0: none."""
    fenced_at: int = 0
    """Which Redis the fence was planted in: its run, and what is random in the marker."""
    checked: tuple[bool, ...] = ()
    """Keys that the last pass is done with."""
    replica: tuple[State, ...] = ()
    """What a replica that has fallen behind holds."""
    # Redis
    held: tuple[Held, ...] = (Held(),)
    temporary: tuple[tuple[int, int], ...] = ((0, 0),)
    """(as_of, value) under the shared temporary key of each key."""
    planted: int = 0
    """The epoch that Redis was last told of."""
    marker: int = 0
    """What is random in the marker; -1: a loss has taken it."""
    unnoticed: bool = False
    """A server has lost data, and nobody has noticed yet."""
    acknowledged: tuple[int, ...] = (0,)
    """`as_of` of the newest redis-only write of each key that its writer saw succeed, and Redis has not lost."""
    owed: tuple[tuple[int, int], ...] = ((0, 0),)
    """(as_of, value) of the newest guarded write of each key that was taken up, and Redis has not lost."""
    forgotten: tuple[int, ...] = (0,)
    """`as_of` of what Redis has lost of each key while nothing of the frozen column was waiting or on its way."""
    past: tuple[int, ...] = (0,)
    """How many writes each key had seen when Redis lost it."""
    saved: tuple[tuple[Held, ...], int] | None = None
    """What Redis has on its disk: what it held once, and the marker."""
    losses: int = 0
    """The clock of Redis: what is counted after a loss is above whatever was counted before."""
    # In between
    late: tuple[Message, ...] = ()
    """Writes on their way whose sender does not wait, or is dead; they arrive in any order."""
    workers: tuple[Worker, ...] = ()
    serial: int = 1
    """The number of the last write; rows begin with value 1, or none."""
    left: Budget = Budget()
    fault: str = ""


Steps = Iterator[tuple[str, State]]
Rule = Callable[[State, Flaws], Steps]


def replaced(items: tuple[T, ...], at: int, item: T) -> tuple[T, ...]:
    return (*items[:at], item, *items[at + 1 :])


def clock(s: State, key: int) -> int:
    """How many writes the key has seen."""
    rows = [row.as_of for row, k in zip(s.rows, s.key_of, strict=True) if k == key]
    return max(s.held[key].as_of, s.past[key], s.owed[key][0], *rows)


_FIELD = {field: n for n, field in enumerate(Budget._fields)}


def spent(s: State, field: str) -> State:
    at = _FIELD[field]
    return s._replace(left=Budget(*replaced(s.left, at, s.left[at] - 1)))


def sent(s: State, *messages: Message) -> State:
    return s._replace(late=tuple(sorted((*s.late, *messages))))


def received(s: State, m: Message) -> State:
    at = s.late.index(m)
    return s._replace(late=s.late[:at] + s.late[at + 1 :])


def distinct(messages: tuple[Message, ...]) -> list[Message]:
    return list(dict.fromkeys(messages))


def name(key: int) -> str:
    return "ab"[key]


def shown(version: int) -> str:
    """A version as epoch:count."""
    return f"{version // EPOCH}:{version % EPOCH}"


def what(value: int) -> str:
    return f"value {value}" if value else "no value"


def holds(key: int, value: int) -> str:
    return f"{name(key)}={value or 'none'}"


def describe(s: State) -> str:
    """One line on a state, for a history."""
    rows = ", ".join(holds(key, row.value) for key, row in zip(s.key_of, s.rows, strict=True))
    counts = ", ".join(f"{f}+{sum(c.key == k for c in s.changes)}" for k, f in enumerate(s.folded))
    redis = ", ".join(
        f"{holds(k, h.value)}{' (evicted)' if h.evicted else ''} at {shown(h.version)}" for k, h in enumerate(s.held)
    )
    return f"Postgres {rows}, changes folded+waiting {counts} | Redis {redis}"

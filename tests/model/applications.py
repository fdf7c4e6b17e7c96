"""What applications do: programs that write the column alone, the dual write, and readers."""

from __future__ import annotations

from tests.model.postgres import commit, snapshot, value_of, version
from tests.model.state import (
    EPOCH,
    UNKNOWN,
    Change,
    Flaw,
    Flaws,
    Message,
    Row,
    State,
    Steps,
    Transaction,
    clock,
    distinct,
    name,
    received,
    replaced,
    sent,
    shown,
    spent,
    what,
)


def writes(s: State, flaws: Flaws) -> Steps:
    """Programs that know nothing of Redis write a row and commit; the trigger marks the key, if it is there."""
    for _, value, step, after in _commits(s):
        yield f"a program {step}{f', {what(value)}' if value else ''}, and commits", after


def dual_writes(s: State, flaws: Flaws) -> Steps:
    """The application writes, reads its version in that transaction, commits, then delivers: the write is on its way,
    or the application has died in between."""
    for key, value, step, after in _commits(s):
        if s.capture or Flaw.CAPTURE_LAST in flaws:
            counted = -1 if Flaw.COUNTED_AFTER_COMMIT in flaws else version(after, key, flaws)
            message = Message(key, counted, clock(after, key), value)
            at = f" at {shown(counted)}" if counted >= 0 else ""
            yield f"the application {step}, commits, and sends {what(value)}{at}", sent(after, message)
            if Flaw.SENT_BEFORE_COMMIT in flaws:
                failed = spent(s, "writes")._replace(serial=s.serial + 1)
                yield (
                    f"the application {step}, sends {what(value)}{at}, and its commit fails",
                    sent(failed, message._replace(as_of=UNKNOWN)),
                )
        yield f"the application {step}, commits {what(value)}, and dies", after


def counts_late(s: State, flaws: Flaws) -> Steps:
    for m in distinct(s.late):
        if m.version == -1:
            counted = version(s, m.key, flaws)
            yield (
                f"the application reads its version {shown(counted)}",
                sent(received(s, m), m._replace(version=counted)),
            )


def _commits(s: State) -> list[tuple[int, int, str, State]]:
    """(key, value, what it is called, state after the commit) of every write that a program may do now."""
    if not s.left.writes or s.phase != "dual-write":
        return []
    s = spent(s, "writes")._replace(serial=s.serial + 1)
    put = s.serial
    found = []
    for i, row in enumerate(s.rows):
        key = s.key_of[i]
        found.append((key, put, f"{'updates' if row.value else 'inserts'} {name(key)}", commit(s, i, put)))
        if row.value:
            found.append((key, 0, f"clears or deletes {name(key)}", commit(s, i, 0)))
    return found


def begins(s: State, flaws: Flaws) -> Steps:
    """A write to one of the rows that share a key, step by step: no row lock puts it in order with those to the others,
    and the ids of changes are allotted in another order than they become visible."""
    if s.left.writes and len(s.open) < 2:
        for i, row in enumerate(s.rows):
            if all(t.row != i for t in s.open):
                number = s.last_id + 1
                begun = spent(s, "writes")._replace(last_id=number, serial=s.serial + 1)
                for value in (begun.serial, 0) if row.value else (begun.serial,):
                    yield (
                        f"transaction {number} writes {what(value)} to row {i + 1}, change {number}",
                        begun._replace(open=(*s.open, Transaction(i, number, value))),
                    )


def commits(s: State, flaws: Flaws) -> Steps:
    """An open transaction reads its version, or does not, and commits."""
    for t in s.open:
        key = s.key_of[t.row]
        if t.message is None:
            own = replaced(s.rows, t.row, Row(UNKNOWN, t.value))
            counted = version(s, key, flaws) + 1
            if Flaw.NUMBER_AS_VERSION in flaws:
                counted = max(version(s, key, flaws), s.epoch * EPOCH + t.id)
            read = t._replace(message=Message(key, counted, UNKNOWN, value_of(own, s, key)))
            yield (
                f"transaction {t.id} reads its version {shown(counted)}",
                s._replace(open=tuple(read if o is t else o for o in s.open)),
            )
        done = s._replace(open=tuple(o for o in s.open if o is not t))
        done = done._replace(
            rows=replaced(s.rows, t.row, Row(clock(s, key) + 1, t.value)),
            changes=tuple(sorted((*s.changes, Change(t.id, key)))),
        )
        if t.message is None:
            yield f"transaction {t.id} commits", done
        else:
            yield f"transaction {t.id} commits and sends {what(t.message.value)}", sent(done, t.message)


def fills(s: State, flaws: Flaws) -> Steps:
    """Read-through: a reader that finds nothing in Redis reads value and version together, and sends them."""
    if s.left.fills and s.capture:
        for key, held in enumerate(s.held):
            as_of, value = snapshot(s, key)
            if value and not held.value:
                message = Message(key, version(s, key, flaws), as_of, value)
                yield (
                    f"a reader misses {name(key)} and sends value {value} at {shown(message.version)}",
                    spent(sent(s, message), "fills"),
                )


def moves(s: State, flaws: Flaws) -> Steps:
    """An update of another column: the row gets another place, and no mark."""
    if s.left.moves:
        for i, block in enumerate(s.blocks):
            yield (
                f"an update of another column moves the row to block {2 - block}",
                spent(s, "moves")._replace(blocks=replaced(s.blocks, i, 1 - block)),
            )

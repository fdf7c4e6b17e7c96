"""What one statement of Postgres sees, and what a commit does."""

from __future__ import annotations

from tests.model.state import EPOCH, Change, Flaw, Flaws, Row, State, clock, replaced


def value_of(rows: tuple[Row, ...], s: State, key: int) -> int:
    """The winner among the rows of a key: the last one that holds a value."""
    value = 0
    for row, k in zip(rows, s.key_of, strict=True):
        if k == key and row.value:
            value = row.value
    return value


def snapshot(s: State, key: int) -> tuple[int, int]:
    """(as_of, value) of a key now."""
    return max(row.as_of for row, k in zip(s.rows, s.key_of, strict=True) if k == key), value_of(s.rows, s, key)


def version(s: State, key: int, flaws: Flaws) -> int:
    """The version of a key now: epoch, and the changes that are folded or visible."""
    seen = [c.id for c in s.changes if c.key == key]
    epoch = max(s.epoch, 0) + (s.phase == "redis-only" and Flaw.COLUMN_IN_NEW_EPOCH in flaws)
    if Flaw.NUMBER_AS_VERSION in flaws:
        return epoch * EPOCH + max([s.folded[key], *seen])
    return epoch * EPOCH + s.folded[key] + len(seen)


def commit(s: State, row: int, value: int) -> State:
    key = s.key_of[row]
    s = s._replace(rows=replaced(s.rows, row, Row(clock(s, key) + 1, value)))
    return _with_change(s, key) if s.capture else s


def mark(s: State, keys: list[int]) -> State:
    """The tool's own marks: no write, but the keys are read and delivered anew."""
    for key in keys:
        s = _with_change(s, key)._replace(marked=replaced(s.marked, key, s.marked[key] + 1))
    return s


def _with_change(s: State, key: int) -> State:
    return s._replace(changes=(*s.changes, Change(s.last_id + 1, key)), last_id=s.last_id + 1)

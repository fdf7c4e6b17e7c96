"""What happens inside Redis: targets/deliver.lua, and the properties of a single write."""

from __future__ import annotations

from tests.model.state import EPOCH, Flaw, Flaws, Held, Message, State, clock, replaced


def arrive(s: State, m: Message, flaws: Flaws) -> State:
    """A write has arrived: accepted or refused, and its effect judged."""
    held = s.held[m.key]
    if m.staged:
        as_of, value = s.temporary[m.key]
        s = s._replace(temporary=replaced(s.temporary, m.key, (0, 0)))
        m = m._replace(as_of=as_of, value=value)
    if m.redis_only:
        after = _redis_only(s, held, m, flaws)
    elif _accepted(held, m, flaws):
        after = Held(_new_version(held, m, flaws), m.as_of, m.value)
    else:
        return s
    s = s._replace(held=replaced(s.held, m.key, after))
    if m.redis_only and m.alive and after is not held:
        s = s._replace(acknowledged=replaced(s.acknowledged, m.key, after.as_of))
    if s.fault or m.redis_only:
        return s
    return s._replace(fault=_judged(held, after, s.marked[m.key]))


def _accepted(held: Held, m: Message, flaws: Flaws) -> bool:
    if Flaw.PLAIN_SET in flaws:
        return True
    if Flaw.SET_NX in flaws:
        return not m.value or not held.value
    return m.version >= held.version


def _new_version(held: Held, m: Message, flaws: Flaws) -> int:
    if Flaw.PLAIN_SET in flaws or Flaw.SET_NX in flaws:
        return 0
    if Flaw.TOMBSTONE_FORGETS in flaws and not m.value:
        return 0
    return m.version


def _redis_only(s: State, held: Held, m: Message, flaws: Flaws) -> Held:
    """Stored version + 1, at least the base of the writer's epoch; refused once a later epoch has been here."""
    if held.version >= m.version + EPOCH and Flaw.LATE_WRITE_ACCEPTED not in flaws:
        return held
    version = held.version if Flaw.SAME_VERSION in flaws else max(held.version + 1, m.version)
    # What a dead writer wrote was never acknowledged: it may stay or go, and does not age what was there.
    return Held(version, clock(s, m.key) + 1 if m.alive else held.as_of, m.value)


def _judged(before: Held, after: Held, marked: int) -> str:
    if after.version < before.version:
        return "the version went back"
    if 0 < after.as_of <= after.version % EPOCH - marked:  # a row begins with as_of 1 and version 0
        return "the value in Redis is older than the version stored with it"
    if 0 <= after.as_of < before.as_of:
        return "Redis stepped back to an older state of the key"
    return ""

"""What happens inside Redis: targets/deliver.lua and service/write.lua, and the properties of a single write."""

from __future__ import annotations

from typing import Literal

from tests.model.state import EPOCH, Flaw, Flaws, Held, Message, State, clock, replaced

Outcome = Literal["written", "refused", "fenced", "higher", "lower"]
"""Refused: as older. Fenced: a later epoch has begun, so it is no delivery (2 in the scripts). Higher: a guarded write
was refused, since a redis-only write has made a higher version. Lower: it was refused, and is to be taken up anew."""


def outcome(s: State, m: Message, flaws: Flaws) -> Outcome:
    """What the script will answer. While Postgres is the source of truth the marker fences nothing here: the tool has
    it as a second line of defence, so everything must hold without."""
    held = s.held[m.key]
    if m.redis_only:
        if s.planted * EPOCH > m.version and Flaw.LATE_WRITE_ACCEPTED not in flaws:
            return "fenced"
        expected = held.version == m.expected and (s.marker == m.marker or Flaw.GUARDED_ANY_MARKER in flaws)
        if m.guarded and not expected and Flaw.GUARDED_UNCONDITIONAL not in flaws:
            overtaken = held.version > m.expected
            newer = held.version >= (s.epoch + 1) * EPOCH or Flaw.GUARDED_OUTRANKED in flaws
            return "higher" if overtaken and newer else "lower"
        return "written"
    if s.phase != "dual-write" and s.planted * EPOCH > m.version:
        return "fenced"
    return "written" if _accepted(held, m, flaws) else "refused"


def arrive(s: State, m: Message, flaws: Flaws) -> State:
    """A write has arrived: accepted or refused, and its effect judged."""
    held = s.held[m.key]
    if m.staged:
        as_of, value = s.temporary[m.key]
        s = s._replace(temporary=replaced(s.temporary, m.key, (0, 0)))
        m = m._replace(as_of=as_of, value=value)
    if (answer := outcome(s, m, flaws)) != "written":
        return _settled(s, m) if answer == "higher" else s
    after = _redis_only(s, held, m, flaws) if m.redis_only else Held(_new_version(held, m, flaws), m.as_of, m.value)
    s = s._replace(held=replaced(s.held, m.key, after))
    if m.guarded:
        return _settled(s, m)
    if m.redis_only and m.alive:
        s = s._replace(acknowledged=replaced(s.acknowledged, m.key, after.as_of))
    if s.fault or m.redis_only:
        return s
    return s._replace(fault=_judged(held, after, s.marked[m.key]))


def _settled(s: State, m: Message) -> State:
    return s._replace(guarded=tuple(g._replace(settled=True) if g.id == m.guarded else g for g in s.guarded))


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
    """Stored version + 1, at least the base of the writer's epoch and the time."""
    if Flaw.SAME_VERSION in flaws:
        version = held.version
    else:
        time = 0 if Flaw.VERSION_REPEATS in flaws else s.losses * LOSS
        version = max(held.version + 1, m.version + time)
    return Held(version, m.as_of if m.guarded else clock(s, m.key) + 1, m.value)


LOSS = EPOCH // 10
"""More than is written between two losses."""


def _judged(before: Held, after: Held, marked: int) -> str:
    if after.version < before.version:
        return "the version went back"
    if 0 < after.as_of <= after.version % EPOCH - marked:  # a row begins with as_of 1 and version 0
        return "the value in Redis is older than the version stored with it"
    if 0 <= after.as_of < before.as_of:
        return "Redis stepped back to an older state of the key"
    return ""

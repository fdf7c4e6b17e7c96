"""What must hold: in every state, and where everything has come to rest."""

from __future__ import annotations

from tests.model.postgres import snapshot
from tests.model.state import EPOCH, IDLE, State, name, what


def always(s: State) -> str | None:
    """Of each write as it reached Redis (script.py): the version never goes back, the value is never older than its
    version, Redis never steps back; rollback has brought back what was acknowledged, and nothing else has come back."""
    return s.fault or _not_brought_back(s) or _came_back(s)


def at_rest(s: State) -> str | None:
    """Nothing is left to do: every key of Redis equals its row."""
    if s.changes or s.open or s.late or s.unnoticed or not s.capture or not all(s.chunks_done):
        return "stuck: something is left to do and nothing can be done"
    if s.guarded or s.phase == "fenced":
        return "stuck: a guarded write is not delivered, or rollback cannot go on"
    if any(w != IDLE for w in s.workers):
        return "stuck: a worker cannot go on"
    if wrong := _not_brought_back(s) or _came_back(s):
        return wrong
    return next(filter(None, (_differs(s, key) for key in range(len(s.held)))), None)


def _not_brought_back(s: State) -> str | None:
    if s.rollback == "ended":
        for key, acknowledged in enumerate(s.acknowledged):
            as_of, value = snapshot(s, key)
            if as_of < acknowledged:
                return f"{name(key)}: Postgres lacks the newest write that Redis had acknowledged"
            if as_of < s.owed[key][0] and value != s.owed[key][1]:
                return f"{name(key)}: Postgres lacks a guarded write"
    return None


def _came_back(s: State) -> str | None:
    """Redis has lost a key. What was waiting of the frozen column may still arrive, nothing else."""
    if s.phase != "dual-write":
        for key, held in enumerate(s.held):
            if 0 < held.as_of < s.forgotten[key] and held.version < (s.epoch + 1) * EPOCH:
                return f"{name(key)}: what redis-only writes had replaced has come back"
    return None


def _differs(s: State, key: int) -> str | None:
    held, (as_of, row) = s.held[key], snapshot(s, key)
    if s.phase != "dual-write":
        if held.as_of < s.acknowledged[key]:
            return f"{name(key)}: an acknowledged write is lost in Redis"
        if held.as_of < s.owed[key][0] and held.value != s.owed[key][1]:
            return f"{name(key)}: a guarded write is lost"
        if s.losses:
            return None  # what is lost is a miss
        if held.version >= (s.epoch + 1) * EPOCH or held.as_of >= as_of:
            return None  # what a redis-only writer wrote that then died may stay
    if held.value == row or (held.evicted and row):
        return None
    if not row:
        return f"{name(key)} resurrected: {what(held.value)} in Redis, and no row holds one"
    if not held.value:
        return f"{name(key)} missing: {what(row)} in Postgres never reached Redis"
    return f"{name(key)} lost an update: {what(row)} in Postgres, {what(held.value)} in Redis"

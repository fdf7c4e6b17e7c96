"""Compares every key of both sides. Shares no code with the tool, and reads past the proxy."""

from __future__ import annotations

from dataclasses import dataclass, field

import psycopg
from redis import Redis

from tests.chaos.stand import VERSION, value_key
from tests.chaos.tool import PREFIX

EPOCH = 2**40

# Of each key the newest row that holds something, as text. What a row must not hold to count: NULL, {}, JSON null.
_TRUTH = """
SELECT DISTINCT ON (file_hash COLLATE "C") file_hash, analytics_cache::text AS text FROM therapy_sessions
WHERE file_hash IS NOT NULL AND analytics_cache IS NOT NULL AND analytics_cache::text NOT IN ('{}', 'null')
ORDER BY file_hash COLLATE "C", created_at DESC, id DESC
"""
_COUNTS = """
SELECT key, sum(folded + pending)::bigint AS n, sum(folded)::bigint AS folded, sum(pending)::bigint AS pending FROM (
    SELECT key, count AS folded, 0 AS pending FROM cachemig.version
    UNION ALL SELECT key, 0, 1 FROM cachemig.change) AS a GROUP BY key
"""

STATES = f"""
WITH truth AS ({_TRUTH}), counts AS ({_COUNTS})
SELECT coalesce(truth.file_hash, counts.key),
       (SELECT epoch FROM cachemig.migration) * {EPOCH}::bigint + coalesce(counts.n, 0),
       octet_length(truth.text), left(truth.text, 24), coalesce(counts.folded, 0), coalesce(counts.pending, 0),
       EXISTS (SELECT FROM cachemig.truncation)
FROM truth FULL JOIN counts ON counts.key = truth.file_hash
"""
"""Of every key its version, size and first bytes of its value, changes by folded or not, and whether a TRUNCATE stands
for a change of every key and is not expanded yet; in one snapshot."""


@dataclass
class Judgement:
    """Keys that are wrong, each with what is wrong about it."""

    keys: int = 0
    """Keys that a row holds a value for."""
    without: int = 0
    """Keys that were written to and that no row holds a value for: Redis must hold none either."""
    lost: dict[str, str] = field(default_factory=dict)
    """A row holds a value, Redis nothing."""
    stale: dict[str, str] = field(default_factory=dict)
    """Redis holds another value than the row."""
    resurrected: dict[str, str] = field(default_factory=dict)
    """Redis holds a value, no row does."""
    unfenced: dict[str, str] = field(default_factory=dict)
    """The right value, or rightly none; but not under its version, so that an older write could win."""
    unfolded: int = 0

    @property
    def wrong(self) -> dict[str, str]:
        return {**self.lost, **self.stale, **self.resurrected, **self.unfenced}


def judge(dsn: str, redis: Redis) -> Judgement:
    """The state of every key, while nobody writes on either side."""
    with psycopg.connect(dsn, autocommit=True) as conn, conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        truth = {str(key): str(text).encode() for key, text in conn.execute(_TRUTH).fetchall()}
        counts = {str(key): int(n) for key, n, *_ in conn.execute(_COUNTS).fetchall()}
        base = _one(conn.execute("SELECT epoch FROM cachemig.migration").fetchone()) * EPOCH
        handled = {str(key) for (key,) in conn.execute("SELECT key FROM cachemig.entry").fetchall()}
        unfolded = _one(conn.execute("SELECT count(*) FROM cachemig.change").fetchone())
        unfolded += _one(conn.execute("SELECT count(*) FROM cachemig.truncation").fetchone())
    held = _values(redis, PREFIX.encode() + b"*")
    versions = {value_key(name): int(value) for name, value in _values(redis, VERSION + b"*").items()}
    result = Judgement(len(truth), unfolded=unfolded)
    keys = {*truth, *counts, *handled, *(name.decode().removeprefix(PREFIX) for name in held)}
    result.without = len(keys) - len(truth)
    for key in sorted(keys):
        name = f"{PREFIX}{key}".encode()
        text, value = truth.get(key), held.get(name)
        expected, version = base + counts.get(key, 0), versions.get(name, 0)
        about = f"version {show(version)} of {show(expected)}"
        if text is not None and value is None:
            result.lost[key] = f"lost: no value in Redis, {text[:24]!r} in the row; {about}"
        elif text is None and value is not None:
            result.resurrected[key] = f"resurrected: {value[:24]!r} in Redis, no row; {about}"
        elif text != value and text is not None and value is not None:
            result.stale[key] = f"stale: {value[:24]!r} in Redis, {text[:24]!r} in the row; {about}"
        elif version != expected and (text is not None or key in handled or version > expected):
            result.unfenced[key] = f"unfenced: {about}"
    return result


def show(version: int) -> str:
    return f"{version // EPOCH}/{version % EPOCH}"


def _one(row: tuple[object, ...] | None) -> int:
    assert row is not None
    return int(str(row[0]))


def _values(redis: Redis, pattern: bytes) -> dict[bytes, bytes]:
    found = {}
    for name in redis.scan_iter(match=pattern, count=1000):
        value = redis.get(name)
        if isinstance(value, bytes):
            found[name] = value
    return found

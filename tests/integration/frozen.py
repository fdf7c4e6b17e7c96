"""A migration led to redis-only, and on to dropped, by its own steps; writes to Redis alone as applications make them;
and the damage that verify is to find in either phase."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cachemig.entries.verdicts import Verdict
from cachemig.steps import cutover, stop_writes
from cachemig.steps.drop_column import drop
from cachemig.stop import Stop
from tests.integration.conftest import Migrating, finish

NO_SOAK = {"soak_cutover": "0", "soak_redis_only": "0"}


def put(case: Migrating, key: str, kind: str) -> None:
    """`plain`, `changed` (so that it has a version key), `cleared`, `deleted`, `expired` or `aside`."""
    seen_at = "2020-01-01" if kind == "expired" else None
    case.put(key, [1] if kind == "aside" else {"v": 1, "w": 1.5}, seen_at=seen_at)


def change(case: Migrating, key: str, kind: str) -> None:
    match kind:
        case "changed":
            case.execute("UPDATE sessions SET cache = '{\"v\": 2}' WHERE file_hash = %s", key)
        case "cleared":
            case.execute("UPDATE sessions SET cache = '{}' WHERE file_hash = %s", key)
        case "deleted":
            case.execute("DELETE FROM sessions WHERE file_hash = %s", key)


def moved(case: Migrating, kinds: dict[str, str]) -> None:
    """These keys in both places, each of its kind."""
    for key, kind in kinds.items():
        put(case, key, kind)
    case.begin()
    case.backfill()
    for key, kind in kinds.items():
        change(case, key, kind)
    case.sync()


def freeze(case: Migrating, guard: stop_writes.Guard = "forward") -> stop_writes.Stopped:
    """On to redis-only, by the steps with their gates."""
    case.set(**NO_SOAK)
    assert case.verify(accept_set_aside=10**6).outcome.passed
    finish(cutover.cutover(case.settings, case.target, Stop(), 100.0, no_clients=True))
    step = stop_writes.stop_writes(
        case.settings, case.target, Stop(), guard, no_clients=True, accept_expiring=10**6
    )  # fmt: skip
    return finish(step)


def drop_it(case: Migrating) -> None:
    finish(drop(case.settings, Stop(), gate=lambda _: None))


def value(case: Migrating, key: str) -> str:
    return f"{case.prefix}{key}"


def version(case: Migrating, key: str) -> str:
    return f"cachemig:v:{{{case.prefix}{key}}}"


def write(case: Migrating, key: str, new: Any, *, expires_at_ms: int | None = None) -> int:
    """A write to Redis alone, as CacheService makes it; `new` None removes, bytes go in as they are."""
    ((epoch,),) = case.execute("SELECT epoch FROM cachemig.migration")
    stored = new if new is None or isinstance(new, bytes) else json.dumps(new).encode()
    (held,) = case.target.versions([key])
    status, number, _ = case.target.write_alone(key, stored, expires_at_ms, epoch=epoch, expected=held)
    assert status == 1
    return number


# Sabotage -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """What is done to one key behind the tool's back, and what verify is to call it."""

    kind: str
    do: Callable[[Migrating, str], object]
    frozen: Verdict | None
    """In redis-only; None: cannot be done there."""
    dropped: Verdict | None
    """After the drop, by the ledger."""
    heals: bool = True
    """verify --repair in redis-only, and sync, put the column's state back."""


def _ledger(assignment: str) -> Callable[[Migrating, str], object]:
    return lambda m, k: m.execute(f"UPDATE cachemig.entry SET {assignment} WHERE key = '{k}'")


def _beyond(m: Migrating, k: str) -> None:
    m.redis.set(version(m, k), write(m, k, {"v": 3}) + 5 * 2**40)


def _newer_then(then: Callable[[Migrating, str], object]) -> Callable[[Migrating, str], object]:
    return lambda m, k: (write(m, k, {"v": "newer"}), then(m, k))


def _unnoticed(m: Migrating, k: str) -> None:
    with m.conn.transaction():
        m.execute("SELECT set_config('cachemig.copying', 'on', true)")
        m.execute("UPDATE sessions SET cache = '{\"v\": 7}' WHERE file_hash = %s", k)


def _late(m: Migrating, k: str) -> None:
    m.execute("UPDATE sessions SET cache = '{\"v\": 8}' WHERE file_hash = %s", k)
    m.execute("UPDATE cachemig.late_write SET at = now() - interval '31 s' WHERE key = %s", k)


V = Verdict
SABOTAGE: dict[str, Damage] = {
    "a value is deleted": Damage("plain", lambda m, k: m.redis.delete(value(m, k)), V.MISSING, V.MISSING),
    "a value is flushed with its version": Damage(
        "changed", lambda m, k: m.redis.delete(value(m, k), version(m, k)), V.MISSING, V.MISSING
    ),
    "one byte is changed": Damage("plain", lambda m, k: m.redis.setrange(value(m, k), 6, "9"), V.MISMATCH, V.MISMATCH),
    "a value is cut": Damage(
        "plain", lambda m, k: m.redis.set(value(m, k), '{"v": 1,', keepttl=True), V.MISMATCH, V.MISMATCH
    ),
    "a value is another type": Damage(
        "plain", lambda m, k: (m.redis.delete(value(m, k)), m.redis.rpush(value(m, k), "x")), V.CORRUPT, V.CORRUPT
    ),
    "a damaged zstd frame": Damage(
        "plain", lambda m, k: m.redis.set(value(m, k), b"\x28\xb5\x2f\xfd rest", keepttl=True), V.CORRUPT, V.CORRUPT
    ),
    "an expiry is taken away": Damage("plain", lambda m, k: m.redis.persist(value(m, k)), V.CORRUPT, V.CORRUPT),
    "an expiry is moved": Damage("plain", lambda m, k: m.redis.expire(value(m, k), 1000), V.CORRUPT, V.CORRUPT),
    "an expiry is moved away": Damage("plain", lambda m, k: m.redis.expire(value(m, k), 10**7), V.CORRUPT, V.CORRUPT),
    "a version key is deleted": Damage("changed", lambda m, k: m.redis.delete(version(m, k)), V.CORRUPT, V.CORRUPT),
    "a cleared row's tombstone is deleted": Damage(
        "cleared", lambda m, k: m.redis.delete(version(m, k)), V.CORRUPT, V.CORRUPT
    ),
    "a deleted row's tombstone is deleted": Damage(
        "deleted", lambda m, k: m.redis.delete(version(m, k)), V.CORRUPT, V.CORRUPT
    ),
    "a version key is ahead": Damage(
        "changed", lambda m, k: m.redis.set(version(m, k), 99), V.CORRUPT, V.CORRUPT, False
    ),
    "a version key appears": Damage("plain", lambda m, k: m.redis.set(version(m, k), 1), V.CORRUPT, V.CORRUPT),
    "a version key holds no number": Damage(
        "changed", lambda m, k: m.redis.set(version(m, k), "x"), V.CORRUPT, V.CORRUPT, False
    ),
    "an old state with its version": Damage(
        "changed",
        lambda m, k: (m.redis.set(value(m, k), '{"v": 1, "w": 1.5}'), m.redis.delete(version(m, k))),
        V.STALE, V.STALE,
    ),
    "a cleared value comes back": Damage(
        "cleared", lambda m, k: m.redis.set(value(m, k), '{"v": 1}'), V.RESURRECTED, V.RESURRECTED
    ),
    "a deleted row's value comes back": Damage(
        "deleted", lambda m, k: m.redis.set(value(m, k), '{"v": 1}'), V.RESURRECTED, V.RESURRECTED
    ),
    "an expired value comes back": Damage(
        "expired", lambda m, k: m.redis.set(value(m, k), '{"v": 1, "w": 1.5}'), V.CORRUPT, V.CORRUPT
    ),
    "a corrupt row's value appears": Damage(
        "aside", lambda m, k: m.redis.set(value(m, k), "[1]"), V.MISMATCH, V.MISMATCH
    ),
    "a foreign key": Damage("none", lambda m, k: m.redis.set(value(m, k), "{}"), V.ORPHAN, V.ORPHAN, False),
    "a ledger digest is changed": Damage("plain", _ledger("sha256 = sha256('x')"), V.CORRUPT, V.MISMATCH),
    "a ledger size is changed": Damage("plain", _ledger("bytes = bytes + 1"), V.CORRUPT, V.CORRUPT),
    "a ledger expiry is changed": Damage(
        "plain", _ledger("expires_at = expires_at + interval '1 h'"), V.CORRUPT, V.CORRUPT
    ),
    "a ledger version is raised": Damage("changed", _ledger("version = version + 1"), V.CORRUPT, V.CORRUPT),
    "a ledger version is lowered": Damage("changed", _ledger("version = version - 1"), V.CORRUPT, V.CORRUPT),
    "a ledger state is changed": Damage("plain", _ledger("state = 'removed'"), V.CORRUPT, V.RESURRECTED),
    "a cleared row's ledger state is changed": Damage("cleared", _ledger("state = 'delivered'"), V.CORRUPT, V.MISSING),
    "a ledger row is deleted": Damage(
        "plain", lambda m, k: m.execute("DELETE FROM cachemig.entry WHERE key = %s", k), V.CORRUPT, V.ORPHAN
    ),
    "a changed key's ledger row is deleted": Damage(
        "changed", lambda m, k: m.execute("DELETE FROM cachemig.entry WHERE key = %s", k), V.CORRUPT, V.RESURRECTED
    ),
    "a failure in the ledger": Damage("plain", _ledger("state = 'failed', error = 'redis: no'"), V.FAILED, V.FAILED),
    "a mark that was not delivered": Damage(
        "changed",
        lambda m, k: m.execute("INSERT INTO cachemig.change (key, at) VALUES (%s, now() - interval '31 s')", k),
        V.STALE, V.STALE,
    ),
    # What was written to Redis alone
    "a newer value is no JSON": Damage("plain", lambda m, k: write(m, k, b'{"v": 1,'), V.CORRUPT, V.CORRUPT, False),
    "a newer value is of another shape": Damage("plain", lambda m, k: write(m, k, [1]), V.CORRUPT, V.CORRUPT, False),
    "a newer value cannot be decoded": Damage(
        "changed", lambda m, k: write(m, k, b"\x28\xb5\x2f\xfd rest"), V.CORRUPT, V.CORRUPT, False
    ),
    "a newer value without a row is no JSON": Damage(
        "none", lambda m, k: write(m, k, b"{x}"), V.CORRUPT, V.CORRUPT, False
    ),
    "a newer value of a cleared row is no JSON": Damage(
        "cleared", lambda m, k: write(m, k, b"{x}"), V.CORRUPT, V.CORRUPT, False
    ),
    "a version beyond the epoch": Damage("plain", _beyond, V.CORRUPT, V.CORRUPT, False),
    "a newer value loses its version": Damage(
        "plain", _newer_then(lambda m, k: m.redis.delete(version(m, k))), V.MISMATCH, V.MISMATCH
    ),
    # What was written to the frozen column
    "the guard did not see a write": Damage("plain", _unnoticed, V.CORRUPT, None),
    "a late write is not delivered": Damage("plain", _late, V.STALE, None),
}  # fmt: skip


def keys() -> dict[str, str]:
    """A key of each damage, named by its number; those that are to be in the table, with their kinds."""
    return {f"d{n}": damage.kind for n, damage in enumerate(SABOTAGE.values()) if damage.kind != "none"}


def sabotage(case: Migrating, phase: str) -> dict[str, str]:
    """Does all that can be done in this phase; {name of the damage: verdict to be found}."""
    expected = {}
    for n, (name, damage) in enumerate(SABOTAGE.items()):
        verdict = damage.frozen if phase == "redis-only" else damage.dropped
        if verdict is not None:
            damage.do(case, f"d{n}")
            expected[name] = verdict.value
    return expected


def found(cases: list[Any]) -> dict[str, str]:
    """As sabotage(): what a verification found, but for rows that are set aside."""
    names = list(SABOTAGE)
    return {
        names[int(c.key[1:])] if c.key[1:].isdigit() else c.key: c.verdict.value
        for c in cases
        if c.verdict is not Verdict.SET_ASIDE
    }


# What is good -------------------------------------------------------------------------------------------------------

GOOD = {
    "same": "plain", "other": "plain", "changed": "changed", "past": "expired", "aside": "aside", "empty": "cleared",
    "gone": "deleted", "again": "deleted", "filled": "cleared", "removed": "plain", "expires": "plain",
    "mended": "aside", "large": "plain",
}  # fmt: skip


def live_on(case: Migrating) -> None:
    """What applications do once Redis is alone, with keys of GOOD and one that no row has."""
    case.redis.set(value(case, "other"), '{"w":1.5,"v":1}', keepttl=True)  # equal JSON, in other bytes
    for key in ("changed", "again", "filled", "mended", "without a row"):
        write(case, key, {"v": "newer"})
    write(case, "removed", None)
    write(case, "never there", None)
    write(case, "expires", {"v": "soon"}, expires_at_ms=1)
    write(case, "large", {"v": "x" * 5_000_000})


COUNTS = {
    V.MATCH: 1,  # same
    V.EQUIVALENT: 1,  # other
    V.NEWER: 8,  # changed, again, filled, mended, without a row, removed, expires, large
    V.EXPIRED: 1,  # past
    V.SET_ASIDE: 1,  # aside
}

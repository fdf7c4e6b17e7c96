"""Whether Redis keeps what it is given: eviction, memory, persistence."""

from __future__ import annotations

from typing import Any, cast

from cachemig import errors
from cachemig.steps import plan
from cachemig.steps.doctor.finding import Level, Said, error, in_bytes, note, ok, warning
from cachemig.steps.doctor.subjects import Target
from cachemig.targets.faults import target_errors

MEMORY_SHARE = 0.8
"""A migration that would take more of the free memory is a warning."""
_ALONE = "a restart loses what was written since, and Redis has the only copy of it"


def eviction(t: Target) -> Said:
    policy = _policy(t)
    limit = int(t.info("memory").get("maxmemory", 0))
    at = f"maxmemory-policy {policy}, maxmemory {in_bytes(limit) if limit else 'not set'}"
    if policy.startswith("allkeys-"):
        return error(
            f"{at}: a full server throws away version keys too, and then an old write can win",
            "CONFIG SET maxmemory-policy volatile-lru, or noeviction, at least while the migration runs",
        )
    if policy.startswith("volatile-") and t.settings.ttl:
        return warning(
            f"{at}: a full server throws away entries before their time, and they will be missing in verify",
            "see that there is memory enough (redis-memory); with noeviction a full server makes backfill wait instead",
        )
    return ok(at)


def _policy(t: Target) -> str:
    policy = t.info("memory").get("maxmemory_policy")
    if policy is None:  # some managed servers shorten INFO
        policy = cast("dict[str, Any]", t.client.config_get("maxmemory-policy")).get("maxmemory-policy", "unknown")
    return str(policy)


def memory(t: Target) -> Said:
    info = t.info("memory")
    free, expected = plan.free_memory(info), t.seen.expected_bytes
    if expected is not None:
        expected = int(expected * t.server.share)
    limit = "maxmemory" if int(info.get("maxmemory", 0)) else "the machine's memory, for maxmemory is not set"
    if free is None:
        needed = "an unknown number of bytes" if expected is None else in_bytes(expected)
        return note(
            f"the server tells neither maxmemory nor the machine's memory; {needed} will be needed",
            "compare it with what the server has",
        )
    if expected is None:
        return note(
            f"{in_bytes(free)} are free (up to {limit}); what is needed could not be estimated",
            "mend what is wrong with Postgres and look again",
        )
    what = f"about {in_bytes(expected)} are still needed, an estimate; {in_bytes(free)} are free (up to {limit})"
    do = "raise maxmemory, use codec zstd, or a shorter ttl; cachemig plan has the figures"
    if expected > free:
        return (Level.ERROR if _policy(t) == "noeviction" else Level.WARNING), what, do
    if expected > MEMORY_SHARE * free:
        return warning(what, do)
    return ok(what)


def persistence(t: Target) -> Said:
    if int(t.info("persistence").get("aof_enabled", 0)):
        return ok("append-only file is on")
    try:
        with target_errors():
            save = str(cast("dict[str, Any]", t.client.config_get("save")).get("save", ""))
    except errors.TargetForbidden:
        return note(
            "no append-only file; whether there are snapshots is hidden from this user (CONFIG GET)",
            "ask the server's owner what a restart loses",
        )
    except errors.TargetError:
        return note("no append-only file; the server does not tell of snapshots", "ask what a restart loses")
    if save:
        if t.seen.alone:
            return warning(f"snapshots only (save {save}): {_ALONE}", "CONFIG SET appendonly yes")
        return note(
            f"snapshots only (save {save}): a restart loses what came after the last one",
            "after a restart of Redis: cachemig sync --once, unless it runs all the time",
        )
    if t.seen.alone:
        return error(f"neither append-only file nor snapshots: {_ALONE}", "CONFIG SET appendonly yes")
    return note(
        "neither append-only file nor snapshots: a restart loses every entry, and the versions with them",
        "while the column is there nothing is lost: sync delivers it again; before Redis is alone: appendonly yes",
    )

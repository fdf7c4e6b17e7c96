"""The Redis server: whether it and its user can do what delivery needs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import redis

from cachemig import errors
from cachemig.config import Settings
from cachemig.steps.doctor import clocks, retention
from cachemig.steps.doctor.finding import Check, Finding, Level, Said, error, look, note, ok, warning
from cachemig.steps.doctor.subjects import Seen, Target, is_local
from cachemig.targets import keys
from cachemig.targets.cluster import ClusterTarget
from cachemig.targets.faults import CLUSTER_HINT, target_errors
from cachemig.targets.redis import RedisTarget

_READING = frozenset({"PTTL", "GET under the prefix", "SCAN", "INFO", "TIME"})
"""Of what is tried, that which needs no right to write, and leaves nothing behind."""
_SCANS = 50
_SCAN_COUNT = 2000


def findings(settings: Settings, target: RedisTarget, seen: Seen) -> list[Finding]:
    """A finding of every check of Redis; only one where the server cannot be reached. Of a cluster's masters it is the
    worst one's."""
    try:
        target.ping()
        servers = target.servers()
    except errors.TargetError as exc:
        return [Finding("redis-reachable", *error(str(exc), exc.hint))]
    clocks.read_redis(target, seen)
    subjects = [Target(settings, target, seen, server) for server in servers]
    return [_worst(name, check, subjects) for name, check in REDIS_CHECKS]


def _worst(name: str, check: Check[Target], subjects: list[Target]) -> Finding:
    found = [look(name, check, subject) for subject in subjects]
    if len(found) == 1 or check is _cluster:
        return found[0]
    levels = list(Level)
    number = max(range(len(found)), key=lambda n: levels.index(found[n].level))
    worst = found[number]
    more = sum(other.level is worst.level for other in found) - 1
    which = f"and {more} more of {len(found)} masters" if more else f"one of {len(found)} masters"
    return replace(worst, what=f"{subjects[number].server.name} ({which}): {worst.what}")


def _reachable(t: Target) -> Said:
    info = t.info("server")
    version = f"redis_version {info.get('redis_version', 'not told')}"
    if "valkey_version" in info:
        version = f"valkey_version {info['valkey_version']}, {version}"
    options = t.client.connection_pool.connection_kwargs
    host, port = t.place
    where = options.get("path") or f"{host}:{port}"
    if t.target.address.kind == "sentinel":
        where += f", the primary of {t.target.address.service}"
    return ok(f"{info.get('server_name', 'redis')} at {where} ({version}), database {options.get('db') or 0}")


def _abilities(t: Target) -> Said:
    """Tries each command: a version number tells neither what a fork can do nor what this user may."""
    value_key = _name_at(t)
    # In the slot of that key; a tag of its own, so that two who look at the same time are not in each other's way.
    tag = _tag_of(t, value_key)
    scratch = f"cachemig:t:{{{tag}}}:{secrets.token_hex(4)}"
    in_a_minute = int(time.time() * 1000) + 60_000
    tries: tuple[tuple[str, Callable[[], object]], ...] = (
        ("scripts (EVAL)", lambda: t.target.probe(tag)),
        ("SCRIPT LOAD", lambda: t.client.script_load("return 1")),
        ("EVALSHA", lambda: t.client.evalsha("e0e1f9fabfc9d4800c877a703b823ac0578ff8db", 0)),
        ("SET with PXAT", lambda: t.target.ask([("SET", scratch, b"", "PXAT", in_a_minute)])),
        ("PTTL", lambda: t.target.ask([("PTTL", scratch)])),
        ("UNLINK", lambda: t.target.ask([("UNLINK", scratch)])),
        ("GET under the prefix", lambda: t.target.ask([("GET", value_key)])),
        ("UNLINK under the prefix", lambda: t.target.ask([("UNLINK", value_key)])),
        ("SCAN", lambda: t.client.scan(count=1)),
        ("INFO", lambda: t.client.info("server")),
        ("TIME", lambda: t.client.time()),
    )
    if not t.seen.writes:
        tries = tuple((name, attempt) for name, attempt in tries if name in _READING)
    lacking = []
    for name, attempt in tries:
        try:
            with target_errors():
                attempt()
        except errors.TargetReadOnly:
            return note("could not be tried on a replica", "point redis_url at the primary")
        except errors.TargetUnavailable:
            raise
        except errors.TargetFull:
            continue  # redis-memory tells
        except errors.TargetError as exc:
            lacking.append(f"{name} ({exc})")
    if lacking:
        return error(f"does not work with this server and user: {'; '.join(lacking)}", errors.TargetForbidden.hint)
    found = f"all of these work: {', '.join(name for name, _ in tries)}"
    if not t.seen.writes:
        return note(f"{found}; what writes was not tried", "cachemig doctor, as the user that runs the workers")
    return ok(found)


def _name_at(t: Target) -> str:
    """The name of a value that would be this server's."""
    for _ in range(1000):
        name = t.target.template.name(f"cachemig-doctor-{secrets.token_hex(4)}")
        if not isinstance(t.target, ClusterTarget) or t.target.server_of(name) == t.server.name:
            break
    return name


def _tag_of(t: Target, name: str) -> str:
    return keys.tag(keys.slot(name.encode())) if isinstance(t.target, ClusterTarget) else "doctor"


def _role(t: Target) -> Said:
    info = t.info("replication")
    if info.get("role") != "master":
        return error(f"the server's role is {info.get('role')}: it takes no writes", "point redis_url at the primary")
    replicas = int(info.get("connected_slaves", 0))
    if replicas < t.settings.wait_replicas:
        return error(
            f"the server is a primary with {replicas} replicas, and wait_replicas is {t.settings.wait_replicas}: "
            "a delivery would wait for ever",
            "look after the replicas, or lower wait_replicas",
        )
    return ok(f"the server is a primary with {replicas} replicas")


def _cluster(t: Target) -> Said:
    if not isinstance(t.target, ClusterTarget):
        if int(t.info("cluster").get("cluster_enabled", 0)):
            return error("the server is a node of a Redis Cluster, and redis_url is that of one server", CLUSTER_HINT)
        return ok("not a cluster node")
    servers = t.target.servers()
    for server in servers:
        state = t.target.state_at(server)
        if state != "ok":
            return error(f"the cluster's state is {state}, says {server.name}", "CLUSTER INFO there, and CLUSTER NODES")
    at = f"cluster_state ok, {len(servers)} masters have all {keys.SLOTS:,} slots"
    if len({keys.slot(t.target.template.name(f"{n:x}").encode()) for n in range(100)}) == 1:
        return warning(
            f"{at}; but all names under {t.target.template.pattern} have the same hash tag, and so the same slot: one "
            "master would have all entries",
            "choose a key_template without braces around a fixed text",
        )
    if alone := [s.name for s in servers if not int(s.client.info("replication").get("connected_slaves", 0))]:
        return warning(
            f"{at}; without a replica: {', '.join(alone)}. A master that is lost takes its slots with it",
            "add a replica to each master",
        )
    if moving := t.target.moving():
        return note(
            f"{at}; {len(moving)} slots are being moved, or were left half way: {', '.join(map(str, moving[:10]))}",
            "entries of these slots wait until they have arrived; redis-cli --cluster fix mends what was left",
        )
    return ok(f"{at}, each with a replica")


def _transport(t: Target) -> Said:
    pool = t.client.connection_pool
    options = pool.connection_kwargs
    host, _ = t.place
    if "path" in options or is_local(host):
        return ok("the connection does not leave this machine")
    lacking = []
    if not issubclass(pool.connection_class, redis.SSLConnection):
        lacking.append("TLS (rediss://)")
    elif options.get("ssl_cert_reqs") in ("none", "optional"):
        lacking.append("a check of the server's certificate")
    if not options.get("password"):
        lacking.append("a password (REDISCLI_AUTH)")
    if lacking:
        return warning(
            f"the connection to {host} is without {' and without '.join(lacking)}: whoever is on the network "
            "can read or falsify entries",
            "use rediss:// and a user of its own",
        )
    return ok(f"TLS and a password to {host}")


def _foreign(t: Target) -> Said:
    pattern = t.target.template.pattern
    if t.seen.delivered:
        return ok(f"{t.seen.delivered:,} keys were delivered; verify tells which others are under {pattern}")
    found, cursor, finished = 0, 0, False
    for _ in range(_SCANS):
        cursor, names = cast("tuple[int, list[bytes]]", t.client.scan(cursor=cursor, match=pattern, count=_SCAN_COUNT))
        found += len(names)
        if finished := cursor == 0:
            break
    extent = "" if finished else f" among the first {_SCANS * _SCAN_COUNT:,} keys or so"
    if not found:
        return ok(f"no key matches {pattern} yet{extent}")
    if t.seen.delivered is None:
        return note(
            f"{found:,} keys match {pattern}{extent}; whether they are the migration's is not known",
            "mend what is wrong with Postgres and look again",
        )
    return warning(
        f"{found:,} keys match {pattern}{extent}, though nothing was delivered yet: another program writes "
        "there, and its keys would be overwritten or reported as orphans",
        "choose another key_template, or remove them if they are left over",
    )


REDIS_CHECKS: tuple[tuple[str, Check[Target]], ...] = (
    ("redis-reachable", _reachable),
    ("redis-abilities", _abilities),
    ("redis-role", _role),
    ("redis-cluster", _cluster),
    ("redis-eviction", retention.eviction),
    ("redis-memory", retention.memory),
    ("redis-persistence", retention.persistence),
    ("redis-transport", _transport),
    ("redis-foreign-keys", _foreign),
)

"""The Redis server: whether it and its user can do what delivery needs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import cast

import redis

from cachemig import errors
from cachemig.config import Settings
from cachemig.steps.doctor import clocks, retention
from cachemig.steps.doctor.finding import Check, Finding, Said, error, look, note, ok, warning
from cachemig.steps.doctor.subjects import Seen, Target, is_local
from cachemig.targets.faults import target_errors
from cachemig.targets.redis import RedisTarget

_SCANS = 50
_SCAN_COUNT = 2000


def findings(settings: Settings, target: RedisTarget, seen: Seen) -> list[Finding]:
    """A finding of every check of Redis; only one where the server cannot be reached."""
    try:
        with target_errors():
            target.client.ping()
    except errors.TargetError as exc:
        return [Finding("redis-reachable", *error(str(exc), exc.hint))]
    clocks.read_redis(target, seen)
    subject = Target(settings, target, seen)
    return [look(name, check, subject) for name, check in REDIS_CHECKS]


def _reachable(t: Target) -> Said:
    info = t.info("server")
    version = f"redis_version {info.get('redis_version', 'not told')}"
    if "valkey_version" in info:
        version = f"valkey_version {info['valkey_version']}, {version}"
    options = t.client.connection_pool.connection_kwargs
    where = options.get("path") or f"{options.get('host')}:{options.get('port')}"
    return ok(f"{info.get('server_name', 'redis')} at {where} ({version}), database {options.get('db') or 0}")


def _abilities(t: Target) -> Said:
    """Tries each command: a version number tells neither what a fork can do nor what this user may."""
    scratch = f"cachemig:t:{{doctor-{secrets.token_hex(4)}}}"
    value_key = t.target.template.name(f"cachemig-doctor-{secrets.token_hex(4)}")
    in_a_minute = int(time.time() * 1000) + 60_000
    tries: tuple[tuple[str, Callable[[], object]], ...] = (
        ("scripts (EVAL)", t.target.check),
        ("SCRIPT LOAD", lambda: t.client.script_load("return 1")),
        ("EVALSHA", lambda: t.client.evalsha("e0e1f9fabfc9d4800c877a703b823ac0578ff8db", 0)),
        ("SET with PXAT", lambda: t.client.set(scratch, b"", pxat=in_a_minute)),
        ("PTTL", lambda: t.client.pttl(scratch)),
        ("UNLINK", lambda: t.client.unlink(scratch)),
        ("GET under the prefix", lambda: t.client.get(value_key)),
        ("UNLINK under the prefix", lambda: t.client.unlink(value_key)),
        ("SCAN", lambda: t.client.scan(count=1)),
        ("INFO", lambda: t.client.info("server")),
        ("TIME", lambda: t.client.time()),
    )
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
    return ok(f"all of these work: {', '.join(name for name, _ in tries)}")


def _role(t: Target) -> Said:
    info = t.info("replication")
    if info.get("role") != "master":
        return error(f"the server's role is {info.get('role')}: it takes no writes", "point redis_url at the primary")
    return ok(f"the server is a primary with {info.get('connected_slaves', 0)} replicas")


def _cluster(t: Target) -> Said:
    if int(t.info("cluster").get("cluster_enabled", 0)):
        return error(
            "the server is a node of a Redis Cluster; this version writes to one server, not to a cluster",
            "use a server that is not in cluster mode, with replicas if you need them",
        )
    return ok("not a cluster node")


def _transport(t: Target) -> Said:
    pool = t.client.connection_pool
    options = pool.connection_kwargs
    host = options.get("host")
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

"""The mapping of redis-py's errors to ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as rx

from cachemig import errors

# Replies that say something of the server, not of the key: the whole delivery stops and is repeated.
_UNAVAILABLE = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MISCONF", "NOREPLICAS", "BUSY", "UNBLOCKED")

CLUSTER_HINT = "redis_url of a cluster: redis+cluster://HOST:PORT or, with TLS, rediss+cluster://HOST:PORT of any node"


@contextmanager
def target_errors() -> Iterator[None]:
    """Every redis-py error leaves this block as a TargetError, with the cause attached."""
    try:
        yield
    except (rx.RedisError, rx.RedisClusterException) as exc:
        raise mapped(exc) from exc


def mapped(exc: Exception) -> errors.TargetError:
    """The error to show for one of redis-py's. Redis's messages hold command names, never values."""
    text = str(exc)
    match exc:
        case rx.OutOfMemoryError():
            return errors.TargetFull("Redis is full: used memory is over maxmemory")
        case rx.ReadOnlyError():
            return errors.TargetReadOnly()
        case rx.NoPermissionError():
            return errors.TargetForbidden(f"Redis: {text}")
        case rx.AuthenticationError() | rx.AuthorizationError() | rx.AuthenticationWrongNumberOfArgsError():
            return errors.TargetAuthFailed(f"Redis refused the login: {text}")
        case rx.ConnectionError() | rx.TimeoutError() if "[SSL" in text or "certificate verify failed" in text:
            return errors.TargetUnavailable(
                f"TLS to Redis failed: {text}", hint="check rediss:// and ?ssl_ca_certs=FILE in redis_url"
            )
        case rx.MovedError() | rx.AskError():
            return errors.TargetError("Redis: the server is a node of a cluster", hint=CLUSTER_HINT)
        case rx.ConnectionError() | rx.TimeoutError() | rx.ClusterError() | rx.TryAgainError():
            return errors.TargetUnavailable(f"Redis cannot be reached: {text}")
    if "OOM command not allowed" in text:  # from a script, before Redis 7
        return errors.TargetFull("Redis is full: used memory is over maxmemory")
    if "READONLY" in text:
        return errors.TargetReadOnly()
    if text.startswith("NOAUTH"):
        return errors.TargetAuthFailed("Redis wants a password")
    if text.startswith(_UNAVAILABLE):
        return errors.TargetUnavailable(f"Redis is not ready: {text}")
    return errors.TargetError(f"Redis: {text}", hint="cachemig doctor")

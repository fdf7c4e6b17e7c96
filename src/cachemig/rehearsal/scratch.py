"""The servers of a rehearsal: its own, or some that are marked as scratch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import redis

from cachemig.config import Settings
from cachemig.demo.servers import PostgresServer, RedisServer
from cachemig.errors import Refused, SourceError, SourceUnavailable, TargetError
from cachemig.source import control
from cachemig.source.connect import Connection, source_errors
from cachemig.targets.faults import target_errors

MARK = "cachemig scratch"
"""The database's comment, and a key in Redis, that say: nobody will miss this."""


@dataclass(frozen=True)
class Servers:
    dsn: str
    typed: str
    """The DSN as a person would write it."""
    redis_url: str
    own: tuple[PostgresServer, RedisServer] | None
    versions: dict[str, str]


@contextmanager
def servers(directory: Path, scratch_dsn: str | None, scratch_redis_url: str | None) -> Iterator[Servers]:
    """Throw-away servers, or those given. Raises Refused where a given one is not marked, or holds a migration."""
    with ExitStack() as stack:
        postgres = None if scratch_dsn else stack.enter_context(PostgresServer(directory))
        redis_server = None if scratch_redis_url else stack.enter_context(RedisServer(directory))
        if scratch_dsn:
            try:
                _marked_database(scratch_dsn)
            except SourceUnavailable as exc:
                exc.hint = "check --scratch-dsn"
                raise
        if scratch_redis_url:
            _marked_redis(scratch_redis_url)
        dsn = postgres.dsn() if postgres else scratch_dsn or ""
        yield Servers(
            dsn,
            f"host={postgres.host} user=postgres dbname=postgres" if postgres else dsn,
            redis_server.url if redis_server else scratch_redis_url or "",
            (postgres, redis_server) if postgres and redis_server else None,
            _versions(dsn, redis_server.url if redis_server else scratch_redis_url or ""),
        )


def connected(dsn: str) -> Connection:
    with source_errors():
        return psycopg.connect(dsn, autocommit=True, connect_timeout=10, application_name="cachemig rehearse")


def _marked_database(dsn: str) -> None:
    with connected(dsn) as conn, source_errors():
        row = conn.execute(
            "SELECT current_database(), shobj_description(oid, 'pg_database') FROM pg_database"
            " WHERE datname = current_database()"
        ).fetchone()
        if row is None:
            raise SourceError("this server does not say which database it is", hint="leave --scratch-dsn out")
        name, comment = row
        if MARK not in (comment or ""):
            raise Refused(
                f"database {name} is not marked as scratch: a rehearsal drops and rewrites what it finds",
                hint=f"if nobody will miss it: COMMENT ON DATABASE {name} IS '{MARK}'",
            )
        if control.find(conn) is not None:
            raise Refused(
                f"database {name} holds a migration of cachemig",
                hint="cachemig clean --execute there, or another database",
            )


def _marked_redis(url: str) -> None:
    with target_errors():
        client = redis.Redis.from_url(url, socket_timeout=10)
        try:
            if client.exists(MARK) != 1:
                raise Refused(
                    "this Redis is not marked as scratch", hint=f"if nobody will miss it: redis-cli SET '{MARK}' 1"
                )
        finally:
            client.close()


def _versions(dsn: str, url: str) -> dict[str, str]:
    with connected(dsn) as conn:
        number = conn.info.parameter_status("server_version") or "?"
    with target_errors():
        client = redis.Redis.from_url(url, socket_timeout=10)
        try:
            said = client.info("server")
        except redis.ResponseError as exc:  # a provider that forbids INFO
            raise TargetError(f"Redis does not answer INFO: {exc}", hint="leave --scratch-redis-url out") from exc
        finally:
            client.close()
    assert isinstance(said, dict)
    name = "valkey" if "valkey_version" in said else "redis"
    return {"postgres": number.split(" ")[0], "redis": f"{name} {said.get(f'{name}_version', '?')}"}


def settings_as_environment(settings: Settings) -> dict[str, str]:
    """What was set, as variables, but where servers and recordings are: a rehearsal never reaches those."""
    elsewhere = ("dsn", "read_dsn", "redis_url", "recordings_location", "recordings_endpoint")
    return {
        f"CACHEMIG_{name.upper()}": _text(getattr(settings, name)) for name in settings.origins if name not in elsewhere
    }


def _text(value: object) -> str:
    match value:
        case bool():
            return "on" if value else "off"
        case tuple():
            return ",".join(map(str, value))
    return str(value)

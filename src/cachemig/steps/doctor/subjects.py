"""What checks look at, and what those of one server tell those of the other."""

from __future__ import annotations

import ipaddress
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import redis
from redis.sentinel import SentinelConnectionPool

from cachemig.config import Settings
from cachemig.source import control, queries
from cachemig.source.connect import Connection, transaction
from cachemig.source.table import Table
from cachemig.targets.redis import RedisTarget, Server

LOCK_TIMEOUT_S = 2.0


@dataclass
class Seen:
    """What one side found and a check of the other side needs."""

    expected_bytes: int | None = None
    """Memory that Redis will need beyond what it holds now. None: not known."""
    delivered: int | None = None
    """Keys that the ledger says are in Redis. None: not known."""
    alone: bool = False
    """Redis has the only copy of what is written."""
    writes: bool = True
    """Scratch keys may be written to Redis."""
    clocks: dict[str, float] = field(default_factory=dict)
    """Seconds by which a server's clock is ahead of this machine's."""


@dataclass(frozen=True)
class Source:
    """The table in its database, and the migration as this role sees it."""

    settings: Settings
    conn: Connection
    table: Table
    migration: control.Migration | None
    visible: bool
    """False: this role may not see the control schema, so that there may be a migration."""


@dataclass(frozen=True)
class Target:
    """The Redis server, or one of them."""

    settings: Settings
    target: RedisTarget
    seen: Seen
    server: Server

    @property
    def client(self) -> redis.Redis:
        return self.server.client

    @property
    def place(self) -> tuple[str | None, int | None]:
        """Host and port; None for a Unix socket."""
        pool = self.client.connection_pool
        if isinstance(pool, SentinelConnectionPool):
            host, port = pool.get_master_address()  # type: ignore[no-untyped-call]
            return host, port
        return pool.connection_kwargs.get("host"), pool.connection_kwargs.get("port")

    def info(self, section: str) -> dict[str, Any]:
        return self.client.info(section)


def one(conn: Connection, name: str, **parameters: object) -> tuple[Any, ...]:
    """The only row of a statement of sql/doctor.sql."""
    row = conn.execute(queries.text("doctor", name), parameters).fetchone()
    assert row is not None
    return row


def brief(conn: Connection) -> AbstractContextManager[None]:
    """A transaction that reads only, and does not wait long for whoever has locked the table."""
    return transaction(conn, read_only=True, lock_timeout_s=LOCK_TIMEOUT_S)


def is_local(host: str | None) -> bool:
    """A connection to this host does not leave the machine."""
    if not host or host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""The Postgres side: the SQL functions of the migration (sql/service.sql), over any pooler."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import errors as pg
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb
from psycopg_pool import PoolTimeout

from cachemig import errors
from cachemig.ladder import Phase
from cachemig.service._async import Connection, ConnectionPool
from cachemig.service.options import Options
from cachemig.service.route import Route
from cachemig.source.connect import mapped

_HEARTBEAT: LiteralString = (
    "SELECT phase, percent, epoch, settings FROM cachemig.heartbeat"
    "(%s::text, %s::text, %s::text, %s::float8, %s::int, %s::float8, %s::jsonb)"
)
_LEAVE: LiteralString = "SELECT cachemig.leave(%s::text)"
_GET_MANY: LiteralString = (
    "SELECT key, phase, percent, epoch, value, version, lifetime_from_ms FROM cachemig.get_many(%s::text[])"
)
_PUT: LiteralString = (
    "SELECT phase, percent, epoch, outcome, value, version, lifetime_from_ms"
    " FROM cachemig.put(%s::text, %s::jsonb, %s::bigint)"
)
_INVALIDATE: LiteralString = (
    "SELECT phase, percent, epoch, outcome, NULL::text, version, NULL::bigint FROM cachemig.invalidate(%s::text)"
)
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Found:
    """What the column holds of a key, and what the phase was in that snapshot."""

    route: Route
    asked_at: float
    text: str | None
    version: int | None
    lifetime_from_ms: int | None


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a write to the column."""

    route: Route
    asked_at: float
    outcome: str
    text: str | None
    version: int | None
    lifetime_from_ms: int | None = None


class AsyncColumn:
    """Raises SourceError and its kin, never anything of psycopg's."""

    def __init__(self, pool: ConnectionPool[Any], options: Options) -> None:
        self._pool = pool
        self._options = options

    async def heartbeat(
        self, client: str, name: str, acts_on: Route | None, lease_s: float, stats: Mapping[str, Any]
    ) -> tuple[Route, dict[str, Any]]:
        """Registers or renews, tells what this client acts on, and returns what it is to act on, with the settings."""
        told = (None, None, None) if acts_on is None else (acts_on.phase.value, acts_on.percent, acts_on.epoch)
        rows = await self._rows(_HEARTBEAT, (client, name, *told, lease_s, Jsonb(dict(stats))))
        if not rows:
            raise errors.NotInitialised
        phase, percent, epoch, settings = rows[0]
        return Route(Phase(phase), percent, epoch), settings

    async def leave(self, client: str) -> None:
        await self._rows(_LEAVE, (client,))

    async def get(self, key: str) -> Found:
        return (await self.get_many([key]))[key]

    async def get_many(self, keys: Sequence[str]) -> dict[str, Found]:
        asked_at = time.monotonic()
        rows = await self._rows(_GET_MANY, (list(keys),), tries=_TRIES)
        return {key: _found(rest, asked_at) for key, *rest in rows}

    async def put(self, key: str, text: bytes, if_version: int | None = None) -> Stored:
        asked_at = time.monotonic()
        rows = await self._rows(_PUT, (key, text.decode(), if_version))
        return _stored(rows[0], asked_at)

    async def put_in(self, conn: Connection, key: str, text: bytes) -> Stored:
        """In the caller's own transaction, by its connection."""
        asked_at = time.monotonic()
        try:
            rows = await _execute(conn, _PUT, (key, text.decode(), None))
        except psycopg.Error as exc:
            raise mapped(exc) from exc
        return _stored(rows[0], asked_at)

    async def invalidate(self, key: str) -> Stored:
        asked_at = time.monotonic()
        rows = await self._rows(_INVALIDATE, (key,))
        return _stored(rows[0], asked_at)

    async def invalidate_in(self, conn: Connection, key: str) -> Stored:
        """In the caller's own transaction, by its connection."""
        asked_at = time.monotonic()
        try:
            rows = await _execute(conn, _INVALIDATE, (key,))
        except psycopg.Error as exc:
            raise mapped(exc) from exc
        return _stored(rows[0], asked_at)

    async def _rows(self, statement: LiteralString, values: Sequence[Any], *, tries: int = 1) -> list[Any]:
        """A read may be repeated where the connection is lost; a write may have been committed, and is not."""
        while True:
            tries -= 1
            try:
                async with self._pool.connection(timeout=self._options.postgres_timeout) as conn:
                    return await _execute(conn, statement, values)
            except (pg.UndefinedFunction, pg.InvalidSchemaName) as exc:
                raise errors.NotInitialised from exc
            except psycopg.Error as exc:
                fault = mapped(exc)
                if not tries or isinstance(exc, PoolTimeout) or not isinstance(fault, errors.SourceUnavailable):
                    raise fault from exc


async def _execute(conn: Connection, statement: LiteralString, values: Sequence[Any]) -> list[Any]:
    # prepare=False: a pooler hands the next transaction to another session.
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(statement, values, prepare=False)
        return await cursor.fetchall()


def _found(row: Sequence[Any], asked_at: float) -> Found:
    phase, percent, epoch, text, version, lifetime_from_ms = row
    return Found(Route(Phase(phase), percent, epoch), asked_at, text, version, lifetime_from_ms)


def _stored(row: Sequence[Any], asked_at: float) -> Stored:
    phase, percent, epoch, outcome, text, version, lifetime_from_ms = row
    return Stored(Route(Phase(phase), percent, epoch), asked_at, outcome, text, version, lifetime_from_ms)

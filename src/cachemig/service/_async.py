"""What differs between the two classes, for AsyncCacheService; `_sync` has the same names for CacheService.

Everything else is written once, in the modules *_async, and generated from there (scripts/generate-sync).
"""

from __future__ import annotations

import asyncio
import logging
import select
from asyncio import Lock, Semaphore, Task, sleep, timeout
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import hiredis
import psycopg
import redis.asyncio as redis
from psycopg_pool import AsyncConnectionPool as ConnectionPool
from redis import RedisError
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from cachemig.entries.entry import Buffer
from cachemig.service.faults import Unreachable
from cachemig.service.options import Options
from cachemig.targets.address import Address, Node

__all__ = [
    "Background", "Connection", "ConnectionPool", "Event", "Flight", "Flights", "Loader", "Lock", "Semaphore",
    "Sockets", "make_pool", "sleep", "within",
]  # fmt: skip

T = TypeVar("T")
Loader = Callable[[], Awaitable[Any]]
Connection = psycopg.AsyncConnection[Any]
_NOTHING = object()
_READ_BYTES = 1 << 18
_SMALL_BYTES = 1 << 16
_LATE_S = 0.005
_AT_ONCE = 2
_log = logging.getLogger("cachemig.service")


class Event(asyncio.Event):
    async def wait_for(self, seconds: float) -> bool:
        """Whether it was set within this time."""
        try:
            async with timeout(seconds):
                return await self.wait()
        except TimeoutError:
            return False


async def within(seconds: float, work: Callable[[], Awaitable[T]]) -> T:
    """The work, or TimeoutError."""
    async with timeout(seconds):
        return await work()


class Background:
    """Work that nobody waits for: at most `most` at once, and an error of it is logged, not raised."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tasks: set[Task[None]] = set()
        self._closed = False

    def start(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> bool:
        """False, and nothing is done, where as many are at work already."""
        if self._closed or len(self._tasks) >= self._most:
            return False
        task = asyncio.get_running_loop().create_task(_logged(work, arguments))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def close(self) -> None:
        """Whatever is at work is cancelled."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _logged(work: Callable[..., Awaitable[None]], arguments: tuple[Any, ...]) -> None:
    try:
        await work(*arguments)
    except Exception as exc:  # noqa: BLE001  # nobody is there to raise it to
        _log.warning("work in the background ended by %s", type(exc).__name__)


class Flight:
    """One load that everybody who asks for the key meanwhile waits for."""

    def __init__(self) -> None:
        self.superseded = False
        """The key was written or invalidated since this load began."""


class Flights:
    """At most one load per key in this process."""

    def __init__(self) -> None:
        self._flights: dict[str, tuple[Flight, Task[Any]]] = {}

    async def join(self, key: str, work: Callable[[Flight], Coroutine[Any, Any, T]]) -> T:
        """The result of the load that is under way, or of a new one; an error of it reaches all who wait. A caller that
        is cancelled does not take the load with it."""
        if (found := self._flights.get(key)) is None:
            flight = Flight()
            task = asyncio.get_running_loop().create_task(work(flight))
            found = self._flights[key] = (flight, task)

            def landed(task: Task[T]) -> None:
                if self._flights.get(key) is found:
                    del self._flights[key]
                if not task.cancelled():
                    task.exception()  # has been looked at, also where all who waited are gone

            task.add_done_callback(landed)
        return await asyncio.shield(found[1])

    def supersede(self, key: str) -> None:
        """From here on nobody joins the load of this key, and what it finds is not kept."""
        if found := self._flights.pop(key, None):
            found[0].superseded = True

    async def close(self) -> None:
        tasks = [task for _, task in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def make_pool(dsn: str, options: Options) -> ConnectionPool[Any]:
    """A pool of our own, not opened yet. Nothing in it depends on a session: it may lead to a transaction pooler."""
    return ConnectionPool(
        dsn,
        kwargs={
            "autocommit": True,
            "prepare_threshold": None,
            "application_name": "cachemig-service",
            "client_encoding": "UTF8",
        },
        min_size=1,
        max_size=options.postgres_connections,
        timeout=options.postgres_timeout,
        reconnect_timeout=1.0,  # then it tries again when it is asked; the pauses between tries would grow to minutes
        check=_check,
        open=False,
    )


async def _check(conn: Connection) -> None:
    """An idle connection that can be read from was closed by the server: not to be used, and no round trip to know."""
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    if poll.poll(0):
        await conn.close()  # else the pool would hand it out again
        raise psycopg.OperationalError("the connection was closed meanwhile")


class Sockets:
    """Connections to one Redis. Connecting, TLS and the login are redis-py's; what goes over the wire is packed and
    parsed here, because a time limit must hold for a reply as a whole and yet let a large value pass."""

    def __init__(self, address: Address, node: Node | None, options: Options, credentials: dict[str, Any]) -> None:
        """`node`: of a cluster. Raises ValueError or TypeError for a URL that cannot be read."""
        self._options = options
        self._sentinels: list[Any] = []
        # Sentinels are asked within this, one after another where the first is dead.
        self._connect_s = options.connect_timeout * (1 + len(address.nodes) * (address.kind == "sentinel"))
        self._idle: list[Any] = []
        self._closed = False
        self._connecting = Semaphore(_AT_ONCE)
        given: dict[str, Any] = {
            "protocol": 2,
            "socket_connect_timeout": None,  # the limits below hold, and allow for a loop that is busy
            "socket_timeout": None,
            "retry": Retry(NoBackoff(), 0),
            **credentials,
        }
        if address.kind == "sentinel":
            self._factory = self._of_sentinels(address, given)
        else:
            self._factory = redis.ConnectionPool.from_url(address.url(node) if node else address.text, **given)

    def _of_sentinels(self, address: Address, given: dict[str, Any]) -> Any:
        """Makes connections to whichever server the sentinels call the primary: each asks them anew."""
        given = {**given, **parse_url(address.url(address.nodes[0]))}
        del given["host"], given["port"]
        if given.pop("connection_class", None) is not None:
            given["ssl"] = True
        shared = {name: value for name, value in given.items() if name.startswith("ssl")}
        limits = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), self._options.connect_timeout)
        asked = {**shared, **limits, **dict(address.sentinel_login), "protocol": 2, "retry": given["retry"]}
        sentinel: Any = Sentinel(address.nodes, sentinel_kwargs=asked, **given)  # type: ignore[no-untyped-call]
        self._sentinels = sentinel.sentinels
        return sentinel.master_for(address.service).connection_pool

    async def exchange(
        self, parts: Sequence[Buffer], nbytes: int, replies: int, hopeless: Callable[[], bool]
    ) -> list[Any]:
        """Sends packed commands and returns their replies; an error reply is an element like any other.
        `hopeless` is asked before another connection is tried.

        Raises Unreachable where Redis cannot be reached, does not answer in time or answers what is not its protocol.
        """
        connection = await self._connected(hopeless)
        try:
            found = await self._talk(connection, parts, nbytes, replies)
        except (OSError, EOFError, hiredis.HiredisError, RedisError) as exc:  # TimeoutError is an OSError
            self._discard(connection)
            raise Unreachable(type(exc).__name__, sent=True) from exc
        except BaseException:
            self._discard(connection)
            raise
        if self._closed:
            self._discard(connection)
        else:
            self._idle.append(connection)
        return found

    async def _connected(self, hopeless: Callable[[], bool]) -> Any:
        if (connection := self._pop()) is not None:
            return connection
        async with self._connecting:  # many that connect at once would take each other's time
            if (connection := self._pop()) is not None:
                return connection
            for forgives in (True, False):
                if hopeless():
                    raise Unreachable("breaker-open")
                connection = self._factory.make_connection()
                until = asyncio.get_running_loop().time() + self._connect_s
                try:
                    async with asyncio.timeout_at(until):
                        await connection.connect()
                except (OSError, RedisError) as exc:
                    self._discard(connection)
                    late = asyncio.get_running_loop().time() - until > _LATE_S
                    if isinstance(exc, TimeoutError) and late and forgives:
                        continue  # this loop was busy with something else
                    raise Unreachable(type(exc).__name__) from exc
                except BaseException:
                    self._discard(connection)
                    raise
                return connection
        raise AssertionError("the second try ends it")

    def _pop(self) -> Any:
        """A connection that is not in use, if there is one; one that the server has closed costs nobody an error."""
        while self._idle:
            connection = self._idle.pop()
            if not connection._reader.at_eof() and connection._reader.exception() is None:
                return connection
            self._discard(connection)
        return None

    async def _talk(self, connection: Any, parts: Sequence[Buffer], nbytes: int, replies: int) -> list[Any]:
        now = asyncio.get_running_loop().time
        wait, rate = self._options.redis_timeout, self._options.bytes_per_s
        parser = hiredis.Reader(notEnoughData=_NOTHING)
        found: list[Any] = []
        received, began, forgiven = 0, 0.0, False
        async with timeout(wait + nbytes / rate):
            connection._writer.writelines([b"".join(parts)] if nbytes < _SMALL_BYTES else parts)
            await connection._writer.drain()
        until = now() + wait
        while len(found) < replies:
            try:
                async with asyncio.timeout_at(until):
                    data = await connection._reader.read(_READ_BYTES)
            except TimeoutError:
                if forgiven or now() - until < _LATE_S:
                    raise
                # This loop was busy with something else; the reply may be here already.
                forgiven, until = True, now() + wait
                continue
            if not data:
                raise EOFError
            if not received:
                began = now()
                until = began + wait
            received += len(data)
            if received > _SMALL_BYTES:
                until = began + wait + received / rate
            parser.feed(data)
            while len(found) < replies and (reply := parser.gets()) is not _NOTHING:
                found.append(reply)
        if parser.has_data():
            raise EOFError  # more than was asked for: whose reply is whose?
        return found

    def _discard(self, connection: Any) -> None:
        if connection._writer is not None:
            connection._writer.transport.abort()
            connection._close()

    def drop(self) -> None:
        """Closes what is not in use: another server may be the right one by now."""
        while self._idle:
            self._discard(self._idle.pop())

    async def close(self) -> None:
        self._closed = True
        self.drop()
        for sentinel in self._sentinels:
            await sentinel.aclose()
        await sleep(0)  # so that the transports are gone when the loop is

"""What differs between the two classes, for CacheService; `_async` has the same names for AsyncCacheService."""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock, Semaphore
from time import sleep
from typing import Any, TypeVar

import hiredis
import psycopg
import redis
from psycopg_pool import ConnectionPool
from redis import RedisError
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from cachemig.entries.entry import Buffer
from cachemig.service.faults import Unreachable
from cachemig.service.options import Options
from cachemig.targets.address import Address, Node

__all__ = [
    "Background", "Connection", "ConnectionPool", "Event", "Flight", "Flights", "Loader", "Lock", "Semaphore",
    "Sockets", "make_pool", "sleep", "within",
]  # fmt: skip

T = TypeVar("T")
Loader = Callable[[], Any]
Connection = psycopg.Connection[Any]
_NOTHING = object()
_READ_BYTES = 1 << 18
_SMALL_BYTES = 1 << 16
_AT_ONCE = 2
_CLOSE_S = 3.0
_log = logging.getLogger("cachemig.service")


class Event(threading.Event):
    def wait_for(self, seconds: float) -> bool:
        """Whether it was set within this time."""
        return self.wait(seconds)


def within(_seconds: float, work: Callable[[], T]) -> T:
    """The work: a thread cannot be stopped from outside."""
    return work()


class Background:
    """Work that nobody waits for: at most `most` at once, and an error of it is logged, not raised.

    In daemon threads: an application that forgets to close must still end.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._work: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._at_work = 0
        self._closed = False

    def start(self, work: Callable[..., None], *arguments: Any) -> bool:
        """False, and nothing is done, where as many are at work already."""
        with self._lock:
            if self._closed or self._at_work >= self._most:
                return False
            self._at_work += 1
            if self._at_work > len(self._threads):
                thread = threading.Thread(target=self._run, name="cachemig-service", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._work.put((work, arguments))
        return True

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            try:
                _logged(*item)
            finally:
                with self._lock:
                    self._at_work -= 1

    def close(self) -> None:
        """What is at work is waited for a moment."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._work.put(None)
        until = time.monotonic() + _CLOSE_S
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))


def _logged(work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    try:
        work(*arguments)
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
        self._lock = threading.Lock()
        self._flights: dict[str, tuple[Flight, Future[Any], int]] = {}

    def join(self, key: str, work: Callable[[Flight], T]) -> T:
        """The result of the load that is under way, or of a new one; an error of it reaches all who wait."""
        me = threading.get_ident()
        with self._lock:
            found = self._flights.get(key)
            if leads := found is None or found[2] == me:  # a loader that asks for its own key must not wait for itself
                found = self._flights[key] = (Flight(), Future(), me)
        flight, future, _ = found
        if not leads:
            return future.result()  # type: ignore[no-any-return]  # one key has one loader's type
        try:
            result = work(flight)
        except BaseException as exc:
            self._land(key, found)
            future.set_exception(exc)
            raise
        self._land(key, found)
        future.set_result(result)
        return result

    def _land(self, key: str, found: tuple[Flight, Future[Any], int]) -> None:
        with self._lock:
            if self._flights.get(key) is found:
                del self._flights[key]

    def supersede(self, key: str) -> None:
        """From here on nobody joins the load of this key, and what it finds is not kept."""
        with self._lock:
            if found := self._flights.pop(key, None):
                found[0].superseded = True

    def close(self) -> None:
        """Loads end in the threads of their callers."""


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


def _check(conn: Connection) -> None:
    """An idle connection that can be read from was closed by the server: not to be used, and no round trip to know."""
    if _readable(conn.fileno()):
        conn.close()  # else the pool would hand it out again
        raise psycopg.OperationalError("the connection was closed meanwhile")


def _readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


class Sockets:
    """Connections to one Redis. Connecting, TLS and the login are redis-py's; what goes over the wire is packed and
    parsed here, because a time limit must hold for a reply as a whole and yet let a large value pass."""

    def __init__(self, address: Address, node: Node | None, options: Options, credentials: dict[str, Any]) -> None:
        """`node`: of a cluster. Raises ValueError or TypeError for a URL that cannot be read."""
        self._options = options
        self._sentinels: list[Any] = []
        self._lock = threading.Lock()
        self._idle: list[Any] = []
        self._closed = False
        self._connecting = Semaphore(_AT_ONCE)
        given: dict[str, Any] = {
            "protocol": 2,
            "socket_connect_timeout": options.connect_timeout,
            "socket_timeout": options.connect_timeout,
            "retry": Retry(NoBackoff(), 0),
            **credentials,
        }
        if address.kind == "sentinel":
            self._factory = self._of_sentinels(address, given)
        else:
            self._factory = redis.ConnectionPool.from_url(address.url(node) if node else address.text, **given)

    def _of_sentinels(self, address: Address, given: dict[str, Any]) -> Any:
        """Makes connections to whichever server the sentinels call the primary: each asks them anew."""
        given = {**given, **parse_url(address.url(address.nodes[0]))}  # type: ignore[no-untyped-call]
        del given["host"], given["port"]
        if given.pop("connection_class", None) is not None:
            given["ssl"] = True
        shared = {name: value for name, value in given.items() if name.startswith("ssl")}
        limits = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), self._options.connect_timeout)
        asked = {**shared, **limits, **dict(address.sentinel_login), "protocol": 2, "retry": given["retry"]}
        sentinel: Any = Sentinel(address.nodes, sentinel_kwargs=asked, **given)  # type: ignore[no-untyped-call]
        self._sentinels = sentinel.sentinels
        return sentinel.master_for(address.service).connection_pool

    def exchange(self, parts: Sequence[Buffer], nbytes: int, replies: int, hopeless: Callable[[], bool]) -> list[Any]:
        """Sends packed commands and returns their replies; an error reply is an element like any other.
        `hopeless` is asked before another connection is tried.

        Raises Unreachable where Redis cannot be reached, does not answer in time or answers what is not its protocol.
        """
        connection = self._connected(hopeless)
        try:
            found = self._talk(connection._sock, parts, nbytes, replies)
        except (OSError, EOFError, hiredis.HiredisError, RedisError) as exc:  # TimeoutError is an OSError
            self._discard(connection)
            raise Unreachable(type(exc).__name__, sent=True) from exc
        except BaseException:
            self._discard(connection)
            raise
        with self._lock:
            if keep := not self._closed:
                self._idle.append(connection)
        if not keep:
            self._discard(connection)
        return found

    def _connected(self, hopeless: Callable[[], bool]) -> Any:
        connection: Any = self._pop()
        if connection is not None:
            return connection
        with self._connecting:  # many that connect at once would take each other's time
            if (connection := self._pop()) is not None:
                return connection
            if hopeless():
                raise Unreachable("breaker-open")
            connection = self._factory.make_connection()
            try:
                connection.connect()
            except (OSError, RedisError) as exc:
                self._discard(connection)
                raise Unreachable(type(exc).__name__) from exc
            except BaseException:
                self._discard(connection)
                raise
            return connection

    def _pop(self) -> Any:
        """A connection that is not in use, if there is one; one that the server has closed costs nobody an error."""
        while True:
            with self._lock:
                connection: Any = self._idle.pop() if self._idle else None
            if connection is None or not _readable(connection._sock.fileno()):
                return connection
            self._discard(connection)

    def _talk(self, sock: socket.socket, parts: Sequence[Buffer], nbytes: int, replies: int) -> list[Any]:
        now = time.monotonic
        wait_s, rate = self._options.redis_timeout, self._options.bytes_per_s
        parser = hiredis.Reader(notEnoughData=_NOTHING)
        found: list[Any] = []
        received, began, forgiven = 0, 0.0, False
        until = now() + wait_s + nbytes / rate
        for part in [b"".join(parts)] if nbytes < _SMALL_BYTES else parts:
            sock.settimeout(max(0.001, until - now()))
            sock.sendall(part)
        until = now() + wait_s
        while len(found) < replies:
            if (left := until - now()) <= 0:
                if forgiven:
                    raise TimeoutError
                # This thread did not get its turn; the reply may be here already.
                forgiven, left = True, wait_s
                until = now() + left
            sock.settimeout(left)
            data = sock.recv(_READ_BYTES)
            if not data:
                raise EOFError
            if not received:
                began = now()
                until = began + wait_s
            received += len(data)
            if received > _SMALL_BYTES:
                until = began + wait_s + received / rate
            parser.feed(data)
            while len(found) < replies and (reply := parser.gets()) is not _NOTHING:
                found.append(reply)
        if parser.has_data():
            raise EOFError  # more than was asked for: whose reply is whose?
        return found

    def _discard(self, connection: Any) -> None:
        with suppress(OSError, RedisError):
            connection.disconnect()

    def drop(self) -> None:
        """Closes what is not in use: another server may be the right one by now."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            self._discard(connection)

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self.drop()
        for sentinel in self._sentinels:
            sentinel.close()

"""An application that uses CacheService on the table of `migrating`, and ways to take its servers away."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

from cachemig.ladder import Phase
from cachemig.service import AsyncCacheService, CacheService, Options
from cachemig.source.table import inspect
from cachemig.steps import stop_writes
from tests.integration.conftest import Migrating

T = TypeVar("T")
QUICK = Options(poll_interval=0.1, lease_margin=0.2, shadow_sample=0.0, shadow_grace=0.05, redis_timeout=0.25)
"""Two busy cores answer within 250 ms; times are under test where they are, with the defaults."""


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return asyncio.run(work())


def opening(case: Migrating, url: str | None = None, **options: Any) -> dict[str, Any]:
    """What `open` is given."""
    return {
        "dsn": case.dsn, "redis_url": url or case.redis_url, "environment": {}, "options": replace(QUICK, **options),
    }  # fmt: skip


async def opened(case: Migrating, url: str | None = None, **options: Any) -> AsyncCacheService:
    return await AsyncCacheService.open(**opening(case, url, **options))


def opened_sync(case: Migrating, url: str | None = None, **options: Any) -> CacheService:
    return CacheService.open(**opening(case, url, **options))


def move(case: Migrating, phase: Phase, percent: float = 100.0) -> None:
    """Moves the ladder as its steps do, without their gates."""
    percent = percent if phase is Phase.CUTOVER else 0.0
    if phase in (Phase.REDIS_ONLY, Phase.DROPPED):
        with case.conn.transaction():
            for statement in stop_writes.statements(case.conn, inspect(case.conn, case.settings), "forward"):
                case.conn.execute(statement)
            case.execute(
                "UPDATE cachemig.migration SET phase = %s, percent = 100, frozen_epoch = coalesce(frozen_epoch, epoch),"
                " epoch = epoch + 1",
                phase.value,
            )
        return
    case.execute("UPDATE cachemig.migration SET phase = %s, percent = %s", phase.value, percent)


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


async def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.01)


@contextmanager
def answering(reply: bytes | None, *, drip_s: float = 0.0, piece: int = 1, login: bool = False) -> Iterator[str]:
    """The URL of a server that accepts, and answers whatever it is asked with this; None: never. `drip_s`: the pause
    after each piece of the answer. `login`: what a client says when it has connected is answered with OK."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=200)
    connections: list[socket.socket] = []
    whole = reply or b""
    pieces = [whole[at : at + piece] for at in range(0, len(whole), piece)] if drip_s else [whole]

    def serve(connection: socket.socket) -> None:
        with suppress(OSError):
            while asked := connection.recv(65536):
                greetings = asked.count(b"SETINFO") if login else 0
                connection.sendall(b"+OK\r\n" * greetings)
                for part in [] if greetings else pieces:
                    connection.sendall(part)
                    time.sleep(drip_s)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

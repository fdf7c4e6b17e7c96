"""A primary with a replica, and a sentinel that watches them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redis import Redis

from cachemig.demo.servers import RedisServer
from tests.conftest import fresh_directory
from tests.integration.cluster import wait_for

SERVICE = "the-cache"


class SentinelServer(RedisServer):
    def _command(self) -> list[str]:
        return [*super()._command(), "--sentinel"]


class Watched:
    """Server 0 is the primary at first."""

    def __init__(self, stack: contextlib.ExitStack, binary: Path | None) -> None:
        self.servers: list[RedisServer] = []
        for _ in range(2):
            of = {"replicaof": f"127.0.0.1 {self.servers[0].port}"} if self.servers else {}
            settings = {"repl-diskless-sync-delay": "0", **of}
            server = RedisServer(stack.enter_context(fresh_directory()), binary=binary, config=settings, tcp=True)
            self.servers.append(stack.enter_context(server))
        self.clients = [stack.enter_context(Redis.from_url(server.url)) for server in self.servers]
        wait_for(lambda: self.info(0)["connected_slaves"] == 1 and self.info(1)["master_link_status"] == "up")
        watch = {
            f"sentinel monitor {SERVICE}": f"127.0.0.1 {self.servers[0].port} 1",
            f"sentinel down-after-milliseconds {SERVICE}": "1000",
            f"sentinel failover-timeout {SERVICE}": "5000",
        }
        self.sentinel = stack.enter_context(
            SentinelServer(stack.enter_context(fresh_directory()), binary=binary, config=watch, tcp=True)
        )
        self._asked = stack.enter_context(Redis.from_url(self.sentinel.url, decode_responses=True))
        wait_for(lambda: int(self.state()["num-slaves"]) == 1)

    def state(self) -> dict[str, Any]:
        """What the sentinel says of the primary."""
        words: Any = self._asked.execute_command("SENTINEL", "MASTER", SERVICE)
        return words if isinstance(words, dict) else dict(zip(words[::2], words[1::2], strict=True))

    def info(self, number: int) -> dict[str, Any]:
        info: dict[str, Any] = self.clients[number].info("replication")
        return info

    @property
    def primary(self) -> int:
        """The server that the sentinel calls the primary."""
        return [server.port for server in self.servers].index(int(self.state()["port"]))

    @property
    def url(self) -> str:
        """With a sentinel in front that is dead."""
        return f"redis+sentinel://127.0.0.1:1,127.0.0.1:{self.sentinel.port}/{SERVICE}/0"

    def send(self, number: int, what: signal.Signals) -> None:
        os.kill(self.servers[number].pid, what)


@contextlib.contextmanager
def watched_by_a_sentinel(binary: Path | None) -> Iterator[Watched]:
    with contextlib.ExitStack() as stack:
        yield Watched(stack, binary)

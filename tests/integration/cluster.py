"""A real Redis Cluster: three masters with a replica each, and what an operator does with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from redis import Redis

from cachemig.demo.servers import NO_SETTINGS, RedisServer
from cachemig.targets.keys import SLOTS, slot
from tests.conftest import fresh_directory

MASTERS = 3


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.02)


class RedisCluster:
    """Servers 0 to 2 are masters at first, 3 to 5 their replicas in this order; `spare` more have no slots."""

    def __init__(
        self, stack: contextlib.ExitStack, binary: Path | None, config: Mapping[str, str], *, spare: int
    ) -> None:
        self.servers: list[RedisServer] = []
        self.clients: list[Redis] = []
        self.frozen: set[int] = set()
        buses = []
        for number in range(2 * MASTERS + spare):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                buses.append(free.getsockname()[1])
            settings = {
                "cluster-enabled": "yes",
                "cluster-port": str(buses[-1]),
                "cluster-node-timeout": "5000",
                "cluster-replica-validity-factor": "0",
                "repl-diskless-sync-delay": "0",
                **config,
            }
            server = RedisServer(stack.enter_context(fresh_directory()), binary=binary, config=settings, tcp=True)
            self.servers.append(stack.enter_context(server))
            self.clients.append(stack.enter_context(Redis.from_url(server.url)))
            self.do(number, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number in range(MASTERS):
            first, end = SLOTS * number // MASTERS, SLOTS * (number + 1) // MASTERS
            self.do(number, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for server, bus in zip(self.servers[1:], buses[1:], strict=True):
            self.do(0, "CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        wait_for(lambda: all(len(self.nodes(n)) == len(self.servers) for n in range(len(self.servers))))
        self.ids = [self.do(n, "CLUSTER", "MYID").decode() for n in range(len(self.servers))]
        for number in range(MASTERS):
            self.do(MASTERS + number, "CLUSTER", "REPLICATE", self.ids[number])
        wait_for(lambda: all(self.is_ready(n) for n in range(len(self.servers))))

    def do(self, number: int, *command: Any) -> Any:
        """A command to one server, and its reply as it came."""
        connection: Any = self.clients[number].connection_pool.get_connection()
        try:
            connection.send_command(*command)
            return connection.read_response()
        finally:
            self.clients[number].connection_pool.release(connection)

    def nodes(self, number: int) -> list[list[str]]:
        """CLUSTER NODES as one server sees it, without those it is still shaking hands with."""
        lines = [line.split() for line in self.do(number, "CLUSTER", "NODES").decode().splitlines()]
        return [line for line in lines if "handshake" not in line[2] and "noaddr" not in line[2]]

    def is_ready(self, number: int) -> bool:
        linked = number < MASTERS or number >= 2 * MASTERS or self.info(number)["master_link_status"] == "up"
        slaves = sum("slave" in line[2] for line in self.nodes(number))
        return linked and slaves == MASTERS and b"cluster_state:ok" in self.do(number, "CLUSTER", "INFO")

    def info(self, number: int) -> dict[str, Any]:
        info: dict[str, Any] = self.clients[number].info("replication")
        return info

    @property
    def url(self) -> str:
        ports = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        return f"redis+cluster://{ports}/0"

    def alive(self) -> list[int]:
        return [n for n, server in enumerate(self.servers) if server.running and n not in self.frozen]

    def freeze(self, number: int) -> None:
        """From here on it answers nobody."""
        pid = self.servers[number].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        self.frozen.add(number)

    def thaw(self, number: int) -> None:
        pid = self.servers[number].pid
        assert pid is not None
        os.kill(pid, signal.SIGCONT)
        self.frozen.discard(number)

    def masters(self) -> list[int]:
        """Servers that say they are masters with slots."""
        return [n for n in self.alive() if self.info(n)["role"] == "master" and len(self._own(n)) > 8]

    def _own(self, number: int) -> list[str]:
        return next(line for line in self.nodes(number) if "myself" in line[2])

    def owner(self, number: int) -> int:
        """The server that has a slot."""
        for server in self.masters():
            for part in self._own(server)[8:]:
                first, _, last = part.partition("-")
                if not part.startswith("[") and int(first) <= number <= int(last or first):
                    return server
        raise AssertionError(f"nobody has slot {number}")

    def owner_of(self, name: str) -> int:
        return self.owner(slot(name.encode()))

    # What an operator does -----------------------------------------------------------------------------------------

    def open_slot(self, number: int, target: int) -> int:
        """Begins to move a slot; its source."""
        source = self.owner(number)
        self.do(target, "CLUSTER", "SETSLOT", number, "IMPORTING", self.ids[source])
        self.do(source, "CLUSTER", "SETSLOT", number, "MIGRATING", self.ids[target])
        return source

    def move_keys(self, number: int, source: int, target: int, *, most: int = 1_000_000) -> int:
        """Moves keys of an open slot, one by one; how many they were."""
        names = self.do(source, "CLUSTER", "GETKEYSINSLOT", number, most)
        for name in names:
            self.do(source, "MIGRATE", "127.0.0.1", self.servers[target].port, name, 0, 20_000, "REPLACE")
        return len(names)

    def close_slot(self, number: int, source: int, target: int) -> None:
        for server in (target, source, *(n for n in self.masters() if n not in (source, target))):
            self.do(server, "CLUSTER", "SETSLOT", number, "NODE", self.ids[target])

    def move_slot(self, number: int, target: int, *, pause_s: float = 0.0) -> None:
        """As redis-cli --cluster reshard does it; `pause_s` half way, with the slot open."""
        source = self.open_slot(number, target)
        self.move_keys(number, source, target, most=1)
        time.sleep(pause_s)
        while self.move_keys(number, source, target):
            pass
        self.close_slot(number, source, target)

    # For looking into it -------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """All keys of all masters."""
        found = []
        for number in self.masters():
            found += [name.decode() for name in self.clients[number].scan_iter(count=5000)]
        return found

    def get(self, name: str) -> bytes | None:
        value: bytes | None = self.do(self.owner_of(name), "GET", name)
        return value


@contextlib.contextmanager
def running_cluster(
    binary: Path | None, config: Mapping[str, str] = NO_SETTINGS, *, spare: int = 0
) -> Iterator[RedisCluster]:
    with contextlib.ExitStack() as stack:
        yield RedisCluster(stack, binary, config, spare=spare)

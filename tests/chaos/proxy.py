"""A TCP proxy in front of Redis: cuts connections in the middle of a message, delays bytes, changes the server behind.

What a client had sent before it was killed is still delivered, late when the network is slow: that is how a write
outlives its worker.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

Connect = Callable[[], socket.socket]
_BLOCK = 64 * 1024


def unix(path: str) -> Connect:
    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except OSError:
            sock.close()
            raise
        return sock

    return connect


def tcp(port: int) -> Connect:
    return lambda: socket.create_connection(("127.0.0.1", port), timeout=5)


class Proxy:
    """Listens on a port of 127.0.0.1. Every method may be called from any thread."""

    def __init__(self, backend: Connect, seed: int) -> None:
        self.backend = backend
        self.slow_until = 0.0
        self.frozen = threading.Event()
        self.chance = random.Random(seed)
        self.cuts = 0
        self._held = 0
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def cut(self, way: str) -> None:
        """Ends every present connection after a few more bytes `to` the server or `from` it."""
        with self._lock:
            for link in self._links:
                link.cut_after[way] = self.chance.choice(
                    [0, 1, self.chance.randint(2, 40), self.chance.randint(40, 9000)]
                )

    def drop_all(self) -> None:
        """Ends every present connection at once."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.end()

    @property
    def holds(self) -> int:
        """Blocks of bytes that were read and are not yet passed on."""
        return self._held

    def close(self) -> None:
        self._closed = True
        self.frozen.clear()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_all()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = self.backend()
            except OSError:
                client.close()
                continue
            for sock in (client, server):
                sock.settimeout(None)
                if sock.family == socket.AF_INET:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(self, client, server)
            with self._lock:
                self._links.add(link)
            link.start()

    def gone(self, link: _Link) -> None:
        with self._lock:
            self._links.discard(link)

    def count(self, change: int) -> None:
        with self._lock:
            self._held += change


class _Link:
    """One connection: two threads, one each way."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy = proxy
        self.sockets = (client, server)
        self.cut_after: dict[str, int] = {}
        self.ended = 0
        self.chance = random.Random(proxy.chance.getrandbits(32))

    def start(self) -> None:
        client, server = self.sockets
        threading.Thread(target=self._pump, args=(client, server, "to"), daemon=True).start()
        threading.Thread(target=self._pump, args=(server, client, "from"), daemon=True).start()

    def end(self) -> None:
        for sock in self.sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with suppress(OSError):
            while data := source.recv(_BLOCK):
                self.proxy.count(1)
                try:
                    if not self._pass_on(data, sink, way):
                        break
                finally:
                    self.proxy.count(-1)
        if way == "to":
            with suppress(OSError):  # the server still does what it has received
                sink.shutdown(socket.SHUT_WR)
        else:
            self.end()
        with self.proxy._lock:
            self.ended += 1
            last = self.ended == 2
        if last:
            self.proxy.gone(self)
            for sock in self.sockets:
                sock.close()

    def _pass_on(self, data: bytes, sink: socket.socket, way: str) -> bool:
        """False when the connection is to end here."""
        while self.proxy.frozen.is_set():
            time.sleep(0.01)
        if (most := self.cut_after.get(way)) is not None:
            if most < len(data):
                sink.sendall(data[:most])
                self.proxy.cuts += 1
                if way == "to":
                    self.end()
                return False
            self.cut_after[way] = most - len(data)
        if way == "from" or time.monotonic() > self.proxy.slow_until:
            sink.sendall(data)
            return True
        at = 0
        pause = self.chance.choice([0.0, 0.0, 0.01, 0.1, 0.6])
        while at < len(data):
            size = self.chance.choice([200, 2000, 9000, _BLOCK])
            time.sleep(pause * self.chance.random())
            sink.sendall(data[at : at + size])
            at += size
        return True

# Generated from places_async.py by scripts/generate-sync: change that one.
"""Which server has a key: the one there is, the primary that sentinels know, or the master of the key's slot."""

from __future__ import annotations

import random
import time
from typing import Any

from cachemig.service._sync import Lock, Sockets
from cachemig.service.faults import Unreachable
from cachemig.service.options import Options
from cachemig.targets.address import Address, Node
from cachemig.targets.resp import pack
from cachemig.targets.topology import Redirection, Topology, topology_of

_AGAIN_S = 0.25
"""A cluster is not asked for its slots more often than this."""


class Places:
    """Connections to every server that is needed. None stands for the only one."""

    def __init__(self, address: Address, options: Options, credentials: dict[str, Any]) -> None:
        """Raises ValueError or TypeError for a URL that cannot be read."""
        self._address = address
        self._options = options
        self._credentials = credentials
        self._sockets: dict[Node | None, Sockets] = {}
        self._topology: Topology | None = None
        self._moved: dict[int, Node] = {}
        """Slots that a redirection said to be elsewhere, until the cluster is asked again."""
        self._doubted = False
        self._suspect: Node | None = None
        self._asked_at = self._failed_at = float("-inf")
        self._lock = Lock()
        self.clustered = address.kind == "cluster"
        for node in address.nodes if self.clustered else (None,):
            self.sockets(node)

    def sockets(self, node: Node | None) -> Sockets:
        if node not in self._sockets:
            self._sockets[node] = Sockets(self._address, node, self._options, self._credentials)
        return self._sockets[node]

    def all(self) -> list[Node | None]:
        """Every server that takes entries. Raises Unreachable."""
        if not self.clustered:
            return [None]
        return [*(self._known()).masters]

    def of(self, slot: int) -> Node | None:
        """The server that has a slot. Raises Unreachable where no node of the cluster knows."""
        if not self.clustered:
            return None
        topology = self._known()
        node = self._moved.get(slot) or topology.owners[slot]
        if node is None:
            self._doubted = True
            raise Unreachable("slot-without-master")
        return node

    def moved(self, where: Redirection) -> None:
        self._moved[where.slot] = where.node
        self._doubted = True

    def doubt(self, node: Node | None) -> None:
        """A server did not answer: another one may have taken over."""
        self._doubted, self._suspect = True, node
        if self._address.kind == "sentinel":
            self.sockets(node).drop()

    def _known(self) -> Topology:
        now = time.monotonic()
        if self._topology is None or (self._doubted and now - self._asked_at > _AGAIN_S):
            before, self._asked_at = self._topology, now
            with self._lock:
                if self._topology is before:  # whoever waited for it has it now, or knows that there is none
                    if before is None and time.monotonic() - self._failed_at < _AGAIN_S:
                        raise Unreachable("no-cluster")
                    self._ask()
        assert self._topology is not None
        return self._topology

    def _ask(self) -> None:
        nodes = [node for node in self._sockets if node is not None]
        random.shuffle(nodes)
        why = "no-cluster"
        for node in sorted(nodes, key=lambda node: node == self._suspect):
            try:
                (reply,) = self.sockets(node).exchange(pack(b"CLUSTER", b"SLOTS"), 0, 1, lambda: False)
            except Unreachable as exc:
                why = exc.why
                continue
            if isinstance(reply, list) and reply:
                self._moved, self._doubted = {}, False
                self._topology = topology_of(reply, node)
                for master in self._topology.masters:
                    self.sockets(master)
                return
        if self._topology is None:
            self._failed_at = time.monotonic()
            raise Unreachable(why)

    def close(self) -> None:
        for sockets in list(self._sockets.values()):
            sockets.close()

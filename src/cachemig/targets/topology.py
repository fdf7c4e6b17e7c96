"""Which node of a Redis Cluster has which slot: the reply of CLUSTER SLOTS, and what a redirection says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cachemig.targets.address import Node
from cachemig.targets.keys import SLOTS


class Redirection(NamedTuple):
    slot: int
    node: Node
    asking: bool
    """For this once, behind ASKING: the slot is still being moved there."""


@dataclass(frozen=True)
class Topology:
    """Who has which slot, as one node sees it."""

    owners: tuple[Node | None, ...]
    """The master of each slot; None: nobody has it."""
    slots: Mapping[Node, Sequence[int]]
    """Of each master that has any, in their order."""

    @property
    def masters(self) -> list[Node]:
        return sorted(self.slots)

    @property
    def covered(self) -> bool:
        return None not in self.owners


def topology_of(reply: Sequence[Any], asked: Node) -> Topology:
    """Reads the reply of CLUSTER SLOTS (in RESP2). A node that is named without a host is at the one that was asked.

    Source: Redis documentation, "CLUSTER SLOTS".
    """
    owners: list[Node | None] = [None] * SLOTS
    slots: dict[Node, list[int]] = {}
    for first, last, master, *_ in sorted(reply, key=lambda part: int(part[0])):
        node = Node(_host(master[0]) or asked.host, int(master[1]))
        mine = range(int(first), int(last) + 1)
        owners[mine.start : mine.stop] = [node] * len(mine)
        slots.setdefault(node, []).extend(mine)
    return Topology(tuple(owners), slots)


def _host(name: Any) -> str:
    text = name.decode() if isinstance(name, bytes) else name or ""
    return "" if text == "?" else str(text)


def redirection(error: str, asked: Node) -> Redirection | None:
    """What a reply like `MOVED 3999 10.0.0.1:6381` or `ASK 3999 10.0.0.1:6381` says; None for any other."""
    match = re.match(r"(MOVED|ASK) (\d+) (.*):(\d+)", error)
    if match is None:
        return None
    return Redirection(int(match[2]), Node(_host(match[3].strip("[]")) or asked.host, int(match[4])), match[1] == "ASK")

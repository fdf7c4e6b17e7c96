"""Redis Cluster: each entry goes to the master that has its slot, over one pipeline per master, all at the same time.

What is unclear is delivered again, because the fence makes that harmless: an entry whose slot has moved (MOVED), or is
just being moved (ASK, TRYAGAIN), goes out once more when nothing else is on its way; where a node does not answer the
whole delivery fails, and the step that asked for it repeats it by the topology of then.

A marker (targets/redis.py) is a key, and a script may touch the keys of one slot only: so there is one for each of the
16,384 slots, all with the same content. A slot that moves takes its marker with it.
"""

from __future__ import annotations

import random
import secrets
import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import redis
from redis import exceptions as rx

from cachemig import errors
from cachemig.entries.entry import Buffer
from cachemig.targets.address import Node
from cachemig.targets.faults import target_errors
from cachemig.targets.keys import SLOTS, marker_of_slot, slot, tag
from cachemig.targets.redis import (
    CALL_KEYS,
    LARGE,
    LATER_EPOCH,
    SCRIPTS,
    Command,
    Identity,
    Receipt,
    RedisTarget,
    Server,
    Write,
    as_bytes,
    batches,
    packed_large,
    packed_small,
    raise_if_of_the_server,
    scanned,
    sending_pipeline,
)
from cachemig.targets.resp import pack, send
from cachemig.targets.topology import Topology, topology_of

_PATIENCE_S = 10.0
"""How long a slot that is being moved is waited for, before the step is told."""
_PAUSE_S = (0.01, 0.25)
_SAMPLE = 8
_PASSES = 50


@dataclass(eq=False)
class _Call:
    """Commands on the keys of one slot, to go to one node together."""

    slot: int
    commands: list[list[Buffer]]
    writes: Sequence[Write] = ()
    to: Node | None = None
    """Instead of the slot's owner, behind ASKING."""


class _Lines:
    """One connection to each node that is needed. After an error none is used again: replies may be on their way."""

    def __init__(self, target: ClusterTarget, *, scripts: bool) -> None:
        self._target = target
        self._scripts = scripts
        self._open: dict[Node, tuple[Any, Any]] = {}

    def to(self, node: Node) -> Any:
        """The connection, without a reply on its way if it is new; a delivery finds its scripts there."""
        if node not in self._open:
            pool = self._target.client_of(node).connection_pool
            with self._target.faults_of(node):
                connection: Any = pool.get_connection()
                self._open[node] = (pool, connection)
                for body in SCRIPTS.values() if self._scripts else ():
                    connection.send_command("SCRIPT", "LOAD", body)
                    connection.read_response()
        return self._open[node][1]

    def taken(self) -> list[tuple[Node, Any]]:
        return [(node, connection) for node, (_, connection) in self._open.items()]

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for pool, connection in self._open.values():
            if kind is not None:
                connection.disconnect()
            pool.release(connection)
        if kind is not None:
            self._target.forget()


class ClusterTarget(RedisTarget):
    """A Redis Cluster, as RedisTarget. A node that is dead raises TargetUnavailable."""

    def _open(self) -> None:
        self._clients: dict[Node, redis.Redis] = {}
        self._topology: Topology | None = None
        self._informed: Node | None = None
        """The node to ask for the topology before all others."""
        self._suspect: Node | None = None
        """The node that failed last, to be asked after all others."""
        for node in self.address.nodes:
            self.client_of(node)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def client_of(self, node: Node) -> redis.Redis:
        """A client of one node. Connects when it is first used."""
        if node not in self._clients:
            self._clients[node] = redis.Redis.from_url(self.address.url(node), **self._options)
        return self._clients[node]

    # Topology ------------------------------------------------------------------------------------------------------

    def topology(self) -> Topology:
        """Who has which slot, as last heard."""
        return self._topology or self.refresh()

    def forget(self) -> None:
        """Something went wrong: who has which slot is asked anew before the next command."""
        self._topology = None

    def refresh(self) -> Topology:
        """Asks anew who has which slot: one node, or as many as it takes to find one that knows of every slot.

        Raises TargetUnavailable where none does.
        """
        known = self._topology.masters if self._topology else []
        random.shuffle(known)
        nodes = dict.fromkeys([*known, *self.address.nodes, *self._clients])
        failure: Exception | None = None
        for node in sorted(nodes, key=lambda node: (node != self._informed, node == self._suspect)):
            try:
                with target_errors():
                    reply = self.plainly(node, "CLUSTER", "SLOTS")
            except errors.TargetUnavailable as exc:
                failure = exc
                continue
            except errors.TargetError as exc:
                if "cluster support disabled" in str(exc):
                    raise errors.TargetError(
                        f"{node} is no node of a Redis Cluster", hint="redis_url for one server begins with redis://"
                    ) from exc
                raise
            found = topology_of(reply, node)
            if found.covered:
                self._topology, self._informed = found, None
                return found
            failure = errors.TargetUnavailable(
                f"the cluster does not serve all slots: {found.owners.count(None):,} of {SLOTS:,} have no master"
            )
        self._topology = None
        assert failure is not None
        raise failure

    def plainly(self, node: Node, *command: str) -> Any:
        """The reply of one node to a command, as it came: what redis-py makes of these depends on its release."""
        pool = self.client_of(node).connection_pool
        connection: Any = pool.get_connection()
        try:
            connection.send_command(*command)
            return connection.read_response()
        except BaseException:
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    @contextmanager
    def faults_of(self, node: Node) -> Iterator[None]:
        """An error of this node leaves the block with its name, and the topology is asked for anew next time."""
        try:
            with target_errors():
                yield
        except errors.TargetError as exc:
            if isinstance(exc, errors.TargetUnavailable | errors.TargetReadOnly):
                self._suspect, self._informed = node, None
                self.forget()
            if str(node) not in str(exc):
                exc.args = (f"{exc} (at {node})",)
            raise

    def servers(self) -> list[Server]:
        """The masters, as of now."""
        found = self.refresh()
        return [Server(str(node), self.client_of(node), len(found.slots[node]) / SLOTS) for node in found.masters]

    def server_of(self, name: str) -> str:
        """The server that has this key."""
        return str(self.topology().owners[slot(name.encode())])

    def state_at(self, server: Server) -> str:
        """cluster_state as one server sees it."""
        with target_errors():
            info: dict[str, Any] = server.client.cluster("INFO")
            return str(info.get("cluster_state"))

    def ping(self) -> None:
        for node in self.refresh().masters:
            with self.faults_of(node):
                self.client_of(node).ping()

    def check(self) -> None:
        """As RedisTarget.check, on every master."""
        found = self.refresh()
        for node in found.masters:
            self.probe(tag(random.choice(found.slots[node])))  # noqa: S311

    # What it is ----------------------------------------------------------------------------------------------------

    def identity(self) -> Identity:
        """Which cluster this is: the run of every master that has slots, and the marker, where a sample of the slots
        of each master agrees; where it does not, a marker that is nobody's, of the highest epoch among them."""
        found = self.refresh()
        runs, sample = [], []
        for node in found.masters:
            with self.faults_of(node):
                runs.append(str(self.client_of(node).info("server").get("run_id")))
            mine = found.slots[node]
            # The first and the last: plant_marker goes upwards, so where it broke off these differ.
            sample += [mine[0], mine[-1], *random.choices(mine, k=_SAMPLE)]  # noqa: S311
        planted = {reply.decode() if reply is not None else "" for reply in self.ask(
            [("GET", self._marker(number)) for number in sample])}  # fmt: skip
        run = " ".join(sorted(runs))
        if len(planted) == 1:
            return Identity(run, planted.pop() or None)
        highest = max(Identity(None, marker).epoch for marker in planted)
        return Identity(run, f"{highest}:differs-{secrets.token_hex(8)}")

    def plant_marker(self, epoch: int) -> None:
        """Sets the marker of every slot; they are all alike. Raises TargetUnavailable where a master was not reached:
        then some may have it, and `identity` is that of no recorded cluster."""
        content = f"{epoch}:{secrets.token_hex(16)}"
        self.refresh()
        self.ask([("SET", self._marker(number), content) for number in range(SLOTS)])

    def remove_marker(self) -> None:
        self.remove([self._marker(number) for number in range(SLOTS)])

    def _marker(self, number: int) -> str:
        return marker_of_slot(self.template.name(""), number)

    def _marker_of(self, name: str) -> str:
        return self._marker(slot(name.encode()))

    # Commands ------------------------------------------------------------------------------------------------------

    def ask(self, commands: Sequence[Command], *, raises: bool = True) -> list[Any]:
        calls = [_Call(_slot_of(command), [pack(*map(as_bytes, command))]) for command in commands]
        replies: dict[_Call, Any] = {}
        with target_errors(), _Lines(self, scripts=False) as lines:
            later: list[_Call] = []
            replies.update(self._answers(lines, self._send(lines, calls), later))
            replies.update(self._settled(lines, later))
            for reply in replies.values():
                if isinstance(reply, Exception) and raises:
                    raise reply
        return [replies[call] for call in calls]

    def _send(self, lines: _Lines, calls: Iterable[_Call]) -> dict[Node, list[_Call]]:
        """Sends each call to its node, all that go to one node together; what is now on its way."""
        sent: dict[Node, list[_Call]] = defaultdict(list)
        for call in calls:
            node = call.to or self.topology().owners[call.slot]
            assert node is not None  # refresh() takes no topology with a slot that nobody has
            sent[node].append(call)
        for node, mine in sent.items():
            connection = lines.to(node)
            with self.faults_of(node):
                send(connection, chain.from_iterable(_parts(call) for call in mine))
        return sent

    def _answers(
        self, lines: _Lines, sent: Mapping[Node, Sequence[_Call]], later: list[_Call]
    ) -> Iterator[tuple[_Call, Any]]:
        """Every call with the reply to its last command, or the first error among its replies. What is to go out again,
        to another node or at another time, is put into `later` instead: by then nothing else must be on its way."""
        for node, calls in sent.items():
            connection = lines.to(node)
            with self.faults_of(node):
                for call in calls:
                    reply, error = None, None
                    for _ in range(len(call.commands) * (1 if call.to is None else 2)):
                        try:
                            reply = connection.read_response()
                        except rx.ResponseError as exc:
                            error = error or exc
                    if error is None:
                        yield call, reply
                    elif self._goes_out_again(call, error, node):
                        later.append(call)
                    else:
                        yield call, error

    def _goes_out_again(self, call: _Call, error: rx.ResponseError, node: Node) -> bool:
        """Whether the call is another node's, or cannot be served while its keys are between two nodes."""
        if isinstance(error, rx.MovedError):
            # Whoever is said to have it knows more than those that may not have heard of it yet.
            self._topology, self._informed, call.to = None, _named(error, node), None
        elif isinstance(error, rx.AskError):
            call.to = _named(error, node)
        elif isinstance(error, rx.TryAgainError):
            call.to = None
        else:
            return False
        return True

    def _settled(self, lines: _Lines, later: list[_Call]) -> Iterator[tuple[_Call, Any]]:
        """What was put off, with its replies; leaves `later` empty. Raises TargetUnavailable where that takes long."""
        until = time.monotonic() + min(_PATIENCE_S, self.settings.redis_timeout)
        pause = _PAUSE_S[0]
        while later:
            calls = list(later)
            later.clear()
            yield from self._answers(lines, self._send(lines, calls), later)
            if later:
                if time.monotonic() > until:
                    raise errors.TargetUnavailable(
                        f"slots of the cluster are being moved, slot {later[0].slot} among them",
                        hint="nothing: it goes on when they have arrived; cachemig doctor names what is open",
                    )
                time.sleep(pause)
                pause = min(pause * 1.5, _PAUSE_S[1])

    # Delivery ------------------------------------------------------------------------------------------------------

    def deliver(self, writes: Iterable[Write]) -> Generator[Receipt, None, None]:
        """As RedisTarget.deliver. What is in memory is bounded for all nodes together."""
        later: list[_Call] = []
        sent: dict[Node, list[_Call]] = {}
        with target_errors(), _Lines(self, scripts=True) as lines:
            for batch, nbytes in batches(writes, self.settings.batch_bytes, self.settings.batch_keys):
                with sending_pipeline():
                    sending = self._send(lines, self._calls(batch))
                yield from self._receipts(self._answers(lines, sent, later), later)
                sent = sending
                # Nothing is sent again behind a pipeline that is on its way; and no second huge value is read.
                if later or self.settings.wait_replicas or nbytes > self.settings.batch_bytes:
                    yield from self._all_of(lines, sent, later)
                    sent = {}
            yield from self._all_of(lines, sent, later)

    def _all_of(self, lines: _Lines, sent: Mapping[Node, Sequence[_Call]], later: list[_Call]) -> Iterator[Receipt]:
        """The receipts of all that is on its way or was put off."""
        receipts = self._receipts(self._answers(lines, sent, later), later)
        if not self.settings.wait_replicas:
            yield from receipts
            yield from self._last(lines, later)
            return
        held = [*receipts, *self._last(lines, later)]
        for node, connection in lines.taken():
            with self.faults_of(node):
                self._acknowledged_by_replicas(connection)
        yield from held

    def _last(self, lines: _Lines, later: list[_Call]) -> Iterator[Receipt]:
        while later:  # a call that was spoilt by one of its keys comes back as several
            yield from self._receipts(self._settled(lines, later), later)

    def _calls(self, batch: Sequence[Write]) -> Iterator[_Call]:
        """Small values of one slot share a call of the script, a large one has its own."""
        small: dict[int, list[Write]] = defaultdict(list)
        for write in batch:
            if write.value is not None and len(write.value) >= LARGE:
                number = slot(self.template.name(write.key).encode())
                yield _Call(number, packed_large(self.template, self._marker(number), write), [write])
            else:
                small[slot(self.template.name(write.key).encode())].append(write)
        for number, mine in small.items():
            for at in range(0, len(mine), CALL_KEYS):
                some = mine[at : at + CALL_KEYS]
                yield _Call(number, [packed_small(self.template, self._marker(number), some)], some)

    def _receipts(self, answers: Iterator[tuple[_Call, Any]], later: list[_Call]) -> Iterator[Receipt]:
        spoilt: list[Write] = []
        for call, reply in answers:
            if isinstance(reply, rx.ResponseError):
                raise_if_of_the_server(reply)
                if len(call.writes) > 1:
                    spoilt += call.writes  # one key of the call spoils it: find out which
                else:
                    yield Receipt(call.writes[0], False, str(reply))
            else:
                for write, answer in zip(call.writes, reply, strict=True):
                    if answer < 0:
                        raise errors.TargetUnavailable("Redis lost a temporary key: it is evicting")
                    if answer == LATER_EPOCH:
                        raise errors.TargetEpochPassed
                    yield Receipt(write, answer == 1)
            call.commands.clear()
        later += [call for write in spoilt for call in self._calls([write])]

    # Scanning ------------------------------------------------------------------------------------------------------

    def scan(self, pattern: str, count: int = 2000) -> Iterator[list[str]]:
        """Names that match the pattern, in batches; a name that is there throughout is seen at least once, also where
        its slot is moved meanwhile.

        A name that moves from one master to another is missed where the latter was scanned first. So a pass scans the
        sources of open slots before their targets, and is followed by another one over whoever took slots, or began
        to, since it began.
        """
        before = self._look()
        nodes = sorted(before.epochs)
        for _ in range(_PASSES):
            sources = [source for _, source, _ in before.moving]
            targets = [target for _, _, target in before.moving]
            for node in [*dict.fromkeys([*sources, *nodes]), *dict.fromkeys(targets)]:
                with self.faults_of(node):
                    yield from scanned(self.client_of(node), pattern, count)
            after = self._look()
            nodes = after.since(before)
            if not nodes:
                return
            before = after
        raise errors.TargetUnavailable("slots of the cluster move all the time, so its keys could not be listed")

    def _look(self) -> _Look:
        found = self.refresh()
        nodes: dict[str, Node] = {}
        epochs: dict[Node, int] = {}
        moving: set[tuple[int, str, str]] = set()
        for node in found.masters:
            with self.faults_of(node):
                text = self.plainly(node, "CLUSTER", "NODES").decode()
            for line in text.splitlines():
                name, address, flags, _, _, _, epoch, _, *slots = line.split()
                if "myself" in flags:
                    nodes[name], epochs[node] = node, int(epoch)
                    moving |= set(_open_slots(name, slots))
                else:
                    host, _, port = address.partition("@")[0].rpartition(":")
                    nodes.setdefault(name, Node(host.strip("[]") or node.host, int(port)))
        ends = frozenset((n, nodes[a], nodes[b]) for n, a, b in moving if a in nodes and b in nodes)
        return _Look(found.owners, ends, epochs)

    def moving(self) -> list[int]:
        """Slots that are being moved from one master to another, or were left half way."""
        return sorted({number for number, _, _ in self._look().moving})


@dataclass(frozen=True)
class _Look:
    """Who has what, and is about to."""

    owners: tuple[Node | None, ...]
    moving: frozenset[tuple[int, Node, Node]]
    """Slot, source and target."""
    epochs: Mapping[Node, int]
    """The configuration epoch of each master. It grows with a slot that goes to and fro between two looks."""

    def since(self, before: _Look) -> list[Node]:
        """Masters that may hold names which a scan has missed that began with `before`."""
        took = {now for now, then in zip(self.owners, before.owners, strict=True) if now != then and now is not None}
        took |= {node for node, epoch in self.epochs.items() if before.epochs.get(node) != epoch}
        return sorted(took | {end for _, *ends in self.moving - before.moving for end in ends})


def _open_slots(name: str, slots: Iterable[str]) -> Iterator[tuple[int, str, str]]:
    """Of a node's own line in CLUSTER NODES: `[93->-ID]` goes from it to ID, `[77-<-ID]` comes from there."""
    for text in slots:
        if text.startswith("["):
            number, direction, other = text.strip("[]").split("-", 2)
            yield (int(number), name, other) if direction == ">" else (int(number), other, name)


def _parts(call: _Call) -> Iterator[Buffer]:
    for command in call.commands:
        if call.to is not None:
            yield _ASKING
        yield from command


def _named(error: rx.AskError, asked: Node) -> Node:
    """The node that a redirection names; without a host, one at the host that was asked."""
    return Node(error.host if error.host not in ("", "?") else asked.host, error.port)


_ASKING = b"".join(pack(b"ASKING"))


def _slot_of(command: Command) -> int:
    """The slot of a command's first key."""
    return slot(as_bytes(command[{"EVAL": 3, "MEMORY": 2}.get(str(command[0]), 1)]))

"""What one seed stands for: the faults and when they come, the failpoints, the shape of the load. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from cachemig.failpoints import POINTS


@dataclass(frozen=True)
class Kind:
    text: str
    weight: int
    slow: bool = False
    """Takes seconds in which little else happens, or begins an epoch, which heals whatever was wrong."""
    lossy: bool = False
    """Redis may lose what it had acknowledged; the claim is then that `verify` notices every key."""


KINDS: dict[str, Kind] = {
    "kill-worker": Kind("SIGKILL to a worker", 6),
    "stop-worker": Kind("SIGSTOP to a worker, SIGCONT after a while", 5),
    "cut-tool": Kind("pg_terminate_backend of a session of cachemig", 4),
    "cut-writer": Kind("pg_terminate_backend of a session of a writer", 3),
    "postgres-crash": Kind("every process of Postgres killed, and started again", 2, slow=True),
    "postgres-failover": Kind("a standby promoted that lacks commits, its primary killed", 2, slow=True),
    "redis-crash": Kind("Redis killed, and started again with its data", 2, slow=True),
    "redis-full": Kind("Redis at maxmemory for a while", 3),
    "cut-replies": Kind("connections to Redis cut in the middle of a reply", 4),
    "cut-requests": Kind("connections to Redis cut in the middle of a request", 4),
    "slow-network": Kind("bytes to Redis come in small pieces, and late", 4),
    "capture-gap": Kind("dual-write switched off and on again while writers go on", 1, slow=True),
    "old-truncate": Kind("TRUNCATE by a transaction whose snapshot is older than rows that it removes", 1, slow=True),
    "evict": Kind("live entries deleted in Redis: value, version or both", 2, lossy=True),
    "redis-flush": Kind("FLUSHALL", 1, slow=True, lossy=True),
    "redis-wipe": Kind("Redis killed, and started again without its data", 2, slow=True, lossy=True),
    "promote": Kind("a lagging replica promoted, its primary killed", 2, slow=True, lossy=True),
}


@dataclass(frozen=True)
class Fault:
    at: float
    """Seconds after the beginning."""
    kind: str
    span: float
    """Seconds that it lasts, where that has a meaning."""
    seed: int


@dataclass(frozen=True)
class Plan:
    seed: int
    seconds: float
    faults: tuple[Fault, ...]
    failpoints: str
    writers: int
    keys: int
    """The fewer, the more writers and workers meet at one key."""
    drift: bool
    """The keys that are written change as time goes by, so that each has a last write, which nothing heals."""
    large: float
    """Share of values that go in by SET and RENAME."""
    sync_workers: int
    backfill_workers: int
    settings: dict[str, str]

    @property
    def lossy(self) -> bool:
        return any(KINDS[fault.kind].lossy for fault in self.faults)

    @property
    def needs_replica(self) -> bool:
        return any(fault.kind == "promote" for fault in self.faults)

    @property
    def needs_standby(self) -> bool:
        return any(fault.kind == "postgres-failover" for fault in self.faults)


def plan(seed: int, seconds: float, without: Collection[str] = ()) -> Plan:
    """The plan of a seed. Not every kind comes in every plan: what two kinds do together shows when others are away.

    A seed stands for one plan only as long as this function stays as it is.
    """
    chance = random.Random(seed)
    wanted = [name for name in KINDS if name not in without]
    lossy = chance.random() < 0.35 or all(KINDS[name].lossy for name in wanted)
    names = [name for name in wanted if lossy or not KINDS[name].lossy]
    chosen = chance.sample(names, min(chance.randint(3, 8), len(names)))
    losing = [name for name in names if KINDS[name].lossy]
    if losing and not set(losing) & set(chosen):
        chosen.append(chance.choice(losing))
    count = round(seconds * chance.uniform(1.0, 2.5)) if chosen else 0
    kinds = chance.choices(chosen, [KINDS[name].weight for name in chosen], k=count) if chosen else []
    kinds = [
        name for n, name in enumerate(kinds) if not KINDS[name].slow or kinds[:n].count(name) < max(1, seconds // 6)
    ]
    faults = sorted(
        (
            Fault(
                round(chance.uniform(0.3, seconds), 2), kind, round(chance.uniform(0.1, 1.5), 2), chance.getrandbits(32)
            )
            for kind in kinds
        ),
        key=lambda fault: fault.at,
    )
    return Plan(
        seed=seed,
        seconds=seconds,
        faults=tuple(faults),
        failpoints=_failpoints(chance) if "failpoints" not in without else "",
        writers=chance.randint(3, 4),
        keys=chance.choice([8, 40, 150, 400]),
        drift=chance.random() < 0.5,
        large=chance.choice([0.0, 0.1, 0.4]),
        sync_workers=chance.choice([1, 2, 2, 3]),
        backfill_workers=chance.choice([1, 2, 2]),
        settings={
            "CACHEMIG_CAPTURE": chance.choice(["columns", "columns", "compare"]),
            "CACHEMIG_CHUNK_BYTES": chance.choice(["4KiB", "32KiB", "256KiB"]),
            "CACHEMIG_BATCH_BYTES": chance.choice(["8KiB", "64KiB", "1MiB"]),
            "CACHEMIG_BATCH_KEYS": chance.choice(["3", "40", "512"]),
        },
    )


def _failpoints(chance: random.Random) -> str:
    parts = []
    for name in chance.sample(sorted(POINTS), chance.randint(2, 6)):
        action = chance.choices(["kill", "stop", "sleep", "error"], [4, 2, 3, 2])[0]
        often = {"backfill-during-delivery": 0.002, "target-before-send": 0.02, "target-after-send": 0.02}.get(
            name, 0.04
        )
        probability = often * chance.uniform(0.3, 1.5) * (3 if action == "sleep" else 1)
        wait = f":{chance.choice([5, 50, 400])}" if action == "sleep" else ""
        parts.append(f"{name}={action}{wait}:{probability:.4f}")
    return ",".join(parts)

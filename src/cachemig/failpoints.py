"""Failpoints: named places between two steps of the protocol where a test lets this process die, freeze, wait or fail.

For the project's own tests (tests/chaos) alone. Off unless CACHEMIG_TEST_FAILPOINTS is set, and then as good as free.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cachemig.errors import ConfigError, SourceUnavailable

POINTS: Mapping[str, str] = MappingProxyType(
    {
        "sync-after-take": "changes are locked; no value has been read",
        "sync-after-delivery": "Redis has acknowledged every key of the batch; the ledger does not know it",
        "sync-after-ledger": "the ledger's rows are written and not committed; nothing is folded",
        "sync-after-fold": "the changes are folded; the transaction is not committed",
        "sync-after-commit": "the batch is committed",
        "backfill-after-claim": "the chunk is leased; nothing of it has been read",
        "backfill-during-delivery": "Redis has acknowledged a part of the chunk",
        "backfill-after-delivery": "Redis has acknowledged the whole chunk; the ledger does not know it",
        "backfill-after-ledger": "the ledger's rows are written and not committed; the chunk is not done",
        "backfill-after-commit": "the chunk is committed as done",
        "target-before-send": "values have been read and packed; nothing of this pipeline has been sent",
        "target-after-send": "a pipeline has been sent; none of its replies has been read",
    }
)
ACTIONS: Mapping[str, str] = MappingProxyType(
    {
        "kill": "SIGKILL to this process",
        "stop": "SIGSTOP to this process; whoever armed it sends SIGCONT",
        "sleep": "waits, `sleep:MILLISECONDS:PROBABILITY`",
        "error": "raises SourceUnavailable, which a step repeats",
    }
)


@dataclass(frozen=True)
class Arming:
    """What is to happen at one point, how often."""

    action: str
    probability: float
    seconds: float
    chance: random.Random


class Armed:
    """The failpoints of one process. The same text, seed and worker number act at the same hits again."""

    def __init__(self, text: str, seed: str, worker: str) -> None:
        self.at: dict[str, list[Arming]] = {name: [] for name in POINTS}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, arming = _parse(part, f"{seed}:{worker}:{part}")
            self.at[name].append(arming)

    def hit(self, name: str) -> None:
        for arming in self.at[name]:
            if arming.chance.random() < arming.probability:
                _act(name, arming)


def _parse(part: str, seed: str) -> tuple[str, Arming]:
    name, _, what = part.partition("=")
    action, *numbers = what.split(":")
    if name not in POINTS:
        raise ConfigError(f"CACHEMIG_TEST_FAILPOINTS: no failpoint {name!r}", hint=f"one of {', '.join(POINTS)}")
    if action not in ACTIONS or len(numbers) != 1 + (action == "sleep"):
        raise ConfigError(
            f"CACHEMIG_TEST_FAILPOINTS: {part!r} is not NAME=ACTION:PROBABILITY",
            hint=f"an action is one of {', '.join(ACTIONS)}; sleep:MILLISECONDS:PROBABILITY",
        )
    try:
        *wait_ms, probability = map(float, numbers)
    except ValueError as exc:
        raise ConfigError(f"CACHEMIG_TEST_FAILPOINTS: {part!r}: {exc}") from exc
    chance = random.Random(seed)  # noqa: S311  # a seeded test, not cryptography
    return name, Arming(action, probability, sum(wait_ms) / 1000, chance)


def _act(name: str, arming: Arming) -> None:
    print(f"failpoint {name}: {arming.action}", file=sys.stderr, flush=True)
    match arming.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "sleep":
            time.sleep(arming.seconds)
        case _:
            raise SourceUnavailable(f"failpoint {name}")


def _armed_by(environment: Mapping[str, str]) -> Armed | None:
    text = environment.get("CACHEMIG_TEST_FAILPOINTS")
    if not text:
        return None
    return Armed(text, environment.get("CACHEMIG_TEST_SEED", "0"), environment.get("CACHEMIG_TEST_WORKER", "0"))


_armed = _armed_by(os.environ)


def hit(name: str) -> None:
    """Does what was asked for at this point; nothing at all where CACHEMIG_TEST_FAILPOINTS is not set."""
    if _armed is not None:
        _armed.hit(name)

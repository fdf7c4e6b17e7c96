"""What Redis has of memory, for status --json and watch. Loads redis-py only when it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from cachemig.config import Settings
from cachemig.steps.eye import Eye

ANSWER_S = 1.0


@dataclass(frozen=True)
class Memory:
    """Of all servers that take entries, added up."""

    used: int | None
    """None: they did not answer."""
    limit: int | None
    """None: there is none, or they did not answer."""
    policy: str | None
    """What they do at the limit, maxmemory-policy."""
    error: str | None = None
    """Why nothing is known."""


@contextmanager
def asking(settings: Settings, environment: Mapping[str, str]) -> Iterator[Callable[[], Memory]]:
    """What asks, over connections that it keeps. It waits a second for each reply, and raises TargetError."""
    from cachemig.targets.faults import target_errors
    from cachemig.targets.open import open_target

    def ask() -> Memory:
        with target_errors():
            found: list[Any] = [server.client.info("memory") for server in target.servers()]
        limits = [int(memory.get("maxmemory", 0)) for memory in found]
        policies = sorted({str(memory["maxmemory_policy"]) for memory in found if "maxmemory_policy" in memory})
        return Memory(
            used=sum(int(memory["used_memory"]) for memory in found),
            limit=sum(limits) if all(limits) else None,
            policy=", ".join(policies) or None,
        )

    with open_target(replace(settings, redis_timeout=ANSWER_S), environment) as target:
        yield ask


def ask_once(settings: Settings, environment: Mapping[str, str]) -> Memory:
    """Within a second, whatever it takes to reach them: else the reason."""
    eye = Eye(lambda: asking(settings, environment), ANSWER_S)
    seen = eye.first(ANSWER_S)
    eye.close()
    if seen.value is not None:
        return seen.value
    return Memory(None, None, None, "no answer within a second" if seen.error is None else str(seen.error))

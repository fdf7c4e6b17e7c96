"""What an exploration has found, as text: a summary, a history, and the tables of docs/reliability.md."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.explorer import Exploration, Violation, explore
from tests.model.scenarios import HARMLESS, LIMITS, SCENARIOS, WRONG
from tests.model.state import State, describe


def summary(found: Exploration[State]) -> str:
    return (
        f"{found.states:,} states, {found.transitions:,} transitions, {found.rests:,} at rest, "
        f"depth {found.depth}, {found.seconds:.1f} s"
    )


def history(violation: Violation[State] | None) -> str:
    """A counterexample, step by step, with what Postgres and Redis hold after each."""
    if violation is None:
        return ""
    lines = [violation.what]
    for n, (step, state) in enumerate(violation.history, 1):
        lines += [f"{n:3}. {step}", f"     {describe(state)}"]
    return "\n".join(lines)


def tables() -> Iterator[str]:
    """Explores everything; Markdown, line by line as it is found."""
    seconds = 0.0
    yield "| scenario | within | states | transitions | at rest | depth | seconds | found |"
    yield "|---|---|--:|--:|--:|--:|--:|---|"
    for s in SCENARIOS.values():
        found = explore(s.system())
        seconds += found.seconds
        verdict = found.violation.what if found.violation else "right"
        yield (
            f"| {s.name} | {s.about} | {found.states:,} | {found.transitions:,} | {found.rests:,} | {found.depth} "
            f"| {found.seconds:.1f} | {verdict} |"
        )
    yield ""
    yield "| without the rule | scenario | states | steps | seconds | found |"
    yield "|---|---|--:|--:|--:|---|"
    for v in (*WRONG, *HARMLESS):
        found = explore(v.system())
        seconds += found.seconds
        verdict, steps = (
            (found.violation.what, len(found.violation.history)) if found.violation else ("right all the same", "")
        )
        yield f"| {v.name} | {v.scenario} | {found.states:,} | {steps} | {found.seconds:.1f} | {verdict} |"
    for limit, _ in LIMITS:
        found = explore(limit.system())
        seconds += found.seconds
        yield ""
        yield f"Known limit, {limit.name} ({limit.about}):\n\n```\n{history(found.violation)}\n```"
    yield ""
    yield f"{seconds:.0f} s in all."

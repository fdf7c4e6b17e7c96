"""What a result says yes or no to, one check a line: what JUnit, GitHub's annotations and the summary are made of.

A message holds no key and no value; `detail` may name keys, and goes into files that were asked for alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class Says(StrEnum):
    """What a check comes to."""

    YES = "yes"
    WARNING = "warning"
    NO = "no"


@dataclass(frozen=True)
class Check:
    """One question, and its answer."""

    name: str
    says: Says
    message: str
    kind: str = ""
    """Of what is wrong: a verdict, a gate, the kind of a dependent."""
    detail: str = ""
    file: str | None = None
    """As the working directory has it."""
    line: int | None = None
    title: str | None = None
    """In a JUnit report, where that has another name than this one."""


def of(result: Any) -> list[Check]:
    """The checks of a result; none where it asks no question."""
    name = f"{type(result).__module__}:{type(result).__qualname__}"
    told = list(_TELLERS[name](result)) if name in _TELLERS else []
    return told + (_gates(result.gates) if hasattr(result, "refused") else [])


def _gates(gates: Iterable[Any]) -> list[Check]:
    return [
        Check(
            f"gate {gate.gate}",
            Says.YES if gate.met else Says.NO,
            f"{gate.demands}: {gate.figure}" + ("" if gate.met else f" → {gate.command}"),
            gate.gate,
        )
        for gate in gates
    ]


def _verified(result: Any) -> Iterator[Check]:
    from cachemig.entries.verdicts import TABLE, Counts, Verdict, counts_as

    def is_bad(verdict: Verdict) -> bool:
        counts = counts_as(verdict, frozen=result.frozen)
        if not result.counts[verdict] or counts in (Counts.GOOD, Counts.NEITHER):
            return False
        if counts is Counts.BAD:
            return True
        if verdict is Verdict.ORPHAN:
            return not result.ignore_orphans
        return bool(result.counts[verdict] > result.accept_set_aside)

    for verdict in Verdict:
        yield Check(
            f"{verdict.value}: {result.counts[verdict]:,} keys",
            Says.NO if is_bad(verdict) else Says.YES,
            TABLE[verdict].text,
            verdict.value,
            "\n".join(f"{case.key}: {case.why}" for case in result.cases if case.verdict is verdict),
            title=f"{verdict.value}: {result.counts[verdict]}",
        )


def _findings(result: Any) -> Iterator[Check]:
    levels = {"error": Says.NO, "warning": Says.WARNING}
    for finding in result.findings:
        says = levels.get(finding.level.value, Says.YES)
        if says is Says.NO and finding.name in result.accepted:
            says = Says.WARNING
        do = f" → {finding.do}" if finding.do else ""
        yield Check(finding.name, says, f"{finding.what}{do}", finding.level.value)


def _residue(result: Any) -> Iterator[Check]:
    columns = ", ".join(result.columns)
    for mention in result.database:
        where = f"{mention.name}:{mention.line}" if mention.line else mention.name
        yield Check(f"{mention.kind} {where}", Says.NO, f"mentions {columns}: {mention.text}", mention.kind)
    for mention in result.code:
        yield Check(
            f"{mention.name}:{mention.line}",
            Says.NO,
            f"mentions {columns}: {mention.text}",
            mention.kind,
            file=str(Path(result.source or "") / mention.name),
            line=mention.line,
        )
    if result.own and not result.still_there:
        yield Check("triggers of cachemig", Says.NO, f"still on the table: {', '.join(result.own)}", "trigger")
    for path in result.not_read:
        yield Check(path, Says.WARNING, "was not read", "file", file=str(Path(result.source or "") / path))
    if not result.jobs_seen:
        yield Check("cron jobs", Says.WARNING, "pg_cron's jobs could not be read by this role", "cron job")
    if not result.found:
        yield Check("residue", Says.YES, f"nothing mentions {columns}")


def _plan(result: Any) -> Iterator[Check]:
    for dependent in result.dependents:
        blocks = dependent.what_to_do.startswith("blocks")
        says = Says.NO if blocks else Says.WARNING
        yield Check(f"{dependent.kind} {dependent.name}", says, dependent.what_to_do, dependent.kind)
    if result.keyless_rows:
        yield Check(
            "rows without a key", Says.WARNING, f"{result.keyless_rows:,} values that the drop would lose", "rows"
        )
    for fault, count in result.corrupt.items():
        yield Check(
            f"corrupt: {fault}", Says.WARNING, f"{count:,} values, set aside or what on_corrupt says", "corrupt"
        )
    if not result.dependents:
        yield Check("dependents", Says.YES, "nothing depends on the column")


def _drop(result: Any) -> Iterator[Check]:
    for name in result.in_the_way:
        yield Check(f"dependent {name}", Says.NO, "in the way of the drop", "dependent")


def _checked(result: Any) -> Iterator[Check]:
    for line in result.differs:
        yield Check("plan", Says.NO, line, "stale")
    if not result.differs:
        yield Check("plan", Says.YES, "nothing has changed since it was made")


# By the class of the result. Whatever has gates tells them by itself.
_TELLERS: dict[str, Callable[[Any], Iterator[Check]]] = {
    "cachemig.steps.verify:Verified": _verified,
    "cachemig.steps.doctor.finding:Findings": _findings,
    "cachemig.steps.residue:Residue": _residue,
    "cachemig.steps.plan:Plan": _plan,
    "cachemig.steps.drop_column.gated:Outlook": _drop,
    "cachemig.steps.apply:Checked": _checked,
}

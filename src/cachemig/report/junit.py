"""JUnit XML of a verification, as CI systems read it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from cachemig.entries.verdicts import TABLE, Counts, Verdict, counts_as
from cachemig.steps.verify import Verified


def write_junit(path: Path, result: Verified) -> None:
    """One test case a verdict; it fails when keys have that verdict and it is bad. Holds keys, never values."""
    suite = ElementTree.Element("testsuite", name="cachemig verify", time=f"{result.seconds:.3f}")
    failures = 0
    for verdict in Verdict:
        case = ElementTree.SubElement(
            suite, "testcase", classname="cachemig.verify", name=f"{verdict.value}: {result.counts[verdict]}"
        )
        if _is_bad(result, verdict):
            failures += 1
            failure = ElementTree.SubElement(case, "failure", message=TABLE[verdict].text, type=verdict.value)
            failure.text = _printable("\n".join(f"{c.key}: {c.why}" for c in result.cases if c.verdict is verdict))
    suite.set("tests", str(len(Verdict)))
    suite.set("failures", str(failures))
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def _is_bad(result: Verified, verdict: Verdict) -> bool:
    counts = counts_as(verdict, frozen=result.frozen)
    if not result.counts[verdict] or counts in (Counts.GOOD, Counts.NEITHER):
        return False
    if counts is Counts.BAD:
        return True
    if verdict is Verdict.ORPHAN:
        return not result.ignore_orphans
    return result.counts[verdict] > result.accept_set_aside


def _printable(text: str) -> str:
    """Without the control characters that XML cannot hold; a key may contain them."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\u{ord(c):04x}" for c in text)

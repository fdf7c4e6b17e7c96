"""JUnit XML: what a CI system reads is what the verification said."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.entries.verdicts import Verdict
from cachemig.report.junit import write_junit
from cachemig.steps.verify import Case, Verified


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("junit") / "report.xml"


def written(path: Path, result: Verified) -> ElementTree.Element:
    write_junit(path, result)
    return ElementTree.parse(path).getroot()


def failed(suite: ElementTree.Element) -> dict[str, str]:
    """Verdict and text of every failure."""
    return {failure.get("type", ""): failure.text or "" for failure in suite.iter("failure")}


def test_a_test_case_for_every_verdict(path: Path) -> None:
    suite = written(path, Verified(Counter({Verdict.MATCH: 12, Verdict.PENDING: 2}), seconds=1.5))
    assert suite.tag == "testsuite"
    assert suite.attrib == {"name": "cachemig verify", "time": "1.500", "tests": "14", "failures": "0"}
    cases = list(suite)
    assert [case.tag for case in cases] == ["testcase"] * 14
    assert [(case.get("name") or "").partition(":")[0] for case in cases] == [verdict.value for verdict in Verdict]
    assert cases[0].get("name") == "match: 12"
    assert {case.get("classname") for case in cases} == {"cachemig.verify"}


def test_a_failure_names_its_keys(path: Path) -> None:
    result = Verified(
        Counter({Verdict.MISSING: 2, Verdict.STALE: 1}),
        [Case("a", Verdict.MISSING, "evicted"), Case("b", Verdict.STALE, "old"), Case("c", Verdict.MISSING, "evicted")],
    )
    suite = written(path, result)
    assert suite.get("failures") == "2"
    assert failed(suite) == {"missing": "a: evicted\nc: evicted", "stale": "b: old"}
    assert {failure.get("message") for failure in suite.iter("failure")} == {
        "in the table, not in Redis",
        "Redis holds an older version",
    }


@pytest.mark.parametrize("accepted", [0, 2, 3, 4])
def test_what_was_accepted_does_not_fail(path: Path, accepted: int) -> None:
    result = Verified(Counter({Verdict.SET_ASIDE: 3}), accept_set_aside=accepted)
    assert set(failed(written(path, result))) == (set() if accepted >= 3 else {"set-aside"})


@pytest.mark.parametrize("ignored", [True, False])
def test_orphans(path: Path, ignored: bool) -> None:
    result = Verified(Counter({Verdict.ORPHAN: 3}), ignore_orphans=ignored, accept_set_aside=99)
    assert set(failed(written(path, result))) == (set() if ignored else {"orphan"})


@given(
    counts=st.dictionaries(st.sampled_from(Verdict), st.integers(0, 5)),
    accept=st.integers(0, 5),
    ignore=st.booleans(),
)
def test_it_fails_exactly_where_the_verification_does(
    path: Path, counts: dict[Verdict, int], accept: int, ignore: bool
) -> None:
    result = Verified(Counter(counts), accept_set_aside=accept, ignore_orphans=ignore)
    suite = written(path, result)
    assert int(suite.get("failures", "")) == len(failed(suite))
    assert (not failed(suite)) is result.outcome.passed


@given(key=st.text(max_size=30), why=st.text(max_size=10))
def test_any_key_gives_valid_xml(path: Path, key: str, why: str) -> None:
    text = failed(written(path, Verified(Counter({Verdict.MISSING: 1}), [Case(key, Verdict.MISSING, why)])))["missing"]
    if f"{key}{why}".isprintable():
        assert text == f"{key}: {why}"


@pytest.mark.parametrize(
    "character",
    [*map(chr, range(0x20)), "\x7f", "\x85", "\u2028", "\ud800", "\ufffe", "\uffff", "\U0001ffff"],
    ids=ascii,
)
def test_a_key_with_a_character_that_xml_cannot_hold(path: Path, character: str) -> None:
    result = Verified(Counter({Verdict.MISSING: 1}), [Case(f"<&]]>{character}é", Verdict.MISSING, "evicted")])
    text = failed(written(path, result))["missing"]
    assert text.startswith("<&]]>")
    assert text.endswith("é: evicted")
    if character not in "\n\t":
        assert f"\\u{ord(character):04x}" in text

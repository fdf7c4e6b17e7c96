"""Checks of results, and what JUnit and GitHub make of them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.cli import screen
from cachemig.entries.verdicts import Verdict
from cachemig.ladder import Phase
from cachemig.report import github
from cachemig.report.checks import Check, Says, of
from cachemig.report.junit import write_checks, write_junit
from cachemig.steps.cutover import Preview
from cachemig.steps.doctor import Finding, Findings, Level
from cachemig.steps.gates import Measured
from cachemig.steps.residue import Mention, Residue
from cachemig.steps.verify import Case, Verified

MET = Measured("lag", "sync keeps up", True, "no change is on its way", "cachemig sync --once")
UNMET = Measured("verify", "a verification has passed", False, "there was none", "cachemig verify")
PREVIEW = Preview("cachemig cutover --percent 1", Phase.DUAL_WRITE, 0, Phase.CUTOVER, 1, [], [MET, UNMET], [])
FINDINGS = Findings(
    [
        Finding("redis-role", Level.OK, "a primary"),
        Finding("redis-memory", Level.WARNING, "tight", "add some"),
        Finding("table-select", Level.ERROR, "lacks SELECT", "grant it"),
    ]
)


def residue(**more: Any) -> Residue:
    code = (Mention("Python", "api/a.py", 7, "row.cache, 1:2"),)
    return Residue("public.s", ("cache",), (), (), (), code, 1, (), True, **more)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (PREVIEW, {"gate lag": Says.YES, "gate verify": Says.NO}),
        (FINDINGS, {"redis-role": Says.YES, "redis-memory": Says.WARNING, "table-select": Says.NO}),
        (residue(), {"api/a.py:7": Says.NO}),
        (Residue("public.s", ("cache",), (), (), (), (), 1, (), True), {"residue": Says.YES}),
        (object(), {}),
    ],
)
def test_what_a_result_says(result: Any, says: dict[str, Says]) -> None:
    assert {check.name: check.says for check in of(result)} == says


def test_junit_of_a_preview(tmp_path: Path) -> None:
    write_junit(tmp_path / "a.xml", PREVIEW)
    suite = ElementTree.parse(tmp_path / "a.xml").getroot()
    assert suite.attrib == {"name": "cachemig cutover --percent 1", "tests": "2", "failures": "1"}
    (failure,) = suite.iter("failure")
    assert failure.attrib == {
        "message": "a verification has passed: there was none → cachemig verify",
        "type": "verify",
    }
    write_junit(tmp_path / "b.xml", FINDINGS)
    suite = ElementTree.parse(tmp_path / "b.xml").getroot()
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("cachemig doctor", "3", "1")
    assert [out.text for out in suite.iter("system-out")] == ["warning: tight → add some"]


@given(st.text(), st.text())
def test_junit_takes_every_text(tmp_path_factory: pytest.TempPathFactory, name: str, message: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text.xml"
    write_checks(path, "x", [Check(name, Says.NO, message, detail=message)])
    assert len(list(ElementTree.parse(path).getroot().iter("failure"))) == 1


def parsed(line: str) -> tuple[str, dict[str, str], str]:
    """As GitHub's runner reads a command."""
    found = re.fullmatch(r"::(\w+) (.*?)::(.*)", line)
    assert found is not None, line
    properties = dict(part.split("=", 1) for part in found[2].split(","))
    for escaped, plain in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        properties = {name: text.replace(escaped, plain) for name, text in properties.items()}
    message = found[3]
    for escaped, plain in (("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        message = message.replace(escaped, plain)
    return found[1], properties, message


@given(st.text(), st.text())
def test_an_annotation_is_one_line_that_means_what_was_said(name: str, message: str) -> None:
    line = github.annotation(Check(name, Says.NO, message), "doctor", {})
    assert line is not None
    assert len(re.split(r"[\r\n]", line)) == 1
    assert parsed(line) == ("error", {"title": f"cachemig doctor: {name}"}, message)


def test_an_annotation_stands_at_its_line_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "server").mkdir()
    monkeypatch.chdir(tmp_path / "server")
    environment = {"GITHUB_WORKSPACE": str(tmp_path)}
    for source, file in (
        ("src", "server/src/api/a.py"),
        (str(tmp_path / "web"), "web/api/a.py"),
        ("/x", "/x/api/a.py"),
    ):
        (check,) = of(residue(source=source))
        line = github.annotation(check, "residue", environment)
        assert line is not None
        level, properties, message = parsed(line)
        assert (level, properties["file"], properties["line"]) == ("error", file, "7")
        assert message == "mentions cache: row.cache, 1:2"


def test_no_more_annotations_than_github_shows() -> None:
    checks = [Check(str(n), says, "m") for n in range(25) for says in (Says.NO, Says.WARNING)]
    said = github.lines(checks, "plan", {})
    assert sum(line.startswith("::error") for line in said) == github.MOST_ANNOTATIONS
    assert sum(line.startswith("::warning") for line in said) == github.MOST_ANNOTATIONS
    assert sum(line.endswith("::and 16 more") for line in said) == 2


@pytest.mark.parametrize(
    "text", ["a|b", "a\nb", "a\r\nb", "<img src=x>", "[x](http://y)", "`c`", "**b**", "a\\|b", "@me"]
)
def test_a_cell_is_text_and_nothing_else(text: str) -> None:
    row = github.section("x", [Check(text, Says.NO, text)]).splitlines()[4]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 4
    assert "<" not in row.replace("<br>", "")
    assert not re.search(r"(?<!\\)[`*\[\]@]", row)


def test_a_summary_is_cut_before_github_refuses_it(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    for _ in range(3):
        github.add_to_summary("ü" * 400_000 + "\n", {"GITHUB_STEP_SUMMARY": str(path)})
    assert path.stat().st_size < 2**20
    assert path.read_text().endswith("_cut: the rest is in the log._\n")
    github.add_to_summary("x", {})
    github.add_to_summary("x", {"GITHUB_STEP_SUMMARY": str(tmp_path)})  # not a file: no reason to fail


def test_an_output_is_one_line(tmp_path: Path) -> None:
    github.set_output("phase", "idle\nother=1", {"GITHUB_OUTPUT": str(tmp_path / "out")})
    assert (tmp_path / "out").read_text() == "phase=idle other=1\n"


def test_what_is_shown_is_no_command_of_the_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "Python a.py:1\n    ::stop-commands::x\n##[error]y"
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert screen.plain(shown).plain == shown
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert screen.plain(shown).plain == "Python a.py:1\n    \\::stop-commands::x\n\\##[error]y"


def test_keys_are_in_junit_alone(tmp_path: Path) -> None:
    result = Verified(Counter({Verdict.MISSING: 1}), [Case("patient-7", Verdict.MISSING, "evicted")])
    write_junit(tmp_path / "a.xml", result)
    assert "patient-7" in (tmp_path / "a.xml").read_text()
    checks = of(result)
    assert "patient-7" not in github.section("verify", checks) + "".join(github.lines(checks, "verify", {}))

"""JUnit XML of a result, as CI systems read it: a test case a check, which fails where the check says no."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from cachemig.report.checks import Check, Says, of


def write_junit(path: Path, result: Any, name: str | None = None) -> None:
    """Holds keys, where a verification names them; never values. `name`: the command, if the result does not tell."""
    write_checks(path, name or _command(result), of(result), getattr(result, "seconds", None))


def write_checks(path: Path, name: str, checks: list[Check], seconds: float | None = None) -> None:
    suite = ElementTree.Element("testsuite", name=f"cachemig {name}")
    if seconds is not None:
        suite.set("time", f"{seconds:.3f}")
    for check in checks:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"cachemig.{name}", name=_printable(check.title or check.name)
        )
        if check.says is Says.NO:
            failure = ElementTree.SubElement(case, "failure", message=_printable(check.message), type=check.kind)
            failure.text = _printable(check.detail)
        elif check.says is Says.WARNING:
            ElementTree.SubElement(case, "system-out").text = _printable(f"warning: {check.message}")
    suite.set("tests", str(len(checks)))
    suite.set("failures", str(sum(check.says is Says.NO for check in checks)))
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def _command(result: Any) -> str:
    """The step's own name: that of its module."""
    if hasattr(result, "command"):
        return str(result.command).removeprefix("cachemig ")
    module = type(result).__module__.split(".")
    return module[2].replace("_", "-") if len(module) > 2 else module[-1]


def _printable(text: str) -> str:
    """Without the control characters that XML cannot hold; a key may contain them."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\u{ord(c):04x}" for c in text)

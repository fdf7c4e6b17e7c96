"""What GitHub shows of a run in its own places: annotations beside the code, and the job's summary.

Written where GitHub's runner reads along (GITHUB_ACTIONS=true). Both are open to whoever may read the repository: they
hold no key, no value and no secret.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cachemig.report.checks import Check, Says, of

MOST_ANNOTATIONS = 10
"""Of each level; GitHub shows no more of one step."""
MOST_BYTES = 900 * 1024
"""Of a summary; GitHub refuses one above 1 MiB."""
_LEVELS = {Says.NO: "error", Says.WARNING: "warning"}
_MARKS = {Says.YES: "✅", Says.WARNING: "⚠️", Says.NO: "❌"}


def annotation(check: Check, command: str, environment: Mapping[str, str]) -> str | None:
    """A line that the runner makes an annotation of; None where the check says yes."""
    level = _LEVELS.get(check.says)
    if level is None:
        return None
    properties = {"title": f"cachemig {command}: {check.name}"}
    if check.file is not None:
        properties |= {
            "file": _in_workspace(check.file, environment),
            **({"line": str(check.line)} if check.line else {}),
        }
    listed = ",".join(f"{name}={_property(text)}" for name, text in properties.items())
    return f"::{level} {listed}::{_data(check.message)}"


def _in_workspace(file: str, environment: Mapping[str, str]) -> str:
    """The path as the repository has it, which is what GitHub looks for; another one as it is."""
    path = Path(file).resolve()
    workspace = Path(environment.get("GITHUB_WORKSPACE") or ".").resolve()
    return path.relative_to(workspace).as_posix() if path.is_relative_to(workspace) else file


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def lines(checks: Sequence[Check], command: str, environment: Mapping[str, str]) -> list[str]:
    """The first ones of each level: where there are more, the last one says so."""
    said = []
    for says in (Says.NO, Says.WARNING):
        mine = [check for check in checks if check.says is says]
        kept = mine[:MOST_ANNOTATIONS] if len(mine) <= MOST_ANNOTATIONS else mine[: MOST_ANNOTATIONS - 1]
        said += [line for check in kept if (line := annotation(check, command, environment))]
        if left := len(mine) - len(kept):
            said.append(f"::{_LEVELS[says]} title=cachemig {_property(command)}::and {left:,} more")
    return said


def cell(text: str) -> str:
    """A table's cell: nothing in it is taken for Markdown or HTML."""
    for plain, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\\", "\\\\"), ("|", "\\|"), ("\r", "")):
        text = text.replace(plain, safe)
    for sign in "`*_[]~#!@":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", "<br>")


def section(command: str, checks: Sequence[Check]) -> str:
    """Of a command: what says no first, then what warns; what says yes is folded away."""
    no, warning, yes = ([c for c in checks if c.says is says] for says in (Says.NO, Says.WARNING, Says.YES))
    mark = _MARKS[Says.NO if no else Says.WARNING if warning else Says.YES]
    lines = [f"### {mark} cachemig {cell(command)}", ""]
    if no or warning:
        lines += _table([*no, *warning])
    if yes:
        lines += ["<details>", f"<summary>{len(yes):,} in order</summary>", "", *_table(yes), "</details>", ""]
    return "\n".join(lines) + "\n"


def _table(checks: Sequence[Check]) -> list[str]:
    rows = [f"| {_MARKS[c.says]} | {cell(c.name)} | {cell(c.message)} |" for c in checks]
    return ["| | check | |", "|---|---|---|", *rows, ""]


def add_to_summary(text: str, environment: Mapping[str, str]) -> None:
    """Appends to the job's summary. One that cannot be written is no reason for a step to fail."""
    path = environment.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            room = MOST_BYTES - file.tell()
            kept = text.encode()[: max(0, room)].decode(errors="ignore")
            file.write(kept if kept == text else kept.rpartition("\n")[0] + "\n\n_cut: the rest is in the log._\n")
    except OSError as exc:
        print(f"the job summary cannot be written: {exc.strerror}", file=sys.stderr)


def set_output(name: str, value: str, environment: Mapping[str, str]) -> None:
    """An output of the step, for later steps. One line: nothing in it can become another output."""
    path = environment.get("GITHUB_OUTPUT")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{name}={' '.join(value.splitlines())}\n")


def tell(command: str, result: Any, environment: Mapping[str, str]) -> None:
    """Annotations to stderr, which the runner reads too (stdout may be one JSON document), and the summary."""
    if checks := of(result):
        tell_checks(command, checks, environment)


def tell_checks(command: str, checks: Sequence[Check], environment: Mapping[str, str]) -> None:
    for line in lines(checks, command, environment):
        print(line, file=sys.stderr)
    add_to_summary(section(command, checks), environment)


def tell_error(message: str, hint: str | None) -> None:
    text = message + (f"\nhint: {hint}" if hint else "")
    print(f"::error title=cachemig::{_data(text)}", file=sys.stderr)

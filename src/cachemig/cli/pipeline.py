"""cachemig ci: every dry run that the phase allows, its documents and reports in one folder, and one exit code.

Each command is run in this process as a dry run, with read rights; none of them changes anything, and one that cannot
look is told beside the others instead of hiding them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachemig.cli import inner
from cachemig.cli.command import Run, known
from cachemig.cli.results import DryRunOutcome, DryRuns
from cachemig.cli.screen import Screen
from cachemig.errors import CachemigError, ConfigError, Exit, Interrupted, Refused
from cachemig.report import checks, github
from cachemig.report.checks import Check, Says
from cachemig.report.documents import document, identifier, plain
from cachemig.report.junit import write_checks
from cachemig.source import control
from cachemig.source.connect import connect
from cachemig.steps import apply

PLAN_FILE = "next-step.plan.json"
SUMMARY = "summary.md"
MANIFEST = "ci.json"

# By phase, what is looked at beside doctor, plan, the next step and residue: where the migration could go from here,
# and back. Commands that need a place (archive, restore) or keys are left to those who know them.
BESIDE: dict[str, tuple[tuple[str, ...], ...]] = {
    apply.NOT_BEGUN: (),
    "idle": (("clean",),),
    "dual-write": (("backfill",), ("sync",), ("dual-write", "--disable")),
    "cutover": (("sync",), ("rollback",)),
    "redis-only": (("sync",), ("rollback",)),
    "dropped": (("reclaim",), ("clean",)),
}
BACK = frozenset({"clean", "rollback", "dual-write --disable"})
"""What leads back, or away: it says no where nobody asked for it, which fails no pipeline."""


@dataclass
class _Looked:
    """One command, and what it said."""

    name: str
    arguments: Sequence[str]
    exit_code: Exit
    checks: list[Check]
    error: CachemigError | None = None
    result: Any = None
    command: str = ""


def run(
    run: Run,
    folder: Path,
    source: Path | None,
    *,
    percent: float | None,
    no_clients: bool,
    sample: int,
    advise: bool,
) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
    except OSError as exc:
        raise CachemigError(f"{folder} cannot be written: {exc.strerror}", hint="cachemig ci --output FOLDER") from exc
    ahead = "idle"
    looked = [_look(run, "doctor", ("doctor", "--dry-run"))]
    phase = "not known"
    try:
        phase = _phase(run)
        following = _following(run, phase, percent, no_clients)
    except CachemigError as exc:
        looked.append(_failed("next-step", ("status",), exc))
        following = None
    if phase in BESIDE and phase != apply.NOT_BEGUN:
        looked.append(_look(run, "status", ("status",)))
    if phase != "dropped":  # there is nothing left to weigh
        looked.append(_look(run, "plan", ("plan",)))
    plan_file = None
    if following is not None:
        ahead = " ".join(following)
        looked.append(_look(run, f"next-{following[0]}", apply.dry(following)))
        if looked[-1].error is None:
            plan_file = folder / PLAN_FILE
            looked.append(_plan(run, plan_file, following))
    beside = [*BESIDE.get(phase, ()), *([("verify", "--sample", str(sample))] if sample and phase in _FILLED else [])]
    for arguments in beside:
        if list(arguments) != (following or [])[: len(arguments)]:
            looked.append(_look(run, "-".join(part.strip("-") for part in arguments), (*arguments, "--dry-run")))
    looked.append(_look(run, "residue", ("residue", *(("--source", str(source)) if source else ()))))
    outcomes = [_write(run, folder, one, phase) for one in looked]
    worst = _worst(looked, phase, advise=advise)
    text = _summary(run, looked, phase, ahead if following else None, worst)
    _put(folder / SUMMARY, text)
    github.add_to_summary(text, os.environ)
    github.set_output("exit-code", str(int(worst)), os.environ)
    github.set_output("phase", phase, os.environ)
    if plan_file is not None:
        github.set_output("plan", str(plan_file), os.environ)
    shown = DryRuns(str(folder), phase, outcomes, None if plan_file is None else str(plan_file), int(worst))
    _put(folder / MANIFEST, json.dumps(document("ci", shown), indent=2, ensure_ascii=False) + "\n")
    run.show(shown, rendered)
    run.exit_code = worst


_FILLED = frozenset({"dual-write", "cutover", "redis-only", "dropped"})


def _clear(folder: Path) -> None:
    """Removes what an earlier run left, by its own list: what is not written now is not to be taken for new, and no
    other file of the folder is touched."""
    try:
        left = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        names = [name for one in left["runs"] for name in (one["document"], one["junit"]) if name]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in (*names, PLAN_FILE, SUMMARY, MANIFEST):
        if Path(name).name == name:
            (folder / name).unlink(missing_ok=True)


def _phase(run: Run) -> str:
    with connect(run.settings) as conn:
        migration = control.find(conn)
        if migration is None:
            return apply.NOT_BEGUN
        return control.require(conn, run.settings).phase.value


def _following(run: Run, phase: str, percent: float | None, no_clients: bool) -> list[str] | None:
    """The next step; None where none is left."""
    if phase == "dropped":
        return None
    step = apply.next_step(run.settings)
    if percent is not None and step[0] == "cutover":
        step = ["cutover", "--percent", f"{percent:g}"]
    if no_clients and step[0] in ("cutover", "stop-writes", "drop-column"):
        step.append("--no-clients")
    return step


def _look(run: Run, name: str, arguments: Sequence[str]) -> _Looked:
    run.screen.say(f"cachemig {shlex.join(arguments)}")
    try:
        done = inner.run(arguments, run.inner(quiet=True))
    except Interrupted:
        raise
    except Exception as exc:  # noqa: BLE001  # the boundary of one command; the others are looked at all the same
        return _failed(name, arguments, known(exc))
    shown = done.shown[-1]
    return _Looked(name, arguments, done.exit_code, checks.of(shown.result), None, shown.result, shown.command)


def _plan(run: Run, path: Path, step: Sequence[str]) -> _Looked:
    arguments = ("plan", "--out", str(path), "--", *step)
    done = _look(run, "plan-file", arguments)
    done.checks = []  # the gates were told by the step's own dry run
    done.exit_code = Exit.FINE if done.error is None else done.exit_code
    return done


def _failed(name: str, arguments: Sequence[str], exc: CachemigError) -> _Looked:
    hint = f" → {exc.hint}" if exc.hint else ""
    check = Check(name, Says.NO, f"{exc}{hint}", type(exc).__name__)
    return _Looked(name, arguments, Exit(exc.exit_code), [check], exc)


def _is_back(one: _Looked) -> bool:
    return " ".join(part for part in one.arguments if part != "--dry-run") in BACK


def _worst(looked: Sequence[_Looked], phase: str, *, advise: bool) -> Exit:
    """1 where a command could not look, else 3 where something says no. Before stop-writes residue is no reason: the
    application still uses the column, as it should."""
    errors_ = [one for one in looked if one.error is not None and not isinstance(one.error, Refused)]
    if errors_:
        return Exit.USAGE if all(isinstance(one.error, ConfigError) for one in errors_) else Exit.ERROR
    said_no = [
        one
        for one in looked
        if (one.exit_code or any(check.says is Says.NO for check in one.checks))
        and not _is_back(one)
        and not (one.name == "residue" and not _residue_counts(phase))
    ]
    return Exit.REFUSED if said_no and not advise else Exit.FINE


def _residue_counts(phase: str) -> bool:
    return phase in ("redis-only", "dropped")


def _told(one: _Looked, phase: str) -> list[Check]:
    """Its checks; where a no is no reason to fail, as warnings."""
    if not _is_back(one) and not (one.name == "residue" and not _residue_counts(phase)):
        return one.checks
    return [
        Check(c.name, Says.WARNING if c.says is Says.NO else c.says, c.message, c.kind, c.detail, c.file, c.line)
        for c in one.checks
    ]


def _write(run: Run, folder: Path, one: _Looked, phase: str) -> DryRunOutcome:
    told = _told(one, phase)
    shown = f"cachemig {shlex.join(one.arguments)}"
    junit = None
    if told:
        junit = f"{one.name}.xml"
        write_checks(folder / junit, one.name, told)
        for line in github.lines(told, one.name, os.environ) if os.environ.get("GITHUB_ACTIONS") == "true" else ():
            run.screen.raw(line)
    if one.error is not None:
        error = {
            "schema": identifier("error"),
            "error": type(one.error).__name__,
            "message": str(one.error),
            "hint": one.error.hint,
            "exit_code": int(one.error.exit_code),
        }
        _put(folder / f"{one.name}.json", json.dumps(error, indent=2, ensure_ascii=False) + "\n")
    else:
        text = json.dumps(document(one.command, one.result), default=plain, indent=2, ensure_ascii=False)
        _put(folder / f"{one.name}.json", text + "\n")
    return DryRunOutcome(
        one.name,
        shown,
        int(one.exit_code),
        None if one.error is None else str(one.error),
        [check.name for check in told if check.says is Says.NO],
        f"{one.name}.json",
        junit,
    )


def _summary(run: Run, looked: Sequence[_Looked], phase: str, ahead: str | None, worst: Exit) -> str:
    verdict = {Exit.FINE: "✅ nothing says no", Exit.REFUSED: "❌ something says no"}.get(worst, "❌ could not look")
    settings = run.settings
    lines = [
        f"## cachemig dry run: {verdict}",
        "",
        f"`{settings.table}.{settings.column}`, phase **{github.cell(phase)}**"
        + (f", next step `cachemig {ahead}`" if ahead else ""),
        "",
    ]
    parts = [github.section(one.name, _told(one, phase)) for one in looked if one.checks]
    sql = next((apply.statements_of(one.result) for one in looked if one.name.startswith("next-") and one.result), [])
    if sql:
        listed = "\n\n".join(text.strip() for text in sql)
        fence = "`" * max(3, 1 + max((len(run_) for run_ in _ticks(listed)), default=0))
        parts.append(
            f"<details>\n<summary>SQL of the next step</summary>\n\n{fence}sql\n{listed}\n{fence}\n\n</details>\n"
        )
    return "\n".join(lines) + "\n" + "\n".join(parts)


def _ticks(text: str) -> list[str]:
    return re.findall(r"`+", text)


def _put(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise CachemigError(f"{path} cannot be written: {exc.strerror}", hint="cachemig ci --output FOLDER") from exc


def rendered(screen: Screen, result: DryRuns) -> None:
    rows = [
        ("COULD NOT LOOK" if one.error else "NO" if one.failures else "yes", one.name,
         one.error or ", ".join(one.failures))
        for one in result.runs
    ]  # fmt: skip
    screen.table(("", "dry run", "says no"), rows, styles=["red" if row[0] != "yes" else "green" for row in rows])
    screen.line(f"documents, JUnit reports and {SUMMARY} are in {result.folder}")
    failed = next((one for one in result.runs if one.failures or one.error), None)
    if failed is not None:
        screen.next(failed.command)
    elif result.plan is not None:
        screen.next(f"cachemig apply {shlex.quote(result.plan)}")

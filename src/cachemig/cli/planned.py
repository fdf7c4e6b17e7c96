"""plan --out and apply: a step is looked at by its own dry run, and taken by its own command."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cachemig.cli import inner
from cachemig.cli.command import Run, seconds_of
from cachemig.cli.render import _gates
from cachemig.cli.screen import Screen
from cachemig.errors import Exit
from cachemig.report.documents import document, plain
from cachemig.source import control
from cachemig.steps import apply as step
from cachemig.targets.open import open_target


def make(run: Run, out: Path, command: Sequence[str], *, junit: Path | None = None) -> None:
    """Writes the plan of a command; without one, of the next step up. Exit code 3 where a gate says no now: the plan is
    written all the same, for the gates are measured again."""
    planned = step.require_plannable(list(command) or step.next_step(run.settings))
    looked = inner.run(step.dry(planned), run.inner(quiet=True))
    step.refuse_secrets(looked.used)
    assert looked.settings is not None
    result = looked.shown[0].result
    with open_target(looked.settings, os.environ) as target:
        found = step.facts(looked.settings, target, planned[0]) | step.sql_facts(result)
        versions = step.versions(looked.settings, target)
    flags = {name: text for name, text in looked.used.items() if text is not None}
    plan = step.made(planned, flags, found, versions, result, document(planned[0], result))
    step.write(out, plan, plain)
    shown = step.Made(str(out), shlex.join(("cachemig", *planned)), plan.phase, plan.sql, plan.gates, plan.fingerprints)
    run.show(shown, written, junit=junit)
    run.exit_code = Exit.REFUSED if shown.refused else Exit.FINE


def apply(run: Run, file: Path, *, only_check: bool, max_age: str, confirm: str | None) -> None:
    """Runs the step of a plan, or refuses. What is shown is what the step itself shows."""
    plan = step.read(file)
    flags = {name: text for name, text in plan.flags.items() if name not in run.flags}
    settings = run.settings_with(flags)
    with open_target(settings, os.environ) as target:
        found = step.facts(settings, target, plan.command[0])
    outcome = step.compare(file, plan, found, seconds_of("--max-age", max_age))
    if not outcome.differs:  # else the dry run may be refused, for the very reason that is to be named
        looked = inner.run(step.dry(plan.command), run.inner(quiet=True, flags=flags))
        shown = looked.shown[0].result
        outcome = replace(
            step.compare(file, plan, found | step.sql_facts(shown), seconds_of("--max-age", max_age)),
            unmet=[gate.gate for gate in getattr(shown, "gates", None) or () if not gate.met],
        )
    if only_check:
        run.show(outcome, checked)
        run.exit_code = Exit.REFUSED if outcome.differs else Exit.FINE
        return
    step.require_fresh(outcome)
    arguments = [*plan.command, *(("--confirm", confirm) if confirm is not None else ())]
    token = control.LOOK_AGAIN.set(lambda conn: step.look_again(conn, settings, file, plan))
    try:
        run.exit_code = inner.run(arguments, run.inner(quiet=False, flags=flags)).exit_code
    finally:
        control.LOOK_AGAIN.reset(token)


def written(screen: Screen, result: Any) -> None:
    screen.line(f"wrote {result.file}: {result.command}, planned in phase {result.phase}")
    if result.statements:
        screen.line("-- would run:")
    for statement in result.statements:
        screen.line(f"{statement.strip()}\n")
    for name, fingerprint in result.fingerprints.items():
        screen.line(f"{name:<9} {fingerprint}")
    unmet = _gates(screen, result.gates)
    screen.next(unmet or _to_apply(result))


def checked(screen: Screen, result: Any) -> None:
    screen.line(f"{result.command}, planned at {result.made_at} by {result.made_by}")
    for line in result.differs:
        screen.line(line, style="red")
    if result.differs:
        screen.line("the plan is stale: it would be refused")
        screen.next(result.again)
    else:
        screen.line("nothing has changed since")
        if result.unmet:
            screen.line(f"but the step would be refused now, by gate {', '.join(result.unmet)}", style="yellow")
        screen.next("cachemig status, which says what comes first" if result.unmet else _to_apply(result))


def _to_apply(result: Any) -> str:
    confirmed = " --confirm COLUMN" if result.command.startswith("cachemig drop-column") else ""
    return f"cachemig apply {shlex.quote(result.file)}{confirmed}"

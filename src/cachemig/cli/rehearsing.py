"""rehearse, as people see it: what its commands tell as they go, then the verdict."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cachemig.cli.command import Run
from cachemig.cli.screen import Screen
from cachemig.errors import CachemigError, Exit, Interrupted
from cachemig.rehearsal.record import Rehearsed
from cachemig.rehearsal.rehearse import Asked
from cachemig.rehearsal.rehearse import rehearse as walk
from cachemig.units import in_time


def rehearse(run: Run, asked: Asked) -> None:
    """The walk, its document and its verdict."""
    # At a terminal the commands write to it themselves, with colours and progress, unless what they say is to be kept.
    output = asked.output
    keep = run.as_json or output is not None or asked.report is not None or not sys.stdout.isatty()
    try:
        result = walk(run.settings, asked, run.screen.line, keep=keep)
    except KeyboardInterrupt:
        raise Interrupted("stopped; its servers are gone", hint="cachemig rehearse begins anew") from None
    if output is not None:
        from cachemig.report.documents import document

        try:
            output.write_text(json.dumps(document(run.name, result), indent=1) + "\n", encoding="utf-8")
        except OSError as exc:
            raise CachemigError(
                f"{output} cannot be written: {exc.strerror}", hint="cachemig rehearse --output FILE"
            ) from exc
    run.show(result, lambda screen, found: rehearsed(screen, found, [p for p in (output, asked.report) if p]))
    run.exit_code = Exit.FINE if result.passed else Exit.REFUSED


def rehearsed(screen: Screen, result: Rehearsed, written: list[Path]) -> None:
    screen.line()
    screen.line("-- What ran in Postgres, but for reading and moving rows:")
    for ran in result.sql:
        screen.line()
        screen.line(f"-- cachemig {ran.command}")
        for statement in ran.sql:
            screen.line(statement)
    screen.line()
    t = result.traffic
    screen.line(f"{result.table}.{result.column}, {result.rows:,} rows, {in_time(result.seconds)}")
    screen.line(
        f"programs made {t.changes:,} changes ({t.changes_failed or 'none'} failed) and {t.reads:,} reads "
        f"({t.reads_failed or 'none'} failed)"
    )
    for note in result.notes:
        screen.line(f"note: {note}")
    for path in written:
        screen.line(f"written: {path}")
    if result.passed:
        screen.line("PASSED: every step went through, up and down, and the schema is what it was", style="green")
        screen.next("cachemig doctor, then cachemig plan, with the real servers")
        return
    for reason in result.reasons:
        screen.line(f"no: {reason}", style="red")
    screen.line("REFUSED: see above", style="bold red")
    screen.next("cachemig rehearse again, when that is mended")

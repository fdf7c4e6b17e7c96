"""The result of report, as people read it: the verdict, and where the page is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cachemig.cli.screen import Screen

_STYLES = {"good": "green", "bad": "red"}


def reported(output: Path, run_json: Path | None) -> Callable[[Screen, Mapping[str, Any]], None]:
    def render(screen: Screen, document: Mapping[str, Any]) -> None:
        conclusion = document["conclusion"]
        screen.line(conclusion["line"], style=_STYLES.get(conclusion["tone"], "yellow"))
        for why in conclusion["why"]:
            screen.line(f"  {why}")
        screen.line(f"written: {output}" + (f"; its data: {run_json}" if run_json else ""))
        screen.next(f"open {output} in a browser, print it, have it approved")

    return render

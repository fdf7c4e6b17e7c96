"""`scripts/bench NAME [--quick] [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import capture, emg, machine, service
from benchmarks.report import Report

_BENCHMARKS: Mapping[str, tuple[Callable[[bool], Report], str]] = {
    "capture": (capture.run, "what capture costs an application that writes"),
    "emg": (emg.run, "how exact the recompute of a recording is, and how fast"),
    "service": (service.run, "what CacheService costs an application, Redis well or not"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures on throw-away servers.")
    commands = parser.add_subparsers(dest="name", required=True)
    for name, (_, purpose) in _BENCHMARKS.items():
        command = commands.add_parser(name, help=purpose, description=purpose)
        command.add_argument("--quick", action="store_true", help="shows that it runs; the figures mean nothing")
        command.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures as well")
    arguments = parser.parse_args()
    began, load = time.monotonic(), os.getloadavg()[0]
    report = _BENCHMARKS[arguments.name][0](arguments.quick)
    host = machine.facts() | {"load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1)}
    facts: dict[str, object] = {
        "benchmark": arguments.name,
        "quick": arguments.quick,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began),
        **host,
        **report.versions,
    }
    print(report.text)
    print("\n" + " · ".join(f"{name} {value}" for name, value in facts.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({**facts, **report.figures}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`scripts/bench NAME [--quick] [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import backfill, capture, emg, machine, neighbour, scale, service
from benchmarks.report import Report


@dataclass(frozen=True)
class Benchmark:
    run: Callable[[argparse.Namespace], Report]
    purpose: str
    options: Callable[[argparse.ArgumentParser], None] = lambda _: None
    """Adds those of its own."""
    publish: Callable[[argparse.Namespace, Report, Mapping[str, object]], None] = lambda *_: None
    """Writes a document, once it is known what the figures were measured on."""


_BENCHMARKS: Mapping[str, Benchmark] = {
    "backfill": Benchmark(
        backfill.run,
        "how fast the column moves, beside what the servers can do and what one does by hand",
        backfill.options,
        backfill.published,
    ),
    "capture": Benchmark(lambda given: capture.run(given.quick), "what capture costs an application that writes"),
    "emg": Benchmark(lambda given: emg.run(given.quick), "how exact the recompute of a recording is, and how fast"),
    "neighbour": Benchmark(
        neighbour.run,
        "what a backfill costs the application beside it, flat out and gently",
        neighbour.options,
        neighbour.published,
    ),
    "scale": Benchmark(
        scale.run, "how the cost grows with the number of rows, up to millions", scale.options, scale.published
    ),
    "service": Benchmark(
        lambda given: service.run(given.quick), "what CacheService costs an application, Redis well or not"
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures on throw-away servers.")
    commands = parser.add_subparsers(dest="name", required=True)
    for name, one in _BENCHMARKS.items():
        command = commands.add_parser(name, help=one.purpose, description=one.purpose)
        command.add_argument("--quick", action="store_true", help="shows that it runs; the figures mean nothing")
        command.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures as well")
        one.options(command)
    arguments = parser.parse_args()
    began, load = time.monotonic(), os.getloadavg()[0]
    benchmark = _BENCHMARKS[arguments.name]
    report = benchmark.run(arguments)
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
    benchmark.publish(arguments, report, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())

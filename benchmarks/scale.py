"""How the cost of a backfill, of `plan` and of `status` grows with the number of rows, which are small.

One size after the other, each a migration that has just begun; a table goes before the next one comes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from psycopg import sql

from benchmarks.backfill.bed import Bed, Loaded, Size, tool
from benchmarks.backfill.processes import Measured
from benchmarks.backfill.tool import own_seconds
from benchmarks.report import Report, between_marks, table

FULL = (10_000, 100_000, 1_000_000, 3_000_000)
QUICK = (500, 2_000)
_ASKED = 5
"""Times that `plan` and `status` are asked: the median counts."""
_ROOM = 16 << 30
"""Bytes that all of it takes at most: table, indexes, ledger, log, and the largest shared buffers."""
_DOCS = Path(__file__).parents[1] / "docs"
_MB = 1e6


@dataclass(frozen=True)
class Sized:
    """What was measured of one table."""

    rows: int
    text_bytes: int
    table_bytes: int
    chunks: int
    backfill: Measured
    own_s: float
    """Of the backfill, by its own clock: without the start of Python."""
    plan_s: float
    sampled: bool
    """`plan` read a part of the table."""
    status_s: float


def options(parser: argparse.ArgumentParser) -> None:
    sizes = ",".join(map(str, FULL))
    parser.add_argument("--rows", metavar="LIST", help=f"tables of so many rows, instead of {sizes}")
    parser.add_argument(
        "--docs", type=Path, metavar="DIR", help="write performance.md there; a complete run writes it to docs/ anyway"
    )


def run(arguments: argparse.Namespace) -> Report:
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="cachemig-bench-", dir=_roomy()))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        bed = Bed.start(stack, directory)
        asked = 1 if arguments.quick else _ASKED
        found = [_measure(bed, rows, asked) for rows in _sizes(arguments)]
        server: Any = bed.redis.info("server")
        postgres = bed.admin.execute("SHOW server_version").fetchone()
        assert postgres is not None
    versions = {
        "postgres": str(postgres[0]),
        "redis": f"{server.get('server_name', 'redis')} {server.get('valkey_version', server['redis_version'])}",
        "psycopg": version("psycopg"),
        "redis-py": version("redis"),
    }
    return Report(_text(found, asked), {"unit": "seconds, bytes", "tables": [_figures(one) for one in found]}, versions)


def published(arguments: argparse.Namespace, report: Report, facts: Mapping[str, object]) -> None:
    """Writes the document where the run was complete, or where it is asked for."""
    if arguments.docs or not (arguments.quick or arguments.rows):
        shown = " · ".join(f"{name} {value}" for name, value in facts.items() if name != "benchmark")
        path = (arguments.docs or _DOCS) / "performance.md"
        between_marks(path, "scripts/bench scale", f"{report.text}\n\nMeasured on: {shown}")


def _sizes(arguments: argparse.Namespace) -> Sequence[int]:
    if arguments.rows:
        return [int(rows.replace("_", "")) for rows in arguments.rows.split(",")]
    return QUICK if arguments.quick else FULL


def _roomy() -> str | None:
    """Where the servers keep their data: in memory where there is enough, since their disk is not what is measured."""
    memory = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it
    has_room = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ROOM
    return str(memory) if has_room else None


def _measure(bed: Bed, rows: int, times: int) -> Sized:
    _say(f"{rows:,} rows: making the table")
    loaded = _load(bed, rows)
    environment = bed.environment(loaded)
    bed.migrate(environment)
    _say(f"{rows:,} rows: plan")
    plans = [_run(bed, environment, "plan") for _ in range(times)]
    _say(f"{rows:,} rows: backfill")
    done = _run(bed, environment, "backfill", nbytes=loaded.nbytes)
    if (held := bed.redis.dbsize()) < rows:
        raise SystemExit(f"Redis holds {held} keys, not {rows}: {done.stdout}")
    _say(f"{rows:,} rows: status")
    asked = [_run(bed, environment, "status") for _ in range(times)]
    row = bed.admin.execute(
        "SELECT pg_total_relation_size(%s::regclass), (SELECT count(*) FROM cachemig.chunk)", [loaded.table]
    ).fetchone()
    assert row is not None
    bed.abandon()
    bed.admin.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(loaded.table)))
    bed.admin.execute("CHECKPOINT")
    return Sized(
        rows=rows,
        text_bytes=loaded.nbytes,
        table_bytes=int(row[0]),
        chunks=int(row[1]),
        backfill=done,
        own_s=own_seconds(done),
        plan_s=median(one.seconds for one in plans),
        sampled='"sampled_rows": null' not in plans[0].stdout[0],
        status_s=median(one.seconds for one in asked),
    )


def _load(bed: Bed, rows: int) -> Loaded:
    """About 200 bytes of text a row. Indexes come last: random keys are slow to insert one by one."""
    name = f"scale_{rows}"
    for statement in (
        "CREATE TABLE {table} (id uuid NOT NULL DEFAULT gen_random_uuid(), file_hash text NOT NULL,"
        " analytics_cache jsonb, created_at timestamptz NOT NULL DEFAULT now(), last_accessed_at timestamptz)",
        "INSERT INTO {table} (file_hash, analytics_cache, last_accessed_at)"
        " SELECT encode(sha256(int8send(i)), 'hex'), jsonb_build_object('channels', '[\"CH1\"]'::jsonb, 'summary',"
        " encode(sha256(int8send(-i)), 'hex') || encode(sha256(int8send(i + 1)), 'hex'), 'number', i / 7.0), now()"
        " FROM generate_series(1::bigint, {rows}) AS i",
        "ALTER TABLE {table} ADD PRIMARY KEY (id)",
        "CREATE INDEX ON {table} (file_hash)",
        "VACUUM (ANALYZE, FREEZE) {table}",
        "CHECKPOINT",
    ):
        bed.admin.execute(sql.SQL(statement).format(table=sql.Identifier(name), rows=sql.Literal(rows)))
    row = bed.admin.execute(
        sql.SQL("SELECT sum(octet_length(analytics_cache::text))::bigint FROM {}").format(sql.Identifier(name))
    ).fetchone()
    assert row is not None
    nbytes = int(row[0])
    return Loaded(Size(name, f"{rows:,} rows", rows, rows, 0, 0), name, rows, nbytes, (), nbytes // rows)


def _run(bed: Bed, environment: Mapping[str, str], command: str, nbytes: int = 0) -> Measured:
    return bed.meter.commands(
        [tool(command, "--json")], nbytes, environment=environment, directory=bed.directory / "run"
    )


def _text(found: Sequence[Sized], times: int) -> str:
    heads = ("rows", "MB of text", "table MB", "chunks", "backfill s", "rows a second", "CPU s: tool", "Postgres",
             "Redis", "peak MB", "plan s", "status s")  # fmt: skip
    rows = [
        (
            f"{one.rows:,}",
            f"{one.text_bytes / _MB:,.0f}",
            f"{one.table_bytes / _MB:,.0f}",
            f"{one.chunks:,}",
            f"{one.own_s:.2f}",
            f"{one.rows / one.own_s:,.0f}",
            *(
                _shown(cpu, 1, 2)
                for cpu in (one.backfill.tool_cpu_s, one.backfill.postgres_cpu_s, one.backfill.redis_cpu_s)
            ),
            _shown(one.backfill.rss_bytes, _MB, 0),
            f"{one.plan_s:.2f}{'' if one.sampled else ' (all rows)'}",
            f"{one.status_s:.2f}",
        )
        for one in found
    ]
    return (
        "Rows of about 200 bytes of text, one process with everything on, by its own clock; `plan` and `status` from"
        f" the start of Python to its end, medians of {times}.\n\n{table(heads, rows, words=0)}"
    )


def _shown(value: float | None, unit: float, places: int) -> str:
    return "–" if value is None else f"{value / unit:,.{places}f}"


def _figures(one: Sized) -> dict[str, object]:
    return {**asdict(one), "backfill": {k: v for k, v in asdict(one.backfill).items() if k != "stdout"}}


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)

"""What cachemig does, as a user runs it: `python -m cachemig`, from its start to its exit."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.backfill.bed import PREFIX, Bed, Loaded, tool
from benchmarks.backfill.processes import Measured

VERIFY = "cachemig verify, all keys"
SYNC = "cachemig sync"


def backfill_name(workers: int, codec: str, shape: str) -> str:
    more = "" if shape == "object" else f", shape {shape}"
    return f"cachemig backfill, {'one worker' if workers == 1 else 'two workers'}, {codec}{more}"


@dataclass(frozen=True)
class Safeguard:
    """A way to run with less of it."""

    title: str
    without: tuple[str, ...] = ()
    """What benchmarks.backfill.unguarded takes out."""
    settings: tuple[tuple[str, str], ...] = ()


ALL_ON = Safeguard("everything on")
SAFEGUARDS = (
    ALL_ON,
    Safeguard("without the fence", ("fence",)),
    Safeguard("without hashes", ("hash",)),
    Safeguard("without the ledger", ("ledger",)),
    Safeguard("without expiry", settings=(("ttl", "0"),)),
    Safeguard("without a shape check", settings=(("shape", "any"),)),
    Safeguard("without any of these", ("fence", "hash", "ledger"), (("ttl", "0"), ("shape", "any"))),
)


def backfill(bed: Bed, table: Loaded, *, workers: int, codec: str, shape: str, changes: int = 0) -> dict[str, Measured]:
    """Of a migration that has just begun. Where nothing but the default is set, verify follows, and sync."""
    environment = bed.environment(table, codec=codec, shape=shape)
    bed.migrate(environment)
    command = tool("backfill", "--json", "--workers", str(workers))
    found = {backfill_name(workers, codec, shape): _run(bed, table, environment, [command])}
    if (workers, codec, shape) == (1, "json", "object"):
        found[VERIFY] = _run(bed, table, environment, [tool("verify", "--json")])
        if changes:
            found |= _sync(bed, table, changes, environment)
    return found


def priced(bed: Bed, table: Loaded, safeguard: Safeguard) -> dict[str, Measured]:
    environment = bed.environment(table, **dict(safeguard.settings))
    bed.migrate(environment)
    without = ",".join(safeguard.without) or "none"
    return {
        safeguard.title: _run(
            bed, table, environment, [tool(without, "backfill", "--json", module="benchmarks.backfill.unguarded")]
        )
    }


@dataclass(frozen=True)
class Profile:
    """How often each thread was seen in each stage, during one backfill with one worker."""

    seconds: float
    seen: dict[str, dict[str, int]]


def profile(bed: Bed, table: Loaded) -> Profile:
    environment = bed.environment(table)
    bed.migrate(environment)
    path = bed.directory / "run" / "profile.json"
    _run(bed, table, environment, [tool(str(path), "backfill", "--json", module="benchmarks.backfill.profiled")])
    return Profile(**json.loads(path.read_text(encoding="utf-8")))


def sync(bed: Bed, table: Loaded, changes: int) -> dict[str, Measured]:
    """By itself; `backfill` does the same where it comes by."""
    environment = bed.environment(table)
    bed.migrate(environment)
    _run(bed, table, environment, [tool("backfill", "--json")])
    return _sync(bed, table, changes, environment)


def _sync(bed: Bed, table: Loaded, changes: int, environment: Mapping[str, str]) -> dict[str, Measured]:
    """The backlog of so many changed rows; bytes are those of the values that are delivered."""
    bed.change(table, changes)
    measured = bed.meter.commands(
        [tool("sync", "--json")],
        table.nbytes * changes // table.rows,
        environment=environment,
        directory=bed.directory / "run",
    )
    if (delivered := json.loads(measured.stdout[0])["changes"]) != changes:
        raise SystemExit(f"sync delivered {delivered} of {changes} changes")
    bed.rest(table)
    return {SYNC: measured}


@dataclass(frozen=True)
class Resumed:
    """A backfill that was killed, and the same command again."""

    before_s: float
    after_s: float
    chunks: int
    done: int
    """Chunks when it was killed."""
    twice: int
    """Entries that Redis held by then, and no finished chunk accounts for."""
    chunk_entries: float
    """Of the largest chunk."""


def resume(bed: Bed, table: Loaded) -> Resumed:
    """SIGKILL when half of the chunks are done, and more than half of the next one."""
    chunk_bytes = min(32 << 20, max(1, table.nbytes // 10))
    environment = bed.environment(table, chunk_bytes=str(chunk_bytes))
    bed.migrate(environment)
    began = time.perf_counter()
    process = subprocess.Popen(
        tool("backfill", "--json"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=bed.directory / "run",
    )
    first_s = None
    while process.poll() is None:
        chunks, done, _ = _chunks(bed)
        if done and first_s is None:
            first_s = time.perf_counter() - began
        if first_s is not None and 2 * done >= chunks:
            time.sleep(0.6 * (time.perf_counter() - began - first_s) / max(1, done - 1))
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before_s = time.perf_counter() - began
    chunks, done, entries = _chunks(bed)
    held = sum(1 for _ in bed.redis.scan_iter(match=f"{PREFIX}*", count=5000))
    again = _run(bed, table, environment, [tool("backfill", "--json")])
    row = bed.admin.execute("SELECT max((figures ->> 'entries')::int) FROM cachemig.chunk").fetchone()
    assert row is not None
    return Resumed(before_s, again.seconds, chunks, done, max(0, held - entries), float(row[0]))


def _chunks(bed: Bed) -> tuple[int, int, int]:
    row = bed.admin.execute(
        "SELECT count(*), count(*) FILTER (WHERE state = 'done'),"
        " coalesce(sum((figures ->> 'entries')::bigint) FILTER (WHERE state = 'done'), 0)::bigint FROM cachemig.chunk"
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1]), int(row[2])


def _run(bed: Bed, table: Loaded, environment: Mapping[str, str], commands: list[list[str]]) -> Measured:
    measured = bed.meter.commands(commands, table.nbytes, environment=environment, directory=bed.directory / "run")
    if "backfill" in commands[0]:  # nothing was left out
        held = bed.redis.dbsize()
        if held < table.rows:
            raise SystemExit(f"Redis holds {held} keys, not {table.rows}: {measured.stdout}")
    return measured


def own_seconds(measured: Measured) -> float:
    """What the tool itself says that the work took: without the start of Python."""
    documents: list[Any] = [json.loads(out) for out in measured.stdout]
    return max(float(document["seconds"]) for document in documents)

"""What capture costs an application: latency of its single-row updates, and time per row of its bulk statements.

Twins of one table differ in their capture alone: two have none (their difference is the noise), one is captured by
column list, as most tables are, one by comparing OLD and NEW. Every update goes to all twins, one right after the other
and in random order, so that whatever else the machine does meets all of them alike.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from random import Random
from statistics import median
from types import MappingProxyType
from typing import Any

import psycopg
from psycopg import sql

from benchmarks import machine
from benchmarks.report import Report, percentile, spread, table
from cachemig.config import Settings
from cachemig.demo.servers import PostgresServer, RedisServer
from cachemig.source import capture
from cachemig.source.table import inspect

Connection = psycopg.Connection[tuple[Any, ...]]

# As a server that must not lose a commit runs. No checkpoint and no vacuum but our own, between the measurements.
DURABLE: Mapping[str, str] = MappingProxyType(
    {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "shared_buffers": "512MB",
        "max_wal_size": "8GB",
        "checkpoint_timeout": "1h",
        "autovacuum": "off",
    }
)
OFF, AGAIN, ON, COMPARE = "off", "off, the twin", "on", "on, comparing"
TWINS: Mapping[str, str] = MappingProxyType(
    {OFF: "sessions_off", AGAIN: "sessions_again", ON: "therapy_sessions", COMPARE: "sessions_compare"}
)
STALLED = ", Redis stalled"
VALUE, OTHER = "the value", "another column"
UPDATES: Mapping[str, sql.SQL] = MappingProxyType(
    {
        VALUE: sql.SQL("UPDATE {} SET analytics_cache = %(value)s::jsonb WHERE id = %(id)s"),
        OTHER: sql.SQL("UPDATE {} SET cache_hits = cache_hits + 1 WHERE id = %(id)s"),
    }
)
BULK: Mapping[str, sql.SQL] = MappingProxyType(
    {
        "INSERT … SELECT": sql.SQL(
            "INSERT INTO {} (patient_code, file_path, file_hash, analytics_cache)"
            " SELECT patient_code, file_path, file_hash, analytics_cache FROM bulk_source"
        ),
        "UPDATE of the value": sql.SQL("""UPDATE {} SET analytics_cache = analytics_cache || '{{"reviewed": true}}'"""),
        "UPDATE of another column": sql.SQL("UPDATE {} SET cache_hits = cache_hits + 1"),
        "DELETE": sql.SQL("DELETE FROM {}"),
    }
)
_WARM_UP = 6
_VALUES = 16
_WAIT_S = 60.0


@dataclass(frozen=True)
class Size:
    """Values of about `bytes` of text in `rows` rows, updated `updates` times a round."""

    name: str
    bytes: int
    rows: int
    updates: int


@dataclass(frozen=True)
class Effort:
    rounds: int
    sizes: tuple[Size, ...]
    bulk_rows: int
    bulk_value_bytes: int = 200


FULL = Effort(5, (Size("12 KB", 12_000, 200, 400), Size("400 KB", 400_000, 25, 100)), 100_000)
QUICK = Effort(2, (Size("12 KB", 12_000, 20, 20), Size("400 KB", 400_000, 5, 6)), 3_000)


@dataclass
class Series:
    """Microseconds, one figure a round. `beyond`: the median of the differences to the same update of the twin without
    capture, made a moment earlier or later."""

    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    beyond: list[float] = field(default_factory=list)

    def add(self, samples: Sequence[float], without: Sequence[float]) -> None:
        self.p50.append(median(samples))
        self.p99.append(percentile(samples, 0.99))
        self.beyond.append(median(mine - theirs for mine, theirs in zip(samples, without, strict=True)))


@dataclass(frozen=True)
class Block:
    """One statement, measured on the twins by turns."""

    commit: str
    size: str
    statement: str


@dataclass
class Bulk:
    """A statement over many rows: microseconds per row by the clock, and of the server's processor."""

    clock: Series = field(default_factory=Series)
    processor: Series = field(default_factory=Series)
    """Empty where the system does not tell."""


Latencies = dict[Block, dict[str, Series]]
BulkTimes = dict[str, dict[str, Bulk]]


def run(quick: bool) -> Report:
    effort = QUICK if quick else FULL
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="cachemig-bench-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        bed = Bed.start(stack, directory)
        rng = Random(1)  # noqa: S311 - the same values every time, not cryptography
        values = {size.name: [_value(rng, size.bytes) for _ in range(_VALUES)] for size in effort.sizes}
        bed.load(effort, values)
        latencies: Latencies = {}
        for number in range(effort.rounds):
            _say(f"single-row updates, round {number + 1} of {effort.rounds}")
            halves = [False, True] if number % 2 == 0 else [True, False]
            for stalled in halves:
                _half(bed, effort, values, latencies, stalled=stalled)
        bulk: BulkTimes = {}
        for number in range(effort.rounds):
            _say(f"bulk statements, round {number + 1} of {effort.rounds}")
            _bulk_round(bed, effort, bulk, number)
        version = bed.admin.execute("SHOW server_version").fetchone()
        assert version is not None
    return Report(_text(effort, latencies, bulk), _figures(effort, latencies, bulk), {"postgres": str(version[0])})


# The servers and the tables --------------------------------------------------------------------------------------


@dataclass
class Bed:
    """Both servers, a migration in dual-write, and the application's connection, of a role that owns nothing."""

    directory: Path
    redis: RedisServer
    settings: Settings
    admin: Connection
    app: Connection

    @classmethod
    def start(cls, stack: ExitStack, directory: Path) -> Bed:
        postgres = stack.enter_context(PostgresServer(directory, settings=DURABLE))
        redis = stack.enter_context(RedisServer(directory))
        admin = stack.enter_context(psycopg.connect(postgres.dsn(), autocommit=True))
        admin.execute("CREATE ROLE app LOGIN")
        # One statement, one transaction: nothing but the update itself between two readings of the clock.
        app = stack.enter_context(psycopg.connect(postgres.dsn(user="app"), autocommit=True))
        settings = Settings(dsn=postgres.dsn(), redis_url=redis.url, capture="columns")
        return cls(directory, redis, settings, admin, app)

    def load(self, effort: Effort, values: Mapping[str, Sequence[str]]) -> None:
        self.admin.execute((files("cachemig.demo") / "schema.sql").read_bytes())
        for name in [*TWINS.values(), *map(_bulk_twin, TWINS)]:
            if name != TWINS[ON]:
                self.admin.execute(
                    sql.SQL(
                        "CREATE TABLE {0} (LIKE therapy_sessions INCLUDING ALL);"
                        "CREATE TRIGGER set_updated_at BEFORE UPDATE ON {0}"
                        " FOR EACH ROW EXECUTE FUNCTION public.set_updated_at()"
                    ).format(sql.Identifier(name))
                )
        self.admin.execute("CREATE TABLE bulk_source (LIKE therapy_sessions INCLUDING DEFAULTS)")
        self._fill(effort, values)
        self.admin.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app")
        self.cachemig("init")
        for mode, how in ((COMPARE, "compare"), (ON, "columns")):
            self._capture(_bulk_twin(mode), how)
        self._capture(TWINS[COMPARE], "compare")
        self.cachemig("dual-write")  # last: the function for TRUNCATE is that of the migrated table
        self.admin.execute("ANALYZE")

    def _fill(self, effort: Effort, values: Mapping[str, Sequence[str]]) -> None:
        rng = Random(2)  # noqa: S311 - the same rows every time
        insert = sql.SQL(
            "INSERT INTO {} (id, patient_code, file_path, file_hash, analytics_cache) VALUES (%s, %s, %s, %s, %s)"
        )
        for size in effort.sizes:
            for i in range(size.rows):
                key = _key(size.name, i)
                row = (_row_id(size.name, i), f"P{i}", f"{key}.c3d", key, values[size.name][0])
                for name in TWINS.values():
                    self.admin.execute(insert.format(sql.Identifier(name)), row)
        with self.admin.cursor().copy(
            "COPY bulk_source (patient_code, file_path, file_hash, analytics_cache) FROM STDIN"
        ) as copy:
            for i in range(effort.bulk_rows):
                key = _key("bulk", i)
                copy.write_row((f"P{i % 500}", f"{key}.c3d", key, _value(rng, effort.bulk_value_bytes)))

    def _capture(self, name: str, mode: str) -> None:
        twin = inspect(self.admin, replace(self.settings, table=name))
        with self.admin.transaction():
            for statement in capture.statements(twin, mode, replace=False):
                self.admin.execute(statement)

    def rest(self, *tables: str) -> None:
        """What was written is on disk, and what is dead is gone."""
        for name in tables:
            self.admin.execute(sql.SQL("VACUUM {}").format(sql.Identifier(*name.split("."))))
        self.admin.execute("CHECKPOINT")

    def cachemig(self, *arguments: str) -> None:
        done = subprocess.run(
            self._command(*arguments), cwd=self.directory, env=self._environment(), capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"cachemig {' '.join(arguments)} exited {done.returncode}:\n{done.stdout}{done.stderr}")

    @contextmanager
    def stalled_sync(self) -> Iterator[None]:
        """A sync that waits for a Redis that hangs, from before the block to its end; afterwards it delivers all."""
        with (self.directory / "sync.log").open("w") as log:
            sync = subprocess.Popen(
                self._command("sync", "--follow"),
                cwd=self.directory,
                env=self._environment(),
                stdout=log,
                stderr=log,
            )
        try:
            with self.admin.transaction():
                # Redis is stopped when sync is about to take a batch. Later, it could hang without having taken one.
                self.admin.execute("LOCK TABLE cachemig.change")
                self._until("sync waits for the lock", self._sync_wants_the_lock)
                os.kill(self.redis.pid, signal.SIGSTOP)
                self.admin.execute(
                    "UPDATE therapy_sessions SET file_hash = file_hash WHERE id = %s", (_row_id("12 KB", 0),)
                )
            try:
                self._until("sync hangs", lambda: self._hangs(0.3))
                began = time.monotonic()
                yield
                if not self._hangs(time.monotonic() - began):
                    raise SystemExit("sync did not hang all the time; its log:\n" + self._log())
            finally:
                os.kill(self.redis.pid, signal.SIGCONT)
            self._until("all is delivered", self._all_delivered)
        finally:
            sync.send_signal(signal.SIGTERM)
            sync.wait(_WAIT_S)

    def _sync_wants_the_lock(self) -> bool:
        # Not pg_stat_activity, which a transaction sees as it was at the first look.
        query = "SELECT FROM pg_locks WHERE relation = 'cachemig.change'::regclass AND NOT granted"
        return self.admin.execute(query).fetchone() is not None

    def _hangs(self, for_s: float) -> bool:
        """So long has sync held a batch, whose change rows it locks, and waited for something that is not Postgres."""
        query = (
            "SELECT FROM pg_stat_activity WHERE application_name = 'cachemig' AND state = 'idle in transaction'"
            " AND backend_xid IS NOT NULL AND clock_timestamp() - state_change > %s * interval '1 s'"
        )
        return self.admin.execute(query, (for_s,)).fetchone() is not None

    def _all_delivered(self) -> bool:
        return self.admin.execute("SELECT FROM cachemig.change LIMIT 1").fetchone() is None

    def _until(self, what: str, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _WAIT_S
        while not reached():
            if time.monotonic() > deadline:
                raise SystemExit(f"waited for {_WAIT_S:.0f} s in vain until {what}; the log of sync:\n{self._log()}")
            time.sleep(0.1)

    def _log(self) -> str:
        return (self.directory / "sync.log").read_text()

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cachemig", *arguments]

    def _environment(self) -> dict[str, str]:
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("PG", "CACHEMIG_")) and k != "CACHE_TTL_SECONDS"
        }
        return kept | {
            "CACHEMIG_DSN": self.settings.dsn,
            "CACHEMIG_REDIS_URL": self.settings.redis_url,
            "CACHEMIG_CAPTURE": "columns",
            "CACHEMIG_REDIS_TIMEOUT": "250s",  # it hangs for a whole half round, in one transaction
        }


# The measurements ------------------------------------------------------------------------------------------------


def _half(bed: Bed, effort: Effort, values: Mapping[str, Sequence[str]], found: Latencies, *, stalled: bool) -> None:
    """One half of a round: no sync at all, or one that hangs."""
    bed.rest(*TWINS.values(), "cachemig.change")
    modes = [OFF, ON] if stalled else list(TWINS)
    with bed.stalled_sync() if stalled else _nothing():
        for commit in ("on", "off"):
            bed.app.execute(sql.SQL("SET synchronous_commit = {}").format(commit))
            for size in effort.sizes:
                for statement in UPDATES:
                    block = found.setdefault(Block(commit, size.name, statement), {})
                    samples = _block(bed.app, size, values[size.name], statement, modes)
                    for mode in modes:
                        series = block.setdefault(mode + STALLED if stalled else mode, Series())
                        series.add(samples[mode], samples[OFF])
    if not stalled:
        bed.cachemig("sync", "--once")


def _block(
    conn: Connection, size: Size, values: Sequence[str], statement: str, modes: Sequence[str]
) -> dict[str, list[float]]:
    """Microseconds of each update, by mode."""
    queries = {mode: UPDATES[statement].format(sql.Identifier(TWINS[mode])).as_string(conn).encode() for mode in modes}
    samples: dict[str, list[float]] = {mode: [] for mode in modes}
    # At random: in a fixed rotation each mode would always come after the same other, with its traces in the caches.
    order = Random(size.bytes)  # noqa: S311 - the same order every time
    with conn.cursor() as cursor, _no_collector():
        for i in range(-_WARM_UP, size.updates):
            parameters = {"id": _row_id(size.name, i % size.rows)}
            if statement == VALUE:
                parameters["value"] = values[(i // size.rows + i) % len(values)]
            for mode in order.sample(modes, len(modes)):
                began = time.perf_counter_ns()
                cursor.execute(queries[mode], parameters, prepare=True)
                took = time.perf_counter_ns() - began
                if i >= 0:
                    samples[mode].append(took / 1000)
    return samples


def _bulk_round(bed: Bed, effort: Effort, found: BulkTimes, number: int) -> None:
    bed.app.execute("SET synchronous_commit = on")
    modes, server = list(TWINS), bed.app.info.backend_pid
    order = Random(number)  # noqa: S311 - the same order every time
    for statement, query in BULK.items():
        clock: dict[str, float] = {}
        processor: dict[str, float] = {}
        for mode in order.sample(modes, len(modes)):
            twin = _bulk_twin(mode)
            bed.admin.execute("TRUNCATE cachemig.change")
            bed.rest(twin)
            with _no_collector():
                used, began = machine.cpu_ns(server), time.perf_counter_ns()
                cursor = bed.app.execute(query.format(sql.Identifier(twin)))
                clock[mode] = (time.perf_counter_ns() - began) / 1000 / effort.bulk_rows
            time.sleep(0.05)  # a process is charged when it leaves the processor
            now_used = machine.cpu_ns(server)
            if used is not None and now_used is not None:
                processor[mode] = (now_used - used) / 1000 / effort.bulk_rows
            assert cursor.rowcount == effort.bulk_rows
        for mode in modes:
            bulk = found.setdefault(statement, {}).setdefault(mode, Bulk())
            bulk.clock.add([clock[mode]], [clock[OFF]])
            if processor:
                bulk.processor.add([processor[mode]], [processor[OFF]])


# The report ------------------------------------------------------------------------------------------------------


def _text(effort: Effort, latencies: Latencies, bulk: BulkTimes) -> str:
    modes = [AGAIN, ON, ON + STALLED, COMPARE]
    where = ("synchronous_commit", "value", "update of")
    medians, tails, rows = [], [], []
    for block, series in latencies.items():
        head = (block.commit, block.size, block.statement)
        more = (spread(series[mode].beyond) for mode in modes)
        medians.append((*head, f"{median(series[OFF].p50):,.0f}", *more))
        tails.append((*head, *(f"{median(series[mode].p99):,.0f}" for mode in (OFF, *modes))))
    for statement, costs in bulk.items():
        for measure in ("clock", "processor"):
            of = {mode: cost.clock if measure == "clock" else cost.processor for mode, cost in costs.items()}
            if of[OFF].p50:
                more = (spread(of[mode].beyond) for mode in (AGAIN, ON, COMPARE))
                rows.append((statement, measure, f"{median(of[OFF].p50):,.1f}", *more))
    rounds = f"medians of {effort.rounds} rounds, in brackets the least and the greatest of them"
    return "\n".join(
        (
            f"Single-row updates, microseconds: the median without capture, and what comes on top; {rounds}.\n",
            table((*where, OFF, *modes), medians, words=3),
            "\nTheir 99th percentile, microseconds.\n",
            table((*where, OFF, *modes), tails, words=3),
            f"\nBulk statements over {effort.bulk_rows:,} rows, microseconds per row, by the clock and of the server's "
            f"processor; {rounds}.\n",
            table(("statement", "by", OFF, AGAIN, ON, COMPARE), rows, words=2),
        )
    )


def _figures(effort: Effort, latencies: Latencies, bulk: BulkTimes) -> dict[str, object]:
    return {
        "settings": dict(DURABLE),
        "rounds": effort.rounds,
        "unit": "microseconds, one figure a round",
        "updates": [
            {
                "synchronous_commit": block.commit,
                "value": block.size,
                "update_of": block.statement,
                "capture": mode,
                "p50": _rounded(series.p50),
                "p99": _rounded(series.p99),
                "beyond_off": _rounded(series.beyond),
            }
            for block, modes in latencies.items()
            for mode, series in modes.items()
        ],
        "bulk_rows": effort.bulk_rows,
        "bulk": [
            {
                "statement": statement,
                "capture": mode,
                "clock": _rounded(found.clock.p50),
                "clock_beyond_off": _rounded(found.clock.beyond),
                "processor": _rounded(found.processor.p50),
                "processor_beyond_off": _rounded(found.processor.beyond),
            }
            for statement, twins in bulk.items()
            for mode, found in twins.items()
        ],
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 2) for value in values]


# Small things ----------------------------------------------------------------------------------------------------


def _value(rng: Random, size: int) -> str:
    """A JSON text of about this many bytes: random doubles in full precision, as signals have them."""
    return json.dumps({"signal": [rng.random() for _ in range(max(1, size // 21))]})


def _key(kind: str, i: int) -> str:
    """64 hex digits, as the application's file_hash."""
    return hashlib.sha256(f"{kind} {i}".encode()).hexdigest()


def _row_id(kind: str, i: int) -> str:
    return _key(kind, i)[:32]


def _bulk_twin(mode: str) -> str:
    return f"bulk_{list(TWINS).index(mode)}"


@contextmanager
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

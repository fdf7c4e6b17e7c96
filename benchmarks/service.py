"""What CacheService costs an application, Redis well or not: latency of get and put, beside the same calls without it.

Each state of Redis has an address of its own and a client for it, so that all of them can be called by turns, in random
order: whatever else the machine does meets all of them alike. The phase is that of the one migration; it changes
between blocks.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from random import Random
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import psycopg
import redis
import redis.asyncio
from psycopg.types.json import Jsonb

from benchmarks.capture import DURABLE
from benchmarks.report import Report, percentile, table
from cachemig.config import load
from cachemig.demo.servers import PostgresServer, RedisServer
from cachemig.service import AsyncCacheService, CacheService, Options
from cachemig.targets.redis import RedisTarget

HEALTHY, DEAD, HANGING, FULL_UP = "healthy", "dead", "hanging", "full"
STATES = (HEALTHY, DEAD, HANGING, FULL_UP)
COLUMN, REDIS_PY = "psycopg", "redis-py"
MODES = (COLUMN, REDIS_PY, *STATES)
KINDS: Mapping[str, str] = {"async": "AsyncCacheService", "sync": "CacheService"}
CALLS = ("get", "put")
PHASES: Mapping[str, tuple[str, float]] = {"dual-write": ("dual-write", 0.0), "cutover 100 %": ("cutover", 100.0)}
_SELECT = "SELECT analytics_cache FROM therapy_sessions WHERE file_hash = %s"
_UPDATE = "UPDATE therapy_sessions SET analytics_cache = %s WHERE file_hash = %s"
_GIVE_UP_S = 20.0
_WARM_UP = 3
_FIRST = 6


@dataclass(frozen=True)
class Size:
    """Values of about `bytes` of text in `rows` rows, got and put `calls` times a round."""

    name: str
    bytes: int
    rows: int
    calls: int


@dataclass(frozen=True)
class Effort:
    rounds: int
    sizes: tuple[Size, ...]
    clients: int
    """New ones, whose first calls are measured."""


FULL = Effort(5, (Size("12 KB", 12_000, 100, 200), Size("400 KB", 400_000, 20, 30)), 5)
QUICK = Effort(1, (Size("12 KB", 12_000, 10, 8), Size("400 KB", 400_000, 4, 2)), 1)


@dataclass(frozen=True)
class Series:
    """Milliseconds of one call in one phase, size, kind and mode."""

    medians: list[float] = field(default_factory=list)
    """One a round."""
    samples: list[float] = field(default_factory=list)

    def add(self, samples: Sequence[float]) -> None:
        self.medians.append(median(samples))
        self.samples.extend(samples)

    @property
    def p99(self) -> float:
        """Over the calls of all rounds: one round has too few to tell."""
        return percentile(self.samples, 0.99)


@dataclass(frozen=True)
class Block:
    phase: str
    size: str
    call: str
    kind: str


Latencies = dict[Block, dict[str, Series]]
Call = Callable[[str, Any], Awaitable[None]]


def run(quick: bool) -> Report:
    effort = QUICK if quick else FULL
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="cachemig-bench-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        bed = Bed.start(stack, directory)
        values = bed.load(effort)
        latencies, first = asyncio.run(_measure(bed, effort, values))
        defaults = {state: _redis_py_defaults(bed.urls[state], quick=quick) for state in (DEAD, HANGING)}
        version_of = bed.admin.execute("SHOW server_version").fetchone()
        assert version_of is not None
        server: Any = bed.redis.info("server")
    return Report(
        _text(effort, latencies, first, defaults),
        _figures(effort, latencies, first, defaults),
        {
            "postgres": str(version_of[0]),
            "redis": f"{server.get('server_name', 'redis')} {server.get('valkey_version', server['redis_version'])}",
            "psycopg": version("psycopg"),
            "redis-py": version("redis"),
        },
    )


# The servers and the table ---------------------------------------------------------------------------------------


@dataclass
class Bed:
    """A migration in dual-write whose Redis is in four states at once: two servers, a closed port, and a socket that
    accepts and never answers."""

    directory: Path
    dsn: str
    urls: Mapping[str, str]
    admin: psycopg.Connection[tuple[Any, ...]]
    redis: redis.Redis

    @classmethod
    def start(cls, stack: ExitStack, directory: Path) -> Bed:
        postgres = stack.enter_context(PostgresServer(directory, settings=DURABLE, tcp=True))
        homes = {HEALTHY: directory, FULL_UP: directory / FULL_UP}
        servers = {state: stack.enter_context(RedisServer(home, tcp=True)) for state, home in homes.items()}
        urls = {state: server.url for state, server in servers.items()}
        urls[DEAD] = f"redis://127.0.0.1:{_closed_port()}/0"
        urls[HANGING] = f"redis://127.0.0.1:{stack.enter_context(_hanging())}/0"
        admin = stack.enter_context(psycopg.connect(postgres.dsn(), autocommit=True))
        return cls(directory, postgres.dsn(), urls, admin, stack.enter_context(redis.Redis.from_url(urls[HEALTHY])))

    def load(self, effort: Effort) -> dict[str, list[Any]]:
        """Fills table and both servers; the values to put, by size."""
        self.admin.execute((files("cachemig.demo") / "schema.sql").read_bytes())
        rng = Random(1)  # noqa: S311 - the same values every time, not cryptography
        values: dict[str, list[Any]] = {}
        for size in effort.sizes:
            values[size.name] = [{"signal": [rng.random() for _ in range(size.bytes // 21)]} for _ in range(8)]
            for call in CALLS:
                for n in range(size.rows):
                    self.admin.execute(
                        "INSERT INTO therapy_sessions (patient_code, file_path, file_hash, analytics_cache)"
                        " VALUES ('p', 'f', %s, %s)",
                        (_key(size.name, call, n), Jsonb(values[size.name][0])),
                    )
        for command in (("init", "--shape", "object"), ("dual-write",), ("backfill",)):
            self.cachemig(*command)
        self._fill_up(effort)
        self.admin.execute("ANALYZE")
        return values

    def _fill_up(self, effort: Effort) -> None:
        """The other server holds all that the first one does, and takes no more."""
        settings = load({"dsn": self.dsn, "redis_url": self.urls[FULL_UP], "shape": "object"}, {})
        with RedisTarget(settings, {}) as target:
            target.plant_marker(0)
        with CacheService.open(dsn=self.dsn, redis_url=self.urls[FULL_UP], environment={}) as cache:
            for size in effort.sizes:
                keys = [_key(size.name, call, n) for call in CALLS for n in range(size.rows)]
                if cache.warm(keys) != len(keys):
                    raise SystemExit("the server to be full could not be filled")
        with redis.Redis.from_url(self.urls[FULL_UP]) as full:
            full.config_set("maxmemory-policy", "noeviction")
            full.config_set("maxmemory", "1mb")

    def cachemig(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "cachemig", *arguments],
            cwd=self.directory,
            env={"CACHEMIG_DSN": self.dsn, "CACHEMIG_REDIS_URL": self.urls[HEALTHY], "PATH": ""},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"cachemig {' '.join(arguments)} exited {done.returncode}:\n{done.stdout}{done.stderr}")

    def move(self, name: str) -> None:
        self.admin.execute("UPDATE cachemig.migration SET phase = %s, percent = %s", PHASES[name])

    def rest(self) -> None:
        """Changes are delivered, as a running sync does all the time, and what is dead is gone."""
        self.cachemig("sync", "--once")
        self.admin.execute("VACUUM therapy_sessions")
        self.admin.execute("VACUUM cachemig.change")
        self.admin.execute("CHECKPOINT")


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def _hanging() -> Iterator[int]:
    """The port of a server that accepts, reads, and never answers."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=200)
    kept: list[socket.socket] = []

    def swallow(connection: socket.socket) -> None:
        with suppress(OSError):
            while connection.recv(1 << 16):
                pass

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                kept.append(connection)
                threading.Thread(target=swallow, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in kept:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


# Measuring -------------------------------------------------------------------------------------------------------


@dataclass
class Clients:
    """One of each kind for each state, and connections without the library."""

    caches: dict[str, AsyncCacheService]
    twins: dict[str, CacheService]
    plain: psycopg.AsyncConnection[tuple[Any, ...]]
    plain_twin: psycopg.Connection[tuple[Any, ...]]
    redis_py: redis.asyncio.Redis
    redis_py_twin: redis.Redis

    @classmethod
    async def open(cls, bed: Bed, stack: AsyncExitStack) -> Clients:
        caches, twins = {}, {}
        for state in STATES:
            given: dict[str, Any] = {"dsn": bed.dsn, "redis_url": bed.urls[state], "environment": {}}
            caches[state] = await stack.enter_async_context(await AsyncCacheService.open(**given))
            twins[state] = stack.enter_context(CacheService.open(**given))
        plain = await stack.enter_async_context(await psycopg.AsyncConnection.connect(bed.dsn, autocommit=True))
        plain_twin = stack.enter_context(psycopg.connect(bed.dsn, autocommit=True))
        client = redis.asyncio.Redis.from_url(bed.urls[HEALTHY])
        stack.push_async_callback(client.aclose)
        return cls(caches, twins, plain, plain_twin, client, bed.redis)

    async def follow(self, name: str) -> None:
        """Every client acts on the phase."""
        deadline = time.monotonic() + 30
        for cache in self.caches.values():
            while not _acts((await cache.health()), name):
                await asyncio.sleep(0.05)
                _limit(deadline, name)
        for twin in self.twins.values():
            while not _acts(twin.health(), name):
                await asyncio.sleep(0.05)
                _limit(deadline, name)

    def calls(self, call: str, kind: str) -> dict[str, Call]:
        """By mode. redis-py has no put to be compared with: a SET alone would be another thing."""
        if call == "get":
            calls = {mode: self._get(kind, mode) for mode in STATES}
            return {COLUMN: self._select(kind), REDIS_PY: self._get_by_redis_py(kind), **calls}
        calls = {mode: self._put(kind, mode) for mode in STATES}
        return {COLUMN: self._update(kind), **calls}

    def _get(self, kind: str, state: str) -> Call:
        async def call(key: str, _: Any) -> None:
            found = await self.caches[state].get(key) if kind == "async" else self.twins[state].get(key)
            assert found is not None

        return call

    def _put(self, kind: str, state: str) -> Call:
        async def call(key: str, value: Any) -> None:
            cache, twin = self.caches[state], self.twins[state]
            written = await cache.put(key, value) if kind == "async" else twin.put(key, value)
            assert written.stored
            assert written.delivered == (state == HEALTHY)

        return call

    def _select(self, kind: str) -> Call:
        async def call(key: str, _: Any) -> None:
            if kind == "async":
                row = await (await self.plain.execute(_SELECT, (key,))).fetchone()
            else:
                row = self.plain_twin.execute(_SELECT, (key,)).fetchone()
            assert row is not None

        return call

    def _update(self, kind: str) -> Call:
        async def call(key: str, value: Any) -> None:
            if kind == "async":
                await self.plain.execute(_UPDATE, (Jsonb(value), key))
            else:
                self.plain_twin.execute(_UPDATE, (Jsonb(value), key))

        return call

    def _get_by_redis_py(self, kind: str) -> Call:
        async def call(key: str, _: Any) -> None:
            name = f"analysis:{key}"
            found: Any = await self.redis_py.get(name) if kind == "async" else self.redis_py_twin.get(name)
            json.loads(found)

        return call


def _acts(health: Any, name: str) -> bool:
    return (str(health.phase), health.percent) == PHASES[name]


def _limit(deadline: float, name: str) -> None:
    if time.monotonic() > deadline:
        raise SystemExit(f"a client did not follow to {name}")


async def _measure(bed: Bed, effort: Effort, values: Mapping[str, list[Any]]) -> tuple[Latencies, First]:
    latencies: Latencies = {}
    async with AsyncExitStack() as stack:
        clients = await Clients.open(bed, stack)
        for number in range(effort.rounds):
            _say(f"round {number + 1} of {effort.rounds}")
            for phase in list(PHASES)[:: 1 if number % 2 == 0 else -1]:
                bed.move(phase)
                await clients.follow(phase)
                for size in effort.sizes:
                    for kind in KINDS:
                        for call in CALLS:
                            samples = await _block(clients.calls(call, kind), size, values[size.name], call, number)
                            series = latencies.setdefault(Block(phase, size.name, call, kind), {})
                            for mode, one in samples.items():
                                series.setdefault(mode, Series()).add(one)
                bed.rest()
        _say("first calls of new clients")
        bed.move("cutover 100 %")
        first = await _first(bed, effort.sizes[0], effort.clients, values[effort.sizes[0].name])
    return latencies, first


async def _block(
    calls: Mapping[str, Call], size: Size, values: Sequence[Any], call: str, number: int
) -> dict[str, list[float]]:
    """Milliseconds of each call, by mode."""
    samples: dict[str, list[float]] = {mode: [] for mode in calls}
    order = Random(number)  # noqa: S311 - the same order every time
    with _no_collector():
        for n in range(-_WARM_UP, size.calls):
            for mode in order.sample(list(calls), len(calls)):
                key = _key(size.name, call, order.randrange(size.rows))
                value = values[order.randrange(len(values))]
                began = time.perf_counter_ns()
                await calls[mode](key, value)
                took = time.perf_counter_ns() - began
                if n >= 0:
                    samples[mode].append(took / 1e6)
    return samples


Defaults = Mapping[str, Mapping[str, float | None]]
First = dict[str, dict[str, list[float]]]
"""By state and call: milliseconds of the first call of a new client, of the second one, and so on."""


async def _first(bed: Bed, size: Size, clients: int, values: Sequence[Any]) -> First:
    """What the circuit breaker has not seen yet: the price of finding out; healthy: that of new connections."""
    found: First = {}
    for state in (HEALTHY, DEAD, HANGING):
        for call in CALLS:
            each: list[list[float]] = [[] for _ in range(_FIRST)]
            for _ in range(clients):
                options = Options(shadow_sample=0.0)
                given: dict[str, Any] = {"dsn": bed.dsn, "redis_url": bed.urls[state], "environment": {}}
                async with await AsyncCacheService.open(**given, options=options) as cache:
                    for n in range(_FIRST):
                        key, value = _key(size.name, call, n % size.rows), values[0]
                        began = time.perf_counter_ns()
                        await (cache.get(key) if call == "get" else cache.put(key, value))
                        each[n].append((time.perf_counter_ns() - began) / 1e6)
            found.setdefault(state, {})[call] = [median(one) for one in each]
    return found


def _redis_py_defaults(url: str, *, quick: bool) -> dict[str, float | None]:
    """Seconds until a GET of redis-py with its defaults ends in an error; None: not within the limit. Clients that are
    made from a URL have other defaults."""
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    clients = {"Redis(host, port)": redis.Redis(address.hostname, address.port), "from_url": redis.Redis.from_url(url)}
    return {name: _ends_after(client, 1.0 if quick else _GIVE_UP_S) for name, client in clients.items()}


def _ends_after(client: redis.Redis, limit_s: float) -> float | None:
    ended = threading.Event()

    def get() -> None:
        with suppress(redis.RedisError):
            client.get("analysis:nobody")
        ended.set()

    began = time.monotonic()
    threading.Thread(target=get, daemon=True).start()
    return time.monotonic() - began if ended.wait(limit_s) else None


# The report ------------------------------------------------------------------------------------------------------


def _text(effort: Effort, latencies: Latencies, first: First, defaults: Defaults) -> str:
    heads = ("phase", "value", "call", *MODES)
    parts = []
    for kind in KINDS:
        parts.append(
            f"{KINDS[kind]}, milliseconds, p50 (median of {effort.rounds} rounds) / p99. psycopg: SELECT or "
            "UPDATE of the column; redis-py: GET, Redis healthy.\n"
        )
        rows = []
        for block, series in latencies.items():
            if block.kind == kind:
                cells = (_cell(series[mode]) if mode in series else "" for mode in MODES)
                rows.append((block.phase, block.size, block.call, *cells))
        parts.append(table(heads, sorted(rows, key=lambda row: (row[0] != "dual-write", row[1:3])), words=3) + "\n")
    parts.append(
        f"The first calls of a new client in cutover 100 %, milliseconds, medians of {effort.clients} clients.\n"
    )
    rows = [
        (state, call, *(f"{ms:.1f}" for ms in each)) for state, calls in first.items() for call, each in calls.items()
    ]
    parts.append(table(("Redis", "call", *(f"{n + 1}." for n in range(_FIRST))), rows, words=2) + "\n")
    parts.append("One GET of redis-py with its defaults, seconds until an error.\n")
    rows = [
        (state, name, f"more than {_GIVE_UP_S:.0f}" if seconds is None else f"{seconds:.3f}")
        for state, found in defaults.items()
        for name, seconds in found.items()
    ]
    parts.append(table(("Redis", "made by", "seconds"), rows, words=2))
    return "\n".join(parts)


def _cell(series: Series) -> str:
    return f"{median(series.medians):.2f} / {series.p99:.2f}"


def _figures(effort: Effort, latencies: Latencies, first: First, defaults: Defaults) -> dict[str, object]:
    return {
        "settings": dict(DURABLE),
        "rounds": effort.rounds,
        "unit": "milliseconds; p50 one figure a round, p99 over all rounds",
        "calls": [
            {
                "phase": block.phase,
                "value": block.size,
                "call": block.call,
                "kind": block.kind,
                "mode": mode,
                "p50": [round(ms, 3) for ms in one.medians],
                "p99": round(one.p99, 3),
                "longest": round(max(one.samples), 3),
                "calls": len(one.samples),
            }
            for block, series in latencies.items()
            for mode, one in series.items()
        ],
        "first_calls": {
            s: {c: [round(ms, 2) for ms in each] for c, each in calls.items()} for s, calls in first.items()
        },
        "redis_py_defaults_s": dict(defaults),
    }


# Small things ----------------------------------------------------------------------------------------------------


def _key(kind: str, call: str, n: int) -> str:
    """64 hex digits. What is got is never put: a client reads its own writes from where they are."""
    return hashlib.sha256(f"{kind} {call} {n}".encode()).hexdigest()


@contextmanager
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

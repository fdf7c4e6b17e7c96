"""docs/examples/fastapi: the application before and after answers alike, in every phase, Redis dead or alive.

The one before has a table of its own that is never migrated, so it is the oracle. After a change of the example:
python -m tests.acceptance.test_example_fastapi writes adoption.diff anew.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import importlib.util
import itertools
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cachemig.demo.payloads import session_analytics
from cachemig.demo.servers import RedisServer
from cachemig.ladder import bucket
from cachemig.service import Options
from tests.acceptance.conftest import Operator
from tests.conftest import REPOSITORY, OwnRedis

EXAMPLE = REPOSITORY / "docs" / "examples" / "fastapi"
KEYS = [hashlib.sha256(b"%d" % n).hexdigest() for n in range(6)]
UNKNOWN = hashlib.sha256(b"nobody").hexdigest()
_NUMBERS = itertools.count()
assert {bucket(key) < 50 for key in KEYS} == {True, False}


def difference() -> str:
    """What a team changes."""
    before, after = (
        (EXAMPLE / name).read_text(encoding="utf-8").splitlines(True) for name in ("before.py", "after.py")
    )
    return "".join(difflib.unified_diff(before, after, "before.py", "after.py"))


def test_the_diff_is_current() -> None:
    assert (EXAMPLE / "adoption.diff").read_text(encoding="utf-8") == difference(), (
        "run python -m tests.acceptance.test_example_fastapi"
    )


def example(name: str) -> ModuleType:
    """A fresh import: each is a worker of its own."""
    spec = importlib.util.spec_from_file_location(f"example_{name}_{next(_NUMBERS)}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # FastAPI looks its annotations up there
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def serving(module: ModuleType) -> AsyncIterator[httpx.AsyncClient]:
    """The application behind an HTTP client; an exception in it is an answer 500, as a server would give."""
    async with module.app.router.lifespan_context(module.app):
        transport = httpx.ASGITransport(module.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://example") as client:
            yield client


@dataclass
class Frontend:
    """Keeps asking while phases change and Redis dies; remembers what was not answered as it should."""

    client: httpx.AsyncClient
    asked: int = 0
    errors: list[str] = field(default_factory=list)

    async def ask(self) -> None:
        rng = Random(3)
        keys = KEYS[:2] + KEYS[4:]  # to ask for the others would keep them from being cleaned up
        while True:
            answer = await self.client.get(f"/recordings/{rng.choice(keys)}/analytics")
            self.asked += 1
            if answer.status_code not in (200, 404):
                self.errors.append(f"{answer.status_code} {answer.text}")
            await asyncio.sleep(0.03)


def told(answer: httpx.Response) -> Any:
    return answer.json() if answer.text[:1] in ("{", "[") else answer.text or None


@dataclass
class Stand:
    """The application before, two workers of the one after, and the operator."""

    operator: Operator
    before: httpx.AsyncClient
    after: httpx.AsyncClient
    worker: httpx.AsyncClient
    frontend: Frontend
    conn: psycopg.Connection[tuple[Any, ...]]
    rng: Random = field(default_factory=lambda: Random(5))

    async def do(self, *arguments: str) -> str:
        """A command, while the applications go on."""
        ended = await asyncio.to_thread(self.operator.fine, *arguments)
        return ended.out + ended.err

    async def both(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The answer, which is the same of both."""
        answers = [await client.request(method, path, json=body) for client in (self.before, self.after)]
        found = [(answer.status_code, told(answer)) for answer in answers]
        assert found[0] == found[1], path
        return found[0]

    async def seen(self) -> dict[str, int]:
        """Every recording is answered alike, by both workers too."""
        statuses = {}
        for key in [*KEYS, UNKNOWN]:
            path = f"/recordings/{key}/analytics"
            # First of the worker that has not written: the other one would mend what Redis does not have.
            other = await self.worker.get(path)
            statuses[key], body = await self.both("GET", path)
            assert (other.status_code, other.json()) == (statuses[key], body)
        return statuses

    async def use(self, *, sync: bool) -> None:
        """All that users do, in any phase. `sync`: a clean-up is delivered, as `sync --follow` does all the time."""
        for key in KEYS:
            event = {"file_hash": key, "analytics": json.loads(session_analytics(self.rng))}
            assert await self.both("POST", "/webhooks/analysed", event) == (204, None)
        unknown = {"file_hash": UNKNOWN, "analytics": {"channels_analyzed": 1}}
        assert (await self.both("POST", "/webhooks/analysed", unknown))[0] == 404
        assert await self.seen() == dict.fromkeys(KEYS, 200) | {UNKNOWN: 404}
        for key in KEYS[:2]:
            assert await self.both("DELETE", f"/recordings/{key}/analytics") == (204, None)
        for table in ("public.therapy_sessions", "plain.therapy_sessions"):
            self.conn.execute(
                f"UPDATE {table} SET last_accessed_at = now() - interval '31 days' WHERE file_hash = ANY (%s)",
                (KEYS[2:4],),
            )
        assert await self.both("POST", "/jobs/clean-up") == (200, {"cleared": 2})
        if sync:
            await self.do("sync", "--once")
        assert list((await self.seen()).values()) == [404, 404, 404, 404, 200, 200, 404]

    async def health(self) -> dict[str, Any]:
        answer = await self.after.get("/health")
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()
        return found

    async def until_redis_is(self, reachable: bool) -> None:
        for client in (self.after, self.worker):
            for _ in range(400):
                if (await client.get("/health")).json()["redis_reachable"] is reachable:
                    break
                await asyncio.sleep(0.05)
            else:
                pytest.fail("Redis is not noticed")


@pytest.fixture
def redis_server(own_redis: OwnRedis) -> RedisServer:
    return own_redis({"appendonly": "yes", "appendfsync": "always"}, tcp=True)


@pytest.fixture
def prepared(
    tmp_path: Path, database: str, redis_server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Operator, psycopg.Connection[tuple[Any, ...]]]]:
    """The demo's table twice: one to be migrated, one that never is. `init` has been run."""
    operator = Operator(tmp_path, database, redis_server.url, prefix)
    operator.environment["CACHEMIG_SHADOW_READS"] = "20"
    monkeypatch.setenv("CACHEMIG_REDIS_URL", redis_server.url)
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute((REPOSITORY / "src/cachemig/demo/schema.sql").read_bytes())
        conn.execute(
            "CREATE SCHEMA plain; CREATE TABLE plain.therapy_sessions (LIKE public.therapy_sessions INCLUDING ALL)"
        )
        for table in ("public.therapy_sessions", "plain.therapy_sessions"):
            for key in KEYS:
                conn.execute(
                    f"INSERT INTO {table} (patient_code, file_path, file_hash) VALUES ('p', 'f', %s)",
                    (key,),
                )
        operator.fine("init")
        yield operator, conn


@pytest.mark.long
@pytest.mark.timeout(300)
def test_both_answer_alike_in_every_phase(
    prepared: tuple[Operator, psycopg.Connection[tuple[Any, ...]]],
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    operator, conn = prepared

    async def walk() -> None:
        async with AsyncExitStack() as stack:
            monkeypatch.setenv("DATABASE_URL", make_conninfo(operator.dsn, options="-c search_path=plain"))
            before = await stack.enter_async_context(serving(example("before")))
            monkeypatch.setenv("DATABASE_URL", operator.dsn)
            workers: list[httpx.AsyncClient] = []
            for module in (example("after"), example("after")):
                # Two busy cores answer within 250 ms.
                monkeypatch.setattr(
                    module, "OPTIONS", Options(poll_interval=0.1, redis_timeout=0.25, shadow_sample=1.0)
                )
                workers.append(await stack.enter_async_context(serving(module)))
            frontend = Frontend(workers[1])  # has written nothing itself
            stand = Stand(operator, before, workers[0], workers[1], frontend, conn)
            asking = asyncio.create_task(frontend.ask())
            stack.callback(asking.cancel)
            await up_and_down(stand, redis_server)
            assert not asking.done(), asking
            assert frontend.errors == []
            assert frontend.asked > 50

    asyncio.run(walk())


async def up_and_down(stand: Stand, redis: RedisServer) -> None:
    assert (await stand.health())["phase"] == "idle"
    await stand.use(sync=False)

    await stand.do("dual-write")
    await stand.do("backfill")
    await stand.use(sync=True)
    await stand.do("verify")

    await stand.do("cutover", "--percent", "50")
    assert (await stand.health())["percent"] == 50
    await stand.use(sync=True)

    redis.kill()
    await stand.use(sync=False)
    health = await stand.health()
    assert (health["phase"], health["redis_reachable"], health["breaker"] != "closed") == ("cutover", False, True)
    await stand.do("rollback")
    assert (await stand.health())["phase"] == "dual-write"
    await stand.use(sync=False)
    redis.start()
    await stand.until_redis_is(True)
    for command in (("sync", "--once"), ("backfill",), ("verify",), ("cutover", "--percent", "100")):
        await stand.do(*command)
    await stand.use(sync=True)

    redis.kill()
    await stand.use(sync=False)
    redis.start()
    await stand.until_redis_is(True)
    await stand.do("sync", "--once")

    metrics = (await stand.after.get("/metrics")).text
    assert 'cache_reads_total{path="redis",outcome="hit"} ' in metrics
    assert 'cache_reads_total{path="redis",outcome="hit"} 0\n' not in metrics
    assert "cache_fallback_total 0\n" not in metrics

    await stand.do("cutover", "--percent", "0")
    await stand.do("rollback")
    await stand.use(sync=True)
    await stand.do("verify")
    await stand.do("dual-write", "--disable")
    assert (await stand.health())["phase"] == "idle"
    await stand.use(sync=False)


def test_where_only_redis_is_left_a_dead_one_is_503_and_not_404(
    prepared: tuple[Operator, psycopg.Connection[tuple[Any, ...]]],
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    operator, conn = prepared
    operator.fine("dual-write")
    conn.execute("UPDATE cachemig.migration SET phase = 'redis-only'")
    monkeypatch.setenv("DATABASE_URL", operator.dsn)

    async def walk() -> None:
        async with serving(example("after")) as client:
            event = {"file_hash": KEYS[0], "analytics": {"channels_analyzed": 1}}
            assert (await client.post("/webhooks/analysed", json=event)).status_code == 204
            assert (await client.get(f"/recordings/{KEYS[0]}/analytics")).json() == {"channels_analyzed": 1}
            assert (await client.get(f"/recordings/{KEYS[1]}/analytics")).status_code == 404
            redis_server.kill()
            assert (await client.get(f"/recordings/{KEYS[0]}/analytics")).status_code == 503
            assert (await client.post("/webhooks/analysed", json=event)).status_code == 500, "the sender tries again"

    asyncio.run(walk())


if __name__ == "__main__":
    (EXAMPLE / "adoption.diff").write_text(difference(), encoding="utf-8")

"""A web application that keeps the analytics of recordings in a cache, and looks them up by the file's hash.

Run it: DATABASE_URL=postgresql://… CACHEMIG_REDIS_URL=redis://… uvicorn after:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from fastapi import BackgroundTasks, FastAPI, HTTPException
from fastapi.responses import PlainTextResponse
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel

from cachemig.service import AsyncCacheService, Options

OPTIONS = Options()


class Analysed(BaseModel):
    """What the analysis service posts when it is done with a recording."""

    file_hash: str
    analytics: dict[str, Any]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with (
        AsyncConnectionPool(os.environ["DATABASE_URL"], max_size=10, open=False) as pool,
        await AsyncCacheService.open(pool=pool, name="api", options=OPTIONS) as cache,
    ):
        app.state.pool = pool
        app.state.cache = cache
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/webhooks/analysed", status_code=204)
async def analysed(event: Analysed) -> None:
    """Stores the analysis, and sets the session's status in the same transaction."""
    async with app.state.pool.connection() as conn:
        done = await conn.execute(
            "UPDATE therapy_sessions SET status = 'completed' WHERE file_hash = %s",
            (event.file_hash,),
        )
        if not done.rowcount:
            raise HTTPException(404, "no session has this recording")
        written = await app.state.cache.put_in(conn, event.file_hash, event.analytics)
    await written.deliver()  # after the commit


@app.get("/recordings/{file_hash}/analytics")
async def analytics(file_hash: str, after: BackgroundTasks) -> Any:
    """What the frontend asks for, each time a therapist opens a session."""
    found = await app.state.cache.get_entry(file_hash)
    if found.unreachable:  # only once the column is not used any more
        raise HTTPException(503, "the cache does not answer")
    if not found.found:
        raise HTTPException(404, "not analysed yet")
    after.add_task(_touch, file_hash)
    return found.value


@app.delete("/recordings/{file_hash}/analytics", status_code=204)
async def invalidate(file_hash: str) -> None:
    """The recording is to be analysed anew."""
    await app.state.cache.invalidate(file_hash)


@app.post("/jobs/clean-up")
async def clean_up() -> dict[str, int]:
    """Nightly: what nobody has looked at for 30 days goes."""
    async with app.state.pool.connection() as conn:
        done = await conn.execute(
            "UPDATE therapy_sessions SET analytics_cache = '{}'"
            " WHERE last_accessed_at < now() - interval '30 days' AND analytics_cache <> '{}'"
        )
        return {"cleared": done.rowcount}


@app.get("/health")
async def health() -> dict[str, Any]:
    """How this worker's cache stands. A dead Redis is not a reason to restart the worker: it serves from the column."""
    return asdict(await app.state.cache.health())


@app.get("/metrics", response_class=PlainTextResponse)
async def metrics() -> str:
    """Of this worker alone, for Prometheus. What all clients report together: cachemig status."""
    stats = app.state.cache.stats()
    lines = [
        f'cache_reads_total{{path="{path}",outcome="{outcome}"}} {count}'
        for path, outcomes in stats["reads"].items()
        for outcome, count in outcomes.items()
    ]
    lines += [f'cache_writes_total{{outcome="{outcome}"}} {count}' for outcome, count in stats["writes"].items()]
    lines += [f"cache_{name}_total {stats[name]}" for name in ("fallback", "loads", "refused_fills", "breaker_open")]
    return "\n".join(lines) + "\n"


async def _touch(file_hash: str) -> None:
    """At most once an hour for each recording: a read is not to cost a write."""
    async with app.state.pool.connection() as conn:
        await conn.execute(
            "UPDATE therapy_sessions SET last_accessed_at = now() WHERE file_hash = %s"
            " AND (last_accessed_at IS NULL OR last_accessed_at < now() - interval '1 hour')",
            (file_hash,),
        )

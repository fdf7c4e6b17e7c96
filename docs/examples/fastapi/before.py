"""A web application that keeps the analytics of recordings in a JSONB column, and looks them up by the file's hash.

Run it: DATABASE_URL=postgresql://… uvicorn before:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import BackgroundTasks, FastAPI, HTTPException
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel


class Analysed(BaseModel):
    """What the analysis service posts when it is done with a recording."""

    file_hash: str
    analytics: dict[str, Any]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncConnectionPool(os.environ["DATABASE_URL"], max_size=10, open=False) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/webhooks/analysed", status_code=204)
async def analysed(event: Analysed) -> None:
    """Stores the analysis, and sets the session's status in the same transaction."""
    async with app.state.pool.connection() as conn:
        done = await conn.execute(
            "UPDATE therapy_sessions SET status = 'completed', analytics_cache = %s WHERE file_hash = %s",
            (Jsonb(event.analytics), event.file_hash),
        )
        if not done.rowcount:
            raise HTTPException(404, "no session has this recording")


@app.get("/recordings/{file_hash}/analytics")
async def analytics(file_hash: str, after: BackgroundTasks) -> Any:
    """What the frontend asks for, each time a therapist opens a session."""
    async with app.state.pool.connection() as conn:
        rows = await conn.execute(
            "SELECT analytics_cache FROM therapy_sessions WHERE file_hash = %s AND analytics_cache <> '{}'"
            " ORDER BY created_at DESC, id DESC LIMIT 1",
            (file_hash,),
        )
        found = await rows.fetchone()
    if found is None:
        raise HTTPException(404, "not analysed yet")
    after.add_task(_touch, file_hash)
    return found[0]


@app.delete("/recordings/{file_hash}/analytics", status_code=204)
async def invalidate(file_hash: str) -> None:
    """The recording is to be analysed anew."""
    async with app.state.pool.connection() as conn:
        await conn.execute("UPDATE therapy_sessions SET analytics_cache = '{}' WHERE file_hash = %s", (file_hash,))


@app.post("/jobs/clean-up")
async def clean_up() -> dict[str, int]:
    """Nightly: what nobody has looked at for 30 days goes."""
    async with app.state.pool.connection() as conn:
        done = await conn.execute(
            "UPDATE therapy_sessions SET analytics_cache = '{}'"
            " WHERE last_accessed_at < now() - interval '30 days' AND analytics_cache <> '{}'"
        )
        return {"cleared": done.rowcount}


async def _touch(file_hash: str) -> None:
    """At most once an hour for each recording: a read is not to cost a write."""
    async with app.state.pool.connection() as conn:
        await conn.execute(
            "UPDATE therapy_sessions SET last_accessed_at = now() WHERE file_hash = %s"
            " AND (last_accessed_at IS NULL OR last_accessed_at < now() - interval '1 hour')",
            (file_hash,),
        )

"""What applications import: `from cachemig.service import AsyncCacheService` (or `CacheService`, without asyncio)."""

from cachemig.service.cache_async import AsyncCacheService, AsyncPending
from cachemig.service.cache_sync import CacheService, Pending
from cachemig.service.errors import Closed, Unreadable, WriteFailed
from cachemig.service.options import Options
from cachemig.service.results import Entry, Health, Source, Why, Written

__all__ = [
    "AsyncCacheService",
    "AsyncPending",
    "CacheService",
    "Closed",
    "Entry",
    "Health",
    "Options",
    "Pending",
    "Source",
    "Unreadable",
    "Why",
    "WriteFailed",
    "Written",
]

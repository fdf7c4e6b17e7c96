"""What CacheService raises beside the errors of Postgres (cachemig.errors.SourceError) and of configuration."""

from __future__ import annotations

from cachemig.errors import CachemigError


class WriteFailed(CachemigError):
    """A write failed: Redis, the only place it could go to, did not acknowledge it.

    Nothing is half done: value and version go in together or not at all. `uncertain`: the request was on its way when
    the answer failed to come, so Redis may still take it, whole; otherwise it was refused and will not be there.
    """

    hint = "Redis holds the only copy in this phase; check that it runs, then write again"

    def __init__(self, message: str | None = None, *, hint: str | None = None, uncertain: bool = False) -> None:
        super().__init__(
            message or "a write failed: Redis, the only place it could go to, did not acknowledge it", hint=hint
        )
        self.uncertain = uncertain


class Unreadable(CachemigError):
    """The column holds JSON that no Python parser takes: nested too deeply, or with half a surrogate pair."""

    hint = "cachemig plan names such values as unparsable"


class Closed(CachemigError):
    """This CacheService was closed."""

    hint = "open another one: cachemig.service.CacheService.open"

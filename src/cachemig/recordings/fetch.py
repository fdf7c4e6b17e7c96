"""Fetching a recording: whole, within a size and a time, and again where waiting may mend what failed."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_before_delay
from tenacity.wait import wait_random_exponential

from cachemig.errors import Interrupted
from cachemig.recordings import supabase
from cachemig.recordings.digest import require
from cachemig.recordings.errors import RecordingUnavailable
from cachemig.recordings.folder import Folder
from cachemig.recordings.location import Location, parse
from cachemig.recordings.s3 import S3
from cachemig.recordings.store import Store
from cachemig.recordings.web import Web
from cachemig.stop import Stop

MAX_BYTES = 256 * 2**20
TIMEOUT = 300.0
ATTEMPTS = 4
_BLOCK = 2**20
_STALL = 30.0  # seconds without a byte, after which an attempt has failed


@dataclass(frozen=True)
class Fetched:
    """A recording's bytes, all of them."""

    data: bytes = field(repr=False)
    name_for_messages: str
    """The template: the path itself may hold a patient's name."""

    def require(self, key: str) -> bool:
        """Whether the key vouches for the bytes, being their SHA-256; False if it is no digest. Raises `wrong-digest`
        if it is another's."""
        return require(self.data, key, self.name_for_messages)


@dataclass(frozen=True)
class Recordings:
    """Where the recordings of a table are."""

    location: Location
    store: Store = field(repr=False)
    max_bytes: int
    timeout: float
    attempts: int
    stop: Stop = field(repr=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the row that name its recording."""
        return self.location.columns

    def fetch(self, row: Mapping[str, object]) -> Fetched:
        """The row's recording: at most `max_bytes`, after at most `timeout` seconds with all attempts.

        Raises RecordingUnavailable, whose messages and causes show nothing of the row or of a key; Interrupted if a
        stop is requested.
        """
        path = self.location.path(row)
        try:
            data = self._attempts(path)
        except RecordingUnavailable as exc:
            error = RecordingUnavailable(
                exc.name, f"{self.location.shown}: {exc.detail}", hint=exc.hint, transient=exc.transient
            )
        else:
            return Fetched(data, self.location.shown)
        raise error  # out here: its context would be the library's error, which shows the path

    def is_there(self, row: Mapping[str, object]) -> bool:
        """Whether the row's recording can be opened. Raises RecordingUnavailable where that cannot be told."""
        try:
            asyncio.run(self._opened(self.location.path(row)))
        except RecordingUnavailable as exc:
            if exc.transient or exc.name in ("forbidden", "not-configured"):
                raise
            return False
        return True

    async def _opened(self, path: str) -> None:
        late = RecordingUnavailable("timeout", f"it took longer than {_STALL:g} s", transient=True)
        try:
            async with asyncio.timeout(_STALL), self.store.opened(path, _STALL) as read:
                await read(1)
        except TimeoutError:
            raise late from None

    def _attempts(self, path: str) -> bytes:
        deadline = time.monotonic() + self.timeout
        limit = stop_after_attempt(self.attempts) | stop_before_delay(self.timeout)
        again = Retrying(
            retry=retry_if_exception(lambda exc: isinstance(exc, RecordingUnavailable) and exc.transient),
            wait=wait_random_exponential(multiplier=0.2, min=0.05, max=10.0),
            stop=lambda state: self.stop.requested or limit(state),
            sleep=self.stop.wait,
            reraise=True,
        )
        return again(lambda: asyncio.run(self._once(path, deadline)))

    async def _once(self, path: str, deadline: float) -> bytes:
        late = RecordingUnavailable("timeout", f"it took longer than {self.timeout:g} s")
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await self._read(path, deadline, late)
        except TimeoutError:
            raise late from None

    async def _read(self, path: str, deadline: float, late: RecordingUnavailable) -> bytes:
        blocks = []
        size = 0
        async with self.store.opened(path, min(_STALL, self.timeout)) as read:
            while block := await read(min(_BLOCK, self.max_bytes + 1 - size)):
                blocks.append(block)
                size += len(block)
                if size > self.max_bytes:
                    raise RecordingUnavailable("too-large", f"it is larger than {self.max_bytes} bytes")
                if time.monotonic() > deadline:  # a disk does not let asyncio look at the clock
                    raise late
                if self.stop.requested:
                    raise Interrupted(signal_number=self.stop.signal_number)
        return b"".join(blocks)


def open_source(
    location: str,
    *,
    max_bytes: int = MAX_BYTES,
    timeout: float = TIMEOUT,
    attempts: int = ATTEMPTS,
    endpoint: str = "",
    environment: Mapping[str, str],
    stop: Stop | None = None,
) -> Recordings:
    """Where this template leads. Nothing is opened or imported yet.

    `endpoint` is that of S3, else AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL; keys come from `environment`.
    Raises `not-configured` for a location that is empty or no good, and for a key that is missing.
    """
    place = parse(location)
    return Recordings(place, _store(place, endpoint, environment), max_bytes, timeout, attempts, stop or Stop())


def _store(place: Location, endpoint: str, environment: Mapping[str, str]) -> Store:
    if place.scheme == "file":
        return Folder()
    if place.scheme == "s3":
        endpoint = endpoint or environment.get("AWS_ENDPOINT_URL_S3", "") or environment.get("AWS_ENDPOINT_URL", "")
        if endpoint and not re.fullmatch(r"https?://[^/@?#\s]+(/[^@?#\s]*)?", endpoint):
            raise RecordingUnavailable(
                "not-configured",
                "recordings_endpoint must be a URL such as https://project.supabase.co/storage/v1/s3, without a key",
            )
        return S3(place.authority, endpoint or None, environment)
    if supabase.is_download(place):
        return supabase.store(place, environment)
    return Web(f"{place.scheme}://{place.authority}", place.query)

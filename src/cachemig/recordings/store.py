"""What a store is, and how the library behind one is loaded: not before a recording is fetched."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from types import ModuleType
from typing import Protocol

from cachemig.recordings.errors import RecordingUnavailable

Read = Callable[[int], Awaitable[bytes]]
"""Up to so many bytes; none at the end."""


class Store(Protocol):
    def opened(self, path: str, stall: float) -> AbstractAsyncContextManager[Read]:
        """The recording at this path, for reading once from its beginning. No byte for `stall` seconds is an error.

        Raises RecordingUnavailable alone, with a reason that shows nothing of the path.
        """
        ...


def load(module: str, extra: str) -> ModuleType:
    """A module of an optional dependency. Raises `not-installed` with the command that installs it."""
    try:
        return import_module(module)
    except ImportError:
        raise RecordingUnavailable(
            "not-installed", "this location needs a library that is not installed", hint=f"pip install {extra}"
        ) from None

"""Recordings in a folder of this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cachemig.recordings.errors import RecordingUnavailable
from cachemig.recordings.store import Read, load


class Folder:
    """A Store of absolute paths. It does not wait for a file system that hangs, other than as the kernel does."""

    @asynccontextmanager
    async def opened(self, path: str, stall: float) -> AsyncIterator[Read]:  # noqa: ARG002 - a disk is not waited for
        fs = load("fsspec.implementations.local", "fsspec").LocalFileSystem(skip_instance_cache=True)
        try:
            if fs.info(path)["type"] != "file":  # a pipe would be waited for without end
                raise RecordingUnavailable("not-found", "what is there is no file")
            with fs.open(path, "rb", block_size=0) as file:

                async def read(size: int) -> bytes:
                    data: bytes = file.read(size)
                    return data

                yield read
        except (FileNotFoundError, NotADirectoryError):
            raise RecordingUnavailable("not-found", "there is no such recording") from None
        except PermissionError:
            raise RecordingUnavailable("forbidden", "access is refused") from None
        except OSError as exc:
            raise RecordingUnavailable(
                "unreachable", f"the file cannot be read ({exc.strerror or type(exc).__name__})", transient=True
            ) from None

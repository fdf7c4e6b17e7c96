"""Where an archive stands: a path, or a URL of any store that fsspec knows.

What a store cannot append to is made beside it first, in the spool: a local directory. Until it is complete and checked
it is called `<name>.partial` there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from cachemig.archive import writer
from cachemig.errors import CachemigError, ConfigError

_BLOCK = 4 << 20
_EXTRAS = {"s3": "'cachemig[s3]'", "http": "'cachemig[recordings]'", "https": "'cachemig[recordings]'"}


class StoreFailed(CachemigError):
    """The archive's place does not let it be written or read."""

    hint = "nothing is lost; when it is mended, run the same command again"


@dataclass(frozen=True)
class Place:
    """The place of one archive."""

    shown: str
    """For messages, the journal and the control schema."""
    path: Path
    """Of the finished file; of a store: of its copy in the spool."""
    url: str | None = None
    """None: the path is all there is."""

    @property
    def partial(self) -> Path:
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def rewritten(self) -> Path:
        """A copy with something left out, before it takes the other's place."""
        return self.path.with_name(f"{self.path.name}.rewritten")

    def exists(self) -> bool:
        """The finished archive is there."""
        with store_errors(self.shown):
            if self.url is None:
                return self.path.exists()
            fs, name = _store(self.url)
            return bool(fs.exists(name))

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The finished archive, for reading, where it stands."""
        with store_errors(self.shown):
            if self.url is None:
                with self.path.open("rb") as file:
                    yield file
            else:
                fs, name = _store(self.url)
                with fs.open(name, "rb", block_size=_BLOCK) as file:
                    yield file

    @contextmanager
    def local(self, progress: Callable[[int], None] = lambda _: None) -> Iterator[Path]:
        """The finished archive as a local file; of a store: a copy, which is removed again."""
        if self.url is None:
            yield self.path
            return
        try:
            with self.opened() as source, writer.opened(self.path) as copy, store_errors(self.shown):
                copy.truncate()
                done = 0
                while block := source.read(_BLOCK):
                    copy.write(block)
                    done += len(block)
                    progress(done)
            yield self.path
        finally:
            self.path.unlink(missing_ok=True)

    def publish(self, new: Path) -> None:
        """Puts a local file into the place. It is there as a whole, or not at all; a store's own promise is not taken
        for it: read it back (`sha256`)."""
        with store_errors(self.shown):
            if self.url is None:
                writer.replace(new, self.path)
                return
            fs, name = _store(self.url)
            fs.put_file(str(new), name)

    def sha256(self) -> bytes:
        """Of what stands there, read once more."""
        digest = hashlib.sha256()
        with self.opened() as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return digest.digest()


def place(location: str, spool: Path) -> Place:
    """The place that is meant. Raises ConfigError for a URL that is no good, or that holds a secret."""
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", location):
        path = Path(location)
        if not path.name or location.endswith("/"):
            raise ConfigError(f"{location!r} names no file", hint="such as backup/analytics_cache.zst")
        return Place(str(path.absolute()), path)
    parts = urlsplit(location)
    if parts.password is not None or parts.query:
        raise ConfigError(
            "the archive's URL must not hold a password or a query: it is written into the journal",
            hint="let the store find its keys as its own tools do, such as AWS_ACCESS_KEY_ID",
        )
    name = parts.path.rpartition("/")[2]
    if not name:
        raise ConfigError(f"{location!r} names no file", hint="such as s3://bucket/analytics_cache.zst")
    if parts.scheme == "file":
        return place(parts.path, spool)
    return Place(location, spool / name, location)


def _store(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    try:
        return import_module("fsspec.core").url_to_fs(url)  # type: ignore[no-any-return]
    except ImportError as exc:
        raise ConfigError(
            f"{scheme}:// needs a library that is not installed", hint=f"pip install {_EXTRAS.get(scheme, 'fsspec')}"
        ) from exc
    except ValueError as exc:
        raise ConfigError(
            f"{scheme}:// is not a store that fsspec knows", hint="a file, or a URL such as s3://bucket/name.zst"
        ) from exc


@contextmanager
def store_errors(shown: str) -> Iterator[None]:
    """Whatever a store raises leaves this block as a CachemigError."""
    try:
        yield
    except CachemigError:
        raise
    except FileNotFoundError as exc:
        raise StoreFailed(
            f"{shown}: there is no such file or directory",
            hint="name an archive that is there; to write one, make its folder first",
        ) from exc
    except OSError as exc:
        raise StoreFailed(f"{shown}: {exc.strerror or type(exc).__name__}") from exc
    except GeneratorExit:
        raise
    except Exception as exc:
        if not type(exc).__module__.startswith(
            ("s3fs", "botocore", "aiohttp", "aiobotocore", "gcsfs", "adlfs", "fsspec")
        ):
            raise
        raise StoreFailed(f"{shown}: {type(exc).__name__}") from exc

"""Writing an archive: block by block, each on the disk before the next one begins."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO

from cachemig.archive.frames import Damaged, PieceWriter
from cachemig.archive.reader import Block, Found, unfinished
from cachemig.archive.records import (
    Bound,
    Head,
    Manifest,
    RowHead,
    Totals,
    block_line,
    end_line,
    head_line,
    manifest_line,
)
from cachemig.entries.entry import Buffer
from cachemig.errors import LeaseHeld, Refused

_COPY = 1 << 20


class Writer:
    """A file that is being written, readable by its owner alone from its first byte. Held by one process at a time.

    A block that was ended is on the disk; a process that dies in the middle of one loses this one.
    """

    def __init__(self, path: Path, head: Head, *, fresh: bool = False) -> None:
        """Goes on with the file where it was begun with the same head, else begins anew; `fresh`: anew in any case.
        Raises LeaseHeld where another process writes to it, Refused where it is no file of one's own."""
        self.path = path
        self.head = head
        self.began_anew: str | None = None
        """Why what was there could not be gone on with; None if it could, or nothing was there."""
        self.file = opened(path)
        try:
            found = None if fresh else self._found(head)
            self.totals = found.totals if found else Totals()
            self.blocks = found.blocks if found else []
            self.file.seek(found.good_until if found else 0)
            self.file.truncate()
            self.resumed = len(self.blocks)
            """Blocks that were there."""
            self._pieces = PieceWriter(
                self.file, found.good_until if found else 0, found.digest_until if found else hashlib.sha256()
            )
            if found is None:
                self._pieces.write(head_line(head))
                self._pieces.flush()
            self._sync()
        except BaseException:
            self.file.close()
            raise

    def _found(self, head: Head) -> Found | None:
        if os.fstat(self.file.fileno()).st_size == 0:
            return None
        try:
            found = unfinished(self.file)
        except Damaged as exc:
            self.began_anew = f"what was there cannot be gone on with: {exc}"
            return None
        assert found.head is not None
        differing = [n for n in vars(head) if getattr(found.head, n) != getattr(head, n)]
        if differing:
            self.began_anew = f"what was there is of another {', '.join(differing)}"
            return None
        return found

    @property
    def upper(self) -> Bound:
        """Where the next block begins; None before the first one, and after the last."""
        return self.blocks[-1].upper if self.blocks else None

    @property
    def whole(self) -> bool:
        """The blocks reach to the end of the table."""
        return bool(self.blocks) and self.blocks[-1].upper is None

    def block(self, upper: Bound, rows: Iterable[tuple[RowHead, Iterable[Buffer]]]) -> Block:
        """Writes the rows up to `upper` (exclusive; None: to the end) and waits until they are on the disk."""
        before = self._pieces.offset, self._pieces.digest.copy()
        try:
            return self._add(self._block(upper, rows))
        except BaseException:  # a server went away, or a stop: what was written of the block is taken back
            self.file.seek(before[0])
            self.file.truncate()
            self._pieces = PieceWriter(self.file, *before)
            raise

    def _block(self, upper: Bound, rows: Iterable[tuple[RowHead, Iterable[Buffer]]]) -> Block:
        number, lower, start = len(self.blocks) + 1, self.upper, self._pieces.offset
        self._pieces.write(block_line(number, lower, upper))
        digest = hashlib.sha256()
        count = entries = nbytes = 0
        for head, text in rows:
            line = head.line()
            digest.update(line[:-1])
            self._pieces.write(line)
            for part in text:
                self._pieces.write(part)
            self._pieces.write(b"\n")
            count, entries, nbytes = count + 1, entries + head.entry, nbytes + head.nbytes
            del text
        self._pieces.write(end_line(number, count, entries, nbytes, digest.digest()))
        self._pieces.flush()
        self._sync()
        return Block(number, lower, upper, start, self._pieces.offset, count, entries, nbytes, digest.digest())

    def copy(self, source: IO[bytes], block: Block) -> Block:
        """Takes over a block of another archive as it is."""
        start = self._pieces.offset
        source.seek(block.start)
        left = block.end - block.start
        while left:
            data = source.read(min(_COPY, left))
            if not data:
                raise Damaged("the archive was changed while it was read")
            self._pieces.raw(data)
            left -= len(data)
        return self._add(
            Block(
                block.number, block.lower, block.upper, start, self._pieces.offset, block.rows, block.entries,
                block.nbytes, block.digest,
            )
        )  # fmt: skip

    def _add(self, block: Block) -> Block:
        if (block.number, block.lower) != (len(self.blocks) + 1, self.upper):
            raise ValueError("a block does not follow the one before it")
        self.blocks.append(block)
        self.totals.add(block.rows, block.entries, block.nbytes, block.digest)
        return block

    def finish(self, manifest: Manifest) -> None:
        """Writes manifest and seal. What is to be counted is set here."""
        at = self._pieces.offset
        whole = Manifest(
            **{
                **vars(manifest),
                "head": self.head,
                "rows": self.totals.rows,
                "entries": self.totals.entries,
                "bytes": self.totals.nbytes,
                "blocks": len(self.totals.blocks),
                "sha256": hashlib.sha256(b"".join(self.totals.blocks)).hexdigest(),
                "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        self._pieces.write(manifest_line(whole))
        self._pieces.seal(at)
        self._sync()

    def _sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


def opened(path: Path) -> IO[bytes]:
    """The file, made where it is missing. Its mode is 0600 before anything stands in it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_nlink > 1:
            raise Refused(f"{path} is not a file of this user's own", hint="give another --to")
        os.fchmod(descriptor, 0o600)
    except BlockingIOError:
        os.close(descriptor)
        raise LeaseHeld(f"another process writes to {path}", hint="wait for it, or give another --to") from None
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "r+b")


def replace(new: Path, path: Path) -> None:
    """Puts the file under its name; the name is on the disk when this returns."""
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

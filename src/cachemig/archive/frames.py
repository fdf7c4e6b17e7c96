"""The container: a row of pieces, each a Zstandard frame of at most 1 MiB of content behind its length; then the seal.

    piece    12 bytes of a skippable frame that hold the length of the frame behind it (as pzstd writes it), and that
             frame, with its content's size and checksum
    seal     the last 56 bytes, a skippable frame: `cachemig`, where the manifest's piece begins, and the SHA-256 of
             every byte before

So `zstd -d` reads the file, memory is bounded whatever a value holds, a file can go on after any piece, and the seal
covers what Zstandard's own checksums do not: its headers.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import IO, Any

import zstandard

from cachemig.entries.entry import Buffer
from cachemig.errors import CachemigError

PIECE = 1 << 20
LEVEL = 3
SEAL_BYTES = 56
_MOST_PACKED = PIECE + 4096  # a frame of what cannot be compressed is larger than its content, by less than this
_PIECE_HEAD = struct.Struct("<III")
_SEAL_HEAD = struct.Struct("<II8sQ")
_PIECE_MAGIC, _SEAL_MAGIC = 0x184D2A50, 0x184D2A51
_NAME = b"cachemig"


class Damaged(CachemigError):
    """The archive is damaged, or is none."""

    hint = "nothing was taken from it; use another copy of the file"


class PieceWriter:
    """Cuts what is written into pieces, and knows the SHA-256 of every byte of the file so far."""

    def __init__(self, file: IO[bytes], offset: int, digest: Any) -> None:
        self.file = file
        self.offset = offset
        self.digest = digest
        self._waiting = bytearray()
        self._compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True)

    def write(self, data: Buffer) -> None:
        rest = memoryview(data)
        while len(rest):
            if not self._waiting and len(rest) >= PIECE:  # a large value is not copied first
                self._piece(rest[:PIECE])
                rest = rest[PIECE:]
                continue
            room = PIECE - len(self._waiting)
            self._waiting += rest[:room]
            rest = rest[room:]
            if len(self._waiting) == PIECE:
                self.flush()

    def flush(self) -> None:
        """Ends the piece; the next byte written begins another one."""
        if self._waiting:
            self._piece(self._waiting)
            self._waiting = bytearray()

    def raw(self, data: bytes) -> None:
        """Bytes that are pieces already."""
        assert not self._waiting
        self.file.write(data)
        self.digest.update(data)
        self.offset += len(data)

    def _piece(self, content: Buffer) -> None:
        frame = self._compressor.compress(content)
        for part in (_PIECE_HEAD.pack(_PIECE_MAGIC, 4, len(frame)), frame):
            self.file.write(part)
            self.digest.update(part)
            self.offset += len(part)

    def seal(self, manifest_at: int) -> None:
        """Writes the seal, which ends the file."""
        self.flush()
        head = _SEAL_HEAD.pack(_SEAL_MAGIC, SEAL_BYTES - 8, _NAME, manifest_at)
        self.digest.update(head)
        seal = head + self.digest.digest()
        self.digest.update(seal[len(head) :])
        self.file.write(seal)
        self.offset += len(seal)


class PieceReader:
    """The content of the pieces, one after the other; raises Damaged for whatever is not one.

    `digest` is the SHA-256 of all bytes up to `offset`, which is always the end of a piece.
    """

    def __init__(self, file: IO[bytes], *, looked_at: Callable[[int], None] | None = None) -> None:
        self.file = file
        self.offset = file.tell()
        self.digest = hashlib.sha256()
        self.piece_at = self.offset
        self._decompressor = zstandard.ZstdDecompressor()
        self._content = memoryview(b"")
        self._looked_at = looked_at

    @property
    def at_piece_end(self) -> bool:
        return not self._content

    def more(self) -> memoryview:
        """What is left of the piece, or else the next one; empty at the seal and at the end of the file."""
        if not self._content:
            self._content = memoryview(self._next())
        return self._content

    def take(self, n: int) -> None:
        self._content = self._content[n:]

    def line(self, limit: int = 64 << 20) -> bytes:
        """The next line without its end; empty at the end of the content."""
        parts: list[bytes] = []
        size = 0
        while True:
            content = self.more()
            if not content:
                if parts:
                    raise Damaged("the archive ends in the middle of a record")
                return b""
            # A record's head is some hundred bytes: to look for its end does not mean to copy the piece.
            window = bytes(content[:4096])
            end = window.find(b"\n")
            parts.append(window if end < 0 else window[:end])
            self.take(len(parts[-1]) + (end >= 0))
            if end >= 0:
                return b"".join(parts)
            size += len(window)
            if size > limit:
                raise Damaged(f"a line of the archive is longer than {limit:,} bytes")

    def _next(self) -> bytes:
        self.piece_at = self.offset
        head = self.file.read(_PIECE_HEAD.size)
        if not head:
            return b""
        if len(head) < _PIECE_HEAD.size:
            raise Damaged(f"the archive is cut off after {self.offset:,} bytes")
        magic, size, length = _PIECE_HEAD.unpack(head)
        if magic == _SEAL_MAGIC:
            self.file.seek(self.offset)
            return b""
        if magic != _PIECE_MAGIC or size != 4 or not 0 < length <= _MOST_PACKED:
            raise self._damage("no piece of an archive begins here")
        frame = self.file.read(length)
        if len(frame) < length:
            raise Damaged(f"the archive is cut off after {self.offset:,} bytes")
        try:
            if not 0 < zstandard.get_frame_parameters(frame).content_size <= PIECE:
                raise self._damage("a piece is larger than any that is written")
            content = self._decompressor.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as exc:
            raise self._damage(str(exc)) from exc
        self.digest.update(head)
        self.digest.update(frame)
        self.offset += len(head) + length
        if self._looked_at is not None:
            self._looked_at(self.offset)
        return content

    def _damage(self, why: str) -> Damaged:
        return Damaged(f"the archive is damaged at byte {self.offset:,}: {why}")

    def seal(self) -> int:
        """Reads the seal, compares it with what was read, and makes sure that it ends the file; where the manifest's
        piece begins. Raises Damaged."""
        seal = self.file.read(SEAL_BYTES)
        manifest_at = _sealed(seal)
        head = seal[: _SEAL_HEAD.size]
        self.digest.update(head)
        if self.digest.digest() != seal[_SEAL_HEAD.size :]:
            raise Damaged("the archive is damaged: its bytes are not those that were sealed")
        self.digest.update(seal[_SEAL_HEAD.size :])
        self.offset += SEAL_BYTES
        if self.file.read(1):
            raise Damaged(f"the archive is damaged: something follows its end at byte {self.offset:,}")
        return manifest_at


def manifest_at(file: IO[bytes], size: int) -> int:
    """Where the manifest's piece begins, by the seal; of a file of so many bytes. Raises Damaged."""
    if size < SEAL_BYTES:
        raise Damaged("the archive is not complete: it has no seal")
    file.seek(size - SEAL_BYTES)
    return _sealed(file.read(SEAL_BYTES))


def _sealed(seal: bytes) -> int:
    if len(seal) < SEAL_BYTES:
        raise Damaged("the archive is not complete: it has no seal")
    magic, size, name, at = _SEAL_HEAD.unpack_from(seal)
    if (magic, size, name) != (_SEAL_MAGIC, SEAL_BYTES - 8, _NAME):
        raise Damaged("the archive is not complete, or damaged at its end: it has no seal")
    return int(at)

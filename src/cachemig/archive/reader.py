"""Reading an archive: every byte is accounted for, whatever the reader wants of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from cachemig.archive.frames import Damaged, PieceReader, manifest_at
from cachemig.archive.records import (
    Bound,
    Head,
    Manifest,
    RowHead,
    Totals,
    parse,
    parsed_bound,
    parsed_head,
    parsed_manifest,
    parsed_row,
)


@dataclass(frozen=True)
class Block:
    """A range of rows, all of them in bytes [start, end) of the file, which begin and end with a piece."""

    number: int
    lower: Bound
    upper: Bound
    start: int
    end: int
    rows: int
    entries: int
    nbytes: int
    digest: bytes


class Record:
    """A row. Its text is to be read before the next record is asked for; the rest of it is checked then."""

    def __init__(self, head: RowHead, pieces: PieceReader) -> None:
        self.head = head
        self._left = head.nbytes
        self._pieces = pieces
        self._digest = hashlib.sha256()

    def text(self) -> Iterator[memoryview]:
        """The column's text in slices of at most 1 MiB. Raises Damaged at its end if it is not what was archived."""
        while self._left:
            content = self._pieces.more()[: self._left]
            if not content:
                raise Damaged("the archive ends in the middle of a value")
            self._digest.update(content)
            self._left -= len(content)
            self._pieces.take(len(content))
            yield content
        if self._pieces is not _NONE:
            end = bytes(self._pieces.more()[:1])
            self._pieces.take(1)
            self._pieces = _NONE
            if end != b"\n" or self._digest.digest() != self.head.sha256:
                raise Damaged("the archive is damaged: a value is not the one that was archived")

    def finish(self) -> None:
        for _ in self.text():
            pass


_NONE: Any = None


@dataclass
class Found:
    """What a scan found in a file: filled while it is read, complete when the scan has ended without an error."""

    head: Head | None = None
    blocks: list[Block] = field(default_factory=list)
    manifest: Manifest | None = None
    sha256: bytes = b""
    """Of all bytes of the file, as sha256sum prints it."""
    size: int = 0
    good_until: int = 0
    """The end of the last complete block, or of the head."""
    digest_until: Any = None
    """The state of the SHA-256 there."""
    totals: Totals = field(default_factory=Totals)


def records(
    file: IO[bytes], found: Found, *, looked_at: Callable[[int], None] | None = None
) -> Generator[Record | Block, None, None]:
    """Every row of a complete archive, and each block behind its rows. What a value is was checked by the time the next
    item comes, and the file as a whole when the generator has ended. Raises Damaged for a byte that is not as written.
    """
    pieces = PieceReader(file, looked_at=looked_at)
    with _format():
        found.head = parsed_head(parse(pieces.line()))
        _piece_end(pieces)
        _good(found, pieces)
        while True:
            line = parse(pieces.line() or _cut())
            if "block" not in line:
                break
            yield from _block(pieces, line, found)
        at = pieces.piece_at
        found.manifest = parsed_manifest(line)
        _piece_end(pieces)
        if pieces.more():
            raise Damaged("the archive is damaged: something follows its manifest")
    _agree(found)
    if pieces.seal() != at:
        raise Damaged("the archive is damaged: its seal points elsewhere")
    found.sha256, found.size = pieces.digest.digest(), pieces.offset


def scan(file: IO[bytes], *, looked_at: Callable[[int], None] | None = None) -> Found:
    """Reads all of a complete archive. Raises Damaged."""
    found = Found()
    for item in records(file, found, looked_at=looked_at):
        if isinstance(item, Record):
            item.finish()
    return found


def unfinished(file: IO[bytes], *, looked_at: Callable[[int], None] | None = None) -> Found:
    """What can be gone on with of a file that may be cut off anywhere. Raises Damaged where its head is not whole."""
    found = Found()
    try:
        for item in records(file, found, looked_at=looked_at):
            if isinstance(item, Record):
                item.finish()
    except Damaged:
        if found.head is None:
            raise
        found.manifest = None
    return found


def read_block(file: IO[bytes], block: Block) -> Generator[Record, None, None]:
    """The rows of one block of an archive that was scanned before. Raises Damaged."""
    file.seek(block.start)
    pieces = PieceReader(file)
    with _format():
        for item in _block(pieces, parse(pieces.line() or _cut()), Found(blocks=[])):
            if isinstance(item, Record):
                yield item
            elif item.digest != block.digest:
                raise Damaged("the archive was changed while it was read")


def summary(file: IO[bytes], size: int) -> Manifest:
    """The manifest alone, by the seal of a file of so many bytes. Nothing else is read or checked. Raises Damaged."""
    at = manifest_at(file, size)
    if at >= size:
        raise Damaged("the archive is damaged: its seal points elsewhere")
    file.seek(at)
    with _format():
        return parsed_manifest(parse(PieceReader(file).line() or _cut()))


# --------------------------------------------------------------------------------------------------------------------


def _block(pieces: PieceReader, begin: dict[str, Any], found: Found) -> Generator[Record | Block, None, None]:
    number, lower, upper = begin["block"], parsed_bound(begin["lower"]), parsed_bound(begin["upper"])
    start = pieces.piece_at
    before = found.blocks[-1] if found.blocks else None
    follows = (before.number + 1, before.upper) if before else (number, lower)
    if (number, lower) != follows or (before is not None and before.upper is None):
        raise Damaged(f"the archive is damaged: block {number} does not follow the one before it")
    digest = hashlib.sha256()
    rows = entries = nbytes = 0
    while True:
        raw = pieces.line() or _cut()
        line = parse(raw)
        if "end" in line:
            break
        record = Record(parsed_row(line), pieces)
        yield record
        record.finish()
        digest.update(raw)
        rows, entries, nbytes = rows + 1, entries + record.head.entry, nbytes + record.head.nbytes
    _piece_end(pieces)
    said = (line["end"], line["rows"], line["entries"], line["bytes"], line["sha256"])
    if said != (number, rows, entries, nbytes, digest.hexdigest()):
        raise Damaged(f"the archive is damaged: block {number} is not what was written")
    block = Block(number, lower, upper, start, pieces.offset, rows, entries, nbytes, digest.digest())
    found.blocks.append(block)
    found.totals.add(rows, entries, nbytes, block.digest)
    _good(found, pieces)
    yield block


def _good(found: Found, pieces: PieceReader) -> None:
    found.good_until, found.digest_until = pieces.offset, pieces.digest.copy()


def _piece_end(pieces: PieceReader) -> None:
    if not pieces.at_piece_end:
        raise Damaged("the archive is damaged: a piece does not end where it should")


def _agree(found: Found) -> None:
    manifest, totals = found.manifest, found.totals
    assert manifest is not None
    said = (manifest.head, manifest.rows, manifest.entries, manifest.bytes, manifest.blocks, manifest.sha256)
    digest = hashlib.sha256(b"".join(totals.blocks)).hexdigest()
    if said != (found.head, totals.rows, totals.entries, totals.nbytes, len(totals.blocks), digest):
        raise Damaged("the archive is damaged: its manifest does not fit what stands in it")
    if not found.blocks or found.blocks[0].number != 1 or found.blocks[0].lower or found.blocks[-1].upper:
        raise Damaged("the archive is damaged: its blocks are not the whole table")


def _cut() -> bytes:
    raise Damaged("the archive is not complete: it ends without a manifest")


@contextmanager
def _format() -> Iterator[None]:
    """Fields that are missing or of another type: a damage that the checksums were computed over."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise Damaged(f"the archive is damaged: {type(exc).__name__} in a line") from exc

"""Codecs of stored values: `json` verbatim, `gzip`, `zstd`. A reader recognises each by its first bytes."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import zstandard

from cachemig.entries.entry import Buffer

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


class Undecodable(Exception):
    """The bytes are of no codec, or damaged."""


def _zstd(text: Buffer) -> bytes:
    # The checksum is what makes a damaged frame an error instead of another text.
    return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(text)


def _gzip(text: Buffer) -> bytes:
    # mtime 0: equal texts give equal bytes
    return gzip.compress(text, compresslevel=1, mtime=0)


def _verbatim(text: Buffer) -> Buffer:
    return text


ENCODERS: dict[str, Callable[[Buffer], Buffer]] = {"json": _verbatim, "gzip": _gzip, "zstd": _zstd}


def encode(codec: str, text: Buffer) -> Buffer:
    """The bytes to store; equal texts give equal bytes, and `decode` gives the text back."""
    return ENCODERS[codec](text)


def decode(stored: Buffer) -> Buffer:
    """The text of stored bytes, whatever codec wrote them. Raises Undecodable for damaged ones.

    JSON text never begins with the magic numbers of gzip or zstd, so recognition is unambiguous.
    """
    head = bytes(stored[:4])
    try:
        if head[:2] == _GZIP:
            return gzip.decompress(stored)
        if head == _ZSTD:
            decoder = zstandard.ZstdDecompressor().decompressobj()
            text = decoder.decompress(stored)
            if not decoder.eof or decoder.unused_data:
                raise Undecodable("zstd frame is cut or followed by other bytes")
            return text
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as exc:
        raise Undecodable(str(exc)) from exc
    return stored

"""RESP, the wire format of Redis, packed around values that are never copied."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cachemig.entries.entry import Buffer

LARGE = 8 * 1024
"""Bytes from which an argument stays a buffer of its own."""
_SEND_BYTES = 1 << 20


def pack(*arguments: Buffer) -> list[Buffer]:
    """A command in RESP; a large argument stays a buffer of its own, so that it is not copied."""
    parts: list[Buffer] = []
    text = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        text.append(b"$%d\r\n" % len(argument))
        if len(argument) >= LARGE:
            parts += (b"".join(text), argument)
            text = [b"\r\n"]
        else:
            text += (bytes(argument), b"\r\n")
    parts.append(b"".join(text))
    return parts


def send(connection: Any, packed: Iterable[Buffer]) -> None:
    """Sends packed commands over a connection of redis-py: small parts joined, large ones as they are."""
    parts: list[Buffer] = []
    text: list[Buffer] = []
    for part in packed:
        if len(part) >= 64 * 1024:
            # In slices: the socket's timeout counts for the whole of one sendall.
            if text:
                parts.append(b"".join(text))
                text = []
            view = memoryview(part)
            parts += (view[at : at + _SEND_BYTES] for at in range(0, len(view), _SEND_BYTES))
        else:
            text.append(part)
    if text:
        parts.append(b"".join(text))
    connection.send_packed_command(parts)

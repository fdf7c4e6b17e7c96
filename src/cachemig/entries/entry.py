"""A row of the table, as the migration sees it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

# Where a bytes-like value is expected: values are slices of the driver's buffer, never copied before they are sent.
Buffer = bytes | bytearray | memoryview

EPOCH = 2**40
"""A version is `epoch * 2^40 + count`: counts of one epoch never reach the next one."""


@dataclass(slots=True)
class Entry:
    """The state of one key in one Postgres snapshot.

    `text` is Postgres's own text of the column, None where no row holds a value (then the key is to be absent).
    `version` belongs to the same snapshot as `text`. `expires_at_ms` is Unix time, None for no expiry.
    """

    key: str
    text: Buffer | None
    version: int
    expires_at_ms: int | None = None


def digest(text: Buffer) -> bytes:
    """SHA-256 of the text's bytes (32 bytes): what `sha256(convert_to(column::text, 'UTF8'))` gives in Postgres."""
    return hashlib.sha256(text).digest()


def jitter_ms(key: str, ttl_ms: int, part: float) -> int:
    """Milliseconds in [0, part * ttl) to add to a lifetime; the same for a key each time, spread evenly over keys.

    So that a bulk load does not expire in one avalanche, and a repeated delivery does not move an expiry.
    """
    spread = int(ttl_ms * part)
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) * spread >> 64

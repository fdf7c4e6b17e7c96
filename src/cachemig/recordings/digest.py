"""Whether the bytes are those that a key was made from."""

from __future__ import annotations

import hashlib
import re

from cachemig.recordings.errors import RecordingUnavailable

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def matches(data: bytes, key: str) -> bool | None:
    """Whether `key` is the SHA-256 of `data`, in hex of either case; None if the key is no SHA-256 digest at all.

    >>> matches(b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    True
    >>> matches(b"", "session-17") is None
    True
    """
    if not _SHA256.fullmatch(key):
        return None
    return hashlib.sha256(data).hexdigest() == key.lower()


def require(data: bytes, key: str, shown: str) -> bool:
    """Whether the key vouches for the bytes. Raises `wrong-digest` if it is a digest of other bytes; False if it is no
    digest, so that nothing is known."""
    verdict = matches(data, key)
    if verdict is False:
        raise RecordingUnavailable("wrong-digest", f"{shown}: the bytes are not those that the key is the SHA-256 of")
    return verdict is True

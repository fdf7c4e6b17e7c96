"""Names of Redis keys: the user's value key, and the tool's version and temporary key in the same cluster slot."""

from __future__ import annotations

import re
from binascii import crc_hqx
from functools import cache

SLOTS = 16384
VERSION = "cachemig:v:"
TEMPORARY = "cachemig:t:"
MARKER = "cachemig:i:"
LEASE = "cachemig:l:"
"""Held by the process that loads the key: a random token, expires by itself."""
NEGATIVE = "cachemig:n:"
"""The loader found nothing; expires soon. So the value key holds plain JSON or nothing."""
TAKEN_BACK = "cachemig:c:"
"""A write to Redis alone that had no answer and was followed by another one: it is refused should it still arrive."""


def slot(key: bytes) -> int:
    """The Redis Cluster slot of a key: CRC16 (XMODEM) modulo 16384, of the hash tag where there is one.

    Source: Redis Cluster specification, "Hash tags".
    """
    opening = key.find(b"{")
    if opening >= 0:
        closing = key.find(b"}", opening + 1)
        if closing > opening + 1:
            key = key[opening + 1 : closing]
    return crc_hqx(key, 0) % SLOTS


@cache
def _tags() -> list[str]:
    """A short text for each slot. About 0.2 s; needed only where a key has a brace of its own."""
    tags: dict[int, str] = {}
    number = 0
    while len(tags) < SLOTS:
        tags.setdefault(crc_hqx(b"%x" % number, 0) % SLOTS, f"{number:x}")
        number += 1
    return [tags[s] for s in range(SLOTS)]


def tag(number: int) -> str:
    """A short text that, between braces, puts a key into this slot."""
    return _tags()[number]


def marker_of_slot(name: str, number: int) -> str:
    """The marker of one slot of a cluster; `name` is that of the empty key, and tells migrations apart."""
    return f"{MARKER}{{{tag(number)}}}{name}"


def companion(prefix: str, key: str) -> str:
    """The tool's key that belongs to a value key, in the same slot; different for different keys."""
    if "{" in key or "}" in key:
        return f"{prefix}{{{tag(slot(key.encode()))}}}{key}"
    return f"{prefix}{{{key}}}"


def owner_of(companion_key: str, prefix: str) -> str:
    """The value key that a companion key belongs to."""
    tag, _, rest = companion_key.removeprefix(f"{prefix}{{").partition("}")
    return rest or tag


def temporary(key: str, token: str) -> str:
    """The temporary key of one delivery of a value key; the token must be of this delivery alone."""
    return f"{companion(TEMPORARY, key)}:{token}"


def owner_of_temporary(name: str) -> str:
    """The value key that a temporary key belongs to."""
    return owner_of(name.rpartition(":")[0], TEMPORARY)


class KeyTemplate:
    """The user's template, such as `analysis:{key}`."""

    def __init__(self, template: str) -> None:
        self.before, self.after = template.split("{key}")

    def name(self, key: str) -> str:
        return f"{self.before}{key}{self.after}"

    def key_of(self, name: str) -> str | None:
        """The key in a name of this template; None for another name."""
        if len(name) < len(self.before) + len(self.after) or not (
            name.startswith(self.before) and name.endswith(self.after)
        ):
            return None
        return name[len(self.before) : len(name) - len(self.after)]

    @property
    def pattern(self) -> str:
        """A SCAN pattern that every name of this template matches."""
        return f"{escape(self.before)}*{escape(self.after)}"


def escape(text: str) -> str:
    """The text as a literal in a SCAN pattern."""
    return re.sub(r"([\\*?\[\]^-])", r"\\\1", text)

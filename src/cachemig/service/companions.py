"""The scripts of this package, and the names of the keys that belong to a value key, all in its cluster slot."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cachemig import targets
from cachemig.targets.keys import (
    LEASE,
    MARKER,
    NEGATIVE,
    TAKEN_BACK,
    VERSION,
    KeyTemplate,
    companion,
    marker_of_slot,
    slot,
    temporary,
)


@dataclass(frozen=True)
class Script:
    body: bytes
    sha: bytes


def _script(path: Path) -> Script:
    body = path.read_bytes()
    return Script(body, hashlib.sha1(body, usedforsecurity=False).hexdigest().encode())


_HERE = Path(__file__).parent
_TARGETS = Path(targets.__file__).parent
DELIVER = _script(_TARGETS / "deliver.lua")
DELIVER_LARGE = _script(_TARGETS / "deliver_large.lua")
WRITE = _script(_TARGETS / "write.lua")
ACQUIRE = _script(_HERE / "acquire.lua")
RELEASE = _script(_HERE / "release.lua")


class Names:
    """Names of keys, as bytes. In a cluster each slot has its marker; else there is one."""

    def __init__(self, template: str, *, clustered: bool = False) -> None:
        self._template = KeyTemplate(template)
        self._marker = None if clustered else companion(MARKER, self._template.name("")).encode()

    def slot(self, key: str) -> int:
        """The cluster slot of a key; 0 where there is no cluster."""
        return slot(self.value(key)) if self._marker is None else 0

    def marker(self, key: str) -> bytes:
        return self._marker or marker_of_slot(self._template.name(""), self.slot(key)).encode()

    def value(self, key: str) -> bytes:
        return self._template.name(key).encode()

    def version(self, key: str) -> bytes:
        return companion(VERSION, self._template.name(key)).encode()

    def lease(self, key: str) -> bytes:
        return companion(LEASE, self._template.name(key)).encode()

    def negative(self, key: str) -> bytes:
        return companion(NEGATIVE, self._template.name(key)).encode()

    def temporary(self, key: str, token: str) -> bytes:
        return temporary(self._template.name(key), token).encode()

    def taken_back(self, key: str, token: str) -> bytes:
        return f"{companion(TAKEN_BACK, self._template.name(key))}:{token}".encode()


@cache
def names(template: str, *, clustered: bool = False) -> Names:
    return Names(template, clustered=clustered)

"""What the content of an archive says: lines of JSON, and behind each row's line the column's text as it is.

{"cachemig_archive": 1, "head": {…}}                                       once
{"block": 1, "lower": null, "upper": ["500"]}                              a range of rows
{"row": ["1"], "key": "…", "version": 1, "delivered": 1, "from_ms": null, "entry": true, "sha256": "…", "bytes": 5}
{"a":1}                                                                    so many bytes, and a line end
{"end": 1, "rows": 1, "entries": 1, "bytes": 7, "sha256": "…"}              the SHA-256 of the block's row lines
{"manifest": {…}}                                                          once, at the end
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import orjson

from cachemig.archive.frames import Damaged

FORMAT = 1

Bound = tuple[str, ...] | None


@dataclass(frozen=True)
class Head:
    """What is known before the first row. An unfinished file is gone on with only where all of it is the same."""

    database: str
    table: str
    """Schema and name, quoted as SQL does."""
    column: str
    type: str
    key_column: str
    row_key: tuple[str, ...]
    """Columns that tell a row from every other one."""
    row_types: tuple[str, ...]
    fingerprint: str
    """Of the settings."""
    epoch: int
    timeline: str | None
    begun: str
    """When the migration began."""


@dataclass(frozen=True, slots=True)
class RowHead:
    """A row of the table, but for the column's text."""

    row: tuple[str, ...]
    key: str | None
    version: int | None
    """epoch * 2^40 + count, as of the statement that read the row; None where capture was off."""
    delivered: int | None
    """The version with which the ledger says that its key was last delivered to Redis; None where it never was."""
    from_ms: int | None
    """What the entry's lifetime counts from, in Unix time."""
    entry: bool
    """It is what Redis is to hold for its key: not empty, and the newest of those that share it."""
    sha256: bytes
    nbytes: int

    def line(self) -> bytes:
        return _line(
            {
                "row": list(self.row), "key": self.key, "version": self.version, "delivered": self.delivered,
                "from_ms": self.from_ms, "entry": self.entry, "sha256": self.sha256.hex(), "bytes": self.nbytes,
            }
        )  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """What is known after the last row."""

    head: Head
    ddl: dict[str, Any]
    """The column in the catalog: default, constraints, indexes, statistics, comment, storage, grants."""
    settings: dict[str, Any]
    phase: str
    frozen: bool
    """Nothing could be written to the column any more, and every change had been delivered to Redis."""
    rows: int
    entries: int
    bytes: int
    blocks: int
    sha256: str
    """Of the blocks' digests, one after the other: of every row."""
    nulls: int
    """Rows of the table that hold NULL, when the archive was finished."""
    tool: str
    began_at: str
    finished_at: str
    forgotten: int = 0
    """Rows that were taken out of it again."""


def head_line(head: Head) -> bytes:
    return _line({"cachemig_archive": FORMAT, "head": asdict(head)})


def manifest_line(manifest: Manifest) -> bytes:
    return _line({"manifest": asdict(manifest)})


def block_line(number: int, lower: Bound, upper: Bound) -> bytes:
    return _line({"block": number, "lower": lower, "upper": upper})


def end_line(number: int, rows: int, entries: int, nbytes: int, digest: bytes) -> bytes:
    return _line({"end": number, "rows": rows, "entries": entries, "bytes": nbytes, "sha256": digest.hex()})


def _line(content: dict[str, Any]) -> bytes:
    return orjson.dumps(content) + b"\n"


def parse(line: bytes) -> dict[str, Any]:
    """A line's content. Raises Damaged."""
    try:
        content = orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        raise Damaged(f"the archive is damaged: {exc}") from exc
    if not isinstance(content, dict):
        raise Damaged("the archive is damaged: a line is not of this format")
    return content


def parsed_head(content: dict[str, Any]) -> Head:
    if content.get("cachemig_archive") != FORMAT:
        raise Damaged(
            f"this is no archive of cachemig, or one of another format than {FORMAT}",
            hint="an archive of a later format wants a later cachemig",
        )
    return _head(content["head"])


def _head(content: dict[str, Any]) -> Head:
    return Head(
        **{**_known(Head, content), "row_key": tuple(content["row_key"]), "row_types": tuple(content["row_types"])}
    )


def parsed_manifest(content: dict[str, Any]) -> Manifest:
    found = content["manifest"]
    return Manifest(**{**_known(Manifest, found), "head": _head(found["head"])})


def parsed_row(content: dict[str, Any]) -> RowHead:
    return RowHead(
        tuple(content["row"]), content["key"], content["version"], content["delivered"], content["from_ms"],
        content["entry"], bytes.fromhex(content["sha256"]), content["bytes"],
    )  # fmt: skip


def parsed_bound(value: list[str] | None) -> Bound:
    return None if value is None else tuple(value)


def _known(of: Any, content: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(of)}
    return {name: value for name, value in content.items() if name in names}


@dataclass
class Totals:
    """Sums over blocks."""

    rows: int = 0
    entries: int = 0
    nbytes: int = 0
    blocks: list[bytes] = field(default_factory=list)
    """The digest of each block."""

    def add(self, rows: int, entries: int, nbytes: int, digest: bytes) -> None:
        self.rows += rows
        self.entries += entries
        self.nbytes += nbytes
        self.blocks.append(digest)

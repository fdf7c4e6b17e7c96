"""The named statements of sql/*.sql, which ship in the wheel for a DBA to read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import LiteralString

from psycopg import sql

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


@cache
def directory() -> Path:
    """The folder of the SQL files: in the wheel inside the package, in a source tree at its top."""
    package = Path(__file__).parent.parent
    shipped = package / "sql"
    return shipped if shipped.is_dir() else package.parent.parent / "sql"


@cache
def statements(file: str) -> Mapping[str, str]:
    """Every named statement of `<file>.sql`, with its comments."""
    parts = _NAME.split((directory() / f"{file}.sql").read_text(encoding="utf-8"))
    found = dict(zip(parts[1::2], (text.strip() for text in parts[2::2]), strict=True))
    if len(found) != len(parts) // 2:
        raise ValueError(f"{file}.sql names a statement twice")
    return found


def text(file: str, name: str) -> LiteralString:
    """A statement without identifiers to fill in, its values given as %(name)s parameters."""
    return statements(file)[name]


def query(file: str, name: str, **parts: sql.Composable) -> sql.Composed:
    """A statement with its {braces} filled in: identifiers, fragments, and values as literals.

    To be executed without parameters: an identifier may contain a per cent sign.
    """
    return sql.SQL(statements(file)[name]).format(**parts)


def fragment(file: str, name: str, **parts: sql.Composable) -> sql.Composed:
    """A part of a statement, without the comment that explains it."""
    bare = re.sub(r"^--.*\n", "", statements(file)[name], flags=re.MULTILINE)
    return sql.SQL(bare).format(**parts)

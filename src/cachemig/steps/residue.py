"""residue: what still mentions the column, in the database and in code, by file and line.

Before stop-writes it finds writers; after the drop it finds leftovers: a trigger function that was forgotten, a status
field computed from a column that is no more. Reads only. It finds words, not meanings: each line is to be looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cachemig.config import Settings
from cachemig.errors import ConfigError
from cachemig.source import queries
from cachemig.source.connect import Connection, connect, source_errors, transaction
from cachemig.steps.drop_column.inspect import LOCK_TIMEOUT_S, SHOWN, find, lines, pattern

LANGUAGES = {
    "Python": (".py", ".pyi", ".ipynb"),
    "TypeScript": (".ts", ".tsx", ".mts", ".cts", ".vue", ".svelte"),
    "JavaScript": (".js", ".jsx", ".mjs", ".cjs"),
    "SQL": (".sql", ".psql", ".pgsql", ".prisma"),
}
_LANGUAGE = {suffix: language for language, suffixes in LANGUAGES.items() for suffix in suffixes}
_SKIPPED = ".git .hg .svn node_modules site-packages venv .venv .tox .nox .next"
_CACHES = "__pycache__ .mypy_cache .ruff_cache .pytest_cache"
SKIPPED = frozenset(f"{_SKIPPED} {_CACHES}".split())
"""Directories that are not looked into; nor is any with a pyvenv.cfg."""
MAX_BYTES = 8 * 2**20
"""A larger file is generated, or data: named, and not read."""


@dataclass(frozen=True)
class Mention:
    """A place where the column's name stands as a word."""

    kind: str
    """In the database what it is (`view`, `trigger function`, ..), in code the language."""
    name: str
    """In the database its name, in code the path inside the tree."""
    line: int
    text: str
    """The line, cut where it is long."""
    variant: bool = False
    """Written otherwise, as `analyticsCache` for `analytics_cache`."""


@dataclass(frozen=True)
class Residue:
    """Everything that was found."""

    table: str
    columns: tuple[str, ...]
    still_there: tuple[str, ...]
    """Columns that the table has (under the name of a brownout too); none after the drop."""
    database: tuple[Mention, ...]
    own: tuple[str, ...]
    """Triggers of cachemig on the table."""
    code: tuple[Mention, ...]
    files: int
    """Read in the source tree."""
    not_read: tuple[str, ...]
    """Files that are too large, or could not be opened."""
    jobs_seen: bool
    """False: pg_cron is installed, and this role may not read its jobs."""
    source: str | None = None
    """The source tree, as it was given."""

    @property
    def found(self) -> bool:
        return bool(self.database or self.code or (self.own and not self.still_there))


def residue(settings: Settings, source_tree: Path | None = None, *, with_columns: Sequence[str] = ()) -> Residue:
    """What mentions the column, or one of `with_columns`, as a word, in any case. Works before and after the drop, and
    without a migration. Raises SourceError; ConfigError where `source_tree` is no directory."""
    names = tuple(dict.fromkeys((settings.column, *with_columns)))
    code: list[Mention] = []
    not_read: list[str] = []
    files = 0
    if source_tree is not None:
        if not source_tree.is_dir():
            raise ConfigError(f"{source_tree}: not a directory", hint="cachemig residue --source DIRECTORY")
        for path in _files(source_tree):
            mentions = in_file(source_tree, path, names)
            if mentions is None:
                not_read.append(str(path.relative_to(source_tree)))
                continue
            files += 1
            code += mentions
    with connect(settings) as conn, transaction(conn, read_only=True, lock_timeout_s=LOCK_TIMEOUT_S), source_errors():
        table = find(conn, settings)
        parameters = {"oid": table.oid, "columns": list(names), "relids": list(table.relids), "pattern": pattern(names)}
        there = conn.execute(queries.text("residue", "residue_columns"), parameters).fetchall()
        own = conn.execute(queries.text("residue", "residue_own"), parameters).fetchall()
        cron = conn.execute(queries.text("drop_column", "drop_has_cron")).fetchone()
        jobs = cron[0] if cron else None
        return Residue(
            table=table.qualified,
            columns=names,
            still_there=tuple(str(name) for (name,) in there),
            database=tuple(_in_database(conn, parameters, names, jobs=bool(jobs))),
            own=tuple(str(name) for (name,) in own),
            code=tuple(code),
            files=files,
            not_read=tuple(not_read),
            jobs_seen=jobs is not False,
            source=None if source_tree is None else str(source_tree),
        )


def _in_database(
    conn: Connection, parameters: dict[str, object], names: Sequence[str], *, jobs: bool
) -> Iterator[Mention]:
    for name, body, triggers in conn.execute(queries.text("drop_column", "drop_mentions"), parameters).fetchall():
        yield from _mentions("trigger function" if triggers else "function", str(name), str(body), names)
    for kind, name, text in conn.execute(queries.text("residue", "residue_mentions"), parameters).fetchall():
        yield from _mentions(str(kind), str(name), str(text), names)
    if jobs:
        rows = conn.execute(queries.text("drop_column", "drop_cron_jobs"), parameters).fetchall()
        for number, _, command in rows:
            yield from _mentions("cron job", f"cron job {number}", str(command), names)


def _mentions(kind: str, name: str, text: str, names: Sequence[str]) -> Iterator[Mention]:
    for found in lines(text, names):
        number, _, line = found.partition(": ")
        yield Mention(kind, name, int(number), line)


# Code ---------------------------------------------------------------------------------------------------------------


def in_file(tree: Path, path: Path, names: Sequence[str]) -> list[Mention] | None:
    """Where a file mentions one of the names; None where it is too large or cannot be read. A binary file has none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    if b"\0" in content[:8192]:
        return []
    exact = re.compile(_word(names), re.IGNORECASE)
    variants = [v for name in names for v in camel(name)]
    other = re.compile(_word(variants)) if variants else None
    found = []
    for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), 1):
        is_exact = exact.search(line) is not None
        if is_exact or (other is not None and other.search(line)):
            name = path.relative_to(tree).as_posix()
            found.append(Mention(_LANGUAGE[path.suffix.lower()], name, number, line.strip()[:SHOWN], not is_exact))
    return found


def camel(name: str) -> tuple[str, ...]:
    """How generated clients write a column's name: `analyticsCache`, `AnalyticsCache`. () for a single word."""
    first, *rest = [part for part in name.split("_") if part] or [""]
    if not rest:
        return ()
    tail = "".join(part.capitalize() for part in rest)
    return first + tail, first.capitalize() + tail


def _word(names: Sequence[str]) -> str:
    return r"(?<!\w)(?:" + "|".join(map(re.escape, names)) + r")(?!\w)"


def _files(tree: Path) -> Iterator[Path]:
    """Source files, in order; links are not followed, so that no tree is walked twice and none is left."""
    for directory, inner, files in os.walk(tree):
        inner[:] = sorted(
            name for name in inner if name not in SKIPPED and not (Path(directory) / name / "pyvenv.cfg").exists()
        )
        for name in sorted(files):
            path = Path(directory) / name
            if path.suffix.lower() in _LANGUAGE and not path.is_symlink():
                yield path

"""Rows for a table of which only the schema is known, or a sample: made up, in the shape of what was seen.

A value that was seen is never used again: only its skeleton is (names of fields, lengths of texts and lists, digits of
numbers).
"""

from __future__ import annotations

import csv
import json
import random
import string
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from cachemig.config import Settings
from cachemig.errors import ConfigError, Refused
from cachemig.source import queries
from cachemig.source.connect import Connection, source_errors

Row = dict[str, str | None]
"""Texts as Postgres reads them, by column."""

_TRIES = 20
_OBSERVED = 200


@dataclass(frozen=True)
class Column:
    name: str
    type: str
    required: bool
    """NOT NULL, and nothing gives it a value by itself."""
    first_label: str | None
    """Of an enum."""
    base: str
    """The type without its length, of a domain the one below."""
    category: str


@dataclass
class Maker:
    """Makes rows of one table that it accepts."""

    columns: tuple[Column, ...]
    settings: Settings
    skeletons: Sequence[Any]
    chance: random.Random
    chosen: dict[str, str] = field(default_factory=dict)
    """What a check wants in a column, found by trying."""

    def row(self, given: Mapping[str, str | None] | None = None) -> Row:
        """One row: what is given, and what the table cannot do without."""
        s, row = self.settings, dict(given or {})
        for column in self.columns:
            if column.name in row:
                continue
            if column.name == s.key_column:
                row[column.name] = self.key(column)
            elif column.name == s.column:
                row[column.name] = self.value() if self.chance.random() > 0.1 else "{}"
            elif column.name == s.ttl_from:
                row[column.name] = self._recently()
            elif column.required:
                row[column.name] = self.chosen.get(column.name) or self._made(column)
        return row

    def value(self) -> str:
        """A value of the column."""
        if self.skeletons:
            return json.dumps(_filled(self.chance.choice(self.skeletons), self.chance))
        if self.settings.shape == "emg":
            from cachemig.demo.payloads import session_analytics

            return session_analytics(self.chance)
        return json.dumps({"at": self._recently(), "values": [self.chance.random() for _ in range(50)]})

    def key(self, column: Column) -> str:
        return self._made(column)

    def _recently(self) -> str:
        seconds = self.chance.random() * min(self.settings.ttl, 86400.0) / 2
        return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()

    def _made(self, column: Column) -> str:
        if column.first_label is not None:
            return column.first_label
        match column.base:
            case "uuid":
                return str(uuid.UUID(int=self.chance.getrandbits(128), version=4))
            case "smallint":
                return str(self.chance.randrange(2**15))
            case "integer" | "bigint":
                return str(self.chance.randrange(2**31))
            case "json" | "jsonb":
                return "{}"
            case "bytea":
                return "\\x00"
            case "date":
                return self._recently()[:10]
            case "time without time zone" | "time with time zone":
                return "12:00:00"
            case "interval":
                return "1 day"
            case "inet" | "cidr":
                return "127.0.0.1"
        match column.category:
            case "S":
                return self._text(column)
            case "N":
                return str(self.chance.randrange(100))
            case "B":
                return "true"
            case "D":
                return self._recently()
            case "A":
                return "{}"
        raise Refused(
            f"column {column.name} is of type {column.type}, and must not be null: no value can be made up for it",
            hint="give rows of your own: cachemig rehearse --data rows.jsonl",
        )

    def _text(self, column: Column) -> str:
        text = self.chance.randbytes(32).hex()
        length = column.type.partition("(")[2].rstrip(")")
        return text[: int(length)] if length.isdigit() else text


def columns(conn: Connection, settings: Settings) -> tuple[Column, ...]:
    with source_errors():
        rows = conn.execute(queries.query("rehearsal", "rehearsal_columns", table=_literal(settings))).fetchall()
    return tuple(Column(n, t, bool(nn and not d), label, base, category) for n, t, nn, d, label, base, category in rows)


def load_rows(
    conn: Connection, settings: Settings, maker: Maker, given: Iterable[Mapping[str, str | None]], rows: int
) -> int:
    """The given rows and made-up ones, `rows` in all (or as many as are given), stand in the table. Their number.

    Triggers and foreign keys do not fire: the tables around it are empty. Raises Refused where the table accepts none.
    """
    _settle(conn, settings, maker)
    names = [c.name for c in maker.columns]
    loaded = 0
    with source_errors(), conn.transaction():
        conn.execute("SET LOCAL session_replication_role = replica")
        for number, row in enumerate(_rows(maker, given, rows)):
            unknown = row.keys() - set(names)
            if unknown:
                raise ConfigError(
                    f"row {number + 1} has columns that the table has not: {', '.join(sorted(unknown))}",
                    hint="leave them out, or dump the schema anew",
                )
            loaded += _insert(conn, settings, row)
        conn.execute(sql.SQL("ANALYZE {}").format(_identifier(settings)))
    return loaded


def _rows(maker: Maker, given: Iterable[Mapping[str, str | None]], rows: int) -> Iterator[Row]:
    count = 0
    for row in given:
        yield maker.row(row)
        count += 1
    for _ in range(count, rows):
        yield maker.row()


def _settle(conn: Connection, settings: Settings, maker: Maker) -> None:
    """Tries rows until the table takes one: a check may want one of the texts that it quotes."""
    with source_errors():
        found = conn.execute(queries.query("rehearsal", "rehearsal_checks", table=_literal(settings))).fetchall()
        offered: dict[str, list[str]] = {}
        for name, texts in found:
            offered.setdefault(name, []).extend(texts)
        refused = ""
        for _ in range(_TRIES):
            try:
                with conn.transaction(force_rollback=True):
                    conn.execute("SET LOCAL session_replication_role = replica")
                    _insert(conn, settings, maker.row())
                return
            except (psycopg.errors.CheckViolation, psycopg.errors.InvalidTextRepresentation) as exc:
                refused = (exc.diag.message_primary or "").strip()
                mine = [c.name for c in maker.columns if offered.get(c.name) and c.required]
                for name in mine:
                    maker.chosen[name] = maker.chance.choice(offered[name])
    raise Refused(
        f"no row could be made up that the table takes: {refused}",
        hint="give rows of your own: cachemig rehearse --data rows.jsonl",
    )


def _insert(conn: Connection, settings: Settings, row: Mapping[str, str | None]) -> int:
    statement = sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({}) ON CONFLICT DO NOTHING").format(
        _identifier(settings),
        sql.SQL(", ").join(map(sql.Identifier, row)),
        sql.SQL(", ").join(sql.Literal(text) for text in row.values()),
    )
    return conn.execute(statement).rowcount


# Samples -------------------------------------------------------------------------------------------------------------


def read_sample(path: Path) -> list[Mapping[str, str | None]]:
    """Rows of a CSV file with a header, or of a file with one JSON object a line. Raises ConfigError."""
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                return [{name: text or None for name, text in row.items()} for row in csv.DictReader(file)]
            return [_of_json(json.loads(line)) for line in file if line.strip()]
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}", hint="cachemig rehearse --help") from exc
    except (ValueError, AttributeError) as exc:
        raise ConfigError(
            f"{path} is neither CSV with a header (.csv) nor one JSON object a line (.jsonl)",
            hint='psql -c "COPY (SELECT row_to_json(t) FROM my_table t LIMIT 1000) TO STDOUT" > rows.jsonl',
        ) from exc


def _of_json(row: dict[str, Any]) -> Mapping[str, str | None]:
    return {
        name: value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False)
        for name, value in row.items()
    }


def skeletons(texts: Iterable[str | None]) -> list[Any]:
    """Of JSON objects; what is none is left out."""
    found = []
    for text in texts:
        try:
            value = json.loads(text or "null")
        except ValueError:
            continue
        if isinstance(value, dict) and value:
            found.append(_skeleton(value))
    return found


@dataclass(frozen=True)
class _Text:
    kinds: str
    """`a` a letter, `0` a digit, any other sign itself."""


@dataclass(frozen=True)
class _Number:
    whole: int
    """Digits before the point, and behind it; behind 0: a whole number."""
    behind: int
    negative: bool


def observe(conn: Connection, settings: Settings) -> list[Any]:
    """Skeletons of values of the real column, up to 200 of its first pages. Reads only; keeps no value."""
    statement = sql.SQL("SELECT {}::text FROM {} WHERE {} IS NOT NULL LIMIT {}").format(
        sql.Identifier(settings.column), _identifier(settings), sql.Identifier(settings.column), _OBSERVED
    )
    with source_errors(), conn.transaction():
        conn.execute("SET TRANSACTION READ ONLY")
        return skeletons(row[0] for row in conn.execute(statement))


def _skeleton(value: Any) -> Any:
    match value:
        case dict():
            return {name: _skeleton(part) for name, part in value.items()}
        case list():
            return [_skeleton(part) for part in value]
        case bool() | None:
            return value
        case str():
            return _Text("".join("0" if c.isdigit() else "a" if c.isalpha() else c for c in value))
    whole, _, behind = f"{abs(value)!r}".partition("e")[0].partition(".")
    return _Number(len(whole), len(behind) if isinstance(value, float) else 0, value < 0)


def _filled(skeleton: Any, chance: random.Random) -> Any:
    match skeleton:
        case dict():
            return {name: _filled(part, chance) for name, part in skeleton.items()}
        case list():
            return [_filled(part, chance) for part in skeleton]
        case _Text(kinds):
            kinds_of = {"0": string.digits, "a": string.ascii_letters}
            return "".join(chance.choice(kinds_of[k]) if k in kinds_of else k for k in kinds)
        case _Number(whole, behind, negative):
            size = chance.randrange(10 ** min(whole, 15)) * (-1 if negative else 1)
            return float(f"{size}.{chance.randrange(10**behind):0{behind}}") if behind else size
    return skeleton


def _identifier(settings: Settings) -> sql.Identifier:
    return sql.Identifier(*settings.table.split(".", 1))


def _literal(settings: Settings) -> sql.Literal:
    return sql.Literal(_identifier(settings).as_string(None))

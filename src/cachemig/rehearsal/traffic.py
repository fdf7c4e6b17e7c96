"""A simulated application that writes any table: it fills, changes, empties, inserts and deletes rows."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import Self

import psycopg
from psycopg import sql

from cachemig.config import Settings
from cachemig.errors import CachemigError
from cachemig.rehearsal.rows import Maker
from cachemig.source.connect import Connection

_KINDS = {"update": 60, "empty": 10, "insert": 15, "delete": 5, "nothing": 10}
"""What is done, and how often. `nothing` writes the key back as it is."""


@dataclass(frozen=True)
class Counts:
    """Committed changes, and those that failed."""

    changes: int = 0
    failed: int = 0
    last_error: str | None = None
    update_p50_ms: float | None = None
    update_p99_ms: float | None = None


class Traffic:
    """Makes about `rate_per_s` changes a second from `with` to its end, or until it is stopped.

    What the table refuses of itself (a foreign key, a check) is tried once before, and left out: `refused`.
    """

    def __init__(self, dsn: str, settings: Settings, maker: Maker, *, rate_per_s: float) -> None:
        self._dsn, self._settings, self._maker = dsn, settings, maker
        self._pause_s = 1 / rate_per_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rehearsal-traffic", daemon=True)
        self._table = sql.Identifier(*settings.table.split(".", 1))
        self._milliseconds: list[float] = []
        self._changes = self._failed = 0
        self._last_error: str | None = None
        self.refused: dict[str, str] = {}

    def __enter__(self) -> Self:
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            for kind in _KINDS:
                try:
                    with conn.transaction(force_rollback=True):
                        self._change(conn, kind)
                except psycopg.Error as exc:
                    self.refused[kind] = (exc.diag.message_primary or "").strip()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> Counts:
        """Ends it after the change in flight; the same again when called again."""
        self._done.set()
        self._thread.join()
        ordered = sorted(self._milliseconds)

        def at(part: float) -> float | None:
            return ordered[int(part * (len(ordered) - 1))] if ordered else None

        return Counts(self._changes, self._failed, self._last_error, at(0.5), at(0.99))

    def _run(self) -> None:
        chance = random.Random(1)
        kinds = {kind: weight for kind, weight in _KINDS.items() if kind not in self.refused}
        if "insert" in self.refused:  # else the table would be empty before the end
            kinds.pop("delete", None)
        if not kinds:
            return
        try:
            with psycopg.connect(self._dsn, autocommit=True, application_name="rehearsal traffic") as conn:
                while not self._done.wait(self._pause_s):
                    (kind,) = chance.choices(list(kinds), list(kinds.values()))
                    began = time.perf_counter()
                    try:
                        with conn.transaction():
                            self._changes += self._change(conn, kind)
                    except psycopg.Error as exc:
                        self._failed += 1
                        self._last_error = (exc.diag.message_primary or str(exc)).strip()
                        if conn.closed:
                            return
                    if kind == "update":
                        self._milliseconds.append((time.perf_counter() - began) * 1000)
        except (psycopg.Error, CachemigError) as exc:
            self._failed += 1
            self._last_error = str(exc)

    def _change(self, conn: Connection, kind: str) -> int:
        """How many rows it met."""
        column, key = sql.Identifier(self._settings.column), sql.Identifier(self._settings.key_column)
        names = {"table": self._table, "column": column, "key": key}
        if kind == "insert":
            row = self._maker.row()
            statement = sql.SQL("INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE VALUES ({values})").format(
                **names,
                names=sql.SQL(", ").join(map(sql.Identifier, row)),
                values=sql.SQL(", ").join(sql.Literal(text) for text in row.values()),
            )
            return conn.execute(statement).rowcount
        # A place at random: the table is small. What is no object was corrupt before, and is for somebody to look at.
        one = sql.SQL(
            "ctid = (SELECT ctid FROM {table} WHERE {column} IS NULL OR jsonb_typeof({column}::jsonb) = 'object'"
            " ORDER BY random() LIMIT 1)"
        ).format(**names)
        if kind == "delete":
            return conn.execute(sql.SQL("DELETE FROM {table} WHERE ").format(**names) + one).rowcount
        change = {
            "update": sql.SQL("{column} = {value}").format(**names, value=sql.Literal(self._maker.value())),
            "empty": sql.SQL("{column} = '{{}}'").format(**names),
            "nothing": sql.SQL("{key} = {key}").format(**names),
        }[kind]
        return conn.execute(sql.SQL("UPDATE {table} SET ").format(**names) + change + sql.SQL(" WHERE ") + one).rowcount

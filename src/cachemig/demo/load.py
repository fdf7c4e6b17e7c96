"""Loads the demo's table into an empty database."""

from __future__ import annotations

from pathlib import Path

import psycopg

from cachemig.demo.payloads import DemoRow, Planted, planted, rows

_SCHEMA = Path(__file__).with_name("schema.sql")


def load(conn: psycopg.Connection[tuple[object, ...]], count: int, seed: int) -> Planted:
    """All of `count` rows stand in a new, analyzed `therapy_sessions`, or nothing was changed; says what was planted.

    Never drops or overwrites: raises psycopg.errors.DuplicateTable where the table exists, and ValueError below
    MINIMUM_ROWS. One transaction (a savepoint, if the caller has begun one: then the caller commits).
    """
    report = planted(count, seed)
    with conn.transaction():
        conn.execute(_SCHEMA.read_bytes())
        with conn.cursor().copy(f"COPY public.therapy_sessions ({', '.join(DemoRow._fields)}) FROM STDIN") as copy:
            for row in rows(count, seed):
                copy.write_row(row)
        conn.execute("ANALYZE public.therapy_sessions")
    return report

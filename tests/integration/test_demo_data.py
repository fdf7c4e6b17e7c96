"""The demo's data in a real database, and the application that writes there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg

from cachemig.demo.application import Application, Counts, run_application
from cachemig.demo.load import load
from cachemig.demo.payloads import MINIMUM_ROWS, Kind, Planted

ROWS = 300
CORRUPT_ROWS = """
    SELECT id, file_hash, md5(analytics_cache::text) FROM therapy_sessions
    WHERE jsonb_typeof(analytics_cache) <> 'object' ORDER BY id
"""

TERMINATE = """
    SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name = 'demo application' AND datname = current_database()
"""


@pytest.fixture
def conn(database: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def planted(conn: psycopg.Connection[tuple[Any, ...]]) -> Planted:
    return load(conn, ROWS, 5)


def number(conn: psycopg.Connection[tuple[Any, ...]], condition: str) -> int:
    row = conn.execute(f"SELECT count(*) FROM therapy_sessions WHERE {condition}").fetchone()
    assert row
    return int(row[0])


def run_for(seconds: float, dsn: str, **how: Any) -> Counts:
    application = Application(dsn, **how).start()
    time.sleep(seconds)
    return application.stop()


def test_load_puts_in_what_was_planted(conn: psycopg.Connection[tuple[Any, ...]], planted: Planted) -> None:
    kinds = planted.kinds
    assert number(conn, "true") == planted.rows == ROWS
    assert number(conn, "analytics_cache = '{}'") == kinds[Kind.EMPTY]
    assert number(conn, "analytics_cache IS NULL") == kinds[Kind.NULL]
    assert number(conn, "file_hash IS NULL") == kinds[Kind.WITHOUT_HASH]
    assert number(conn, "last_accessed_at < now() - interval '30 days'") == kinds[Kind.EXPIRED]
    assert number(conn, "analytics_cache ? 'emg_signals'") == kinds[Kind.SIGNALS]
    assert number(conn, "analytics_cache ? 'summary'") == kinds[Kind.SUMMARY]
    found = {(row[0], row[1]) for row in conn.execute(CORRUPT_ROWS)}
    assert found == {(bad.id, bad.file_hash) for bad in planted.corrupt}
    statistics = conn.execute("SELECT reltuples FROM pg_class WHERE relname = 'therapy_sessions'").fetchone()
    assert statistics == (ROWS,)


def test_the_keys_can_be_counted_in_sql(conn: psycopg.Connection[tuple[Any, ...]], planted: Planted) -> None:
    row = conn.execute("""
        SELECT count(*) FROM (
            SELECT DISTINCT ON (file_hash) * FROM therapy_sessions WHERE file_hash IS NOT NULL
            ORDER BY file_hash, created_at DESC
        ) AS winner
        WHERE jsonb_typeof(analytics_cache) = 'object' AND analytics_cache <> '{}'
          AND coalesce(last_accessed_at, now()) > now() - interval '30 days'
    """).fetchone()
    assert row == (planted.keys,)


def test_load_never_overwrites(conn: psycopg.Connection[tuple[Any, ...]], planted: Planted) -> None:
    with pytest.raises(pg.DuplicateTable):
        load(conn, MINIMUM_ROWS, 1)
    assert number(conn, "true") == ROWS


def test_the_trigger_moves_updated_at_and_leaves_the_cache(
    conn: psycopg.Connection[tuple[Any, ...]], planted: Planted
) -> None:
    before = conn.execute("SELECT id, analytics_cache::text FROM therapy_sessions ORDER BY id").fetchall()
    conn.execute("UPDATE therapy_sessions SET cache_hits = cache_hits + 1")
    assert conn.execute("SELECT id, analytics_cache::text FROM therapy_sessions ORDER BY id").fetchall() == before
    assert number(conn, "updated_at > now() - interval '1 minute'") == ROWS


def test_the_application_does_what_it_says(
    conn: psycopg.Connection[tuple[Any, ...]], planted: Planted, database: str
) -> None:
    corrupt = conn.execute(CORRUPT_ROWS).fetchall()
    counts = run_for(1.5, database, seed=1, rate_per_s=250)
    assert (counts.failed, counts.last_error, counts.reconnected) == (0, None, 0)
    for kind in ("inserted", "inserted_empty", "filled", "updated", "touched", "cleared", "deleted", "batches"):
        assert getattr(counts, kind) > 0, kind
    assert counts.changes > 50
    assert number(conn, "true") == ROWS + counts.inserted + counts.inserted_empty - counts.deleted
    assert conn.execute(CORRUPT_ROWS).fetchall() == corrupt
    assert counts.update_p50_ms is not None
    assert counts.update_p99_ms is not None
    assert 0 < counts.update_p50_ms <= counts.update_p99_ms
    assert number(conn, "updated_at > now() - interval '1 minute'") > 0


def test_several_applications_run_side_by_side(
    conn: psycopg.Connection[tuple[Any, ...]], planted: Planted, database: str
) -> None:
    applications = [Application(database, seed=seed, rate_per_s=80).start() for seed in range(4)]
    time.sleep(1.0)
    counts = [application.stop() for application in applications]
    assert [count.last_error for count in counts] == [None] * 4
    grown = sum(count.inserted + count.inserted_empty - count.deleted for count in counts)
    assert number(conn, "true") == ROWS + grown
    assert number(conn, "jsonb_typeof(analytics_cache) <> 'object'") == len(planted.corrupt)


def test_a_change_whose_row_has_gone_is_not_counted_as_made(
    conn: psycopg.Connection[tuple[Any, ...]], planted: Planted, database: str
) -> None:
    purged = 0
    application = Application(database, seed=8, rate_per_s=200).start()
    for _ in range(100):  # the sessions that wait for their analytics
        purged += conn.execute("DELETE FROM therapy_sessions WHERE status = 'processing'").rowcount
        time.sleep(0.01)
    counts = application.stop()
    assert counts.missed > 0
    grown = counts.inserted + counts.inserted_empty - counts.deleted
    assert number(conn, "true") == ROWS + grown - purged


def test_it_stops_at_once_even_before_a_lock(
    conn: psycopg.Connection[tuple[Any, ...]], planted: Planted, database: str
) -> None:
    application = Application(database, seed=2, rate_per_s=100).start()
    with conn.transaction():
        conn.execute("LOCK TABLE therapy_sessions IN ACCESS EXCLUSIVE MODE")
        time.sleep(0.3)
        began = time.monotonic()
        counts = application.stop()
        took = time.monotonic() - began
    assert took < 0.5
    assert counts.failed == 0  # what the stop cancelled is no failure
    assert application.stop() == counts


def test_it_comes_back_when_its_connection_is_closed(
    conn: psycopg.Connection[tuple[Any, ...]], planted: Planted, database: str
) -> None:
    application = Application(database, seed=3, rate_per_s=100).start()
    closed: set[int] = set()
    while len(closed) < 2:
        time.sleep(0.3)
        closed |= {row[0] for row in conn.execute(TERMINATE)}
    time.sleep(0.6)
    counts = application.stop()
    assert counts.reconnected == 2
    assert counts.failed >= 2
    assert counts.last_error
    assert counts.changes > 30


def test_errors_of_the_database_are_counted(
    conn: psycopg.Connection[tuple[Any, ...]], planted: Planted, database: str
) -> None:
    conn.execute("ALTER TABLE therapy_sessions DROP COLUMN analytics_cache")
    counts = run_for(0.5, database, seed=4)
    assert counts.failed > 0
    assert counts.changes == 0
    assert "analytics_cache" in (counts.last_error or "")


def test_without_a_server_it_says_so() -> None:
    nowhere = "host=/nonexistent dbname=nowhere"
    application = Application(nowhere, seed=1).start()
    time.sleep(0.3)
    with pytest.raises(psycopg.OperationalError, match="nonexistent"):
        application.stop()
    with pytest.raises(psycopg.OperationalError, match="nonexistent"):
        run_application(nowhere, threading.Event(), seed=1)


def test_an_empty_table_fills_up(conn: psycopg.Connection[tuple[Any, ...]], planted: Planted, database: str) -> None:
    conn.execute("TRUNCATE therapy_sessions")
    counts = run_for(0.7, database, seed=6, rate_per_s=100)
    assert counts.failed == 0
    assert number(conn, "true") == counts.inserted + counts.inserted_empty - counts.deleted > 0


def test_one_never_started_did_nothing(database: str) -> None:
    assert Application(database, seed=1).stop() == Counts()

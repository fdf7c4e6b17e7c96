"""status and plan on a large table: they read a bounded number of rows. Postgres's own counters say how many."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import redirect_stdout

import pytest

from cachemig.cli import render
from cachemig.cli.screen import Screen
from cachemig.source import ledger
from cachemig.steps import plan as plan_step
from cachemig.steps.plan import Plan, plan
from cachemig.steps.status import Status, status
from tests.integration.conftest import Migrating

ROWS = 20_000


def read_by(migrating: Migrating, work: Callable[[], object]) -> dict[str, int]:
    """Rows read of each table by what `work` does on connections of its own. Counters are written when one ends."""

    def read() -> dict[str, int]:
        found = migrating.execute(
            "SELECT relid::regclass::text, seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables"
        )
        return dict(found)

    migrating.execute("SELECT pg_stat_force_next_flush()")
    before = read()
    work()
    ours = "SELECT true FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'cachemig'"
    while migrating.execute(ours):
        time.sleep(0.01)
    return {name: number - before.get(name, 0) for name, number in read().items()}


def fill(migrating: Migrating) -> None:
    migrating.execute(
        "INSERT INTO sessions (file_hash, cache, seen_at)"
        " SELECT 'k' || n / 2, CASE n %% 10 WHEN 0 THEN '{}' ELSE jsonb_build_object('x', n) END, now()"
        " FROM generate_series(0, %s - 1) AS n",
        ROWS,
    )
    migrating.execute("VACUUM ANALYZE sessions")


def test_status_reads_no_more_with_more_of_everything(migrating: Migrating) -> None:
    fill(migrating)
    migrating.begin()
    migrating.execute(
        "INSERT INTO cachemig.entry (key_id, key, version, state, error)"
        " SELECT cachemig.key_id('k' || n), 'k' || n, 0, 'set-aside', 'not-an-object' FROM generate_series(1, %s) AS n",
        ROWS,
    )
    # The statistics are those of a ledger in which all were set aside.
    migrating.execute("ANALYZE cachemig.entry")
    migrating.execute("UPDATE cachemig.entry SET state = 'delivered' WHERE key <> ALL (%s)", ["k7", "k8"])
    migrating.execute(
        "INSERT INTO cachemig.journal (who, command) SELECT 'x', CASE n WHEN 1 THEN 'verify' ELSE 'sync' END"
        " FROM generate_series(1, %s) AS n",
        ROWS,
    )
    migrating.execute(
        "INSERT INTO cachemig.late_write (key, kind, writer, outcome)"
        " SELECT 'k', 'delete', 'x', 'delivered' FROM generate_series(1, %s)",
        ROWS,
    )
    migrating.execute("VACUUM cachemig.entry")
    migrating.execute("VACUUM ANALYZE cachemig.journal, cachemig.late_write")
    migrating.execute("UPDATE cachemig.migration SET phase = 'redis-only', frozen_epoch = epoch")
    found: list[Status] = []
    read = read_by(migrating, lambda: found.append(status(migrating.settings)))
    assert found[0].faults == [("set-aside", "not-an-object", 2, "k7")]
    assert found[0].late is not None
    assert (found[0].late.deletes, found[0].late.failed, found[0].late.writes) == (ROWS, 0, 0)
    assert read["sessions"] == 0
    assert read["cachemig.entry"] <= 20
    assert read["cachemig.journal"] <= 20
    assert read["cachemig.late_write"] <= ROWS  # which are counted, up to 100,000


def test_faults_beyond_a_number_are_said_to_be_more(migrating: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    migrating.begin()
    migrating.execute(
        "INSERT INTO cachemig.entry (key_id, key, version, state, error)"
        " SELECT cachemig.key_id('k' || n), 'k' || n, 0, CASE WHEN n > 3 THEN 'set-aside' ELSE 'failed' END,"
        " 'bad: it is' FROM generate_series(1, 9) AS n"
    )
    found = status(migrating.settings)
    assert found.faults == [("failed", "bad", 3, "k1"), ("set-aside", "bad", 6, "k4")]
    assert not found.more_faults
    monkeypatch.setattr(ledger, "MOST_FAULTS", 5)
    found = status(migrating.settings)
    assert [(state, keys) for state, _, keys, _ in found.faults] == [("failed", 3), ("set-aside", 5)]
    assert found.more_faults
    out = io.StringIO()
    with redirect_stdout(out):
        render.status(Screen(results_to_stderr=False), found)
    assert "at least 5 × bad" in out.getvalue()


@pytest.mark.parametrize("key", ["indexed", "not indexed", "unique"])
def test_plan_reads_a_sample(migrating: Migrating, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr(plan_step, "EXACT_ROWS", 1000)
    monkeypatch.setattr(plan_step, "SAMPLE_ROWS", 500)
    fill(migrating)
    migrating.put(None, {"lost": 1})
    if key == "not indexed":
        migrating.execute("DROP INDEX sessions_file_hash_idx")
    if key == "unique":
        migrating.execute("UPDATE sessions SET file_hash = 'u' || id WHERE file_hash IS NOT NULL")
        migrating.execute("CREATE UNIQUE INDEX ON sessions (file_hash)")
        migrating.execute("VACUUM FULL sessions")
    migrating.execute("ANALYZE sessions")
    found: list[Plan] = []
    read = read_by(migrating, lambda: found.append(plan(migrating.settings, None)))
    assert read["sessions"] < ROWS / 5
    (estimate,) = found
    exact = plan(migrating.settings, None, exact=True)
    assert (exact.rows, exact.empty_rows, exact.keyless_rows) == (ROWS + 1, ROWS / 10, 1)
    assert exact.entries == (ROWS * 0.9 if key == "unique" else ROWS / 2)
    assert exact.duplicate_keys == (0 if key == "unique" else ROWS * 0.4)
    assert exact.sampled_rows is None
    assert exact.estimated == ["redis_bytes", "mb_per_s", "seconds"]
    assert estimate.sampled_rows
    assert {"rows", "entries", "empty_rows"} <= set(estimate.estimated)
    assert ("keyless_rows" in estimate.estimated) == (key == "not indexed")
    assert estimate.rows == pytest.approx(exact.rows, rel=0.05)
    assert estimate.entries == pytest.approx(exact.entries, rel=0.15)
    assert estimate.rows_beyond_winner == pytest.approx(exact.rows_beyond_winner, rel=0.25)
    assert estimate.sizes.p50 == pytest.approx(exact.sizes.p50, abs=1)
    out = io.StringIO()
    with redirect_stdout(out):
        render.plan(Screen(results_to_stderr=False), estimate)
    assert "about" in out.getvalue()
    assert "cachemig plan --exact" in out.getvalue()


def test_rows_without_a_key_are_counted_up_to_a_number(migrating: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_step, "EXACT_ROWS", 1000)
    monkeypatch.setattr(plan_step, "_MOST_KEYLESS", 100)
    fill(migrating)
    migrating.execute("UPDATE sessions SET file_hash = NULL WHERE id % 4 = 0")
    migrating.execute("CLUSTER sessions USING sessions_pkey; ANALYZE sessions")
    found = plan(migrating.settings, None)
    assert "keyless_rows" in found.estimated
    assert found.keyless_rows == pytest.approx(ROWS / 4, rel=0.1)

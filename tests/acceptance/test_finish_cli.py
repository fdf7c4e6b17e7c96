"""`cachemig archive` and `cachemig reclaim` as an operator uses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg

from tests.acceptance.conftest import Operator


def test_an_archive_is_written_compared_and_forgets(
    operator: Operator, table: psycopg.Connection[tuple[Any, ...]], tmp_path: Path
) -> None:
    operator.fine("init")
    operator.fine("dual-write")
    place = tmp_path / "cache.zst"
    written = operator.fine("archive", "--to", str(place))
    assert "written, read back and compared: 2 rows" in written.out
    assert "still written to" in written.out
    assert place.stat().st_mode & 0o777 == 0o600
    again = json.loads(operator.fine("archive", "--to", str(place), "--json").out)
    assert (again["rows"], again["only_checked"]) == (2, True)
    assert table.execute("SELECT count(*) FROM cachemig.archive WHERE checked_at IS NOT NULL").fetchone() != (0,)
    assert "1 rows of 1 keys" in operator.fine("archive", "--to", str(place), "--forget", "h1").out
    place.write_bytes(place.read_bytes()[:-10])
    assert operator("archive", "--to", str(place)).code == 1


def test_reclaim_shows_by_default_and_refuses_while_the_column_is_there(
    operator: Operator, table: psycopg.Connection[tuple[Any, ...]]
) -> None:
    shown = operator.fine("reclaim")
    assert "nothing is to be gained yet" in shown.out
    assert json.loads(operator.fine("reclaim", "--json").out)["column_is_there"] is True
    assert operator("reclaim", "--method", "vacuum-full", "--execute").code == 3
    assert operator("reclaim", "--method", "magic").code == 2
    table.execute("ALTER TABLE therapy_sessions DROP COLUMN analytics_cache")
    done = operator.fine("reclaim", "--method", "vacuum-full", "--execute")
    assert "before" in done.out

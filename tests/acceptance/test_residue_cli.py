"""`cachemig residue` as an operator uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg

from tests.acceptance.conftest import Operator


def test_residue_names_what_mentions_the_column(
    operator: Operator, table: psycopg.Connection[tuple[Any, ...]], tmp_path: Path
) -> None:
    source = tmp_path / "app"
    source.mkdir()
    (source / "main.py").write_text("rows = db.fetch(\n    'SELECT analytics_cache FROM therapy_sessions'\n)\n")
    table.execute("CREATE VIEW latest AS SELECT analytics_cache FROM therapy_sessions")
    found = operator("residue", "--source", str(source))
    assert found.code == 3
    assert "main.py:2" in found.out
    assert "latest" in found.out
    document = json.loads(operator("residue", "--source", str(source), "--json").out)
    assert [(m["name"], m["line"]) for m in document["code"]] == [("main.py", 2)]
    table.execute("DROP VIEW latest")
    (source / "main.py").unlink()
    assert operator.fine("residue", "--source", str(source)).code == 0
    assert operator("residue", "--source", str(tmp_path / "nowhere")).code == 2

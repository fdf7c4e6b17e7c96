"""report as an operator types it, and drawn again from what it saved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.acceptance.conftest import Operator
from tests.acceptance.test_finish_cli import Quick

Table = psycopg.Connection[tuple[Any, ...]]
NOWHERE = {"CACHEMIG_DSN": "host=127.0.0.1 port=9 connect_timeout=1", "CACHEMIG_REDIS_URL": "redis://127.0.0.1:9/0"}


@pytest.fixture
def operator(tmp_path: Path, database: str, redis_url: str, prefix: str) -> Operator:
    return Quick(tmp_path, database, redis_url, prefix)


def test_the_same_document_gives_the_same_bytes(operator: Operator, table: Table, tmp_path: Path) -> None:
    refused = operator("report")
    assert (refused.code, "cachemig init" in refused.err) == (2, True)
    operator.fine("init")
    operator.fine("dual-write")
    (tmp_path / "rehearsal.json").write_text(
        json.dumps({"schema": "cachemig/rehearse/1", "passed": True, "steps": None, "surprise": [1]})
    )
    written = operator.fine("report", "--run-json", "run.json", "--rehearsal", "rehearsal.json")
    assert "Not yet safe to drop" in written.out
    page = (tmp_path / "report.html").read_bytes()
    assert b"It passed." in page
    assert b"surprise" not in page
    assert str(tmp_path).encode() not in page
    again = operator.fine("report", "--from", "run.json", "--output", "again.html", "--json", **NOWHERE)
    assert (tmp_path / "again.html").read_bytes() == page
    assert again.document == json.loads((tmp_path / "run.json").read_text())


def test_what_cannot_be_drawn_is_refused(operator: Operator, tmp_path: Path) -> None:
    whole = {"schema": "cachemig/report/1", "conclusion": {}, "stretches": []}
    for name, text in {
        "none.json": None,
        "text.json": "{",
        "list.json": "[1]",
        "other.json": '{"schema": "x"}',
        "part.json": json.dumps(whole),
        "deep.json": "[" * 100_000,
    }.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        ended = operator("report", "--from", name, **NOWHERE)
        assert (ended.code, "hint: cachemig report" in ended.err) == (2, True), ended
        assert not (tmp_path / "report.html").exists()
    assert operator("report", "--from", "text.json", "--show-keys", **NOWHERE).code == 2
    assert operator("report", "--rehearsal", "list.json", **NOWHERE).code == 2


def test_no_other_command_loads_what_draws_it(operator: Operator) -> None:
    program = "import sys; import cachemig.cli.app, cachemig.steps.status; print('jinja2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "False"

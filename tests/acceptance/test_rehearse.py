"""rehearse from a user's seat: a schema that is not the demo's, and one that says no."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.schemas import validated

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "CACHEMIG_"))} | {"TMPDIR": "/tmp"}
ELSEWHERE = {"CACHEMIG_DSN": "host=nowhere password=xyzzy", "CACHEMIG_REDIS_URL": "redis://:xyzzy@nowhere"}
SCHEMA = """
CREATE TABLE results (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, hash text NOT NULL UNIQUE, cache jsonb);
ALTER TABLE results OWNER TO web_of_another_server;
CREATE INDEX by_name ON results ((cache ->> 'name'));
"""
SETTINGS = (
    'table = "results"\ncolumn = "cache"\nkey_column = "hash"\nshape = "object"\nttl_from = "now"\norder_by = ""\n'
)


def rehearse(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "cachemig.toml").write_text(SETTINGS)
    return subprocess.run(
        [sys.executable, "-m", "cachemig", "rehearse", *arguments],
        cwd=folder,
        env=ENVIRONMENT | ELSEWHERE,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def rows(path: Path, count: int) -> str:
    lines = [json.dumps({"hash": f"patient-{n}", "cache": {"name": f"Jane {n}", "values": [n]}}) for n in range(count)]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.long
def test_a_view_over_the_column_says_no_and_the_rest_is_rehearsed_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "schema.sql").write_text(SCHEMA + "CREATE VIEW names AS SELECT cache ->> 'name' FROM results;\n")
    data = rows(tmp_path / "rows.jsonl", 40)
    done = rehearse(
        tmp_path, "--schema", "schema.sql", "--data", data, "--accept-expiring", "1000", "--output", "r.json", "--json"
    )
    assert done.returncode == 3, done.stderr
    document = validated(json.loads(done.stdout))
    assert document == json.loads((tmp_path / "r.json").read_text())
    assert not document["passed"]
    (reason,) = document["reasons"]
    assert "view public.names: blocks the drop" in reason
    commands = [step["command"] for step in document["steps"]]
    assert commands[-1] == "cachemig clean --values --execute", "the way down was walked too"
    assert "cachemig drop-column" in commands
    assert not any("--confirm" in command for command in commands)
    assert {ran["command"] for ran in document["sql"]} >= {"init", "dual-write", "stop-writes"}
    assert any("role web_of_another_server is not here" in note for note in document["notes"])
    assert (document["linter"], document["lint"]) == ("squawk", [])
    assert document["traffic"]["changes"] > 0
    assert document["traffic"]["reads"] > 0
    told = json.dumps(document)
    assert "patient-" not in told
    assert "Jane" not in told
    assert "xyzzy" not in told + done.stderr
    assert "no: view public.names" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cachemig.toml", "r.json", "rows.jsonl", "schema.sql"]


@pytest.mark.long
def test_everything_goes_through_and_leaves_the_schema_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "schema.sql").write_text(SCHEMA)
    done = rehearse(tmp_path, "--schema", "schema.sql", "--rows", "200", "--report", "report.html")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED: every step went through" in done.stdout
    assert (
        done.stdout.count('ALTER TABLE IF EXISTS "public"."results" DROP COLUMN IF EXISTS "cache"') == 2
    )  # before, and as it ran
    page = (tmp_path / "report.html").read_text()
    assert "proven equal" in page
    assert "It passed." in page


@pytest.mark.long
def test_a_gate_that_says_no_ends_it_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "schema.sql").write_text(SCHEMA)
    data = rows(tmp_path / "rows.jsonl", 40)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('\n{"hash": "broken", "cache": [1]}\n')
    done = rehearse(tmp_path, "--schema", "schema.sql", "--data", data)
    assert done.returncode == 3
    assert "no: cachemig verify: not every key is good: 1 set-aside" in done.stdout
    assert "REFUSED" in done.stdout


def test_what_cannot_be_rehearsed_is_said_before_anything_is_started(tmp_path: Path) -> None:
    done = rehearse(tmp_path)
    assert done.returncode == 2
    assert "pg_dump --schema-only" in done.stderr
    (tmp_path / "schema.sql").write_text("CREATE TABLE other (id int);\n")
    done = rehearse(tmp_path, "--schema", "schema.sql")
    assert done.returncode in (2, 3)
    assert "results" in done.stderr
    assert "Traceback" not in done.stderr

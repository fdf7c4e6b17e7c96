"""Every command that changed something leaves its row in the journal, with the statements that it ran.

WRITES names every command of the program. A new one is to be put into it, and its row is looked at by walking the
whole ladder, down and up.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.main import get_command

import cachemig
from cachemig.cli.app import app
from tests.acceptance.conftest import Operator
from tests.acceptance.test_finish_cli import Quick

Table = psycopg.Connection[tuple[Any, ...]]

# Command: the rows that it may write. None: it changes nothing, or not in this database.
WRITES: dict[str, set[str]] = {
    "init": {"init"},
    "doctor": set(),
    "plan": set(),
    "dual-write": {"dual-write", "dual-write --disable"},
    "backfill": {"backfill", "recompute", "sync", "new epoch"},  # it repairs where recordings are configured
    "sync": {"sync", "new epoch"},
    "verify": {"verify"},
    "resync": {"resync", "new epoch"},
    "pause": {"pause"},
    "resume": {"resume"},
    "throttle": {"throttle"},
    "recompute": {"recompute", "recompute --undo", "sync"},  # what it repaired is delivered
    "cutover": {"cutover", "ramp"},
    "rollback": {"rollback"},
    "stop-writes": {"stop-writes", "sync"},  # what was on its way is delivered
    "residue": set(),
    "measure": set(),
    "status": set(),
    "watch": set(),
    "archive": {"archive", "archive --forget"},
    "drop-column": {"drop-column", "drop-column --brownout", "drop-column --end-brownout"},
    "reclaim": {"reclaim"},
    "restore": {"restore begun", "restore"},
    "clean": {"clean"},  # goes with the schema; it stays where clean was interrupted
    "demo": set(),
    "rehearse": set(),
    "report": set(),
    "ci": set(),
    "apply": set(),  # the step that it runs writes its own
}
SQL = {"init", "dual-write", "dual-write --disable", "stop-writes", "drop-column", "drop-column --brownout",
       "drop-column --end-brownout", "reclaim", "restore begun", "restore"}  # fmt: skip
"""Rows with the statements that ran; `rollback` has some where it comes from redis-only."""


def test_the_table_names_every_command() -> None:
    assert set(WRITES) == set(get_command(app).commands)  # type: ignore[attr-defined]


def test_the_table_names_every_row_that_is_written() -> None:
    """Names in calls of control.journal; those that come by a variable stand beside as strings."""
    written = set()
    for path in Path(cachemig.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="control"), attr="journal"), args=[_, name, *_]):
                    constants = [node.value for node in ast.walk(name) if isinstance(node, ast.Constant)]
                    written |= {value for value in constants if isinstance(value, str)}
    assert written <= set[str]().union(*WRITES.values())
    assert {"backfill", "archive", "new epoch", "drop-column --end-brownout"} <= written


@pytest.fixture
def operator(tmp_path: Path, database: str, redis_url: str, prefix: str) -> Operator:
    (tmp_path / "cachemig.toml").write_text(
        'soak_cutover = "0s"\nsoak_redis_only = "0s"\nlock_timeout = "1s"\nshape = "object"\n'
    )
    return Quick(tmp_path, database, redis_url, prefix)


Rows = list[tuple[str, str | None, str | None, dict[str, Any]]]


def test_what_each_command_writes(operator: Operator, table: Table, tmp_path: Path) -> None:
    def after(*arguments: str, code: int = 0) -> Rows:
        """The rows that the command wrote."""
        last = 0
        if table.execute("SELECT to_regclass('cachemig.journal') IS NOT NULL").fetchone() == (True,):
            ((last,),) = table.execute("SELECT coalesce(max(id), 0) FROM cachemig.journal").fetchall()
        ended = operator(*arguments)
        assert ended.code == code, ended
        rows = table.execute(
            "SELECT command, phase_from, phase_to, figures FROM cachemig.journal WHERE id > %s ORDER BY id", [last]
        ).fetchall()
        assert {row[0] for row in rows} <= WRITES[arguments[0]], rows
        for command, _, _, figures in rows:
            assert bool(figures.get("sql")) or command not in SQL, (command, figures)
            assert "h1" not in json.dumps(figures), "no key of a patient"
        return rows

    def names(rows: Rows) -> list[str]:
        return [row[0] for row in rows]

    shown = json.loads(operator.fine("init", "--dry-run", "--json").out)["statements"]
    ((_, _, _, figures),) = after("init")
    assert figures["sql"] == [text for text in shown if text in figures["sql"]]  # which shows its bookkeeping too
    assert names(after("init")) == []
    shown = json.loads(operator.fine("dual-write", "--dry-run", "--json").out)["statements"]
    ((_, before, phase, figures),) = after("dual-write")
    assert (before, phase) == ("idle", "dual-write")
    assert figures["sql"] == [text for text in shown if text in figures["sql"]]  # which shows its bookkeeping too
    ((_, before, phase, figures),) = after("dual-write")  # again: its functions alone
    assert (before, phase, figures["renewed"]) == ("dual-write", "dual-write", "functions")
    for command in ("pause", "resume", "throttle --max-rate 1MiB", "backfill"):
        assert names(after(*command.split())) == [command.split()[0]]
    table.execute("UPDATE therapy_sessions SET analytics_cache = '{\"v\": 3}' WHERE id = 1")
    ((_, _, _, figures),) = after("sync")
    assert figures["changes"] == 1
    assert names(after("sync")) == []  # there was nothing to do
    assert after("resync", "--key", "h1")[0][3] == {"keys": 1}
    after("sync")
    ((_, _, _, figures),) = after("resync", "--all")
    assert figures["reason"] == "asked for by resync"
    assert names(after("backfill")) == ["backfill"]
    after("sync")
    assert after("verify", "--repair")[0][3]["marked"] == 0
    for looks in ("doctor", "plan", "status", "status --history", "watch --once", "measure", "reclaim",
                  "cutover --percent 1 --no-clients --dry-run"):  # fmt: skip
        assert names(after(*looks.split())) == [], looks
    assert names(after("cutover", "--ramp", "1,100", "--hold", "1ms", "--no-clients")) == [
        "cutover", "ramp", "cutover", "ramp",
    ]  # fmt: skip
    frozen = ("stop-writes", "--execute", "--no-clients", "--accept-expiring", "2")
    assert [row[:3] for row in after(*frozen)][:1] == [("stop-writes", "cutover", "redis-only")]
    ((_, before, phase, figures),) = after("rollback")
    assert (before, phase) == ("redis-only", "cutover")
    assert any("CREATE TRIGGER cachemig_capture" in statement for statement in figures["sql"])
    for command in ("backfill", "sync", "verify"):
        after(command)
    after(*frozen)
    after("verify")
    archive = str(tmp_path / "cache.zst")
    assert names(after("archive", "--to", archive)) == ["archive"]
    ((_, _, _, figures),) = after("drop-column", "--brownout", "300ms")
    assert sum("RENAME COLUMN" in statement for statement in figures["sql"]) == 2
    assert names(after("drop-column", "--end-brownout")) == []  # none is under way
    ((_, before, phase, figures),) = after("drop-column", "--execute", "--confirm", "analytics_cache", "--no-clients")
    assert (before, phase) == ("redis-only", "dropped")
    assert any("DROP COLUMN" in statement for statement in figures["sql"])
    ((_, _, _, figures),) = after("reclaim", "--method", "vacuum-full", "--execute")
    assert any("VACUUM (FULL" in statement for statement in figures["sql"])
    begun, done = after("restore", "--from", archive, "--execute")
    assert any("ADD COLUMN" in statement for statement in begun[3]["sql"])
    assert (done[0], done[1], done[2]) == ("restore", "dropped", "redis-only")
    assert any("cachemig_guard" in statement for statement in done[3]["sql"])
    after("rollback")
    after("rollback")
    ((_, before, phase, figures),) = after("dual-write", "--disable")
    assert (before, phase) == ("dual-write", "idle")
    assert any("DROP TRIGGER" in statement for statement in figures["sql"])


def test_a_brownout_that_another_command_ends(operator: Operator, table: Table) -> None:
    """Its process was killed: who finds it overdue renames the column back, and says so."""
    for command in (["init"], ["dual-write"], ["backfill"], ["verify"]):
        operator.fine(*command)
    operator.fine("cutover", "--percent", "100", "--no-clients")
    operator.fine("stop-writes", "--execute", "--no-clients", "--accept-expiring", "2")
    from cachemig.config import load
    from cachemig.source.connect import connect
    from cachemig.steps.drop_column import brownout
    from cachemig.stop import Stop

    given = {k: v for k, v in operator.environment.items() if k.startswith("CACHEMIG_")}
    settings = load({"shape": "object"}, given, None)
    with connect(settings) as conn:
        brownout._hide(conn, settings, Stop(), -1.0)
    operator.fine("status")
    row = table.execute("SELECT command, figures FROM cachemig.journal ORDER BY id DESC LIMIT 1").fetchone()
    assert row is not None
    assert (row[0], row[1]["overdue"]) == ("drop-column --end-brownout", True)
    assert any("RENAME COLUMN" in statement for statement in row[1]["sql"])

"""Moving reads and back, as a person types it."""

from __future__ import annotations

import signal
import time
from typing import Any

import psycopg
import pytest

from tests.acceptance.conftest import Operator

Table = psycopg.Connection[tuple[Any, ...]]


def moved(operator: Operator) -> None:
    for command in ("init", "dual-write", "backfill"):
        operator.fine(command)


def at(table: Table) -> Any:
    return table.execute("SELECT phase, percent FROM cachemig.migration").fetchone()


@pytest.mark.long
def test_from_init_to_cutover_and_back(operator: Operator, table: Table) -> None:
    moved(operator)
    assert "next: cachemig verify" in operator.fine("status").out
    refused = operator("cutover", "--percent", "10", "--no-clients")
    assert refused.code == 3
    assert "gate verify" in refused.err
    assert "there was none of all keys" in refused.err
    assert "hint: cachemig verify" in refused.err
    assert at(table) == ("dual-write", 0)
    operator.fine("verify")
    assert "next: cachemig cutover --ramp 1,10,50,100 --no-clients" in operator.fine("status").out
    refused = operator("cutover", "--percent", "10")
    assert (refused.code, "cachemig cutover --percent 10 --no-clients" in refused.err) == (3, True)
    done = operator.fine("cutover", "--percent", "10", "--no-clients")
    assert "phase cutover, 10 % of the keys are read from Redis" in done.out
    shown = operator.fine("status").out
    assert "cutover, 10 % of the keys are read from Redis, epoch 0" in shown
    assert "next: cachemig cutover --ramp 50,100 --no-clients" in shown
    refused = operator("dual-write", "--disable")
    assert (refused.code, "hint: cachemig rollback" in refused.err) == (3, True)
    refused = operator("clean", "--execute")
    assert "cachemig rollback, then cachemig dual-write --disable" in refused.err
    operator.fine("cutover", "--percent", "100", "--no-clients")
    assert at(table) == ("cutover", 100)
    assert "it was so already" in operator.fine("cutover", "--percent", "100").out
    assert "phase dual-write" in operator.fine("rollback").out
    assert at(table) == ("dual-write", 0)
    assert "it was so already" in operator.fine("rollback").out
    operator.fine("dual-write", "--disable")
    refused = operator("cutover", "--percent", "1", "--no-clients")
    assert (refused.code, "hint: cachemig dual-write" in refused.err) == (3, True)


@pytest.mark.long
def test_a_ramp(operator: Operator, table: Table) -> None:
    moved(operator)
    operator.fine("verify")
    done = operator.fine("cutover", "--ramp", "1,100", "--hold", "1s", "--no-clients", "--json")
    assert done.document["percent"] == 100
    assert [held["percent"] for held in done.document["held"]] == [1, 100]
    assert "nothing was watched but the time" in done.err
    assert at(table) == ("cutover", 100)
    journal = table.execute("SELECT command FROM cachemig.journal WHERE command IN ('cutover', 'ramp') ORDER BY id")
    assert [row[0] for row in journal] == ["cutover", "ramp", "cutover", "ramp"]


@pytest.mark.long
def test_documents(operator: Operator, table: Table) -> None:
    moved(operator)
    refused = operator("cutover", "--percent", "10", "--json")
    assert refused.code == 3
    assert (refused.document["error"], refused.document["exit_code"]) == ("Refused", 3)
    assert "gate clients" in refused.document["message"]
    assert "gate verify" in refused.document["message"]
    operator.fine("verify")
    shown = operator("cutover", "--percent", "10", "--dry-run", "--json")
    assert shown.code == 3
    assert [gate["gate"] for gate in shown.document["gates"] if not gate["met"]] == ["clients"]
    done = operator.fine("cutover", "--percent", "10", "--no-clients", "--json").document
    assert (done["phase"], done["percent"], done["phase_before"], done["changed"]) == (
        "cutover",
        10,
        "dual-write",
        True,
    )
    table.execute(
        "INSERT INTO cachemig.client (id, name, phase, percent, lease_until, stats)"
        " VALUES ('1', 'web', 'cutover', 10, now() + interval '1 minute',"
        ' \'{"shadow": {"match": 7}, "reads": {"redis": {"hit": 3}}}\')'
    )
    status = operator.fine("status", "--json").document
    assert (status["phase"], status["percent"]) == ("cutover", 10)
    assert [(c["name"], c["phase"], c["percent"]) for c in status["clients"]] == [("web", "cutover", 10)]
    assert status["reported"]["reads"]["redis"] == {"hit": 3}
    people = operator.fine("status").out
    assert "web acts on cutover 10 %" in people
    assert "7 match" in people
    back = operator("rollback", "--client-wait", "200ms", "--json")
    assert back.code == 3
    assert "web (acts on cutover 10 %" in back.document["message"]
    table.execute("DELETE FROM cachemig.client")
    assert operator.fine("rollback", "--json").document["phase"] == "dual-write"


@pytest.mark.long
def test_dry_runs_change_nothing(operator: Operator, table: Table) -> None:
    moved(operator)
    operator.fine("verify")

    def state() -> list[Any]:
        return [
            table.execute(f"SELECT xmin::text, t::text FROM cachemig.{name} AS t ORDER BY 2").fetchall()
            for name in ("migration", "journal", "lease", "client", "change", "entry")
        ]

    before = state()
    refused = operator("cutover", "--percent", "10", "--dry-run")
    assert refused.code == 3
    assert "would go from dual-write to cutover, 10 % of the keys are read from Redis" in refused.out
    assert "NOT MET" in refused.out
    shown = operator.fine("cutover", "--ramp", "1,10", "--dry-run", "--no-clients").out
    assert "then, each held and watched: 10 %" in shown
    assert "would change nothing" in operator.fine("rollback", "--dry-run").out
    assert state() == before
    operator.fine("cutover", "--percent", "10", "--no-clients")
    before = state()
    assert "would go from cutover" in operator.fine("rollback", "--dry-run").out
    refused = operator("dual-write", "--disable", "--dry-run")
    assert (refused.code, state()) == (3, before)


def test_bad_input(operator: Operator, table: Table) -> None:
    for arguments in (
        [], ["--percent", "10", "--ramp", "1,2"], ["--percent", "nan"], ["--percent", "101"], ["--percent", "-1"],
        ["--ramp", "10,1"], ["--ramp", "x"], ["--ramp", "1,10", "--hold", "soon"], ["--percent", "ten"],
    ):  # fmt: skip
        assert operator("cutover", *arguments).code == 2, arguments
    refused = operator("cutover", "--percent", "10")
    assert (refused.code, "cachemig init" in refused.err) == (2, True)


@pytest.mark.long
def test_killed_while_it_waits_and_run_again(operator: Operator, table: Table) -> None:
    moved(operator)
    operator.fine("verify")
    client = (
        "INSERT INTO cachemig.client (id, name, phase, percent, lease_until) VALUES ('1', 'web', %s, %s, 'infinity')"
    )
    table.execute(client, ["dual-write", 0])
    process = operator.start("cutover", "--percent", "10")
    end = time.monotonic() + 30
    while at(table) != ("cutover", 10):
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=10)
    assert "waiting: for web (acts on dual-write" in err
    table.execute("UPDATE cachemig.client SET phase = 'cutover', percent = 10")
    assert "all 1 live clients act on it" in operator.fine("cutover", "--percent", "10").out
    process = operator.start("cutover", "--ramp", "10,50", "--hold", "1h")
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "cachemig cutover --ramp 10,50; to go back: cachemig rollback" in err
    assert at(table) == ("cutover", 10)


def test_help_has_a_panel_of_its_own(operator: Operator) -> None:
    shown = operator.fine("--help").out
    panels = [shown.index(f"─ {name} ─") for name in ("Try", "Look", "Move", "Cut over", "Finish", "After")]
    assert panels == sorted(panels)
    help_ = operator.fine("cutover", "--help").out
    for flag in ("--percent", "--ramp", "--hold", "--no-clients", "--dry-run", "--verify-fresh", "--client-wait"):
        assert flag in help_

"""The live view as a person sees it: at a terminal of 80 by 24, of other sizes, with servers away, and off one."""

from __future__ import annotations

import re
import select
import signal
import subprocess
from datetime import datetime
from typing import Any

import psycopg
import pytest

from cachemig.cli import render_watch
from cachemig.config import load
from cachemig.steps.status import status
from tests.acceptance.conftest import Operator
from tests.acceptance.terminal import Terminal
from tests.acceptance.test_finish_cli import Quick
from tests.conftest import OwnPostgres, OwnRedis

Table = psycopg.Connection[tuple[Any, ...]]
ROWS = (
    "INSERT INTO therapy_sessions SELECT n, 'k' || n,"
    " jsonb_build_object('channels_analyzed', 1, 'v', repeat(md5(n::text), 1000)), NULL, NULL"
    " FROM generate_series(10, 400) AS n"
)
SLOW = ("--max-rate", "512KiB", "--batch-bytes", "32KiB", "--chunk-bytes", "256KiB")


def has(*patterns: str) -> Any:
    return lambda text: all(re.search(pattern, text, re.MULTILINE) for pattern in patterns)


def quick(operator: Operator) -> Operator:
    """The same in this very process, for commands that are not under test."""
    found = Quick(operator.directory, operator.dsn, operator.redis_url, "")
    found.environment = operator.environment
    return found


def end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.communicate(timeout=20)


def test_a_backfill_under_a_limit_a_resize_and_ctrl_c(operator: Operator, table: Table) -> None:
    table.execute(ROWS)
    quick(operator).fine("init")
    quick(operator).fine("dual-write")
    running = operator.start("backfill", *SLOW)
    try:
        with Terminal(operator, "watch", "--interval", "300ms") as terminal:
            shown = terminal.until(
                has(
                    r"^cachemig watch  public\.therapy_sessions\.analytics_cache +\d\d:\d\d:\d\d$",
                    r"^idle › \[dual-write\] › cutover › redis-only › dropped",
                    r"^backfill  [█░]{24} \d+ %  [\d,]+ of [\d,]+ chunks$",
                    r"^ {10}[\d,]+ entries, [\d.]+ .B at [\d.]+ KB/s",
                    r"^backlog   none",
                    r"^Redis     [\d.]+ .B( of [\d.]+ .B)? used",
                    r"^workers   backfill .*:\d+  \d+ entries, [\d.]+ .B, [\d.]+ KB/s",
                    r"limited to 0\.5 MiB/s by max_rate",
                    r"^journal   .* init by ",
                    r"dual-write idle → dual-write by ",
                    r"^next: backfill is running",
                )
            )
            assert shown.startswith("cachemig watch")
            assert terminal.screen.scrolled == 0
            assert terminal.screen.cursor.hidden
            operator.fine("pause")
            terminal.until(has(r"^PAUSED by .*cachemig resume goes on", r"^ {12}paused by ", r" pause by "))
            terminal.resize(100, 30)
            wide = terminal.until(lambda text: len(text.splitlines()[0]) == 100 and "next: " in text)
            assert len([line for line in wide.splitlines() if line.startswith("cachemig watch")]) == 1
            terminal.resize(60, 12)
            small = terminal.until(lambda text: len(text.splitlines()[0]) == 60)
            assert "PAUSED" in small
            terminal.screen.scrolled = 0  # what was in flight was of the size before
            terminal.until(lambda text: text.splitlines()[0] not in ("", small.splitlines()[0]))
            assert terminal.screen.scrolled == 0
            terminal.press(b"\x03")
            assert terminal.ended() == 0
            # The alternate screen is left and the cursor is shown, in this order of events.
            drawn = terminal.drawn
            assert 0 <= drawn.index(b"\x1b[?1049h") < drawn.rindex(b"\x1b[?1049l")
            assert drawn.rindex(b"\x1b[?25l") < drawn.rindex(b"\x1b[?25h")
            assert b"Traceback" not in drawn
    finally:
        end(running)
    told = operator.fine("status", "--json").document
    assert told["workers"] == []  # it said goodbye
    assert (told["redis"]["error"], told["redis"]["used"] > 0) == (None, True)
    assert [line["command"] for line in told["journal"]] == ["init", "dual-write", "pause", "backfill"]
    assert told["journal"][-1]["figures"]["unfinished"] == "Interrupted"
    assert told["hit_rate"] is None


def test_servers_that_die_and_come_back(
    operator: Operator, own_postgres: OwnPostgres, own_redis: OwnRedis, table: Table
) -> None:
    postgres, redis = own_postgres(), own_redis()
    operator.environment |= {"CACHEMIG_DSN": postgres.dsn(), "CACHEMIG_REDIS_URL": redis.url}
    with psycopg.connect(postgres.dsn(), autocommit=True) as conn:
        conn.execute(
            "CREATE TABLE therapy_sessions (id int PRIMARY KEY, file_hash text UNIQUE, analytics_cache jsonb,"
            " last_accessed_at timestamptz, created_at timestamptz)"
        )
    quick(operator).fine("init")
    with Terminal(operator, "watch", "--interval", "200ms") as terminal:
        terminal.until(has(r"^Redis     [\d.]+ .B"))
        redis.kill()
        terminal.until(has(r"^Redis: cannot be reached", r"^Redis     away", r"^next: cachemig dual-write"))
        told = operator.fine("status", "--json").document["redis"]
        assert (told["used"], "cannot be reached" in told["error"]) == (None, True)
        postgres.kill()
        terminal.until(has(r"^Postgres \(what follows is [\d.]+ s old\): ", r"^Redis: cannot be reached"))
        redis.start()
        terminal.until(lambda text: "Redis: " not in text and "Postgres (" in text)
        postgres.start()
        terminal.until(lambda text: "Postgres (" not in text and re.search(r"^Redis     [\d.]+ .B", text, re.MULTILINE))
        assert terminal.screen.scrolled == 0
        postgres.kill()
        assert operator("watch", "--once").code == 1
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.ended() == 0
        assert terminal.drawn.rindex(b"\x1b[?1049h") < terminal.drawn.rindex(b"\x1b[?1049l")


def test_off_a_terminal_there_are_lines(operator: Operator, table: Table) -> None:
    assert operator("watch").code == 2  # before init
    quick(operator).fine("init")
    quick(operator).fine("dual-write")
    operator.environment["FORCE_COLOR"] = "1"
    once = operator.fine("watch", "--once")
    assert "[dual-write]" in once.out
    assert "next: cachemig backfill" in once.out
    assert operator("watch", "--json").code == 2
    running = operator.start("watch", "--interval", "100ms")
    assert running.stdout is not None
    try:
        assert re.search(r"watch: dual-write; backfill not begun; backlog none", running.stdout.readline())
        assert not select.select([running.stdout], [], [], 1.0)[0]  # nothing has changed: not a word
        operator.fine("pause")
        assert "paused by" in running.stdout.readline()
    finally:
        running.send_signal(signal.SIGINT)
        rest, err = running.communicate(timeout=10)
    assert (running.returncode, err) == (0, "")
    assert "\x1b" not in rest + once.out
    assert "\r" not in rest + once.out


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 40), (60, 12), (40, 8), (20, 3)])
def test_whatever_there_is_to_show_fits(operator: Operator, table: Table, width: int, height: int) -> None:
    """Twelve workers, twenty clients, long reasons, long names, and servers that are away."""
    quick(operator).fine("init")
    table.execute(
        "INSERT INTO cachemig.worker (id, owner, command, done, unit, entries, bytes, rate_bytes_s, slowed)"
        " SELECT n, repeat('h', 60) || ':' || n || ':1', 'backfill', n, 'chunks', 1e9, 1e12, 1e9, repeat('why ', 70)"
        " FROM generate_series(1, 12) AS n"
    )
    table.execute(
        "INSERT INTO cachemig.client (id, name, lease_until, stats)"
        " SELECT n, repeat('c', 50) || n, now() + interval '1 h',"
        ' \'{"reads": {"redis": {"hit": 9, "miss": 1}}}\' FROM generate_series(1, 20) AS n'
    )
    table.execute("INSERT INTO cachemig.journal (who, command) SELECT repeat('w', 100), 'x' FROM generate_series(1, 9)")
    table.execute("UPDATE cachemig.migration SET paused_by = repeat('p', 300)")
    settings = load({}, {k: v for k, v in operator.environment.items() if k.startswith("CACHEMIG_")}, None)
    seen = view_of(status(settings))
    lines = render_watch.view(seen, width, height)
    assert len(lines) <= height
    assert max(line.cell_len for line in lines) <= width
    if height >= 24:
        text = "\n".join(line.plain for line in lines)
        for word in ("PAUSED", "backfill", "why why", "ccc", "www", "90.0 % hits of 200 ", "next: "):
            assert word in text, word
    assert "\n" not in render_watch.one_line(seen)
    assert seen.status.hit_rate == 0.9


def view_of(known: Any) -> Any:
    from cachemig.steps.clients import report
    from cachemig.steps.watch import View

    reads = report(client.stats for client in known.clients)
    return View(datetime.now().astimezone(), known, 99.0, "gone " * 60, "gone " * 60, reads, None, 12.0)


def test_the_journal_is_shown_without_hashes_and_in_bounds(operator: Operator, table: Table) -> None:
    quick(operator).fine("init")
    quick(operator).fine("dual-write")
    quick(operator).fine("backfill")
    quick(operator).fine("verify")
    quick(operator).fine("throttle", "--max-rate", "10MiB")
    shown = operator.fine("status", "--history").out
    assert re.search(r"dual-write +idle → dual-write +.*\d+ statements", shown)
    assert re.search(r"verify .*2 match.*passed", shown)
    assert "max rate 10.0 MB" in shown
    assert not re.search(r"[0-9a-f]{16}", shown)
    lines = operator.fine("status", "--history", "--limit", "2", "--json").document["lines"]
    assert [line["command"] for line in lines] == ["verify", "throttle"]
    whole = operator.fine("status", "--history", "--json").document["lines"]
    assert len(whole) == 5
    assert any("CREATE TRIGGER cachemig_capture" in statement for statement in whole[1]["figures"]["sql"])

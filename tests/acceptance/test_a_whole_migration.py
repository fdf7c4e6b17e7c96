"""From init to clean, as a person types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psycopg
from redis import Redis

from cachemig.demo.payloads import Planted
from tests.acceptance.conftest import Operator

Sessions = Callable[[int], Planted]


def test_init_to_clean(operator: Operator, sessions: Sessions, redis: Redis, prefix: str) -> None:
    planted = sessions(300)
    assert "0 errors" in operator.fine("doctor").out
    assert "keys would stand in Redis" in operator.fine("plan").out
    assert "wrote" in operator.fine("init").out
    assert "key_column" in (operator.directory / "cachemig.toml").read_text()
    assert "capture is on" in operator.fine("dual-write").out
    assert "next: cachemig backfill" in operator.fine("status").out
    assert "backfill is complete" in operator.fine("backfill").out
    assert len(list(redis.scan_iter(match=f"{prefix}*", count=1000))) == planted.keys
    refused = operator("verify")
    assert refused.code == 3
    assert "--accept-set-aside 7" in refused.out
    passed = operator.fine("verify", "--accept-set-aside", "7", "--junit", "verify.xml")
    assert "PASSED" in passed.out
    suite = ElementTree.parse(operator.directory / "verify.xml").getroot()
    assert suite.get("failures") == "0"
    assert "set-aside  5 × double-encoded" in operator.fine("status").out
    refused = operator("clean", "--execute")
    assert refused.code == 3
    assert "cachemig dual-write --disable" in refused.err
    assert "capture is off" in operator.fine("dual-write", "--disable").out
    assert "would remove" in operator.fine("clean").out
    assert "removed" in operator.fine("clean", "--execute", "--values").out
    assert list(redis.scan_iter(match=f"*{prefix}*", count=1000)) == []
    gone = operator("status")
    assert (gone.code, "cachemig init" in gone.err) == (2, True)
    operator.fine("init")  # and it can begin anew


def test_json_is_one_document_on_stdout(operator: Operator, sessions: Sessions) -> None:
    sessions(100)
    operator.fine("init")
    operator.fine("dual-write")
    documents: dict[str, Any] = {}
    for command in (["doctor"], ["plan"], ["backfill"], ["sync", "--once"], ["status"], ["clean", "--dry-run"]):
        if command[0] != "clean":
            documents[command[0]] = operator.fine(*command, "--json").document
    verify = operator("verify", "--json")
    assert verify.code == 3
    assert verify.document["counts"]["set-aside"] == 7
    assert "FAILED" in verify.err
    assert documents["backfill"]["tally"]["set_aside"] == 7
    assert documents["status"]["phase"] == "dual-write"
    assert documents["plan"]["corrupt"]
    error = operator("clean", "--execute", "--json")
    assert error.code == 3
    assert error.document["error"] == "Refused"
    assert error.document["hint"] == "cachemig dual-write --disable"


def test_the_shown_sql_is_the_sql_that_runs(operator: Operator, table: psycopg.Connection[tuple[Any, ...]]) -> None:
    for arguments in (["init"], ["dual-write"]):
        statements = operator.fine(*arguments, "--dry-run", "--json").document["statements"]
        with table.transaction(force_rollback=True):
            for statement in statements:
                table.execute(statement)
        operator.fine(*arguments)
    assert table.execute("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'cachemig%'").fetchone() == (2,)


def test_settings_come_from_where_they_are_said_to(operator: Operator) -> None:
    (operator.directory / "cachemig.toml").write_text('ttl = "7d"\ncodec = "gzip"\n')
    shown = operator.fine("doctor", "--show-config", "--codec", "zstd", CACHE_TTL_SECONDS="60").out
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert "zstd" in lines["codec"]
    assert "--codec" in lines["codec"]
    assert "60" in lines["ttl"]
    assert "CACHE_TTL_SECONDS" in lines["ttl"]
    assert "default" in lines["shape"]


def test_payloads_of_the_first_user_arrive_to_the_byte(
    operator: Operator, table: psycopg.Connection[tuple[Any, ...]], redis: Redis, prefix: str, shared_data: Path
) -> None:
    files = sorted((shared_data / "expected").glob("*/*.json"))
    assert files
    table.execute("DELETE FROM therapy_sessions")
    for number, file in enumerate(files):
        table.execute(
            "INSERT INTO therapy_sessions (id, file_hash, analytics_cache) VALUES (%s, %s, %s)",
            [number, f"{file.parent.name}-{file.stem}", file.read_text()],
        )
    for command in ("init", "dual-write", "backfill", "verify"):
        operator.fine(command)
    for file in files:
        key = f"{file.parent.name}-{file.stem}"
        stored = redis.get(f"{prefix}{key}")
        assert isinstance(stored, bytes)
        text = table.execute(
            "SELECT analytics_cache::text FROM therapy_sessions WHERE file_hash = %s", [key]
        ).fetchone()
        assert text is not None
        assert stored.decode() == text[0]
        assert json.loads(stored) == json.loads(file.read_text())

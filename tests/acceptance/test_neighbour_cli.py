"""Limits for the sake of others, as an operator sets them and reads of them."""

from __future__ import annotations

import signal
import threading
from typing import Any

import psycopg
import pytest

from tests.acceptance.conftest import Operator

Table = psycopg.Connection[tuple[Any, ...]]


def test_the_reason_is_read_off_a_terminal(operator: Operator, table: Table) -> None:
    operator.fine("init", "--shape", "any", "--order-by", "")
    operator.fine("dual-write")
    with psycopg.connect(operator.dsn, autocommit=True) as busy, psycopg.connect(operator.dsn) as busy_too:
        threads = [threading.Thread(target=_sleep, args=(conn,)) for conn in (busy, busy_too)]
        for thread in threads:
            thread.start()
        follower = operator.start("sync", "--follow", "--gentle", "--max-load", "1")
        assert follower.stderr is not None
        try:
            for line in follower.stderr:
                if "2 active sessions in Postgres, max_load is 1" in line:
                    assert line.startswith("sync: 0 changes, ")
                    break
            else:
                raise AssertionError("it never said why")
        finally:
            for conn in (busy, busy_too):
                conn.cancel_safe()
            for thread in threads:
                thread.join()
            follower.send_signal(signal.SIGTERM)
            follower.communicate(timeout=30)
    assert follower.returncode == 0


def _sleep(conn: Table) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled):
        conn.execute("SELECT pg_sleep(60)")


def test_gentle_says_what_it_chose_and_what_is_set_counts_before_it(operator: Operator) -> None:
    operator.environment["CACHEMIG_DUTY"] = "0.5"
    lines = operator.fine("doctor", "--show-config", "--gentle", "--max-load", "9").out.splitlines()
    shown = {line.split()[0]: line.split()[1:] for line in lines if line.split()}
    assert shown["gentle"] == ["True", "--gentle"]
    assert shown["max_load"] == ["9", "--max-load"]
    assert shown["duty"] == ["0.5", "CACHEMIG_DUTY"]
    assert shown["max_standby_lag"][-1] == "gentle"
    lines = operator.fine("doctor", "--show-config", "--no-gentle").out.splitlines()
    assert not any(line.startswith("max_standby_lag ") and line.endswith(" gentle") for line in lines)


def test_a_window_that_is_none_is_refused(operator: Operator) -> None:
    ended = operator("verify", "--pause-windows", "at night")
    assert ended.code == 2
    assert "--pause-windows: pause_windows: 'at night' is not a window" in ended.err

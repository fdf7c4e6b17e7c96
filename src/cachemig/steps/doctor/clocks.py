"""How far the clocks of Postgres, Redis and this machine are apart."""

from __future__ import annotations

import time
from contextlib import suppress

from cachemig.errors import CachemigError
from cachemig.source.connect import Connection, source_errors
from cachemig.steps.doctor.finding import Finding, Level
from cachemig.steps.doctor.subjects import Seen, one
from cachemig.targets.redis import RedisTarget

SKEW_S = (2.0, 60.0)
"""Clocks that differ by more are a warning, an error: expiries are points in time."""


def read_postgres(conn: Connection, seen: Seen) -> None:
    with suppress(CachemigError), source_errors():
        before = time.time()
        (theirs,) = one(conn, "clock")
        seen.clocks["Postgres"] = float(theirs) - (before + time.time()) / 2


def read_redis(target: RedisTarget, seen: Seen) -> None:
    with suppress(CachemigError):
        seen.clocks["Redis"] = target.clock_skew_ms() / 1000


def finding(seen: Seen) -> Finding:
    if not seen.clocks:
        return Finding("clock-skew", Level.NOTE, "not looked at: no server told its time")
    offsets = [0.0, *seen.clocks.values()]
    apart = max(offsets) - min(offsets)
    listed = ", ".join(f"{who} {by:+.1f} s" for who, by in seen.clocks.items())
    what = f"clocks are {apart:.1f} s apart (from this machine: {listed})"
    do = "set the clocks by NTP: an entry expires at a point in time that one of them computes and another one compares"
    warning_s, error_s = SKEW_S
    if apart > warning_s:
        return Finding("clock-skew", Level.ERROR if apart > error_s else Level.WARNING, what, do)
    return Finding("clock-skew", Level.OK, what)

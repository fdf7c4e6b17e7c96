"""A migration in phase redis-only with every gate of drop-column met, put there by hand; and processes to kill."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Generator
from typing import Any

import psycopg

from cachemig.ladder import Phase
from cachemig.progress import Progress
from cachemig.steps.drop_column import Dropped, drop
from cachemig.stop import Stop
from tests.integration.conftest import Migrating, finish
from tests.integration.serving import move

Row = tuple[Any, ...]


def allowed(_: psycopg.Connection[Row]) -> None:
    """A gate that lets everything through."""


def freeze(migrating: Migrating) -> None:
    """As stop-writes, a verification and archive leave it, eight days later."""
    migrating.begin()
    move(migrating, Phase.REDIS_ONLY)
    migrating.execute("UPDATE cachemig.migration SET changed_at = now() - interval '8 days'")
    migrating.execute(
        "INSERT INTO cachemig.journal (at, who, command, phase_from, phase_to, epoch)"
        " VALUES (now() - interval '8 days', 'test', 'stop-writes', 'cutover', 'redis-only', 0)"
    )
    migrating.execute(
        "INSERT INTO cachemig.journal (who, command, phase_to, epoch, figures) SELECT 'test', 'verify', phase, epoch,"
        " jsonb_build_object('passed', true, 'fingerprint', fingerprint) FROM cachemig.migration"
    )
    migrating.execute(
        "INSERT INTO cachemig.archive (who, location, rows, entries, bytes, sha256, epoch, checked_at)"
        " SELECT 'test', 'file:///archive', 1, 1, 1, sha256('x'), epoch, now() FROM cachemig.migration"
    )


def dropping(migrating: Migrating, **options: Any) -> Generator[Progress, None, Dropped]:
    options = {"gate": allowed, "tries": 3, **options}
    return drop(migrating.settings, options.pop("stop", Stop()), **options)


def dropped(migrating: Migrating, **options: Any) -> Dropped:
    return finish(dropping(migrating, **options))


def has_column(migrating: Migrating, table: str = "sessions", column: str = "cache") -> bool:
    return bool(
        migrating.execute(
            "SELECT 1 FROM pg_attribute WHERE attrelid = %s::regclass AND attname = %s AND NOT attisdropped",
            table,
            column,
        )
    )


def state(migrating: Migrating, table: str = "sessions") -> tuple[bool, str, int, int]:
    """(the column is there, phase, rows of the journal for the drop, triggers of the tool): all or nothing."""
    (row,) = migrating.execute(
        "SELECT phase, (SELECT count(*) FROM cachemig.journal WHERE command = 'drop-column'),"
        " (SELECT count(*) FROM pg_trigger WHERE tgrelid = %s::regclass AND tgname LIKE 'cachemig%%'"
        "  AND tgparentid = 0)"
        " FROM cachemig.migration",
        table,
    )
    return has_column(migrating, table), row[0], row[1], row[2]


UNTOUCHED = (True, "redis-only", 0, 2)
DONE = (False, "dropped", 1, 0)

_CHILD = """
import sys, json
from cachemig.config import load
from cachemig.stop import Stop
from cachemig.steps.drop_column import drop
from cachemig.steps.drop_column.brownout import brownout
flags, environment, what = map(json.loads, sys.argv[1:4])
settings = load(flags, environment, None)
step = drop(settings, Stop(), gate=lambda conn: None) if what == "drop" else brownout(settings, Stop(), seconds=what)
for progress in step:
    print(progress, flush=True)
"""


def child(migrating: Migrating, what: str | float = "drop") -> subprocess.Popen[str]:
    """A process of its own that runs the step, to be killed."""
    import json

    s = migrating.settings
    flags = {name: _text(getattr(s, name)) for name in s.origins if name not in ("dsn", "redis_url")}
    environment = {"CACHEMIG_DSN": s.dsn, "CACHEMIG_REDIS_URL": s.redis_url}
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, json.dumps(flags), json.dumps(environment), json.dumps(what)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _text(value: object) -> str:
    return f"{value}s" if isinstance(value, float) else str(value)


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to this"
        time.sleep(0.02)

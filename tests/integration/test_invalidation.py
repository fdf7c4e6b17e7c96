"""The table of docs/cutover.md, "Invalidation": one test a row, each in every phase.

Of the keys of a test half are read from Redis at 50 %. Some hold a value, which a late backfill has read before it is
gone; for the others a slow loader is at work that will find the old value. Neither may bring it back.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from cachemig.errors import TargetEpochPassed
from cachemig.ladder import Phase, bucket, reads_from
from cachemig.service import CacheService, Source, WriteFailed
from cachemig.source import scan
from cachemig.source.connect import connect, transaction
from cachemig.source.table import inspect
from cachemig.steps import init
from cachemig.targets.redis import Write
from tests.conftest import REPOSITORY, OwnRedis
from tests.integration.conftest import TABLE, Migrating
from tests.integration.serving import move, opened_sync, until

OLD = {"v": "old"}
NEW = {"v": "new"}
STAGES: dict[str, tuple[Phase, float]] = {
    "idle": (Phase.IDLE, 0.0),
    "dual-write": (Phase.DUAL_WRITE, 0.0),
    "cutover-50": (Phase.CUTOVER, 50.0),
    "cutover-100": (Phase.CUTOVER, 100.0),
    "redis-only": (Phase.REDIS_ONLY, 0.0),
}


def _keys(prefix: str) -> list[str]:
    """One that is read from Redis at 50 %, and one that is not."""
    names = [f"{prefix}{n}" for n in range(40)]
    return [next(k for k in names if bucket(k) < 50), next(k for k in names if bucket(k) >= 50)]


FULL, LOADING = _keys("full"), _keys("loading")
"""Keys that hold a value, and keys that do not, for which a load is under way."""
ALL = FULL + LOADING


class Load:
    """get_or_compute with a loader that finds the old value, and takes as long as it is let."""

    def __init__(self, cache: CacheService, key: str) -> None:
        self.key = key
        self._began, self._may_end = threading.Event(), threading.Event()
        self._found: list[Any] = []
        self._thread = threading.Thread(target=lambda: self._found.append(cache.get_or_compute(key, self._load)))
        self._thread.start()
        assert self._began.wait(10), "the loader was not asked"

    def _load(self) -> Any:
        self._began.set()
        assert self._may_end.wait(30)
        return OLD

    def end(self) -> None:
        """Whoever asked gets what was found, whatever becomes of it."""
        self._may_end.set()
        self._thread.join(30)
        assert self._found == [OLD]


class Stand:
    """Three clients of a migration in some phase: one that reads and writes, one that only reads, one that loads."""

    def __init__(self, case: Migrating, stage: str, stack: ExitStack) -> None:
        self.case = case
        self.phase, self.percent = STAGES[stage]
        for key in FULL:
            case.put(key, OLD)
        for key in LOADING:
            case.put(key, {})
        self._late: list[Write] = []
        if self.phase is Phase.IDLE:
            init.init(case.settings, case.target, case.directory)
        else:
            case.begin()
            self._late = self._read()
            case.backfill()
            move(case, self.phase, self.percent)
        self.reader, self.other, self.loader = (stack.enter_context(opened_sync(case)) for _ in range(3))
        self.loads = [Load(self.loader, key) for key in LOADING]
        stack.callback(self.end_loads)

    def _read(self) -> list[Write]:
        with connect(self.case.settings) as conn, transaction(conn, read_only=True):
            entries = scan.read_keys(conn, inspect(conn, self.case.settings), FULL)
            return [Write(e.key, e.version, bytes(e.text), e.expires_at_ms) for e in entries if e.text is not None]

    @property
    def captured(self) -> bool:
        return self.phase in (Phase.DUAL_WRITE, Phase.CUTOVER)

    def from_redis(self, key: str) -> bool:
        return reads_from(self.phase, self.percent, key) == "redis"

    def end_loads(self) -> None:
        loads, self.loads = self.loads, []
        for load in loads:
            load.end()

    def deliver_late(self) -> None:
        """What a backfill does that has slept between reading and delivering."""
        assert self.phase is Phase.IDLE or len(self._late) == len(FULL)
        with suppress(TargetEpochPassed):
            for receipt in self.case.target.deliver(self._late):
                assert receipt.error is None
                assert not receipt.written

    def seen(self, cache: CacheService, keys: Sequence[str]) -> list[Any]:
        one_by_one = [cache.get(key) for key in keys]
        assert cache.get_many(keys) == one_by_one
        return one_by_one

    def gone(self, keys: Sequence[str] = ALL) -> None:
        """For every client."""
        for cache in (self.reader, self.other, self.loader):
            assert self.seen(cache, keys) == [None] * len(keys)

    def gone_for_good(self, keys: Sequence[str] = ALL) -> None:
        """Whatever was under way arrives now, and changes nothing; nor do sync and another backfill."""
        self.end_loads()
        self.gone(keys)
        self.deliver_late()
        self.gone(keys)
        if self.captured:
            self.case.sync()
            self.gone(keys)
            self.deliver_late()
            self.case.backfill(restart=True)
            self.gone(keys)
            assert self.case.verify().outcome.passed

    def by_sql(self, statement: str, *values: Any) -> None:
        """Any other program's write: clients see it where they read the column, elsewhere after sync; in redis-only
        as a late write."""
        self.case.execute(statement, *values)
        if self.phase is Phase.REDIS_ONLY:
            for cache in (self.reader, self.other):
                assert self.seen(cache, FULL) == [OLD, OLD]
            self.case.sync()
            self.gone(FULL)
            return
        for cache in (self.reader, self.other):
            assert self.seen(cache, FULL) == [OLD if self.from_redis(key) else None for key in FULL]
        if self.captured:
            self.case.sync()
        self.gone()
        if self.phase is Phase.IDLE:
            self.gone_for_good(FULL)  # of a load nobody can tell that it is late
        else:
            self.gone_for_good()


@pytest.fixture(params=STAGES)
def stage(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def stand(migrating: Migrating, stage: str) -> Iterator[Stand]:
    with ExitStack() as stack:
        yield Stand(migrating, stage, stack)


@pytest.mark.parametrize("how", ["invalidate", "put"])
def test_by_the_application(stand: Stand, how: str) -> None:
    for key in ALL:
        if how == "put" and key in FULL:
            stand.reader.put(key, {})
        else:
            stand.reader.invalidate(key)
    stand.gone()
    if stand.phase is Phase.IDLE:
        stand.gone_for_good(FULL)
    else:
        stand.gone_for_good()
    stand.reader.put(FULL[0], NEW)
    for cache in (stand.reader, stand.other):
        assert cache.get(FULL[0]) == NEW


def test_by_raw_sql(stand: Stand) -> None:
    stand.by_sql("UPDATE sessions SET cache = '{}' WHERE file_hash = ANY (%s)", ALL)


def test_by_a_clean_up_job(stand: Stand) -> None:
    stand.by_sql("UPDATE sessions SET cache = '{}' WHERE created_at < clock_timestamp()")


def test_by_delete(stand: Stand) -> None:
    stand.by_sql("DELETE FROM sessions WHERE file_hash = ANY (%s)", ALL)


def test_by_key_change(stand: Stand) -> None:
    stand.by_sql("UPDATE sessions SET file_hash = file_hash || '-2' WHERE file_hash = ANY (%s)", ALL)
    moved = [f"{key}-2" for key in FULL]
    expected = [None, None] if stand.phase is Phase.REDIS_ONLY else [OLD, OLD]
    for cache in (stand.reader, stand.other):
        assert stand.seen(cache, moved) == expected


def test_during_a_load(stand: Stand) -> None:
    for key in LOADING:
        stand.loader.invalidate(key)
    stand.end_loads()
    stand.gone(LOADING)
    assert stand.loader.stats()["refused_fills"] == len(LOADING)
    for key in LOADING:
        assert stand.reader.get_or_compute(key, lambda: NEW) == NEW
        assert stand.other.get(key) == NEW, "a load that began after it is kept"


def test_from_another_process(stand: Stand) -> None:
    program = (
        "import sys\n"
        "from cachemig.service import CacheService, Options\n"
        "with CacheService.open(dsn=sys.argv[1], redis_url=sys.argv[2], options=Options(redis_timeout=1)) as cache:\n"
        "    for key in sys.argv[3:]:\n"
        "        print(cache.invalidate(key).stored)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, stand.case.dsn, stand.case.redis_url, *ALL],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "True\n" * len(ALL)
    stand.gone()
    if stand.phase is Phase.IDLE:
        stand.gone_for_good(FULL)
        stand.end_loads()
        assert stand.seen(stand.other, LOADING) == [OLD, OLD], "as the table says of idle"
    else:
        stand.gone_for_good()


def test_while_redis_is_dead(database: str, own_redis: OwnRedis, prefix: str, tmp_path: Path, stage: str) -> None:
    server = own_redis({"appendonly": "yes", "appendfsync": "always"}, tcp=True)
    with ExitStack() as stack:
        case = Migrating(database, server.url, prefix, tmp_path)
        stack.callback(case.close)
        case.execute(TABLE)
        stand = Stand(case, stage, stack)
        server.kill()
        for key in ALL:
            if stand.phase is Phase.REDIS_ONLY:
                with pytest.raises(WriteFailed):
                    stand.reader.invalidate(key)
                assert stand.other.get_entry(key).unreachable
            else:
                assert stand.reader.invalidate(key).stored
        stand.end_loads()
        if stand.phase is not Phase.REDIS_ONLY:
            stand.gone(FULL if stand.phase is Phase.IDLE else ALL)
        server.start()  # with all that it held
        for cache in (stand.reader, stand.other, stand.loader):
            until(lambda cache=cache: cache.health().redis_reachable)  # type: ignore[misc]
        if stand.phase is Phase.REDIS_ONLY:
            assert stand.seen(stand.reader, ALL) == [OLD, OLD, None, None], "a write that failed is not half done"
            for key in ALL:
                stand.reader.invalidate(key)
            stand.gone_for_good()
            return
        assert stand.seen(stand.reader, FULL) == [None, None], "its own write"
        assert stand.seen(stand.other, FULL) == [OLD if stand.from_redis(key) else None for key in FULL]
        if stand.captured:
            case.sync()
        stand.gone_for_good(FULL if stand.phase is Phase.IDLE else ALL)


# What is no invalidation --------------------------------------------------------------------------------------------


def test_reads_extend_no_lifetime(migrating: Migrating) -> None:
    """But where the application moves the column that it counts from, the next fill takes the new time."""
    migrating.execute(
        "INSERT INTO sessions (file_hash, cache, seen_at) VALUES ('a', %s, now() - interval '29 days')", Jsonb(OLD)
    )
    migrating.begin()
    migrating.backfill()
    move(migrating, Phase.CUTOVER)
    with opened_sync(migrating) as cache:

        def days_left() -> float:
            left: Any = migrating.redis.pttl(f"{migrating.prefix}a")
            return float(left) / 86_400_000

        before = days_left()
        assert 0.9 < before < 4.1  # a tenth of 30 days may be added
        for _ in range(3):
            assert cache.get_entry("a").source is Source.REDIS
        assert days_left() <= before
        migrating.execute("UPDATE sessions SET seen_at = now()")
        migrating.sync()
        assert cache.get("a") == OLD
        assert days_left() <= before, "nothing was written"
        migrating.redis.delete(f"{migrating.prefix}a")  # as when its time has come
        assert cache.get_entry("a").source is Source.COLUMN
        assert cache.get_entry("a").source is Source.REDIS
        assert days_left() > 29


def test_a_part_that_sql_merges_in(migrating: Migrating) -> None:
    migrating.put("a", OLD)
    migrating.begin()
    migrating.backfill()
    move(migrating, Phase.CUTOVER)
    with opened_sync(migrating) as cache:
        migrating.execute("UPDATE sessions SET cache = cache || '{\"part\": 1}' WHERE file_hash = 'a'")
        migrating.sync()
        assert cache.get("a") == {**OLD, "part": 1}
        cache.put("a", {"part": 2})
        assert cache.get("a") == {"part": 2}, "all of it was replaced"


# The document ------------------------------------------------------------------------------------------------------


def test_every_row_of_the_document_names_its_test() -> None:
    text = (REPOSITORY / "docs" / "cutover.md").read_text(encoding="utf-8")
    section = text.split("\n## Invalidation\n")[1].split("\n## ")[0]
    heads, *rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert heads.count("|") == 5
    named = re.findall(r"`(test_\w+)`", section.replace(heads, ""))
    assert [len(re.findall(r"`test_\w+` \|$", row)) for row in rows] == [1] * len(rows)
    here = {name for name in globals() if name.startswith("test_")}
    assert sorted(named) == sorted(here - {"test_every_row_of_the_document_names_its_test"})

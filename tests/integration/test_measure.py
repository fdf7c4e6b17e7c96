"""measure reads in every way, changes nothing, and says where the time goes."""

from __future__ import annotations

import json

import pytest

from cachemig.errors import Refused
from cachemig.steps import measure as step
from cachemig.stop import Stop
from tests.integration.conftest import Migrating, finish


@pytest.fixture
def moved(migrating: Migrating) -> Migrating:
    """Values of 60 KB in a table whose other columns are small."""
    for n in range(12):
        migrating.put(f"k{n}", {"v": [n / 7] * 3000})
    migrating.begin()
    migrating.backfill()
    return migrating


def measure(moved: Migrating, **options: int) -> step.Measured:
    return finish(step.measure(moved.settings, moved.target, Stop(), **options))


def test_every_way_is_measured_on_the_same_keys(moved: Migrating) -> None:
    result = measure(moved, keys=10, rounds=2)
    assert (result.keys, result.hits) == (10, 10)
    by_key = {way.name: way.n for way in result.ways if not way.name.startswith("list")}
    assert by_key == dict.fromkeys(
        (step.WHOLE_ROW, step.COLUMN, step.COLUMN_ORJSON, step.OTHERS, step.REDIS, step.REDIS_ORJSON, step.SERVICE), 20
    )
    assert all(0 < way.p50 <= way.p95 <= way.p99 for way in result.ways)
    assert result.bytes_median > 40_000
    assert result.bytes_per_key is not None
    assert result.bytes_per_key > 40_000
    assert result.redis_bytes is not None
    document = json.loads(json.dumps(result.document()))
    assert document["goal_ms"] == {"database": 200.0, "cache": 50.0}
    assert document["ratios"][f"SELECT * / {step.SERVICE}"] > 0
    assert any("lists: do not select the column" in line for line in result.advice)


def test_keys_that_are_not_in_redis_count_for_the_table_alone(moved: Migrating) -> None:
    moved.redis.delete(*(f"{moved.prefix}k{n}" for n in range(12)))
    result = measure(moved, keys=5, rounds=1)
    assert (result.hits, result.way(step.SERVICE)) == (0, None)
    assert result.way(step.COLUMN) is not None
    assert any("backfill first" in line for line in result.advice)


def test_it_changes_nothing_and_registers_nowhere(moved: Migrating) -> None:
    before = [moved.execute(f"SELECT count(*) FROM cachemig.{name}") for name in ("journal", "change", "client")]
    keys = moved.redis.dbsize()
    measure(moved, keys=3, rounds=1)
    after = [moved.execute(f"SELECT count(*) FROM cachemig.{name}") for name in ("journal", "change", "client")]
    assert after == before
    assert moved.redis.dbsize() == keys


def test_a_codec_is_decoded(migrating: Migrating) -> None:
    migrating.set(codec="zstd")
    migrating.put("a", {"v": "x" * 5000})
    migrating.begin()
    migrating.backfill()
    assert measure(migrating, keys=1, rounds=1).hits == 1


def test_an_empty_table_is_refused(migrating: Migrating) -> None:
    migrating.begin()
    with pytest.raises(Refused, match="no row of"):
        measure(migrating)


def ways(**p50: float) -> step.Measured:
    names = {"whole": step.WHOLE_ROW, "column": step.COLUMN, "orjson": step.COLUMN_ORJSON, "cache": step.SERVICE}
    return step.Measured(1, 1, 1, [step.Way(names[name], 9, ms, ms, ms) for name, ms in p50.items()])


def test_the_advice_is_honest_about_where_the_win_is() -> None:
    assert any("no faster from the cache" in line for line in step.advice(ways(whole=5, column=5, orjson=1, cache=0.9)))
    assert any("a faster parser alone" in line for line in step.advice(ways(whole=5, column=5, orjson=1, cache=0.9)))
    good = step.advice(ways(whole=200, column=190, orjson=180, cache=2))
    assert "a single read: 200.00 ms by SELECT *, 2.00 ms from the cache" in good
    assert any("goal of 50 ms from the cache: met" in line for line in good)
    assert any("NOT met" in line for line in step.advice(ways(whole=200, column=190, orjson=180, cache=80)))


def test_ranks() -> None:
    way = step.Way.of("x", [float(n) for n in range(100)])
    assert (way.n, way.p50, way.p95, way.p99) == (100, 50.0, 95.0, 99.0)
    assert step.Way.of("x", [3.0]).p99 == 3.0

"""The demo's rows: the same for the same seed, as large and as odd as the real ones."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cachemig.demo.payloads import (
    CORRUPT,
    ERA,
    HEAD,
    MINIMUM_ROWS,
    DemoRow,
    Kind,
    analytics,
    planted,
    rows,
    session_analytics,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
COUNT = 400
TTL = timedelta(days=30)

TEMPORAL = {
    f"{name}_temporal_stats": {
        "mean_value", "std_value", "min_value", "max_value", "valid_windows", "coefficient_of_variation"
    }
    for name in ("rms", "mav", "fatigue_index", "mpf", "mdf")
}  # fmt: skip
# EMG.md §11, head; `errors` is there only where something failed.
HEAD_RECORD = {
    "expected_contractions", "rms", "mav", "mpf", "mdf", "fatigue_index_fi_nsm5", *TEMPORAL, "signal_processing",
    "contraction_count", "avg_duration_ms", "min_duration_ms", "max_duration_ms", "total_time_under_tension_ms",
    "avg_amplitude", "max_amplitude", "contractions", "good_contraction_count", "mvc_compliant_count",
    "duration_compliant_count", "mvc75_threshold", "duration_threshold_actual_value", "compliance_rate",
    "mvc_estimation_method",
}  # fmt: skip
CONTRACTION = {
    "start_time_ms", "end_time_ms", "duration_ms", "mean_amplitude", "max_amplitude", "is_good", "meets_mvc",
    "meets_duration",
}  # fmt: skip


@pytest.fixture(scope="module")
def sample() -> list[DemoRow]:
    return list(rows(COUNT, 7, now=NOW))


@pytest.fixture(scope="module")
def values(sample: list[DemoRow]) -> list[Any]:
    return [json.loads(row.analytics_cache) for row in sample if row.analytics_cache is not None]


def records(payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from payload["analytics"].values()


def s1(values: list[Any]) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict) and "analytics" in value]


def test_the_same_seed_gives_the_same_rows(sample: list[DemoRow]) -> None:
    assert list(rows(COUNT, 7, now=NOW)) == sample
    assert planted(COUNT, 7) == planted(COUNT, 7)


def test_another_seed_gives_other_rows(sample: list[DemoRow]) -> None:
    other = list(rows(COUNT, 8, now=NOW))
    assert not {row.id for row in other} & {row.id for row in sample}
    assert not {row.file_hash for row in other if row.file_hash} & {row.file_hash for row in sample}


@pytest.mark.parametrize("count", [MINIMUM_ROWS, 51, 300, 4000])
def test_the_census_adds_up(count: int) -> None:
    report = planted(count, 1)
    assert set(report.kinds) == set(Kind)
    assert sum(report.kinds.values()) == report.rows == count
    assert all(number > 0 for number in report.kinds.values())
    assert {kind: report.kinds[kind] for kind in CORRUPT} == CORRUPT
    assert len(report.corrupt) == sum(CORRUPT.values()) == 7


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="50 or more"):
        rows(MINIMUM_ROWS - 1, 1)
    with pytest.raises(ValueError, match="50 or more"):
        planted(MINIMUM_ROWS - 1, 1)


def test_the_rows_are_what_was_said(sample: list[DemoRow]) -> None:
    report = planted(COUNT, 7)
    kinds = report.kinds
    assert len(sample) == COUNT
    assert len({row.id for row in sample}) == COUNT
    empty = [row for row in sample if row.analytics_cache == "{}"]
    null = [row for row in sample if row.analytics_cache is None]
    assert (len(empty), len(null)) == (kinds[Kind.EMPTY], kinds[Kind.NULL])
    assert {row.status for row in empty + null} <= {"pending", "failed"}
    assert sum(row.file_hash is None for row in sample) == kinds[Kind.WITHOUT_HASH]
    expired = [row for row in sample if row.last_accessed_at and row.last_accessed_at < NOW - TTL]
    assert len(expired) == kinds[Kind.EXPIRED]
    unread = [row for row in sample if row.last_accessed_at is None and row.status == "completed"]
    assert len(unread) == kinds[Kind.NEVER_ACCESSED]
    assert all(row.file_hash is None or (len(row.file_hash) == 64 and int(row.file_hash, 16)) for row in sample)
    assert all(row.created_at <= row.updated_at <= NOW for row in sample)


def test_the_keys_are_those_of_living_sound_values(sample: list[DemoRow]) -> None:
    corrupt = {bad.file_hash for bad in planted(COUNT, 7).corrupt}
    keys = {
        row.file_hash
        for row in sample
        if row.file_hash
        and row.file_hash not in corrupt
        and row.analytics_cache not in (None, "{}")
        and not (row.last_accessed_at and row.last_accessed_at < NOW - TTL)
    }
    assert len(keys) == planted(COUNT, 7).keys


def test_shared_hashes_have_a_newer_and_an_older_session(sample: list[DemoRow]) -> None:
    shared = {key: n for key, n in Counter(row.file_hash for row in sample if row.file_hash).items() if n > 1}
    assert len(shared) == planted(COUNT, 7).kinds[Kind.OLDER]
    for key in shared:
        older, newer = sorted((row for row in sample if row.file_hash == key), key=lambda row: row.created_at)
        assert older.updated_at < newer.updated_at
        assert older.analytics_cache != newer.analytics_cache
        assert older.last_accessed_at
        assert older.last_accessed_at > NOW - TTL


def test_corrupt_rows_are_found_by_id_and_hash(sample: list[DemoRow]) -> None:
    by_id = {row.id: row for row in sample}
    hashes = Counter(row.file_hash for row in sample)
    for bad in planted(COUNT, 7).corrupt:
        row = by_id[bad.id]
        assert row.file_hash == bad.file_hash
        assert hashes[bad.file_hash] == 1
        assert row.analytics_cache
        value = json.loads(row.analytics_cache)
        match bad.kind:
            case Kind.DOUBLE_ENCODED:
                assert json.loads(value)["analytics"]
            case Kind.TRUNCATED:
                assert value.startswith('{"analytics"')
                with pytest.raises(json.JSONDecodeError):
                    json.loads(value)
            case Kind.ARRAY:
                assert value[0]["analytics"]
            case Kind.NUMBER:
                assert isinstance(value, int)
            case _:
                assert value == "[object Object]"


def test_nothing_else_is_corrupt(values: list[Any]) -> None:
    assert sum(not isinstance(value, dict) for value in values) == sum(CORRUPT.values())


def test_a_head_record_has_every_field(values: list[Any]) -> None:
    payloads = [value for value in s1(values) if value["processing_version"] == HEAD.version and value["analytics"]]
    assert payloads
    for payload in payloads:
        assert set(payload) - {"emg_signals"} == {"analytics", "processing_params", "processing_version", "cached_at"}
        assert len(payload["processing_params"]) == 15
        for record in records(payload):
            assert set(record) - {"errors"} == HEAD_RECORD
            assert {name: set(record[name]) for name in TEMPORAL} == TEMPORAL
            assert all(set(contraction) == CONTRACTION for contraction in record["contractions"])


def test_an_era_record_has_the_old_names(values: list[Any]) -> None:
    renamed = {"mvc_compliant_count", "duration_compliant_count", "mvc75_threshold", "compliance_rate"}
    old = {"mvc_contraction_count", "duration_contraction_count", "mvc_threshold_actual_value"}
    payloads = [value for value in s1(values) if value["processing_version"] == ERA.version]
    assert payloads
    for payload in payloads:
        assert payload["processing_params"] == {}
        assert all(set(record) - {"errors"} == HEAD_RECORD - renamed | old for record in records(payload))


def test_the_fields_are_those_of_real_payloads(shared_data: Path) -> None:
    def fields(value: object) -> object:
        if isinstance(value, dict):
            return {name: fields(inner) for name, inner in value.items() if name != "errors"}
        return [fields(value[0])] if isinstance(value, list) and value else type(value)

    for profile, name in ((HEAD, "head"), (ERA, "era")):
        file = shared_data / "expected" / name / "Ghostly_Emg_20230321_17-28-14-0160.json"
        ours = analytics(Random(3), profile, 30)
        for record in records(ours):
            record["expected_contractions"] = None
        assert fields(ours) == fields(json.loads(file.read_text()))


def test_the_figures_of_a_record_agree(values: list[Any]) -> None:
    for record in (record for value in s1(values) for record in records(value)):
        found = record["contractions"]
        assert record["contraction_count"] == len(found)
        assert record["good_contraction_count"] == sum(contraction["is_good"] for contraction in found)
        assert all(type(contraction["is_good"]) is bool for contraction in found)
        assert all(one["end_time_ms"] < two["start_time_ms"] for one, two in pairwise(found))
        assert all(
            abs(contraction["end_time_ms"] - contraction["start_time_ms"] - contraction["duration_ms"]) < 1e-6
            for contraction in found
        )


def test_sizes(sample: list[DemoRow]) -> None:
    sizes: dict[str, list[int]] = {"s1": [], "signals": [], "small": []}
    for row in sample:
        value = json.loads(row.analytics_cache or "{}")
        if isinstance(value, dict) and value:
            kind = "signals" if "emg_signals" in value else "s1" if value.get("analytics") else "small"
            sizes[kind].append(len((row.analytics_cache or "").encode()))
    assert 9_500 < min(sizes["s1"]) < max(sizes["s1"]) < 18_500
    assert max(sizes["small"]) < 600
    assert 90_000 < min(sizes["signals"]) < 120_000
    assert 1_800_000 < max(sizes["signals"]) < 2_200_000
    assert len(sizes["signals"]) == COUNT // 100


def test_what_the_application_writes_is_sound_and_2_to_18_kb() -> None:
    rng = Random(1)
    texts = [session_analytics(rng) for _ in range(400)]
    assert all(set(json.loads(text)) >= {"analytics", "processing_version"} for text in texts)
    sizes = sorted(len(text.encode()) for text in texts)
    assert sizes[0] > 2_000
    assert sizes[-1] < 18_500
    assert sizes[-1] - sizes[0] > 10_000


def test_numbers_have_full_precision(values: list[Any]) -> None:
    text = json.dumps([record["rms"] for value in s1(values)[:50] for record in records(value)])
    digits = [number.split("e")[0].lstrip("0.-").replace(".", "") for number in text.strip("[]").split(", ")]
    assert sum(map(len, digits)) / len(digits) > 15


@pytest.mark.parametrize("contractions", [-1, 101])
def test_more_contractions_than_fit_are_refused(contractions: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        analytics(Random(1), HEAD, contractions)


@pytest.mark.parametrize(("contractions", "channels"), [(0, 1), (0, 2), (1, 2), (100, 1), (100, 2)])
def test_any_number_of_contractions_is_shared_out(contractions: int, channels: int) -> None:
    for seed in range(20):
        payload: Any = analytics(Random(seed), HEAD, contractions, channels)
        assert sum(len(record["contractions"]) for record in records(payload)) == contractions
        assert all(("compliance_rate" in record) == bool(record["contractions"]) for record in records(payload))


def test_four_thousand_rows_come_quickly() -> None:
    began = time.process_time()
    total = sum(len(row.analytics_cache or "") for row in rows(4000, 1))
    assert time.process_time() - began < 12  # 2 s on the machine it was written on
    assert 40e6 < total < 60e6


def test_numpy_is_not_imported() -> None:
    code = "import sys, cachemig.demo.payloads; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

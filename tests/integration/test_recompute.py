"""Corrupt values come back: decoded, or computed anew from their recordings; and what cannot be repaired says why."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cachemig.demo.recordings import aborted, recording_bytes
from cachemig.emg.isolated import Isolated
from cachemig.emg.profile import PROFILES, Options
from cachemig.entries.verdicts import Verdict
from cachemig.errors import ConfigError, PrivilegeMissing, Refused
from cachemig.recordings import RecordingUnavailable
from cachemig.source import repair
from cachemig.steps import compare as compare_step
from cachemig.steps import recompute as step
from cachemig.stop import Stop
from tests.integration.conftest import Migrating, finish

CORRUPT = '{"analytics": {"CH1": 7}, "processing_params": {}, "processing_version": "2.1.0", "cached_at": "x"}'
SUMMARY = '{"channels": ["CH1"], "summary": {"total_channels": 1, "overall_compliance": 0.5}}'


@cache
def recording(seed: int) -> bytes:
    return recording_bytes(seed, 12.0)


@cache
def expected(seed: int, profile: str) -> dict[str, Any]:
    from datetime import UTC, datetime

    with Isolated() as reader:
        return reader.analyse(recording(seed), PROFILES[profile], Options(), datetime.now(UTC))["analytics"]  # type: ignore[no-any-return]


@pytest.fixture
def clinic(migrating: Migrating, tmp_path: Path) -> Migrating:
    """Capture is on, recordings lie in a folder; rows are put by `put_session`."""
    migrating.execute("ALTER TABLE sessions ADD COLUMN file_path text")
    migrating.set(shape="emg", recordings_location=f"{tmp_path}/recordings/{{file_path}}")
    (tmp_path / "recordings").mkdir()
    migrating.begin()
    return migrating


def put_session(
    clinic: Migrating, value: str, *, seed: int = 1, data: bytes | None = None, key: str | None = None
) -> str:
    """A row with this value and a recording; returns its key."""
    data = recording(seed) if data is None else data
    key = key or hashlib.sha256(data).hexdigest()
    path = clinic.directory / "recordings" / f"{key}.c3d"
    path.write_bytes(data)
    clinic.execute("INSERT INTO sessions (file_hash, cache, file_path) VALUES (%s, %s, %s)", key, value, f"{key}.c3d")
    return key


def recompute(clinic: Migrating, keys: list[str] | None = None, **options: Any) -> step.Recomputed:
    return finish(step.recompute(clinic.settings, clinic.target, Stop(), keys, **options))


def cache_of(clinic: Migrating, key: str) -> str:
    return str(clinic.execute("SELECT cache::text FROM sessions WHERE file_hash = %s", key)[0][0])


def reasons(clinic: Migrating) -> dict[str, str]:
    return dict(clinic.execute("SELECT key, error FROM cachemig.entry WHERE state = 'set-aside'"))


def test_backfill_repairs_what_is_corrupt(clinic: Migrating) -> None:
    sound = put_session(clinic, SUMMARY, seed=1)
    broken = put_session(clinic, CORRUPT, seed=2)
    twice = put_session(clinic, json.dumps(json.dumps(SUMMARY)), seed=3)
    clinic.set(shape="emg", recordings_location=clinic.settings.recordings_location, recompute_shape="analysis")
    result = clinic.backfill()
    assert result.repaired == 2
    assert result.tally.faults == {"wrong-type": 1, "double-encoded": 1}
    computed = json.loads(cache_of(clinic, broken))
    assert computed["analytics"] == expected(2, "head")
    assert computed["processing_version"] == "2.1.0"
    assert json.loads(cache_of(clinic, twice)) == json.loads(SUMMARY)
    assert clinic.in_redis() == clinic.in_postgres()
    assert clinic.in_redis().keys() == {sound, broken, twice}
    verified = clinic.verify()
    assert verified.outcome.passed
    assert verified.counts[Verdict.MATCH] == 3


def test_what_was_replaced_is_kept_and_put_back(clinic: Migrating) -> None:
    key = put_session(clinic, CORRUPT)
    before = cache_of(clinic, key)
    clinic.backfill()
    ((how, fault, profile, kept),) = clinic.execute("SELECT how, fault, profile, before FROM cachemig.repair")
    assert (how, profile, kept) == ("recomputed", "head", before)
    assert fault.startswith("wrong-type")
    undone = finish(step.undo(clinic.settings, clinic.target, Stop(), None))
    assert undone == step.Undone(1, 0)
    assert cache_of(clinic, key) == before
    assert clinic.in_redis() == {}
    assert clinic.verify().counts[Verdict.SET_ASIDE] == 1
    assert finish(step.undo(clinic.settings, clinic.target, Stop(), None)) == step.Undone(0, 0)


def test_what_the_application_wrote_since_is_not_put_back(clinic: Migrating) -> None:
    key = put_session(clinic, CORRUPT)
    clinic.backfill()
    clinic.execute("UPDATE sessions SET cache = %s", SUMMARY)
    assert finish(step.undo(clinic.settings, clinic.target, Stop(), [key])) == step.Undone(0, 1)
    assert json.loads(cache_of(clinic, key)) == json.loads(SUMMARY)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_profile_is_that_of_the_settings_and_stands_in_the_ledger(clinic: Migrating, profile: str) -> None:
    clinic.set(
        shape="emg", recordings_location=clinic.settings.recordings_location, recompute_profile=profile,
        recompute_shape="analysis", on_corrupt="set-aside",
    )  # fmt: skip
    key = put_session(clinic, CORRUPT)
    clinic.backfill()
    assert reasons(clinic).keys() == {key}
    result = recompute(clinic)
    assert (result.profile, result.recomputed) == (profile, 1)
    assert json.loads(cache_of(clinic, key))["analytics"] == expected(1, profile)
    assert clinic.execute("SELECT profile FROM cachemig.repair") == [(profile,)]


@pytest.mark.parametrize(("usual", "shape"), [(SUMMARY, "summary"), (CORRUPT, "analysis")])
def test_the_shape_is_that_of_most_rows(clinic: Migrating, usual: str, shape: str) -> None:
    for n in range(3):
        put_session(clinic, usual, key=f"k{n}")
    key = put_session(clinic, "[1]", seed=5)
    clinic.backfill()
    written = json.loads(cache_of(clinic, key))
    if shape == "summary":
        assert written["channels"] == ["CH1", "CH2"]
        assert written["summary"]["total_channels"] == 2
    else:
        assert written["analytics"] == expected(5, "head")


def test_a_payload_says_that_it_was_recomputed_only_on_request(clinic: Migrating) -> None:
    key = put_session(clinic, CORRUPT)
    clinic.backfill()
    assert "recomputed" not in json.loads(cache_of(clinic, key))
    recompute(clinic, [key], force=True, annotate=True)
    assert json.loads(cache_of(clinic, key))["recomputed"]["profile"] == "head"


def test_a_sound_value_is_left_alone(clinic: Migrating) -> None:
    key = put_session(clinic, SUMMARY)
    clinic.backfill()
    before = cache_of(clinic, key)
    result = recompute(clinic, [key, "nobody"])
    assert [(case.key, case.what) for case in result.cases] == [("nobody", "gone"), (key, "sound")]
    assert cache_of(clinic, key) == before


def test_a_dry_run_computes_and_writes_nothing(clinic: Migrating) -> None:
    key = put_session(clinic, CORRUPT)
    clinic.set(shape="emg", recordings_location=clinic.settings.recordings_location, on_corrupt="set-aside")
    clinic.backfill()
    before = (cache_of(clinic, key), reasons(clinic))
    result = recompute(clinic, dry_run=True)
    assert (result.recomputed, result.dry_run) == (1, True)
    assert (cache_of(clinic, key), reasons(clinic)) == before
    assert clinic.execute("SELECT count(*) FROM cachemig.repair") == [(0,)]
    assert clinic.in_redis() == {}


DAMAGED: dict[str, Callable[[], bytes]] = {
    "truncated": lambda: recording(7)[:-2000],
    "aborted": lambda: aborted(recording(7)),
    "not-a-c3d": lambda: b"text" * 1000,
    "too-small": lambda: b"",
}


def test_whatever_is_wrong_with_a_recording_stands_in_the_ledger_and_the_rest_flows(clinic: Migrating) -> None:
    keys = {name: put_session(clinic, CORRUPT, data=data()) for name, data in DAMAGED.items()}
    keys["wrong-digest"] = put_session(clinic, CORRUPT, key="0" * 64)
    keys["not-found"] = put_session(clinic, CORRUPT, key="1" * 64)
    (clinic.directory / "recordings" / f"{keys['not-found']}.c3d").unlink()
    keys["not-named"] = put_session(clinic, CORRUPT, key="2" * 64)
    clinic.execute("UPDATE sessions SET file_path = NULL WHERE file_hash = %s", keys["not-named"])
    keys["unsafe-name"] = put_session(clinic, CORRUPT, key="3" * 64)
    clinic.execute("UPDATE sessions SET file_path = '../x' WHERE file_hash = %s", keys["unsafe-name"])
    whole = put_session(clinic, CORRUPT, seed=8)
    result = clinic.backfill()
    assert result.repaired == 1
    assert clinic.in_redis().keys() == {whole}
    found = reasons(clinic)
    for name, key in keys.items():
        assert f"; not repaired: {name}" in found[key]
        assert found[key].startswith("wrong-type: ")
        assert f"{key}.c3d" not in found[key]  # the path may be a patient's name; the template is shown
    again = recompute(clinic)
    assert again.left == dict.fromkeys(keys, 1)
    assert reasons(clinic) == found  # told once, however often it is tried
    assert clinic.verify(accept_set_aside=len(keys)).faults == {"wrong-type": len(keys)}


def test_a_key_that_is_no_digest_is_taken_as_it_is(clinic: Migrating) -> None:
    key = put_session(clinic, CORRUPT, key="session-17")
    clinic.backfill()
    assert clinic.in_redis().keys() == {key}


def test_without_recordings_a_double_encoded_value_is_decoded_all_the_same(clinic: Migrating) -> None:
    clinic.set(shape="emg", on_corrupt="recompute")
    decodable = put_session(clinic, json.dumps(SUMMARY), key="a")
    put_session(clinic, CORRUPT, key="b")
    put_session(clinic, json.dumps(CORRUPT), key="c")  # decoded it would be corrupt still
    result = clinic.backfill()
    assert result.repaired == 1
    assert clinic.in_redis().keys() == {decodable}
    assert {key: "not-configured" in why for key, why in reasons(clinic).items()} == {"b": True, "c": True}


def test_the_numbers_of_a_decoded_value_keep_their_digits(clinic: Migrating) -> None:
    inner = '{"channels_analyzed": 1, "big": 123456789012345678901234567890, "small": 1.10, "tiny": 1e-400}'
    key = put_session(clinic, json.dumps(inner), key="a")
    clinic.backfill()
    assert clinic.execute("SELECT cache = %s::jsonb FROM sessions", inner) == [(True,)]
    assert b"123456789012345678901234567890" in clinic.in_redis()[key]


def test_a_value_that_the_column_does_not_take_stays_set_aside(clinic: Migrating) -> None:
    put_session(clinic, json.dumps('{"channels_analyzed": 1, "x": "\\u0000"}'), key="a")
    whole = put_session(clinic, CORRUPT, seed=2)
    assert clinic.backfill().repaired == 1
    assert clinic.in_redis().keys() == {whole}
    assert "unstorable" in recompute(clinic).left


def test_a_write_that_comes_in_between_wins(clinic: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    key = put_session(clinic, CORRUPT)
    clinic.set(shape="emg", recordings_location=clinic.settings.recordings_location, on_corrupt="set-aside")
    clinic.backfill()
    write = repair.write

    def late(*args: Any, **options: Any) -> bool:
        with psycopg.connect(clinic.dsn, autocommit=True) as conn:
            conn.execute("UPDATE sessions SET cache = %s", [SUMMARY])
        return write(*args, **options)

    monkeypatch.setattr(repair, "write", late)
    result = recompute(clinic)
    assert result.left == {"written-meanwhile": 1}
    assert json.loads(cache_of(clinic, key)) == json.loads(SUMMARY)
    assert clinic.execute("SELECT count(*) FROM cachemig.repair") == [(0,)]


def test_a_row_that_only_moves_is_repaired(clinic: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    key = put_session(clinic, CORRUPT)
    clinic.set(shape="emg", recordings_location=clinic.settings.recordings_location, on_corrupt="set-aside")
    clinic.backfill()
    write = repair.write

    def late(*args: Any, **options: Any) -> bool:
        monkeypatch.undo()
        clinic.execute("UPDATE sessions SET hits = hits + 1")
        return write(*args, **options)

    monkeypatch.setattr(repair, "write", late)
    assert recompute(clinic).recomputed == 1
    assert clinic.in_redis().keys() == {key}


def test_a_row_that_is_held_is_left_for_the_next_run(clinic: Migrating) -> None:
    put_session(clinic, CORRUPT)
    clinic.set(shape="emg", recordings_location=clinic.settings.recordings_location, on_corrupt="set-aside")
    clinic.backfill()
    with psycopg.connect(clinic.dsn) as holder:
        holder.execute("SELECT FROM sessions FOR UPDATE")
        assert recompute(clinic).left == {"locked": 1}
    assert recompute(clinic).recomputed == 1


def test_a_role_that_may_not_write_the_table_is_told_so(clinic: Migrating) -> None:
    put_session(clinic, CORRUPT)
    clinic.set(shape="emg", recordings_location=clinic.settings.recordings_location, on_corrupt="set-aside")
    clinic.backfill()
    clinic.execute("DROP ROLE IF EXISTS cachemig_test_reader")
    clinic.execute("CREATE ROLE cachemig_test_reader")
    try:
        clinic.execute("GRANT SELECT ON sessions TO cachemig_test_reader")
        clinic.execute("GRANT USAGE ON SCHEMA cachemig TO cachemig_test_reader")
        clinic.execute("GRANT ALL ON ALL TABLES IN SCHEMA cachemig TO cachemig_test_reader")
        clinic.settings = replace(clinic.settings, dsn=f"{clinic.dsn} options='-c role=cachemig_test_reader'")
        with pytest.raises(PrivilegeMissing):
            recompute(clinic)
    finally:
        clinic.execute("DROP OWNED BY cachemig_test_reader")
        clinic.execute("DROP ROLE cachemig_test_reader")


def test_bad_locations(clinic: Migrating) -> None:
    put_session(clinic, CORRUPT)
    for location, error in (("/data/{nothing}", ConfigError), ("ftp://x/{file_path}", RecordingUnavailable)):
        clinic.settings = replace(clinic.settings, recordings_location=location)
        with pytest.raises(error):
            recompute(clinic)


def test_capture_must_be_on(clinic: Migrating) -> None:
    clinic.execute("UPDATE cachemig.migration SET phase = 'idle'")
    with pytest.raises(Refused, match="recompute is not allowed in phase 'idle'"):
        recompute(clinic)


# on_corrupt ---------------------------------------------------------------------------------------------------------


def test_copy_delivers_what_is_corrupt_and_says_so(migrating: Migrating) -> None:
    migrating.set(shape="emg", on_corrupt="copy")
    migrating.put("a", CORRUPT)
    migrating.put("b", "[1]")
    migrating.put("c", SUMMARY)
    migrating.begin()
    result = migrating.backfill()
    assert (result.tally.delivered, result.tally.copied, result.tally.set_aside) == (3, 2, 0)
    assert result.tally.faults == {"wrong-type": 1, "not-an-object": 1}
    assert migrating.in_redis() == migrating.in_postgres()
    assert migrating.verify().outcome.passed
    migrating.execute("UPDATE sessions SET cache = '[2]' WHERE file_hash = 'b'")
    migrating.sync()
    assert migrating.in_redis()["b"] == b"[2]"


def test_stop_ends_the_backfill_at_the_first_corrupt_value(migrating: Migrating) -> None:
    migrating.set(shape="emg", on_corrupt="stop")
    migrating.put("a", SUMMARY)
    migrating.put("b", CORRUPT)
    migrating.begin()
    with pytest.raises(Refused, match=r"b is corrupt \(wrong-type: channel 1: not an object\)"):
        migrating.backfill()
    assert migrating.execute("SELECT count(*) FROM cachemig.chunk WHERE state = 'running'") == [(0,)]
    migrating.execute("UPDATE sessions SET cache = %s WHERE file_hash = 'b'", SUMMARY)
    migrating.backfill()
    assert migrating.in_redis() == migrating.in_postgres()


# --compare ----------------------------------------------------------------------------------------------------------


def compared(clinic: Migrating, keys: list[str] | None = None) -> compare_step.Compared:
    return finish(compare_step.compare(clinic.settings, Stop(), keys, sample=10))


def analysis(seed: int, profile: str) -> str:
    return json.dumps(
        {
            "analytics": expected(seed, profile), "processing_version": PROFILES[profile].processing_version,
            "processing_params": {}, "cached_at": "2025-08-20T10:00:00",
        }
    )  # fmt: skip


def test_compare_tells_which_profile_is_closer(clinic: Migrating) -> None:
    for seed in (1, 2, 3):
        put_session(clinic, analysis(seed, "era"), seed=seed)
    result = compared(clinic)
    assert result.entries == 3
    assert result.closest == "era"
    assert result.alike == {"head": 0, "era": 3}
    era = result.profiles["era"]
    assert all(f.equal == f.compared and not f.only_one_side for f in era.values())
    head = result.profiles["head"]
    assert head["analytics.*.mvc_contraction_count"].only_one_side == 6
    assert head["analytics.*.rms"].equal == head["analytics.*.rms"].compared == 6
    assert "cached_at" not in era


def test_compare_says_how_far_a_number_is_off(clinic: Migrating) -> None:
    stored = json.loads(analysis(1, "era"))
    stored["analytics"]["CH1"]["rms"] *= 1.25
    put_session(clinic, json.dumps(stored))
    rms = compared(clinic).profiles["era"]["analytics.*.rms"]
    assert (rms.compared, rms.equal) == (2, 1)
    assert rms.largest == pytest.approx(0.2)


def test_compare_counts_what_it_cannot_compare(clinic: Migrating) -> None:
    corrupt = put_session(clinic, CORRUPT)
    other = put_session(clinic, '{"channels_analyzed": 1}', seed=2)
    gone = put_session(clinic, analysis(3, "head"), seed=3)
    (clinic.directory / "recordings" / f"{gone}.c3d").unlink()
    result = compared(clinic, [corrupt, other, gone])
    assert result.left == {"wrong-type": 1, "another-shape": 1, "not-found": 1}
    assert (result.entries, result.closest) == (0, None)


def test_a_summary_is_compared_with_a_summary(clinic: Migrating) -> None:
    put_session(clinic, SUMMARY)
    result = compared(clinic)
    assert result.profiles["head"].keys() == {"channels[]", "summary.total_channels", "summary.overall_compliance"}
    assert result.profiles["head"]["summary.total_channels"].equal == 0


def test_compare_wants_recordings(clinic: Migrating) -> None:
    clinic.set(shape="emg")
    with pytest.raises(Refused, match="recordings_location is not set"):
        compared(clinic)


def test_compare_changes_nothing(clinic: Migrating) -> None:
    key = put_session(clinic, analysis(1, "era"))
    before = (cache_of(clinic, key), clinic.marks(), clinic.execute("SELECT count(*) FROM cachemig.journal"))
    compared(clinic)
    assert (cache_of(clinic, key), clinic.marks(), clinic.execute("SELECT count(*) FROM cachemig.journal")) == before


def test_repairs_run_beside_writers_and_a_sync(clinic: Migrating) -> None:
    """The application writes the same rows all the while: its value or the repair's stands at the end, in both."""
    keys = [put_session(clinic, CORRUPT, seed=seed) for seed in range(1, 9)]
    clinic.set(shape="emg", recordings_location=clinic.settings.recordings_location, on_corrupt="set-aside")
    clinic.backfill()
    done = threading.Event()

    def write() -> None:
        with psycopg.connect(clinic.dsn, autocommit=True) as conn:
            n = 0
            while not done.is_set():
                conn.execute("UPDATE sessions SET hits = hits + 1 WHERE file_hash = %s", [keys[n % 8]])
                if n % 50 == 0:
                    conn.execute("UPDATE sessions SET cache = %s WHERE file_hash = %s", [SUMMARY, keys[n // 50 % 4]])
                n += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        result = recompute(clinic)
    finally:
        done.set()
        thread.join()
    clinic.sync()
    assert sum(result.left.values()) + result.recomputed + result.sound == 8
    assert result.recomputed >= 4  # those whose value nobody else writes
    assert clinic.in_redis() == clinic.in_postgres()
    assert clinic.verify().outcome.passed

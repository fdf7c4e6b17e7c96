"""`cachemig recompute` as an operator uses it, and on files alone, without any server."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cachemig.demo.recordings import aborted, recording_bytes
from tests.acceptance.conftest import Operator

SHARED = Path(__file__).parents[3] / "shared" / "data"
NO_SERVER = {"CACHEMIG_DSN": "host=/nowhere", "CACHEMIG_REDIS_URL": "unix:///nowhere"}


def run(directory: Path, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "cachemig", "recompute", *map(str, arguments)],
        cwd=directory, env=os.environ | NO_SERVER, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "session.c3d"
    path.write_bytes(recording_bytes(4, 12.0))
    return path


def test_a_file_gives_its_payload_and_nothing_is_written(tmp_path: Path, recording: Path) -> None:
    done = run(tmp_path, "--file", recording, "--json")
    payload = json.loads(done.stdout)
    assert list(payload) == ["analytics", "processing_params", "processing_version", "cached_at"]
    assert list(payload["analytics"]) == ["CH1", "CH2"]
    assert payload["processing_version"] == "2.1.0"
    era = json.loads(run(tmp_path, "--file", recording, "--profile", "era", "--json").stdout)
    assert (era["processing_version"], era["processing_params"]) == ("v2.1.0", {})
    assert list(tmp_path.iterdir()) == [recording]


def test_for_people_a_file_gives_a_table(tmp_path: Path, recording: Path) -> None:
    done = run(tmp_path, "--file", recording)
    assert "contractions" in done.stdout
    assert "--json" in done.stdout


def test_an_aborted_recording_gives_what_the_application_computes_and_a_warning(
    tmp_path: Path, recording: Path
) -> None:
    recording.write_bytes(aborted(recording.read_bytes()))
    done = run(tmp_path, "--file", recording, "--json")
    assert json.loads(done.stdout)["analytics"] == {}
    assert "warning: aborted" in done.stderr


@pytest.mark.parametrize(
    ("data", "name"), [(b"", "too-small"), (b"x" * 5000, "not-a-c3d"), (None, "missing"), ("cut", "truncated")]
)
def test_a_bad_file_is_an_error_with_its_name(
    tmp_path: Path, recording: Path, data: bytes | str | None, name: str
) -> None:
    match data:
        case None:
            recording.unlink()
        case bytes():
            recording.write_bytes(data)
        case _:
            recording.write_bytes(recording.read_bytes()[:-4000])
    done = run(tmp_path, "--file", recording, "--json", code=1)
    assert json.loads(done.stdout)["message"].startswith(f"{name}: ")
    assert "docs/emg.md" in done.stderr


def test_a_directory_does_not_hang(tmp_path: Path) -> None:
    assert "not-a-file" in run(tmp_path, "--file", tmp_path, code=1).stderr


@pytest.mark.parametrize("suffix", ["png", pytest.param("svg", marks=pytest.mark.long)])
def test_a_plot_is_drawn(tmp_path: Path, recording: Path, suffix: str) -> None:
    image = tmp_path / f"plot.{suffix}"
    run(tmp_path, "--file", recording, "--plot", image)
    assert image.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


@pytest.mark.parametrize(
    "arguments",
    [[], ["--key", "a", "--all-corrupt"], ["--force", "--all-corrupt"], ["--file", "x", "--key", "a"],
     ["--all-corrupt", "--profile", "best"], ["--all-corrupt", "--plot", "x.png"]],
    ids=" ".join,
)  # fmt: skip
def test_bad_usage_exits_2(tmp_path: Path, arguments: list[str]) -> None:
    assert "cachemig recompute" in run(tmp_path, *arguments, code=2).stderr


@pytest.mark.long
@pytest.mark.parametrize("path", sorted(SHARED.glob("expected/*/*.json")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_the_shared_recordings_give_what_is_expected(tmp_path: Path, path: Path) -> None:
    recording = SHARED / "recordings" / f"{path.stem}.c3d"
    done = run(tmp_path, "--file", recording, "--profile", path.parent.name, "--json")
    expected, found = json.loads(path.read_text()), json.loads(done.stdout)
    expected.pop("cached_at")
    found.pop("cached_at")
    assert _equal(found, expected, 0.0)


def _equal(found: Any, expected: Any, floor: float) -> bool:
    if isinstance(expected, dict):
        if "processed_signal_stats" in expected:
            floor = 1e-12 * expected["processed_signal_stats"]["max"]
        return found.keys() == expected.keys() and all(_equal(found[k], expected[k], floor) for k in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(lambda a, b: _equal(a, b, floor), found, expected))
    if isinstance(expected, float):
        return isinstance(found, float) and math.isclose(found, expected, rel_tol=1e-9, abs_tol=floor)
    return type(found) is type(expected) and bool(found == expected)


# Against servers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def clinic(operator: Operator, database: str, tmp_path: Path) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Two sessions, both corrupt, one with its recording."""
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            "CREATE TABLE therapy_sessions (id int PRIMARY KEY, file_hash text UNIQUE, analytics_cache jsonb,"
            " last_accessed_at timestamptz, created_at timestamptz, file_path text)"
        )
        data = recording_bytes(4, 12.0)
        (tmp_path / "kept.c3d").write_bytes(data)
        for number, key in enumerate((hashlib.sha256(data).hexdigest(), "0" * 64)):
            conn.execute(
                "INSERT INTO therapy_sessions VALUES (%s, %s, '[1]', NULL, NULL, %s)",
                [number, key, f"{'kept' if number == 0 else 'lost'}.c3d"],
            )
        operator.environment["CACHEMIG_RECORDINGS_LOCATION"] = f"{tmp_path}/{{file_path}}"
        operator.environment["CACHEMIG_ON_CORRUPT"] = "set-aside"
        operator.fine("init")
        operator.fine("dual-write")
        operator.fine("backfill")
        yield conn


def test_what_can_be_repaired_is_and_the_rest_refuses(
    operator: Operator, clinic: psycopg.Connection[tuple[Any, ...]]
) -> None:
    looked = operator("recompute", "--all-corrupt", "--dry-run")
    assert looked.code == 3
    assert "1 would be recomputed" in looked.out
    assert clinic.execute("SELECT count(*) FROM cachemig.repair").fetchone() == (0,)
    done = operator("recompute", "--all-corrupt")
    assert done.code == 3  # one is left
    assert "1 recomputed" in done.out
    assert "1 × not-found: still corrupt, and not in Redis" in done.out
    assert operator("verify").code == 3
    operator.fine("verify", "--accept-set-aside", "1")
    undone = operator.fine("recompute", "--undo")
    assert "1 values put back" in undone.out
    assert clinic.execute("SELECT DISTINCT analytics_cache::text FROM therapy_sessions").fetchall() == [("[1]",)]


def test_a_key_by_name(operator: Operator, clinic: psycopg.Connection[tuple[Any, ...]]) -> None:
    key = str(clinic.execute("SELECT file_hash FROM therapy_sessions WHERE id = 0").fetchone()[0])  # type: ignore[index]
    document = json.loads(operator.fine("recompute", "--key", key, "--json").out)
    assert (document["recomputed"], document["left"]) == (1, {})
    assert json.loads(operator.fine("recompute", "--key", key, "--json").out)["sound"] == 1
    compared = json.loads(operator.fine("recompute", "--compare", "--key", key, "--json").out)
    assert (compared["entries"], compared["closest"]) == (1, "head")

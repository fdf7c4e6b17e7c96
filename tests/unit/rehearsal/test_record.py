"""What is kept of a rehearsal names no key, and a refusal is read from a command's document."""

from __future__ import annotations

from typing import Any

import pytest

from cachemig.rehearsal.record import Rehearsed, Step, Traffic, without_keys
from cachemig.rehearsal.walk import reasons


def of(output: str) -> Rehearsed:
    step = Step("cachemig verify", "", 3, 0.1, output)
    traffic = Traffic(0, 0, 0, 0, None, None, None)
    return Rehearsed(
        False, (output,), (), "t", "c", 1, (step,), (), (), None, traffic, {}, "2026-11-24T00:00:00+00:00", 1.0
    )


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("patient-17", "missing: patient-17 (not in Redis)"),
        ("Jane Doe, 1980", "missing: Jane Doe, 1980; and 'Jane Doe, 1980'"),
        ("a.*b(c", "the key 'a.*b(c' is stale"),
        ("94d2266b942891c7", "94d2266b942891c7: mismatch"),
    ],
)
def test_a_key_is_nowhere_in_the_clear(key: str, said: str) -> None:
    kept = without_keys(of(said), ["other", key, ""])
    assert key not in str(kept)
    assert kept.steps[0].output == kept.reasons[0]
    assert "key-" in kept.steps[0].output


def test_what_only_holds_a_key_and_figures_stay() -> None:
    assert without_keys(of("1,204 keys, patient-170 of 17"), ["patient-17", "17"]).reasons == (
        "1,204 keys, patient-170 of 17",
    )


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"error": "Refused", "message": "no", "hint": "cachemig status", "exit_code": 3}, ["no (cachemig status)"]),
        ({"error": "SourceError", "message": "away", "hint": None, "exit_code": 1}, ["away"]),
        (
            {"gates": [
                {"gate": "soak", "demands": "7d", "met": False, "figure": "2 s", "command": "wait"},
                {"gate": "lag", "demands": "5 s", "met": True, "figure": "0 s", "command": ""},
            ]},
            ["gate soak (7d): 2 s; then wait"],
        ),
        (
            {"passed": False, "counts": {"match": 5, "missing": 1200, "stale": 1}},
            ["not every key is good: 1,200 missing, 1 stale"],
        ),
        (
            {"findings": [{"name": "role", "what": "may not", "level": "error"}, {"name": "x", "level": "note"}]},
            ["role: may not"],
        ),
        (None, ["it said no"]),
        ({"gates": []}, ["it said no"]),
    ],
)  # fmt: skip
def test_why_a_command_said_no(document: Any, why: list[str]) -> None:
    assert reasons(document) == why

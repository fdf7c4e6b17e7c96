"""Each gate: when it is met, and that a refusal names the gate, its figure and a command. And the limits of a ramp."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from cachemig import ladder
from cachemig.config import Settings
from cachemig.errors import ConfigError, Exit, Refused
from cachemig.ladder import Phase
from cachemig.source.standing import Late, Verification
from cachemig.steps.clients import Client, Report, report, stage
from cachemig.steps.cutover import LIMITS, broken_limit, measured_limits, schedule
from cachemig.steps.gates import MEASURES, Expiring, Seen, measure, require

SETTINGS = Settings()
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def client(name: str, phase: str | None, percent: float | None = 0.0, **stats: Any) -> Client:
    return Client(name, name, phase, percent, 0, NOW, NOW, 1.4, True, stats)


FRESH = Verification(60.0, 2, True, SETTINGS.fingerprint())
FINE = Seen(
    settings=SETTINGS,
    command="cachemig cutover --percent 10",
    no_clients=False,
    phase=Phase.DUAL_WRITE,
    percent=0.0,
    epoch=2,
    clients=[client("web-1", "dual-write"), client("web-2", "dual-write")],
    captured=True,
    server_changed=None,
    unhandled=0,
    verification=FRESH,
    lag_s=None,
    compares=True,
    shadow=Counter(match=990, equivalent=10),
)
IN_CUTOVER = replace(FINE, phase=Phase.CUTOVER, percent=10.0, clients=[client("web-1", "cutover", 10.0)])
FROZEN = Late(0, 0, None, 0, 0, None, None, [])
ALL_READS = replace(
    FINE, phase=Phase.CUTOVER, percent=100.0, clients=[client("web-1", "cutover", 100.0)], captured=True,
    held_s=25 * 3600.0, command="cachemig stop-writes",
)  # fmt: skip
LAST = replace(
    FINE, phase=Phase.REDIS_ONLY, percent=100.0, clients=[client("web-1", "redis-only")], late=FROZEN,
    held_s=8 * 86400.0, archived_s=60.0, command="cachemig drop-column --execute",
)  # fmt: skip

# What is otherwise than in FINE: the gate, and what a refusal says of it: the figure and the command.
REFUSED: dict[str, tuple[Seen, str, str, str]] = {
    "not all reads": (
        replace(ALL_READS, percent=50.0, clients=[client("web-1", "cutover", 50.0)]), "soak",
        "50 % of the keys are read from Redis", "cachemig cutover --ramp 50,100",
    ),
    "all reads, for too short": (
        replace(ALL_READS, held_s=23 * 3600.0), "soak",
        "all reads have come from Redis for 23h (wanted: 1d)", "wait for 1h, then the same command again",
    ),
    "an entry would expire for good": (
        replace(ALL_READS, expiring=Expiring(3, 9, 2)), "expiring",
        "3 of 9 entries with an expiry have no recording, accepted: 2",
        "set recordings_location; or cachemig stop-writes --accept-expiring 3, if the application computes them",
    ),
    "redis-only for too short": (
        replace(LAST, held_s=6 * 86400.0), "soak",
        "nothing has written the column for 6d (wanted: 7d)", "wait for 1d, then the same command again",
    ),
    "a late write": (
        replace(LAST, late=replace(FROZEN, writes=1, last_write_s=86400.0,
                                   writers=[("worker (user app, from 10.0.0.7)", 1, NOW)])),
        "soak",
        "nothing has written the column since the last late write, of worker (user app, from 10.0.0.7), for 1d "
        "(wanted: 7d)",
        "wait for 6d, then the same command again",
    ),
    "a late write is not delivered": (
        replace(LAST, late=replace(FROZEN, waiting=2)), "late-writes", "2 wait to be delivered", "cachemig sync --once",
    ),
    "a change is not delivered": (
        replace(LAST, lag_s=4.2), "late-writes",
        "0 wait to be delivered, and changes of the last 4 s from before it was frozen", "cachemig sync --once",
    ),
    "no archive": (
        replace(LAST, archived_s=None), "archive", "there is none that was read back", "cachemig archive --to PLACE",
    ),
    "an archive of a column in use": (
        replace(LAST, archived_s=9 * 86400.0), "archive", "the last one is from before the column was frozen",
        "cachemig archive --to PLACE",
    ),
    "an archive from before a late write": (
        replace(LAST, held_s=30 * 86400.0, archived_s=20 * 86400.0, late=replace(FROZEN, last_write_s=8 * 86400.0,
                writers=[("w", 1, NOW)])), "archive",
        "the column was written after the last one", "cachemig archive --to PLACE",
    ),
    "a view": (
        replace(LAST, in_the_way=["view v"]), "dependents", "in the way: view v",
        "cachemig drop-column tells what to do about each",
    ),
    "nobody is registered": (
        replace(FINE, clients=[]), "clients", "no live client is registered",
        "cachemig cutover --percent 10 --no-clients, if no program reads by the phase yet",
    ),
    "a client of the phase before": (
        replace(FINE, clients=[client("web-1", "dual-write"), client("web-2", "idle")]), "clients",
        "1 of 2 live clients do not act on dual-write: web-2 (acts on idle, seen 1 s ago)",
        "cachemig status, until they do or are gone",
    ),
    "a client that has taken up nothing": (
        replace(FINE, clients=[client("web-2", None, None)]), "clients",
        "1 of 1 live clients do not act on dual-write: web-2 (has taken up nothing yet, seen 1 s ago)",
        "cachemig status, until they do or are gone",
    ),
    "a client of another percentage": (
        replace(IN_CUTOVER, clients=[client("web-1", "cutover", 1.0)]), "clients",
        "1 of 1 live clients do not act on cutover 10 %: web-1 (acts on cutover 1 %, seen 1 s ago)",
        "cachemig status, until they do or are gone",
    ),
    "--no-clients does not excuse one that is there": (
        replace(FINE, clients=[client("web-2", "idle")], no_clients=True), "clients",
        "1 of 1 live clients do not act on dual-write: web-2 (acts on idle, seen 1 s ago)",
        "cachemig status, until they do or are gone",
    ),
    "capture is broken": (
        replace(FINE, captured=False), "capture", "its triggers are missing, or do not fire always",
        "cachemig dual-write",
    ),
    "capture is broken, reads have moved": (
        replace(IN_CUTOVER, captured=False), "capture", "its triggers are missing, or do not fire always",
        "cachemig rollback, then cachemig dual-write",
    ),
    "another Redis": (
        replace(FINE, server_changed="Redis was restarted or failed over: writes may be lost"), "servers",
        "Redis was restarted or failed over: writes may be lost",
        "cachemig sync --once (or the running sync), which begins a new epoch",
    ),
    "keys that were never delivered": (
        replace(FINE, unhandled=7), "backfill", "7 keys are to be delivered", "cachemig backfill",
    ),
    "very many of them": (
        replace(FINE, unhandled=1000), "backfill", "1,000+ keys are to be delivered", "cachemig backfill",
    ),
    "never verified": (
        replace(FINE, verification=None), "verify", "there was none of all keys", "cachemig verify",
    ),
    "verified too long ago": (
        replace(FINE, verification=replace(FRESH, age_s=3601.0)), "verify",
        "the last one is 3,601 s old, wanted: at most 1h", "cachemig verify",
    ),
    "not passed": (
        replace(FINE, verification=replace(FRESH, passed=False)), "verify",
        "the last one, 60 s old, did not pass", "cachemig verify",
    ),
    "verified in another epoch": (
        replace(FINE, verification=replace(FRESH, epoch=1)), "verify",
        "the last one is of epoch 1, this is epoch 2", "cachemig verify",
    ),
    "verified with other settings": (
        replace(FINE, verification=replace(FRESH, fingerprint="0123456789abcdef")), "verify",
        "the last one was of other settings", "cachemig verify",
    ),
    "sync lags": (
        replace(FINE, lag_s=5.0), "lag", "the oldest change is 5.0 s old (wanted: under 5 s)",
        "cachemig sync --once; keep cachemig sync --follow running",
    ),
    "compared too little": (
        replace(FINE, shadow=Counter(match=999, race=500, unreachable=9)), "shadow",
        "999 compared since epoch 2 began (wanted: 1,000)",
        "cachemig status shows the count as applications read; or --shadow-reads N",
    ),
    "a mismatch": (
        replace(FINE, shadow=Counter(match=4000, mismatch=1)), "shadow",
        "1 mismatch of 4,001 compared since epoch 2 began",
        "cachemig verify says which keys; cachemig resync --all delivers all anew and counts from 0",
    ),
}  # fmt: skip

MET = {
    "some are missing: a miss is answered from the column": (
        replace(FINE, shadow=Counter(match=4000, missing=7)), "shadow"
    ),
    "nobody is registered, and that is known": (replace(FINE, clients=[], no_clients=True), "clients"),
    "all on the percentage before": (IN_CUTOVER, "clients"),
    "just fresh enough": (replace(FINE, verification=replace(FRESH, age_s=3600.0)), "verify"),
    "just in time": (replace(FINE, lag_s=4.9), "lag"),
    "nobody compares": (replace(FINE, compares=False, shadow=Counter()), "shadow"),
    "the wish is smaller": (
        replace(FINE, settings=Settings(shadow_reads=3), shadow=Counter(match=3)), "shadow",
    ),
}  # fmt: skip


def test_every_gate_of_a_cutover_is_measured_and_refuses_here() -> None:
    names = ladder.gates((Phase.DUAL_WRITE, 0), (Phase.CUTOVER, 10))
    others = {name for s in ladder.STEPS if s.command in ("stop-writes", "drop-column") for name in s.gates}
    assert set(names) | others == set(MEASURES) == {gate for _, gate, _, _ in REFUSED.values()}


def _names(seen: Seen) -> tuple[str, ...]:
    """The gates of the step that leads up from there."""
    if seen.command.startswith("cachemig cutover"):
        return ladder.gates((seen.phase, seen.percent), (Phase.CUTOVER, seen.percent + 1))
    after = Phase.REDIS_ONLY if seen.phase is Phase.CUTOVER else Phase.DROPPED
    return ladder.gates((seen.phase, seen.percent), (after, 100.0))


def test_all_is_well() -> None:
    for seen in (FINE, IN_CUTOVER, ALL_READS, LAST):
        measured = measure(_names(seen), seen)
        assert [m.gate for m in measured if not m.met] == []
        assert all(m.figure and m.demands for m in measured)
        require(measured, "cachemig cutover --percent 10")


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_gate_figure_and_command(case: str) -> None:
    seen, gate, figure, command = REFUSED[case]
    measured = measure(_names(seen), seen)
    assert [(m.gate, m.figure, m.command) for m in measured if not m.met] == [(gate, figure, command)]
    with pytest.raises(Refused) as caught:
        require(measured, seen.command)
    assert str(caught.value) == (
        f"{seen.command} is refused:\ngate {gate} ({ladder.GATES[gate]}): {figure} → {command}"
    )
    assert caught.value.hint == command
    assert caught.value.exit_code is Exit.REFUSED


@pytest.mark.parametrize("case", MET)
def test_what_is_just_enough(case: str) -> None:
    seen, gate = MET[case]
    assert [m.met for m in measure([gate], seen)] == [True]


def test_every_gate_that_is_not_met_is_named_and_the_first_is_the_hint() -> None:
    seen = replace(FINE, unhandled=2, verification=None, lag_s=60.0)
    with pytest.raises(Refused) as caught:
        require(measure(_names(seen), seen), seen.command)
    assert [line.split()[1] for line in str(caught.value).splitlines()[1:]] == ["backfill", "verify", "lag"]
    assert caught.value.hint == "cachemig backfill"


# What clients report ----------------------------------------------------------------------------------------------

STATS: dict[str, Any] = {
    "reads": {"redis": {"hit": 80, "miss": 15, "error": 5}, "column": {"hit": 7}},
    "fallback": 6,
    "writes": {"ok": 3},
    "shadow": {"match": 40, "race": 1},
    "latency_ms": {
        "redis": {"p50": 1, "p95": 2, "p99": 3, "n": 300},
        "column": {"p50": 4, "p95": 5, "p99": 6, "n": 100},
    },
}


def test_reports_add_up() -> None:
    other = {**STATS, "latency_ms": {"redis": {"p50": 2, "p95": 6, "p99": 7, "n": 100}}}
    total = report([STATS, other])
    assert total.reads["redis"] == {"hit": 160, "miss": 30, "error": 10}
    assert (total.fallback, total.writes["ok"], total.shadow["match"], total.compared) == (12, 6, 80, 80)
    assert total.latency_ms["redis"] == {"p50": 1.25, "p95": 3.0, "p99": 4.0, "n": 400}
    assert total.latency_ms["column"] == {"p50": 4.0, "p95": 5.0, "p99": 6.0, "n": 100}


@pytest.mark.parametrize(
    "stats",
    [
        {}, {"reads": None}, {"reads": []}, {"reads": {"redis": 3}}, {"reads": {"redis": {"hit": "many"}}},
        {"shadow": "x", "fallback": {}}, {"latency_ms": {"redis": {"p95": 3}}}, {"latency_ms": 3, "writes": [1]},
        {"fallback": float("inf")}, {"fallback": -3}, {"fallback": True}, {"shadow": {"mismatch": -1}},
    ],
    ids=str,
)  # fmt: skip
def test_reports_of_other_programs_may_be_anything(stats: dict[str, Any]) -> None:
    assert report([stats, STATS]).figures() == report([STATS]).figures()


def test_a_stage_in_words() -> None:
    assert [stage(Phase.DUAL_WRITE, 0.0), stage(Phase.CUTOVER, 12.5), stage("cutover", 100.0)] == [
        "dual-write", "cutover 12.5 %", "cutover 100 %"
    ]  # fmt: skip


# The limits of a ramp ---------------------------------------------------------------------------------------------


def reported(
    hit: int = 1000, error: int = 0, fallback: int = 0, mismatch: int = 0, **latency: tuple[float, int]
) -> Report:
    return report(
        [
            {
                "reads": {"redis": {"hit": hit, "error": error}},
                "fallback": fallback,
                "shadow": {"mismatch": mismatch},
                "latency_ms": {path: {"p95": p95, "n": n} for path, (p95, n) in latency.items()},
            }
        ]
    )


BROKEN: dict[str, tuple[Report, str | None]] = {
    "all is well": (reported(redis=(1, 500), column=(5, 500)), None),
    "nothing is reported": (Report(), None),
    "errors": (
        reported(hit=985, error=15),
        "ramp_max_errors: 0.015 of the reads from Redis failed (limit: 0.01)",
    ),
    "errors, just allowed": (reported(hit=990, error=10), None),
    "one error of three says nothing": (reported(hit=2, error=1), None),
    "five of five do": (
        reported(hit=0, error=5),
        "ramp_max_errors: 1 of the reads from Redis failed (limit: 0.01)",
    ),
    "fallbacks": (
        reported(hit=940, fallback=60),
        "ramp_max_fallback: 0.0638 of the reads meant for Redis fell back to the column (limit: 0.05)",
    ),
    "nothing but fallbacks": (
        reported(hit=0, fallback=60),
        "ramp_max_fallback: 1 of the reads meant for Redis fell back to the column (limit: 0.05)",
    ),
    "a mismatch": (reported(mismatch=1), "ramp_max_mismatch: 1 of the reads compared differ (limit: 0)"),
    "slower": (
        reported(redis=(11, 500), column=(5, 500)),
        "ramp_max_slowdown: 2.2 times the column's p95 is that of reads from Redis (limit: 2)",
    ),
    "slower, just allowed": (reported(redis=(10, 500), column=(5, 500)), None),
    "slower, too few to say": (reported(redis=(11, 49), column=(5, 500)), None),
    "slower, nothing to compare with": (reported(redis=(11, 500)), None),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_limit_is_named_with_its_figure(case: str) -> None:
    seen, said = BROKEN[case]
    assert broken_limit(measured_limits(seen), SETTINGS) == said


def test_every_limit_is_broken_here_and_is_a_setting() -> None:
    assert set(LIMITS) == {said.partition(":")[0] for _, said in BROKEN.values() if said}
    assert all(hasattr(SETTINGS, name) for name in LIMITS)


def test_schedules() -> None:
    assert schedule(10.0, None, "10m") == ([10.0], 600.0)
    assert schedule(None, "1,10, 50,100", "90s") == ([1.0, 10.0, 50.0, 100.0], 90.0)
    assert schedule(0.0, None, "0s") == ([0.0], 0.0)


@pytest.mark.parametrize(
    ("percent", "ramp", "hold"),
    [
        (None, None, "10m"), (10.0, "1,10", "10m"), (float("nan"), None, "1m"), (101.0, None, "1m"), (-1.0, None, "1m"),
        (None, "", "1m"), (None, "1,x", "1m"), (None, "10,1", "1m"), (None, "1,1", "1m"), (None, "1,101", "1m"),
        (None, "1,nan", "1m"), (None, "1,10", "soon"), (None, "1,,2", "1m"),
    ],
)  # fmt: skip
def test_a_schedule_that_makes_no_sense(percent: float | None, ramp: str | None, hold: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schedule(percent, ramp, hold)
    assert caught.value.exit_code is Exit.USAGE

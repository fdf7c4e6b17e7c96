"""Failpoints and the plans that arm them; that each is reached by a worker, tests/chaos/test_chaos.py sees."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import cachemig
from cachemig import failpoints
from cachemig.errors import ConfigError, SourceUnavailable
from cachemig.failpoints import ACTIONS, POINTS, Armed
from tests.chaos.__main__ import arguments, replay, summary
from tests.chaos.plan import KINDS, plan
from tests.chaos.round import Result, Violation

SEEDS = range(1, 301)


def hits() -> Iterator[str]:
    """The name at each place of the source that is a failpoint."""
    for path in sorted(Path(cachemig.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "hit"
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "failpoints"
            ):
                (name,) = node.args
                assert isinstance(name, ast.Constant)
                yield str(name.value)


def test_the_source_has_each_failpoint_once() -> None:
    assert Counter(hits()) == Counter(list(POINTS))


@pytest.mark.parametrize("environment", [{}, {"CACHEMIG_TEST_FAILPOINTS": ""}, {"CACHEMIG_TEST_SEED": "1"}])
def test_nothing_is_armed_unless_asked_for(environment: dict[str, str]) -> None:
    assert failpoints._armed_by(environment) is None


def test_a_hit_does_nothing_unless_armed(capfd: pytest.CaptureFixture[str]) -> None:
    for name in POINTS:
        failpoints.hit(name)
    assert capfd.readouterr() == ("", "")


def test_only_the_point_that_was_named_acts() -> None:
    armed = Armed("sync-after-fold=error:1", "0", "0")
    for name in POINTS:
        if name != "sync-after-fold":
            armed.hit(name)
    with pytest.raises(SourceUnavailable, match="sync-after-fold"):
        armed.hit("sync-after-fold")


@pytest.mark.parametrize(
    "text", ["sync-after-lunch=kill:1", "sync-after-fold=dance:1", "sync-after-fold=kill", "sync-after-fold=kill:often"]
)
def test_what_cannot_be_armed_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="CACHEMIG_TEST_FAILPOINTS"):
        Armed(text, "0", "0")


def test_the_same_seed_and_worker_act_at_the_same_hits() -> None:
    def acted(seed: str, worker: str) -> list[bool]:
        armed = Armed("sync-after-fold=error:0.3", seed, worker)
        found = []
        for _ in range(50):
            try:
                armed.hit("sync-after-fold")
            except SourceUnavailable:
                found.append(True)
            else:
                found.append(False)
        return found

    assert acted("7", "0.1") == acted("7", "0.1")
    assert acted("7", "0.1") != acted("7", "0.2") != acted("8", "0.1")
    assert 0 < sum(acted("7", "0.1")) < 50


@pytest.mark.parametrize(
    ("action", "code", "said"),
    [
        ("kill:1", -signal.SIGKILL, "failpoint sync-after-take: kill\n"),
        ("sleep:1:1", 0, "failpoint sync-after-take: sleep\n"),
        ("kill:0", 0, ""),
        (None, 0, ""),
    ],
)
def test_a_process_arms_itself_by_its_environment(action: str | None, code: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from cachemig import failpoints; failpoints.hit('sync-after-take')"],
        env={} if action is None else {"CACHEMIG_TEST_FAILPOINTS": f"sync-after-take={action}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


def test_a_plan_follows_from_its_seed() -> None:
    for seed in SEEDS:
        assert plan(seed, 8.0) == plan(seed, 8.0)
    assert len({plan(seed, 8.0).faults for seed in SEEDS if plan(seed, 8.0).faults}) > len(SEEDS) - 5


def test_plans_cover_every_kind_of_fault() -> None:
    found = Counter(fault.kind for seed in SEEDS for fault in plan(seed, 10.0).faults)
    assert found.keys() == KINDS.keys()
    assert min(found.values()) >= 10


def test_plans_do_everything_at_every_failpoint() -> None:
    """Each named step of a worker, and what can happen there."""
    found = {
        (name, what.split(":")[0])
        for seed in SEEDS
        for name, _, what in (part.partition("=") for part in plan(seed, 10.0).failpoints.split(","))
    }
    assert found == {(name, action) for name in POINTS for action in ACTIONS}


def test_plans_have_several_workers_of_each_kind() -> None:
    assert {plan(seed, 10.0).sync_workers for seed in SEEDS} >= {1, 2, 3}
    assert {plan(seed, 10.0).backfill_workers for seed in SEEDS} >= {1, 2}


def test_faults_come_within_the_storm() -> None:
    for seed in SEEDS:
        assert all(0 < fault.at <= 8 for fault in plan(seed, 8.0).faults)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_can_be_left_out_or_asked_for_alone(kind: str) -> None:
    assert all(fault.kind != kind for seed in SEEDS for fault in plan(seed, 10.0, [kind]).faults)
    only = arguments(["--only", kind]).without
    for seed in list(SEEDS)[:20]:
        alone = plan(seed, 10.0, only)
        assert {fault.kind for fault in alone.faults} == {kind}
        assert alone.failpoints == ""


def test_the_line_that_replays_a_seed_gives_the_same_plan() -> None:
    first = plan(17, 12.5, ["evict", "failpoints"])
    command, *rest = replay(first, ["evict", "failpoints"]).split()
    again = arguments(rest)
    assert command == "scripts/chaos"
    assert plan(again.seed, again.seconds, again.without) == first


def test_the_figures_name_the_seeds_that_failed() -> None:
    right = Result(plan(4, 8.0), committed=1234, faults=Counter({"kill-worker": 3}))
    wrong = Result(plan(5, 8.0), violations=[Violation("lost", "k1")])
    text = summary([right, wrong], 1800)
    assert "seeds 4 to 5, 1,800 s" in text
    assert "1,234 transactions committed" in text
    assert "3 faults: 3 kill-worker" in text
    assert text.endswith("1 violations, seeds 5")
    assert summary([right], 9).endswith("0 violations")
    assert summary([], 0).startswith("no seed")

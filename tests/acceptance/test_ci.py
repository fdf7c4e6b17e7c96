"""cachemig ci as pipelines call it: the script, the action and the workflow, each step run as GitHub's runner does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psycopg
import pytest
import yaml

from tests.acceptance.conftest import Operator
from tests.conftest import REPOSITORY
from tests.schemas import validated

Table = psycopg.Connection[tuple[Any, ...]]
ACTION = yaml.safe_load((REPOSITORY / "action.yml").read_text())
WORKFLOW = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "cachemig-dry-run.yml").read_text())
SECRET = "hidden-in-the-dsn"
SETTINGS = 'ttl = "0s"\nsoak_cutover = "0s"\nsoak_redis_only = "0s"\norder_by = ""\n'


class Runner:
    """What of GitHub's runner the steps can see."""

    def __init__(self, operator: Operator, directory: Path) -> None:
        self.workspace = operator.directory
        self.operator = operator
        self.temporary = directory / "runner"
        programs = directory / "bin"
        for made in (self.temporary, programs):
            made.mkdir()
        (programs / "cachemig").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cachemig "$@"\n')
        (programs / "cachemig").chmod(0o755)
        self.files = {
            name: self.temporary / name.lower() for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT", "GITHUB_PATH")
        }
        self.environment = {
            **operator.environment,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "GITHUB_ACTIONS": "true",
            "CI": "true",
            "GITHUB_WORKSPACE": str(self.workspace),
            "GITHUB_ACTION_PATH": str(REPOSITORY),
            "RUNNER_TEMP": str(self.temporary),
            **{name: str(path) for name, path in self.files.items()},
        }

    def run(self, step: dict[str, Any], values: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """A `run:` step, its expressions replaced by these values."""

        def filled(text: str) -> str:
            return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda found: values[found[1]], text)

        assert "${{" not in step["run"], "an input pasted into a script could be run"
        script = self.temporary / "script.sh"
        script.write_text(step["run"])
        for path in self.files.values():
            path.write_text("")
        options = ["--noprofile", "--norc", "-eo", "pipefail"] if step.get("shell") == "bash" else ["-e"]
        return subprocess.run(
            ["bash", *options, script],
            cwd=self.workspace,
            env=self.environment | {name: filled(str(text)) for name, text in step.get("env", {}).items()},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def outputs(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.files["GITHUB_OUTPUT"].read_text().splitlines())


@pytest.fixture
def runner(operator: Operator, table: Table, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    (operator.directory / "cachemig.toml").write_text(SETTINGS)
    source = operator.directory / "app"
    source.mkdir()
    (source / "api.py").write_text("import x\nrow = x.analytics_cache\n")
    operator.environment["CACHEMIG_DSN"] += f" password={SECRET}"
    return Runner(operator, tmp_path_factory.mktemp("github"))


def documents(folder: Path) -> dict[str, Any]:
    return {path.stem: validated(json.loads(path.read_text())) for path in folder.glob("*.json")}


def dry_run_step(steps: list[dict[str, Any]]) -> dict[str, Any]:
    return next(step for step in steps if step.get("id") == "dry-run")


def inputs(**given: str) -> dict[str, str]:
    values = {name: str(declared["default"]) for name, declared in ACTION["inputs"].items()}
    return {f"inputs.{name}": value for name, value in (values | given).items()}


def test_the_action_as_the_runner_runs_it(runner: Runner, table: Table) -> None:
    step = dry_run_step(ACTION["runs"]["steps"])
    done = runner.run(step, inputs(source="app"))
    assert done.returncode == 0, done.stderr
    assert runner.outputs() == {"exit-code": "0", "phase": "not begun", "plan": "ci-dry-run/next-step.plan.json"}
    assert set(runner.outputs()) == set(ACTION["outputs"])
    found = documents(runner.workspace / "ci-dry-run")
    assert found.keys() == {"ci", "doctor", "plan", "next-init", "plan-file", "next-step.plan", "residue"}
    summary = runner.files["GITHUB_STEP_SUMMARY"].read_text()
    assert "nothing says no" in summary
    assert "CREATE TABLE cachemig.entry" in summary
    assert summary == (runner.workspace / "ci-dry-run" / "summary.md").read_text()
    (line,) = [line for line in done.stderr.splitlines() if "file=" in line]
    assert line.startswith("::warning title=cachemig residue%3A api.py%3A2,file=app/api.py,line=2::mentions")
    assert table.execute("SELECT to_regclass('cachemig.migration')").fetchone() == (None,)

    # Something is in the way of the drop: the pipeline says no, unless it is only to advise.
    table.execute("CREATE VIEW seen AS SELECT analytics_cache FROM therapy_sessions")
    done = runner.run(step, inputs())
    assert done.returncode == 3
    assert runner.outputs()["exit-code"] == "3"
    assert "::error title=cachemig plan%3A view public.seen::blocks the drop" in done.stderr
    assert "❌" in runner.files["GITHUB_STEP_SUMMARY"].read_text()
    suite = ElementTree.parse(runner.workspace / "ci-dry-run" / "plan.xml").getroot()
    assert (suite.get("name"), suite.get("failures")) == ("cachemig plan", "1")
    assert runner.run(step, inputs(advise="true")).returncode == 0
    table.execute("DROP VIEW seen")

    # Inputs are text, whatever is in them.
    done = runner.run(step, inputs(source='$(touch pwned); "; touch pwned #', output="a b"))
    assert done.returncode == 2, done.stderr
    assert not (runner.workspace / "pwned").exists()
    assert (runner.workspace / "a b" / "ci.json").exists()
    for path in [*runner.files.values(), *(runner.workspace / "a b").iterdir()]:
        assert SECRET not in path.read_text()


def test_the_workflow_as_the_runner_runs_it(runner: Runner) -> None:
    (job,) = WORKFLOW["jobs"].values()
    secrets = {"CI_DSN": runner.operator.environment["CACHEMIG_DSN"], "CI_REDIS_URL": runner.operator.redis_url}
    for name in ("CACHEMIG_DSN", "CACHEMIG_REDIS_URL"):  # they come from the secrets alone
        del runner.environment[name]
    step = dry_run_step(job["steps"])
    done = runner.run(step, {f"secrets.CACHEMIG_{name}": value for name, value in secrets.items()})
    assert done.returncode == 0, done.stderr
    assert runner.outputs()["phase"] == "not begun"
    runner.operator.fine("apply", runner.outputs()["plan"])
    assert runner.operator.fine("status", "--json").document["phase"] == "idle"


@pytest.mark.long
def test_the_workflow_up_the_ladder(runner: Runner) -> None:
    """Its own step, before each step of the migration; the plan that it leaves is then applied."""
    (job,) = WORKFLOW["jobs"].values()
    step = dry_run_step(job["steps"])
    values = {"secrets.CACHEMIG_CI_DSN": runner.operator.environment["CACHEMIG_DSN"],
              "secrets.CACHEMIG_CI_REDIS_URL": runner.operator.redis_url}  # fmt: skip
    for phase in ("not begun", "idle", "dual-write"):
        done = runner.run(step, values)
        assert done.returncode == 0, done.stdout + done.stderr
        assert runner.outputs()["phase"] == phase
        if phase == "idle":
            assert "clean" in documents(runner.workspace / "ci-dry-run")
        runner.operator.fine("apply", runner.outputs()["plan"])
    assert {"status", "next-backfill", "sync", "dual-write-disable"} <= documents(
        runner.workspace / "ci-dry-run"
    ).keys()
    done = runner.run(step, values)  # everything is delivered; the gates of cutover want more
    assert done.returncode == 3
    assert "::error title=cachemig next-cutover%3A gate verify::" in done.stderr
    runner.operator.fine("verify")
    flags = ("ci", "--no-clients", "--percent", "100", "--sample", "1", "--json")
    shown = runner.operator.fine(*flags).document
    assert shown["exit_code"] == 0
    assert "verify-sample-1" in [one["name"] for one in shown["runs"]]
    runner.operator.fine("apply", shown["plan"])
    assert runner.operator.fine("status", "--json").document["percent"] == 100


def test_a_pipeline_that_cannot_look_says_so(runner: Runner) -> None:
    runner.environment["CACHEMIG_DSN"] = "host=/nowhere"
    (runner.workspace / "ci-dry-run").mkdir()
    (runner.workspace / "ci-dry-run" / "package.json").write_text("{}")  # somebody else's
    done = subprocess.run(
        [REPOSITORY / "scripts" / "ci-dry-run"],
        cwd=runner.workspace, env=runner.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    found = documents_of_ours(runner.workspace / "ci-dry-run")
    assert found["plan"]["schema"] == "cachemig/error/1"
    assert "could not look" in (runner.workspace / "ci-dry-run" / "summary.md").read_text()
    assert not (runner.workspace / "ci-dry-run" / "next-step.plan.json").exists()
    assert (runner.workspace / "ci-dry-run" / "package.json").read_text() == "{}"


def documents_of_ours(folder: Path) -> dict[str, Any]:
    (folder / "package.json").rename(folder / "package")
    found = documents(folder)
    (folder / "package").rename(folder / "package.json")
    return found


def test_a_single_command_tells_github_too(runner: Runner, table: Table) -> None:
    table.execute("CREATE VIEW seen AS SELECT analytics_cache FROM therapy_sessions")
    environment = {name: runner.environment[name] for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY")}
    ended = runner.operator("plan", "--json", "--junit", "plan.xml", **environment)
    assert ended.document["schema"] == "cachemig/plan/1"  # what GitHub reads is not among it
    assert "::error title=cachemig plan%3A view public.seen::" in ended.err
    assert "view public.seen" in runner.files["GITHUB_STEP_SUMMARY"].read_text()
    assert ElementTree.parse(runner.workspace / "plan.xml").getroot().get("failures") == "1"
    refused = runner.operator("clean", "--execute", **environment)
    assert "::error title=cachemig::There is no migration in this database yet.%0Ahint: cachemig init" in refused.err


@pytest.mark.long
def test_the_action_installs_itself(runner: Runner) -> None:
    install = next(step for step in ACTION["runs"]["steps"] if step["name"] == "Install")
    done = runner.run(install, inputs())
    assert done.returncode == 0, done.stderr
    (added,) = runner.files["GITHUB_PATH"].read_text().split()
    runner.environment["PATH"] = f"{added}:/usr/bin:/bin"
    done = runner.run(dry_run_step(ACTION["runs"]["steps"]), inputs())
    assert done.returncode == 0, done.stderr


def test_every_input_is_used_and_every_step_known() -> None:
    text = (REPOSITORY / "action.yml").read_text()
    for name in ACTION["inputs"]:
        assert re.search(rf"inputs\.{name}\b", text), name
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(ACTION["inputs"])
    for declared in ACTION["outputs"].values():
        assert re.fullmatch(r"\$\{\{ steps\.dry-run\.outputs\.[\w-]+ \}\}", declared["value"])

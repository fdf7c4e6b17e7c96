"""What --json prints is what docs/schemas says: of every command, through a whole migration and back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import ValidationError

from cachemig.report.documents import RESULTS, kind_of
from tests.conftest import REPOSITORY, OwnPostgres, OwnRedis
from tests.integration.test_dry_runs import Case, opened
from tests.schemas import validated

GENERATE = REPOSITORY / "scripts" / "generate-schemas"

# In order: a whole migration, down the ladder and up. `!`: exit code 3 is what is expected.
WALK = """
doctor
doctor --show-config
plan
init --dry-run
init --format sql --output files
init
plan --out plan.json
apply --check plan.json
dual-write --dry-run
dual-write --format sql --output files
dual-write
backfill --dry-run
backfill
sync --dry-run
sync
resync --dry-run --all
resync --key hash1
pause --dry-run
pause
resume
resume --dry-run
throttle --dry-run --max-rate 0
throttle --max-rate 0
recompute --all-corrupt --dry-run
recompute --all-corrupt
recompute --undo
sync
verify --accept-set-aside 9
status
residue
measure --keys 5 --rounds 1
cutover --percent 10 --dry-run !
cutover --ramp 50,100 --hold 1ms --no-clients
rollback --dry-run
rollback
cutover --percent 100 --no-clients
stop-writes --dry-run --no-clients --accept-expiring 99
stop-writes --format sql --output files --no-clients --accept-expiring 99
stop-writes --execute --no-clients --accept-expiring 99
rollback
sync
backfill
verify --accept-set-aside 9
stop-writes --execute --no-clients --accept-expiring 99
archive --to cache.zst --dry-run
archive --to cache.zst
archive --to cache.zst --forget nobody
archive --to cache.zst
verify --accept-set-aside 9
drop-column --no-clients
drop-column --no-clients --format sql --output files
drop-column --brownout 1m --dry-run
drop-column --brownout 100ms
drop-column --end-brownout
drop-column --execute --confirm analytics_cache --no-clients
reclaim
reclaim --method vacuum-full --execute
clean
ci --output ci !
restore --from cache.zst --dry-run
restore --from cache.zst --execute
status
status --history
report
"""
# Want recordings: test_recompute_cli; servers of its own: test_rehearse.
NOT_WALKED = {("recompute", "compare"), ("recompute", "plot"), ("rehearse", "")}


@pytest.fixture
def case(own_postgres: OwnPostgres, own_redis: OwnRedis, tmp_path: Path) -> Iterator[Case]:
    yield from opened(own_postgres, own_redis, tmp_path)


def test_every_document_is_what_its_schema_says(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    seen = set()
    for line in WALK.split("\n")[1:-1]:
        code = case.run("postgres", *line.removesuffix(" !").split(), as_json=True).exit_code
        printed = capsys.readouterr().out
        assert (code == 3) == line.endswith("!"), f"{line}: {printed}"
        document = validated(json.loads(printed))
        command, _, kind = document["schema"].split("/")[1].partition(".")
        assert command == line.split()[0]
        seen.add((command, kind))
    validated(json.loads((case.directory / "plan.json").read_text()))
    everything = {(command, kind) for command, kinds in RESULTS.items() for kind in kinds}
    assert everything - seen == NOT_WALKED | {("error", ""), ("plan-file", "")}


def test_an_error_is_a_document_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cachemig", "status", "--json", "--dsn", "host=/nowhere"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    document = validated(json.loads(done.stdout))
    assert document["schema"] == "cachemig/error/1"
    assert document["exit_code"] == done.returncode == 1


def test_the_schemas_are_what_is_generated() -> None:
    done = subprocess.run([sys.executable, GENERATE, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("message"),
        lambda d: d.update(more=1),
        lambda d: d.update(exit_code="1"),
        lambda d: d.update(schema="cachemig/error/2"),
    ],
    ids=["a field is missing", "one too many", "another type", "another version"],
)
def test_a_schema_is_strict(change: Any) -> None:
    document = {"schema": "cachemig/error/1", "error": "Refused", "message": "no", "hint": None, "exit_code": 3}
    validated(document)
    change(document)
    with pytest.raises(ValidationError):
        validated(document)


def test_a_result_that_nobody_has_named_still_has_a_schema() -> None:
    assert kind_of("cutover", object()) == ""

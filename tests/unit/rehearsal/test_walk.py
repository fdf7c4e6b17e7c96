"""What a walk cannot look at is a reason, and never taken for good."""

from __future__ import annotations

from pathlib import Path

from cachemig.rehearsal.walk import Walk, more_than


def test_a_migration_file_that_is_not_written_is_a_reason(tmp_path: Path) -> None:
    nowhere = {"CACHEMIG_DSN": f"host={tmp_path}", "CACHEMIG_REDIS_URL": f"unix://{tmp_path}/none.sock"}
    walk = Walk(tmp_path, nowhere, print, keep=True)
    assert walk.linter is not None
    walk.check("init")
    (reason,) = walk.reasons
    assert reason.startswith("cachemig init --format sql: ")
    assert walk.linted == []


def test_what_is_accepted_has_room_for_a_few_more_but_nothing_is_accepted_of_none() -> None:
    assert more_than(0) == 0
    assert more_than(3273) > 3274

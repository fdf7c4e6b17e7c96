"""The linter is really asked, and what it says is a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachemig.errors import CachemigError
from cachemig.rehearsal import lint


def test_what_blocks_writers_is_found_with_file_line_and_rule(tmp_path: Path) -> None:
    program = lint.linter()
    assert program is not None, "squawk comes with cachemig[demo]"
    bad, good = tmp_path / "bad.sql", tmp_path / "good.sql"
    bad.write_text("SET lock_timeout = '1s';\nSET statement_timeout = '5s';\nCREATE INDEX i ON t (c);\n")
    good.write_text("SELECT 1;\n")
    found = lint.findings(program, [good, bad])
    assert found
    assert all(line.startswith("bad.sql:") for line in found)
    assert any("require-concurrent-index-creation" in line for line in found)


def test_a_linter_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CachemigError, match="did not answer") as caught:
        lint.findings("/bin/echo", [tmp_path / "x.sql"])
    assert caught.value.hint

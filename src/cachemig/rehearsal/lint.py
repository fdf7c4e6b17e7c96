"""What squawk, a linter of migrations, says of the files that the steps can be run from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cachemig.errors import CachemigError


def linter() -> str | None:
    """The program, beside this Python or on the PATH; None where it is not installed."""
    beside = Path(sys.executable).with_name("squawk")
    return str(beside) if beside.exists() else shutil.which("squawk")


def findings(program: str, files: Sequence[Path]) -> list[str]:
    """One line for each: file, line, rule, message. Raises CachemigError where it does not run."""
    found = []
    for file in files:
        done = subprocess.run([program, "--reporter", "json", str(file)], capture_output=True, text=True, check=False)
        try:
            said = json.loads(done.stdout or "[]")
        except ValueError:
            raise CachemigError(
                f"squawk did not answer in JSON: exit code {done.returncode}", hint="pip install 'squawk-cli>=2.70'"
            ) from None
        found += [f"{file.name}:{v['line']}: {v['rule_name']}: {v['message']}" for v in said]
    return found

"""The sync twin is what scripts/generate-sync makes of the async one; and what an import costs."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from cachemig.service import AsyncCacheService, CacheService, _async, _sync
from tests.conftest import REPOSITORY

SERVICE = REPOSITORY / "src" / "cachemig" / "service"


def test_the_committed_files_are_the_generated_ones() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "generate-sync"), "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", sorted(SERVICE.glob("*_sync.py")), ids=lambda path: path.name)
def test_nothing_of_asyncio_is_left(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.AsyncWith | ast.AsyncFor | ast.Await)
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert "asyncio" not in ast.unparse(node)


def test_both_have_the_same_methods() -> None:
    assert _async.__all__ == _sync.__all__
    for name, method in inspect.getmembers(CacheService, inspect.isfunction):
        if not name.startswith("__"):
            twin = getattr(AsyncCacheService, name)
            assert list(inspect.signature(method).parameters) == list(inspect.signature(twin).parameters)


def test_what_an_import_does_not_load() -> None:
    code = (
        "import sys, cachemig.service; "
        "print([m for m in ('typer', 'rich', 'numpy', 'scipy', 'click', 'ezc3d') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

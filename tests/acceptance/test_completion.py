"""Completion as each shell asks for it, of the installed program; a shell that is not here is left out."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.acceptance.conftest import CLEAN, Installed

CASES = [
    ("cachemig dual", {"dual-write"}),
    ("cachemig re", {"recompute", "residue", "restore", "resync", "resume", "reclaim"}),
    ("cachemig backfill --work", {"--workers"}),
    ("cachemig init --codec ", {"json", "gzip", "zstd"}),
    ("cachemig verify --foreign-keys i", {"ignore"}),
    ("cachemig init --key-template x --shape o", {"object"}),
]


def environment(installed: Installed, home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(CLEAN)}
    return kept | {"PATH": f"{installed.bin}:{kept['PATH']}", "HOME": str(home), "TERM": "dumb"}


def said(installed: Installed, home: Path, *command: str) -> str:
    return subprocess.run(
        command, env=environment(installed, home), cwd=home, capture_output=True, text=True, check=True, timeout=30
    ).stdout


def install(installed: Installed, home: Path, shell: str) -> None:
    """As the README says it, typed in that shell: it is found out by who called. The second command keeps the shell
    from handing its process over."""
    said(installed, home, shell, "-c", "cachemig --install-completion; true")


def test_bash(installed: Installed, tmp_path: Path) -> None:
    install(installed, tmp_path, "bash")
    script = ['source "$HOME/.bashrc"', "complete -p cachemig"]
    for typed, _ in CASES:
        words = [word or '""' for word in typed.split(" ")]
        script += [
            f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; COMPREPLY=()",
            '_cachemig_completion cachemig; echo "${COMPREPLY[@]}"',
        ]
    lines = said(installed, tmp_path, "bash", "--norc", "-c", "\n".join(script)).splitlines()
    assert "-F _cachemig_completion cachemig" in lines[0]
    for (typed, wanted), line in zip(CASES, lines[1:], strict=True):
        assert set(line.split()) >= wanted, typed
        begun = typed.rpartition(" ")[2]
        assert all(word.startswith(begun) for word in line.split()), typed


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish(installed: Installed, tmp_path: Path) -> None:
    install(installed, tmp_path, "fish")
    for typed, wanted in CASES:
        lines = said(installed, tmp_path, "fish", "-c", f"complete -C '{typed}'").splitlines()
        assert {line.partition("\t")[0] for line in lines} >= wanted, typed


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh(installed: Installed, tmp_path: Path) -> None:
    """Typed at a terminal: zsh completes nowhere else. One match alone stands behind the prompt at once."""
    install(installed, tmp_path, "zsh")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execvpe("zsh", ["zsh", "-i"], environment(installed, tmp_path))
    try:
        os.write(terminal, b"PS1='ready> '; setopt nobeep\n")
        read_until(terminal, "\rready> ")
        os.write(terminal, b"cachemig x\t\x15")  # Typer's file for zsh is only loaded by the first Tab
        for typed, wanted in CASES:
            if len(wanted) > 1:
                continue
            rest = next(iter(wanted)).removeprefix(typed.rpartition(" ")[2])
            os.write(terminal, f"{typed}\t".encode())
            read_until(terminal, rest)
            os.write(terminal, b"\x15")  # the line is taken back
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)


def read_until(terminal: int, text: str) -> None:
    seen, end = "", time.monotonic() + 20
    while text not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0, end - time.monotonic()))
        assert ready, f"{text!r} did not come: {seen!r}"
        seen += os.read(terminal, 4096).decode(errors="replace")


def test_completing_loads_no_driver_and_builds_one_command(installed: Installed, tmp_path: Path) -> None:
    program = """
import atexit, os, sys
atexit.register(lambda: print("loaded:", *sys.modules, file=sys.stderr))
os.environ |= {"COMP_WORDS": "cachemig backfill --wor", "COMP_CWORD": "2", "_CACHEMIG_COMPLETE": "complete_bash"}
from cachemig.cli import main
main()
"""
    done = subprocess.run(
        [installed.bin / "python", "-c", program],
        env=environment(installed, tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["--workers"]
    loaded = set(done.stderr.split())
    assert not loaded & {"psycopg", "redis", "tenacity", "numpy", "pydantic", "cachemig.steps", "cachemig.source"}

"""The command line of cachemig, called as an operator does: a process of its own, behind the proxy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLEAN = ("PG", "CACHEMIG_", "REDISCLI_AUTH", "CACHE_TTL_SECONDS", "FORCE_COLOR", "COLUMNS")
PREFIX = "analysis:"


@dataclass
class Ended:
    command: str
    code: int
    out: str
    err: str
    seconds: float

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    def __str__(self) -> str:
        said = f"{self.out[-2000:]}{self.err[-2000:]}"
        return f"cachemig {self.command}: exit {self.code} after {self.seconds:.1f} s\n{said}"


class Tool:
    def __init__(self, directory: Path, dsn: str, redis_url: str, settings: dict[str, str]) -> None:
        self.directory = directory
        kept = {name: value for name, value in os.environ.items() if not name.startswith(CLEAN)}
        self.environment = kept | {
            "CACHEMIG_DSN": dsn,
            "CACHEMIG_REDIS_URL": redis_url,
            "CACHEMIG_DEBUG": "1",
            "CACHEMIG_GRACE": "100ms",
            "CACHEMIG_LOCK_TIMEOUT": "1500ms",
            "CACHEMIG_REDIS_TIMEOUT": "3s",
            "CACHEMIG_RETRY_FOR": "20s",
            **settings,
        }

    def __call__(self, *arguments: str, timeout_s: float = 90) -> Ended:
        began = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "cachemig", *arguments],
                cwd=self.directory,
                env=self.environment,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            err = exc.stderr.decode(errors="replace") if isinstance(exc.stderr, bytes) else str(exc.stderr or "")
            return Ended(" ".join(arguments), -1, "", f"{err}\nhangs: killed", time.monotonic() - began)
        return Ended(" ".join(arguments), done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    def until_fine(self, *arguments: str, tries: int = 12) -> Ended:
        """As an operator does while servers come and go: again, until it works."""
        for _ in range(tries):
            ended = self(*arguments)
            if ended.code == 0:
                return ended
            time.sleep(0.3)
        return ended

"""The command line of cachemig, called as an operator does: a process of its own, behind the proxy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
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
    """Runs commands, from any thread. After `close()` none is left, and none begins."""

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
            "CACHEMIG_SHAPE": "object",  # not what an application of any kind writes
            **settings,
        }
        self._closed = False
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for process in self._running:
                process.kill()

    def __call__(self, *arguments: str, timeout_s: float = 90) -> Ended:
        began, command = time.monotonic(), " ".join(arguments)
        with self._lock:
            if self._closed:
                return Ended(command, -1, "", "not begun: the round is being taken down", 0.0)
            process = subprocess.Popen(
                [sys.executable, "-m", "cachemig", *arguments],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # the terminal's Ctrl-C is for the harness, which then ends it
            )
            self._running.add(process)
        try:
            out, err = process.communicate(timeout=timeout_s)
            return Ended(command, process.returncode, out, err, time.monotonic() - began)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            return Ended(command, -1, out, f"{err}\nhangs: killed", time.monotonic() - began)
        finally:
            with self._lock:
                self._running.discard(process)
            if process.poll() is None:
                process.kill()
                process.communicate()

    def until_fine(self, *arguments: str, tries: int = 12) -> Ended:
        """As an operator does while servers come and go: again, until it works."""
        for _ in range(tries):
            ended = self(*arguments)
            if ended.code == 0 or self._closed:
                return ended
            time.sleep(0.3)
        return ended

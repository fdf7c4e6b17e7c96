"""The workers: real processes of cachemig that are started again whenever they die, and woken when they are stopped."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.tool import Tool

_FAILPOINT = re.compile(r"^failpoint ([\w-]+): (\w+)$", re.MULTILINE)
# What a run may end with while servers come and go: done, an error after retries, a refusal while capture is off, a
# lease that another one holds, a signal. Not 2: nobody has changed its settings.
_EXPECTED = {0, 1, 3, 5, 130, 143, -signal.SIGKILL, -signal.SIGTERM}


@dataclass
class _Slot:
    number: int
    commands: tuple[tuple[str, ...], ...]
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None
    errors: Path | None = None
    start_at: float = 0.0
    wake_at: float | None = None
    killed: bool = False


@dataclass
class Workers:
    """Keeps one process a slot running. `deaths` counts how they ended, `points` which failpoints acted."""

    tool: Tool
    seed: int
    failpoints: str
    sync_workers: int
    backfill_workers: int
    deaths: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    strange: list[str] = field(default_factory=list)
    """Ends that no fault explains."""

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{self.seed}:workers")
        commands: list[tuple[tuple[str, ...], ...]] = [(("sync", "--follow"),)] * self.sync_workers
        commands += [(("backfill",), ("backfill", "--restart"))] * self.backfill_workers
        self.slots = [_Slot(n, of_slot) for n, of_slot in enumerate(commands)]
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="workers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def kill(self, chance: random.Random) -> bool:
        with self._lock:
            slot = chance.choice(self.slots)
            if slot.process is None:
                return False
            slot.killed = True
            slot.process.kill()
            return True

    def stop(self, chance: random.Random, span_s: float) -> bool:
        with self._lock:
            slot = chance.choice(self.slots)
            if slot.process is None or slot.wake_at is not None:
                return False
            slot.process.send_signal(signal.SIGSTOP)
            slot.wake_at = time.monotonic() + span_s
            return True

    def end(self, *, gently: bool) -> None:
        """Ends all of them, asked by SIGTERM or killed; harmless when they have ended."""
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join()
        for slot in self.slots:
            if slot.process is not None:
                slot.killed = not gently
                slot.process.send_signal(signal.SIGCONT)
                slot.process.send_signal(signal.SIGTERM if gently else signal.SIGKILL)
        deadline = time.monotonic() + 30
        while left := [slot for slot in self.slots if slot.process is not None]:
            for slot in left:  # all of them in turn: one that a failpoint stopped may hold what another one waits for
                self._wake(slot)
                self._reap(slot)
                if slot.process is not None and time.monotonic() > deadline:
                    self.strange.append(f"{self._name(slot)} does not end within 30 s of SIGTERM")
                    slot.process.kill()
                    slot.process.wait()
            time.sleep(0.02)

    def _watch(self) -> None:
        while not self._end.wait(0.02):
            with self._lock:
                for slot in self.slots:
                    if slot.process is not None:
                        self._wake(slot)
                        self._reap(slot)
                    elif time.monotonic() >= slot.start_at:
                        self._start(slot)

    def _start(self, slot: _Slot) -> None:
        slot.starts += 1
        slot.killed = False
        slot.wake_at = None
        slot.errors = self.tool.directory / f"worker-{slot.number}-{slot.starts}.log"
        environment = self.tool.environment | {
            "CACHEMIG_TEST_FAILPOINTS": self.failpoints,
            "CACHEMIG_TEST_SEED": str(self.seed),
            # Another number at each start, or it would die at the same point for ever.
            "CACHEMIG_TEST_WORKER": f"{slot.number}.{slot.starts}",
            "CACHEMIG_RETRY_FOR": f"{self.chance.choice([1, 6])}s",
        }
        with slot.errors.open("wb") as errors:
            slot.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "cachemig",
                    *slot.commands[self.chance.random() < 0.5 and len(slot.commands) - 1],
                ],
                cwd=self.tool.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,  # the terminal's Ctrl-C is for the harness, which then ends them
            )

    def _wake(self, slot: _Slot) -> None:
        """SIGCONT, some time after it was stopped: by the harness, or by a failpoint of its own."""
        assert slot.process is not None
        if slot.wake_at is None:
            with suppress(ChildProcessError):
                if os.waitid(os.P_PID, slot.process.pid, os.WSTOPPED | os.WNOHANG) is not None:
                    slot.wake_at = time.monotonic() + self.chance.uniform(0.05, 2.0)
        if slot.wake_at is not None and (time.monotonic() >= slot.wake_at or self._end.is_set()):
            slot.process.send_signal(signal.SIGCONT)
            slot.wake_at = None
            with suppress(ChildProcessError):  # the stop of the harness itself, which is done with now
                os.waitid(os.P_PID, slot.process.pid, os.WSTOPPED | os.WNOHANG)

    def _reap(self, slot: _Slot) -> None:
        assert slot.process is not None
        assert slot.errors is not None
        code = slot.process.poll()
        if code is None:
            return
        said = slot.errors.read_text(errors="replace")
        acted = Counter(f"{name} {action}" for name, action in _FAILPOINT.findall(said))
        self.points.update(acted)
        if code == -signal.SIGKILL:
            self.deaths["killed" if slot.killed else "killed at a failpoint"] += 1
            if not slot.killed and not any(name.endswith(" kill") for name in acted) and not self._end.is_set():
                self.strange.append(f"{self._name(slot)} was killed by somebody else")
        elif code != 0:
            self.deaths[f"exit {code}"] += 1
        if code not in _EXPECTED or "internal error" in said:
            self.strange.append(f"{self._name(slot)} ended with {code}:\n{said[-3000:]}")
        slot.process = None
        slot.start_at = time.monotonic() + self.chance.uniform(0.02, 0.4) * (3 if code == 0 else 1)

    def _name(self, slot: _Slot) -> str:
        return f"worker {slot.number}.{slot.starts} ({slot.commands[0][0]})"

"""Running commands at once, and what they cost: time, processor time of each side, peak memory."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_PER_S = os.sysconf("SC_CLK_TCK")
_POLL_S = 0.02


@dataclass(frozen=True)
class Measured:
    """What one work cost. Processor times are seconds, None where the system does not tell (only Linux does)."""

    seconds: float
    bytes: int
    """Of JSON text that went through."""
    tool_cpu_s: float | None = None
    postgres_cpu_s: float | None = None
    redis_cpu_s: float | None = None
    rss_bytes: int | None = None
    """The largest that any one of its processes ever was."""
    stdout: tuple[str, ...] = ()
    """Of each command."""

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds


@dataclass(frozen=True)
class Meter:
    """Watches the two servers while something is done."""

    postgres_pid: int
    redis_pid: int

    def commands(
        self,
        commands: Sequence[Sequence[str]],
        nbytes: int,
        *,
        environment: Mapping[str, str],
        directory: Path,
        keep_output: bool = True,
    ) -> Measured:
        """Starts all commands at once; until the last one has ended. SystemExit, with its output, if one fails."""
        postgres, redis = family_cpu_s(self.postgres_pid), family_cpu_s(self.redis_pid)
        with tempfile.TemporaryDirectory(prefix="out-", dir=directory) as kept:
            outputs = [Path(kept) / str(n) for n in range(len(commands))]
            logs = [Path(kept) / f"{n}.log" for n in range(len(commands))]
            began = time.perf_counter()
            running = [
                _start(command, environment, directory, out if keep_output else Path(os.devnull), log)
                for command, out, log in zip(commands, outputs, logs, strict=True)
            ]
            with _watched([process.pid for process in running]) as peak:
                used = [_end(process) for process in running]
            seconds = time.perf_counter() - began
            shown = tuple(out.read_text() if keep_output else "" for out in outputs)
            for process, command, out, log in zip(running, commands, shown, logs, strict=True):
                if process.returncode:
                    said = f"{out[-2000:]}{log.read_text()[-2000:]}"
                    raise SystemExit(f"{' '.join(command)[:300]} exited {process.returncode}:\n{said}")
        return Measured(
            seconds,
            nbytes,
            sum(used),
            _since(postgres, family_cpu_s(self.postgres_pid)),
            _since(redis, family_cpu_s(self.redis_pid)),
            max(peak, default=0) or None,
            shown,
        )

    def call(self, work: Callable[[], object], nbytes: int) -> Measured:
        """Something that this process does itself, or starts and waits for."""
        postgres, redis = family_cpu_s(self.postgres_pid), family_cpu_s(self.redis_pid)
        own, began = _own_cpu_s(), time.perf_counter()
        work()
        seconds, own = time.perf_counter() - began, _own_cpu_s() - own
        return Measured(
            seconds,
            nbytes,
            own,
            _since(postgres, family_cpu_s(self.postgres_pid)),
            _since(redis, family_cpu_s(self.redis_pid)),
        )


def _start(
    command: Sequence[str], environment: Mapping[str, str], directory: Path, out: Path, log: Path
) -> subprocess.Popen[bytes]:
    with out.open("wb") as stdout, log.open("wb") as stderr:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=directory, env=dict(environment)
        )


def _end(process: subprocess.Popen[bytes]) -> float:
    """Waits; the processor time that it and the children it waited for have used."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def _watched(pids: Sequence[int]) -> Iterator[list[int]]:
    """Peak memory of each process in bytes, as long as it lives: ru_maxrss would count the parent's before exec."""
    peaks = [0] * len(pids)
    ended = threading.Event()

    def watch() -> None:
        while True:
            for n, pid in enumerate(pids):
                peaks[n] = max(peaks[n], _peak_rss(pid))
            if ended.wait(_POLL_S):
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()


def _peak_rss(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def family_cpu_s(pid: int) -> float | None:
    """Processor time of a process, its children that live and those that it has waited for."""
    own = _stat(pid)
    if own is None:
        return None
    ticks = sum(own)
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                ticks += sum(_stat(int(child)) or ())
    return ticks / _PER_S


def _own_cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _stat(pid: int) -> list[int] | None:
    """utime, stime, cutime and cstime."""
    try:
        # pid (name) state ppid ...; the name may hold spaces and parentheses
        return [int(f) for f in Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[11:15]]
    except OSError:
        return None


def _since(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0.0, after - before)

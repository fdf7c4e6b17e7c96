"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path


def facts() -> dict[str, str | int]:
    return {"cores": _cores(), "cpu": _cpu(), "python": platform.python_version()}


def _cores() -> int:
    """Those that this process may use, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def cpu_ns(pid: int) -> int | None:
    """Processor time that a process has used, in nanoseconds; None where the system does not tell (only Linux does)."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    except OSError:
        return None

"""Figures for people, as the terminal and the report write them."""

from __future__ import annotations


def in_bytes(count: float) -> str:
    """Bytes in powers of 1024: 512 B, 12.3 KB, 4.5 GB."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def in_time(seconds: float) -> str:
    """Seconds as 0.4 s, 12 s, 3 min, 2.5 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

"""What a benchmark hands over, and the statistics and tables that all of them use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Report:
    """`text` is Markdown, to be read as it is; `figures` is everything that was measured."""

    text: str
    figures: dict[str, object]
    versions: dict[str, str]


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least this part (0 to 1) of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-part * len(ordered) // 1) - 1)]


def spread(values: Sequence[float]) -> str:
    """The median of the rounds, with the least and the greatest."""
    return f"{median(values):+,.1f} ({min(values):+,.1f} … {max(values):+,.1f})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> str:
    """A Markdown table, also legible as plain text; the first `words` columns hold words, the others numbers."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i < words else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if i < words else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(heads), line(rule), *map(line, rows)])

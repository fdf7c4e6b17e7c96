"""What a benchmark hands over, and the statistics and tables that all of them use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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


def between_marks(path: Path, name: str, body: str) -> None:
    """Replaces what stands between the two marks of that name in a document, or begins it. SystemExit where they do
    not stand there exactly once."""
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8") if path.exists() else f"{begin}\n{end}\n"
    new = f"{begin}\n\n{body}\n\n{end}"
    after, replaced = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: new, before, flags=re.DOTALL)
    if replaced != 1:
        raise SystemExit(f"{path} does not hold the marks {begin} and {end} exactly once")
    path.write_text(after, encoding="utf-8")

"""Where text goes: results to stdout, talk and progress to stderr; colour and movement only at a terminal."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cachemig.progress import Progress
from cachemig.units import in_bytes as in_bytes
from cachemig.units import in_time as in_time

LINE_EVERY_S = 30.0
_PLAIN_WIDTH = 132
_RUNNER_COMMAND = re.compile(r"^(\s*)(::|##\[)", re.MULTILINE)
_FIGURES = re.compile(r"[\d.,]+")


def console(file: IO[str]) -> Console:
    """Gated on isatty alone: FORCE_COLOR would make rich animate into pipes and logs."""
    if file.isatty():
        return Console(file=file, highlight=False)
    return Console(file=file, force_terminal=False, no_color=True, width=_PLAIN_WIDTH, highlight=False)


class Screen:
    def __init__(self, *, results_to_stderr: bool) -> None:
        self._talk = console(sys.stderr)
        self._results = self._talk if results_to_stderr else console(sys.stdout)

    @property
    def console(self) -> Console:
        """Where results go."""
        return self._results

    def say(self, text: str) -> None:
        """Talk: what is going on."""
        self._talk.print(plain(text), soft_wrap=True)

    def raw(self, text: str) -> None:
        """Talk that a program reads: as it is, on one line."""
        print(text, file=self._talk.file, flush=True)

    def line(self, text: str = "", style: str | None = None) -> None:
        """A line of the result."""
        self._results.print(plain(text), style=style, soft_wrap=True)

    def next(self, command: str) -> None:
        """The obvious next step, wrapped as an error is."""
        self._results.print(Text("next: ", "bold") + plain(command), soft_wrap=not self._results.is_terminal)

    def error(self, text: str, hint: str | None) -> None:
        """At a terminal wrapped between words; elsewhere each in one line, for those who search a log."""
        in_one = not self._talk.is_terminal
        self._talk.print(Text("error: ", "bold red") + plain(text), soft_wrap=in_one)
        if hint:
            self._talk.print(Text("hint: ", "bold") + plain(hint), soft_wrap=in_one)

    def table(
        self,
        heads: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        styles: Sequence[str | None] = (),
        numbers: Sequence[int] = (),
    ) -> None:
        """A table of the result; `numbers`: columns aligned right."""
        table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(heads))
        for index, head in enumerate(heads):
            table.add_column(head, justify="right" if index in numbers else "left", overflow="fold")
        for index, row in enumerate(rows):
            table.add_row(*(plain(_text(cell)) for cell in row), style=styles[index] if index < len(styles) else None)
        if self._results.is_terminal:
            self._results.print(table)
            return
        with self._results.capture() as capture:
            self._results.print(table)
        for line in capture.get().splitlines():  # without the padding to the table's width
            self._results.print(Text(line.rstrip()), soft_wrap=True)

    @contextmanager
    def progress(self, name: str) -> Iterator[Callable[[Progress], None]]:
        """Draws progress: a moving line at a terminal; elsewhere a line every 30 s, and one when it begins to wait
        or to be slowed."""
        if not self._talk.is_terminal:
            yield _Lines(name, self._talk).draw
            return
        with self._talk.status(f"{name}: beginning") as status:
            figures = _Figures(name)
            yield lambda progress: status.update(plain(figures.text(progress)))


class _Figures:
    def __init__(self, name: str) -> None:
        self.name = name
        self.began = time.monotonic()
        self.first: Progress | None = None

    def text(self, p: Progress) -> str:
        self.first = self.first or p
        elapsed = max(time.monotonic() - self.began, 1e-3)
        parts = []
        if p.total is None:
            parts.append(f"{p.done:,} {p.unit}")
        else:
            share = f" ({100 * p.done / p.total:.0f} %)" if p.total else ""
            parts.append(f"{p.done:,} of {p.total:,} {p.unit}{share}")
        if p.entries:
            parts.append(f"{p.entries:,} entries")
        if p.bytes:
            parts.append(f"{in_bytes(p.bytes)}, {in_bytes(p.bytes / elapsed)}/s")
        if p.backlog is not None:
            parts.append(f"backlog {p.backlog:,}{'+' if p.backlog >= 100_000 else ''}")
        fresh = p.done - self.first.done
        if p.total and fresh > 0 and not p.waiting and p.done < p.total:
            parts.append(f"about {in_time((p.total - p.done) * elapsed / fresh)} left")
        if p.note:
            parts.append(p.note)
        if p.slowed:
            parts.append(p.slowed)
        if p.waiting:
            parts.append(f"waiting: {p.waiting}")
        return f"{self.name}: " + ", ".join(parts)


class _Lines:
    def __init__(self, name: str, out: Console) -> None:
        self._figures = _Figures(name)
        self._out = out
        self._last = time.monotonic()
        self._waiting: str | None = None
        self._slow_said = -LINE_EVERY_S

    def draw(self, progress: Progress) -> None:
        now = time.monotonic()
        waiting = progress.waiting and _FIGURES.sub("", progress.waiting)  # "41 s behind", "42 s behind" are one wait
        begins = waiting is not None and waiting != self._waiting
        begins |= progress.slowed is not None and now - self._slow_said >= LINE_EVERY_S
        self._waiting = waiting
        text = self._figures.text(progress)
        if begins or now - self._last >= LINE_EVERY_S:
            self._out.print(plain(text), soft_wrap=True)
            self._last = now
            if progress.slowed:
                self._slow_said = now


def plain(text: str) -> Text:
    """The text as it is: no markup, no emoji, and control characters (a key may hold any) made visible. A line that
    GitHub's runner would take for a command, such as one of somebody's source, is shown and not obeyed."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        text = _RUNNER_COMMAND.sub(r"\1\\\2", text)
    return Text("".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text))


def _text(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)

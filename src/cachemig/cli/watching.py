"""Drawing the live view: on the alternate screen of a terminal, or as lines off one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment

from cachemig.cli import render_watch as render
from cachemig.cli.screen import LINE_EVERY_S, Screen
from cachemig.stop import Stop

if TYPE_CHECKING:
    from cachemig.steps.watch import View, Watcher


def watch(screen: Screen, watcher: Watcher, seconds: float) -> None:
    """Until Ctrl-C or SIGTERM, which is its normal end."""
    stop = Stop()
    with _ending(stop):
        if screen.console.is_terminal:
            # By the terminal alone: LINES and COLUMNS, where they are exported, know nothing of another size.
            environment = {name: value for name, value in os.environ.items() if name not in ("LINES", "COLUMNS")}
            _live(Console(file=screen.console.file, highlight=False, _environ=environment), watcher, stop, seconds)
        else:
            _lines(screen, watcher, stop, seconds)


def once(screen: Screen, view: View) -> None:
    """One view, as long as it is."""
    width = screen.console.width if screen.console.is_terminal else render.PLAIN_WIDTH
    for line in render.view(view, width, 200):
        screen.console.print(line, soft_wrap=True)


class _Page:
    """The last view, in whatever size the terminal has when it is drawn."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.size
        lines = render.view(self.view, width, height)
        for number in range(height):
            if number:
                yield Segment.line()
            line = lines[number] if number < len(lines) else None
            if line is not None:
                yield from line.render(console)
            yield Segment(" " * (width - (line.cell_len if line is not None else 0)))


def _live(console: Console, watcher: Watcher, stop: Stop, seconds: float) -> None:
    page = _Page(watcher.view())
    with Live(page, console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        size = console.size
        while not stop.requested:
            page.view = watcher.view()
            live.refresh()
            drawn = time.monotonic()
            while not stop.requested and time.monotonic() - drawn < seconds and console.size == size:
                stop.wait(0.1)  # and then looks for another size
            size = console.size


def _lines(screen: Screen, watcher: Watcher, stop: Stop, seconds: float) -> None:
    """A line each half minute, and one at once where phase or reason is another one."""
    said, before = -LINE_EVERY_S, None
    while not stop.requested:
        view = watcher.view()
        turn = render.turn(view)
        if turn != before or time.monotonic() - said >= LINE_EVERY_S:
            screen.line(render.one_line(view))
            said, before = time.monotonic(), turn
        stop.wait(seconds)


@contextmanager
def _ending(stop: Stop) -> Iterator[None]:
    def end(number: int, _frame: object) -> None:
        stop.request(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

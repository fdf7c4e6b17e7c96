"""A terminal whose screen can be read back: a pseudo-terminal, and pyte in the place of xterm."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import pyte

from tests.acceptance.conftest import Operator


class Counting(pyte.Screen):
    """Counts what a view must never do: scroll."""

    scrolled = 0

    def index(self) -> None:
        bottom = self.margins.bottom if self.margins else self.lines - 1
        self.scrolled += self.cursor.y == bottom
        super().index()


class Terminal:
    """One command at it. A context manager: at its end the command is gone."""

    def __init__(self, operator: Operator, *arguments: str, columns: int = 80, lines: int = 24) -> None:
        self.screen = Counting(columns, lines)
        self.drawn = b""
        self._stream = pyte.ByteStream(self.screen)
        self._parent, child = pty.openpty()
        self._set_size(columns, lines)

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            operator.command(*arguments),
            cwd=operator.directory,
            stdin=child,
            stdout=child,
            stderr=child,
            env=operator.environment | {"TERM": "xterm-256color", "LINES": "40", "COLUMNS": "90"},  # not to be heard
            close_fds=True,
            preexec_fn=own_terminal,
        )
        os.close(child)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._parent, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        self.screen.resize(lines, columns)
        self._set_size(columns, lines)

    def press(self, keys: bytes) -> None:
        os.write(self._parent, keys)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    def until(self, condition: Callable[[str], object], seconds: float = 15) -> str:
        """Reads what is drawn until the screen is so; the screen."""
        end = time.monotonic() + seconds
        while not condition(self.text):
            assert time.monotonic() < end, self.text
            self._read(0.1)
        return self.text

    def _read(self, seconds: float) -> bool:
        if not select.select([self._parent], [], [], seconds)[0]:
            return True
        try:
            part = os.read(self._parent, 65536)
        except OSError:  # the other side is closed
            return False
        self.drawn += part
        self._stream.feed(part)
        return bool(part)

    def ended(self, seconds: float = 10) -> int:
        """Waits for the command's end; its exit code."""
        end = time.monotonic() + seconds
        while self._read(0.1) and time.monotonic() < end:
            pass
        return self.process.wait(timeout=max(0.1, end - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._parent)

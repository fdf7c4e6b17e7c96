"""A crew: further processes of `backfill --workers n`, which take chunks as runs on other machines do.

They are forked before this process has a connection or a thread. Each hears through a pipe of an epoch's work, and
sends its progress; it ends when the pipe does, so that it does not outlive the first process.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from cachemig.errors import CachemigError
from cachemig.progress import Progress
from cachemig.source import control
from cachemig.stop import Stop

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    Pipe = Connection[Any, Any]

Work = Callable[[Stop, int], Generator[Progress, None, None]]
"""What one does for an epoch."""
_PATIENCE_S = 10.0


@dataclass(eq=False)
class _Member:
    process: BaseProcess
    pipe: Pipe
    owner: str
    """Its name in leases."""
    progress: Progress | None = None


class Crew:
    """Processes that wait for work. A context manager: at its end they are gone."""

    def __init__(self, number: int, work: Work) -> None:
        context = multiprocessing.get_context("fork")
        self._members: list[_Member] = []
        for _ in range(number):
            ours, theirs = context.Pipe()
            # What is inherited of the others' pipes is closed there, else nobody would notice their end.
            inherited = [ours, *(member.pipe for member in self._members)]
            process = context.Process(target=_live, args=(theirs, inherited, work), daemon=True)
            process.start()
            theirs.close()
            self._members.append(_Member(process, ours, control.owner(process.pid)))

    def begin(self, epoch: int) -> Shift:
        """Has everybody work on this epoch's chunks."""
        for member in self._members:
            member.progress = None
            with suppress(OSError):  # it was killed, which is noticed when it is listened to
                member.pipe.send(epoch)
        return Shift(list(self._members), [member.owner for member in self._members])

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        """They finish the pipeline in flight and give their chunks back; one that hangs is killed."""
        for member in self._members:
            member.process.terminate()
        for member in self._members:
            member.process.join(_PATIENCE_S)
            if member.process.is_alive():
                member.process.kill()
                member.process.join()
            member.pipe.close()  # not before: it would be taken for this process's death


@dataclass
class Shift:
    """What a crew does for one epoch."""

    _working: list[_Member]
    owners: list[str]
    """The names of all in leases, of those too that were killed."""
    lost: int = 0
    """How many were killed: their chunks are taken over by whoever is left."""
    _done: list[Progress] = field(default_factory=list)

    def at_work(self) -> bool:
        """Some have not ended. Raises what made one of them give up."""
        self._listen()
        return bool(self._working)

    def added_to(self, progress: Progress) -> Progress:
        """The progress of one worker together with that of the others. Raises what made one of them give up."""
        self._listen()
        others = [*self._done, *(member.progress for member in self._working if member.progress is not None)]
        return replace(
            progress,
            entries=(progress.entries or 0) + sum(p.entries or 0 for p in others),
            bytes=(progress.bytes or 0) + sum(p.bytes or 0 for p in others),
            note=progress.note or (f"{self.lost} of the workers were killed" if self.lost else None),
        )

    def _listen(self) -> None:
        for member in list(self._working):
            with suppress(EOFError, OSError):
                while member in self._working and member.pipe.poll():
                    self._heard(member, member.pipe.recv())
                continue
            self.lost += 1
            member.process.join(_PATIENCE_S)  # until then its pid is there, and nobody takes its chunk over
            self._ended(member)

    def _heard(self, member: _Member, what: Progress | CachemigError | None) -> None:
        if isinstance(what, CachemigError):
            raise what
        if what is None:
            self._ended(member)
        else:
            member.progress = what

    def _ended(self, member: _Member) -> None:
        self._working.remove(member)
        if member.progress is not None:
            self._done.append(member.progress)


def _live(pipe: Pipe, inherited: Sequence[Pipe], work: Work) -> None:
    """What a member does, from the fork to its end."""
    for other in inherited:
        other.close()
    stop = Stop()
    # Ctrl-C goes to the whole terminal; the first process hears it, and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: stop.request(number))
    with suppress(EOFError, OSError):  # the first process is gone
        while not stop.requested:
            if not pipe.poll(0.2):
                continue
            epoch = pipe.recv()
            try:
                for progress in work(stop, epoch):
                    pipe.send(progress)
            except CachemigError as exc:
                pipe.send(exc.with_traceback(None))
            else:
                pipe.send(None)

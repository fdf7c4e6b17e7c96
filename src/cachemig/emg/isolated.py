"""Recordings read and analysed in child processes, so that no file can take this process down, or hold it up.

ezc3d crashes on some damaged files, allocates without bound on others, and hangs on a few. Here each of these is a
RecordingError of that recording, and the next one gets a fresh child. Neither ezc3d nor SciPy is loaded here; NumPy
only by `read`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from cachemig.emg import checks
from cachemig.emg.child import FRAME, READY, Json, frame
from cachemig.emg.errors import NAMES, ReaderUnavailable, RecordingError

if TYPE_CHECKING:
    from datetime import datetime

    from cachemig.emg.profile import Options, Profile
    from cachemig.emg.recording import Recording

Item = TypeVar("Item")
Result = TypeVar("Result")

# A child gets what it needs to find its libraries, and nothing else: no password, no DSN, no token.
ENVIRONMENT_KEPT = (
    "PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE",
)  # fmt: skip
# One recording is one core's work; the pool is what spreads it. Each thread of OpenBLAS would also reserve memory.
ENVIRONMENT_SET = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # glibc: memory of one recording is kept for the next one instead of being handed back and cleared: a tenth faster.
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
}
PROGRAM = (sys.executable, "-P", "-m", "cachemig.emg.child")

_PIPE_BYTES = 1 << 20
_NONSENSE = "what it answered is no answer"
_STDERR_KEPT_BYTES = 4096
_MOST_JSON_BYTES = 64 << 20
_IN_FLIGHT_PER_WORKER = 2


@dataclass(frozen=True)
class Limits:
    """What one recording may cost."""

    seconds: float = 30.0
    """By the wall clock, and of processor time."""
    memory_bytes: int = 1536 << 20
    """Of address space, above what the child has before its first recording."""
    file_bytes: int = checks.MAX_BYTES
    start_seconds: float = 60.0
    """For a child to start and import its libraries."""


class _TimedOutError(Exception):
    pass


class _DiedError(Exception):
    """The child closed its end, or answered what is no answer."""


class _Child:
    """One process and its three pipes, none of which can block this one, and a fourth that ends it with this one."""

    def __init__(self, program: Sequence[str], limits: Limits) -> None:
        environment = {name: os.environ[name] for name in ENVIRONMENT_KEPT if name in os.environ} | ENVIRONMENT_SET
        # Where ezc3d must be given a file on a disk, it lies in here, and goes when the child does.
        self._directory = None if hasattr(os, "memfd_create") else tempfile.mkdtemp(prefix="cachemig-")
        if self._directory is not None:
            environment["TMPDIR"] = self._directory
        parent, self._alive = os.pipe()
        arguments = (str(limits.memory_bytes), str(limits.seconds), str(limits.file_bytes), str(parent))
        # A group of its own: Ctrl-C is for the parent, which ends its children itself.
        try:
            self.process = subprocess.Popen(
                [*program, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=environment,
                pass_fds=(parent,),
                process_group=0,
            )
        except BaseException:
            os.close(self._alive)
            raise
        finally:
            os.close(parent)
        pipes = (self.process.stdin, self.process.stdout, self.process.stderr)
        self._in, self._out, self._err = (pipe.fileno() for pipe in pipes if pipe)
        self._stderr = b""
        self._selector = selectors.DefaultSelector()
        for descriptor in (self._in, self._out, self._err):
            os.set_blocking(descriptor, False)
        for descriptor in (self._out, self._err):
            self._selector.register(descriptor, selectors.EVENT_READ)
        if sys.platform == "linux":
            import fcntl

            for descriptor in (self._in, self._out):
                with contextlib.suppress(OSError):  # over this user's limit for pipes: slower, no worse
                    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def exchange(self, parts: Iterable[bytes], seconds: float, most_body_bytes: int) -> tuple[Json, bytearray]:
        """Sends a request and returns its answer. After _TimedOutError or _DiedError it is no longer of use."""
        deadline = time.monotonic() + seconds
        outgoing = deque(memoryview(part) for part in parts if part)
        if outgoing:
            self._selector.register(self._in, selectors.EVENT_WRITE)
        incoming = bytearray()
        expected: tuple[int, int] | None = None
        while True:
            left = deadline - time.monotonic()
            events = self._selector.select(max(left, 0))
            if not events and left <= 0:
                raise _TimedOutError
            for key, _ in events:
                if key.fd == self._in:
                    self._feed(outgoing)
                elif key.fd == self._err:
                    self._drain()
                elif part := os.read(self._out, _PIPE_BYTES):
                    incoming += part
                else:
                    raise _DiedError
            if expected is None and len(incoming) >= FRAME.size:
                expected = FRAME.unpack_from(incoming)
                if expected[0] > _MOST_JSON_BYTES or expected[1] > most_body_bytes:
                    raise _DiedError
            if expected is not None and len(incoming) >= FRAME.size + sum(expected):
                return self._parsed(incoming, expected[0]), incoming[FRAME.size + expected[0] :]

    def _feed(self, outgoing: deque[memoryview]) -> None:
        try:
            outgoing[0] = outgoing[0][os.write(self._in, outgoing[0]) :]
        except BrokenPipeError:
            outgoing.clear()  # the end of its other pipe tells the rest
        if outgoing and not outgoing[0]:
            outgoing.popleft()
        if not outgoing:
            self._selector.unregister(self._in)

    def _drain(self) -> None:
        part = os.read(self._err, _PIPE_BYTES)
        if not part:
            self._selector.unregister(self._err)
        self._stderr = (self._stderr + part)[-_STDERR_KEPT_BYTES:]

    @staticmethod
    def _parsed(incoming: bytearray, json_bytes: int) -> Json:
        import json

        try:
            answer = json.loads(incoming[FRAME.size : FRAME.size + json_bytes])
        except ValueError as exc:
            raise _DiedError from exc
        if not isinstance(answer, dict):
            raise _DiedError
        return answer

    def end(self) -> None:
        """Kills it, by its own process id, and leaves nothing of it behind."""
        self.process.kill()
        self.process.wait()
        self._selector.close()
        os.close(self._alive)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def cause_of_death(self) -> tuple[str, str]:
        """Name and detail, of a process that died by itself. Its last words are looked at here, and never shown."""
        try:
            status = self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "crashed", _NONSENSE
        while self._err in {key.fd for key, _ in self._selector.select(0)}:
            self._drain()
        if status == -signal.SIGXCPU:
            return "timed-out", "processor time"
        if b"bad_alloc" in self._stderr or b"MemoryError" in self._stderr:
            return "out-of-memory", ""
        return "crashed", signal.Signals(-status).name if status < 0 else f"exit status {status}"


class Isolated:
    """One child process that reads recordings, replaced whenever it dies or must be ended.

    For one thread at a time; only `close` may come from another. The child starts with the first recording and ends
    with the `with` block; it also ends when this process is killed.
    """

    def __init__(self, limits: Limits = Limits(), *, program: Sequence[str] = PROGRAM) -> None:
        self._limits = limits
        self._program = program
        self._child: _Child | None = None
        self._busy = threading.Lock()
        self._closed = False
        self.children_started = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child, and with it whatever it is at."""
        self._closed = True
        if child := self._child:
            child.process.kill()
        with self._busy:
            self._discard()

    @property
    def pid(self) -> int | None:
        """Of the child, if one runs."""
        child = self._child
        return child.process.pid if child is not None and child.process.poll() is None else None

    def read(self, source: bytes | Path) -> Recording:
        """The recording in these bytes or this file; RecordingError if it cannot be had, for whatever reason."""
        answer, body = self._ask({"do": "read"}, source)
        import numpy as np

        from cachemig.emg.recording import Recording

        samples = np.frombuffer(body, dtype="<f8").reshape(answer["shape"])
        return Recording(tuple(answer["labels"]), samples, answer["sampling_rate_hz"])

    def analyse(
        self,
        source: bytes | Path,
        profile: Profile,
        options: Options,
        cached_at: datetime,
        *,
        aborted_as_is: bool = False,
    ) -> dict[str, Any]:
        """What payload.payload makes of the recording, computed in the child. RecordingError as for `read`; with
        `aborted_as_is` an aborted recording gives the application's empty analytics instead."""
        request: Json = {
            "do": "analyse",
            "profile": profile.name,
            "options": asdict(options),
            "cached_at": cached_at.isoformat(),
            "aborted_as_is": aborted_as_is,
        }
        return self._ask(request, source)[0]

    def _ask(self, request: Json, source: bytes | Path) -> tuple[dict[str, Any], bytearray]:
        body, path = (source, None) if isinstance(source, bytes) else (b"", str(source.absolute()))
        if len(body) > self._limits.file_bytes:
            raise RecordingError("too-large", f"{len(body):,} bytes, limit {self._limits.file_bytes:,}")
        with self._busy:
            if self._closed:
                raise RuntimeError("this reader is closed")
            child = self._ready()
            try:
                parts = (frame({**request, "path": path}, len(body)), body)
                # Samples are twice as long as in the file.
                answer, samples = child.exchange(parts, self._limits.seconds, 2 * self._limits.file_bytes)
            except _TimedOutError:
                self._discard()
                raise RecordingError("timed-out", f"limit {self._limits.seconds:g} s") from None
            except _DiedError:
                name, detail = child.cause_of_death()
                self._discard()
                raise RecordingError(name, detail) from None
            except BaseException:
                self._discard()  # an answer may still be on its way, and would be taken for the next one's
                raise
            match answer:
                case {"ok": dict(result)}:
                    return result, samples
                case {"error": [str(name), str(detail)]} if name in NAMES:
                    raise RecordingError(name, detail)
                case _:
                    self._discard()
                    raise RecordingError("crashed", _NONSENSE)

    def _ready(self) -> _Child:
        """The child, or a new one where there is none or it has died since its last answer."""
        if self._child is not None and self._child.process.poll() is not None:
            self._discard()
        if self._child is None:
            child = self._child = _Child(self._program, self._limits)
            self.children_started += 1
            try:
                answer, _ = child.exchange((), self._limits.start_seconds, 0)
            except (_TimedOutError, _DiedError) as exc:
                detail = "timed out" if isinstance(exc, _TimedOutError) else child.cause_of_death()[1]
                self._discard()
                raise ReaderUnavailable(f"the process that reads recordings does not start: {detail}") from None
            except BaseException:
                self._discard()
                raise
            assert answer == {"ok": READY}
        return self._child

    def _discard(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


class Pool:
    """Many recordings at once, each worker with a child of its own; the threads only wait."""

    def __init__(self, workers: int, limits: Limits = Limits(), *, program: Sequence[str] = PROGRAM) -> None:
        self._workers = [Isolated(limits, program=program) for _ in range(workers)]
        self._free: queue.LifoQueue[Isolated] = queue.LifoQueue()
        for worker in self._workers:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="recording")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all children, whatever they are at."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()
        self._threads.shutdown()

    def map(self, task: Callable[[Isolated, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """What `task` returns for each item, in the order of the items.

        Items are drawn in the calling thread, and only as many as the workers need, so a cursor over a large table may
        be given; so may a task that reads a file, whose bytes are then held only while it is worked on. What a task
        raises is raised here, and the items after it are given up: a task that is to go on catches RecordingError.
        """
        running: deque[Future[Result]] = deque()
        try:
            for item in items:
                running.append(self._threads.submit(self._run, task, item))
                if len(running) >= _IN_FLIGHT_PER_WORKER * len(self._workers):
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()

    def _run(self, task: Callable[[Isolated, Item], Result], item: Item) -> Result:
        worker = self._free.get()
        try:
            return task(worker, item)
        finally:
            self._free.put(worker)

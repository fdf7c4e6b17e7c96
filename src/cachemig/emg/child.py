"""The process that reads recordings, `python -m cachemig.emg.child MEMORY_BYTES SECONDS FILE_BYTES PARENT`; see
isolated.py.

A request comes in on standard input, its answer goes out on standard output, one at a time, both as frames: two
lengths, JSON, raw bytes. Whatever a file does to ezc3d happens here: at the worst the limits below end this process,
and its parent starts another one. It ends by itself when its parent does, in the middle of a hang as well.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import resource
import select
import struct
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cachemig.emg.errors import RecordingError

if TYPE_CHECKING:
    from cachemig.emg.recording import Recording

FRAME = struct.Struct(">II")
"""Bytes of JSON, bytes that follow it."""
READY = "ready"

Json = dict[str, object]
Bytes = bytes | bytearray | memoryview


def frame(head: Mapping[str, object], body_bytes: int) -> bytes:
    """Everything of a frame but its raw bytes. Floats survive exactly; NaN is a ValueError."""
    text = json.dumps(head, allow_nan=False).encode()
    return FRAME.pack(len(text), body_bytes) + text


def main(arguments: list[str]) -> int:
    memory_bytes, seconds, file_bytes = int(arguments[0]), float(arguments[1]), int(arguments[2])
    _end_with_the_parent(int(arguments[3]))
    requests, replies = _take_the_pipes()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no image of a recording on a disk
    from cachemig.emg import reader

    _limit_memory(memory_bytes)
    _send(replies, {"ok": READY}, b"")
    while True:
        head = requests.read(FRAME.size)
        if len(head) < FRAME.size:
            return 0
        text_bytes, body_bytes = FRAME.unpack(head)
        request = json.loads(requests.read(text_bytes))
        body = requests.read(body_bytes)
        if len(body) < body_bytes:
            return 0
        _limit_processor_time(seconds)
        answer: Json
        samples: Bytes = b""
        try:
            source = body if request["path"] is None else Path(request["path"])
            recording = reader.read(source, file_bytes, aborted_as_is=bool(request.get("aborted_as_is")))
            if request["do"] == "read":
                answer, samples = _as_read(recording)
            else:
                answer = {"ok": _analysed(recording, request)}
        except RecordingError as exc:
            answer = {"error": [exc.name, exc.detail]}
        except MemoryError:
            answer = {"error": ["out-of-memory", ""]}
        except Exception as exc:  # noqa: BLE001 - whatever an analysis raises is this recording's failure
            answer = {"error": ["failed", type(exc).__name__]}
        _send(replies, answer, samples)


def _as_read(recording: Recording) -> tuple[Json, Bytes]:
    samples = recording.samples
    about = {
        "labels": list(recording.labels),
        "sampling_rate_hz": recording.sampling_rate_hz,
        "shape": list(samples.shape),
    }
    return {"ok": about}, samples.astype("<f8", order="C", copy=False).data.cast("B")


def _analysed(recording: Recording, request: Mapping[str, object]) -> Mapping[str, object]:
    """SciPy is loaded here, at the first analysis, and nowhere else."""
    from cachemig.emg.payload import payload
    from cachemig.emg.profile import PROFILES, Options

    profile, options, cached_at = (request[name] for name in ("profile", "options", "cached_at"))
    assert isinstance(profile, str)
    assert isinstance(options, dict)
    assert isinstance(cached_at, str)
    return payload(recording, PROFILES[profile], Options(**options), datetime.fromisoformat(cached_at))


def _take_the_pipes() -> tuple[BinaryIO, int]:
    """The request pipe and the descriptor for replies, out of reach of a library that prints."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(requests, "rb"), replies


def _send(replies: int, head: Mapping[str, object], body: Bytes) -> None:
    for part in (frame(head, len(body)), body):
        view = memoryview(part)
        while view:
            view = view[os.write(replies, view) :]


def _limit_memory(allowance_bytes: int) -> None:
    """Address space: what is in use now, without SciPy, plus the allowance. Only Linux tells, and keeps the limit."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + allowance_bytes)


def _limit_processor_time(seconds: float) -> None:
    """For one recording; SIGXCPU ends this process. The wall clock is the parent's."""
    _lower(resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds) + 1)


def _lower(which: int, limit: int) -> None:
    """The soft limit, which the next recording may move again; never beyond the hard one that was inherited."""
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _end_with_the_parent(parent: int) -> None:
    """From here on the end of the parent ends this process at once, even inside a library that never returns.

    `parent` is a pipe that only the parent could write to, and never does: the kernel sends SIGIO, which ends a process
    that has no handler for it, when it is closed. It is a pipe of its own because a write to the requests' may send its
    signal only after what was written has been read. The thread that started this process may end meanwhile; that is
    why it is not PR_SET_PDEATHSIG, which would take it for the parent.
    """
    fcntl.fcntl(parent, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(parent, fcntl.F_SETFL, fcntl.fcntl(parent, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(parent, select.POLLIN)
    if poll.poll(0):  # closed before the kernel was asked
        os._exit(0)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:
        os._exit(0)  # the parent is gone; there is nobody to tell

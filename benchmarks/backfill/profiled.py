"""Where the time of one backfill goes: `python -m benchmarks.backfill.profiled FILE COMMAND …` runs the command, looks
every few milliseconds at what its threads are in, and writes to FILE how often each stage was seen.

A look needs the interpreter, so it comes a little later where that is busy; the stages' shares stand, their sum is the
time that passed.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from cachemig.cli import main

_EVERY_S = 0.002
MAIN, READER = "main thread", "reader thread"
# (end of the file's name, function or '' for any, stage): the first that fits, from the innermost frame outwards.
_STAGES = (
    ("entries/entry.py", "digest", "SHA-256"),
    ("entries/shape.py", "fault", "shape check"),
    ("entries/codec.py", "encode", "codec"),
    ("redis/connection.py", "send_packed_command", "sending to Redis (it takes what it can)"),
    ("redis/connection.py", "read_response", "waiting for Redis's reply"),
    ("redis/connection.py", "connect", "connecting"),
    ("targets/resp.py", "", "packing RESP"),
    ("targets/redis.py", "packed_small", "packing RESP"),
    ("targets/redis.py", "packed_large", "packing RESP"),
    ("steps/read_ahead.py", "_put", "waiting: enough is read ahead"),
    ("steps/read_ahead.py", "__iter__", "waiting for values from Postgres"),
    ("source/ledger.py", "write", "ledger"),
    ("psycopg/connection.py", "wait", "__postgres__"),
    ("source/scan.py", "", "rows from COPY into entries"),
    ("source/chunks.py", "lay_out", "dividing the table"),
    ("source/chunks.py", "", "bookkeeping: chunks, epoch, orders"),
    ("steps/epoch.py", "", "bookkeeping: chunks, epoch, orders"),
    ("steps/orders.py", "", "bookkeeping: chunks, epoch, orders"),
    ("source/connect.py", "connect", "connecting"),
    ("steps/backfill.py", "left_over", "closing search"),
    ("steps/delivery.py", "", "records, batches, receipts"),
    ("targets/redis.py", "", "records, batches, receipts"),
    ("steps/backfill.py", "_delivered", "records, batches, receipts"),
    ("importlib._bootstrap", "", "importing"),
    ("importlib._bootstrap_external", "", "importing"),
)


def stage(frame: FrameType | None) -> str:
    """The stage that a stack is in."""
    waits = False
    while frame is not None:
        name, function = frame.f_code.co_filename, frame.f_code.co_name
        for ending, wanted, found in _STAGES:
            if (name.endswith(ending) or ending in name) and wanted in ("", function):
                if found == "__postgres__":
                    waits = True
                    break
                if waits and found == "rows from COPY into entries":
                    return "receiving from Postgres"
                return found
        frame = frame.f_back
    return "waiting for Postgres otherwise" if waits else "everything else"


def watched(seen: dict[str, Counter[str]], ended: threading.Event) -> None:
    own = threading.get_ident()
    while not ended.wait(_EVERY_S):
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            if ident != own:
                name = names.get(ident, "")
                which = READER if "reader" in name else MAIN
                if which == READER and "_wait_for_tstate_lock" in frame.f_code.co_name:
                    continue  # the next chunk's, whose turn has not come
                seen[which][stage(frame)] += 1


if __name__ == "__main__":
    target = Path(sys.argv.pop(1))
    counts: dict[str, Counter[str]] = {MAIN: Counter(), READER: Counter()}
    done = threading.Event()
    watcher = threading.Thread(target=watched, args=(counts, done), daemon=True)
    began = time.perf_counter()
    watcher.start()
    try:
        main()
    finally:
        done.set()
        watcher.join()
        target.write_text(json.dumps({"seconds": time.perf_counter() - began, "seen": counts}), encoding="utf-8")

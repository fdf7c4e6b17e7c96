"""From entries to Redis and the ledger: the part that backfill and sync share."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, fields
from typing import Any

from cachemig.config import Settings
from cachemig.entries.codec import encode
from cachemig.entries.entry import Entry, digest, jitter_ms
from cachemig.entries.shape import fault
from cachemig.source.ledger import Record
from cachemig.targets.redis import RedisTarget, Write


@dataclass
class Tally:
    """What was done, by the ledger's states."""

    delivered: int = 0
    expired: int = 0
    set_aside: int = 0
    failed: int = 0
    removed: int = 0
    older: int = 0
    """Refused by Redis because it held a newer state already."""
    copied: int = 0
    """Corrupt and delivered all the same, by `on_corrupt = copy`."""
    bytes: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    """Corrupt values by name of the fault."""

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> Tally:
        """From what `asdict` gave, and more."""
        return cls(**{f.name: figures[f.name] for f in fields(cls)})

    def add(self, record: Record) -> None:
        match record.state:
            case "delivered":
                self.delivered += 1
                self.copied += record.error is not None
                self.bytes += record.nbytes or 0
            case "expired":
                self.expired += 1
            case "set-aside":
                self.set_aside += 1
            case "failed":
                self.failed += 1
            case "removed":
                self.removed += 1
        if record.error is not None and record.state != "failed":
            name = record.error.partition(":")[0]
            self.faults[name] = self.faults.get(name, 0) + 1

    @property
    def entries(self) -> int:
        return self.delivered + self.expired + self.set_aside + self.failed + self.removed

    def merge(self, other: Tally) -> None:
        for name, value in vars(other).items():
            if name == "faults":
                self.faults = {fault: self.faults.get(fault, 0) + value.get(fault, 0) for fault in self.faults | value}
            else:
                setattr(self, name, getattr(self, name) + value)


def deliver(target: RedisTarget, entries: Iterable[Entry], tally: Tally) -> Generator[Record, None, None]:
    """A ledger record for every entry, once Redis has acknowledged what it took to make Redis agree with it.

    A sound entry is written; one that is absent, corrupt or past its time must not be found in Redis, so whatever
    older state is there is removed. Nothing is removed at version 0: nobody can have written the key before.
    """
    waiting: dict[str, Record] = {}
    done: list[Record] = []

    def writes() -> Iterator[Write]:
        now_ms = int(time.time() * 1000)
        for entry in entries:
            record, write = plan(entry, target.settings, now_ms)
            if write is None:
                done.append(record)
            else:
                waiting[entry.key] = record
                yield write

    def finished() -> Iterator[Record]:
        for record in done:
            tally.add(record)
            yield record
        done.clear()

    with closing(target.deliver(writes())) as receipts:
        for receipt in receipts:
            record = waiting.pop(receipt.write.key)
            receipt.write.value = None  # the value's buffer goes as soon as it is delivered
            if receipt.error is not None:
                record.state, record.error = "failed", f"redis: {receipt.error}"
            elif not receipt.written:
                tally.older += 1
            done.append(record)
            yield from finished()
    yield from finished()


def plan(entry: Entry, settings: Settings, now_ms: int) -> tuple[Record, Write | None]:
    """What is to be done with an entry, and what the ledger will say of it if that succeeds."""
    remove = Write(entry.key, entry.version, None) if entry.version > 0 else None
    if entry.text is None:
        return Record(entry.key, entry.version, "removed"), remove
    record = Record(entry.key, entry.version, "delivered", digest(entry.text), len(entry.text))
    record.error = fault(entry.text, settings)
    if record.error is not None and (settings.corrupt != "copy" or record.error.startswith("too-large")):
        record.state = "set-aside"
        return record, remove
    record.expires_at_ms = entry.expires_at_ms
    if settings.ttl and record.expires_at_ms is None:  # never accessed, or the lifetime counts from now
        ttl_ms = int(settings.ttl * 1000)
        record.expires_at_ms = now_ms + ttl_ms + jitter_ms(entry.key, ttl_ms, settings.ttl_jitter)
    if record.expires_at_ms is not None and record.expires_at_ms <= now_ms:
        record.state = "expired"
        return record, remove
    stored = encode(settings.codec, entry.text)
    if settings.codec != "json":
        record.stored_sha256 = digest(stored)
    return record, Write(entry.key, entry.version, stored, record.expires_at_ms)

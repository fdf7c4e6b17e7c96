"""cachemig with safeguards taken out, to learn what each of them costs: `python -m benchmarks.backfill.unguarded
WITHOUT COMMAND …`, where WITHOUT is `none` or names from TURN_OFF, separated by commas.

The product has no switch for any of this, and a cache filled so is not to be trusted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from itertools import chain
from typing import Any

from cachemig.cli import main
from cachemig.entries import entry
from cachemig.source import ledger
from cachemig.steps import backfill
from cachemig.targets import redis
from cachemig.targets.resp import pack, send


def no_hash() -> None:
    """The digest of everything is zeros."""
    _replace(entry.digest, lambda _: bytes(32))


def no_ledger() -> None:
    """Nothing is recorded; so nothing can be looked up of what is missing."""

    def nothing_left(*_: object) -> Generator[Any, None, None]:
        yield from ()

    _replace(ledger.write, lambda *_: None)
    setattr(backfill.Worker, "left_over", nothing_left)  # noqa: B010 - not what its type says


def no_fence() -> None:
    """Plain SET, in pipelines of the same sizes, one in flight as well."""

    def deliver(self: redis.RedisTarget, writes: Iterable[redis.Write]) -> Generator[redis.Receipt, None, None]:
        connection: Any = self.client.connection_pool.get_connection()
        in_flight: list[redis.Write] = []
        batch: list[redis.Write] = []
        nbytes = 0
        try:
            for write in writes:
                batch.append(write)
                nbytes += len(write.value or b"")
                if nbytes >= self.settings.batch_bytes or len(batch) >= self.settings.batch_keys:
                    send(connection, chain.from_iterable(_set(self, one) for one in batch))
                    yield from _acknowledged(connection, in_flight)
                    in_flight, batch, nbytes = batch, [], 0
            send(connection, chain.from_iterable(_set(self, one) for one in batch))
            yield from _acknowledged(connection, in_flight)
            yield from _acknowledged(connection, batch)
        finally:
            self.client.connection_pool.release(connection)

    redis.RedisTarget.deliver = deliver  # type: ignore[method-assign]


def _set(target: redis.RedisTarget, write: redis.Write) -> list[entry.Buffer]:
    assert write.value is not None
    expiry = () if write.expires_at_ms is None else (b"PXAT", b"%d" % write.expires_at_ms)
    return pack(b"SET", target.template.name(write.key).encode(), write.value, *expiry)


def _acknowledged(connection: Any, writes: list[redis.Write]) -> Generator[redis.Receipt, None, None]:
    for write in writes:
        if connection.read_response() != b"OK":
            raise SystemExit("Redis refused a SET")
        yield redis.Receipt(write, True)


def _replace(function: Callable[..., Any], by: Callable[..., Any]) -> None:
    """Wherever a module of cachemig has taken it by name."""
    for name, module in list(sys.modules.items()):
        if name.startswith("cachemig"):
            for attribute, value in list(vars(module).items()):
                if value is function:
                    setattr(module, attribute, by)


TURN_OFF: Mapping[str, Callable[[], None]] = {"fence": no_fence, "hash": no_hash, "ledger": no_ledger}

if __name__ == "__main__":
    for safeguard in sys.argv.pop(1).split(","):
        if safeguard != "none":
            TURN_OFF[safeguard]()
    main()

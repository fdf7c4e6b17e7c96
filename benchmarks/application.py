"""An application of its own process: so many requests a second of one table, until SIGTERM; prints their latencies.

`python -m benchmarks.application DSN TABLE RATE SEED`. A request is due at its time whether or not the one before is
done, and its latency counts from there: waiting behind a slow one is part of it.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
import time
from random import Random

import psycopg
from psycopg import sql

READ, UPDATE, INSERT = "read", "update", "insert"
MIX = {READ: 6, UPDATE: 3, INSERT: 1}
"""So many of ten requests. None touches the column that is moved."""


def main() -> None:
    dsn, table, rate, seed = sys.argv[1:]
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    chance = Random(seed)  # noqa: S311 - the same requests every time, not cryptography
    samples = []
    with psycopg.connect(dsn, autocommit=True, application_name="application") as conn:
        name = sql.Identifier(table)
        keys = [row[0] for row in conn.execute(sql.SQL("SELECT file_hash FROM {} LIMIT 5000").format(name))]
        statements = {
            READ: sql.SQL("SELECT id, status, cache_hits, updated_at FROM {} WHERE file_hash = %s"),
            UPDATE: sql.SQL("UPDATE {} SET cache_hits = cache_hits + 1 WHERE file_hash = %s"),
            INSERT: sql.SQL("INSERT INTO {} (patient_code, file_path, file_hash) VALUES ('p', 'new', %s)"),
        }
        queries = {kind: statement.format(name) for kind, statement in statements.items()}
        kinds = [kind for kind, part in MIX.items() for _ in range(part)]
        for kind in kinds * 3:  # the first of each are late by what they load
            conn.execute(queries[kind], (_key(kind, keys, chance),))
        gc.disable()
        print("ready", flush=True)
        due = time.monotonic()
        while not stopped:
            due += 1 / float(rate)
            time.sleep(max(0.0, due - time.monotonic()))
            kind = chance.choice(kinds)
            conn.execute(queries[kind], (_key(kind, keys, chance),))
            samples.append((due, kind, (time.monotonic() - due) * 1000))
    print(json.dumps(samples))


def _key(kind: str, keys: list[str], chance: Random) -> str:
    return f"{chance.getrandbits(256):064x}" if kind == INSERT else chance.choice(keys)


if __name__ == "__main__":
    main()

"""The application: threads that write all the time, know nothing of Redis, and go on after any error."""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Sequence

import psycopg

from cachemig.source.connect import Connection
from tests.chaos.plan import Plan

NAME = "chaos-writer"
ODD_KEYS = ("a{b}c", "{x}", "ключ", "two words", "star*?[x]", "k1:sub", '"quoted"', "back\\slash", "")


def key_pool(count: int) -> list[str]:
    """So many keys, odd ones among them."""
    odd = list(ODD_KEYS[: max(2, count // 8)])
    return odd + [f"k{n}" for n in range(count - len(odd))]


class Writer(threading.Thread):
    """One session. Its choices follow from the seed; what comes of them depends on the others."""

    def __init__(self, dsn: str, number: int, plan: Plan, keys: Sequence[str], per_second: float) -> None:
        super().__init__(name=f"{NAME}-{number}", daemon=True)
        self.dsn = dsn
        self.number = number
        self.plan = plan
        self.chance = random.Random(f"{plan.seed}:writer:{number}")
        self.keys = keys
        self.began = time.monotonic()
        self.truncate_at = math.inf
        self.pause = 1 / per_second
        self.count = itertools.count(1)
        self.committed = 0
        self.failed = 0
        self.error: BaseException | None = None
        self._end = threading.Event()

    def storm_begins(self) -> None:
        """Capture is on. From here on keys drift; and one writer does rarely what it does, but at least once."""
        self.began = time.monotonic()
        if self.number == 0:
            chance = random.Random(f"{self.plan.seed}:truncate")
            self.truncate_at = self.began + chance.uniform(0.1, 0.9) * self.plan.seconds

    def end(self) -> None:
        self._end.set()

    def run(self) -> None:
        try:
            while not self._end.is_set():
                try:
                    with psycopg.connect(
                        self.dsn, autocommit=True, application_name=NAME, prepare_threshold=None, connect_timeout=5
                    ) as conn:
                        conn.execute("SET lock_timeout = '2s'")
                        self._session(conn)
                except psycopg.OperationalError:
                    self.failed += 1
                    self._end.wait(0.05)
        except BaseException as exc:
            self.error = exc

    def _session(self, conn: Connection) -> None:
        while not self._end.is_set():
            try:
                self._transaction(conn)
                self.committed += 1
            except _RolledBack:
                pass
            except psycopg.Error:
                self.failed += 1
                if conn.closed:
                    return
            self._end.wait(self.chance.expovariate(1 / self.pause))

    # Transactions ----------------------------------------------------------------------------------------------------

    def _transaction(self, conn: Connection) -> None:
        chance = self.chance
        if chance.random() < 0.0003 or time.monotonic() > self.truncate_at:
            self._truncate(conn)
            self.truncate_at = math.inf
            return
        level = chance.choices(["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"], [88, 9, 3])[0]
        shape = chance.choices(["single", "several", "rolled back", "savepoint", "long"], [53, 24, 9, 12, 2])[0]
        if shape == "single" and chance.random() < 0.8:
            self._write(conn)
            return
        try:
            with conn.transaction():
                conn.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
                if chance.random() < 0.05:  # as a logical subscriber or a bulk load does
                    conn.execute("SET LOCAL session_replication_role = replica")
                self._write(conn)
                if shape == "savepoint":
                    try:
                        with conn.transaction():
                            self._write(conn)
                            if chance.random() < 0.6:
                                raise _RolledBack
                    except _RolledBack:
                        pass
                    self._write(conn)
                elif shape != "single":
                    for _ in range(chance.randint(1, 4)):
                        time.sleep(chance.choice([0, 0, 0.002, 0.02]))
                        self._write(conn)
                if shape == "long":
                    time.sleep(chance.uniform(0.05, 0.5))
                if shape == "rolled back":
                    raise _RolledBack
        except psycopg.errors.SerializationFailure:
            self.failed += 1

    def _write(self, conn: Connection) -> None:
        writes, weights = zip(*WRITES, strict=True)
        self.chance.choices(writes, weights)[0](self, conn)

    def _truncate(self, conn: Connection) -> None:
        with conn.transaction():
            conn.execute("TRUNCATE therapy_sessions")
            if self.chance.random() < 0.5:
                self.copy_in(conn)
        for _ in range(20):
            self.copy_in(conn)

    # Writes ---------------------------------------------------------------------------------------------------------

    def key(self) -> str:
        if not self.plan.drift:
            return self.chance.choice(self.keys)
        window = max(4, len(self.keys) // 8)
        first = (time.monotonic() - self.began) / self.plan.seconds * (len(self.keys) - window)
        return self.keys[min(int(first) + self.chance.randrange(window), len(self.keys) - 1)]

    def value(self) -> str:
        """A JSON object whose first bytes tell writer and number, as Postgres prints it."""
        chance = self.chance
        size = (
            chance.randint(8_192, 60_000) if chance.random() < self.plan.large else int(chance.paretovariate(0.8) * 20)
        )
        letter = chance.choice("abcdefgh")
        return f'{{"n": "{self.number}.{next(self.count)}", "x": 1.10, "pad": "{letter * min(size, 200_000)}"}}'

    def one_row(self) -> tuple[str, int]:
        return self.key(), self.chance.randint(0, 2)

    def insert(self, conn: Connection) -> None:
        conn.execute(
            "INSERT INTO therapy_sessions (file_hash, analytics_cache, last_accessed_at)"
            " VALUES (%s, %s, clock_timestamp() - %s * interval '1 s')",
            (self.key(), self.value(), self.chance.choice([None, 0, 3600])),
        )

    def update(self, conn: Connection) -> None:
        conn.execute(
            f"UPDATE therapy_sessions SET analytics_cache = %s WHERE id = {ONE_ROW}", (self.value(), *self.one_row())
        )

    def update_all_of_key(self, conn: Connection) -> None:
        conn.execute(
            "UPDATE therapy_sessions SET analytics_cache = %s WHERE file_hash = %s", (self.value(), self.key())
        )

    def hit(self, conn: Connection) -> None:
        conn.execute(
            "UPDATE therapy_sessions SET cache_hits = cache_hits + 1, last_accessed_at = clock_timestamp()"
            " WHERE file_hash = %s",
            (self.key(),),
        )

    def hit_all(self, conn: Connection) -> None:
        conn.execute("UPDATE therapy_sessions SET cache_hits = cache_hits + 1")

    def clear(self, conn: Connection) -> None:
        conn.execute(
            f"UPDATE therapy_sessions SET analytics_cache = %s WHERE id = {ONE_ROW}",
            (self.chance.choice(["{}", "{}", None, "null"]), *self.one_row()),
        )

    def clear_key(self, conn: Connection) -> None:
        conn.execute("UPDATE therapy_sessions SET analytics_cache = '{}' WHERE file_hash = %s", (self.key(),))

    def delete(self, conn: Connection) -> None:
        conn.execute(f"DELETE FROM therapy_sessions WHERE id = {ONE_ROW}", self.one_row())

    def delete_key(self, conn: Connection) -> None:
        conn.execute("DELETE FROM therapy_sessions WHERE file_hash = %s OR file_hash IS NULL", (self.key(),))

    def change_key(self, conn: Connection) -> None:
        other = self.key() if self.chance.random() < 0.9 else None
        conn.execute(f"UPDATE therapy_sessions SET file_hash = %s WHERE id = {ONE_ROW}", (other, *self.one_row()))

    def change_winner(self, conn: Connection) -> None:
        conn.execute(
            "UPDATE therapy_sessions SET created_at = clock_timestamp() - random() * interval '1 minute'"
            f" WHERE id = {ONE_ROW}",
            self.one_row(),
        )

    def bulk_update(self, conn: Connection) -> None:
        conn.execute(
            "UPDATE therapy_sessions SET analytics_cache = jsonb_build_object('n', %s || '.' || id, 'pad', 'bulk')"
            " WHERE id %% 5 = %s AND analytics_cache IS NOT NULL",
            (f"{self.number}.{next(self.count)}", self.chance.randint(0, 4)),
        )

    def copy_in(self, conn: Connection) -> None:
        with (
            conn.cursor() as cursor,
            cursor.copy("COPY therapy_sessions (file_hash, analytics_cache) FROM STDIN") as copy,
        ):
            for _ in range(self.chance.randint(2, 30)):
                copy.write_row((self.key(), self.value()))


ONE_ROW = "(SELECT id FROM therapy_sessions WHERE file_hash = %s ORDER BY id DESC OFFSET %s LIMIT 1)"
WRITES: tuple[tuple[Callable[[Writer, Connection], None], float], ...] = (
    (Writer.insert, 26),
    (Writer.update, 30),
    (Writer.update_all_of_key, 6),
    (Writer.hit, 10),
    (Writer.hit_all, 0.3),
    (Writer.clear, 7),
    (Writer.clear_key, 3),
    (Writer.delete, 9),
    (Writer.delete_key, 2),
    (Writer.change_key, 6),
    (Writer.change_winner, 5),
    (Writer.bulk_update, 0.3),
    (Writer.copy_in, 1.5),
)


class _RolledBack(Exception):
    """Takes back what the block has written."""

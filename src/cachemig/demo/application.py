"""A simulated application that keeps writing `therapy_sessions` while it is migrated.

Any number may run at once, with different seeds. None ever touches a row whose cache is not an object, nor writes one,
so the corrupt rows stay as they were planted.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from threading import Event, Thread
from typing import LiteralString, NamedTuple, Protocol, Self

import psycopg
from psycopg import errors as pg
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from cachemig.demo.payloads import game_metadata, session_analytics

RECONNECT_FOR_S = 30.0
"""How long a server may be away before the application gives up."""
_PATIENCE_S = 0.2  # what a statement in flight is left when a stop is asked for
_SAMPLES = 100_000  # latencies kept

Connection = psycopg.Connection[tuple[object, ...]]


class StopSignal(Protocol):
    """What threading.Event and multiprocessing.Event have in common."""

    def is_set(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...


@dataclass(frozen=True)
class Counts:
    """What one application did. Each change counts once, when it is committed and met a row."""

    inserted: int = 0  # a new session with analytics
    inserted_empty: int = 0  # a new session with {}
    filled: int = 0  # the analytics of such a session, later
    updated: int = 0
    touched: int = 0  # cache_hits and last_accessed_at only
    cleared: int = 0  # set to {}
    nulled: int = 0
    deleted: int = 0
    rehashed: int = 0  # another file_hash

    batches: int = 0  # transactions of several changes
    savepoints_undone: int = 0  # within a batch that was committed
    rolled_back: int = 0  # transactions given up at their end, with all changes
    missed: int = 0  # changes whose row had gone meanwhile
    failed: int = 0  # transactions ended by an error; after a lost connection nobody knows how
    reconnected: int = 0
    last_error: str | None = None
    update_p50_ms: float | None = None  # BEGIN to COMMIT of one update of analytics_cache; None if there was none
    update_p99_ms: float | None = None

    @property
    def changes(self) -> int:
        """All committed changes of rows."""
        return sum(getattr(self, kind) for kind, _ in _CHANGES)


class _Change(NamedTuple):
    kind: str
    id: uuid.UUID
    statement: LiteralString
    parameters: dict[str, object]


class _Row(NamedTuple):
    id: uuid.UUID
    file_hash: str | None


# What is done, and how often; a batch or a rolled-back transaction takes two to four of the changes.
_CHANGES = (
    ("inserted", 10),
    ("inserted_empty", 8),
    ("filled", 8),
    ("updated", 30),
    ("touched", 20),
    ("cleared", 5),
    ("nulled", 2),
    ("deleted", 6),
    ("rehashed", 4),
)
_TRANSACTIONS = (*_CHANGES, ("batches", 4), ("rolled_back", 3))

# One step along the primary key; jsonb_typeof looks at the rows it passes, no more.
_PICK: LiteralString = """
SELECT id, file_hash FROM public.therapy_sessions
WHERE id >= %(id)s AND file_path NOT LIKE 'session-%%' -- those of uploads.py
  AND (analytics_cache IS NULL OR jsonb_typeof(analytics_cache) = 'object')
ORDER BY id LIMIT 1
"""
_INSERT: LiteralString = """
INSERT INTO public.therapy_sessions
    (id, patient_code, file_path, file_hash, file_size_bytes, status, game_metadata, analytics_cache, last_accessed_at)
VALUES (%(id)s, %(patient_code)s, %(file_path)s, %(file_hash)s, %(file_size_bytes)s, %(status)s, %(game_metadata)s,
        %(analytics_cache)s, now())
"""
_UPDATE: LiteralString = """
UPDATE public.therapy_sessions
SET analytics_cache = %(analytics_cache)s, status = 'completed', last_accessed_at = now() WHERE id = %(id)s
"""
_TOUCH: LiteralString = """
UPDATE public.therapy_sessions SET cache_hits = cache_hits + 1, last_accessed_at = now() WHERE id = %(id)s
"""
_CLEAR: LiteralString = "UPDATE public.therapy_sessions SET analytics_cache = '{}', cache_hits = 0 WHERE id = %(id)s"
_NULL: LiteralString = "UPDATE public.therapy_sessions SET analytics_cache = NULL WHERE id = %(id)s"
_DELETE: LiteralString = "DELETE FROM public.therapy_sessions WHERE id = %(id)s"
_REHASH: LiteralString = "UPDATE public.therapy_sessions SET file_hash = %(file_hash)s WHERE id = %(id)s"
_STATEMENTS: dict[str, LiteralString] = {
    "inserted": _INSERT,
    "inserted_empty": _INSERT,
    "filled": _UPDATE,
    "updated": _UPDATE,
    "touched": _TOUCH,
    "cleared": _CLEAR,
    "nulled": _NULL,
    "deleted": _DELETE,
    "rehashed": _REHASH,
}


def run_application(dsn: str, stop: StopSignal, *, seed: int, rate_per_s: float = 40) -> Counts:
    """Ends within half a second of `stop` being set, even while it waits for a lock; what was in flight is rolled back.

    Makes `rate_per_s` transactions a second. An error of the database ends its transaction and is counted; a closed
    connection is opened again. Raises psycopg.OperationalError if the first connection fails, or if the server stays
    away for RECONNECT_FOR_S later.
    """
    return _Session(dsn, stop, seed, rate_per_s).run()


class Application:
    """`run_application` in a thread; as a context manager it is stopped at the end of the block."""

    def __init__(self, dsn: str, *, seed: int, rate_per_s: float = 40) -> None:
        self._stop = Event()
        self._session = _Session(dsn, self._stop, seed, rate_per_s)
        self._thread = Thread(target=self._run, name=f"demo-application-{seed}", daemon=True)
        self._outcome: Counts | Exception = Counts()

    def start(self) -> Self:
        """Returns at once. Raises RuntimeError at a second start."""
        self._thread.start()
        return self

    def stop(self) -> Counts:
        """Ends it within half a second and says what it did; again the same when called again.

        Raises what ended it before its time. Never started, it did nothing.
        """
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            self._outcome = self._session.run()
        except Exception as exc:  # noqa: BLE001 # handed to whoever stops it
            self._outcome = exc


class _Session:
    """One application's state: its connection, its tally, the sessions that wait to be filled."""

    def __init__(self, dsn: str, stop: StopSignal, seed: int, rate_per_s: float) -> None:
        self._dsn = dsn
        self._stop = stop
        self._rng = Random(f"application {seed}")
        self._rate_per_s = rate_per_s
        self._conn: Connection | None = None
        self._tally: Counter[str] = Counter()
        self._last_error: str | None = None
        self._unfilled: deque[uuid.UUID] = deque(maxlen=1000)
        self._latencies_ms: deque[float] = deque(maxlen=_SAMPLES)

    def run(self) -> Counts:
        ended = Event()
        Thread(target=self._cancel_at_stop, args=(ended,), daemon=True).start()
        try:
            self._write_until_stopped()
        finally:
            ended.set()
            self._close()
        return self._counts()

    def _write_until_stopped(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            # Arrivals at random; what a stall has held up does not come all at once afterwards.
            due = max(due, time.monotonic() - 0.25) + self._rng.expovariate(self._rate_per_s)
            conn = self._connected()
            if conn is None:
                return
            try:
                self._transact(conn)
            except psycopg.Error as exc:
                if not (self._stop.is_set() and isinstance(exc, pg.QueryCanceled)):
                    self._tally["failed"] += 1
                    self._last_error = str(exc).strip()

    def _connected(self) -> Connection | None:
        """The connection, opened again if it was closed; None if a stop came first."""
        if self._conn is None:
            self._conn = self._connect()
        elif self._conn.closed:
            retrying = Retrying(
                retry=retry_if_exception_type(psycopg.OperationalError),
                wait=wait_random_exponential(multiplier=0.05, max=1.0),
                stop=self._given_up,
                sleep=self._sleep,
                reraise=True,
            )
            self._conn.close()
            try:
                self._conn = retrying(self._connect)
            except psycopg.OperationalError:
                if self._stop.is_set():
                    return None
                raise
            self._tally["reconnected"] += 1
        return self._conn

    def _given_up(self, state: RetryCallState) -> bool:
        return self._stop.is_set() or (state.seconds_since_start or 0.0) > RECONNECT_FOR_S

    def _connect(self) -> Connection:
        return psycopg.connect(
            self._dsn, autocommit=True, application_name="demo application", connect_timeout=2, prepare_threshold=None
        )

    def _sleep(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def _close(self) -> None:
        if self._conn is not None:
            self._conn.close()

    def _cancel_at_stop(self, ended: Event) -> None:
        """A statement that waits for a lock must not hold up the stop."""
        while not ended.wait(0.05):
            if self._stop.is_set():
                while not ended.wait(_PATIENCE_S):
                    conn = self._conn
                    if conn is not None:
                        with suppress(psycopg.Error):
                            conn.cancel_safe(timeout=0.2)
                return

    def _transact(self, conn: Connection) -> None:
        kind = self._choose(_TRANSACTIONS)
        if kind in ("batches", "rolled_back"):
            self._several(conn, kind)
            return
        change = self._change(conn, kind)
        if change is None:
            return
        began = time.perf_counter()
        with conn.transaction():
            met = _apply(conn, change)
        if change.kind == "updated":
            self._latencies_ms.append((time.perf_counter() - began) * 1000)
        self._committed(change, met)

    def _several(self, conn: Connection, kind: str) -> None:
        changes = [self._change(conn, self._choose(_CHANGES)) for _ in range(self._rng.randrange(2, 5))]
        # By id, lest two applications lock each other out.
        ordered = sorted((change for change in changes if change), key=lambda change: change.id)
        undone = ordered[-1] if ordered and self._rng.random() < 0.3 else None
        done: list[tuple[_Change, bool]] = []
        with conn.transaction() as transaction:
            for change in ordered:
                with conn.transaction() as savepoint:
                    met = _apply(conn, change)
                    if change is undone:
                        raise psycopg.Rollback(savepoint)
                    done.append((change, met))
            if kind == "rolled_back":
                raise psycopg.Rollback(transaction)
        self._tally[kind] += 1
        if kind == "batches":
            self._tally["savepoints_undone"] += undone is not None
            for change, met in done:
                self._committed(change, met)

    def _committed(self, change: _Change, met: bool) -> None:
        self._tally[change.kind if met else "missed"] += 1
        if met and change.kind == "inserted_empty":
            self._unfilled.append(change.id)

    def _choose(self, mix: tuple[tuple[str, int], ...]) -> str:
        (kind,) = self._rng.choices([kind for kind, _ in mix], [weight for _, weight in mix])
        return kind

    def _change(self, conn: Connection, kind: str) -> _Change | None:
        """A change of this kind, its row already picked; None if there is no row to change."""
        if kind in ("inserted", "inserted_empty"):
            return self._insertion(conn, kind)
        if kind == "filled" and self._unfilled:
            return self._on(self._unfilled.popleft(), "filled")
        row = self._pick(conn)
        if row is None:
            return None
        return self._on(row.id, "updated" if kind == "filled" else kind)

    def _on(self, row_id: uuid.UUID, kind: str) -> _Change:
        parameters: dict[str, object] = {"id": row_id}
        if kind in ("filled", "updated"):
            parameters["analytics_cache"] = session_analytics(self._rng)
        elif kind == "rehashed":
            parameters["file_hash"] = self._new_hash()
        return _Change(kind, row_id, _STATEMENTS[kind], parameters)

    def _insertion(self, conn: Connection, kind: str) -> _Change:
        rng = self._rng
        again = self._pick(conn) if rng.random() < 0.15 else None  # the recording of another session
        patient_code = f"P{rng.randrange(1, 80):03}"
        parameters: dict[str, object] = {
            "id": uuid.uuid4(),  # not of the seed: a second run with it would collide
            "patient_code": patient_code,
            "file_path": f"{patient_code}/Ghostly_Emg_{rng.randrange(10**8):08}.c3d",
            "file_hash": again.file_hash if again else self._new_hash(),
            "file_size_bytes": rng.randrange(200_000, 3_000_000),
            "status": "completed" if kind == "inserted" else "processing",
            "game_metadata": game_metadata(rng, patient_code),
            "analytics_cache": session_analytics(rng) if kind == "inserted" else "{}",
        }
        return _Change(kind, uuid.UUID(str(parameters["id"])), _STATEMENTS[kind], parameters)

    def _new_hash(self) -> str:
        return self._rng.randbytes(32).hex()

    def _pick(self, conn: Connection) -> _Row | None:
        for start in (uuid.UUID(int=self._rng.getrandbits(128)), uuid.UUID(int=0)):  # from the beginning, past the end
            row = conn.execute(_PICK, {"id": start}).fetchone()
            if row is not None:
                row_id, file_hash = row
                assert isinstance(row_id, uuid.UUID)
                return _Row(row_id, None if file_hash is None else str(file_hash))
        return None

    def _counts(self) -> Counts:
        ordered = sorted(self._latencies_ms)

        def at(part: float) -> float | None:
            return ordered[int(part * (len(ordered) - 1))] if ordered else None

        return Counts(**self._tally, last_error=self._last_error, update_p50_ms=at(0.5), update_p99_ms=at(0.99))


def _apply(conn: Connection, change: _Change) -> bool:
    """Whether it met a row."""
    return conn.execute(change.statement, change.parameters).rowcount > 0

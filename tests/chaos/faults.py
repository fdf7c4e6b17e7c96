"""Makes the faults of a plan happen, each at its time and in a thread of its own, so that they also fall together."""

from __future__ import annotations

import math
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable

import psycopg

from tests.chaos.plan import Fault, Plan
from tests.chaos.sampler import Sampler
from tests.chaos.stand import Stand
from tests.chaos.tool import Ended, Tool
from tests.chaos.workers import Workers
from tests.chaos.writers import NAME


class Conductor:
    def __init__(self, plan: Plan, stand: Stand, workers: Workers, tool: Tool, sampler: Sampler, began: float) -> None:
        self.plan = plan
        self.stand = stand
        self.workers = workers
        self.tool = tool
        self.sampler = sampler
        self.began = began
        self.log: list[str] = []
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []
        self._capture = threading.Lock()
        """Held while capture is off, and by a failover, which could take back that it was switched on."""
        self._happen: dict[str, Callable[[Fault, random.Random], bool]] = {
            "kill-worker": lambda _, chance: workers.kill(chance),
            "stop-worker": lambda fault, chance: workers.stop(chance, fault.span),
            "cut-tool": lambda _, chance: stand.cut_sessions("cachemig", chance.randint(1, 2)) > 0,
            "cut-writer": lambda _, chance: stand.cut_sessions(NAME, chance.randint(1, 2)) > 0,
            "postgres-crash": lambda fault, _: _done(lambda: stand.crash_postgres(fault.span / 3)),
            "postgres-failover": self._postgres_failover,
            "redis-crash": lambda fault, _: _done(lambda: stand.crash_redis(fault.span / 3)),
            "redis-full": lambda fault, _: _done(lambda: stand.fill_redis(fault.span)),
            "cut-replies": lambda _, __: _done(lambda: stand.proxy.cut("from")),
            "cut-requests": lambda _, __: _done(lambda: stand.proxy.cut("to")),
            "slow-network": self._slow_network,
            "capture-gap": self._capture_gap,
            "old-truncate": self._old_truncate,
            "evict": lambda _, chance: bool(stand.evict(chance)),
            "redis-flush": lambda _, __: _done(stand.flush_redis),
            "redis-wipe": lambda fault, _: _done(lambda: stand.wipe_redis(fault.span / 3)),
            "promote": lambda fault, _: stand.promote_replica(fault.span),
        }

    def run(self) -> None:
        """Returns when the time of the plan is over and every fault has come and gone."""
        start = time.monotonic()
        for fault in self.plan.faults:
            self._end.wait(max(0.0, start + fault.at - time.monotonic()))
            thread = threading.Thread(target=self._one, args=(fault,), daemon=True)
            self._threads.append(thread)
            thread.start()
        self._end.wait(max(0.0, start + self.plan.seconds - time.monotonic()))
        self._join()

    def end(self) -> None:
        """No more faults: returns when none can start a server any more."""
        self._end.set()
        self._join()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(150)
            if thread.is_alive():
                self.errors.append("a fault does not end")
        self._threads.clear()

    def _one(self, fault: Fault) -> None:
        began = time.time() - self.began
        try:
            happened = self._happen[fault.kind](fault, random.Random(fault.seed))
        except psycopg.OperationalError:  # Postgres is away at the moment
            happened = False
        except BaseException as exc:
            self.errors.append(f"{fault.kind} at {fault.at}: {''.join(traceback.format_exception(exc))}")
            return
        if happened:
            self.counts[fault.kind] += 1
            self.log.append(f"{began:8.3f} s to {time.time() - self.began:.3f} s  {fault.kind}")

    def _slow_network(self, fault: Fault, _: random.Random) -> bool:
        self.stand.proxy.slow_until = time.monotonic() + fault.span
        return True

    def _old_truncate(self, fault: Fault, _: random.Random) -> bool:
        with psycopg.connect(self.stand.dsn, autocommit=True, application_name=NAME) as conn, conn.transaction():
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SET LOCAL lock_timeout = '5s'")
            conn.execute("SELECT txid_current_snapshot()")
            self._end.wait(fault.span * 2)
            conn.execute("TRUNCATE therapy_sessions")
        return True

    def _postgres_failover(self, fault: Fault, _: random.Random) -> bool:
        with self._capture:
            lost = self.stand.fail_over_postgres(fault.span)
        if lost is None:
            return False
        self.log.append(f"{time.time() - self.began:8.3f} s  Postgres failed over, {lost} writes are lost")
        return True

    def _capture_gap(self, fault: Fault, _: random.Random) -> bool:
        with self._capture:
            self.sampler.watch_values_from(math.inf)
            off = self.tool.until_fine("dual-write", "--disable")
            self.log.append(
                f"{time.time() - self.began:8.3f} s  capture is off (exit {off.code}), epoch {self.epoch()}"
            )
            self._end.wait(fault.span / 2)
            on = self.tool.until_fine("dual-write")
            self.log.append(f"{time.time() - self.began:8.3f} s  capture is on (exit {on.code})")
            self.sampler.watch_values_from(self.epoch())
            self._expect_fine(on)
        return off.code == 0

    def _expect_fine(self, ended: Ended) -> None:
        if ended.code != 0:
            self.errors.append(str(ended))

    def epoch(self) -> int:
        for _ in range(100):
            try:
                with psycopg.connect(self.stand.dsn, autocommit=True) as conn:
                    row = conn.execute("SELECT epoch FROM cachemig.migration").fetchone()
                    assert row is not None
                    return int(row[0])
            except psycopg.OperationalError:
                time.sleep(0.1)
        raise AssertionError("Postgres does not come back")


def _done(action: Callable[[], None]) -> bool:
    action()
    return True

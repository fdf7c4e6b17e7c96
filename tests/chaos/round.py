"""One seed from its beginning to its verdict."""

from __future__ import annotations

import json
import random
import time
import traceback
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field

import psycopg
from redis import Redis

from tests.chaos import oracle, table
from tests.chaos.faults import Conductor
from tests.chaos.plan import Plan
from tests.chaos.sampler import Sampler
from tests.chaos.stand import Directories, Stand
from tests.chaos.tool import PREFIX, Ended, Tool
from tests.chaos.workers import Workers
from tests.chaos.writers import Writer, key_pool

ROWS = 400
PER_SECOND = 150.0
"""Transactions of each writer."""


@dataclass(frozen=True)
class Violation:
    what: str
    key: str | None = None


@dataclass
class Result:
    plan: Plan
    committed: int = 0
    keys: int = 0
    without: int = 0
    """Keys compared that no row holds a value for."""
    epochs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)
    looks: int = 0
    lost_writes: int = 0
    """Writes that Postgres had acknowledged, and lost by a failover."""
    lost_by_redis: int = 0
    """Keys that were wrong because Redis had lost them, and that `verify` named."""
    evicted_by_hand: int = 0
    """Keys taken away at the very end, and that `verify` named before it repaired them."""
    violations: list[Violation] = field(default_factory=list)
    story: str = ""
    """For a failing seed: the fault log, and the history of the keys concerned."""
    seconds: float = 0.0


class Round:
    def __init__(self, plan: Plan, directories: Directories) -> None:
        self.plan = plan
        self.directories = directories
        self.result = Result(plan)
        self.chance = random.Random(f"{plan.seed}:round")

    def run(self) -> Result:
        """Leaves no process and no file behind, however it ends."""
        began, plan = time.monotonic(), self.plan
        with ExitStack() as stack:
            self.began = time.time()
            directories = stack.enter_context(self.directories.of_one_round())
            self.stand = stack.enter_context(
                Stand(directories, plan.seed, replica=plan.needs_replica, standby=plan.needs_standby)
            )
            keys = key_pool(plan.keys)
            table.create(self.stand.dsn, keys, ROWS)
            self.writers = [Writer(self.stand.dsn, n, plan, keys, PER_SECOND) for n in range(plan.writers)]
            self.tool = Tool(directories.fresh("tool"), self.stand.dsn, self.stand.redis_url, plan.settings)
            self.sampler = Sampler(self.stand, self.began)
            self.workers = Workers(self.tool, plan.seed, plan.failpoints, plan.sync_workers, plan.backfill_workers)
            self.conductor = Conductor(plan, self.stand, self.workers, self.tool, self.sampler, self.began)
            stack.callback(self._end_all)
            try:
                self._storm()
                self._settle()
                self._judge()
            except Exception:
                self._violated(f"the harness: {traceback.format_exc()}")
            self._take_down()
        self.result.seconds = time.monotonic() - began
        return self.result

    def _end_all(self) -> None:
        """Whatever is still going on, after an error or an interrupt; the servers come last."""
        self.tool.close()
        for writer in self.writers:
            writer.end()
        self.workers.end(gently=False)
        self.conductor.end()
        self.sampler.end()
        for writer in self.writers:
            if writer.ident is not None:
                writer.join(10)

    def _storm(self) -> None:
        """Everything at once."""
        writers = self.writers
        for writer in writers:
            writer.start()
        self._fine("init")
        self._fine("dual-write")
        for writer in writers:
            writer.storm_begins()
        self.workers.start()
        self.sampler.start()
        self.conductor.run()
        for writer in writers:
            writer.end()
        for writer in writers:
            writer.join(60)
            if writer.is_alive():
                self._violated(f"{writer.name} hangs")
            if writer.error is not None:
                self._violated(f"the harness: {writer.name}: {writer.error!r}")
            self.result.committed += writer.committed

    def _settle(self) -> None:
        """No more faults; the workers end, and commands drain what is left, while late writes may still arrive."""
        self.workers.end(gently=self.chance.random() < 0.5)
        self.stand.drain_redis()
        self.stand.wait_until_nobody_of("cachemig")
        for command in (("sync", "--once"), ("backfill",), ("sync", "--once")):
            self._fine(*command)
        end = time.monotonic() + 20
        while self.stand.proxy.holds and time.monotonic() < end:
            time.sleep(0.02)
        self.sampler.end()

    def _judge(self) -> None:
        """Without a loss in Redis everything is right; after one, `verify` names every key, and what it marks heals."""
        with self.stand.client() as redis:
            judgement = oracle.judge(self.stand.dsn, redis)
            self.result.keys, self.result.without = judgement.keys, judgement.without
            self._expect_folded(judgement)
            lossless = self.stand.losses == 0
            if lossless:
                self._expect_right(judgement)
            named = self._named_by_verify()
            if named is not None and named != set(judgement.wrong):
                for key in sorted(named ^ set(judgement.wrong)):
                    seen = f"the oracle says {judgement.wrong[key]}" if key in judgement.wrong else "verify names it"
                    other = "verify does not" if key in judgement.wrong else "the oracle finds nothing wrong"
                    self._violated(f"verify and the oracle differ: {seen}, {other}: {self._why.get(key, '')}", key)
            if not lossless and named:
                self.result.lost_by_redis = len(named)
                self._fine("sync", "--once")
                judgement = oracle.judge(self.stand.dsn, redis)
                self._expect_folded(judgement)
                self._expect_right(judgement)
                self._fine("verify")
            if self.plan.lossy and not self.result.violations:
                self._evict_by_hand(redis)
        if self.sampler.error is not None:
            self._violated(f"the harness: the sampler: {self.sampler.error!r}")
        truncated = self._truncated()
        # A failover loses the record of a TRUNCATE as well.
        any_emptied = self.stand.losses or self.stand.failovers
        for wrong in self.sampler.wrong:
            if wrong.emptied and (any_emptied or any(-0.5 < wrong.at - at < 5 for at in truncated)):
                continue
            self._violated(wrong.what, wrong.key)

    def _evict_by_hand(self, redis: Redis) -> None:
        """Everything is right now. What is taken away then, `verify` names: all of it, and nothing else."""
        evicted = {name.decode().removeprefix(PREFIX) for name in self.stand.evict(self.chance)}
        ended = self.tool("verify", "--json")
        named = {case["key"] for case in ended.document["cases"]} if ended.code in (0, 3) else set()
        if named != evicted or ended.code != (3 if evicted else 0):
            self._violated(f"evicted by hand: {sorted(evicted)}; verify names {sorted(named)}: {ended}")
        self.result.evicted_by_hand = len(evicted)
        repaired = self._named_by_verify()
        if repaired is not None and repaired != evicted:
            self._violated(f"evicted by hand: {sorted(evicted)}; verify --repair marks {sorted(repaired)}")
        self._fine("sync", "--once")
        judgement = oracle.judge(self.stand.dsn, redis)
        self._expect_folded(judgement)
        self._expect_right(judgement)

    def _truncated(self) -> list[float]:
        with psycopg.connect(self.stand.dsn, autocommit=True) as conn:
            return [float(at) for (at,) in conn.execute(table.TRUNCATED).fetchall()]

    def _named_by_verify(self) -> set[str] | None:
        """The keys that `verify --repair` finds wrong; it has marked them. None where it could not be told."""
        self._why: dict[str, str] = {}
        ended = self.tool("verify", "--repair", "--json")
        if ended.code not in (0, 3) or not ended.out:
            self._violated(str(ended))
            return None
        document = ended.document
        if "error" in document:
            self._violated(f"verify refuses after sync, backfill, sync: {document}")
            return None
        self._why = {case["key"]: f"{case['verdict']}, {case['why']}" for case in document["cases"]}
        with psycopg.connect(self.stand.dsn, autocommit=True) as conn:
            named = {str(key) for (key,) in conn.execute("SELECT key FROM cachemig.change").fetchall()}
        named |= {case["key"] for case in document["cases"] if case["verdict"] == "orphan"}
        if document["passed"] != (not named) or (ended.code == 3) != bool(named):
            self._violated(f"verify ended with {ended.code}, marked {sorted(named)}: {json.dumps(document['counts'])}")
        return named

    def _expect_right(self, judgement: oracle.Judgement) -> None:
        for key, what in judgement.wrong.items():
            self._violated(what, key)

    def _expect_folded(self, judgement: oracle.Judgement) -> None:
        if judgement.unfolded:
            self._violated(f"{judgement.unfolded} changes are left unfolded")

    def _take_down(self) -> None:
        result = self.result
        result.epochs = self.conductor.epoch()
        result.faults = self.conductor.counts
        result.points, result.deaths = self.workers.points, self.workers.deaths
        result.looks = self.sampler.looks
        result.lost_writes = self.stand.lost_writes
        for error in self.conductor.errors:
            self._violated(f"the harness: {error}")
        for strange in self.workers.strange:
            self._violated(strange)
        if result.violations:
            result.story = self._story()

    def _story(self) -> str:
        plan = self.plan
        lines = [
            f"failpoints {plan.failpoints or 'none'}; {plan.settings}; {plan.keys} keys, {plan.writers} writers",
            *sorted(self.conductor.log, key=lambda line: float(line.split()[0])),
        ]
        concerned = list(dict.fromkeys(v.key for v in self.result.violations if v.key is not None))
        with psycopg.connect(self.stand.dsn, autocommit=True) as conn:
            for key in concerned[:4]:
                lines += [f"--- {key!r}: committed writes", *table.history(conn, key, self.began)]
                lines += [f"--- {key!r}: seen in Redis as {PREFIX}{key}", *self.sampler.seen[key]]
                for relation in ("version", "entry"):
                    query = f"SELECT to_jsonb(t) - 'key_id' - 'sha256' FROM cachemig.{relation} AS t WHERE key = %s"
                    lines += [f"{relation} {row[0]}" for row in conn.execute(query, (key,)).fetchall()]
        return "\n".join(lines)

    def _fine(self, *arguments: str) -> Ended:
        ended = self.tool.until_fine(*arguments, tries=1)
        if ended.code != 0:
            self._violated(str(ended))
        return ended

    def _violated(self, what: str, key: str | None = None) -> None:
        self.result.violations.append(Violation(what, key))

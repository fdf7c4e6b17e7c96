"""scripts/chaos: seeds one after another, for some minutes; a table, and one line of JSON."""

from __future__ import annotations

import argparse
import json
import logging
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence

from tests.chaos.plan import KINDS, Plan, plan
from tests.chaos.round import Result, Round
from tests.chaos.stand import Directories

SECONDS = 10.0
_COLUMNS = {
    "seed": 10,
    "s": 4,
    "committed": 10,
    "keys": 5,
    "epochs": 7,
    "deaths": 7,
    "looks": 6,
    "healed": 7,
    "WRONG": 6,
}
_HEAD = "".join(name.rjust(width) for name, width in _COLUMNS.items()) + "  faults"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description="Nothing lost and nothing stale, under faults, on real servers. Exit 1 on any violation.",
        epilog="faults: " + "; ".join(f"{name}: {kind.text}" for name, kind in KINDS.items()),
    )
    parser.add_argument("--minutes", type=float, help="go on with new seeds for so long; without --seed 5")
    parser.add_argument("--seed", type=int, help="begin with this seed; without --minutes do this one alone")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="length of one storm [%(default)s]")
    parser.add_argument(
        "--without", action="append", default=[], choices=[*KINDS, "failpoints"], help="leave a kind of fault out"
    )
    parser.add_argument(
        "--only", action="append", default=[], choices=[*KINDS, "failpoints"], help="leave all others out"
    )
    parser.add_argument("--stop", action="store_true", help="stop at the first violation")
    options = parser.parse_args(given)
    if options.only:
        options.without += [name for name in (*KINDS, "failpoints") if name not in options.only]
    return options


def replay(of: Plan, without: Sequence[str]) -> str:
    left_out = "".join(f" --without {name}" for name in without)
    return f"scripts/chaos --seed {of.seed} --seconds {of.seconds:g}{left_out}"


def row(result: Result) -> str:
    faults = ", ".join(f"{n} {name}" for name, n in sorted((result.faults + result.points).items()))
    figures = (
        result.plan.seed,
        round(result.seconds),
        result.committed,
        result.keys,
        result.epochs,
        sum(result.deaths.values()),
        result.looks,
        result.lost_by_redis,
        len(result.violations),
    )
    return "".join(str(n).rjust(w) for n, w in zip(figures, _COLUMNS.values(), strict=True)) + f"  {faults}"


def failure(result: Result, without: Sequence[str]) -> str:
    """What to read when a seed fails."""
    shown = [f"  {'' if v.key is None else f'{v.key!r} '}{v.what}" for v in result.violations[:30]]
    head, end = f"seed {result.plan.seed}: {len(result.violations)} violations", replay(result.plan, without)
    return "\n".join([head, *shown, result.story, f"replay: {end}"])


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    minutes = options.minutes if options.minutes is not None else (0.0 if options.seed is not None else 5.0)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1, 10**8)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # of sessions that were cut, which is meant
    directories = Directories()
    results: list[Result] = []
    interrupted = False
    began = time.monotonic()
    print(_HEAD, flush=True)
    try:
        while True:
            result = Round(plan(seed, options.seconds, options.without), directories).run()
            results.append(result)
            print(row(result), flush=True)
            if result.violations:
                print(failure(result, options.without), flush=True)
            if time.monotonic() - began > minutes * 60 or (options.stop and result.violations):
                break
            seed += 1
    except KeyboardInterrupt:
        interrupted = True
    finally:
        directories.close()
    seconds = time.monotonic() - began
    print(json.dumps(totals(results, seconds)))
    print(summary(results, seconds))
    if any(result.violations for result in results):
        return 1
    return 130 if interrupted else 0


def _interrupt(number: int, frame: object) -> None:
    """Ctrl-C: the round is taken down, which takes a few seconds and is not to be interrupted again."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    print("interrupted: ending workers and servers", file=sys.stderr, flush=True)
    raise KeyboardInterrupt


def summary(results: Sequence[Result], seconds: float) -> str:
    """The figures in words, for docs/reliability.md."""
    faults, points, deaths = _counted(results)
    seeds = [result.plan.seed for result in results]
    failed = [str(result.plan.seed) for result in results if result.violations]
    lines = [
        f"seeds {min(seeds)} to {max(seeds)}, {seconds:,.0f} s" if seeds else f"no seed, {seconds:,.0f} s",
        f"{sum(r.committed for r in results):,} transactions committed;"
        f" Postgres failovers lost {sum(r.lost_writes for r in results):,} writes",
        f"{sum(r.keys for r in results):,} keys with a row and {sum(r.without for r in results):,} without compared at"
        f" the end; {sum(r.looks for r in results):,} looks at versions meanwhile",
        f"{sum(r.lost_by_redis for r in results):,} keys lost by Redis and"
        f" {sum(r.evicted_by_hand for r in results):,} evicted by hand, each named by verify and healed",
        f"{faults.total():,} faults: {_listed(faults)}",
        f"{points.total():,} failpoints: {_listed(points)}",
        f"{deaths.total():,} deaths of workers: {_listed(deaths)}",
        f"{sum(len(r.violations) for r in results):,} violations{', seeds ' if failed else ''}{', '.join(failed)}",
    ]
    return "\n".join(lines)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items())) or "none"


def totals(results: Sequence[Result], seconds: float) -> dict[str, object]:
    faults, points, deaths = _counted(results)
    return {
        "seconds": round(seconds),
        "seeds": len(results),
        "failed_seeds": [r.plan.seed for r in results if r.violations],
        "violations": sum(len(r.violations) for r in results),
        "committed": sum(r.committed for r in results),
        "keys_compared": sum(r.keys for r in results),
        "keys_without_a_row_compared": sum(r.without for r in results),
        "lost_by_redis_and_named_by_verify": sum(r.lost_by_redis for r in results),
        "evicted_by_hand_and_named_by_verify": sum(r.evicted_by_hand for r in results),
        "lost_writes": sum(r.lost_writes for r in results),
        "looks": sum(r.looks for r in results),
        "faults": dict(sorted(faults.items())),
        "failpoints": dict(sorted(points.items())),
        "deaths": dict(sorted(deaths.items())),
    }


def _counted(results: Sequence[Result]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Faults, failpoints that acted, deaths of workers."""
    faults: Counter[str] = sum((r.faults for r in results), Counter())
    points: Counter[str] = sum((r.points for r in results), Counter())
    deaths: Counter[str] = sum((r.deaths for r in results), Counter())
    return faults, points, deaths


if __name__ == "__main__":
    sys.exit(main())

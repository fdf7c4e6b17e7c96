"""cutover: moves reads to Redis, a part of the keys at a time, and back.

A step is one statement in Postgres; applications learn of it within their poll interval. Up it goes only through the
gates; down always, without asking Redis or anybody. The lease is held while the gates are looked at and the step is
taken, not while clients are waited for, so that another operator can go back at any moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from cachemig import ladder
from cachemig.config import Settings, duration
from cachemig.errors import ConfigError, Interrupted, LeaseHeld, Refused
from cachemig.ladder import Phase
from cachemig.progress import Progress
from cachemig.source import control, queries
from cachemig.source.connect import Connection, connect, transaction
from cachemig.source.standing import backlog
from cachemig.steps import clients, dry_run, gates
from cachemig.steps.clients import Report, stage
from cachemig.steps.copy_back import CopiedBack
from cachemig.steps.gates import Measured
from cachemig.steps.retry import Reconnecting, attempts, reason
from cachemig.stop import Stop
from cachemig.targets.redis import RedisTarget

Stage = tuple[Phase, float]
LOOK_S = 1.0
"""How often a ramp looks at what clients report."""
FEWEST = 5
"""Errors or fallbacks below which no share of them breaks a limit: one in three reads says nothing."""
FEWEST_CALLS = 50
"""Calls on either path below which their latencies are not compared."""


@dataclass(frozen=True)
class Moved:
    """The step that was taken."""

    phase: Phase
    percent: float
    phase_before: Phase
    percent_before: float
    changed: bool
    """False: it was so already."""
    gates: list[Measured]
    clients: list[str] = field(default_factory=list)
    """Names of the live clients, all of which act on it."""
    seconds: float = 0.0
    """From the step until they all did."""
    copied: CopiedBack | None = None
    """What a rollback from redis-only brought back."""


@dataclass(frozen=True)
class Preview:
    """What a command would do now."""

    command: str
    phase: Phase
    percent: float
    phase_after: Phase
    percent_after: float
    then: list[float]
    """Percentages of a ramp that would come after it."""
    gates: list[Measured]
    clients: list[str]
    """Names of the live clients that would be waited for."""
    copies: int | None = None
    """Keys that were written to Redis alone, and would be compared with the column."""
    statements: list[str] = field(default_factory=list)
    """That would be run, in one transaction for each step; where keys are copied back, those that end it."""
    redis: list[str] = field(default_factory=list)
    """What would be written to Redis, in words."""

    @property
    def refused(self) -> bool:
        return any(not gate.met for gate in self.gates)


@dataclass(frozen=True)
class Held:
    """One percentage of a ramp, and what clients reported while it was watched."""

    percent: float
    seconds: float
    figures: dict[str, Any]
    limits: dict[str, float | None]
    """By setting; None: too little was reported to say."""


@dataclass(frozen=True)
class Ramped:
    phase: Phase
    percent: float
    held: list[Held]


def schedule(percent: float | None, ramp: str | None, hold: str) -> tuple[list[float], float]:
    """The percentages to go through, upwards, and the seconds to hold each of a ramp. Raises ConfigError."""
    if (percent is None) == (ramp is None):
        raise ConfigError("say either --percent or --ramp", hint="cachemig cutover --ramp 1,10,50,100 --hold 10m")
    try:
        percents = [percent] if percent is not None else [float(part) for part in (ramp or "").split(",")]
        seconds = duration(hold)
    except ValueError as exc:
        raise ConfigError(
            f"--ramp is a list such as 1,10,50,100, --hold a duration such as 10m: {exc}",
            hint="cachemig cutover --ramp 1,10,50,100 --hold 10m",
        ) from exc
    if any(not 0 <= p <= 100 for p in percents) or percents != sorted(set(percents)):
        raise ConfigError(
            "percentages are from 0 to 100, and a ramp goes up", hint="cachemig cutover --ramp 1,10,50,100"
        )
    return percents, seconds


def command_for(percents: Sequence[float], *, ramp: bool) -> str:
    """What was typed, or is to be typed, for these percentages."""
    listed = ",".join(f"{p:g}" for p in percents)
    return f"cachemig cutover --ramp {listed}" if ramp else f"cachemig cutover --percent {listed}"


def preview(
    settings: Settings, target: RedisTarget, percents: Sequence[float], *, ramp: bool = False, no_clients: bool = False
) -> Preview:
    """What `cutover` would do now, gates included. Reads only."""
    with connect(settings) as conn:
        migration = control.require(conn, settings, "cutover")
        ahead = _ahead(migration, percents) if ramp else list(percents)
        if not ahead:
            ahead = [migration.percent]
        command = command_for(percents, ramp=ramp)
        before, after = (migration.phase, migration.percent), (Phase.CUTOVER, ahead[0])
        measured = _measured(conn, settings, target, migration, after, command, no_clients)
        names = [client.name for client in clients.live(conn)]
        shown = move_statements(conn, migration, after) if before != after else []
        return Preview(command, *before, *after, ahead[1:], measured, names, statements=shown)


def move_statements(conn: Connection, migration: control.Migration, after: Stage) -> list[str]:
    """What `take` would run for this step."""
    name = "rollback" if after[0] is Phase.DUAL_WRITE else "cutover"
    up = ladder.gates((migration.phase, migration.percent), after)
    move = {
        "phase": after[0].value,
        "percent": after[1],
        "phase_before": migration.phase.value,
        "percent_before": migration.percent,
        "epoch": migration.epoch if up else None,
    }
    return [dry_run.filled_in(conn, "cutover", "move", move), dry_run.journal(conn, name, migration.phase)]


def cutover(
    settings: Settings, target: RedisTarget, stop: Stop, percent: float, *, no_clients: bool = False
) -> Generator[Progress, None, Moved]:
    """Has this percentage of the keys read from Redis, and waits until every live client does so.

    Raising it has gates, lowering it has none. Refused also where a live client does not act on it within
    `client_wait`: the percentage stays then, and the same command waits again. `no_clients`: it is known that no
    application is registered; without it that is a gate that is not met.
    """
    began = time.monotonic()
    command = command_for([percent], ramp=False)
    with Reconnecting(settings) as session:
        conn = session.get()
        control.require(conn, settings, "cutover")
        moved = take(conn, settings, target, (Phase.CUTOVER, percent), command=command, no_clients=no_clients)
        others = yield from clients.follow(
            session, settings, stop, moved.phase, percent, again=command, back=_back(_before(moved))
        )
    names = [client.name for client in others]
    return replace(moved, clients=names, seconds=round(time.monotonic() - began, 3))


def ramp(
    settings: Settings,
    target: RedisTarget,
    stop: Stop,
    percents: Sequence[float],
    hold: float,
    *,
    no_clients: bool = False,
) -> Generator[Progress, None, Ramped]:
    """Raises the percentage step by step, each held for so many seconds, and watches what clients report meanwhile.

    Goes on, or waits while sync lags, or goes back by itself to where it was before the step: then Refused, with the
    limit that was broken. Stopped on request it leaves the percentage as it is, and the same command goes on from
    there; so it does where a gate refuses the next step. Where another run moves the ladder meanwhile the ramp ends.
    """
    held: list[Held] = []
    with Reconnecting(settings) as session:
        migration = control.require(session.get(), settings, "cutover")
        at: Stage = (migration.phase, migration.percent)
        lower = 0.0
        ahead = _ahead(migration, percents)
        for number, percent in enumerate(percents):
            if percent not in ahead:
                lower = percent
                continue
            again = command_for(percents[number:], ramp=True)
            yield from _in_time(session, settings, stop, at, again)
            began = time.monotonic()
            moved = take(
                session.get(),
                settings,
                target,
                (Phase.CUTOVER, percent),
                command=again,
                no_clients=no_clients,
                expected=at,
            )
            # Repeated after an interruption: what came before is not known any more.
            back = _before(moved) if moved.changed else (Phase.CUTOVER, lower)
            at, lower = (Phase.CUTOVER, percent), percent
            yield from clients.follow(session, settings, stop, *at, again=again, back=_back(back))
            last, broken = yield from _watch(session, settings, stop, percent, hold, again)
            control.journal(session.get(), "ramp", {**asdict(last), "broken": broken})
            if broken:
                yield from _go_back(session, settings, stop, at, back, broken, again)
            held.append(Held(percent, round(time.monotonic() - began, 3), last.figures, last.limits))
    return Ramped(*at, held)


# One step -----------------------------------------------------------------------------------------------------------


def take(
    conn: Connection,
    settings: Settings,
    target: RedisTarget | None,
    after: Stage,
    *,
    command: str,
    no_clients: bool = False,
    expected: Stage | None = None,
    because: str | None = None,
) -> Moved:
    """Takes one step: lease, gates, and the step itself with its line in the journal. Repeated it changes nothing.

    `target` is asked on the way up alone. `expected`: where the ladder is to stand before it. Raises Refused, or
    LeaseHeld where another run is at it.
    """
    name = "rollback" if after[0] is Phase.DUAL_WRITE else "cutover"
    with control.lease(conn, "ladder") as fence:
        migration = control.require(conn, settings, name)
        before: Stage = (migration.phase, migration.percent)
        if expected is not None and before != expected:
            raise _moved_by_others(migration, expected)
        if before == after:
            return Moved(*after, *before, changed=False, gates=[])
        step = ladder.step(before[0], after[0])
        if step is None or step.command != name:
            raise Refused(f"no {name} leads from {stage(*before)} to {stage(*after)}", hint="cachemig status")
        measured = _measured(conn, settings, target, migration, after, command, no_clients)
        gates.require(measured, command)
        with transaction(conn):
            done = conn.execute(
                queries.text("cutover", "move"),
                {
                    "phase": after[0].value,
                    "percent": after[1],
                    "who": control.who(),
                    "phase_before": before[0].value,
                    "percent_before": before[1],
                    "epoch": migration.epoch if measured else None,
                    "owner": control.owner(),
                    "fence": fence,
                },
            ).rowcount
            if not done:
                raise LeaseHeld(
                    "another run has moved the ladder, or a new epoch has begun, while the gates were looked at",
                    hint="cachemig status, then the same command again",
                )
            figures: dict[str, Any] = {
                "percent_from": before[1],
                "percent": after[1],
                "gates": {gate.gate: gate.figure for gate in measured},
                "no_clients": no_clients,
            }
            if because:
                figures["because"] = because
            control.journal(conn, name, figures, phase_from=before[0])
    return Moved(*after, *before, changed=True, gates=measured)


def _measured(
    conn: Connection,
    settings: Settings,
    target: RedisTarget | None,
    migration: control.Migration,
    after: Stage,
    command: str,
    no_clients: bool,
) -> list[Measured]:
    names = ladder.gates((migration.phase, migration.percent), after)
    if not names:
        return []
    assert target is not None, "every way up asks Redis"
    seen = gates.look(conn, settings, target, migration, command=command, no_clients=no_clients)
    return gates.measure(names, seen)


def _before(moved: Moved) -> Stage:
    return moved.phase_before, moved.percent_before


def _back(before: Stage) -> str:
    """The command that goes back there; reads of dual-write are those of cutover 0 %."""
    return command_for([before[1] if before[0] is Phase.CUTOVER else 0.0], ramp=False)


def _moved_by_others(migration: control.Migration, expected: Stage) -> Refused:
    return Refused(
        f"{migration.changed_by} has moved the ladder to {stage(migration.phase, migration.percent)} meanwhile; "
        f"the ramp left it at {stage(*expected)} and ends here",
        hint="cachemig status",
    )


# A ramp -------------------------------------------------------------------------------------------------------------


def _ahead(migration: control.Migration, percents: Sequence[float]) -> list[float]:
    """Percentages that are still to come, or to be held again."""
    if migration.phase is not Phase.CUTOVER:
        return list(percents)
    return [p for p in percents if p >= migration.percent]


def _share(part: int, of: int) -> float | None:
    """None while there are too few to say."""
    return part / of if of and (part >= FEWEST or of >= 100 * FEWEST) else None


def _slowdown(report: Report) -> float | None:
    redis, column = (report.latency_ms.get(path, {}) for path in clients.PATHS)
    if min(redis.get("n", 0), column.get("n", 0)) < FEWEST_CALLS or not column.get("p95"):
        return None
    return round(redis.get("p95", 0.0) / column["p95"], 3)


# By name of the setting: what it limits, and how that is measured in what clients reported since the step.
LIMITS: dict[str, tuple[str, Callable[[Report], float | None]]] = {
    "ramp_max_errors": (
        "of the reads from Redis failed",
        lambda r: _share(r.reads["redis"]["error"], r.total("redis")),
    ),
    "ramp_max_fallback": (
        "of the reads meant for Redis fell back to the column",
        lambda r: _share(r.fallback, max(r.total("redis"), r.fallback)),
    ),
    "ramp_max_mismatch": ("of the reads compared differ", lambda r: float(r.shadow["mismatch"])),
    "ramp_max_slowdown": ("times the column's p95 is that of reads from Redis", _slowdown),
}


def measured_limits(report: Report) -> dict[str, float | None]:
    """The figure of every limit; None: too little was reported to say."""
    return {name: measure(report) for name, (_, measure) in LIMITS.items()}


def broken_limit(figures: dict[str, float | None], settings: Settings) -> str | None:
    """The first limit that is broken, in words; None if all hold."""
    for name, figure in figures.items():
        limit = getattr(settings, name)
        if figure is not None and figure > limit:
            return f"{name}: {figure:.3g} {LIMITS[name][0]} (limit: {limit:g})"
    return None


def _lagging(conn: Connection, settings: Settings) -> str | None:
    oldest = backlog(conn).oldest_s
    if oldest is None or oldest < settings.cutover_max_lag:
        return None
    return f"sync lags by {oldest:.0f} s (limit: {settings.cutover_max_lag:g} s): is cachemig sync --follow running?"


def _in_time(
    session: Reconnecting, settings: Settings, stop: Stop, at: Stage, again: str
) -> Generator[Progress, None, None]:
    """Waits, up to `retry_for`, until sync keeps up; then the gate says so."""
    began = time.monotonic()
    while True:
        late = None
        for attempt in attempts(settings, stop):
            with attempt, session.guard() as conn:
                late = _lagging(conn, settings)
            if waiting := reason(attempt.retry_state):
                yield Progress(0, None, "s", waiting=waiting)
        if late is None or time.monotonic() - began > settings.retry_for:
            return
        _check(stop, at, again)
        yield Progress(round(time.monotonic() - began), None, "s", note=stage(*at), waiting=late)
        stop.wait(LOOK_S)


def _check(stop: Stop, at: Stage, again: str) -> None:
    if stop.requested:
        raise Interrupted(
            f"stopped; {stage(*at)} stays in force",
            hint=f"to go on: {again}; to go back: cachemig rollback",
            signal_number=stop.signal_number,
        )


def _watch(
    session: Reconnecting, settings: Settings, stop: Stop, percent: float, hold: float, again: str
) -> Generator[Progress, None, tuple[Held, str | None]]:
    """Looks at what clients report until the time is over or a limit is broken. While sync lags it stands still."""
    at: Stage = (Phase.CUTOVER, percent)
    before: dict[str, Report] | None = None
    began = looked = time.monotonic()
    passed = 0.0
    while True:
        late = None
        for attempt in attempts(settings, stop):
            with attempt, session.guard() as conn:
                migration = control.require(conn, settings)
                everyone = clients.everyone(conn)
                late = _lagging(conn, settings)
            if waiting := reason(attempt.retry_state):
                yield Progress(round(passed), round(hold), "s", note=stage(*at), waiting=waiting)
        if (migration.phase, migration.percent) != at:
            raise _moved_by_others(migration, at)
        reports = {client.id: clients.report([client.stats]) for client in everyone}
        before = reports if before is None else before
        since = clients.since(reports, before)
        # Of those alone that are live: the latencies of the dead are of another time.
        since.latency_ms = clients.report(client.stats for client in everyone if client.live).latency_ms
        limits = measured_limits(since)
        broken = broken_limit(limits, settings)
        now = time.monotonic()
        passed += 0.0 if late else now - looked
        looked = now
        if broken or (passed >= hold and not late):
            return Held(percent, round(now - began, 3), since.figures(), limits), broken
        _check(stop, at, again)
        yield Progress(round(passed), round(hold), "s", note=f"{stage(*at)}: {_told(since)}", waiting=late)
        stop.wait(min(LOOK_S, max(hold - passed, 0.05)))


def _told(report: Report) -> str:
    reads = report.reads["redis"]
    return (
        f"{report.total('redis'):,} reads from Redis, {reads['miss']:,} misses, {reads['error']:,} errors, "
        f"{report.fallback:,} fallbacks"
    )


def _go_back(
    session: Reconnecting, settings: Settings, stop: Stop, at: Stage, back: Stage, broken: str, again: str
) -> Generator[Progress, None, None]:
    """Goes back to where it was before the step, and raises Refused with the limit that was broken."""
    for attempt in Retrying(
        retry=retry_if_exception_type(LeaseHeld),
        wait=wait_fixed(0.5),
        stop=stop_after_delay(control.LEASE_S + 5),
        reraise=True,
    ):
        with attempt:
            take(session.get(), settings, None, back, command=_back(back), expected=at, because=broken)
        if attempt.retry_state.outcome is not None and attempt.retry_state.outcome.failed:
            yield Progress(0, None, "s", waiting=f"to go back to {stage(*back)}: {broken}; another run has the lease")
    late = ""
    try:
        yield from clients.follow(session, settings, stop, *back, again=_back(back), back="cachemig rollback")
    except Refused as exc:
        late = f"; {exc}"
    raise Refused(
        f"went back from {stage(*at)} to {stage(*back)}: {broken}{late}",
        hint=f"cachemig status shows what clients report; when it is mended: {again}",
    )

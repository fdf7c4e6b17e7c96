"""Gates: what a step up the ladder demands, how that is measured, and the command that satisfies it.

Looked at under the lease `ladder`, immediately before the step. Which step has which gates, and what each demands in
words, stands in ladder.py; here is what is measured. A gate that is not met refuses the step (exit 3) and names itself,
its figure and a command.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from psycopg import sql

from cachemig import ladder
from cachemig.config import Settings, show_duration
from cachemig.errors import Refused
from cachemig.ladder import Phase
from cachemig.source import capture, control, queries
from cachemig.source.connect import Connection, transaction
from cachemig.source.standing import Late, Verification, backlog, fresh, last_verification, late, newest_archive
from cachemig.source.table import Table, inspect
from cachemig.steps import epoch
from cachemig.steps.clients import COMPARED, Client, everyone, named, report, shadow_since_epoch, stage
from cachemig.targets.redis import RedisTarget

_LOOK_FOR = 1_000


@dataclass(frozen=True)
class Seen:
    """All that the gates look at, read at once."""

    settings: Settings
    command: str
    """The one that is refused, as it was typed."""
    no_clients: bool
    phase: Phase
    percent: float
    epoch: int
    clients: list[Client]
    """The live ones."""
    captured: bool
    server_changed: str | None
    unhandled: int
    """Keys that backfill has to deliver; looked for up to 1,000."""
    verification: Verification | None
    lag_s: float | None
    compares: bool
    """Some live client compares in the shade."""
    shadow: Counter[str]
    """Since this epoch began, of clients that died meanwhile too."""
    held_s: float = 0.0
    """Since this phase, with this percentage, began."""
    late: Late | None = None
    """None: the column is in use."""
    expiring: Expiring | None = None
    archived_s: float | None = None
    """Since an archive was last read back and found equal to the table; None: none ever was."""
    in_the_way: Sequence[str] = ()
    """What depends on the column, or names it."""


@dataclass(frozen=True)
class Expiring:
    """Entries that Redis will let go, and that nothing can be computed from again."""

    keys: int
    of: int
    """That have an expiry at all."""
    accepted: int


class Answer(NamedTuple):
    met: bool
    figure: str
    command: str
    """What satisfies the gate."""


@dataclass(frozen=True)
class Measured:
    """One gate, as it was found."""

    gate: str
    demands: str
    met: bool
    figure: str
    command: str


def _clients(seen: Seen) -> Answer:
    at = stage(seen.phase, seen.percent)
    behind = [client for client in seen.clients if not client.acts_on(seen.phase, seen.percent)]
    if not seen.clients:
        return Answer(
            seen.no_clients,
            "no live client is registered",
            f"{seen.command} --no-clients, if no program reads by the phase yet",
        )
    if not behind:
        return Answer(True, f"{len(seen.clients)} live clients act on {at}", "cachemig status")
    return Answer(
        False,
        f"{len(behind)} of {len(seen.clients)} live clients do not act on {at}: {named(behind)}",
        "cachemig status, until they do or are gone",
    )


def _capture(seen: Seen) -> Answer:
    figure = "its triggers are on the table and fire always"
    if not seen.captured:
        figure = "its triggers are missing, or do not fire always"
    return Answer(seen.captured, figure, ladder.to_run("dual-write", seen.phase))


def _servers(seen: Seen) -> Answer:
    return Answer(
        seen.server_changed is None,
        seen.server_changed or f"the same since epoch {seen.epoch} began",
        "cachemig sync --once (or the running sync), which begins a new epoch",
    )


def _backfill(seen: Seen) -> Answer:
    more = "+" if seen.unhandled >= _LOOK_FOR else ""
    return Answer(seen.unhandled == 0, f"{seen.unhandled:,}{more} keys are to be delivered", "cachemig backfill")


def _verify(seen: Seen) -> Answer:
    return Answer(*fresh(seen.verification, seen.epoch, seen.settings), "cachemig verify")


def _lag(seen: Seen) -> Answer:
    limit = f"under {seen.settings.cutover_max_lag:g} s"
    if seen.lag_s is None:
        return Answer(True, "no change is on its way", "cachemig sync --once")
    return Answer(
        seen.lag_s < seen.settings.cutover_max_lag,
        f"the oldest change is {seen.lag_s:.1f} s old (wanted: {limit})",
        "cachemig sync --once; keep cachemig sync --follow running",
    )


def _shadow(seen: Seen) -> Answer:
    compared = sum(seen.shadow[verdict] for verdict in COMPARED)
    if not seen.compares:
        return Answer(True, "no live client compares", "cachemig status")
    if mismatches := seen.shadow["mismatch"]:  # what is missing is answered from the column, and filled by the read
        return Answer(
            False,
            f"{mismatches:,} mismatch of {compared:,} compared since epoch {seen.epoch} began",
            "cachemig verify says which keys; cachemig resync --all delivers all anew and counts from 0",
        )
    wanted = seen.settings.shadow_reads
    return Answer(
        compared >= wanted,
        f"{compared:,} compared since epoch {seen.epoch} began (wanted: {wanted:,})",
        "cachemig status shows the count as applications read; or --shadow-reads N",
    )


def _soak(seen: Seen) -> Answer:
    if seen.phase is Phase.CUTOVER:
        wanted, held = seen.settings.soak_cutover, seen.held_s
        if seen.percent < 100:
            return Answer(
                False,
                f"{seen.percent:g} % of the keys are read from Redis",
                "cachemig cutover --ramp 50,100",
            )
        what = "all reads have come from Redis"
    else:
        wanted, held = seen.settings.soak_redis_only, seen.held_s
        what = "nothing has written the column"
        if seen.late is not None and seen.late.last_write_s is not None and seen.late.last_write_s < held:
            held = seen.late.last_write_s
            what += f" since the last late write, of {seen.late.writers[0][0]},"
    return Answer(
        held >= wanted,
        f"{what} for {show_duration(round(held))} (wanted: {show_duration(wanted)})",
        f"wait for {show_duration(max(1, round(wanted - held)))}, then the same command again",
    )


def _expiring(seen: Seen) -> Answer:
    found = seen.expiring or Expiring(0, 0, 0)
    if not found.keys:
        figure = "every entry that expires has a recording" if found.of else "no entry expires"
        return Answer(True, figure, "cachemig status")
    accepted = f", accepted: {found.accepted:,}" if found.accepted else ""
    return Answer(
        found.keys <= found.accepted,
        f"{found.keys:,} of {found.of:,} entries with an expiry have no recording{accepted}",
        f"set recordings_location; or {seen.command} --accept-expiring {found.keys}, if the application computes them",
    )


def _late_writes(seen: Seen) -> Answer:
    waiting = seen.late.waiting if seen.late else 0
    figure = f"{waiting:,} wait to be delivered"
    if seen.lag_s is not None:
        figure += f", and changes of the last {seen.lag_s:.0f} s from before it was frozen"
    return Answer(waiting == 0 and seen.lag_s is None, figure, "cachemig sync --once")


def _archive(seen: Seen) -> Answer:
    command = "cachemig archive --to PLACE"
    if seen.archived_s is None:
        return Answer(False, "there is none that was read back", command)
    if seen.archived_s > seen.held_s:
        return Answer(False, "the last one is from before the column was frozen", command)
    if seen.late is not None and seen.late.last_write_s is not None and seen.archived_s > seen.late.last_write_s:
        return Answer(False, "the column was written after the last one", command)
    return Answer(True, f"read back {show_duration(round(seen.archived_s))} ago", command)


def _dependents(seen: Seen) -> Answer:
    names = "; ".join(seen.in_the_way)
    return Answer(
        not seen.in_the_way,
        f"in the way: {names}" if names else "nothing is in the way",
        "cachemig drop-column tells what to do about each",
    )


MEASURES: dict[str, Callable[[Seen], Answer]] = {
    "clients": _clients,
    "capture": _capture,
    "servers": _servers,
    "backfill": _backfill,
    "verify": _verify,
    "lag": _lag,
    "shadow": _shadow,
    "soak": _soak,
    "expiring": _expiring,
    "late-writes": _late_writes,
    "archive": _archive,
    "dependents": _dependents,
}


def measure(names: Sequence[str], seen: Seen) -> list[Measured]:
    """Every one of these gates, met or not."""
    return [Measured(name, ladder.GATES[name], *MEASURES[name](seen)) for name in names]


def require(measured: Sequence[Measured], command: str) -> None:
    """Raises Refused, which names each gate that is not met, its figure, and the command that satisfies it."""
    unmet = [m for m in measured if not m.met]
    if unmet:
        lines = [f"gate {m.gate} ({m.demands}): {m.figure} → {m.command}" for m in unmet]
        raise Refused(f"{command} is refused:\n" + "\n".join(lines), hint=unmet[0].command)


def look(
    conn: Connection,
    settings: Settings,
    target: RedisTarget,
    migration: control.Migration,
    *,
    command: str,
    no_clients: bool,
    expiring: Expiring | None = None,
    in_the_way: Sequence[str] = (),
) -> Seen:
    """Reads what the gates look at. In phases with capture it takes as long as a search of the table for keys that were
    never delivered."""
    # Once the column is frozen nobody asks what is to be delivered from it; and it may be gone.
    table = inspect(conn, settings) if migration.phase in ladder.CAPTURED else None
    all_clients = everyone(conn)
    live = [client for client in all_clients if client.live]
    archive = newest_archive(conn)
    now = control.now(conn)
    return Seen(
        settings=settings,
        command=command,
        no_clients=no_clients,
        phase=migration.phase,
        percent=migration.percent,
        epoch=migration.epoch,
        clients=live,
        captured=table is not None and capture.installed(conn, table),
        server_changed=epoch.changed(migration, target.identity()),
        unhandled=_unhandled(conn, table) if table is not None else 0,
        verification=last_verification(conn),
        lag_s=backlog(conn).oldest_s,
        compares=any(report(client.stats for client in live).shadow.values()),
        shadow=shadow_since_epoch(conn, all_clients),
        held_s=(now - migration.changed_at).total_seconds(),
        late=None if migration.frozen_epoch is None else late(conn),
        expiring=expiring,
        archived_s=None if archive is None else (now - archive.checked_at).total_seconds(),
        in_the_way=in_the_way,
    )


def _unhandled(conn: Connection, table: Table) -> int:
    search = queries.query(
        "scan", "unhandled", **table.parts, since=sql.Literal(control.now(conn)), limit=sql.Literal(_LOOK_FOR)
    )
    with transaction(conn, read_only=True):
        return len(conn.execute(search).fetchall())

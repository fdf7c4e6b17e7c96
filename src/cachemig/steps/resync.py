"""resync: has keys delivered again, some by name or all in a new epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cachemig.config import Settings
from cachemig.errors import Refused
from cachemig.ladder import Phase
from cachemig.source import capture, control, ledger, queries
from cachemig.source.connect import Connection, connect, transaction
from cachemig.steps import dry_run, epoch
from cachemig.steps.dry_run import DryRun
from cachemig.targets.redis import RedisTarget


@dataclass(frozen=True)
class Resynced:
    """What sync will deliver again."""

    marked: int
    epoch: int | None
    """The epoch that was begun; None where single keys were marked."""


def preview(settings: Settings, target: RedisTarget, keys: Sequence[str]) -> DryRun:
    """How many keys `resync` would mark, and by what. Reads only."""
    with connect(settings) as conn:
        migration = _require(conn, settings)
        if keys:
            mark = dry_run.filled_in(conn, "capture", "mark_keys", {"keys": list(keys)})
            shown = [mark, dry_run.journal(conn, "resync")]
            figures = {"marked": len(set(keys))}
            return DryRun("cachemig resync", migration.phase, True, shown, figures=figures)
        number = epoch.foresee(migration, target)
        set_phase = {"phase": migration.phase.value, "epoch": number}
        return DryRun(
            "cachemig resync --all",
            migration.phase,
            True,
            [
                queries.text("control", "lock_migration"),
                dry_run.filled_in(conn, "control", "set_phase", set_phase),
                queries.text("capture", "mark_known"),
                dry_run.filled_in(conn, "control", "set_identities", {"run": target.identity().run, "marker": "…"}),
                dry_run.journal(conn, "new epoch", migration.phase),
            ],
            redis=[f"SET {target.marker_key}: the marker of epoch {number}"],
            figures={"epoch": number, "marked": sum(count for count, _ in ledger.counts(conn).values())},
        )


def resync(settings: Settings, target: RedisTarget, keys: Sequence[str]) -> Resynced:
    """Marks the keys changed or, where none is named, begins a new epoch. Changes nothing in Redis by itself."""
    with connect(settings) as conn:
        migration = _require(conn, settings)
        if keys:
            with transaction(conn):
                capture.mark(conn, keys)
                control.journal(conn, "resync", {"keys": len(keys)})
            return Resynced(len(keys), None)
        begun = epoch.begin(conn, target, "asked for by resync", expected=migration.epoch)
        return Resynced(begun.marked, begun.epoch) if begun else resync(settings, target, keys)


def _require(conn: Connection, settings: Settings) -> control.Migration:
    """The migration, where what is marked would be delivered and cannot be older than what Redis holds."""
    migration = control.require(conn, settings)
    if migration.phase is Phase.DROPPED:
        raise Refused(
            "resync delivers what the column holds, and the column is dropped",
            hint="cachemig verify says whether anything is missing; cachemig restore brings the column back",
        )
    if migration.phase is Phase.REDIS_ONLY:
        raise Refused(
            "resync is not allowed in phase 'redis-only': the frozen column may be older than what Redis holds",
            hint="cachemig verify --repair puts the column's state back where Redis has none that is newer; "
            "cachemig rollback has the column used again",
        )
    return control.require(conn, settings, "resync")

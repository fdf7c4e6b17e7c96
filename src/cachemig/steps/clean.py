"""clean: removes what the migration made: the control schema, and the tool's own keys in Redis."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from cachemig.config import Settings
from cachemig.errors import Refused
from cachemig.ladder import Phase
from cachemig.progress import Progress
from cachemig.source import control, queries
from cachemig.source.connect import Connection, connect, source_errors, transaction
from cachemig.steps import clients
from cachemig.targets.keys import TEMPORARY, VERSION, KeyTemplate, escape, owner_of, owner_of_temporary
from cachemig.targets.redis import RedisTarget


@dataclass(frozen=True)
class Rubbish:
    """What clean removes, or would remove."""

    control_schema: bool
    own_keys: int
    """Version and temporary keys of this migration's template."""
    values: int
    """Values under the prefix; 0 where they are to stay."""
    ledger: int
    journal: int
    statements: tuple[str, ...] = ()
    """That are run, or would be."""


def clean(
    settings: Settings, target: RedisTarget, *, execute: bool, values: bool = False
) -> Generator[Progress, None, Rubbish]:
    """Counts what the migration made and, with `execute`, removes it: Redis first, the control schema last, so that
    an interrupted clean can be repeated. Values stay in Redis until they expire, unless `values` is given.

    Raises Refused while a trigger of the migration is on some table (without its functions it would go unnoticed what
    is written there), and while applications are registered. Asks nothing of the table: it may be without the column.
    """
    with connect(settings) as conn:
        _refuse_triggers(conn, control.require(conn, settings, "clean"))
        if live := clients.live(conn):
            raise Refused(
                f"applications still ask the control schema where to read: {clients.named(live)}",
                hint="stop them; when their leases have ended: cachemig clean",
            )
        with transaction(conn, read_only=True):
            counts = conn.execute(queries.text("control", "made")).fetchone()
        if execute:  # goes with the schema; stays where this is interrupted
            control.journal(conn, "clean", {"values": values})
        own = yield from _keys(target, _own_pattern(target.template), target.template, execute)
        held = 0
        if values:
            held = yield from _keys(target, target.template.pattern, target.template, execute)
        if execute:
            target.remove_marker()
            with transaction(conn):
                conn.execute(queries.text("control", "drop_control"))
        assert counts is not None
        return Rubbish(True, own, held, counts[0], counts[1], (queries.text("control", "drop_control"),))


def _refuse_triggers(conn: Connection, migration: control.Migration) -> None:
    with source_errors():
        left = conn.execute(queries.text("control", "triggers_left")).fetchall()
    if not left:
        return
    named = ", ".join(f"{trigger} on {table}" for trigger, table, _ in left)
    drop = "; ".join(f"DROP TRIGGER {quoted} ON {table}" for _, table, quoted in left)
    if all(trigger.startswith("cachemig_capture") for trigger, *_ in left):
        hint = f"cachemig dual-write --disable; or {drop}" if migration.phase is Phase.IDLE else drop
        raise Refused(f"capture is still on the table: {named}", hint=hint)
    raise Refused(f"the guard of the frozen column is still on the table: {named}", hint=drop)


def _own_pattern(template: KeyTemplate) -> str:
    # Both forms of a companion key: {key}, and {tag}key where the key has braces of its own.
    return f"cachemig:[vt]:{{*{escape(template.after)}*"


def _keys(target: RedisTarget, pattern: str, template: KeyTemplate, remove: bool) -> Generator[Progress, None, int]:
    count = 0
    for names in target.scan(pattern):
        mine = [name for name in names if _belongs(name, template)]
        count += len(mine)
        if remove and mine:
            target.remove(mine)
        yield Progress(count, None, "keys")
    return count


def _belongs(name: str, template: KeyTemplate) -> bool:
    if name.startswith(f"{VERSION}{{"):
        return template.key_of(owner_of(name, VERSION)) is not None
    if name.startswith(f"{TEMPORARY}{{"):
        return template.key_of(owner_of_temporary(name)) is not None
    return template.key_of(name) is not None

"""Whether capture sees every write, and whether its triggers can be put on the table."""

from __future__ import annotations

from cachemig.ladder import CAPTURED, Phase, to_run
from cachemig.source import capture, queries
from cachemig.steps.doctor.finding import Said, error, note, ok, warning
from cachemig.steps.doctor.subjects import Source, one

FROZEN = frozenset({Phase.REDIS_ONLY, Phase.DROPPED})


def before_triggers(source: Source) -> Said:
    found = capture.before_triggers(source.conn, source.table)
    if not found:
        return ok("no BEFORE trigger names a column that capture watches")
    listed = ", ".join(f"{trigger} ({function})" for trigger, function in found)
    if source.settings.capture == "columns":
        return error(
            f"BEFORE triggers may change what capture watches: {listed}; with capture = columns such a change "
            "is not seen",
            "set capture = auto",
        )
    triggers, *_, compares = one(source.conn, "capture_state", oid=source.table.oid)
    if triggers and not compares:
        return error(
            f"BEFORE triggers may change what capture watches: {listed}; capture was switched on before "
            "they were there, and does not see it",
            "cachemig dual-write --disable, then cachemig dual-write",
        )
    return note(
        f"BEFORE triggers may change what capture watches: {listed}; so capture compares OLD and NEW",
        "nothing; each update of the table costs some 60 microseconds more while capture is on",
    )


def partitions(source: Source) -> Said:
    leaves, heirs = one(source.conn, "relatives", oid=source.table.oid)
    if source.table.kind == "p":
        return warning(
            f"{leaves} partitions: their rows are captured, but a TRUNCATE, ATTACH or DETACH of a single "
            "partition is not seen",
            "until the end of the migration, after such a command: cachemig verify --repair",
        )
    if heirs:
        return error(
            f"tables inherit from this one: {', '.join(heirs)}; their rows are read, but their writes are not captured",
            "move their rows into the table, or migrate each by itself after ALTER TABLE .. NO INHERIT",
        )
    return ok("neither partitioned nor inherited from")


def long_transactions(source: Source) -> Said:
    rows = source.conn.execute(queries.text("doctor", "lock_holders"), {"oid": source.table.oid}).fetchall()
    wait = source.settings.lock_timeout
    waited_for = []
    for pid, age, user, application, state in rows:
        if age is not None and float(str(age)) <= wait:
            continue
        who = f"pid {pid}" if pid is not None else "a prepared transaction"
        about = ", ".join(str(x) for x in (user, application, state) if x)
        old = f"{float(str(age)):,.0f} s old" if age is not None else "age not visible to this role"
        waited_for.append(f"{who} ({about}), {old}" if about else f"{who}, {old}")
    if not waited_for:
        return ok(f"no transaction older than lock_timeout ({wait:g} s) has written to the table")
    return warning(
        f"dual-write would wait for {len(waited_for)} transactions on the table: {'; '.join(waited_for)}",
        "wait for them or end them (SELECT pg_terminate_backend(pid)); dual-write itself tries again and again, "
        "and lets the application through between two tries",
    )


def triggers(source: Source) -> Said:
    count, not_always, updates, truncates, _ = one(source.conn, "capture_state", oid=source.table.oid)
    whole = capture.installed(source.conn, source.table) and updates and truncates and not not_always
    phase = source.migration.phase if source.migration else None
    if phase in CAPTURED and not whole:
        state = f"{not_always} of {count} triggers do not fire always" if not_always else "triggers are missing"
        return error(
            f"the phase is {phase.value}, but capture is broken: {state}; writes are being lost",
            f"{to_run('dual-write', phase)}: it begins a new epoch and reads everything again",
        )
    if phase in CAPTURED:
        return ok(f"{count} triggers are in place and fire always")
    if count and phase in FROZEN:
        return warning(
            f"{count} triggers of capture are on the table, though the column is frozen",
            "remove them: DROP TRIGGER cachemig_capture ON the table, and those named like it",
        )
    if count and source.visible:
        return warning(
            f"{count} triggers of capture are on the table, though the phase does not want them",
            "cachemig status; cachemig dual-write --disable removes them",
        )
    if not source.visible:
        return note(
            f"{count} triggers of capture are on the table; this role may not see the phase that decides",
            "run sql/roles.sql, and use one of its roles",
        )
    return ok("capture is off, as it should be " + (f"in phase {phase.value}" if phase else "before cachemig init"))


def guard(source: Source) -> Said:
    """What stands in the place of capture while the column is frozen."""
    found = capture.guarded(source.conn, source.table)
    phase = source.migration.phase if source.migration else None
    if phase is Phase.REDIS_ONLY and found is None:
        return error(
            "the phase is redis-only, but the guard is missing or does not fire always: what is written to the column "
            "goes unnoticed",
            "cachemig stop-writes --execute puts it back; what came meanwhile: cachemig verify",
        )
    if phase is Phase.REDIS_ONLY:
        return ok(f"the column is guarded: a write to it {'is brought to Redis' if found == 'forward' else 'fails'}")
    if found is not None and source.visible:
        return warning(
            f"the guard is on the table, though the phase is {phase.value if phase else 'not begun'}",
            "DROP TRIGGER cachemig_guard ON the table, and those named like it",
        )
    return ok("no guard is on the table, as it should be while the column is not frozen")

"""Results of the last steps, as people read them: stop-writes, archive, the drop, reclaim, restore, migration files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cachemig.cli.render import _at, _gates
from cachemig.cli.screen import Screen, in_bytes, in_time

if TYPE_CHECKING:
    from cachemig.cli.results import BrownoutEnded
    from cachemig.steps import restore as step_restore
    from cachemig.steps import stop_writes as step_stop_writes
    from cachemig.steps.archive import Archived, Forgotten
    from cachemig.steps.drop_column import Dependent, Dropped, Inspection
    from cachemig.steps.drop_column import Outlook as DropOutlook
    from cachemig.steps.drop_column.brownout import Browned
    from cachemig.steps.files import Written
    from cachemig.steps.reclaim import Outlook as ReclaimOutlook
    from cachemig.steps.reclaim import Reclaimed

_SHOWN = 20


def would_stop_writes(screen: Screen, result: step_stop_writes.Preview) -> None:
    at = _at(result.phase, result.percent)
    if result.phase == "redis-only":
        screen.line(f"it is so already: {at}; --execute sets the guard to {result.guard}, and delivers what waits")
    else:
        screen.line(f"would freeze the column: from {at} to redis-only (nothing is changed yet)")
    for statement in (*result.statements, *result.records):
        screen.line(f"{statement.strip()}\n")
    if result.clients:
        screen.line(f"would wait for {len(result.clients):,} clients: {', '.join(result.clients)}")
    unmet = _gates(screen, result.gates)
    screen.next(unmet or f"cachemig residue names who still writes the column; then {result.command} --execute")


def stopped_writes(screen: Screen, result: step_stop_writes.Stopped) -> None:
    screen.line(f"{'' if result.changed else 'it was so already: '}phase redis-only: writes go to Redis alone")
    does = "is brought to Redis" if result.guard == "forward" else "fails"
    screen.line(f"a program that writes the column all the same is named by cachemig status, and its write {does}")
    if result.clients:
        screen.line(f"all {len(result.clients):,} live clients act on it: {', '.join(result.clients)}")
    screen.line(f"delivered, last of all from the column: {result.drained.changes:,} changes")
    if result.late and result.late.writes:
        screen.line(f"late writes so far: {result.late.writes:,}, the last one by {result.late.writers[0][0]}")
    screen.next(
        "keep cachemig sync --follow running for late writes; cachemig archive --to PLACE; when the soak is over, "
        "cachemig verify and cachemig drop-column. cachemig rollback goes back"
    )


def archived(screen: Screen, result: Archived) -> None:
    done = "compared again" if result.only_checked else "written, read back and compared"
    screen.line(
        f"{result.location} is {done}: {result.rows:,} rows, {in_bytes(result.bytes)} as {in_bytes(result.file_bytes)} "
        f"in {in_time(result.seconds)}"
    )
    screen.line(f"sha256 {result.sha256}")
    if result.began_anew:
        screen.line(f"begun anew: {result.began_anew}")
    if not result.frozen:
        screen.line("the column is still written to: this is what it held just now")
    screen.next("keep it where backups are kept; cachemig drop-column shows what the drop still wants")


def forgotten(screen: Screen, result: Forgotten) -> None:
    screen.line(f"{result.rows:,} rows of {result.keys:,} keys are no longer in {result.location}")
    screen.line(f"sha256 {result.sha256}")


def reclaimable(screen: Screen, result: ReclaimOutlook) -> None:
    s = result.before
    sizes = {"heap": s.heap, "large values": s.toast, "indexes": s.indexes, "the whole database": s.database}
    screen.table((result.table, "bytes"), [(name, in_bytes(size)) for name, size in sizes.items()])
    screen.line(f"without what was dropped it would need about {in_bytes(result.kept_bytes)}")
    for choice in result.choices:
        available = "" if choice.available else " (not at hand)"
        screen.line(f"{choice.method}{available}: {choice.what}; {choice.locks}; about {in_time(choice.seconds)}")
    if result.column_is_there:
        screen.line("the column is still there: nothing is to be gained yet")
    for statement in result.statements:
        screen.line(f"vacuum-full runs: {' '.join(statement.partition('VACUUM')[1:])}")


def reclaimed(screen: Screen, result: Reclaimed) -> None:
    screen.line(
        f"{result.table}: {in_bytes(result.before.table)} before, {in_bytes(result.after.table)} after, in "
        f"{in_time(result.seconds)}; the database has {in_bytes(result.after.database)}"
    )


def would_drop(screen: Screen, result: DropOutlook) -> None:
    """What it would run and meet, then the gates."""
    columns = ", ".join(c.name for c in result.inspection.columns) or "nothing"
    if result.done:
        screen.line(f"{result.column} of {result.inspection.table} was dropped before")
    else:
        screen.line(f"would drop {columns} of {result.inspection.table} (nothing is changed yet), in one transaction:")
        for statement in result.statements:
            screen.line(f"{statement.strip()}\n")
    _met(screen, result.inspection, result.accepted)
    if result.not_archived:
        screen.line(f"{', '.join(result.not_archived)}: in no archive; restore cannot bring that back", style="yellow")
    unmet = _gates(screen, result.gates)
    if result.done:
        screen.next("cachemig residue, then cachemig reclaim")
    else:
        screen.next(
            unmet
            or "cachemig drop-column --brownout 10m rehearses it; then "
            f"{result.command} --execute --confirm {result.column}"
        )


def _met(screen: Screen, found: Inspection, accepted: Sequence[str]) -> None:
    from cachemig.steps.drop_column.inspect import Effect

    ways = found.in_the_way(accepted)
    _dependents(screen, "in the way: Postgres refuses, or it fails when it is used next", ways)
    for dependent in ways:
        for line in dependent.lines:
            screen.line(f"{dependent.name}:{line}")
    _dependents(screen, "mentions it, and is accepted", [d for d in found.of(Effect.BREAKS) if d not in ways])
    _dependents(screen, "goes with it, without a word", found.of(Effect.VANISHES))
    recreate = found.recreate
    if recreate["after_data"]:
        screen.line("SQL that makes it again, once the data is back (the journal keeps it):")
        for statement in recreate["after_data"]:
            screen.line(f"{' '.join(statement.split())};")
    _dependents(screen, "keeps the column", found.of(Effect.STAYS))
    if found.children:
        screen.line(f"partitions and children lose it too: {', '.join(found.children)}")
    if found.statements:
        screen.line()
        rows = [(s.why, f"{s.calls:,}", s.user, _moment(s.last_call), s.text) for s in found.statements[:_SHOWN]]
        screen.table(("still in use?", "calls", "by", "last call", "statement"), rows, numbers=(1,))
    screen.line(found.statements_seen)
    sessions = [(s.who, s.lock or "", "" if s.seconds is None else in_time(s.seconds)) for s in found.sessions]
    if sessions:
        screen.line()
        screen.table(("would be waited for", "lock", "open for"), sessions)
    if found.observers:
        screen.line()
        screen.table(("follows this database", "name", ""), [(o.kind, o.name, o.what_to_do) for o in found.observers])
    if found.postgrest:
        screen.line("PostgREST is told to read the schema anew, in the same transaction")
    for note in found.notes:
        screen.line(note)
    screen.line(
        f"the table has {in_bytes(found.table_bytes)}, the database {in_bytes(found.database_bytes)}: the drop frees "
        "nothing of it, cachemig reclaim does"
    )


def _dependents(screen: Screen, head: str, found: Sequence[Dependent]) -> None:
    if found:
        screen.line()
        screen.table((head, "name", "what to do"), [(d.kind, d.name, d.what_to_do) for d in found])


def _moment(at: object) -> str:
    return "not known" if at is None else str(at)[:19]


def dropped(screen: Screen, result: Dropped) -> None:
    columns = ", ".join(result.columns)
    if not result.changed:
        screen.line(f"it was so already: {columns} of {result.table} is dropped")
        return
    screen.line(
        f"{columns} of {result.table} is dropped, at try {result.tries}; the lock was waited for {result.waited_s:g} s "
        f"and held for {result.locked_ms:g} ms"
    )
    for who in result.held_up_by:
        screen.line(f"held up by {who}")
    for name in result.vanished:
        screen.line(f"went with it: {name}")
    if result.recreate:
        screen.line("the SQL that makes it again is in the journal")
    if result.notified:
        screen.line("PostgREST was told to read the schema anew")
    screen.next("cachemig residue, for what was forgotten; cachemig reclaim, for the space. cachemig restore goes back")


def browned(screen: Screen, result: Browned) -> None:
    early = f", ended early: {result.ended_early}" if result.ended_early else ""
    screen.line(f"{result.column} of {result.table} was hidden for {in_time(result.seconds)}, and is back{early}")
    screen.line(
        f"{result.rollbacks:,} transactions were rolled back meanwhile, {result.rollbacks_expected:g} were to be "
        f"expected; applications reported {result.client_errors:,} errors"
    )
    screen.next(
        "cachemig drop-column" if result.quiet else "cachemig residue --source FOLDER names who still uses the column"
    )


def brownout_ended(screen: Screen, result: BrownoutEnded) -> None:
    column = result.ended
    screen.line("no brownout is under way" if column is None else f"{column} has its name again")


def would_restore(screen: Screen, result: step_restore.Outlook) -> None:
    begun = "would go on with" if result.begun else "would begin"
    screen.line(
        f"{begun} the restore of {result.table}, column {result.column}, from {result.location} "
        "(nothing is changed yet)"
    )
    screen.line(f"{result.rows:,} rows, {in_bytes(result.bytes)}, archived at {result.archived_at}")
    screen.line(f"sha256 {result.sha256}")
    if not result.known:
        screen.line("the control schema does not know this file: its SQL is run as it stands", style="yellow")
    if not result.frozen:
        screen.line("the column was in use when it was archived: what was written later is in Redis, or nowhere")
    if result.statements:
        screen.line("first, in one transaction:")
    for statement in result.statements:
        screen.line(f"{statement.strip()}\n")
    if result.later:
        screen.line("after the data:")
    for statement in result.later:
        screen.line(statement)
    if result.triggers:
        screen.line(
            f"triggers of the application, which fire unless the role may keep them off: {', '.join(result.triggers)}"
        )
    for what in result.left_out:
        screen.line(f"is not brought back: {what}", style="yellow")
    screen.next("the same with --execute")


def restored(screen: Screen, result: step_restore.Restored) -> None:
    done = "is back" if result.finished else "is not back yet"
    screen.line(f"{result.column} of {result.table} {done}, after {in_time(result.seconds)}")
    rows: list[tuple[str, int, str]] = [
        ("filled", result.filled, "from the archive"),
        ("there before", result.there_before, "filled by a run before this one"),
        ("gone", result.gone, "of the archive, and not in the table any more"),
        ("from Redis", result.from_redis, "keys whose value is newer there"),
        ("emptied", result.emptied, "keys that were removed there, or have expired"),
        ("since", result.since, "keys of rows that came since the drop"),
        ("compared", result.verified, "are what they should be"),
        ("BAD", result.bad, "are not"),
    ]
    screen.table(("", "", ""), [row for row in rows if row[1]], numbers=(1,))
    for case in result.cases:
        screen.line(f"{case.what}\n    {case.why}")
    for what in result.left_out:
        screen.line(f"is not as it was: {what}", style="yellow")
    if result.finished:
        screen.next("cachemig status; cachemig rollback has the column used again")
    else:
        screen.next("mend what is bad, then the same command again; it goes on where this stopped")


def file_written(screen: Screen, result: Written) -> None:
    screen.line(f"wrote {result.file}: {result.step} as a migration, which looks at its gates itself")
    if result.reverse:
        screen.line(f"wrote {result.reverse}: its reverse, for when it is needed")
    for way in result.in_the_way:
        screen.line(f"run now it would be refused: {way}", style="yellow")
    screen.next(f"have the pipeline run it; then {result.then}")

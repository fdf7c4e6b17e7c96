"""Results as people read them: what was found, then the obvious next command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cachemig.cli.screen import Screen, in_bytes, in_time

if TYPE_CHECKING:
    from cachemig.cli.results import Configuration, Plotted
    from cachemig.steps.backfill import Backfilled, Outlook
    from cachemig.steps.clean import Rubbish
    from cachemig.steps.compare import Compared, Deviation
    from cachemig.steps.cutover import Moved, Preview, Ramped
    from cachemig.steps.delivery import Tally
    from cachemig.steps.doctor import Findings
    from cachemig.steps.dry_run import DryRun
    from cachemig.steps.dual_write import Switched
    from cachemig.steps.gates import Measured as Gate
    from cachemig.steps.init import Initialised
    from cachemig.steps.measure import Measured
    from cachemig.steps.orders import Given
    from cachemig.steps.plan import Plan
    from cachemig.steps.recompute import OfFile, Recomputed, Undone
    from cachemig.steps.residue import Residue
    from cachemig.steps.resync import Resynced
    from cachemig.steps.status import Status
    from cachemig.steps.sync import Synced
    from cachemig.steps.verify import Verified

_LEVEL_STYLE = {"ok": "green", "note": None, "warning": "yellow", "error": "red"}


def config(screen: Screen, shown: Configuration) -> None:
    screen.table(("setting", "value", "from"), shown.settings)


def dry_run(screen: Screen, result: DryRun) -> None:
    at = "" if result.phase is None else f", in phase {result.phase.value}"
    screen.line(f"-- {result.command}{at}: nothing is changed yet" + ("" if result.changes else "; nothing to do"))
    _would_run(screen, result.statements, result.redis)
    for file in result.files:
        screen.line(f"would write {file}")
    for name, figure in result.figures.items():
        screen.line(f"{name.replace('_', ' ')}: {figure:,}" if isinstance(figure, int) else f"{name}: {figure}")
    for note in result.notes:
        screen.line(note)
    if unmet := _gates(screen, result.gates):
        screen.next(unmet)


def initialised(screen: Screen, result: Initialised) -> None:
    screen.line(
        "the control schema is made; nothing of the application was touched"
        if result.created
        else "the migration was begun before: nothing is changed"
    )
    if result.config_file:
        screen.line(f"wrote {result.config_file}: later commands need no flags")
    screen.next("cachemig dual-write")


def _would_run(screen: Screen, statements: Sequence[str], redis: Sequence[str] = ()) -> None:
    if statements:
        screen.line("-- would run:")
    for statement in statements:
        screen.line(f"{statement.strip()}\n")
    for line in redis:
        screen.line(f"Redis: {line}")


def findings(screen: Screen, result: Findings) -> None:
    found = result.findings
    rows = [(f.level.value, f.name, f.what + (f"\n→ {f.do}" if f.do else "")) for f in found]
    screen.table(("", "finding", ""), rows, styles=[_LEVEL_STYLE[f.level.value] for f in found])
    counts = {level: sum(f.level.value == level for f in found) for level in ("error", "warning")}
    screen.line(", ".join(f"{n} {level}{'' if n == 1 else 's'}" for level, n in counts.items()))
    if not counts["error"]:
        screen.next("cachemig plan, then cachemig init; or cachemig status where the migration has begun")


def switched(screen: Screen, result: Switched) -> None:
    if not result.changed:
        screen.line(f"it was so already: phase {result.phase.value}")
    elif result.mode is None:
        screen.line("capture is off; the application reads and writes JSONB as before")
        screen.next("cachemig dual-write to go on later, or cachemig clean to remove the rest")
        return
    else:
        screen.line(f"capture is on ({result.mode}): every committed write leaves a mark")
        if result.marked:
            screen.line(
                f"epoch {result.epoch}: {result.marked:,} keys are read again; the time without capture is unknown"
            )
    screen.next("cachemig sync --follow in a terminal of its own (or as a service), and cachemig backfill")


def outlook(screen: Screen, result: Outlook) -> None:
    screen.line(
        f"would deliver about {result.rows_estimated:,} rows, {in_bytes(result.bytes_estimated)} of JSON (estimates)"
    )
    if result.chunks is None:
        screen.line("the table would be laid out into chunks first")
    else:
        screen.line(f"{result.chunks_done:,} of {result.chunks:,} chunks are done; the others would be")
    _would_run(screen, [*result.layout, *result.statements], result.redis)


def _tally(screen: Screen, tally: Tally) -> None:
    rows: list[tuple[str, int, str]] = [
        ("delivered", tally.delivered, in_bytes(tally.bytes)),
        ("removed", tally.removed, "no row holds a value for the key any more"),
        ("expired", tally.expired, "past their time: skipped"),
        ("copied", tally.copied, "of them corrupt, by on_corrupt = copy: " + _named(tally.faults)),
        ("set aside", tally.set_aside, f"corrupt in the table, not copied: {_named(tally.faults)}"),
        ("failed", tally.failed, "Redis refused them; cachemig status says why"),
        ("refused as older", tally.older, "Redis had a newer state already"),
    ]
    screen.table(("", "", ""), [row for row in rows if row[1]], numbers=(1,))


def _named(faults: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(faults.items()))


def backfilled(screen: Screen, result: Backfilled) -> None:
    resumed = f", after {result.resumed_at:,} that were done before" if result.resumed_at else ""
    screen.line(f"backfill is complete: {result.chunks:,} chunks{resumed}, in {in_time(result.seconds)}")
    _tally(screen, result.tally)
    if result.repaired:
        screen.line(
            f"{result.repaired:,} corrupt values were repaired in the table; cachemig recompute --undo puts them back"
        )
    if result.left_over:
        screen.line(f"{result.left_over:,} of them no chunk had delivered; the closing search found them")
    if result.tally.failed:
        screen.next("cachemig status for the reasons, then cachemig backfill to try them again")
    else:
        screen.next("cachemig sync --once, then cachemig verify")


def payload(screen: Screen, result: OfFile) -> None:
    rows = [
        (
            base,
            f"{record['contraction_count']} contractions, {record['total_time_under_tension_ms'] / 1000:.1f} s in all, "
            f"RMS {record['rms'] * 1e6:.1f} µV, MPF {_hertz(record['mpf'])}, MDF {_hertz(record['mdf'])}",
        )
        for base, record in result.payload["analytics"].items()
    ]
    if result.warning:
        screen.line(f"warning: {result.warning}", style="yellow")
    elif rows:
        screen.table(("muscle", "analytics"), rows)
    else:
        screen.line("no muscle has a signal that the application would analyse: the payload's analytics are {}")
    screen.next("the same with --json for the whole payload")


def _hertz(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} Hz"


def recomputed(screen: Screen, result: Recomputed) -> None:
    would = "would be " if result.dry_run else ""
    screen.line(
        f"{result.looked_at:,} keys in {in_time(result.seconds)}: {result.recomputed:,} {would}recomputed "
        f"(profile {result.profile}, shape {result.shape}), {result.decoded:,} {would}decoded, {result.sound:,} sound"
    )
    for case in sorted(result.cases, key=lambda case: case.what):
        if case.what != "sound":
            screen.line(f"{case.what:<12} {case.key}\n{'':12} {case.why}")
    _would_run(screen, result.statements)
    for name, count in sorted(result.left.items()):
        screen.line(f"{count:,} × {name}: still corrupt, and not in Redis")
    if result.left:
        screen.next("mend the reason and run it again; cachemig verify --accept-set-aside N accepts what is left")
    elif result.dry_run:
        screen.next("the same without --dry-run")
    else:
        screen.next("cachemig verify; cachemig recompute --undo puts back what was replaced")


def undone(screen: Screen, result: Undone) -> None:
    _would_run(screen, result.statements)
    done = "would be put back" if result.dry_run else "put back"
    screen.line(f"{result.undone:,} values {done}; {result.changed_since:,} left alone: written since")
    screen.next("the same without --dry-run" if result.dry_run else "cachemig verify")


def compared(screen: Screen, result: Compared) -> None:
    profiles = list(result.profiles)
    rows = []
    for name in sorted({name for fields in result.profiles.values() for name in fields}):
        found = [result.profiles[profile].get(name) for profile in profiles]
        if all(f is not None and f.equal == f.compared and not f.only_one_side for f in found):
            continue
        rows.append((name, *(_deviation(f) for f in found)))
    if rows:
        screen.table(("field", *profiles), rows)
    screen.line("fields that are not listed are the same by every profile" if rows else "no field differs")
    for profile in profiles:
        screen.line(
            f"{profile}: {result.alike[profile]:,} of {result.entries:,} entries are as stored, but for the time"
        )
    for name, count in sorted(result.left.items()):
        screen.line(f"{count:,} × {name}: not compared")
    if result.closest:
        screen.next(f"cachemig recompute --all-corrupt --profile {result.closest} --dry-run")


def _deviation(found: Deviation | None) -> str:
    if found is None:
        return "-"
    parts = [f"{found.equal:,} of {found.compared:,} equal"] if found.compared else []
    if found.largest > 0:
        parts.append(f"up to {found.largest:.1e} off")
    if found.only_one_side:
        parts.append(f"{found.only_one_side:,} on one side only")
    return ", ".join(parts)


def plotted(screen: Screen, result: Plotted) -> None:
    screen.line(f"drawn: {result.file}")


def residue(screen: Screen, result: Residue) -> None:
    for mention in (*result.database, *result.code):
        where = f"{mention.name}:{mention.line}" if mention.line else mention.name
        screen.line(f"{mention.kind:<18} {where}\n{'':18} {mention.text}")
    for name in result.own:
        screen.line(f"{'trigger of cachemig':<18} {name}")
    columns = ", ".join(result.columns)
    there = "is still there" if result.still_there else "is not there any more"
    screen.line(
        f"{len(result.database):,} places in the database and {len(result.code):,} in {result.files:,} files mention "
        f"{columns}, which {there}"
    )
    if not result.jobs_seen:
        screen.line("pg_cron's jobs could not be read by this role", style="yellow")
    for path in result.not_read:
        screen.line(f"not read: {path}", style="yellow")


def measured(screen: Screen, result: Measured) -> None:
    rows = [(way.name, f"{way.n:,}", f"{way.p50:.2f}", f"{way.p95:.2f}", f"{way.p99:.2f}") for way in result.ways]
    screen.table(("milliseconds", "reads", "p50", "p95", "p99"), rows, numbers=(1, 2, 3, 4))
    screen.line(
        f"{result.keys:,} keys at random, {result.hits:,} of them in Redis; half of the values are over "
        f"{in_bytes(result.bytes_median)}"
    )
    if result.redis_bytes is not None:
        each = f", {in_bytes(result.bytes_per_key)} a key" if result.bytes_per_key else ""
        screen.line(f"Redis uses {in_bytes(result.redis_bytes)} of memory{each}")
    for advice in result.advice:
        screen.line(f"- {advice}")


def synced(screen: Screen, result: Synced) -> None:
    screen.line(f"{result.changes:,} changes delivered in {in_time(result.seconds)}")
    if result.epochs:
        screen.line(f"{result.epochs} new epochs: a server may have lost something, so all was delivered again")
    _tally(screen, result.tally)


def orders(screen: Screen, given: Given) -> None:
    screen.line(f"paused by {given.paused_by}" if given.paused_by else "workers go on")
    if given.max_rate is not None:
        screen.line(f"limit: {_rate(given.max_rate)}")
    screen.next("cachemig resume" if given.paused_by else "cachemig status")


def _rate(max_rate: int) -> str:
    return f"{in_bytes(max_rate)}/s for each worker" if max_rate else "none, whatever a worker was told"


def resynced(screen: Screen, result: Resynced) -> None:
    of = f"epoch {result.epoch} begins: " if result.epoch is not None else ""
    screen.line(f"{of}{result.marked:,} keys are marked to be delivered again")
    screen.next("cachemig sync --once" + (", then cachemig backfill" if result.epoch is not None else ""))


def verified(screen: Screen, result: Verified) -> None:
    from cachemig.entries.verdicts import TABLE, Counts, Verdict, counts_as

    rows, styles = [], []
    for verdict in Verdict:
        if count := result.counts[verdict]:
            counts = counts_as(verdict, frozen=result.frozen)
            is_accepted = counts is Counts.BAD_UNLESS_ACCEPTED and result.outcome.accepted > 0
            rows.append((verdict.value, count, "accepted" if is_accepted else counts.value, TABLE[verdict].text))
            styles.append({"good": "green", "bad": "red"}.get(counts.value, None if is_accepted else "yellow"))
    screen.table(("verdict", "keys", "counts as", ""), rows, styles=styles, numbers=(1,))
    bad = [case for case in result.cases if TABLE[case.verdict].counts is not Counts.NEITHER]
    if bad:
        screen.line()
        screen.line("first cases:", style="bold")
        for case in bad:  # not a table: a key is to be copied in one piece, however narrow the terminal
            screen.line(f"{case.verdict.value:<12} {case.key}\n{'':12} {case.why}")
    screen.line()
    outcome = result.outcome
    looked_at = sum(result.counts.values())
    screen.line(f"{looked_at:,} keys, {in_bytes(result.bytes)} compared in {in_time(result.seconds)}")
    if result.sample is not None and result.sample:
        screen.line(
            f"a sample of {result.sample:,}: with none bad, at most {300 / result.sample:.2g} % of all keys are bad "
            "(95 % confidence); it does not count as a verification of all keys"
        )
    if result.dry_run:
        screen.line("a dry run: not in the journal, and no verification that a gate counts")
    _would_run(screen, result.statements)
    if result.marked and result.dry_run:
        screen.line(f"{result.marked:,} keys would be marked to be delivered again")
        screen.next("cachemig verify --repair")
    elif result.marked:
        screen.line(f"{result.marked:,} keys are marked to be delivered again")
        screen.next("cachemig sync --once, then cachemig verify")
    elif outcome.passed:
        pending = f"; {outcome.pending:,} changes are on their way" if outcome.pending else ""
        accepted = f", {outcome.accepted:,} accepted" if outcome.accepted else ""
        screen.line(f"PASSED: nothing is bad{accepted}{pending}", style="bold green")
    else:
        screen.line(f"FAILED: {outcome.bad:,} keys are bad", style="bold red")
        _after_failure(screen, result)


def _after_failure(screen: Screen, result: Verified) -> None:
    from cachemig.entries.verdicts import REPAIRABLE, Verdict

    if result.phase == "dropped":
        screen.next(
            "nothing is delivered any more: what is missing is computed again when it is read; what is corrupt the "
            "application is to write again. cachemig restore brings the column back from its archive"
        )
    elif any(result.counts[verdict] for verdict in REPAIRABLE) and result.frozen:
        screen.next(
            "cachemig verify --repair, then cachemig sync --once: they put back what the frozen column holds, which "
            "may be older than what Redis has lost. What is missing may be left, too: it is computed again when it is "
            "read. What was written to Redis alone and is corrupt the application is to write again"
        )
    elif any(result.counts[verdict] for verdict in REPAIRABLE):
        screen.next("cachemig verify --repair, then cachemig sync --once")
    elif aside := result.counts[Verdict.SET_ASIDE]:
        screen.next(f"look at the rows above; if they may be left behind: cachemig verify --accept-set-aside {aside}")
    else:
        screen.next(
            "if these keys are somebody else's: cachemig verify --foreign-keys ignore; if nobody's: "
            "cachemig verify --repair --foreign-keys remove, then cachemig sync --once"
        )


def _at(phase: str, percent: float) -> str:
    return f"{phase}, {percent:g} % of the keys are read from Redis" if phase == "cutover" else phase


def previewed(screen: Screen, result: Preview) -> None:
    if (result.phase, result.percent) == (result.phase_after, result.percent_after):
        screen.line(f"would change nothing: it is so already: {_at(result.phase, result.percent)}")
    else:
        after = _at(result.phase_after, result.percent_after)
        screen.line(f"would go from {_at(result.phase, result.percent)} to {after} (nothing is changed yet)")
    if result.then:
        screen.line("then, each held and watched: " + ", ".join(f"{p:g} %" for p in result.then))
    if result.clients:
        screen.line(f"would wait for {len(result.clients):,} clients: {', '.join(result.clients)}")
    _would_run(screen, result.statements, result.redis)
    if result.copies is not None:
        screen.line(f"{result.copies:,} keys were written to Redis alone: those that differ go into the column first")
    screen.next(_gates(screen, result.gates) or result.command)


def _gates(screen: Screen, gates: Sequence[Gate]) -> str | None:
    """Shows them; the command that satisfies the first one that is not met."""
    if gates:
        screen.line()
        rows = [("met" if g.met else "NOT MET", g.gate, g.figure) for g in gates]
        screen.table(("", "gate", ""), rows, styles=["green" if g.met else "red" for g in gates])
    return next((gate.command for gate in gates if not gate.met), None)


def moved(screen: Screen, result: Moved) -> None:
    screen.line(f"{'' if result.changed else 'it was so already: '}phase {_at(result.phase, result.percent)}")
    if result.clients:
        screen.line(
            f"all {len(result.clients):,} live clients act on it, after {in_time(result.seconds)}: "
            + ", ".join(result.clients)
        )
    elif result.phase != "idle":
        screen.line("no client is registered: nobody is known to read by the phase")
    if copied := result.copied:
        screen.line(
            f"{copied.keys:,} keys were written in Redis alone: {copied.written:,} rows were written, "
            f"{copied.emptied:,} emptied, the others were equal; {copied.late:,} late writes stay as they are"
        )
        screen.line(f"writes failed for {copied.writes_refused_s:.1f} s meanwhile, reads did not")
        if copied.left:
            screen.line(f"{len(copied.left):,} values had no place in the table, and were given up as accepted")
    screen.next("cachemig status" if result.percent else "cachemig status; cachemig cutover --percent 1 goes up again")


def ramped(screen: Screen, result: Ramped) -> None:
    screen.line(f"phase {_at(result.phase, result.percent)}")
    rows = []
    for held in result.held:
        reads = held.figures["reads"]["redis"]
        asked = sum(reads.values())
        rows.append(
            (
                f"{held.percent:g} %",
                in_time(held.seconds),
                asked,
                _percent(reads.get("hit", 0), asked),
                _percent(reads.get("error", 0), asked),
                _percent(held.figures["fallback"], asked),
                held.figures["shadow"].get("mismatch", 0),
            )
        )
    heads = ("keys", "held", "reads from Redis", "hits", "errors", "fallbacks", "mismatches")
    screen.table(heads, rows, numbers=(2, 3, 4, 5, 6))
    if not any(row[2] for row in rows):
        screen.line("no client reported a read meanwhile, so nothing was watched but the time")
    screen.next("cachemig status")


def _percent(part: float, of: float) -> str:
    return f"{100 * part / of:.2f} %" if of else "-"


def _reported(result: Status) -> list[tuple[str, str]]:
    """What live clients report, in words."""
    rows = []
    for number, client in enumerate(result.clients):
        since = f"since {client.started_at.isoformat()[:19]}"
        rows.append(("clients" if number == 0 else "", f"{client.name} {client.acting}, {since}"))
    figures = result.reported
    if shadow := figures["shadow"]:
        rows.append(("shadow reads", ", ".join(f"{count:,} {verdict}" for verdict, count in shadow.items())))
    for path, name in (("redis", "Redis"), ("column", "column")):
        reads = figures["reads"][path]
        if asked := sum(reads.values()):
            counts = [
                f"{_percent(reads.get('hit', 0), asked)} hits",
                f"{_percent(reads.get('error', 0), asked)} errors",
            ]
            if path == "redis":
                counts.append(f"{_percent(figures['fallback'], asked)} fallbacks")
            rows.append((f"reads, {name}", f"{asked:,}: {', '.join(counts)}"))
        if times := figures["latency_ms"].get(path):
            listed = ", ".join(f"{p} {times[p]:.2f} ms" for p in ("p50", "p95", "p99") if p in times)
            rows.append((f"latency, {name}", f"{listed}, of the last {times['n']:,.0f} calls"))
    return rows


def _since_frozen(result: Status) -> list[tuple[str, str]]:
    """What counts where the column is frozen or gone, and before it may be."""
    rows = []
    if not result.column_is_there:
        rows.append(("column", "not there: dropped, or hidden by a brownout"))
    if result.phase == "redis-only":
        guards = {
            "forward": "on: a write to the column is brought to Redis",
            "reject": "on: a write to the column fails",
            None: "MISSING: a write to the column goes unnoticed",
        }
        rows.append(("guard", guards[result.guard]))
    elif result.guard:
        rows.append(("guard", f"still on the table ({result.guard})"))
    if result.fenced:
        rows.append(("FENCED", "a rollback was begun and has not ended: writes to Redis alone are refused"))
    if late := result.late:
        waiting = f"{_up_to(late.waiting)} wait" + (
            f", the oldest for {in_time(late.oldest_s)}" if late.oldest_s else ""
        )
        last = f", the last one {in_time(late.last_write_s)} ago" if late.last_write_s is not None else ""
        rows.append(
            ("late writes", f"{_up_to(late.writes)}{last}; {waiting}; {_up_to(late.deletes)} removed rows forwarded")
        )
        rows += [("", f"{count:,} by {who}, last at {at.isoformat()[:19]}") for who, count, at in late.writers]
        if late.failed:
            rows.append(
                ("FAILED", f"{_up_to(late.failed)} late writes are corrupt or were refused: the column alone has them")
            )
    if soak := result.soak:
        rest = f"over in {in_time(soak.rest_s)}" if soak.rest_s else "over"
        rows.append(("soak", f"{in_time(soak.held_s)} of {in_time(soak.wanted_s)}: {rest}"))
    if result.archive and result.phase in ("redis-only", "dropped"):
        at, place = result.archive.checked_at.isoformat()[:19], result.archive.location
        rows.append(("archive", f"{place}, {result.archive.rows:,} rows, compared at {at}"))
    return rows


def _up_to(count: int) -> str:
    """A count that ends at 100,000."""
    return f"{count:,}{'+' if count >= 100_000 else ''}"


def status(screen: Screen, result: Status) -> None:
    oldest = f", the oldest {in_time(result.backlog.oldest_s)} old" if result.backlog.oldest_s is not None else ""
    at = _at(result.phase.value, result.percent)
    rows: list[tuple[str, str]] = [
        ("table", f"{result.table}.{result.column}"),
        ("phase", f"{at}, epoch {result.epoch}, since {result.since[:19]} by {result.by}"),
        ("capture", "on" if result.capture else "off"),
        ("backlog", f"{_up_to(result.backlog.changes)} changes{oldest}"),
        *_since_frozen(result),
    ]
    if result.orders.paused_by:
        rows.append(("PAUSED", f"by {result.orders.paused_by}; cachemig resume goes on"))
    if result.orders.max_rate is not None:
        rows.append(("limit", _rate(result.orders.max_rate)))
    c = result.chunks
    if result.laid_out:
        rows.append(("backfill", f"{c.done:,} of {c.chunks:,} chunks, {c.entries:,} entries, {in_bytes(c.bytes)}"))
    if c.running:
        rows.append(("", f"{c.running:,} chunks are being worked on"))
    for state, fault, count, key in result.faults:
        rows.append((state, f"{'at least ' if result.more_faults else ''}{count:,} × {fault}, such as {key}"))
    if result.verify is None:
        rows.append(("verify", "never run"))
    else:
        passed = "passed" if result.verify.figures["passed"] else "FAILED"
        verdicts = ", ".join(f"{n:,} {verdict}" for verdict, n in result.verify.figures["counts"].items())
        rows.append(("verify", f"{passed} at {result.verify.at[:19]}: {verdicts}"))
    rows += _reported(result)
    screen.table(("", ""), rows)
    screen.next(result.next_command)


def plan(screen: Screen, result: Plan) -> None:
    def shown(name: str, count: int) -> str:
        return f"{'about ' if name in result.estimated else ''}{count:,}"

    rows: list[tuple[str, str]] = [
        ("rows", f"{shown('rows', result.rows)}, table {in_bytes(result.table_bytes)}"),
        ("empty", f"{shown('empty_rows', result.empty_rows)} rows hold NULL or {{}}: not entries"),
        ("entries", f"{shown('entries', result.entries)} keys would stand in Redis"),
    ]
    if result.keyless_rows:
        keyless = shown("keyless_rows", result.keyless_rows)
        rows.append(("WITHOUT KEY", f"{keyless} rows hold a value that no key leads to: the drop would lose it"))
    elif "keyless_rows" in result.estimated:
        rows.append(("without key", "none of the sampled rows, which does not say that there are none"))
    if result.duplicate_keys:
        shared, older = (shown(name, getattr(result, name)) for name in ("duplicate_keys", "rows_beyond_winner"))
        rows.append(("shared keys", f"{shared}; {older} older rows are not the entry"))
    if result.expired_rows:
        rows.append(("expired", f"{shown('expired_rows', result.expired_rows)}: past their time, not moved"))
    rows += [
        ("corrupt", f"{shown('corrupt', count)} × {fault}: set aside (on_corrupt)")
        for fault, count in result.corrupt.items()
    ]
    s = result.sizes
    rows.append(
        (
            "sizes",
            f"p50 {in_bytes(s.p50)}, p95 {in_bytes(s.p95)}, p99 {in_bytes(s.p99)}, max {in_bytes(s.max)}, "
            f"together {in_bytes(s.total)}",
        )
    )
    free = f", free {in_bytes(result.redis_free_bytes)}" if result.redis_free_bytes is not None else ""
    rows.append(("memory", f"about {in_bytes(result.redis_bytes)} in Redis{free}{_because(result.redis_error)}"))
    if result.seconds is not None and result.mb_per_s is not None:
        rows.append(
            ("time", f"about {in_time(result.seconds)} (this Postgres gave {result.mb_per_s:,.0f} MB/s just now)")
        )
    screen.table(("", ""), rows)
    if result.sampled_rows is not None:
        screen.line(f"estimated from {result.sampled_rows:,} sampled rows; cachemig plan --exact reads them all")
    if result.dependents:
        screen.line()
        screen.table(
            ("depends on the column", "name", "what to do before the drop"),
            [(d.kind, d.name, d.what_to_do) for d in result.dependents],
        )
    if result.steps_ahead:
        screen.line()
        screen.line("steps ahead: " + " → ".join(result.steps_ahead))
        screen.next(result.steps_ahead[0])


def _because(error: str | None) -> str:
    return f" (not asked: {error})" if error else ""


def cleaned(*, executed: bool, values: bool) -> Callable[[Screen, Rubbish], None]:
    def render(screen: Screen, result: Rubbish) -> None:
        screen.line("removed:" if executed else "would remove (nothing is changed yet):")
        rows: list[tuple[str, object]] = [
            ("schema cachemig", f"ledger of {result.ledger:,} keys, journal of {result.journal:,} lines"),
            ("keys of the tool in Redis", result.own_keys),
        ]
        if values:
            rows.append(("values in Redis", result.values))
        screen.table(("", ""), rows)
        for statement in result.statements if not executed else ():
            screen.line(statement)
        if not values:
            screen.line("values stay in Redis until they expire (--values removes them too)")
        if not executed:
            screen.next("cachemig clean --execute" + (" --values" if values else ""))

    return render

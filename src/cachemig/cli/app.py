"""The commands. A body loads settings (done for it), calls one step, and renders what it returned."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from cachemig import __version__
from cachemig.cli import render
from cachemig.cli import render_finish as finish
from cachemig.cli.command import Run, command, confirmed, not_both, seconds_of
from cachemig.cli.group import PANELS, Group
from cachemig.cli.results import BrownoutEnded, Configuration, Plotted
from cachemig.errors import ConfigError, Exit

TRY, LOOK, MOVE, CUT_OVER, FINISH, AFTER = PANELS
RAMP = ("ramp_max_errors", "ramp_max_fallback", "ramp_max_mismatch", "ramp_max_slowdown")
NEIGHBOUR = (
    "max_rate", "gentle", "max_load", "max_standby_lag", "max_redis_latency", "min_redis_memory", "duty",
    "pause_windows", "pause_windows_zone",
)  # fmt: skip
ENTRY = ("order_by", "key_template", "codec", "ttl", "ttl_from", "ttl_jitter", "shape", "max_value_bytes")

DryRun = Annotated[bool, typer.Option("--dry-run", help="show exactly what it would do; change nothing")]
AcceptSetAside = Annotated[
    int, typer.Option(min=0, metavar="N", help="N corrupt rows in the table are known and accepted")
]
AcceptExpiring = Annotated[
    int, typer.Option(min=0, metavar="N", help="entries that expire and have no recording, accepted by number")
]
NoClients = Annotated[bool, typer.Option("--no-clients", help="it is known that no program reads by the phase yet")]
MigrationFormat = Annotated[
    str | None,
    typer.Option("--format", metavar="sql|supabase|alembic", help="write it as a migration file, and its reverse"),
]
AcceptMention = Annotated[
    list[str] | None,
    typer.Option("--accept-mention", metavar="NAME", help="its text names the column and means something else"),
]
Output = Annotated[Path | None, typer.Option("--output", metavar="FOLDER", help="where the files go; else here")]
DownRevision = Annotated[
    str | None, typer.Option("--down-revision", metavar="ID", help="with --format alembic: the revision before it")
]
Spool = Annotated[Path | None, typer.Option("--spool", metavar="FOLDER", help="where a store's file is kept meanwhile")]
Execute = Annotated[bool, typer.Option("--execute", help="do it; without this flag it only shows what it would do")]
Junit = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="write a JUnit report as well")]

app = typer.Typer(
    cls=Group,
    help="Moves a JSON cache column out of a live Postgres table into Redis, and proves that nothing was lost.\n\n"
    "Begin with [bold]cachemig demo[/] to see it done, or [bold]cachemig plan[/] to look at your own table.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"cachemig {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    pass


@command(app, MOVE, *ENTRY, "accept")
def init(
    run: Run,
    format_: MigrationFormat = None,
    output: Output = None,
    down_revision: DownRevision = None,
    dry_run: DryRun = False,
    junit: Junit = None,
) -> None:
    """Make the control schema and begin the migration.

    Touches no table of the application. Writes cachemig.toml where there is none, so that later commands need no flags.

    Example:
      cachemig init --table sessions --column cache --key-column hash
    """
    from cachemig.steps import files
    from cachemig.steps import init as step

    if asked := files.wanted(format_, output, down_revision):
        not_both("--format", dry_run=dry_run)
        with run.target() as target:
            run.show(files.write_init(run.settings, target, asked), finish.file_written)
        return
    with run.target() as target:
        if dry_run:
            shown = step.preview(run.settings, target, Path.cwd())
            run.show(shown, render.dry_run, junit=junit)
            run.exit_code = Exit.REFUSED if shown.refused else Exit.FINE
            return
        run.show(step.init(run.settings, target, Path.cwd()), render.initialised)


@command(app, LOOK, *ENTRY, "accept")
def doctor(
    run: Run,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="every setting, its value and where it comes from")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="with read rights alone: Redis gets no scratch keys")
    ] = False,
    junit: Junit = None,
) -> None:
    """Look at both servers and the table for what stands in the way.

    Changes nothing. Exit code 3 where anything does.

    Example:
      cachemig doctor --dsn "host=db user=postgres" --redis-url redis://cache
    """
    if show_config:
        run.show(Configuration(run.settings.shown()), render.config)
        return
    from cachemig.steps import doctor as step

    with run.target() as target:
        findings = step.examine(run.settings, target, writes=not dry_run)
    run.show(step.Findings(findings, list(run.settings.accept)), render.findings, junit=junit)
    if any(f.level is step.Level.ERROR and f.name not in run.settings.accept for f in findings):
        run.exit_code = Exit.REFUSED


@command(app, LOOK, *ENTRY)
def plan(
    run: Run,
    of: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND ARGS", help="with --out, behind --: the step to plan")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="write a plan of one step, for cachemig apply")
    ] = None,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="exit 4 while steps are ahead")
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="read every row of a large table too; else figures are estimates")
    ] = False,
    junit: Junit = None,
) -> None:
    """Count and weigh what is to be moved, and what depends on it.

    Changes nothing. Needs only SELECT on the table, and works before init. --out records one step for cachemig apply.

    Example:
      cachemig plan --table public.therapy_sessions
      cachemig plan --out plan.json -- cutover --percent 10
    """
    from cachemig.steps import plan as step

    if of and out is None:
        raise ConfigError("which step is to be planned is said with --out", hint="cachemig plan --out plan.json")
    if out is not None:
        from cachemig.cli import planned

        planned.make(run, out, of or [], junit=junit)
        return
    with run.target() as target:
        result = step.plan(run.settings, target, exact=exact)
    run.show(result, render.plan, junit=junit)
    if detailed_exitcode and result.steps_ahead:
        run.exit_code = Exit.CHANGES_PENDING


@command(app, MOVE, "capture", "lock_timeout", "accept", name="dual-write")
def dual_write(
    run: Run,
    disable: Annotated[bool, typer.Option("--disable", help="switch it off again; always possible")] = False,
    format_: MigrationFormat = None,
    output: Output = None,
    down_revision: DownRevision = None,
    dry_run: DryRun = False,
    junit: Junit = None,
) -> None:
    """Switch capture on: every committed write leaves a mark.

    From here on sync delivers what is written. The application's writes wait for nothing but an insert in their own
    transaction.

    Example:
      cachemig dual-write --dry-run
      cachemig dual-write
    """
    from cachemig.steps import dual_write as step
    from cachemig.steps import files

    if asked := files.wanted(format_, output, down_revision):
        not_both("--format", dry_run=dry_run)
        if disable:
            raise ConfigError("the reverse that --format writes switches it off", hint="leave --disable out")
        with run.target() as target:
            run.show(files.write_dual_write(run.settings, target, asked), finish.file_written)
        return
    with run.target() as target:
        if dry_run:
            shown = step.preview(run.settings, target, enable=not disable)
            run.show(shown, render.dry_run, junit=junit)
            run.exit_code = Exit.REFUSED if shown.refused else Exit.FINE
            return
        result = run.drive(lambda _: step.switch(run.settings, target, enable=not disable))
    run.show(result, render.switched)


@command(app, MOVE, "chunk_bytes", "batch_bytes", "batch_keys", "wait_replicas", *NEIGHBOUR, "retry_for", "on_corrupt")
def backfill(
    run: Run,
    restart: Annotated[
        bool, typer.Option("--restart", help="forget finished chunks and deliver everything again")
    ] = False,
    workers: Annotated[
        int, typer.Option(min=1, metavar="N", help="processes that share the work; more on other machines may join")
    ] = 1,
    dry_run: DryRun = False,
) -> None:
    """Copy every entry into Redis.

    Stopped or killed at any point, the same command goes on where it was.

    Example:
      cachemig backfill --workers 4
    """
    from cachemig.steps import backfill as step
    from cachemig.steps.crew import Crew

    if dry_run:
        run.show(step.preview(run.settings, restart=restart), render.outlook)
        return
    with (
        run.target() as target,
        Crew(workers - 1, lambda stop, epoch: step.help_out(run.settings, target, stop, epoch)) as crew,
    ):
        result = run.drive(lambda stop: step.backfill(run.settings, target, stop, restart=restart, crew=crew))
    run.show(result, render.backfilled)
    if result.tally.failed:
        run.exit_code = Exit.ERROR


@command(app, MOVE, "batch_bytes", "wait_replicas", *NEIGHBOUR, "retry_for")
def sync(
    run: Run,
    follow: Annotated[
        bool, typer.Option("--follow/--once", help="go on until stopped / stop when nothing is left")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Deliver the changes that capture noticed.

    Run it all the time as a service while the migration lasts (docs/deploy.md).

    Example:
      cachemig sync --follow
    """
    from cachemig.steps import sync as step

    if dry_run:
        run.show(step.preview(run.settings), render.dry_run)
        return
    with run.target() as target:
        result = run.drive(lambda stop: step.sync(run.settings, target, stop, follow=follow))
    run.show(result, render.synced)


@command(app, LOOK, "grace", "max_lag", *NEIGHBOUR)
def verify(
    run: Run,
    sample: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="look at N keys at random instead of all")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="mark bad keys changed; sync then heals them")] = False,
    accept_set_aside: AcceptSetAside = 0,
    foreign_keys: Annotated[
        str, typer.Option(metavar="bad|ignore|remove", help="keys under the prefix that no row ever had")
    ] = "bad",
    junit: Junit = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="with read rights alone: no mark, no line in the journal")
    ] = False,
) -> None:
    """Give every key one verdict, and exit 3 if any is bad.

    It compares each value in the table with the one in Redis, and names what differs.

    Example:
      cachemig verify
      cachemig verify --accept-set-aside 7 --junit verify.xml
    """
    from cachemig.steps import verify as step

    if foreign_keys == "remove" and not repair:
        raise ConfigError(
            "--foreign-keys remove is for --repair",
            hint="cachemig verify --repair --foreign-keys remove",
        )
    with run.target() as target:
        result = run.drive(
            lambda stop: step.verify(
                run.settings,
                target,
                stop,
                sample=sample,
                repair=repair,
                accept_set_aside=accept_set_aside,
                ignore_orphans=foreign_keys == "ignore",
                remove_orphans=foreign_keys == "remove",
                dry_run=dry_run,
            )
        )
    run.show(result, render.verified, junit=junit)
    if not result.outcome.passed:
        run.exit_code = Exit.REFUSED


@command(app, MOVE)
def resync(
    run: Run,
    key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="a key to deliver again; may be repeated")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="begin a new epoch: everything is delivered again")] = False,
    dry_run: DryRun = False,
) -> None:
    """Have keys delivered again, some by name, or all of them.

    Whatever Redis holds is replaced. The running sync, or the next one, does it.

    Example:
      cachemig resync --key 94d2266b942891c7
    """
    from cachemig.steps import resync as step

    if bool(key) == everything:
        raise ConfigError("name keys with --key, or say --all", hint="cachemig resync --help")
    with run.target() as target:
        if dry_run:
            run.show(step.preview(run.settings, target, key or []), render.dry_run)
            return
        run.show(step.resync(run.settings, target, key or []), render.resynced)


@command(app, MOVE)
def pause(run: Run, dry_run: DryRun = False) -> None:
    """Have every worker stop at the next batch and wait.

    Capture goes on, so nothing is lost. Taken within a second, whatever machine a worker runs on.

    Example:
      cachemig pause
    """
    from cachemig.steps import orders

    if dry_run:
        run.show(orders.preview(run.settings, paused=True), render.dry_run)
        return
    run.show(orders.give(run.settings, paused=True), render.orders)


@command(app, MOVE)
def resume(run: Run, dry_run: DryRun = False) -> None:
    """Have paused workers go on.

    Each continues with what it had in hand.

    Example:
      cachemig resume
    """
    from cachemig.steps import orders

    if dry_run:
        run.show(orders.preview(run.settings, paused=False), render.dry_run)
        return
    run.show(orders.give(run.settings, paused=False), render.orders)


@command(app, MOVE, "max_rate")
def throttle(run: Run, dry_run: DryRun = False) -> None:
    """Limit what each running worker delivers, from now on.

    0 lifts the limit.

    Example:
      cachemig throttle --max-rate 10MiB
    """
    from cachemig.steps import orders

    if run.settings.origins.get("max_rate") != "--max-rate":
        raise ConfigError("say how much with --max-rate; 0 for no limit", hint="cachemig throttle --max-rate 10MiB")
    if dry_run:
        run.show(orders.preview(run.settings, max_rate=run.settings.max_rate), render.dry_run)
        return
    run.show(orders.give(run.settings, max_rate=run.settings.max_rate), render.orders)


@command(app, MOVE, "on_corrupt", "recompute_shape", "recordings_location", "recordings_endpoint", "retry_for")
def recompute(
    run: Run,
    key: Annotated[list[str] | None, typer.Option(metavar="KEY", help="this key; may be repeated")] = None,
    all_corrupt: Annotated[bool, typer.Option("--all-corrupt", help="every key that is set aside")] = False,
    file: Annotated[
        Path | None,
        typer.Option(metavar="RECORDING", help="only show what this C3D file gives; writes nothing"),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="head|era", help=r"which of the application's algorithms \[recompute_profile]")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="show how far a recompute is from what is stored; writes nothing")
    ] = False,
    sample: Annotated[int, typer.Option(min=1, metavar="N", help="with --compare: so many keys at random")] = 20,
    plot: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="with --file or --key: draw the recording as .png or .svg")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="with --key: also where the value is sound")] = False,
    annotate: Annotated[
        bool, typer.Option("--annotate", help="write into the payload that it was recomputed, and how")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="put back what repairs replaced, of --key or of all")] = False,
    dry_run: DryRun = False,
) -> None:
    """Repair corrupt values in the table.

    They are decoded, or computed anew from their recordings. What is replaced is kept, and --undo puts it back.

    Example:
      cachemig recompute --all-corrupt --dry-run
      cachemig recompute --compare
      cachemig recompute --file session.c3d --json
    """
    from dataclasses import replace

    from cachemig.steps import compare as comparing
    from cachemig.steps import recompute as step

    settings = replace(run.settings, recompute_profile=profile) if profile else run.settings
    asked = [file is not None, compare, undo, all_corrupt, bool(key) and not (compare or undo)]
    if sum(asked) != 1 or (force and not key) or (plot and not (file or (key and len(key) == 1))):
        raise ConfigError(
            "say one of --key, --all-corrupt, --file, --compare, --undo; --force wants --key, --plot a key or a file",
            hint="cachemig recompute --all-corrupt --dry-run",
        )
    if plot:
        from cachemig.steps import plot as drawing

        not_both("--plot", dry_run=dry_run)
        run.show(Plotted(str(run.drive(lambda stop: drawing.plot(settings, stop, plot, file, key)))), render.plotted)
    elif file:
        run.show(step.of_file(settings, file), render.payload)
    elif compare:
        run.show(run.drive(lambda stop: comparing.compare(settings, stop, key, sample=sample)), render.compared)
    elif undo:
        with run.target() as target:
            run.show(run.drive(lambda stop: step.undo(settings, target, stop, key, dry_run=dry_run)), render.undone)
    else:
        with run.target() as target:
            result = run.drive(
                lambda stop: step.recompute(
                    settings, target, stop, key or None, force=force, annotate=annotate, dry_run=dry_run
                )
            )
        run.show(result, render.recomputed)
        if result.left:
            run.exit_code = Exit.REFUSED


@command(app, CUT_OVER, "verify_fresh", "cutover_max_lag", "shadow_reads", "client_wait", *RAMP)
def cutover(
    run: Run,
    percent: Annotated[float | None, typer.Option(metavar="0..100", help="of the keys, read from Redis")] = None,
    ramp: Annotated[
        str | None, typer.Option(metavar="LIST", help="go up through these percentages, and back by itself")
    ] = None,
    hold: Annotated[str, typer.Option(metavar="DURATION", help="with --ramp: watch each of them so long")] = "10m",
    no_clients: NoClients = False,
    dry_run: DryRun = False,
    junit: Junit = None,
) -> None:
    """Have a part of the keys read from Redis.

    The rest, and every miss, come from the column as before. Up only where every gate is met; down at once.

    Example:
      cachemig cutover --percent 10
      cachemig cutover --ramp 1,10,50,100 --hold 10m
    """
    from cachemig.steps import cutover as step

    percents, seconds = step.schedule(percent, ramp, hold)
    with run.target() as target:
        if dry_run:
            shown = step.preview(run.settings, target, percents, ramp=ramp is not None, no_clients=no_clients)
            run.show(shown, render.previewed, junit=junit)
            run.exit_code = Exit.REFUSED if shown.refused else Exit.FINE
        elif ramp is None:
            result = run.drive(
                lambda stop: step.cutover(run.settings, target, stop, percents[0], no_clients=no_clients)
            )
            run.show(result, render.moved)
        else:
            held = run.drive(
                lambda stop: step.ramp(run.settings, target, stop, percents, seconds, no_clients=no_clients)
            )
            run.show(held, render.ramped)


@command(app, CUT_OVER, "client_wait")
def rollback(
    run: Run,
    accept_left: Annotated[
        int, typer.Option(min=0, metavar="N", help="from redis-only: give up so many values that no row can take")
    ] = 0,
    dry_run: DryRun = False,
) -> None:
    """Go one phase back, with nothing lost.

    Reads come from the column again, and Redis is kept equal. From redis-only the column first gets what Redis has
    newer. Waits until every application says so.

    Example:
      cachemig rollback --dry-run
      cachemig rollback
    """
    from cachemig.steps import rollback as step

    with run.target() as target:
        if dry_run:
            run.show(step.preview(run.settings, target), render.previewed)
            return
        moved = run.drive(lambda stop: step.rollback(run.settings, target, stop, accept_left=accept_left))
    run.show(moved, render.moved)


@command(app, FINISH, "soak_cutover", "verify_fresh", "client_wait", "lock_timeout", "recordings_location")
def stop_writes(
    run: Run,
    guard: Annotated[
        str,
        typer.Option("--guard", metavar="forward|reject", help="a later write to the column: to Redis, or fails"),
    ] = "forward",
    accept_expiring: AcceptExpiring = 0,
    no_clients: NoClients = False,
    format_: MigrationFormat = None,
    output: Output = None,
    down_revision: DownRevision = None,
    execute: Execute = False,
    dry_run: DryRun = False,
    junit: Junit = None,
) -> None:
    """Freeze the column: from here on writes go to Redis alone.

    Shows its gates and its SQL; --execute does it. cachemig rollback takes it back, with nothing lost.

    Example:
      cachemig stop-writes
      cachemig stop-writes --execute
    """
    from cachemig.steps import files
    from cachemig.steps import stop_writes as step

    chosen = next(g for g in step.GUARDS if g == guard)
    asked = files.wanted(format_, output, down_revision)
    if asked and execute:
        raise ConfigError("say --execute or --format", hint="cachemig stop-writes")
    not_both("--execute" if execute else "--format", dry_run=dry_run and (execute or asked is not None))
    with run.target() as target:
        if asked:
            written = run.drive(
                lambda stop, asked=asked: files.write_stop_writes(  # type: ignore[misc]  # cannot infer a default's type
                    run.settings, target, stop, asked, chosen, no_clients=no_clients, accept_expiring=accept_expiring
                )
            )
            run.show(written, finish.file_written)
            return
        if execute:
            result = run.drive(
                lambda stop: step.stop_writes(
                    run.settings, target, stop, chosen, no_clients=no_clients, accept_expiring=accept_expiring
                )
            )
            run.show(result, finish.stopped_writes)
            return
        shown = run.drive(
            lambda stop: step.preview(
                run.settings, target, stop, chosen, no_clients=no_clients, accept_expiring=accept_expiring
            )
        )
    run.show(shown, finish.would_stop_writes, junit=junit)
    run.exit_code = Exit.REFUSED if shown.refused else Exit.FINE


@command(app, LOOK)
def residue(
    run: Run,
    source: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="a source tree to look through: Python, TypeScript, SQL")
    ] = None,
    junit: Junit = None,
) -> None:
    """Name what still mentions the column.

    In the database, and in a source tree by file and line. Changes nothing. Exit code 3 where anything does.

    Example:
      cachemig residue --source ../app
    """
    from cachemig.steps import residue as step

    result = step.residue(run.settings, source)
    run.show(result, render.residue, junit=junit)
    if result.found:
        run.exit_code = Exit.REFUSED


@command(app, LOOK)
def measure(
    run: Run,
    keys: Annotated[int, typer.Option(min=1, metavar="N", help="so many keys at random")] = 100,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="read each of them so often, in every way")] = 3,
) -> None:
    """Read some keys in every way, and say where the time goes.

    SELECT *, the column alone, Redis, and CacheService, from this machine, with their p50, p95 and p99. Changes
    nothing.

    Example:
      cachemig measure --keys 500
    """
    from cachemig.steps import measure as step

    with run.target() as target:
        result = run.drive(lambda stop: step.measure(run.settings, target, stop, keys=keys, rounds=rounds))
    run.show(result, render.measured)


@command(app, LOOK)
def status(
    run: Run,
    history: Annotated[bool, typer.Option("--history", help="the journal: what was done, by whom, with what")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="with --history: the last N lines of it; else 50")
    ] = None,
) -> None:
    """Say where the migration stands, and what comes next.

    Phase, progress, backlog, clients, and the last steps taken; with --json workers and memory of Redis too. Changes
    nothing.

    Example:
      cachemig status --json
      cachemig status --history
    """
    from dataclasses import replace

    from cachemig.steps import redis_memory
    from cachemig.steps import status as step

    if limit is not None and not history:
        raise ConfigError("--limit is for --history", hint="cachemig status --history --limit 10")
    if history:
        from cachemig.cli import render_watch

        run.show(step.history(run.settings, limit or 50), render_watch.history)
        return
    result = step.status(run.settings)
    if run.as_json:
        result = replace(result, redis=redis_memory.ask_once(run.settings, os.environ))
    run.show(result, render.status)


@command(app, LOOK)
def watch(
    run: Run,
    interval: Annotated[str, typer.Option("--interval", metavar="DURATION", help="how often it is drawn anew")] = "1s",
    once: Annotated[bool, typer.Option("--once", help="show it once, and end")] = False,
) -> None:
    """Follow the migration, live.

    Progress, backlog, workers and why they wait, clients, Redis, journal. At a terminal a view that is drawn anew;
    elsewhere a line each half minute, and one whenever phase or reason change. Ctrl-C ends it, and nothing else.

    Example:
      cachemig watch
    """
    from cachemig.cli import watching
    from cachemig.steps import watch as step

    if run.as_json:
        raise ConfigError("watch is for people to read", hint="cachemig status --json has the same data")
    with step.Watcher(run.settings, os.environ, seconds_of("--interval", interval)) as watcher:
        watcher.begin()
        if not once:
            watching.watch(run.screen, watcher, seconds_of("--interval", interval))
            return
        view = watcher.view()
    watching.once(run.screen, view)
    run.exit_code = Exit.FINE if view.status is not None else Exit.ERROR


@command(app, FINISH, "chunk_bytes", "retry_for")
def archive(
    run: Run,
    to: Annotated[
        str, typer.Option("--to", metavar="PLACE", help="a file, or a URL that fsspec knows, such as s3://…")
    ],
    forget: Annotated[
        list[str] | None, typer.Option("--forget", metavar="KEY", help="take this key out of it; may be repeated")
    ] = None,
    spool: Spool = None,
    dry_run: DryRun = False,
) -> None:
    """Write the column to one file, and prove that it is all there.

    Reads it back and compares every row with the table. Changes no row. Killed at any point, the same command goes on.

    Example:
      cachemig archive --to backup/analytics_cache.zst
    """
    from cachemig.steps import archive as step

    if dry_run and forget:
        shown = run.drive(lambda stop: step.preview_forget(run.settings, stop, to, forget, spool=spool))
        run.show(shown, render.dry_run)
    elif dry_run:
        run.show(step.preview(run.settings, to, spool=spool), render.dry_run)
    elif forget:
        run.show(run.drive(lambda stop: step.forget(run.settings, stop, to, forget, spool=spool)), finish.forgotten)
    else:
        run.show(run.drive(lambda stop: step.archive(run.settings, stop, to, spool=spool)), finish.archived)


@command(app, FINISH, "soak_redis_only", "verify_fresh", "lock_timeout", name="drop-column")
def drop_column(
    run: Run,
    with_columns: Annotated[
        str | None, typer.Option("--with", metavar="LIST", help="related columns to drop along; no archive has them")
    ] = None,
    accept_mention: AcceptMention = None,
    no_clients: NoClients = False,
    brownout: Annotated[
        str | None, typer.Option("--brownout", metavar="DURATION", help="rehearse: rename the column so long, and back")
    ] = None,
    end_brownout: Annotated[bool, typer.Option("--end-brownout", help="rename the column back now")] = False,
    format_: MigrationFormat = None,
    output: Output = None,
    down_revision: DownRevision = None,
    confirm: Annotated[
        str | None, typer.Option("--confirm", metavar="COLUMN", help="with --execute: the column's name once more")
    ] = None,
    execute: Execute = False,
    dry_run: DryRun = False,
    junit: Junit = None,
) -> None:
    """Drop the column, where every gate is met.

    Without --execute: the SQL, what it would meet, and the gates. The one step that no rollback takes back; cachemig
    restore does, from the archive.

    Example:
      cachemig drop-column
      cachemig drop-column --execute --confirm analytics_cache
    """
    from cachemig.source import brownout as hidden
    from cachemig.steps import drop_column as step
    from cachemig.steps import files
    from cachemig.steps.drop_column import brownout as rehearsal

    others = tuple(filter(None, (with_columns or "").split(",")))
    accepted = tuple(accept_mention or ())
    asked = files.wanted(format_, output, down_revision)
    if sum((execute, asked is not None, brownout is not None, end_brownout)) > 1:
        raise ConfigError("say one of --execute, --format, --brownout, --end-brownout", hint="cachemig drop-column")
    if confirm is not None and not execute:
        raise ConfigError("--confirm is for --execute", hint="cachemig drop-column")
    not_both("--execute" if execute else "--format", dry_run=dry_run and (execute or asked is not None))
    if end_brownout and dry_run:
        run.show(rehearsal.preview_end(run.settings), render.dry_run)
    elif end_brownout:
        run.show(BrownoutEnded(hidden.end(run.settings)), finish.brownout_ended)
    elif brownout is not None:
        seconds = seconds_of("--brownout", brownout)
        if dry_run:
            run.show(rehearsal.preview(run.settings, seconds=seconds), render.dry_run)
            return
        result = run.drive(lambda stop: rehearsal.brownout(run.settings, stop, seconds=seconds))
        run.show(result, finish.browned)
        run.exit_code = Exit.FINE if result.quiet else Exit.REFUSED
    elif asked:
        written = files.write_drop(run.settings, asked, with_columns=others, accept=accepted, no_clients=no_clients)
        run.show(written, finish.file_written)
    elif execute:
        confirmed(run.settings.column, confirm)
        with run.target() as target:
            dropped = run.drive(
                lambda stop: step.execute(
                    run.settings, target, stop, with_columns=others, accept=accepted, no_clients=no_clients
                )
            )
        run.show(dropped, finish.dropped)
    else:
        with run.target() as target:
            shown = step.outlook(run.settings, target, with_columns=others, accept=accepted, no_clients=no_clients)
        run.show(shown, finish.would_drop, junit=junit)
        run.exit_code = Exit.REFUSED if shown.refused else Exit.FINE


@command(app, FINISH, "lock_timeout")
def reclaim(
    run: Run,
    method: Annotated[str, typer.Option("--method", metavar="vacuum-full|pg_repack|none")] = "none",
    execute: Execute = False,
    dry_run: DryRun = False,
) -> None:
    """Give back the space that the dropped column still takes.

    Dropping a column frees nothing by itself. Shows what the table takes on disk, and ways to shrink it; --execute
    does it.

    Example:
      cachemig reclaim
      cachemig reclaim --method vacuum-full --execute
    """
    from cachemig.steps import reclaim as step

    not_both("--execute", dry_run=dry_run and execute)
    if not execute:
        run.show(step.outlook(run.settings), finish.reclaimable)
        return
    chosen = next(m for m in step.METHODS if m == method)
    run.show(run.drive(lambda stop: step.reclaim(run.settings, stop, method=chosen)), finish.reclaimed)


@command(app, AFTER, "lock_timeout", "retry_for")
def restore(
    run: Run,
    from_: Annotated[
        str, typer.Option("--from", metavar="PLACE", help="the archive: a file, or a URL that fsspec knows")
    ],
    without_redis: Annotated[
        bool, typer.Option("--without-redis", help="do not ask Redis for what it has newer")
    ] = False,
    spool: Spool = None,
    execute: Execute = False,
    dry_run: DryRun = False,
) -> None:
    """Bring the dropped column back from its archive.

    And what Redis has newer from there; every row is compared. Shows what it would do; --execute does it, and killed at
    any point goes on.

    Example:
      cachemig restore --from backup/analytics_cache.zst --execute
    """
    from cachemig.steps import restore as step

    not_both("--execute", dry_run=dry_run and execute)
    if not execute:
        run.show(run.drive(lambda stop: step.preview(run.settings, stop, from_, spool=spool)), finish.would_restore)
        return
    with run.target() as target:
        result = run.drive(
            lambda stop: step.restore(
                run.settings,
                None if without_redis else target,
                stop,
                from_,
                spool=spool,
                settle=step.ladder_back(run.settings),
            )
        )
    run.show(result, finish.restored)
    run.exit_code = Exit.FINE if result.finished else Exit.REFUSED


@command(app, AFTER, "soak_redis_only", "verify_fresh")
def report(
    run: Run,
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="the page")] = Path("report.html"),
    show_keys: Annotated[
        bool, typer.Option("--show-keys", help="name keys in the clear; else by the first digits of their SHA-256")
    ] = False,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="draw what --run-json saved, without any server")
    ] = None,
    run_json: Annotated[
        Path | None, typer.Option("--run-json", metavar="FILE", help="save the data that the page is drawn from")
    ] = None,
    rehearsal: Annotated[
        Path | None, typer.Option("--rehearsal", metavar="FILE", help="take in what cachemig rehearse wrote")
    ] = None,
    accept_mention: AcceptMention = None,
    no_clients: NoClients = False,
) -> None:
    """Write the proof of the migration as one HTML file.

    To be approved and kept. Works in every phase; holds no value, and keys only as digests. Changes nothing.

    Example:
      cachemig report --output report.html
    """
    from cachemig.cli import render_report
    from cachemig.report import documents, html
    from cachemig.steps import report as step

    rehearsed = None if rehearsal is None else step.read_rehearsal(rehearsal)
    if from_ is not None:
        if show_keys or rehearsed is not None or run_json is not None:
            raise ConfigError("--from draws what was saved, as it is", hint="cachemig report --from run.json")
        document = step.read_document(from_)
    else:
        with run.target() as target:
            result = step.report(
                run.settings,
                target,
                show_keys=show_keys,
                no_clients=no_clients,
                rehearsal=rehearsed,
                accept_mention=tuple(accept_mention or ()),
            )
        document = documents.document(run.name, result)
    html.write(output, document)
    if run_json is not None:
        run_json.write_text(json.dumps(document, indent=1) + "\n", encoding="ascii")
    run.show(document, render_report.reported(output, run_json))


@command(app, AFTER)
def clean(
    run: Run,
    execute: Execute = False,
    values: Annotated[
        bool, typer.Option("--values", help="also remove the values; else they stay until they expire")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Remove what the migration made.

    The control schema, and the tool's own keys in Redis. Shows what it would remove; --execute removes it.

    Example:
      cachemig clean --execute
    """
    from cachemig.steps import clean as step

    not_both("--execute", dry_run=dry_run and execute)
    with run.target() as target:
        result = run.drive(lambda _: step.clean(run.settings, target, execute=execute, values=values))
    run.show(result, render.cleaned(executed=execute, values=values))


@command(app, MOVE)
def apply(
    run: Run,
    file: Annotated[str, typer.Argument(metavar="PLAN", help="what cachemig plan --out has written")],
    check: Annotated[bool, typer.Option("--check", help="only say whether it may still be run")] = False,
    max_age: Annotated[str, typer.Option("--max-age", metavar="DURATION", help="an older plan is refused")] = "24h",
    confirm: Annotated[
        str | None, typer.Option("--confirm", metavar="COLUMN", help="of drop-column: the column's name once more")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="the same as --check")] = False,
) -> None:
    """Run the one step of a plan, if it is not stale.

    cachemig plan --out writes one. Exit code 3 where something that it was made of has changed since.

    Example:
      cachemig apply plan.json
    """
    from cachemig.cli import planned

    planned.apply(run, Path(file), only_check=check or dry_run, max_age=max_age, confirm=confirm)


@command(app, LOOK)
def ci(
    run: Run,
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="where the reports go")] = Path(
        "ci-dry-run"
    ),
    source: Annotated[
        Path | None, typer.Option("--source", metavar="FOLDER", help="a source tree for residue to look through")
    ] = None,
    percent: Annotated[
        float | None, typer.Option("--percent", metavar="0..100", help="of the next cutover; else 1, 10, 50, 100")
    ] = None,
    no_clients: NoClients = False,
    sample: Annotated[
        int, typer.Option("--sample", min=0, metavar="N", help="also verify so many keys; 0 for none")
    ] = 0,
    advise: Annotated[
        bool, typer.Option("--advise", help="exit 0 where a check says no; errors still are errors")
    ] = False,
) -> None:
    """Do every dry run that the phase allows, for a pipeline.

    doctor, plan, the next step, the way back, residue. Reads only, with read rights. Writes JSON, JUnit and a summary
    into a folder; on GitHub annotations and a job summary too. Exit code 3 where a gate, a finding or a dependent says
    no.

    Example:
      cachemig ci --source app
    """
    from cachemig.cli import pipeline

    pipeline.run(run, output, source, percent=percent, no_clients=no_clients, sample=sample, advise=advise)


@command(app, TRY, *ENTRY, "on_corrupt")
def rehearse(
    run: Run,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="of the database: pg_dump --schema-only, supabase db dump")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="rows: a dump (.sql), .csv with a header, or .jsonl")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="so many rows, made up beyond those of --data; else 1,000")
    ] = None,
    observe: Annotated[
        bool, typer.Option("--observe", help="make rows up in the shape of the real column: reads 200 values of it")
    ] = False,
    scratch_dsn: Annotated[
        str | None,
        typer.Option("--scratch-dsn", metavar="DSN", help="a Postgres marked as scratch, instead of its own"),
    ] = None,
    scratch_redis_url: Annotated[
        str | None, typer.Option("--scratch-redis-url", metavar="URL", help="a Redis marked as scratch, likewise")
    ] = None,
    accept_set_aside: AcceptSetAside = 0,
    accept_expiring: AcceptExpiring = 0,
    accept_mention: AcceptMention = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="keep its document, for cachemig report")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="draw the report, as it stood after the drop or at the end")
    ] = None,
) -> None:
    """Rehearse a whole migration on throw-away servers.

    Loads a schema and rows, and walks the ladder up to the drop of the column and down again under simulated traffic.
    Shows every statement that would run. Exit code 3 where a gate, a dependent or the linter says no.

    Example:
      cachemig rehearse --schema schema.sql
      cachemig rehearse --schema schema.sql --data rows.jsonl --report r.html
    """
    from cachemig.cli import rehearsing
    from cachemig.rehearsal.rehearse import Asked

    asked = Asked(
        schema,
        data,
        rows,
        observe,
        scratch_dsn,
        scratch_redis_url,
        accept_set_aside,
        accept_expiring,
        tuple(accept_mention or ()),
        output,
        report,
    )
    rehearsing.rehearse(run, asked)


@app.command(rich_help_panel=TRY)
def demo(
    rows: Annotated[int, typer.Option(min=100, help="rows of the demo table")] = 4000,
    seed: Annotated[int, typer.Option(help="makes the same rows and the same traffic again")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="leave the servers running, to try commands")] = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="draw the report of its drop")] = None,
) -> None:
    """Watch a whole migration on throw-away servers.

    Under write traffic, and down again. Needs nothing but the package's extra: pip install 'cachemig[demo]'.

    Example:
      cachemig demo --keep
    """
    from cachemig.demo.walk import run_demo

    raise typer.Exit(run_demo(rows=rows, seed=seed, keep=keep, report=report))

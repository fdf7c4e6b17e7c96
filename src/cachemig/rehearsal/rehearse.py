"""rehearse: the whole migration of a schema, on servers that nobody will miss."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from psycopg import sql

from cachemig import __version__
from cachemig.config import Settings
from cachemig.demo.servers import what_root_does
from cachemig.errors import ConfigError, Refused, TableUnfit
from cachemig.rehearsal import rows as making
from cachemig.rehearsal import schema as dumps
from cachemig.rehearsal.frontend import Reads
from cachemig.rehearsal.record import Ran, Rehearsed, Traffic, without_keys
from cachemig.rehearsal.rows import Maker
from cachemig.rehearsal.scratch import Servers, connected, servers, settings_as_environment
from cachemig.rehearsal.traffic import Traffic as Writing
from cachemig.rehearsal.walk import SHORTENED, Migration, Scene, Stopped, Walk, Writer, more_than
from cachemig.source import queries
from cachemig.source.connect import connect, source_errors
from cachemig.source.table import inspect

ROWS = 1000
_RUN = "run.json"
_CHANGES_PER_S = 40.0


@dataclass(frozen=True)
class Asked:
    """The flags of `cachemig rehearse`."""

    schema: Path | None = None
    data: Path | None = None
    rows: int | None = None
    observe: bool = False
    scratch_dsn: str | None = None
    scratch_redis_url: str | None = None
    accept_set_aside: int = 0
    accept_expiring: int = 0
    accept_mention: tuple[str, ...] = ()
    output: Path | None = None
    report: Path | None = None
    seed: int = 1


class Table:
    """The scene of a rehearsal: one table of a schema, and an application that is made up."""

    def __init__(self, found: Servers, settings: Settings, maker: Maker, asked: Asked) -> None:
        self.dsn, self.redis_url, self.column = found.dsn, found.redis_url, settings.column
        self.writing: Writing | None = None
        self._settings, self._maker, self._asked = settings, maker, asked

    def writer(self) -> Writer:
        self.writing = Writing(self.dsn, self._settings, self._maker, rate_per_s=_CHANGES_PER_S)
        return self.writing

    def keys(self) -> list[str]:
        s = self._settings
        statement = sql.SQL("SELECT DISTINCT {key}::text FROM {table} WHERE {key} IS NOT NULL LIMIT 1000").format(
            key=sql.Identifier(s.key_column), table=sql.Identifier(*s.table.split(".", 1))
        )
        with connected(self.dsn) as conn, source_errors():
            return sorted(str(row[0]) for row in conn.execute(statement))

    def prove(self, walk: Walk) -> tuple[str, ...]:
        number = self._asked.accept_set_aside
        accepted = ("--accept-set-aside", str(number)) if number else ()
        walk.run("backfill", why="Deliver everything that was there before.")
        walk.run("verify", *accepted, why="The proof: every key of both sides is compared, while programs write.")
        return accepted

    def accept_expiring(self, found: int) -> int:
        """Made-up rows have no recording, so their number says nothing; of given ones it is for a person to accept."""
        if self._asked.data is not None or self._asked.schema is None:
            return self._asked.accept_expiring
        return more_than(found)

    def late_write(self) -> None:
        s = self._settings
        statement = sql.SQL(
            "UPDATE {table} SET {column} = {value} WHERE ctid = (SELECT min(ctid) FROM {table}"
            " WHERE {column} IS NOT NULL AND {key} IS NOT NULL)"
        ).format(
            table=sql.Identifier(*s.table.split(".", 1)),
            column=sql.Identifier(s.column),
            key=sql.Identifier(s.key_column),
            value=sql.Literal(self._maker.value()),
        )
        with connected(self.dsn) as conn, source_errors():
            conn.execute(statement)


def rehearse(settings: Settings, asked: Asked, say: Callable[[str], None], *, keep: bool = True) -> Rehearsed:
    """Loads schema and rows, walks the whole ladder under traffic, and says what said no. Leaves nothing behind.

    `say` prints what is going on; with `keep` also what the commands tell, which is then part of the result. Raises
    ConfigError and Refused for what cannot be loaded; a step that fails is a reason, not an error.
    """
    if asked.schema is None and asked.scratch_dsn is None:
        raise ConfigError(
            "say which schema to rehearse",
            hint="pg_dump --schema-only DATABASE > schema.sql, then cachemig rehearse --schema schema.sql",
        )
    given = _look_at_files(asked)
    skeletons = _observed(settings) if asked.observe else []
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="cachemig-rehearsal-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        if asked.scratch_dsn is None and (note := what_root_does()):
            say(note)
        say("Starting throw-away servers …")
        found = stack.enter_context(servers(directory, asked.scratch_dsn, asked.scratch_redis_url))
        notes, maker, count = _load(found, settings, asked, given, skeletons)
        say(f"{settings.table} holds {count:,} rows.")
        for note in notes:
            say(f"note: {note}")
        environment = settings_as_environment(settings) | {
            "CACHEMIG_DSN": found.typed,
            "CACHEMIG_REDIS_URL": found.redis_url,
        }
        scene = Table(found, settings, maker, asked)
        outcome = walk_of(scene, found, directory, environment, say, keep=keep, asked=asked)
    refused = scene.writing.refused if scene.writing else {}
    notes += [f"the simulated application makes no {kind}: {why}" for kind, why in refused.items()]
    return replace(outcome, table=settings.table, rows=count, notes=(*notes, *outcome.notes))


def walk_of(
    scene: Scene,
    found: Servers,
    directory: Path,
    environment: dict[str, str],
    say: Callable[[str], None],
    *,
    keep: bool,
    asked: Asked,
    descend: bool = True,
) -> Rehearsed:
    """One walk over the ladder; whatever ends it early is a reason."""
    report = asked.report
    began, at = time.monotonic(), datetime.now(UTC)
    before = dumps.lines_of(found.dsn) if descend else []
    walk = Walk(directory, environment | SHORTENED, say, keep=keep)
    migration = Migration(walk, scene, seed=asked.seed, accept_mention=asked.accept_mention)
    ran: list[Ran] = []
    keys: list[str] = []

    def look_back() -> None:
        ran[:] = _executed(found.dsn)
        keys[:] = _known_keys(found.dsn)
        if report is not None and not (directory / _RUN).exists():
            walk.quietly("report", "--no-clients", "--run-json", _RUN, "--output", "report.html")

    try:
        migration.up_and_down(look_back, descend=descend)
    except Stopped as exc:
        walk.reasons += exc.reasons
        look_back()
    else:
        walk.reasons += _changed(before, dumps.lines_of(found.dsn)) if descend else []
    walk.reasons += [f"squawk: {line}" for line in walk.linted]
    walk.reasons += _failures(migration)
    notes = [f"{name.removeprefix('CACHEMIG_').lower()} is {value} here" for name, value in SHORTENED.items()]
    if walk.linter is None:
        notes.append("no linter looked at the migration files: pip install 'cachemig[demo]' brings squawk")
    outcome = Rehearsed(
        passed=not walk.reasons,
        reasons=tuple(walk.reasons),
        notes=tuple(notes),
        table="",
        column=scene.column,
        rows=0,
        steps=tuple(walk.steps),
        sql=tuple(ran),
        lint=tuple(walk.linted),
        linter=None if walk.linter is None else "squawk",
        traffic=_traffic(migration),
        versions={"cachemig": __version__, **found.versions},
        began=at.isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 1),
    )
    outcome = without_keys(outcome, keys)
    if report is not None and (directory / _RUN).exists():
        _draw(directory / _RUN, outcome, report)
    return outcome


def _draw(run: Path, outcome: Rehearsed, to: Path) -> None:
    """The report as it was when the column had been dropped, with the rehearsal in it."""
    from cachemig.report import html
    from cachemig.steps.report.document import read_document
    from cachemig.steps.report.redact import rehearsed

    told = json.loads(json.dumps(outcome.document()))  # as a file would have it
    html.write(to, {**read_document(run), "of_a_rehearsal": True, "rehearsal": rehearsed(told, show_keys=True)})


def _look_at_files(asked: Asked) -> list[Mapping[str, str | None]]:
    """The rows of a sample. Raises ConfigError for what cannot be read, or written to in the end."""
    for path in (asked.output, asked.report):
        if path is not None and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
            raise ConfigError(f"{path} cannot be written", hint="name a file in a folder that is there")
    if asked.schema is not None:
        dumps.check(asked.schema)
    if asked.data is None:
        return []
    if asked.data.suffix == ".sql":
        dumps.check(asked.data)
        return []
    return making.read_sample(asked.data)


def _load(
    found: Servers,
    settings: Settings,
    asked: Asked,
    given: list[Mapping[str, str | None]],
    skeletons: list[object],
) -> tuple[list[str], Maker, int]:
    """Schema and rows. Notes, what makes further rows, and how many there are."""
    notes: list[str] = []
    if asked.schema is not None:
        notes += dumps.load_dump(found.dsn, asked.schema)
    here = replace(settings, dsn=found.dsn, redis_url=found.redis_url)
    try:
        with connect(here) as conn:
            inspect(conn, here)
    except TableUnfit as exc:
        if asked.schema is not None:
            exc.hint = f"{asked.schema} makes no such table: dump it whole, or see cachemig doctor --show-config"
        raise
    from_a_dump = asked.data is not None and asked.data.suffix == ".sql"
    if asked.data is not None and from_a_dump:
        notes += dumps.load_data(found.dsn, asked.data)
    skeletons = skeletons or making.skeletons(row.get(settings.column) for row in given)
    # What the emg shape checks hangs together: figures at random would all be corrupt.
    maker_of = [] if settings.shape == "emg" else skeletons
    with connected(found.dsn) as conn, source_errors():
        maker = Maker(making.columns(conn, here), here, maker_of, random.Random(asked.seed))
        if asked.schema is not None and not from_a_dump:
            wanted = asked.rows or (len(given) if given else ROWS)
            making.load_rows(conn, here, maker, given, wanted)
            made = wanted - len(given)
            if made > 0:
                notes.append(
                    f"{made:,} rows are made up" + (", in the shape of what was seen" if maker.skeletons else "")
                )
        row = conn.execute(
            sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(*settings.table.split(".", 1)))
        ).fetchone()
    if row is None or not row[0]:
        raise Refused(f"{settings.table} holds no row: there is nothing to rehearse with", hint="give --rows 1000")
    return notes, maker, int(row[0])


def _observed(settings: Settings) -> list[object]:
    if not settings.dsn and not any(name.startswith("PG") for name in os.environ):
        raise ConfigError("--observe reads the real column", hint="say where it is: --dsn, or CACHEMIG_DSN")
    with connect(settings) as conn:
        return making.observe(conn, settings)


def _executed(dsn: str) -> list[Ran]:
    with connected(dsn) as conn, source_errors():
        row = conn.execute("SELECT to_regclass('cachemig.journal') IS NOT NULL").fetchone()
        if not row or not row[0]:
            return []
        return [
            Ran(command, tuple(texts))
            for command, texts in conn.execute(queries.text("rehearsal", "rehearsal_executed"))
        ]


def _known_keys(dsn: str) -> list[str]:
    with connected(dsn) as conn, source_errors():
        row = conn.execute("SELECT to_regclass('cachemig.entry') IS NOT NULL").fetchone()
        if not row or not row[0]:
            return []
        return [str(key) for (key,) in conn.execute(queries.text("rehearsal", "rehearsal_keys"))]


def _changed(before: list[str], after: list[str]) -> list[str]:
    """What is not as it was when all is done and undone."""
    gone, new = sorted(set(before) - set(after)), sorted(set(after) - set(before))
    return [f"the schema lacks afterwards: {line}" for line in gone] + [
        f"the schema has afterwards, and had not: {line}" for line in new
    ]


def _failures(migration: Migration) -> list[str]:
    counts, reads = migration.counts, migration.reads.failed + migration.later.failed
    found = []
    if counts is not None and counts.failed:
        found.append(f"{counts.failed:,} writes of the application failed, the last with: {counts.last_error}")
    made = migration.reads.sources.total() + migration.later.sources.total()
    if reads > (made + reads) / 1000:
        last = migration.later.last_error or migration.reads.last_error
        found.append(f"{reads:,} of {made + reads:,} reads through CacheService failed, the last with {last}")
    return found


def _traffic(migration: Migration) -> Traffic:
    counts, first, later = migration.counts, migration.reads, migration.later
    both = Reads(milliseconds=first.milliseconds + later.milliseconds)
    return Traffic(
        changes=counts.changes if counts else 0,
        changes_failed=counts.failed if counts else 0,
        reads=first.sources.total() + later.sources.total(),
        reads_failed=first.failed + later.failed,
        update_p50_ms=counts.update_p50_ms if counts else None,
        update_p99_ms=counts.update_p99_ms if counts else None,
        read_p50_ms=both.p50_ms,
    )

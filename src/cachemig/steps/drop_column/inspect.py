"""What a DROP COLUMN would meet: what stops it, what goes with it without a word, what breaks later, who notices.

Reads only, takes no lock that anybody waits for, and works when the column is gone already. Of statements of others no
text is shown that could hold a value: pg_stat_statements has none, and of a session only the first word is taken.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from psycopg import sql
from psycopg.rows import dict_row

from cachemig.config import Settings
from cachemig.errors import SourceError, TableUnfit
from cachemig.source import queries
from cachemig.source.connect import Connection, connect, source_errors, transaction
from cachemig.source.table import CHECK
from cachemig.stop import Stop

LOCK_TIMEOUT_S = 2.0
SHOWN = 160
"""Characters of a line that are shown."""


class Effect(StrEnum):
    """What a drop does with something that has to do with the column."""

    BLOCKS = "blocks"
    """Postgres refuses the drop while it is there."""
    BREAKS = "breaks"
    """Postgres does not look into it: it fails when it is used next."""
    VANISHES = "vanishes"
    """It goes with the column, without a word."""
    STAYS = "stays"
    """A child table that keeps a column of its own."""


@dataclass(frozen=True)
class Dependent:
    """Something that has to do with the column, and what to do about it."""

    effect: Effect
    kind: str
    name: str
    what_to_do: str
    recreate: str | None = None
    """SQL that makes again what goes, once the column and its data are back."""
    lines: tuple[str, ...] = ()
    """Where a text mentions the column: `line: text`."""


@dataclass(frozen=True)
class Statement:
    """A statement of pg_stat_statements, with its constants taken out by Postgres."""

    queryid: str
    text: str
    why: str
    """names it, reads all columns, or INSERT without a list of columns"""
    user: str
    calls: int
    calls_meanwhile: int
    """While it was watched; 0 where it was not."""
    since: datetime | None
    """Counted from then on; None before PostgreSQL 17."""
    last_call: datetime | None
    """By a session that has run nothing else since; None: not known."""


@dataclass(frozen=True)
class Session:
    """Somebody whom the drop would have to wait for now (`lock`), or whose transaction has been open for a minute."""

    who: str
    lock: str | None
    seconds: float | None


@dataclass(frozen=True)
class Observer:
    """A server or program that follows this database, and what the drop means to it."""

    kind: str
    name: str
    what_to_do: str


@dataclass(frozen=True)
class Column:
    """A column as the catalog has it, and the SQL that makes it again, empty."""

    name: str
    type: str
    add: str
    """ADD COLUMN, with its default."""
    then: tuple[str, ...]
    """Storage, comment and grants."""
    after_data: tuple[str, ...]
    """NOT NULL."""


@dataclass(frozen=True)
class Subject:
    """The table, also where it has the column no more."""

    oid: int
    schema: str
    name: str
    kind: str
    relids: tuple[int, ...]
    """With its partitions, and children that have the column from it."""

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def qualified(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class Inspection:
    """Everything that a DROP COLUMN would meet at this moment."""

    table: str
    columns: tuple[Column, ...]
    """That are there, in the order in which they were named."""
    gone: tuple[str, ...]
    """Named, and not there (any more)."""
    children: tuple[str, ...]
    """Partitions and children that lose the column too."""
    dependents: tuple[Dependent, ...]
    statements: tuple[Statement, ...]
    statements_seen: str
    """What pg_stat_statements could be asked, and how far that goes."""
    sessions: tuple[Session, ...]
    connected: int
    """Sessions of others, which may hold prepared statements; nobody but they can see them."""
    observers: tuple[Observer, ...]
    postgrest: bool
    notes: tuple[str, ...]
    table_bytes: int
    database_bytes: int

    def of(self, effect: Effect) -> tuple[Dependent, ...]:
        return tuple(d for d in self.dependents if d.effect is effect)

    def in_the_way(self, accept: Collection[str] = ()) -> tuple[Dependent, ...]:
        """What must be changed before the drop. `accept` names texts that mention the column's name and mean something
        else; what Postgres refuses to leave behind cannot be accepted."""
        breaks = (d for d in self.of(Effect.BREAKS) if d.name not in accept)
        return (*self.of(Effect.BLOCKS), *breaks)

    @property
    def recreate(self) -> dict[str, list[str]]:
        """SQL to make again what the drop takes away: `column` first, then the data, then `after_data`."""
        vanishing = [d.recreate for d in self.of(Effect.VANISHES) if d.recreate]
        # Constraints that need an index, or other constraints, come after those.
        vanishing.sort(key=lambda text: (" FOREIGN KEY " in text, not text.startswith("ALTER TABLE")))
        return {
            "column": [text for c in self.columns for text in (c.add, *c.then)],
            "after_data": [*(text for c in self.columns for text in c.after_data), *vanishing],
        }


# By type as pg_identify_object() has it, and by what becomes of it: how it is called here, and what to do about it.
_GENERATED = "drop it, or make it an ordinary column: ALTER TABLE .. ALTER COLUMN .. DROP EXPRESSION"
_PARSED = "its body is SQL that Postgres has parsed: write it anew without the column"
_BLOCKS: dict[str, tuple[str, str]] = {
    "view": (
        "view",
        "replace it by one without the column. CREATE OR REPLACE VIEW cannot take a column away: "
        "DROP VIEW and CREATE VIEW in one transaction, with its grants",
    ),
    "materialized view": (
        "materialised view",
        "create one without the column beside it, move its readers over, then drop it",
    ),
    "rule": ("rule", "drop it, or write it anew without the column: CREATE OR REPLACE RULE"),
    "policy": (
        "policy",
        "write it anew without the column: ALTER POLICY .. USING (..). See what it protected: Redis has no policies",
    ),
    "default value": ("generated column", _GENERATED),
    "table column": ("generated column", _GENERATED),
    "trigger": ("trigger", "create it anew without the column in its UPDATE OF list or WHEN condition"),
    "publication relation": (
        "publication",
        "ALTER PUBLICATION .. SET TABLE, without the column in list or filter; it replaces the whole list of tables",
    ),
    "function": ("function", _PARSED),
    "procedure": ("procedure", _PARSED),
    "table constraint": ("foreign key", "it refers to the column: drop it, or let it refer to another one"),
}
_OTHER = "remove the dependency first; cachemig never does it for you (CASCADE)"
_VANISHES: dict[str, tuple[str, str]] = {
    "index": ("index", "see whether a query relies on it, on its other columns too"),
    "table constraint": ("constraint", "keep what it says of other columns in a new one"),
    "statistics object": ("statistics", "plans may change: create it anew for its other columns"),
    "table column": ("generated column", f"it is computed from the column. To keep it: {_GENERATED}"),
    "sequence": ("sequence", "the column owns it: ALTER SEQUENCE .. OWNED BY NONE keeps it"),
}
_MENTIONS = "Postgres does not look into it: see whether it means this column, then change it, or accept it by name"
_FIRES = "it runs at writes to this table: once the column is gone each of them would fail. " + _MENTIONS


def inspection(
    settings: Settings,
    *,
    with_columns: Sequence[str] = (),
    stop: Stop | None = None,
    watch_s: float = 0.0,
) -> Inspection:
    """What a drop of the column, and of `with_columns` in the same pass, would meet now. Reads only.

    `watch_s`: so long pg_stat_statements is watched, to tell what is still called from what once was. Raises
    SourceError; TableUnfit where the table does not exist.
    """
    with connect(settings) as conn:
        before: dict[tuple[str, str], int] = {}
        if watch_s:
            with transaction(conn, read_only=True, lock_timeout_s=LOCK_TIMEOUT_S):
                subject = find(conn, settings)
                names = named(settings, with_columns)
                before = {(s.queryid, s.user): s.calls for s in _statements(conn, subject, names, {})[0]}
            (stop or Stop()).wait(watch_s)
        with transaction(conn, read_only=True, lock_timeout_s=LOCK_TIMEOUT_S):
            return look(conn, settings, with_columns, calls_before=before)


def named(settings: Settings, with_columns: Iterable[str]) -> tuple[str, ...]:
    """The columns to drop: the migrated one, then the related ones. Raises TableUnfit where one is still needed."""
    names = tuple(dict.fromkeys((settings.column, *with_columns)))
    if settings.key_column in names:
        raise TableUnfit(
            f"{settings.key_column!r} is the key by which Redis is read: it stays", hint="take it out of --with"
        )
    return names


def find(conn: Connection, settings: Settings) -> Subject:
    """The table and what hangs on it. Unlike source.table.inspect() it does not want the column to be there."""
    name = settings.table
    quoted = name if '"' in name else ".".join(f'"{part}"' for part in name.split("."))
    with source_errors(), conn.cursor(row_factory=dict_row) as cur:
        oid = conn.execute(queries.text("catalog", "table_oid"), {"table": quoted}).fetchone()
        if oid is None or oid[0] is None:
            raise TableUnfit(f"table {name!r} does not exist, or is not on the search_path", hint=CHECK)
        facts = cur.execute(queries.text("catalog", "table_facts"), {"oid": oid[0]}).fetchone()
        tree = conn.execute(queries.text("drop_column", "drop_tree"), {"oid": oid[0]}).fetchall()
    assert facts is not None
    return Subject(int(oid[0]), facts["schema"], facts["name"], facts["kind"], tuple(int(row[0]) for row in tree))


def look(
    conn: Connection,
    settings: Settings,
    with_columns: Sequence[str] = (),
    *,
    calls_before: dict[tuple[str, str], int] | None = None,
) -> Inspection:
    """As inspection(), in the caller's transaction."""
    names = named(settings, with_columns)
    with source_errors():
        subject = find(conn, settings)
        columns = _columns(conn, subject, names)
        places = conn.execute(
            queries.text("drop_column", "drop_columns"), {"oid": subject.oid, "columns": list(names)}
        ).fetchall()
        going = [row for row in places if row[3]]
        statements, seen = _statements(conn, subject, names, calls_before or {})
        bytes_ = conn.execute(queries.text("drop_column", "drop_bytes"), {"relids": list(subject.relids)}).fetchone()
        connected = conn.execute(queries.text("drop_column", "drop_connected")).fetchone()
        postgrest = conn.execute(queries.text("drop_column", "drop_postgrest")).fetchone()
        assert bytes_ is not None
        assert connected is not None
        assert postgrest is not None
        return Inspection(
            table=subject.qualified,
            columns=columns,
            gone=tuple(name for name in names if name not in {c.name for c in columns}),
            children=tuple(dict.fromkeys(str(row[5]) for row in going if row[4] > 0)),
            dependents=(
                *_inherited(conn, subject, names),
                *_known(conn, going),
                *_mentioned(conn, subject, names),
                *_jobs(conn, names),
                *(
                    Dependent(
                        Effect.STAYS,
                        "child table",
                        f"{row[5]}.{row[2]}",
                        "it defines the column itself, or has it from another parent too: it keeps it, with its data",
                    )
                    for row in places
                    if not row[3]
                ),
            ),
            statements=statements,
            statements_seen=seen,
            sessions=_sessions(conn, subject),
            connected=int(connected[0]),
            observers=_observers(conn, subject),
            postgrest=bool(postgrest[0]),
            notes=_notes(conn, int(connected[0])),
            table_bytes=int(bytes_[3]),
            database_bytes=int(bytes_[4]),
        )


def pattern(names: Iterable[str]) -> str:
    """A regular expression of Postgres that finds any of the names as a word, in any case."""
    escaped = (re.sub(r"([^\w])", r"\\\1", name) for name in names)
    return r"(?<!\w)(" + "|".join(escaped) + r")(?!\w)"


def lines(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """The lines of a text that have one of the names as a word: `number: line`."""
    word = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, names)) + r")(?!\w)", re.IGNORECASE)
    found = ((n, line) for n, line in enumerate(text.splitlines(), 1) if word.search(line))
    return tuple(f"{n}: {line.strip()[:SHOWN]}" for n, line in found)


# The column, and what the catalog knows ----------------------------------------------------------------------------


def _columns(conn: Connection, subject: Subject, names: Sequence[str]) -> tuple[Column, ...]:
    rows = conn.execute(
        queries.text("drop_column", "drop_definition"), {"oid": subject.oid, "columns": list(names)}
    ).fetchall()
    found = []
    for name, type_, not_null, default, generated, comment, *more in rows:
        storage, compression, target, options, collation, grants = more
        column = sql.Identifier(name)
        add = (
            sql.SQL("ALTER TABLE IF EXISTS {} ADD COLUMN IF NOT EXISTS {} {}")
            .format(subject.identifier, column, sql.SQL(type_))
            .as_string(conn)
        )
        add += f" COLLATE {collation}" if collation else ""
        if default is not None:
            add += f" GENERATED ALWAYS AS ({default}) STORED" if generated else f" DEFAULT {default}"
        alter = (
            sql.SQL("ALTER TABLE IF EXISTS {} ALTER COLUMN {} SET ").format(subject.identifier, column).as_string(conn)
        )
        then = []
        if storage:
            then.append(f"{alter}STORAGE {storage}")
        if compression:
            then.append(f"{alter}COMPRESSION {compression}")
        if target is not None:
            then.append(f"{alter}STATISTICS {target}")
        if options:
            then.append(f"{alter}({', '.join(options)})")
        if comment:
            comment_on = sql.SQL("COMMENT ON COLUMN {}.{} IS {}")
            then.append(comment_on.format(subject.identifier, column, sql.Literal(comment)).as_string(conn))
        after_data = (f"{alter}NOT NULL",) if not_null else ()
        found.append(Column(name, type_, add, (*then, *grants), after_data))
    return tuple(found)


def _inherited(conn: Connection, subject: Subject, names: Sequence[str]) -> list[Dependent]:
    rows = conn.execute(
        queries.text("drop_column", "drop_inherited"), {"oid": subject.oid, "columns": list(names)}
    ).fetchall()
    return [
        Dependent(
            Effect.BLOCKS,
            "parent table",
            str(parent),
            f"{column} comes from there: drop it there, or ALTER TABLE .. NO INHERIT (a partition: DETACH) first",
        )
        for column, parent in rows
    ]


def _known(conn: Connection, going: Sequence[tuple[object, ...]]) -> list[Dependent]:
    parameters = {"relids": [row[0] for row in going], "attnums": [row[1] for row in going]}
    found = [
        Dependent(
            Effect.BLOCKS,
            "partition key",
            str(name),
            "a column of a partition key cannot be dropped: the table must be made anew with another key",
        )
        for (name,) in conn.execute(queries.text("drop_column", "drop_partition_keys"), parameters).fetchall()
    ]
    rows = conn.execute(queries.text("drop_column", "drop_dependents"), parameters).fetchall()
    for blocks, type_, identity, recreate, unique, is_identity, clustered, partial, contype in rows:
        name = str(identity).removeprefix("for ")
        if blocks:
            kind, what_to_do = _BLOCKS.get(str(type_), (str(type_), _OTHER))
            if contype not in (None, "f"):
                kind, what_to_do = "constraint", _OTHER
            found.append(Dependent(Effect.BLOCKS, kind, name, what_to_do))
            continue
        kind, what_to_do = _VANISHES.get(str(type_), (str(type_), "see whether anything relies on it"))
        if unique and contype != "p":
            what_to_do = "with it goes the promise that its columns are unique: " + what_to_do
        if contype == "p":
            what_to_do = "it is the primary key: give the table another one first"
        if is_identity:
            what_to_do = (
                "it is the replica identity: without it UPDATE and DELETE fail where they are published. "
                "ALTER TABLE .. REPLICA IDENTITY first; " + what_to_do
            )
        if clustered:
            what_to_do += "; CLUSTER without an index uses it"
        if partial:
            what_to_do += "; its WHERE counts as well as its columns"
        found.append(Dependent(Effect.VANISHES, kind, name, what_to_do, None if recreate is None else str(recreate)))
    return found


# What only names it ------------------------------------------------------------------------------------------------


def _mentioned(conn: Connection, subject: Subject, names: Sequence[str]) -> list[Dependent]:
    rows = conn.execute(
        queries.text("drop_column", "drop_mentions"),
        {"oid": subject.oid, "relids": list(subject.relids), "pattern": pattern(names)},
    ).fetchall()
    found = []
    for name, body, triggers in rows:
        kind = "trigger function" if triggers else "function text"
        what = f"called by {', '.join(triggers)}: {_FIRES}" if triggers else _MENTIONS
        found.append(Dependent(Effect.BREAKS, kind, str(name), what, lines=lines(body, names)))
    return found


def _jobs(conn: Connection, names: Sequence[str]) -> list[Dependent]:
    there = conn.execute(queries.text("drop_column", "drop_has_cron")).fetchone()
    if not there or not there[0]:
        return []
    rows = conn.execute(queries.text("drop_column", "drop_cron_jobs"), {"pattern": pattern(names)}).fetchall()
    return [
        Dependent(
            Effect.BREAKS,
            "cron job",
            f"cron job {number}",
            f"runs at {schedule}: change it by cron.alter_job, or accept it by name",
            lines=lines(command, names),
        )
        for number, schedule, command in rows
    ]


def _statements(
    conn: Connection, subject: Subject, names: Sequence[str], before: dict[tuple[str, str], int]
) -> tuple[tuple[Statement, ...], str]:
    row = conn.execute(queries.text("drop_column", "drop_statistics_schema")).fetchone()
    if row is None:
        return (), "pg_stat_statements is not installed: who still uses the column is not known from here"
    statistics = sql.Identifier(str(row[0]), "pg_stat_statements")
    table = r"""(\m\w+\.|"\w+"\.)?"?""" + re.sub(r"([^\w])", r"\\\1", subject.name) + r'\M"?'
    try:
        with conn.transaction(), source_errors():
            rows = conn.execute(
                queries.query(
                    "drop_column",
                    "drop_statements",
                    statistics=statistics,
                    pattern=sql.Literal(pattern(names)),
                    inserts=sql.Literal(rf"\minsert\s+into\s+{table}\s*(values|select|default|overriding)\M"),
                    stars=sql.Literal(rf"\mselect\s+(\w+\.)?\*.*\mfrom\s+{table}"),
                )
            ).fetchall()
            hidden = conn.execute(
                queries.query("drop_column", "drop_statements_hidden", statistics=statistics)
            ).fetchone()
    except SourceError as exc:  # installed, and not in shared_preload_libraries; or no right to it
        return (), f"pg_stat_statements cannot be read: {exc}"
    found = tuple(
        Statement(
            str(queryid),
            " ".join(str(text).split())[:SHOWN],
            str(why),
            str(user),
            int(calls),
            max(0, int(calls) - before.get((str(queryid), str(user)), 0)) if before else 0,
            since,
            last,
        )
        for queryid, text, calls, user, since, last, why in rows
    )
    seen = "pg_stat_statements counts from its last reset on; SELECT pg_stat_statements_reset() and look again"
    if hidden and hidden[0]:
        seen = f"{hidden[0]} statements of others are hidden from this role (GRANT pg_read_all_stats); {seen}"
    return found, seen


# Who would notice ---------------------------------------------------------------------------------------------------


def who(
    pid: int | None,
    user: str | None,
    application: str | None,
    state: str | None,
    seconds: float | None,
    doing: str | None,
) -> str:
    """A session in words; never the text of its statement."""
    if not pid:
        return f"a prepared transaction of {user}" if user else "a prepared transaction (pg_prepared_xacts)"
    parts = [user or "?", *([application] if application else []), state or "state not visible"]
    if doing:
        parts.append(doing)
    since = f", in a transaction for {seconds:.0f} s" if seconds is not None else ""
    return f"pid {pid} ({', '.join(parts)}{since})"


def _sessions(conn: Connection, subject: Subject) -> tuple[Session, ...]:
    rows = conn.execute(queries.text("drop_column", "drop_sessions"), {"relids": list(subject.relids)}).fetchall()
    return tuple(
        Session(
            f"prepared transaction {gid} of {user}" if gid else who(pid, user, application, state, seconds, doing),
            lock,
            None if seconds is None else round(float(seconds), 1),
        )
        for pid, user, application, state, seconds, doing, lock, gid in rows
    )


def _observers(conn: Connection, subject: Subject) -> tuple[Observer, ...]:
    parameters = {"oid": subject.oid, "relids": list(subject.relids)}
    found = [
        Observer(
            "publication",
            str(name),
            "the column is no longer published. Drop it here first and on the subscribers after: the other way round "
            "their apply worker stops. A NOT NULL without a default there would stop it too",
        )
        for (name,) in conn.execute(queries.text("drop_column", "drop_publications"), parameters).fetchall()
    ]
    found += [
        Observer(
            "logical slot",
            f"{name} ({plugin}{'' if active else ', inactive'})",
            "whoever reads it sees rows without the column from the drop on: tell him, before it",
        )
        for name, plugin, active in conn.execute(queries.text("drop_column", "drop_slots")).fetchall()
    ]
    found += [
        Observer(
            "standby",
            f"{name} ({state}, {sync}{'' if lag is None else f', {lag:.1f} s behind'})",
            "queries on it that use the table are cancelled after max_standby_streaming_delay, or hold up its replay; "
            "where commits wait for it, so does the end of the drop's lock",
        )
        for name, state, sync, lag in conn.execute(queries.text("drop_column", "drop_standbys")).fetchall()
    ]
    found += [
        Observer(
            "subscription",
            str(name),
            "it fills this table from another server: drop the column there first, else its apply worker stops",
        )
        for (name,) in conn.execute(queries.text("drop_column", "drop_subscriptions"), parameters).fetchall()
    ]
    return tuple(found)


def _notes(conn: Connection, connected: int) -> tuple[str, ...]:
    notes = []
    if connected:
        notes.append(
            f"{connected} other sessions are connected. Nobody can see their prepared statements: one prepared as "
            "SELECT * fails after the drop with 'cached plan must not change result type', until it is prepared anew "
            "(DISCARD ALL, a new connection, or the driver's own retry); in a transaction that is lost with it. "
            "Statements that name their columns are planned anew, without an error"
        )
    there = conn.execute(queries.text("drop_column", "drop_has_cron")).fetchone()
    if there and there[0] is False:
        notes.append("cron.job cannot be read by this role: jobs were not looked at")
    notes += [
        f"the event trigger {name} ({event}) runs {function}() in the drop's transaction: it can fail it or hold it up"
        for name, event, function in conn.execute(queries.text("drop_column", "drop_event_triggers")).fetchall()
    ]
    return tuple(notes)

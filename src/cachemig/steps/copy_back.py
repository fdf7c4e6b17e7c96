"""copy_back: the way from redis-only to cutover. The column gets what Redis has newer, and is used again.

Applications go on reading Redis throughout. Writes are refused (by Redis itself, which is told of the next epoch) only
from the last pass on, which looks at what changed during the one before; so for seconds, not for the length of a copy.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from cachemig.config import Settings
from cachemig.entries.codec import Undecodable, decode
from cachemig.errors import CachemigError, LeaseHeld, Refused, SourceError
from cachemig.ladder import Phase
from cachemig.progress import Progress
from cachemig.source import capture, control, queries
from cachemig.source.connect import Connection, connect, transaction
from cachemig.source.connect import run as execute
from cachemig.source.table import Table, inspect
from cachemig.steps import dry_run, epoch
from cachemig.steps.epoch import Prepared
from cachemig.steps.retry import Reconnecting, attempts, lock_attempts, reason
from cachemig.steps.unfinished import unfinished
from cachemig.stop import Stop
from cachemig.targets.keys import VERSION, escape, owner_of
from cachemig.targets.redis import RedisTarget

AGAIN = "cachemig rollback"
SHOWN = 20
_BATCH = 200


@dataclass
class CopiedBack:
    """What Redis had newer."""

    keys: int = 0
    """Written in redis-only, or removed there."""
    written: int = 0
    """Of the rows: those that held something else."""
    emptied: int = 0
    """Rows whose key was removed in Redis, or has expired there."""
    late: int = 0
    """Late writes that Redis never had: they stay in the column."""
    left: dict[str, str] = field(default_factory=dict)
    """Keys whose value the table has no place for, and why: they are gone with the next delivery."""
    writes_refused_s: float = 0.0
    """So long writes failed, between the last pass and the end."""

    def figures(self) -> dict[str, Any]:
        """For the journal: numbers alone."""
        numbers = ("keys", "written", "emptied", "late")
        return {**{name: getattr(self, name) for name in numbers}, "left": len(self.left)}


def newer(target: RedisTarget, base: int) -> Iterator[list[tuple[str, int]]]:
    """Keys that were written to Redis alone, with their versions, in batches; some may come twice."""
    template = target.template
    for names in target.scan(f"{VERSION}{{*{escape(template.after)}*"):
        mine = [template.key_of(owner_of(name, VERSION)) for name in names]
        keys = [key for key in mine if key is not None and capture.can_be_key(key)]
        yield [(key, version) for key, version in zip(keys, target.versions(keys), strict=True) if version >= base]


def copy_back(
    session: Reconnecting, settings: Settings, target: RedisTarget, stop: Stop, *, accept_left: int
) -> Generator[Progress, None, CopiedBack]:
    """Leads from redis-only to cutover 100 %. Killed at any point, the same command does what is left.

    Raises Refused where keys have no place in the table and were not accepted by number, LockNotGranted where the table
    was in use at every try, Interrupted: writes to Redis alone then go on as before.
    """
    result = CopiedBack()
    migration = control.require(session.get(), settings, "rollback")
    table = inspect(session.get(), settings)
    run = _Run(session, settings, target, stop, table, migration.base, result)
    with unfinished(settings, "rollback", lambda: result.figures() if result.keys else {}, phase_from=migration.phase):
        yield from run.copy()
        run.require_room(accept_left)
        with control.lease(session.get(), "ladder") as fence:
            _still(session.get(), settings)
            began = time.monotonic()
            ended = False
            while not ended:
                prepared = _fence(session.get(), migration, target)
                try:
                    yield from run.copy()
                    run.require_room(accept_left)
                    ended = yield from _end(run, prepared, fence)
                except BaseException:  # whatever it was, writes are not to be refused until somebody comes
                    with suppress(CachemigError), connect(settings) as conn:  # the other one may be gone
                        _lift(conn, settings, target, prepared)
                    raise
            result.writes_refused_s = round(time.monotonic() - began, 3)
    return result


@dataclass
class _Run:
    session: Reconnecting
    settings: Settings
    target: RedisTarget
    stop: Stop
    table: Table
    base: int
    result: CopiedBack
    seen: dict[str, int] = field(default_factory=dict)
    """The version that each key had when its value was read, or a later one of the value had come by then."""

    def copy(self) -> Generator[Progress, None, None]:
        """Copies every key whose version is another one than was seen."""
        for found in newer(self.target, self.base):
            changed = [(key, version) for key, version in found if version > self.seen.get(key, -1)]
            for at in range(0, len(changed), _BATCH):
                part = changed[at : at + _BATCH]
                for attempt in attempts(self.settings, self.stop):
                    with attempt, self.session.guard() as conn:
                        self._copy(conn, dict(part))
                    if waiting := reason(attempt.retry_state):
                        yield Progress(self.result.keys, None, "keys", waiting=waiting)
                self.seen |= dict(part)  # read before the values: a write in between shows as another version
                self.result.keys = len(self.seen)
            self.stop.check(f"what was copied stays; to go on: {AGAIN}")
            yield Progress(self.result.keys, None, "keys")

    def _copy(self, conn: Connection, versions: dict[str, int]) -> None:
        texts: dict[str, str | None] = {}
        for found in self.target.fetch(list(versions)):
            self.result.left.pop(found.key, None)
            try:
                texts[found.key] = None if found.value is None else bytes(decode(found.value)).decode()
            except (Undecodable, UnicodeDecodeError):
                self.result.left[found.key] = "its bytes are not the text of a value"
        self.put(conn, texts, versions)

    def put(self, conn: Connection, texts: dict[str, str | None], versions: dict[str, int]) -> None:
        """Writes these texts into the column, None for no value; all of them or, where the column refuses one, each by
        itself."""
        try:
            written, emptied, without = self._put(conn, texts, versions)
        except SourceError as exc:
            if not isinstance(exc.__cause__, psycopg.DataError | psycopg.IntegrityError):
                raise
            if len(texts) == 1:
                (key,) = texts
                self.result.left[key] = f"the column refuses it: {type(exc.__cause__).__name__}"
                return
            for key, text in texts.items():
                self.put(conn, {key: text}, versions)
            return
        self.result.written += written
        self.result.emptied += emptied
        self.result.left |= dict.fromkeys(without, "no row has this key")

    def _put(
        self, conn: Connection, texts: dict[str, str | None], versions: dict[str, int]
    ) -> tuple[int, int, list[str]]:
        with transaction(conn, lock_timeout_s=self.settings.lock_timeout):
            copied = {"keys": list(texts), "versions": [versions[key] for key in texts]}
            conn.execute(queries.text("late_write", "late_copied"), copied)
            return self.put_inside(conn, texts)

    def put_inside(self, conn: Connection, texts: dict[str, str | None]) -> tuple[int, int, list[str]]:
        """In the caller's transaction: rows written, rows emptied, keys without a row."""
        parts = self._parts(texts)
        conn.execute(queries.text("copy_back", "copying"))
        conn.execute(queries.query("copy_back", "lock_rows", **parts))
        written = conn.execute(queries.query("copy_back", "put_back", **parts)).rowcount
        emptied = conn.execute(queries.query("copy_back", "empty_again", **parts)).rowcount
        without = conn.execute(queries.query("copy_back", "without_row", **parts)).fetchall()
        return written, emptied, [str(row[0]) for row in without]

    def _parts(self, texts: dict[str, str | None]) -> dict[str, sql.Composable]:
        table = self.table
        order = [sql.SQL("t.{}").format(sql.Identifier(c)) for c in table.row_key or ("tableoid", "ctid")]
        return {
            **{name: table.parts[name] for name in ("table", "key", "column", "k_key", "t_nonempty", "n_nonempty")},
            "n_order": table.parts["n_order"],
            "lock_order": sql.SQL(", ").join(order),
            "column_type": sql.SQL("json" if table.columns[self.settings.column] == "json" else "jsonb"),
            "given": sql.Literal(list(texts)),
            "texts": sql.Literal(list(texts.values())),
        }

    def require_room(self, accepted: int) -> None:
        left = self.result.left
        if len(left) > accepted:
            shown = "; ".join(f"{key}: {why}" for key, why in list(left.items())[:SHOWN])
            raise Refused(
                f"{len(left):,} keys have a value in Redis that the table has no place for: {shown}",
                hint=f"insert their rows, or give them up: {AGAIN} --accept-left {len(left)}",
            )


def _still(conn: Connection, settings: Settings) -> None:
    if control.require(conn, settings, "rollback").phase is not Phase.REDIS_ONLY:
        raise LeaseHeld("another run has moved the ladder meanwhile", hint="cachemig status")


def end_statements(
    conn: Connection, settings: Settings, target: RedisTarget, migration: control.Migration, number: int
) -> list[str]:
    """What would end it, in one transaction: capture in the place of the guard again, and the phase."""
    table = inspect(conn, settings)
    set_phase = {"phase": Phase.CUTOVER.value, "epoch": number}
    return [
        queries.text("control", "lock_migration"),
        capture.lock(table, replace=True).as_string(conn),
        queries.text("copy_back", "late_settled"),
        capture.unguard(table).as_string(conn),
        *(s.as_string(conn) for s in capture.statements(table, capture.mode(conn, table), replace=True)),
        dry_run.filled_in(conn, "control", "set_phase", set_phase),
        queries.text("capture", "mark_known"),
        dry_run.filled_in(conn, "control", "set_identities", {"run": target.identity().run, "marker": "…"}),
        queries.text("cutover", "thaw"),
        dry_run.journal(conn, "rollback", migration.phase),
    ]


def _fence(conn: Connection, migration: control.Migration, target: RedisTarget) -> Prepared:
    """From here on Redis accepts no write that is made to it alone, and nothing from the frozen column. Recorded under
    the lock, so that sync does not take the marker for that of another server."""
    with transaction(conn):
        conn.execute(queries.text("control", "lock_migration"))
        prepared = epoch.prepare(migration, target)
        _identify(conn, prepared.identity.run, prepared.identity.marker)
    return prepared


def _lift(conn: Connection, settings: Settings, target: RedisTarget, prepared: Prepared) -> None:
    """Has writes to Redis alone accepted again, unless the fence is another run's by now or the end was committed."""
    with transaction(conn):
        conn.execute(queries.text("control", "lock_migration"))
        migration = control.require(conn, settings)
        if migration.frozen_epoch is None or migration.redis_marker != prepared.identity.marker:
            return
        target.plant_marker(migration.frozen_epoch)
        identity = target.identity()
        _identify(conn, identity.run, identity.marker)


def _identify(conn: Connection, run: str | None, marker: str | None) -> None:
    conn.execute(queries.text("control", "set_identities"), {"run": run, "marker": marker})


def _end(run: _Run, prepared: Prepared, fence: int) -> Generator[Progress, None, bool]:
    """Capture takes the place of the guard again, in the transaction that moves the phase. False, and nothing is
    changed, where Redis is not behind the fence any more."""
    conn = run.session.get()
    for attempt in lock_attempts():
        with attempt, transaction(conn, lock_timeout_s=run.settings.lock_timeout):
            conn.execute(queries.text("control", "lock_migration"))
            now = control.find(conn)
            if now is None or now.phase is not Phase.REDIS_ONLY or now.redis_marker != prepared.identity.marker:
                raise LeaseHeld("another run has moved the ladder meanwhile", hint="cachemig status")
            if run.target.identity() != prepared.identity:  # the fence is gone with what Redis lost: once more
                return False
            mode = capture.mode(conn, run.table)
            ran = execute(conn, [capture.lock(run.table, replace=True)])
            waiting = conn.execute(queries.text("copy_back", "late_waiting")).fetchall()
            late: dict[str, str | None] = {str(key): value for key, value in waiting}
            if late:
                run.put_inside(conn, late)
            conn.execute(queries.text("copy_back", "late_settled"))
            ran += execute(conn, [capture.unguard(run.table), *capture.statements(run.table, mode, replace=True)])
            number, marked = epoch.record(conn, Phase.CUTOVER, prepared)
            capture.mark(conn, list(late))
            conn.execute(queries.text("cutover", "thaw"))
            run.result.late = len(late)
            _journal(conn, run.result, number, marked, fence, ran)
        if why := reason(attempt.retry_state):
            tried = attempt.retry_state.attempt_number
            yield Progress(tried, None, "tries", waiting=f"{why}; the application goes first")
    return True


def _journal(conn: Connection, result: CopiedBack, number: int, marked: int, fence: int, ran: list[str]) -> None:
    held = conn.execute(
        queries.text("control", "holds_lease"), {"name": "ladder", "owner": control.owner(), "fence": fence}
    ).fetchone()
    if held is None:
        raise LeaseHeld("another run has taken the lease meanwhile", hint=AGAIN)
    figures = {"epoch": number, "marked": marked, **result.figures(), "sql": ran}
    control.journal(conn, "rollback", figures, phase_from=Phase.REDIS_ONLY)

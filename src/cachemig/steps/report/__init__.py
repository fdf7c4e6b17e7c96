"""report: everything that the proof of a migration is drawn from, as one document.

Reads only. No value is read, and a key leaves here as the first 12 hex digits of its SHA-256 unless keys were asked
for: of texts that commands and servers wrote only what is known to hold none is taken over (redact.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from psycopg import sql

from cachemig import __version__
from cachemig.config import Settings, fields, show_duration
from cachemig.entries.verdicts import TABLE, Counts, Verdict, counts_as
from cachemig.errors import Refused, TargetError
from cachemig.ladder import Phase
from cachemig.source import control, queries, standing
from cachemig.source.connect import Connection, connect, source_errors, transaction
from cachemig.source.ledger import MOST_FAULTS
from cachemig.steps import clients, epoch
from cachemig.steps import status as standing_at
from cachemig.steps.drop_column import gated
from cachemig.steps.drop_column.inspect import find
from cachemig.steps.report.conclusion import conclude
from cachemig.steps.report.document import (
    Checked,
    Counted,
    Exceptional,
    Ledger,
    Line,
    Ran,
    Reading,
    Report,
    Size,
    Slot,
    Stretch,
    read_document,
    read_rehearsal,
)
from cachemig.steps.report.redact import fault_name, rehearsed, reported, safe
from cachemig.steps.report.redact import faults as named_faults
from cachemig.steps.status import Status
from cachemig.targets.redis import RedisTarget

__all__ = ["Report", "read_document", "read_rehearsal", "report"]

LARGE = 100_000
"""Keys in the ledger from which on sizes and expiries are those of a sample of so many."""
ROW_BYTES = 250
"""Of the ledger, about: how many of its pages a sample wants."""
LINES = 100
"""Of the journal, for each command."""
NAMED = 500
"""Keys that are named one by one, of each state; all that ledger.MOST_FAULTS allows are counted."""
SLOTS = 60
HASH_DIGITS = 12
_SIZES = [2**n for n in range(41)]


def report(
    settings: Settings,
    target: RedisTarget,
    *,
    show_keys: bool = False,
    no_clients: bool = False,
    accept_mention: Sequence[str] = (),
    rehearsal: Mapping[str, Any] | None = None,
    large: int = LARGE,
) -> Report:
    """The migration as it stands, in any phase. A Redis that does not answer is said to be so; nothing is then proven.

    Raises NotInitialised before init; SourceError where Postgres cannot be read.
    """
    stands = standing_at.status(settings)
    versions, redis_fault, changed = {"cachemig": __version__}, None, None
    try:
        versions |= _redis_versions(target)
    except TargetError as exc:
        redis_fault = str(exc)
    gates, unmeasured = _gates(settings, target, stands, no_clients, accept_mention, redis_fault)
    with connect(settings) as conn, transaction(conn, read_only=True), source_errors():
        migration = control.require(conn, settings)
        now = control.now(conn)
        if redis_fault is None and migration.phase is not Phase.IDLE:
            try:
                changed = epoch.changed(migration, target.identity())
            except TargetError as exc:
                redis_fault = str(exc)
        versions["Postgres"] = conn.info.parameter_status("server_version") or "not told"
        journal = conn.execute(queries.text("report", "report_journal"), {"limit": LINES}).fetchall()
        checked = _checked(conn, migration)
        exceptions, more = _exceptions(conn, show_keys=show_keys)
        subject = find(conn, settings)
        disk = standing.on_disk(conn, subject.oid)
        everyone = clients.everyone(conn)
        late = standing.late(conn) if stands.late is not None else None
        return Report(
            at=_utc(now),
            by=control.who(),
            keys_shown=show_keys,
            table=subject.qualified,
            column=settings.column,
            phase=migration.phase.value,
            percent=migration.percent,
            epoch=migration.epoch,
            since=_utc(migration.changed_at),
            since_by=migration.changed_by,
            conclusion=conclude(stands, migration, checked, gates, unmeasured or redis_fault, changed),
            versions=versions,
            targets=_targets(conn, settings),
            redis_fault=redis_fault,
            fingerprint=migration.fingerprint,
            settings=_settings(settings),
            gates=gates,
            stretches=_stretches(journal, now),
            journal=[_line(row) for row in journal],
            journal_left_out={row[3]: int(row[8]) - LINES for row in journal if row[8] > LINES},
            checked=checked,
            exceptions=exceptions,
            more_exceptions=more,
            repairs=[
                (how, fault_name(fault), int(n), int(undone))
                for how, fault, n, undone in conn.execute(queries.text("report", "report_repairs"))
            ],
            late=None if late is None else _late(late),
            ledger=_ledger(conn, large),
            throughput=_throughput(conn),
            readings=_readings(journal, everyone, now),
            sizes=[*_sizes(journal), Size(_utc(now), "now", disk.table, disk.database)],
            archive=_archive(stands),
            ran=_ran(journal),
            next_command=stands.next_command,
            rehearsal=None if rehearsal is None else rehearsed(rehearsal, show_keys=show_keys),
        )  # fmt: skip


def _gates(
    settings: Settings,
    target: RedisTarget,
    stands: Status,
    no_clients: bool,
    accept_mention: Sequence[str],
    redis_fault: str | None,
) -> tuple[list[dict[str, Any]], str | None]:
    """The gates of drop-column as they are now, or why they could not be measured."""
    if stands.phase is not Phase.REDIS_ONLY:
        return [], None
    if redis_fault is not None:
        return [], redis_fault
    try:
        found = gated.outlook(settings, target, accept=accept_mention, no_clients=no_clients)
    except (TargetError, Refused) as exc:
        return [], str(exc)
    return [asdict(gate) for gate in found.gates], None


def _checked(conn: Connection, migration: control.Migration) -> Checked | None:
    row = conn.execute(queries.text("report", "report_last_verification")).fetchone()
    if row is None:
        return None
    at, who, number, figures = row
    dropped = conn.execute(queries.text("report", "report_last_drop")).fetchone()
    accepted, frozen = int(figures.get("accept_set_aside") or 0), figures.get("phase") in ("redis-only", "dropped")
    counts = []
    for verdict in Verdict:
        if keys := int((figures.get("counts") or {}).get(verdict.value, 0)):
            how = counts_as(verdict, frozen=frozen)
            word = {Counts.GOOD: "good", Counts.NEITHER: "neither", Counts.BAD: "bad"}.get(how)
            if word is None:
                fine = bool(figures.get("ignore_orphans")) if verdict is Verdict.ORPHAN else keys <= accepted
                word = "accepted" if fine else "bad"
            counts.append(Counted(verdict.value, keys, TABLE[verdict].text, word))
    return Checked(
        at=_utc(at),
        who=who,
        epoch=int(number),
        passed=bool(figures.get("passed")),
        phase=str(figures.get("phase", "")),
        same_settings=figures.get("fingerprint") == migration.fingerprint,
        since_drop=dropped is not None and at > dropped[0],
        bytes=int(figures.get("bytes") or 0),
        seconds=float(figures.get("seconds") or 0),
        accept_set_aside=accepted,
        counts=counts,
        faults=named_faults(figures.get("faults") or {}),
    )


# Who and where ------------------------------------------------------------------------------------------------------


def _redis_versions(target: RedisTarget) -> dict[str, str]:
    """Name and version of the servers that take entries; of a cluster each that there is, once."""
    found = set()
    target.ping()
    for server in target.servers():
        info = server.client.info("server")
        name, number = (
            ("Valkey", info["valkey_version"]) if "valkey_version" in info else ("Redis", info.get("redis_version"))
        )
        found.add(f"{name} {number or 'not told'}")
    return {"Redis": ", ".join(sorted(found))}


def _targets(conn: Connection, settings: Settings) -> dict[str, str]:
    info = conn.info
    where = info.host if info.host.startswith("/") else f"{info.host}:{info.port}"
    return {
        "Postgres": f"{where}, database {info.dbname}, user {info.user}",
        "Redis": next(value for name, value, _ in settings.shown() if name == "redis_url"),
        "Keys": settings.key_template,
    }


def _settings(settings: Settings) -> list[tuple[str, str, str, bool]]:
    about = {f.name: f.metadata for f in fields()}

    def shown(name: str, value: str) -> str:
        return show_duration(getattr(settings, name)) if about[name]["metavar"] == "DURATION" else value

    return [(name, shown(name, value), at, bool(about[name]["identity"])) for name, value, at in settings.shown()]


def _archive(stands: Status) -> dict[str, Any] | None:
    if (a := stands.archive) is None:
        return None
    return {
        "at": _utc(a.at), "who": a.who, "location": a.location, "rows": a.rows, "entries": a.entries, "bytes": a.nbytes,
        "sha256": a.sha256.hex(), "checked_at": _utc(a.checked_at),
    }  # fmt: skip


# The journal -------------------------------------------------------------------------------------------------------


def _line(row: Sequence[Any]) -> Line:
    _, at, who, command, phase_from, phase_to, number, figures, _ = row
    return Line(_utc(at), who, command, phase_from, phase_to, number, safe(figures))


def _stretches(journal: Sequence[Sequence[Any]], now: datetime) -> list[Stretch]:
    """From the lines that changed the phase, or the percentage."""
    begun: list[tuple[str, float | None, datetime]] = []
    for _, at, _, _, _, phase, _, figures, _ in journal:
        percent = begun[-1][1] if begun and phase == Phase.CUTOVER == begun[-1][0] else None
        if phase == Phase.CUTOVER:
            percent = figures.get("percent", 100.0 if percent is None else percent)
        if phase is not None and (not begun or begun[-1][:2] != (phase, percent)):
            begun.append((phase, percent, at))
    ends = [at for _, _, at in begun[1:]] + [now]
    return [Stretch(phase, p, _utc(at), _utc(end)) for (phase, p, at), end in zip(begun, ends, strict=True)]


def _readings(journal: Sequence[Sequence[Any]], everyone: Collection[clients.Client], now: datetime) -> list[Reading]:
    """Of each step of the last ramps, and as clients report by now (those that ended within a day too)."""
    found = [
        Reading(_utc(at), f"ramp, {figures.get('percent', 0):g} %", reported(figures.get("figures") or {}))
        for _, at, _, command, _, _, _, figures, _ in journal
        if command == "ramp"
    ]
    total = clients.report(client.stats for client in everyone)
    if total.total("redis") or total.total("column"):
        found.append(Reading(_utc(now), "clients, since start", reported(total.figures())))
    return found


def _sizes(journal: Sequence[Sequence[Any]]) -> list[Size]:
    found = []
    for _, at, _, command, _, _, _, figures, _ in journal:
        for suffix, what in (("", command), ("_before", f"before {command}"), ("_after", f"after {command}")):
            table, database = (figures.get(f"{of}_bytes{suffix}") for of in ("table", "database"))
            if isinstance(table, int) and isinstance(database, int):
                found.append(Size(_utc(at), what, table, database))
    return found


def _late(late: standing.Late) -> dict[str, Any]:
    counts = {"writes": late.writes, "deletes": late.deletes, "failed": late.failed, "waiting": late.waiting}
    return {**counts, "writers": [[writer, n, _utc(at)] for writer, n, at in late.writers]}


def _ran(journal: Sequence[Sequence[Any]]) -> list[Ran]:
    found = []
    for _, at, _, command, _, _, _, figures, _ in journal:
        if statements := _texts(figures.get("sql")):
            found.append(Ran(_utc(at), command, statements))
        again = figures.get("recreate")
        if isinstance(again, dict) and (statements := [s for part in again.values() for s in _texts(part)]):
            found.append(Ran(_utc(at), command, statements, undo=True))
    return found


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


# The ledger ---------------------------------------------------------------------------------------------------------


def _exceptions(conn: Connection, *, show_keys: bool) -> tuple[list[Exceptional], bool]:
    rows = conn.execute(queries.text("report", "report_exceptions"), {"limit": MOST_FAULTS + 1}).fetchall()
    counted: Counter[tuple[str, str]] = Counter()
    named: dict[tuple[str, str], list[str]] = {}
    seen: Counter[str] = Counter()
    for state, digest, key, error in rows:
        which = (state, fault_name(error))
        counted[which] += 1
        seen[state] += 1
        if seen[state] <= NAMED:
            named.setdefault(which, []).append(key if show_keys else digest[:HASH_DIGITS])
    found = [Exceptional(*which, keys, named.get(which, [])) for which, keys in counted.items()]
    return found, any(n > MOST_FAULTS for n in seen.values())


def _throughput(conn: Connection) -> list[Slot]:
    rows = conn.execute(queries.text("report", "report_throughput"), {"slots": SLOTS}).fetchall()
    return [Slot(_utc(at), round(s, 3), round(entries, 1), round(nbytes, 1)) for at, s, entries, nbytes in rows]


def _ledger(conn: Connection, large: int) -> Ledger:
    """Of a large ledger by about so many of its keys, from pages at random."""
    share = 1.0
    sample: sql.Composable = sql.SQL("")
    (known,) = conn.execute(queries.text("report", "report_keys_up_to"), {"limit": large + 1}).fetchone() or (0,)
    if known > large:
        (pages,) = conn.execute(queries.text("report", "report_ledger_pages")).fetchone() or (0,)
        share = min(1.0, -(-large * ROW_BYTES // 8192) / max(1, pages))
        # REPEATABLE: the three questions look at the same pages.
        sample = sql.SQL("TABLESAMPLE SYSTEM ({}) REPEATABLE (0)").format(sql.Literal(100 * share))

    def rows(name: str, **parts: sql.Composable) -> list[tuple[Any, ...]]:
        return conn.execute(queries.query("report", name, sample=sample, **parts)).fetchall()

    def whole(keys: Any) -> int:
        return round(int(keys) / share)

    return Ledger(
        share=share,
        states=[(state, whole(keys), whole(nbytes)) for state, keys, nbytes in rows("report_ledger_states")],
        sizes=[(int(n), whole(keys)) for n, keys in rows("report_ledger_sizes", bounds=sql.Literal(_SIZES))],
        expiries=[(hours, whole(keys)) for hours, keys in rows("report_ledger_expiries")],
    )


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

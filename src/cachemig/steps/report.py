"""report: everything that the proof of a migration is drawn from, as one document.

Reads only. No value is read, and a key leaves here as the first 12 hex digits of its SHA-256 unless keys were asked for:
of texts that commands and servers wrote only what is known to hold none is taken over (safe(), fault_name()).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from psycopg import sql

from cachemig import __version__
from cachemig.config import Settings, fields, show_duration
from cachemig.entries.verdicts import TABLE, Counts, Verdict, counts_as
from cachemig.errors import ConfigError, Refused, TargetError
from cachemig.ladder import Phase
from cachemig.source import control, queries, standing
from cachemig.source.connect import Connection, connect, source_errors, transaction
from cachemig.source.ledger import MOST_FAULTS
from cachemig.steps import clients, epoch
from cachemig.steps import status as standing_at
from cachemig.steps.drop_column import gated
from cachemig.steps.drop_column.inspect import find
from cachemig.steps.status import Status
from cachemig.targets.redis import RedisTarget

FORMAT = "cachemig report 1"
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


@dataclass(frozen=True)
class Conclusion:
    """The first line of the report, and what stands behind it."""

    tone: str
    """`good`: safe to drop, or proven equal; `wait`: not yet; `bad`: something was found to be wrong."""
    line: str
    why: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """One line of the journal. Of its figures only numbers, and texts that are known to name no key."""

    at: str
    who: str
    command: str
    phase_from: str | None
    phase_to: str | None
    epoch: int | None
    figures: dict[str, Any]


@dataclass(frozen=True)
class Stretch:
    """The time spent in one phase."""

    phase: str
    percent: float | None
    """In cutover."""
    since: str
    until: str


@dataclass(frozen=True)
class Counted:
    """A verdict: how many keys have it, and what that means."""

    verdict: str
    keys: int
    means: str
    counts: str
    """good, neither, accepted, bad."""


@dataclass(frozen=True)
class Checked:
    """A verification of all keys."""

    at: str
    who: str
    epoch: int
    passed: bool
    phase: str
    same_settings: bool
    since_drop: bool
    bytes: int
    seconds: float
    accept_set_aside: int
    counts: list[Counted]
    faults: dict[str, int]


@dataclass(frozen=True)
class Exceptional:
    """Keys that could not be migrated for the same reason."""

    state: str
    fault: str
    keys: int
    named: list[str]


@dataclass(frozen=True)
class Ledger:
    """The ledger in figures."""

    share: float
    """Of its pages, that were read; below 1 all figures are estimates."""
    states: list[tuple[str, int, int]]
    """(state, keys, bytes)."""
    sizes: list[tuple[int, int]]
    """(n, keys): of 2^(n-1) bytes up to below 2^n."""
    expiries: list[tuple[int | None, int]]
    """(hours from now, keys); None: they do not expire."""


@dataclass(frozen=True)
class Slot:
    """Part of the time that backfill took."""

    at: str
    seconds: float
    entries: float
    bytes: float


@dataclass(frozen=True)
class Reading:
    """What clients reported, at one time: their reads by path, and latencies."""

    at: str
    what: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Size:
    """Bytes on disk at one time."""

    at: str
    what: str
    table: int
    database: int


@dataclass(frozen=True)
class Ran:
    """SQL that one command has run, or (`undo`) that makes again what it removed."""

    at: str
    command: str
    statements: list[str]
    undo: bool = False


@dataclass(frozen=True)
class Report:
    """The proof of a migration, to be read by who approves it."""

    at: str
    """By Postgres's clock, UTC as all times."""
    by: str
    keys_shown: bool
    table: str
    column: str
    phase: str
    percent: float
    epoch: int
    since: str
    since_by: str
    conclusion: Conclusion
    versions: dict[str, str]
    targets: dict[str, str]
    redis_fault: str | None
    fingerprint: str
    settings: list[tuple[str, str, str, bool]]
    """(name, value, origin, it decides what stands in Redis)."""
    gates: list[dict[str, Any]]
    """Of drop-column, where they could be measured."""
    stretches: list[Stretch]
    journal: list[Line]
    journal_left_out: dict[str, int]
    """By command: earlier lines that are not listed."""
    checked: Checked | None
    exceptions: list[Exceptional]
    more_exceptions: bool
    repairs: list[tuple[str, str, int, int]]
    """(how, fault, keys, taken back)."""
    late: dict[str, Any] | None
    ledger: Ledger
    throughput: list[Slot]
    readings: list[Reading]
    sizes: list[Size]
    archive: dict[str, Any] | None
    ran: list[Ran]
    next_command: str
    rehearsal: dict[str, Any] | None = None
    format: str = FORMAT

    def document(self) -> dict[str, Any]:
        """As JSON has it: what is drawn from it, and from what was saved of it, is the same."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document


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
        journal = conn.execute(queries.text("report", "journal"), {"limit": LINES}).fetchall()
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
                for how, fault, n, undone in conn.execute(queries.text("report", "repairs"))
            ],
            late=None if late is None else {"writes": late.writes, "deletes": late.deletes, "failed": late.failed,
                                            "waiting": late.waiting, "writers": [[w, n, _utc(at)] for w, n, at in late.writers]},
            ledger=_ledger(conn, large),
            throughput=[
                Slot(_utc(at), round(seconds, 3), round(entries, 1), round(nbytes, 1))
                for at, seconds, entries, nbytes in conn.execute(queries.text("report", "throughput"), {"slots": SLOTS})
            ],
            readings=_readings(journal, everyone, now),
            sizes=[*_sizes(journal), Size(_utc(now), "now", disk.table, disk.database)],
            archive=_archive(stands),
            ran=_ran(journal),
            next_command=stands.next_command,
            rehearsal=None if rehearsal is None else rehearsed(rehearsal, show_keys=show_keys),
        )  # fmt: skip


def read_document(path: Path) -> dict[str, Any]:
    """A document that `--run-json` saved. Raises ConfigError where it is none."""
    document = read_object(path)
    if document.get("format") != FORMAT:
        raise ConfigError(
            f"{path}: not a document of this version's report", hint="cachemig report --run-json FILE saves one"
        )
    return document


def read_object(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises ConfigError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", hint="cachemig report --help") from None
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{path}: cannot be read as JSON: {exc}", hint="cachemig report --help") from exc
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds no JSON object", hint="cachemig report --help")
    return document


# The conclusion -----------------------------------------------------------------------------------------------------


def conclude(
    stands: Status,
    migration: control.Migration,
    checked: Checked | None,
    gates: Sequence[Mapping[str, Any]],
    not_told: str | None,
    server_changed: str | None,
) -> Conclusion:
    """Safe to drop, or not yet; once dropped: proven equal, or what is not. `not_told`: why something could not be
    looked at, which is never taken for good. `server_changed`: why Redis may have lost what was compared."""
    wrong = [f"the last verification found {c.keys:,} {c.verdict}" for c in checked.counts if c.counts == "bad"] if (
        checked is not None and not checked.passed
    ) else []  # fmt: skip
    tone = "bad" if wrong else "wait"
    if migration.phase is Phase.DROPPED:
        why = [*wrong]
        if not_told:
            why.append(not_told)
        if server_changed:
            why.append(server_changed)
        if checked is None or not checked.since_drop:
            why.append("no verification of all keys since the column was dropped: cachemig verify")
        elif checked.epoch != migration.epoch or not checked.same_settings:
            why.append("the last verification is of an earlier epoch, or of other settings: cachemig verify")
        if checked is not None and not checked.passed and not wrong:
            why.append("the last verification did not pass: cachemig verify")
        if stands.column_is_there:
            why.append("the table has a column of this name again")
        if why:
            return Conclusion(tone, "The column is dropped; that nothing was lost is not proven now.", why)
        assert checked is not None
        good = sum(c.keys for c in checked.counts if c.counts == "good")
        rest = [f"{c.keys:,} {c.verdict}: {c.means}" for c in checked.counts if c.counts in ("accepted", "neither")]
        return Conclusion(
            "good", f"Dropped, and proven equal: all {good:,} keys are what the ledger says was delivered.", rest
        )
    if migration.phase is not Phase.REDIS_ONLY:
        at = clients.stage(migration.phase, migration.percent)
        why = [*wrong, f"the phase is {at}: applications still use the column", f"next: {stands.next_command}"]
        return Conclusion(tone, "Not yet safe to drop: the column is in use.", [*why, *filter(None, [not_told])])
    unmet = [g for g in gates if not g["met"]]
    if not_told or not gates:
        return Conclusion(
            tone, "Not yet safe to drop: what it wants could not be looked at.", [*wrong, *filter(None, [not_told])]
        )
    if unmet:
        line = f"Not yet safe to drop: {len(unmet)} of {len(gates)} gates are not met."
        return Conclusion(
            tone, line, [f"{g['gate']}: {g['figure']} (wanted: {g['demands']}); {g['command']}" for g in unmet]
        )
    return Conclusion("good", "Safe to drop: every gate of drop-column is met.", [])


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
    row = conn.execute(queries.text("report", "last_verification")).fetchone()
    if row is None:
        return None
    at, who, number, figures = row
    dropped = conn.execute(queries.text("report", "last_drop")).fetchone()
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
        faults=_faults(figures.get("faults") or {}),
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


# The journal --------------------------------------------------------------------------------------------------------

_TEXTS = frozenset(
    {"accepted", "because", "began_anew", "broken", "capture", "checked_at", "column", "columns", "ended_early", "guard",
     "held_up_by", "location", "method", "phase", "reason", "sha256", "table"}
)  # fmt: skip
"""Figures whose texts the tool makes itself, of names and reasons. No other text of a figure is shown."""
_NAME = re.compile(r"[a-z][a-z0-9_.% -]{0,40}", re.IGNORECASE)
_FAULT = re.compile(r"[a-z][a-z-]{0,40}")
_ELSEWHERE = frozenset({"sql", "recreate", "settings", "shadow", "fingerprint", "cases"})
"""Shown in a place of their own; `shadow` is by client, and `cases` are keys."""


def safe(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, and the texts that are known to hold no key and no value."""
    kept: dict[str, Any] = {}
    for name, value in figures.items():
        if name in _ELSEWHERE or not _NAME.fullmatch(name):
            continue
        if name == "faults" and isinstance(value, dict):
            kept[name] = _faults(value)
        elif name == "gates" and isinstance(value, dict):
            kept[name] = {k: v for k, v in value.items() if isinstance(v, str)}
        elif isinstance(value, dict):
            kept[name] = safe(value)
        elif value is None or isinstance(value, bool | int | float):
            kept[name] = value
        elif name in _TEXTS and isinstance(value, str | list):
            kept[name] = value if isinstance(value, str) else [v for v in value if isinstance(v, str)]
    return kept


def fault_name(error: str) -> str:
    """The name of a fault, of what the ledger says about a key: what stands behind the name may hold the key. Of what
    Redis said, its word for it."""
    name, _, rest = error.partition(":")
    if name == "redis" and (said := re.match(r" ?([A-Z]{2,20})\b", rest)):
        return f"redis: {said[1]}"
    return name if _FAULT.fullmatch(name) else "not named"


def _faults(found: Mapping[str, Any]) -> dict[str, int]:
    named: dict[str, int] = {}
    for fault, keys in found.items():
        if isinstance(keys, int):
            named[fault_name(fault)] = named.get(fault_name(fault), 0) + keys
    return named


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
        Reading(_utc(at), f"ramp, {figures.get('percent', 0):g} %", safe(figures.get("figures") or {}))
        for _, at, _, command, _, _, _, figures, _ in journal
        if command == "ramp"
    ]
    total = clients.report(client.stats for client in everyone)
    if total.total("redis") or total.total("column"):
        found.append(Reading(_utc(now), "clients, since start", safe(total.figures())))
    return found


def _sizes(journal: Sequence[Sequence[Any]]) -> list[Size]:
    found = []
    for _, at, _, command, _, _, _, figures, _ in journal:
        for suffix, what in (("", command), ("_before", f"before {command}"), ("_after", f"after {command}")):
            table, database = (figures.get(f"{of}_bytes{suffix}") for of in ("table", "database"))
            if isinstance(table, int) and isinstance(database, int):
                found.append(Size(_utc(at), what, table, database))
    return found


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
    rows = conn.execute(queries.text("report", "exceptions"), {"limit": MOST_FAULTS + 1}).fetchall()
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


def _ledger(conn: Connection, large: int) -> Ledger:
    """Of a large ledger by about so many of its keys, from pages at random."""
    share, sample = 1.0, sql.SQL("")
    (known,) = conn.execute(queries.text("report", "keys_up_to"), {"limit": large + 1}).fetchone() or (0,)
    if known > large:
        (pages,) = conn.execute(queries.text("report", "ledger_pages")).fetchone() or (0,)
        share = min(1.0, -(-large * ROW_BYTES // 8192) / max(1, pages))
        # REPEATABLE: the three questions look at the same pages.
        sample = sql.SQL("TABLESAMPLE SYSTEM ({}) REPEATABLE (0)").format(sql.Literal(100 * share))

    def rows(name: str, **parts: sql.Composable) -> list[tuple[Any, ...]]:
        return conn.execute(queries.query("report", name, sample=sample, **parts)).fetchall()

    def whole(keys: Any) -> int:
        return round(int(keys) / share)

    return Ledger(
        share=share,
        states=[(state, whole(keys), whole(nbytes)) for state, keys, nbytes in rows("ledger_states")],
        sizes=[(int(n), whole(keys)) for n, keys in rows("ledger_sizes", bounds=sql.Literal(_SIZES))],
        expiries=[(hours, whole(keys)) for hours, keys in rows("ledger_expiries")],
    )


# The rehearsal ------------------------------------------------------------------------------------------------------


def rehearsed(document: Mapping[str, Any], *, show_keys: bool) -> dict[str, Any]:
    """What `cachemig rehearse` wrote, as far as it is known. What its commands printed may name keys of the rows that it
    was given, and is taken over only with `show_keys`."""
    kept: dict[str, Any] = {
        name: str(document[name]) for name in ("verdict", "reason") if _is_plain(document.get(name))
    }
    kept |= _seconds(document)
    kept["steps"] = []
    steps = document.get("steps")
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict):
            names = ("command", "why", "exit_code", *(("output",) if show_keys else ()))
            plain = {name: str(step[name]) for name in names if _is_plain(step.get(name))}
            kept["steps"].append(plain | _seconds(step))
    for name in ("sql", "lint"):
        value = document.get(name)
        kept[name] = [_told(item) for item in (value if isinstance(value, list) else [])]
    return kept


def _seconds(found: Mapping[str, Any]) -> dict[str, float]:
    seconds = found.get("seconds")
    return {"seconds": seconds} if isinstance(seconds, int | float) and 0 <= seconds < math.inf else {}


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def _told(item: object) -> str:
    if isinstance(item, dict):
        return " · ".join(f"{name}: {value}" for name, value in item.items() if _is_plain(value))
    return str(item)


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

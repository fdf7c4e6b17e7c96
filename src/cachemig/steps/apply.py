"""apply: one step, exactly as it was planned, or none.

A plan file records what a step was seen to do and all that this was made of: the table's schema, the settings, where
the migration stood, which servers these are, and the SQL. `apply` looks at all of it again and refuses (exit 3) where
anything is another one. Schema and state are looked at once more under the lease of the ladder, so that no other run
can move it between the look and the step; the gates of a step are measured anew in any case.

The file holds no password and no cached value. Definitions in the catalog are kept as digests alone: the arguments of a
trigger may hold a token.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cachemig import __version__, config, ladder
from cachemig.config import Settings, show_duration
from cachemig.errors import CachemigError, ConfigError, Refused
from cachemig.ladder import Phase
from cachemig.source import chunks, control, queries
from cachemig.source.connect import Connection, connect, source_errors, transaction
from cachemig.source.standing import last_verification, newest_archive
from cachemig.source.table import inspect
from cachemig.steps.drop_column.inspect import find
from cachemig.steps.gates import Measured
from cachemig.targets.faults import target_errors
from cachemig.targets.redis import RedisTarget

FORMAT = "cachemig/plan-file/1"
_AGAIN = "cachemig plan --out plan.json writes one"
NOT_BEGUN = "not begun"
OF_THE_RUN = ("dsn", "read_dsn", "redis_url")
"""Settings that name servers as one machine and one role sees them. What is compared is which servers they lead to."""
RAMP = (1.0, 10.0, 50.0, 100.0)
EXECUTE = frozenset({"stop-writes", "drop-column", "reclaim", "restore", "clean"})
"""Commands that only show without --execute."""
PLANNED = EXECUTE | {
    "init", "dual-write", "backfill", "sync", "resync", "recompute", "cutover", "rollback", "archive", "verify",
    "pause", "resume", "throttle",
}  # fmt: skip
NOT_PLANNED = {
    "--format": "it writes a file for another pipeline",
    "--follow": "it goes on until it is stopped",
    "--confirm": "it is said when the plan is applied: cachemig apply --confirm COLUMN",
    **dict.fromkeys(("--config", "--dsn", "--read-dsn", "--redis-url"), "it is given to plan and to apply themselves"),
}
_AHEAD_S = 300.0

Facts = dict[str, dict[str, str]]
"""By group and name."""


@dataclass(frozen=True)
class PlanFile:
    """What `cachemig plan --out` writes."""

    schema: str
    made_at: str
    made_by: str
    versions: dict[str, str]
    command: list[str]
    """The exact arguments that `apply` runs cachemig with."""
    flags: dict[str, str]
    """Settings that were given to `plan` by flag; those of `apply` go before them."""
    phase: str
    fingerprints: dict[str, str]
    """SHA-256 of each group of `facts`."""
    facts: Facts
    sql: list[str]
    """Every statement that the step would run, as far as it can be known before."""
    gates: list[Measured]
    dry_run: dict[str, Any]
    """The document of the step's own dry run."""


@dataclass(frozen=True)
class Made:
    """A plan that was written."""

    file: str
    command: str
    phase: str
    statements: list[str]
    gates: list[Measured]
    """As they are now; they are measured again when it is applied."""
    fingerprints: dict[str, str]

    @property
    def refused(self) -> bool:
        return any(not gate.met for gate in self.gates)


@dataclass(frozen=True)
class Checked:
    """Whether a plan may still be run."""

    file: str
    command: str
    made_at: str
    made_by: str
    age_s: float
    differs: list[str] = field(default_factory=list)
    """What is another one than it was; empty: it may be run."""
    again: str = ""
    """The command that makes a new one."""
    unmet: list[str] = field(default_factory=list)
    """Gates of the step that are not met now."""


def next_step(settings: Settings) -> list[str]:
    """The arguments of the next step up the ladder. Raises Refused where there is none left."""
    with connect(settings) as conn:
        migration = control.find(conn)
        if migration is None:
            return ["init"]
        control.require(conn, settings)
        match migration.phase:
            case Phase.IDLE:
                return ["dual-write"]
            case Phase.DUAL_WRITE:
                totals = chunks.totals(conn)
                laid_out = chunks.is_laid_out(migration.layout, inspect(conn, settings), migration.epoch)
                filled = laid_out and totals.done == totals.chunks
                return ["cutover", "--percent", f"{RAMP[0]:g}"] if filled else ["backfill"]
            case Phase.CUTOVER if migration.percent < 100:
                percent = next(percent for percent in RAMP if percent > migration.percent)
                return ["cutover", "--percent", f"{percent:g}"]
            case Phase.CUTOVER:
                return ["stop-writes", "--execute"]
            case Phase.REDIS_ONLY:
                return ["drop-column", "--execute"]
    raise Refused(
        "the column is dropped: no step up the ladder is left",
        hint="cachemig plan --out plan.json -- reclaim --method vacuum-full --execute",
    )


def require_plannable(command: Sequence[str]) -> list[str]:
    """The command as `apply` is to run it. Raises ConfigError for one that cannot be planned."""
    name, *rest = command
    if name not in PLANNED:
        raise ConfigError(
            f"{name!r} is no step that can be planned",
            hint=f"cachemig plan --out FILE -- {' | '.join(sorted(PLANNED))}",
        )
    for argument in rest:
        flag = argument.partition("=")[0]
        if flag in NOT_PLANNED:
            raise ConfigError(f"{flag} cannot be planned: {NOT_PLANNED[flag]}", hint="leave it out")
    done = [argument for argument in rest if argument != "--dry-run"]
    if name in EXECUTE and "--execute" not in done and not {"--brownout", "--end-brownout"} & set(done):
        done.append("--execute")
    return [name, *done]


def dry(command: Sequence[str]) -> list[str]:
    """The dry run of a command."""
    return [*(argument for argument in command if argument != "--execute"), "--dry-run"]


def refuse_secrets(flags: Mapping[str, str | None]) -> None:
    """Raises ConfigError for a setting given by flag that would put a secret into the file."""
    for name, text in flags.items():
        if text is not None and config.mask(name, text) != text and "***" in config.mask(name, text):
            raise ConfigError(
                f"--{name.replace('_', '-')} holds a secret, which a plan must not",
                hint=f"put it into CACHEMIG_{name.upper()}",
            )


# Facts --------------------------------------------------------------------------------------------------------------


def of_database(conn: Connection, settings: Settings, command: str) -> Facts:
    """Schema and state, as far as they bear on this command. Reads only."""
    return {"schema": _schema(conn, settings), "state": _state(conn, command)}


def facts(settings: Settings, target: RedisTarget, command: str) -> Facts:
    """All that a plan of this command is made of, but for its SQL. Reads only."""
    with connect(settings) as conn, source_errors():
        version = conn.execute(queries.text("apply", "plan_server")).fetchone()
        assert version is not None
        identity = target.identity()
        return {
            **of_database(conn, settings, command),
            "settings": {
                f.name: config.mask(f.name, getattr(settings, f.name))
                for f in config.fields()
                if f.name not in OF_THE_RUN
            },
            "servers": {
                "Postgres": f"system {version[1]}, database {version[2]}",
                # Before the first epoch there is no marker: then it is the run.
                "Redis": _digest(identity.marker or identity.run or ""),
            },
            "tool": {"cachemig": __version__},
        }


def versions(settings: Settings, target: RedisTarget) -> dict[str, str]:
    """Of the tool and of both servers, for the record: what of them matters shows in the facts."""
    with connect(settings) as conn, source_errors(), target_errors():
        row = conn.execute(queries.text("apply", "plan_server")).fetchone()
        info = target.servers()[0].client.info("server")
    assert row is not None
    redis = info.get("valkey_version") or info.get("redis_version") or "not told"
    return {
        "cachemig": __version__,
        "python": platform.python_version(),
        "postgres": str(row[0]),
        "redis": f"{info.get('server_name', 'redis')} {redis}",
    }


def _schema(conn: Connection, settings: Settings) -> dict[str, str]:
    with transaction(conn, read_only=True), source_errors():
        subject = find(conn, settings)
        # Names are printed as the search_path has it, and two roles may have different ones.
        conn.execute("SET LOCAL search_path = pg_catalog")
        parameters = {"oid": subject.oid, "column": settings.column}
        found = {
            f"{kind} {name}": _digest(definition)
            for oid in subject.relids
            for kind, name, definition in conn.execute(
                queries.text("apply", "plan_catalog"), {**parameters, "oid": oid}
            ).fetchall()
        }
        for kind, name in conn.execute(queries.text("plan", "dependents"), parameters).fetchall():
            found[f"dependent {kind} {name}"] = "depends on the column"
        for (name,) in conn.execute(queries.text("plan", "mentioning_functions"), parameters).fetchall():
            found[f"function {name}"] = "names the column"
    return found


def _state(conn: Connection, command: str) -> dict[str, str]:
    migration = control.find(conn)
    if migration is None:
        return {"phase": NOT_BEGUN}
    state = {
        "phase": migration.phase.value,
        "percent": f"{migration.percent:g}",
        "epoch": str(migration.epoch),
        "frozen epoch": str(migration.frozen_epoch),
        "rollback under way": str(migration.fenced),
        "settings of the migration": migration.fingerprint,
    }
    with source_errors():
        newest = conn.execute(queries.text("apply", "plan_journal")).fetchone()
    state["journal"] = "empty" if newest is None else f"{newest[0]} {newest[1]}"
    gates = {gate for step in ladder.STEPS if step.command == command for gate in step.gates}
    if "verify" in gates:
        last = last_verification(conn)
        state["verification"] = "none" if last is None else f"passed {last.passed}, epoch {last.epoch}"
    if "archive" in gates:
        archive = newest_archive(conn)
        state["archive"] = "none" if archive is None else archive.sha256.hex()
    return state


def sql_facts(result: Any) -> Facts:
    """Of the SQL that a dry run shows; without lines for the journal: they hold sizes, which change all the time."""
    settled = [text for text in _exact(result) if "INSERT INTO cachemig.journal" not in text]
    return {"sql": {str(number): _digest(text) for number, text in enumerate(settled, 1)}}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprints(found: Facts) -> dict[str, str]:
    return {
        name: hashlib.sha256(json.dumps(group, sort_keys=True).encode()).hexdigest() for name, group in found.items()
    }


_SHOWN_AS_IT_IS = frozenset({"settings", "state", "tool"})
"""Groups whose facts are no digests."""


def differences(then: Facts, now: Facts) -> list[str]:
    """What is another one, in words: group, name, and what it was."""
    lines = []
    for group in now:
        before, after = then.get(group, {}), now[group]
        for name in sorted(before.keys() | after.keys()):
            if name not in after:
                lines.append(f"{group}: {_named(group, name)} is gone")
            elif name not in before:
                lines.append(f"{group}: {_named(group, name)} is new")
            elif before[name] != after[name]:
                was = f": {before[name]} then, {after[name]} now" if group in _SHOWN_AS_IT_IS else " is another one"
                lines.append(f"{group}: {_named(group, name)}{was}")
    return lines


def _named(group: str, name: str) -> str:
    return f"statement {name}" if group == "sql" else name


# The file -----------------------------------------------------------------------------------------------------------


def statements_of(result: Any) -> list[str]:
    """The SQL that a dry run shows, of whatever shape it is."""
    return [*getattr(result, "layout", ()), *_exact(result)]


def _exact(result: Any) -> list[str]:
    """Without what weighs a sample of the rows: that is another one each time."""
    return [*getattr(result, "statements", ()), *getattr(result, "records", ())]


def made(
    command: Sequence[str],
    flags: Mapping[str, str],
    found: Facts,
    of: Mapping[str, str],
    result: Any,
    document: dict[str, Any],
) -> PlanFile:
    """The plan of a command whose dry run gave this result."""
    return PlanFile(
        schema=FORMAT,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        made_by=control.who(),
        versions=dict(of),
        command=list(command),
        flags={name: text for name, text in flags.items() if name not in OF_THE_RUN},
        phase=found["state"]["phase"],
        fingerprints=fingerprints(found),
        facts=found,
        sql=statements_of(result),
        gates=list(getattr(result, "gates", ())),
        dry_run=document,
    )


def write(path: Path, plan: PlanFile, default: Any) -> None:
    """Never over a file that is no plan. Raises ConfigError, CachemigError."""
    if path.exists():
        try:
            read(path)
        except Refused:
            pass  # of another format, or changed by hand: it was a plan
        except ConfigError as exc:
            raise ConfigError(f"{path} is there, and is no plan: it is left alone", hint="name another file") from exc
    text = json.dumps(asdict(plan), indent=2, ensure_ascii=False, default=default)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as exc:
        raise CachemigError(f"{path} cannot be written: {exc.strerror}", hint="cachemig plan --out FILE") from exc


def read(path: Path) -> PlanFile:
    """Raises ConfigError for what is no plan, Refused for one of another format."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}", hint=_AGAIN) from exc
    except ValueError as exc:
        raise ConfigError(f"{path} is no plan: it is not JSON", hint=_AGAIN) from exc
    schema = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(schema, str) or not schema.startswith("cachemig/plan-file/"):
        raise ConfigError(f"{path} is no plan of cachemig", hint=_AGAIN)
    if schema != FORMAT:
        raise Refused(f"{path} is a plan of the format {schema}; this cachemig reads {FORMAT}", hint=_AGAIN)
    names = {f.name for f in fields(PlanFile)}
    if document.keys() != names or not _is_well_formed(document):
        raise ConfigError(f"{path} is no whole plan: it was changed by hand, or cut", hint=_AGAIN)
    plan = PlanFile(**{**document, "gates": [Measured(**gate) for gate in document["gates"]]})
    if plan.fingerprints != fingerprints(plan.facts):
        raise ConfigError(f"{path} was changed by hand: its fingerprints do not fit", hint=_AGAIN)
    require_plannable(plan.command)
    return plan


def _is_well_formed(document: dict[str, Any]) -> bool:
    def texts(value: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())

    gates = {f.name for f in fields(Measured)}
    try:
        datetime.fromisoformat(document["made_at"])
    except (TypeError, ValueError):
        return False
    return (
        isinstance(document["command"], list)
        and bool(document["command"])
        and all(isinstance(argument, str) for argument in document["command"])
        and texts(document["flags"])
        and isinstance(document["facts"], dict)
        and all(texts(group) for group in document["facts"].values())
        and isinstance(document["gates"], list)
        and all(isinstance(gate, dict) and gate.keys() == gates for gate in document["gates"])
    )


def compare(path: Path, plan: PlanFile, found: Facts, max_age_s: float) -> Checked:
    """What speaks against running this plan now."""
    age_s = (datetime.now(UTC) - datetime.fromisoformat(plan.made_at)).total_seconds()
    differs = differences(plan.facts, found)
    if age_s > max_age_s:
        differs.insert(0, f"age: {show_duration(round(age_s))}, at most {show_duration(max_age_s)}")
    elif age_s < -_AHEAD_S:
        differs.insert(0, f"age: it was made {show_duration(round(-age_s))} in the future: the clocks differ")
    shown = shlex.join(plan.command)
    return Checked(
        str(path), f"cachemig {shown}", plan.made_at, plan.made_by, round(age_s, 1), differs,
        f"cachemig plan --out {shlex.quote(str(path))} -- {shown}",
    )  # fmt: skip


def require_fresh(checked: Checked) -> None:
    """Raises Refused, naming all that differs."""
    if checked.differs:
        raise Refused(f"the plan of {checked.command} is stale:\n" + "\n".join(checked.differs), hint=checked.again)


def look_again(conn: Connection, settings: Settings, path: Path, plan: PlanFile) -> None:
    """Under the lease: nobody can move the ladder from here on until the step is taken. Raises Refused."""
    found = of_database(conn, settings, plan.command[0])
    then = {name: plan.facts.get(name, {}) for name in found}
    if differs := differences(then, found):
        again = f"cachemig plan --out {shlex.quote(str(path))} -- {shlex.join(plan.command)}"
        raise Refused("the plan has become stale just now:\n" + "\n".join(differs), hint=again)

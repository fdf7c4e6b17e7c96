"""init: makes the control schema, and begins the migration in phase idle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from cachemig.config import CONFIG_FILE, SECRET, Settings, fields, mask, show_duration
from cachemig.source import control, functions, queries, standing
from cachemig.source.connect import Connection, connect, run, transaction
from cachemig.source.table import Table, inspect
from cachemig.steps import doctor, dry_run
from cachemig.steps.dry_run import DryRun
from cachemig.targets.redis import RedisTarget


@dataclass(frozen=True)
class Initialised:
    created: bool
    """False: the migration was there already, with these settings."""
    config_file: str | None
    """The file that was written; None where there was one, or nothing to write."""


def statements(settings: Settings) -> list[str]:
    """The SQL that init would run, in one transaction. Reads only."""
    with connect(settings) as conn:
        table = inspect(conn, settings)
        if control.find(conn) is not None:
            control.require(conn, settings)
            return []
        return [statement.as_string(conn) for statement in _statements(conn, table)]


def preview(settings: Settings, target: RedisTarget, directory: Path) -> DryRun:
    """What `init` would do now, its gate included. Reads only."""
    shown = statements(settings)
    writes_file = _writes_file(settings, directory)
    with connect(settings) as conn:
        migration = control.find(conn)
        if shown:
            shown += [
                dry_run.filled_in(conn, "control", "begin_migration", _begun_with(settings)),
                dry_run.journal(conn, "init"),
            ]
    return DryRun(
        "cachemig init",
        None if migration is None else migration.phase,
        bool(shown or writes_file),
        shown,
        files=[CONFIG_FILE] if writes_file else [],
        gates=[dry_run.doctor_gate(settings, target, "init")] if shown else [],
    )


def _statements(conn: Connection, table: Table) -> list[sql.SQL | sql.Composed]:
    return [
        *([] if _has_schema(conn) else [sql.SQL(queries.text("control", "create_schema"))]),
        sql.SQL(queries.text("control", "create_control")),
        *functions.statements(conn, table),
    ]


def _has_schema(conn: Connection) -> bool:
    row = conn.execute(queries.text("control", "has_schema")).fetchone()
    return bool(row and row[0])


def init(settings: Settings, target: RedisTarget, directory: Path) -> Initialised:
    """Begins the migration. Touches no table of the application; repeating it changes nothing.

    Raises Refused when doctor finds an error, SettingsDiffer when a migration with other settings is there.
    """
    with connect(settings) as conn:
        table = inspect(conn, settings)
        created = control.find(conn) is None
        if not created:
            control.require(conn, settings)
        else:
            doctor.gate(settings, target, "init")
            with transaction(conn):
                ran = run(conn, _statements(conn, table))
                conn.execute(queries.text("control", "begin_migration"), _begun_with(settings))
                disk = standing.on_disk(conn, table.oid)
                figures = {"table_bytes": disk.table, "database_bytes": disk.database, "sql": ran}
                control.journal(conn, "init", {"settings": settings.identity(), **figures})
    if not _writes_file(settings, directory):
        return Initialised(created, None)
    path = directory / CONFIG_FILE
    path.write_text(config_file(settings), encoding="utf-8")
    return Initialised(created, str(path))


def _writes_file(settings: Settings, directory: Path) -> bool:
    is_in_use = any(origin.startswith(CONFIG_FILE) for origin in settings.origins.values())
    return not is_in_use and not (directory / CONFIG_FILE).exists()


def _begun_with(settings: Settings) -> dict[str, Any]:
    return {"settings": Jsonb(settings.identity()), "fingerprint": settings.fingerprint(), "who": control.who()}


def config_file(settings: Settings) -> str:
    """A cachemig.toml with the settings in force that can be in a file: no DSN and no URL that holds a secret."""
    lines = ["# Settings of this migration; flags and CACHEMIG_* variables go before them.", ""]
    for field in fields():
        value = getattr(settings, field.name)
        if field.name not in settings.origins and not field.metadata["identity"]:
            continue
        # it may hold a password, or another machine's address
        if field.name in SECRET and (
            settings.origins.get(field.name, "").startswith("CACHEMIG_") or "***" in mask(field.name, value)
        ):
            continue
        text = ",".join(value) if isinstance(value, tuple) else value
        if field.metadata["metavar"] == "DURATION":
            text = show_duration(value)
        lines.append(f"# {field.metadata['help']}")
        lines.append(f"{field.name} = {_toml(text)}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, int | float):
        return str(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'

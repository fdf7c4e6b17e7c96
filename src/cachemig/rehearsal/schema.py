"""Loads a dump of a schema into a throw-away database that lacks what the real one has.

A dump of a Supabase project names roles, schemas, extensions and functions that are not in it. The dump is tried, and
rolled back, until nothing new is missing; what can be stood in for is, and everything else is said.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from psycopg import conninfo, sql

from cachemig.demo.servers import postgres_bin_dir
from cachemig.errors import CachemigError, ConfigError

_ROUNDS = 25
_ERROR = re.compile(r"^psql:(?:.*):(\d+): ERROR:\s+(.*)$", re.MULTILINE)
_TIMEOUT_S = 120.0

_MISSING = {
    "role": re.compile(r'^role "(.+)" does not exist'),
    "schema": re.compile(r'^schema "(.+)" does not exist'),
    "publication": re.compile(r'^publication "(.+)" does not exist'),
    "extension": re.compile(
        r'^extension "(.+)" is not available|^could not open extension control file .*/(.+)\.control'
    ),
    "type": re.compile(r'^type "(.+?)(?:\[\])?" does not exist'),
    "table": re.compile(r'^relation "(.+)" does not exist'),
    "function": re.compile(r"^function (.+\)) does not exist"),
    "trigger function": re.compile(r"^function (.+) must return type trigger"),
}
_RETURNS = {"uid": "uuid", "jwt": "jsonb"}
"""Of Supabase's functions (supabase.com/docs, "Auth helper functions"); any other is taken for one that gives text."""
_VALUE = {"uuid": "gen_random_uuid()", "jsonb": "'{}'::jsonb", "text": "''::text"}
"""None is null: it may be the default of a column that must not be."""
_MADE = re.compile(
    r"^CREATE (?:UNLOGGED |FOREIGN |MATERIALIZED |OR REPLACE )*(?:TABLE|VIEW|SEQUENCE|TYPE|DOMAIN) "
    r"(?:IF NOT EXISTS )?([\w$.\"]+)",
    re.MULTILINE,
)
_IDENTIFIER = re.compile(r'"?[\w$]+"?(\."?[\w$]+"?)?')


@dataclass(frozen=True, order=True)
class Missing:
    kind: str
    name: str

    @property
    def note(self) -> str:
        if self.kind == "extension":
            return f"extension {self.name} is not here: left out"
        return f"{self.kind} {self.name} is not here: an empty one stands in for it"


def load_dump(dsn: str, dump: Path) -> list[str]:
    """The dump stands in the database, but for what the notes say was left out or stood in for.

    What pg_dump, or `supabase db dump`, has written as plain SQL. A command of psql in it is not obeyed. Raises
    ConfigError where the file cannot be read, or is no plain SQL.
    """
    check(dump)
    # What the dump itself makes is missing only because something before it is.
    own = {_bare(name) for name in _MADE.findall(dump.read_text(encoding="utf-8", errors="replace"))}
    found: dict[Missing, None] = {}
    for _ in range(_ROUNDS):
        errors = _psql(dsn, _stand_ins(found), dump, "ROLLBACK")
        named = [m for m in map(_missing, (message for _, message in errors)) if m is not None]
        new = [m for m in named if m not in found and not (m.kind in ("table", "type") and _bare(m.name) in own)]
        if not new:
            break
        for missing in new:
            if missing.kind == "trigger function":  # it was taken for another kind of function before
                bare = missing.name.partition("(")[0]
                for other in [m for m in found if m.kind == "function" and m.name.partition("(")[0] == bare]:
                    del found[other]
            found[missing] = None
    errors = _psql(dsn, _stand_ins(found), dump, "COMMIT")
    gone = {m.name for m in found if m.kind == "extension"}
    left = [
        f"line {n} of {dump.name}: {text}: left out" for n, text in errors if not any(f'"{g}"' in text for g in gone)
    ]
    return [m.note for m in found] + left


def load_data(dsn: str, dump: Path) -> list[str]:
    """The rows of a dump stand in the database; triggers and foreign keys do not fire. What failed is said."""
    check(dump)
    errors = _psql(dsn, ["SET session_replication_role = replica"], dump, "COMMIT")
    return [f"line {number} of {dump.name}: {text}: left out" for number, text in errors]


def lines_of(dsn: str) -> list[str]:
    """What pg_dump says of the schema but for the tool's own, line by line and sorted: a column that was dropped and
    restored stands at another place among the others."""
    program = postgres_bin_dir() / "pg_dump"
    text = _run(program, dsn, ["--schema-only", "--exclude-schema=cachemig", "--no-comments"]).stdout
    lines = (line.strip().rstrip(",") for line in text.splitlines())
    return sorted(line for line in lines if line and not line.startswith(("--", "\\", "SET ", "SELECT ")))


def check(dump: Path) -> None:
    """Raises ConfigError where it cannot be read, or is no plain SQL."""
    try:
        with dump.open("rb") as file:
            beginning = file.read(5)
    except OSError as exc:
        raise ConfigError(f"{dump}: {exc.strerror}", hint="pg_dump --schema-only DATABASE > schema.sql") from exc
    if beginning == b"PGDMP":
        raise ConfigError(
            f"{dump} is in pg_dump's own format, not SQL", hint=f"pg_restore --schema-only -f schema.sql {dump}"
        )


def _bare(name: str) -> str:
    return name.replace('"', "").removeprefix("public.")


def _missing(message: str) -> Missing | None:
    for kind, pattern in _MISSING.items():
        if match := pattern.match(message):
            name = next(group for group in match.groups() if group)
            if kind in ("role", "extension", "publication", "schema") or _IDENTIFIER.fullmatch(name.partition("(")[0]):
                return Missing(kind, name)
    return None


def _stand_ins(found: Iterable[Missing]) -> list[str]:
    order = list(_MISSING)
    return [text for m in sorted(found, key=lambda m: order.index(m.kind)) for text in _stand_in(m)]


def _stand_in(missing: Missing) -> list[str]:
    name = missing.name
    quoted = sql.Identifier(name).as_string(None)
    bare, _, arguments = name.partition("(")
    schema = f"CREATE SCHEMA IF NOT EXISTS {bare.partition('.')[0]}" if "." in bare else "SELECT"
    match missing.kind:
        case "role":
            # IF NOT EXISTS there is none; roles are of the whole server, and another database may have had it made.
            literal = sql.Literal(name).as_string(None)
            return [
                f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {literal}) THEN "
                f"CREATE ROLE {quoted} NOLOGIN; END IF; END $$"
            ]
        case "schema":
            return [f"CREATE SCHEMA IF NOT EXISTS {quoted}"]
        case "publication":
            return [f"CREATE PUBLICATION {quoted}"]
        case "type":
            return [schema, f"CREATE DOMAIN {bare} AS text"]
        case "table":
            return [schema, f"CREATE TABLE {bare} (id uuid PRIMARY KEY)"]
        case "function":
            gives = _RETURNS.get(bare.rpartition(".")[2], "uuid" if "uuid" in bare else "text")
            value = _VALUE[gives]
            typed = arguments.replace("unknown", "text")
            return [schema, f"CREATE FUNCTION {bare}({typed} RETURNS {gives} LANGUAGE sql AS $$SELECT {value}$$"]
        case "trigger function":
            bare = bare.removesuffix("()")
            return [schema, f"CREATE FUNCTION {bare}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"]
    return []


def _psql(dsn: str, before: Iterable[str], dump: Path, end: str) -> list[tuple[int, str]]:
    """Runs a file in one transaction, each of its statements in a savepoint. The line and message of each error."""
    token = secrets.token_hex(8)
    settings = ["-v", "ON_ERROR_STOP=0", "-v", "ON_ERROR_ROLLBACK=on", "-X", "-q", "-o", os.devnull]
    commands = ["SET client_min_messages = error", "BEGIN", *before]
    parts = [part for text in commands for part in ("-c", text)]
    # From \restrict on psql obeys no command of its own that the file might hold: \! would run any program.
    parts += ["-c", f"\\restrict {token}", "-f", str(dump), "-c", f"\\unrestrict {token}", "-c", end]
    done = _run(postgres_bin_dir() / "psql", dsn, [*settings, *parts])
    return [(int(number), text.strip()) for number, text in _ERROR.findall(done.stderr)]


def _run(program: Path, dsn: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a client program. A password goes by the environment: arguments can be seen by everybody."""
    parts = conninfo.conninfo_to_dict(dsn)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PG")} | {"LC_ALL": "C"}
    if password := parts.pop("password", None):
        kept["PGPASSWORD"] = str(password)
    bare = conninfo.make_conninfo("", **parts)
    done = subprocess.run(
        [str(program), "-d", bare, *arguments],
        env=kept,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
    if done.returncode not in (0, 1, 3):
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CachemigError(f"{program.name}: {said}", hint="pip install 'cachemig[demo]'")
    return done

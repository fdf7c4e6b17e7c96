"""The Postgres server, and the checks of everything in it."""

from __future__ import annotations

import psycopg
from psycopg import conninfo

from cachemig import errors
from cachemig.config import Settings
from cachemig.ladder import Phase
from cachemig.source import control
from cachemig.source.connect import Connection, connect
from cachemig.source.table import inspect
from cachemig.steps.doctor import capture, clocks, rights, table
from cachemig.steps.doctor.finding import Check, Finding, Said, error, look, note, ok, warning
from cachemig.steps.doctor.subjects import Seen, Source, brief, is_local, one

_POOLER_TRIES = 5


def findings(settings: Settings, seen: Seen) -> list[Finding]:
    """A finding of every check of Postgres; only one where the server cannot be reached."""
    name = "postgres-reachable"
    try:
        # libpq's complaint about a DSN may quote a piece of it, and that piece may be the password.
        conninfo.conninfo_to_dict(settings.dsn)
    except psycopg.ProgrammingError:
        what = f"the DSN from {settings.origins.get('dsn', 'default')} cannot be parsed"
        do = "correct it: 'host=... dbname=... user=...', or postgresql://user@host/database"
        return [Finding(name, *error(what, do))]
    try:
        with connect(settings) as conn:
            of_server = [look(check_name, check, conn) for check_name, check in SERVER_CHECKS]
            clocks.read_postgres(conn, seen)
            return [*of_server, *_of_table(settings, conn, seen)]
    except errors.CachemigError as exc:
        return [Finding(name, *error(str(exc), exc.hint))]


def _of_table(settings: Settings, conn: Connection, seen: Seen) -> list[Finding]:
    migration, visible = None, True
    try:
        migration = control.find(conn)
    except errors.SourceError:  # the check control-schema tells why
        visible = False
    dropped = migration is not None and migration.phase is Phase.DROPPED
    try:
        with brief(conn):
            inspected = inspect(conn, settings, column_may_be_gone=dropped)
    except errors.CachemigError as exc:
        return [Finding("table", *error(str(exc), exc.hint))]
    source = Source(settings, conn, inspected, migration, visible)
    checks = [(name, check) for name, check in TABLE_CHECKS if not dropped or name in AFTER_DROP]
    found = [look(name, _briefly(check), source) for name, check in checks]
    table.expect(source, seen)
    return found


def _briefly(check: Check[Source]) -> Check[Source]:
    def looked(source: Source) -> Said:
        with brief(source.conn):
            return check(source)

    return looked


def _reachable(conn: Connection) -> Said:
    database, user, *_ = one(conn, "server")
    version = conn.info.parameter_status("server_version")
    where = conn.info.host if conn.info.host.startswith("/") else f"{conn.info.host}:{conn.info.port}"
    return ok(f"PostgreSQL {version} at {where}, database {database}, user {user}")


def _primary(conn: Connection) -> Said:
    *_, in_recovery, read_only = one(conn, "server")
    if in_recovery:
        return error("this server is a standby: it takes no writes", "point the DSN at the primary")
    if read_only:
        return error(
            "default_transaction_read_only is on for this user or database: every write would fail",
            "switch it off: ALTER ROLE .. SET default_transaction_read_only = off",
        )
    return ok("the server is a primary and takes writes")


def _abilities(conn: Connection) -> Said:
    sha256, sql_body = one(conn, "abilities")
    lacking = [name for name, there in (("sha256()", sha256), ("functions with an SQL body", sql_body)) if not there]
    if lacking:
        return error(f"this server has no {' and no '.join(lacking)}", "upgrade to PostgreSQL 14 or later")
    return ok("sha256() and functions with an SQL body are there")


def _pooler(conn: Connection) -> Said:
    signs = []
    if conn.info.port == 6543:
        signs.append("port 6543 is Supabase's transaction pooler")
    pids = set()
    for _ in range(_POOLER_TRIES):
        with conn.transaction():
            pids.add(int(one(conn, "session")[0]))
    if len(pids) > 1:
        signs.append(f"{_POOLER_TRIES} transactions of one connection ran in {len(pids)} server processes")
    elif conn.info.backend_pid not in pids:
        signs.append("the process that answers is not the one that took the connection")
    if signs:
        return note(
            f"a connection pooler stands in front of Postgres: {'; '.join(signs)}",
            "it works, also in transaction mode; a direct connection (port 5432) is faster and cuts no long COPY",
        )
    return ok("no sign of a connection pooler")


def _transport(conn: Connection) -> Said:
    host = conn.info.hostaddr or conn.info.host
    if is_local(host):
        return ok("the connection does not leave this machine")
    if not conn.pgconn.ssl_in_use:
        return warning(
            f"the connection to {conn.info.host} is not encrypted: values cross the network in the clear",
            "sslmode=verify-full and sslrootcert=... in the DSN, or PGSSLMODE and PGSSLROOTCERT",
        )
    mode = conn.info.get_parameters().get("sslmode", "prefer")
    if mode not in ("verify-full", "verify-ca"):
        return note(
            f"encrypted, but sslmode={mode} does not check that the server is the right one",
            "sslmode=verify-full and sslrootcert=... in the DSN",
        )
    return ok(f"encrypted, and the server's certificate is checked (sslmode={mode})")


SERVER_CHECKS: tuple[tuple[str, Check[Connection]], ...] = (
    ("postgres-reachable", _reachable),
    ("postgres-primary", _primary),
    ("postgres-abilities", _abilities),
    ("postgres-transport", _transport),
    ("pooler", _pooler),
)

TABLE_CHECKS: tuple[tuple[str, Check[Source]], ...] = (
    ("table", table.found),
    ("table-select", rights.may_read),
    ("table-owner", rights.owner),
    ("control-schema", rights.control_schema),
    ("temporary-tables", rights.temporary),
    ("row-level-security", rights.row_security),
    ("lost-protection", rights.protection),
    ("key-unique", table.key_unique),
    ("key-index", table.key_index),
    ("primary-key", table.row_key),
    ("before-triggers", capture.before_triggers),
    ("partitions", capture.partitions),
    ("long-transactions", capture.long_transactions),
    ("capture-missing", capture.triggers),
    ("guard", capture.guard),
)

AFTER_DROP = frozenset({"table", "control-schema", "capture-missing", "guard"})
"""What is looked at once the column is gone: nothing is read from the table any more."""

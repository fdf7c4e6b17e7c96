"""doctor: what would make a migration fail or go wrong, found before it does. Writes nothing but scratch keys in Redis.

Every check says what it found, so that the list shows what was looked at. No finding holds a secret or a value.
"""

from __future__ import annotations

import ipaddress
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar, cast

import psycopg
import redis
from psycopg import conninfo

from cachemig import errors
from cachemig.config import Settings
from cachemig.ladder import Phase
from cachemig.source import capture, chunks, control, ledger, queries
from cachemig.source.connect import Connection, connect, source_errors, transaction
from cachemig.source.table import Table, inspect
from cachemig.steps import plan
from cachemig.targets.redis import RedisTarget, target_errors

KEY_INDEX_ROWS = 10_000
"""Without an index on the key sync scans the table for each batch: bearable up to about so many rows."""
MEMORY_SHARE = 0.8
SKEW_S = (2.0, 60.0)
"""Clocks that differ by more are a warning, an error: expiries are points in time."""
_SCANS = 50
_SCAN_COUNT = 2000
_LOCK_TIMEOUT_S = 2.0
_POOLER_TRIES = 5


class Level(StrEnum):
    """What a finding means for a step."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"
    """A gate refuses, unless the finding is accepted by name."""


@dataclass(frozen=True)
class Finding:
    """What a check found, and what to do about it. `name` never changes: scripts and `--accept` rely on it."""

    name: str
    level: Level
    what: str
    do: str | None = None


Said = tuple[Level, str, str | None]

ACCEPTABLE = frozenset(
    {"table-owner", "control-schema", "key-index", "before-triggers", "redis-eviction", "redis-memory"}
)
"""Errors that an operator may know to be harmless in his case, or that another role's commands do not meet."""

MENDED_BY = {"capture-missing": "dual-write"}
"""Errors that the command itself removes, and so is not refused for."""


def gate(settings: Settings, target: RedisTarget, command: str) -> None:
    """Raises Refused, naming every error that is neither accepted by name nor what the command itself mends."""
    found = [
        f
        for f in examine(settings, target)
        if f.level is Level.ERROR and f.name not in settings.accept and MENDED_BY.get(f.name) != command
    ]
    if not found:
        return
    acceptable = [f.name for f in found if f.name in ACCEPTABLE]
    hint = "cachemig doctor tells what to do about each"
    if acceptable:
        hint += f"; to go on in spite of what you know to be harmless: --accept {','.join(acceptable)}"
    number = "an error" if len(found) == 1 else f"{len(found)} errors"
    raise errors.Refused(
        f"{command}: doctor finds {number}: " + "; ".join(f"{f.name}: {f.what}" for f in found), hint=hint
    )


def examine(settings: Settings, target: RedisTarget) -> list[Finding]:
    """A finding of every check. Where a server cannot be reached that is its only one, and the other's checks run."""
    seen = _Seen()
    return [*_postgres(settings, seen), *_redis(settings, target, seen), _clocks(seen)]


@dataclass
class _Seen:
    """What one side found and a check of the other side needs."""

    expected_bytes: int | None = None
    """Memory that Redis will need beyond what it holds now."""
    delivered: int | None = None
    """Keys that the ledger says are in Redis. None: not known."""
    clocks: dict[str, float] = field(default_factory=dict)
    """Seconds by which a server's clock is ahead of this machine's."""


@dataclass(frozen=True)
class _Source:
    settings: Settings
    conn: Connection
    table: Table
    migration: control.Migration | None
    visible: bool
    """False: this role may not see the control schema, so that there may be a migration."""


@dataclass(frozen=True)
class _Target:
    settings: Settings
    target: RedisTarget
    seen: _Seen

    @property
    def client(self) -> redis.Redis:
        return self.target.client

    def info(self, section: str) -> dict[str, Any]:
        return self.client.info(section)


Subject = TypeVar("Subject")


def _look(name: str, check: Callable[[Subject], Said], subject: Subject) -> Finding:
    """The finding of a check; one that cannot be carried out says so, and why."""
    try:
        with source_errors(), target_errors():
            return Finding(name, *check(subject))
    except (errors.SourceUnavailable, errors.TargetUnavailable) as exc:
        return Finding(name, Level.ERROR, f"could not be looked at: {exc}", exc.hint)
    except errors.CachemigError as exc:
        return Finding(name, Level.WARNING, f"could not be looked at: {exc}", exc.hint)


def _ok(what: str) -> Said:
    return Level.OK, what, None


def _note(what: str, do: str) -> Said:
    return Level.NOTE, what, do


def _warning(what: str, do: str) -> Said:
    return Level.WARNING, what, do


def _error(what: str, do: str | None) -> Said:
    return Level.ERROR, what, do


# Postgres ---------------------------------------------------------------------------------------------------------


def _postgres(settings: Settings, seen: _Seen) -> list[Finding]:
    name = "postgres-reachable"
    try:
        # libpq's complaint about a DSN may quote a piece of it, and that piece may be the password.
        conninfo.conninfo_to_dict(settings.dsn)
    except psycopg.ProgrammingError:
        where = settings.origins.get("dsn", "default")
        return [
            Finding(
                name,
                Level.ERROR,
                f"the DSN from {where} cannot be parsed",
                "correct it: 'host=... dbname=... user=...', or postgresql://user@host/database",
            )
        ]
    try:
        with connect(settings) as conn:
            found = [_look(check_name, check, conn) for check_name, check in SERVER_CHECKS]
            _clock_of_postgres(conn, seen)
            return [*found, *_table(settings, conn, seen)]
    except errors.CachemigError as exc:
        return [Finding(name, Level.ERROR, str(exc), exc.hint)]


def _table(settings: Settings, conn: Connection, seen: _Seen) -> list[Finding]:
    try:
        table = inspect(conn, settings)
    except errors.CachemigError as exc:
        return [Finding("table", Level.ERROR, str(exc), exc.hint)]
    migration, visible = None, True
    try:
        migration = control.find(conn)
    except errors.SourceError:  # the check control-schema tells why
        visible = False
    source = _Source(settings, conn, table, migration, visible)
    found = [_look(name, check, source) for name, check in TABLE_CHECKS]
    _expect(source, seen)
    return found


def _one(conn: Connection, name: str, **parameters: object) -> tuple[Any, ...]:
    row = conn.execute(queries.text("doctor", name), parameters).fetchone()
    assert row is not None
    return row


def _reachable(conn: Connection) -> Said:
    database, user, *_ = _one(conn, "server")
    version = conn.info.parameter_status("server_version")
    where = conn.info.host if conn.info.host.startswith("/") else f"{conn.info.host}:{conn.info.port}"
    return _ok(f"PostgreSQL {version} at {where}, database {database}, user {user}")


def _primary(conn: Connection) -> Said:
    *_, in_recovery, read_only = _one(conn, "server")
    if in_recovery:
        return _error("this server is a standby: it takes no writes", "point the DSN at the primary")
    if read_only:
        return _error(
            "default_transaction_read_only is on for this user or database: every write would fail",
            "switch it off: ALTER ROLE .. SET default_transaction_read_only = off",
        )
    return _ok("the server is a primary and takes writes")


def _abilities(conn: Connection) -> Said:
    sha256, sql_body = _one(conn, "abilities")
    lacking = [name for name, there in (("sha256()", sha256), ("functions with an SQL body", sql_body)) if not there]
    if lacking:
        return _error(f"this server has no {' and no '.join(lacking)}", "upgrade to PostgreSQL 14 or later")
    return _ok("sha256() and functions with an SQL body are there")


def _pooler(conn: Connection) -> Said:
    signs = []
    if conn.info.port == 6543:
        signs.append("port 6543 is Supabase's transaction pooler")
    pids = set()
    for _ in range(_POOLER_TRIES):
        with conn.transaction():
            pids.add(int(_one(conn, "session")[0]))
    if len(pids) > 1:
        signs.append(f"{_POOLER_TRIES} transactions of one connection ran in {len(pids)} server processes")
    elif conn.info.backend_pid not in pids:
        signs.append("the process that answers is not the one that took the connection")
    if signs:
        return _note(
            f"a connection pooler stands in front of Postgres: {'; '.join(signs)}",
            "it works, also in transaction mode; a direct connection (port 5432) is faster and cuts no long COPY",
        )
    return _ok("no sign of a connection pooler")


def _postgres_transport(conn: Connection) -> Said:
    host = conn.info.hostaddr or conn.info.host
    if _is_local(host):
        return _ok("the connection does not leave this machine")
    if not conn.pgconn.ssl_in_use:
        return _warning(
            f"the connection to {conn.info.host} is not encrypted: values cross the network in the clear",
            "sslmode=verify-full and sslrootcert=... in the DSN, or PGSSLMODE and PGSSLROOTCERT",
        )
    mode = conn.info.get_parameters().get("sslmode", "prefer")
    if mode not in ("verify-full", "verify-ca"):
        return _note(
            f"encrypted, but sslmode={mode} does not check that the server is the right one",
            "sslmode=verify-full and sslrootcert=... in the DSN",
        )
    return _ok(f"encrypted, and the server's certificate is checked (sslmode={mode})")


def _is_local(host: str | None) -> bool:
    if not host or host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _table_found(source: _Source) -> Said:
    table = source.table
    rows = "rows not counted yet (never analysed)" if table.tuples < 0 else f"about {table.tuples:,.0f} rows"
    kind = "partitioned table" if table.kind == "p" else "table"
    return _ok(f"{kind} {table.qualified}: {rows}, {_size(table.bytes)}, owner {table.owner}")


def _may_read(source: _Source) -> Said:
    select, usage = _one(source.conn, "may_read", oid=source.table.oid)
    lacking = [] if usage else [f"USAGE on schema {source.table.schema}"]
    if not select:
        lacking.append(f"SELECT on {source.table.qualified}")
    if lacking:
        return _error(
            f"this role lacks {' and '.join(lacking)}",
            "grant it; sql/roles.sql has every right in one place",
        )
    return _ok("this role may read the table")


def _owner(source: _Source) -> Said:
    if source.table.is_owner:
        return _ok(f"this role is, or is a member of, the table's owner {source.table.owner}")
    if source.migration is not None and source.migration.phase is Phase.DUAL_WRITE:
        return _note(
            f"this role is not a member of the table's owner {source.table.owner}; capture is on already",
            "nothing for backfill, sync and verify; dual-write --disable needs the owner",
        )
    return _error(
        f"this role is not a member of the table's owner {source.table.owner}: dual-write cannot create triggers",
        "run init, dual-write and clean as the owner or a member of it (cachemig_owner of sql/roles.sql); "
        "the other commands do not need it",
    )


def _control_schema(source: _Source) -> Said:
    create_schema, create, usage, tables, lacking = _one(source.conn, "may_control")
    if create is None:
        if create_schema:
            return _ok("schema cachemig does not exist, and this role may create it")
        return _error(
            "schema cachemig does not exist, and this role may not create one in this database",
            "run sql/roles.sql, which makes it; or GRANT CREATE ON DATABASE",
        )
    if not usage or (not tables and not create):
        right = "USAGE" if not usage else "CREATE"
        return _error(
            f"this role has no {right} on schema cachemig",
            "run sql/roles.sql, and use one of its roles",
        )
    if lacking:
        return _error(
            f"this role may not read and write {len(lacking)} tables of the tool: {', '.join(lacking)}",
            "run sql/roles.sql and use cachemig_worker or cachemig_owner; a role that only looks needs only SELECT",
        )
    return _ok(
        f"schema cachemig is there; this role may read and write its {tables} tables"
        if tables
        else "schema cachemig is there, and this role may create tables in it"
    )


def _temporary(source: _Source) -> Said:
    if _one(source.conn, "may_create_temporary")[0]:
        return _ok("this role may create temporary tables")
    return _error(
        "this role may not create temporary tables, through which backfill and sync write the ledger",
        f"GRANT TEMPORARY ON DATABASE {source.conn.info.dbname} to it (sql/roles.sql)",
    )


def _row_security(source: _Source) -> Said:
    table = source.table
    if _one(source.conn, "rows_hidden", oid=table.oid)[0]:
        why = "forced for its owner too" if table.force_rls else "on"
        return _error(
            f"row-level security of {table.qualified} is {why}: rows would be hidden from this role",
            "use a role with BYPASSRLS (sql/roles.sql)" + ("" if table.force_rls else ", or the table's owner"),
        )
    return _ok(
        "row-level security is on, and this role sees all rows" if table.rls else "the table has no row-level security"
    )


def _protection(source: _Source) -> Said:
    on_table, on_column, policies = _one(source.conn, "protection", oid=source.table.oid, column=source.settings.column)
    said = []
    if on_table and "PUBLIC" not in on_table:
        said.append(f"only {', '.join(on_table)} and the owner may read the table")
    if on_column:
        said.append(f"grants on the column itself: {', '.join(on_column)}")
    if source.table.rls:
        said.append(f"row-level security, policies: {', '.join(policies) or 'none, so that no row is visible'}")
    if not said:
        return _ok("no grant to single roles and no policy protects the column today")
    return _warning(
        f"what protects the column today does not exist in Redis: {'; '.join(said)}",
        "in Redis whoever may read the key prefix reads every entry: give applications their own ACL users, "
        "and check the right to an entry in the application",
    )


def _key_unique(source: _Source) -> Said:
    s = source.settings
    if source.table.key_unique:
        return _ok(f"{s.key_column} is unique")
    order = f"the newest by {s.order_by}" if s.order_by else "the one with the highest primary key (order_by is empty)"
    return _note(
        f"{s.key_column} is not unique: of several rows with a value, {order} is the entry",
        "cachemig plan counts such keys; set order_by to another column if that is the wrong row",
    )


def _key_index(source: _Source) -> Said:
    table, key = source.table, source.settings.key_column
    if table.key_indexed:
        return _ok(f"{key} has an index")
    do = f"CREATE INDEX CONCURRENTLY ON {table.qualified} ({key})"
    with transaction(source.conn, read_only=True, lock_timeout_s=_LOCK_TIMEOUT_S):
        rows, estimated = plan.count_rows(source.conn, table)
        if rows > KEY_INDEX_ROWS:
            number = f"about {rows:,}" if estimated else f"{rows:,}"
            return _error(f"{key} has no index, and {table.qualified} has {number} rows: sync reads by key", do)
        query = queries.query("doctor", "shared_keys", table=table.identifier, key=table.parts["key"])
        shared = source.conn.execute(query).fetchone()
    if shared and shared[0]:
        return _error(f"{key} has no index, and rows share keys: each row is compared with every other", do)
    return _warning(f"{key} has no index: bearable with {rows:,} rows, but each batch of sync reads them all", do)


def _row_key(source: _Source) -> Said:
    if source.table.row_key:
        return _ok(f"chunks are ranges of {', '.join(source.table.row_key)}")
    return _warning(
        "there is no primary key or unique index over NOT NULL columns: backfill goes by blocks, and a row "
        "that moves meanwhile is found only by the last pass over the table",
        "add a primary key if you can; the result is the same without",
    )


def _before_triggers(source: _Source) -> Said:
    found = capture.before_triggers(source.conn, source.table)
    if not found:
        return _ok("no BEFORE trigger names a column that capture watches")
    listed = ", ".join(f"{trigger} ({function})" for trigger, function in found)
    if source.settings.capture == "columns":
        return _error(
            f"BEFORE triggers may change what capture watches: {listed}; with capture = columns such a change "
            "is not seen",
            "set capture = auto",
        )
    triggers, *_, compares = _one(source.conn, "capture_state", oid=source.table.oid)
    if triggers and not compares:
        return _error(
            f"BEFORE triggers may change what capture watches: {listed}; capture was switched on before "
            "they were there, and does not see it",
            "cachemig dual-write --disable, then cachemig dual-write",
        )
    return _note(
        f"BEFORE triggers may change what capture watches: {listed}; so capture compares OLD and NEW",
        "nothing; each update of the table costs some 60 microseconds more while capture is on",
    )


def _partitions(source: _Source) -> Said:
    leaves, heirs = _one(source.conn, "relatives", oid=source.table.oid)
    if source.table.kind == "p":
        return _warning(
            f"{leaves} partitions: their rows are captured, but a TRUNCATE, ATTACH or DETACH of a single "
            "partition is not seen",
            "until the end of the migration, after such a command: cachemig verify --repair",
        )
    if heirs:
        return _error(
            f"tables inherit from this one: {', '.join(heirs)}; their rows are read, but their writes are not captured",
            "move their rows into the table, or migrate each by itself after ALTER TABLE .. NO INHERIT",
        )
    return _ok("neither partitioned nor inherited from")


def _long_transactions(source: _Source) -> Said:
    rows = source.conn.execute(queries.text("doctor", "lock_holders"), {"oid": source.table.oid}).fetchall()
    wait = source.settings.lock_timeout
    waited_for = []
    for pid, age, user, application, state in rows:
        if age is not None and float(str(age)) <= wait:
            continue
        who = f"pid {pid}" if pid is not None else "a prepared transaction"
        about = ", ".join(str(x) for x in (user, application, state) if x)
        old = f"{float(str(age)):,.0f} s old" if age is not None else "age not visible to this role"
        waited_for.append(f"{who} ({about}), {old}" if about else f"{who}, {old}")
    if not waited_for:
        return _ok(f"no transaction older than lock_timeout ({wait:g} s) has written to the table")
    return _warning(
        f"dual-write would wait for {len(waited_for)} transactions on the table: {'; '.join(waited_for)}",
        "wait for them or end them (SELECT pg_terminate_backend(pid)); dual-write itself tries again and again, "
        "and lets the application through between two tries",
    )


def _capture(source: _Source) -> Said:
    triggers, not_always, updates, truncates, _ = _one(source.conn, "capture_state", oid=source.table.oid)
    whole = capture.installed(source.conn, source.table) and updates and truncates and not not_always
    phase = source.migration.phase if source.migration else None
    if phase is Phase.DUAL_WRITE and not whole:
        state = f"{not_always} of {triggers} triggers do not fire always" if not_always else "triggers are missing"
        return _error(
            f"the phase is dual-write, but capture is broken: {state}; writes are being lost",
            "cachemig dual-write: it begins a new epoch and reads everything again",
        )
    if phase is Phase.DUAL_WRITE:
        return _ok(f"{triggers} triggers are in place and fire always")
    if triggers and source.visible:
        return _warning(
            f"{triggers} triggers of capture are on the table, though the phase does not want them",
            "cachemig status; cachemig dual-write --disable removes them",
        )
    if not source.visible:
        return _note(
            f"{triggers} triggers of capture are on the table; this role may not see the phase that decides",
            "run sql/roles.sql, and use one of its roles",
        )
    return _ok("capture is off, as it should be " + ("in phase idle" if phase else "before cachemig init"))


def _expect(source: _Source, seen: _Seen) -> None:
    """Estimates what Redis will still need: rows * (mean sampled text * ratio + name + 120), less what is delivered."""
    s, table = source.settings, source.table
    try:
        held = 0
        if source.visible:
            seen.delivered = 0
        if source.migration is not None:
            seen.delivered, delivered_bytes = ledger.counts(source.conn).get("delivered", (0, 0))
            held = plan.expected_memory(seen.delivered, delivered_bytes, 0, s.codec)
        with transaction(source.conn, read_only=True, lock_timeout_s=_LOCK_TIMEOUT_S):
            rows, _ = plan.count_rows(source.conn, table)
            text = rows * chunks.sample_width(source.conn, table)
        seen.expected_bytes = max(0, plan.expected_memory(rows, text, 0, s.codec) - held)
    except errors.SourceError:  # told by the checks of the privileges; redis-memory says that nothing could be compared
        return


SERVER_CHECKS: tuple[tuple[str, Callable[[Connection], Said]], ...] = (
    ("postgres-reachable", _reachable),
    ("postgres-primary", _primary),
    ("postgres-abilities", _abilities),
    ("postgres-transport", _postgres_transport),
    ("pooler", _pooler),
)

TABLE_CHECKS: tuple[tuple[str, Callable[[_Source], Said]], ...] = (
    ("table", _table_found),
    ("table-select", _may_read),
    ("table-owner", _owner),
    ("control-schema", _control_schema),
    ("temporary-tables", _temporary),
    ("row-level-security", _row_security),
    ("lost-protection", _protection),
    ("key-unique", _key_unique),
    ("key-index", _key_index),
    ("primary-key", _row_key),
    ("before-triggers", _before_triggers),
    ("partitions", _partitions),
    ("long-transactions", _long_transactions),
    ("capture-missing", _capture),
)


# Redis ------------------------------------------------------------------------------------------------------------


def _redis(settings: Settings, target: RedisTarget, seen: _Seen) -> list[Finding]:
    try:
        with target_errors():
            target.client.ping()
    except errors.TargetError as exc:
        return [Finding("redis-reachable", Level.ERROR, str(exc), exc.hint)]
    _clock_of_redis(target, seen)
    subject = _Target(settings, target, seen)
    return [_look(name, check, subject) for name, check in REDIS_CHECKS]


def _redis_reachable(t: _Target) -> Said:
    info = t.info("server")
    version = f"redis_version {info.get('redis_version', 'not told')}"
    if "valkey_version" in info:
        version = f"valkey_version {info['valkey_version']}, {version}"
    options = t.client.connection_pool.connection_kwargs
    where = options.get("path") or f"{options.get('host')}:{options.get('port')}"
    return _ok(f"{info.get('server_name', 'redis')} at {where} ({version}), database {options.get('db') or 0}")


def _redis_abilities(t: _Target) -> Said:
    """Tries each command: a version number tells neither what a fork can do nor what this user may."""
    scratch = f"cachemig:t:{{doctor-{secrets.token_hex(4)}}}"
    value_key = t.target.template.name(f"cachemig-doctor-{secrets.token_hex(4)}")
    in_a_minute = int(time.time() * 1000) + 60_000
    tries: tuple[tuple[str, Callable[[], object]], ...] = (
        ("scripts (EVAL)", t.target.check),
        ("SCRIPT LOAD", lambda: t.client.script_load("return 1")),
        ("EVALSHA", lambda: t.client.evalsha("e0e1f9fabfc9d4800c877a703b823ac0578ff8db", 0)),
        ("SET with PXAT", lambda: t.client.set(scratch, b"", pxat=in_a_minute)),
        ("PTTL", lambda: t.client.pttl(scratch)),
        ("UNLINK", lambda: t.client.unlink(scratch)),
        ("GET under the prefix", lambda: t.client.get(value_key)),
        ("UNLINK under the prefix", lambda: t.client.unlink(value_key)),
        ("SCAN", lambda: t.client.scan(count=1)),
        ("INFO", lambda: t.client.info("server")),
        ("TIME", lambda: t.client.time()),
    )
    lacking = []
    for name, attempt in tries:
        try:
            with target_errors():
                attempt()
        except errors.TargetReadOnly:
            return _note("could not be tried on a replica", "point redis_url at the primary")
        except errors.TargetUnavailable:
            raise
        except errors.TargetFull:
            continue  # redis-memory tells
        except errors.TargetError as exc:
            lacking.append(f"{name} ({exc})")
    if lacking:
        return _error(
            f"does not work with this server and user: {'; '.join(lacking)}",
            errors.TargetForbidden.hint,
        )
    return _ok(f"all of these work: {', '.join(name for name, _ in tries)}")


def _redis_role(t: _Target) -> Said:
    info = t.info("replication")
    if info.get("role") != "master":
        return _error(
            f"the server's role is {info.get('role')}: it takes no writes",
            "point redis_url at the primary",
        )
    return _ok(f"the server is a primary with {info.get('connected_slaves', 0)} replicas")


def _redis_cluster(t: _Target) -> Said:
    if int(t.info("cluster").get("cluster_enabled", 0)):
        return _error(
            "the server is a node of a Redis Cluster; this version writes to one server, not to a cluster",
            "use a server that is not in cluster mode, with replicas if you need them",
        )
    return _ok("not a cluster node")


def _redis_eviction(t: _Target) -> Said:
    policy = _policy(t)
    limit = int(t.info("memory").get("maxmemory", 0))
    at = f"maxmemory-policy {policy}, maxmemory {_size(limit) if limit else 'not set'}"
    if policy.startswith("allkeys-"):
        return _error(
            f"{at}: a full server throws away version keys too, and then an old write can win",
            "CONFIG SET maxmemory-policy volatile-lru, or noeviction, at least while the migration runs",
        )
    if policy.startswith("volatile-") and t.settings.ttl:
        return _warning(
            f"{at}: a full server throws away entries before their time, and they will be missing in verify",
            "see that there is memory enough (redis-memory); with noeviction a full server makes backfill wait instead",
        )
    return _ok(at)


def _policy(t: _Target) -> str:
    policy = t.info("memory").get("maxmemory_policy")
    if policy is None:  # some managed servers shorten INFO
        policy = cast("dict[str, Any]", t.client.config_get("maxmemory-policy")).get("maxmemory-policy", "unknown")
    return str(policy)


def _redis_memory(t: _Target) -> Said:
    info = t.info("memory")
    free, expected = plan.free_memory(info), t.seen.expected_bytes
    limit = "maxmemory" if int(info.get("maxmemory", 0)) else "the machine's memory, for maxmemory is not set"
    if free is None:
        needed = "an unknown number of bytes" if expected is None else _size(expected)
        return _note(
            f"the server tells neither maxmemory nor the machine's memory; {needed} will be needed",
            "compare it with what the server has",
        )
    if expected is None:
        return _note(
            f"{_size(free)} are free (up to {limit}); what is needed could not be estimated",
            "mend what is wrong with Postgres and look again",
        )
    what = f"about {_size(expected)} are still needed, an estimate; {_size(free)} are free (up to {limit})"
    do = "raise maxmemory, use codec zstd, or a shorter ttl; cachemig plan has the figures"
    if expected > free:
        return (Level.ERROR if _policy(t) == "noeviction" else Level.WARNING), what, do
    if expected > MEMORY_SHARE * free:
        return _warning(what, do)
    return _ok(what)


def _redis_persistence(t: _Target) -> Said:
    if int(t.info("persistence").get("aof_enabled", 0)):
        return _ok("append-only file is on")
    try:
        with target_errors():
            save = str(cast("dict[str, Any]", t.client.config_get("save")).get("save", ""))
    except errors.TargetForbidden:
        return _note(
            "no append-only file; whether there are snapshots is hidden from this user (CONFIG GET)",
            "ask the server's owner what a restart loses",
        )
    except errors.TargetError:
        return _note("no append-only file; the server does not tell of snapshots", "ask what a restart loses")
    if save:
        return _note(
            f"snapshots only (save {save}): a restart loses what came after the last one",
            "after a restart of Redis: cachemig verify --repair",
        )
    return _note(
        "neither append-only file nor snapshots: a restart loses every entry, and the versions with them",
        "while the column is there nothing is lost (cachemig verify --repair); before Redis is alone: appendonly yes",
    )


def _redis_transport(t: _Target) -> Said:
    pool = t.client.connection_pool
    options = pool.connection_kwargs
    host = options.get("host")
    if "path" in options or _is_local(host):
        return _ok("the connection does not leave this machine")
    lacking = []
    if not issubclass(pool.connection_class, redis.SSLConnection):
        lacking.append("TLS (rediss://)")
    elif options.get("ssl_cert_reqs") in ("none", "optional"):
        lacking.append("a check of the server's certificate")
    if not options.get("password"):
        lacking.append("a password (REDISCLI_AUTH)")
    if lacking:
        return _warning(
            f"the connection to {host} is without {' and without '.join(lacking)}: whoever is on the network "
            "can read or falsify entries",
            "use rediss:// and a user of its own",
        )
    return _ok(f"TLS and a password to {host}")


def _redis_foreign(t: _Target) -> Said:
    pattern = t.target.template.pattern
    if t.seen.delivered:
        return _ok(f"{t.seen.delivered:,} keys were delivered; verify tells which others are under {pattern}")
    found, cursor, finished = 0, 0, False
    for _ in range(_SCANS):
        cursor, names = cast("tuple[int, list[bytes]]", t.client.scan(cursor=cursor, match=pattern, count=_SCAN_COUNT))
        found += len(names)
        if finished := cursor == 0:
            break
    extent = "" if finished else f" among the first {_SCANS * _SCAN_COUNT:,} keys or so"
    if not found:
        return _ok(f"no key matches {pattern} yet{extent}")
    if t.seen.delivered is None:
        return _note(
            f"{found:,} keys match {pattern}{extent}; whether they are the migration's is not known",
            "mend what is wrong with Postgres and look again",
        )
    return _warning(
        f"{found:,} keys match {pattern}{extent}, though nothing was delivered yet: another program writes "
        "there, and its keys would be overwritten or reported as orphans",
        "choose another key_template, or remove them if they are left over",
    )


REDIS_CHECKS: tuple[tuple[str, Callable[[_Target], Said]], ...] = (
    ("redis-reachable", _redis_reachable),
    ("redis-abilities", _redis_abilities),
    ("redis-role", _redis_role),
    ("redis-cluster", _redis_cluster),
    ("redis-eviction", _redis_eviction),
    ("redis-memory", _redis_memory),
    ("redis-persistence", _redis_persistence),
    ("redis-transport", _redis_transport),
    ("redis-foreign-keys", _redis_foreign),
)


# Both -------------------------------------------------------------------------------------------------------------


def _clock_of_postgres(conn: Connection, seen: _Seen) -> None:
    before = time.time()
    try:
        with source_errors():
            (theirs,) = _one(conn, "clock")
    except errors.CachemigError:
        return
    seen.clocks["Postgres"] = float(theirs) - (before + time.time()) / 2


def _clock_of_redis(target: RedisTarget, seen: _Seen) -> None:
    before = time.time()
    try:
        with target_errors():
            seconds, microseconds = target.client.time()
    except errors.TargetError:
        return
    seen.clocks["Redis"] = seconds + microseconds / 1e6 - (before + time.time()) / 2


def _clocks(seen: _Seen) -> Finding:
    """How far the clocks of Postgres, Redis and this machine are apart."""
    name = "clock-skew"
    offsets: Sequence[float] = [0.0, *seen.clocks.values()]
    apart = max(offsets) - min(offsets)
    listed = ", ".join(f"{who} {by:+.1f} s" for who, by in seen.clocks.items()) or "no server told its time"
    what = f"clocks are {apart:.1f} s apart (from this machine: {listed})"
    do = "set the clocks by NTP: an entry expires at a point in time that one of them computes and another one compares"
    warning_s, error_s = SKEW_S
    if apart > error_s:
        return Finding(name, Level.ERROR, what, do)
    if apart > warning_s:
        return Finding(name, Level.WARNING, what, do)
    return Finding(name, Level.NOTE if not seen.clocks else Level.OK, what)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"

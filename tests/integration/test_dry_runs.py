"""Every command's dry run, in every phase that it is for, with read rights: both servers stay as they were.

Postgres is compared by pg_dump and by its next transaction id (whatever writes takes one), Redis by DUMP and absolute
expiry of every key, the working directory by its files.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
from redis import Redis

from cachemig.cli import inner
from cachemig.cli.app import app
from cachemig.cli.inner import Inner
from cachemig.demo.servers import PostgresServer, RedisServer, postgres_bin_dir
from cachemig.errors import CachemigError, Exit
from cachemig.source import queries
from tests.conftest import REPOSITORY, OwnPostgres, OwnRedis
from tests.integration.cluster import RedisCluster
from tests.integration.conftest import Migrating
from tests.integration.test_roles import DEMO, psql

CI = (REPOSITORY / "docs" / "ci.md").read_text()
(ACL,) = re.findall(r"^ACL SETUSER cachemig-ci .*$", CI, re.MULTILINE)
PASSWORD = "p@ss"

# Every command of the program. What changes something: its dry runs, with the phases in which they show something and
# what they must show. A new command must be put in here, or among those that read.
DRY_RUNS: dict[str, list[tuple[str, list[str], str]]] = {
    "init": [("not begun", [], "CREATE TABLE cachemig.entry")],
    "doctor": [("not begun cutover dropped", [], "")],
    "dual-write": [
        ("idle", [], "CREATE TRIGGER cachemig_capture"),
        ("dual-write cutover", [], "functions"),
        ("dual-write", ["--disable"], "DROP TRIGGER"),
    ],
    "backfill": [
        ("dual-write", [], "COPY ("),
        ("cutover", ["--restart", "--workers", "3"], "DELETE FROM cachemig.chunk"),
    ],
    "sync": [("dual-write cutover redis-only", [], "DELETE FROM cachemig.change"), ("dropped", [], "is dropped")],
    "verify": [
        ("dual-write cutover redis-only dropped", [], ""),
        ("dual-write", ["--repair"], "INSERT INTO cachemig.change"),
        ("cutover", ["--repair", "--foreign-keys", "remove"], ""),
    ],
    "resync": [("dual-write", ["--all"], "INSERT INTO cachemig.change"), ("cutover", ["--key", "hash1"], "hash1")],
    "pause": [("idle cutover", [], "SET paused_by = ")],
    "resume": [("idle cutover", [], "SET paused_by = NULL")],
    "throttle": [("cutover", ["--max-rate", "1MiB"], "SET max_rate = 1048576")],
    "recompute": [("dual-write", ["--all-corrupt"], "UPDATE"), ("dual-write", ["--undo"], "undone_at")],
    "cutover": [
        ("dual-write", ["--percent", "10", "--no-clients"], "SET phase = 'cutover', percent = 10"),
        ("dual-write", ["--ramp", "1,10", "--no-clients"], "percent = 1"),
    ],
    "rollback": [("cutover", [], "SET phase = 'dual-write'"), ("redis-only", [], "SET frozen_epoch = NULL")],
    "stop-writes": [("cutover", ["--no-clients"], "SET phase = 'redis-only'")],
    "archive": [
        ("cutover redis-only", ["--to", "other.zst"], "INSERT INTO cachemig.archive"),
        ("redis-only dropped", ["--to", "cache.zst", "--forget", "hash1"], "archive --forget"),
    ],
    "drop-column": [
        ("dual-write redis-only", ["--no-clients"], "DROP COLUMN"),
        ("redis-only", ["--brownout", "10m"], "RENAME COLUMN"),
        ("redis-only", ["--end-brownout"], ""),
    ],
    "reclaim": [("not begun cutover dropped", ["--method", "vacuum-full"], "VACUUM (FULL")],
    "restore": [("dropped", ["--from", "cache.zst"], "ADD COLUMN")],
    "clean": [("idle dropped", ["--values"], "DROP SCHEMA cachemig")],
    "apply": [],  # test_apply.py: its --dry-run is --check
}
READ = {"plan", "status", "watch", "residue", "measure", "ci", "report"}
OF_ITS_OWN = {"demo", "rehearse"}  # changes servers that it has made
PHASES = ("not begun", "idle", "dual-write", "cutover", "redis-only", "dropped")


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def test_every_command_is_in_the_table() -> None:
    found = commands()
    assert set(found) == DRY_RUNS.keys() | READ | OF_ITS_OWN
    for name, command in found.items():
        with command.make_context(name, [], resilient_parsing=True) as context:
            flags = {flag for parameter in command.get_params(context) for flag in parameter.opts}
        assert ("--dry-run" in flags) == (name in DRY_RUNS), name


class Case:
    """The demo's table in a database whose roles are those of sql/roles.sql, and a Redis with a user that reads."""

    def __init__(self, postgres: PostgresServer, redis: RedisServer, directory: Path) -> None:
        self.postgres, self.redis, self.directory = postgres, redis, directory
        self.admin = psycopg.connect(postgres.dsn(), autocommit=True)
        self.client = Redis.from_url(redis.url)
        self.client.execute_command(  # type: ignore[no-untyped-call]
            *ACL.replace("SHA256_OF_THE_PASSWORD", hashlib.sha256(PASSWORD.encode()).hexdigest()).split()
        )

    def run(self, role: str, *arguments: str, reads: bool = False, as_json: bool = False) -> Inner:
        """`as_json`: it prints its document, as if it had been typed."""
        url = self.redis.url.replace("unix://", f"unix://cachemig-ci:{PASSWORD.replace('@', '%40')}@")
        flags = {
            "shape": "object",
            "ttl": "0",
            "order_by": "created_at",
            "soak_cutover": "0s",
            "soak_redis_only": "0s",
            "grace": "20ms",
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CACHEMIG_DSN", self.postgres.dsn(user=role))
            patch.setenv("CACHEMIG_REDIS_URL", url if reads else self.redis.url)
            patch.chdir(self.directory)
            return inner.run(arguments, Inner(flags, None, as_json=as_json, quiet=not as_json))

    def owner(self, *arguments: str) -> None:
        assert self.run("cachemig_owner", *arguments).exit_code is Exit.FINE, arguments

    def next_xid(self) -> int:
        """Grows with every transaction that writes, of whatever session."""
        row = self.admin.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
        assert row is not None
        return int(row[0])

    def in_redis(self) -> dict[bytes, Any]:
        """Every key with its bytes and the moment at which it expires; and what else a command could leave there."""
        found: dict[bytes, Any] = {
            key: (self.client.dump(key), self.client.pexpiretime(key)) for key in self.client.scan_iter(count=1000)
        }
        found[b"scripts"] = self.client.info("memory")["number_of_cached_scripts"]
        return found

    def dumped(self) -> str:
        done = subprocess.run(
            [postgres_bin_dir() / "pg_dump", "-d", self.postgres.dsn()], capture_output=True, text=True, check=True
        )
        return re.sub(r"(?m)^\\(un)?restrict .*$", "", done.stdout)  # a word made anew each time

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(self.directory.rglob("*")) if path.is_file()}

    def move_to(self, phase: str) -> None:
        match phase:
            case "idle":
                self.owner("init")
                (self.directory / "cachemig.toml").unlink()
            case "dual-write":
                self.owner("dual-write")
                self.owner("backfill")
                self.run("postgres", "recompute", "--all-corrupt")
                self.admin.execute(
                    "INSERT INTO therapy_sessions (patient_code, file_path, file_hash, analytics_cache)"
                    " VALUES ('p', 'f', 'wrong', to_jsonb('{\"a\": 1}'::text))"
                )
                self.owner("sync")
                self.client.delete("analysis:hash3")  # one that verify --repair would mark
                self.client.set("analysis:foreign", "{}")
                self.client.pexpire("analysis:hash4", 10**9)
            case "cutover":
                self.client.delete("analysis:foreign")
                self.mend()
                self.owner("cutover", "--percent", "100", "--no-clients")
            case "redis-only":
                self.owner("stop-writes", "--execute", "--no-clients", "--accept-expiring", "99")
                self.owner("archive", "--to", "cache.zst")
                self.owner("verify", "--accept-set-aside", "1")
            case "dropped":
                self.owner("drop-column", "--execute", "--confirm", "analytics_cache", "--no-clients")

    def mend(self) -> None:
        self.owner("resync", "--all")
        self.owner("sync")
        self.owner("backfill")
        self.owner("verify", "--accept-set-aside", "1")

    def close(self) -> None:
        self.admin.close()
        self.client.close()


@pytest.fixture
def case(own_postgres: OwnPostgres, own_redis: OwnRedis, tmp_path: Path) -> Iterator[Case]:
    yield from opened(own_postgres, own_redis, tmp_path)


def opened(own_postgres: OwnPostgres, own_redis: OwnRedis, tmp_path: Path) -> Iterator[Case]:
    server = own_postgres({"autovacuum": "off"})  # it takes transaction ids of its own
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute("CREATE ROLE clinic LOGIN; GRANT USAGE, CREATE ON SCHEMA public TO clinic; SET ROLE clinic")
        conn.execute(DEMO.read_text())
        conn.execute(
            "INSERT INTO therapy_sessions (patient_code, file_path, file_hash, analytics_cache)"
            " SELECT 'p', 'f', 'hash' || n, '{\"a\": 1}' FROM generate_series(1, 20) AS n"
        )
        conn.execute("UPDATE therapy_sessions SET analytics_cache = to_jsonb('{\"a\": 1}'::text)"
                     " WHERE file_hash = 'hash7'")  # fmt: skip
    assert psql(server.dsn()).returncode == 0
    found = Case(server, own_redis(), tmp_path)
    yield found
    found.close()


def test_a_dry_run_changes_nothing_and_needs_only_read_rights(case: Case) -> None:
    seen: set[tuple[str, str]] = set()
    for phase in PHASES:
        if phase != "not begun":
            case.move_to(phase)
        case.client.acl_log_reset()
        dump, files, keys = case.dumped(), case.files(), case.in_redis()
        for name, runs in DRY_RUNS.items():
            for phases, arguments, shows in runs:
                if not re.search(rf"\b{phase}\b", phases):
                    continue
                xid = case.next_xid()
                shown = case.run("cachemig_reader", name, *arguments, "--dry-run", reads=True).shown
                assert case.next_xid() == xid, (phase, name, arguments)
                assert case.in_redis() == keys, (phase, name, arguments)
                assert case.files() == files, (phase, name, arguments)
                assert len(shown) == 1, (phase, name, arguments)
                assert shows in str(shown[0].result), (phase, name, arguments, shown[0].result)
                seen.add((name, phase))
        assert case.dumped() == dump, phase
        assert {entry["object"] for entry in case.client.acl_log()} <= {"config|get"}, phase
    assert {name for name, _ in seen} == {name for name, runs in DRY_RUNS.items() if runs}


def test_the_comparison_sees_a_change(case: Case) -> None:
    before = (case.dumped(), case.next_xid(), case.in_redis())
    case.admin.execute("UPDATE therapy_sessions SET file_path = file_path WHERE file_hash = 'hash1'")
    case.client.set("analysis:x", "1")
    after = (case.dumped(), case.next_xid(), case.in_redis())
    assert after[1] > before[1]
    assert after[2] != before[2]
    with pytest.raises(CachemigError):
        case.run("cachemig_reader", "init", reads=True)  # the role really is one that only reads
    with pytest.raises(CachemigError):
        case.run("cachemig_owner", "resync", "--all", reads=True)


def test_a_dry_run_ends_no_brownout_and_any_other_command_does(case: Case) -> None:
    case.owner("init")
    case.admin.execute(queries.text("drop_column", "brownout_create"))
    case.admin.execute("ALTER TABLE cachemig.brownout OWNER TO cachemig_owner")
    case.admin.execute(
        "INSERT INTO cachemig.brownout SELECT true, 'therapy_sessions'::regclass, 'analytics_cache', 'hidden', '{}',"
        " now() - interval '1 min', 'x'"
    )
    case.admin.execute("ALTER TABLE therapy_sessions RENAME COLUMN analytics_cache TO hidden")
    query = "SELECT FROM pg_attribute WHERE attrelid = 'therapy_sessions'::regclass AND attname = 'hidden'"
    case.run("cachemig_owner", "pause", "--dry-run", as_json=True)
    assert case.admin.execute(query).rowcount == 1
    case.run("cachemig_owner", "pause", as_json=True)
    assert case.admin.execute(query).rowcount == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["stop-writes", "--execute"],
        ["drop-column", "--execute"],
        ["reclaim", "--execute"],
        ["restore", "--from", "x", "--execute"],
        ["clean", "--execute"],
        ["init", "--format", "sql"],
        ["dual-write", "--format", "sql"],
        ["stop-writes", "--format", "sql"],
        ["drop-column", "--format", "sql"],
        ["recompute", "--file", "x", "--plot", "y.png"],
    ],
    ids=" ".join,
)
def test_nothing_is_said_twice(arguments: list[str]) -> None:
    with pytest.raises(CachemigError, match=r"say --\w+ or --dry-run"):
        inner.run([*arguments, "--dry-run"], Inner({}, None, as_json=False, quiet=True))


@pytest.mark.long
def test_on_a_cluster(clustered: Migrating, redis_cluster: RedisCluster) -> None:
    (more,) = re.findall(r"A Redis Cluster wants `([^`]*)`", CI)
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    rules = [*ACL.replace("SHA256_OF_THE_PASSWORD", digest).split(), *more.split()]
    clustered.set(key_template="analysis:{key}")
    for number in range(10):
        clustered.put(f"k{number}", {"n": number})
    clustered.begin()
    clustered.backfill()
    for number in range(len(redis_cluster.servers)):
        redis_cluster.do(number, *rules)
        redis_cluster.do(number, "ACL", "LOG", "RESET")
    flags = {"table": "sessions", "column": "cache", "shape": "object", "ttl_from": "seen_at"}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CACHEMIG_DSN", clustered.dsn)
            patch.setenv("CACHEMIG_REDIS_URL", clustered.redis_url.replace("://", "://cachemig-ci:p%40ss@"))
            for command in ("doctor", "verify", "cutover --percent 1", "dual-write --disable", "resync --all"):
                shown = inner.run([*command.split(), "--dry-run"], Inner(flags, None, as_json=False, quiet=True)).shown
                assert len(shown) == 1
        assert {entry["object"] for client in redis_cluster.clients for entry in client.acl_log()} <= {"config|get"}
    finally:
        for number in range(len(redis_cluster.servers)):
            redis_cluster.do(number, "ACL", "DELUSER", "cachemig-ci")

"""The servers of one round: Postgres that keeps what it has acknowledged, Redis behind a proxy, perhaps a replica."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import cast

import psycopg
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from cachemig.demo.servers import PostgresServer, RedisServer
from tests.chaos.proxy import Connect, Proxy, tcp, unix

POSTGRES = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "track_commit_timestamp": "on",
    "max_connections": "100",  # what initdb set: a standby may not have fewer
    "wal_keep_size": "512MB",
    "deadlock_timeout": "100ms",
    "autovacuum_naptime": "5s",
}
REDIS = {
    "appendonly": "yes",
    "appendfsync": "always",
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
    "maxmemory-policy": "noeviction",
}


VERSION = b"cachemig:v:{"


def value_key(version_key: bytes) -> bytes:
    """The key that a version key belongs to: between the braces, or behind them where it has braces of its own."""
    tag, _, rest = version_key[len(VERSION) :].partition(b"}")
    return rest or tag


class Directories:
    """Short paths (for Unix sockets) that `nobody` can reach, and one initialised Postgres cluster to copy from."""

    def __init__(self, cluster: Path | None = None) -> None:
        self._stack = ExitStack()
        self._cluster = cluster

    def fresh(self, name: str) -> Path:
        directory = Path(tempfile.mkdtemp(prefix=f"cachemig-{name}-", dir="/tmp"))
        self._stack.callback(shutil.rmtree, directory, ignore_errors=True)
        return directory

    def of_one_round(self) -> Directories:
        """Others with the same cluster, to be closed before these: a long run must not fill the disk."""
        return Directories(self._initialised())

    def postgres(self) -> PostgresServer:
        return PostgresServer(self._copy_of_cluster(), settings=POSTGRES)

    def standby(self, primary: PostgresServer) -> PostgresServer:
        """A hot standby of a server that is as old: both are copies of one cluster that was never started."""
        directory = self._copy_of_cluster()
        signal = _data(directory) / "standby.signal"
        signal.touch()
        shutil.copystat(_data(directory) / "postgresql.conf", signal)
        owner = (_data(directory) / "postgresql.conf").stat()
        os.chown(signal, owner.st_uid, owner.st_gid)
        return PostgresServer(directory, settings=POSTGRES | {"primary_conninfo": primary.dsn()})

    def _initialised(self) -> Path:
        if self._cluster is None:
            first = PostgresServer(self.fresh("pg"))
            first.initialise()
            self._cluster = first.directory
        return self._cluster

    def _copy_of_cluster(self) -> Path:
        cluster, directory = self._initialised(), self.fresh("pg")
        subprocess.run(["cp", "-a", f"{cluster}/.", f"{directory}"], check=True)  # with the owner
        return directory

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Directories:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stand:
    """Starts everything; a context manager."""

    def __init__(self, directories: Directories, seed: int, *, replica: bool, standby: bool) -> None:
        self._directories = directories
        self._replicated = replica
        self._seed = seed
        self._stack = ExitStack()
        self.postgres = directories.postgres()
        self._standby = directories.standby(self.postgres) if standby else None
        self.postgres_lock = threading.Lock()
        """Held while Postgres is away."""
        self.failovers = 0
        """How often Postgres has lost commits that it had acknowledged."""
        self.lost_writes = 0
        """Rows of the harness's record that were lost with them."""
        self.redis_lock = threading.RLock()
        """Held while Redis is taken away, and while somebody compares what it holds with what it held before."""
        self.losses = 0
        """How often Redis may have lost what it had acknowledged."""

    def __enter__(self) -> Stand:
        try:
            self._stack.enter_context(self.postgres)
            if self._standby is not None:
                self._stack.enter_context(self._standby)
            self.redis = self._new_redis()
            self.proxy = Proxy(self._behind(self.redis), self._seed)
            self._stack.callback(self.proxy.close)
            if self._replicated:
                self.replication = Proxy(self._behind(self.redis), self._seed + 1)
                self._stack.callback(self.replication.close)
                self.replica = self._new_replica()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def dsn(self) -> str:
        return self.postgres.dsn()

    @property
    def redis_url(self) -> str:
        """Through the proxy."""
        return f"redis://127.0.0.1:{self.proxy.port}/0"

    def client(self, server: RedisServer | None = None) -> Redis:
        """A client past the proxy."""
        url = (server or self.redis).url
        return Redis.from_url(url, socket_timeout=10, retry=Retry(NoBackoff(), 0))

    # Postgres --------------------------------------------------------------------------------------------------------

    def crash_postgres(self, away_s: float) -> None:
        with self.postgres_lock:
            self.postgres.kill()
            time.sleep(away_s)
            self.postgres.start()

    def fail_over_postgres(self, lag_s: float) -> int | None:
        """A standby takes the primary's place and address. It ends some time before the primary is killed, and so
        lacks the commits of that time: how many writes, or None where there was no failover.

        For a moment it is read-only, as a standby is that clients reach before it is promoted.
        """
        standby, self._standby = self._standby, None
        if standby is None:  # there is one a round
            return None
        with self.postgres_lock:
            self._wait_until_replayed(standby)
        standby.stop()
        time.sleep(lag_s)
        with self.postgres_lock:
            before = self._writes()
            self.failovers += 1
            self.postgres.kill()
            _data(self.postgres.directory).rename(self.postgres.directory / "pg" / "lost")
            _data(standby.directory).rename(_data(self.postgres.directory))
            self.postgres.start()
            time.sleep(lag_s / 3)
            with psycopg.connect(self.dsn, autocommit=True) as conn:
                conn.execute("SELECT pg_promote()")
            lost = before - self._writes()
        self.lost_writes += lost
        return lost

    def _wait_until_replayed(self, standby: PostgresServer) -> None:
        end = time.monotonic() + 30
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            position = conn.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
        with psycopg.connect(standby.dsn(), autocommit=True) as conn:
            replayed = "SELECT pg_last_wal_replay_lsn() >= %s"
            while conn.execute(replayed, position).fetchone() != (True,):
                assert time.monotonic() < end, "the standby does not catch up"
                time.sleep(0.02)

    def _writes(self) -> int:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            row = conn.execute("SELECT count(*) FROM chaos.audit").fetchone()
        assert row is not None
        return int(row[0])

    def cut_sessions(self, application: str, most: int) -> int:
        """Ends sessions of an application; how many there were."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            return conn.execute(
                "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE application_name = %s"
                " ORDER BY random() LIMIT %s) AS a",
                (application, most),
            ).rowcount

    def wait_until_nobody_of(self, application: str) -> None:
        """A session outlives its client by a moment, and its locks with it."""
        end = time.monotonic() + 30
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            while conn.execute("SELECT FROM pg_stat_activity WHERE application_name = %s", (application,)).rowcount:
                assert time.monotonic() < end, f"sessions of {application} do not end"
                time.sleep(0.02)

    # Redis -----------------------------------------------------------------------------------------------------------

    def crash_redis(self, away_s: float) -> None:
        with self.redis_lock:
            self.redis.kill()
            time.sleep(away_s)
            self.redis.start()

    def wipe_redis(self, away_s: float) -> None:
        with self.redis_lock:
            self.losses += 1
            self.redis.kill()
            _forget_data(self.redis)
            time.sleep(away_s)
            self.redis.start()

    def flush_redis(self) -> None:
        with self.redis_lock, self.client() as client:
            self.losses += 1
            client.flushall()

    def evict(self, chance: random.Random) -> list[bytes]:
        """Deletes some live entries, or parts of them; whose they are."""
        with self.redis_lock, self.client() as client:
            names = sorted(client.scan_iter(match=VERSION + b"*", count=1000))
            live = [name for name in names if client.exists(value_key(name))]
            chosen = chance.sample(live, min(len(live), 6))
            for name in chosen:
                self.losses += 1
                client.unlink(*chance.choice([(name,), (value_key(name),), (name, value_key(name))]))
            return [value_key(name) for name in chosen]

    def promote_replica(self, lag_s: float) -> bool:
        """False where there is no replica that had caught up; nothing is changed then."""
        with self.client(self.replica) as client:
            if not _caught_up(client):
                return False
            self.replication.frozen.set()
            time.sleep(lag_s)
            with self.redis_lock:
                self.losses += 1
                self.redis.kill()
                self.replication.drop_all()
                self.replication.frozen.clear()
                client.replicaof("NO", "ONE")
                client.config_set("maxmemory", 0)
                self.redis, former = self.replica, self.redis
                self.proxy.backend = self.replication.backend = self._behind(self.redis)
                self.proxy.drop_all()
                _forget_data(former)
                former.start()
                self.replica = former
                self._follow(former)
        return True

    def fill_redis(self, span_s: float) -> None:
        """For a while no write that needs memory is taken."""
        with suppress(RedisError), self.client() as client:
            client.config_set("maxmemory", 1)
        time.sleep(span_s)
        self.drain_redis()

    def drain_redis(self) -> None:
        with suppress(RedisError), self.client() as client:
            client.config_set("maxmemory", 0)

    def _new_redis(self) -> RedisServer:
        server = RedisServer(self._directories.fresh("redis"), config=REDIS, tcp=self._replicated)
        return self._stack.enter_context(server)

    def _behind(self, server: RedisServer) -> Connect:
        return tcp(server.port) if self._replicated else unix(str(server.directory / "redis.sock"))

    def _new_replica(self) -> RedisServer:
        server = self._new_redis()
        self._follow(server)
        end = time.monotonic() + 30
        with self.client(server) as client:
            while not _caught_up(client):
                assert time.monotonic() < end, "the replica does not catch up"
                time.sleep(0.02)
        return server

    def _follow(self, server: RedisServer) -> None:
        with self.client(server) as client:
            client.replicaof("127.0.0.1", str(self.replication.port))


def _data(directory: Path) -> Path:
    return directory / "pg" / "data"


def _forget_data(server: RedisServer) -> None:
    shutil.rmtree(server.directory / "appendonlydir", ignore_errors=True)
    for name in ("appendonly.aof", "dump.rdb"):
        (server.directory / name).unlink(missing_ok=True)


def _caught_up(client: Redis) -> bool:
    try:
        info = cast("dict[str, object]", client.info("replication"))
    except RedisError:
        return False
    return info.get("master_link_status") == "up" and not info.get("master_sync_in_progress")

"""A primary and a streaming standby of it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from cachemig.demo.servers import PostgresServer
from tests.conftest import OwnPostgres, Servers


@dataclass(frozen=True)
class Pair:
    primary: PostgresServer
    standby: str
    """Its DSN."""

    def catch_up(self, primary: psycopg.Connection[Any]) -> None:
        """Waits until the standby has replayed what is committed by now."""
        now, _ = primary.execute("SELECT pg_current_wal_insert_lsn(), pg_switch_wal()").fetchone() or (None, None)
        with psycopg.connect(self.standby, autocommit=True) as standby:
            began = time.monotonic()
            while standby.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [now]).fetchone() != (True,):
                assert time.monotonic() - began < 20
                time.sleep(0.02)


@contextmanager
def pair_of(own_postgres: OwnPostgres, servers: Servers) -> Iterator[Pair]:
    primary = own_postgres({"wal_level": "replica", "max_wal_senders": "4"})
    primary.stop()
    directory = Path(f"{primary.directory}-s")
    subprocess.run(["cp", "-a", primary.directory, directory], check=True)
    primary.start()
    data = directory / "pg" / "data"
    (data / "standby.signal").touch()
    shutil.chown(data / "standby.signal", data.stat().st_uid, data.stat().st_gid)
    settings = {
        "primary_conninfo": f"{primary.dsn()} application_name=replica1",
        "wal_receiver_status_interval": "1s",
        "max_wal_senders": "4",
    }
    try:
        with PostgresServer(directory, bin_dir=servers.programs.postgres, settings=settings) as standby:
            yield Pair(primary, standby.dsn())
    finally:
        shutil.rmtree(directory)

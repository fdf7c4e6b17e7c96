"""The demo: a whole migration on throw-away servers, under write traffic, told by the commands themselves."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg

from cachemig.demo.application import Application, Counts
from cachemig.demo.frontend import Frontend, Reads
from cachemig.demo.load import load
from cachemig.demo.payloads import Planted
from cachemig.demo.servers import PostgresServer, RedisServer, what_root_does
from cachemig.demo.uploads import Uploads, plant
from cachemig.errors import Exit

_TRAFFIC_PER_S = 40.0
_ARCHIVE = "analytics_cache.zst"
_OLD_JOB = """
    UPDATE therapy_sessions SET analytics_cache = jsonb_set(analytics_cache, '{cached_at}', '"2026-01-02T03:04:05"')
    WHERE id = (SELECT id FROM therapy_sessions WHERE analytics_cache ? 'cached_at' ORDER BY id LIMIT 1)
"""


class _Unexpected(Exception):
    """A command of the walk ended otherwise than it should."""

    def __init__(self, code: int) -> None:
        self.code = code


def run_demo(*, rows: int, seed: int, keep: bool) -> int:
    """Walks from init to the drop of the column and back, under traffic. Returns 0 when the proof holds, else the exit
    code of the command that ended otherwise than it should. Leaves nothing behind, unless `keep`."""
    began = time.monotonic()
    if note := what_root_does():
        say(note)
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="cachemig-demo-"))
        if not keep:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
        say(f"Starting PostgreSQL and Valkey in {directory} …")
        postgres = stack.enter_context(PostgresServer(directory))
        redis = stack.enter_context(RedisServer(directory))
        dsn = postgres.dsn()
        with psycopg.connect(dsn, autocommit=True) as conn:
            planted = load(conn, rows, seed)
            uploads = plant(conn, directory / "recordings", seed)
        say(_what_was_planted(planted, uploads))
        typed = f"host={postgres.host} user=postgres dbname=postgres"  # as a person would write it
        location = f"{directory}/recordings/{{file_path}}"
        walk = _Walk(
            directory,
            {
                "CACHEMIG_DSN": typed,
                "CACHEMIG_REDIS_URL": redis.url,
                "CACHEMIG_RECORDINGS_LOCATION": location,
                "CACHEMIG_SHADOW_READS": "100",  # 1,000 elsewhere
                "CACHEMIG_SOAK_CUTOVER": "2s",  # a day elsewhere
                "CACHEMIG_SOAK_REDIS_ONLY": "2s",  # a week elsewhere
            },
        )
        try:
            application = Application(dsn, seed=seed, rate_per_s=_TRAFFIC_PER_S)
            counts, reads = walk.whole_migration(application, planted, uploads, seed)
        except _Unexpected as exc:
            say(f"\nThe demo stopped: the last command ended with exit code {exc.code}, which was not expected.")
            return exc.code
        say(_what_it_did(counts))
        say(_what_was_read(reads))
        if keep:
            postgres.detach()
            redis.detach()
            say(_how_to_go_on(directory, walk.environment, postgres.pid, redis.pid))
    say(f"\nThe whole demo took {time.monotonic() - began:.0f} s.")
    return Exit.FINE


class _Walk:
    """Runs commands as a person would type them, and prints them."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = environment

    def whole_migration(
        self, application: Application, planted: Planted, uploads: Uploads, seed: int
    ) -> tuple[Counts, Reads]:
        beyond_repair = len(planted.corrupt) - planted.decodable + len(uploads.lost)
        say(f"\nA simulated application now writes about {_TRAFFIC_PER_S:.0f} changes a second, to the end.")
        with application:
            self.run("doctor", why="What stands in the way?")
            self.run("plan", why="What is there to move?")
            self.run("init", why="Begin: a control schema, nothing else.")
            self.run("dual-write", why="From here on every committed write leaves a mark.")
            with self.background("sync", "--follow", why="Deliver the marks, all the time."):
                self.run("backfill", "--on-corrupt", "set-aside", why="Deliver everything else, but what is corrupt.")
                self.run(
                    "verify",
                    expected=Exit.REFUSED,
                    why="Compare every key while the application writes. It says no: somebody has to look at the "
                    "corrupt rows first.",
                )
                self.run("status", why="They are not copied and not lost: the ledger names them.")
                self.run(
                    "recompute",
                    "--compare",
                    *(part for key in uploads.sound[:2] for part in ("--key", key)),
                    why="Some have their recording still. Which of the application's algorithms gives what is stored?",
                )
                self.run(
                    "recompute",
                    "--all-corrupt",
                    expected=Exit.REFUSED,
                    why="Repair what can be repaired; what it replaces is kept. It says no while some are left.",
                )
                self.run(
                    "verify",
                    "--accept-set-aside",
                    str(beyond_repair),
                    why="The proof, with the rows that cannot be repaired accepted by number.",
                )
                reads = self.reads_move(seed)
                counts = application.stop()
            self.run("sync", "--once", why="The application rests; deliver what it wrote last.")
            self.run(
                "verify",
                "--accept-set-aside",
                str(beyond_repair),
                why="And once more, now that nothing changes.",
            )
            self.column_goes(seed, beyond_repair)
        return counts, reads

    def reads_move(self, seed: int) -> Reads:
        say("\nA frontend now looks sessions up through CacheService, about 200 a second.")
        dsn, redis_url = self.environment["CACHEMIG_DSN"], self.environment["CACHEMIG_REDIS_URL"]
        with Frontend(dsn, redis_url, seed=seed, rate_per_s=200) as frontend:
            self.run("measure", "--keys", "40", "--rounds", "1", why="What will be gained? In this table, from here.")
            self.run(
                "cutover",
                "--ramp",
                "10,50,100",
                "--hold",
                "2s",
                why="Move its reads, key by key; go on only while all is well. (A day's hold elsewhere, seconds here.)",
            )
            self.run("status", why="Every read comes from Redis now.")
            self.run("rollback", why="And back: the next read comes from the column again.")
        return frontend.reads

    def column_goes(self, seed: int, set_aside: int) -> None:
        """Up again, and over the step that cannot be taken back; and it is taken back all the same."""
        say("\nThe last part: the column goes. The frontend reads again, and now it writes through CacheService too.")
        dsn, redis_url = self.environment["CACHEMIG_DSN"], self.environment["CACHEMIG_REDIS_URL"]
        accepted = ("--accept-set-aside", str(set_aside))
        with (
            self.background("sync", "--follow", why="Deliver the marks again; it ends when the column does."),
            Frontend(dsn, redis_url, seed=seed + 1, rate_per_s=100, writes=True) as frontend,
        ):
            self.run("cutover", "--percent", "100", why="All reads come from Redis.")
            self.wait(2, "The soak: a day elsewhere, 2 s here.")
            self.run(
                "stop-writes",
                expected=Exit.REFUSED,
                why="What would freeze the column? It says no: in Redis entries expire, and few have a recording.",
            )
            self.run(
                "stop-writes",
                "--accept-expiring",
                str(self.expiring()),
                "--execute",
                why="Accept that by number. From here on writes go to Redis alone.",
            )
            self.old_job()
            self.run(
                "status", why="A job that everybody forgot has written the column: named here, and in Redis by now."
            )
            self.run("archive", "--to", _ARCHIVE, why="The column, to a file, read back and compared.")
            self.wait(2, "The soak: a week without a late write elsewhere, 2 s here.")
            self.run("verify", *accepted, why="The last proof before the drop; what was written since is newer.")
            self.run("drop-column", why="What would go, and what with it? Nothing is changed yet.")
            self.run("drop-column", "--execute", "--confirm", "analytics_cache", why="Drop it.")
            self.run("reclaim", "--method", "vacuum-full", "--execute", why="The drop freed nothing. This does.")
            self.run("verify", *accepted, why="The column is gone, and the ledger still proves what is in Redis.")
            self.run(
                "restore", "--from", _ARCHIVE, "--execute", why="And back: from the archive, and newer from Redis."
            )
            self.run("verify", *accepted, why="Equal again.")
        reads = frontend.reads
        told = f"\nMeanwhile the frontend made {reads.sources.total():,} reads and {reads.puts:,} writes; "
        say(f"{told}{reads.failed or 'none'} failed.")

    def expiring(self) -> int:
        """How many entries stop-writes would have accepted: its own document says so."""
        shown = subprocess.run(
            self._command(("stop-writes", "--json")),
            cwd=self.directory,
            env=self._environment(),
            capture_output=True,
            check=False,
        )
        (gate,) = (gate for gate in json.loads(shown.stdout)["gates"] if gate["gate"] == "expiring")
        return int(gate["figure"].split()[0].replace(",", ""))

    def old_job(self) -> None:
        with psycopg.connect(self.environment["CACHEMIG_DSN"], application_name="nightly-job", autocommit=True) as conn:
            conn.execute(_OLD_JOB)

    def wait(self, seconds: float, why: str) -> None:
        say(f"\n# {why}")
        time.sleep(seconds)

    def run(self, *arguments: str, why: str, expected: int = Exit.FINE) -> None:
        self._print(arguments, why)
        code = subprocess.run(
            self._command(arguments), cwd=self.directory, env=self._environment(), check=False
        ).returncode
        if code != expected:
            raise _Unexpected(code or Exit.ERROR)

    def background(self, *arguments: str, why: str) -> ExitStack:
        self._print((*arguments, "&"), why)
        stack = ExitStack()
        log = stack.enter_context((self.directory / "sync.log").open("w"))
        process = subprocess.Popen(
            self._command(arguments), cwd=self.directory, env=self._environment(), stdout=log, stderr=log
        )

        def stop() -> None:
            process.send_signal(signal.SIGTERM)
            if code := process.wait(timeout=30):
                say((self.directory / "sync.log").read_text())
                raise _Unexpected(code)

        stack.callback(stop)
        return stack

    def _print(self, arguments: tuple[str, ...], why: str) -> None:
        say(f"\n# {why}\n$ cachemig {shlex.join(arguments).replace(chr(39) + '&' + chr(39), '&')}")

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "cachemig", *arguments]

    def _environment(self) -> dict[str, str]:
        # The operator's own settings must not lead the demo to another server.
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("PG", "CACHEMIG_")) and k != "CACHE_TTL_SECONDS"
        }
        return kept | self.environment


def say(text: str) -> None:
    print(text, flush=True)


def _what_was_planted(planted: Planted, uploads: Uploads) -> str:
    kinds = ", ".join(f"{count:,} {kind.value.replace('_', ' ')}" for kind, count in planted.kinds.items() if count)
    corrupt = "\n".join(f"  {row.kind.value.replace('_', ' ')}: {row.file_hash}" for row in planted.corrupt)
    sessions = planted.rows + len(uploads.sound) + len(uploads.corrupt) + len(uploads.lost)
    broken = "\n".join(f"  {what}: {key}" for key, what in {**uploads.corrupt, **uploads.lost}.items())
    return (
        f"therapy_sessions holds {sessions:,} sessions ({kinds}; 10 with a recording).\n"
        f"{len(planted.corrupt) + len(uploads.corrupt) + len(uploads.lost)} of them are corrupt, on purpose:\n{corrupt}"
        f"\n{broken}"
    )


def _what_it_did(counts: Counts) -> str:
    text = f"\nMeanwhile the application made {counts.changes:,} changes"
    if counts.update_p50_ms is not None and counts.update_p99_ms is not None:
        text += f"; its updates took {counts.update_p50_ms:.1f} ms (median), {counts.update_p99_ms:.1f} ms (p99)"
    return text + (f"; {counts.failed} of its transactions failed." if counts.failed else "; none failed.")


def _what_was_read(reads: Reads) -> str:
    where = ", ".join(f"{count:,} from {source}" for source, count in reads.sources.most_common())
    median = f" in {reads.p50_ms:.1f} ms (median)" if reads.p50_ms is not None else ""
    return f"The frontend made {reads.sources.total():,} reads{median}: {where}; {reads.failed or 'none'} failed."


def _how_to_go_on(directory: Path, environment: dict[str, str], *pids: int) -> str:
    exports = "\n".join(f"  export {name}={shlex.quote(value)}" for name, value in environment.items())
    return (
        f"\nThe servers go on running. To try commands:\n  cd {directory}\n{exports}\n  cachemig status\n"
        f"To end them: kill {' '.join(map(str, pids))} && rm -r {directory}"
    )

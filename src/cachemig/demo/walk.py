"""The demo: a rehearsal of the demo's own table, with its corrupt rows, recordings and an old job."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg

from cachemig.demo.application import Application, Counts
from cachemig.demo.load import load
from cachemig.demo.payloads import Planted
from cachemig.demo.servers import what_root_does
from cachemig.demo.uploads import Uploads, plant
from cachemig.errors import Exit
from cachemig.rehearsal.record import Rehearsed
from cachemig.rehearsal.rehearse import Asked, walk_of
from cachemig.rehearsal.scratch import Servers, servers
from cachemig.rehearsal.walk import SHORTENED, Walk, Writer, more_than

_TRAFFIC_PER_S = 40.0
_KEYS = "SELECT DISTINCT file_hash FROM public.therapy_sessions WHERE file_hash IS NOT NULL ORDER BY 1 LIMIT 1000"
_OLD_JOB = """
    UPDATE therapy_sessions SET analytics_cache = jsonb_set(analytics_cache, '{cached_at}', '"2026-01-02T03:04:05"')
    WHERE id = (SELECT id FROM therapy_sessions WHERE analytics_cache ? 'cached_at' ORDER BY id LIMIT 1)
"""


def run_demo(*, rows: int, seed: int, keep: bool, report: Path | None = None) -> int:
    """Walks from init to the drop of the column and back, under traffic. Returns 0 when the proof holds, else 3. Leaves
    nothing behind; with `keep` it ends before the way down, and the servers stay."""
    began = time.monotonic()
    if note := what_root_does():
        say(note)
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="cachemig-demo-"))
        if not keep:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
        say(f"Starting PostgreSQL and Valkey in {directory} …")
        found = stack.enter_context(servers(directory, None, None))
        with psycopg.connect(found.dsn, autocommit=True) as conn:
            planted = load(conn, rows, seed)
            uploads = plant(conn, directory / "recordings", seed)
        say(_what_was_planted(planted, uploads))
        say(f"\nA simulated application now writes about {_TRAFFIC_PER_S:.0f} changes a second.")
        environment = {
            "CACHEMIG_DSN": found.typed,
            "CACHEMIG_REDIS_URL": found.redis_url,
            "CACHEMIG_RECORDINGS_LOCATION": f"{directory}/recordings/{{file_path}}",
        }
        scene = Demo(found, planted, uploads, seed)
        rehearsed = walk_of(
            scene,
            found,
            directory,
            environment,
            say,
            keep=not sys.stdout.isatty(),
            asked=Asked(report=report, seed=seed),
            descend=not keep,
        )
        say(_what_it_did(scene.application.stop()))
        say(_what_was_read(rehearsed))
        for reason in rehearsed.reasons:
            say(f"no: {reason}")
        if keep and found.own is not None:
            for server in found.own:
                server.detach()
            pids = (server.pid for server in found.own)
            say(_how_to_go_on(directory, environment | SHORTENED, *pids))
    say(f"\nThe whole demo took {time.monotonic() - began:.0f} s.")
    return Exit.FINE if rehearsed.passed else Exit.REFUSED


class Demo:
    """The demo's table; of its corrupt rows some can be repaired."""

    column = "analytics_cache"

    def __init__(self, found: Servers, planted: Planted, uploads: Uploads, seed: int) -> None:
        self.dsn, self.redis_url = found.dsn, found.redis_url
        self.application = Application(found.dsn, seed=seed, rate_per_s=_TRAFFIC_PER_S)
        self._planted, self._uploads = planted, uploads

    def writer(self) -> Writer:
        return self.application

    def keys(self) -> list[str]:
        with psycopg.connect(self.dsn) as conn:
            return [str(row[0]) for row in conn.execute(_KEYS).fetchall()]

    def prove(self, walk: Walk) -> tuple[str, ...]:
        planted, uploads = self._planted, self._uploads
        accepted = ("--accept-set-aside", str(len(planted.corrupt) - planted.decodable + len(uploads.lost)))
        walk.run("backfill", "--on-corrupt", "set-aside", why="Deliver everything else, but what is corrupt.")
        walk.run(
            "verify",
            expected=Exit.REFUSED,
            why="Compare every key while the application writes. It says no: somebody has to look at the "
            "corrupt rows first.",
        )
        walk.run("status", why="They are not copied and not lost: the ledger names them.")
        walk.run(
            "recompute",
            "--compare",
            *(part for key in uploads.sound[:2] for part in ("--key", key)),
            why="Some have their recording still. Which of the application's algorithms gives what is stored?",
        )
        walk.run(
            "recompute",
            "--all-corrupt",
            expected=Exit.REFUSED,
            why="Repair what can be repaired; what it replaces is kept. It says no while some are left.",
        )
        walk.run("verify", *accepted, why="The proof, with the rows that cannot be repaired accepted by number.")
        return accepted

    def accept_expiring(self, found: int) -> int:
        return more_than(found)

    def late_write(self) -> None:
        with psycopg.connect(self.dsn, application_name="nightly-job", autocommit=True) as conn:
            conn.execute(_OLD_JOB)


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


def _what_was_read(rehearsed: Rehearsed) -> str:
    t = rehearsed.traffic
    median = f" in {t.read_p50_ms:.1f} ms (median)" if t.read_p50_ms is not None else ""
    return f"The frontend made {t.reads:,} reads{median}; {t.reads_failed or 'none'} failed."


def _how_to_go_on(directory: Path, environment: dict[str, str], *pids: int) -> str:
    exports = "\n".join(f"  export {name}={shlex.quote(value)}" for name, value in environment.items())
    return (
        f"\nThe servers go on running. To try commands:\n  cd {directory}\n{exports}\n  cachemig status\n"
        f"To end them: kill {' '.join(map(str, pids))} && rm -r {directory}"
    )

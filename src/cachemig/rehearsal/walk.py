"""The walk: every command of a migration in its order, up the ladder and down again, under traffic."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Protocol

from cachemig.errors import Exit
from cachemig.rehearsal import lint
from cachemig.rehearsal.frontend import Frontend, Reads
from cachemig.rehearsal.record import Step
from cachemig.steps.plan import BLOCKS, MENTIONS

ARCHIVE = "column.zst"
SHORTENED = {
    "CACHEMIG_SHADOW_READS": "100",  # 1,000 elsewhere
    "CACHEMIG_SOAK_CUTOVER": "2s",  # a day elsewhere
    "CACHEMIG_SOAK_REDIS_ONLY": "2s",  # a week elsewhere
}


class Stopped(Exception):
    """A command ended otherwise than the walk expects; it goes no further."""

    def __init__(self, code: int, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.code = code
        self.reasons = tuple(reasons)


class Tally(Protocol):
    """What a simulated application did."""

    @property
    def changes(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def last_error(self) -> str | None: ...
    @property
    def update_p50_ms(self) -> float | None: ...
    @property
    def update_p99_ms(self) -> float | None: ...


class Writer(AbstractContextManager["Writer"], Protocol):
    """A program that writes the column while the block lasts, or until it is stopped."""

    def stop(self) -> Tally: ...


class Scene(Protocol):
    """What is migrated, and by which programs it is used."""

    dsn: str
    redis_url: str
    column: str

    def writer(self) -> Writer: ...
    def keys(self) -> list[str]: ...
    def prove(self, walk: Walk) -> tuple[str, ...]:
        """From backfill to the first verification that passes; the flags that every later one wants."""
        ...

    def accept_expiring(self, found: int) -> int:
        """How many entries that expire without a recording are accepted, of those found."""
        ...

    def late_write(self) -> None:
        """A write to the frozen column, by a program that everybody forgot."""
        ...


class Walk:
    """Runs commands as a person would type them, prints them, and keeps what they said."""

    def __init__(self, directory: Path, environment: dict[str, str], say: Callable[[str], None], *, keep: bool) -> None:
        """With `keep` what commands tell is kept in `steps` and printed by `say`; else it goes to the terminal."""
        self.directory = directory
        self.environment = environment
        self.say = say
        self.steps: list[Step] = []
        self.reasons: list[str] = []
        self.linted: list[str] = []
        self.linter = lint.linter()
        self._keep = keep

    def run(self, *arguments: str, why: str, expected: int = Exit.FINE) -> Any:
        """Its document. Raises Stopped where it ends with another exit code."""
        self._print(arguments, why)
        code, document = self._execute(arguments, why)
        if code != expected:
            raise Stopped(code or Exit.ERROR, [f"cachemig {shlex.join(arguments)}: {r}" for r in reasons(document)])
        return document

    def quietly(self, *arguments: str) -> Any:
        """Its document, whatever the exit code."""
        done = subprocess.run(
            [*self._command(arguments), "--json"],
            cwd=self.directory,
            env=self._environment(),
            capture_output=True,
            check=False,
        )
        return json.loads(done.stdout or b"{}")

    def check(self, *arguments: str) -> None:
        """Has the linter read the file that a step would be given to a pipeline as."""
        if self.linter is None:
            return
        written = self.quietly(*arguments, "--format", "sql", "--output", "migrations")
        if "file" not in written:  # nothing to read is no file without a fault
            self.reasons += [f"cachemig {shlex.join(arguments)} --format sql: {why}" for why in reasons(written)]
            return
        files = [written[name] for name in ("file", "reverse") if written.get(name)]
        self.linted += lint.findings(self.linter, [self.directory / file for file in files])

    def background(self, *arguments: str, why: str) -> ExitStack:
        self._print((*arguments, "&"), why)
        stack = ExitStack()
        path = self.directory / f"{arguments[0]}.log"
        log = stack.enter_context(path.open("w"))
        process = subprocess.Popen(
            self._command(arguments), cwd=self.directory, env=self._environment(), stdout=log, stderr=log
        )

        def stop() -> None:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            if code:
                raise Stopped(code, [f"cachemig {shlex.join(arguments)}: {path.read_text().strip()}"])

        stack.callback(stop)
        return stack

    def wait(self, seconds: float, why: str) -> None:
        self.say(f"\n# {why}")
        time.sleep(seconds)

    def _print(self, arguments: Sequence[str], why: str) -> None:
        self.say(f"\n# {why}\n$ cachemig {shlex.join(arguments).replace(chr(39) + '&' + chr(39), '&')}")

    def _execute(self, arguments: Sequence[str], why: str) -> tuple[int, Any]:
        began = time.monotonic()
        told: list[str] = []
        with tempfile.TemporaryFile() as document:  # a pipe would fill up while the other one is read
            process = subprocess.Popen(
                [*self._command(arguments), "--json"],
                cwd=self.directory,
                env=self._environment(),
                stdout=document,
                stderr=subprocess.PIPE if self._keep else None,
                text=True,
            )
            if process.stderr is not None:
                with process.stderr as lines:
                    for line in lines:
                        told.append(line)
                        self.say(line.rstrip("\n"))
            code = process.wait()
            document.seek(0)
            text = document.read()
        self.steps.append(
            Step(f"cachemig {shlex.join(arguments)}", why, code, round(time.monotonic() - began, 2), "".join(told))
        )
        return code, json.loads(text) if text.strip() else None

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "cachemig", *arguments]

    def _environment(self) -> dict[str, str]:
        # The operator's own settings must not lead the rehearsal to another server; nor is GitHub's runner to hear each
        # of its commands.
        elsewhere = ("PG", "CACHEMIG_", "CACHE_TTL_SECONDS", "GITHUB_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(elsewhere)}
        return kept | self.environment


def reasons(document: Any) -> list[str]:
    """Why a command said no, of its document."""
    match document:
        case {"error": str(), "message": str(message), **rest}:
            return [message + (f" ({rest['hint']})" if rest.get("hint") else "")]
        case {"gates": list(gates)} if unmet := [g for g in gates if not g["met"]]:
            return [f"gate {g['gate']} ({g['demands']}): {g['figure']}; then {g['command']}" for g in unmet]
        case {"passed": False, "counts": dict(counts)}:
            good = ("match", "equivalent", "expired", "skipped")
            bad = ", ".join(f"{n:,} {name}" for name, n in counts.items() if name not in good)
            flag = "; corrupt rows are accepted by number: --accept-set-aside N" if counts.get("set-aside") else ""
            return [f"not every key is good: {bad}{flag}"]
        case {"findings": list(findings)}:
            return [f"{f['name']}: {f['what']}" for f in findings if f["level"] == "error"] or ["it said no"]
    return ["it said no"]


class Migration:
    """One walk over the whole ladder. What programs saw is here when it ends, however it ends."""

    def __init__(self, walk: Walk, scene: Scene, *, seed: int = 1, accept_mention: Sequence[str] = ()) -> None:
        self.walk = walk
        self.scene = scene
        self.seed = seed
        self.counts: Tally | None = None
        self.reads = Reads()
        self.later = Reads()
        self._accept_mention = tuple(accept_mention)
        self._blocked: list[str] = []

    def up_and_down(self, look_back: Callable[[], None], *, descend: bool = True) -> None:
        """Raises Stopped. Calls `look_back` when the column is dropped, and again before the way down."""
        walk, scene = self.walk, self.scene
        with scene.writer() as writer:
            walk.run("doctor", why="What stands in the way?")
            self._look(walk.run("plan", why="What is there to move?"))
            walk.check("init")
            walk.run("init", why="Begin: a control schema, nothing else.")
            walk.check("dual-write")
            walk.run("dual-write", why="From here on every committed write leaves a mark.")
            with walk.background("sync", "--follow", why="Deliver the marks, all the time."):
                accepted = scene.prove(walk)
                self._reads_move()
                self.counts = writer.stop()
            walk.run("sync", "--once", why="The application rests; deliver what it wrote last.")
            walk.run("verify", *accepted, why="And once more, now that nothing changes.")
        self._column_goes(accepted, look_back, descend=descend)

    def _look(self, plan: Any) -> None:
        """What keeps the column from going is a reason; the walk goes on to where it would stop."""
        blocking = [d for d in plan["dependents"] if d["what_to_do"].startswith((BLOCKS, MENTIONS))]
        self._blocked = [
            f"{d['kind']} {d['name']}: {d['what_to_do']}" for d in blocking if d["name"] not in self._accept_mention
        ]
        self.walk.reasons += self._blocked

    def _frontend(self, rate_per_s: float, *, seed: int, writes: bool = False) -> Frontend:
        scene = self.scene
        return Frontend(scene.dsn, scene.redis_url, scene.keys(), seed=seed, rate_per_s=rate_per_s, writes=writes)

    def _reads_move(self) -> None:
        walk = self.walk
        walk.say("\nA frontend now looks keys up through CacheService, about 200 a second.")
        with self._frontend(200, seed=self.seed) as frontend:
            self.reads = frontend.reads
            walk.run("measure", "--keys", "40", "--rounds", "1", why="What will be gained? In this table, from here.")
            walk.run(
                "cutover",
                "--ramp",
                "10,50,100",
                "--hold",
                "2s",
                why="Move its reads, key by key; go on only while all is well. (A day's hold elsewhere, seconds here.)",
            )
            walk.run("status", why="Every read comes from Redis now.")
            walk.run("rollback", why="And back: the next read comes from the column again.")

    def _column_goes(self, accepted: tuple[str, ...], look_back: Callable[[], None], *, descend: bool) -> None:
        """Up again, and over the step that cannot be taken back; and it is taken back all the same."""
        walk, scene = self.walk, self.scene
        walk.say(
            "\nThe last part: the column goes. The frontend reads again, and now it writes through CacheService too."
        )
        with self._frontend(100, seed=self.seed + 1, writes=True) as frontend:
            self.later = frontend.reads
            with walk.background("sync", "--follow", why="Deliver the marks again; it ends when the column does."):
                walk.run("cutover", "--percent", "100", why="All reads come from Redis.")
                walk.wait(2, "The soak: a day elsewhere, 2 s here.")
                self._freeze()
                scene.late_write()
                walk.run(
                    "status", why="A job that everybody forgot has written the column: named here, and in Redis by now."
                )
                walk.run("archive", "--to", ARCHIVE, why="The column, to a file, read back and compared.")
                walk.wait(2, "The soak: a week without a late write elsewhere, 2 s here.")
                walk.run("verify", *accepted, why="The last proof before the drop; what was written since is newer.")
                walk.check("drop-column")
                self._drop(accepted, look_back)
            look_back()
            if descend:
                walk.run("rollback", why="All the way down. Writes go to both again, reads still come from Redis.")
                walk.run("rollback", why="Reads come from the column again.")
        if descend:
            walk.run("sync", "--once", why="Nobody writes any more; deliver what was written last.")
            walk.run("verify", *accepted, why="Both sides are equal.")
            walk.run("dual-write", "--disable", why="Capture off: the application is as it was before all this.")
            walk.run("clean", "--values", "--execute", why="And nothing is left behind.")

    def _freeze(self) -> None:
        walk = self.walk
        found = _expiring(walk)
        number = self.scene.accept_expiring(found)
        accept = ("--accept-expiring", str(number)) if number else ()
        if found:
            walk.run(
                "stop-writes",
                expected=Exit.REFUSED,
                why="What would freeze the column? It says no: in Redis entries expire, and few have a recording.",
            )
        else:
            walk.run("stop-writes", why="What would freeze the column?")
        walk.check("stop-writes", *accept)
        walk.run(
            "stop-writes",
            *accept,
            "--execute",
            why=("Accept that by number. " if number else "") + "From here on writes go to Redis alone.",
        )

    def _drop(self, accepted: tuple[str, ...], look_back: Callable[[], None]) -> None:
        walk, column = self.walk, self.scene.column
        mentions = tuple(part for name in self._accept_mention for part in ("--accept-mention", name))
        if self._blocked:
            walk.run(
                "drop-column",
                expected=Exit.REFUSED,
                why="What would go, and what with it? It says no: something depends on the column.",
            )
            return
        walk.run("drop-column", *mentions, why="What would go, and what with it? Nothing is changed yet.")
        walk.run("drop-column", *mentions, "--execute", "--confirm", column, why="Drop it.")
        walk.run("reclaim", "--method", "vacuum-full", "--execute", why="The drop freed nothing. This does.")
        walk.run("verify", *accepted, why="The column is gone, and the ledger still proves what is in Redis.")
        look_back()
        walk.run("restore", "--from", ARCHIVE, "--execute", why="And back: from the archive, and newer from Redis.")
        walk.run("verify", *accepted, why="Equal again.")


def _expiring(walk: Walk) -> int:
    """How many entries stop-writes would have accepted: its own document says so."""
    gates = walk.quietly("stop-writes").get("gates", [])
    figure = next((g["figure"] for g in gates if g["gate"] == "expiring" and not g["met"]), "0")
    return int(figure.split()[0].replace(",", ""))


def more_than(found: int) -> int:
    """What is accepted of so many: programs go on writing until the step is taken, and it may be a few more then."""
    return found and found + found // 20 + 10

"""The reader of recordings with real child processes: what good files give, and that no bad one does harm.

Where the checks would refuse a file before ezc3d sees it, a child with the checks taken out shows what they spare us,
and that the limits hold without them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cachemig.demo.recordings import LABELS, aborted, recording_bytes
from cachemig.emg import reader
from cachemig.emg.checks import before_reading
from cachemig.emg.errors import ReaderUnavailable, RecordingError
from cachemig.emg.isolated import ENVIRONMENT_KEPT, ENVIRONMENT_SET, Isolated, Limits, Pool
from cachemig.emg.payload import payload
from cachemig.emg.profile import HEAD, Options
from tests.conftest import REPOSITORY

RECORDINGS = sorted((REPOSITORY.parent / "shared" / "data" / "recordings").glob("*.c3d"))
GOOD = recording_bytes(1, 2.0)

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
each_recording = pytest.mark.parametrize(
    "path",
    RECORDINGS or [pytest.param(None, marks=pytest.mark.skip("no recordings"))],
    ids=lambda path: path.stem[-19:] if path else "none",
)

Damage = Callable[[bytes], bytes]


def program(*lines: str) -> tuple[str, ...]:
    """A child that runs these lines first; `checks`, `reader`, `os` and `time` are there."""
    start = ("import os, sys, time", "from cachemig.emg import checks, child, reader")
    return (sys.executable, "-P", "-c", "\n".join([*start, *lines, "sys.exit(child.main(sys.argv[1:]))"]))


# ezc3d gets the file as it is; only its answer is looked at.
UNCHECKED = program(f"checks.before_reading = lambda data, most: checks.{before_reading(GOOD)!r}")
HANGING = program("reader._read = lambda name: time.sleep(600)")
SPINNING = program("def spin(name):\n    while True: pass", "reader._read = spin")


def straight(data: bytes) -> NDArray[np.float64]:
    """The samples, without ezc3d: what stands where the header says, where no scale or offset is set."""
    header = before_reading(data)
    frames = np.frombuffer(data, "<f4", offset=header.data_offset).reshape(header.frames, -1)
    analogs = frames[:, 4 * header.points :].reshape(-1, header.channels)
    return analogs.T.astype(np.float64)


def gone(pid: int, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if sys.platform == "linux":
            try:
                if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                    return True  # dead; whoever inherited it has not noticed yet
            except FileNotFoundError:
                return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def isolated() -> Iterator[Isolated]:
    with Isolated() as one:
        yield one


# Good files -------------------------------------------------------------------------------------------------------


def test_a_recording_comes_out_as_it_stands_in_the_file(isolated: Isolated, tmp_path: Path) -> None:
    path = tmp_path / "recording.c3d"
    path.write_bytes(GOOD)
    for source in (GOOD, path):
        recording = isolated.read(source)
        assert recording.labels == LABELS
        assert recording.sampling_rate_hz == 990.0
        assert np.array_equal(recording.samples, straight(GOOD))


@each_recording
def test_a_real_recording_comes_out_as_it_stands_in_the_file(isolated: Isolated, path: Path) -> None:
    if "20240304" in path.name:
        with pytest.raises(RecordingError, match=r"^aborted"):
            isolated.read(path)
        return
    recording = isolated.read(path)
    assert recording.labels == LABELS
    assert recording.sampling_rate_hz == 990.0
    assert np.array_equal(recording.samples, straight(path.read_bytes()))


def test_an_analysis_in_the_child_is_the_one_made_here(isolated: Isolated) -> None:
    data, now = recording_bytes(2, 12.0), datetime(2026, 3, 1, 12, tzinfo=UTC)
    options = Options(session_mvc_values={"CH1": 2e-4}, session_expected_contractions=7)
    assert isolated.analyse(data, HEAD, options, now) == payload(reader.read(data), HEAD, options, now)


def test_one_child_reads_many(isolated: Isolated) -> None:
    isolated.read(GOOD)
    pid, started = isolated.pid, isolated.children_started
    for seed in range(3):
        isolated.read(recording_bytes(seed, 0.5))
        with pytest.raises(RecordingError):
            isolated.read(aborted(GOOD))
    assert (isolated.pid, isolated.children_started) == (pid, started)


def test_the_parent_loads_neither_ezc3d_nor_scipy_and_numpy_only_to_read(tmp_path: Path) -> None:
    path = tmp_path / "recording.c3d"
    path.write_bytes(recording_bytes(1, 12.0))
    script = f"""
import sys
from datetime import UTC, datetime
from pathlib import Path
from cachemig.emg.isolated import Isolated
from cachemig.emg.profile import HEAD, Options
loaded = lambda: [name for name in ("numpy", "scipy", "ezc3d") if name in sys.modules]
with Isolated() as one:
    assert one.analyse(Path({str(path)!r}), HEAD, Options(), datetime.now(UTC))["analytics"]
    assert loaded() == [], loaded()
    one.read(Path({str(path)!r}))
    assert loaded() == ["numpy"], loaded()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# Damage -----------------------------------------------------------------------------------------------------------


def at(position: int, layout: str, *values: float) -> Damage:
    new = struct.pack(layout, *values)
    return lambda data: data[:position] + new + data[position + len(new) :]


def parameter(name: bytes, group: int, offset: int, layout: str, *values: float) -> Damage:
    """`offset` from the link of the record: type +2, dimensions +3, value of a plain number +4."""
    key = bytes([group]) + name
    return lambda data: at(data.index(key) + len(key) + offset, layout, *values)(data)


def bomb(data: bytes) -> bytes:
    data = at(8, "<H", 65535)(at(16, "<H", 0)(data))
    return parameter(b"DATA_START", 1, 4, "<H", 0)(parameter(b"FRAMES", 1, 4, "<H", 65535)(data))


# What is damaged: the name it is refused by, and the names when only ezc3d's answer is looked at (None: accepted).
DAMAGES: dict[str, tuple[str, Damage, set[str | None]]] = {
    "0 bytes": ("too-small", lambda data: b"", {"unreadable"}),
    "1 byte": ("too-small", lambda data: data[:1], {"unreadable"}),
    "zeros": ("not-a-c3d", lambda data: bytes(4096), {"unreadable"}),
    "random bytes": ("not-a-c3d", lambda data: np.random.default_rng(1).bytes(4096), {"unreadable"}),
    "text": ("not-a-c3d", lambda data: b"a text\n" * 500, {"unreadable"}),
    "wrong magic": ("not-a-c3d", at(1, "B", 0x51), {"unreadable"}),
    "cut inside the header": ("too-small", lambda data: data[:400], {"unreadable"}),
    "cut inside the parameters": ("truncated", lambda data: data[:1200], {"unreadable"}),
    "cut inside the data": ("truncated", lambda data: data[: len(data) // 2], {"samples"}),
    "ANALOG:USED wrong": ("layout", parameter(b"USED", 2, 4, "<H", 3), {"channels"}),
    "ANALOG:USED of the header wrong": ("truncated", at(4, "<H", 240), {None}),
    "POINT:USED wrong": ("layout", parameter(b"USED", 1, 4, "<H", 3), {"samples"}),
    "RATE wrong": ("rate", parameter(b"RATE", 2, 4, "<f", 1980.0), {"rate", "samples"}),
    "data start wrong": ("truncated", at(16, "<H", 5), {"samples"}),
    "scale sign wrong": ("integer-data", at(12, "<f", 1.0), {"out-of-range"}),
    "POINT:SCALE sign wrong": ("integer-data", parameter(b"SCALE", 1, 4, "<f", 1.0), {"out-of-range"}),
    "255 dimensions": ("parameters", parameter(b"SCALE", 2, 3, "B", 255), {"crashed"}),
    "a link of zero": ("parameters", parameter(b"USED", 2, 0, "<H", 0), {"crashed", "channels"}),
    "dimensions 7 x 255": ("parameters", parameter(b"SCALE", 2, 3, "8B", 7, *[255] * 7), {"out-of-memory"}),
    "65535 frames from block 0": ("header", bomb, {"out-of-memory", "timed-out", "samples"}),
    "MIPS": ("byte-order", at(515, "B", 86), {"unreadable"}),
    "aborted": ("aborted", aborted, {"samples"}),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_refused_by_name_and_the_next_recording_is_read(isolated: Isolated, what: str) -> None:
    name, damage, _ = DAMAGES[what]
    with pytest.raises(RecordingError) as caught:
        isolated.read(damage(GOOD))
    assert caught.value.name == name
    assert isolated.read(GOOD).samples.shape == (4, 1980)


@pytest.fixture(scope="module")
def unchecked() -> Iterator[Isolated]:
    with Isolated(Limits(seconds=8, memory_bytes=1 << 30), program=UNCHECKED) as one:
        yield one


@pytest.mark.parametrize("what", DAMAGES)
def test_the_limits_hold_without_the_checks(unchecked: Isolated, what: str) -> None:
    """What ezc3d really does with the file is contained; where it accepts it, the checks above are all there is."""
    _, damage, names = DAMAGES[what]
    began = time.monotonic()
    try:
        unchecked.read(damage(GOOD))
        name = None
    except RecordingError as exc:
        name = exc.name
    assert name in names
    assert time.monotonic() - began < 15
    assert np.array_equal(unchecked.read(GOOD).samples, straight(GOOD))


def test_a_crash_costs_one_child(unchecked: Isolated) -> None:
    unchecked.read(GOOD)
    pid, started = unchecked.pid, unchecked.children_started
    assert pid is not None
    with pytest.raises(RecordingError, match="SIGSEGV") as caught:
        unchecked.read(DAMAGES["255 dimensions"][1](GOOD))
    assert caught.value.name == "crashed"
    assert gone(pid)
    assert unchecked.pid is None
    unchecked.read(GOOD)
    assert unchecked.children_started == started + 1


def test_what_is_no_file_is_refused_at_once(isolated: Isolated, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    began = time.monotonic()
    for path, name in (
        (tmp_path, "not-a-file"),
        (tmp_path / "fifo", "not-a-file"),
        (tmp_path / "missing", "missing"),
    ):
        with pytest.raises(RecordingError) as caught:
            isolated.read(path)
        assert caught.value.name == name
    assert time.monotonic() - began < 5


def test_a_file_over_the_limit_is_not_even_sent(tmp_path: Path) -> None:
    path = tmp_path / "recording.c3d"
    path.write_bytes(GOOD)
    with Isolated(Limits(file_bytes=len(GOOD) - 1)) as one:
        with pytest.raises(RecordingError, match=r"^too-large"):
            one.read(GOOD)
        assert one.pid is None
        with pytest.raises(RecordingError, match=r"^too-large"):
            one.read(path)


def test_the_bytes_that_were_checked_are_the_bytes_that_are_read(tmp_path: Path) -> None:
    """The file is replaced between the check and ezc3d."""
    path = tmp_path / "recording.c3d"
    path.write_bytes(GOOD)
    replaced = program(
        "check = checks.before_reading",
        "def swap(data, most):",
        f"    open({str(path)!r}, 'wb').write(bytes(1000))",
        "    return check(data, most)",
        "checks.before_reading = swap",
    )
    with Isolated(program=replaced) as one:
        assert np.array_equal(one.read(path).samples, straight(GOOD))
    assert path.stat().st_size == 1000


def test_a_label_that_json_cannot_hold_is_refused(isolated: Isolated) -> None:
    for bad in (b"CH\0 Raw", b"CH1\nRaw", b"CH\xff Raw"):
        with pytest.raises(RecordingError) as caught:
            isolated.read(GOOD.replace(b"CH1 Raw", bad))
        assert caught.value.name == "labels"


# Limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hung", [HANGING, SPINNING], ids=["sleeping", "spinning"])
def test_a_hang_ends_with_the_time_limit(hung: tuple[str, ...]) -> None:
    with Isolated(Limits(seconds=0.5), program=hung) as one:
        with pytest.raises(RecordingError, match=r"limit 0\.5 s") as caught:
            one.read(GOOD)
        assert caught.value.name == "timed-out"
        assert one.pid is None
        began = time.monotonic()
        with pytest.raises(RecordingError):
            one.read(GOOD)
        assert time.monotonic() - began < 10
        assert one.children_started == 2


def test_the_time_limit_is_for_one_recording_not_for_all() -> None:
    with Isolated(Limits(seconds=1.0)) as one:
        deadline, data = time.monotonic() + 2.5, recording_bytes(1, 12.0)
        while time.monotonic() < deadline:
            one.read(data)
        assert one.children_started == 1


def test_a_child_that_burns_processor_time_ends_without_its_parents_clock() -> None:
    patient = program(
        "def spin(name):\n    while True: pass",
        "reader._read = spin",
        "sys.argv[2] = '0'",  # its own limit; the parent waits for longer
    )
    with Isolated(Limits(seconds=60), program=patient) as one, pytest.raises(RecordingError) as caught:
        one.read(GOOD)
    assert (caught.value.name, caught.value.detail) == ("timed-out", "processor time")


@on_linux
def test_memory_beyond_the_limit_is_refused_to_the_child() -> None:
    hungry = program("reader._read = lambda name: bytes(3 << 30)")
    with Isolated(Limits(memory_bytes=1 << 30), program=hungry) as one:
        with pytest.raises(RecordingError) as caught:
            one.read(GOOD)
        assert caught.value.name == "out-of-memory"


def test_the_longest_recording_fits_into_the_limits() -> None:
    """65,535 frames: more than half an hour, 32.5 MB."""
    data = recording_bytes(1, 1.0)[:1536] + bytes(65535 * 496)
    for damage in (at(8, "<H", 65535), parameter(b"FRAMES", 1, 4, "<H", 65535)):
        data = damage(data)
    with Isolated() as one:
        assert one.read(data).samples.shape == (4, 65535 * 30)


@on_linux
def test_the_child_has_its_limits_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("PGPASSWORD", "CACHEMIG_DSN", "CACHEMIG_REDIS_URL", "REDISCLI_AUTH", "SUPABASE_KEY", "AWS_SESSION_TOKEN")
    for name in secrets:
        monkeypatch.setenv(name, "hunter2")
    with socket.socket() as inherited, Isolated() as one:
        inherited.set_inheritable(True)
        one.read(GOOD)
        proc = Path(f"/proc/{one.pid}")
        environment = (proc / "environ").read_bytes()
        names = {entry.partition(b"=")[0].decode() for entry in environment.split(b"\0") if entry}
        assert names <= {*ENVIRONMENT_KEPT, *ENVIRONMENT_SET}
        assert b"hunter2" not in environment + (proc / "cmdline").read_bytes()
        limits = (proc / "limits").read_text()
        assert [line.split()[4:6] for line in limits.splitlines() if "core file" in line] == [["0", "0"]]
        space = next(line.split()[3] for line in limits.splitlines() if "address space" in line)
        assert Limits().memory_bytes < int(space) < Limits().memory_bytes + (2 << 30)
        kinds = [str(entry.readlink()) for entry in (proc / "fd").iterdir()]
        assert all(kind.startswith("pipe:") or kind == os.devnull for kind in kinds), kinds


def test_what_a_library_prints_is_neither_an_answer_nor_shown(capfd: pytest.CaptureFixture[str]) -> None:
    noisy = program(
        "read = reader._read",
        "def loud(name):",
        "    os.write(1, b'on standard output\\n' * 100000)",
        "    os.write(2, b'on standard error\\n' * 100000)",
        "    return read(name)",
        "reader._read = loud",
    )
    with Isolated(program=noisy) as one:
        assert np.array_equal(one.read(GOOD).samples, straight(GOOD))
    assert capfd.readouterr() == ("", "")


def test_last_words_are_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    dying = program(
        "def die(name):",
        "    os.write(2, b'Anna M., born in 1960')",
        "    os.abort()",
        "reader._read = die",
    )
    with Isolated(program=dying) as one, pytest.raises(RecordingError) as caught:
        one.read(GOOD)
    assert (caught.value.name, caught.value.detail) == ("crashed", "SIGABRT")
    assert "Anna" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "answer",
    [
        b"no frame at all" * 10,
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x00\x00\x00\x02\x00\x00\x00\x00[]",
        b"\x00\x00\x00\x02\x00\x00\x00\x00{}",
        b'\x00\x00\x00\x10\x00\x00\x00\x00{"error":["x",1]',
        b'\x00\x00\x00\x12\x00\x00\x00\x00{"error":["x","y"]}',
    ],
    ids=["text", "too long", "a list", "empty", "no JSON", "unknown name"],
)
def test_nonsense_is_no_answer(answer: bytes) -> None:
    confused = program(
        f"child._send = lambda replies, head, body, send=child._send: (os.write(replies, {answer!r}) "
        "if head != {'ok': child.READY} else send(replies, head, body))"
    )
    with Isolated(Limits(seconds=20), program=confused) as one:
        with pytest.raises(RecordingError) as caught:
            one.read(GOOD)
        assert caught.value.name == "crashed"
        assert one.pid is None


@pytest.mark.parametrize("ill", [("sys.exit(3)",), ("raise ImportError('no ezc3d')",)], ids=["exit", "import"])
def test_a_child_that_does_not_start_is_no_fault_of_the_recording(ill: tuple[str, ...]) -> None:
    with Isolated(program=program(*ill)) as one, pytest.raises(ReaderUnavailable, match="does not start"):
        one.read(GOOD)


def test_a_child_that_starts_too_slowly(capfd: pytest.CaptureFixture[str]) -> None:
    with Isolated(Limits(start_seconds=0.3), program=program("time.sleep(600)")) as one:
        with pytest.raises(ReaderUnavailable, match="timed out"):
            one.read(GOOD)
        assert one.pid is None


# Ends -------------------------------------------------------------------------------------------------------------


def test_a_child_that_is_killed_while_it_reads() -> None:
    with Isolated(program=HANGING) as one:
        killer = threading.Thread(target=_kill_when_there, args=(one, signal.SIGKILL))
        killer.start()
        with pytest.raises(RecordingError) as caught:
            one.read(GOOD)
        killer.join()
    assert (caught.value.name, caught.value.detail) == ("crashed", "SIGKILL")


def test_a_child_that_was_killed_while_idle_is_replaced_without_a_word() -> None:
    with Isolated() as one:
        one.read(GOOD)
        pid = one.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        one.read(GOOD)
        assert one.children_started == 2


def _kill_when_there(one: Isolated, number: signal.Signals) -> None:
    while (pid := one.pid) is None:
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(pid, number)


@pytest.mark.parametrize("state", ["idle", "reading"])
def test_a_child_ends_when_its_parent_is_killed(state: str) -> None:
    """In the middle of a read as well, which by itself would go on for ten minutes."""
    script = f"""
import sys, threading, time
sys.path.insert(0, {str(REPOSITORY)!r})
from tests.integration.test_isolated_reader import GOOD, HANGING, Isolated
one = Isolated(program=HANGING) if {state!r} == "reading" else Isolated()
threading.Thread(target=one.read, args=(GOOD,), daemon=True).start()
while one.pid is None: time.sleep(0.01)
time.sleep(1.5)
print(one.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    assert gone(pid)


def test_what_happens_on_the_pipe_of_requests_does_not_end_a_child_at_work() -> None:
    """The kernel may signal a write after what was written has been read: here a byte comes late."""
    slow = program("read = reader._read", "reader._read = lambda name: time.sleep(1) or read(name)")
    with Isolated(program=slow) as one:
        answers: list[object] = []
        thread = threading.Thread(target=lambda: answers.append(one.read(GOOD)))
        thread.start()
        while (child := one._child) is None or one.pid is None:
            time.sleep(0.01)
        time.sleep(0.5)
        os.write(child._in, b"x")
        thread.join(20)
        assert len(answers) == 1


def test_closing_ends_the_child_even_while_it_reads() -> None:
    one = Isolated(program=HANGING)
    errors: list[RecordingError] = []

    def read() -> None:
        try:
            one.read(GOOD)
        except RecordingError as exc:
            errors.append(exc)

    thread = threading.Thread(target=read)
    thread.start()
    while (pid := one.pid) is None:
        time.sleep(0.01)
    time.sleep(0.5)
    one.close()
    thread.join(10)
    assert [error.name for error in errors] == ["crashed"]
    assert gone(pid)
    with pytest.raises(RuntimeError, match="closed"):
        one.read(GOOD)


def test_an_interrupted_read_does_not_answer_the_next_one() -> None:
    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    slow = program(
        "read = reader._read", "reader._read = lambda name: (time.sleep(0.3), read(name))[1]"
    )  # fmt: skip
    with Isolated(program=slow) as one:
        one.read(GOOD)
        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            with pytest.raises(Alarm):
                one.read(GOOD)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert one.read(recording_bytes(1, 1.0)).samples.shape == (4, 990)


# Files on a disk --------------------------------------------------------------------------------------------------


def test_without_files_in_memory_it_is_a_private_one_that_goes_with_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS; also when the child is killed before it can clean up."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = tmp_path / "seen"
    elsewhere = program(
        "vars(os).pop('memfd_create', None)",
        "read = reader._read",
        "def look(name):",
        f"    open({str(seen)!r}, 'w').write(f'{{name}} {{os.stat(name).st_mode}}')",
        "    if os.stat(name).st_size < 10000: os.abort()",
        "    return read(name)",
        "reader._read = look",
    )
    with Isolated(program=elsewhere) as one:
        assert np.array_equal(one.read(GOOD).samples, straight(GOOD))
        name, mode = seen.read_text().split()
        assert Path(name).is_relative_to(tmp_path)
        assert stat.S_IMODE(int(mode)) == 0o600
        assert not Path(name).exists()
        with pytest.raises(RecordingError, match="SIGABRT"):
            one.read(recording_bytes(1, 0.1))
        assert list(tmp_path.iterdir()) == [seen]


@on_linux
def test_on_linux_nothing_is_written_to_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Isolated() as one:
        one.read(GOOD)
        assert list(tmp_path.iterdir()) == []


# Many at once -----------------------------------------------------------------------------------------------------


def test_a_pool_spreads_recordings_over_processes_and_keeps_their_order() -> None:
    def task(one: Isolated, seconds: float) -> tuple[int | None, int]:
        samples = one.read(recording_bytes(1, seconds)).samples
        return one.pid, samples.shape[1]

    lengths = [0.5, 3.0, 1.0, 2.0] * 3
    with Pool(2) as pool:
        results = list(pool.map(task, lengths))
    assert [samples for _, samples in results] == [before_reading(recording_bytes(1, s)).samples for s in lengths]
    pids = {pid for pid, _ in results}
    assert len(pids) == 2
    assert all(pid is not None and gone(pid) for pid in pids)


def test_a_pool_draws_only_what_it_needs() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(50):
            drawn.append(number)
            yield number

    with Pool(2) as pool:
        results = pool.map(lambda _, number: number, items())
        assert next(results) == 0
        assert len(drawn) <= 4
        assert list(results) == list(range(1, 50))


def test_a_pool_hands_on_what_a_task_raises_and_goes_on_if_the_task_does() -> None:
    def strict(one: Isolated, data: bytes) -> int:
        return one.read(data).samples.size

    def lenient(one: Isolated, data: bytes) -> int | str:
        try:
            return strict(one, data)
        except RecordingError as exc:
            return exc.name

    items = [GOOD, aborted(GOOD), GOOD]
    with Pool(2) as pool:
        assert list(pool.map(lenient, items)) == [7920, "aborted", 7920]
        with pytest.raises(RecordingError, match="aborted"):
            list(pool.map(strict, items))


def test_leaving_a_pool_does_not_wait_for_what_it_is_at() -> None:
    began = time.monotonic()
    with Pool(2, program=HANGING) as pool:
        threading.Timer(1.0, pool.close).start()
        with pytest.raises(RecordingError):
            next(pool.map(lambda one, data: one.read(data), [GOOD] * 6))
    assert time.monotonic() - began < 15


def test_an_answer_may_be_as_large_as_json_likes(isolated: Isolated) -> None:
    """More than any pipe holds, in both directions."""
    data = recording_bytes(4, 60.0)
    assert len(data) > 1 << 19
    assert len(json.dumps(isolated.analyse(data, HEAD, Options(), datetime.now(UTC)))) > 1000
    assert isolated.read(data).samples.nbytes > 1 << 20

"""How exact the EMG recompute is, and how fast: against what the application computed, and against the clock.

The recordings of the game are not part of the repository; they are looked for beside it, in ../shared/data. Without
them made-up ones are measured, and nothing is compared.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from benchmarks import machine
from benchmarks.report import Report, table
from cachemig.demo.recordings import recording_bytes
from cachemig.emg.errors import RecordingError
from cachemig.emg.isolated import ENVIRONMENT_SET, Isolated
from cachemig.emg.profile import HEAD, PROFILES, Options

if TYPE_CHECKING:
    from cachemig.emg.recording import FloatArray, Recording

DATA = Path(__file__).parents[2] / "shared" / "data"
AT = datetime(2025, 9, 27, tzinfo=UTC)
NOT_COMPUTED = "cached_at"

ISOLATED = "file to payload, in a child process"
READ, ANALYSED = "reading alone, in-process", "analysis alone, in-process"
WINDOWS, LOOP = "statistics over windows, all windows at once", "the same, a call per window and measure"
PLAIN = "analysis, in plain Python loops"

# Seconds, and whether the sensor saturates.
MADE_UP: Mapping[str, tuple[float, bool]] = MappingProxyType(
    {
        "made up, 30 s": (30.0, False),
        "made up, 60 s, saturated": (60.0, True),
        "made up, 180 s": (180.0, False),
        "made up, 600 s": (600.0, True),
    }
)
_ROUNDS, _QUICK_ROUNDS = 9, 2
_SLOW_ROUNDS = 3
"""Of what takes seconds."""
_CHARGED_S = 0.02
_AGREE = 1e-9

Leaf = float | int | str | bool | None


@dataclass(frozen=True)
class Comparison:
    """A recomputed payload against the expected one, leaf by leaf, without the time of the analysis."""

    values: int
    floats: int
    deviating: int
    """Floats with any deviation."""
    largest: float
    """Relative deviation of a float that is not near zero by its nature."""
    largest_near_zero: float
    """Relative deviation of the processed signal's mean and minimum."""
    others_equal: bool
    """Counts, texts, flags, nulls and the set of fields."""
    agrees: bool
    """In the sense of tests/unit/emg/agreement.py."""


@dataclass
class Times:
    """Seconds, one figure a round: by the clock, and of the processor (empty where the system does not tell)."""

    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """A recording to be measured."""

    name: str
    bytes: int
    seconds: float
    times: dict[str, Times] = field(default_factory=dict)


def run(quick: bool) -> Report:
    os.environ.update(ENVIRONMENT_SET)  # before NumPy is loaded here: one core, as in the child
    paths = sorted((DATA / "recordings").glob("*.c3d"))
    with tempfile.TemporaryDirectory(prefix="cachemig-bench-") as directory, Isolated() as reader:
        compared = _compared(reader, paths)
        if not paths:
            _say("no recordings beside the repository: nothing is compared, made-up ones are measured")
            paths = _made_up(Path(directory), quick)
        subjects = _measured(reader, paths, quick)
    return Report(_text(compared, subjects), _figures(compared, subjects), _versions())


# How exact --------------------------------------------------------------------------------------------------------


def _compared(reader: Isolated, paths: Sequence[Path]) -> dict[tuple[str, str], Comparison | str]:
    """By recording and profile; the name of the error of a recording that is refused."""
    found: dict[tuple[str, str], Comparison | str] = {}
    for path in paths:
        for profile in PROFILES.values():
            wanted = DATA / "expected" / profile.name / f"{path.stem}.json"
            if not wanted.exists():
                continue
            expected = json.loads(wanted.read_text(encoding="utf-8"))
            try:
                ours = reader.analyse(path, profile, Options(), AT)
            except RecordingError as exc:
                found[path.stem, profile.name] = exc.name
            else:
                found[path.stem, profile.name] = compare(ours, expected)
    return found


def compare(ours: Any, theirs: Any) -> Comparison:
    from tests.unit.emg.agreement import disagreements

    mine, other = (dict(_leaves(one)) for one in (ours, theirs))
    both = [(path, mine[path], other[path]) for path in mine if path in other]
    floats = [pair for pair in both if isinstance(pair[1], float) and isinstance(pair[2], float)]
    deviations = [
        (path, abs(left - right) / max(abs(left), abs(right)))
        for path, left, right in floats
        if isinstance(left, float) and isinstance(right, float) and left != right
    ]
    return Comparison(
        values=len(both),
        floats=len(floats),
        deviating=len(deviations),
        largest=max((deviation for path, deviation in deviations if not _near_zero(path)), default=0.0),
        largest_near_zero=max((deviation for path, deviation in deviations if _near_zero(path)), default=0.0),
        others_equal=mine.keys() == other.keys()
        and all(type(a) is type(b) and (isinstance(a, float) or a == b) for _, a, b in both),
        agrees=not disagreements({**ours, NOT_COMPUTED: None}, {**theirs, NOT_COMPUTED: None}),
    )


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Leaf]]:
    """Every value that holds no others, with its path; so that an empty object or list is not overlooked, it counts."""
    if path == (NOT_COMPUTED,):
        return
    if isinstance(value, dict | list) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, (*path, key))
    else:
        yield path, repr(value) if isinstance(value, dict | list) else value


def _near_zero(path: tuple[str | int, ...]) -> bool:
    return path[-2:-1] == ("processed_signal_stats",) and path[-1] in ("min", "mean")


# How fast ---------------------------------------------------------------------------------------------------------


def _measured(reader: Isolated, paths: Sequence[Path], quick: bool) -> list[Subject]:
    from cachemig.emg.reader import read

    subjects: list[Subject] = []
    works: dict[str, dict[str, Callable[[], object]]] = {}
    for path in paths:
        try:
            reader.analyse(path, HEAD, Options(), AT)  # the child has loaded everything before anything is timed
        except RecordingError as exc:
            _say(f"{path.stem} is refused: {exc.name}")
            continue
        recording = read(path)
        subjects.append(Subject(path.stem, path.stat().st_size, recording.samples.shape[1] / recording.rate_hz))
        works[path.stem] = _works(reader, path, recording)
    rounds = _QUICK_ROUNDS if quick else _ROUNDS
    order = Random(1)  # noqa: S311 - the same order every time
    for number in range(rounds):
        _say(f"round {number + 1} of {rounds}")
        blocks = [(subject, name) for subject in subjects for name in works[subject.name]]
        for subject, name in order.sample(blocks, len(blocks)):
            if name != PLAIN or number < _SLOW_ROUNDS:
                _time(subject.times.setdefault(name, Times()), works[subject.name][name], reader)
    return subjects


def _works(reader: Isolated, path: Path, recording: Recording) -> dict[str, Callable[[], object]]:
    from tests.unit.emg import reference

    from cachemig.emg.channels import muscles
    from cachemig.emg.payload import payload
    from cachemig.emg.reader import read
    from cachemig.emg.windows import temporal_statistics

    found = muscles(recording)
    raws = [muscle.raw for muscle in found]
    by_name = {muscle.base: (muscle.raw, muscle.activated) for muscle in found}
    rate_hz = recording.rate_hz
    for raw in raws:
        _check_the_loop(temporal_statistics(raw, rate_hz), statistics_by_a_loop(raw, rate_hz))
    return {
        ISOLATED: lambda: reader.analyse(path, HEAD, Options(), AT),
        READ: lambda: read(path),
        ANALYSED: lambda: payload(recording, HEAD, Options(), AT),
        WINDOWS: lambda: [temporal_statistics(raw, rate_hz) for raw in raws],
        LOOP: lambda: [statistics_by_a_loop(raw, rate_hz) for raw in raws],
        PLAIN: lambda: reference.analytics(by_name, rate_hz, HEAD.name, reference.Session()),
    }


def statistics_by_a_loop(raw: FloatArray, rate_hz: float) -> dict[str, float]:
    """Means over windows as one writes them first: from window to window, each spectral measure with a Welch call of
    its own. NumPy and SciPy do the sums, so it is no straw man."""
    import numpy as np
    from scipy import signal

    def power(part: FloatArray) -> tuple[FloatArray, FloatArray]:
        frequencies_hz, density = signal.welch(part, fs=rate_hz, nperseg=256)
        return frequencies_hz, density

    def mpf(part: FloatArray) -> float:
        f, p = power(part)
        return float(np.sum(f * p) / np.sum(p))

    def mdf(part: FloatArray) -> float:
        f, p = power(part)
        return float(f[np.argmax(np.cumsum(p) >= 0.5 * np.sum(p))])

    def fatigue_index(part: FloatArray) -> float:
        f, p = power(part)
        f, p = f[1:], p[1:]
        return float(np.sum(p / f) / np.sum(p * f**5))

    measures: dict[str, Callable[[FloatArray], float]] = {
        "rms": lambda part: float(np.sqrt(np.mean(part**2))),
        "mav": lambda part: float(np.mean(np.abs(part))),
        "mpf": mpf,
        "mdf": mdf,
        "fatigue_index": fatigue_index,
    }
    length = int(rate_hz)
    starts = range(0, len(raw) - length + 1, length // 2)
    with np.errstate(invalid="ignore", divide="ignore"):  # a window that does not vary has no spectrum
        by_name = {name: [of(raw[at : at + length]) for at in starts] for name, of in measures.items()}
        return {name: float(np.nanmean(values)) for name, values in by_name.items()}


def _check_the_loop(ours: Mapping[str, Mapping[str, Any]], loop: Mapping[str, float]) -> None:
    """What is compared by the clock must have the same results."""
    for name, mean in loop.items():
        if not abs(ours[name]["mean_value"] - mean) <= _AGREE * abs(mean):
            raise SystemExit(f"the loop disagrees about {name}: {mean!r}, not {ours[name]['mean_value']!r}")


def _time(times: Times, work: Callable[[], object], reader: Isolated) -> None:
    """By the clock, and of the processor in this process and in the child together."""
    assert reader.pid is not None
    with _no_collector():
        child, own, began = machine.cpu_ns(reader.pid), time.process_time_ns(), time.perf_counter_ns()
        work()
        times.clock.append((time.perf_counter_ns() - began) / 1e9)
        own = time.process_time_ns() - own
    time.sleep(_CHARGED_S)  # a process is charged when it leaves the processor
    child_now = machine.cpu_ns(reader.pid)
    if child is not None and child_now is not None:
        times.processor.append((own + child_now - child) / 1e9)


def _made_up(directory: Path, quick: bool) -> list[Path]:
    paths = []
    for seed, (name, (seconds, saturated)) in enumerate(list(MADE_UP.items())[: 1 if quick else None]):
        paths.append(directory / f"{name}.c3d")
        paths[-1].write_bytes(recording_bytes(seed, seconds, saturated=saturated))
    return paths


# The report -------------------------------------------------------------------------------------------------------


def _text(compared: Mapping[tuple[str, str], Comparison | str], subjects: Sequence[Subject]) -> str:
    exact = (
        (
            "Recomputed payloads against those that the application's own code computed from the same recordings.\n",
            _deviation_table(compared),
            "",
        )
        if compared
        else ()
    )
    rounds = max((len(times.clock) for one in subjects for times in one.times.values()), default=0)
    return "\n".join(
        (
            *exact,
            f"Seconds of recording for each second of work; one core, head profile, medians of {rounds} interleaved "
            "rounds, in brackets the least and the greatest.\n",
            _speed_table(subjects),
            "\nProcessor time (where the system does not tell: time by the clock) of each part, milliseconds, medians "
            f"({_SLOW_ROUNDS} rounds of the last one), and as a multiple.\n",
            _parts_table(subjects),
        )
    )


def _deviation_table(compared: Mapping[tuple[str, str], Comparison | str]) -> str:
    heads = (
        "recording",
        "profile",
        "the rest equal",
        "values",
        "floats",
        "that deviate",
        "largest",
        "near zero",
    )
    rows = []
    for (name, profile), found in compared.items():
        if isinstance(found, str):
            rows.append((name, profile, f"refused: `{found}`", *["–"] * 5))
            continue
        equal = ("yes" if found.others_equal else "NO") + ("" if found.agrees else ", BEYOND TOLERANCE")
        counts = (f"{number:,}" for number in (found.values, found.floats, found.deviating))
        rows.append((name, profile, equal, *counts, f"{found.largest:.1e}", f"{found.largest_near_zero:.1e}"))
    return table(heads, rows, words=3)


def _speed_table(subjects: Sequence[Subject]) -> str:
    heads = ("recording", "seconds", "MB", "ms by the clock", "× real time, clock", "× real time, processor")
    rows = []
    for one in subjects:
        times = one.times[ISOLATED]
        factors = [_factor(one.seconds, taken) for taken in (times.clock, times.processor)]
        rows.append(
            (one.name, f"{one.seconds:.1f}", f"{one.bytes / 1e6:.1f}", f"{median(times.clock) * 1e3:.0f}", *factors)
        )
    return table(heads, rows, words=1)


def _factor(seconds: float, taken: Sequence[float]) -> str:
    if not taken:
        return "–"
    return f"{seconds / median(taken):,.0f} ({seconds / max(taken):,.0f} … {seconds / min(taken):,.0f})"


def _parts_table(subjects: Sequence[Subject]) -> str:
    heads = ("recording", ISOLATED, READ, ANALYSED, PLAIN, WINDOWS, LOOP)
    rows = []
    for one in subjects:
        ms = {name: median(_best_measure(times)) * 1e3 for name, times in one.times.items()}
        rows.append(
            (
                one.name,
                f"{ms[ISOLATED]:.0f}",
                f"{ms[READ]:.0f}",
                f"{ms[ANALYSED]:.0f}",
                f"{ms[PLAIN]:,.0f} ({ms[PLAIN] / ms[ANALYSED]:.0f}×)",
                f"{ms[WINDOWS]:.1f}",
                f"{ms[LOOP]:.0f} ({ms[LOOP] / ms[WINDOWS]:.0f}×)",
            )
        )
    return table(heads, rows, words=1)


def _best_measure(times: Times) -> list[float]:
    return times.processor or times.clock


def _figures(compared: Mapping[tuple[str, str], Comparison | str], subjects: Sequence[Subject]) -> dict[str, object]:
    return {
        "unit": "seconds, one figure a round",
        "compared": [
            {"recording": name, "profile": profile}
            | ({"refused": found} if isinstance(found, str) else dict(vars(found)))
            for (name, profile), found in compared.items()
        ],
        "speed": [
            {
                "recording": one.name,
                "seconds": one.seconds,
                "bytes": one.bytes,
                "work": name,
                "clock": [round(value, 6) for value in times.clock],
                "processor": [round(value, 6) for value in times.processor],
            }
            for one in subjects
            for name, times in one.times.items()
        ],
    }


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("numpy", "scipy", "ezc3d")}


@contextmanager
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

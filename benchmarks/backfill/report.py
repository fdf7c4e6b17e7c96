"""Tables, targets, the document and the drawing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.backfill import hand, tool
from benchmarks.backfill.processes import Measured
from benchmarks.backfill.profiled import MAIN, READER
from benchmarks.report import Report, table

BEGIN, END = "<!-- begin: scripts/bench backfill -->", "<!-- end: scripts/bench backfill -->"
_DRAWING = "performance.svg"
_CEILINGS = (hand.COPY_1, hand.COPY_2, hand.REDIS, hand.BOTH)
_BY_HAND = (hand.PSQL_1, hand.AWK_1, hand.BEST_2, hand.PIPELINED, hand.NAIVE)
_ONE, _TWO = (tool.backfill_name(workers, "json", "object") for workers in (1, 2))
_ZSTD_ONE, _ZSTD_TWO = (tool.backfill_name(workers, "zstd", "object") for workers in (1, 2))
_EMG_ONE, _EMG_TWO = (tool.backfill_name(workers, "json", "emg") for workers in (1, 2))
_TOOL = (_ONE, _TWO, _ZSTD_ONE, _ZSTD_TWO, _EMG_ONE, _EMG_TWO, tool.VERIFY, tool.SYNC)
_ORDER = (*_CEILINGS, *_BY_HAND, *_TOOL)
_COLOURS = {
    **dict.fromkeys(_CEILINGS, "#a3acb5"),
    **dict.fromkeys(_BY_HAND, "#d99a4e"),
    **dict.fromkeys(_TOOL, "#3b76b5"),
}
_MB = 1e6
_RSS_FLOOR = 120e6


@dataclass
class Rounds:
    """Of one table."""

    title: str
    rows: int
    bytes: int
    largest: int
    whole: list[dict[str, Measured]] = field(default_factory=list)
    """One a round: what was measured, by name."""
    part: list[dict[str, Measured]] = field(default_factory=list)
    """On the smaller table."""
    profiles: list[tool.Profile] = field(default_factory=list)

    def names(self) -> list[str]:
        return [name for name in _ORDER if any(name in one for one in self.whole)]

    def of(self, name: str) -> list[Measured]:
        return [one[name] for one in self.whole if name in one]

    def fastest(self, names: Sequence[str]) -> str:
        return min(names, key=lambda name: median(m.seconds for m in self.of(name)))

    def ratios(self, name: str, to: str = hand.COPY_1) -> list[float]:
        """Of the rates in the same round."""
        return [one[name].rate / one[to].rate for one in self.whole if name in one and to in one]

    def own_ratios(self, name: str) -> list[float]:
        """The same by the tool's own clock, which starts when Python has; of nothing else."""
        if name not in _TOOL:
            return []
        pairs = [(one[name], one[hand.COPY_1]) for one in self.whole if name in one and hand.COPY_1 in one]
        return [mine.bytes / tool.own_seconds(mine) / copy.rate for mine, copy in pairs]


@dataclass
class Results:
    sizes: dict[str, Rounds]
    changes: int
    resumed: list[tool.Resumed] = field(default_factory=list)


# Text ------------------------------------------------------------------------------------------------------------


def text(results: Results) -> str:
    rounds = max(len(one.whole) for one in results.sizes.values())
    parts = [
        f"Medians of up to {rounds} rounds, in brackets the least and the greatest; MB is a million bytes of JSON text."
    ]
    for name, one in results.sizes.items():
        parts.append(f"### {name}: {one.title}, {one.bytes / _MB:,.0f} MB")
        parts.append(_work_table(one))
    if targets := _targets(results):
        parts += ["### Targets", table(("target", "at least", "measured", ""), targets, words=1)]
    if priced := {name: one for name, one in results.sizes.items() if any(one.part)}:
        parts += [
            "### The price of each safeguard",
            f"One worker on a smaller table of each kind, by the tool's own clock, medians of {_most_rounds(priced)} "
            "rounds: how many times as fast the run is without it, and the tool's processor time (the start of Python "
            "is in that) as a part of what it is with everything on.",
            _price_table(priced),
        ]
    if results.resumed:
        parts += ["### Killed half way, M", _resumed_table(results.resumed)]
    if profiled := {name: one for name, one in results.sizes.items() if one.profiles}:
        parts += [
            "### Where the time of one backfill goes",
            "One worker, everything on, `shape = object`: parts of the time that each thread was seen in each stage, "
            "medians. The two threads run at the same time; the reader begins with the first chunk.",
            _profile_table(profiled),
        ]
    return "\n\n".join(parts)


def _most_rounds(priced: Mapping[str, Rounds]) -> int:
    return max(sum(map(bool, one.part)) for one in priced.values())


def _work_table(one: Rounds) -> str:
    heads = (
        "work",
        "MB/s",
        "rounds",
        "of one COPY",
        "by its own clock",
        "s",
        "CPU s: client",
        "Postgres",
        "Redis",
        "peak MB",
    )
    rows = []
    for name in one.names():
        found = one.of(name)
        rows.append(
            (
                name,
                f"{median(m.rate for m in found) / _MB:,.0f}",
                str(len(found)),
                _spread(one.ratios(name)),
                f"{median(own):.2f}" if (own := one.own_ratios(name)) else "–",
                f"{median(m.seconds for m in found):.2f}",
                *(_shown([getattr(m, which) for m in found], 1, 2) for which in _CPU),
                _shown([m.rss_bytes for m in found], _MB, 0),
            )
        )
    return table(heads, rows, words=1)


_CPU = ("tool_cpu_s", "postgres_cpu_s", "redis_cpu_s")


def _shown(values: Sequence[float | None], unit: float, places: int) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known) / unit:,.{places}f}" if known else "–"


def _spread(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})" if ratios else "–"


def _price_table(sizes: Mapping[str, Rounds]) -> str:
    rows = []
    for safeguard in tool.SAFEGUARDS:
        cells = []
        for one in sizes.values():
            speed, cpu = [], []
            for measured in filter(None, one.part):
                on, off = measured[tool.ALL_ON.title], measured[safeguard.title]
                speed.append(tool.own_seconds(on) / tool.own_seconds(off))
                if on.tool_cpu_s and off.tool_cpu_s is not None:
                    cpu.append(off.tool_cpu_s / on.tool_cpu_s)
            cells += [_spread(speed), f"{median(cpu):.2f}" if cpu else "–"]
        rows.append((safeguard.title, *cells))
    heads = [head for name in sizes for head in (f"{name}: times as fast", "CPU")]
    return table(("", *heads), rows, words=1)


def _profile_table(sizes: Mapping[str, Rounds]) -> str:
    rows = []
    for thread in (MAIN, READER):
        shares = {
            name: [
                {stage: n / sum(one.seen[thread].values()) for stage, n in one.seen[thread].items()}
                for one in size.profiles
                if one.seen[thread]
            ]
            for name, size in sizes.items()
        }
        stages = {stage for found in shares.values() for one in found for stage in one}
        middle = {
            stage: [median([one.get(stage, 0.0) for one in found] or [0.0]) for found in shares.values()]
            for stage in stages
        }
        for stage, parts in sorted(middle.items(), key=lambda item: -sum(item[1])):
            if max(parts) >= 0.01:
                rows.append((thread, stage, *(f"{100 * part:.0f} %" for part in parts)))
    return table(("thread", "stage", *sizes), rows, words=2)


def _resumed_table(resumed: Sequence[tool.Resumed]) -> str:
    heads = (
        "chunks",
        "done when killed",
        "entries twice",
        "entries of the largest chunk",
        "s until killed",
        "s resumed",
    )
    rows = [
        (
            str(one.chunks),
            str(one.done),
            f"{one.twice:,}",
            f"{one.chunk_entries:,.0f}",
            f"{one.before_s:.2f}",
            f"{one.after_s:.2f}",
        )
        for one in resumed
    ]
    return table(heads, rows, words=0)


# Targets ---------------------------------------------------------------------------------------------------------


def _targets(results: Results) -> list[tuple[str, str, str, str]]:
    """What is asked of the tool, as far as it was measured."""
    found: list[tuple[str, str, str, str]] = []

    def asked(what: str, least: float, values: Sequence[float], form: str = "{:.2f}") -> None:
        if values:
            value = median(values)
            found.append((what, form.format(least), form.format(value), "met" if value >= least else "missed"))

    for name, one, two in (("S", 0.60, 0.80), ("M", 0.85, 1.2), ("L", 0.90, 1.35)):
        if name not in results.sizes:
            continue
        size = results.sizes[name]
        asked(f"{name}: one worker, of one COPY", one, size.ratios(_ONE))
        asked(f"{name}: two workers, of one COPY", two, size.ratios(_TWO))
        if name != "S":
            asked(f"{name}: two workers, of the best by hand", 1.0, _of_the_best_by_hand(size))
        asked(f"{name}: two workers with zstd, of the same with json", 0.75, size.ratios(_ZSTD_TWO, _TWO))
        asked(f"{name}: one worker, of the naive script", 10.0, size.ratios(_ONE, hand.NAIVE), "{:.1f}")
        asked(f"{name}: verify, of both sides read", 0.9, size.ratios(tool.VERIFY, hand.BOTH))
        rss = [m.rss_bytes for work in _TOOL for m in size.of(work) if m.rss_bytes is not None]
        if rss:
            most, limit = max(rss), max(_RSS_FLOOR, 4.0 * size.largest)
            verdict = "met" if most < limit else "missed"
            found.append((f"{name}: peak memory, MB, at most", f"{limit / _MB:.0f}", f"{most / _MB:.0f}", verdict))
    synced = [m for one in results.sizes.values() for m in one.of(tool.SYNC)]
    asked("sync: changes a second", 20_000, [results.changes / m.seconds for m in synced], "{:,.0f}")
    if results.resumed:
        wasted = max(one.twice / one.chunk_entries for one in results.resumed)
        found.append(("resume: chunks done twice, below", "1", f"{wasted:.2f}", "met" if wasted < 1 else "missed"))
    return found


def _of_the_best_by_hand(size: Rounds) -> list[float]:
    return [
        one[_TWO].rate / max(one[name].rate for name in _BY_HAND if name in one)
        for one in size.whole
        if _TWO in one and hand.BEST_2 in one
    ]


def figures(results: Results) -> dict[str, object]:
    def plain(rounds: Sequence[Mapping[str, Measured]]) -> list[dict[str, dict[str, Any]]]:
        return [
            {name: {k: v for k, v in asdict(measured).items() if k != "stdout"} for name, measured in one.items()}
            for one in rounds
        ]

    return {
        "unit": "seconds, bytes of JSON text",
        "targets": [
            dict(zip(("target", "least", "measured", "verdict"), one, strict=True)) for one in _targets(results)
        ],
        "ratios": {
            name: {work: [round(ratio, 4) for ratio in one.ratios(work)] for work in one.names()}
            for name, one in results.sizes.items()
        },
        "tables": {
            name: {
                "title": one.title,
                "rows": one.rows,
                "bytes": one.bytes,
                "largest": one.largest,
                "rounds": plain(one.whole),
                "safeguards": plain(one.part),
                "profiles": [asdict(profile) for profile in one.profiles],
            }
            for name, one in results.sizes.items()
        },
        "resumed": [asdict(one) for one in results.resumed],
    }


# The document ----------------------------------------------------------------------------------------------------


def publish(directory: Path, report: Report, facts: Mapping[str, object]) -> None:
    """Replaces what stands between the marks in performance.md, or begins the file; draws performance.svg anew."""
    directory.mkdir(parents=True, exist_ok=True)
    draw(directory / _DRAWING, report.figures)
    shown = " · ".join(f"{name} {value}" for name, value in facts.items() if name != "benchmark")
    alternative = "Speed of each work on the three tables, as a ratio to one COPY"
    body = f"{BEGIN}\n\n![{alternative}]({_DRAWING})\n\n{report.text}\n\nMeasured on: {shown}\n\n{END}"
    path = directory / "performance.md"
    before = path.read_text(encoding="utf-8") if path.exists() else f"# Performance\n\n{BEGIN}\n{END}\n"
    after, replaced = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: body, before, flags=re.DOTALL)
    if replaced != 1:
        raise SystemExit(f"{path} does not hold the marks {BEGIN} and {END} exactly once")
    path.write_text(after, encoding="utf-8")


def draw(path: Path, measured: Mapping[str, object]) -> None:
    """A panel a table: a bar for each work, its length the median ratio to one COPY, a line from least to greatest."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ratios: Any = measured["ratios"]
    tables: Any = measured["tables"]
    names = [name for name in _ORDER if any(name in one for one in ratios.values())]
    height = 1.3 + 0.27 * len(names)
    # Letters as letters, and nothing at random: the same figures give the same file.
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "cachemig", "font.size": 9, "font.family": "sans-serif"}
    ):
        figure = Figure(figsize=(4.2 + 2.6 * len(ratios), height), layout="constrained")
        panels: Any = figure.subplots(1, len(ratios), sharey=True, squeeze=False)[0]
        # Redis takes values so much faster than anything gives them that its bar would dwarf the others: it is cut.
        others = [
            max(values) for one in ratios.values() for name, values in one.items() if values and name != hand.REDIS
        ]
        room = 1.2 * max(1.0, *others)
        for panel, (size, found) in zip(panels, ratios.items(), strict=True):
            _panel(panel, f"{size}: {tables[size]['title']}", names, found, room)
        figure.supxlabel(
            "times the speed of one COPY to /dev/null in the same round; line: least to greatest round", fontsize=9
        )
        figure.savefig(path, format="svg", metadata={"Date": None})


def _panel(panel: Any, title: str, names: Sequence[str], found: Mapping[str, Sequence[float]], room: float) -> None:
    at = {name: len(names) - 1 - n for n, name in enumerate(names)}
    for name, values in found.items():
        if not values:
            continue
        middle = median(values)
        panel.barh(at[name], middle, height=0.68, color=_COLOURS[name], linewidth=0)
        panel.plot((min(values), max(values)), (at[name], at[name]), color="#333333", linewidth=1)
        cut = max(values) > room
        panel.annotate(
            f"{middle:.1f} →" if cut else f"{middle:.2f}",
            (room if cut else max(values), at[name]),
            (-4 if cut else 4, 0),
            textcoords="offset points",
            ha="right" if cut else "left",
            va="center",
            fontsize=8,
            color="#333333",
            zorder=4,
            bbox=None if cut else {"boxstyle": "square,pad=0.1", "facecolor": "white", "linewidth": 0},
        )
    panel.axvline(1, color="#333333", linewidth=0.8, linestyle=(0, (4, 3)))
    panel.set_title(title, fontsize=9, loc="left")
    panel.set_yticks([at[name] for name in names], names)
    panel.set_ylim(-0.6, len(names) - 0.4)
    panel.set_xlim(0, room)
    panel.tick_params(length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.grid(axis="x", color="#e3e6e9", linewidth=0.6)
    panel.set_axisbelow(True)

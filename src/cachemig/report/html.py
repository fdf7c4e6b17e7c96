"""The report as one HTML file: no script, nothing fetched from anywhere, and a policy in it that the browser enforces.

The page is a function of the document alone: the same document gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from cachemig.errors import ConfigError
from cachemig.report import charts
from cachemig.units import in_bytes, in_time

_HERE = Path(__file__).parent
_TONE = {"good": "✓", "wait": "○", "bad": "✕"}
_BARS = 24
_HOURS = (1, 2, 3, 6, 12, 24, 48, 96, 168, 336, 720, 2160)


def render(document: Mapping[str, Any]) -> str:
    """The page. Raises ConfigError where the document is not whole."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        bytes=in_bytes, time=in_time, count=_count, moment=_moment, figures=figures, breakable=_breakable
    )
    style = (_HERE / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    try:
        shown = _visible(document)
        drawn = {name: Markup(svg) for name, svg in _charts(shown).items()}  # noqa: S704  # charts escapes all text
        return environment.get_template("report.html.j2").render(
            r=shown,
            charts=drawn,
            tones=_TONE,
            style=Markup(style),  # noqa: S704  # a file of this package
            style_digest=digest,
            data=Markup(embedded(document)),  # noqa: S704  # escaped there
        )
    except (UndefinedError, KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
        raise ConfigError(
            f"the document is not that of a report, or not whole ({type(exc).__name__})",
            hint="cachemig report --run-json FILE saves one",
        ) from exc


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Writes the page. A lone surrogate, which UTF-8 has no bytes for, is written as its escape."""
    path.write_bytes(render(document).encode("utf-8", "backslashreplace"))


def embedded(document: Mapping[str, Any]) -> str:
    """The document as JSON that no text in it can end the element of, nor begin a comment in."""
    text = json.dumps(document, indent=1)  # ASCII alone: U+2028 too is an escape
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def figures(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Figures of a command for people, as (name, value). What is 0 or nothing is left out, and what the report has a
    place of its own for."""
    said: list[tuple[str, str]] = []
    for name, value in found.items():
        words = name.replace("_", " ")
        if (
            name in ("figures", "limits", "sha256", "checked_at")
            or value is None
            or value is False
            or value in (0, "", [], {})
        ):
            continue
        if name == "gates" and isinstance(value, dict):
            said.append(("gates met", _count(len(value))))
        elif isinstance(value, dict):
            said.append((words, ", ".join(f"{text} {inner}" for inner, text in figures(value))))
        elif isinstance(value, list):
            said.append((words, ", ".join(map(str, value))))
        elif isinstance(value, str | bool):
            said.append((words, "yes" if value is True else str(value)))
        elif "bytes" in words.split():
            said.append((words.replace("bytes", "").replace("  ", " ").strip() or "size", in_bytes(value)))
        elif words == "seconds":
            said.append(("in", in_time(value)))
        else:
            said.append((words, _count(value)))
    return said


# Charts -------------------------------------------------------------------------------------------------------------


def _charts(r: Mapping[str, Any]) -> dict[str, str]:
    drawn: dict[str, str] = {}
    if r["stretches"]:
        drawn["phases"] = _phases(r)
    if slots := r["throughput"]:
        rates = [float(s["bytes"]) / max(s["seconds"], 0.001) for s in slots]
        begin, last = (datetime.fromisoformat(slots[at]["at"]).timestamp() for at in (0, -1))
        labels = [_moment(slots[0]["at"]), f"{in_time(last + slots[-1]['seconds'] - begin)} later"]
        unit = 1024.0 ** min(4, int(math.log(max(rates) or 1, 1024)))
        drawn["throughput"] = charts.steps("Backfill, bytes a second", rates, _short, labels=labels, unit=unit)
    if sizes := r["ledger"]["sizes"]:
        known = {int(n): int(keys) for n, keys in sizes}
        keys = [(_short(2 ** (n - 1) if n else 0), known.get(n, 0)) for n in range(min(known), max(known) + 1)]
        drawn["sizes"] = charts.histogram("Keys by the size of their value, from", keys, _count)
    if bars := _expiries(r["ledger"]["expiries"]):
        drawn["expiries"] = charts.histogram("Keys by the time that is left to them", bars, _count)
    if latency := _latency(r["readings"]):
        drawn["latency"] = charts.bars(
            "Time of a read as applications measured it", latency, lambda ms: f"{ms:,.2f} ms"
        )
    hits = [(f"{_moment(x['at'])}: {x['what']}", 100 * x["hit_rate"], "") for x in reads(r["readings"])]
    if hits:
        drawn["hits"] = charts.bars("Of the reads from Redis, found there", hits, lambda n: f"{n:.1f} %", whole=100)
    if len(r["sizes"]) > 1:
        of = [(f"{_moment(s['at'])}: {s['what']}", float(s["table"]), "") for s in r["sizes"]]
        drawn["disk"] = charts.bars("Table on disk", of, in_bytes)
    return drawn


def _phases(r: Mapping[str, Any]) -> str:
    ends = [(datetime.fromisoformat(s["since"]).timestamp(), datetime.fromisoformat(s["until"]).timestamp())
            for s in r["stretches"]]  # fmt: skip
    begin, whole = ends[0][0], max(1.0, ends[-1][1] - ends[0][0])
    stretches = []
    for stretch, (since, until) in zip(r["stretches"], ends, strict=True):
        percent = "" if stretch["percent"] is None else f" {stretch['percent']:g} %"
        told = f"{stretch['phase']}{percent} from {_moment(stretch['since'])} for {in_time(until - since)}"
        stretches.append((str(stretch["phase"]), (since - begin) / whole, (until - begin) / whole, told))
    labels = [_moment(r["stretches"][0]["since"]), f"{in_time(ends[-1][1] - begin)} later"]
    return charts.lanes("Phases over time", stretches, labels)


def _expiries(found: list[list[int | None]]) -> list[tuple[str, float]]:
    """Bars of equal width, of as many hours as it takes to get along with _BARS of them."""
    known = [(hours, keys or 0) for hours, keys in found if hours is not None]
    bars: list[tuple[str, float]] = []
    if known:
        first, last = max(0, min(h for h, _ in known)), max(0, max(h for h, _ in known))
        width = next((w for w in _HOURS if (last - first) // w < _BARS), -(-(last - first) // _BARS) or 1)
        unit, length = ("d", 24) if width % 24 == 0 else ("h", 1)
        start = first // width * width
        if past := sum(keys for h, keys in known if h < 0):
            bars.append(("past", past))
        for at in range(start, last + 1, width):
            held = sum(keys for h, keys in known if h >= 0 and at <= h < at + width)
            bars.append((f"{at // length} {unit}", held))
    if never := sum(keys or 0 for hours, keys in found if hours is None):
        bars.append(("never", never))
    return bars


def _latency(readings: list[Mapping[str, Any]]) -> list[tuple[str, float, str]]:
    """Percentiles of the column as they were told last (before), and of Redis as they were told last (after)."""
    newest: dict[str, Mapping[str, Any]] = {}
    for x in readings:
        newest |= {path: told for path, told in x["figures"].get("latency_ms", {}).items() if told.get("n")}
    of = (("column", "from the column, before", "before"), ("redis", "from Redis, after", ""))
    return [
        (f"{p} {what}", float(newest[path][p]), colour)
        for p in ("p50", "p95", "p99")
        for path, what, colour in of
        if p in newest.get(path, {})
    ]


def reads(readings: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each reading that had reads from Redis, the part that was found there."""
    found = []
    for x in readings:
        redis = x["figures"].get("reads", {}).get("redis", {})
        if total := sum(redis.values()):
            found.append({"at": x["at"], "what": x["what"], "reads": total, "hit_rate": redis.get("hit", 0) / total})
    return found


# Text ---------------------------------------------------------------------------------------------------------------


def _short(count: float) -> str:
    """Bytes, without a decimal that says nothing: 4 KB, 1.5 KB."""
    return in_bytes(count).replace(".0 ", " ")


def _count(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:,.3g}"


def _moment(at: str) -> str:
    """2026-01-31 12:00:00, of an ISO time in UTC."""
    return at[:19].replace("T", " ")


def _breakable(name: str) -> Any:
    """A name that a narrow line may break behind its dots and underscores."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[._])", name))


def _visible(value: Any) -> Any:
    """The same with control characters, and those that change the direction of text, as their escapes."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in value)
    if isinstance(value, dict):
        return {k: _visible(v) for k, v in value.items()}
    return [_visible(v) for v in value] if isinstance(value, list) else value

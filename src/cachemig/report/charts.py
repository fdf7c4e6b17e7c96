"""Charts as inline SVG. Text is as large at every width, because places are shares of the width and only the curve
itself is stretched. Each is an image with a title, a description and an alternative text; colours are the page's.

Whatever is given as text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

LEFT, RIGHT = 14.0, 99.0
"""Per cent of the width, between which data stand; beside them the labels of the axis."""
TOP, ROOM, FOOT = 14, 132, 30
"""Pixels."""
_TICKS = 4


def histogram(title: str, bars: Sequence[tuple[str, float]], show: Callable[[float], str]) -> str:
    """A bar for each (label, number), side by side."""
    most = _above(max((n for _, n in bars), default=0), 1)
    width = (RIGHT - LEFT) / max(1, len(bars))
    shapes = [_scale(most, show)]
    step = -(-len(bars) // 5) or 1
    for at, (label, n) in enumerate(bars):
        x, height = LEFT + at * width, ROOM * n / most
        shapes.append(
            f'<rect class="bar" x="{x + width * 0.06:.2f}%" y="{TOP + ROOM - height:.1f}" width="{width * 0.88:.2f}%" '
            f'height="{height:.1f}"><title>{escape(label)}: {escape(show(n))}</title></rect>'
        )
        if at % step == 0:
            anchor = "start" if len(bars) > 5 else "middle"
            shapes.append(_label(x + (0 if anchor == "start" else width / 2), TOP + ROOM + 18, label, anchor))
    told = ", ".join(f"{label}: {show(n)}" for label, n in bars)
    return _svg(title, told, TOP + ROOM + FOOT, shapes)


def steps(
    title: str, heights: Sequence[float], show: Callable[[float], str], *, labels: Sequence[str], unit: float = 1
) -> str:
    """A curve of steps, each as wide as the others; `labels` along the axis below it, from end to end."""
    most = _above(max(heights, default=0), unit)
    shapes = [_scale(most, show)]
    places = [1000 * at / max(1, len(heights)) for at in range(len(heights) + 1)]
    tops = [1000 - 1000 * height / most for height in heights]
    corners = [
        f"{x:.1f},{y:.1f}"
        for y, begin, end in zip(tops, places[:-1], places[1:], strict=True)
        for x in (begin, end)
    ]  # fmt: skip
    curve = " ".join(corners)
    shapes.append(
        f'<svg x="{LEFT}%" y="{TOP}" width="{RIGHT - LEFT}%" height="{ROOM}" viewBox="0 0 1000 1000" '
        f'preserveAspectRatio="none" overflow="visible"><polygon class="area" points="0,1000 {curve} 1000,1000"/>'
        f'<polyline class="curve" points="{curve}" vector-effect="non-scaling-stroke"/></svg>'
    )
    for at, label in enumerate(labels):
        share = at / max(1, len(labels) - 1)
        anchor = "start" if at == 0 else "end" if at == len(labels) - 1 else "middle"
        shapes.append(_label(LEFT + share * (RIGHT - LEFT), TOP + ROOM + 18, label, anchor))
    mean = sum(heights) / max(1, len(heights))
    told = f"from {labels[0]} to {labels[-1]}; at most {show(max(heights, default=0))}, {show(mean)} on average"
    return _svg(title, told, TOP + ROOM + FOOT, shapes)


def bars(
    title: str, rows: Sequence[tuple[str, float, str]], show: Callable[[float], str], *, whole: float | None = None
) -> str:
    """A lying bar for each (label, number, class of its colour), one below the other, with its number. `whole`: what
    fills the width; else the largest number does."""
    most = whole or max((n for _, n, _ in rows), default=0) or 1
    shapes = []
    for at, (label, n, colour) in enumerate(rows):
        y, width = 16 + at * 42, max(0.4, 100 * n / most)
        shapes += [
            _label(0, y, label, "start", "name"),
            _label(100, y, show(n), "end", "value"),
            f'<rect class="track" x="0" y="{y + 7}" width="100%" height="10" rx="2"/>',
            f'<rect class="bar {colour}" x="0" y="{y + 7}" width="{width:.2f}%" height="10" rx="2"/>',
        ]
    told = ", ".join(f"{label}: {show(n)}" for label, n, _ in rows)
    return _svg(title, told, 42 * len(rows) + 2, shapes)


def lanes(title: str, stretches: Sequence[tuple[str, float, float, str]], labels: Sequence[str]) -> str:
    """A lane for each name in the order in which they first come; in it (name, begin, end, told), as shares of the
    width. What is shorter than can be seen is drawn a little longer."""
    left = 27.0
    names = list(dict.fromkeys(name for name, *_ in stretches))
    shapes = []
    for at, name in enumerate(names):
        y = 6 + at * 28
        shapes += [
            _label(0, y + 14, name, "start", "name"),
            f'<rect class="track" x="{left}%" y="{y + 3}" width="{100 - left}%" height="14" rx="2"/>',
        ]
        for other, begin, end, told in stretches:
            if other == name:
                width = max(0.8, (end - begin) * (100 - left))
                x = min(left + begin * (100 - left), 100 - width)
                shapes.append(
                    f'<rect class="bar" x="{x:.2f}%" y="{y + 3}" width="{width:.2f}%" height="14" rx="2">'
                    f"<title>{escape(told)}</title></rect>"
                )
    foot = 6 + len(names) * 28
    for at, label in enumerate(labels):
        place = left if at == 0 else 100
        shapes.append(_label(place, foot + 16, label, "start" if at == 0 else "end"))
    return _svg(title, "; ".join(told for *_, told in stretches), foot + 24, shapes)


def _above(number: float, unit: float) -> float:
    """A round number of units, not below this one."""
    size = number / unit
    if size <= 0:
        return unit
    power = 10.0 ** math.floor(math.log10(size))
    return next(r * power for r in (1, 2, 4, 5, 8, 10) if r * power >= size * 0.999999) * unit


def _scale(most: float, show: Callable[[float], str]) -> str:
    lines = []
    for tick in range(_TICKS + 1):
        y = TOP + ROOM - ROOM * tick / _TICKS
        lines.append(f'<line class="grid" x1="{LEFT}%" x2="{RIGHT}%" y1="{y:.1f}" y2="{y:.1f}"/>')
        if tick % 2 == 0:
            lines.append(_label(LEFT - 1.5, y + 4, show(most * tick / _TICKS), "end"))
    return "".join(lines)


def _label(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.2f}%" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, told: str, height: float, shapes: Sequence[str]) -> str:
    alt = escape(f"{title}: {told}" if told else title, quote=True)
    return (
        f'<svg class="chart" role="img" aria-label="{alt}" width="100%" height="{height:.0f}">'
        f"<title>{escape(title)}</title><desc>{escape(told)}</desc>{''.join(shapes)}</svg>"
    )

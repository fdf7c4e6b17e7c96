"""A recording as the analysis sees it, drawn for an operator's eyes: signals, thresholds and contractions.

Every number comes from the functions that make the payload. Of the file nothing is drawn but signals and the names of
muscles: no player, no game, no path.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cachemig.emg.channel import ACTIVATED_FACTOR, record
from cachemig.emg.channels import Muscle, muscles
from cachemig.emg.contractions import SILENCE
from cachemig.emg.envelope import envelope, moving_average
from cachemig.emg.profile import PROFILES, Options, Profile
from cachemig.emg.recording import FloatArray, Recording
from cachemig.emg.validation import LARGEST_SAMPLE, fault
from cachemig.errors import CachemigError, ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = {".png": "png", ".svg": "svg"}
COLUMNS = 1200
"""Of pixels; a longer signal is drawn as its least and greatest sample in each."""
MOST_MUSCLES = 12
"""A file may name hundreds; an image of them all would be of no use, and large."""

_WIDTH_INCHES, _DPI = 13.0, 100
_HEIGHTS_INCHES = (1.2, 1.5, 0.8)
"""Of raw signal, envelope and timing signal."""
_LONGEST_NAME = 40
# Told apart by those who do not see all colours too (Okabe and Ito, "Color Universal Design").
_RAW, _ENVELOPE, _TIMING, _MVC = "#666666", "#0072b2", "#009e73", "#d55e00"
_SPANS = {"meets-mvc": ("#56b4e9", 0.40), "below-mvc": ("#e69f00", 0.45)}


class DrawingUnavailable(ConfigError):
    """Drawing needs matplotlib, which is not installed."""

    hint = "pip install 'cachemig[plot]'"


class DrawingNotWritten(CachemigError):
    """The image could not be written."""

    hint = "name a file in a folder that exists and that you may write to"


def draw(recording: Recording, profile: str, image: Path) -> None:
    """Writes the figure into `image`, .png or .svg: all of it, readable by this user alone, or not at all.

    Raises DrawingUnavailable without matplotlib, ConfigError for another format, DrawingNotWritten.
    """
    kind = FORMATS.get(image.suffix.lower())
    if kind is None:
        raise ConfigError(f"{image}: a plot is {' or '.join(FORMATS)}", hint="--plot recording.svg")
    drawn = figure(recording, profile)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=image.parent, prefix=".plot-", suffix=image.suffix, delete=False) as file:
            temporary = Path(file.name)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # of a muscle's name: a box
                drawn.savefig(file, format=kind)
        temporary.replace(image)
        temporary = None
    except OSError as exc:
        raise DrawingNotWritten(f"{image}: {exc.strerror or type(exc).__name__}") from exc
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def figure(recording: Recording, profile: str) -> Figure:
    """A figure without a window: three axes for each muscle, one for a muscle that is not analysed, saying why.

    `profile` is a name in PROFILES; options are the defaults. Raises DrawingUnavailable.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot, which keeps figures and may open a display
    except ImportError as exc:
        raise DrawingUnavailable from exc

    by, rate_hz = PROFILES[profile], recording.rate_hz
    found = muscles(recording)
    shown = found[:MOST_MUSCLES]
    faults = [fault(muscle.raw, rate_hz, by) for muscle in shown]
    heights = [height for flaw in faults for height in _HEIGHTS_INCHES[: 3 if flaw is None else 1]] or [1.0]
    height = sum(heights) + 0.3 * len(shown) + 0.9  # titles, and the legend
    drawn = Figure(figsize=(_WIDTH_INCHES, height), dpi=_DPI, layout="constrained")
    axes = drawn.subplots(len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    place = iter(axes)
    for muscle, flaw in zip(shown, faults, strict=True):
        if flaw is None:
            _analysed(muscle, rate_hz, by, [next(place) for _ in _HEIGHTS_INCHES])
        else:
            _refused(muscle, rate_hz, by, flaw, next(place))
    axes[-1].set_xlabel("time, s")
    axes[-1].set_xlim(0, recording.samples.shape[1] / rate_hz)
    left_out = len(found) - len(shown)
    if not found:
        drawn.suptitle(f"{by.name} profile: no muscle in this recording")
    elif left_out:
        drawn.suptitle(f"the first {len(shown)} muscles; {left_out} more are not drawn")
    _legend(drawn)
    return drawn


def _analysed(muscle: Muscle, rate_hz: float, profile: Profile, axes: list[Axes]) -> None:
    options = Options()
    said = record(muscle, rate_hz, profile, options)
    raw, middle, timing = axes
    raw.set_title(_title(muscle, profile, said), loc="left", fontsize=10, parse_math=False)
    _signal(raw, muscle.raw, rate_hz, _RAW, "raw signal", 0.5)

    volts = envelope(muscle.raw, rate_hz).volts
    unit = _signal(middle, volts, rate_hz, _ENVELOPE, "envelope", 0.9)
    _limit(middle, said[profile.mvc_threshold_field] * unit, "MVC threshold", _MVC)

    activated = muscle.activated
    source, factor = (volts, options.threshold_factor) if activated is None else (activated, ACTIVATED_FACTOR)
    smooth = moving_average(np.abs(source), options.smoothing_window_samples)
    name = "envelope, smoothed: gives the times" if activated is None else "activated, smoothed: gives the times"
    unit = _signal(timing, smooth, rate_hz, _TIMING, name, 0.9)
    peak = float(smooth.max())
    if SILENCE <= peak < np.inf:
        _limit(timing, peak * factor * unit, "detection level", _TIMING)
    for axis in axes:
        _spans(axis, said["contractions"])


def _refused(muscle: Muscle, rate_hz: float, profile: Profile, flaw: str, axis: Axes) -> None:
    axis.set_title(
        f"{_name(muscle)} · {profile.name} · not analysed: {flaw}", loc="left", fontsize=10, parse_math=False
    )
    _signal(axis, muscle.raw, rate_hz, _RAW, "raw signal", 0.5)


def _title(muscle: Muscle, profile: Profile, said: dict[str, Any]) -> str:
    count = said["contraction_count"]
    return (
        f"{_name(muscle)} · {profile.name} · {count} contraction{'' if count == 1 else 's'}"
        f" · {said[profile.mvc_count_field]} reach the MVC threshold"
        f" · {said[profile.duration_count_field]} last long enough · {said['good_contraction_count']} good"
    )


def _name(muscle: Muscle) -> str:
    base = muscle.base or "(no name)"
    return base if len(base) <= _LONGEST_NAME else base[: _LONGEST_NAME - 1] + "…"


def _signal(axis: Axes, volts: FloatArray, rate_hz: float, colour: str, label: str, width: float) -> float:
    """Draws it in µV or mV, and returns how many of them a volt is."""
    seconds, outline = outlined(volts, rate_hz)
    peak = float(np.nanmax(np.abs(outline))) if np.isfinite(outline).any() else 0.0
    unit, unit_name = (1e3, "mV") if peak >= 1e-3 else (1e6, "µV")
    axis.plot(seconds, outline * unit, color=colour, linewidth=width, label=label)
    axis.set_ylabel(unit_name)
    axis.margins(y=0.08)
    axis.spines[["top", "right"]].set_visible(False)
    return unit


def outlined(volts: FloatArray, rate_hz: float) -> tuple[FloatArray, FloatArray]:
    """Times in seconds and volts, at most two a column: the least and the greatest of each, in which no peak is lost.

    What no C3D file can hold, and what is not finite, becomes a gap.
    """
    finite = np.where(np.abs(volts) <= LARGEST_SAMPLE, volts, np.nan)
    if len(finite) <= 2 * COLUMNS:
        return np.arange(len(finite)) / rate_hz, finite
    starts = np.arange(COLUMNS) * len(finite) // COLUMNS
    outline = np.column_stack([np.fmin.reduceat(finite, starts), np.fmax.reduceat(finite, starts)]).ravel()
    return np.repeat(starts / rate_hz, 2), outline


def _limit(axis: Axes, at: float, label: str, colour: str) -> None:
    axis.axhline(at, color=colour, linewidth=1.0, linestyle="--", label=label)


def _spans(axis: Axes, contractions: list[dict[str, Any]]) -> None:
    for gid, (colour, opacity) in _SPANS.items():
        spans = [
            (one["start_time_ms"] / 1000, one["duration_ms"] / 1000)
            for one in contractions
            if one["meets_mvc"] == (gid == "meets-mvc")
        ]
        if spans:
            label = "contraction that reaches the MVC threshold" if gid == "meets-mvc" else "contraction that does not"
            axis.broken_barh(
                spans,
                (0, 1),
                transform=axis.get_xaxis_transform(),
                color=colour,
                alpha=opacity,
                linewidth=0,
                zorder=0,
                gid=gid,
                label=label,
            )


def _legend(drawn: Figure) -> None:
    """One for all axes."""
    entries = {}
    for axis in drawn.axes:
        handles, labels = axis.get_legend_handles_labels()
        entries.update(dict(zip(labels, handles, strict=True)))
    if entries:
        drawn.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)

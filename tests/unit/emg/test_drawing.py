"""What is drawn, against the payload of the same recording."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cachemig.emg.drawing import (
    COLUMNS,
    MOST_MUSCLES,
    DrawingNotWritten,
    DrawingUnavailable,
    draw,
    figure,
    outlined,
)
from cachemig.emg.payload import analytics
from cachemig.emg.profile import PROFILES, Options
from cachemig.emg.recording import Recording
from cachemig.errors import ConfigError
from tests.unit.emg.signals import activated, noise, recording, with_bursts

RATE_HZ = 990.0
BURSTS_S = [(1.0, 1.6), (3.0, 5.5), (7.0, 7.4), (9.0, 9.9), (12.0, 12.6)]


def made(seconds: float = 14.0, *, with_activated: bool = True) -> Recording:
    """Two muscles; some bursts of the first stay below its MVC threshold."""
    quiet = noise(seconds, RATE_HZ, 1)
    left = with_bursts(with_bursts(quiet, RATE_HZ, BURSTS_S[:2], 60.0), RATE_HZ, BURSTS_S[2:], 6.0)
    right = with_bursts(noise(seconds, RATE_HZ, 2), RATE_HZ, BURSTS_S[1:4])
    channels = {"CH1 Raw": left, "CH2 Raw": right}
    if with_activated:
        channels |= {
            "CH1 activated": activated(quiet, RATE_HZ, BURSTS_S),
            "CH2 activated": activated(right, RATE_HZ, BURSTS_S),
        }
    return recording(channels, RATE_HZ)


def spans(axis: Axes, gid: str) -> list[tuple[float, float]]:
    """Start and end of each, in seconds."""
    return [
        (float(np.asarray(path.vertices)[:, 0].min()), float(np.asarray(path.vertices)[:, 0].max()))
        for collection in axis.collections
        if isinstance(collection, PolyCollection) and collection.get_gid() == gid
        for path in collection.get_paths()
    ]


def line(axis: Axes, label: str) -> Line2D:
    (found,) = [one for one in axis.lines if str(one.get_label()).startswith(label)]
    return found


def volts(axis: Axes, label: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    unit = {"mV": 1e-3, "µV": 1e-6}[axis.get_ylabel()]
    return np.asarray(line(axis, label).get_ydata(), dtype=np.float64) * unit


def titles(drawn: Figure) -> list[str]:
    return [title for axis in drawn.axes if (title := axis.get_title(loc="left"))]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("with_activated", [True, False])
def test_what_is_drawn_is_what_the_payload_says(profile: str, with_activated: bool) -> None:
    source = made(with_activated=with_activated)
    by = PROFILES[profile]
    payload = analytics(source, by, Options())
    drawn = figure(source, profile)
    assert len(drawn.axes) == 3 * len(payload)
    met = []
    for rank, (base, said) in enumerate(payload.items()):
        raw, middle, timing = drawn.axes[3 * rank : 3 * rank + 3]
        assert len(said["contractions"]) > 1
        for gid in ("meets-mvc", "below-mvc"):
            expected = [
                (one["start_time_ms"] / 1000, one["end_time_ms"] / 1000)
                for one in said["contractions"]
                if one["meets_mvc"] == (gid == "meets-mvc")
            ]
            for axis in (raw, middle, timing):
                assert np.allclose(spans(axis, gid), expected)
            met.append(len(expected))
        assert np.allclose(volts(middle, "MVC threshold"), said[by.mvc_threshold_field])
        processed = said["signal_processing"]["quality_metrics"]["processed_signal_stats"]
        envelope = volts(middle, "envelope")
        assert np.isclose(envelope.max(), processed["max"])
        assert np.isclose(envelope.min(), processed["min"])
        title = raw.get_title(loc="left")
        assert title.startswith(f"{base} · {profile} · {said['contraction_count']} contractions · ")
        assert f" {said[by.mvc_count_field]} reach" in title
        assert title.endswith(f" {said['good_contraction_count']} good")
    if with_activated:
        assert met[1]  # both shades occur


@pytest.mark.parametrize("with_activated", [True, False])
def test_contractions_begin_where_the_timing_signal_rises_above_its_level(with_activated: bool) -> None:
    source = made(2 * COLUMNS / RATE_HZ * 5, with_activated=with_activated)
    payload = analytics(source, PROFILES["head"], Options())
    drawn = figure(source, "head")
    column_s = source.samples.shape[1] / RATE_HZ / COLUMNS
    for rank, said in enumerate(payload.values()):
        timing = drawn.axes[3 * rank + 2]
        name = "activated, smoothed" if with_activated else "envelope, smoothed"
        values, (level, _) = volts(timing, name), volts(timing, "detection level")
        seconds = np.asarray(line(timing, name).get_xdata(), dtype=np.float64)
        for one in said["contractions"]:
            start_s = one["start_time_ms"] / 1000
            assert values[seconds < start_s - column_s][-1] <= level
            assert values[(seconds >= start_s - column_s) & (seconds <= start_s + column_s)].max() > level


def test_a_muscle_that_is_not_analysed_is_drawn_raw_with_the_reason() -> None:
    seconds = 14.0
    source = recording({"CH1": noise(seconds, RATE_HZ, 1), "CH2": np.zeros(round(seconds * RATE_HZ))}, RATE_HZ)
    drawn = figure(source, "head")
    assert len(drawn.axes) == 4
    assert titles(drawn)[1] == "CH2 · head · not analysed: no-variation"


def test_without_analytics_all_muscles_are_drawn_raw(tmp_path: Path) -> None:
    short = made(6.0)
    assert analytics(short, PROFILES["head"], Options()) == {}
    assert titles(figure(short, "head")) == [f"CH{n} · head · not analysed: too-short" for n in (1, 2)]
    draw(short, "head", tmp_path / "short.png")


@pytest.mark.parametrize(
    "source",
    [
        recording({"A Raw B": noise(2.0, RATE_HZ, 1)}, RATE_HZ),  # no muscle at all
        recording({"CH1": np.full(20_000, np.nan)}, RATE_HZ),
        recording({"CH1": np.array([1e308, -np.inf, np.nan, 0.0] * 5000)}, RATE_HZ),
        recording({"CH1": np.array([1e-6])}, None),
    ],
    ids=["no muscle", "NaN", "infinite", "one sample"],
)
@pytest.mark.parametrize("profile", PROFILES)
def test_odd_recordings_are_drawn_too(source: Recording, profile: str, tmp_path: Path) -> None:
    assert analytics(source, PROFILES[profile], Options()) == {}
    draw(source, profile, tmp_path / "odd.svg")
    ElementTree.parse(tmp_path / "odd.svg")


def test_names_are_drawn_as_they_stand(tmp_path: Path) -> None:
    """Neither as a formula, which this one would not be, nor without end; a character of no font is a box."""
    source = recording({"$\\frac$": noise(2.0, RATE_HZ, 1), "筋" * 500: noise(2.0, RATE_HZ, 2)}, RATE_HZ)
    draw(source, "era", tmp_path / "names.png")
    first, second = titles(figure(source, "era"))
    assert first.startswith("$\\frac$ · era · ")
    assert second.startswith("筋" * 39 + "… · era · ")


def test_of_many_muscles_the_first_are_drawn() -> None:
    source = recording({f"M{n:02}": noise(2.0, RATE_HZ, n) for n in range(MOST_MUSCLES + 3)}, RATE_HZ)
    drawn = figure(source, "head")
    assert len(titles(drawn)) == MOST_MUSCLES
    assert drawn.get_suptitle() == f"the first {MOST_MUSCLES} muscles; 3 more are not drawn"


def test_both_formats(tmp_path: Path) -> None:
    folder = tmp_path / "Mr Example"
    folder.mkdir()
    for name in ("plot.png", "plot.SVG"):
        draw(made(), "head", folder / name)
    png, svg = (folder / "plot.png").read_bytes(), (folder / "plot.SVG").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png.endswith(b"IEND\xaeB`\x82")
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert b"Example" not in png + svg
    assert sorted(path.name for path in folder.iterdir()) == ["plot.SVG", "plot.png"]  # nothing temporary is left
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_a_recording_of_ten_minutes_is_a_small_image(tmp_path: Path) -> None:
    """With 200 contractions a muscle."""
    seconds = 600.0
    bursts_s = [(at, at + 1.0) for at in np.arange(1.0, seconds - 1, 3.0)]
    raw = with_bursts(noise(seconds, RATE_HZ, 1), RATE_HZ, bursts_s)
    gate = activated(raw, RATE_HZ, bursts_s)
    source = recording({f"CH{n} {kind}": x for n in (1, 2) for kind, x in (("Raw", raw), ("activated", gate))}, RATE_HZ)
    draw(source, "head", tmp_path / "long.svg")
    assert (tmp_path / "long.svg").stat().st_size < 1_000_000
    assert len(spans(figure(source, "head").axes[0], "meets-mvc")) == len(bursts_s)


def test_the_outline_keeps_every_peak() -> None:
    values = noise(300.0, RATE_HZ, 3)
    values[123_457], values[200_001] = 1.0, -1.0
    seconds, outline = outlined(values, RATE_HZ)
    assert len(seconds) == len(outline) == 2 * COLUMNS
    assert (outline.min(), outline.max()) == (-1.0, 1.0)
    width_s = len(values) / COLUMNS / RATE_HZ
    assert 0 <= 123_457 / RATE_HZ - seconds[outline.argmax()] <= width_s
    assert np.array_equal(outlined(values[:1000], RATE_HZ)[1], values[:1000])


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DrawingUnavailable, match="matplotlib") as caught:
        draw(made(), "head", tmp_path / "plot.png")
    assert caught.value.hint == "pip install 'cachemig[plot]'"
    assert list(tmp_path.iterdir()) == []


def test_pyplot_is_not_loaded() -> None:
    """It would keep every figure, and may open a display."""
    import subprocess

    program = (
        "import sys, numpy\n"
        "from cachemig.emg.drawing import figure\n"
        "from cachemig.emg.recording import Recording\n"
        "figure(Recording(('CH1',), numpy.ones((1, 9)), 990.0), 'head')\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_image_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DrawingNotWritten, match=r"plot\.png: No such file or directory"):
        draw(made(), "head", tmp_path / "nowhere" / "plot.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DrawingNotWritten, match=r"folder\.png: Is a directory"):
        draw(made(), "head", tmp_path / "folder.png")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_an_image_is_replaced_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image = tmp_path / "plot.svg"
    image.write_text("the old one")

    def full(_: Figure, file: Any, **__: Any) -> None:
        file.write(b"<svg")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Figure, "savefig", full)
        with pytest.raises(DrawingNotWritten, match="No space left"):
            draw(made(), "head", image)
    assert image.read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["plot.svg"]
    draw(made(), "head", image)
    ElementTree.parse(image)


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png or \.svg"):
        draw(made(), "head", tmp_path / "plot.pdf")

"""plot: a recording as the recompute sees it, for an operator's eyes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

from cachemig.config import Settings
from cachemig.emg.isolated import Isolated, Limits
from cachemig.errors import ConfigError, Refused
from cachemig.progress import Progress
from cachemig.source import control, repair
from cachemig.source.connect import connect
from cachemig.source.table import inspect
from cachemig.steps.recompute import open_recordings
from cachemig.stop import Stop

FORMATS = (".png", ".svg")


def plot(
    settings: Settings, stop: Stop, image: Path, file: Path | None, keys: Sequence[str] | None
) -> Generator[Progress, None, Path]:
    """Draws the recording of a file or of a key's row into `image`, by the profile of the settings.

    Raises ConfigError for another format than .png and .svg, RecordingError and RecordingUnavailable as a recompute.
    """
    if image.suffix.lower() not in FORMATS:
        raise ConfigError(f"{image}: a plot is .png or .svg", hint="--plot recording.svg")
    yield Progress(0, 1, "recordings")
    source = file or _recording(settings, stop, (keys or [""])[0])
    with Isolated(Limits(file_bytes=settings.recordings_max_bytes)) as reader:
        recording = reader.read(source)
    from cachemig.emg.drawing import draw  # matplotlib and SciPy

    draw(recording, settings.recompute_profile, image)
    yield Progress(1, 1, "recordings")
    return image


def _recording(settings: Settings, stop: Stop, key: str) -> bytes:
    recordings = open_recordings(settings, stop)
    with connect(settings) as conn:
        table = inspect(conn, settings)
        control.require(conn, settings)
        row = repair.read(conn, table, key, recordings.columns)
    if row is None:
        raise Refused(f"no row holds a value for {key}", hint="cachemig recompute --file for a file of your own")
    fetched = recordings.fetch(row.columns)
    fetched.require(key)
    return fetched.data

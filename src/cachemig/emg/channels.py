"""Which channel is whose: from labels to pairs of a raw and an activated signal."""

from __future__ import annotations

from dataclasses import dataclass

from cachemig.emg.recording import FloatArray, Recording

RAW = " Raw"
ACTIVATED = " activated"


@dataclass(frozen=True, eq=False)
class Muscle:
    """The signals of one base name. `rank` counts every base of the recording in code-point order, failed ones too.

    `activated` is the game's own "muscle is active" signal, None where it recorded none. `source` is what the payload
    calls the raw signal.
    """

    base: str
    rank: int
    raw: FloatArray
    source: str
    activated: FloatArray | None


def names(labels: tuple[str, ...], channels: int) -> list[str]:
    """One name a channel: its label without surrounding white space, or CH<n>, counted from 1, without a label."""
    return [labels[i].strip() if i < len(labels) else f"CH{i + 1}" for i in range(channels)]


def table(recording: Recording) -> dict[str, FloatArray]:
    """Signals by name. A channel that is not called raw is entered under its raw name too; of equal names the last
    channel's stays, so a later `CH1` replaces `CH1 Raw`.
    """
    signals: dict[str, FloatArray] = {}
    for name, signal in zip(names(recording.labels, len(recording.samples)), recording.samples, strict=True):
        signals[name] = signal
        if not name.endswith(RAW):
            signals[name + RAW] = signal
    return signals


def base(name: str) -> str:
    """The muscle's name in a channel's: without " Raw", then without " activated", wherever they stand."""
    return name.replace(RAW, "").replace(ACTIVATED, "")


def muscles(recording: Recording) -> list[Muscle]:
    """The muscles of a recording, sorted by base name in code-point order.

    A base for which there is no raw signal (only an activated one, or " Raw" in the middle of a label) is not in the
    list, but its rank is used up.
    """
    signals = table(recording)
    found = []
    for rank, name in enumerate(sorted({base(key) for key in signals})):
        source = next((key for key in (name + RAW, name) if key in signals), None)
        if source is not None:
            said = "RAW" if source == name + RAW else f"BASE ({name})"
            found.append(Muscle(name, rank, signals[source], said, signals.get(name + ACTIVATED)))
    return found

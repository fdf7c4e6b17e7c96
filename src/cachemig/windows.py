"""Windows of a week in which work pauses by itself: `mon-fri 08:00-18:00, sat 22:00-02:00`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MIN = 24 * 60
_WINDOW = re.compile(r"(?:([a-z]{3})(?:-([a-z]{3}))?\s+)?(\d\d):(\d\d)-(\d\d):(\d\d)", re.ASCII)


@dataclass(frozen=True)
class Window:
    """From `start_min` to before `end_min`, in minutes of a day that it begins on. Where it ends no later than it
    begins, it ends on the day after."""

    days: tuple[int, ...]
    """Of the week, Monday 0."""
    start_min: int
    end_min: int

    def holds(self, at: datetime) -> bool:
        """Whether the clock on the wall stands in the window. One that is put forward or back is simply read anew."""
        minute, today = at.hour * 60 + at.minute, at.weekday()
        if self.start_min < self.end_min:
            return today in self.days and self.start_min <= minute < self.end_min
        begun = today in self.days and minute >= self.start_min
        return begun or ((today - 1) % 7 in self.days and minute < self.end_min)

    def __str__(self) -> str:
        days = "" if len(self.days) == 7 else DAYS[self.days[0]]
        days += f"-{DAYS[self.days[-1]]}" if 1 < len(self.days) < 7 else ""
        return f"{days} {_clock(self.start_min)}-{_clock(self.end_min)}".strip()


def parse(text: str) -> tuple[Window, ...]:
    """Windows separated by commas, each with a day, a range of days, or for every day. Raises ValueError."""
    return tuple(_window(part.strip().lower()) for part in text.split(",") if part.strip())


def current(windows: Iterable[Window], at: datetime) -> Window | None:
    """The first window that this time is in."""
    return next((window for window in windows if window.holds(at)), None)


def zone(name: str) -> tzinfo:
    """The time zone of an IANA name. Raises ValueError where this machine does not know it."""
    if name == "UTC":  # known also where no time zones are installed
        return UTC
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as exc:
        raise ValueError(f"{name!r} is not the name of a time zone such as Europe/Berlin") from exc


def zone_name(text: str) -> str:
    """The name of a zone that this machine knows."""
    zone(text)
    return text


def _window(text: str) -> Window:
    found = _WINDOW.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a window such as mon-fri 08:00-18:00, sat 09:00-12:00 or 22:00-06:00")
    start_min, end_min = _minutes(text, *found.group(3, 4)), _minutes(text, *found.group(5, 6))
    if start_min in (end_min, _DAY_MIN):
        raise ValueError(f"{text!r} has no length; a whole day is 00:00-24:00")
    return Window(_days(text, found[1], found[2]), start_min, end_min)


def _days(text: str, first: str | None, last: str | None) -> tuple[int, ...]:
    if first is None:
        return tuple(range(7))
    for name in (first, last or first):
        if name not in DAYS:
            raise ValueError(f"{text!r}: {name!r} is not one of {', '.join(DAYS)}")
    begin, end = DAYS.index(first), DAYS.index(last or first)
    length = (end - begin) % 7 + 1
    return tuple(range(7)) if length == 7 else tuple((begin + n) % 7 for n in range(length))


def _minutes(text: str, hour: str, minute: str) -> int:
    minutes = int(hour) * 60 + int(minute)
    if int(minute) > 59 or minutes > _DAY_MIN:
        raise ValueError(f"{text!r}: {hour}:{minute} is no time of a day")
    return minutes


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"

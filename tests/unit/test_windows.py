"""Pause windows: what is read, what is refused, and every minute of a week against a plain count."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.windows import DAYS, Window, current, parse, zone

MONDAY = datetime(2026, 6, 1, tzinfo=UTC)
WEEK_MIN = 7 * 24 * 60


def at(day: str, clock: str) -> datetime:
    hour, minute = map(int, clock.split(":"))
    return MONDAY + timedelta(days=DAYS.index(day), hours=hour, minutes=minute)


def test_the_documented_windows() -> None:
    windows = parse("mon-fri 08:00-18:00, sat 09:00-12:00")
    assert windows == (Window((0, 1, 2, 3, 4), 480, 1080), Window((5,), 540, 720))
    assert current(windows, at("mon", "08:00")) is windows[0]
    assert current(windows, at("fri", "17:59")) is windows[0]
    assert current(windows, at("sat", "11:59")) is windows[1]
    for day, clock in (("mon", "07:59"), ("fri", "18:00"), ("sat", "12:00"), ("sun", "10:00")):
        assert current(windows, at(day, clock)) is None


def test_over_midnight_it_belongs_to_the_day_that_it_begins_on() -> None:
    (window,) = parse("sat-sun 22:00-06:00")
    for day, clock in (("sat", "22:00"), ("sun", "05:59"), ("sun", "23:00"), ("mon", "05:59")):
        assert window.holds(at(day, clock))
    for day, clock in (("sat", "05:00"), ("mon", "06:00"), ("mon", "22:00")):
        assert not window.holds(at(day, clock))


@pytest.mark.parametrize(
    "text",
    [
        "always",
        "mon",
        "mon 8:00-18:00",
        "mon 08:00",
        "mon 08:00-25:00",
        "mon 08:60-09:00",
        "mon 08:00-08:00",
        "24:00-06:00",
        "monday 08:00-18:00",
        "mon-xyz 08:00-18:00",
        "mon 08:00-18:00 sat 09:00-12:00",
        "mon ٠٨:00-18:00",
    ],
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse(text)


def test_none() -> None:
    assert parse("") == parse(" , ") == ()


@given(
    first=st.integers(0, 6),
    last=st.integers(0, 6),
    start=st.integers(0, 1439),
    length=st.integers(1, 1440),
    minute=st.integers(0, WEEK_MIN - 1),
)
def test_every_minute_of_a_week(first: int, last: int, start: int, length: int, minute: int) -> None:
    if length == 1440:
        start = 0
    end = start + length if start + length <= 1440 else start + length - 1440
    text = f"{DAYS[first]}-{DAYS[last]} {start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    (window,) = parse(text)
    within = {
        (day * 1440 + start + n) % WEEK_MIN
        for day in [(first + n) % 7 for n in range((last - first) % 7 + 1)]
        for n in (minute - day * 1440 - start, minute - day * 1440 - start + WEEK_MIN)
        if 0 <= n < length
    }
    assert window.holds(MONDAY + timedelta(minutes=minute)) is (minute in within)
    assert parse(str(window)) == (window,)


def test_zones() -> None:
    (window,) = parse("mon 08:00-18:00")
    noon = datetime(2026, 6, 1, 7, 0, tzinfo=UTC)
    assert window.holds(noon.astimezone(zone("Europe/Berlin")))
    assert not window.holds(noon.astimezone(zone("UTC")))
    for name in ("Europe/Nowhere", "Europe", "/etc/passwd", ""):
        with pytest.raises(ValueError, match="time zone"):
            zone(name)

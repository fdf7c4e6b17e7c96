"""Where text goes, and that logs stay legible: no colours, no animation, a line every 30 s."""

from __future__ import annotations

import io
import math
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.cli import screen as module
from cachemig.cli.screen import LINE_EVERY_S, Screen, in_bytes, in_time
from cachemig.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture(params=["plain", "forced"])
def _colours(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without what would make rich draw into a pipe."""
    if request.param == "forced":
        for name, value in {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm-256color"}.items():
            monkeypatch.setenv(name, value)


Capture = pytest.CaptureFixture[str]

# Figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KB"),
        (1536, "1.5 KB"),
        (12_595, "12.3 KB"),
        (2**20, "1.0 MB"),
        (4.5 * 2**30, "4.5 GB"),
        (2**40, "1.0 TB"),
        (5000 * 2**40, "5000.0 TB"),
    ],
)
def test_in_bytes(count: float, text: str) -> None:
    assert in_bytes(count) == text


@given(count=st.integers(0, 2**55))
def test_in_bytes_is_right_to_its_last_digit(count: int) -> None:
    number, unit = in_bytes(count).split()
    size = 1024 ** ["B", "KB", "MB", "GB", "TB"].index(unit)
    assert abs(float(number) * size - count) <= 0.0501 * size
    assert float(number) <= 1024 or unit == "TB"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.9, "9.9 s"),
        (10, "10 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2.0 h"),
        (9000, "2.5 h"),
    ],
)
def test_in_time(seconds: float, text: str) -> None:
    assert in_time(seconds) == text


@given(seconds=st.floats(0, 1e7))
def test_in_time_is_right_to_its_last_digit(seconds: float) -> None:
    number, unit = in_time(seconds).split()
    length = {"s": 1, "min": 60, "h": 3600}[unit]
    assert math.isclose(float(number) * length, seconds, abs_tol=0.51 * length)


# Streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("results_to_stderr", [True, False])
def test_results_and_talk_part(capsys: Capture, results_to_stderr: bool) -> None:
    screen = Screen(results_to_stderr=results_to_stderr)
    screen.say("talk")
    screen.error("wrong", "do this")
    screen.line("result")
    screen.table(["key"], [["a"]])
    screen.next("cachemig sync")
    out, err = capsys.readouterr()
    assert "talk" in err
    assert "error: wrong\nhint: do this\n" in err
    result = err if results_to_stderr else out
    assert "result\nkey\na  \nnext: cachemig sync\n" in result or "result" in result
    assert bool(out) is not results_to_stderr


@pytest.mark.usefixtures("_colours")
def test_no_escape_codes_off_a_terminal(capsys: Capture, clock: Clock) -> None:
    screen = Screen(results_to_stderr=False)
    screen.say("talk")
    screen.line("result", "bold red")
    screen.line("[bold]as it stands[/bold] [/]")
    screen.error("wrong", "do this")
    screen.next("cachemig sync")
    screen.table(["a", "b"], [["x", 1234567], ["y", None]], styles=["red", None], numbers=[1])
    with screen.progress("backfill") as draw:
        for _ in range(5):
            clock.now += LINE_EVERY_S
            draw(Progress(1, 2, "chunks"))
    out, err = capsys.readouterr()
    for text in (out, err):
        assert text.replace("\n", "").isprintable()
    assert "[bold]as it stands[/bold] [/]\n" in out
    assert "1,234,567" in out


def test_long_lines_are_not_broken(capsys: Capture) -> None:
    Screen(results_to_stderr=False).line("x " * 500)
    Screen(results_to_stderr=False).say("y" * 500)
    out, err = capsys.readouterr()
    assert out.count("\n") == err.count("\n") == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_errors_wrap_between_words_at_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    words = " ".join(["somewhat"] * 20)
    Screen(results_to_stderr=True).error(words, words)
    assert capsys.readouterr().err == f"error: {words}\nhint: {words}\n"
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    Screen(results_to_stderr=True).error(words, words)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()
    assert len(lines) > 8
    assert {word for line in lines for word in line.split()} == {"error:", "hint:", "somewhat"}


@pytest.mark.parametrize("text", ["cache:key:42", "a:100:b", "C:\\"])
def test_text_is_shown_as_it_is(capsys: Capture, text: str) -> None:
    screen = Screen(results_to_stderr=False)
    screen.line(text)
    screen.say(text)
    screen.table([""], [[text]])
    out, err = capsys.readouterr()
    assert err == f"{text}\n"
    assert [line.strip() for line in out.splitlines()] == [text, text]


@pytest.mark.parametrize("text", ["a\x1b[31mred", "a\rb", "a\x1b]0;title\x07"], ids=ascii)
def test_a_key_cannot_steer_the_terminal(capsys: Capture, text: str) -> None:
    Screen(results_to_stderr=False).line(text)
    out, _ = capsys.readouterr()
    assert out.strip("\n").isprintable()
    assert out == text.encode("unicode_escape").decode() + "\n"


# Progress ---------------------------------------------------------------------------------------------------------


def lines(capsys: Capture) -> list[str]:
    out, err = capsys.readouterr()
    assert not out
    return err.splitlines()


@pytest.mark.usefixtures("_colours")
def test_a_line_every_30_s(capsys: Capture, clock: Clock) -> None:
    with Screen(results_to_stderr=False).progress("backfill") as draw:
        for second in range(100):
            clock.now = 1000.0 + second
            draw(Progress(second, 100, "chunks"))
        clock.now += 1000
    assert lines(capsys) == [
        "backfill: 30 of 100 chunks (30 %), about 70 s left",
        "backfill: 60 of 100 chunks (60 %), about 40 s left",
        "backfill: 90 of 100 chunks (90 %), about 10 s left",
    ]


def test_a_step_of_less_says_nothing(capsys: Capture, clock: Clock) -> None:
    with Screen(results_to_stderr=False).progress("backfill") as draw:
        for _ in range(1000):
            draw(Progress(1, 2, "chunks"))
    assert lines(capsys) == []


def test_waiting_is_said_at_once_and_once(capsys: Capture, clock: Clock) -> None:
    waiting = Progress(1, 2, "chunks", waiting="Redis is full")
    with Screen(results_to_stderr=False).progress("sync") as draw:
        draw(Progress(1, 2, "chunks"))
        for _ in range(20):
            clock.now += 1
            draw(waiting)
        assert lines(capsys) == ["sync: 1 of 2 chunks (50 %), waiting: Redis is full"]
        clock.now += 10
        draw(waiting)
        assert lines(capsys) == []
        clock.now += LINE_EVERY_S
        draw(waiting)
        assert len(lines(capsys)) == 1
        draw(Progress(1, 2, "chunks"))
        assert lines(capsys) == []
        draw(waiting)
        assert len(lines(capsys)) == 1, "it waits anew"
        draw(Progress(1, 2, "chunks", waiting="Postgres is away"))
        assert lines(capsys) == ["sync: 1 of 2 chunks (50 %), waiting: Postgres is away"]


def test_a_wait_whose_figures_change_is_one_wait(capsys: Capture, clock: Clock) -> None:
    with Screen(results_to_stderr=False).progress("sync") as draw:
        for behind_s in range(12, 22):
            clock.now += 1
            draw(Progress(1, None, "changes", waiting=f"paused: standby r1 is {behind_s}.5 s behind"))
    assert lines(capsys) == ["sync: 1 changes, waiting: paused: standby r1 is 12.5 s behind"]


def test_slowing_down_is_said_at_once_and_then_in_every_line(capsys: Capture, clock: Clock) -> None:
    with Screen(results_to_stderr=False).progress("sync") as draw:
        draw(Progress(1, None, "changes"))
        for rate in range(1, 20):
            clock.now += 1
            draw(Progress(1, None, "changes", slowed=f"slowed to {rate}.0 MiB/s: busy" if rate % 3 else None))
        assert lines(capsys) == ["sync: 1 changes, slowed to 1.0 MiB/s: busy"]
        clock.now += LINE_EVERY_S
        draw(Progress(1, None, "changes", slowed="slowed to 30.0 MiB/s: busy"))
        assert lines(capsys) == ["sync: 1 changes, slowed to 30.0 MiB/s: busy"]


@given(
    drawn=st.lists(st.tuples(st.floats(0, 40), st.booleans()), max_size=30),
)
def test_never_more_than_a_line_each_30_s_and_one_each_wait(drawn: list[tuple[float, bool]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
        printed: list[str] = []
        out = SimpleNamespace(print=lambda text, **_: printed.append(text))
        shown = module._Lines("sync", out)  # type: ignore[arg-type]  # all that it uses of a console
        before, waits = False, 0
        for seconds, waiting in drawn:
            clock.now += seconds
            count = len(printed)
            shown.draw(Progress(1, None, "keys", waiting="full" if waiting else None))
            waits += waiting and not before
            if waiting and not before:
                assert len(printed) == count + 1
            before = waiting
        assert len(printed) <= waits + (clock.now - 1000.0) / LINE_EVERY_S


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(5, None, "keys"), "x: 5 keys"),
        (Progress(0, 0, "chunks"), "x: 0 of 0 chunks"),
        (Progress(1500, 3000, "chunks"), "x: 1,500 of 3,000 chunks (50 %)"),
        (Progress(2, 2, "chunks", entries=1234, bytes=10 * 2**20),
         "x: 2 of 2 chunks (100 %), 1,234 entries, 10.0 MB, 1.0 MB/s"),
        (Progress(0, None, "changes", backlog=0), "x: 0 changes, backlog 0"),
        (Progress(0, None, "changes", backlog=100_000), "x: 0 changes, backlog 100,000+"),
        (Progress(1, 2, "chunks", waiting="Redis is full"), "x: 1 of 2 chunks (50 %), waiting: Redis is full"),
    ],
)  # fmt: skip
def test_figures(clock: Clock, progress: Progress, text: str) -> None:
    figures = module._Figures("x")
    clock.now += 10
    assert figures.text(progress) == text


def test_the_time_left_counts_from_where_the_run_began(clock: Clock) -> None:
    figures = module._Figures("x")
    assert "left" not in figures.text(Progress(50, 100, "chunks")), "a resumed run knows no speed yet"
    clock.now += 10
    assert figures.text(Progress(60, 100, "chunks")).endswith("about 40 s left")
    assert "left" not in figures.text(Progress(60, 100, "chunks", waiting="full"))
    assert "left" not in figures.text(Progress(100, 100, "chunks"))

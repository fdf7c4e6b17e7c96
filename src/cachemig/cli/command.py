"""What every command shares: the flags of its settings, --json, the error boundary, signals, progress."""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from cachemig import config, errors
from cachemig.cli.lazy import built_by
from cachemig.cli.screen import Screen
from cachemig.progress import Progress

if TYPE_CHECKING:
    from cachemig.stop import Stop
    from cachemig.targets.redis import RedisTarget

T = TypeVar("T")

ALWAYS = ("dsn", "redis_url", "table", "column", "key_column")
"""Settings shown in the help of every command; each command names what else matters to it. All are accepted."""
OFFLINE = ("doctor", "recompute", "report")
"""Commands that can be of use without Postgres. All others first end a brownout that is overdue."""


class Run:
    """One invocation of a command: its settings, and where its output goes."""

    def __init__(self, settings: config.Settings, *, as_json: bool, name: str) -> None:
        self.settings = settings
        self.as_json = as_json
        self.name = name
        self.screen = Screen(results_to_stderr=as_json)
        self.exit_code = errors.Exit.FINE

    @contextmanager
    def target(self) -> Iterator[RedisTarget]:
        from cachemig.targets.open import open_target

        with open_target(self.settings, os.environ) as target:
            yield target

    def drive(self, step: Callable[[Stop], Generator[Progress, None, T]]) -> T:
        """Runs a step to its end, drawing its progress; the first Ctrl-C or SIGTERM asks it to stop, the second one
        stops at once."""
        from cachemig.stop import Stop

        stop = Stop()
        with _signals(stop, self.screen), self.screen.progress(self.name) as draw:
            running = step(stop)
            while True:
                try:
                    draw(next(running))
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]

    def show(self, result: Any, render: Callable[[Screen, Any], None]) -> None:
        """The result: for people, or one JSON document on stdout."""
        render(self.screen, result)
        if self.as_json:
            document = result.document() if hasattr(result, "document") else _plain(result)
            print(json.dumps(document, default=_plain, ensure_ascii=False))


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if not isinstance(value, dict | list | int | float | str | type(None)) else value


@contextmanager
def _signals(stop: Stop, screen: Screen) -> Iterator[None]:
    def first(number: int, _frame: object) -> None:
        screen.say("stopping when the pipeline in flight is done; once more stops at once")
        stop.request(number)
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def command(
    app: typer.Typer, panel: str, *relevant: str, name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command body `f(run, ...)`. It gets every setting as a flag (those `relevant` are shown in its
    help), --config and --json; its errors become one clear message, a hint and an exit code."""

    def register(body: Callable[..., None]) -> Callable[..., None]:
        command_name = name or body.__name__.replace("_", "-")

        def invoke(**given: Any) -> None:
            as_json = given.pop("json")
            config_file = given.pop("config")
            flags = {f.name: _flag_text(given.pop(f.name)) for f in config.fields()}
            with _boundary(as_json=as_json):
                settings = config.load(flags, os.environ, config_file)
                run = Run(settings, as_json=as_json, name=command_name)
                if command_name not in OFFLINE:
                    _end_brownout(run)
                body(run, **given)
                if run.exit_code:
                    raise typer.Exit(run.exit_code)

        def whole() -> Callable[..., None]:
            own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]
            parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own + _shared(relevant)]
            invoke.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
            invoke.__annotations__ = {p.name: p.annotation for p in parameters}
            return invoke

        def later() -> None:
            """Only stands for the command until `whole` is called."""

        app.command(command_name, cls=built_by(whole), rich_help_panel=panel, help=inspect.getdoc(body))(later)
        return body

    return register


def _end_brownout(run: Run) -> None:
    """Renames back a column that a killed brownout has left hidden beyond its time. Costs one connection. Whatever is
    wrong with Postgres the command itself will say."""
    from cachemig.source import brownout

    try:
        column = brownout.end_overdue(run.settings)
    except errors.LockNotGranted as exc:
        run.screen.say(f"a brownout is over, and its column could not be renamed back yet: {exc}")
    except (errors.SourceError, errors.ConfigError):
        return
    else:
        if column is not None:
            run.screen.say(f"a brownout was over: {column} has its name again")


def confirmed(column: str, given: str | None) -> None:
    """Has the column's name typed, where --confirm does not give it.

    Raises ConfigError where it is another one, or where nobody can be asked.
    """
    if given is None:
        if not sys.stdin.isatty():
            raise errors.ConfigError(
                "nobody can be asked here: --execute wants --confirm", hint=f"add --confirm {column}, if it is meant"
            )
        given = typer.prompt(f"Type the column's name to drop it ({column})", err=True)
    if given != column:
        raise errors.ConfigError(
            f"{given!r} is not the column that would be dropped: nothing is changed", hint=f"it is {column!r}"
        )


def seconds_of(flag: str, text: str) -> float:
    """A duration given to a flag. Raises ConfigError where it is none, or no time at all."""
    try:
        seconds = config.duration(text)
    except ValueError as exc:
        raise errors.ConfigError(f"{flag}: {exc}", hint=f"{flag} 10m") from exc
    if seconds <= 0:
        raise errors.ConfigError(f"{flag} wants more than {text}", hint=f"{flag} 10m")
    return seconds


SETTINGS = "Settings (also CACHEMIG_* and cachemig.toml)"


def _shared(relevant: tuple[str, ...]) -> list[inspect.Parameter]:
    """What every command takes: all settings, of which some are shown, --config and --json."""
    return [
        *(_setting_flag(f, shown=f.name in ALWAYS + relevant) for f in config.fields()),
        _option(
            "config", Path | None, None, typer.Option(help=r"settings file \[cachemig.toml]", rich_help_panel=SETTINGS)
        ),
        _option("json", bool, False, typer.Option("--json", help="one JSON document on stdout")),
    ]


def _flag_text(given: str | bool | None) -> str | None:
    return ("on" if given else "off") if isinstance(given, bool) else given


def _setting_flag(field: Any, *, shown: bool) -> inspect.Parameter:
    is_switch = field.metadata["parse"] is config.switch
    default = "" if is_switch else config.mask(field.name, field.default)
    if field.metadata["metavar"] == "DURATION":
        default = config.show_duration(field.default)
    text = field.metadata["help"] + (f" [{default}]" if default else "")
    flag = "--" + field.name.replace("_", "-")
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if is_switch else flag,
        help=text.replace("[", r"\["),
        metavar=None if is_switch else field.metadata["metavar"],
        hidden=not shown,
        rich_help_panel=SETTINGS,
    )
    return _option(field.name, bool | None if is_switch else str | None, None, option)


def _option(name: str, type_: Any, default: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[type_, option])


@contextmanager
def _boundary(*, as_json: bool) -> Iterator[None]:
    """The one place where errors become messages. A traceback is printed only with CACHEMIG_DEBUG=1, because its
    lines may show values."""
    try:
        yield
    except typer.Exit:
        raise
    except BrokenPipeError:  # `cachemig status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(errors.Exit.FINE) from None
    except KeyboardInterrupt:
        _report(errors.Interrupted("stopped"), as_json=as_json)
    except Exception as exc:  # noqa: BLE001  # the boundary
        if os.environ.get("CACHEMIG_DEBUG"):
            traceback.print_exc()
        _report(_known(exc), as_json=as_json)


def _known(exc: Exception) -> errors.CachemigError:
    if isinstance(exc, errors.CachemigError):
        return exc
    import psycopg
    import redis

    from cachemig.source import connect
    from cachemig.targets import faults as target

    match exc:
        case psycopg.Error():
            return connect.mapped(exc)
        case redis.RedisError():
            return target.mapped(exc)
        case OSError():
            return errors.CachemigError(str(exc))
    return errors.CachemigError(
        f"internal error: {type(exc).__name__}", hint="CACHEMIG_DEBUG=1 prints where; please report it"
    )


def _report(error: errors.CachemigError, *, as_json: bool) -> None:
    screen = Screen(results_to_stderr=True)
    screen.error(str(error), error.hint)
    if as_json:
        document = {
            "error": type(error).__name__,
            "message": str(error),
            "hint": error.hint,
            "exit_code": int(error.exit_code),
        }
        print(json.dumps(document))
    raise typer.Exit(error.exit_code)

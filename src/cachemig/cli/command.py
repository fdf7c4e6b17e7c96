"""What every command shares: the flags of its settings, --json, the error boundary, signals, progress."""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from cachemig import config, errors
from cachemig.cli.inner import INNER, Inner, Shown
from cachemig.cli.lazy import built_by
from cachemig.cli.screen import Screen
from cachemig.progress import Progress

if TYPE_CHECKING:
    from cachemig.stop import Stop
    from cachemig.targets.redis import RedisTarget

T = TypeVar("T")

ALWAYS = ("dsn", "redis_url", "table", "column", "key_column")
"""Settings shown in the help of every command; each command names what else matters to it. All are accepted."""
OFFLINE = ("doctor", "recompute", "report", "apply", "ci", "rehearse")
"""Commands that can be of use without Postgres, or run others. All others first end a brownout that is overdue; but no
dry run does."""


class Run:
    """One invocation of a command: its settings, and where its output goes."""

    def __init__(self, settings: config.Settings, *, as_json: bool, name: str, inner: Inner) -> None:
        """`inner`: the settings' flags, and whether another command runs this one."""
        self.settings = settings
        self.as_json = as_json
        self.name = name
        self._inner = inner
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

    def show(self, result: Any, render: Callable[[Screen, Any], None], *, junit: Path | None = None) -> None:
        """The result: for people, or one JSON document on stdout. Where GitHub's runner reads along, what is wrong as
        annotations too; and as a JUnit report, where one is asked for."""
        if self._inner.quiet:
            self._inner.shown.append(Shown(self.name, result, render))
            return
        if junit is not None:
            from cachemig.report.junit import write_junit

            write_junit(junit, result)
        render(self.screen, result)
        if self.as_json:
            from cachemig.report.documents import document, plain

            print(json.dumps(document(self.name, result), default=plain, ensure_ascii=False))
        if os.environ.get("GITHUB_ACTIONS") == "true":
            from cachemig.report import github

            github.tell(self.name, result, os.environ)

    def inner(self, *, quiet: bool, flags: Mapping[str, str | None] | None = None) -> Inner:
        """How this command runs another one: with the same settings, over which `flags` go."""
        return Inner({**self._inner.flags, **(flags or {})}, self._inner.config, self.as_json, quiet)

    def settings_with(self, flags: Mapping[str, str | None]) -> config.Settings:
        """The settings of a command that this one runs."""
        return config.load({**self._inner.flags, **flags}, os.environ, self._inner.config)

    @property
    def flags(self) -> dict[str, str]:
        """Settings that were given as flags."""
        return {name: text for name, text in self._inner.flags.items() if text is not None}


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
            outer = INNER.get()
            if outer is not None:
                own = {name: text for name, text in flags.items() if text is not None}
                inner = Inner({**outer.flags, **own}, config_file or outer.config, outer.as_json, outer.quiet)
                inner.shown = outer.shown
                outer.used = inner.flags
                outer.settings = config.load(inner.flags, os.environ, inner.config)
                outer.exit_code = act(given, inner)
                return
            with _boundary(as_json=as_json):
                if code := act(given, Inner(flags, config_file, as_json, quiet=False)):
                    raise typer.Exit(code)

        def act(given: dict[str, Any], inner: Inner) -> errors.Exit:
            settings = config.load(inner.flags, os.environ, inner.config)
            run = Run(settings, as_json=inner.as_json, name=command_name, inner=inner)
            if command_name not in OFFLINE and not given.get("dry_run") and not inner.quiet:
                _end_brownout(run)
            try:
                body(run, **given)
            except errors.SourceUnavailable as exc:
                if not settings.dsn and not any(name.startswith("PG") for name in os.environ):
                    exc.hint = NOT_SAID
                raise
            return run.exit_code

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


NOT_SAID = 'say where Postgres is: export CACHEMIG_DSN="host=HOST user=USER dbname=NAME"; or try: cachemig demo'


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
        try:
            given = typer.prompt(f"Type the column's name to drop it ({column})", err=True)
        except typer.Abort:
            raise errors.Interrupted("nothing was typed: nothing is changed") from None
    if given != column:
        raise errors.ConfigError(
            f"{given!r} is not the column that would be dropped: nothing is changed", hint=f"it is {column!r}"
        )


def not_both(flag: str, *, dry_run: bool) -> None:
    """Raises ConfigError where a dry run is asked for beside a flag that has something done."""
    if dry_run:
        raise errors.ConfigError(f"say {flag} or --dry-run", hint="leave one of the two out")


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
            "config",
            Path | None,
            None,
            typer.Option(
                metavar="FILE",
                help=r"file of settings; docs/cli.md lists all \[cachemig.toml]",
                rich_help_panel=SETTINGS,
            ),
        ),
        _option("json", bool, False, typer.Option("--json", help="one JSON document on stdout")),
    ]


def _flag_text(given: str | bool | None) -> str | None:
    return ("on" if given else "off") if isinstance(given, bool) else given


def default_text(field: Any) -> str:
    """A setting's default as somebody would write it."""
    match field.metadata["metavar"]:
        case "DURATION":
            return config.show_duration(field.default)
        case "SIZE":
            return config.show_size(field.default)
    return config.mask(field.name, field.default)


def _setting_flag(field: Any, *, shown: bool) -> inspect.Parameter:
    is_switch = field.metadata["parse"] is config.switch
    default = "" if is_switch else default_text(field)
    text = field.metadata["help"] + (f" [{default}]" if default else "")
    words = getattr(field.metadata["parse"], "allowed", ())
    flag = "--" + field.name.replace("_", "-")
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if is_switch else flag,
        help=text.replace("[", r"\["),
        metavar=None if is_switch else field.metadata["metavar"],
        hidden=not shown,
        rich_help_panel=SETTINGS,
        autocompletion=(lambda incomplete: [w for w in words if w.startswith(incomplete)]) if words else None,
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
        raise typer.Exit(report(errors.Interrupted("stopped"), as_json=as_json)) from None
    except Exception as exc:  # noqa: BLE001  # the boundary
        if os.environ.get("CACHEMIG_DEBUG"):
            traceback.print_exc()
        raise typer.Exit(report(known(exc), as_json=as_json)) from None


def known(exc: Exception) -> errors.CachemigError:
    """The error to show for any exception."""
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
            return errors.CachemigError(str(exc), hint="when it is mended, run the same command again")
    return errors.CachemigError(
        f"internal error: {type(exc).__name__}", hint="CACHEMIG_DEBUG=1 prints where; please report it"
    )


def report(error: errors.CachemigError, *, as_json: bool) -> int:
    """Says it on stderr, with --json on stdout too; the exit code."""
    screen = Screen(results_to_stderr=True)
    screen.error(str(error), error.hint)
    if as_json:
        from cachemig.cli.results import ErrorDocument
        from cachemig.report.documents import document

        shown = ErrorDocument(type(error).__name__, str(error), error.hint, int(error.exit_code))
        print(json.dumps(document("error", shown)))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from cachemig.report import github

        github.tell_error(str(error), error.hint)
    return int(error.exit_code)

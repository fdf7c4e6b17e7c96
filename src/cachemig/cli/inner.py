"""One command that runs another: `plan --out` and `ci` look at dry runs, `apply` takes a step, all in this process.

So a step is looked at and taken by the very code that a typed command runs, and nothing is parsed from its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from cachemig import errors
from cachemig.config import Settings


@dataclass(frozen=True)
class Shown:
    """What a command would have shown."""

    command: str
    result: Any
    render: Callable[[Any, Any], None]


@dataclass
class Inner:
    """How a command is run by another one."""

    flags: Mapping[str, str | None]
    """Settings given to the outer one; its own flags go before them."""
    config: Path | None
    as_json: bool
    quiet: bool
    """What it shows is kept in `shown` instead of printed."""
    shown: list[Shown] = field(default_factory=list)
    used: Mapping[str, str | None] = field(default_factory=dict)
    """The flags of settings that it ran with."""
    settings: Settings | None = None
    """What came of them."""
    exit_code: errors.Exit = errors.Exit.FINE


INNER: ContextVar[Inner | None] = ContextVar("INNER", default=None)
"""Set while a command runs another one; a Typer callback can be handed it in no other way."""


@contextmanager
def inside(inner: Inner) -> Iterator[None]:
    token = INNER.set(inner)
    try:
        yield
    finally:
        INNER.reset(token)


def run(arguments: Sequence[str], inner: Inner) -> Inner:
    """Runs `cachemig ARGUMENTS` in this process. Its errors leave this call as they are.

    Raises ConfigError where there is no such command, or it does not take these arguments.
    """
    from cachemig.cli.app import app

    usage: Any = typer.BadParameter.__mro__[1]
    group: Any = typer.main.get_command(app)
    name, *rest = arguments
    command = group.commands.get(name)
    if command is None:
        raise errors.ConfigError(f"there is no command {name!r}", hint="cachemig --help")
    with inside(inner):
        try:
            with command.make_context(name, rest) as context:
                command.invoke(context)
        except usage as exc:
            raise errors.ConfigError(
                f"cachemig {name}: {exc.format_message()}", hint=f"cachemig {name} --help"
            ) from exc
        except typer.Exit as exc:  # --help, --version
            inner.exit_code = errors.Exit(exc.exit_code)
    return inner

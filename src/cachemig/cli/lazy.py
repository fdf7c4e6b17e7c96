"""Commands that are built when they are asked for: of thirty commands with fifty options each, one runs.

Typer reads a signature slowly, and converts even an option that nobody gave by a library that takes longer to load
than anything else here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


def built_by(make: Callable[[], Callable[..., None]]) -> type[TyperCommand]:
    """The class of a command that knows its name and help; what it calls, and so its options, `make` tells once they
    are wanted: to run it, to show its help, to complete its flags."""

    class Command(TyperCommand):
        texts: frozenset[str] = frozenset()

        def get_params(self, ctx: Any) -> list[Any]:
            if not self.params:
                body = make()
                alone = typer.Typer(add_completion=False)
                alone.command()(body)
                built = typer.main.get_command(alone)
                self.params, self.callback = built.params, built.callback
                annotated = inspect.signature(body).parameters.items()
                self.texts = frozenset(name for name, p in annotated if p.annotation.__origin__ in (str, str | None))
            return _converting_less(super().get_params(ctx), self.texts)

    return Command


class Group(TyperGroup):
    """The program, whose own options are treated alike."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _converting_less(super().get_params(ctx))


def _converting_less(options: list[Any], texts: frozenset[str] = frozenset()) -> list[Any]:
    """The options, which take a default as it is from now on, and `texts` what was given: it is text already."""
    for option in options:
        if "process_value" not in vars(option):
            option.process_value = _processing(option, option.process_value, is_text=option.name in texts)
    return options


def _processing(option: Any, convert: Callable[[Any, Any], Any], *, is_text: bool) -> Callable[[Any, Any], Any]:
    def process(ctx: Any, value: Any) -> Any:
        source = ctx.get_parameter_source(option.name)
        is_default = source is not None and source.name == "DEFAULT" and not option.required
        return value if is_default or (is_text and isinstance(value, str)) else convert(ctx, value)

    return process

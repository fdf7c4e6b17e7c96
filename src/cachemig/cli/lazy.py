"""Commands that are built when they are asked for: of thirty commands with fifty options each, one runs.

Typer reads a signature slowly, and converts even an option that nobody gave by a library that takes longer to load
than anything else here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

from cachemig.cli.usage import choices, fitting, one_of


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
            return dressed(super().get_params(ctx), self.texts)

    return Command


_TYPERS_OWN = {
    "help": "show this and exit",
    "install_completion": "install completion of commands and options for this shell",
    "show_completion": "show what --install-completion would install",
}


def dressed(options: list[Any], texts: frozenset[str] = frozenset()) -> list[Any]:
    """The options, which take a default as it is from now on, and `texts` what was given: it is text already. Where
    the metavar is a list of words, one of them is wanted, and completed; its help begins with them. A flag
    shows no type, a number no range, and a default stands in brackets, as a setting's does."""
    for option in options:
        if "process_value" in vars(option):
            continue
        option.process_value = _processing(option, option.process_value, is_text=option.name in texts)
        if words := choices(option):
            option._custom_shell_complete = _completing(words)
            option.words, option.metavar = words, "WORD"  # a list of words in the column of types takes half the screen
            option.help = f"{one_of(words)}: {option.help}" if option.help else one_of(words)
        if getattr(option, "is_flag", False) and option.metavar is None:
            option.metavar = ""
        option.help = _TYPERS_OWN.get(option.name, option.help)
        if option.show_default is True and option.default not in (None, False, (), []):
            option.help = f"{option.help or ''} \\[{option.default}]".lstrip()
        option.show_default = False
        option._get_number_range_help_str = lambda: None
    return options


def _processing(option: Any, convert: Callable[[Any, Any], Any], *, is_text: bool) -> Callable[[Any, Any], Any]:
    def process(ctx: Any, value: Any) -> Any:
        source = ctx.get_parameter_source(option.name)
        is_default = source is not None and source.name == "DEFAULT" and not option.required
        if is_default:
            return value
        if isinstance(value, str) and not ctx.resilient_parsing:
            fitting(ctx, option, value)
        return value if is_text and isinstance(value, str) else convert(ctx, value)

    return process


def _completing(words: tuple[str, ...]) -> Callable[[Any, Any, str], list[str]]:
    return lambda _ctx, _option, begun: [word for word in words if word.startswith(begun)]

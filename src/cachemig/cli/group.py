"""The program itself: its commands by panel, and the last boundary, for what never reached a command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from cachemig.cli.command import report
from cachemig.cli.lazy import dressed
from cachemig.cli.usage import as_read, no_such_command, summary, unfitting
from cachemig.errors import Exit, Interrupted, UsageError

PANELS = ("Try", "Look", "Move", "Cut over", "Finish", "After")
"""The order in which somebody meets them. A panel that is not named here comes last."""


class Group(TyperGroup):
    """Whose help lists each command in one line, and whose usage errors look like all others."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        command: Any
        for command in self.commands.values():
            command.help = as_read(command.help or "")
            command.short_help = summary(command.help)
            command.get_params = _dressing(command.get_params)

    def get_params(self, ctx: Any) -> list[Any]:
        return dressed(super().get_params(ctx))

    def list_commands(self, _ctx: Any) -> list[str]:
        def rank(name: str) -> int:
            panel = getattr(self.commands[name], "rich_help_panel", None)
            return PANELS.index(panel) if panel in PANELS else len(PANELS)

        return sorted(self.commands, key=rank)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            raise no_such_command(args[0], [name for name, one in self.commands.items() if not one.hidden])
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *more: Any, **extra: Any) -> Any:
        """Runs the command line, and leaves by SystemExit with the exit code. Nothing at all shows the help."""
        given = sys.argv[1:] if args is None else list(args)
        extra["standalone_mode"] = False
        try:
            code = super().main(given or ["--help"], prog_name, *more, **extra)
        except UsageError as error:
            code = report(error, as_json="--json" in given)
        except typer.Abort:
            code = report(Interrupted("stopped"), as_json="--json" in given)
        except Exception as error:
            if not hasattr(error, "format_message"):  # none of Typer's
                raise
            code = report(unfitting(error, given), as_json="--json" in given)
        sys.exit((code or Exit.FINE) if given else Exit.USAGE)


def _dressing(options: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    """The same for commands that were not built lazily."""
    return lambda ctx: dressed(options(ctx))

"""The reference of the command line, docs/cli.md, told by the program itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from cachemig import config, errors
from cachemig.cli.app import app
from cachemig.cli.command import ALWAYS, default_text
from cachemig.cli.usage import EXAMPLE, examples

_CODES = {
    errors.Exit.FINE: "fine",
    errors.Exit.ERROR: "an error; the message says what, the hint what to do",
    errors.Exit.USAGE: "usage or configuration",
    errors.Exit.REFUSED: "a gate or a verification failed",
    errors.Exit.CHANGES_PENDING: "`plan --detailed-exitcode`: steps are ahead",
    errors.Exit.LEASE_HELD: "another run holds the lease",
    errors.Exit.INTERRUPTED: "stopped by Ctrl-C; what was done is saved",
    errors.Exit.TERMINATED: "stopped by SIGTERM; what was done is saved",
}


def reference() -> str:
    """The page, in Markdown. The same for the same program, wherever it runs."""
    return "\n".join(_page()).rstrip() + "\n"


def _page() -> Iterator[str]:
    group: Any = typer.main.get_command(app)
    top = typer.Context(group, info_name="cachemig")
    commands = [(name, group.commands[name]) for name in group.list_commands(top) if not group.commands[name].hidden]
    yield "# Command line"
    yield ""
    yield "Written by `scripts/generate-cli-reference`: change the code, then run it again."
    yield ""
    panel = None
    for name, command in commands:
        if command.rich_help_panel != panel:
            panel = command.rich_help_panel
            yield from ("" if panel is None else f"**{panel}**", "")
        yield f"- [{name}](#{name}): {command.short_help}"
        following = commands[commands.index((name, command)) + 1 :]
        if not following or following[0][1].rich_help_panel != panel:
            yield ""
    yield "Every command takes `--json` (one document on stdout, people's text on stderr), `--help`, `--config`"
    yield f"and all [settings](#settings){_but(commands, top)}. Exit codes stand [at the end](#exit-codes)."
    yield ""
    for name, command in commands:
        yield from _command(name, command, top)
    yield from _settings()
    yield from _exit_codes()


def _but(commands: list[tuple[str, Any]], top: typer.Context) -> str:
    """Commands that have no settings."""
    without = [f"`{name}`" for name, one in commands if "config" not in {o.name for o in _options(one, name, top)}]
    return f", but for {' and '.join(without)}" if without else ""


def _options(command: Any, name: str, top: typer.Context) -> list[Any]:
    return list(command.get_params(typer.Context(command, parent=top, info_name=name)))


def _command(name: str, command: Any, top: typer.Context) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    for paragraph in command.help.split("\n\n"):
        if not paragraph.startswith(EXAMPLE):
            yield from (paragraph, "")
    yield from ("```", *examples(command), "```", "")
    settings = {field.name for field in config.fields()}
    options = _options(command, name, top)
    own = [o for o in options if o.name not in settings | {"config", "json", "help"} and not o.hidden]
    if own:
        yield from ("| option | |", "|---|---|")
        for option in own:
            notes = [_plain(option.help or "")]
            if option.required:
                notes.append("(required)")
            yield f"| `{_flags(option)}` | {' '.join(filter(None, notes))} |"
        yield ""
    relevant = [o for o in options if o.name in settings - set(ALWAYS) and not o.hidden]
    if relevant:
        yield f"Settings that matter: {', '.join(f'`{o.opts[0]}`' for o in relevant)}."
        yield ""


def _flags(option: Any) -> str:
    if option.param_type_name == "argument":
        return str(option.metavar)
    flags = "/".join([*option.opts, *option.secondary_opts])
    if option.is_flag:
        return flags
    return f"{flags} {option.metavar or 'N'}".replace("|", "\\|")


def _plain(text: str) -> str:
    return text.replace("\\[", "[").replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")


def _settings() -> Iterator[str]:
    yield "## Settings"
    yield ""
    yield "A flag goes before its `CACHEMIG_*` variable, that before `cachemig.toml`, that before the default. One name"
    yield "everywhere: `--key-column`, `CACHEMIG_KEY_COLUMN`, `key_column`. Those marked • decide what stands in Redis,"
    yield "and must not change while a migration lasts. `cachemig doctor --show-config` prints each value, and whence."
    yield ""
    yield from ("| flag | default | |", "|---|---|---|")
    for field in config.fields():
        flag = "--" + field.name.replace("_", "-")
        is_switch = field.metadata["parse"] is config.switch
        metavar = "" if is_switch else f" {field.metadata['metavar']}"
        default = "off" if is_switch else default_text(field)
        mark = "• " if field.metadata["identity"] else ""
        shown = f"`{default}`" if default else ""
        yield f"| `{flag}{metavar}` | {shown} | {mark}{_plain(field.metadata['help'])} |"
    yield ""


def _exit_codes() -> Iterator[str]:
    yield from ("## Exit codes", "", "| code | means |", "|---|---|")
    for code in errors.Exit:
        yield f"| {int(code)} | {_CODES[code]} |"
    yield ""
    kinds = [
        (name, kind)
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.CachemigError) and kind.__module__ == errors.__name__
    ]
    yield 'With `--json` an error is a document `{"error", "message", "hint", "exit_code"}`. What `error` is:'
    yield ""
    yield from ("| error | code | |", "|---|---|---|")
    for name, kind in sorted(kinds, key=lambda one: (int(one[1].exit_code), one[0])):
        yield f"| `{name}` | {int(kind.exit_code)} | {kind.__doc__} |"

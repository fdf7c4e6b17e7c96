"""What was typed and does not fit: said as every other error is, with the nearest word there is and a next command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from cachemig.errors import UsageError, did_you_mean

_WORDS = re.compile(r"[a-z][a-z0-9_-]*(\|[a-z][a-z0-9_-]*)+")
EXAMPLE = "Example:"


def as_read(text: str) -> str:
    """A docstring, each paragraph in one line, so that any width can wrap it; its examples stay as they are."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(p if p.startswith(EXAMPLE) else " ".join(p.split()) for p in paragraphs)


def examples(command: Any) -> list[str]:
    """The command lines below `Example:`, the last paragraph of a command's help."""
    last = (command.help or "").rpartition("\n\n")[2]
    return [line.strip() for line in last.splitlines()[1:]] if last.startswith(EXAMPLE) else []


def summary(text: str) -> str:
    """The first sentence, which stands in the list of commands."""
    return re.split(r"(?<=[.?])\s", " ".join(text.split()), maxsplit=1)[0].removesuffix(".")


def choices(option: Any) -> tuple[str, ...]:
    """The words that an option takes, where its metavar lists them: `bad|ignore|remove`."""
    if hasattr(option, "words"):
        return tuple(option.words)
    metavar = option.metavar or ""
    return tuple(metavar.split("|")) if _WORDS.fullmatch(metavar) else ()


def one_of(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def fitting(ctx: Any, option: Any, given: str) -> None:
    """Raises UsageError where an option does not take what was given to it: no word or number of those it may be."""
    flag = option.opts[0]
    words = choices(option)
    if words and given not in words:
        raise UsageError(
            f"{flag} is {one_of(words)}, not {given!r}{did_you_mean(given, words)}", hint=_next(ctx.command, ctx)
        )
    number = _number_type(option)
    if number is None:
        return
    least = getattr(option, "min", None)
    try:
        fits = least is None or number(given) >= least
    except ValueError:
        fits = False
    if not fits or not re.fullmatch(r"[+-]?[\d.]+", given):
        what = "a whole number" if number is int else "a number"
        wanted = what + ("" if least is None else f" from {least}")
        raise UsageError(f"{flag} wants {wanted}, not {given!r}", hint=_next(ctx.command, ctx))


def _number_type(option: Any) -> type[int] | type[float] | None:
    kind = str(getattr(getattr(option, "type_descriptor", None), "annotation", ""))
    return int if "int" in kind else float if "float" in kind else None


def unfitting(error: Any, given: Sequence[str]) -> UsageError:
    """The error for one of Typer's, which are known by their names: some versions have them in a package of their
    own. `given`: the command line."""
    ctx = getattr(error, "ctx", None)
    if ctx is None:  # an option at the end, without its value
        name = next((word for word in given if not word.startswith("-")), "")
        return UsageError(_lower(error.format_message()), hint=f"cachemig {name} --help".replace("  ", " "))
    command = ctx.command
    name = ctx.command_path.partition(" ")[2]
    match type(error).__name__:
        case "NoSuchOption":
            return _no_such_option(error.option_name, ctx, name)
        case "MissingParameter":
            flag, metavar = error.param.opts[0], error.param.metavar or "VALUE"
            return UsageError(f"{name} wants {flag} {metavar}", hint=_next(command, ctx))
    if "extra argument" in error.message:
        extra = error.message.rpartition("(")[2].removesuffix(")")
        return UsageError(f"{name} takes no {extra!r} after its options", hint=_next(command, ctx))
    return UsageError(_lower(error.format_message()), hint=_next(command, ctx))


def _no_such_option(given: str, ctx: Any, name: str) -> UsageError:
    if name:
        options = [o for option in ctx.command.get_params(ctx) for o in (*option.opts, *option.secondary_opts)]
        return UsageError(
            f"{name} has no option {given}{did_you_mean(given, options)}", hint=f"{ctx.command_path} --help"
        )
    return UsageError(
        f"{given} is no option of cachemig by itself; a command's options stand after it",
        hint=f"cachemig COMMAND {given} …, or cachemig --help",
    )


def no_such_command(given: str, known: list[str]) -> UsageError:
    guess = did_you_mean(given, known)
    name = guess.partition("'")[2].partition("'")[0]
    return UsageError(
        f"there is no command {given!r}{guess}",
        hint=f"cachemig {name} --help" if name else "cachemig --help lists the commands",
    )


def _next(command: Any, ctx: Any) -> str:
    """A line that would work, or where all options stand."""
    known = examples(command)
    return f"for example: {known[0]}" if known else f"{ctx.command_path} --help"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")

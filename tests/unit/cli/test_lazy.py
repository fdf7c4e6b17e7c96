"""Commands that are built when they are asked for: they take and convert what they always did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from cachemig import config
from cachemig.cli.app import app
from cachemig.cli.command import Run, command
from cachemig.cli.group import Group

probing = typer.Typer(cls=Group)
seen: dict[str, Any] = {}


@probing.callback()
def _main() -> None:
    pass


@command(probing, "Panel", name="doctor")  # which asks no server before its body runs
def probe(
    run: Run,
    number: Annotated[int, typer.Option(min=1)] = 5,
    place: Annotated[Path | None, typer.Option()] = None,
    word: Annotated[list[str] | None, typer.Option()] = None,
    text: Annotated[str, typer.Option()] = "as it was",
    yes: Annotated[bool, typer.Option("--yes")] = False,
) -> None:
    seen.update(number=number, place=place, word=word, text=text, yes=yes, key=run.settings.key_column)


def test_what_is_not_given_is_the_default() -> None:
    assert CliRunner().invoke(probing, ["doctor"]).exit_code == 0
    assert seen == {
        "number": 5, "place": None, "word": None, "text": "as it was", "yes": False, "key": "file_hash",
    }  # fmt: skip


def test_what_is_given_is_converted() -> None:
    given = [
        "--number",
        "7",
        "--place",
        "/x",
        "--word",
        "a",
        "--word",
        "b",
        "--text",
        "y",
        "--yes",
        "--key-column",
        "k",
    ]
    assert CliRunner().invoke(probing, ["doctor", *given]).exit_code == 0
    assert seen == {"number": 7, "place": Path("/x"), "word": ["a", "b"], "text": "y", "yes": True, "key": "k"}


@pytest.mark.parametrize("given", [["--number", "0"], ["--number", "x"], ["--text"], ["--unknown"]])
def test_what_does_not_fit_is_refused(given: list[str]) -> None:
    assert CliRunner().invoke(probing, ["doctor", *given]).exit_code == 2


def test_none_is_built_before_it_is_wanted() -> None:
    group: Any = typer.main.get_command(app)
    assert [name for name, one in group.commands.items() if one.params] == ["demo"]


def test_every_command_takes_every_setting_and_completes_those_it_shows() -> None:
    group: Any = typer.main.get_command(app)
    settings = {field.name for field in config.fields()}
    for name, one in group.commands.items():
        ctx = typer.Context(one)
        options = {option.name for option in one.get_params(ctx)}
        assert name == "demo" or settings | {"config", "json"} <= options, name
    status = group.commands["status"]
    completed = [item.value for item in status.shell_complete(typer.Context(status), "--")]
    assert {"--key-column", "--config", "--json"} <= set(completed)
    assert "--batch-keys" not in completed

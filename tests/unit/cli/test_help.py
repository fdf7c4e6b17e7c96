"""Help, examples, usage errors and the reference, as somebody meets them who has never seen this program."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cachemig import config
from cachemig.cli.app import app
from cachemig.cli.usage import examples
from cachemig.errors import ConfigError, did_you_mean

ROOT = Path(__file__).parents[3]
GROUP: Any = typer.main.get_command(app)
TOP = typer.Context(GROUP, info_name="cachemig")
COMMANDS = [name for name in GROUP.list_commands(TOP) if not GROUP.commands[name].hidden]
WIDTH = 80

each = pytest.mark.parametrize("name", COMMANDS)


@cache
def lines(*arguments: str) -> list[str]:
    """The help, off a terminal."""
    done = invoke(*arguments, "--help")
    assert done.exit_code == 0
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", done.output).splitlines()]


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), prog_name="cachemig", env={"COLUMNS": str(WIDTH)})


@each
def test_every_command_has_an_example_that_parses(name: str) -> None:
    known = examples(GROUP.commands[name])
    assert known, f"the docstring of {name} ends without a paragraph Example:"
    for example in known:
        program, command, *arguments = shlex.split(example)
        assert (program, command) == ("cachemig", name)
        parsed = GROUP.commands[name].make_context(name, arguments, parent=TOP)
        flags = {f.name: parsed.params.get(f.name) for f in config.fields()}
        config.load({k: v if isinstance(v, str) else None for k, v in flags.items()}, {}, None)


@each
def test_help_shows_the_example_in_one_piece(name: str) -> None:
    shown = lines(name)
    assert all(f"   {example}" in shown for example in examples(GROUP.commands[name]))
    place = next(n for n, line in enumerate(shown) if line.strip() == "Example:")
    panel = next(n for n, line in enumerate(shown) if line.startswith("╭"))
    assert place < panel, "the example stands above the options"


@each
def test_help_fits_the_screen_and_wastes_none_of_it(name: str) -> None:
    shown = lines(name)
    assert max(map(len, shown)) <= WIDTH
    assert re.fullmatch(rf" Usage: cachemig {name} \[OPTIONS\]( [A-Z{{}}\[\]. ]+)?", shown[1])
    text = "\n".join(shown)
    assert "<bool>" not in text
    assert "<path>" not in text
    assert "Example: " not in text
    assert "[default: " not in text
    assert "x>=" not in text


@each
def test_the_list_of_commands_has_one_line_for_each(name: str) -> None:
    shown = lines()
    assert sum(line.startswith(f"│ {name} ") for line in shown) == 1
    place = next(n for n, line in enumerate(shown) if line.startswith(f"│ {name} "))
    assert not shown[place + 1].startswith("│  "), f"the first sentence of {name} is too long for one line"


@pytest.mark.parametrize("wrong", ["cachemig cutover --percnt 10", "cachemig recompute --sample few"])
def test_a_wrong_example_would_not_parse(wrong: str) -> None:
    _, name, *arguments = shlex.split(wrong)
    with pytest.raises(Exception, match=r"percnt|whole number"):
        GROUP.commands[name].make_context(name, arguments, parent=TOP)


def test_the_reference_is_what_the_program_says() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "generate-cli-reference", "--check"], check=False)
    assert done.returncode == 0, "run scripts/generate-cli-reference"


def test_the_reference_has_every_command_and_setting() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert all(f"\n## {name}\n" in page for name in COMMANDS)
    assert all(f"`--{f.name.replace('_', '-')}" in page for f in config.fields())
    assert os.fspath(Path.home()) not in page


USAGE = [
    (["backfil"], "there is no command 'backfil'; did you mean 'backfill'?", "cachemig backfill --help"),
    (["dualwrite"], "did you mean 'dual-write'?", "cachemig dual-write --help"),
    (["xyzzy"], "there is no command 'xyzzy'", "cachemig --help"),
    (["--table", "t", "plan"], "--table is no option of cachemig by itself", "cachemig COMMAND --table"),
    (["backfill", "--workrs", "3"], "did you mean '--workers'?", "cachemig backfill --help"),
    (["status", "--key-colum", "k"], "did you mean '--key-column'?", "cachemig status --help"),
    (["backfill", "--qqq"], "backfill has no option --qqq", "cachemig backfill --help"),
    (["backfill", "--workers", "x"], "--workers wants a whole number from 1, not 'x'", "cachemig backfill --workers 4"),
    (["backfill", "--workers", "0"], "--workers wants a whole number from 1, not '0'", "cachemig backfill --workers"),
    (["cutover", "--percent", "ten"], "--percent wants a number, not 'ten'", "cachemig cutover --percent 10"),
    (["cutover", "--percent"], "requires an argument", "cachemig cutover --help"),
    (["backfill", "now"], "backfill takes no 'now'", "cachemig backfill --workers 4"),
    (["archive"], "archive wants --to PLACE", "cachemig archive --to backup/"),
    (["stop-writes", "--guard", "forwrd"], "forward or reject, not 'forwrd'; did you mean 'forward'?", "stop-writes"),
    (["verify", "--foreign-keys", "x"], "--foreign-keys is bad, ignore or remove, not 'x'", "cachemig verify"),
    (["reclaim", "--method", "vacum-full"], "did you mean 'vacuum-full'?", "cachemig reclaim"),
    (["init", "--codec", "zst"], "'zst' is not one of json, gzip, zstd; did you mean 'zstd'?", "codec: json, gzip"),
    (["throttle"], "say how much with --max-rate", "cachemig throttle --max-rate 10MiB"),
    (["resync"], "name keys with --key, or say --all", "cachemig resync"),
    (["init", "--ttl", "soon"], "not a duration such as 90s", "ttl: lifetime of an entry"),
]


@pytest.mark.parametrize(("arguments", "message", "hint"), USAGE, ids=[" ".join(a) for a, _, _ in USAGE])
def test_what_does_not_fit_is_said_as_every_other_error(
    arguments: list[str], message: str, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cachemig.cli.command._end_brownout", lambda _run: None)  # the one thing that asks a server
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    error, said = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert said.startswith("hint: ")
    assert hint in said
    if arguments[-1].startswith("--") and "requires" in message:
        return  # what follows would be taken as its value
    done = invoke(*arguments, "--json")
    assert done.exit_code == 2
    document = json.loads(done.stdout)
    assert message in document["message"]
    assert document["exit_code"] == 2
    assert document["hint"]


def test_nothing_at_all_shows_the_help() -> None:
    done = invoke()
    assert done.exit_code == 2
    assert "Cut over" in done.output


def test_a_misspelt_variable_is_refused_and_a_foreign_one_is_not() -> None:
    for wrong, right in (("TABEL", "TABLE"), ("DNS", "DSN"), ("KEY_TEMPLAT", "KEY_TEMPLATE"), ("TTLS", "TTL")):
        with pytest.raises(ConfigError, match=f"CACHEMIG_{wrong} is no setting; did you mean 'CACHEMIG_{right}'") as e:
            config.load({}, {f"CACHEMIG_{wrong}": "x"})
        assert e.value.hint != "x"
        assert f"unset CACHEMIG_{wrong}" in (e.value.hint or "")
    foreign = ("SERVICE_HOST", "PORT", "PORT_80_TCP_ADDR", "HOME", "VERSION", "IMAGE", "ENV", "CONFIG", "DEBUG", "USER")
    # config names a file
    config.load({}, {f"CACHEMIG_{name}": "x" for name in foreign if name != "CONFIG"})
    config.load({}, {"CACHEMIG_TEST_DSN": "x", "CACHEMIG_TEST_REDIS_URL": "x"})


@pytest.mark.parametrize("field", config.fields(), ids=lambda f: f.name)
def test_every_default_is_shown_as_it_could_be_written(field: Any) -> None:
    from cachemig.cli.command import default_text

    if isinstance(field.default, bool):
        return
    assert field.metadata["parse"](default_text(field)) == field.default


@pytest.mark.parametrize(
    ("given", "known", "guess"),
    [("zst", ["json", "zstd"], "; did you mean 'zstd'?"), ("q", ["json"], ""), ("x", [], "")],
)
def test_the_nearest_word(given: str, known: list[str], guess: str) -> None:
    assert did_you_mean(given, known) == guess


def test_an_option_of_words_says_them_first_in_its_help() -> None:
    """They would take half of the screen as its type."""
    named = {}
    for name in COMMANDS:
        for option in GROUP.commands[name].get_params(typer.Context(GROUP.commands[name])):
            assert "|" not in (option.metavar or ""), (name, option.metavar)
            named[f"{name} {option.opts[0]}"] = option.help or ""
    assert named["stop-writes --guard"].startswith("forward or reject: ")
    assert named["verify --foreign-keys"].startswith("bad, ignore or remove: ")

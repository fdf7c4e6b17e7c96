"""Every error names something to do: its class has a hint, or each place that makes one gives it."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import cachemig
from cachemig.errors import CachemigError

SOURCE = Path(cachemig.__file__).parent

WITHOUT: set[tuple[str, str]] = set()
"""(module, class) of the places that may go without."""

# Their names decide: recordings.errors has the table of hints, which is looked at below.
BY_NAME = {"RecordingUnavailable"}


def modules() -> Iterator[tuple[ModuleType, ast.Module]]:
    for info in pkgutil.walk_packages(cachemig.__path__, "cachemig."):
        if info.name == "cachemig.__main__":  # runs
            continue
        module = importlib.import_module(info.name)
        yield module, ast.parse(inspect.getsource(module))


MODULES = list(modules())


def made(module: ModuleType, tree: ast.Module) -> Iterator[tuple[ast.Call, type[CachemigError]]]:
    """Every call of an error class of ours, by whatever name it is known there."""
    names = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(id=name):
                found = getattr(module, name, None) or _imported(names.get(name))
            case ast.Attribute(value=ast.Name(id=owner), attr=name):
                found = getattr(getattr(module, owner, None) or _imported(names.get(owner)), name, None)
            case _:
                continue
        if inspect.isclass(found) and issubclass(found, CachemigError):
            yield node, found


def _imported(place: tuple[str, str] | None) -> object:
    if place is None or not place[0].startswith("cachemig"):
        return None
    found = getattr(importlib.import_module(place[0]), place[1], None)
    return found if found is not None else importlib.import_module(".".join(place))


def lacking(module: ModuleType, tree: ast.Module) -> list[tuple[str, str, int]]:
    return [
        (module.__name__, kind.__name__, call.lineno)
        for call, kind in made(module, tree)
        if kind.hint is None
        and kind.__name__ not in BY_NAME
        and not any(k.arg == "hint" and not _is_none(k.value) for k in call.keywords)
        and (module.__name__, kind.__name__) not in WITHOUT
    ]


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and not value.value


def test_no_error_is_made_without_a_hint() -> None:
    assert [place for module, tree in MODULES for place in lacking(module, tree)] == []


def test_what_is_let_off_is_still_there() -> None:
    there = {(m.__name__, kind.__name__) for m, tree in MODULES for _, kind in made(m, tree)}
    assert there >= WITHOUT


@pytest.mark.parametrize(
    "text",
    [
        "raise Refused('no')",
        "raise errors.Refused('no')",
        "x = Refused('no', hint=None)",
        "def f():\n    from cachemig.errors import SettingsDiffer as S\n    return S('no')",
    ],
)
def test_the_search_finds_what_lacks_one(text: str) -> None:
    module = ModuleType("somewhere")
    module.__dict__.update(Refused=cachemig.errors.Refused, errors=cachemig.errors)
    assert len(lacking(module, ast.parse(text))) == 1
    assert lacking(module, ast.parse("raise Refused('no', hint='cachemig status')")) == []


def test_there_are_many_errors_to_look_at() -> None:
    assert sum(len(list(made(module, tree))) for module, tree in MODULES) > 250


def test_every_name_of_a_recording_has_a_hint() -> None:
    from cachemig.recordings import errors as of_recordings

    for name in of_recordings.NAMES:
        assert of_recordings.RecordingUnavailable(name, "x").hint, name  # type: ignore[arg-type]


def test_hints_name_commands_that_exist() -> None:
    """In classes, and in whatever stands literally behind hint= anywhere."""
    from cachemig.cli.app import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    texts = [
        (module.__name__, text.value)
        for module, tree in MODULES
        for call, _ in made(module, tree)
        for keyword in call.keywords
        if keyword.arg == "hint"
        for text in ast.walk(keyword.value)
        if isinstance(text, ast.Constant) and isinstance(text.value, str)
    ]
    unknown = [
        (where, name)
        for where, text in texts
        for name in re.findall(r"(?:^|[:;,] |run |then )cachemig (?!ends )([a-z][a-z-]+)", text)
        if name not in commands
    ]
    assert unknown == []
    assert len(texts) > 100

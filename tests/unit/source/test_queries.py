"""The named statements: each is used, each that is used exists, and what locks or destroys says why it may."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest
from psycopg import sql

import cachemig
from cachemig.source import queries

SOURCE = Path(cachemig.__file__).parent
PSQL = {"roles"}
"""Scripts for psql, which nothing in the code reads."""
FILES = sorted(path.stem for path in queries.directory().glob("*.sql") if path.stem not in PSQL)
STATEMENTS = [(file, name) for file in FILES for name in queries.statements(file)]
each = pytest.mark.parametrize(("file", "name"), STATEMENTS, ids=lambda value: str(value))


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        if "demo" not in path.relative_to(SOURCE).parts:
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def calls() -> Iterator[tuple[str, str, ast.expr]]:
    """(text, query or fragment; the file; the expression for the name) of every use in the code."""
    for _, tree in modules():
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="queries"), attr="text" | "query" | "fragment" as how),
                    args=[ast.Constant(value=str(file)), name],
                ):
                    yield how, file, name


def written() -> set[str]:
    """Every string in the code; of an f-string its constant beginning with a star."""
    found = set()
    for _, tree in modules():
        for node in ast.walk(tree):
            match node:
                case ast.Constant(value=str(text)):
                    found.add(text)
                case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
                    found.add(f"{text}*")
    return found


WRITTEN = written()
FILLED = {
    (file, name.value if isinstance(name, ast.Constant) else "*")
    for how, file, name in calls()
    if how in ("query", "fragment")
}
PLAIN = {(file, name.value) for how, file, name in calls() if how == "text" and isinstance(name, ast.Constant)}


def bare(file: str, name: str) -> str:
    """A statement without comments and function bodies."""
    text = re.sub(r"--.*", "", queries.statements(file)[name])
    return re.sub(r"\$(\w*)\$.*?\$\1\$", "''", text, flags=re.DOTALL)


def test_the_code_reads_every_file() -> None:
    assert set(FILES) == {file for _, file, _ in calls()}


def test_names_are_unique_over_all_files() -> None:
    assert [name for name, count in Counter(name for _, name in STATEMENTS).items() if count > 1] == []


def test_every_statement_that_is_used_exists() -> None:
    missing = {use for use in PLAIN | FILLED if use[1] != "*" and use not in STATEMENTS}
    assert not missing
    # Names that come by way of a variable are looked for as strings; at least they must be some.
    assert {name for how, file, name in calls()}


def test_helpers_that_pass_a_name_on_pass_one_that_exists() -> None:
    for path, tree in modules():
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id="_one"), args=[_, ast.Constant(value=str(name)), *_]):
                    assert (path.stem, name) in STATEMENTS


@each
def test_every_statement_is_used(file: str, name: str) -> None:
    used = name in WRITTEN or any(text.endswith("*") and name.startswith(text[:-1]) and text[:-1] for text in WRITTEN)
    assert used


@each
def test_a_statement_says_something_and_ends(file: str, name: str) -> None:
    text = bare(file, name).strip()
    assert text
    assert "-- name" not in text
    assert text.count("(") == text.count(")")
    assert text.count("'") % 2 == 0
    assert text.count("{") == text.count("}")
    assert "\t" not in queries.statements(file)[name]


@each
def test_parameters_and_braces_are_well_formed(file: str, name: str) -> None:
    text = queries.statements(file)[name]
    if (file, name) in FILLED:
        fields = [field for _, field, _, _ in Formatter().parse(text) if field is not None]
        assert all(field.isidentifier() for field in fields)
        sql.SQL(queries.text(file, name)).format(**{field: sql.SQL("x") for field in fields})
    if "%(" in text:  # psycopg then reads every per cent sign
        assert not re.search(r"%(?!\(\w+\)s|%)", text.replace("%%", "")), "a per cent sign that is not doubled"
    elif (file, name) not in FILLED:
        assert "%%" not in text, "nothing halves it: it is run without parameters"


def test_values_are_never_put_between_quotes() -> None:
    for file, name in STATEMENTS:
        assert not re.search(r"'[^'\n]*(?<!\{)\{\w+\}[^'\n]*'", bare(file, name)), f"{file}.{name}"


DANGEROUS = re.compile(
    r"\b(LOCK\s+TABLE|DROP|TRUNCATE\s+TABLE|ALTER\s+TABLE|CREATE\s+TRIGGER|CREATE\s+INDEX|DELETE\s+FROM|FOR\s+UPDATE)\b"
)


@pytest.mark.parametrize(
    ("file", "name"),
    [s for s in STATEMENTS if DANGEROUS.search(bare(*s))],
    ids=lambda value: str(value),
)
def test_what_locks_or_destroys_says_why_it_may(file: str, name: str) -> None:
    assert re.search(r"^\s*-- \w", queries.statements(file)[name], re.MULTILINE)


def test_the_dangerous_ones_are_found() -> None:
    found = {s for s in STATEMENTS if DANGEROUS.search(bare(*s))}
    assert {
        ("capture", "lock_table"),
        ("capture", "capture_always"),
        ("control", "drop_control"),
        ("sync", "take_changes"),
        ("sync", "fold_changes"),
    } <= found
    assert not {file for file, _ in found} & {"catalog", "doctor", "plan", "scan"}, "these only read"


WRITES_THE_TABLE = {("recompute", "repair"), ("recompute", "undo")}
"""The statements that write rows of the application, each on condition of what it held."""
RESTORES_THE_TABLE = {("restore", name) for name in ("fill", "put_newest", "empty_rows", "fill_default")}
"""Those that fill a column which was dropped, on condition that nobody has filled it since."""
COPIES_BACK = {("copy_back", "put_back"), ("copy_back", "empty_again")}
"""Those of a rollback: of given keys alone, and only where the column holds something else."""


@each
def test_only_the_tools_own_objects_are_written(file: str, name: str) -> None:
    if (file, name) in WRITES_THE_TABLE:
        assert "pg_catalog.sha256" in bare(file, name)
        return
    if (file, name) in RESTORES_THE_TABLE:
        assert re.search(r"IS NULL|IS DISTINCT FROM", bare(file, name))
        return
    if (file, name) in COPIES_BACK:
        assert re.search(r"t\.\{key\}::text = k\.key\s+AND", bare(file, name))
        return
    for target in re.findall(r"\b(?:INSERT INTO|DELETE FROM|(?<!FOR )(?<!DO )UPDATE)\s+([\w.{]+)", bare(file, name)):
        assert target.startswith("cachemig.") or target in ("OF", "ON", "SET"), f"{file}.{name} writes {target}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(queries, "directory", lambda: tmp_path)
    queries.statements.cache_clear()
    yield tmp_path
    queries.statements.cache_clear()


def test_the_loader_splits_at_names_and_keeps_comments(folder: Path) -> None:
    (folder / "x.sql").write_text("-- About.\n\n-- name: one\n-- Why.\nSELECT 1;\n\n-- name: two\nSELECT {a};\n")
    assert queries.statements("x") == {"one": "-- Why.\nSELECT 1;", "two": "SELECT {a};"}
    assert queries.text("x", "one") == "-- Why.\nSELECT 1;"
    assert queries.query("x", "two", a=sql.Identifier('b"c')).as_string(None) == 'SELECT "b""c";'
    assert queries.fragment("x", "one").as_string(None) == "SELECT 1;"


def test_the_loader_refuses_a_name_given_twice(folder: Path) -> None:
    (folder / "x.sql").write_text("-- name: one\nSELECT 1;\n-- name: one\nSELECT 2;\n")
    with pytest.raises(ValueError, match="twice"):
        queries.statements("x")


def test_a_part_that_is_not_given_is_an_error(folder: Path) -> None:
    (folder / "x.sql").write_text("-- name: one\nSELECT {a};\n")
    with pytest.raises(KeyError):
        queries.query("x", "one")

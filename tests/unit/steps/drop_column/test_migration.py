"""Migration files: what is composed, without a server."""

from __future__ import annotations

import ast
import re
from datetime import UTC, datetime

import pytest

from cachemig.config import load
from cachemig.ladder import Phase
from cachemig.steps.drop_column.inspect import Column, Dependent, Effect, Inspection, lines, pattern
from cachemig.steps.drop_column.migration import FORMATS, Files, Format, as_migration, drop_files, statements

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SETTINGS = load({"table": "app.t", "column": "c"}, {}, None)


def seen(*dependents: Dependent, postgrest: bool = False) -> Inspection:
    column = Column("c", "jsonb", 'ALTER TABLE IF EXISTS "app"."t" ADD COLUMN IF NOT EXISTS "c" jsonb', (), ())
    return Inspection("app.t", (column,), (), (), dependents, (), "", (), 0, (), postgrest, (), 1, 2)


def written(format_: Format, **options: object) -> Files:
    return drop_files(SETTINGS, seen(), format_, soak_s=604800, at=AT, **options)  # type: ignore[arg-type]


def test_names_of_files() -> None:
    assert written("sql").name == "cachemig_drop_column_c_of_app_t.sql"
    assert written("sql").reverse_name == "cachemig_drop_column_c_of_app_t.reverse.sql"
    assert written("supabase").name == "20260102030405_cachemig_drop_column_c_of_app_t.sql"
    assert written("alembic").name == "cachemig_drop_column_c_of_app_t.py"
    assert written("alembic").reverse is None


def test_who_keeps_the_transaction() -> None:
    assert re.findall(r"^(BEGIN|COMMIT);$", written("sql").text, re.MULTILINE) == ["BEGIN", "COMMIT"]
    for format_ in ("supabase", "alembic"):
        assert not re.search(r"^(BEGIN|COMMIT);$", written(format_).text, re.MULTILINE)


def test_an_alembic_file_is_python_with_a_revision_of_its_own() -> None:
    text = written("alembic", down_revision="abc").text
    tree = ast.parse(text)
    assert {n.name for n in tree.body if isinstance(n, ast.FunctionDef)} == {"upgrade", "downgrade"}
    assert 'down_revision = "abc"' in text.replace("'", '"')
    one, two = (re.search(r'^revision = "(\w+)"', t, re.MULTILINE) for t in (text, written("alembic").text))
    assert one
    assert two
    assert one[1] == two[1], "the same file again has the same id"
    other = as_migration(["SELECT 1"], "alembic", "other", at=AT).text
    assert one[1] not in other


def test_a_soak_and_an_accepted_name_are_told_in_the_file() -> None:
    text = written("sql", accept=["f()"]).text
    assert "-- The soak is 7d; a verification is fresh for 1h." in text
    assert "f()" in text.split("DO $cachemig$")[0]


@pytest.mark.parametrize("format_", FORMATS)
def test_postgrest_is_told_where_it_is_used(format_: Format) -> None:
    text = drop_files(SETTINGS, seen(postgrest=True), format_, soak_s=1, at=AT).text
    assert text.count("NOTIFY pgrst, 'reload schema'") == (1 if format_ != "alembic" else 2)
    silent = drop_files(SETTINGS, seen(), format_, soak_s=1, at=AT).text
    assert ("NOTIFY" in silent) is (format_ == "supabase")
    assert ("NOTIFY" in "\n".join(statements(SETTINGS, seen()))) is False
    assert "NOTIFY" in "\n".join(statements(SETTINGS, seen(postgrest=True)))


def test_a_statement_with_dollar_quotes_is_quoted_by_another_tag() -> None:
    text = as_migration(["SELECT $statement$ x $statement$;"], "sql", "x", at=AT).text
    assert "EXECUTE $statement1$\nSELECT $statement$ x $statement$\n$statement1$;" in text


def test_phases_are_checked_and_recorded_both_ways() -> None:
    files = as_migration(
        ["SELECT 1"], "sql", "x", ["SELECT 2"], command="dual-write", start=Phase.IDLE, end=Phase.DUAL_WRITE, at=AT
    )
    assert "phase_now IS DISTINCT FROM 'idle'" in files.text
    assert "SET phase = 'dual-write'" in files.text
    assert files.reverse is not None
    assert "phase_now IS DISTINCT FROM 'dual-write'" in files.reverse
    assert "SET phase = 'idle'" in files.reverse
    assert as_migration(["SELECT 1"], "sql", "x", at=AT).reverse is None


def test_what_needs_an_index_is_made_again_after_it() -> None:
    def gone(sql: str) -> Dependent:
        return Dependent(Effect.VANISHES, "x", sql, "", sql)

    texts = [
        "ALTER TABLE a ADD CONSTRAINT f FOREIGN KEY (c) REFERENCES b (c)",
        "ALTER TABLE b ADD UNIQUE (c)",
        "CREATE INDEX i",
    ]
    found = seen(*map(gone, texts)).recreate
    assert found["after_data"] == ["ALTER TABLE b ADD UNIQUE (c)", "CREATE INDEX i", texts[0]]
    tail = drop_files(SETTINGS, seen(*map(gone, texts)), "sql", soak_s=1, at=AT).reverse or ""
    assert "--   CREATE INDEX i;" in tail


def test_words_are_found_and_parts_of_words_are_not() -> None:
    text = "a cache\ncached\nmy_cache\nNEW.Cache := 1\n'cache'"
    assert lines(text, ["cache"]) == ("1: a cache", "4: NEW.Cache := 1", "5: 'cache'")
    assert pattern(["a.b", "c"]) == r"(?<!\w)(a\.b|c)(?!\w)"
    assert lines("x" * 300 + " c", ["c"]) == ("1: " + "x" * 160,)

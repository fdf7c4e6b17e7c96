"""residue: every mention is found, in the database and in code, by name and line; and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cachemig.errors import ConfigError
from cachemig.steps.residue import Mention, residue
from tests.integration.conftest import Migrating
from tests.integration.dropping import dropped, freeze

OBJECTS = """
CREATE FUNCTION reader() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    -- only the cache
    RETURN (SELECT count(*) FROM sessions WHERE Cache IS NOT NULL);
END $$;
CREATE FUNCTION parsed() RETURNS SETOF jsonb LANGUAGE sql BEGIN ATOMIC SELECT cache FROM sessions; END;
CREATE FUNCTION fired() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.cache := '{}'; RETURN NEW; END $$;
CREATE TRIGGER a_trigger BEFORE UPDATE OF cache ON sessions FOR EACH ROW EXECUTE FUNCTION fired();
CREATE VIEW a_view AS SELECT cache FROM sessions;
CREATE MATERIALIZED VIEW a_matview AS SELECT cache FROM sessions;
CREATE RULE a_rule AS ON UPDATE TO sessions WHERE NEW.cache IS NULL DO ALSO NOTHING;
CREATE POLICY a_policy ON sessions USING (cache IS NOT NULL);
CREATE INDEX an_index ON sessions ((cache ->> 'a'));
ALTER TABLE sessions ADD CONSTRAINT a_check CHECK (cache IS DISTINCT FROM '1');
ALTER TABLE sessions ADD COLUMN status text GENERATED ALWAYS AS (cache ->> 'status') STORED;
CREATE STATISTICS a_statistics ON hits, (cache ->> 'a') FROM sessions;
CREATE PUBLICATION by_list FOR TABLE sessions (id, cache);
CREATE PUBLICATION by_filter FOR TABLE sessions WHERE (cache IS NOT NULL);
CREATE PUBLICATION of_everything FOR ALL TABLES;
COMMENT ON TABLE sessions IS E'Sessions.\\nTheir analytics are in the column cache.';
COMMENT ON COLUMN sessions.cache IS 'the cache itself says nothing new';
CREATE TABLE history (id int, cache jsonb);
CREATE SCHEMA cron;
CREATE TABLE cron.job (jobid bigint, schedule text, command text, database text);
INSERT INTO cron.job VALUES (7, '@daily', 'UPDATE sessions SET cache = NULL', current_database());
CREATE VIEW innocent AS SELECT id, file_hash AS cached_by FROM sessions;
"""


def named(found: tuple[Mention, ...]) -> set[tuple[str, str, int]]:
    return {(m.kind, m.name, m.line) for m in found}


def test_what_mentions_it_in_the_database_is_found_by_name_and_line(migrating: Migrating) -> None:
    assert not residue(migrating.settings).found
    migrating.execute(OBJECTS)
    found = residue(migrating.settings)
    assert named(found.database) == {
        ("function", "reader()", 3),
        ("function", "reader()", 4),
        ("function", "parsed()", 2),
        ("trigger function", "fired()", 1),
        ("trigger", "a_trigger on sessions", 1),
        ("view", "a_view", 1),
        ("materialised view", "a_matview", 1),
        ("rule", "a_rule on sessions", 3),
        ("policy", "a_policy on sessions", 1),
        ("index", "an_index", 1),
        ("constraint", "a_check on sessions", 1),
        ("generated column", "sessions.status", 1),
        ("statistics", "public.a_statistics", 1),
        ("publication", "by_list of public.sessions", 1),
        ("publication", "by_filter of public.sessions", 1),
        ("comment", "table public.sessions", 2),
        ("column of another table", "history.cache", 1),
        ("cron job", "cron job 7", 1),
    }
    assert found.still_there == ("cache",)
    assert found.found
    assert found.jobs_seen
    text = {m.name: m.text for m in found.database}
    assert text["table public.sessions"] == "Their analytics are in the column cache."


def test_leftovers_after_the_drop(migrating: Migrating) -> None:
    """A trigger function that was forgotten, and a field that was computed from the column."""
    freeze(migrating)
    assert residue(migrating.settings).own == ("cachemig_guard", "cachemig_guard_truncate")
    assert not residue(migrating.settings).found, "before the drop they are meant to be there"
    assert dropped(migrating).changed
    assert not residue(migrating.settings).found
    migrating.execute("""
        CREATE FUNCTION stale() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN NEW.hits := jsonb_array_length(NEW.cache); RETURN NEW; END $$;
        CREATE TRIGGER stale BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION stale();
        CREATE TRIGGER cachemig_left BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION stale();
    """)
    found = residue(migrating.settings)
    assert named(found.database) == {("trigger function", "stale()", 2)}
    assert found.own == ("cachemig_left",)
    assert found.still_there == ()


def test_code_is_searched_by_word_file_and_line(migrating: Migrating, tmp_path: Path) -> None:
    migrating.execute("ALTER TABLE sessions RENAME COLUMN cache TO analytics_cache")
    migrating.set(column="analytics_cache")
    tree = tmp_path / "app"
    files: dict[str, str | bytes] = {
        "api/sessions.py": "x = 1\nrow['analytics_cache'] = {}\nmy_analytics_cache_size = 2\n",
        "web/Session.tsx": "const a = row.analyticsCache;\nconst b = row.analytics_cache;\nanalyticsCached();\n",
        "web/old.js": "row.ANALYTICS_CACHE",
        "db/1_init.sql": "-- one\nALTER TABLE t ADD analytics_cache jsonb;\n",
        "db/latin.sql": b"-- \xe4\xf6\nSELECT analytics_cache;\n",
        "README.md": "analytics_cache",
        "node_modules/lib/index.js": "analytics_cache",
        ".git/hook.py": "analytics_cache",
        "env/pyvenv.cfg": "",
        "env/lib/x.py": "analytics_cache",
        "blob.py": b"\0\0analytics_cache",
        "empty.py": "",
    }
    for name, content in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tree / "again").symlink_to(tree / "api")
    (tree / "link.py").symlink_to(tree / "api" / "sessions.py")
    (tree / "large.sql").write_bytes(b"x" * (8 * 2**20 + 1))
    found = residue(migrating.settings, tree)
    assert [(m.kind, m.name, m.line, m.variant) for m in found.code] == [
        ("Python", "api/sessions.py", 2, False),
        ("SQL", "db/1_init.sql", 2, False),
        ("SQL", "db/latin.sql", 2, False),
        ("TypeScript", "web/Session.tsx", 1, True),
        ("TypeScript", "web/Session.tsx", 2, False),
        ("JavaScript", "web/old.js", 1, False),
    ]
    assert found.code[0].text == "row['analytics_cache'] = {}"
    assert found.files == 7
    assert found.not_read == ("large.sql",)


def test_related_columns_are_searched_too_and_a_tree_that_is_none_is_refused(
    migrating: Migrating, tmp_path: Path
) -> None:
    (tmp_path / "a.py").write_text("cache\nhits\n")
    assert [m.line for m in residue(migrating.settings, tmp_path, with_columns=("hits",)).code] == [1, 2]
    with pytest.raises(ConfigError, match="not a directory"):
        residue(migrating.settings, tmp_path / "a.py")
    if os.geteuid() != 0:
        (tmp_path / "a.py").chmod(0)
        assert residue(migrating.settings, tmp_path).not_read == ("a.py",)

"""What a rehearsal loads, and where: dumps of other servers, rows that are made up, servers marked as scratch."""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from redis import Redis

from cachemig import config
from cachemig.config import Settings
from cachemig.demo.load import load
from cachemig.errors import ConfigError, Refused
from cachemig.rehearsal import rows as making
from cachemig.rehearsal import schema as dumps
from cachemig.rehearsal.rehearse import Asked, rehearse
from cachemig.rehearsal.rows import Maker
from cachemig.rehearsal.scratch import MARK, servers, settings_as_environment
from cachemig.rehearsal.traffic import Traffic
from cachemig.steps import init
from cachemig.targets.open import open_target
from tests.conftest import OwnRedis

ROLE = f"web_{secrets.token_hex(4)}"  # roles are of the whole server
DUMP = f"""
\\restrict abc
SET statement_timeout = 0;
CREATE EXTENSION IF NOT EXISTS far_off WITH SCHEMA extensions;
COMMENT ON EXTENSION far_off IS 'of another server';
CREATE TYPE public.state AS ENUM ('new', 'old');
CREATE TABLE public.results (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner uuid DEFAULT auth.uid() NOT NULL,
    hash character varying(40) NOT NULL,
    cache jsonb,
    state public.state NOT NULL,
    kind text NOT NULL CHECK (kind IN ('walk', 'jump')),
    spot extensions.point_far_off,
    token text DEFAULT extensions.gen_token('x'),
    read_at timestamp with time zone
);
ALTER TABLE public.results OWNER TO {ROLE};
CREATE TRIGGER touched BEFORE UPDATE ON public.results FOR EACH ROW EXECUTE FUNCTION extensions.touch('read_at');
ALTER TABLE public.results ADD CONSTRAINT results_owner_fkey FOREIGN KEY (owner) REFERENCES auth.users(id);
ALTER TABLE public.results ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON public.results TO {ROLE} USING (owner = auth.uid());
ALTER PUBLICATION realtime ADD TABLE public.results;
CREATE VIEW public.nonsense AS SELECT nothing FROM public.results;
\\! touch {{marker}}
\\unrestrict abc
"""


def of(**values: str) -> Settings:
    flags = {"table": "results", "column": "cache", "key_column": "hash", "ttl_from": "read_at", "shape": "object"}
    return config.load(flags | values, {})


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "schema.sql"
    path.write_text(DUMP.format(marker=tmp_path / "was-here"))
    return path


@pytest.fixture
def loaded(database: str, dump: Path) -> str:
    dumps.load_dump(database, dump)
    return database


@pytest.fixture
def maker(loaded: str) -> Callable[..., Maker]:
    def make(skeletons: list[Any] | None = None, **values: str) -> Maker:
        with psycopg.connect(loaded, autocommit=True) as conn:
            settings = of(**values)
            return Maker(making.columns(conn, settings), settings, skeletons or [], random.Random(1))

    return make


# Schemas -------------------------------------------------------------------------------------------------------------


def test_a_dump_that_lacks_half_of_its_server_is_loaded_and_what_stands_in_is_said(
    database: str, dump: Path, tmp_path: Path
) -> None:
    try:
        notes = dumps.load_dump(database, dump)
        stood_in = {note.split(" is not here")[0] for note in notes if "is not here" in note}
        assert stood_in == {
            "extension far_off",
            "schema extensions",
            "schema auth",
            f"role {ROLE}",
            "publication realtime",
            "type extensions.point_far_off",
            "table auth.users",
            "function auth.uid()",
            "function extensions.gen_token(unknown)",
            "trigger function extensions.touch",
        }
        left_out = [note for note in notes if note.endswith(": left out") and "is not here" not in note]
        assert len(left_out) == 1
        assert 'column "nothing" does not exist' in left_out[0]
        assert not (tmp_path / "was-here").exists(), "a command of psql was obeyed"
        with psycopg.connect(database) as conn:
            row = conn.execute("SELECT relrowsecurity, relhastriggers FROM pg_class WHERE relname = 'results'")
            assert row.fetchone() == (True, True)
            assert conn.execute("SELECT polname FROM pg_policy").fetchall() == [("own",)]
    finally:
        with psycopg.connect(database, autocommit=True) as conn:
            conn.execute(f"DROP OWNED BY {ROLE}")
            conn.execute(f"DROP ROLE {ROLE}")


def test_the_schema_is_the_same_whatever_the_order_of_columns(loaded: str) -> None:
    before = dumps.lines_of(loaded)
    assert any("character varying(40)" in line for line in before)
    with psycopg.connect(loaded, autocommit=True) as conn:
        conn.execute("ALTER TABLE results DROP COLUMN cache")
        assert dumps.lines_of(loaded) != before
        conn.execute("ALTER TABLE results ADD COLUMN cache jsonb")
    assert dumps.lines_of(loaded) == before


@pytest.mark.parametrize(("content", "said"), [(None, "No such file"), (b"PGDMP\x01\x0e", "own format")])
def test_what_is_no_plain_sql_is_said_to_be_so(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "schema.dump"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        dumps.load_dump("host=nowhere", path)
    assert caught.value.hint


# Rows ----------------------------------------------------------------------------------------------------------------


def test_rows_are_made_up_that_the_table_takes(loaded: str, maker: Callable[..., Maker]) -> None:
    with psycopg.connect(loaded, autocommit=True) as conn:
        assert making.load_rows(conn, of(), maker(), [], 60) == 60
        kinds, keys, held, recent = (
            conn.execute(
                "SELECT array_agg(DISTINCT kind), count(DISTINCT hash), count(*) FILTER (WHERE cache <> '{}'),"
                " bool_and(read_at > now() - interval '1 day') FROM results"
            ).fetchone()
            or (None,) * 4
        )
        assert (keys, recent) == (60, True)
        assert set(kinds) <= {"walk", "jump"}
        assert 40 <= held < 60


def test_given_rows_are_taken_as_they_are_and_the_rest_is_made_up_in_their_shape(
    loaded: str, maker: Callable[..., Maker], tmp_path: Path
) -> None:
    sample = tmp_path / "rows.jsonl"
    value = {"name": "Jane Doe", "load": [12.25, -3], "note": None, "deep": {"at": "2026-01-02"}}
    sample.write_text("".join(json.dumps({"hash": f"key {n}", "cache": value}) + "\n" for n in range(5)))
    given = making.read_sample(sample)
    skeletons = making.skeletons(row["cache"] for row in given)
    assert "Jane" not in repr(skeletons)
    assert "12" not in repr(skeletons)
    with psycopg.connect(loaded, autocommit=True) as conn:
        assert making.load_rows(conn, of(), maker(skeletons), given, 30) == 30
        rows = [row[0] for row in conn.execute("SELECT cache FROM results WHERE hash LIKE 'key%'")]
        assert rows == [value] * 5
        made = [row[0] for row in conn.execute("SELECT cache FROM results WHERE hash NOT LIKE 'key%'")]
        for one in filter(None, made):
            assert list(one) == sorted(value, key=lambda name: (len(name), name))
            assert (len(one["name"]), one["name"][4], len(one["load"]), one["note"]) == (8, " ", 2, None)
            assert one["name"] != "Jane Doe"
            assert isinstance(one["load"][0], float)
            assert isinstance(one["load"][1], int)


def test_rows_of_a_csv_file_and_those_that_do_not_fit(loaded: str, maker: Callable[..., Maker], tmp_path: Path) -> None:
    sample = tmp_path / "rows.csv"
    sample.write_text('hash,cache,kind\na,"{""a"": 1}",jump\nb,,walk\n')
    with psycopg.connect(loaded, autocommit=True) as conn:
        assert making.load_rows(conn, of(), maker(), making.read_sample(sample), 2) == 2
        found = conn.execute("SELECT hash, cache, kind FROM results ORDER BY hash").fetchall()
        assert found == [("a", {"a": 1}, "jump"), ("b", None, "walk")]
        with pytest.raises(ConfigError, match="columns that the table has not: other"):
            making.load_rows(conn, of(), maker(), [{"hash": "c", "other": "1"}], 1)
    sample.with_suffix(".jsonl").write_text("[1]\n")
    with pytest.raises(ConfigError, match=r"neither CSV .* nor one JSON object a line"):
        making.read_sample(sample.with_suffix(".jsonl"))


def test_a_table_that_takes_no_made_up_row_asks_for_real_ones(loaded: str, maker: Callable[..., Maker]) -> None:
    with psycopg.connect(loaded, autocommit=True) as conn:
        conn.execute("ALTER TABLE results ADD CHECK (length(hash) = 3)")
        with pytest.raises(Refused, match="no row could be made up") as caught:
            making.load_rows(conn, of(), maker(), [], 1)
    assert "--data" in (caught.value.hint or "")


def test_observing_keeps_no_value(loaded: str) -> None:
    with psycopg.connect(loaded, autocommit=True) as conn:
        conn.execute("SET session_replication_role = replica")
        conn.execute(
            "INSERT INTO results (owner, hash, cache, state, kind) VALUES (gen_random_uuid(), 'k',"
            """ '{"name": "Jane Doe", "weight": 81.5}', 'new', 'walk')"""
        )
        found = making.observe(conn, of())
    assert len(found) == 1
    assert "Jane" not in repr(found)
    assert "81" not in repr(found)


def test_traffic_leaves_out_what_the_table_refuses(loaded: str, maker: Callable[..., Maker]) -> None:
    with psycopg.connect(loaded, autocommit=True) as conn:
        made = maker()
        making.load_rows(conn, of(), made, [], 30)
        conn.execute("CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'kept for ever'; END$$")
        conn.execute("CREATE TRIGGER no BEFORE DELETE ON results FOR EACH ROW EXECUTE FUNCTION no()")
        with Traffic(loaded, of(), made, rate_per_s=500) as traffic:
            assert set(traffic.refused) == {"delete", "insert"}  # the owner's table is empty: a foreign key
            assert traffic.refused["delete"] == "kept for ever"
            before = conn.execute("SELECT count(*) FROM results").fetchone()
            time.sleep(0.5)
        counts = traffic.stop()
        assert (counts.changes > 20, counts.failed, counts.last_error) == (True, 0, None)
        assert conn.execute("SELECT count(*) FROM results").fetchone() == before


# Servers -------------------------------------------------------------------------------------------------------------


def test_a_server_that_is_not_marked_as_scratch_is_refused(database: str, own_redis: OwnRedis, tmp_path: Path) -> None:
    redis = own_redis()
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    with psycopg.connect(database, autocommit=True) as conn, Redis.from_url(redis.url) as client:
        with pytest.raises(Refused, match="not marked as scratch") as caught, servers(tmp_path, database, redis.url):
            pass
        conn.execute((caught.value.hint or "").split(": ", 1)[1])
        with pytest.raises(Refused, match="this Redis is not marked"), servers(tmp_path, database, redis.url):
            pass
        client.set(MARK, 1)
        with servers(tmp_path, database, redis.url) as found:
            assert (found.dsn, found.redis_url, found.own) == (database, redis.url, None)
            assert found.versions.keys() == {"postgres", "redis"}
        settings = config.load({"shape": "object"}, {"CACHEMIG_DSN": database, "CACHEMIG_REDIS_URL": redis.url})
        load(conn, 50, 1)
        with open_target(settings, {}) as target:
            init.init(settings, target, tmp_path)
        with pytest.raises(Refused, match=f"{name} holds a migration"), servers(tmp_path, database, None):
            pass


def test_nothing_of_the_real_servers_goes_along() -> None:
    settings = config.load(
        {"table": "t", "ttl": "2d", "gentle": "on", "codec": "zstd"},
        {
            "CACHEMIG_DSN": "host=production password=x",
            "CACHEMIG_REDIS_URL": "redis://:secret@production",
            "CACHEMIG_READ_DSN": "host=standby",
            "CACHEMIG_RECORDINGS_LOCATION": "s3://recordings/{file_path}",
            "CACHEMIG_PAUSE_WINDOWS": "mon 08:00-18:00",
        },
    )
    passed_on = settings_as_environment(settings)
    assert not {"production", "secret", "standby", "recordings"} & set(" ".join(passed_on.values()).split())
    assert "CACHEMIG_DSN" not in passed_on
    again = config.load({}, passed_on)
    assert {f.name for f in config.fields() if getattr(again, f.name) != getattr(settings, f.name)} <= {
        "dsn", "redis_url", "read_dsn", "recordings_location",
    }  # fmt: skip


def test_without_a_schema_it_says_how_to_get_one() -> None:
    with pytest.raises(ConfigError, match="which schema") as caught:
        rehearse(of(), Asked(), print)
    assert "pg_dump --schema-only" in (caught.value.hint or "")

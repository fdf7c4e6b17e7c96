"""drop-column's inspection: every kind of dependent is shown with what to do, and Postgres agrees with each."""

from __future__ import annotations

import re

import psycopg
import pytest
from psycopg import sql

from cachemig.config import load
from cachemig.errors import TableUnfit
from cachemig.steps.drop_column import Dependent, Effect, Inspection, inspection
from tests.conftest import OwnPostgres
from tests.integration.conftest import TABLE, Migrating
from tests.integration.dropping import has_column, until


def looked(migrating: Migrating, *with_columns: str) -> Inspection:
    return inspection(migrating.settings, with_columns=with_columns)


def names(found: Inspection, effect: Effect) -> list[tuple[str, str]]:
    return [(d.kind, d.name) for d in found.of(effect)]


def one(found: Inspection, kind: str) -> Dependent:
    (dependent,) = [d for d in found.dependents if d.kind == kind]
    return dependent


def refused(migrating: Migrating, table: str = "sessions") -> bool:
    """Postgres itself will not drop the column."""
    try:
        migrating.execute(f"ALTER TABLE {table} DROP COLUMN cache")
    except psycopg.errors.DependentObjectsStillExist:
        return True
    except psycopg.errors.InvalidTableDefinition:  # a parent's column, a partition key
        return True
    return False


# What blocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("create", "kind", "name"),
    [
        ("CREATE VIEW v AS SELECT id, cache FROM sessions", "view", "public.v"),
        ("CREATE VIEW v AS SELECT s FROM sessions AS s WHERE cache IS NOT NULL", "view", "public.v"),
        ("CREATE MATERIALIZED VIEW m AS SELECT cache ->> 'a' AS a FROM sessions", "materialised view", "public.m"),
        (
            "CREATE RULE r AS ON UPDATE TO sessions WHERE NEW.cache IS NULL DO ALSO NOTHING",
            "rule",
            "r on public.sessions",
        ),
        ("CREATE POLICY p ON sessions USING (cache IS NOT NULL)", "policy", "p on public.sessions"),
        (
            "ALTER TABLE sessions ADD COLUMN g text GENERATED ALWAYS AS (cache ->> 'a') STORED",
            "generated column",
            "public.sessions.g",
        ),
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;"
            "CREATE TRIGGER t BEFORE UPDATE OF cache ON sessions FOR EACH ROW EXECUTE FUNCTION f()",
            "trigger",
            "t on public.sessions",
        ),
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;"
            "CREATE TRIGGER w BEFORE INSERT ON sessions FOR EACH ROW WHEN (NEW.cache IS NULL) EXECUTE FUNCTION f()",
            "trigger",
            "w on public.sessions",
        ),
        (
            "CREATE FUNCTION b() RETURNS SETOF jsonb LANGUAGE sql BEGIN ATOMIC SELECT cache FROM sessions; END",
            "function",
            "public.b()",
        ),
        (
            "CREATE PUBLICATION p FOR TABLE sessions (id, cache)",
            "publication",
            "public.sessions in publication p",
        ),
        (
            "CREATE PUBLICATION p FOR TABLE sessions WHERE (cache IS NOT NULL)",
            "publication",
            "public.sessions in publication p",
        ),
        (
            "ALTER TABLE sessions ADD UNIQUE (cache); CREATE TABLE other (c jsonb REFERENCES sessions (cache))",
            "foreign key",
            "other_c_fkey on public.other",
        ),
    ],
    ids=lambda value: str(value).replace(" ", "-")[:30],
)
def test_what_blocks_is_named_with_what_to_do(migrating: Migrating, create: str, kind: str, name: str) -> None:
    migrating.execute(create)
    found = looked(migrating)
    assert (kind, name) in names(found, Effect.BLOCKS)
    assert len(found.of(Effect.BLOCKS)) == 1
    assert one(found, kind).what_to_do
    assert [d.name for d in found.in_the_way()] == [name]
    assert [d.name for d in found.in_the_way({name})] == [name], "what Postgres refuses cannot be accepted"
    assert refused(migrating)


def test_what_has_to_do_with_other_columns_is_not_named(migrating: Migrating) -> None:
    migrating.execute("""
        CREATE VIEW v AS SELECT id, hits FROM sessions;
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
        CREATE TRIGGER t BEFORE UPDATE OF hits ON sessions FOR EACH ROW EXECUTE FUNCTION f();
        CREATE FUNCTION other() RETURNS text LANGUAGE sql AS $$ SELECT 'a cached_value of cache2' $$;
        CREATE INDEX ON sessions (hits);
        ALTER TABLE sessions ALTER cache SET NOT NULL;
    """)
    found = looked(migrating)
    assert found.dependents == ()
    assert [d.name for d in looked(migrating, "hits").in_the_way()] == ["t on public.sessions", "public.v"]
    assert not refused(migrating)


def test_the_tools_own_triggers_are_not_in_the_way(migrating: Migrating) -> None:
    migrating.begin()
    assert looked(migrating).in_the_way() == ()


def test_the_parent_that_a_partition_has_the_column_from_blocks(migrating: Migrating) -> None:
    migrating.execute("""
        CREATE TABLE parted (LIKE sessions INCLUDING DEFAULTS) PARTITION BY LIST (hits);
        CREATE TABLE part PARTITION OF parted FOR VALUES IN (0);
    """)
    migrating.set(table="part")
    assert names(looked(migrating), Effect.BLOCKS) == [("parent table", "parted")]
    assert refused(migrating, "part")


@pytest.mark.parametrize("key", ["cache", "(cache ->> 'a')"])
def test_a_column_of_the_partition_key_cannot_be_dropped(migrating: Migrating, key: str) -> None:
    migrating.execute(f"CREATE TABLE parted (file_hash text, cache jsonb) PARTITION BY HASH ({key})")
    migrating.set(table="parted")
    assert names(looked(migrating), Effect.BLOCKS) == [("partition key", "parted")]
    assert refused(migrating, "parted")


def test_a_view_of_a_partition_blocks(migrating: Migrating) -> None:
    migrating.execute("""
        CREATE TABLE parted (LIKE sessions INCLUDING DEFAULTS) PARTITION BY LIST (hits);
        CREATE TABLE part PARTITION OF parted FOR VALUES IN (0);
        CREATE VIEW v AS SELECT cache FROM part;
    """)
    migrating.set(table="parted")
    found = looked(migrating)
    assert names(found, Effect.BLOCKS) == [("view", "public.v")]
    assert found.children == ("part",)
    assert refused(migrating, "parted")


def test_a_child_loses_the_column_unless_it_defines_it_itself(migrating: Migrating) -> None:
    migrating.execute("""
        CREATE TABLE heir () INHERITS (sessions);
        CREATE TABLE owner (cache jsonb) INHERITS (sessions);
        CREATE TABLE grandchild () INHERITS (heir);
        CREATE VIEW of_heir AS SELECT cache FROM heir;
        CREATE VIEW of_owner AS SELECT cache FROM owner;
    """)
    found = looked(migrating)
    assert found.children == ("heir", "grandchild")
    assert names(found, Effect.STAYS) == [("child table", "owner.cache")]
    assert names(found, Effect.BLOCKS) == [("view", "public.of_heir")]
    migrating.execute("DROP VIEW of_heir")
    assert looked(migrating).in_the_way() == ()
    migrating.execute("ALTER TABLE sessions DROP COLUMN cache")
    assert [has_column(migrating, t) for t in ("heir", "grandchild", "owner")] == [False, False, True]


# What vanishes -----------------------------------------------------------------------------------------------------

VANISHING = """
CREATE INDEX whole ON sessions USING gin (cache);
CREATE INDEX expression ON sessions ((cache ->> 'a'));
CREATE UNIQUE INDEX predicate ON sessions (file_hash) WHERE cache IS NOT NULL;
CREATE INDEX included ON sessions (file_hash) INCLUDE (cache);
ALTER TABLE sessions ADD CONSTRAINT a_check CHECK (cache IS DISTINCT FROM '1' AND hits >= 0);
ALTER TABLE sessions ADD CONSTRAINT a_unique UNIQUE (file_hash, cache);
CREATE STATISTICS a_statistics ON hits, (cache ->> 'a') FROM sessions;
ALTER TABLE sessions ALTER cache SET NOT NULL, ALTER cache SET STORAGE EXTERNAL, ALTER cache SET STATISTICS 17;
ALTER TABLE sessions ALTER cache SET (n_distinct = 5);
COMMENT ON COLUMN sessions.cache IS 'it''s 100 % a cache';
GRANT SELECT (cache), UPDATE (cache) ON sessions TO pg_monitor WITH GRANT OPTION;
"""

PICTURE = """
SELECT 'index ' || pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 'sessions'::regclass
UNION ALL SELECT 'constraint ' || conname || pg_get_constraintdef(oid) FROM pg_constraint
    WHERE conrelid = 'sessions'::regclass AND contype <> 'n'
UNION ALL SELECT 'statistics ' || pg_get_statisticsobjdef(oid) FROM pg_statistic_ext
UNION ALL SELECT concat_ws('/', 'column', format_type(atttypid, atttypmod), attnotnull, attstorage, attstattarget,
        attoptions, attacl, col_description(attrelid, attnum), (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef
        WHERE adrelid = attrelid AND adnum = attnum))
    FROM pg_attribute WHERE attrelid = 'sessions'::regclass AND attname = 'cache'
ORDER BY 1
"""


def test_what_vanishes_is_named_and_its_sql_makes_it_again(migrating: Migrating) -> None:
    migrating.execute(VANISHING)
    before = migrating.execute(PICTURE)
    found = looked(migrating)
    assert found.of(Effect.BLOCKS) == ()
    assert names(found, Effect.VANISHES) == [
        ("index", "public.expression"),
        ("index", "public.included"),
        ("index", "public.predicate"),
        ("index", "public.whole"),
        ("statistics", "public.a_statistics"),
        ("constraint", "a_check on public.sessions"),
        ("constraint", "a_unique on public.sessions"),
    ]
    assert all(d.what_to_do and d.recreate for d in found.of(Effect.VANISHES))
    assert found.in_the_way() == ()
    promise = {d.name for d in found.dependents if "unique" in d.what_to_do}
    assert promise == {"public.predicate", "a_unique on public.sessions"}
    migrating.execute("ALTER TABLE sessions DROP COLUMN cache")
    gone = migrating.execute(PICTURE)
    assert len(gone) == len(before) - 9  # 4 indexes and that of a_unique, 2 constraints, statistics, the column
    for statement in found.recreate["column"]:
        migrating.execute(statement)
    migrating.execute("UPDATE sessions SET cache = '{}'")
    for statement in found.recreate["after_data"]:
        migrating.execute(statement)
    assert migrating.execute(PICTURE) == before


def test_what_vanishes_from_partitions_comes_back_with_the_parents(migrating: Migrating) -> None:
    migrating.execute("""
        CREATE TABLE parted (id int, file_hash text, cache jsonb, hits int) PARTITION BY LIST (hits);
        CREATE TABLE part PARTITION OF parted FOR VALUES IN (0);
        CREATE INDEX of_all ON parted ((cache ->> 'a'));
        CREATE INDEX of_one ON part ((cache ->> 'b'));
        ALTER TABLE parted ADD CONSTRAINT a_check CHECK (cache IS DISTINCT FROM '1');
    """)
    migrating.set(table="parted", order_by="", ttl="0")
    found = looked(migrating)
    assert [d.name for d in found.of(Effect.VANISHES)] == [
        "public.of_all",
        "public.of_one",
        "a_check on public.parted",
    ]
    indexes = "SELECT count(*) FROM pg_index WHERE indrelid IN ('parted'::regclass, 'part'::regclass)"
    assert migrating.execute(indexes) == [(3,)]
    migrating.execute("ALTER TABLE parted DROP COLUMN cache")
    assert migrating.execute(indexes) == [(0,)]
    for statement in (*found.recreate["column"], *found.recreate["after_data"]):
        migrating.execute(statement)
    assert migrating.execute(indexes) == [(3,)]
    assert has_column(migrating, "part")


def test_a_primary_key_a_replica_identity_and_a_sequence_say_what_goes_with_them(migrating: Migrating) -> None:
    migrating.execute("""
        CREATE TABLE keyed (file_hash text NOT NULL, cache jsonb NOT NULL, n int, PRIMARY KEY (file_hash, cache));
        CREATE UNIQUE INDEX identity ON keyed (cache);
        ALTER TABLE keyed REPLICA IDENTITY USING INDEX identity;
        CREATE SEQUENCE owned OWNED BY keyed.cache;
    """)
    migrating.set(table="keyed", order_by="", ttl="0")
    found = looked(migrating)
    assert "primary key" in one(found, "constraint").what_to_do
    assert "replica identity" in one(found, "index").what_to_do
    assert one(found, "sequence").recreate is None
    assert found.in_the_way() == ()
    migrating.execute("ALTER TABLE keyed DROP COLUMN cache")
    assert migrating.execute("SELECT to_regclass('owned')") == [(None,)]


# What only names it ------------------------------------------------------------------------------------------------


def test_texts_of_functions_triggers_and_jobs_that_mention_it_break_later(migrating: Migrating) -> None:
    migrating.execute("""
        CREATE FUNCTION reader() RETURNS bigint LANGUAGE plpgsql AS $$
        BEGIN
            RETURN (SELECT count(*) FROM sessions WHERE cache IS NOT NULL);
        END $$;
        CREATE FUNCTION fired() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.hits := CASE WHEN NEW.cache IS NULL THEN 0 ELSE 1 END; RETURN NEW;
        END $$;
        CREATE TRIGGER t BEFORE INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION fired();
        CREATE SCHEMA cron;
        CREATE TABLE cron.job (jobid bigint, schedule text, command text, database text, username text);
        INSERT INTO cron.job VALUES (1, '* * * * *', 'UPDATE sessions SET cache = NULL', current_database(), 'x'),
            (2, '* * * * *', 'SELECT 1', current_database(), 'x'),
            (3, '* * * * *', 'UPDATE sessions SET cache = NULL', 'another', 'x');
    """)
    found = looked(migrating)
    assert names(found, Effect.BREAKS) == [
        ("trigger function", "fired()"),
        ("function text", "reader()"),
        ("cron job", "cron job 1"),
    ]
    assert one(found, "function text").lines == ("3: RETURN (SELECT count(*) FROM sessions WHERE cache IS NOT NULL);",)
    assert one(found, "trigger function").what_to_do.startswith("called by t:")
    assert [d.name for d in found.in_the_way({"reader()", "cron job 1"})] == ["fired()"]
    assert not refused(migrating), "Postgres does not look into texts"
    with pytest.raises(psycopg.errors.UndefinedColumn):
        migrating.execute("INSERT INTO sessions (file_hash) VALUES ('a')")
    with pytest.raises(psycopg.errors.UndefinedColumn):
        migrating.execute("SELECT reader()")


def test_pg_stat_statements_tells_who_still_uses_it(own_postgres: OwnPostgres) -> None:
    server = own_postgres({"shared_preload_libraries": "pg_stat_statements", "compute_query_id": "on"})
    settings = load(
        {"table": "sessions", "column": "cache", "ttl_from": "seen_at"}, {"CACHEMIG_DSN": server.dsn()}, None
    )
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(TABLE)
        assert "not installed" in inspection(settings).statements_seen
        conn.execute("CREATE EXTENSION pg_stat_statements")
        for _ in range(3):
            conn.execute("SELECT id, cache FROM sessions WHERE file_hash = 'secret value'")
        conn.execute("SELECT s.* FROM public.sessions AS s WHERE id = 1")
        conn.execute("SELECT count(*) FROM sessions")
        conn.execute("SELECT hits FROM sessions")
        conn.execute("INSERT INTO sessions OVERRIDING SYSTEM VALUE SELECT * FROM sessions WHERE false")
        with psycopg.connect(server.dsn(), autocommit=True) as idle:
            idle.execute("SELECT cache FROM sessions")
            found = {s.text: s for s in inspection(settings).statements}
    whys = {text: s.why for text, s in found.items()}
    assert whys == {
        "SELECT id, cache FROM sessions WHERE file_hash = $1": "names it",
        "SELECT cache FROM sessions": "names it",
        "SELECT s.* FROM public.sessions AS s WHERE id = $1": "reads all columns",
        "INSERT INTO sessions OVERRIDING SYSTEM VALUE SELECT * FROM sessions WHERE $1": (
            "INSERT without a list of columns"
        ),
    }
    assert found["SELECT id, cache FROM sessions WHERE file_hash = $1"].calls == 3
    assert found["SELECT cache FROM sessions"].last_call is not None
    assert found["SELECT id, cache FROM sessions WHERE file_hash = $1"].last_call is None


def test_what_is_called_while_it_watches_is_told_from_what_once_was(own_postgres: OwnPostgres) -> None:
    server = own_postgres({"shared_preload_libraries": "pg_stat_statements"})
    settings = load(
        {"table": "sessions", "column": "cache", "ttl_from": "seen_at"}, {"CACHEMIG_DSN": server.dsn()}, None
    )
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(TABLE)
        conn.execute("CREATE EXTENSION pg_stat_statements")
        conn.execute("SELECT cache FROM sessions WHERE id = 1")
        conn.execute("SELECT cache FROM sessions WHERE hits = 1")

        class Meanwhile:
            requested = False

            def wait(self, seconds: float) -> None:
                conn.execute("SELECT cache FROM sessions WHERE id = 2")

        found = inspection(settings, stop=Meanwhile(), watch_s=0.1).statements  # type: ignore[arg-type]  # calls meanwhile
    assert {(s.text.rpartition(" WHERE ")[2], s.calls, s.calls_meanwhile) for s in found} == {
        ("id = $1", 2, 1),
        ("hits = $1", 1, 0),
    }


# Who would notice --------------------------------------------------------------------------------------------------


def test_whoever_holds_the_table_is_named_and_no_value_is_shown(migrating: Migrating) -> None:
    with psycopg.connect(migrating.dsn, application_name="reporter") as reader:
        reader.execute("SELECT 'a secret', count(*) FROM sessions")
        (session,) = looked(migrating).sessions
        assert session.lock == "AccessShareLock"
        assert re.fullmatch(
            r"pid \d+ \(postgres, reporter, idle in transaction, SELECT, in a transaction for \d+ s\)", session.who
        )
        reader.rollback()
    assert looked(migrating).sessions == ()


def test_prepared_statements_nobody_can_see_are_told(migrating: Migrating) -> None:
    """SELECT * in a prepared statement breaks; one that names its columns does not."""
    found = looked(migrating)
    assert found.connected >= 1  # the test's own
    assert any("cached plan must not change result type" in note for note in found.notes)
    migrating.put("a", {"a": 1})
    migrating.execute("PREPARE everything AS SELECT * FROM sessions; PREPARE by_name AS SELECT id FROM sessions")
    migrating.execute("EXECUTE everything")
    migrating.execute("EXECUTE by_name")
    with psycopg.connect(migrating.dsn, autocommit=True) as other:
        other.execute("ALTER TABLE sessions DROP COLUMN cache")
    assert migrating.execute("EXECUTE by_name")
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="cached plan must not change result type"):
        migrating.execute("EXECUTE everything")


def test_a_logical_subscriber_and_what_happens_to_it(own_postgres: OwnPostgres) -> None:
    """On the publisher first: rows go on arriving. On the subscriber first: its apply worker stops."""
    publisher = own_postgres({"wal_level": "logical"})
    subscriber = own_postgres({"wal_level": "logical"})
    flags: dict[str, str | None] = {"table": "sessions", "column": "cache", "ttl_from": "seen_at"}
    with (
        psycopg.connect(publisher.dsn(), autocommit=True) as source,
        psycopg.connect(subscriber.dsn(), autocommit=True) as copy,
    ):
        for conn in (source, copy):
            conn.execute(TABLE)
        source.execute("CREATE PUBLICATION everything FOR TABLE sessions")
        copy.execute(
            sql.SQL("CREATE SUBSCRIPTION fed CONNECTION {} PUBLICATION everything").format(sql.Literal(publisher.dsn()))
        )
        source.execute("INSERT INTO sessions (file_hash) VALUES ('before')")
        until(lambda: copy.execute("SELECT FROM sessions WHERE file_hash = 'before'").rowcount)
        of_publisher = inspection(load(flags, {"CACHEMIG_DSN": publisher.dsn()}, None)).observers
        of_subscriber = inspection(load(flags, {"CACHEMIG_DSN": subscriber.dsn()}, None)).observers
        assert [(o.kind, o.name) for o in of_publisher] == [
            ("publication", "everything"),
            ("logical slot", "fed (pgoutput)"),
        ]
        assert [(o.kind, o.name) for o in of_subscriber] == [("subscription", "fed")]
        assert all(o.what_to_do for o in (*of_publisher, *of_subscriber))
        source.execute("ALTER TABLE sessions DROP COLUMN cache")
        source.execute("INSERT INTO sessions (file_hash) VALUES ('after')")
        until(lambda: copy.execute("SELECT FROM sessions WHERE file_hash = 'after'").rowcount)
        copy.execute("ALTER TABLE sessions DROP COLUMN hits")  # a column that is still published
        source.execute("INSERT INTO sessions (file_hash) VALUES ('late')")
        until(lambda: "missing replicated column" in subscriber.log.read_text())
        copy.execute("ALTER SUBSCRIPTION fed DISABLE; ALTER SUBSCRIPTION fed SET (slot_name = NONE)")
        copy.execute("DROP SUBSCRIPTION fed")


def test_postgrest_and_event_triggers_are_noticed(own_postgres: OwnPostgres) -> None:
    server = own_postgres()
    settings = load(
        {"table": "sessions", "column": "cache", "ttl_from": "seen_at"}, {"CACHEMIG_DSN": server.dsn()}, None
    )
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(TABLE)
        assert not inspection(settings).postgrest
        conn.execute("""
            CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN NOTIFY pgrst; END $$;
            CREATE EVENT TRIGGER pgrst_ddl_watch ON ddl_command_end EXECUTE FUNCTION watch();
        """)
        found = inspection(settings)
        assert found.postgrest
        assert any("pgrst_ddl_watch" in note for note in found.notes)
        conn.execute("DROP EVENT TRIGGER pgrst_ddl_watch; CREATE ROLE authenticator")
        assert inspection(settings).postgrest


# Names -------------------------------------------------------------------------------------------------------------


def test_odd_names_are_found_and_quoted(migrating: Migrating) -> None:
    migrating.execute("""
        CREATE SCHEMA "Odd %"; CREATE TABLE "Odd %"."T a" (file_hash text, "c (x)%" jsonb);
        CREATE VIEW v AS SELECT "c (x)%" FROM "Odd %"."T a";
        CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT 'c (x)% and more' $$;
    """)
    migrating.set(table="Odd %.T a", column="c (x)%", order_by="", ttl="0")
    found = looked(migrating)
    assert names(found, Effect.BLOCKS) == [("view", "public.v")]
    assert names(found, Effect.BREAKS) == [("function text", "f()")]
    migrating.execute('DROP VIEW v; ALTER TABLE "Odd %"."T a" DROP COLUMN "c (x)%"')
    for statement in found.recreate["column"]:
        migrating.execute(statement)
    assert has_column(migrating, '"Odd %"."T a"', "c (x)%")


def test_the_key_is_never_dropped_with_it_and_a_column_that_is_gone_is_told(migrating: Migrating) -> None:
    with pytest.raises(TableUnfit, match="file_hash"):
        looked(migrating, "file_hash")
    migrating.execute("ALTER TABLE sessions DROP COLUMN cache")
    found = looked(migrating, "hits", "nothing")
    assert [c.name for c in found.columns] == ["hits"]
    assert found.gone == ("cache", "nothing")
    with pytest.raises(TableUnfit, match="does not exist"):
        inspection(migrating.set(table="nowhere"))


def test_a_standby_is_named(own_postgres: OwnPostgres) -> None:
    """One that has asked for a walsender and nothing yet: enough to stand in pg_stat_replication."""
    server = own_postgres()
    settings = load(
        {"table": "sessions", "column": "cache", "ttl_from": "seen_at"}, {"CACHEMIG_DSN": server.dsn()}, None
    )
    with (
        psycopg.connect(server.dsn(), autocommit=True) as conn,
        psycopg.connect(server.dsn(), autocommit=True, replication="true", application_name="replica 1"),
    ):
        conn.execute(TABLE)
        (standby,) = inspection(settings).observers
    assert (standby.kind, standby.name) == ("standby", "replica 1 (startup, async)")
    assert "max_standby_streaming_delay" in standby.what_to_do

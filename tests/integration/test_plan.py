"""plan: figures are right, nothing is changed, and SELECT on the table is enough."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cachemig.errors import PrivilegeMissing, RowsHidden
from cachemig.steps import plan as steps_plan
from cachemig.steps.plan import Plan, plan
from cachemig.targets.redis import RedisTarget
from tests.conftest import OwnRedis
from tests.integration.conftest import Migrating

MIXED = """
INSERT INTO sessions (file_hash, cache, seen_at) VALUES
    ('a', '{"a": 1}', now()), ('b', '{"b": 22}', NULL),
    ('shared', '{"old": 1}', now()), ('shared', '{"new": 333}', now()), ('shared', '{}', now()),
    ('old', '{"c": 1}', now() - interval '60 days'),
    ('twice', '"{\\"d\\": 1}"', now()), ('list', '[1, 2]', now()),
    ('empty', '{}', now()), ('null', NULL, now()), ('json null', 'null', now()),
    (NULL, '{"lost": 1}', now()), (NULL, '{}', now())
"""


def test_figures_of_a_small_table_are_exact(migrating: Migrating) -> None:
    migrating.execute(MIXED)
    found = plan(migrating.settings, migrating.target)
    assert (found.rows, found.rows_estimated, found.sampled_rows) == (13, False, None)
    assert found.empty_rows == 5
    assert found.keyless_rows == 1
    assert (found.duplicate_keys, found.rows_beyond_winner) == (1, 1)
    assert found.corrupt == {"double-encoded": 1, "not-an-object": 1}
    assert found.expired_rows == 1
    assert found.entries == 3  # a, b, shared
    texts = sorted(map(len, ['{"a": 1}', '{"b": 22}', '{"old": 1}', '{"new": 333}', '{"c": 1}', r'"{\"d\": 1}"',
                             "[1, 2]", '{"lost": 1}']))  # fmt: skip
    assert found.sizes == steps_plan.Sizes(texts[3], texts[-1], texts[-1], texts[-1], sum(texts))
    names = sum(len(f"{migrating.prefix}{key}") for key in ("a", "b", "shared"))
    assert found.redis_bytes == len('{"a": 1}{"b": 22}{"new": 333}') + names + 3 * 120
    assert found.redis_free_bytes
    assert found.redis_error is None
    assert found.mb_per_s
    assert found.seconds is not None
    assert json.loads(json.dumps(asdict(found)))["rows"] == 13


def test_the_winner_decides_what_becomes_of_a_key(migrating: Migrating) -> None:
    migrating.execute("INSERT INTO sessions (file_hash, cache) VALUES ('k', '{\"sound\": 1}')")
    migrating.execute("INSERT INTO sessions (file_hash, cache) VALUES ('k', '[\"newer and corrupt\"]')")
    found = plan(migrating.settings, None)
    assert (found.entries, found.corrupt) == (0, {"not-an-object": 1})


def test_what_it_foretells_is_what_backfill_does(migrating: Migrating) -> None:
    migrating.execute(MIXED)
    found = plan(migrating.settings, None)
    migrating.begin()
    tally = migrating.backfill().tally
    assert (tally.delivered, tally.expired, tally.set_aside) == (
        found.entries, found.expired_rows, sum(found.corrupt.values()),
    )  # fmt: skip


def test_an_empty_table(migrating: Migrating) -> None:
    found = plan(migrating.settings, None)
    assert (found.rows, found.entries, found.redis_bytes) == (0, 0, 0)
    assert (found.mb_per_s, found.seconds) == (None, None)
    assert (found.redis_free_bytes, found.redis_error) == (None, None)


def test_a_value_that_is_too_large_is_counted(migrating: Migrating) -> None:
    migrating.put("big", {"x": "y" * 2000})
    assert plan(migrating.set(max_value_bytes="1KiB"), None).corrupt == {"too-large": 1}


@pytest.mark.parametrize("unique", [False, True])
def test_a_large_table_is_sampled_and_says_so(
    migrating: Migrating, monkeypatch: pytest.MonkeyPatch, unique: bool
) -> None:
    monkeypatch.setattr(steps_plan, "EXACT_ROWS", 1000)
    monkeypatch.setattr(steps_plan, "SAMPLE_ROWS", 4000)
    if unique:
        migrating.execute("CREATE UNIQUE INDEX ON sessions (file_hash)")
    # Of each ten rows: eight sound ones of 100 bytes, an empty one, a corrupt one. Three rows to a key if not unique.
    migrating.execute(
        "INSERT INTO sessions (file_hash, cache, seen_at) SELECT 'k' || n / %s, CASE n %% 10 WHEN 0 THEN '{}'"
        " WHEN 1 THEN '[1]' ELSE jsonb_build_object('x', repeat('y', 91)) END, now()"
        " FROM generate_series(0, 29999) AS n",
        1 if unique else 3,
    )
    migrating.execute("INSERT INTO sessions (cache) VALUES ('{\"lost\": 1}')")
    migrating.execute("ANALYZE sessions")
    found = plan(migrating.settings, None)
    assert found.rows_estimated
    assert found.rows == pytest.approx(30_001, rel=0.02)
    assert found.sampled_rows is not None
    assert 2000 < found.sampled_rows < 16_001
    assert found.keyless_rows == 1  # exact: no sample would show it
    assert found.empty_rows == pytest.approx(3000, rel=0.1)
    assert found.sizes.p50 == 100
    assert found.sizes.total == pytest.approx(24_000 * 100 + 3000 * 3, rel=0.1)
    if unique:
        assert (found.duplicate_keys, found.rows_beyond_winner) == (0, 0)
        assert found.entries == pytest.approx(24_000, rel=0.1)
        assert found.corrupt == {"not-an-object": pytest.approx(3000, rel=0.1)}
    else:
        # No key is without a value; of ten keys three have two rows with one, and seven have three.
        assert found.duplicate_keys == pytest.approx(10_000, rel=0.1)
        assert found.rows_beyond_winner == pytest.approx(17_000, rel=0.1)
    assert found.mb_per_s
    assert found.seconds


def test_a_table_of_many_bytes_is_sampled_though_its_rows_are_few(
    migrating: Migrating, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_plan, "EXACT_BYTES", 2**16)
    for n in range(300):
        migrating.put(f"k{n}", {"x": secrets.token_hex(1000)})
    found = plan(migrating.settings, None)
    assert (found.rows, found.rows_estimated) == (300, False)
    assert found.sampled_rows is not None


def test_dependents_are_named_with_what_to_do(migrating: Migrating) -> None:
    migrating.execute("""
        CREATE VIEW a_view AS SELECT id, cache FROM sessions;
        CREATE VIEW not_this_one AS SELECT id FROM sessions;
        CREATE MATERIALIZED VIEW a_matview AS SELECT cache ->> 'a' AS a FROM sessions;
        CREATE RULE a_rule AS ON UPDATE TO sessions WHERE NEW.cache IS NULL DO ALSO NOTHING;
        CREATE POLICY a_policy ON sessions USING (cache IS NOT NULL);
        ALTER TABLE sessions ADD COLUMN generated text GENERATED ALWAYS AS (cache ->> 'a') STORED;
        CREATE FUNCTION a_body() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.cache IS NULL THEN RETURN NULL; END IF; RETURN NEW; END $$;
        CREATE FUNCTION no_body() RETURNS text LANGUAGE sql RETURN 'cache';
        CREATE FUNCTION other_body() RETURNS text LANGUAGE sql AS $$ SELECT 'a cached_value of cache2' $$;
        CREATE FUNCTION new_body() RETURNS SETOF jsonb LANGUAGE sql BEGIN ATOMIC SELECT cache FROM sessions; END;
        CREATE TRIGGER a_trigger BEFORE UPDATE OF cache ON sessions FOR EACH ROW EXECUTE FUNCTION a_body();
        CREATE TRIGGER when_trigger BEFORE INSERT ON sessions FOR EACH ROW WHEN (NEW.cache IS NULL)
            EXECUTE FUNCTION a_body();
        CREATE TRIGGER not_this_trigger BEFORE UPDATE OF hits ON sessions FOR EACH ROW EXECUTE FUNCTION a_body();
        CREATE INDEX an_index ON sessions USING gin (cache);
        CREATE INDEX an_expression ON sessions ((cache ->> 'a'));
        ALTER TABLE sessions ADD CONSTRAINT a_check CHECK (cache IS DISTINCT FROM '1');
        ALTER TABLE sessions ALTER cache SET NOT NULL;
        CREATE STATISTICS a_statistics ON hits, (cache ->> 'a') FROM sessions;
        CREATE PUBLICATION a_publication FOR TABLE sessions (id, cache);
    """)
    found = plan(migrating.settings, None).dependents
    assert [(d.kind, d.name) for d in found] == [
        ("generated column", "public.sessions.generated"),
        ("function", "public.new_body()"),
        ("index", "public.an_expression"),
        ("index", "public.an_index"),
        ("materialised view", "public.a_matview"),
        ("policy", "a_policy on public.sessions"),
        ("publication", "public.sessions in publication a_publication"),
        ("rule", "a_rule on public.sessions"),
        ("statistics", "public.a_statistics"),
        ("constraint", "a_check on public.sessions"),
        ("trigger", "a_trigger on public.sessions"),
        ("trigger", "when_trigger on public.sessions"),
        ("view", "public.a_view"),
        ("function text", "a_body()"),
    ]
    assert all(d.what_to_do for d in found)


def test_a_view_of_a_partition_depends_on_the_column(migrating: Migrating) -> None:
    migrating.execute("""
        CREATE TABLE parted (LIKE sessions) PARTITION BY LIST (hits);
        CREATE TABLE part PARTITION OF parted FOR VALUES IN (0);
        CREATE VIEW a_view AS SELECT cache FROM part;
        INSERT INTO parted (id, hits, file_hash, cache, created_at) VALUES (1, 0, 'a', '{"a": 1}', now());
    """)
    found = plan(migrating.set(table="parted"), None)
    assert found.rows == found.entries == 1
    assert [(d.kind, d.name) for d in found.dependents] == [("view", "public.a_view")]


def test_the_tools_own_triggers_are_no_dependents(migrating: Migrating) -> None:
    migrating.begin()
    assert plan(migrating.settings, None).dependents == []


def test_phase_and_steps_ahead(migrating: Migrating) -> None:
    def now() -> tuple[str, str]:
        found = plan(migrating.settings, None)
        return found.phase, found.steps_ahead[0]

    assert now() == ("not begun", "cachemig doctor")
    migrating.begin()
    assert now() == ("dual-write", "cachemig sync --follow")
    migrating.execute("UPDATE cachemig.migration SET phase = 'cutover'")
    assert now() == ("cutover", "cachemig cutover --ramp 1,10,50,100")


def test_settings_that_decide_are_shown_with_their_origin_and_without_a_secret(migrating: Migrating) -> None:
    shown = {s.name: (s.value, s.origin) for s in plan(migrating.settings, None).settings}
    assert shown["table"] == ("sessions", "--table")
    assert shown["codec"] == ("json", "default")
    assert not {"dsn", "redis_url"} & shown.keys()


def test_a_redis_that_is_away_is_told(migrating: Migrating, own_redis: OwnRedis) -> None:
    server = own_redis({"maxmemory": "50mb"})
    migrating.redis_url = server.url
    with RedisTarget(migrating.set(), {}) as target:
        free = plan(migrating.settings, target).redis_free_bytes
        assert free is not None
        assert 40 * 2**20 < free < 50 * 2**20
        server.kill()
        found = plan(migrating.settings, target)
    assert found.redis_free_bytes is None
    assert "cannot be reached" in (found.redis_error or "")


class Stranger:
    """A role that may SELECT from the table and nothing else."""

    def __init__(self, migrating: Migrating) -> None:
        self.migrating = migrating
        self.name = f"plan_test_{secrets.token_hex(4)}"
        self.password = secrets.token_hex(8)
        self._run("CREATE ROLE {} LOGIN PASSWORD " + f"'{self.password}'")
        self._run("GRANT SELECT ON sessions TO {}")

    def _run(self, statement: str) -> None:
        self.migrating.conn.execute(sql.SQL(statement).format(sql.Identifier(self.name)))

    def plan(self) -> Plan:
        dsn, self.migrating.dsn = (
            self.migrating.dsn,
            make_conninfo(self.migrating.dsn, user=self.name, password=self.password),
        )
        try:
            return plan(self.migrating.set(), None)
        finally:
            self.migrating.dsn = dsn

    def drop(self) -> None:
        self._run("DROP OWNED BY {}")
        self._run("DROP ROLE {}")


def test_select_on_the_table_is_enough_and_nothing_is_changed(migrating: Migrating) -> None:
    migrating.execute(MIXED)
    stranger = Stranger(migrating)
    try:
        assert stranger.plan().entries == 3
        assert migrating.execute("SELECT to_regnamespace('cachemig') IS NULL") == [(True,)]
        migrating.set()
        migrating.begin()
        assert stranger.plan().phase == "not visible to this role"
        migrating.execute("ALTER TABLE sessions ENABLE ROW LEVEL SECURITY")
        with pytest.raises(RowsHidden):
            stranger.plan()
        migrating.execute("ALTER TABLE sessions DISABLE ROW LEVEL SECURITY")
        stranger._run("REVOKE SELECT ON sessions FROM {}")
        with pytest.raises(PrivilegeMissing):
            stranger.plan()
    finally:
        stranger.drop()

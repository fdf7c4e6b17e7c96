"""plan --out and apply: exactly the step that was planned, or none."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from cachemig.cli import inner
from cachemig.cli.inner import Inner
from cachemig.errors import CachemigError, ConfigError, Exit, LeaseHeld, Refused
from cachemig.source import control
from cachemig.steps import apply
from tests.integration.conftest import Migrating
from tests.schemas import validated

Change = Callable[[Migrating], Any]


class Planner:
    """Types commands in the migration's directory, in this process."""

    def __init__(self, migrating: Migrating, patch: pytest.MonkeyPatch) -> None:
        self.case = migrating
        self.file = migrating.directory / "plan.json"
        patch.chdir(migrating.directory)
        patch.setenv("CACHEMIG_DSN", migrating.dsn)
        patch.setenv("CACHEMIG_REDIS_URL", migrating.redis_url)
        self.flags: dict[str, str | None] = {
            "table": "sessions", "column": "cache", "shape": "object", "ttl_from": "seen_at", "grace": "20ms",
            "lock_timeout": "200ms", "key_template": f"{migrating.prefix}{{key}}",
        }  # fmt: skip

    def __call__(self, *arguments: str) -> Inner:
        return inner.run(arguments, Inner(self.flags, None, as_json=False, quiet=True))

    def plan(self, *command: str) -> dict[str, Any]:
        self("plan", "--out", str(self.file), *(("--", *command) if command else ()))
        document = json.loads(self.file.read_text())
        validated(document)
        assert isinstance(document, dict)
        return document

    def apply(self, *more: str) -> Exit:
        return self("apply", str(self.file), *more).exit_code


@pytest.fixture
def planner(migrating: Migrating, monkeypatch: pytest.MonkeyPatch) -> Planner:
    """Everything is delivered and verified: the next step is a cutover."""
    for number in range(3):
        migrating.put(f"k{number}", {"n": number})
    migrating.begin()
    migrating.backfill()
    migrating.verify()
    return Planner(migrating, monkeypatch)


def where(planner: Planner) -> tuple[str, float]:
    ((phase, percent),) = planner.case.execute("SELECT phase, percent FROM cachemig.migration")
    return phase, percent


def test_exactly_the_planned_step_is_taken(planner: Planner) -> None:
    document = planner.plan("cutover", "--percent", "10", "--no-clients")
    assert document["command"] == ["cutover", "--percent", "10", "--no-clients"]
    assert any("SET phase = 'cutover', percent = 10" in text for text in document["sql"])
    assert all(gate["met"] for gate in document["gates"])
    assert where(planner) == ("dual-write", 0)
    assert planner.apply("--check") is Exit.FINE
    assert where(planner) == ("dual-write", 0)
    assert planner.apply() is Exit.FINE
    assert where(planner) == ("cutover", 10)
    with pytest.raises(Refused, match="state: phase: dual-write then, cutover now"):
        planner.apply()  # once


@pytest.mark.long
def test_the_next_step_is_planned_where_none_is_named(migrating: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    planner = Planner(migrating, monkeypatch)
    steps = []
    while where_is(planner) != "redis-only":
        steps.append(" ".join(planner.plan()["command"]))
        if steps[-1].startswith(("cutover", "stop-writes")):
            migrating.verify()
            planner.plan(*steps[-1].split(), "--no-clients", "--soak-cutover", "0s")
        assert planner.apply() is Exit.FINE, steps
    ramp = [f"cutover --percent {percent}" for percent in (1, 10, 50, 100)]
    assert steps == ["init", "dual-write", "backfill", *ramp, "stop-writes --execute"]
    assert planner.plan()["command"] == ["drop-column", "--execute"]


def where_is(planner: Planner) -> str:
    if planner.case.execute("SELECT to_regclass('cachemig.migration')") == [(None,)]:
        return apply.NOT_BEGUN
    return where(planner)[0]


# What is done between plan and apply, and what the refusal then names.
CHANGES: dict[str, tuple[Change, str]] = {
    "a column": (lambda c: c.execute("ALTER TABLE sessions ADD COLUMN more int"), "schema: column more is new"),
    "a type": (
        lambda c: c.execute("ALTER TABLE sessions ALTER COLUMN hits TYPE bigint"),
        "schema: column hits is another one",
    ),
    "an index": (
        lambda c: c.execute("CREATE INDEX sessions_hits ON sessions (hits)"),
        "schema: index public.sessions_hits is new",
    ),
    "an index goes": (
        lambda c: c.execute("DROP INDEX sessions_file_hash_idx"),
        "schema: index public.sessions_file_hash_idx is gone",
    ),
    "a constraint": (
        lambda c: c.execute("ALTER TABLE sessions ADD CONSTRAINT few CHECK (hits < 9)"),
        "schema: constraint few is new",
    ),
    "a trigger": (
        lambda c: c.execute("ALTER TABLE sessions DISABLE TRIGGER cachemig_capture"),
        "schema: trigger cachemig_capture is another one",
    ),
    "a view": (
        lambda c: c.execute("CREATE VIEW seen AS SELECT cache FROM sessions"),
        "schema: dependent view public.seen is new",
    ),
    "a function": (
        lambda c: c.execute("CREATE FUNCTION reads() RETURNS jsonb LANGUAGE sql AS 'SELECT cache FROM sessions'"),
        r"schema: function public.reads\(\) is new",
    ),
    "a policy": (
        lambda c: c.execute("CREATE POLICY mine ON sessions USING (true)"),
        "schema: policy mine is new",
    ),
    "a verification that failed": (
        lambda c: (c.redis.delete(f"{c.prefix}k1"), c.verify()),
        "state: verification: passed True, epoch 0 then, passed False, epoch 0 now",
    ),
    "the epoch": (
        lambda c: c.execute("UPDATE cachemig.migration SET epoch = epoch + 7"),
        r"state: epoch: \d+ then, \d+ now",
    ),
    "the journal": (
        lambda c: c.execute("INSERT INTO cachemig.journal (who, command) VALUES ('x', 'resync')"),
        "state: journal: .* resync now",
    ),
    "Redis": (lambda c: c.redis.delete(c.target.marker_key), "servers: Redis is another one"),
}


def test_a_stale_plan_is_refused(planner: Planner) -> None:
    for name, (change, says) in CHANGES.items():
        planner.plan("cutover", "--percent", "10", "--no-clients")
        change(planner.case)
        with pytest.raises(Refused, match=says) as refused:
            planner.apply()
        assert refused.value.hint == f"cachemig plan --out {planner.file} -- cutover --percent 10 --no-clients"
        assert planner.apply("--check") is Exit.REFUSED, name
        assert where(planner) == ("dual-write", 0)


def test_what_workers_do_all_the_time_makes_no_plan_stale(planner: Planner) -> None:
    planner.plan("cutover", "--percent", "10", "--no-clients")
    planner.case.put("k9", {"n": 9})
    planner.case.sync()
    planner.case.verify()
    planner.case.execute("ANALYZE sessions")
    planner.case.execute("INSERT INTO cachemig.journal (who, command) VALUES ('x', 'pause')")
    assert planner.apply() is Exit.FINE


def test_a_plan_of_backfill_outlives_another_sample_of_the_rows(planner: Planner) -> None:
    planner.case.execute("DELETE FROM cachemig.chunk; UPDATE cachemig.migration SET layout = NULL")
    document = planner.plan("backfill")
    assert any("INSERT INTO cachemig.chunk" in text for text in document["sql"])
    planner.case.put("large", {"x": "y" * 50_000})
    planner.case.sync()
    assert planner.apply("--check") is Exit.FINE
    assert planner.apply() is Exit.FINE


def test_other_settings_are_refused(planner: Planner) -> None:
    planner.plan("cutover", "--percent", "10", "--no-clients")
    planner.flags["verify_fresh"] = "2h"
    with pytest.raises(Refused, match=r"settings: verify_fresh: 3600.0 then, 7200.0 now"):
        planner.apply()
    planner.plan("cutover", "--percent", "10", "--no-clients", "--verify-fresh", "3h")
    assert planner.apply("--check") is Exit.REFUSED  # a flag of apply goes before those of the plan
    del planner.flags["verify_fresh"]
    assert planner.apply() is Exit.FINE


def test_a_plan_of_other_sql_is_refused(planner: Planner) -> None:
    planner.plan("dual-write", "--disable")
    planner.case.execute("UPDATE cachemig.chunk SET state = 'running', lease_until = clock_timestamp() + '1 h'")
    with pytest.raises(Refused, match="sql: statement"):  # it would mark what is in work
        planner.apply()


def test_the_age(planner: Planner) -> None:
    document = planner.plan("pause")
    for at, says in (
        ("2020-01-01T00:00:00+00:00", r"age: \d+d?.*, at most 1d"),
        ("2100-01-01T00:00:00+00:00", "future"),
    ):
        planner.file.write_text(json.dumps({**document, "made_at": at}))
        with pytest.raises(Refused, match=says):
            planner.apply()
    planner.file.write_text(json.dumps({**document, "made_at": "2020-01-01T00:00:00+00:00"}))
    assert planner.apply("--max-age", "36500d") is Exit.FINE


NO_PLANS: list[tuple[Callable[[Any], Any], type[CachemigError], str]] = [
    (lambda d: {**d, "schema": "cachemig/plan-file/2"}, Refused, "format cachemig/plan-file/2"),
    (lambda d: {"schema": "cachemig/verify/1"}, ConfigError, "no plan of cachemig"),
    (lambda d: [d], ConfigError, "no plan of cachemig"),
    (lambda d: {k: v for k, v in d.items() if k != "facts"}, ConfigError, "changed by hand, or cut"),
    (lambda d: {**d, "made_at": "yesterday"}, ConfigError, "changed by hand, or cut"),
    (lambda d: {**d, "facts": {**d["facts"], "state": {}}}, ConfigError, "fingerprints do not fit"),
    (lambda d: {**d, "command": ["demo"]}, ConfigError, "no step that can be planned"),
    (lambda d: {**d, "command": []}, ConfigError, "changed by hand, or cut"),
    (lambda d: {**d, "gates": [{}]}, ConfigError, "changed by hand, or cut"),
]


def test_what_is_no_plan_is_refused(planner: Planner) -> None:
    document = planner.plan("pause")
    for change, error, says in NO_PLANS:
        planner.file.write_text(json.dumps(change(document)))
        with pytest.raises(error, match=says):
            planner.apply()
    planner.file.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        planner.apply()


NOT_PLANNED: list[tuple[list[str], str]] = [
    (["status"], "no step that can be planned"),
    (["cutover"], "--percent or --ramp"),
    (["sync", "--follow"], "goes on until it is stopped"),
    (["drop-column", "--execute", "--confirm", "cache"], "cachemig apply --confirm"),
    (["init", "--format", "sql"], "file for another pipeline"),
    (["pause", "--dsn", "host=other"], "given to plan and to apply"),
    (["cutover", "--nonsense"], "--nonsense"),
    (
        ["recompute", "--all-corrupt", "--recordings-location", "https://h/{file_hash}?token=s3cr3t"],
        "holds a secret",
    ),
]


def test_what_cannot_be_planned(planner: Planner) -> None:
    for command, says in NOT_PLANNED:
        with pytest.raises(ConfigError, match=says):
            planner.plan(*command)
    assert not planner.file.exists()


def test_a_plan_holds_no_secret(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    planner.case.execute(
        "CREATE FUNCTION hook() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER hook AFTER INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION hook('Bearer hidden-1')"
    )
    monkeypatch.setenv("CACHEMIG_DSN", f"{planner.case.dsn} password=hidden-2")
    monkeypatch.setenv("CACHEMIG_RECORDINGS_LOCATION", "https://h/{file_hash}?token=hidden-3")
    planner.flags["dsn"] = None
    document = planner.plan("pause")
    text = planner.file.read_text()
    assert "hidden" not in text
    assert planner.case.dsn not in text
    assert not {"dsn", "redis_url", "read_dsn"} & (document["flags"].keys() | document["facts"]["settings"].keys())


def test_nobody_can_move_the_ladder_between_the_look_and_the_step(
    planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run takes a step just after the plan was compared: it is seen under the lease."""
    planner.plan("cutover", "--percent", "10", "--no-clients")
    compared = apply.compare

    def slow(*arguments: Any) -> Any:
        found = compared(*arguments)
        if "sql" in arguments[2]:  # the last look before the step
            planner.case.execute("UPDATE cachemig.migration SET phase = 'cutover', percent = 5")
        return found

    monkeypatch.setattr(apply, "compare", slow)
    with pytest.raises(Refused, match="has become stale just now:\nstate: percent: 0 then, 5 now"):
        planner.apply()
    assert where(planner) == ("cutover", 5)
    assert planner.case.execute("SELECT count(*) FROM cachemig.lease") == [(0,)]
    assert control.LOOK_AGAIN.get() is None


def test_nor_while_another_run_has_the_lease(planner: Planner) -> None:
    planner.plan("cutover", "--percent", "10", "--no-clients")
    with control.lease(planner.case.conn, "ladder"), pytest.raises(LeaseHeld):
        planner.apply()
    assert planner.apply() is Exit.FINE


def test_a_plan_whose_gates_are_not_met_is_written_and_refused_by_them(planner: Planner) -> None:
    made = planner("plan", "--out", str(planner.file), "--", "cutover", "--percent", "10")  # no client is registered
    assert made.exit_code is Exit.REFUSED
    checked = planner("apply", str(planner.file), "--check")
    assert (checked.exit_code, checked.shown[0].result.unmet) == (Exit.FINE, ["clients"])
    with pytest.raises(Refused, match="gate clients"):
        planner.apply()


def test_the_drop_wants_its_column_named_once_more(planner: Planner) -> None:
    for command in (
        ["cutover", "--percent", "100", "--no-clients"],
        ["stop-writes", "--execute", "--no-clients", "--soak-cutover", "0s", "--accept-expiring", "9"],
        ["archive", "--to", "a.zst"],
        ["verify"],
    ):
        assert planner(*command).exit_code is Exit.FINE
    document = planner.plan("drop-column", "--no-clients", "--soak-redis-only", "0s")
    assert document["command"] == ["drop-column", "--no-clients", "--soak-redis-only", "0s", "--execute"]
    with pytest.raises(ConfigError, match="wants --confirm"):
        planner.apply()
    with pytest.raises(ConfigError, match="not the column"):
        planner.apply("--confirm", "hits")
    assert planner.apply("--confirm", "cache") is Exit.FINE
    assert where(planner)[0] == "dropped"

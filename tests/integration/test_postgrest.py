"""docs/examples/postgrest: the functions over HTTP, each call a transaction of its own, with Supabase's three roles."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import psycopg
import pytest

from cachemig.ladder import Phase, bucket
from tests.conftest import REPOSITORY, OwnPostgres
from tests.integration import postgrest
from tests.integration.conftest import TABLE, Migrating
from tests.integration.serving import move, opened_sync

EPOCH = 2**40
# As Supabase makes them: one login that can take each role and inherits none of their rights.
ROLES = """
CREATE ROLE anon NOLOGIN NOINHERIT;
CREATE ROLE authenticated NOLOGIN NOINHERIT;
CREATE ROLE service_role NOLOGIN NOINHERIT BYPASSRLS;
CREATE ROLE authenticator LOGIN NOINHERIT;
GRANT anon, authenticated, service_role TO authenticator;
"""
RIGHTS = """
GRANT SELECT, INSERT, UPDATE, DELETE ON sessions TO anon, authenticated, service_role;
ALTER TABLE sessions ADD owner text NOT NULL DEFAULT 'me';
ALTER TABLE sessions ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON sessions TO authenticated USING (owner = 'me');
"""


def _load() -> ModuleType:
    path = REPOSITORY / "docs" / "examples" / "postgrest" / "adapter.py"
    spec = importlib.util.spec_from_file_location("postgrest_adapter", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


adapter = _load()
Open = Callable[[str], Any]
Call = Callable[[], Any]


@pytest.fixture
def case(own_postgres: OwnPostgres, redis_url: str, prefix: str, tmp_path: Path) -> Iterator[Migrating]:
    """A server of its own, because roles belong to a whole server. In dual-write."""
    server = own_postgres()
    case = Migrating(server.dsn(), redis_url, prefix, tmp_path)
    case.execute(TABLE + ROLES + RIGHTS)
    case.set(app_roles="authenticated,service_role")
    for key in ("a", "b"):
        case.put(key, {"v": key})
    case.begin()
    case.backfill()
    yield case
    case.close()


@pytest.fixture
def api(case: Migrating) -> Iterator[str]:
    dsn = psycopg.conninfo.make_conninfo(case.dsn, user="authenticator")
    with postgrest.serving(dsn, "public", "cachemig") as url:
        yield url


@pytest.fixture
def cache_of(api: str) -> Iterator[Open]:
    """The adapter, by role."""
    with ExitStack() as stack:
        yield lambda role: stack.enter_context(adapter.Cache(api, role))


@pytest.mark.parametrize(
    ("phase", "percent"), [(Phase.IDLE, 0.0), (Phase.DUAL_WRITE, 0.0), (Phase.CUTOVER, 50.0), (Phase.CUTOVER, 100.0)]
)
def test_put_get_and_invalidate(case: Migrating, cache_of: Open, phase: Phase, percent: float) -> None:
    move(case, phase, percent)
    cache = cache_of("service_role")
    captured = phase is not Phase.IDLE
    with opened_sync(case) as service:
        before = cache.get("a")
        assert (before.value, before.version, before.phase) == ({"v": "a"}, 0 if captured else None, phase)
        assert before.reads_from == cache.read_from("a") == service.get_entry("a").source
        value = {"text": "ünï", "n": [1, None, 1.5]}
        assert cache.put("a", value) == adapter.Stored("written", 1 if captured else None, phase)
        assert cache.get("a").value == value
        if captured:
            assert case.marks() == ["a"]
            case.sync()
            assert case.in_redis() == case.in_postgres()
        assert service.get("a") == value, "after sync at the latest"
        assert cache.invalidate("a").outcome == "written"
        assert cache.get("a") is None
        if captured:
            case.sync()
            assert "a" not in case.in_redis()
        assert service.get("a") is None
        assert cache.put("nobody", {"v": 1}).outcome == "no-row"
        assert cache.invalidate("nobody").outcome == "no-row"
        assert cache.get("nobody") is None
        assert cache.put("b", None).outcome == "written"
        assert cache.get("b") is None


def test_read_from_is_what_the_library_does(case: Migrating, cache_of: Open) -> None:
    move(case, Phase.CUTOVER, 50)
    cache = cache_of("authenticated")
    keys = [f"k{n}" for n in range(20)]
    assert [cache.read_from(key) == "redis" for key in keys] == [bucket(key) < 50 for key in keys]


def test_a_value_only_if_nobody_has_written_since(case: Migrating, cache_of: Open) -> None:
    cache = cache_of("service_role")
    seen = cache.get("a")
    assert cache.put("a", {"v": 2}, if_version=seen.version).outcome == "written"
    assert cache.put("a", {"v": 3}, if_version=seen.version).outcome == "changed"
    assert cache.get("a").value == {"v": 2}


@pytest.mark.parametrize("phase", [Phase.REDIS_ONLY, Phase.DROPPED])
def test_once_the_column_is_over_it_says_so(case: Migrating, cache_of: Open, phase: Phase) -> None:
    move(case, phase)
    cache = cache_of("service_role")
    assert cache.read_from("a") == "redis"
    calls: list[Call] = [lambda: cache.get("a"), lambda: cache.put("a", {"v": 2}), lambda: cache.invalidate("a")]
    for call in calls:
        with pytest.raises(adapter.Elsewhere, match=phase):
            call()
    assert (case.execute("SELECT cache FROM sessions WHERE file_hash = 'a'"), case.marks()) == ([({"v": "a"},)], [])


def test_each_role_can_do_what_it_could_before(case: Migrating, cache_of: Open, api: str) -> None:
    case.execute("UPDATE sessions SET owner = 'somebody' WHERE file_hash = 'b'")
    user, server = cache_of("authenticated"), cache_of("service_role")
    assert user.get("a") == adapter.Found({"v": "a"}, None, "dual-write", "column")  # no version: rows are hidden
    assert user.put("a", {"v": 2}).outcome == "written"
    assert case.marks() == ["a"], "capture needs no right of the user"
    assert user.get("b") is None
    assert user.put("b", {"v": 2}).outcome == "no-row"
    assert user.invalidate("b").outcome == "no-row"
    assert server.get("b").value == {"v": "b"}
    assert server.get("b").version == 0
    case.sync()
    assert case.in_redis() == case.in_postgres()

    nobody = cache_of("anon")
    calls: list[Call] = [lambda: nobody.get("a"), lambda: nobody.put("a", {}), lambda: nobody.read_from("a")]
    for call in calls:
        with pytest.raises(adapter.Refused) as caught:
            call()
        assert (caught.value.status, caught.value.code) == (401, "42501")
    case.execute("REVOKE UPDATE ON sessions FROM authenticated")
    with pytest.raises(adapter.Refused) as caught:
        user.put("a", {"v": 3})
    assert (caught.value.status, caught.value.code) == (403, "42501")
    assert user.get("a").value == {"v": 2}
    # To expose the schema shows none of its tables, nor what only the owner's own functions call.
    for role in ("anon", "authenticated", "service_role"):
        tables = case.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'cachemig'::regnamespace AND relkind IN ('r', 'v', 'p')"
            " AND has_table_privilege(%s, oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')",
            role,
        )
        assert tables == []
        answer = httpx.post(f"{api}/rpc/sees_all", json={"what": "SELECT"}, headers=headers(role))
        assert answer.status_code in (401, 403)


def headers(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {role}", "Content-Profile": "cachemig", "Accept-Profile": "cachemig"}


def test_over_http(case: Migrating, api: str) -> None:
    """What supabase-js sends, and what it gets."""
    role = headers("service_role")
    got = httpx.get(f"{api}/rpc/get", params={"key": "a"}, headers=role)
    assert (got.status_code, got.json()) == (
        200,
        [
            {
                "phase": "dual-write", "percent": 0, "epoch": 0, "reads_from": "column", "value": '{"v": "a"}',
                "version": 0, "lifetime_from_ms": None,
            }
        ],
    )  # fmt: skip
    assert httpx.get(f"{api}/rpc/read_from", params={"key": "a"}, headers=role).json() == "column"
    refused = httpx.get(f"{api}/rpc/put", params={"key": "a", "value": "{}"}, headers=role)
    assert (refused.status_code, refused.json()["code"]) == (405, "25006"), "a GET writes nothing"
    assert httpx.get(f"{api}/rpc/invalidate", params={"key": "a"}, headers=role).status_code == 405
    unknown = httpx.post(f"{api}/rpc/get", json={"file_hash": "a"}, headers=role)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "PGRST202")
    hidden = httpx.post(f"{api}/rpc/get", json={"key": "a"}, headers={**role, "Content-Profile": "private"})
    assert (hidden.status_code, hidden.json()["code"]) == (406, "PGRST106")
    many = httpx.post(f"{api}/rpc/get_many", json={"keys": ["b", "nobody", "a"]}, headers=role).json()
    assert [(row["key"], row["value"]) for row in many] == [("b", '{"v": "b"}'), ("nobody", None), ("a", '{"v": "a"}')]
    # A client of the ladder, without the library.
    beat = {"client": "edge-1", "name": "edge", "phase": "dual-write", "percent": 0, "epoch": 0, "lease_s": 30}
    (row,) = httpx.post(f"{api}/rpc/heartbeat", json=beat, headers=role).json()
    assert (row["phase"], row["epoch"]) == ("dual-write", 0)
    assert case.execute("SELECT name, phase FROM cachemig.client") == [("edge", "dual-write")]
    httpx.post(f"{api}/rpc/leave", json={"client": "edge-1"}, headers=role)
    assert case.execute("SELECT lease_until <= clock_timestamp() FROM cachemig.client") == [(True,)]


def test_the_largest_version_is_exact_in_javascript(case: Migrating, cache_of: Open) -> None:
    case.execute("UPDATE cachemig.migration SET epoch = 8191")
    version = cache_of("service_role").get("a").version
    assert version == 8191 * EPOCH
    assert version <= 2**53 - 1

"""backfill delivers every entry, exactly, and nothing else."""

from __future__ import annotations

import gzip
import itertools
import json
import time
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise

import psycopg
import pytest
import zstandard
from psycopg import sql
from redis import Redis

from cachemig.entries.entry import EPOCH
from cachemig.errors import Interrupted, NotInitialised, Refused, SettingsDiffer, TargetFull
from cachemig.source import chunks, scan
from cachemig.source.connect import transaction
from cachemig.source.table import inspect
from cachemig.steps import backfill as step
from cachemig.stop import Stop
from tests.conftest import OwnRedis
from tests.integration.conftest import Migrating, finish

ODD_KEYS = ["a b", "'", '"', "\\", "{x}", "a{b}c", "}{", "ключ🔑", "x" * 10_240, "new\nline", "%s", "$1", "{}"]


def test_every_value_arrives_as_postgres_prints_it(migrating: Migrating) -> None:
    for n in range(300):
        migrating.put(f"k{n}", {"n": n, "float": n / 7, "text": "ü" * (n % 50), "big": 10**30 + n})
    for key in ODD_KEYS:
        migrating.put(key, {"key": key})
    migrating.put("numbers", '{"a": 1.10, "b": 1e-5, "c": 1E400, "d": -0.0, "e": 12345678901234567890123}')
    migrating.begin()
    result = migrating.backfill()
    assert migrating.in_redis() == migrating.in_postgres()
    assert result.tally.delivered == 300 + len(ODD_KEYS) + 1
    assert migrating.verify().outcome.passed


def test_a_json_column_keeps_its_text_as_written(migrating: Migrating) -> None:
    migrating.execute("ALTER TABLE sessions ALTER cache DROP DEFAULT, ALTER cache TYPE json")
    migrating.put("a", '{ "b":1,\t"b":2 }')
    migrating.put("empty", " { } ")
    migrating.put("null", " null")
    migrating.begin()
    migrating.backfill()
    assert migrating.in_redis() == {"a": b'{ "b":1,\t"b":2 }'}
    assert migrating.verify().outcome.passed


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_codecs(migrating: Migrating, codec: str) -> None:
    migrating.set(codec=codec)
    value = {"samples": [n / 3 for n in range(3000)]}
    migrating.put("a", value)
    migrating.begin()
    migrating.backfill()
    stored = migrating.in_redis()["a"]
    text = (
        gzip.decompress(stored) if codec == "gzip" else zstandard.ZstdDecompressor().decompressobj().decompress(stored)
    )
    assert json.loads(text) == value
    assert len(stored) < len(text)
    assert migrating.verify().outcome.passed


def test_what_is_no_entry_is_not_delivered(migrating: Migrating) -> None:
    migrating.put("empty", {})
    migrating.put("null", None)
    migrating.put("json-null", "null")
    migrating.put(None, {"no": "key"})
    migrating.put("a", {"v": 1})
    migrating.begin()
    migrating.backfill()
    assert migrating.in_redis() == {"a": b'{"v": 1}'}
    assert {v.value: n for v, n in migrating.verify().counts.items() if n} == {"match": 1, "skipped": 3}


def test_corrupt_rows_are_set_aside_with_their_reason(migrating: Migrating) -> None:
    migrating.set(max_value_bytes="1KiB")
    migrating.put("double", json.dumps('{"v": 1}'))
    migrating.put("array", [1])
    migrating.put("number", 7)
    migrating.put("large", {"v": "x" * 2000})
    migrating.put("a", {"v": 1})
    migrating.begin()
    result = migrating.backfill()
    assert (result.tally.set_aside, result.tally.delivered) == (4, 1)
    assert migrating.in_redis() == {"a": b'{"v": 1}'}
    reasons = dict(
        migrating.execute("SELECT key, split_part(error, ':', 1) FROM cachemig.entry WHERE state = 'set-aside'")
    )
    assert reasons == {
        "double": "double-encoded",
        "array": "not-an-object",
        "number": "not-an-object",
        "large": "too-large",
    }
    assert not migrating.verify().outcome.passed
    assert not migrating.verify(accept_set_aside=3).outcome.passed
    assert migrating.verify(accept_set_aside=4).outcome.passed


def test_a_row_that_becomes_corrupt_takes_its_old_value_out_of_redis(migrating: Migrating) -> None:
    migrating.put("a", {"v": 1})
    migrating.begin()
    migrating.backfill()
    migrating.execute("UPDATE sessions SET cache = '[1]'")
    migrating.sync()
    assert migrating.in_redis() == {}
    migrating.execute("UPDATE sessions SET cache = '{\"v\": 2}'")
    migrating.sync()
    assert migrating.in_redis() == {"a": b'{"v": 2}'}


def test_lifetimes_count_from_the_column_with_a_jitter_that_stays(migrating: Migrating) -> None:
    migrating.set(ttl="10d", ttl_jitter="0.5")
    now = datetime.now(UTC)
    for n in range(50):
        migrating.put(f"k{n}", {"v": n}, seen_at=str(now - timedelta(days=4)))
    migrating.put("never seen", {"v": 1})
    migrating.put("expired", {"v": 1}, seen_at=str(now - timedelta(days=16)))
    migrating.begin()
    result = migrating.backfill()
    assert result.tally.expired == 1
    assert "expired" not in migrating.in_redis()
    days = [migrating.redis.pttl(f"{migrating.prefix}k{n}") / 86_400_000 for n in range(50)]
    assert min(days) >= 5.99
    assert max(days) <= 11
    assert max(days) - min(days) > 3  # no avalanche
    assert 9.99 < migrating.redis.pttl(f"{migrating.prefix}never seen") / 86_400_000 <= 15
    migrating.backfill(restart=True)
    again = [migrating.redis.pttl(f"{migrating.prefix}k{n}") / 86_400_000 for n in range(50)]
    assert again == pytest.approx(days, abs=0.01)
    assert {v.value: n for v, n in migrating.verify().counts.items() if n} == {"match": 51, "expired": 1}


def test_no_lifetime(migrating: Migrating) -> None:
    migrating.set(ttl="0")
    migrating.put("a", {"v": 1}, seen_at="2001-01-01")
    migrating.begin()
    migrating.backfill()
    assert migrating.redis.pttl(f"{migrating.prefix}a") == -1
    assert migrating.verify().outcome.passed


def test_of_several_rows_the_newest_with_a_value_wins(migrating: Migrating) -> None:
    migrating.put("a", {"v": 1})
    newest = migrating.put("a", {"v": 2})
    migrating.put("a", {})  # newer, but holds nothing
    migrating.put("b", {"v": 1})
    migrating.execute("UPDATE sessions SET created_at = '2020-01-01' WHERE file_hash = 'b'")
    migrating.put("b", {"v": 2})
    migrating.execute("UPDATE sessions SET created_at = '2019-01-01' WHERE file_hash = 'b' AND cache->>'v' = '2'")
    migrating.begin()
    migrating.backfill()
    assert migrating.in_redis() == migrating.in_postgres() == {"a": b'{"v": 2}', "b": b'{"v": 1}'}
    migrating.execute("UPDATE sessions SET created_at = '2018-01-01' WHERE file_hash = 'b' AND cache->>'v' = '1'")
    migrating.execute("DELETE FROM sessions WHERE id = %s", newest)
    migrating.sync()
    assert migrating.in_redis() == migrating.in_postgres() == {"a": b'{"v": 1}', "b": b'{"v": 2}'}
    assert migrating.verify().outcome.passed


@pytest.mark.parametrize(
    "primary_key",
    [
        "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        "id uuid PRIMARY KEY DEFAULT gen_random_uuid()",
        "a text DEFAULT md5(random()::text), b timestamptz DEFAULT clock_timestamp(), PRIMARY KEY (b, a)",
        "id int",
    ],
    ids=["bigint", "uuid", "composite", "none"],
)
def test_chunks_cover_the_table_whatever_its_primary_key(migrating: Migrating, primary_key: str) -> None:
    migrating.execute("DROP TABLE sessions")
    migrating.execute(
        f"CREATE TABLE sessions ({primary_key}, file_hash text UNIQUE, cache jsonb, seen_at timestamptz,"
        " created_at timestamptz DEFAULT clock_timestamp())"
    )
    migrating.execute(
        "INSERT INTO sessions (file_hash, cache) SELECT 'k' || n, jsonb_build_object('v', repeat('x', n))"
        " FROM generate_series(1, 500) AS n"
    )
    migrating.execute("ANALYZE sessions")
    migrating.set(chunk_bytes="8KiB")
    migrating.begin()
    result = migrating.backfill()
    assert result.chunks > 5
    assert result.left_over == 0
    assert migrating.in_redis() == migrating.in_postgres()
    assert len(migrating.in_redis()) == 500


def test_chunks_are_disjoint_and_together_the_whole_table(migrating: Migrating) -> None:
    for n in range(100):
        migrating.put(f"k{n}", {"v": n})
    migrating.set(chunk_bytes="128")
    migrating.begin()
    migrating.backfill()
    bounds = chunks.bounds(migrating.conn)
    assert bounds[0][0] is None
    assert bounds[-1][1] is None
    assert all(upper == lower for (_, upper), (lower, _) in pairwise(bounds))
    assert len(bounds) > 5
    assert migrating.execute("SELECT sum((figures->>'delivered')::int) FROM cachemig.chunk") == [(100,)]


def test_a_value_key_that_is_not_text(migrating: Migrating) -> None:
    migrating.execute("ALTER TABLE sessions ALTER file_hash TYPE uuid USING file_hash::uuid")
    key = "3f2504e0-4f89-11d3-9a0c-0305e82c3301"
    migrating.put(key.upper(), {"v": 1})
    migrating.begin()
    migrating.backfill()
    assert migrating.in_redis() == {key: b'{"v": 1}'}
    migrating.execute("UPDATE sessions SET cache = '{}'")
    migrating.sync()
    assert migrating.in_redis() == {}
    assert migrating.verify().outcome.passed


def test_a_finished_backfill_does_nothing_again(migrating: Migrating) -> None:
    for n in range(50):
        migrating.put(f"k{n}", {"v": n})
    migrating.begin()
    assert migrating.backfill().tally.delivered == 50
    again = migrating.backfill()
    assert (again.chunks, again.resumed_at, again.tally.entries) == (0, 1, 0)


def test_resume_does_not_redo_finished_chunks(migrating: Migrating) -> None:
    for n in range(200):
        migrating.put(f"k{n}", {"v": "x" * 100})
    migrating.set(chunk_bytes="2KiB")
    migrating.begin()
    stop = Stop()
    running = step.backfill(migrating.settings, migrating.target, stop)
    while next(running).done < 4:
        pass
    stop.request(2)
    with pytest.raises(Interrupted) as stopped:
        finish(running)
    assert "cachemig backfill" in str(stopped.value.hint)
    done = dict(migrating.execute("SELECT id, attempts FROM cachemig.chunk WHERE state = 'done'"))
    assert len(done) >= 4
    assert migrating.execute("SELECT count(*) FROM cachemig.chunk WHERE state = 'running'") == [(0,)]
    result = migrating.backfill()
    assert result.resumed_at == len(done)
    again = dict(migrating.execute("SELECT id, attempts FROM cachemig.chunk"))
    assert all(again[chunk] == attempts for chunk, attempts in done.items())
    assert migrating.in_redis() == migrating.in_postgres()


def test_the_chunk_of_a_dead_owner_is_taken_over_at_once(migrating: Migrating) -> None:
    migrating.put("a", {"v": 1})
    migrating.begin()
    migrating.backfill()
    (host,) = migrating.execute("SELECT split_part(changed_by, '@', 2) FROM cachemig.migration")[0]
    migrating.execute(
        "UPDATE cachemig.chunk SET state = 'running', owner = %s, lease_until = now() + interval '1 h'",
        f"{host}:999999999:1",
    )
    migrating.redis.delete(f"{migrating.prefix}a")
    began = time.monotonic()
    assert migrating.backfill().chunks == 1
    assert time.monotonic() - began < 10
    assert migrating.in_redis() == {"a": b'{"v": 1}'}


def test_rows_that_no_chunk_delivered_are_found(migrating: Migrating) -> None:
    """As after a COPY whose snapshot was older than the rows: nothing is concluded from finished chunks."""
    for n in range(20):
        migrating.put(f"k{n}", {"v": n})
    migrating.begin()
    migrating.backfill()
    migrating.execute("DELETE FROM cachemig.entry WHERE key IN ('k3', 'k4')")
    migrating.redis.delete(f"{migrating.prefix}k3", f"{migrating.prefix}k4")
    result = migrating.backfill()
    assert (result.chunks, result.left_over) == (0, 2)
    assert migrating.in_redis() == migrating.in_postgres()


def test_a_key_that_redis_refuses_is_recorded_and_the_rest_goes_on(migrating: Migrating) -> None:
    for n in range(100):
        migrating.put(f"k{n}", {"v": n})
    migrating.begin()
    poisoned = f"cachemig:v:{{{migrating.prefix}k7}}"
    migrating.redis.rpush(poisoned, "x")
    result = migrating.backfill()
    assert (result.tally.failed, result.tally.delivered) == (1, 99)
    ((error,),) = migrating.execute("SELECT error FROM cachemig.entry WHERE state = 'failed'")
    assert "WRONGTYPE" in error
    verified = migrating.verify()
    assert [(c.key, c.verdict.value) for c in verified.cases] == [("k7", "corrupt")]
    migrating.redis.delete(poisoned)
    assert migrating.backfill().tally.delivered == 1
    assert migrating.verify().outcome.passed


def test_a_refused_key_is_tried_once_a_run_whatever_this_machines_clock_says(
    migrating: Migrating, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock of a worker that is ahead, what was just tried would look like an earlier run's, for ever."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Ahead:
            return cls.fromtimestamp(time.time() + 3600, tz)

    monkeypatch.setattr(step, "datetime", Ahead)
    migrating.put("k", {"v": 1})
    migrating.begin()
    migrating.redis.rpush(f"cachemig:v:{{{migrating.prefix}k}}", "x")
    running = step.backfill(migrating.settings, migrating.target, Stop())
    assert sum(1 for _ in itertools.islice(running, 200)) < 200, "it goes round and round"
    assert migrating.execute("SELECT state FROM cachemig.entry") == [("failed",)]


def test_a_later_epoch_lays_the_chunks_out_anew(migrating: Migrating) -> None:
    migrating.put("a", {"v": 1})
    migrating.begin()
    migrating.backfill()
    migrating.execute("UPDATE cachemig.migration SET epoch = 3, layout = NULL")
    assert migrating.backfill().chunks == 1
    assert migrating.redis.get(f"cachemig:v:{{{migrating.prefix}a}}") == str(3 * EPOCH).encode()
    assert migrating.verify().outcome.passed


def test_refused_without_capture(migrating: Migrating) -> None:
    with pytest.raises(NotInitialised):
        migrating.backfill()
    migrating.put("a", {"v": 1})
    migrating.begin()
    migrating.execute("DROP TRIGGER cachemig_capture ON sessions")
    with pytest.raises(Refused, match="capture is not installed"):
        migrating.backfill()
    assert migrating.in_redis() == {}


def test_refused_with_other_settings(migrating: Migrating) -> None:
    migrating.begin()
    migrating.set(codec="zstd")
    with pytest.raises(SettingsDiffer, match=r"codec: 'json' then, 'zstd' now \(--codec\)"):
        migrating.backfill()


def test_a_full_redis_pauses_the_run_and_room_resumes_it(migrating: Migrating, own_redis: OwnRedis) -> None:
    server = own_redis({"maxmemory": "4mb", "maxmemory-policy": "noeviction"})
    migrating.set(redis_url=server.url, accept="redis-memory", chunk_bytes="256KiB", retry_for="20s")
    migrating.execute(
        "INSERT INTO sessions (file_hash, cache) SELECT 'k' || n, jsonb_build_object('v', repeat(md5(n::text), 300))"
        " FROM generate_series(1, 1000) AS n"
    )
    migrating.begin()
    with Redis.from_url(server.url) as admin:
        waits = []
        running = step.backfill(migrating.settings, migrating.target, Stop())
        while True:
            try:
                progress = next(running)
            except StopIteration as end:
                result: step.Backfilled = end.value
                break
            if progress.waiting and "full" in progress.waiting:
                waits.append(progress.waiting)
                admin.config_set("maxmemory", "100mb")
        assert waits
        assert result.tally.delivered == 1000
        assert {k.decode() for k in admin.scan_iter(match=f"{migrating.prefix}*", count=1000)} == {
            f"{migrating.prefix}k{n}" for n in range(1, 1001)
        }
    assert migrating.verify().outcome.passed


def test_a_redis_that_stays_full_ends_the_run_with_what_was_done_saved(
    migrating: Migrating, own_redis: OwnRedis
) -> None:
    server = own_redis({"maxmemory": "4mb", "maxmemory-policy": "noeviction"})
    migrating.set(redis_url=server.url, accept="redis-memory", chunk_bytes="256KiB", retry_for="300ms")
    migrating.execute(
        "INSERT INTO sessions (file_hash, cache) SELECT 'k' || n, jsonb_build_object('v', repeat(md5(n::text), 300))"
        " FROM generate_series(1, 1000) AS n"
    )
    migrating.begin()
    with pytest.raises(TargetFull) as full:
        migrating.backfill()
    assert full.value.hint is not None
    assert migrating.execute("SELECT count(*) > 0 FROM cachemig.chunk WHERE state = 'done'") == [(True,)]


def test_postgres_restarted_in_the_middle(migrating: Migrating) -> None:
    for n in range(300):
        migrating.put(f"k{n}", {"v": "x" * 100})
    migrating.set(chunk_bytes="2KiB", retry_for="20s")
    migrating.begin()
    running = step.backfill(migrating.settings, migrating.target, Stop())
    cut = 0
    while True:
        try:
            progress = next(running)
        except StopIteration as end:
            result: step.Backfilled = end.value
            break
        if cut < 2 and progress.done >= 3 * (cut + 1):
            with psycopg.connect(migrating.dsn, autocommit=True) as admin:
                admin.execute(
                    sql.SQL(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cachemig'"
                        " AND datname = current_database()"
                    )
                )
            cut += 1
    assert cut == 2
    assert result.tally.delivered >= 300
    assert migrating.in_redis() == migrating.in_postgres()
    assert migrating.verify().outcome.passed


def test_chunks_are_alike_in_bytes_where_rows_are_not(migrating: Migrating) -> None:
    migrating.execute(
        "INSERT INTO sessions (file_hash, cache) SELECT 'k' || n, jsonb_build_object('v',"
        " (SELECT string_agg(md5(n || ' ' || m), '')"
        "  FROM generate_series(1, CASE WHEN n % 100 < 5 THEN 9000 ELSE 5 END) AS m))"
        " FROM generate_series(1, 400) AS n"
    )
    migrating.set(chunk_bytes="512KiB")
    migrating.begin()
    result = migrating.backfill()
    assert (result.tally.delivered, result.left_over) == (400, 0)
    (largest, chunks_of_many) = migrating.execute(
        "SELECT max((figures ->> 'bytes')::int), count(*) FILTER (WHERE (figures ->> 'entries')::int > 50)"
        " FROM cachemig.chunk"
    )[0]
    assert largest < 900 * 1024
    assert chunks_of_many >= 4


@pytest.mark.parametrize("synced", [False, True])
def test_a_row_that_comes_to_share_its_key_after_the_table_was_laid_out(migrating: Migrating, synced: bool) -> None:
    """Its key is not among those that were shared then; it is known by the change that it left."""
    migrating.put("a", {"v": "old"})
    migrating.put("b", {"v": 1})
    migrating.begin()
    table = inspect(migrating.conn, migrating.settings)
    assert chunks.shared_of(chunks.lay_out(migrating.conn, table, 0)) == []
    migrating.put("a", {"v": "new"})
    if synced:
        migrating.sync()
    with transaction(migrating.conn, read_only=True):
        entries = list(scan.read_chunk(migrating.conn, table, None, None, shared=[]))
    assert sorted((e.key, bytes(e.text or b""), e.version) for e in entries) == [
        ("a", b'{"v": "new"}', 1),
        ("b", b'{"v": 1}', 0),
    ]


def test_keys_that_are_shared_already(migrating: Migrating, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(30):
        migrating.put(f"k{n % 20}", {"v": n})
    migrating.begin()
    table = inspect(migrating.conn, migrating.settings)
    shared = chunks.shared_of(chunks.lay_out(migrating.conn, table, 0))
    assert sorted(shared or []) == sorted(f"k{n}" for n in range(10))
    migrating.backfill()
    assert migrating.in_redis() == migrating.in_postgres()
    monkeypatch.setattr(chunks, "_MOST_SHARED", 5)
    assert chunks.shared_of(chunks.lay_out(migrating.conn, table, 0, again=True)) is None
    migrating.backfill(restart=True)
    assert migrating.in_redis() == migrating.in_postgres()

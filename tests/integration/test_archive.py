"""archive: every row of the column in one file, equal to the table, whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pytest
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

from cachemig.archive import Damaged, Found, Record, records
from cachemig.archive.location import StoreFailed
from cachemig.config import Settings
from cachemig.errors import ConfigError, Interrupted, Refused, RowsHidden, TableUnfit
from cachemig.source import archive as source
from cachemig.source.standing import newest_archive
from cachemig.steps import archive as step
from cachemig.stop import Stop
from tests.integration.conftest import Migrating, finish

Content = dict[tuple[str, ...], tuple[str | None, str]]


@pytest.fixture
def clinic(migrating: Migrating) -> Migrating:
    """Rows of every kind, capture is on, Redis is filled."""
    migrating.begin()
    for n in range(40):
        migrating.put(f"key-{n}", {"n": n, "text": "x" * 50})
    migrating.put("shared", {"older": True})
    migrating.put("shared", {"newer": True})
    migrating.put("empty", {})
    migrating.put("json-null", "null")
    migrating.put("corrupt", '"[1, 2"')
    migrating.put("odd % {key} \u00fc 'x' \"y\"\n", [1])
    migrating.put(None, {"no": "key"})
    migrating.put("nothing", None)
    migrating.backfill()
    migrating.sync()
    return migrating


def archive(case: Migrating, to: Path | str, **options: Any) -> step.Archived:
    return finish(step.archive(case.settings, Stop(), str(to), spool=case.directory, **options))


def content(path: Path) -> tuple[Content, Found]:
    found = Found()
    rows: Content = {}
    with path.open("rb") as file:
        for item in records(file, found):
            if isinstance(item, Record):
                assert item.head.row not in rows
                rows[item.head.row] = (item.head.key, b"".join(item.text()).decode())
    return rows, found


def table(case: Migrating) -> Content:
    rows = case.execute("SELECT id::text, file_hash, cache::text FROM sessions WHERE cache IS NOT NULL")
    return {(number,): (key, text) for number, key, text in rows}


def test_every_row_that_holds_anything_is_in_it(clinic: Migrating, tmp_path: Path) -> None:
    to = tmp_path / "a.zst"
    result = archive(clinic, to)
    rows, found = content(to)
    assert rows == table(clinic)
    assert len(rows) == 47
    assert result.rows == 47
    # not the older one of the shared key, what is empty or JSON null, or what has no key
    assert result.entries == 43
    assert result.bytes == sum(len(text.encode()) for _, text in rows.values())
    assert result.sha256 == hashlib.sha256(to.read_bytes()).hexdigest()
    assert result.file_bytes == to.stat().st_size
    assert not result.frozen
    manifest = found.manifest
    assert manifest is not None
    assert manifest.nulls == 1
    assert manifest.phase == "dual-write"
    assert manifest.head.row_key == ("id",)
    assert manifest.settings["key_column"] == "file_hash"
    assert stat.S_IMODE(to.stat().st_mode) == 0o600
    assert list(tmp_path.glob("a.zst*")) == [to]
    registered = clinic.execute(
        "SELECT location, rows, entries, bytes, encode(sha256, 'hex'), epoch, checked_at FROM cachemig.archive"
    )
    assert registered == [(str(to), 47, 43, result.bytes, result.sha256, 0, result.checked_at)]
    assert clinic.execute("SELECT figures ->> 'sha256' FROM cachemig.journal WHERE command = 'archive'") == [
        (result.sha256,)
    ]
    newest = newest_archive(clinic.conn)
    assert newest is not None
    assert newest.sha256.hex() == result.sha256


def test_versions_and_lifetimes_are_those_of_scan(clinic: Migrating, tmp_path: Path) -> None:
    clinic.put("timed", {"a": 1}, seen_at="2026-01-02 03:04:05.678+00")
    clinic.execute("UPDATE sessions SET cache = '{\"b\": 2}' WHERE file_hash = 'timed'")
    archive(clinic, tmp_path / "a")
    heads = {}
    with (tmp_path / "a").open("rb") as file:
        for item in records(file, Found()):
            if isinstance(item, Record):
                heads[item.head.key] = item.head
    assert heads["timed"].version == 2
    assert heads["timed"].from_ms == 1767323045678
    assert heads["key-1"].version == 1
    assert heads[None].version == 0
    assert not heads["empty"].entry
    assert heads["corrupt"].entry


def test_small_blocks_are_the_whole_table(clinic: Migrating, tmp_path: Path) -> None:
    clinic.set(chunk_bytes="200")
    assert archive(clinic, tmp_path / "a").blocks > 10
    assert content(tmp_path / "a")[0] == table(clinic)


def test_run_again_it_is_compared_again(clinic: Migrating, tmp_path: Path) -> None:
    first = archive(clinic, tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    again = archive(clinic, tmp_path / "a")
    assert again.only_checked
    assert again.checked_at > first.checked_at
    assert clinic.execute("SELECT count(*) FROM cachemig.archive") == [(1,)]
    clinic.execute("UPDATE sessions SET cache = '{}' WHERE file_hash = 'key-7'")
    with pytest.raises(Refused, match="the table is another one by now: rows differ in 1"):
        archive(clinic, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE sessions SET cache = '{\"n\": 777}' WHERE file_hash = 'key-7'",
        "UPDATE sessions SET cache = NULL WHERE file_hash = 'key-7'",
        "UPDATE sessions SET file_hash = 'key-x' WHERE file_hash = 'key-7'",
        "UPDATE sessions SET cache = cache WHERE file_hash = 'key-7'",  # a version more
        "DELETE FROM sessions WHERE file_hash = 'key-7'",
        "INSERT INTO sessions (file_hash, cache) VALUES ('late', '[]')",
        "UPDATE sessions SET cache = '{}' WHERE file_hash = 'nothing'",
        "UPDATE sessions SET id = DEFAULT WHERE file_hash = 'key-7'",  # into another block
    ],
)
def test_what_is_written_meanwhile_is_archived_again(clinic: Migrating, tmp_path: Path, change: str) -> None:
    clinic.set(chunk_bytes="500")
    run = step.archive(clinic.settings, Stop(), str(tmp_path / "a"))
    changed = False
    while True:
        try:
            progress = next(run)
        except StopIteration:
            break
        if progress.note is None and progress.done >= 20 and not changed:
            clinic.execute(change)
            changed = True
    assert changed
    assert content(tmp_path / "a")[0] == table(clinic)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE sessions SET cache = '{\"n\": 777}' WHERE file_hash = 'key-7'",
        "UPDATE sessions SET cache = cache WHERE file_hash = 'key-7'",  # a version more
        "UPDATE sessions SET file_hash = 'key-x' WHERE file_hash = 'key-7'",
        "DELETE FROM sessions WHERE file_hash = 'key-7'",
        "UPDATE sessions SET cache = '{}' WHERE file_hash = 'nothing'",
    ],
)
def test_a_change_after_the_last_block_is_found_by_the_comparison(
    clinic: Migrating, tmp_path: Path, change: str
) -> None:
    run = step.archive(clinic.settings, Stop(), str(tmp_path / "a"))
    for progress in run:
        if progress.done == 47 and progress.note is None:
            break
    clinic.execute(change)
    result = finish(run)
    assert result.read_again == 1
    assert content(tmp_path / "a")[0] == table(clinic)


def test_it_is_the_table_at_one_moment(clinic: Migrating, tmp_path: Path) -> None:
    """A row that moves from a block that is still to be compared into one that was: block by block it would be missed,
    or found where it is not any more."""
    clinic.set(chunk_bytes="500")
    clinic.execute("ALTER TABLE sessions ALTER COLUMN id SET GENERATED BY DEFAULT")
    before = table(clinic)
    run = step.archive(clinic.settings, Stop(), str(tmp_path / "a"))
    for progress in run:
        if progress.note == "compared with the table":
            break
    clinic.execute("UPDATE sessions SET id = -1 WHERE file_hash = 'key-39'")
    result = finish(run)
    assert result.read_again == 0
    assert content(tmp_path / "a")[0] == before


def test_a_column_that_is_always_written_is_refused(clinic: Migrating, tmp_path: Path) -> None:
    run = step.archive(clinic.settings, Stop(), str(tmp_path / "a"))
    with pytest.raises(Refused, match="the column is still in use") as caught:
        for number, _ in enumerate(run):
            clinic.execute(
                "UPDATE sessions SET cache = jsonb_build_object('n', %s::int) WHERE file_hash = 'key-7'", number
            )
    assert "stop-writes" in str(caught.value.hint)
    assert not (tmp_path / "a").exists()
    assert clinic.execute("SELECT count(*) FROM cachemig.archive") == [(0,)]
    assert archive(clinic, tmp_path / "a").resumed_at == 1
    assert content(tmp_path / "a")[0] == table(clinic)


def test_a_new_epoch_begins_anew(clinic: Migrating, tmp_path: Path) -> None:
    clinic.set(chunk_bytes="500")
    run = step.archive(clinic.settings, Stop(), str(tmp_path / "a"))
    for progress in run:
        if progress.done >= 10:
            break
    clinic.execute("UPDATE cachemig.migration SET epoch = 5")
    with pytest.raises(Refused, match="epoch 5 has begun meanwhile"):
        finish(run)
    result = archive(clinic, tmp_path / "a")
    assert result.began_anew == "what was there is of another epoch"
    assert result.resumed_at == 0


def test_stopped_it_goes_on(clinic: Migrating, tmp_path: Path) -> None:
    clinic.set(chunk_bytes="500")
    stop = Stop()
    run = step.archive(clinic.settings, stop, str(tmp_path / "a"))
    with pytest.raises(Interrupted) as caught:
        for progress in run:
            if progress.done >= 20:
                stop.request(2)
    assert "goes on where it stopped" in str(caught.value.hint)
    result = archive(clinic, tmp_path / "a")
    assert result.resumed_at >= 3
    assert content(tmp_path / "a")[0] == table(clinic)


KILLED = """
import os, signal, sys
from pathlib import Path
from cachemig.config import load
from cachemig.steps import archive
from cachemig.stop import Stop
import json
flags, environment, to, at = json.loads(sys.argv[1])
for number, progress in enumerate(archive.archive(load(flags, environment, None), Stop(), to, spool=Path(to).parent)):
    if number == at:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_at_any_point_the_same_command_ends_it(clinic: Migrating, tmp_path: Path) -> None:
    """Also within a block, and between the file's name and its registration (by the store's upload)."""
    clinic.set(chunk_bytes="1200")
    flags = {
        "table": "sessions", "column": "cache", "shape": "object", "ttl_from": "seen_at",
        "key_template": f"{clinic.prefix}{{key}}", "chunk_bytes": "1200",
    }  # fmt: skip
    environment = {"CACHEMIG_DSN": clinic.dsn, "CACHEMIG_REDIS_URL": clinic.redis_url}
    to = tmp_path / "a"
    at = 0
    while True:
        arguments = json.dumps([flags, environment, str(to), at])
        done = subprocess.run([sys.executable, "-c", KILLED, arguments], capture_output=True, text=True)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not to.exists()
        assert clinic.execute("SELECT count(*) FROM cachemig.archive") == [(0,)]
        at += 1
    assert at > 3
    assert content(to)[0] == table(clinic)
    assert clinic.execute("SELECT count(*) FROM cachemig.archive") == [(1,)]
    # killed after the rename, before the registration
    clinic.execute("DELETE FROM cachemig.archive")
    assert archive(clinic, to).only_checked
    assert clinic.execute("SELECT count(*) FROM cachemig.archive WHERE checked_at IS NOT NULL") == [(1,)]


def test_a_disk_that_changes_what_was_written_is_noticed(clinic: Migrating, tmp_path: Path) -> None:
    run = step.archive(clinic.settings, Stop(), str(tmp_path / "a"))
    for progress in run:
        if progress.done == 47:
            break
    partial = tmp_path / "a.partial"
    data = bytearray(partial.read_bytes())
    data[len(data) // 2] ^= 1
    partial.write_bytes(data)
    with pytest.raises(Damaged):
        finish(run)
    assert not (tmp_path / "a").exists()
    assert clinic.execute("SELECT count(*) FROM cachemig.archive") == [(0,)]
    archive(clinic, tmp_path / "a")
    assert content(tmp_path / "a")[0] == table(clinic)


def test_a_row_that_was_never_read_is_noticed(
    clinic: Migrating, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison shares no code with the reading: a reader that leaves out a row, or changes it, is found out."""
    real = source.read_rows

    def forgetful(*arguments: Any) -> Iterator[Any]:
        for head, text in real(*arguments):
            if head.key != "key-7":
                yield head, text

    monkeypatch.setattr(source, "read_rows", lambda *a: _Closing(forgetful(*a)))
    with pytest.raises(Refused, match="something was written"):
        archive(clinic, tmp_path / "a")


class _Closing:
    def __init__(self, rows: Iterator[Any]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return self.rows

    def close(self) -> None: ...


def test_nothing_is_written_over(clinic: Migrating, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"something of mine")
    with pytest.raises(Damaged):
        archive(clinic, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"something of mine"
    archive(clinic, tmp_path / "b")
    clinic.execute("UPDATE cachemig.migration SET epoch = 5")
    with pytest.raises(Refused, match="an archive of another epoch"):
        archive(clinic, tmp_path / "b")
    with pytest.raises(StoreFailed, match="no such file or directory"):
        archive(clinic, tmp_path / "missing" / "a")


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("s3://user:secret@bucket/a", "must not hold a password"),
        ("https://host/a?token=secret", "must not hold a password or a query"),
        ("s3://bucket/", "names no file"),
        ("nonsense://bucket/a", "not a store"),
        ("folder/", "names no file"),
    ],
)
def test_places_that_are_no_good(clinic: Migrating, to: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        archive(clinic, to)
    assert "secret" not in str(caught.value)


# Which row is which ------------------------------------------------------------------------------------------------


def rows_of(clinic: Migrating, tmp_path: Path) -> Content:
    path = tmp_path / f"a{time.monotonic_ns()}"
    archive(clinic, path)
    return content(path)[0]


def test_a_table_without_a_primary_key_goes_by_its_key(clinic: Migrating, tmp_path: Path) -> None:
    clinic.execute("ALTER TABLE sessions DROP CONSTRAINT sessions_pkey, ALTER COLUMN id DROP IDENTITY")
    with pytest.raises(TableUnfit, match="1 rows without a key, 1 keys of several rows, such as 'shared'"):
        archive(clinic, tmp_path / "a")
    clinic.execute("DELETE FROM sessions WHERE file_hash IS NULL OR (file_hash = 'shared' AND cache ? 'older')")
    expected = clinic.execute("SELECT file_hash, cache::text FROM sessions WHERE cache IS NOT NULL")
    assert rows_of(clinic, tmp_path) == {(key,): (key, text) for key, text in expected}
    clinic.set(chunk_bytes="500")
    assert rows_of(clinic, tmp_path) == {(key,): (key, text) for key, text in expected}
    clinic.execute("DROP INDEX sessions_file_hash_idx")
    assert rows_of(clinic, tmp_path) == {(key,): (key, text) for key, text in expected}


def test_a_composite_key_of_odd_names_and_types(clinic: Migrating, tmp_path: Path) -> None:
    clinic.set(chunk_bytes="500")
    clinic.execute('''
        ALTER TABLE sessions DROP CONSTRAINT sessions_pkey;
        ALTER TABLE sessions ADD COLUMN "odd %s {x} ""y""" timestamptz NOT NULL DEFAULT now();
        UPDATE sessions SET "odd %s {x} ""y""" = '2026-01-01'::timestamptz + (id % 5) * interval '1 us';
        ALTER TABLE sessions ADD PRIMARY KEY ("odd %s {x} ""y""", id);
    ''')
    for zone in ("Asia/Tokyo", "America/New_York"):
        clinic.execute(f"ALTER DATABASE {clinic.conn.info.dbname} SET timezone = '{zone}'")
        rows = rows_of(clinic, tmp_path)
        assert {(row[1],): found for row, found in rows.items()} == table(clinic)
        assert ("2026-01-01 00:00:00.000001+00", "1") in rows


def test_partitions_and_children(clinic: Migrating, tmp_path: Path) -> None:
    clinic.execute("CREATE TABLE child () INHERITS (sessions)")
    clinic.execute("INSERT INTO child (id, file_hash, cache) OVERRIDING SYSTEM VALUE VALUES (1, 'of child', '[3]')")
    rows = rows_of(clinic, tmp_path)
    assert rows[("public.child", "1")] == ("of child", "[3]")
    assert rows[("public.sessions", "1")][0] == "key-0"
    assert len(rows) == 48
    clinic.execute("INSERT INTO child (id, file_hash, cache) OVERRIDING SYSTEM VALUE VALUES (1, 'again', '[4]')")
    with pytest.raises(TableUnfit, match="nothing tells them apart"):
        archive(clinic, tmp_path / "b")


def test_json_as_it_was_written(migrating: Migrating, tmp_path: Path) -> None:
    migrating.execute("ALTER TABLE sessions ALTER COLUMN cache DROP DEFAULT, ALTER COLUMN cache TYPE json")
    migrating.begin()
    migrating.execute("""INSERT INTO sessions (file_hash, cache) VALUES ('w', E'  {"b" : 1.10,\n"a":1e2, "a":2}  ')""")
    assert rows_of(migrating, tmp_path) == {("1",): ("w", '  {"b" : 1.10,\n"a":1e2, "a":2}  ')}


def test_rows_that_a_policy_would_hide_are_an_error(clinic: Migrating, tmp_path: Path) -> None:
    clinic.execute("ALTER TABLE sessions ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    role = f"r{os.getpid()}_{time.monotonic_ns()}"
    clinic.execute(f"CREATE ROLE {role} LOGIN")
    try:
        clinic.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public, cachemig TO {role}")
        clinic.execute(f"GRANT USAGE ON SCHEMA cachemig TO {role}")
        settings = clinic.set()
        limited = Settings(**{**vars(settings), "dsn": f"{settings.dsn} user={role}"})
        with pytest.raises(RowsHidden):
            finish(step.archive(limited, Stop(), str(tmp_path / "a")))
    finally:
        clinic.execute(f"DROP OWNED BY {role}")
        clinic.execute(f"DROP ROLE {role}")


def test_a_generated_column_is_refused(clinic: Migrating, tmp_path: Path) -> None:
    clinic.execute("ALTER TABLE sessions ADD COLUMN made jsonb GENERATED ALWAYS AS ('[1]') STORED")
    table = source.facts
    from cachemig.source.table import inspect

    settings = clinic.set(column="made")
    with pytest.raises(TableUnfit, match="generated column"):
        table(clinic.conn, inspect(clinic.conn, settings))


# Stores --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://bucket/a.zst"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def stored(url: str) -> bytes:
    with fsspec.open(url, "rb") as file:
        return bytes(file.read())


def test_a_store_gets_it_when_it_is_complete(clinic: Migrating, tmp_path: Path, memory: str) -> None:
    result = archive(clinic, memory)
    data = stored(memory)
    assert hashlib.sha256(data).hexdigest() == result.sha256
    (tmp_path / "copy").write_bytes(data)
    assert content(tmp_path / "copy")[0] == table(clinic)
    assert list(tmp_path.glob("*a.zst*")) == []
    assert archive(clinic, memory).only_checked
    assert result.location == memory


def test_a_store_that_keeps_something_else_is_noticed(
    clinic: Migrating, tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MemoryFileSystem.put_file

    def cut(self: Any, local: str, remote: str, **options: Any) -> None:
        real(self, local, remote, **options)
        self.pipe_file(remote, self.cat_file(remote)[:-1])

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", cut)
        with pytest.raises(StoreFailed, match="not what was sent"):
            archive(clinic, memory)
    assert clinic.execute("SELECT count(*) FROM cachemig.archive") == [(0,)]
    assert archive(clinic, memory).resumed_at == 1
    assert len(stored(memory)) > 0


# Taking out ----------------------------------------------------------------------------------------------------------


def forget(case: Migrating, to: Path | str, *keys: str) -> step.Forgotten:
    return finish(step.forget(case.settings, Stop(), str(to), keys, spool=case.directory))


@pytest.mark.parametrize("of_store", [False, True])
def test_forgotten_keys_are_nowhere_in_it(clinic: Migrating, tmp_path: Path, memory: str, of_store: bool) -> None:
    clinic.set(chunk_bytes="500")
    to = memory if of_store else str(tmp_path / "a.zst")
    first = archive(clinic, to)
    clinic.execute("DELETE FROM sessions WHERE file_hash IN ('shared', 'key-3')")
    clinic.sync()
    result = forget(clinic, to, "shared", "key-3", "never heard of")
    assert (result.keys, result.rows, result.registered) == (3, 3, True)
    data = stored(to) if of_store else Path(to).read_bytes()
    (tmp_path / "copy").write_bytes(data)
    rows, found = content(tmp_path / "copy")
    assert rows == table(clinic)
    assert found.manifest is not None
    assert found.manifest.forgotten == 3
    assert result.sha256 == hashlib.sha256(data).hexdigest()
    assert clinic.execute("SELECT encode(sha256, 'hex'), rows FROM cachemig.archive WHERE checked_at IS NOT NULL") == [
        (result.sha256, first.rows - 3)
    ]
    newest = newest_archive(clinic.conn)
    assert newest is not None
    assert newest.checked_at == first.checked_at  # nothing was compared anew
    figures = clinic.execute("SELECT figures::text FROM cachemig.journal WHERE command = 'archive --forget'")[0][0]
    assert "key-3" not in figures
    assert stat.S_IMODE((tmp_path / "a.zst").stat().st_mode) == 0o600 if not of_store else True
    assert not list(tmp_path.glob("a.zst.*"))
    assert archive(clinic, to).only_checked  # and it is what the table is now


def test_forgetting_nothing_changes_nothing(clinic: Migrating, tmp_path: Path) -> None:
    archive(clinic, tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    assert forget(clinic, tmp_path / "a", "never heard of").rows == 0
    assert (tmp_path / "a").read_bytes() == before


def test_an_unfinished_archive_is_not_overlooked(clinic: Migrating, tmp_path: Path) -> None:
    archive(clinic, tmp_path / "a")
    (tmp_path / "a.partial").write_bytes(b"")
    with pytest.raises(Refused, match="may hold these keys too"):
        forget(clinic, tmp_path / "a", "key-1")
    with pytest.raises(StoreFailed, match="there is no archive"):
        forget(clinic, tmp_path / "b", "key-1")


def test_killed_before_it_is_registered_the_same_command_registers_it(
    clinic: Migrating, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(clinic, tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(step, "_register_rest", lambda *_: None)
        forget(clinic, tmp_path / "a", "key-1")
    result = forget(clinic, tmp_path / "a", "key-1")
    assert result.rows == 0
    assert clinic.execute("SELECT encode(sha256, 'hex') FROM cachemig.archive WHERE checked_at IS NOT NULL") == [
        (result.sha256,)
    ]


def test_a_damaged_archive_is_left_as_it_is(clinic: Migrating, tmp_path: Path) -> None:
    archive(clinic, tmp_path / "a")
    data = bytearray((tmp_path / "a").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(Damaged):
        forget(clinic, tmp_path / "a", "key-1")
    assert (tmp_path / "a").read_bytes() == data


# Size ----------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_memory_is_bounded_by_one_value(clinic: Migrating, tmp_path: Path, measured: Callable[[str], int]) -> None:
    clinic.execute("""
        INSERT INTO sessions (file_hash, cache)
        SELECT 'large-' || n, to_jsonb((
            SELECT string_agg(md5((n * 1000000 + i)::text), '') FROM generate_series(1, 1600000) i))
        FROM generate_series(1, 3) AS n
    """)
    used = measured(str(tmp_path / "a"))
    assert used < 4 * 51_200_000, used
    assert (tmp_path / "a").stat().st_size > 3 * 20_000_000


PEAK = """
import json, resource, sys
from pathlib import Path
from cachemig.config import load
from cachemig.steps import archive
from cachemig.stop import Stop
flags, environment, to = json.loads(sys.argv[1])
settings = load(flags, environment, None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in archive.archive(settings, Stop(), to): pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.fixture
def measured(clinic: Migrating) -> Callable[[str], int]:
    def run(to: str) -> int:
        flags = {"table": "sessions", "column": "cache", "shape": "object", "ttl_from": "seen_at",
                 "key_template": f"{clinic.prefix}{{key}}"}  # fmt: skip
        environment = {"CACHEMIG_DSN": clinic.dsn, "CACHEMIG_REDIS_URL": clinic.redis_url}
        arguments = json.dumps([flags, environment, to])
        done = subprocess.run([sys.executable, "-c", PEAK, arguments], capture_output=True, text=True, check=True)
        return int(done.stdout)

    return run

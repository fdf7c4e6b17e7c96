"""A whole migration of tables of every form: partitioned, without a primary key, with odd keys, types and names; while
somebody writes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

import psycopg
import pytest
from psycopg import sql

from tests.integration.conftest import Migrating

ROWS = 240
CACHE = "cache jsonb, seen_at timestamptz, created_at timestamptz NOT NULL DEFAULT clock_timestamp()"
HEX = "md5(n::text)"
COLLATION = "en-x-icu"
"""PostgreSQL from wheels has none but those that compare code points; Debian's has this one."""


@dataclass(frozen=True)
class Form:
    """A table. `rows`: by column, an SQL expression of n. `moves`: an assignment that moves a row elsewhere."""

    ddl: str
    rows: dict[str, str]
    table: str = "forms"
    """As the setting has it, and as SQL does."""
    key: str = "file_hash"
    column: str = "cache"
    moves: str = "seen_at = now()"
    settings: dict[str, str] = field(default_factory=dict)


FORMS = {
    "partitioned by range": Form(
        f"""CREATE TABLE forms (id bigint PRIMARY KEY, file_hash text, {CACHE}) PARTITION BY RANGE (id);
        CREATE TABLE forms_1 PARTITION OF forms FOR VALUES FROM (MINVALUE) TO (100);
        CREATE TABLE forms_2 PARTITION OF forms FOR VALUES FROM (100) TO (200);
        CREATE TABLE forms_3 PARTITION OF forms DEFAULT;
        CREATE INDEX ON forms (file_hash)""",
        {"id": "n", "file_hash": f"'k' || {HEX}"},
        moves="id = (id + 777) % 500 + 10000",
    ),
    "partitioned two levels deep": Form(
        f"""CREATE TABLE forms (id bigint, place text, file_hash text, {CACHE}, PRIMARY KEY (place, id))
            PARTITION BY RANGE (id);
        CREATE TABLE forms_1 PARTITION OF forms FOR VALUES FROM (MINVALUE) TO (120) PARTITION BY LIST (place);
        CREATE TABLE forms_1_a PARTITION OF forms_1 FOR VALUES IN ('a');
        CREATE TABLE forms_1_b PARTITION OF forms_1 DEFAULT;
        CREATE TABLE forms_2 PARTITION OF forms DEFAULT PARTITION BY HASH (place);
        CREATE TABLE forms_2_0 PARTITION OF forms_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE forms_2_1 PARTITION OF forms_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        CREATE INDEX ON forms (file_hash)""",
        {"id": "n", "place": "chr(97 + n % 5)", "file_hash": f"'k' || {HEX}"},
        moves="place = chr(97 + (ascii(place) + 1) % 5)",
    ),
    "partitioned by hash, no primary key": Form(
        f"""CREATE TABLE forms (file_hash text, {CACHE}) PARTITION BY HASH (file_hash);
        CREATE TABLE forms_0 PARTITION OF forms FOR VALUES WITH (MODULUS 3, REMAINDER 0);
        CREATE TABLE forms_1 PARTITION OF forms FOR VALUES WITH (MODULUS 3, REMAINDER 1);
        CREATE TABLE forms_2 PARTITION OF forms FOR VALUES WITH (MODULUS 3, REMAINDER 2);
        CREATE INDEX ON forms (file_hash)""",
        {"file_hash": f"'k' || {HEX}"},
    ),
    "no primary key": Form(
        f"CREATE TABLE forms (file_hash text, {CACHE}); CREATE INDEX ON forms (file_hash)",
        {"file_hash": f"'k' || {HEX}"},
    ),
    "no primary key, rows that share keys": Form(
        f"CREATE TABLE forms (file_hash text, {CACHE}); CREATE INDEX ON forms (file_hash)",
        {"file_hash": "'k' || n / 3"},
    ),
    "a unique index for a primary key": Form(
        f"""CREATE TABLE forms (serial text NOT NULL, file_hash text, {CACHE});
        CREATE UNIQUE INDEX ON forms (serial); CREATE INDEX ON forms (file_hash)""",
        {"serial": HEX, "file_hash": "'k' || n"},
        moves="serial = md5(serial)",
    ),
    "a composite primary key of collated text": Form(
        f"""CREATE TABLE forms (a text COLLATE "{COLLATION}", b text COLLATE "{COLLATION}", file_hash text, {CACHE},
            PRIMARY KEY (a, b));
        CREATE INDEX ON forms (file_hash)""",
        {
            "a": r"(ARRAY['o''brien', 'O\Brien', '\\', '\n', '\"', 'Äpfel', 'apfel', 'Zoo', 'zoo', '', ' ', '%s',"
            " '{a,b}', 'NULL'])[1 + n % 14]",
            "b": f"repeat(E'''', n % 3) || {HEX}",
            "file_hash": r"'k\' || n || ''''",
        },
        moves=r"a = a || '\'",
    ),
    "keys are uuids": Form(
        f"CREATE TABLE forms (id uuid PRIMARY KEY, file_hash uuid, {CACHE}); CREATE INDEX ON forms (file_hash)",
        {"id": f"{HEX}::uuid", "file_hash": "md5('k' || n)::uuid"},
        moves="id = md5(id::text)::uuid",
    ),
    "keys are bigints": Form(
        f"CREATE TABLE forms (id int PRIMARY KEY, file_hash bigint UNIQUE, {CACHE})",
        {"id": "-n", "file_hash": "(n - 100) * 10000000000"},
        moves="id = id - 1000",
    ),
    "odd names": Form(
        f"""CREATE SCHEMA "Odd 'schema' % {{}}";
        CREATE TABLE "Odd 'schema' % {{}}"."ta""ble.x" ("The Id" int PRIMARY KEY, "ke%y ""1"" z" text,
            "ca che %s" {CACHE.removeprefix("cache ")});
        CREATE INDEX ON "Odd 'schema' % {{}}"."ta""ble.x" ("ke%y ""1"" z")""",
        {'"The Id"': "n", '"ke%y ""1"" z"': "'k' || n"},
        table='"Odd \'schema\' % {}"."ta""ble.x"',
        key='ke%y "1" z',
        column="ca che %s",
        moves='"The Id" = "The Id" + 1000',
    ),
}


class Table:
    """The table of a form, as an application sees it."""

    def __init__(self, form: Form, dsn: str) -> None:
        self.form = form
        self.conn = psycopg.connect(dsn, autocommit=True)
        self.random = Random(1)
        self.parts = {
            "t": sql.SQL(form.table),
            "key": sql.Identifier(form.key),
            "column": sql.Identifier(form.column),
            "moves": sql.SQL(form.moves),
            "columns": sql.SQL(", ").join(sql.SQL(name) for name in form.rows),
            "values": sql.SQL(", ").join(sql.SQL(value) for value in form.rows.values()),
        }

    def insert(self, first: int, last: int) -> None:
        self.run(
            "INSERT INTO {t} ({columns}, {column}, seen_at, created_at) SELECT {values},"
            " CASE n % 9 WHEN 0 THEN '{{}}' ELSE jsonb_build_object('n', n, 'x', repeat('y', 100 + n % 50)) END, now(),"
            " now() + n * interval '1 ms' FROM generate_series({first}, {last}) AS n",
            first=first,
            last=last,
        )

    def write_something(self, number: int) -> None:
        """A change of a random row: of its value, its place, its key; or it goes; or another one comes."""
        what, n = self.random.randrange(5), self.random.randrange(ROWS)
        if what == 4:
            self.insert(ROWS + number, ROWS + number)
            return
        one = " WHERE ({key})::text = (SELECT ({key})::text FROM {t} ORDER BY {key} OFFSET {n} LIMIT 1)"
        statements = (
            "UPDATE {t} SET {column} = jsonb_build_object('changed', {number})" + one,
            "UPDATE {t} SET {moves}" + one,
            "UPDATE {t} SET {key} = (SELECT {key} FROM {t} ORDER BY {key} DESC LIMIT 1)" + one,
            "DELETE FROM {t}" + one,
        )
        if what == 2 and "UNIQUE" in self.form.ddl:
            what = 0
        self.run(statements[what], n=n, number=number)

    def run(self, statement: str, **numbers: int) -> None:
        literals = {name: sql.Literal(number) for name, number in numbers.items()}
        self.conn.execute(sql.SQL(statement).format(**self.parts, **literals))

    def entries(self) -> dict[str, bytes]:
        """Of each key the newest row with a value, as Postgres prints it."""
        query = sql.SQL(
            "SELECT DISTINCT ON ({key}) {key}::text, {column}::text FROM {t}"
            " WHERE {column}::text NOT IN ('{{}}', 'null') ORDER BY {key}, created_at DESC"
        ).format(**self.parts)
        return {key: text.encode() for key, text in self.conn.execute(query).fetchall()}

    @contextmanager
    def written_to(self) -> Iterator[None]:
        """Somebody writes all the while."""
        ended = threading.Event()
        failed: list[Exception] = []

        def write() -> None:
            number = 0
            try:
                while not ended.wait(0.003):
                    number += 1
                    self.write_something(number)
            except Exception as exc:
                failed.append(exc)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            yield
        finally:
            ended.set()
            writer.join()
        assert failed == []


@pytest.fixture(params=FORMS)
def table(request: pytest.FixtureRequest, migrating: Migrating) -> Iterator[Table]:
    form = FORMS[request.param]
    has_icu = migrating.execute("SELECT true FROM pg_collation WHERE collname = %s", COLLATION)
    migrating.execute(form.ddl if has_icu else form.ddl.replace(COLLATION, "pg_c_utf8"))
    found = Table(form, migrating.dsn)
    found.insert(1, ROWS)
    migrating.set(
        table=form.table, column=form.column, key_column=form.key, chunk_bytes="3KiB", accept="row-key", **form.settings
    )
    yield found
    found.conn.close()


def test_a_whole_migration(migrating: Migrating, table: Table) -> None:
    migrating.begin()
    done = migrating.backfill()
    # Nobody writes: chunks neither leave out a row nor share one.
    held = table.entries()
    assert migrating.in_redis() == held
    assert done.tally.delivered == len(held)
    chunks = migrating.execute("SELECT count(*), sum((figures ->> 'entries')::int) FROM cachemig.chunk")[0]
    assert chunks[0] > 4
    assert chunks[1] == len(held)
    with table.written_to():
        done = migrating.backfill(restart=True)
        migrating.sync()
    migrating.sync()
    assert done.tally.failed == 0
    assert migrating.in_redis() == table.entries() != held
    verified = migrating.verify()
    assert verified.outcome.passed, verified

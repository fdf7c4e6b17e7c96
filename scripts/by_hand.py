# ruff: noqa: E501  # SQL, in lines of its own
"""Writes sql/by_hand/10_init.sql, 20_dual_write.sql, 50_stop_writes.sql and 70_drop_column.sql out of the statements that the
tool itself runs, so that a DBA reads and runs those very ones. Run it after a change of sql/*.sql; a test compares.

    python scripts/by_hand.py
"""

from __future__ import annotations

import json

from cachemig.config import load
from cachemig.source import queries
from cachemig.steps.drop_column.migration import FILE_TRIES

NOTE = "-- Written by scripts/by_hand.py, out of the statements of sql/*.sql."

LIMITS = """SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '{timeout}';
SET LOCAL idle_in_transaction_session_timeout = '60s';
SET LOCAL application_name = 'cachemig {step}';"""

FILLED = r"""-- Names and values are put into the statements by this: {table} stands for the table, and so on. Gone with the session.
CREATE TEMPORARY TABLE by_hand (n integer GENERATED ALWAYS AS IDENTITY, name text, part text) ON COMMIT DROP;
CREATE FUNCTION pg_temp.quoted(name text) RETURNS text LANGUAGE sql
    RETURN '"' || pg_catalog.replace(name, '"', '""') || '"';
CREATE FUNCTION pg_temp.filled(statement text) RETURNS text LANGUAGE plpgsql AS $filled$
DECLARE
    one record;
BEGIN
    FOR one IN SELECT name, part FROM pg_temp.by_hand ORDER BY n LOOP
        statement := pg_catalog.replace(statement, '{' || one.name || '}', one.part);
    END LOOP;
    RETURN pg_catalog.replace(pg_catalog.replace(statement, '{{', '{'), '}}', '}');
END
$filled$;
"""

ABOUT_THE_TABLE = """INSERT INTO pg_temp.by_hand (name, part)
SELECT 'table', pg_temp.quoted(n.nspname) || '.' || pg_temp.quoted(c.relname)
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = :'table'::regclass;
INSERT INTO pg_temp.by_hand (name, part) VALUES
    ('key', pg_temp.quoted(:'key')),
    ('column', pg_temp.quoted(:'column'));
"""

IN_A_BLOCK = """INSERT INTO pg_temp.by_hand (name, part) VALUES
    ('lock_timeout', pg_catalog.quote_literal('2s')),
    ('soak', pg_catalog.quote_literal(:'soak')),
    ('fresh', pg_catalog.quote_literal(:'fresh')),
    ('no_clients', :'no_clients'::boolean::text),
    ('column_setting', pg_catalog.quote_literal(:'column'));
INSERT INTO pg_temp.by_hand (name, part)
SELECT 'table_setting', pg_catalog.quote_literal(coalesce(
    (SELECT m.settings ->> 'table' FROM cachemig.migration AS m
     WHERE pg_catalog.to_regclass(m.settings ->> 'table') = :'table'::regclass), :'table'));
"""


def default(**variables: str) -> str:
    lines = []
    for name, value in variables.items():
        lines += [rf"\if :{{?{name}}}", r"\else", rf"    \set {name} '{value}'", r"\endif"]
    return "\n".join(lines)


def part(name: str, text: str) -> str:
    return f"INSERT INTO pg_temp.by_hand (name, part) VALUES ('{name}', $by_hand$\n{text}\n$by_hand$);"


def run(text: str) -> str:
    return f"SELECT pg_temp.filled($by_hand$\n{text}\n$by_hand$) \\gexec"


def raw(file: str, name: str) -> str:
    return queries.statements(file)[name]


def bare(file: str, name: str) -> str:
    return "\n".join(line for line in raw(file, name).splitlines() if not line.startswith("--"))


def document(*parts: str) -> str:
    return "\n\n".join(p.strip("\n") for p in parts) + "\n"


def init() -> str:
    identity = load({"table": "@table@", "column": "@column@", "key_column": "@key@"}, {}, None).identity()
    settings = json.dumps(identity, sort_keys=True)
    for name in ("table", "column", "key"):
        settings = settings.replace(f'"@{name}@"', f"' || pg_catalog.to_json(:'{name}'::text) || '")
    return document(
        """-- The control schema, and the migration in phase idle: what `cachemig init` makes.
--
--   psql -X -d DATABASE -v table=therapy_sessions -v column=analytics_cache -v key=file_hash -f sql/by_hand/10_init.sql
--
-- Safe on a live system, because it touches no table of the application: only new objects in a schema of its own, in one
-- transaction. Where the settings of cachemig.toml are others than the defaults, give them all, as one line of JSON with sorted names: -v
-- settings='{"codec": "json", ...}'; `cachemig status` says which differ. The functions that applications may call in SQL come with
-- the first `cachemig dual-write`, which changes nothing else where 20_dual_write.sql was run.
-- Taken back by: DROP SCHEMA cachemig CASCADE, while the phase is idle.""",
        NOTE,
        r"\set ON_ERROR_STOP on",
        "BEGIN;\n" + LIMITS.format(timeout="60s", step="init"),
        raw("control", "create_schema"),
        raw("control", "create_control"),
        r"\if :{?settings}" + "\n" + r"\else" + f"\n    SELECT '{settings}' AS settings \\gset\n" + r"\endif",
        """-- The fingerprint is of this very text: by it the tool knows whether it is run with the same settings.
INSERT INTO cachemig.migration (phase, settings, fingerprint, changed_by)
VALUES ('idle', :'settings', pg_catalog.left(pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(:'settings', 'UTF8')), 'hex'), 16),
        session_user || ' (by hand)');
INSERT INTO cachemig.journal (who, command, phase_to, epoch, figures)
SELECT session_user || ' (by hand)', 'init', phase, epoch, pg_catalog.jsonb_build_object('settings', settings)
FROM cachemig.migration;
COMMIT;""",
    )


def dual_write() -> str:
    return document(
        r"""-- Capture: from here on every committed write to the column leaves a mark. What `cachemig dual-write` does.
--
--   psql -X -d DATABASE -v table=therapy_sessions -v column=analytics_cache -v key=file_hash \
--        -v order_by=created_at -f sql/by_hand/20_dual_write.sql
--
-- `order_by` only where several rows may share a key: the newest of them is the entry.
-- Safe on a live system, because: the lock lets readers through, is waited for 2 s at most, and held for an instant; a write of the
-- application waits for nothing but an insert in its own transaction; all of it is one transaction. "canceling statement
-- due to lock timeout" means that nothing was changed: run it again.
-- Not for a table with a BEFORE UPDATE trigger that sets the column behind the statement's back (cachemig doctor names
-- it): `cachemig dual-write --format sql` writes what that takes.
-- The first `cachemig sync` afterwards begins an epoch by itself. Taken back by `cachemig dual-write --disable`.""",
        NOTE,
        r"\set ON_ERROR_STOP on",
        default(order_by=""),
        "BEGIN;\n" + LIMITS.format(timeout="60s", step="dual-write"),
        r"""SELECT phase <> 'idle' AS not_idle FROM cachemig.migration FOR UPDATE \gset
\if :not_idle
    \warn 'The migration is not in phase idle: nothing is changed.'
    ROLLBACK;
    \q
\endif""",
        FILLED,
        ABOUT_THE_TABLE,
        """INSERT INTO pg_temp.by_hand (name, part)
SELECT 'columns', pg_catalog.string_agg(pg_temp.quoted(c), ', ' ORDER BY n)
FROM pg_catalog.unnest(ARRAY[:'column', :'key', nullif(:'order_by', '')]) WITH ORDINALITY AS u (c, n) WHERE c IS NOT NULL;""",
        raw("files", "file_begin_epoch"),
        raw("capture", "mark_known"),
        "-- Last of all, for the application waits for it.\n" + "LOCK TABLE :table IN SHARE ROW EXCLUSIVE MODE;",
        *(
            run(raw("capture", name))
            for name in ("capture_function", "capture_truncate_function", "capture_triggers_columns", "capture_always")
        ),
        """UPDATE cachemig.migration
SET phase = 'dual-write', changed_at = pg_catalog.clock_timestamp(), changed_by = session_user || ' (by hand)';
INSERT INTO cachemig.journal (who, command, phase_from, phase_to, epoch, figures)
SELECT session_user || ' (by hand)', 'dual-write', 'idle', phase, epoch, '{"capture": "columns"}' FROM cachemig.migration;
COMMIT;""",
    )


def executed(text: str) -> str:
    return f"    EXECUTE $statement$\n{text.rstrip(';')}\n$statement$;"


def stop_writes() -> str:
    statements = [
        executed("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"),
        *(
            executed(raw("capture", name))
            for name in (
                "guard_drop",
                "capture_drop",
                "guard_function",
                "guard_truncate_function",
                "guard_triggers_columns",
                "guard_always",
            )
        ),
    ]
    return document(
        r"""-- The column is frozen: a guard takes the place of capture, and writes go to Redis alone. What `cachemig stop-writes` does.
--
--   psql -X -d DATABASE -v table=therapy_sessions -v column=analytics_cache -v key=file_hash \
--        -f sql/by_hand/50_stop_writes.sql
--
-- -v guard=reject: a late write to the column fails; else it is kept, and brought to Redis. -v soak='24 hours', -v fresh='1
-- hour', -v max_lag='5 seconds', -v no_clients=true as the settings and flags of that name.
-- Safe on a live system, because: it looks at its gates first, and does all of it or nothing; the lock is waited for 2 s
-- at most, and held for an instant; what an old instance writes to the column from then on is kept.
-- What it cannot see is Redis. So `cachemig stop-writes --execute` comes after it: that waits for the applications, and delivers
-- what was on its way. Taken back by `cachemig rollback`, which copies back what was written to Redis alone.""",
        NOTE,
        r"\set ON_ERROR_STOP on",
        default(guard="forward", soak="24 hours", fresh="1 hour", max_lag="5 seconds", no_clients="false"),
        "BEGIN;\n" + LIMITS.format(timeout="60s", step="stop-writes"),
        FILLED,
        part("statements", "\n".join(statements)),
        IN_A_BLOCK,
        f"""INSERT INTO pg_temp.by_hand (name, part)
SELECT row.name, CASE WHEN a.atttypid = 'json'::regtype THEN pg_catalog.replace($by_hand${bare("scan", "nonempty_json")}$by_hand$, '{{row}}', row.of)
                      ELSE pg_catalog.replace($by_hand${bare("scan", "nonempty_jsonb")}$by_hand$, '{{row}}', row.of) END
FROM (VALUES ('new_nonempty', 'NEW'), ('old_nonempty', 'OLD')) AS row (name, of)
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = :'table'::regclass AND a.attname = :'column';
INSERT INTO pg_temp.by_hand (name, part) VALUES
    ('max_lag', pg_catalog.quote_literal(:'max_lag')),
    ('rejects', CASE :'guard' WHEN 'reject' THEN 'true' ELSE 'false' END),
    ('figures', pg_catalog.quote_literal(pg_catalog.jsonb_build_object('guard', :'guard'))),
    ('columns', pg_temp.quoted(:'column') || ', ' || pg_temp.quoted(:'key')),
    ('column_text', pg_catalog.quote_literal(:'column'));
INSERT INTO pg_temp.by_hand (name, part)
SELECT 'table_text', pg_catalog.quote_literal(n.nspname || '.' || c.relname)
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = :'table'::regclass;""",
        ABOUT_THE_TABLE,
        run(raw("files", "stop_writes_migration")),
        "COMMIT;",
    )


def inner(text: str) -> str:
    return text.partition("DO $cachemig$\n")[2].rpartition("\n$cachemig$;")[0] + ";"


def drop_column() -> str:
    return document(
        r"""-- The drop. This destroys data: have an archive that was read back, and 60_inspect_column.sql empty of BLOCKS.
--
--   psql -X -d DATABASE -v table=public.therapy_sessions -v column=analytics_cache -f sql/by_hand/70_drop_column.sql
--
-- Where this tool has moved the column, it looks at the gates first: phase redis-only for the soak without a late write, a
-- fresh verification that passed, an archive that was read back since, no application on an older phase, no function that
-- mentions the column. -v soak='7 days', -v fresh='1 hour', -v no_clients=true, -v accept='{f()}' as the settings and flags of
-- that name. Where no migration is known it only drops.
-- Safe on a live system, because: the lock is waited for 2 s at a time, so nobody queues behind it for longer; under the lock
-- only the catalog is changed; without CASCADE Postgres refuses where anything depends on the column; all of it is one
-- transaction. "canceling statement due to lock timeout", or "in use at every try", means that nothing was changed: run
-- it again a little later, and find out by 60_inspect_column.sql who holds the table. Never take the timeout away to force it.""",
        NOTE,
        r"\set ON_ERROR_STOP on",
        default(soak="7 days", fresh="1 hour", no_clients="false", accept="{}"),
        "BEGIN;\n" + LIMITS.format(timeout="130s", step="drop-column"),
        r"""SELECT pg_catalog.to_regclass('cachemig.migration') IS NOT NULL AS migrated \gset
\if :migrated""",
        FILLED,
        part("lock", bare("drop_column", "drop_lock")),
        part("own_triggers", inner(raw("drop_column", "drop_own_triggers"))),
        part("alter", raw("drop_column", "drop_alter")),
        part("notify", bare("drop_column", "drop_notify")),
        IN_A_BLOCK,
        ABOUT_THE_TABLE.replace("    ('key', pg_temp.quoted(:'key')),\n", ""),
        rf"""INSERT INTO pg_temp.by_hand (name, part) VALUES
    ('drops', 'DROP COLUMN IF EXISTS ' || pg_temp.quoted(:'column')),
    ('tries', '{FILE_TRIES}'),
    ('figures', pg_catalog.quote_literal(pg_catalog.jsonb_build_object('columns', ARRAY[:'column']))),
    ('accept', pg_catalog.quote_literal(:'accept')),
    ('pattern', pg_catalog.quote_literal(
        '(?<!\w)(' || pg_catalog.regexp_replace(:'column', '([^[:alnum:]_])', '\\\1', 'g') || ')(?!\w)'));
INSERT INTO pg_temp.by_hand (name, part)
SELECT 'regclass', pg_catalog.quote_literal(part) FROM pg_temp.by_hand WHERE name = 'table';""",
        run(raw("drop_column", "drop_migration")),
        r"\else",
        raw("drop_column", "drop_lock").replace("{table}", ":table"),
        r"""-- What this tool put on the table, since it names the column.
SELECT pg_catalog.format('DROP TRIGGER IF EXISTS %I ON %s', tgname, :'table'::regclass)
FROM pg_catalog.pg_trigger
WHERE tgrelid = :'table'::regclass AND NOT tgisinternal AND tgparentid = 0 AND tgname LIKE 'cachemig\_%' \gexec""",
        'ALTER TABLE :table DROP COLUMN IF EXISTS :"column";',
        raw("drop_column", "drop_notify"),
        r"\endif",
        "COMMIT;",
    )


FILES = {
    "10_init.sql": init,
    "20_dual_write.sql": dual_write,
    "50_stop_writes.sql": stop_writes,
    "70_drop_column.sql": drop_column,
}


def main() -> None:
    for name, made in FILES.items():
        (queries.directory() / "by_hand" / name).write_text(made(), encoding="utf-8")


if __name__ == "__main__":
    main()

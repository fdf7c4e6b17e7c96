-- The column is frozen: a guard takes the place of capture, and writes go to Redis alone. What `cachemig stop-writes` does.
--
--   psql -X -d DATABASE -v table=therapy_sessions -v column=analytics_cache -v key=file_hash \
--        -f sql/by_hand/50_stop_writes.sql
--
-- -v guard=reject: a late write to the column fails; else it is kept, and brought to Redis. -v soak='24 hours', -v fresh='1
-- hour', -v max_lag='5 seconds', -v no_clients=true as the settings and flags of that name.
-- Safe on a live system, because: it looks at its gates first, and does all of it or nothing; the lock is waited for 2 s
-- at most, and held for an instant; what an old instance writes to the column from then on is kept.
-- What it cannot see is Redis. So `cachemig stop-writes --execute` comes after it: that waits for the applications, and delivers
-- what was on its way. Taken back by `cachemig rollback`, which copies back what was written to Redis alone.

-- Written by scripts/by_hand.py, out of the statements of sql/*.sql.

\set ON_ERROR_STOP on

\if :{?guard}
\else
    \set guard 'forward'
\endif
\if :{?soak}
\else
    \set soak '24 hours'
\endif
\if :{?fresh}
\else
    \set fresh '1 hour'
\endif
\if :{?max_lag}
\else
    \set max_lag '5 seconds'
\endif
\if :{?no_clients}
\else
    \set no_clients 'false'
\endif

BEGIN;
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';
SET LOCAL idle_in_transaction_session_timeout = '60s';
SET LOCAL application_name = 'cachemig stop-writes';

-- Names and values are put into the statements by this: {table} stands for the table, and so on. Gone with the session.
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

INSERT INTO pg_temp.by_hand (name, part) VALUES ('statements', $by_hand$
    EXECUTE $statement$
LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE
$statement$;
    EXECUTE $statement$
-- Safe: without the triggers the table is as it was before the migration.
DROP TRIGGER IF EXISTS cachemig_guard ON {table};
DROP TRIGGER IF EXISTS cachemig_guard_update ON {table};
DROP TRIGGER IF EXISTS cachemig_guard_truncate ON {table};
DROP FUNCTION IF EXISTS cachemig.guard();
DROP FUNCTION IF EXISTS cachemig.guard_truncate()
$statement$;
    EXECUTE $statement$
-- Safe: without the triggers the table is as it was before. Runs under the lock taken before, in one transaction.
DROP TRIGGER IF EXISTS cachemig_capture ON {table};
DROP TRIGGER IF EXISTS cachemig_capture_update ON {table};
DROP TRIGGER IF EXISTS cachemig_capture_truncate ON {table};
DROP FUNCTION IF EXISTS cachemig.capture();
DROP FUNCTION IF EXISTS cachemig.capture_truncate()
$statement$;
    EXECUTE $statement$
-- After stop-writes. What the application writes to the column all the same stays there (its statement succeeds), and is
-- kept for Redis, with who wrote it; or the statement fails, where the guard is to reject. A statement that names the
-- column and leaves it as it was (an ORM writes back all it has read) is no write. A row that goes takes its key with it,
-- whatever the guard: that is no write to the column.
CREATE OR REPLACE FUNCTION cachemig.guard() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $guard$
DECLARE
    holds boolean;
    whose text := format('%s (user %s, from %s)', coalesce(nullif(current_setting('application_name'), ''), 'unnamed'),
                         coalesce(nullif(nullif(current_setting('role'), ''), 'none'), session_user),
                         coalesce(host(inet_client_addr()), 'this machine'));
BEGIN
    IF current_setting('cachemig.copying', true) = 'on' THEN  -- rollback brings back what Redis has newer
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND OLD.{key}::text IS DISTINCT FROM NEW.{key}::text) THEN
        INSERT INTO cachemig.late_write (key, kind, writer) SELECT OLD.{key}::text, 'delete', whose
        WHERE OLD.{key} IS NOT NULL;
    END IF;
    IF TG_OP = 'DELETE' OR NEW.{key} IS NULL THEN
        RETURN NULL;
    END IF;
    holds := {new_nonempty};
    IF TG_OP = 'UPDATE' THEN
        IF OLD.{column}::text IS NOT DISTINCT FROM NEW.{column}::text OR NOT (holds OR {old_nonempty}) THEN
            RETURN NULL;
        END IF;
    ELSIF NOT holds THEN
        RETURN NULL;
    END IF;
    IF {rejects} THEN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = 'cachemig: ' || {column_text} || ' of ' || {table_text} || ' is not written any more: its cache is in Redis',
            HINT = 'write it through CacheService; cachemig rollback has the column used again';
    END IF;
    INSERT INTO cachemig.late_write (key, kind, value, writer)
    VALUES (NEW.{key}::text, 'write', CASE WHEN holds THEN NEW.{column}::text END, whose);
    RETURN NULL;
END
$guard$;
REVOKE ALL ON FUNCTION cachemig.guard() FROM PUBLIC
$statement$;
    EXECUTE $statement$
-- Rows that go all at once; those that came after an old snapshot keep their keys in Redis until they expire.
CREATE OR REPLACE FUNCTION cachemig.guard_truncate() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $guard$
BEGIN
    INSERT INTO cachemig.late_write (key, kind, writer)
    SELECT DISTINCT t.{key}::text, 'delete', 'TRUNCATE by ' || session_user FROM {table} AS t WHERE t.{key} IS NOT NULL;
    RETURN NULL;
END
$guard$;
REVOKE ALL ON FUNCTION cachemig.guard_truncate() FROM PUBLIC
$statement$;
    EXECUTE $statement$
-- Fires as capture does: by the statement's column list.
CREATE TRIGGER cachemig_guard AFTER INSERT OR DELETE OR UPDATE OF {columns} ON {table}
    FOR EACH ROW EXECUTE FUNCTION cachemig.guard()
$statement$;
    EXECUTE $statement$
-- ALWAYS: as capture.
CREATE TRIGGER cachemig_guard_truncate BEFORE TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION cachemig.guard_truncate();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER cachemig_guard;
ALTER TABLE {table} ENABLE ALWAYS TRIGGER cachemig_guard_truncate
$statement$;
$by_hand$);

INSERT INTO pg_temp.by_hand (name, part) VALUES
    ('lock_timeout', pg_catalog.quote_literal('2s')),
    ('soak', pg_catalog.quote_literal(:'soak')),
    ('fresh', pg_catalog.quote_literal(:'fresh')),
    ('no_clients', :'no_clients'::boolean::text),
    ('column_setting', pg_catalog.quote_literal(:'column'));
INSERT INTO pg_temp.by_hand (name, part)
SELECT 'table_setting', pg_catalog.quote_literal(coalesce(
    (SELECT m.settings ->> 'table' FROM cachemig.migration AS m
     WHERE pg_catalog.to_regclass(m.settings ->> 'table') = :'table'::regclass), :'table'));

INSERT INTO pg_temp.by_hand (name, part)
SELECT row.name, CASE WHEN a.atttypid = 'json'::regtype THEN pg_catalog.replace($by_hand$({row}.{column} IS NOT NULL AND (pg_catalog.pg_column_size({row}.{column}) > 64
    OR {row}.{column}::text !~ '^\s*(\{{\s*\}}|null)\s*$'))$by_hand$, '{row}', row.of)
                      ELSE pg_catalog.replace($by_hand$({row}.{column} IS NOT NULL AND (pg_catalog.pg_column_size({row}.{column}) > 64
    OR {row}.{column} NOT IN ('{{}}'::jsonb, 'null'::jsonb)))$by_hand$, '{row}', row.of) END
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
WHERE c.oid = :'table'::regclass;

INSERT INTO pg_temp.by_hand (name, part)
SELECT 'table', pg_temp.quoted(n.nspname) || '.' || pg_temp.quoted(c.relname)
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = :'table'::regclass;
INSERT INTO pg_temp.by_hand (name, part) VALUES
    ('key', pg_temp.quoted(:'key')),
    ('column', pg_temp.quoted(:'column'));

SELECT pg_temp.filled($by_hand$
-- The column is frozen in one statement: a guard takes the place of capture, and phase and epochs are set. Safe to run
-- again, and in a database without the migration: it does nothing there. A file cannot ask Redis, nor wait for applications: `cachemig
-- stop-writes --execute` after it does, and delivers what was on its way.
DO $cachemig$
DECLARE
    now_is CONSTANT timestamptz := pg_catalog.clock_timestamp();
    m      record;
    seen   record;
    names  text;
    oldest timestamptz;
    tries  integer := 0;
BEGIN
    -- Here too, for a runner that is not in a transaction: outside of one SET LOCAL has no effect.
    PERFORM pg_catalog.set_config('lock_timeout', {lock_timeout}, true);
    PERFORM pg_catalog.set_config('idle_in_transaction_session_timeout', '60s', true);

    IF pg_catalog.to_regclass('cachemig.migration') IS NULL THEN
        RAISE NOTICE USING MESSAGE = 'cachemig: stop-writes: there is no migration in this database, nothing is done';
        RETURN;
    END IF;
    SELECT * INTO m FROM cachemig.migration FOR UPDATE;
    IF NOT FOUND OR m.phase IN ('redis-only', 'dropped') THEN
        RAISE NOTICE USING MESSAGE = 'cachemig: stop-writes: done before, or no migration has begun; nothing is changed';
        RETURN;
    END IF;
    IF m.settings ->> 'table' <> {table_setting} OR m.settings ->> 'column' <> {column_setting} THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: the migration of this database is of another table or column';
    END IF;

    -- Gate: the phase, with every read from Redis.
    IF m.phase <> 'cutover' OR m.percent < 100 THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: stop-writes: refused in phase ' || m.phase || ', with ' || m.percent
                || ' % of the keys read from Redis',
            HINT = 'cachemig status says which step comes next';
    END IF;
    -- Gate: the soak.
    IF m.changed_at > now_is - {soak}::interval THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: the soak is not over: it lasts ' || {soak} || ' and began '
                || pg_catalog.to_char(m.changed_at, 'YYYY-MM-DD HH24:MI:SSOF'),
            HINT = 'run this migration again when it is over';
    END IF;
    -- Gate: the last verification of all keys.
    SELECT at, (figures ->> 'passed')::boolean AS passed, epoch, figures ->> 'fingerprint' AS fingerprint INTO seen
    FROM cachemig.journal WHERE command = 'verify' AND figures ->> 'sample' IS NULL ORDER BY id DESC LIMIT 1;
    IF NOT FOUND OR seen.passed IS NOT TRUE OR seen.at < now_is - {fresh}::interval
       OR seen.epoch IS DISTINCT FROM m.epoch OR seen.fingerprint IS DISTINCT FROM m.fingerprint THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: no verification of all keys has passed within ' || {fresh},
            HINT = 'cachemig verify';
    END IF;
    -- Gate: sync keeps up.
    SELECT min(at) INTO oldest FROM cachemig.change;
    IF oldest < now_is - {max_lag}::interval THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: sync lags: the oldest change is of '
                || pg_catalog.to_char(oldest, 'YYYY-MM-DD HH24:MI:SSOF'),
            HINT = 'cachemig sync --once; keep cachemig sync --follow running';
    END IF;
    -- Gate: applications.
    SELECT pg_catalog.string_agg(DISTINCT c.name, ', ') INTO names FROM cachemig.client AS c
    WHERE c.lease_until > now_is AND (c.phase IS DISTINCT FROM 'cutover' OR c.percent IS DISTINCT FROM 100);
    IF names IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: applications act on an older phase: ' || names,
            HINT = 'cachemig status names them; restart or stop them';
    END IF;
    IF NOT {no_clients} AND NOT EXISTS (SELECT FROM cachemig.client AS c WHERE c.lease_until > now_is) THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: no live application is registered, which proves nothing',
            HINT = 'if no program reads by the phase, write this file anew with --no-clients';
    END IF;

{statements}
    UPDATE cachemig.migration
    SET phase = 'redis-only', frozen_epoch = epoch, epoch = epoch + 1, changed_at = pg_catalog.clock_timestamp(),
        changed_by = session_user || ' (migration file)';
    INSERT INTO cachemig.journal (who, command, phase_from, phase_to, epoch, figures)
    SELECT session_user || ' (migration file)', 'stop-writes', 'cutover', phase, epoch, {figures}::jsonb
    FROM cachemig.migration;
END
$cachemig$;
$by_hand$) \gexec

COMMIT;

-- The drop. This destroys data: have an archive that was read back, and 60_inspect_column.sql empty of BLOCKS.
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
-- it again a little later, and find out by 60_inspect_column.sql who holds the table. Never take the timeout away to force it.

-- Written by scripts/by_hand.py, out of the statements of sql/*.sql.

\set ON_ERROR_STOP on

\if :{?soak}
\else
    \set soak '7 days'
\endif
\if :{?fresh}
\else
    \set fresh '1 hour'
\endif
\if :{?no_clients}
\else
    \set no_clients 'false'
\endif
\if :{?accept}
\else
    \set accept '{}'
\endif

BEGIN;
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '130s';
SET LOCAL idle_in_transaction_session_timeout = '60s';
SET LOCAL application_name = 'cachemig drop-column';

SELECT pg_catalog.to_regclass('cachemig.migration') IS NOT NULL AS migrated \gset
\if :migrated

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

INSERT INTO pg_temp.by_hand (name, part) VALUES ('lock', $by_hand$
LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE;
$by_hand$);

INSERT INTO pg_temp.by_hand (name, part) VALUES ('own_triggers', $by_hand$
DECLARE
    own record;
BEGIN
    FOR own IN SELECT t.tgname FROM pg_catalog.pg_trigger AS t
               WHERE t.tgrelid = pg_catalog.to_regclass({regclass}) AND NOT t.tgisinternal
                 AND t.tgparentid = 0 AND t.tgname LIKE 'cachemig\_%'
    LOOP
        EXECUTE pg_catalog.format('DROP TRIGGER IF EXISTS %I ON %s', own.tgname, pg_catalog.to_regclass({regclass}));
    END LOOP;
    FOR own IN SELECT p.oid::regprocedure AS name FROM pg_catalog.pg_proc AS p
               JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
               WHERE n.nspname = 'cachemig' AND p.prorettype = 'pg_catalog.trigger'::pg_catalog.regtype
                 AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger AS t WHERE t.tgfoid = p.oid)
    LOOP
        EXECUTE pg_catalog.format('DROP FUNCTION IF EXISTS %s', own.name);
    END LOOP;
END;
$by_hand$);

INSERT INTO pg_temp.by_hand (name, part) VALUES ('alter', $by_hand$
-- Changes the catalog and no row, so it takes no longer for a large table. Without CASCADE: where anything depends on a
-- column Postgres refuses, and nothing is changed. The column is meant to go: its values are in Redis, verified, and in the archive,
-- read back (the gates), and clients that read it are gone.
-- squawk-ignore ban-drop-column
ALTER TABLE IF EXISTS {table} {drops};
$by_hand$);

INSERT INTO pg_temp.by_hand (name, part) VALUES ('notify', $by_hand$
NOTIFY pgrst, 'reload schema';
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
SELECT 'table', pg_temp.quoted(n.nspname) || '.' || pg_temp.quoted(c.relname)
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = :'table'::regclass;
INSERT INTO pg_temp.by_hand (name, part) VALUES
    ('column', pg_temp.quoted(:'column'));

INSERT INTO pg_temp.by_hand (name, part) VALUES
    ('drops', 'DROP COLUMN IF EXISTS ' || pg_temp.quoted(:'column')),
    ('tries', '10'),
    ('figures', pg_catalog.quote_literal(pg_catalog.jsonb_build_object('columns', ARRAY[:'column']))),
    ('accept', pg_catalog.quote_literal(:'accept')),
    ('pattern', pg_catalog.quote_literal(
        '(?<!\w)(' || pg_catalog.regexp_replace(:'column', '([^[:alnum:]_])', '\\\1', 'g') || ')(?!\w)'));
INSERT INTO pg_temp.by_hand (name, part)
SELECT 'regclass', pg_catalog.quote_literal(part) FROM pg_temp.by_hand WHERE name = 'table';

SELECT pg_temp.filled($by_hand$
-- A migration file's drop: one statement, so that whoever runs it, in a transaction or without one, gets all of it or nothing.
-- It looks at the gates itself. Safe to run again: a column that is gone is no error.
DO $cachemig$
DECLARE
    now_is   CONSTANT timestamptz := pg_catalog.clock_timestamp();
    m        record;
    seen     record;
    names    text;
    begun    timestamptz;
    late     record;
    latest   timestamptz;
    tries    integer := 0;
BEGIN
    -- Here too, for a runner that is not in a transaction: outside of one SET LOCAL has no effect.
    PERFORM pg_catalog.set_config('lock_timeout', {lock_timeout}, true);
    PERFORM pg_catalog.set_config('idle_in_transaction_session_timeout', '60s', true);
    PERFORM pg_catalog.set_config('application_name', 'cachemig drop-column', true);

    IF pg_catalog.to_regclass('cachemig.migration') IS NULL THEN
        RAISE NOTICE USING MESSAGE = 'cachemig: there is no migration in this database, so nothing proves the column to be unneeded: it stays';
        RETURN;
    END IF;
    SELECT * INTO m FROM cachemig.migration FOR UPDATE;
    IF NOT FOUND OR m.phase = 'dropped' THEN
        RAISE NOTICE USING MESSAGE = 'cachemig: nothing to do, the column was dropped before or no migration has begun';
        RETURN;
    END IF;
    IF m.settings ->> 'table' <> {table_setting} OR m.settings ->> 'column' <> {column_setting} THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: the migration of this database is of another table or column';
    END IF;

    -- Gate: the phase.
    IF m.phase <> 'redis-only' THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: refused in phase ' || m.phase || ': applications may still read or write the column',
            HINT = 'cachemig status says which step comes next';
    END IF;
    -- Gate: the soak, since the phase began or since the last late write.
    SELECT max(at) INTO begun FROM cachemig.journal
    WHERE phase_to = 'redis-only' AND phase_from IS NOT NULL AND phase_from <> 'redis-only';
    begun := coalesce(begun, m.changed_at);
    SELECT max(at) FILTER (WHERE kind = 'write') AS last,
           count(*) FILTER (WHERE outcome IS NULL) + (SELECT count(*) FROM cachemig.change) AS waiting INTO late
    FROM cachemig.late_write;
    IF greatest(begun, late.last) > now_is - {soak}::interval THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: the soak is not over: it lasts ' || {soak} || ' and began '
                || pg_catalog.to_char(greatest(begun, late.last), 'YYYY-MM-DD HH24:MI:SSOF')
                || CASE WHEN late.last >= begun THEN ', with the last late write' ELSE '' END,
            HINT = 'run this migration again when it is over';
    END IF;
    -- Gate: what was written to the frozen column has been delivered.
    IF late.waiting > 0 THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: ' || late.waiting || ' late writes wait to be delivered to Redis',
            HINT = 'cachemig sync --once';
    END IF;
    -- Gate: the last verification of all keys.
    SELECT at, (figures ->> 'passed')::boolean AS passed, epoch, figures ->> 'fingerprint' AS fingerprint INTO seen
    FROM cachemig.journal WHERE command = 'verify' AND figures ->> 'sample' IS NULL ORDER BY id DESC LIMIT 1;
    IF NOT FOUND OR seen.passed IS NOT TRUE OR seen.at < now_is - {fresh}::interval OR seen.at < begun
       OR seen.epoch IS DISTINCT FROM m.epoch OR seen.fingerprint IS DISTINCT FROM m.fingerprint THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: no verification of all keys has passed within ' || {fresh},
            HINT = 'cachemig verify';
    END IF;
    -- Gate: the archive, read back since the column was frozen, and since it was last written.
    SELECT max(checked_at) AS checked_at INTO seen FROM cachemig.archive;
    IF seen.checked_at IS NULL OR seen.checked_at < greatest(begun, late.last) THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: no archive was read back since the column was frozen, or last written',
            HINT = 'cachemig archive --to PLACE';
    END IF;
    -- Gate: applications.
    SELECT pg_catalog.string_agg(DISTINCT c.name, ', ') INTO names FROM cachemig.client AS c
    WHERE c.lease_until > now_is AND c.phase IS DISTINCT FROM 'redis-only';
    IF names IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: applications act on an older phase: ' || names,
            HINT = 'cachemig status names them; restart or stop them';
    END IF;
    IF NOT {no_clients} AND NOT EXISTS (SELECT FROM cachemig.client AS c WHERE c.lease_until > now_is) THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: no live application is registered, which proves nothing',
            HINT = 'if no program reads by the phase, write this file anew with --no-clients';
    END IF;
    -- Gate: nothing depends on it. What the catalog knows Postgres sees to below; of the texts of functions it does not.
    SELECT pg_catalog.string_agg(p.oid::regprocedure::text, ', ') INTO names
    FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'cachemig')
      AND p.prosrc ~* {pattern} AND p.oid::regprocedure::text <> ALL ({accept}::text[])
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d
                      WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e');
    IF names IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: functions mention a column that is to go: ' || names,
            HINT = 'cachemig drop-column shows where; change them, or accept them by name and write this file anew';
    END IF;

    -- The table's lock: for lock_timeout at a time, then everybody else goes first. Never without a limit.
    LOOP
        tries := tries + 1;
        BEGIN
            IF pg_catalog.to_regclass({regclass}) IS NOT NULL THEN
                {lock}
            END IF;
            -- Under the lock, when none can come any more: what was written while it was waited for. The lock is given
            -- back with this block, so that it can be delivered.
            SELECT max(at) FILTER (WHERE kind = 'write') INTO latest FROM cachemig.late_write;
            IF latest IS DISTINCT FROM late.last THEN
                RAISE EXCEPTION USING MESSAGE = 'cachemig: the soak is not over: the column was written just now, with the last late write',
                    HINT = 'cachemig status names the writer; run this migration again when the soak is over';
            END IF;
            IF EXISTS (SELECT FROM cachemig.late_write WHERE outcome IS NULL) OR EXISTS (SELECT FROM cachemig.change) THEN
                RAISE lock_not_available;
            END IF;
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            IF tries >= {tries} THEN
                RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
                    MESSAGE = 'cachemig: the table was in use at every try, or rows that went waited for sync; nothing was changed',
                    HINT = 'cachemig drop-column names who holds it; cachemig sync --follow is to be running';
            END IF;
            PERFORM pg_catalog.pg_sleep(least(5.0, 0.2 * 2.0 ^ tries) * (0.5 + pg_catalog.random() / 2));
        END;
    END LOOP;

    {own_triggers}

    {alter}

    UPDATE cachemig.migration
    SET phase = 'dropped', changed_at = pg_catalog.clock_timestamp(), changed_by = session_user || ' (migration file)';
    INSERT INTO cachemig.journal (who, command, phase_from, phase_to, epoch, figures)
    VALUES (session_user || ' (migration file)', 'drop-column', 'redis-only', 'dropped', m.epoch, {figures}::jsonb);
    {notify}
END
$cachemig$;
$by_hand$) \gexec

\else

-- Waits for everybody in a transaction with the table, readers too, and meanwhile holds up whoever comes after: so for
-- lock_timeout at a time, then all of them go first. Asked for once and at its full strength, so that nothing deadlocks on the way up.
LOCK TABLE :table IN ACCESS EXCLUSIVE MODE;

-- What this tool put on the table, since it names the column.
SELECT pg_catalog.format('DROP TRIGGER IF EXISTS %I ON %s', tgname, :'table'::regclass)
FROM pg_catalog.pg_trigger
WHERE tgrelid = :'table'::regclass AND NOT tgisinternal AND tgparentid = 0 AND tgname LIKE 'cachemig\_%' \gexec

ALTER TABLE :table DROP COLUMN IF EXISTS :"column";

-- PostgREST reads the tables' columns anew when this transaction has committed. Nobody listens: nothing happens.
NOTIFY pgrst, 'reload schema';

\endif

COMMIT;

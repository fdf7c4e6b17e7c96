-- Capture: from here on every committed write to the column leaves a mark. What `cachemig dual-write` does.
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
-- The first `cachemig sync` afterwards begins an epoch by itself. Taken back by `cachemig dual-write --disable`.

-- Written by scripts/by_hand.py, out of the statements of sql/*.sql.

\set ON_ERROR_STOP on

\if :{?order_by}
\else
    \set order_by ''
\endif

BEGIN;
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';
SET LOCAL idle_in_transaction_session_timeout = '60s';
SET LOCAL application_name = 'cachemig dual-write';

SELECT phase <> 'idle' AS not_idle FROM cachemig.migration FOR UPDATE \gset
\if :not_idle
    \warn 'The migration is not in phase idle: nothing is changed.'
    ROLLBACK;
    \q
\endif

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

INSERT INTO pg_temp.by_hand (name, part)
SELECT 'table', pg_temp.quoted(n.nspname) || '.' || pg_temp.quoted(c.relname)
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = :'table'::regclass;
INSERT INTO pg_temp.by_hand (name, part) VALUES
    ('key', pg_temp.quoted(:'key')),
    ('column', pg_temp.quoted(:'column'));

INSERT INTO pg_temp.by_hand (name, part)
SELECT 'columns', pg_catalog.string_agg(pg_temp.quoted(c), ', ' ORDER BY n)
FROM pg_catalog.unnest(ARRAY[:'column', :'key', nullif(:'order_by', '')]) WITH ORDINALITY AS u (c, n) WHERE c IS NOT NULL;

-- With capture a new epoch begins. Which servers it is of nobody knows yet: the first `cachemig sync` finds that, and begins one of
-- its own in Redis too.
UPDATE cachemig.migration SET epoch = epoch + 1, layout = NULL, timeline = NULL, redis_run = NULL, redis_marker = NULL;

-- A new epoch after a time without capture: what happened meanwhile is unknown, so every key ever handled is read
-- again; one that went away unseen is thereby removed from Redis. Keys on their way are marked too: the worker that
-- has them may fold their changes after it delivered to a Redis that was lost.
INSERT INTO cachemig.change (key)
SELECT key FROM cachemig.entry UNION SELECT key FROM cachemig.change;

-- Last of all, for the application waits for it.
LOCK TABLE :table IN SHARE ROW EXCLUSIVE MODE;

SELECT pg_temp.filled($by_hand$
-- SECURITY DEFINER: the application's role needs no right on the control schema; search_path is fixed, so that the
-- caller's cannot redirect a name.
CREATE OR REPLACE FUNCTION cachemig.capture() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $capture$
BEGIN
    IF TG_OP <> 'INSERT' AND OLD.{key} IS NOT NULL THEN
        INSERT INTO cachemig.change (key) VALUES (OLD.{key}::text);
    END IF;
    -- An update that keeps its key leaves one mark, a change of key marks both.
    IF TG_OP <> 'DELETE' AND NEW.{key} IS NOT NULL
       AND (TG_OP = 'INSERT' OR OLD.{key}::text IS DISTINCT FROM NEW.{key}::text) THEN
        INSERT INTO cachemig.change (key) VALUES (NEW.{key}::text);
    END IF;
    RETURN NULL;
END
$capture$;
REVOKE ALL ON FUNCTION cachemig.capture() FROM PUBLIC;
$by_hand$) \gexec

SELECT pg_temp.filled($by_hand$
-- BEFORE TRUNCATE every key that may live in Redis is either in the table or left a mark when it went. An older snapshot
-- than READ COMMITTED's does not see the rows that came after it, and TRUNCATE removes them all the same: there a worker
-- marks every key that was ever handled (expand_truncations).
CREATE OR REPLACE FUNCTION cachemig.capture_truncate() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $capture$
BEGIN
    INSERT INTO cachemig.change (key)
    SELECT DISTINCT t.{key}::text FROM {table} AS t WHERE t.{key} IS NOT NULL;
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        INSERT INTO cachemig.truncation DEFAULT VALUES;
    END IF;
    RETURN NULL;
END
$capture$;
REVOKE ALL ON FUNCTION cachemig.capture_truncate() FROM PUBLIC;
$by_hand$) \gexec

SELECT pg_temp.filled($by_hand$
-- The ordinary form: UPDATE OF looks at the statement's column list, so unrelated updates cost nothing at all.
CREATE TRIGGER cachemig_capture AFTER INSERT OR DELETE OR UPDATE OF {columns} ON {table}
    FOR EACH ROW EXECUTE FUNCTION cachemig.capture();
$by_hand$) \gexec

SELECT pg_temp.filled($by_hand$
-- ALWAYS: also where session_replication_role = replica (a logical subscriber, a bulk load).
CREATE TRIGGER cachemig_capture_truncate BEFORE TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION cachemig.capture_truncate();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER cachemig_capture;
ALTER TABLE {table} ENABLE ALWAYS TRIGGER cachemig_capture_truncate;
$by_hand$) \gexec

UPDATE cachemig.migration
SET phase = 'dual-write', changed_at = pg_catalog.clock_timestamp(), changed_by = session_user || ' (by hand)';
INSERT INTO cachemig.journal (who, command, phase_from, phase_to, epoch, figures)
SELECT session_user || ' (by hand)', 'dual-write', 'idle', phase, epoch, '{"capture": "columns"}' FROM cachemig.migration;
COMMIT;

-- The drop, without the tool. This destroys data: have an archive that was read back, and 60_inspect_column.sql empty of BLOCKS.
-- (`cachemig drop-column --format sql` writes a file that looks at all of its gates itself: prefer that.)
--
--   psql -X -d DATABASE -v table=public.therapy_sessions -v column=analytics_cache -f sql/by_hand/70_drop_column.sql
--
-- Safe on a live system, because: the lock is waited for 2 s at most, so nobody queues behind it for longer; under the lock
-- only the catalog is changed; without CASCADE Postgres refuses where anything depends on the column; all of it is one
-- transaction. "canceling statement due to lock timeout" means that nothing was changed: run it again a little later, and
-- find out by 60_inspect_column.sql who holds the table. Never take the timeout away to force it.

\set ON_ERROR_STOP on
BEGIN;
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';
SET LOCAL idle_in_transaction_session_timeout = '60s';
SET LOCAL application_name = 'cachemig drop-column';

-- Where this tool has moved the column, only after stop-writes: earlier, applications still use it.
SELECT pg_catalog.to_regclass('cachemig.migration') IS NOT NULL AS migrated \gset
\if :migrated
    SELECT phase NOT IN ('redis-only', 'dropped') AS too_early FROM cachemig.migration FOR UPDATE \gset
    \if :{?too_early}
        \if :too_early
            \warn 'The migration is not in phase redis-only: nothing is changed.'
            ROLLBACK;
            \q
        \endif
    \endif
\endif

-- Asked for once and at its full strength, so that nothing deadlocks on the way up.
LOCK TABLE :table IN ACCESS EXCLUSIVE MODE;

-- What this tool put on the table, since it names the column.
SELECT pg_catalog.format('DROP TRIGGER IF EXISTS %I ON %s', tgname, :'table'::regclass)
FROM pg_catalog.pg_trigger
WHERE tgrelid = :'table'::regclass AND NOT tgisinternal AND tgparentid = 0 AND tgname LIKE 'cachemig\_%' \gexec

ALTER TABLE :table DROP COLUMN IF EXISTS :"column";

\if :migrated
    UPDATE cachemig.migration SET phase = 'dropped', changed_at = pg_catalog.clock_timestamp(), changed_by = session_user
    WHERE phase = 'redis-only';
    INSERT INTO cachemig.journal (who, command, phase_to, epoch)
    SELECT session_user || ' (by hand)', 'drop-column', phase, epoch FROM cachemig.migration;
\endif

-- PostgREST reads the tables' columns anew at the commit; where there is none, nothing happens.
NOTIFY pgrst, 'reload schema';
COMMIT;

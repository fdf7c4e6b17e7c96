-- Reading from a standby. Reads only, on both servers.

-- name: written_to
-- On the primary: behind every commit that was answered, those of synchronous_commit = off included. It may lie a page's
-- head beyond the last record; the claims of this run write the next one.
SELECT pg_catalog.pg_current_wal_insert_lsn()::text;

-- name: standing
-- On the standby, before it is read: is it one, and has it come so far?
SELECT pg_catalog.pg_is_in_recovery(), coalesce(pg_catalog.pg_last_wal_replay_lsn() >= %(lsn)s::pg_lsn, false);

-- name: is_this_migration
-- On the standby. The marker is random, so the migration of another database has another one.
SELECT m.epoch = %(epoch)s AND m.phase <> 'idle' AND m.redis_marker IS NOT DISTINCT FROM %(marker)s
FROM cachemig.migration AS m;

-- What the workers ask about others' use of Postgres, at most twice a second (cachemig.steps.neighbour).
-- Both read what the server keeps in shared memory, and lock no table.

-- name: sessions
-- Active sessions of other programs; sessions that this role may not look into; sessions that do not tell what they
-- do (track_activities is off). Of the last two none may be taken for idle.
SELECT count(*) FILTER (WHERE backend_type = 'client backend' AND state = 'active'),
       count(*) FILTER (WHERE backend_type IS NULL AND datid IS NOT NULL AND usesysid IS NOT NULL),
       count(*) FILTER (WHERE backend_type = 'client backend' AND state = 'disabled')
FROM pg_catalog.pg_stat_activity
WHERE pid <> pg_catalog.pg_backend_pid() AND application_name IS DISTINCT FROM 'cachemig';

-- name: standbys
-- Physical standbys that are connected, and where the server's WAL ends. Everything but the pid is null for a role that
-- may not look into them. replay_lag is null too for a standby that had nothing to replay for a while.
SELECT coalesce(nullif(r.application_name, ''), r.pid::text), r.state IS NULL,
       extract(epoch FROM r.replay_lag)::float8,
       extract(epoch FROM pg_catalog.clock_timestamp() - r.reply_time)::float8,
       pg_catalog.pg_wal_lsn_diff(coalesce(r.replay_lsn, '0/0'), '0/0')::bigint,
       pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), '0/0')::bigint
FROM pg_catalog.pg_stat_replication AS r
WHERE (r.state IS NULL OR r.state IN ('streaming', 'catchup'))
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots AS s WHERE s.active_pid = r.pid AND s.slot_type = 'logical');

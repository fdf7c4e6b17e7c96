-- reclaim: how large the table is, and what would make it smaller. Reads only; VACUUM FULL stands at the end.

-- name: reclaim_sizes
-- Each table of a partitioned one by itself: heap with its maps, TOAST with its index, indexes; rows as of the last ANALYZE.
SELECT c.oid::bigint, n.nspname::text, c.relname::text,
       pg_catalog.pg_table_size(c.oid) - coalesce(pg_catalog.pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0),
       coalesce(pg_catalog.pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0),
       pg_catalog.pg_indexes_size(c.oid), pg_catalog.pg_total_relation_size(c.oid), greatest(c.reltuples, 0)::bigint,
       (SELECT count(*) FROM pg_catalog.pg_index AS i WHERE i.indrelid = c.oid)
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = ANY (%(relids)s::oid[]) AND c.relkind IN ('r', 'm') ORDER BY 2, 3;

-- name: reclaim_database
SELECT pg_catalog.pg_database_size(pg_catalog.current_database());

-- name: reclaim_columns
SELECT a.attname::text FROM pg_catalog.pg_attribute AS a
WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped AND a.attname = %(column)s;

-- name: reclaim_width
-- Bytes of a row as the statistics have it, without the columns that were dropped: what a rewrite has to keep. Null: never analysed.
SELECT sum(s.avg_width * (1 - s.null_frac))::float8 FROM pg_catalog.pg_stats AS s
WHERE s.schemaname = %(schema)s AND s.tablename = %(name)s AND NOT s.inherited;

-- name: reclaim_repack
SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'pg_repack');

-- name: reclaim_limits
SELECT pg_catalog.current_setting('lock_timeout'), pg_catalog.current_setting('statement_timeout'), pg_catalog.pg_backend_pid();

-- name: reclaim_progress
-- Of VACUUM FULL, by its session: which phase, and how much of the old heap has been read.
SELECT phase::text, heap_blks_scanned::bigint, heap_blks_total::bigint
FROM pg_catalog.pg_stat_progress_cluster WHERE pid = %(pid)s;

-- name: reclaim_last_drop
-- How large the table was when the column was dropped.
SELECT (figures ->> 'table_bytes')::bigint, (figures ->> 'database_bytes')::bigint
FROM cachemig.journal WHERE command = 'drop-column' AND figures ? 'table_bytes' ORDER BY id DESC LIMIT 1;

-- name: reclaim_vacuum_full
-- Writes the table anew without what was dropped, and gives the old files back. Readers and writers of the table wait for it,
-- all the time: run it when the application may stand still. Its lock is waited for no longer than lock_timeout; ended in
-- the middle it leaves the table as it was. It needs room for a copy of the table while it runs.
VACUUM (FULL, ANALYZE) {table};

-- Gives back the space of a dropped column: the drop itself frees nothing. Prints the sizes before and after.
--
--   psql -X -d DATABASE -v table=public.therapy_sessions -f sql/by_hand/80_reclaim.sql
--
-- NOT for busy hours: VACUUM FULL writes the table anew and keeps everybody, readers too, away from it until it is done; it needs
-- room for a copy of the table. Its lock is waited for 2 s at most; ended in the middle it leaves the table as it was.
-- Over a direct connection, not a transaction pooler: the timeout is a setting of the session.

\set ON_ERROR_STOP on
\pset footer off
SET lock_timeout = '2s';
SET statement_timeout = 0;

\echo '== Before'
SELECT pg_catalog.pg_size_pretty(pg_catalog.pg_relation_size(c.oid)) AS heap,
       pg_catalog.pg_size_pretty(pg_catalog.pg_total_relation_size(nullif(c.reltoastrelid, 0))) AS toast,
       pg_catalog.pg_size_pretty(pg_catalog.pg_indexes_size(c.oid)) AS indexes,
       pg_catalog.pg_size_pretty(pg_catalog.pg_total_relation_size(c.oid)) AS "table",
       pg_catalog.pg_size_pretty(pg_catalog.pg_database_size(pg_catalog.current_database())) AS database
FROM pg_catalog.pg_class AS c WHERE c.oid = :'table'::regclass;

VACUUM (FULL, ANALYZE) :table;

\echo '== After'
SELECT pg_catalog.pg_size_pretty(pg_catalog.pg_relation_size(c.oid)) AS heap,
       pg_catalog.pg_size_pretty(pg_catalog.pg_total_relation_size(nullif(c.reltoastrelid, 0))) AS toast,
       pg_catalog.pg_size_pretty(pg_catalog.pg_indexes_size(c.oid)) AS indexes,
       pg_catalog.pg_size_pretty(pg_catalog.pg_total_relation_size(c.oid)) AS "table",
       pg_catalog.pg_size_pretty(pg_catalog.pg_database_size(pg_catalog.current_database())) AS database
FROM pg_catalog.pg_class AS c WHERE c.oid = :'table'::regclass;

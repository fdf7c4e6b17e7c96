-- What doctor looks at. Reads only; needs no right beyond CONNECT, but for the counts of rows.

-- name: server
SELECT pg_catalog.current_database(), current_user, pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery(),
       pg_catalog.current_setting('default_transaction_read_only') = 'on';

-- name: abilities
-- pg_get_function_sqlbody() came together with functions that have an SQL body, without which there is no
-- immutable, inlined cachemig.key_id().
SELECT pg_catalog.to_regprocedure('pg_catalog.sha256(bytea)') IS NOT NULL,
       pg_catalog.to_regprocedure('pg_catalog.pg_get_function_sqlbody(oid)') IS NOT NULL;

-- name: clock
SELECT extract(epoch FROM pg_catalog.clock_timestamp())::float8;

-- name: session
SELECT pg_catalog.pg_backend_pid();

-- name: may_read
SELECT pg_catalog.has_table_privilege(%(oid)s::oid, 'SELECT'),
       pg_catalog.has_schema_privilege((SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = %(oid)s), 'USAGE');

-- name: may_create_temporary
SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY');

-- name: may_control
-- By oid, which does not need USAGE on the schema. Null, null where there is no schema cachemig yet.
SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
       pg_catalog.has_schema_privilege(n.oid, 'CREATE'), pg_catalog.has_schema_privilege(n.oid, 'USAGE'),
       (SELECT count(*) FROM pg_catalog.pg_class AS c WHERE c.relnamespace = n.oid AND c.relkind = 'r'),
       ARRAY(SELECT c.relname::text FROM pg_catalog.pg_class AS c
             WHERE c.relnamespace = n.oid AND c.relkind = 'r'
               AND NOT (pg_catalog.has_table_privilege(c.oid, 'SELECT') AND pg_catalog.has_table_privilege(c.oid, 'INSERT')
                        AND pg_catalog.has_table_privilege(c.oid, 'UPDATE')
                        AND pg_catalog.has_table_privilege(c.oid, 'DELETE'))
             ORDER BY 1)
FROM (SELECT) AS one LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = 'cachemig';

-- name: rows_hidden
SELECT pg_catalog.row_security_active(%(oid)s::oid);

-- name: protection
-- Who may read the column besides the owner, by the table's or the column's own grants; and the policies.
SELECT ARRAY(SELECT DISTINCT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.pg_get_userbyid(g.grantee)::text END
             FROM pg_catalog.pg_class AS c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS g
             WHERE c.oid = %(oid)s AND g.privilege_type = 'SELECT' AND g.grantee <> c.relowner ORDER BY 1),
       ARRAY(SELECT DISTINCT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.pg_get_userbyid(g.grantee)::text END
             FROM pg_catalog.pg_attribute AS a CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) AS g
             WHERE a.attrelid = %(oid)s AND a.attname = %(column)s AND g.privilege_type = 'SELECT' ORDER BY 1),
       ARRAY(SELECT p.polname::text FROM pg_catalog.pg_policy AS p WHERE p.polrelid = %(oid)s ORDER BY 1);

-- name: relatives
-- Partitions below a partitioned table, and tables that inherit from an ordinary one.
SELECT (SELECT count(*) FROM pg_catalog.pg_partition_tree(%(oid)s::oid) AS p WHERE p.isleaf),
       ARRAY(SELECT i.inhrelid::regclass::text FROM pg_catalog.pg_inherits AS i WHERE i.inhparent = %(oid)s ORDER BY 1);

-- name: capture_state
-- The tool's triggers on the table and its partitions: how many, how many do not fire always, and whether updates
-- and TRUNCATE of the table itself are seen.
SELECT count(*), count(*) FILTER (WHERE t.tgenabled <> 'A'),
       coalesce(pg_catalog.bool_or(t.tgrelid = %(oid)s AND t.tgtype & 16 <> 0), false),
       coalesce(pg_catalog.bool_or(t.tgrelid = %(oid)s AND t.tgtype & 32 <> 0), false),
       coalesce(pg_catalog.bool_or(t.tgname = 'cachemig_capture_update'), false)
FROM pg_catalog.pg_trigger AS t
WHERE t.tgname LIKE 'cachemig\_capture%%'
  AND (t.tgrelid = %(oid)s OR t.tgrelid IN (SELECT relid FROM pg_catalog.pg_partition_tree(%(oid)s::oid)));

-- name: shared_keys
-- Is there a key with two rows? Asked of small tables only.
SELECT EXISTS (SELECT FROM {table} AS n WHERE n.{key} IS NOT NULL GROUP BY n.{key} HAVING count(*) > 1);

-- name: lock_holders
-- Who holds a lock on the table that capture's SHARE ROW EXCLUSIVE would have to wait for, longest first. Autovacuum
-- gives way by itself. A prepared transaction has no process.
SELECT l.pid, extract(epoch FROM pg_catalog.clock_timestamp() - coalesce(a.xact_start, p.prepared))::float8 AS age,
       coalesce(a.usename, p.owner)::text, nullif(a.application_name, ''), a.state
FROM pg_catalog.pg_locks AS l
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
LEFT JOIN pg_catalog.pg_locks AS x ON l.pid IS NULL AND x.pid IS NULL AND x.virtualtransaction = l.virtualtransaction
    AND x.locktype = 'transactionid' AND x.granted
LEFT JOIN pg_catalog.pg_prepared_xacts AS p ON p.transaction = x.transactionid
WHERE l.locktype = 'relation' AND l.granted AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
  AND (l.relation = %(oid)s OR l.relation IN (SELECT relid FROM pg_catalog.pg_partition_tree(%(oid)s::oid)))
  AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
  AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
GROUP BY 1, 2, 3, 4, 5
ORDER BY age DESC NULLS FIRST;

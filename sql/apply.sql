-- plan --out and apply: what a plan was made of, so that it is seen whether anything has changed since. Reads only.

-- name: plan_catalog
-- The table's columns, indexes, constraints, triggers, policies and partitions, by kind and name. Estimates and sizes
-- are not among them: they change all the time. Needs no right beyond CONNECT.
SELECT 'column', a.attname::text,
       pg_catalog.concat_ws(' ', pg_catalog.format_type(a.atttypid, a.atttypmod),
                            CASE WHEN a.attnotnull THEN 'not null' END, a.attidentity::text, a.attgenerated::text,
                            pg_catalog.pg_get_expr(d.adbin, d.adrelid))
FROM pg_catalog.pg_attribute AS a
LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'index', i.indexrelid::regclass::text,
       pg_catalog.concat_ws(' ', pg_catalog.pg_get_indexdef(i.indexrelid), i.indisvalid::text)
FROM pg_catalog.pg_index AS i WHERE i.indrelid = %(oid)s
UNION ALL
SELECT 'constraint', c.conname::text, pg_catalog.pg_get_constraintdef(c.oid)
FROM pg_catalog.pg_constraint AS c WHERE c.conrelid = %(oid)s
UNION ALL
SELECT 'trigger', t.tgname::text,
       pg_catalog.concat_ws(' ', pg_catalog.pg_get_triggerdef(t.oid), t.tgenabled::text, pg_catalog.md5(p.prosrc))
FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
WHERE t.tgrelid = %(oid)s AND NOT t.tgisinternal
UNION ALL
SELECT 'policy', p.polname::text,
       pg_catalog.concat_ws(' ', p.polcmd::text, pg_catalog.pg_get_expr(p.polqual, p.polrelid),
                            pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid))
FROM pg_catalog.pg_policy AS p WHERE p.polrelid = %(oid)s
UNION ALL
SELECT 'partition', h.inhrelid::regclass::text, '' FROM pg_catalog.pg_inherits AS h WHERE h.inhparent = %(oid)s
UNION ALL
SELECT 'table', 'owner and row-level security',
       pg_catalog.concat_ws(' ', pg_catalog.pg_get_userbyid(c.relowner), c.relrowsecurity::text, c.relforcerowsecurity::text)
FROM pg_catalog.pg_class AS c WHERE c.oid = %(oid)s
ORDER BY 1, 2;

-- name: plan_journal
-- The newest entry that moved the migration or told it anew where it stands. What workers write all the time (sync,
-- backfill, verify) says nothing against a plan; the gates look at what they did.
SELECT id, command FROM cachemig.journal
WHERE command NOT IN ('sync', 'backfill', 'verify', 'archive', 'pause', 'resume', 'throttle')
ORDER BY id DESC LIMIT 1;

-- name: plan_server
SELECT pg_catalog.current_setting('server_version'), s.system_identifier::text, pg_catalog.current_database()
FROM pg_catalog.pg_control_system() AS s;

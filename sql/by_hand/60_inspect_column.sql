-- What a DROP COLUMN would meet: what stops it, what would go with it without a word, who mentions it, who holds the table.
-- Reads only, and takes no lock that anybody waits for.
--
--   psql -X -d DATABASE -v table=public.therapy_sessions -v column=analytics_cache -f sql/by_hand/60_inspect_column.sql

\set ON_ERROR_STOP on
\pset footer off
SELECT :'table'::regclass AS found \gset

\echo '== What the catalog knows. BLOCKS: change it first. VANISHES: it goes with the column, keep its SQL.'
SELECT CASE WHEN d.deptype IN ('a', 'i') THEN 'VANISHES' ELSE 'BLOCKS' END AS effect, o.type, o.identity,
       CASE WHEN i.indexrelid IS NOT NULL THEN pg_catalog.pg_get_indexdef(i.indexrelid)
            WHEN c.oid IS NOT NULL THEN pg_catalog.pg_get_constraintdef(c.oid)
            WHEN s.oid IS NOT NULL THEN pg_catalog.pg_get_statisticsobjdef(s.oid) END AS sql
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_class'::regclass
    AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum
LEFT JOIN pg_catalog.pg_rewrite AS v
    ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND v.oid = d.objid AND v.rulename = '_RETURN'
CROSS JOIN LATERAL pg_catalog.pg_identify_object(
    CASE WHEN v.oid IS NULL THEN d.classid ELSE 'pg_catalog.pg_class'::regclass END,
    coalesce(v.ev_class, d.objid), CASE WHEN v.oid IS NULL THEN d.objsubid ELSE 0 END) AS o
LEFT JOIN pg_catalog.pg_index AS i ON d.classid = 'pg_catalog.pg_class'::regclass AND i.indexrelid = d.objid
LEFT JOIN pg_catalog.pg_constraint AS c ON d.classid = 'pg_catalog.pg_constraint'::regclass AND c.oid = d.objid
LEFT JOIN pg_catalog.pg_statistic_ext AS s ON d.classid = 'pg_catalog.pg_statistic_ext'::regclass AND s.oid = d.objid
WHERE a.attname = :'column' AND a.attrelid IN (
        SELECT :'table'::regclass UNION SELECT relid FROM pg_catalog.pg_partition_tree(:'table'::regclass)
        UNION SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = :'table'::regclass)
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_attrdef AS own
                  WHERE d.classid = 'pg_catalog.pg_attrdef'::regclass AND own.oid = d.objid AND own.adnum = a.attnum)
GROUP BY 1, 2, 3, 4
ORDER BY 1, 2, 3;

\echo '== Functions that mention it in their text. Postgres does not look into them: they fail when they are called next.'
SELECT p.oid::regprocedure AS function,
       ARRAY(SELECT t.tgname FROM pg_catalog.pg_trigger AS t
             WHERE t.tgfoid = p.oid AND t.tgrelid = :'table'::regclass AND NOT t.tgisinternal) AS fired_by
FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')
  AND p.prosrc ~* ('(?<!\w)' || pg_catalog.regexp_replace(:'column', '([^[:alnum:]_])', '\\\1', 'g') || '(?!\w)')
ORDER BY 1;

\echo '== Who holds the table now. DROP COLUMN waits for each of them, readers too.'
SELECT l.pid, a.usename, a.application_name, a.state, pg_catalog.max(l.mode) AS lock,
       pg_catalog.clock_timestamp() - a.xact_start AS since
FROM pg_catalog.pg_locks AS l LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.relation = :'table'::regclass AND l.granted AND l.pid <> pg_catalog.pg_backend_pid()
GROUP BY 1, 2, 3, 4, 6 ORDER BY since DESC;

\echo '== Who would notice: publications of the table, logical slots, standbys.'
SELECT 'publication' AS kind, p.pubname::text AS name FROM pg_catalog.pg_publication_tables AS p
WHERE pg_catalog.format('%I.%I', p.schemaname, p.tablename)::regclass = :'table'::regclass
UNION ALL
SELECT 'logical slot', slot_name::text FROM pg_catalog.pg_replication_slots WHERE slot_type = 'logical'
UNION ALL
SELECT 'standby', application_name FROM pg_catalog.pg_stat_replication
ORDER BY 1, 2;

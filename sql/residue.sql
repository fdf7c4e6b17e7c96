-- residue: what in the database still mentions a column, before the drop and after it. Reads only.

-- name: residue_mentions
-- The text of whatever the catalog has as text: functions are looked up by drop_mentions. Not this tool's own, nothing of Postgres or of extensions.
WITH own AS (
    SELECT n.oid FROM pg_catalog.pg_namespace AS n
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'cachemig') AND n.nspname NOT LIKE 'pg\_%%'
), said AS (
    SELECT 'function' AS kind, p.oid::regprocedure::text AS name, pg_catalog.pg_get_function_sqlbody(p.oid) AS text
    FROM pg_catalog.pg_proc AS p WHERE p.pronamespace IN (SELECT oid FROM own) AND p.prosqlbody IS NOT NULL
    UNION ALL
    SELECT CASE c.relkind WHEN 'm' THEN 'materialised view' ELSE 'view' END, c.oid::regclass::text,
           pg_catalog.pg_get_viewdef(c.oid, true)
    FROM pg_catalog.pg_class AS c WHERE c.relkind IN ('v', 'm') AND c.relnamespace IN (SELECT oid FROM own)
    UNION ALL
    SELECT 'rule', r.rulename || ' on ' || c.oid::regclass, pg_catalog.pg_get_ruledef(r.oid, true)
    FROM pg_catalog.pg_rewrite AS r JOIN pg_catalog.pg_class AS c ON c.oid = r.ev_class
    WHERE r.rulename <> '_RETURN' AND c.relnamespace IN (SELECT oid FROM own)
    UNION ALL
    SELECT 'trigger', t.tgname || ' on ' || t.tgrelid::regclass, pg_catalog.pg_get_triggerdef(t.oid, true)
    FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
    WHERE NOT t.tgisinternal AND t.tgname NOT LIKE 'cachemig\_%%' AND c.relnamespace IN (SELECT oid FROM own)
    UNION ALL
    SELECT 'policy', p.polname || ' on ' || p.polrelid::regclass,
           pg_catalog.concat_ws(E'\n', pg_catalog.pg_get_expr(p.polqual, p.polrelid),
                                pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid))
    FROM pg_catalog.pg_policy AS p
    UNION ALL
    SELECT 'index', i.indexrelid::regclass::text, pg_catalog.pg_get_indexdef(i.indexrelid)
    FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.indrelid
    WHERE c.relnamespace IN (SELECT oid FROM own)
    UNION ALL
    SELECT 'constraint', c.conname || ' on ' || c.conrelid::regclass, pg_catalog.pg_get_constraintdef(c.oid, true)
    FROM pg_catalog.pg_constraint AS c
    WHERE c.conrelid <> 0 AND c.contype <> 'n' AND c.connamespace IN (SELECT oid FROM own)
    UNION ALL
    SELECT CASE WHEN a.attgenerated = '' THEN 'default' ELSE 'generated column' END,
           d.adrelid::regclass || '.' || a.attname, pg_catalog.pg_get_expr(d.adbin, d.adrelid)
    FROM pg_catalog.pg_attrdef AS d
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    JOIN pg_catalog.pg_class AS c ON c.oid = d.adrelid WHERE c.relnamespace IN (SELECT oid FROM own)
    UNION ALL
    SELECT 'statistics', s.stxnamespace::regnamespace || '.' || s.stxname, pg_catalog.pg_get_statisticsobjdef(s.oid)
    FROM pg_catalog.pg_statistic_ext AS s
    UNION ALL
    SELECT 'publication', p.pubname || ' of ' || p.schemaname || '.' || p.tablename,
           CASE WHEN pg_catalog.to_jsonb(p) ->> 'rowfilter' IS NOT NULL
                THEN 'WHERE ' || (pg_catalog.to_jsonb(p) ->> 'rowfilter') || ' ' ELSE '' END
           || coalesce((SELECT pg_catalog.string_agg(names.value, ', ')
                        FROM pg_catalog.pg_publication_rel AS r JOIN pg_catalog.pg_publication AS pub ON pub.oid = r.prpubid
                        CROSS JOIN LATERAL pg_catalog.jsonb_array_elements_text(
                            CASE WHEN pg_catalog.to_jsonb(r) ->> 'prattrs' IS NOT NULL
                                 THEN pg_catalog.to_jsonb(p) -> 'attnames' ELSE '[]'::jsonb END) AS names (value)
                        WHERE pub.pubname = p.pubname
                          AND r.prrelid = pg_catalog.format('%%I.%%I', p.schemaname, p.tablename)::regclass), '')
    FROM pg_catalog.pg_publication_tables AS p
    UNION ALL
    SELECT 'comment', o.type || ' ' || o.identity, d.description
    FROM pg_catalog.pg_description AS d
    CROSS JOIN LATERAL pg_catalog.pg_identify_object(d.classoid, d.objoid, d.objsubid) AS o
    WHERE d.objoid >= 16384
      AND NOT (d.classoid = 'pg_catalog.pg_class'::regclass AND d.objoid = %(oid)s
               AND EXISTS (SELECT FROM pg_catalog.pg_attribute AS a
                           WHERE a.attrelid = d.objoid AND a.attnum = d.objsubid AND a.attname = ANY (%(columns)s)))
      AND coalesce(o.schema, '') <> 'cachemig' AND o.identity NOT LIKE 'cachemig%%'
    UNION ALL
    SELECT 'column of another table', a.attrelid::regclass || '.' || a.attname, a.attname::text
    FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
    WHERE a.attname = ANY (%(columns)s) AND a.attrelid <> %(oid)s AND a.attrelid <> ALL (%(relids)s::oid[])
      AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'f') AND c.relnamespace IN (SELECT oid FROM own)
)
SELECT DISTINCT kind, name, text FROM said WHERE text ~* %(pattern)s ORDER BY 1, 2;

-- name: residue_own
-- What this tool left on the table.
SELECT t.tgname::text FROM pg_catalog.pg_trigger AS t
WHERE t.tgrelid = %(oid)s AND NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgname LIKE 'cachemig\_%%' ORDER BY 1;

-- name: residue_columns
-- Which of the columns are still there, under their own name or that of a brownout.
SELECT a.attname::text FROM pg_catalog.pg_attribute AS a
WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
  AND (a.attname = ANY (%(columns)s) OR a.attname LIKE '%%\_\_cachemig\_brownout') ORDER BY 1;

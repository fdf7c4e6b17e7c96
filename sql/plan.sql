-- What plan looks at. Reads only; needs SELECT on the table and nothing of the control schema.

-- name: count_up_to
-- Stops at the limit, so that asking a huge table stays cheap.
SELECT count(*) FROM (SELECT FROM {table} LIMIT {limit}) AS t;

-- name: planned_rows
-- The planner's own estimate, from the size of the table now and its density at the last ANALYZE; nothing is read.
EXPLAIN (FORMAT JSON) SELECT FROM {table};

-- name: rows
-- A line for every row: where it holds a value, as much of its text as the check of its shape needs and the size of it
-- all, and its place among the rows of its key. Values are made text only after the sort, which so carries pointers to them and not themselves.
SELECT t.cachemig_key, {text}, pg_catalog.octet_length(t.cachemig_text),
       t.cachemig_from, t.cachemig_place
FROM (SELECT t.{key}::text AS cachemig_key,
             CASE WHEN t.cachemig_filled THEN t.{column}::text END AS cachemig_text,
             {lifetime_from} AS cachemig_from, t.cachemig_place
      FROM (SELECT n.*, coalesce({n_nonempty}, false) AS cachemig_filled,
                   pg_catalog.row_number() OVER (PARTITION BY n.{key}, coalesce({n_nonempty}, false)
                                                 ORDER BY {n_order}) AS cachemig_place
            FROM {table} AS n {sample}) AS t
      LIMIT {limit}) AS t

-- name: rows_of_keys
-- How many rows with a value each of some keys has in the whole table, up to a limit. Each key is looked up by itself, in
-- the index, so that the table is not read.
SELECT k.key, (SELECT count(*) FROM (SELECT FROM {table} AS n WHERE n.{key} = {k_key} AND {n_nonempty} LIMIT {limit}) AS f)
FROM pg_catalog.unnest({keys}::text[]) AS k (key);

-- name: distinct_keys
-- As of the last ANALYZE: a number, or below 0 a part of the rows. Of a partitioned table the figure for all partitions.
SELECT n_distinct FROM pg_catalog.pg_stats
WHERE schemaname = %(schema)s AND tablename = %(table)s AND attname = %(column)s ORDER BY inherited DESC LIMIT 1;

-- name: keyless
-- Rows without a key, and those of them with a value. By an index on the key; stops at the limit.
SELECT count(*), count(*) FILTER (WHERE {n_nonempty})
FROM (SELECT n.{column} FROM {table} AS n WHERE n.{key} IS NULL LIMIT {limit}) AS n;

-- name: copied_sample
-- What backfill's COPY does to a row, but for the lookup of its version.
SELECT n.{key}::text, n.{column}::text FROM {table} AS n {sample} LIMIT {limit}

-- name: dependents
-- Whatever the catalog says depends on the column, in the table or one of its partitions. Left out: the column's own
-- default and NOT NULL, and the triggers of this tool. A view is named itself, in place of the rule it consists of.
SELECT DISTINCT o.type, o.identity
FROM (SELECT %(oid)s::oid AS relid UNION SELECT relid FROM pg_catalog.pg_partition_tree(%(oid)s::oid)) AS tree
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = tree.relid AND a.attname = %(column)s
JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_class'::regclass
    AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum
LEFT JOIN pg_catalog.pg_rewrite AS view
    ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND view.oid = d.objid AND view.rulename = '_RETURN'
CROSS JOIN LATERAL pg_catalog.pg_identify_object(
    CASE WHEN view.oid IS NULL THEN d.classid ELSE 'pg_catalog.pg_class'::regclass END,
    coalesce(view.ev_class, d.objid), CASE WHEN view.oid IS NULL THEN d.objsubid ELSE 0 END) AS o
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attrdef AS own
                  WHERE d.classid = 'pg_catalog.pg_attrdef'::regclass AND own.oid = d.objid AND own.adnum = a.attnum)
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint AS own
                  WHERE d.classid = 'pg_catalog.pg_constraint'::regclass AND own.oid = d.objid AND own.contype = 'n')
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger AS own
                  WHERE d.classid = 'pg_catalog.pg_trigger'::regclass AND own.oid = d.objid
                    AND own.tgname LIKE 'cachemig\_%%')
ORDER BY 1, 2;

-- name: mentioning_functions
-- Functions whose text has the column's name in it as a word. Postgres does not look into them: after a drop they
-- fail when they are called. The dependency of a function with an SQL body is known to the catalog.
SELECT p.oid::regprocedure::text
FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'cachemig') AND n.nspname NOT LIKE 'pg\_temp%%'
  AND p.prosrc ~* ('(?<!\w)' || pg_catalog.regexp_replace(%(column)s, '([^[:alnum:]_])', '\\\1', 'g') || '(?!\w)')
ORDER BY 1;

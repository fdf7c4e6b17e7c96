-- What the catalog says about the table. Reads only; needs no right beyond CONNECT, but for the counts of rows.

-- name: table_oid
SELECT pg_catalog.to_regclass(%(table)s)::oid;

-- name: table_facts
SELECT n.nspname AS schema, c.relname AS name, c.relkind::text AS kind, pg_catalog.pg_get_userbyid(c.relowner) AS owner,
       c.reltuples::float8 AS tuples, pg_catalog.pg_relation_filenode(c.oid) AS filenode, c.relrowsecurity AS rls,
       c.relforcerowsecurity AS force_rls, pg_catalog.pg_has_role(c.relowner, 'USAGE') AS is_owner
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = %(oid)s;

-- name: table_columns
SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull
FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum;

-- name: table_indexes
-- Columns are null where the index is over an expression.
SELECT i.indexrelid::regclass::text AS name, i.indisprimary AS is_primary,
       i.indisunique AND i.indimmediate AS is_unique, i.indpred IS NOT NULL AS is_partial,
       ARRAY(SELECT (SELECT a.attname FROM pg_catalog.pg_attribute AS a
                     WHERE a.attrelid = i.indrelid AND a.attnum = k.attnum)
             FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, position)
             WHERE k.position <= i.indnkeyatts ORDER BY k.position)::text[] AS columns
FROM pg_catalog.pg_index AS i
WHERE i.indrelid = %(oid)s AND i.indisvalid AND i.indislive
ORDER BY NOT i.indisprimary, i.indnkeyatts, 1;

-- name: before_triggers
-- BEFORE UPDATE row triggers whose function mentions the column: an UPDATE OF trigger would not see what they change.
SELECT t.tgname, p.oid::regprocedure::text
FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
WHERE t.tgrelid = %(oid)s AND NOT t.tgisinternal AND t.tgenabled <> 'D'
  AND t.tgtype & 2 <> 0 AND t.tgtype & 1 <> 0 AND t.tgtype & 16 <> 0
  AND EXISTS (SELECT FROM pg_catalog.unnest(%(columns)s::text[]) AS name
              WHERE pg_catalog.strpos(pg_catalog.lower(p.prosrc), pg_catalog.lower(name)) > 0)
ORDER BY 1;

-- name: table_size
-- Waits for whoever holds the table exclusively, so it is asked only where the answer is wanted.
SELECT pg_catalog.pg_total_relation_size(%(oid)s);

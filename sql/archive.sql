-- archive: every row of the column goes into a file. Reads only, but for one row of the control schema at the end.
-- Nothing here takes a lock that an application could wait for: SELECT and COPY conflict with DDL alone.

-- name: steady
-- Texts of keys are compared between sessions, and between then and now: what a role or a database sets must not show.
SET LOCAL timezone = 'UTC'; SET LOCAL intervalstyle = 'postgres'; SET LOCAL extra_float_digits = 1;
SET LOCAL bytea_output = 'hex'; SET LOCAL xmlbinary = 'base64';

-- name: one_snapshot
-- Every statement of this transaction sees the table at one moment. It holds back vacuum while it lasts, as pg_dump does.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;

-- name: begun
-- Which migration of which database: a file is gone on with only where it was begun.
SELECT pg_catalog.current_database(), (SELECT min(at)::text FROM cachemig.journal);

-- name: relation
-- Which of several tables that inherit a row is in: they share no primary key.
(SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
 FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.oid = t.tableoid)

-- name: inherited
-- Tables that inherit from this one, and are not its partitions.
SELECT count(*) FROM pg_catalog.pg_inherits AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.inhparent
WHERE i.inhparent = {oid} AND c.relkind = 'r';

-- name: bound
-- Where a block of so many rows ends: one index-only scan over as many entries.
SELECT {texts} FROM {table} AS t WHERE {range} ORDER BY {order} OFFSET {rows} LIMIT 1;

-- name: read_rows
-- Every row of a range that holds anything, {{}} and JSON null included, with its version as in scan.sql: value and version
-- in one statement, so that they belong to one snapshot. And with the version that the ledger knows to be delivered: of a
-- frozen column, what is above it in Redis was written there.
SELECT {row},
       t.{key}::text,
       {version},
       e.version,
       {lifetime_from},
       coalesce({is_entry}, false),
       t.{column}::text
FROM {table} AS t
{versions}
LEFT JOIN cachemig.entry AS e ON e.key_id = cachemig.key_id(t.{key}::text)
WHERE {range} AND t.{column} IS NOT NULL

-- name: read_digests
-- The same rows, their texts hashed by Postgres: what is compared shares no code with what was written.
SELECT {row},
       t.{key}::text,
       {version},
       pg_catalog.sha256(pg_catalog.convert_to(t.{column}::text, 'UTF8'))
FROM {table} AS t
{versions}
WHERE {range} AND t.{column} IS NOT NULL

-- name: version
(SELECT coalesce(m.frozen_epoch, m.epoch) FROM cachemig.migration AS m WHERE m.phase <> 'idle')::bigint * 1099511627776
    + coalesce(v.count, 0) + coalesce(c.count, 0)

-- name: versions
LEFT JOIN cachemig.version AS v ON v.key_id = cachemig.key_id(t.{key}::text)
LEFT JOIN (SELECT key, count(*) AS count FROM cachemig.change GROUP BY key) AS c ON c.key = t.{key}::text

-- name: ambiguous
-- Where only the key tells rows apart: rows without one, and rows that share theirs. Looked at before anything is written.
SELECT count(*) FILTER (WHERE k.key IS NULL), count(*) FILTER (WHERE k.rows > 1), min(k.key) FILTER (WHERE k.rows > 1)
FROM (SELECT t.{key}::text AS key, count(*) AS rows FROM {table} AS t WHERE t.{column} IS NOT NULL GROUP BY t.{key}) AS k
WHERE k.key IS NULL OR k.rows > 1;

-- name: nulls
SELECT count(*) FILTER (WHERE t.{column} IS NULL) FROM {table} AS t;

-- name: pending
SELECT count(*) FROM cachemig.change;

-- name: qualified_names
-- So that whatever the catalog prints names its schema.
SET LOCAL search_path = pg_catalog, pg_temp;

-- name: column_facts
SELECT a.attnum, pg_catalog.format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS not_null,
       pg_catalog.pg_get_expr(d.adbin, d.adrelid) AS default, a.attgenerated::text AS generated,
       CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END AS storage,
       a.attstorage = t.typstorage AS storage_is_default,
       CASE a.attcompression WHEN 'p' THEN 'pglz' WHEN 'l' THEN 'lz4' END AS compression,
       nullif(a.attstattarget, -1) AS statistics, coalesce(a.attoptions, ARRAY[]::text[]) AS options,
       pg_catalog.col_description(a.attrelid, a.attnum) AS comment
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = %(oid)s AND a.attname = %(column)s AND NOT a.attisdropped;

-- name: column_grants
SELECT CASE WHEN g.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.pg_get_userbyid(g.grantee) END AS grantee,
       g.grantee = 0 AS is_public, g.privilege_type AS privilege, g.is_grantable AS grantable
FROM pg_catalog.pg_attribute AS a CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) AS g
WHERE a.attrelid = %(oid)s AND a.attname = %(column)s
ORDER BY 1, 3;

-- name: column_constraints
-- Of every kind; those that an index stands for are named with it. NOT NULL is a property of the column.
SELECT c.conname AS name, c.contype::text AS kind, pg_catalog.pg_get_constraintdef(c.oid) AS definition,
       c.convalidated AS validated, i.relname AS index, pg_catalog.obj_description(c.oid, 'pg_constraint') AS comment
FROM pg_catalog.pg_constraint AS c
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
LEFT JOIN pg_catalog.pg_class AS i ON i.oid = c.conindid AND c.contype IN ('u', 'p', 'x')
WHERE c.conrelid = %(oid)s AND a.attname = %(column)s AND c.contype <> 'n' AND c.conislocal
ORDER BY c.conname;

-- name: column_indexes
-- Of the table, its partitions and the tables that inherit from it; the table's own first. `tail`: the definition from
-- USING on.
WITH RECURSIVE tree (oid, level) AS (
    SELECT %(oid)s::oid, 0
    UNION ALL
    SELECT i.inhrelid, tree.level + 1 FROM tree JOIN pg_catalog.pg_inherits AS i ON i.inhparent = tree.oid
)
SELECT n.nspname AS schema, x.relname AS name, tree.level, x.relkind = 'I' AS partitioned, i.indisunique AS is_unique,
       pg_catalog.format('%%I.%%I', tn.nspname, tc.relname) AS on_table,
       pg_catalog.substr(
           pg_catalog.pg_get_indexdef(i.indexrelid),
           1 + pg_catalog.length(pg_catalog.format(
               'CREATE %%sINDEX %%I ON %%s%%I.%%I', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, x.relname,
               CASE WHEN x.relkind = 'I' THEN 'ONLY ' ELSE '' END, tn.nspname, tc.relname))) AS tail,
       pg_catalog.pg_get_indexdef(i.indexrelid) AS definition,
       (SELECT pg_catalog.format('%%I.%%I', pn.nspname, p.relname)
        FROM pg_catalog.pg_inherits AS h JOIN pg_catalog.pg_class AS p ON p.oid = h.inhparent
        JOIN pg_catalog.pg_namespace AS pn ON pn.oid = p.relnamespace WHERE h.inhrelid = i.indexrelid) AS parent,
       ts.spcname AS tablespace, pg_catalog.obj_description(i.indexrelid, 'pg_class') AS comment
FROM tree
JOIN pg_catalog.pg_index AS i ON i.indrelid = tree.oid
JOIN pg_catalog.pg_class AS x ON x.oid = i.indexrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = x.relnamespace
JOIN pg_catalog.pg_class AS tc ON tc.oid = tree.oid
JOIN pg_catalog.pg_namespace AS tn ON tn.oid = tc.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = tree.oid AND a.attname = %(column)s AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_tablespace AS ts ON ts.oid = x.reltablespace
WHERE i.indislive
  AND (a.attnum = ANY (i.indkey::int2[])
       OR EXISTS (SELECT FROM pg_catalog.pg_depend AS d
                  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = i.indexrelid
                    AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = tree.oid
                    AND d.refobjsubid = a.attnum))
ORDER BY tree.level, 1, 2;

-- name: column_statistics
SELECT n.nspname AS schema, s.stxname AS name, pg_catalog.pg_get_statisticsobjdef(s.oid) AS definition,
       pg_catalog.obj_description(s.oid, 'pg_statistic_ext') AS comment
FROM pg_catalog.pg_statistic_ext AS s
JOIN pg_catalog.pg_namespace AS n ON n.oid = s.stxnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = s.stxrelid AND a.attname = %(column)s
WHERE s.stxrelid = %(oid)s
  AND (a.attnum = ANY (s.stxkeys::int2[])
       OR EXISTS (SELECT FROM pg_catalog.pg_depend AS d
                  WHERE d.classid = 'pg_catalog.pg_statistic_ext'::regclass AND d.objid = s.oid
                    AND d.refobjid = s.stxrelid AND d.refobjsubid = a.attnum))
ORDER BY 1, 2;

-- name: register
INSERT INTO cachemig.archive (who, location, rows, entries, bytes, sha256, epoch, checked_at)
VALUES (%(who)s, %(location)s, %(rows)s, %(entries)s, %(bytes)s, %(sha256)s, %(epoch)s,
        coalesce(%(checked_at)s, pg_catalog.clock_timestamp()))
RETURNING id, checked_at;

-- name: check_again
-- The file is the one that is registered already.
UPDATE cachemig.archive SET checked_at = coalesce(%(checked_at)s, pg_catalog.clock_timestamp()), who = %(who)s, epoch = %(epoch)s
WHERE id = (SELECT id FROM cachemig.archive WHERE location = %(location)s AND sha256 = %(sha256)s ORDER BY id DESC LIMIT 1)
RETURNING id, checked_at;

-- name: void
-- What stands at the place is another file now: the former one counts for nothing any more.
UPDATE cachemig.archive SET checked_at = NULL
WHERE location = %(location)s AND sha256 <> %(sha256)s AND checked_at IS NOT NULL;

-- name: registered
SELECT id, at, checked_at FROM cachemig.archive WHERE sha256 = %(sha256)s ORDER BY id DESC LIMIT 1;

-- name: at_place
SELECT max(checked_at) FROM cachemig.archive WHERE location = %(location)s;

-- name: newest
SELECT id, at, who, location, rows, entries, bytes, sha256, epoch, checked_at FROM cachemig.archive
WHERE checked_at IS NOT NULL ORDER BY checked_at DESC, id DESC LIMIT 1;

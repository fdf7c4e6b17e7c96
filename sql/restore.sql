-- restore: the column comes back from an archive, on a live table. Statements that take ACCESS EXCLUSIVE change the
-- catalog alone, in one short transaction with a lock_timeout, and are tried again; nothing here rewrites the table.

-- name: found_column
-- The table, and whether it has the column. What stands as its comment tells a restore that was begun from a column that
-- was never dropped.
SELECT c.oid, a.attnum IS NOT NULL, pg_catalog.col_description(c.oid, a.attnum)
FROM pg_catalog.pg_class AS c
LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = %(column)s AND NOT a.attisdropped
WHERE c.oid = pg_catalog.to_regclass(%(table)s);

-- name: columns
SELECT a.attname FROM pg_catalog.pg_attribute AS a
WHERE a.attrelid = pg_catalog.to_regclass(%(table)s) AND a.attnum > 0 AND NOT a.attisdropped;

-- name: add_column
-- Without a default, so that what is not in the archive is NULL as it was, and no row is touched. ACCESS EXCLUSIVE for an
-- instant.
ALTER TABLE {table} ADD COLUMN {column} {type};

-- name: set_default
-- For rows to come; those that are there keep what they hold.
ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT {default};

-- name: set_storage
-- Of the same transaction as add_column, under the lock that it has: the catalog alone.
ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE {storage};

-- name: set_compression
-- Of the same transaction as add_column, under the lock that it has: the catalog alone.
ALTER TABLE {table} ALTER COLUMN {column} SET COMPRESSION {compression};

-- name: set_statistics
-- Of the same transaction as add_column, under the lock that it has: the catalog alone.
ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS {target};

-- name: set_options
-- Of the same transaction as add_column, under the lock that it has: the catalog alone.
ALTER TABLE {table} ALTER COLUMN {column} SET ({options});

-- name: grant_column
GRANT {privilege} ({column}) ON TABLE {table} TO {role}{option};

-- name: comment_column
COMMENT ON COLUMN {table}.{column} IS {comment};

-- name: comment_other
COMMENT ON {kind} {object} IS {comment};

-- name: roles
SELECT rolname FROM pg_catalog.pg_roles WHERE rolname = ANY (%(names)s);

-- name: quiet
-- Triggers of the application do not fire for rows that come back, such as one that sets updated_at. Where the role may
-- not say so they do fire. For this transaction only.
SET LOCAL session_replication_role = 'replica';

-- name: by_index
-- The rows that were loaded are few and the table is large; the temporary table has no statistics that would say so.
SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off;

-- name: has_load_table
-- Behind a transaction pooler the session may be one that has it, or one that has not.
SELECT pg_catalog.to_regclass('pg_temp.cachemig_restore') IS NOT NULL;

-- name: load_table
-- EXTERNAL: texts that are read once are not worth compressing, which would take longer than all the rest.
CREATE TEMPORARY TABLE cachemig_restore (row text[], value text) ON COMMIT DELETE ROWS;
ALTER TABLE pg_temp.cachemig_restore ALTER COLUMN value SET STORAGE EXTERNAL;

-- name: load
COPY cachemig_restore (row, value) FROM STDIN (FORMAT BINARY)

-- name: fill
-- Where the column is NULL, that is where nothing has come back yet: repeating it does no harm, and what was written since
-- stays. Locks the rows of one small batch until it is committed; waits for others no longer than lock_timeout.
UPDATE {table} AS t SET {column} = l.value::{type}
FROM cachemig_restore AS l
WHERE {same} AND t.{column} IS NULL;

-- name: gone
-- Rows of the batch that the table does not have any more.
SELECT count(*) FROM cachemig_restore AS l WHERE NOT EXISTS (SELECT FROM {table} AS t WHERE {same});

-- name: has_nulls
-- A range without any is done already.
SELECT EXISTS (SELECT FROM {table} AS t WHERE {range} AND t.{column} IS NULL);

-- name: hold_newest
-- The row that a write by this key goes to: the newest. Locked until the transaction ends, so that it does not move.
SELECT n.tableoid::pg_catalog.text, n.ctid::pg_catalog.text
FROM {table} AS n WHERE n.{key} = {wanted}::{key_type}
ORDER BY {n_order} LIMIT 1 FOR NO KEY UPDATE;

-- name: put_newest
UPDATE {table} AS t SET {column} = l.value::{type}
FROM cachemig_restore AS l
WHERE t.tableoid = {tableoid} AND t.ctid = {ctid} AND t.{column}::text IS DISTINCT FROM (l.value::{type})::text;

-- name: empty_rows
-- Every row of the key, as cachemig.invalidate does: an older one would be the entry otherwise.
UPDATE {table} AS t SET {column} = '{{}}'
WHERE t.{key} = {wanted}::{key_type} AND t.{column}::text IS DISTINCT FROM '{{}}';

-- name: without_entry
-- Keys for which no row holds a value: rows that came since the drop, among others. A page at a time.
SELECT DISTINCT t.{key}, t.{key}::text FROM {table} AS t
WHERE t.{key} IS NOT NULL AND {after} AND NOT coalesce({t_nonempty}, false)
  AND NOT EXISTS (SELECT FROM {table} AS n WHERE n.{key} = t.{key} AND {n_nonempty})
ORDER BY 1 LIMIT {limit};

-- name: text_digest
-- What the column would hold of this text.
SELECT pg_catalog.sha256(pg_catalog.convert_to((l.value::{type})::text, 'UTF8')) FROM cachemig_restore AS l;

-- name: unfilled
-- Of these rows, those that are there and hold NULL.
SELECT r.n FROM (VALUES {rows}) AS r (n, row)
WHERE EXISTS (SELECT FROM {table} AS t WHERE {same} AND t.{column} IS NULL);

-- name: fill_default
-- Rows that came since the drop, of a column that takes no NULL.
UPDATE {table} AS t SET {column} = DEFAULT
WHERE (t.tableoid, t.ctid) IN (SELECT n.tableoid, n.ctid FROM {table} AS n WHERE n.{column} IS NULL LIMIT {limit});

-- name: digest_at
-- What one row holds now; no row: it is gone.
SELECT pg_catalog.sha256(pg_catalog.convert_to(t.{column}::text, 'UTF8')) FROM {table} AS t WHERE {same};

-- name: add_constraint
-- NOT VALID: holds for new writes at once, and looks at no row. ACCESS EXCLUSIVE for an instant.
ALTER TABLE {table} ADD CONSTRAINT {constraint} {definition};

-- name: validate_constraint
-- Looks at every row under SHARE UPDATE EXCLUSIVE: reads and writes go on.
ALTER TABLE {table} VALIDATE CONSTRAINT {constraint};

-- name: set_not_null
-- Looks at no row: the validated constraint proves it. ACCESS EXCLUSIVE for an instant.
ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL;

-- name: drop_constraint
-- The tool's own, which proved NOT NULL and says no more than that does. ACCESS EXCLUSIVE for an instant.
ALTER TABLE {table} DROP CONSTRAINT {constraint};

-- name: constraint_state
SELECT c.convalidated FROM pg_catalog.pg_constraint AS c
WHERE c.conrelid = pg_catalog.to_regclass(%(table)s) AND c.conname = %(name)s;

-- name: not_null_state
SELECT a.attnotnull FROM pg_catalog.pg_attribute AS a
WHERE a.attrelid = pg_catalog.to_regclass(%(table)s) AND a.attname = %(column)s;

-- name: index_state
-- Whether it is there, complete, and attached to one above it. An interrupted CREATE INDEX CONCURRENTLY leaves an invalid
-- one behind.
SELECT i.indisvalid, EXISTS (SELECT FROM pg_catalog.pg_inherits AS h WHERE h.inhrelid = i.indexrelid)
FROM pg_catalog.pg_index AS i WHERE i.indexrelid = pg_catalog.to_regclass(%(index)s);

-- name: relation_is_there
SELECT pg_catalog.to_regclass(%(table)s) IS NOT NULL;

-- name: statistics_are_there
SELECT EXISTS (SELECT FROM pg_catalog.pg_statistic_ext AS s
               JOIN pg_catalog.pg_namespace AS n ON n.oid = s.stxnamespace
               WHERE n.nspname = %(schema)s AND s.stxname = %(name)s);

-- name: partitions_without
-- Partitions that came since, or lost it: nothing is attached for them to this index.
SELECT n.nspname, c.relname, c.relkind = 'p'
FROM pg_catalog.pg_index AS i
JOIN pg_catalog.pg_inherits AS h ON h.inhparent = i.indrelid
JOIN pg_catalog.pg_class AS c ON c.oid = h.inhrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE i.indexrelid = pg_catalog.to_regclass(%(index)s) AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_inherits AS x JOIN pg_catalog.pg_index AS p ON p.indexrelid = x.inhrelid
    WHERE x.inhparent = i.indexrelid AND p.indrelid = h.inhrelid)
ORDER BY 1, 2;

-- name: patient_session
-- CONCURRENTLY waits for transactions that are older than it, while nobody waits for it: no time limit. Set for the
-- session, which is closed afterwards, for it cannot run in a transaction.
SET statement_timeout = 0;

-- name: patient_locks
SET lock_timeout = 0;

-- name: create_index
-- Reads and writes go on while it is built (SHARE UPDATE EXCLUSIVE).
CREATE {unique}INDEX CONCURRENTLY {index} ON {table} {tail};

-- name: create_index_above
-- Of a partitioned table: an empty frame. Those of the partitions are built one by one and attached.
CREATE {unique}INDEX {index} ON ONLY {table} {tail};

-- name: drop_invalid_index
-- What an interrupted CREATE INDEX CONCURRENTLY of this restore left behind; no query uses an invalid index. Reads and
-- writes go on.
DROP INDEX CONCURRENTLY {index};

-- name: attach_index
ALTER INDEX {parent} ATTACH PARTITION {index};

-- name: use_index
-- Makes a constraint of an index that is there; no row is looked at.
ALTER TABLE {table} ADD CONSTRAINT {constraint} {kind} USING INDEX {index};

-- name: triggers
-- Row triggers of the application that an UPDATE of the column fires.
SELECT t.tgname FROM pg_catalog.pg_trigger AS t
WHERE t.tgrelid = pg_catalog.to_regclass(%(table)s) AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
  AND t.tgtype & 1 <> 0 AND t.tgtype & 16 <> 0 AND t.tgname NOT LIKE 'cachemig\_%%'
  AND t.tgattr = ''::int2vector
ORDER BY 1;

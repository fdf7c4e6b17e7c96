-- rollback from redis-only: what Redis has newer goes back into the column, and late writes that Redis never had.
-- Fragments in braces are those of scan.sql; {given} is an array of keys, {texts} of their values (null: there is none).

-- name: copying
-- The guard lets this transaction's writes through.
SELECT pg_catalog.set_config('cachemig.copying', 'on', true);

-- name: lock_rows
-- In one order, so that two copies cannot deadlock. The update comes in a new statement: it sees what these rows are now.
SELECT FROM {table} AS t
WHERE t.{key} IN (SELECT {k_key} FROM pg_catalog.unnest({given}::text[]) AS k (key))
ORDER BY t.{key}, {lock_order} FOR NO KEY UPDATE;

-- name: put_back
-- Into the newest row of the key, where the entry of the table is another one: compared as the column itself would show it.
UPDATE {table} AS t SET {column} = k.value
FROM (SELECT g.key, g.text::{column_type} AS value
      FROM ROWS FROM (pg_catalog.unnest({given}::text[]), pg_catalog.unnest({texts}::text[])) AS g (key, text)
      WHERE g.text IS NOT NULL) AS k
WHERE t.{key} = {k_key} AND t.{key}::text = k.key
  AND (t.tableoid, t.ctid) = (
      SELECT n.tableoid, n.ctid FROM {table} AS n WHERE n.{key} = {k_key} AND n.{key}::text = k.key
      ORDER BY {n_order} LIMIT 1)
  AND k.value::text IS DISTINCT FROM (
      SELECT n.{column}::text FROM {table} AS n
      WHERE n.{key} = {k_key} AND n.{key}::text = k.key AND {n_nonempty} ORDER BY {n_order} LIMIT 1);

-- name: empty_again
-- Every row of the key, for an older one would win otherwise.
UPDATE {table} AS t SET {column} = '{{}}'
FROM ROWS FROM (pg_catalog.unnest({given}::text[]), pg_catalog.unnest({texts}::text[])) AS k (key, text)
WHERE k.text IS NULL AND t.{key} = {k_key} AND t.{key}::text = k.key AND {t_nonempty};

-- name: without_row
SELECT k.key FROM ROWS FROM (pg_catalog.unnest({given}::text[]), pg_catalog.unnest({texts}::text[])) AS k (key, text)
WHERE k.text IS NOT NULL
  AND NOT EXISTS (SELECT FROM {table} AS n WHERE n.{key} = {k_key} AND n.{key}::text = k.key);

-- name: late_waiting
-- Of each key the last one that Redis never had, be it corrupt: the column is to hold that.
SELECT DISTINCT ON (key) key, value FROM cachemig.late_write
WHERE kind = 'write' AND (outcome IS NULL OR outcome IN ('set-aside', 'failed')) ORDER BY key, id DESC;

-- name: late_settled
UPDATE cachemig.late_write SET outcome = 'superseded', error = 'rollback left it in the column',
    done_at = pg_catalog.clock_timestamp()
WHERE outcome IS NULL;

-- recompute: repairs of the source. Each writes one row, on condition that it still holds what was judged.

-- name: set_aside
-- Keys whose value is corrupt, a page at a time, in an order that repairs do not disturb.
SELECT e.key_id, e.key FROM cachemig.entry AS e
WHERE e.state = 'set-aside' AND e.key_id > %(after)s
ORDER BY e.key_id LIMIT %(limit)s;

-- name: read_row
-- The value that is the entry of a key, and the columns that say where its recording is.
SELECT n.{column}::text{columns}
FROM {table} AS n WHERE n.{key} = {wanted}::{key_type} AND {n_nonempty}
ORDER BY {n_order} LIMIT 1;

-- name: hold_row
-- The same row, locked until the transaction ends, and where it lies: it cannot move any more. Waits for another holder
-- no longer than lock_timeout; foreign keys that point to the row are not held up.
SELECT n.tableoid::pg_catalog.text, n.ctid::pg_catalog.text
FROM {table} AS n WHERE n.{key} = {wanted}::{key_type} AND {n_nonempty}
ORDER BY {n_order} LIMIT 1 FOR NO KEY UPDATE;

-- name: repair
-- In a new statement after hold_row, so that its snapshot sees what is held. By place, so that no index is needed; by
-- digest, so that a value which the application wrote meanwhile stays. Capture marks the key, sync delivers it.
WITH repaired AS (
    UPDATE {table} AS t SET {column} = {value}::{type}
    WHERE t.tableoid = {tableoid} AND t.ctid = {ctid}
      AND pg_catalog.sha256(pg_catalog.convert_to(t.{column}::text, 'UTF8')) = {judged}
    RETURNING pg_catalog.sha256(pg_catalog.convert_to(t.{column}::text, 'UTF8')) AS after_sha256)
INSERT INTO cachemig.repair (key, how, fault, profile, code_version, before, before_sha256, after_sha256, who)
SELECT {wanted}, {how}, {fault}, {profile}, {code_version}, {before}, {judged}, after_sha256, {who} FROM repaired;

-- name: explain
-- Why an entry stays set aside.
UPDATE cachemig.entry SET error = %(error)s
WHERE key_id = cachemig.key_id(%(key)s) AND state = 'set-aside';

-- name: repairs
-- Repairs that were not taken back, the last of each key first.
SELECT r.id, r.key, r.before, r.after_sha256 FROM cachemig.repair AS r
WHERE r.undone_at IS NULL AND (%(keys)s::text[] IS NULL OR r.key = ANY (%(keys)s)) AND r.id < %(before)s
ORDER BY r.id DESC LIMIT %(limit)s;

-- name: undo
-- The kept text goes back, on condition that the row still holds what the repair wrote.
WITH undone AS (
    UPDATE {table} AS t SET {column} = {value}::{type}
    WHERE t.tableoid = {tableoid} AND t.ctid = {ctid}
      AND pg_catalog.sha256(pg_catalog.convert_to(t.{column}::text, 'UTF8')) = {judged}
    RETURNING 1)
UPDATE cachemig.repair SET undone_at = pg_catalog.clock_timestamp()
WHERE id = {repair} AND EXISTS (SELECT FROM undone);

-- name: shapes
-- Which of the application's shapes most of some rows hold.
SELECT count(*) FILTER (WHERE n.{column} -> 'analytics' IS NOT NULL),
       count(*) FILTER (WHERE n.{column} -> 'channels' IS NOT NULL)
FROM (SELECT * FROM {table} LIMIT 2000) AS n WHERE {n_nonempty};

-- The ledger: written in bulk, one COPY into a temporary table and one upsert a chunk.

-- name: ledger_load_table
-- IF NOT EXISTS: behind a transaction pooler the session may be one that has it, or one that has not.
CREATE TEMPORARY TABLE IF NOT EXISTS cachemig_load (
    key text, version bigint, state text, sha256 bytea, bytes bigint, stored_sha256 bytea, expires_at timestamptz,
    error text
) ON COMMIT DELETE ROWS;

-- name: ledger_copy
COPY cachemig_load (key, version, state, sha256, bytes, stored_sha256, expires_at, error) FROM STDIN (FORMAT BINARY)

-- name: ledger_upsert
-- An older state never replaces a newer one. Ordered, so that two workers cannot deadlock.
INSERT INTO cachemig.entry AS e
    (key_id, key, version, state, sha256, bytes, stored_sha256, expires_at, error, written_at)
SELECT DISTINCT ON (cachemig.key_id(key)) cachemig.key_id(key), key, version, state, sha256, bytes, stored_sha256,
       expires_at, error, pg_catalog.clock_timestamp()
FROM cachemig_load ORDER BY cachemig.key_id(key), version DESC
ON CONFLICT (key_id) DO UPDATE
SET version = excluded.version, state = excluded.state, sha256 = excluded.sha256, bytes = excluded.bytes,
    stored_sha256 = excluded.stored_sha256, expires_at = excluded.expires_at,
    -- Of the same value: why it could not be repaired is not forgotten.
    error = CASE WHEN e.state = 'set-aside' AND excluded.state = 'set-aside' AND e.sha256 = excluded.sha256
                 THEN e.error ELSE excluded.error END,
    written_at = excluded.written_at
WHERE excluded.version >= e.version;

-- name: ledger_counts
SELECT state, count(*), coalesce(sum(bytes), 0)::bigint FROM cachemig.entry GROUP BY state;

-- name: ledger_faults
-- What could not be migrated, by name of the fault; of each of the two states at most %(limit)s keys are looked at. The
-- order is that of the index entry_state, so that the rest of the ledger is not read whatever the statistics say.
SELECT state, pg_catalog.split_part(error, ':', 1), count(*), min(key)
FROM (SELECT f.* FROM (SELECT state, error, key FROM cachemig.entry WHERE state IN ('set-aside', 'failed')
                       ORDER BY state LIMIT %(limit)s) AS f WHERE f.state = 'failed'
      UNION ALL
      SELECT s.* FROM (SELECT state, error, key FROM cachemig.entry WHERE state IN ('set-aside', 'failed')
                       ORDER BY state DESC LIMIT %(limit)s) AS s WHERE s.state = 'set-aside') AS found
GROUP BY 1, 2 ORDER BY 1, 2;

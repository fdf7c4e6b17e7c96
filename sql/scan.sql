-- Reading entries: value, expiry and version always in ONE statement, so that they belong to one snapshot.
-- Fragments in braces are put in as identifiers or as the fragments below; values are parameters or literals.

-- name: nonempty_jsonb
-- NULL, JSON null and the empty object are not entries. The size is looked at first, because the comparison would
-- decompress a large value for nothing; no empty value is stored in more than 64 bytes.
({row}.{column} IS NOT NULL AND (pg_catalog.pg_column_size({row}.{column}) > 64
    OR {row}.{column} NOT IN ('{{}}'::jsonb, 'null'::jsonb)))

-- name: nonempty_json
-- The json type keeps its text as written and has no equality.
({row}.{column} IS NOT NULL AND (pg_catalog.pg_column_size({row}.{column}) > 64
    OR {row}.{column}::text !~ '^\s*(\{{\s*\}}|null)\s*$'))

-- name: winner
-- Where several rows share a key: the newest of those that hold a value. The same order as in read_keys. By the text too:
-- what a type calls equal (citext, char) may be two names in Redis.
(t.tableoid, t.ctid) = (
    SELECT n.tableoid, n.ctid FROM {table} AS n
    WHERE n.{key} = t.{key} AND n.{key}::text = t.{key}::text AND {n_nonempty}
    ORDER BY {n_order} LIMIT 1)

-- name: winner_where_shared
-- The same, asked only where it can matter: a row that came to share its key after the table was laid out left a change,
-- which this snapshot sees or has seen folded into the version.
AND CASE WHEN v.key_id IS NULL AND c.key IS NULL AND t.{key}::text <> ALL ({shared}::text[]) THEN true
         ELSE {winner} END

-- name: read_chunk
-- Every entry of a range of rows. The version is null in a snapshot in which capture is off: nothing that was read
-- there may be delivered, since nobody would notice what becomes of it. A frozen column keeps its epoch, so that every
-- write to Redis alone is newer than it. OFFSET 0 keeps the look at versions one at the index for each row, where a plan
-- would read all versions for every chunk; without any version it costs nothing.
SELECT t.{key}::text,
       {value},
       (SELECT coalesce(m.frozen_epoch, m.epoch) FROM cachemig.migration AS m WHERE m.phase <> 'idle')::bigint * 1099511627776
           + coalesce(v.count, 0) + coalesce(c.count, 0),
       {lifetime_from}{more}
FROM {table} AS t
LEFT JOIN LATERAL (
    SELECT w.key_id, w.count FROM cachemig.version AS w WHERE w.key_id = cachemig.key_id(t.{key}::text) OFFSET 0
) AS v ON EXISTS (SELECT FROM cachemig.version)
LEFT JOIN (SELECT key, count(*) AS count, min(at) AS since FROM cachemig.change GROUP BY key) AS c
    ON c.key = t.{key}::text
{ledger_join}
WHERE {range} AND t.{key} IS NOT NULL AND {t_nonempty}
{winner}

-- name: read_gone
-- Keys that were handled and that no row holds a value for now: nothing is to be in Redis but their tombstones.
SELECT e.key,
       NULL::text,
       (SELECT coalesce(m.frozen_epoch, m.epoch) FROM cachemig.migration AS m WHERE m.phase <> 'idle')::bigint * 1099511627776
           + coalesce(v.count, 0) + coalesce(c.count, 0),
       NULL::bigint{more}
FROM cachemig.entry AS e
LEFT JOIN cachemig.version AS v ON v.key_id = e.key_id
LEFT JOIN (SELECT key, count(*) AS count, min(at) AS since FROM cachemig.change GROUP BY key) AS c ON c.key = e.key
LEFT JOIN (SELECT key, min(at) AS since FROM cachemig.late_write WHERE outcome IS NULL GROUP BY key) AS w ON w.key = e.key
WHERE NOT EXISTS (SELECT FROM {table} AS t WHERE t.{key}::text = e.key AND {t_nonempty})

-- name: read_keys
-- The state of given keys: a row for every key, with a null value where no row of the table holds one.
-- Counts all changes that are visible now, locked by other workers or not.
SELECT k.key,
       {value},
       (SELECT coalesce(m.frozen_epoch, m.epoch) FROM cachemig.migration AS m WHERE m.phase <> 'idle')::bigint * 1099511627776
           + coalesce(v.count, 0) + coalesce(c.count, 0),
       {lifetime_from}{more}
FROM pg_catalog.unnest({keys}::text[]) AS k (key)
LEFT JOIN LATERAL (
    SELECT n.* FROM {table} AS n
    WHERE n.{key} = {k_key} AND n.{key}::text = k.key AND {n_nonempty}
    ORDER BY {n_order} LIMIT 1
) AS t ON true
-- OFFSET 0 keeps this a look at the index for each key, where a plan would read all versions for a few keys.
LEFT JOIN LATERAL (
    SELECT w.count FROM cachemig.version AS w WHERE w.key_id = cachemig.key_id(k.key) OFFSET 0
) AS v ON true
LEFT JOIN LATERAL (
    SELECT count(*) AS count, min(h.at) AS since FROM cachemig.change AS h
    WHERE pg_catalog.hashtextextended(h.key, 0) = pg_catalog.hashtextextended(k.key, 0) AND h.key = k.key
) AS c ON true
{ledger_join}

-- name: read_ledger
-- After the drop: what the ledger says that Redis holds, for a range of ids. Versions are counted as for the table, so that
-- a row of the ledger that is of another version shows.
SELECT e.key,
       NULL::text,
       (SELECT coalesce(m.frozen_epoch, m.epoch) FROM cachemig.migration AS m)::bigint * 1099511627776
           + coalesce(v.count, 0) + coalesce(c.count, 0),
       NULL::bigint{more}
FROM cachemig.entry AS e
LEFT JOIN cachemig.version AS v ON v.key_id = e.key_id
LEFT JOIN (SELECT key, count(*) AS count, min(at) AS since FROM cachemig.change GROUP BY key) AS c ON c.key = e.key
LEFT JOIN (SELECT key, min(at) AS since FROM cachemig.late_write WHERE outcome IS NULL GROUP BY key) AS w ON w.key = e.key
WHERE {range}

-- name: read_ledger_keys
-- The same of given keys: a row for every key, without a state where the ledger does not know it.
SELECT k.key,
       NULL::text,
       (SELECT coalesce(m.frozen_epoch, m.epoch) FROM cachemig.migration AS m)::bigint * 1099511627776
           + coalesce(v.count, 0) + coalesce(c.count, 0),
       NULL::bigint{more}
FROM pg_catalog.unnest({keys}::text[]) AS k (key)
LEFT JOIN cachemig.version AS v ON v.key_id = cachemig.key_id(k.key)
LEFT JOIN (SELECT key, count(*) AS count, min(at) AS since FROM cachemig.change GROUP BY key) AS c ON c.key = k.key
{ledger_join}

-- name: ledger_size
SELECT count(*) FROM cachemig.entry;

-- name: ledger_known
-- As known_keys, after the drop.
SELECT k.key, coalesce(e.state <> 'removed', false), false,
       e.key IS NOT NULL OR EXISTS (SELECT FROM cachemig.version AS v WHERE v.key_id = cachemig.key_id(k.key))
FROM pg_catalog.unnest(%(keys)s::text[]) AS k (key)
LEFT JOIN cachemig.entry AS e ON e.key_id = cachemig.key_id(k.key);

-- name: sample_ledger
-- Keys that follow a place at random, in the order of their SHA-256: as good as keys at random.
(SELECT key FROM cachemig.entry WHERE key_id >= %(place)s AND state <> 'removed' ORDER BY key_id LIMIT %(limit)s)
UNION ALL
(SELECT key FROM cachemig.entry WHERE key_id < %(place)s AND state <> 'removed' ORDER BY key_id LIMIT %(limit)s)
LIMIT %(limit)s;

-- name: digest_as_jsonb
-- What the column's digest would be, had it held this text: jsonb prints values alike that differ in white space, the
-- order of members or escapes (not in the zeros at the end of a number).
SELECT pg_catalog.sha256(pg_catalog.convert_to(%(text)s::jsonb::text, 'UTF8'));

-- name: ledger_more
-- A TRUNCATE that is not expanded yet stands for a change of every key. The last column: how long a write to the frozen
-- column has been waiting.
, extract(epoch FROM pg_catalog.clock_timestamp() - least(c.since, (SELECT min(at) FROM cachemig.truncation)))::float8
, e.state
, e.version
, (extract(epoch FROM e.expires_at) * 1000)::bigint
, e.sha256
, e.error
, e.bytes
, extract(epoch FROM pg_catalog.clock_timestamp() - w.since)::float8

-- name: ledger_join_chunk
LEFT JOIN LATERAL (
    SELECT d.* FROM cachemig.entry AS d WHERE d.key_id = cachemig.key_id(t.{key}::text) OFFSET 0
) AS e ON true
LEFT JOIN (SELECT key, min(at) AS since FROM cachemig.late_write WHERE outcome IS NULL GROUP BY key) AS w ON w.key = t.{key}::text

-- name: ledger_join_keys
LEFT JOIN cachemig.entry AS e ON e.key_id = cachemig.key_id(k.key)
LEFT JOIN (SELECT key, min(at) AS since FROM cachemig.late_write WHERE outcome IS NULL GROUP BY key) AS w ON w.key = k.key

-- name: no_nested_loops
-- For this transaction. Two joins of whole tables by columns without an index: a wrong estimate must not make them
-- quadratic.
SET LOCAL enable_nestloop = off;

-- name: unhandled
-- The anti-join that decides whether backfill is complete: keys with a value that the ledger does not know in this
-- epoch; and those that could not be written or removed, and were not tried again in this run. A key with a change on
-- its way is sync's. Joined by the key itself: by its id a SHA-256 would be computed for each row.
(SELECT DISTINCT t.{key}::text AS key
FROM {table} AS t
WHERE t.{key} IS NOT NULL AND {t_nonempty}
  AND NOT EXISTS (
      SELECT FROM cachemig.entry AS e
      WHERE e.key = t.{key}::text
        AND e.state <> 'removed'
        AND e.version >= (SELECT coalesce(m.frozen_epoch, m.epoch) FROM cachemig.migration AS m)::bigint * 1099511627776)
  AND NOT EXISTS (SELECT FROM cachemig.change AS c WHERE c.key = t.{key}::text)
LIMIT {limit})
UNION
(SELECT e.key FROM cachemig.entry AS e WHERE e.state = 'failed' AND e.written_at < {since} LIMIT {limit});

-- name: known_keys
-- Of keys found in Redis: does a row hold a value, has the key a row at all, and was it ever handled or changed?
SELECT k.key,
       EXISTS (SELECT FROM {table} AS n WHERE n.{key} = {k_key} AND n.{key}::text = k.key AND {n_nonempty}),
       r.there,
       r.there OR EXISTS (SELECT FROM cachemig.entry AS e WHERE e.key_id = cachemig.key_id(k.key))
       OR EXISTS (SELECT FROM cachemig.version AS v WHERE v.key_id = cachemig.key_id(k.key))
FROM pg_catalog.unnest({keys}::text[]) AS k (key)
CROSS JOIN LATERAL (
    SELECT EXISTS (SELECT FROM {table} AS n WHERE n.{key} = {k_key} AND n.{key}::text = k.key) AS there) AS r;

-- name: skipped_keys
-- Keys of rows that hold nothing, where no other row of the key holds something either.
SELECT count(DISTINCT t.{key}) FROM {table} AS t
WHERE t.{key} IS NOT NULL AND NOT coalesce({t_nonempty}, false)
  AND NOT EXISTS (SELECT FROM {table} AS n WHERE n.{key} = t.{key} AND {n_nonempty});

-- name: sample_keys
-- Keys at random. Bernoulli looks at each row by itself, so that the sample is not a sample of pages.
SELECT s.key FROM (
    SELECT DISTINCT t.{key}::text AS key FROM {table} AS t TABLESAMPLE BERNOULLI ({percent})
    WHERE t.{key} IS NOT NULL AND {t_nonempty}
) AS s ORDER BY pg_catalog.random() LIMIT {limit};

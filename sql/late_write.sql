-- Writes to the column after it was frozen, and rows that went: kept by the guard (capture.sql), delivered to Redis by sync.

-- name: late_alone
-- One worker at a time, for the length of a transaction: late writes of one key keep their order. Not waited for.
SELECT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended('cachemig.late_write', 0));

-- name: late_new
-- Of each key the last one that waits; what came before it and was not taken up is superseded. One that was taken up is
-- finished first: its value may be on its way, and would be taken for somebody's newer write.
WITH waiting AS (
    SELECT id, key, taken_version IS NOT NULL AS taken,
           max(id) FILTER (WHERE taken_version IS NULL) OVER (PARTITION BY key) AS last,
           bool_or(taken_version IS NOT NULL) OVER (PARTITION BY key) AS busy
    FROM (SELECT id, key, taken_version FROM cachemig.late_write WHERE outcome IS NULL ORDER BY id LIMIT %(limit)s) AS w
), superseded AS (
    UPDATE cachemig.late_write AS l SET outcome = 'superseded', done_at = pg_catalog.clock_timestamp()
    FROM waiting AS w WHERE l.id = w.id AND NOT w.taken AND w.id < w.last
)
SELECT id, key FROM waiting WHERE id = last AND NOT taken AND NOT busy ORDER BY id;

-- name: late_take_up
UPDATE cachemig.late_write AS l SET taken_version = t.version, taken_marker = t.marker
FROM ROWS FROM (pg_catalog.unnest(%(ids)s::bigint[]), pg_catalog.unnest(%(versions)s::bigint[]),
                pg_catalog.unnest(%(markers)s::text[])) AS t (id, version, marker)
WHERE l.id = t.id AND l.outcome IS NULL;

-- name: late_taken
-- The last column: some row has this key by now.
SELECT l.id, k.key, l.kind, l.value, l.taken_version, l.taken_marker,
       EXISTS (SELECT FROM {table} AS n WHERE n.{key} = {k_key} AND n.{key}::text = k.key)
FROM cachemig.late_write AS l CROSS JOIN LATERAL (SELECT l.key) AS k (key)
WHERE l.outcome IS NULL AND l.taken_version IS NOT NULL ORDER BY l.id LIMIT {limit};

-- name: late_done
UPDATE cachemig.late_write AS l
SET outcome = d.outcome, error = d.error, done_at = pg_catalog.clock_timestamp()
FROM ROWS FROM (pg_catalog.unnest(%(ids)s::bigint[]), pg_catalog.unnest(%(outcomes)s::text[]),
                pg_catalog.unnest(%(errors)s::text[])) AS d (id, outcome, error)
WHERE l.id = d.id AND l.outcome IS NULL;

-- name: late_copied
-- What rollback has copied of a key is newer than what was taken up with an earlier version.
UPDATE cachemig.late_write AS l SET outcome = 'superseded', done_at = pg_catalog.clock_timestamp()
FROM ROWS FROM (pg_catalog.unnest(%(keys)s::text[]), pg_catalog.unnest(%(versions)s::bigint[])) AS c (key, version)
WHERE (l.outcome IS NULL OR l.outcome IN ('set-aside', 'failed')) AND l.key = c.key AND l.taken_version < c.version;

-- name: late_totals
-- How many wait, when the last one came ('write' alone), removed rows that were forwarded. Each count ends at 100,000, and
-- each has an index, so that asking stays cheap however many there were.
SELECT (SELECT count(*) FROM (SELECT FROM cachemig.late_write WHERE outcome IS NULL LIMIT 100000) AS w),
       (SELECT count(*) FROM (SELECT FROM cachemig.late_write WHERE kind = 'write' LIMIT 100000) AS w),
       last.at,
       (SELECT count(*) FROM (SELECT FROM cachemig.late_write WHERE kind = 'delete' LIMIT 100000) AS d),
       (SELECT count(*) FROM (SELECT FROM cachemig.late_write WHERE outcome IN ('failed', 'set-aside') LIMIT 100000) AS f),
       extract(epoch FROM pg_catalog.clock_timestamp()
           - (SELECT at FROM cachemig.late_write WHERE outcome IS NULL ORDER BY id LIMIT 1))::float8,
       extract(epoch FROM pg_catalog.clock_timestamp() - last.at)::float8
FROM (SELECT max(at) AS at FROM cachemig.late_write WHERE kind = 'write') AS last;

-- name: late_writers
-- Of the last 100,000 writes.
SELECT writer, count(*), max(at)
FROM (SELECT writer, at FROM cachemig.late_write WHERE kind = 'write' ORDER BY at DESC LIMIT 100000) AS w
GROUP BY writer ORDER BY 3 DESC LIMIT 20;

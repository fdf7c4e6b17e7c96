-- report: what the proof of a migration is drawn from. Reads only. Whatever grows with the table is read up to a limit, or
-- by a sample of the ledger's pages.

-- name: report_on_disk
-- (bytes of the table with its partitions, large values and indexes; bytes of the database). Also noted by init.
SELECT coalesce((SELECT sum(pg_catalog.pg_total_relation_size(t.oid))
                 FROM (SELECT %(oid)s::oid AS oid
                       UNION SELECT relid FROM pg_catalog.pg_partition_tree(%(oid)s::oid::regclass)) AS t), 0)::bigint,
       pg_catalog.pg_database_size(pg_catalog.current_database());

-- name: report_journal
-- Of each command the last %(limit)s lines, and how many there are: a sync that runs every minute must not hide the rest.
SELECT j.id, j.at, j.who, j.command, j.phase_from, j.phase_to, j.epoch, j.figures, c.lines
FROM (SELECT command, count(*) AS lines FROM cachemig.journal GROUP BY command) AS c
CROSS JOIN LATERAL (SELECT * FROM cachemig.journal AS l WHERE l.command = c.command ORDER BY l.id DESC LIMIT %(limit)s) AS j
ORDER BY j.id;

-- name: report_last_verification
-- Of all keys, with what it found.
SELECT at, who, epoch, figures FROM cachemig.journal
WHERE command = 'verify' AND figures ->> 'sample' IS NULL ORDER BY id DESC LIMIT 1;

-- name: report_last_drop
SELECT at FROM cachemig.journal WHERE command = 'drop-column' ORDER BY id DESC LIMIT 1;

-- name: report_keys_up_to
SELECT count(*) FROM (SELECT FROM cachemig.entry LIMIT %(limit)s) AS e;

-- name: report_ledger_pages
SELECT pg_catalog.pg_relation_size('cachemig.entry') / pg_catalog.current_setting('block_size')::bigint;

-- name: report_ledger_states
SELECT state, count(*), coalesce(sum(bytes), 0)::bigint FROM cachemig.entry {sample} GROUP BY state ORDER BY state;

-- name: report_ledger_sizes
-- (n, keys): values of 2^(n-1) bytes up to below 2^n.
SELECT pg_catalog.width_bucket(bytes, {bounds}::bigint[]), count(*)
FROM cachemig.entry {sample} WHERE state = 'delivered' AND bytes IS NOT NULL GROUP BY 1 ORDER BY 1;

-- name: report_ledger_expiries
-- (hours from now, keys); null: they do not expire. Whatever lies further away than 5 years counts as that.
SELECT greatest(-43800, least(43800, pg_catalog.floor(
           extract(epoch FROM expires_at - pg_catalog.clock_timestamp()) / 3600)))::integer, count(*)
FROM cachemig.entry {sample} WHERE state = 'delivered' GROUP BY 1 ORDER BY 1;

-- name: report_exceptions
-- What could not be migrated, at most %(limit)s keys of each state. By the index entry_state.
SELECT x.state, pg_catalog.encode(x.key_id, 'hex'), x.key, coalesce(x.error, '')
FROM (SELECT f.* FROM (SELECT state, key_id, key, error FROM cachemig.entry WHERE state IN ('set-aside', 'failed')
                       ORDER BY state LIMIT %(limit)s) AS f WHERE f.state = 'failed'
      UNION ALL
      SELECT s.* FROM (SELECT state, key_id, key, error FROM cachemig.entry WHERE state IN ('set-aside', 'failed')
                       ORDER BY state DESC LIMIT %(limit)s) AS s WHERE s.state = 'set-aside') AS x
ORDER BY x.state, x.error, x.key_id;

-- name: report_repairs
SELECT how, pg_catalog.split_part(fault, ':', 1), count(*), count(undone_at) FROM cachemig.repair GROUP BY 1, 2 ORDER BY 1, 2;

-- name: report_throughput
-- (begin of a slot, its seconds, entries, bytes): what finished chunks carried, spread evenly over the time that each took.
-- A chunk is claimed while the one before is on its way, so each stands early by about one chunk.
WITH done AS (
    SELECT claimed_at AS begun, greatest((figures ->> 'seconds')::float8, 0.001) AS seconds,
           (figures ->> 'entries')::float8 AS entries, (figures ->> 'bytes')::float8 AS bytes
    FROM cachemig.chunk WHERE state = 'done' AND claimed_at IS NOT NULL AND figures ? 'seconds'
), span AS (
    SELECT extract(epoch FROM min(begun))::float8 AS first,
           extract(epoch FROM max(begun + seconds * interval '1 second'))::float8 AS last,
           least(%(slots)s, count(*))::integer AS slots
    FROM done
), slot AS (
    SELECT first + n * (last - first) / slots AS begun, (last - first) / slots AS seconds
    FROM span CROSS JOIN LATERAL pg_catalog.generate_series(0, slots - 1) AS n WHERE slots > 0
)
SELECT pg_catalog.to_timestamp(s.begun), s.seconds,
       coalesce(sum(d.entries * o.share), 0)::float8, coalesce(sum(d.bytes * o.share), 0)::float8
FROM slot AS s
LEFT JOIN (SELECT *, extract(epoch FROM begun)::float8 AS at FROM done) AS d
    ON d.at < s.begun + s.seconds AND d.at + d.seconds > s.begun
LEFT JOIN LATERAL (
    SELECT (least(d.at + d.seconds, s.begun + s.seconds) - greatest(d.at, s.begun)) / d.seconds AS share) AS o ON true
GROUP BY s.begun, s.seconds ORDER BY s.begun;

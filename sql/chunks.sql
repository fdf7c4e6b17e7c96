-- Chunks: ranges of the primary key (of block numbers only where a table has no unique index).

-- name: sample_width
-- Mean bytes of the column's text over rows at random: first pages at random, then rows of them, whose values alone
-- are decompressed.
SELECT coalesce(avg(coalesce(pg_catalog.octet_length(t.{column}::text), 0)), 0)::float8
FROM {table} AS t
WHERE t.ctid = ANY (ARRAY(SELECT s.ctid FROM {table} AS s {tablesample} ORDER BY pg_catalog.random() LIMIT {limit}));

-- name: lay_out_keys
-- One index-only pass over the primary key. The first range is open below and the last one above.
INSERT INTO cachemig.chunk (id, lower, upper)
SELECT pg_catalog.row_number() OVER w,
       CASE WHEN pg_catalog.row_number() OVER w > 1 THEN bound END,
       pg_catalog.lead(bound) OVER w
FROM (SELECT {bound} AS bound, pg_catalog.row_number() OVER (ORDER BY {order}) AS n FROM {table} AS t) AS b
WHERE n % {rows} = 1 OR {rows} = 1
WINDOW w AS (ORDER BY n);

-- name: lay_out_blocks
INSERT INTO cachemig.chunk (id, lower, upper)
SELECT n + 1,
       CASE WHEN n > 0 THEN ARRAY['(' || n * %(blocks)s || ',0)'] END,
       CASE WHEN (n + 1) * %(blocks)s < %(total)s THEN ARRAY['(' || (n + 1) * %(blocks)s || ',0)'] END
FROM pg_catalog.generate_series(0, greatest(0, (%(total)s - 1) / %(blocks)s)) AS n;

-- name: table_blocks
SELECT pg_catalog.pg_relation_size({oid}::oid::regclass) / pg_catalog.current_setting('block_size')::bigint;

-- name: forget_chunks
-- Safe: chunks are a plan of work. In one transaction with the new layout, under the lease "layout".
DELETE FROM cachemig.chunk;

-- name: set_layout
UPDATE cachemig.migration SET layout = %(layout)s;

-- name: first_chunk
-- A table without rows still has one chunk.
INSERT INTO cachemig.chunk (id) SELECT 1 WHERE NOT EXISTS (SELECT FROM cachemig.chunk);

-- name: claim_chunk
-- A chunk whose owner is gone is taken over; doing one twice is only work done twice. Refused (no row) once capture
-- is off or a new epoch has begun.
UPDATE cachemig.chunk SET state = 'running', owner = %(owner)s, attempts = attempts + 1,
    lease_until = pg_catalog.clock_timestamp() + %(seconds)s * interval '1 second'
WHERE id = (SELECT id FROM cachemig.chunk
            WHERE state = 'todo'
               OR (state = 'running' AND (lease_until < pg_catalog.clock_timestamp() OR owner = %(owner)s
                                        OR owner = ANY (%(dead)s)))
            ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
  AND EXISTS (SELECT FROM cachemig.migration WHERE phase = ANY (%(phases)s) AND epoch = %(epoch)s)
RETURNING id, lower, upper, attempts;

-- name: finish_chunk
-- `attempts` is the fencing number: a worker that lost its lease changes nothing here.
UPDATE cachemig.chunk SET state = 'done', lease_until = NULL, figures = %(figures)s
WHERE id = %(id)s AND owner = %(owner)s AND attempts = %(attempts)s AND state = 'running';

-- name: release_chunk
UPDATE cachemig.chunk SET state = 'todo', owner = NULL, lease_until = NULL
WHERE id = %(id)s AND owner = %(owner)s AND attempts = %(attempts)s AND state = 'running';

-- name: running_owners
SELECT DISTINCT owner FROM cachemig.chunk WHERE state = 'running';

-- name: chunk_counts
SELECT count(*), count(*) FILTER (WHERE state = 'done'), count(*) FILTER (WHERE state = 'running'),
       coalesce(sum((figures ->> 'entries')::bigint), 0)::bigint, coalesce(sum((figures ->> 'bytes')::bigint), 0)::bigint
FROM cachemig.chunk;

-- name: chunks_in_work
SELECT lower, upper FROM cachemig.chunk WHERE state <> 'done' AND attempts > 0 ORDER BY id;

-- name: chunk_bounds
SELECT lower, upper FROM cachemig.chunk ORDER BY id;

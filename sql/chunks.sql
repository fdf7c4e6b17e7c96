-- Chunks: ranges of the primary key (of block numbers only where a table has no unique index).

-- name: sample_width
-- (rows, mean bytes of the column as it is stored): of rows at random, first pages at random, then rows of them. No value
-- is decompressed.
SELECT count(*), coalesce(avg(coalesce(pg_catalog.pg_column_size(s.{column}), 0)), 0)::float8
FROM (SELECT t.{column} FROM {table} AS t {tablesample} ORDER BY pg_catalog.random() LIMIT {limit}) AS s;

-- name: sample_printed
-- (rows, bytes of text for each byte stored) of a few of the values that are not large: printing is what costs.
SELECT count(*), coalesce(sum(pg_catalog.octet_length(s.value::text))::float8 / sum(pg_catalog.pg_column_size(s.value)), 1)
FROM (SELECT t.{column} AS value FROM {table} AS t {tablesample}
      WHERE pg_catalog.pg_column_size(t.{column}) BETWEEN 65 AND {most_bytes} LIMIT {limit}) AS s;

-- name: has_toast
-- Some value is stored out of line, so that rows may differ in size by far.
SELECT coalesce(bool_or(pg_catalog.pg_relation_size(c.reltoastrelid) > 0), false)
FROM pg_catalog.pg_class AS c
WHERE c.reltoastrelid <> 0 AND c.oid IN (
    SELECT {oid}::oid UNION ALL SELECT relid FROM pg_catalog.pg_partition_tree({oid}::oid::regclass));

-- name: lay_out
-- One pass over the rows without their large values, or over the primary key alone where all rows are small. A chunk
-- ends before the row that would bring it over its share of bytes, or of rows. The first range is open below and the
-- last one above.
INSERT INTO cachemig.chunk (id, lower, upper)
SELECT pg_catalog.row_number() OVER w,
       CASE WHEN pg_catalog.row_number() OVER w > 1 THEN bound END,
       pg_catalog.lead(bound) OVER w
FROM (SELECT bound, n, bytes_before / {chunk_bytes} AS piece, n / {chunk_rows} AS part,
             pg_catalog.lag(bytes_before / {chunk_bytes}) OVER (ORDER BY n) AS piece_before,
             pg_catalog.lag(n / {chunk_rows}) OVER (ORDER BY n) AS part_before
      FROM (SELECT {bound} AS bound, pg_catalog.row_number() OVER r - 1 AS n,
                   (sum({weight}) OVER r - {weight})::bigint AS bytes_before
            FROM {table} AS t WINDOW r AS (ORDER BY {order} ROWS UNBOUNDED PRECEDING)) AS b) AS c
WHERE (piece, part) IS DISTINCT FROM (piece_before, part_before)
WINDOW w AS (ORDER BY n);

-- name: lay_out_blocks
-- The same by blocks, of each partition by itself. Bounds name the partition and the row's place in it.
INSERT INTO cachemig.chunk (id, lower, upper)
SELECT pg_catalog.row_number() OVER (ORDER BY part, block),
       ARRAY[part::text, '(' || CASE WHEN part IS DISTINCT FROM part_before THEN 0 ELSE block END || ',0)'],
       CASE WHEN pg_catalog.lead(part) OVER (ORDER BY part, block) = part
            THEN ARRAY[part::text, '(' || pg_catalog.lead(block) OVER (ORDER BY part, block) || ',0)'] END
FROM (SELECT part, block, piece, pg_catalog.lag(piece) OVER o AS piece_before, pg_catalog.lag(part) OVER o AS part_before
      FROM (SELECT part, block,
                   greatest((sum(bytes) OVER p - bytes)::bigint / {chunk_bytes}, (sum(rows) OVER p - rows)::bigint / {chunk_rows})
                       AS piece
            FROM (SELECT t.tableoid AS part, (t.ctid::text::point)[0]::bigint AS block, sum({weight}) AS bytes, count(*) AS rows
                  FROM {table} AS t GROUP BY 1, 2) AS b
            WINDOW p AS (PARTITION BY part ORDER BY block ROWS UNBOUNDED PRECEDING)) AS c
      WINDOW o AS (ORDER BY part, block)) AS d
WHERE (part, piece) IS DISTINCT FROM (part_before, piece_before);

-- name: keys_of_several_rows
-- Keys that more than one row has, {limit} of them at most.
SELECT t.{key}::text FROM {table} AS t WHERE t.{key} IS NOT NULL GROUP BY t.{key} HAVING count(*) > 1 LIMIT {limit};

-- name: lock_chunks
-- Whoever else would lay out, claim or finish waits. Ends with the transaction, so that no dead run holds it.
LOCK TABLE cachemig.chunk IN SHARE ROW EXCLUSIVE MODE;

-- name: forget_chunks
-- Safe: chunks are a plan of work. In one transaction with the new layout.
DELETE FROM cachemig.chunk;

-- name: layout
SELECT layout FROM cachemig.migration;

-- name: set_layout
UPDATE cachemig.migration SET layout = %(layout)s;

-- name: first_chunk
-- A table without rows still has one chunk.
INSERT INTO cachemig.chunk (id) SELECT 1 WHERE NOT EXISTS (SELECT FROM cachemig.chunk);

-- name: claim_chunk
-- A chunk whose owner is gone is taken over; so is, where none else is left, one that takes far longer than others did:
-- doing one twice is only work done twice. Each time it is taken over it gets twice the time. Refused (no row) once
-- capture is off or a new epoch has begun.
UPDATE cachemig.chunk SET state = 'running', owner = %(owner)s, attempts = attempts + 1,
    claimed_at = pg_catalog.clock_timestamp(), lease_until = pg_catalog.clock_timestamp() + %(seconds)s * interval '1 second'
WHERE id = (SELECT id FROM cachemig.chunk
            WHERE state = 'todo'
               OR (state = 'running' AND id <> ALL (%(held)s)
                   AND (lease_until < pg_catalog.clock_timestamp() OR owner = %(owner)s OR owner = ANY (%(dead)s)
                        OR pg_catalog.clock_timestamp() - claimed_at > pg_catalog.power(2, attempts - 1) * greatest(
                            %(slow_seconds)s * interval '1 second',
                            8 * (SELECT avg((figures ->> 'seconds')::float8)
                                 FROM (SELECT figures FROM cachemig.chunk WHERE state = 'done' ORDER BY id DESC LIMIT 50) AS d)
                                * interval '1 second')))
            ORDER BY state = 'running', id LIMIT 1 FOR UPDATE SKIP LOCKED)
  AND EXISTS (SELECT FROM cachemig.migration WHERE phase = ANY (%(phases)s) AND epoch = %(epoch)s)
RETURNING id, lower, upper, attempts;

-- name: renew_chunks
-- Of this owner; what it believes to hold and does not get back here was taken over.
UPDATE cachemig.chunk SET lease_until = pg_catalog.clock_timestamp() + %(seconds)s * interval '1 second'
WHERE owner = %(owner)s AND state = 'running'
RETURNING id, attempts;

-- name: finish_chunk
-- `attempts` is the fencing number: a worker that lost its lease changes nothing here.
UPDATE cachemig.chunk SET state = 'done', lease_until = NULL, figures = %(figures)s
WHERE id = %(id)s AND owner = %(owner)s AND attempts = %(attempts)s AND state = 'running';

-- name: release_chunk
UPDATE cachemig.chunk SET state = 'todo', owner = NULL, lease_until = NULL
WHERE id = %(id)s AND owner = %(owner)s AND attempts = %(attempts)s AND state = 'running';

-- name: done_by
SELECT figures FROM cachemig.chunk WHERE state = 'done' AND owner = ANY (%(owners)s);

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

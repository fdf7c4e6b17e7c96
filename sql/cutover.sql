-- cutover, rollback: who reads by which phase, what the gates look at, and the step itself.

-- name: clients
-- Rows of dead clients stay a day, for their stats.
SELECT id, name, phase, percent, epoch, started_at, seen_at,
       extract(epoch FROM pg_catalog.clock_timestamp() - seen_at)::float8,
       lease_until > pg_catalog.clock_timestamp(), stats
FROM cachemig.client ORDER BY name, id;

-- name: shadow_so_far
-- What each client has compared since it started. Kept in the journal where an epoch begins: what it compares after
-- that is the difference.
SELECT coalesce(pg_catalog.jsonb_object_agg(id, coalesce(stats -> 'shadow', '{}')), '{}') FROM cachemig.client;

-- name: shadow_before
-- The same, as it was when this epoch began.
SELECT figures -> 'shadow' FROM cachemig.journal
WHERE epoch = (SELECT epoch FROM cachemig.migration) AND figures -> 'shadow' IS NOT NULL
ORDER BY id DESC LIMIT 1;

-- name: last_verification
-- Of all keys: a sample does not count. The last one, passed or not.
SELECT extract(epoch FROM pg_catalog.clock_timestamp() - at)::float8, epoch, (figures ->> 'passed')::boolean,
       figures ->> 'fingerprint'
FROM cachemig.journal WHERE command = 'verify' AND figures ->> 'sample' IS NULL ORDER BY id DESC LIMIT 1;

-- name: move
-- One statement, and only from the very state that the gates were looked at in, by who still holds the lease: no row
-- where another run moved the ladder, or took the lease, meanwhile. A step down asks for no epoch.
UPDATE cachemig.migration
SET phase = %(phase)s, percent = %(percent)s, changed_at = pg_catalog.clock_timestamp(), changed_by = %(who)s
WHERE phase = %(phase_before)s AND percent = %(percent_before)s
  AND (%(epoch)s::integer IS NULL OR epoch = %(epoch)s::integer)
  AND EXISTS (SELECT FROM cachemig.lease WHERE name = 'ladder' AND owner = %(owner)s AND fence = %(fence)s);

-- name: freeze
-- stop-writes. The column keeps its epoch: what is still delivered from it loses against every write to Redis alone.
UPDATE cachemig.migration
SET phase = 'redis-only', frozen_epoch = epoch, epoch = epoch + 1, changed_at = pg_catalog.clock_timestamp(),
    changed_by = %(who)s
WHERE phase = 'cutover' AND percent = 100 AND epoch = %(epoch)s
  AND EXISTS (SELECT FROM cachemig.lease WHERE name = 'ladder' AND owner = %(owner)s AND fence = %(fence)s);

-- name: thaw
-- rollback from redis-only: the column is written again. The epoch is set with it, above every write to Redis alone.
UPDATE cachemig.migration SET frozen_epoch = NULL, percent = 100;

-- name: expiring
-- Entries that expire, in pages by their id.
SELECT key_id, key FROM cachemig.entry
WHERE state = 'delivered' AND expires_at IS NOT NULL AND key_id > %(after)s ORDER BY key_id LIMIT %(limit)s;

-- name: expiring_count
SELECT count(*) FROM cachemig.entry WHERE state = 'delivered' AND expires_at IS NOT NULL;

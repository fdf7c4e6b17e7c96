-- sync: take changes, read the state of their keys, deliver, fold.

-- name: take_changes
-- Oldest first. The locks only spare double work (an application's trigger inserts and never waits for them);
-- the values are read in a NEW statement, because FOR UPDATE would return an old row beside a new version.
SELECT id, key FROM cachemig.change ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED;

-- name: fold_changes
-- Folds exactly the ids that were seen before the values were read: a change that came in meanwhile stays, and
-- brings its key round again. Ordered, so that two workers that fold the same keys cannot deadlock.
WITH gone AS (DELETE FROM cachemig.change WHERE id = ANY (%(ids)s) RETURNING key)
INSERT INTO cachemig.version AS v (key_id, key, count)
SELECT cachemig.key_id(key), key, count(*) FROM gone GROUP BY key ORDER BY 1
ON CONFLICT (key_id) DO UPDATE SET count = v.count + excluded.count;

-- name: backlog
-- An estimate beyond 100,000, so that asking stays cheap.
SELECT (SELECT count(*) FROM (SELECT FROM cachemig.change LIMIT 100000) AS c)
           + (SELECT count(*) FROM cachemig.truncation),
       extract(epoch FROM pg_catalog.clock_timestamp() - least(
           (SELECT at FROM cachemig.change ORDER BY id LIMIT 1), (SELECT min(at) FROM cachemig.truncation)))::float8;

-- Capture: every committed write that may change a key's value leaves a row in cachemig.change, in the writer's own
-- transaction. The triggers only insert: no lock that another writer could wait for, and nothing outside Postgres.

-- name: lock_table
-- The lock waits for writers in flight and, while it waits, holds up new ones: hence the short lock_timeout around
-- it and the tool's retries. To add triggers SHARE ROW EXCLUSIVE is enough, and readers notice nothing; to remove them
-- Postgres takes ACCESS EXCLUSIVE, for an instant, and asking for it at once avoids a deadlock on the way up.
LOCK TABLE {table} IN {mode} MODE;

-- name: capture_function
-- SECURITY DEFINER: the application's role needs no right on the control schema; search_path is fixed, so that the
-- caller's cannot redirect a name.
CREATE OR REPLACE FUNCTION cachemig.capture() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $capture$
BEGIN
    IF TG_OP <> 'INSERT' AND OLD.{key} IS NOT NULL THEN
        INSERT INTO cachemig.change (key) VALUES (OLD.{key}::text);
    END IF;
    -- An update that keeps its key leaves one mark, a change of key marks both.
    IF TG_OP <> 'DELETE' AND NEW.{key} IS NOT NULL
       AND (TG_OP = 'INSERT' OR OLD.{key}::text IS DISTINCT FROM NEW.{key}::text) THEN
        INSERT INTO cachemig.change (key) VALUES (NEW.{key}::text);
    END IF;
    RETURN NULL;
END
$capture$;
REVOKE ALL ON FUNCTION cachemig.capture() FROM PUBLIC;

-- name: capture_truncate_function
-- BEFORE TRUNCATE every key that may live in Redis is either in the table or left a mark when it went. An older snapshot
-- than READ COMMITTED's does not see the rows that came after it, and TRUNCATE removes them all the same: there a worker
-- marks every key that was ever handled (expand_truncations).
CREATE OR REPLACE FUNCTION cachemig.capture_truncate() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $capture$
BEGIN
    INSERT INTO cachemig.change (key)
    SELECT DISTINCT t.{key}::text FROM {table} AS t WHERE t.{key} IS NOT NULL;
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        INSERT INTO cachemig.truncation DEFAULT VALUES;
    END IF;
    RETURN NULL;
END
$capture$;
REVOKE ALL ON FUNCTION cachemig.capture_truncate() FROM PUBLIC;

-- name: capture_triggers_columns
-- The ordinary form: UPDATE OF looks at the statement's column list, so unrelated updates cost nothing at all.
CREATE TRIGGER cachemig_capture AFTER INSERT OR DELETE OR UPDATE OF {columns} ON {table}
    FOR EACH ROW EXECUTE FUNCTION cachemig.capture();

-- name: capture_triggers_compare
-- Where a BEFORE trigger may change the column behind the statement's back: compares OLD and NEW at every update.
CREATE TRIGGER cachemig_capture AFTER INSERT OR DELETE ON {table}
    FOR EACH ROW EXECUTE FUNCTION cachemig.capture();
CREATE TRIGGER cachemig_capture_update AFTER UPDATE ON {table}
    FOR EACH ROW WHEN ({differs}) EXECUTE FUNCTION cachemig.capture();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER cachemig_capture_update;

-- name: capture_always
-- ALWAYS: also where session_replication_role = replica (a logical subscriber, a bulk load).
CREATE TRIGGER cachemig_capture_truncate BEFORE TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION cachemig.capture_truncate();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER cachemig_capture;
ALTER TABLE {table} ENABLE ALWAYS TRIGGER cachemig_capture_truncate;

-- name: capture_drop
-- Safe: without the triggers the table is as it was before. Runs under the lock taken before, in one transaction.
DROP TRIGGER IF EXISTS cachemig_capture ON {table};
DROP TRIGGER IF EXISTS cachemig_capture_update ON {table};
DROP TRIGGER IF EXISTS cachemig_capture_truncate ON {table};
DROP FUNCTION IF EXISTS cachemig.capture();
DROP FUNCTION IF EXISTS cachemig.capture_truncate();

-- name: mark_in_work
-- Before capture goes off: keys of a chunk that was begun and not finished. They may be in Redis and nobody remembers
-- them, should their worker have died; deleted while capture is off they would stay there. Reads only, but for the
-- marks, and comes before the lock: what changes after it still leaves a mark of its own.
INSERT INTO cachemig.change (key)
SELECT DISTINCT t.{key}::text FROM {table} AS t
WHERE {range} AND t.{key} IS NOT NULL AND {t_nonempty}
  AND NOT EXISTS (SELECT FROM cachemig.entry AS e WHERE e.key_id = cachemig.key_id(t.{key}::text));

-- name: capture_installed
-- The triggers of the tool on this table, how they fire ('A': always), and whether at updates.
SELECT tgname, tgenabled::text, tgtype & 16 <> 0 FROM pg_catalog.pg_trigger
WHERE tgrelid = %(table_oid)s AND tgname LIKE 'cachemig\_capture%%' AND NOT tgisinternal
ORDER BY tgname;

-- name: expand_truncations
-- A TRUNCATE under an old snapshot left keys unmarked: rows that came after the snapshot. Each of them left a mark when
-- it came, which is still there or was folded when the ledger had it. This statement's snapshot is younger than the
-- TRUNCATE, so it sees them all; of two workers one deletes the row and marks, the other finds nothing.
WITH gone AS (DELETE FROM cachemig.truncation RETURNING id)
INSERT INTO cachemig.change (key)
SELECT k.key FROM (SELECT key FROM cachemig.entry UNION SELECT key FROM cachemig.change) AS k
WHERE EXISTS (SELECT FROM gone);

-- name: mark_known
-- A new epoch after a time without capture: what happened meanwhile is unknown, so every key ever handled is read
-- again; one that went away unseen is thereby removed from Redis. Keys on their way are marked too: the worker that
-- has them may fold their changes after it delivered to a Redis that was lost.
INSERT INTO cachemig.change (key)
SELECT key FROM cachemig.entry UNION SELECT key FROM cachemig.change;

-- name: mark_unknown
-- Of these keys, those that the ledger does not know.
INSERT INTO cachemig.change (key)
SELECT DISTINCT k.key FROM pg_catalog.unnest(%(keys)s::text[]) AS k (key)
WHERE NOT EXISTS (SELECT FROM cachemig.entry AS e WHERE e.key_id = cachemig.key_id(k.key));

-- name: mark_keys
INSERT INTO cachemig.change (key) SELECT DISTINCT key FROM pg_catalog.unnest(%(keys)s::text[]) AS k (key);

-- name: guard_function
-- After stop-writes. What the application writes to the column all the same stays there (its statement succeeds), and is
-- kept for Redis, with who wrote it; or the statement fails, where the guard is to reject. A statement that names the
-- column and leaves it as it was (an ORM writes back all it has read) is no write. A row that goes takes its key with it,
-- whatever the guard: that is no write to the column.
CREATE OR REPLACE FUNCTION cachemig.guard() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $guard$
DECLARE
    holds boolean;
    whose text := format('%s (user %s, from %s)', coalesce(nullif(current_setting('application_name'), ''), 'unnamed'),
                         coalesce(nullif(nullif(current_setting('role'), ''), 'none'), session_user),
                         coalesce(host(inet_client_addr()), 'this machine'));
BEGIN
    IF current_setting('cachemig.copying', true) = 'on' THEN  -- rollback brings back what Redis has newer
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND OLD.{key}::text IS DISTINCT FROM NEW.{key}::text) THEN
        INSERT INTO cachemig.late_write (key, kind, writer) SELECT OLD.{key}::text, 'delete', whose
        WHERE OLD.{key} IS NOT NULL;
    END IF;
    IF TG_OP = 'DELETE' OR NEW.{key} IS NULL THEN
        RETURN NULL;
    END IF;
    holds := {new_nonempty};
    IF TG_OP = 'UPDATE' THEN
        IF OLD.{column}::text IS NOT DISTINCT FROM NEW.{column}::text OR NOT (holds OR {old_nonempty}) THEN
            RETURN NULL;
        END IF;
    ELSIF NOT holds THEN
        RETURN NULL;
    END IF;
    IF {rejects} THEN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = 'cachemig: ' || {column_text} || ' of ' || {table_text} || ' is not written any more: its cache is in Redis',
            HINT = 'write it through CacheService; cachemig rollback has the column used again';
    END IF;
    INSERT INTO cachemig.late_write (key, kind, value, writer)
    VALUES (NEW.{key}::text, 'write', CASE WHEN holds THEN NEW.{column}::text END, whose);
    RETURN NULL;
END
$guard$;
REVOKE ALL ON FUNCTION cachemig.guard() FROM PUBLIC;

-- name: guard_truncate_function
-- Rows that go all at once; those that came after an old snapshot keep their keys in Redis until they expire.
CREATE OR REPLACE FUNCTION cachemig.guard_truncate() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $guard$
BEGIN
    INSERT INTO cachemig.late_write (key, kind, writer)
    SELECT DISTINCT t.{key}::text, 'delete', 'TRUNCATE by ' || session_user FROM {table} AS t WHERE t.{key} IS NOT NULL;
    RETURN NULL;
END
$guard$;
REVOKE ALL ON FUNCTION cachemig.guard_truncate() FROM PUBLIC;

-- name: guard_triggers_columns
-- Fires as capture does: by the statement's column list.
CREATE TRIGGER cachemig_guard AFTER INSERT OR DELETE OR UPDATE OF {columns} ON {table}
    FOR EACH ROW EXECUTE FUNCTION cachemig.guard();

-- name: guard_triggers_compare
-- Where a BEFORE trigger may change the column behind the statement's back.
CREATE TRIGGER cachemig_guard AFTER INSERT OR DELETE ON {table}
    FOR EACH ROW EXECUTE FUNCTION cachemig.guard();
CREATE TRIGGER cachemig_guard_update AFTER UPDATE ON {table}
    FOR EACH ROW WHEN ({differs}) EXECUTE FUNCTION cachemig.guard();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER cachemig_guard_update;

-- name: guard_always
-- ALWAYS: as capture.
CREATE TRIGGER cachemig_guard_truncate BEFORE TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION cachemig.guard_truncate();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER cachemig_guard;
ALTER TABLE {table} ENABLE ALWAYS TRIGGER cachemig_guard_truncate;

-- name: guard_drop
-- Safe: without the triggers the table is as it was before the migration.
DROP TRIGGER IF EXISTS cachemig_guard ON {table};
DROP TRIGGER IF EXISTS cachemig_guard_update ON {table};
DROP TRIGGER IF EXISTS cachemig_guard_truncate ON {table};
DROP FUNCTION IF EXISTS cachemig.guard();
DROP FUNCTION IF EXISTS cachemig.guard_truncate();

-- name: guard_installed
-- How the triggers of the guard fire ('A': always), and whether it rejects.
SELECT t.tgenabled::text, pg_catalog.strpos(p.prosrc, 'IF true THEN') > 0
FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
WHERE t.tgrelid = %(table_oid)s AND t.tgname LIKE 'cachemig\_guard%%' AND p.proname = 'guard' AND NOT t.tgisinternal;

-- What applications call: CacheService does, and as RPC (PostgREST) any other program. Made by `cachemig init`, replaced
-- by `cachemig dual-write`, gone with the schema.
--
-- The table of the application is read and written by functions that run with the caller's own rights, row-level
-- security and search_path (its triggers and policies may rely on that); every name in them is qualified. What they
-- need of the control schema comes from SECURITY DEFINER functions with a fixed search_path, which tell nobody more
-- than the caller could find out from the table. STABLE functions share the snapshot of the statement that calls them:
-- that is what keeps value and version together.

-- name: typed_key
-- The key as the key column's own type, so that its index is used; null where the text is none of that type. Without a
-- length: a cast to varchar(64) would cut a longer key short, and find another one's row.
CREATE OR REPLACE FUNCTION cachemig.typed_key(key text) RETURNS {key_type}
    LANGUAGE plpgsql STABLE STRICT
AS $service$
BEGIN
    RETURN key::{key_type};
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$service$;

-- name: drop_typed_key
-- Where the key column has another type now: the type that a function returns cannot be replaced.
DROP FUNCTION cachemig.typed_key(text);

-- name: mine
-- Rows of the key. The second condition, because equal is not the same (citext, collations, char(n), upper case in a
-- uuid): versions and names in Redis go by the text of the key.
{row}.{key} {equals} cachemig.typed_key({of}) AND {row}.{key}::pg_catalog.text = {of} COLLATE pg_catalog."C"

-- name: route
-- Where the ladder stands. Nothing secret; the table has more columns, though.
CREATE OR REPLACE FUNCTION cachemig.route() RETURNS TABLE (phase text, percent double precision, epoch integer)
    LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp
AS $service$
BEGIN
    RETURN QUERY SELECT m.phase, m.percent, m.epoch FROM cachemig.migration AS m;
END
$service$;

-- name: read_from
-- By phase, and in `cutover` by a number in [0, 100) that depends on the key alone: so a key that is read from Redis at
-- some percentage is read from there at every higher one.
CREATE OR REPLACE FUNCTION cachemig.read_from(key text) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $service$
DECLARE
    id bytea := cachemig.key_id(key COLLATE "C");
    bucket double precision := (get_byte(id, 0) * 16777216.0 + get_byte(id, 1) * 65536 + get_byte(id, 2) * 256
                                + get_byte(id, 3))::double precision * 100 / 4294967296;
BEGIN
    RETURN (SELECT CASE WHEN m.phase IN ('idle', 'dual-write') THEN 'column'
                        WHEN m.phase = 'cutover' AND coalesce(bucket >= m.percent, true) THEN 'column'
                        ELSE 'redis' END
            FROM cachemig.migration AS m);
END
$service$;

-- name: sees_all
-- Whether the role at work may do this with both columns, and with every row. A function that runs with its owner's
-- rights cannot see who called it, but can see the session's role: of SET ROLE, or of the login. Only for the two
-- functions below; nobody else may call it.
CREATE OR REPLACE FUNCTION cachemig.sees_all(what text) RETURNS boolean
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $service$
DECLARE
    who name := coalesce(nullif(current_setting('role'), 'none')::name, session_user);
BEGIN
    RETURN EXISTS (
        SELECT FROM pg_class AS c JOIN pg_namespace AS s ON s.oid = c.relnamespace JOIN pg_roles AS r ON r.rolname = who
        WHERE s.nspname = {schema_text} AND c.relname = {name_text}
          AND has_schema_privilege(who, s.oid, 'USAGE')
          AND has_column_privilege(who, c.oid, {key_text}, 'SELECT')
          AND has_column_privilege(who, c.oid, {column_text}, what)
          AND (NOT c.relrowsecurity OR r.rolsuper OR r.rolbypassrls
               OR (NOT c.relforcerowsecurity AND pg_has_role(who, c.relowner, 'USAGE'))));
END
$service$;

-- name: version_of
-- As in scan.sql, read_keys. Null where nothing may be delivered: without capture, once the column is not written any
-- more, and for a role that does not see every row: it would take the wrong one for the winner, and is not to learn of
-- changes to what is hidden from it.
CREATE OR REPLACE FUNCTION cachemig.version_of(key text) RETURNS bigint
    LANGUAGE plpgsql STABLE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $service$
DECLARE
    base bigint := (SELECT m.epoch::bigint * 1099511627776 FROM cachemig.migration AS m
                    WHERE m.phase IN ('dual-write', 'cutover'));
    bytes text COLLATE "C" := key;  -- whatever collation the caller's expression has
BEGIN
    IF base IS NULL OR NOT cachemig.sees_all('SELECT') THEN
        RETURN NULL;
    END IF;
    RETURN base
        + coalesce((SELECT v.count FROM cachemig.version AS v WHERE v.key_id = cachemig.key_id(bytes)), 0)
        + (SELECT count(*) FROM cachemig.change AS h
           WHERE hashtextextended(h.key, 0) = hashtextextended(bytes, 0) AND h.key = bytes);
END
$service$;

-- name: touch
-- Raises the key's version where a write did not: capture that compares sees no change in emptying what is empty, and
-- a load that began before must still be refused. Inserts only, as capture does.
CREATE OR REPLACE FUNCTION cachemig.touch(key text) RETURNS void
    LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $service$
BEGIN
    INSERT INTO cachemig.change (key)
    SELECT touch.key FROM cachemig.migration AS m
    WHERE m.phase IN ('dual-write', 'cutover') AND cachemig.sees_all('UPDATE');
END
$service$;

-- name: get_many
-- One row for each key, in their order. A column that is not to be used any more is not even named by a statement that
-- is run: it may be gone.
-- A plan for any keys: Postgres would plan each call anew, which takes longer than to run it.
CREATE OR REPLACE FUNCTION cachemig.get_many(keys text[])
    RETURNS TABLE (key text, phase text, percent double precision, epoch integer, reads_from text, value text,
                   version bigint, lifetime_from_ms bigint)
    LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan
AS $service$
#variable_conflict use_column
DECLARE
    now_at record;
    hides boolean;
BEGIN
    SELECT r.phase, r.percent, r.epoch INTO now_at FROM cachemig.route() AS r;
    IF now_at.phase IN ('idle', 'dual-write', 'cutover') THEN
        hides := pg_catalog.row_security_active({table_text}::pg_catalog.text);
        RETURN QUERY
        SELECT k.key, now_at.phase, now_at.percent, now_at.epoch, cachemig.read_from(k.key),
               {value}, CASE WHEN NOT hides THEN cachemig.version_of(k.key) END, {lifetime_from}
        FROM pg_catalog.unnest(keys) WITH ORDINALITY AS k (key, n)
        LEFT JOIN LATERAL (
            SELECT {columns} FROM {table} AS n
            WHERE {n_mine} AND {n_nonempty}
            ORDER BY {n_order} LIMIT 1
        ) AS t ON true
        ORDER BY k.n;
    ELSE
        RETURN QUERY
        SELECT k.key, now_at.phase, now_at.percent, now_at.epoch, cachemig.read_from(k.key),
               NULL::text, NULL::bigint, NULL::bigint
        FROM pg_catalog.unnest(keys) WITH ORDINALITY AS k (key, n)
        ORDER BY k.n;
    END IF;
END
$service$;

-- name: get
CREATE OR REPLACE FUNCTION cachemig.get(key text)
    RETURNS TABLE (phase text, percent double precision, epoch integer, reads_from text, value text, version bigint,
                   lifetime_from_ms bigint)
    LANGUAGE sql STABLE ROWS 1
AS $service$
    SELECT g.phase, g.percent, g.epoch, g.reads_from, g.value, g.version, g.lifetime_from_ms
    FROM cachemig.get_many(ARRAY[get.key]) AS g
$service$;

-- name: write
-- The write of put and invalidate. Takes row locks of this key alone, in one order, as an UPDATE of the application
-- would; each further statement begins after they are granted and has, in READ COMMITTED, a snapshot of its own. In
-- REPEATABLE READ a concurrent write to the key is a serialization error, as with any UPDATE.
CREATE OR REPLACE FUNCTION cachemig.write(of_key text, new_value jsonb, only_at bigint)
    RETURNS TABLE (phase text, percent double precision, epoch integer, outcome text, value text, version bigint,
                   lifetime_from_ms bigint)
    LANGUAGE plpgsql VOLATILE ROWS 1
AS $service$
#variable_conflict use_column
DECLARE
    empties boolean := write.new_value IS NULL OR write.new_value IN ('{{}}'::jsonb, 'null'::jsonb);
    found_at bigint;
    written bigint;
BEGIN
    outcome := 'no-row';
    -- A row that came after the locks is not locked: should somebody change it before the UPDATE gets there, that finds
    -- nothing, and all begins again. A trigger that swallows the UPDATE looks the same, so not for ever.
    FOR attempt IN 1..3 LOOP
        IF (SELECT r.phase NOT IN ('idle', 'dual-write', 'cutover') FROM cachemig.route() AS r) THEN
            outcome := 'elsewhere';
            EXIT;
        END IF;
        PERFORM FROM {table} AS n WHERE {n_mine} ORDER BY {lock_order} FOR NO KEY UPDATE;
        EXIT WHEN NOT FOUND;
        found_at := CASE WHEN NOT pg_catalog.row_security_active({table_text}::pg_catalog.text)
                         THEN cachemig.version_of(write.of_key) END;
        IF write.only_at IS NOT NULL AND found_at IS DISTINCT FROM write.only_at THEN
            outcome := 'changed';
            EXIT;
        END IF;
        IF empties THEN
            UPDATE {table} AS t SET {column} = '{{}}' WHERE {t_mine};
        ELSE
            UPDATE {table} AS t SET {column} = write.new_value
            WHERE {t_mine} AND (t.tableoid, t.ctid) = (
                SELECT n.tableoid, n.ctid FROM {table} AS n WHERE {n_mine} ORDER BY {n_order} LIMIT 1);
        END IF;
        GET DIAGNOSTICS written = ROW_COUNT;
        IF written > 0 THEN
            outcome := 'written';
            IF empties AND cachemig.version_of(write.of_key) = found_at THEN
                PERFORM cachemig.touch(write.of_key);
            END IF;
            EXIT;
        END IF;
    END LOOP;
    RETURN QUERY
    SELECT g.phase, g.percent, g.epoch, outcome, g.value, g.version, g.lifetime_from_ms
    FROM cachemig.get_many(ARRAY[write.of_key]) AS g;
END
$service$;

-- name: put
-- An empty value (NULL, JSON null, an empty object) is no entry: to put it is to invalidate. JSON cannot tell an SQL
-- NULL from its own.
CREATE OR REPLACE FUNCTION cachemig.put(key text, value jsonb, if_version bigint DEFAULT NULL)
    RETURNS TABLE (phase text, percent double precision, epoch integer, outcome text, value text, version bigint,
                   lifetime_from_ms bigint)
    LANGUAGE sql VOLATILE ROWS 1
AS $service$
    SELECT w.phase, w.percent, w.epoch, w.outcome, w.value, w.version, w.lifetime_from_ms
    FROM cachemig.write(put.key, put.value, put.if_version) AS w
$service$;

-- name: invalidate
-- Every row of the key, for an older one would win otherwise.
CREATE OR REPLACE FUNCTION cachemig.invalidate(key text)
    RETURNS TABLE (phase text, percent double precision, epoch integer, outcome text, version bigint)
    LANGUAGE sql VOLATILE ROWS 1
AS $service$
    SELECT w.phase, w.percent, w.epoch, w.outcome, w.version FROM cachemig.write(invalidate.key, NULL, NULL) AS w
$service$;

-- name: heartbeat
-- Touches one row of the tool's own, by its key. Rows of clients that died more than a day ago go when a client registers
-- (a NULL phase): seldom, and by somebody who may write, which status does not. Nobody waits for another one to do it.
-- No lease is longer than an hour, so that nobody holds up the ladder for ever.
CREATE OR REPLACE FUNCTION cachemig.heartbeat(
        client text, name text, phase text DEFAULT NULL, percent double precision DEFAULT NULL,
        epoch integer DEFAULT NULL, lease_s double precision DEFAULT 30, stats jsonb DEFAULT NULL)
    RETURNS TABLE (phase text, percent double precision, epoch integer, settings jsonb)
    LANGUAGE sql VOLATILE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp
AS $service$
    DELETE FROM cachemig.client AS c
    WHERE heartbeat.phase IS NULL AND c.id IN (
        SELECT d.id FROM cachemig.client AS d
        WHERE d.lease_until < clock_timestamp() - interval '1 day' AND d.id <> heartbeat.client
        FOR UPDATE SKIP LOCKED);
    INSERT INTO cachemig.client AS c (id, name, phase, percent, epoch, lease_until, stats)
    VALUES (heartbeat.client, coalesce(heartbeat.name, heartbeat.client), heartbeat.phase, heartbeat.percent,
            heartbeat.epoch,
            clock_timestamp() + greatest(0, least(coalesce(heartbeat.lease_s, 30), 3600)) * interval '1 second',
            coalesce(heartbeat.stats, '{{}}'))
    ON CONFLICT (id) DO UPDATE
    SET name = excluded.name, phase = excluded.phase, percent = excluded.percent, epoch = excluded.epoch,
        started_at = CASE WHEN excluded.phase IS NULL THEN clock_timestamp() ELSE c.started_at END,
        seen_at = clock_timestamp(), lease_until = excluded.lease_until,
        stats = CASE WHEN heartbeat.stats IS NULL AND excluded.phase IS NOT NULL THEN c.stats ELSE excluded.stats END;
    SELECT m.phase, m.percent, m.epoch, m.settings FROM cachemig.migration AS m;
$service$;

-- name: leave
-- Ends the lease; the row stays a day, for its stats.
CREATE OR REPLACE FUNCTION cachemig.leave(client text) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $service$
    UPDATE cachemig.client AS c SET lease_until = least(c.lease_until, clock_timestamp()) WHERE c.id = leave.client;
$service$;

-- name: revoke_functions
-- From PUBLIC, which has EXECUTE on every new function, and from roles that were named before and are not any more.
REVOKE ALL ON FUNCTION {functions} FROM {roles};

-- name: grant_functions
-- Not on the tables: a role sees of them what these functions tell it.
GRANT USAGE ON SCHEMA cachemig TO {roles};
GRANT EXECUTE ON FUNCTION {functions} TO {roles};

-- name: key_type
-- The key column's type (of a domain: what it is over), and where its own equality is; null where another type's is used.
-- The last column: whether typed_key is there and returns another type.
WITH RECURSIVE typed (oid, base) AS (
    SELECT t.oid, t.typbasetype FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    WHERE a.attrelid = %(oid)s AND a.attname = %(key)s
    UNION ALL
    SELECT t.oid, t.typbasetype FROM typed JOIN pg_catalog.pg_type AS t ON t.oid = typed.base
)
SELECT s.nspname, t.typname,
       (SELECT o.nspname FROM pg_catalog.pg_operator AS e JOIN pg_catalog.pg_namespace AS o ON o.oid = e.oprnamespace
        WHERE e.oprname = '=' AND e.oprleft = t.oid AND e.oprright = t.oid LIMIT 1),
       EXISTS (SELECT FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
               WHERE n.nspname = 'cachemig' AND p.proname = 'typed_key' AND p.prorettype <> t.oid)
FROM typed JOIN pg_catalog.pg_type AS t ON t.oid = typed.oid JOIN pg_catalog.pg_namespace AS s ON s.oid = t.typnamespace
WHERE typed.base = 0;

-- name: granted_roles
-- Who may call them now, beside their owner and PUBLIC. Null where there are none yet.
SELECT DISTINCT r.rolname FROM pg_catalog.pg_proc AS p
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace,
pg_catalog.aclexplode(p.proacl) AS a JOIN pg_catalog.pg_roles AS r ON r.oid = a.grantee
WHERE n.nspname = 'cachemig' AND p.proname = ANY (%(names)s) AND a.grantee <> p.proowner ORDER BY 1;

-- name: missing_roles
SELECT w.name FROM pg_catalog.unnest(%(roles)s::text[]) AS w (name)
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = w.name);

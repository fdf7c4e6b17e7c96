-- drop-column: what depends on a column, what goes with it without a word, who would notice, and the drop itself.
-- All but the statements under "The drop" read only.

-- name: drop_columns
-- The columns that a drop takes away: those of the table, and of partitions and children that have them from it alone.
-- A child that defines the column itself, or has it from a second parent, keeps it (goes is false).
WITH RECURSIVE tree AS (
    SELECT a.attrelid, a.attnum, a.attname, true AS goes, 0 AS depth
    FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid = %(oid)s AND a.attname = ANY (%(columns)s) AND NOT a.attisdropped
    UNION
    SELECT child.attrelid, child.attnum, child.attname, NOT child.attislocal AND child.attinhcount = 1, tree.depth + 1
    FROM tree
    JOIN pg_catalog.pg_inherits AS i ON i.inhparent = tree.attrelid
    JOIN pg_catalog.pg_attribute AS child
        ON child.attrelid = i.inhrelid AND child.attname = tree.attname AND NOT child.attisdropped
    WHERE tree.goes
)
SELECT tree.attrelid::bigint, tree.attnum::integer, tree.attname::text, tree.goes, tree.depth,
       tree.attrelid::regclass::text, c.relispartition
FROM tree JOIN pg_catalog.pg_class AS c ON c.oid = tree.attrelid
ORDER BY tree.depth, 6, tree.attnum;

-- name: drop_tree
-- The table, its partitions and whatever inherits from it.
WITH RECURSIVE tree AS (
    SELECT %(oid)s::oid AS relid
    UNION
    SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_inherits AS i ON i.inhparent = tree.relid
)
SELECT relid::bigint FROM tree ORDER BY 1;

-- name: drop_inherited
-- Parents that the table has the column from: there it must be dropped, not here.
SELECT a.attname::text, i.inhparent::regclass::text
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_inherits AS i ON i.inhrelid = a.attrelid
JOIN pg_catalog.pg_attribute AS parent
    ON parent.attrelid = i.inhparent AND parent.attname = a.attname AND NOT parent.attisdropped
WHERE a.attrelid = %(oid)s AND a.attname = ANY (%(columns)s) AND a.attinhcount > 0
ORDER BY 1, 2;

-- name: drop_partition_keys
-- Tables whose partition key has the column in it, as itself or in an expression: such a column depends on its table in a
-- way that no other does, and cannot be dropped at all.
SELECT DISTINCT p.partrelid::regclass::text
FROM ROWS FROM (pg_catalog.unnest(%(relids)s::oid[]), pg_catalog.unnest(%(attnums)s::int2[])) AS gone (relid, attnum)
JOIN pg_catalog.pg_partitioned_table AS p ON p.partrelid = gone.relid
JOIN pg_catalog.pg_depend AS d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = gone.relid
    AND d.objsubid = gone.attnum AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = gone.relid
    AND d.refobjsubid = 0 AND d.deptype = 'i'
ORDER BY 1;

-- name: drop_dependents
-- What the catalog says of these columns, by Postgres's own rule: automatic and internal dependents go with them
-- without a word, and so do theirs; a normal dependent of anything that goes stops the drop. `recreate` is the SQL that
-- makes again what goes. A view is named itself, in place of the rule that it consists of. Left out: the columns' own
-- defaults and NOT NULL (drop_definition has them), what hangs on a parent's index or constraint and so comes back with it.
WITH RECURSIVE start AS (
    SELECT 'pg_catalog.pg_class'::regclass::oid AS classid, relid AS objid, attnum::integer AS objsubid
    FROM ROWS FROM (pg_catalog.unnest(%(relids)s::oid[]), pg_catalog.unnest(%(attnums)s::int2[])) AS gone (relid, attnum)
), gone AS (
    SELECT classid, objid, objsubid FROM start
    UNION
    SELECT d.classid, d.objid, d.objsubid
    FROM gone JOIN pg_catalog.pg_depend AS d
        ON d.refclassid = gone.classid AND d.refobjid = gone.objid
       AND (gone.objsubid = 0 OR d.refobjsubid = gone.objsubid)
    WHERE d.deptype IN ('a', 'i', 'P', 'S')
), found AS (
    SELECT true AS blocks, d.classid, d.objid, d.objsubid
    FROM gone JOIN pg_catalog.pg_depend AS d
        ON d.refclassid = gone.classid AND d.refobjid = gone.objid
       AND (gone.objsubid = 0 OR d.refobjsubid = gone.objsubid)
    WHERE d.deptype IN ('n', 'e')
      AND NOT EXISTS (SELECT FROM gone AS too WHERE too.classid = d.classid AND too.objid = d.objid
                                                AND (too.objsubid = 0 OR too.objsubid = d.objsubid))
    UNION
    SELECT false, gone.* FROM gone WHERE NOT EXISTS (SELECT FROM start WHERE start = gone)
), named AS (
    SELECT DISTINCT found.blocks, o.type, o.identity, found.classid, found.objid, found.objsubid
    FROM found
    LEFT JOIN pg_catalog.pg_rewrite AS view
        ON found.classid = 'pg_catalog.pg_rewrite'::regclass AND view.oid = found.objid AND view.rulename = '_RETURN'
    CROSS JOIN LATERAL pg_catalog.pg_identify_object(
        CASE WHEN view.oid IS NULL THEN found.classid ELSE 'pg_catalog.pg_class'::regclass END,
        coalesce(view.ev_class, found.objid), CASE WHEN view.oid IS NULL THEN found.objsubid ELSE 0 END) AS o
)
SELECT DISTINCT named.blocks, named.type, named.identity,
       CASE WHEN named.blocks THEN NULL
            WHEN i.indexrelid IS NOT NULL  -- of a partitioned table it would say ON ONLY, and be without its partitions
                THEN pg_catalog.regexp_replace(pg_catalog.pg_get_indexdef(i.indexrelid), ' ON ONLY ', ' ON ')
            WHEN c.oid IS NOT NULL THEN pg_catalog.format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s',
                c.conrelid::regclass, c.conname, pg_catalog.pg_get_constraintdef(c.oid))
            WHEN s.oid IS NOT NULL THEN pg_catalog.pg_get_statisticsobjdef(s.oid)
            WHEN a.attgenerated <> '' THEN pg_catalog.format('ALTER TABLE %%s ADD COLUMN %%I %%s GENERATED ALWAYS AS (%%s) STORED',
                a.attrelid::regclass, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod),
                pg_catalog.pg_get_expr(e.adbin, e.adrelid)) END AS recreate,
       coalesce(i.indisunique, c.contype IN ('p', 'u'), false), coalesce(i.indisreplident, false), coalesce(i.indisclustered, false),
       i.indpred IS NOT NULL, c.contype::text
FROM named
LEFT JOIN pg_catalog.pg_index AS i ON named.classid = 'pg_catalog.pg_class'::regclass AND i.indexrelid = named.objid
LEFT JOIN pg_catalog.pg_constraint AS c ON named.classid = 'pg_catalog.pg_constraint'::regclass AND c.oid = named.objid
LEFT JOIN pg_catalog.pg_statistic_ext AS s
    ON named.classid = 'pg_catalog.pg_statistic_ext'::regclass AND s.oid = named.objid
LEFT JOIN pg_catalog.pg_attribute AS a
    ON named.classid = 'pg_catalog.pg_class'::regclass AND a.attrelid = named.objid AND a.attnum = named.objsubid
   AND named.objsubid > 0
LEFT JOIN pg_catalog.pg_attrdef AS e ON e.adrelid = a.attrelid AND e.adnum = a.attnum
LEFT JOIN pg_catalog.pg_trigger AS t ON named.classid = 'pg_catalog.pg_trigger'::regclass AND t.oid = named.objid
LEFT JOIN pg_catalog.pg_class AS r ON named.classid = 'pg_catalog.pg_class'::regclass AND r.oid = named.objid
WHERE NOT coalesce(t.tgisinternal, false)
  AND NOT coalesce(t.tgname LIKE 'cachemig\_%%', false)
  AND coalesce(c.contype, 'c') <> 'n'
  AND (named.blocks OR coalesce(c.conparentid, 0) = 0 AND coalesce(c.conislocal, true))
  AND NOT (NOT named.blocks AND i.indexrelid IS NOT NULL
           AND (r.relispartition OR EXISTS (SELECT FROM pg_catalog.pg_constraint AS own
                                            WHERE own.conindid = i.indexrelid AND own.conrelid = i.indrelid
                                              AND own.contype IN ('p', 'u', 'x'))))
  AND NOT (NOT named.blocks AND named.classid = 'pg_catalog.pg_attrdef'::regclass)
  AND NOT (NOT named.blocks AND named.classid = 'pg_catalog.pg_type'::regclass)
  -- children of what a parent has and so brings back
  AND (named.blocks OR named.classid <> 'pg_catalog.pg_class'::regclass OR i.indexrelid IS NOT NULL
       OR a.attnum IS NOT NULL OR r.relkind = 'S')
ORDER BY 1 DESC, 2, 3;

-- name: drop_definition
-- What it takes to make a column again: type, default, NOT NULL, comment, storage, options and grants.
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull,
       pg_catalog.pg_get_expr(d.adbin, d.adrelid), a.attgenerated::text,
       pg_catalog.col_description(a.attrelid, a.attnum),
       CASE WHEN a.attstorage <> t.typstorage THEN
           CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END END,
       CASE a.attcompression WHEN 'p' THEN 'pglz' WHEN 'l' THEN 'lz4' END,
       CASE WHEN a.attstattarget >= 0 THEN a.attstattarget::integer END, coalesce(a.attoptions, ARRAY[]::text[]),
       CASE WHEN a.attcollation NOT IN (0, t.typcollation) THEN a.attcollation::regcollation::text END,
       ARRAY(SELECT pg_catalog.format('GRANT %%s (%%I) ON TABLE %%s TO %%s%%s', g.privilege_type, a.attname,
                 a.attrelid::regclass, CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END,
                 CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
             FROM pg_catalog.aclexplode(a.attacl) AS g ORDER BY 1)
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = %(oid)s AND a.attname = ANY (%(columns)s) AND NOT a.attisdropped
ORDER BY pg_catalog.array_position(%(columns)s::text[], a.attname::text);

-- name: drop_mentions
-- Functions whose text has one of the names in it as a word, but those of extensions and of this tool. Postgres does not look into them:
-- after a drop they fail when they are called. `fires`: the triggers of the table, or of what hangs on it, that call it.
SELECT p.oid::regprocedure::text, p.prosrc,
       ARRAY(SELECT t.tgname::text FROM pg_catalog.pg_trigger AS t
             WHERE t.tgfoid = p.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D'
               AND (t.tgrelid = %(oid)s OR t.tgrelid = ANY (%(relids)s::oid[])) ORDER BY 1)
FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'cachemig') AND n.nspname NOT LIKE 'pg\_temp%%'
  AND p.prosrc ~* %(pattern)s
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d
                  WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
ORDER BY 1;

-- name: drop_has_cron
-- pg_cron's table, where it is installed and this role may read it. (It shows a role its own jobs only.)
SELECT CASE WHEN c.oid IS NOT NULL THEN pg_catalog.has_table_privilege(c.oid, 'SELECT')
                 AND pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE') END
FROM (SELECT) AS one LEFT JOIN pg_catalog.pg_class AS c ON c.oid = pg_catalog.to_regclass('cron.job');

-- name: drop_cron_jobs
SELECT j.jobid::bigint, j.schedule::text, j.command::text FROM cron.job AS j
WHERE j.command ~* %(pattern)s AND j.database = pg_catalog.current_database() ORDER BY 1;

-- name: drop_statistics_schema
SELECT n.nspname::text FROM pg_catalog.pg_extension AS e JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
WHERE e.extname = 'pg_stat_statements';

-- name: drop_statements
-- Statements seen that name the column, or that take the table's columns as they are: SELECT *, an INSERT without a list.
-- Statistics hold no time of the last call; pg_stat_activity knows that of each session's last statement.
-- Those of this tool are left out. The second row set of a role without pg_read_all_stats is hidden by Postgres.
SELECT s.queryid::text, s.query, s.calls::bigint, s.userid::regrole::text,
       (pg_catalog.to_jsonb(s) ->> 'stats_since')::timestamptz,
       (SELECT max(a.query_start) FROM pg_catalog.pg_stat_activity AS a WHERE a.query_id = s.queryid),
       CASE WHEN s.query ~* {pattern} THEN 'names it'
            WHEN s.query ~* {inserts} THEN 'INSERT without a list of columns'
            ELSE 'reads all columns' END
FROM {statistics} AS s
WHERE s.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
  AND s.query !~* 'cachemig'
  AND s.query !~* '^\s*(create|alter|drop|comment|grant|revoke|explain|analyze|vacuum)\M'
  AND (s.query ~* {pattern} OR s.query ~* {inserts} OR s.query ~* {stars})
ORDER BY s.calls DESC LIMIT 50;

-- name: drop_statements_hidden
SELECT count(*) FROM {statistics} AS s
WHERE s.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
  AND s.query = '<insufficient privilege>';

-- name: drop_sessions
-- Who holds a lock on the table, any lock: DROP COLUMN waits for all of them. And whose transaction has been open for long, for
-- he may want the table next. Autovacuum gives way by itself. A prepared transaction has no process. No text of a
-- statement is shown: it may hold values.
SELECT l.pid, coalesce(a.usename, p.owner)::text, nullif(a.application_name, ''), coalesce(a.state, 'prepared transaction'),
       extract(epoch FROM pg_catalog.clock_timestamp() - coalesce(a.xact_start, p.prepared))::float8 AS age,
       pg_catalog.upper(substring(a.query FROM '^\s*(\w+)')), pg_catalog.max(l.mode), p.gid
FROM pg_catalog.pg_locks AS l
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
LEFT JOIN pg_catalog.pg_locks AS x ON l.pid IS NULL AND x.pid IS NULL AND x.virtualtransaction = l.virtualtransaction
    AND x.locktype = 'transactionid' AND x.granted
LEFT JOIN pg_catalog.pg_prepared_xacts AS p ON p.transaction = x.transactionid
WHERE l.locktype = 'relation' AND l.granted AND l.relation = ANY (%(relids)s::oid[])
  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
  AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid() AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
GROUP BY 1, 2, 3, 4, 5, 6, 8
UNION ALL
SELECT a.pid, a.usename::text, nullif(a.application_name, ''), a.state,
       extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start)::float8,
       pg_catalog.upper(substring(a.query FROM '^\s*(\w+)')), NULL, NULL
FROM pg_catalog.pg_stat_activity AS a
WHERE a.datname = pg_catalog.current_database() AND a.pid <> pg_catalog.pg_backend_pid()
  AND a.backend_type = 'client backend' AND a.xact_start < pg_catalog.clock_timestamp() - interval '1 minute'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_locks AS l WHERE l.pid = a.pid AND l.locktype = 'relation' AND l.granted
                                                        AND l.relation = ANY (%(relids)s::oid[]))
ORDER BY age DESC NULLS FIRST;

-- name: drop_connected
-- Sessions that were there before the drop and may hold prepared statements; nobody can see another session's.
SELECT count(*) FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()
  AND application_name NOT LIKE 'cachemig%';

-- name: drop_publications
-- FOR ALL TABLES and FOR TABLES IN SCHEMA too. Which of the table's publications, and whether anybody reads from them now is not known to Postgres.
SELECT DISTINCT p.pubname::text FROM pg_catalog.pg_publication_tables AS p
WHERE (p.schemaname, p.tablename) IN
      (SELECT n.nspname, c.relname FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
       WHERE c.oid = %(oid)s OR c.oid = ANY (%(relids)s::oid[]))
ORDER BY 1;

-- name: drop_slots
SELECT slot_name::text, plugin::text, active FROM pg_catalog.pg_replication_slots
WHERE slot_type = 'logical' AND database = pg_catalog.current_database() ORDER BY 1;

-- name: drop_standbys
-- Empty, with hidden columns, for a role without pg_monitor.
SELECT coalesce(nullif(r.application_name, ''), 'pid ' || r.pid), r.state::text, r.sync_state::text,
       extract(epoch FROM r.replay_lag)::float8
FROM pg_catalog.pg_stat_replication AS r
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots AS s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
ORDER BY 1;

-- name: drop_subscriptions
-- Subscriptions that fill this very table from another server.
SELECT DISTINCT s.subname::text FROM pg_catalog.pg_subscription_rel AS r
JOIN pg_catalog.pg_subscription AS s ON s.oid = r.srsubid
WHERE r.srrelid = %(oid)s OR r.srrelid = ANY (%(relids)s::oid[]) ORDER BY 1;

-- name: drop_event_triggers
SELECT evtname::text, evtevent::text, evtfoid::regproc::text FROM pg_catalog.pg_event_trigger
WHERE evtenabled IN ('O', 'A') AND evtevent IN ('ddl_command_start', 'ddl_command_end', 'sql_drop') ORDER BY 1;

-- name: drop_postgrest
-- Signs of PostgREST: a session of it, Supabase's role for it, or the event triggers by which it is told of DDL.
SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity AS a
               WHERE a.datname = pg_catalog.current_database() AND a.application_name ILIKE 'postgrest%'
                  OR a.usename = 'authenticator')
    OR EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'authenticator')
    OR EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtname LIKE 'pgrst%');

-- name: drop_bytes
-- The table with its partitions: heap, TOAST, indexes.
SELECT coalesce(sum(pg_catalog.pg_relation_size(c.oid)), 0)::bigint,
       coalesce(sum(pg_catalog.pg_total_relation_size(nullif(c.reltoastrelid, 0))), 0)::bigint,
       coalesce(sum(pg_catalog.pg_indexes_size(c.oid)), 0)::bigint,
       coalesce(sum(pg_catalog.pg_total_relation_size(c.oid)), 0)::bigint,
       pg_catalog.pg_database_size(pg_catalog.current_database())
FROM pg_catalog.pg_class AS c WHERE c.oid = ANY (%(relids)s::oid[]);

-- name: drop_blocked_by
-- Who stands before this session in the queue for a lock. 0 is a prepared transaction.
SELECT b.pid, a.usename::text, nullif(a.application_name, ''), a.state,
       extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start)::float8,
       pg_catalog.upper(substring(a.query FROM '^\s*(\w+)'))
FROM (SELECT DISTINCT pid FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids(%(pid)s)) AS u (pid)) AS b
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = b.pid
ORDER BY 5 DESC NULLS LAST;

-- The drop -----------------------------------------------------------------------------------------------------------

-- name: drop_limits
-- Before any lock: none is waited for longer than lock_timeout, for who waits holds up everybody behind him; nothing
-- runs long under it, and a client that dies does not keep it. LOCAL: gone with the transaction, also over a pooler.
SET LOCAL lock_timeout = {lock_timeout};
SET LOCAL statement_timeout = {statement_timeout};
SET LOCAL idle_in_transaction_session_timeout = '60s';
SET LOCAL application_name = 'cachemig drop-column';

-- name: drop_lock
-- Waits for everybody in a transaction with the table, readers too, and meanwhile holds up whoever comes after: so for
-- lock_timeout at a time, then all of them go first. Asked for once and at its full strength, so that nothing deadlocks on the way up.
LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE;

-- name: drop_own_triggers
-- What this tool put on the table: capture and guard. Before the column, for they name it. Under the table's lock, which it takes by itself.
DO $cachemig$
DECLARE
    own record;
BEGIN
    FOR own IN SELECT t.tgname FROM pg_catalog.pg_trigger AS t
               WHERE t.tgrelid = pg_catalog.to_regclass({regclass}) AND NOT t.tgisinternal
                 AND t.tgparentid = 0 AND t.tgname LIKE 'cachemig\_%'
    LOOP
        EXECUTE pg_catalog.format('DROP TRIGGER IF EXISTS %I ON %s', own.tgname, pg_catalog.to_regclass({regclass}));
    END LOOP;
    FOR own IN SELECT p.oid::regprocedure AS name FROM pg_catalog.pg_proc AS p
               JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
               WHERE n.nspname = 'cachemig' AND p.prorettype = 'pg_catalog.trigger'::pg_catalog.regtype
                 AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger AS t WHERE t.tgfoid = p.oid)
    LOOP
        EXECUTE pg_catalog.format('DROP FUNCTION IF EXISTS %s', own.name);
    END LOOP;
END
$cachemig$;

-- name: drop_alter
-- Changes the catalog and no row, so it takes no longer for a large table. Without CASCADE: where anything depends on a
-- column Postgres refuses, and nothing is changed. The column is meant to go: its values are in Redis, verified, and in the archive,
-- read back (the gates), and clients that read it are gone.
-- squawk-ignore ban-drop-column
ALTER TABLE IF EXISTS {table} {drops};

-- name: drop_record
-- Only from the phase that the gates were looked at in, by who still holds the lease.
UPDATE cachemig.migration
SET phase = 'dropped', changed_at = pg_catalog.clock_timestamp(), changed_by = %(who)s
WHERE phase = 'redis-only'
  AND EXISTS (SELECT FROM cachemig.lease WHERE name = 'ladder' AND owner = %(owner)s AND fence = %(fence)s);

-- name: drop_unchanged
-- What the gates were looked at with, and may have changed by itself since: cheap enough to be asked under the table's lock.
SELECT m.phase, m.epoch, (SELECT max(l.id) FROM cachemig.late_write AS l WHERE l.kind = 'write'),
       EXISTS (SELECT FROM cachemig.late_write AS l WHERE l.outcome IS NULL) OR EXISTS (SELECT FROM cachemig.change)
FROM cachemig.migration AS m;

-- name: drop_notify
-- PostgREST reads the tables' columns anew when this transaction has committed. Nobody listens: nothing happens.
NOTIFY pgrst, 'reload schema';

-- name: drop_recorded
-- How the step is recorded, shown to people; the tool itself adds that it still holds its lease.
UPDATE cachemig.migration SET phase = 'dropped', changed_at = pg_catalog.clock_timestamp(), changed_by = session_user
WHERE phase = 'redis-only';
INSERT INTO cachemig.journal (who, command, phase_from, phase_to, epoch, figures)
SELECT session_user, 'drop-column', 'redis-only', phase, epoch, {figures}::jsonb FROM cachemig.migration;

-- name: drop_migration
-- A migration file's drop: one statement, so that whoever runs it, in a transaction or without one, gets all of it or nothing.
-- It looks at the gates itself. Safe to run again: a column that is gone is no error.
DO $cachemig$
DECLARE
    now_is   CONSTANT timestamptz := pg_catalog.clock_timestamp();
    m        record;
    seen     record;
    names    text;
    begun    timestamptz;
    late     record;
    latest   timestamptz;
    tries    integer := 0;
BEGIN
    -- Here too, for a runner that is not in a transaction: outside of one SET LOCAL has no effect.
    PERFORM pg_catalog.set_config('lock_timeout', {lock_timeout}, true);
    PERFORM pg_catalog.set_config('idle_in_transaction_session_timeout', '60s', true);
    PERFORM pg_catalog.set_config('application_name', 'cachemig drop-column', true);

    IF pg_catalog.to_regclass('cachemig.migration') IS NULL THEN
        RAISE NOTICE USING MESSAGE = 'cachemig: there is no migration in this database, so nothing proves the column to be unneeded: it stays';
        RETURN;
    END IF;
    SELECT * INTO m FROM cachemig.migration FOR UPDATE;
    IF NOT FOUND OR m.phase = 'dropped' THEN
        RAISE NOTICE USING MESSAGE = 'cachemig: nothing to do, the column was dropped before or no migration has begun';
        RETURN;
    END IF;
    IF m.settings ->> 'table' <> {table_setting} OR m.settings ->> 'column' <> {column_setting} THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: the migration of this database is of another table or column';
    END IF;

    -- Gate: the phase.
    IF m.phase <> 'redis-only' THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: refused in phase ' || m.phase || ': applications may still read or write the column',
            HINT = 'cachemig status says which step comes next';
    END IF;
    -- Gate: the soak, since the phase began or since the last late write.
    SELECT max(at) INTO begun FROM cachemig.journal
    WHERE phase_to = 'redis-only' AND phase_from IS NOT NULL AND phase_from <> 'redis-only';
    begun := coalesce(begun, m.changed_at);
    SELECT max(at) FILTER (WHERE kind = 'write') AS last,
           count(*) FILTER (WHERE outcome IS NULL) + (SELECT count(*) FROM cachemig.change) AS waiting INTO late
    FROM cachemig.late_write;
    IF greatest(begun, late.last) > now_is - {soak}::interval THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: the soak is not over: it lasts ' || {soak} || ' and began '
                || pg_catalog.to_char(greatest(begun, late.last), 'YYYY-MM-DD HH24:MI:SSOF')
                || CASE WHEN late.last >= begun THEN ', with the last late write' ELSE '' END,
            HINT = 'run this migration again when it is over';
    END IF;
    -- Gate: what was written to the frozen column has been delivered.
    IF late.waiting > 0 THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: ' || late.waiting || ' late writes wait to be delivered to Redis',
            HINT = 'cachemig sync --once';
    END IF;
    -- Gate: the last verification of all keys.
    SELECT at, (figures ->> 'passed')::boolean AS passed, epoch, figures ->> 'fingerprint' AS fingerprint INTO seen
    FROM cachemig.journal WHERE command = 'verify' AND figures ->> 'sample' IS NULL ORDER BY id DESC LIMIT 1;
    IF NOT FOUND OR seen.passed IS NOT TRUE OR seen.at < now_is - {fresh}::interval OR seen.at < begun
       OR seen.epoch IS DISTINCT FROM m.epoch OR seen.fingerprint IS DISTINCT FROM m.fingerprint THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: no verification of all keys has passed within ' || {fresh},
            HINT = 'cachemig verify';
    END IF;
    -- Gate: the archive, read back since the column was frozen, and since it was last written.
    SELECT max(checked_at) AS checked_at INTO seen FROM cachemig.archive;
    IF seen.checked_at IS NULL OR seen.checked_at < greatest(begun, late.last) THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: no archive was read back since the column was frozen, or last written',
            HINT = 'cachemig archive --to PLACE';
    END IF;
    -- Gate: applications.
    SELECT pg_catalog.string_agg(DISTINCT c.name, ', ') INTO names FROM cachemig.client AS c
    WHERE c.lease_until > now_is AND c.phase IS DISTINCT FROM 'redis-only';
    IF names IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: applications act on an older phase: ' || names,
            HINT = 'cachemig status names them; restart or stop them';
    END IF;
    IF NOT {no_clients} AND NOT EXISTS (SELECT FROM cachemig.client AS c WHERE c.lease_until > now_is) THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: no live application is registered, which proves nothing',
            HINT = 'if no program reads by the phase, write this file anew with --no-clients';
    END IF;
    -- Gate: nothing depends on it. What the catalog knows Postgres sees to below; of the texts of functions it does not.
    SELECT pg_catalog.string_agg(p.oid::regprocedure::text, ', ') INTO names
    FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'cachemig')
      AND p.prosrc ~* {pattern} AND p.oid::regprocedure::text <> ALL ({accept}::text[])
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d
                      WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e');
    IF names IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: functions mention a column that is to go: ' || names,
            HINT = 'cachemig drop-column shows where; change them, or accept them by name and write this file anew';
    END IF;

    -- The table's lock: for lock_timeout at a time, then everybody else goes first. Never without a limit.
    LOOP
        tries := tries + 1;
        BEGIN
            IF pg_catalog.to_regclass({regclass}) IS NOT NULL THEN
                {lock}
            END IF;
            -- Under the lock, when none can come any more: what was written while it was waited for. The lock is given
            -- back with this block, so that it can be delivered.
            SELECT max(at) FILTER (WHERE kind = 'write') INTO latest FROM cachemig.late_write;
            IF latest IS DISTINCT FROM late.last THEN
                RAISE EXCEPTION USING MESSAGE = 'cachemig: the soak is not over: the column was written just now, with the last late write',
                    HINT = 'cachemig status names the writer; run this migration again when the soak is over';
            END IF;
            IF EXISTS (SELECT FROM cachemig.late_write WHERE outcome IS NULL) OR EXISTS (SELECT FROM cachemig.change) THEN
                RAISE lock_not_available;
            END IF;
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            IF tries >= {tries} THEN
                RAISE EXCEPTION USING ERRCODE = 'lock_not_available',
                    MESSAGE = 'cachemig: the table was in use at every try, or rows that went waited for sync; nothing was changed',
                    HINT = 'cachemig drop-column names who holds it; cachemig sync --follow is to be running';
            END IF;
            PERFORM pg_catalog.pg_sleep(least(5.0, 0.2 * 2.0 ^ tries) * (0.5 + pg_catalog.random() / 2));
        END;
    END LOOP;

    {own_triggers}

    {alter}

    UPDATE cachemig.migration
    SET phase = 'dropped', changed_at = pg_catalog.clock_timestamp(), changed_by = session_user || ' (migration file)';
    INSERT INTO cachemig.journal (who, command, phase_from, phase_to, epoch, figures)
    VALUES (session_user || ' (migration file)', 'drop-column', 'redis-only', 'dropped', m.epoch, {figures}::jsonb);
    {notify}
END
$cachemig$;

-- name: drop_origin
-- What a database is known by: a preview branch, or a copy for staging that was loaded from a dump, is another one.
SELECT system_identifier::text, pg_catalog.current_database()::text FROM pg_catalog.pg_control_system();

-- Brownout: the rehearsal -------------------------------------------------------------------------------------------

-- name: brownout_create
-- Its row is written in the transaction that renames the column, and deleted in the one that renames it back: so it is
-- there exactly while the column is hidden, whatever dies. Only a new object in the tool's own schema.
CREATE TABLE IF NOT EXISTS cachemig.brownout (
    only_one    boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    relid       oid NOT NULL,
    column_name text NOT NULL,
    hidden_name text NOT NULL,
    triggers    jsonb NOT NULL,       -- of this tool, switched off meanwhile, and how they fired
    ends_at     timestamptz NOT NULL, -- from then on any command of the tool renames it back
    who         text NOT NULL
);

-- name: brownout_there
SELECT pg_catalog.to_regclass('cachemig.brownout') IS NOT NULL;

-- name: brownout_now
SELECT b.relid::bigint, b.column_name, b.hidden_name, b.triggers, b.ends_at, b.who,
       b.ends_at <= pg_catalog.clock_timestamp(), n.nspname::text, c.relname::text
FROM cachemig.brownout AS b
LEFT JOIN pg_catalog.pg_class AS c ON c.oid = b.relid
LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace;

-- name: brownout_begin
INSERT INTO cachemig.brownout (relid, column_name, hidden_name, triggers, ends_at, who)
VALUES (%(oid)s, %(column)s, %(hidden)s, %(triggers)s, pg_catalog.clock_timestamp() + %(seconds)s * interval '1 second',
        %(who)s);

-- name: brownout_end
-- Whoever deletes the row renames: two commands that find it overdue do it once.
DELETE FROM cachemig.brownout RETURNING relid::bigint;

-- name: brownout_own_triggers
-- The tool's own triggers: their functions name the column in their text, and would fail while it has another name.
SELECT tgname::text, tgenabled::text FROM pg_catalog.pg_trigger
WHERE tgrelid = %(oid)s AND NOT tgisinternal AND tgparentid = 0 AND tgname LIKE 'cachemig\_%%' ORDER BY 1;

-- name: brownout_trigger
-- Under the table's lock, which the step has already. Of the tool's own triggers alone.
ALTER TABLE {table} {fires} TRIGGER {trigger};

-- name: brownout_rename
-- Changes the catalog alone. Views, policies and indexes follow; what names the column in its text fails, as after a drop.
ALTER TABLE {table} RENAME COLUMN {old} TO {new};

-- name: brownout_errors
-- Transactions of this database that were rolled back, whatever for; and what applications report as failed.
SELECT (SELECT d.xact_rollback FROM pg_catalog.pg_stat_database AS d WHERE d.datname = pg_catalog.current_database()),
       coalesce((SELECT sum(coalesce((c.stats #>> '{reads,redis,error}')::bigint, 0)
                          + coalesce((c.stats #>> '{reads,column,error}')::bigint, 0)
                          + coalesce((c.stats #>> '{writes,redis_failed}')::bigint, 0)) FROM cachemig.client AS c), 0)::bigint,
       (SELECT pg_catalog.string_agg(DISTINCT c.name, ', ') FROM cachemig.client AS c
        WHERE coalesce((c.stats #>> '{reads,column,error}')::bigint, 0) > 0);

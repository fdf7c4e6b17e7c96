-- Steps as migration files, for pipelines that must run them (cachemig .. --format). Each is one statement that looks at
-- its gates itself, so that it does all or nothing whatever transaction its runner keeps. drop_column.sql has the drop's.

-- name: init_migration
-- Touches no table of the application: new objects in the tool's own schema. Only in the database it was written for: a
-- preview branch, or a copy for staging, has no control schema that could tell.
DO $cachemig$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_control_system() AS c
                   WHERE c.system_identifier::text = {system} AND pg_catalog.current_database() = {database}) THEN
        RAISE NOTICE USING MESSAGE = 'cachemig: init: this is not the database that it was written for, nothing is done';
        RETURN;
    END IF;
    IF pg_catalog.to_regclass('cachemig.migration') IS NOT NULL THEN
        RAISE NOTICE USING MESSAGE = 'cachemig: init: done before, nothing is changed';
        RETURN;
    END IF;
{statements}
    INSERT INTO cachemig.migration (phase, settings, fingerprint, changed_by)
    VALUES ('idle', {settings}::jsonb, {fingerprint}, session_user || ' (migration file)');
    INSERT INTO cachemig.journal (who, command, phase_to, epoch, figures)
    SELECT session_user || ' (migration file)', 'init', phase, epoch, pg_catalog.jsonb_build_object('settings', settings)
    FROM cachemig.migration;
END
$cachemig$;

-- name: init_reverse
-- Destroys the control schema, and nothing of the application: refused from dual-write on, where a trigger would be left
-- behind that fails at every write, and once the ledger is all that verifies what Redis holds.
DO $cachemig$
DECLARE
    phase_now text;
BEGIN
    IF pg_catalog.to_regclass('cachemig.migration') IS NULL THEN
        RAISE NOTICE USING MESSAGE = 'cachemig: reverse of init: there is no migration in this database, nothing is done';
        RETURN;
    END IF;
    SELECT phase INTO phase_now FROM cachemig.migration FOR UPDATE;
    IF phase_now IS DISTINCT FROM 'idle' THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: reverse of init: refused in phase ' || coalesce(phase_now, 'none'),
            HINT = 'cachemig rollback, then cachemig dual-write --disable';
    END IF;
    DROP SCHEMA cachemig CASCADE;
END
$cachemig$;

-- name: file_begin_epoch
-- With capture a new epoch begins. Which servers it is of nobody knows yet: the first `cachemig sync` finds that, and begins one of
-- its own in Redis too.
UPDATE cachemig.migration SET epoch = epoch + 1, layout = NULL, timeline = NULL, redis_run = NULL, redis_marker = NULL;

-- name: file_not_in_work
-- Keys of a chunk that was begun and not finished may be in Redis with nobody knowing them: `cachemig dual-write
-- --disable` marks them first, which a file does not.
DO $running$
BEGIN
    IF EXISTS (SELECT FROM cachemig.chunk WHERE state <> 'done' AND attempts > 0) THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: reverse of dual-write: refused, for a backfill was begun and has not finished',
            HINT = 'cachemig backfill finishes it; or cachemig dual-write --disable in place of this file';
    END IF;
END
$running$;

-- name: stop_writes_migration
-- The column is frozen in one statement: a guard takes the place of capture, and phase and epochs are set. Safe to run
-- again, and in a database without the migration: it does nothing there. A file cannot ask Redis, nor wait for applications: `cachemig
-- stop-writes --execute` after it does, and delivers what was on its way.
DO $cachemig$
DECLARE
    now_is CONSTANT timestamptz := pg_catalog.clock_timestamp();
    m      record;
    seen   record;
    names  text;
    oldest timestamptz;
    tries  integer := 0;
BEGIN
    -- Here too, for a runner that is not in a transaction: outside of one SET LOCAL has no effect.
    PERFORM pg_catalog.set_config('lock_timeout', {lock_timeout}, true);
    PERFORM pg_catalog.set_config('idle_in_transaction_session_timeout', '60s', true);

    IF pg_catalog.to_regclass('cachemig.migration') IS NULL THEN
        RAISE NOTICE USING MESSAGE = 'cachemig: stop-writes: there is no migration in this database, nothing is done';
        RETURN;
    END IF;
    SELECT * INTO m FROM cachemig.migration FOR UPDATE;
    IF NOT FOUND OR m.phase IN ('redis-only', 'dropped') THEN
        RAISE NOTICE USING MESSAGE = 'cachemig: stop-writes: done before, or no migration has begun; nothing is changed';
        RETURN;
    END IF;
    IF m.settings ->> 'table' <> {table_setting} OR m.settings ->> 'column' <> {column_setting} THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: the migration of this database is of another table or column';
    END IF;

    -- Gate: the phase, with every read from Redis.
    IF m.phase <> 'cutover' OR m.percent < 100 THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: stop-writes: refused in phase ' || m.phase || ', with ' || m.percent
                || ' % of the keys read from Redis',
            HINT = 'cachemig status says which step comes next';
    END IF;
    -- Gate: the soak.
    IF m.changed_at > now_is - {soak}::interval THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: the soak is not over: it lasts ' || {soak} || ' and began '
                || pg_catalog.to_char(m.changed_at, 'YYYY-MM-DD HH24:MI:SSOF'),
            HINT = 'run this migration again when it is over';
    END IF;
    -- Gate: the last verification of all keys.
    SELECT at, (figures ->> 'passed')::boolean AS passed, epoch, figures ->> 'fingerprint' AS fingerprint INTO seen
    FROM cachemig.journal WHERE command = 'verify' AND figures ->> 'sample' IS NULL ORDER BY id DESC LIMIT 1;
    IF NOT FOUND OR seen.passed IS NOT TRUE OR seen.at < now_is - {fresh}::interval
       OR seen.epoch IS DISTINCT FROM m.epoch OR seen.fingerprint IS DISTINCT FROM m.fingerprint THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: no verification of all keys has passed within ' || {fresh},
            HINT = 'cachemig verify';
    END IF;
    -- Gate: sync keeps up.
    SELECT min(at) INTO oldest FROM cachemig.change;
    IF oldest < now_is - {max_lag}::interval THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: sync lags: the oldest change is of '
                || pg_catalog.to_char(oldest, 'YYYY-MM-DD HH24:MI:SSOF'),
            HINT = 'cachemig sync --once; keep cachemig sync --follow running';
    END IF;
    -- Gate: applications.
    SELECT pg_catalog.string_agg(DISTINCT c.name, ', ') INTO names FROM cachemig.client AS c
    WHERE c.lease_until > now_is AND (c.phase IS DISTINCT FROM 'cutover' OR c.percent IS DISTINCT FROM 100);
    IF names IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: applications act on an older phase: ' || names,
            HINT = 'cachemig status names them; restart or stop them';
    END IF;
    IF NOT {no_clients} AND NOT EXISTS (SELECT FROM cachemig.client AS c WHERE c.lease_until > now_is) THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: no live application is registered, which proves nothing',
            HINT = 'if no program reads by the phase, write this file anew with --no-clients';
    END IF;

{statements}
    UPDATE cachemig.migration
    SET phase = 'redis-only', frozen_epoch = epoch, epoch = epoch + 1, changed_at = pg_catalog.clock_timestamp(),
        changed_by = session_user || ' (migration file)';
    INSERT INTO cachemig.journal (who, command, phase_from, phase_to, epoch, figures)
    SELECT session_user || ' (migration file)', 'stop-writes', 'cutover', phase, epoch, {figures}::jsonb
    FROM cachemig.migration;
END
$cachemig$;

-- name: stop_writes_reverse
-- For runners that want one. Changes nothing: what Redis has newer would be lost.
DO $cachemig$
DECLARE
    frozen boolean := false;
BEGIN
    IF pg_catalog.to_regclass('cachemig.migration') IS NOT NULL THEN
        SELECT phase IN ('redis-only', 'dropped') INTO frozen FROM cachemig.migration;
    END IF;
    IF frozen THEN
        RAISE EXCEPTION USING MESSAGE = 'cachemig: a file cannot take stop-writes back: what was written since is in Redis alone',
            HINT = 'cachemig rollback copies it back into the column first';
    END IF;
END
$cachemig$;

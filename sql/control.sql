-- The control schema: everything the migration knows about itself. All of it is the tool's own; `cachemig clean`
-- removes it. Nothing here touches a table of the application.

-- name: create_schema
-- Skipped where the schema is there: a DBA may have made it for a role that cannot create schemas (sql/roles.sql).
CREATE SCHEMA cachemig;

-- name: create_control
-- Safe on a live system: only new objects in the tool's own schema, in one transaction.

-- A key may be longer than a B-tree entry may be (2,704 bytes), so keys are indexed by their SHA-256. Doubling the
-- backslashes makes decode('escape') give the text's own bytes; unlike convert_to() that is immutable, so that the
-- function can stand in an index and is inlined.
CREATE FUNCTION cachemig.key_id(key text) RETURNS bytea
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN pg_catalog.sha256(pg_catalog.decode(pg_catalog.replace(key, E'\\', E'\\\\'), 'escape'));

CREATE TABLE cachemig.migration (
    only_one     boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    phase        text NOT NULL,
    percent      double precision NOT NULL DEFAULT 0 CHECK (percent BETWEEN 0 AND 100),  -- of the keys, read from Redis
    -- -1: none begun; the first is 0. Below 8192, so that epoch * 2^40 + count stays exact in Lua's doubles.
    epoch        integer NOT NULL DEFAULT -1 CHECK (epoch BETWEEN -1 AND 8191),
    frozen_epoch integer,     -- of the column, from stop-writes on: what is read of it keeps that epoch; null: in use
    settings     jsonb NOT NULL,
    fingerprint  text NOT NULL,
    layout       jsonb,       -- what the chunks were laid out over; null: not laid out, or void
    timeline     text,        -- of the Postgres that capture was committed on; another one may have lost commits
    redis_run    text,        -- run id of the Redis that was filled; another run may have lost writes
    paused_by    text,        -- who paused the workers; null: they work
    max_rate     bigint,      -- bytes a second for each worker; null: as each was told, 0: no limit
    redis_marker text,        -- what stands under the marker key; gone after a FLUSHALL or on another server
    changed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_by   text NOT NULL
);
COMMENT ON TABLE cachemig.migration IS 'cachemig: the one migration of this database';

CREATE TABLE cachemig.journal (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    who        text NOT NULL,
    command    text NOT NULL,
    phase_from text,
    phase_to   text,
    epoch      integer,
    figures    jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX journal_command ON cachemig.journal (command, id);
COMMENT ON TABLE cachemig.journal IS 'cachemig: every command that changed something';

-- A change is deleted as soon as it is delivered, so the table turns over all the time: vacuum it by number of rows.
CREATE TABLE cachemig.change (
    id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key text NOT NULL,
    at  timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000);
-- By a cheap hash, because every write of the application pays for it: a collision costs one row more to look at.
CREATE INDEX change_key ON cachemig.change (pg_catalog.hashtextextended(key, 0));
COMMENT ON TABLE cachemig.change IS 'cachemig: one row per committed write that is not delivered yet';

CREATE TABLE cachemig.truncation (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE cachemig.truncation IS 'cachemig: TRUNCATEs whose transaction could not see every row; stands for a change of every key';

CREATE TABLE cachemig.version (
    key_id bytea PRIMARY KEY,
    key    text NOT NULL,
    count  bigint NOT NULL
);
COMMENT ON TABLE cachemig.version IS 'cachemig: changes of each key that have been delivered and folded';

CREATE TABLE cachemig.entry (
    key_id        bytea PRIMARY KEY,
    key           text NOT NULL,
    version       bigint NOT NULL,
    state         text NOT NULL CHECK (state IN ('delivered', 'expired', 'set-aside', 'failed', 'removed')),
    sha256        bytea,  -- of the column's text
    bytes         bigint,
    stored_sha256 bytea,  -- of the bytes in Redis; null where they are the text itself
    expires_at    timestamptz,
    error         text,
    written_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX entry_state ON cachemig.entry (state) WHERE state IN ('set-aside', 'failed');
COMMENT ON TABLE cachemig.entry IS 'cachemig: the ledger, one row per key that was ever handled';

CREATE TABLE cachemig.repair (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    who           text NOT NULL,
    key           text NOT NULL,
    how           text NOT NULL CHECK (how IN ('decoded', 'recomputed')),
    fault         text NOT NULL,  -- what was wrong with it
    profile       text,           -- of the algorithm; null where it was decoded
    code_version  text NOT NULL,  -- of this tool
    before        text NOT NULL,  -- what the column held
    before_sha256 bytea NOT NULL,
    after_sha256  bytea NOT NULL,
    undone_at     timestamptz
);
COMMENT ON TABLE cachemig.repair IS 'cachemig: corrupt values that were repaired in the table, and what stood there';

CREATE TABLE cachemig.chunk (
    id          integer PRIMARY KEY,
    lower       text[],      -- inclusive; null: from the beginning
    upper       text[],      -- exclusive; null: to the end
    state       text NOT NULL DEFAULT 'todo' CHECK (state IN ('todo', 'running', 'done')),
    owner       text,
    claimed_at  timestamptz,
    lease_until timestamptz,
    attempts    integer NOT NULL DEFAULT 0,
    figures     jsonb
);
COMMENT ON TABLE cachemig.chunk IS 'cachemig: ranges of the primary key, the unit of backfill and resume';

CREATE TABLE cachemig.lease (
    name       text PRIMARY KEY,
    owner      text NOT NULL,
    expires_at timestamptz NOT NULL,
    fence      bigint NOT NULL DEFAULT 1
);
COMMENT ON TABLE cachemig.lease IS 'cachemig: who may move the ladder at the moment';

-- Without WAL, so that a commit waits for no disk and no standby; after a crash of Postgres it is empty.
CREATE UNLOGGED TABLE cachemig.worker (
    id           text PRIMARY KEY,
    owner        text NOT NULL,  -- as in leases: host, pid, and when that process started
    command      text NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    done         bigint NOT NULL,
    total        bigint,         -- null: not known
    unit         text NOT NULL,
    entries      bigint NOT NULL,
    bytes        bigint NOT NULL,
    rate_bytes_s bigint NOT NULL,
    note         text,
    slowed       text,           -- why it goes slower than it could
    waiting      text            -- why nothing moves
) WITH (fillfactor = 50);
COMMENT ON TABLE cachemig.worker IS 'cachemig: what running workers are at, for people to see; nothing depends on it';

CREATE TABLE cachemig.client (
    id          text PRIMARY KEY,
    name        text NOT NULL,
    phase       text,              -- what it acts on, with percent and epoch; null: registered, nothing taken up yet
    percent     double precision,
    epoch       integer,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    lease_until timestamptz NOT NULL,  -- live before that; its row stays a day for its stats
    stats       jsonb NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE cachemig.client IS 'cachemig: applications that route by phase; a step waits for the live ones';

CREATE TABLE cachemig.archive (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    who        text NOT NULL,
    location   text NOT NULL,
    rows       bigint NOT NULL,
    entries    bigint NOT NULL,
    bytes      bigint NOT NULL,    -- of the rows' texts
    sha256     bytea NOT NULL,     -- of the file
    epoch      integer NOT NULL,
    checked_at timestamptz         -- read back, and equal to every row of the table; null: it counts for nothing
);
COMMENT ON TABLE cachemig.archive IS 'cachemig: files that hold the column, each read back before it is named here';

CREATE TABLE cachemig.late_write (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    key           text NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('write', 'delete')),
    value         text,    -- null: there is to be none
    writer        text NOT NULL,
    taken_version bigint,  -- what Redis held when it was taken up: it replaces that, and nothing newer
    taken_marker  text,    -- of the Redis that it was taken up with: after a loss versions may come again
    outcome       text CHECK (outcome IN ('delivered', 'superseded', 'set-aside', 'failed')),
    error         text,
    done_at       timestamptz
);
CREATE INDEX late_write_waiting ON cachemig.late_write (id) WHERE outcome IS NULL;
CREATE INDEX late_write_kind ON cachemig.late_write (kind, at);
CREATE INDEX late_write_failed ON cachemig.late_write (id) WHERE outcome IN ('failed', 'set-aside');
COMMENT ON TABLE cachemig.late_write IS 'cachemig: writes to the column after it was frozen, and removed rows; delivered to Redis';

-- name: drop_control
-- Destroys the control schema. Refused by the tool while capture is on: the trigger would fail at each write.
DROP SCHEMA cachemig CASCADE;

-- name: begin_migration
INSERT INTO cachemig.migration (phase, settings, fingerprint, changed_by)
VALUES ('idle', %(settings)s, %(fingerprint)s, %(who)s);

-- name: migration
-- Null where there is no control schema, so that a read-only role and an empty database get an answer, not an error.
SELECT phase, percent, epoch, frozen_epoch, settings, fingerprint, layout, changed_at, changed_by, timeline, redis_run,
       redis_marker,
       CASE WHEN NOT pg_catalog.pg_is_in_recovery()
            THEN pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) END AS timeline_now
FROM cachemig.migration;

-- name: now
-- Times in the control schema are those of this clock; the machine of a worker may have another one.
SELECT pg_catalog.clock_timestamp();

-- name: orders
SELECT paused_by, max_rate FROM cachemig.migration;

-- name: set_paused
UPDATE cachemig.migration SET paused_by = %(by)s;

-- name: set_max_rate
UPDATE cachemig.migration SET max_rate = %(max_rate)s;

-- name: worker_seen
-- For people to see, so it must hold up nobody: one row that is the worker's own, and a timeout should somebody have
-- locked the table. Run as one message, which is one transaction.
SET LOCAL statement_timeout = '500ms';
INSERT INTO cachemig.worker AS w (id, owner, command, done, total, unit, entries, bytes, rate_bytes_s, note, slowed, waiting)
VALUES ({id}, {owner}, {command}, {done}, {total}, {unit}, {entries}, {bytes}, {rate_bytes_s}, {note}, {slowed}, {waiting})
ON CONFLICT (id) DO UPDATE
SET seen_at = clock_timestamp(), done = excluded.done, total = excluded.total, unit = excluded.unit,
    entries = excluded.entries, bytes = excluded.bytes, rate_bytes_s = excluded.rate_bytes_s,
    note = excluded.note, slowed = excluded.slowed, waiting = excluded.waiting;

-- name: worker_gone
-- With it what workers left behind that were killed; they have been ignored since their lease's time was over.
SET LOCAL statement_timeout = '500ms';
DELETE FROM cachemig.worker WHERE id = {id} OR seen_at < clock_timestamp() - interval '1 hour';

-- name: workers
-- Those that were seen within a lease's time.
SELECT owner, command, started_at, extract(epoch FROM clock_timestamp() - seen_at)::float8 AS seen_s,
       done, total, unit, entries, bytes, rate_bytes_s, note, slowed, waiting
FROM cachemig.worker WHERE seen_at > clock_timestamp() - %(lease_s)s * interval '1 second'
ORDER BY command, started_at, id LIMIT 100;

-- name: history
-- The last lines of the journal, newest last. Without what is long: the statements that were run, what each client had
-- compared, the gates.
SELECT id, at, who, command, phase_from, phase_to, epoch, figures
FROM (SELECT id, at, who, command, phase_from, phase_to, epoch,
             figures - ARRAY['sql', 'shadow', 'gates', 'recreate', 'settings'] AS figures
      FROM cachemig.journal ORDER BY id DESC LIMIT %(limit)s) AS newest
ORDER BY id;

-- name: whole_history
-- The same with everything that was recorded.
SELECT id, at, who, command, phase_from, phase_to, epoch, figures
FROM (SELECT * FROM cachemig.journal ORDER BY id DESC LIMIT %(limit)s) AS newest
ORDER BY id;

-- name: lock_migration
-- Held for one short transaction: two workers that notice the same thing begin one epoch, not two.
SELECT epoch FROM cachemig.migration FOR UPDATE;

-- name: set_identities
UPDATE cachemig.migration
SET timeline = pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8),
    redis_run = %(run)s, redis_marker = %(marker)s;

-- name: has_control
SELECT pg_catalog.to_regclass('cachemig.migration') IS NOT NULL;

-- name: has_schema
SELECT pg_catalog.to_regnamespace('cachemig') IS NOT NULL;

-- name: set_phase
UPDATE cachemig.migration
SET phase = %(phase)s, epoch = %(epoch)s, 
    layout = CASE WHEN epoch = %(epoch)s OR frozen_epoch IS NOT NULL THEN layout END,
    changed_at = CASE WHEN phase = %(phase)s THEN changed_at ELSE clock_timestamp() END,
    changed_by = CASE WHEN phase = %(phase)s THEN changed_by ELSE %(who)s END;

-- name: journal
INSERT INTO cachemig.journal (who, command, phase_from, phase_to, epoch, figures)
SELECT %(who)s, %(command)s, %(phase_from)s, phase, epoch, %(figures)s FROM cachemig.migration;

-- name: journal_last_of
SELECT at, figures, epoch FROM cachemig.journal WHERE command = %(command)s ORDER BY id DESC LIMIT 1;

-- name: take_lease
-- One statement, so two takers cannot both win; the fence grows with each taking.
INSERT INTO cachemig.lease AS l (name, owner, expires_at)
VALUES (%(name)s, %(owner)s, clock_timestamp() + %(seconds)s * interval '1 second')
ON CONFLICT (name) DO UPDATE
SET owner = excluded.owner, expires_at = excluded.expires_at, fence = l.fence + 1
WHERE l.expires_at < clock_timestamp() OR l.owner = ANY (%(dead)s)
RETURNING fence;

-- name: lease_holder
SELECT owner, expires_at, extract(epoch FROM expires_at - clock_timestamp())::float8 AS seconds_left
FROM cachemig.lease WHERE name = %(name)s;

-- name: holds_lease
SELECT true FROM cachemig.lease WHERE name = %(name)s AND owner = %(owner)s AND fence = %(fence)s FOR SHARE;

-- name: release_lease
-- Safe: the fence sees to it that only the taker of this very lease gives it back.
DELETE FROM cachemig.lease WHERE name = %(name)s AND owner = %(owner)s AND fence = %(fence)s;

-- name: made
SELECT (SELECT count(*) FROM cachemig.entry), (SELECT count(*) FROM cachemig.journal);

-- name: triggers_left
-- Triggers that call functions of the tool, on any table: it may have been renamed. Those of partitions go with their parent's.
SELECT t.tgname::text, t.tgrelid::regclass::text, pg_catalog.quote_ident(t.tgname)
FROM pg_catalog.pg_trigger AS t
JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname = 'cachemig' AND NOT t.tgisinternal AND t.tgparentid = 0
ORDER BY 2, 1;

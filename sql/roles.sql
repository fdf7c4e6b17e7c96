-- Least-privilege roles of cachemig. Run once, before `cachemig init`, by a superuser; running it again changes nothing.
--
--   psql -X -d DATABASE -v table=public.therapy_sessions -f sql/roles.sql
--
-- cachemig_reader  doctor --dry-run, plan, status, residue, ci, and every --dry-run: the one for a pipeline (docs/ci.md)
-- cachemig_worker  backfill, sync, verify, archive
-- cachemig_owner   init, dual-write, cutover, rollback, stop-writes, drop-column, reclaim, restore, clean
--
-- Each is a login role without a password: give it one by \password, or let pg_hba.conf decide. They are not meant to
-- be granted to other roles: BYPASSRLS is not inherited, and what a member creates belongs to the member.
--
-- Where corrupt values are to be repaired in the table (cachemig recompute, backfill with recordings), add
--   -v repair=analytics_cache
--
-- Where nobody is superuser (a managed server), run it as the table's owner with
--   -v owner_role=NAME_OF_THE_TABLES_OWNER
-- Then that role runs init, dual-write and clean, and no cachemig_owner is made.
--
-- `cachemig clean` drops the schema, and with it what is granted here on it: run this again before another `init`.

\set ON_ERROR_STOP on
\if :{?table}
\else
    \set table therapy_sessions
\endif
\if :{?owner_role}
\else
    \set owner_role cachemig_owner
\endif

BEGIN;
SET LOCAL client_min_messages = warning; -- no word about what is there already

-- Fails here, with nothing done, where there is no such table.
SELECT :'table'::regclass AS found \gset
SELECT n.nspname AS table_schema, c.relname AS table_name, c.relrowsecurity AS has_rls,
       c.relforcerowsecurity AS forces_rls, o.rolname AS table_owner, o.rolsuper AS owner_is_superuser,
       o.rolname = :'owner_role' AS owner_is_given, pg_catalog.current_database() AS database
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_roles AS o ON o.oid = c.relowner
WHERE c.oid = :'table'::regclass \gset

SELECT pg_catalog.format('CREATE ROLE %I LOGIN', wanted.name)
FROM (VALUES ('cachemig_reader'), ('cachemig_worker'), (:'owner_role')) AS wanted (name)
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = wanted.name) \gexec

-- CONNECT, USAGE: to get at the table at all, also where PUBLIC has lost these rights.
GRANT CONNECT ON DATABASE :"database" TO cachemig_reader, cachemig_worker, :"owner_role";
GRANT USAGE ON SCHEMA :"table_schema" TO cachemig_reader, cachemig_worker;

-- SELECT, on the table as a whole: rows are read by their place too (ctid, tableoid), and plan counts them all.
-- No right to write it, for any of the three: cachemig does not change the application's rows, but for repairs.
GRANT SELECT ON :"table_schema".:"table_name" TO cachemig_reader, cachemig_worker;
\if :{?repair}
    GRANT UPDATE (:"repair") ON :"table_schema".:"table_name" TO cachemig_worker, :"owner_role";
\endif

-- TEMPORARY: the ledger is loaded through a temporary table. (PUBLIC has it unless it was revoked.) The owner has it
-- because the gate of dual-write asks for what backfill will need.
GRANT TEMPORARY ON DATABASE :"database" TO cachemig_worker, :"owner_role";

-- The schema is made here, so that nobody needs CREATE on the database. It belongs to the role that fills it by
-- `cachemig init` and drops it by `cachemig clean`.
SELECT pg_catalog.format('CREATE SCHEMA cachemig AUTHORIZATION %I', :'owner_role')
WHERE pg_catalog.to_regnamespace('cachemig') IS NULL \gexec

-- Reader: phase, journal, ledger, backlog. Worker: chunks, changes, versions, ledger, leases and the journal are
-- taken, written and deleted all the time.
GRANT USAGE ON SCHEMA cachemig TO cachemig_reader, cachemig_worker, :"owner_role";
GRANT SELECT ON ALL TABLES IN SCHEMA cachemig TO cachemig_reader;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA cachemig TO cachemig_worker, :"owner_role";
-- The same for what init will create later. Sequences need nothing: those of identity columns go with their table.
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner_role" IN SCHEMA cachemig GRANT SELECT ON TABLES TO cachemig_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner_role" IN SCHEMA cachemig
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO cachemig_worker;

-- Membership in the table's owner: a trigger that fires always (also in a session that replicates or bulk-loads) can
-- only be enabled by the owner, and the function that it calls reads the table as its own owner.
\if :owner_is_given
    \echo 'The owner of' :found 'runs init, dual-write and clean itself:' :table_owner
\elif :owner_is_superuser
    \warn :found 'belongs to the superuser' :table_owner', and whoever is a member of a superuser is one: not granted.'
    \warn 'Give the table an ordinary owner and run this again, or run init, dual-write and clean as' :table_owner
\else
    GRANT :"table_owner" TO :"owner_role";
\endif

-- BYPASSRLS only where the table has row-level security: a copy that leaves out rows would be wrong without a word.
-- (The tool notices, and refuses.) A member of the owner is exempt already, unless it is forced on the owner too.
\if :has_rls
    ALTER ROLE cachemig_reader BYPASSRLS;
    ALTER ROLE cachemig_worker BYPASSRLS;
    \if :forces_rls
        ALTER ROLE :"owner_role" BYPASSRLS;
    \endif
\endif

COMMIT;

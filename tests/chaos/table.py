"""The table that is migrated, as the default settings want it, and the harness's own record of its writes."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from cachemig.source.connect import Connection

TABLE = """
CREATE TABLE therapy_sessions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    file_hash text,
    analytics_cache jsonb DEFAULT '{}',
    cache_hits int NOT NULL DEFAULT 0,
    last_accessed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON therapy_sessions (file_hash);
ALTER TABLE therapy_sessions SET (fillfactor = 70);
"""

# Written in the writer's own transaction, so it holds exactly what was committed. The first bytes of a value name its
# writer and the number of the write.
AUDIT = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.audit (
    n bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL DEFAULT clock_timestamp(), op text NOT NULL,
    row_id bigint, old_key text, new_key text, old_value text, new_value text, created_at timestamptz
);
CREATE FUNCTION chaos.audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos.audit (op, row_id, old_key, new_key, old_value, new_value, created_at)
    VALUES (TG_OP, coalesce(NEW.id, OLD.id), OLD.file_hash, NEW.file_hash, left(OLD.analytics_cache::text, 24),
            left(NEW.analytics_cache::text, 24), coalesce(NEW.created_at, OLD.created_at));
    RETURN NULL;
END $$;
CREATE FUNCTION chaos.audit_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos.audit (op) VALUES (TG_OP);
    RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER INSERT OR DELETE ON therapy_sessions FOR EACH ROW EXECUTE FUNCTION chaos.audit();
CREATE TRIGGER audit_update AFTER UPDATE ON therapy_sessions FOR EACH ROW
    WHEN (OLD.file_hash IS DISTINCT FROM NEW.file_hash OR OLD.created_at IS DISTINCT FROM NEW.created_at
          OR OLD.analytics_cache IS DISTINCT FROM NEW.analytics_cache) EXECUTE FUNCTION chaos.audit();
CREATE TRIGGER audit_truncate AFTER TRUNCATE ON therapy_sessions EXECUTE FUNCTION chaos.audit_truncate();
ALTER TABLE therapy_sessions ENABLE ALWAYS TRIGGER audit;
ALTER TABLE therapy_sessions ENABLE ALWAYS TRIGGER audit_update;
ALTER TABLE therapy_sessions ENABLE ALWAYS TRIGGER audit_truncate;
"""

HISTORY = """
SELECT extract(epoch FROM coalesce(pg_xact_commit_timestamp(xmin), at))::float8, xmin::text, op, row_id, old_key,
       new_key, old_value, new_value, created_at::time::text
FROM chaos.audit WHERE old_key = %(key)s OR new_key = %(key)s OR op = 'TRUNCATE'
ORDER BY 1, n
"""

TRUNCATED = """
SELECT extract(epoch FROM coalesce(pg_xact_commit_timestamp(xmin), at))::float8 FROM chaos.audit WHERE op = 'TRUNCATE'
"""


def create(dsn: str, keys: Sequence[str], rows: int) -> None:
    """The table with some rows, several of them under one key."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(TABLE)
        conn.execute(AUDIT)
        conn.execute(
            "INSERT INTO therapy_sessions (file_hash, analytics_cache) SELECT (%s::text[])[1 + n %% %s],"
            " CASE WHEN n %% 7 > 0 THEN jsonb_build_object('n', 'first.' || n, 'pad', repeat('x', 30 * (n %% 40))) END"
            " FROM generate_series(1, %s) AS n",
            (list(keys), len(keys), rows),
        )


def history(conn: Connection, key: str, began: float, last: int = 40) -> list[str]:
    """The last committed writes to a key, with the time of the commit in seconds since the beginning."""
    rows = conn.execute(HISTORY, {"key": key}).fetchall()
    lines = [f"... {len(rows) - last} earlier"] if len(rows) > last else []
    for at, xid, op, row_id, old_key, new_key, old_value, new_value, created_at in rows[-last:]:
        moved = f"key {old_key!r} -> {new_key!r} " if op == "UPDATE" and old_key != new_key else ""
        lines.append(
            f"{at - began:8.3f} s  xid {xid} {op} row {row_id} {moved}{old_value} -> {new_value} (created {created_at})"
        )
    return lines

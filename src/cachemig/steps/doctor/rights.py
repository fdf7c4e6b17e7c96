"""What this role may do in Postgres, and who may read the column today."""

from __future__ import annotations

from cachemig.ladder import CAPTURED, Phase
from cachemig.steps.doctor.finding import Said, error, note, ok, warning
from cachemig.steps.doctor.subjects import Source, one


def may_read(source: Source) -> Said:
    select, usage = one(source.conn, "may_read", oid=source.table.oid)
    lacking = [] if usage else [f"USAGE on schema {source.table.schema}"]
    if not select:
        lacking.append(f"SELECT on {source.table.qualified}")
    if lacking:
        return error(f"this role lacks {' and '.join(lacking)}", "grant it; sql/roles.sql has every right in one place")
    return ok("this role may read the table")


def owner(source: Source) -> Said:
    if source.table.is_owner:
        return ok(f"this role is, or is a member of, the table's owner {source.table.owner}")
    if source.migration is not None and source.migration.phase in CAPTURED:
        return note(
            f"this role is not a member of the table's owner {source.table.owner}; capture is on already",
            "nothing for backfill, sync and verify; dual-write --disable needs the owner",
        )
    if source.migration is not None and source.migration.phase is Phase.REDIS_ONLY:
        return note(
            f"this role is not a member of the table's owner {source.table.owner}",
            "nothing for sync, verify and archive; rollback and drop-column need the owner",
        )
    return error(
        f"this role is not a member of the table's owner {source.table.owner}: dual-write cannot create triggers",
        "run init, dual-write and clean as the owner or a member of it (cachemig_owner of sql/roles.sql); "
        "the other commands do not need it",
    )


def control_schema(source: Source) -> Said:
    create_schema, create, usage, tables, lacking = one(source.conn, "may_control")
    if create is None:
        if create_schema:
            return ok("schema cachemig does not exist, and this role may create it")
        return error(
            "schema cachemig does not exist, and this role may not create one in this database",
            "run sql/roles.sql, which makes it; or GRANT CREATE ON DATABASE",
        )
    if not usage or (not tables and not create):
        right = "USAGE" if not usage else "CREATE"
        return error(f"this role has no {right} on schema cachemig", "run sql/roles.sql, and use one of its roles")
    if lacking:
        return error(
            f"this role may not read and write {len(lacking)} tables of the tool: {', '.join(lacking)}",
            "run sql/roles.sql and use cachemig_worker or cachemig_owner; a role that only looks needs only SELECT",
        )
    return ok(
        f"schema cachemig is there; this role may read and write its {tables} tables"
        if tables
        else "schema cachemig is there, and this role may create tables in it"
    )


def temporary(source: Source) -> Said:
    if one(source.conn, "may_create_temporary")[0]:
        return ok("this role may create temporary tables")
    return error(
        "this role may not create temporary tables, through which backfill and sync write the ledger",
        f"GRANT TEMPORARY ON DATABASE {source.conn.info.dbname} to it (sql/roles.sql)",
    )


def row_security(source: Source) -> Said:
    table = source.table
    if one(source.conn, "rows_hidden", oid=table.oid)[0]:
        why = "forced for its owner too" if table.force_rls else "on"
        return error(
            f"row-level security of {table.qualified} is {why}: rows would be hidden from this role",
            "use a role with BYPASSRLS (sql/roles.sql)" + ("" if table.force_rls else ", or the table's owner"),
        )
    return ok(
        "row-level security is on, and this role sees all rows" if table.rls else "the table has no row-level security"
    )


def protection(source: Source) -> Said:
    on_table, on_column, policies = one(source.conn, "protection", oid=source.table.oid, column=source.settings.column)
    said = []
    if on_table and "PUBLIC" not in on_table:
        said.append(f"only {', '.join(on_table)} and the owner may read the table")
    if on_column:
        said.append(f"grants on the column itself: {', '.join(on_column)}")
    if source.table.rls:
        said.append(f"row-level security, policies: {', '.join(policies) or 'none, so that no row is visible'}")
    if not said:
        return ok("no grant to single roles and no policy protects the column today")
    return warning(
        f"what protects the column today does not exist in Redis: {'; '.join(said)}",
        "in Redis whoever may read the key prefix reads every entry: give applications their own ACL users, "
        "and check the right to an entry in the application",
    )

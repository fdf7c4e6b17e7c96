"""The functions that applications call in SQL: composed for the table, made by `init`, replaced by `dual-write`."""

from __future__ import annotations

from psycopg import sql

from cachemig.errors import ConfigError
from cachemig.source import queries
from cachemig.source.connect import Connection, source_errors
from cachemig.source.table import Table

_TEXT, _NUMBER = "text", "double precision"
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "heartbeat": (_TEXT, _TEXT, _TEXT, _NUMBER, "integer", _NUMBER, "jsonb"),
    "leave": (_TEXT,),
    "read_from": (_TEXT,),
    "get": (_TEXT,),
    "get_many": ("text[]",),
    "put": (_TEXT, "jsonb", "bigint"),
    "invalidate": (_TEXT,),
}
"""Name and types of the arguments: what an application calls."""
HELPERS: dict[str, tuple[str, ...]] = {
    "typed_key": (_TEXT,),
    "route": (),
    "version_of": (_TEXT,),
    "touch": (_TEXT,),
    "write": (_TEXT, "jsonb", "bigint"),
}
"""What those call with the caller's own rights, so that it needs the right to execute these too. None of them tells or
does more than the functions above."""
OWN: dict[str, tuple[str, ...]] = {"sees_all": (_TEXT,)}
"""Called by functions that run with their owner's rights, and by nobody else."""


def statements(conn: Connection, table: Table) -> list[sql.Composed]:
    """The statements that make or replace the functions and grant them to `app_roles`, and to no other role; in order,
    to be run in one transaction. Needs no control schema to be there yet.

    Raises ConfigError for a role that does not exist.
    """
    settings = table.settings
    with source_errors():
        roles = list(settings.app_roles)
        missing = conn.execute(queries.text("service", "missing_roles"), {"roles": roles}).fetchall()
        key = {"oid": table.oid, "key": settings.key_column}
        found = conn.execute(queries.text("service", "key_type"), key).fetchone()
        names = [*FUNCTIONS, *HELPERS, *OWN]
        granted = [str(row[0]) for row in conn.execute(queries.text("service", "granted_roles"), {"names": names})]
    if missing:
        raise ConfigError(
            f"app_roles: there is no role {', '.join(repr(row[0]) for row in missing)} in this Postgres",
            hint="create it, or correct app_roles; cachemig doctor --show-config tells where a value comes from",
        )
    assert found is not None  # inspect() saw the column
    key_schema, key_type, equals_schema, is_another = found
    parts = _parts(table, sql.Identifier(key_schema, key_type), equals_schema or "pg_catalog")
    made = [
        *([queries.query("service", "drop_typed_key")] if is_another else []),
        queries.query("service", "typed_key", **parts),
        queries.query("service", "route", **parts),
        queries.query("service", "sees_all", **parts),
        queries.query("service", "version_of", **parts),
        queries.query("service", "touch", **parts),
        queries.query("service", "read_from", **parts),
        queries.query("service", "get_many", **parts),
        queries.query("service", "get", **parts),
        queries.query(
            "service",
            "write",
            **{**parts, "n_mine": _mine(parts, "n", "write.of_key"), "t_mine": _mine(parts, "t", "write.of_key")},
        ),
        queries.query("service", "put", **parts),
        queries.query("service", "invalidate", **parts),
        queries.query("service", "heartbeat", **parts),
        queries.query("service", "leave", **parts),
    ]
    former = [sql.Identifier(role) for role in granted if role not in roles]
    made.append(_rights("revoke_functions", {**FUNCTIONS, **HELPERS, **OWN}, [sql.SQL("PUBLIC"), *former]))
    if roles:
        made.append(_rights("grant_functions", {**FUNCTIONS, **HELPERS}, [sql.Identifier(role) for role in roles]))
    return made


def _rights(name: str, functions: dict[str, tuple[str, ...]], roles: list[sql.Composable]) -> sql.Composed:
    signatures = [
        sql.SQL("{}({})").format(sql.Identifier("cachemig", function), sql.SQL(", ".join(types)))
        for function, types in functions.items()
    ]
    return queries.query("service", name, functions=sql.SQL(", ").join(signatures), roles=sql.SQL(", ").join(roles))


def _parts(table: Table, key_type: sql.Identifier, equals_schema: str) -> dict[str, sql.Composable]:
    settings = table.settings
    column = sql.Identifier(settings.column)
    reads = [settings.column, *([settings.ttl_from] if settings.ttl and settings.ttl_from != "now" else [])]
    parts: dict[str, sql.Composable] = {
        **table.parts,
        "key_type": key_type,
        "equals": sql.SQL("OPERATOR({}.=)").format(sql.Identifier(equals_schema)),
        "table_text": sql.Literal(table.identifier.as_string(None)),
        "schema_text": sql.Literal(table.schema),
        "name_text": sql.Literal(table.name),
        "key_text": sql.Literal(settings.key_column),
        "column_text": sql.Literal(settings.column),
        # Columns by name, so that the caller needs the right to read these alone.
        "columns": sql.SQL(", ").join(sql.SQL("n.{}").format(sql.Identifier(c)) for c in dict.fromkeys(reads)),
        "value": sql.SQL("t.{}::pg_catalog.text").format(column),
        "lock_order": sql.SQL(", ").join(
            sql.SQL("n.{}").format(sql.Identifier(c)) for c in table.row_key or ("tableoid", "ctid")
        ),
    }
    return {**parts, "n_mine": _mine(parts, "n", "k.key")}


def _mine(parts: dict[str, sql.Composable], row: str, of: str) -> sql.Composed:
    return queries.fragment(
        "service", "mine", row=sql.SQL(row), of=sql.SQL(of), key=parts["key"], equals=parts["equals"]
    )

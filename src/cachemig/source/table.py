"""The table that is migrated: what the catalog says about it, and the SQL fragments that follow from that."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from psycopg import sql
from psycopg.rows import dict_row

from cachemig.config import Settings
from cachemig.errors import Refused, SourceError, TableUnfit
from cachemig.ladder import Phase
from cachemig.source import control, queries
from cachemig.source.connect import Connection, source_errors

CHECK = "correct it in cachemig.toml or by flag; cachemig doctor --show-config tells where a value comes from"
HIDDEN = "__cachemig_brownout"
"""What the column's name ends in during a brownout (steps/drop_column/brownout.py)."""


@dataclass(frozen=True)
class Index:
    name: str
    is_primary: bool
    is_unique: bool
    is_partial: bool
    columns: tuple[str | None, ...]


@dataclass(frozen=True)
class Table:
    """Facts of the catalog, read once a run."""

    oid: int
    schema: str
    name: str
    kind: str
    owner: str
    is_owner: bool
    tuples: float
    """Rows as of the last ANALYZE; negative where never analysed."""
    filenode: int | None
    rls: bool
    force_rls: bool
    columns: dict[str, str]
    """Name and type."""
    not_null: frozenset[str]
    indexes: tuple[Index, ...]
    settings: Settings

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def qualified(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def row_key(self) -> tuple[str, ...]:
        """Columns of the primary key, or of another unique index over columns that are not null; () for none."""
        for index in self.indexes:
            if index.is_unique and not index.is_partial and all(c in self.not_null for c in index.columns):
                return tuple(c for c in index.columns if c)
        return ()

    @property
    def key_unique(self) -> bool:
        """A unique constraint covers the key, so that no two rows can share one."""
        return any(i.is_unique and not i.is_partial and i.columns == (self.settings.key_column,) for i in self.indexes)

    @property
    def key_indexed(self) -> bool:
        return any(not i.is_partial and i.columns[:1] == (self.settings.key_column,) for i in self.indexes)

    @property
    def state_columns(self) -> tuple[str, ...]:
        """Columns whose change may change what a key is to hold."""
        order = () if self.key_unique or not self.settings.order_by else (self.settings.order_by,)
        return tuple(dict.fromkeys((self.settings.column, self.settings.key_column, *order)))

    @property
    def key_type(self) -> sql.SQL:
        """The key column's type without its length: a cast to varchar(64) would cut a longer key short, and take it for
        another one."""
        name = self.columns[self.settings.key_column]
        bare = re.sub(r"^character\(\d+\)$", "bpchar", name)
        return sql.SQL(re.sub(r"^character varying\(\d+\)$", "character varying", bare))

    # Fragments -----------------------------------------------------------------------------------------------------

    def nonempty(self, row: str) -> sql.Composed:
        name = "nonempty_json" if self.columns[self.settings.column] == "json" else "nonempty_jsonb"
        return queries.fragment("scan", name, row=sql.SQL(row), column=sql.Identifier(self.settings.column))

    @property
    def parts(self) -> dict[str, sql.Composable]:
        """The fragments that statements of scan.sql are made of."""
        s = self.settings
        descending = [sql.SQL("n.{} DESC NULLS LAST").format(sql.Identifier(c)) for c in self._order()]
        parts: dict[str, sql.Composable] = {
            "table": self.identifier,
            "key": sql.Identifier(s.key_column),
            "column": sql.Identifier(s.column),
            "k_key": self._typed("k.key"),
            "t_nonempty": self.nonempty("t"),
            "n_nonempty": self.nonempty("n"),
            "n_order": sql.SQL(", ").join(descending),
            "lifetime_from": sql.SQL("NULL::bigint")
            if s.ttl_from == "now" or not s.ttl
            else sql.SQL("(extract(epoch FROM t.{}) * 1000)::bigint").format(sql.Identifier(s.ttl_from)),
        }
        parts["winner"] = self._winner("winner", parts)
        return parts

    def parts_where_shared(self, shared: Sequence[str] | None) -> dict[str, sql.Composable]:
        """As `parts`, for a table of which only these keys, and keys that were changed since, may be those of several
        rows; None: any key may be."""
        parts = self.parts
        if shared is not None:
            parts["winner"] = self._winner("winner_where_shared", {**parts, "shared": sql.Literal(list(shared))})
        return parts

    def _winner(self, name: str, parts: dict[str, sql.Composable]) -> sql.Composable:
        if self.key_unique:
            return sql.SQL("")
        winner = queries.fragment("scan", "winner", **{n: parts[n] for n in ("table", "key", "n_nonempty", "n_order")})
        if name == "winner":
            return sql.SQL("AND {}").format(winner)
        return queries.fragment("scan", name, key=parts["key"], shared=parts["shared"], winner=winner)

    def _typed(self, key: str) -> sql.Composable:
        """A text as the key column's type; null where it is none of that type, as a foreign key in Redis may be."""
        if self.columns[self.settings.key_column].startswith(("text", "character")):
            return sql.SQL("{}::{}").format(sql.SQL(key), self.key_type)
        return sql.SQL("cachemig.typed_key({})").format(sql.SQL(key))

    def _order(self) -> Sequence[str]:
        order = [self.settings.order_by] if self.settings.order_by else []
        return [*order, *(c for c in self.row_key if c not in order)] or ["ctid"]

    def range(self, lower: Sequence[str] | None, upper: Sequence[str] | None) -> sql.Composable:
        """The condition for rows of a chunk; bounds are text, compared as the columns' own types.

        Without a row key a bound is a row's place, or (oid of a partition, place in it).
        """
        columns = self.row_key or ("ctid",)
        types = [self.columns.get(c, "tid") for c in columns]
        conditions = []
        if not self.row_key and lower is not None and len(lower) > 1:
            conditions.append(sql.SQL("t.tableoid = {}::oid").format(sql.Literal(lower[0])))
            lower, upper = lower[1:], upper and upper[1:]
        left = sql.SQL("({})").format(sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(c)) for c in columns))

        def bound(values: Sequence[str]) -> sql.Composed:
            return sql.SQL("({})").format(
                sql.SQL(", ").join(
                    sql.SQL("{}::{}").format(sql.Literal(v), sql.SQL(t)) for v, t in zip(values, types, strict=True)
                )
            )

        if lower is not None:
            conditions.append(sql.SQL("{} >= {}").format(left, bound(lower)))
        if upper is not None:
            conditions.append(sql.SQL("{} < {}").format(left, bound(upper)))
        return sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("true")


def inspect(conn: Connection, settings: Settings, *, column_may_be_gone: bool = False) -> Table:
    """The table of the settings. Raises TableUnfit where table, column, key or another named column is not there or
    not of a type that can be migrated; Refused where the column was dropped by this migration, or is hidden for a
    while.

    `column_may_be_gone`: no column is looked at; the table is then good for its facts alone, not for its fragments.
    """
    with source_errors(), conn.cursor(row_factory=dict_row) as cur:
        oid = conn.execute(queries.text("catalog", "table_oid"), {"table": _quoted(settings.table)}).fetchone()
        if oid is None or oid[0] is None:
            raise TableUnfit(f"table {settings.table!r} does not exist, or is not on the search_path", hint=CHECK)
        parameters = {"oid": oid[0]}
        facts = cur.execute(queries.text("catalog", "table_facts"), parameters).fetchone()
        columns = conn.execute(queries.text("catalog", "table_columns"), parameters).fetchall()
        indexes = cur.execute(queries.text("catalog", "table_indexes"), parameters).fetchall()
    assert facts is not None
    if facts["kind"] not in ("r", "p"):
        raise TableUnfit(f"{settings.table!r} is not a table but a view or another relation", hint=CHECK)
    types = {str(name): str(type_) for name, type_, _ in columns}
    if not column_may_be_gone:
        if settings.column not in types:
            _refuse_gone(conn, settings, types)
        _check_columns(settings, types)
    return Table(
        oid=int(oid[0]),
        columns=types,
        not_null=frozenset(str(name) for name, _, not_null in columns if not_null),
        indexes=tuple(Index(**{**i, "columns": tuple(i["columns"])}) for i in indexes),
        settings=settings,
        **facts,
    )


def size(conn: Connection, table: Table) -> int:
    """Bytes on disk, with indexes and TOAST."""
    with source_errors():
        row = conn.execute(queries.text("catalog", "table_size"), {"oid": table.oid}).fetchone()
    return int(row[0]) if row else 0


def _refuse_gone(conn: Connection, settings: Settings, columns: dict[str, str]) -> None:
    """Raises Refused where it is known why the column is not there."""
    if any(name.endswith(HIDDEN) and settings.column.startswith(name.removesuffix(HIDDEN)) for name in columns):
        raise Refused(
            f"{settings.column} of {settings.table} is hidden by a brownout", hint="cachemig drop-column --end-brownout"
        )
    migration = None
    with suppress(SourceError):  # this role may not see the control schema
        migration = control.find(conn)
    if (
        migration is not None
        and migration.phase is Phase.DROPPED
        and all(migration.settings.get(name) == getattr(settings, name) for name in ("table", "column"))
    ):
        raise Refused(
            f"{settings.column} of {settings.table} was dropped by this migration: Redis alone has its values",
            hint="cachemig status says what is left to do; cachemig restore brings the column back from its archive",
        )


def _check_columns(settings: Settings, types: dict[str, str]) -> None:
    named = {"column": settings.column, "key_column": settings.key_column}
    if settings.order_by:
        named["order_by"] = settings.order_by
    if settings.ttl and settings.ttl_from != "now":
        named["ttl_from"] = settings.ttl_from
    for name, column in named.items():
        if column not in types:
            hint = {"order_by": "--order-by '' where no two rows share a key", "ttl_from": "--ttl-from now"}.get(name)
            raise TableUnfit(
                f"{name}: {settings.table} has no column {column!r}; it has {', '.join(sorted(types))}",
                hint=f"{hint}; or {CHECK}" if hint else CHECK,
            )
    if types[settings.column] not in ("json", "jsonb"):
        raise TableUnfit(
            f"column: {settings.column!r} is of type {types[settings.column]}, not json or jsonb", hint=CHECK
        )
    if settings.ttl and settings.ttl_from != "now" and not types[settings.ttl_from].startswith(("timestamp", "date")):
        raise TableUnfit(
            f"ttl_from: {settings.ttl_from!r} is of type {types[settings.ttl_from]}, not a timestamp", hint=CHECK
        )


def _quoted(name: str) -> str:
    # to_regclass folds case and wants quotes as SQL does; a name given as it stands in the catalog is meant literally.
    return name if '"' in name else ".".join(f'"{part}"' for part in name.split("."))

"""What PostgREST documents of functions called as RPC, on a real Postgres: a stand-in, for it is no package of Debian,
PyPI or npm.

As PostgREST: logs in as `authenticator`; each request is one transaction, READ ONLY for GET and for functions that are
not VOLATILE, READ WRITE otherwise; `role`, `search_path` and `request.*` are set for this transaction alone; a function
is found by the names of its arguments; its errors are answered with the statuses of PostgREST's documentation.
Not as PostgREST: tokens are not checked (a token is the name of a role), nothing but /rpc is there, the catalog is read
anew for each request, and filters are not known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import psycopg
from psycopg import sql

SINGULAR = "application/vnd.pgrst.object+json"
_FUNCTION = """
SELECT p.provolatile::text, p.proretset OR t.typtype = 'c' OR p.proallargtypes IS NOT NULL AS tabular, (
    SELECT json_agg(json_build_array(a.name, pg_catalog.format_type(a.type, NULL), a.n > p.pronargs - p.pronargdefaults)
                    ORDER BY a.n)
    FROM unnest(p.proargnames[1:p.pronargs], p.proargtypes::oid[]) WITH ORDINALITY AS a (name, type, n))
FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_type AS t ON t.oid = p.prorettype
WHERE p.pronamespace = %s::regnamespace AND p.proname = %s
"""
# By SQLSTATE, then by its class: "Errors" in PostgREST's documentation.
_STATUS: Mapping[str, int] = {
    "25006": 405, "42883": 404, "42P01": 404, "23503": 409, "23505": 409, "P0001": 400, "08": 503, "25": 500,
    "28": 403, "40": 500, "53": 503, "54": 500, "55": 500, "57": 500, "58": 500, "XX": 500,
}  # fmt: skip


@dataclass(frozen=True)
class Failure(Exception):
    status: int
    code: str
    message: str


@dataclass(frozen=True)
class Request:
    method: str
    function: str
    schema: str
    role: str
    arguments: dict[str, Any]
    singular: bool
    headers: dict[str, str]


def answer(dsn: str, schemas: tuple[str, ...], request: Request) -> Any:
    """The JSON document of one request. Raises Failure."""
    if request.schema not in schemas:
        raise Failure(406, "PGRST106", f"The schema must be one of the following: {', '.join(schemas)}")
    try:
        with psycopg.connect(dsn, autocommit=True) as conn:
            volatility, tabular, arguments = _found(conn, request)
            read_only = request.method == "GET" or volatility != "v"
            conn.execute(f"START TRANSACTION {'READ ONLY' if read_only else 'READ WRITE'}")
            _impersonate(conn, request)
            rows = _call(conn, request, arguments, tabular=tabular)
            conn.execute("COMMIT")
    except psycopg.Error as exc:
        state = exc.sqlstate or "08000"
        status = 401 if request.role == "anon" else 403
        if state != "42501":
            status = _STATUS.get(state, _STATUS.get(state[:2], 400))
        raise Failure(status, state, exc.diag.message_primary or str(exc)) from exc
    if not tabular:
        return rows[0]
    if not request.singular:
        return rows
    if len(rows) != 1:
        raise Failure(406, "PGRST116", "JSON object requested, multiple (or no) rows returned")
    return rows[0]


def _found(conn: psycopg.Connection[Any], request: Request) -> tuple[str, bool, dict[str, str]]:
    """The function that takes these arguments: all that have no default, and no others."""
    given = set(request.arguments)
    for volatility, tabular, listed in conn.execute(_FUNCTION, (request.schema, request.function)):
        types = {name: kind for name, kind, _ in listed}
        needed = {name for name, _, has_default in listed if not has_default}
        if needed <= given <= set(types):
            return volatility, tabular, types
    raise Failure(
        404, "PGRST202", f"Could not find the function {request.schema}.{request.function} in the schema cache"
    )


def _impersonate(conn: psycopg.Connection[Any], request: Request) -> None:
    settings = {
        "search_path": f'"{request.schema}", "public"',
        "role": request.role,
        "request.jwt.claims": json.dumps({"role": request.role}),
        "request.method": request.method,
        "request.path": f"/rpc/{request.function}",
        "request.headers": json.dumps(request.headers),
    }
    for name, value in settings.items():
        conn.execute("SELECT set_config(%s, %s, true)", (name, value))


def _call(conn: psycopg.Connection[Any], request: Request, types: dict[str, str], *, tabular: bool) -> list[Any]:
    """One statement: the arguments are taken from a JSON object, by name and type."""
    names = list(request.arguments)
    call = sql.SQL("{}({})").format(
        sql.Identifier(request.schema, request.function),
        sql.SQL(", ").join(sql.SQL("{0} := a.{0}").format(sql.Identifier(name)) for name in names),
    )
    record = sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(types[name])) for name in names)
    what = sql.SQL("to_json(c)") if tabular else sql.SQL("to_json(c.c)")
    statement = sql.SQL("SELECT {} FROM json_to_record({}) AS a ({}), LATERAL {} AS c").format(
        what, sql.Literal(json.dumps(request.arguments)), record, call
    )
    return [row[0] for row in conn.execute(statement)]


@contextmanager
def serving(dsn: str, *schemas: str) -> Iterator[str]:
    """The URL of the API, as `authenticator` with these schemas exposed."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
            self._answer("Accept-Profile", query)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer("Content-Profile", json.loads(body or b"{}"))

        def _answer(self, profile: str, arguments: dict[str, Any]) -> None:
            request = Request(
                method=self.command,
                function=urlsplit(self.path).path.removeprefix("/rpc/"),
                schema=self.headers.get(profile, schemas[0]),
                role=self.headers.get("Authorization", "Bearer anon").removeprefix("Bearer "),
                arguments=arguments,
                singular=self.headers.get("Accept", "") == SINGULAR,
                headers={name.lower(): value for name, value in self.headers.items()},
            )
            try:
                status, document = 200, answer(dsn, schemas, request)
            except Failure as exc:
                status = exc.status
                document = {"code": exc.code, "message": exc.message, "details": None, "hint": None}
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

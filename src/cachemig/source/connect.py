"""Connecting to Postgres, transactions, and the mapping of its errors.

Works through a transaction pooler: no session state is relied on, nothing is prepared on the server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql

from cachemig import errors
from cachemig.config import Settings

Connection = psycopg.Connection[tuple[Any, ...]]

# What servers and poolers say of a login, which libpq passes on as text only.
_NO_LOGIN = ("password", "no pg_hba.conf entry", "is not permitted to log in", "Tenant or user not found")
_UNAVAILABLE = (pg.AdminShutdown, pg.CrashShutdown, pg.CannotConnectNow, pg.IdleInTransactionSessionTimeout)


@contextmanager
def source_errors() -> Iterator[None]:
    """Every psycopg error leaves this block as a SourceError, with the cause attached."""
    try:
        yield
    except psycopg.Error as exc:
        raise mapped(exc) from exc


def mapped(exc: psycopg.Error) -> errors.CachemigError:
    """The error to show for one of psycopg's."""
    message = (exc.diag.message_primary or str(exc).strip()).strip()
    first_line = message.splitlines()[0] if message else type(exc).__name__
    match exc:
        case pg.ReadOnlySqlTransaction():
            return errors.SourceReadOnly(f"Postgres is a read-only standby: {first_line}")
        case pg.InsufficientPrivilege() if "row-level security" in message:
            return errors.RowsHidden(f"{first_line}: a copy would silently be incomplete")
        case pg.InsufficientPrivilege():
            return errors.PrivilegeMissing(f"{first_line}")
        case pg.LockNotAvailable():
            return errors.LockNotGranted(f"the table is in use: {first_line}")
        case pg.InvalidPassword() | pg.InvalidAuthorizationSpecification():
            return errors.SourceAuthFailed(f"Postgres refused the login: {first_line}")
        case pg.UndefinedTable() if "cachemig" in first_line:
            return errors.SourceError(
                f"the control schema is not whole: {first_line}",
                hint="put back what was removed from schema cachemig, or drop it and begin anew: cachemig init",
            )
        case pg.UndefinedColumn() | pg.UndefinedTable():
            return errors.TableUnfit(
                first_line, hint="check table, column and key_column: cachemig doctor --show-config"
            )
        case pg.ProgrammingError() if exc.sqlstate is None:
            # libpq quotes the part that it does not understand, which may be a piece of a password.
            return errors.ConfigError(
                "dsn: not a valid libpq connection string or URI",
                hint="host=HOST user=USER dbname=NAME, or postgresql://USER@HOST/NAME",
            )
        case psycopg.OperationalError() if exc.sqlstate is None:
            return _not_connected(str(exc).strip())
        case _ if isinstance(exc, _UNAVAILABLE) or (exc.sqlstate or "").startswith("08"):
            return errors.SourceUnavailable(f"Postgres closed the connection: {first_line}")
        case pg.DeadlockDetected() | pg.SerializationFailure():
            return errors.SourceUnavailable(f"Postgres rolled back: {first_line}")
    return errors.SourceError(
        f"Postgres: {first_line}" + (f" (SQLSTATE {exc.sqlstate})" if exc.sqlstate else ""), hint="cachemig doctor"
    )


def _not_connected(text: str) -> errors.CachemigError:
    # libpq gives no SQLSTATE for a failed connection. The last line that is not indented names the cause of the last
    # try; indented ones are advice.
    line = next((line for line in reversed(text.splitlines()) if not line.startswith(("\t", " "))), "no answer")
    line = line.removeprefix("connection is bad: ").removeprefix("connection failed: ")
    if any(sign in text for sign in _NO_LOGIN) or ("role " in text and "does not exist" in text):
        return errors.SourceAuthFailed(f"Postgres refused the login: {line}")
    if "certificate" in text or "SSL" in text:
        return errors.SourceUnavailable(
            f"TLS to Postgres failed: {line}", hint="check sslmode and sslrootcert in the DSN, or PGSSLROOTCERT"
        )
    if 'database "' in text and "does not exist" in text:
        return errors.ConfigError(f"{line}", hint="check dbname in the DSN, or PGDATABASE")
    return errors.SourceUnavailable(f"Postgres cannot be reached: {line}")


@contextmanager
def connect(settings: Settings) -> Iterator[Connection]:
    """A connection in autocommit mode, closed at the end. Raises SourceError."""
    with source_errors():
        conn = psycopg.connect(
            settings.dsn,
            autocommit=True,
            prepare_threshold=None,  # a transaction pooler hands the next transaction to another session
            application_name="cachemig",
            connect_timeout=10,
            client_encoding="UTF8",
        )
    try:
        yield conn
    finally:
        conn.close()


def run(conn: Connection, statements: Iterable[sql.Composable]) -> list[str]:
    """Runs statements in order. Returns their texts as they ran: what a command keeps in the journal under `sql`, so
    none that holds a row's value or key is run by this."""
    texts = []
    for statement in statements:
        texts.append(statement.as_string(conn))
        conn.execute(statement)  # type: ignore[call-overload]  # any Composable
    return texts


@contextmanager
def transaction(conn: Connection, *, lock_timeout_s: float = 30.0, read_only: bool = False) -> Iterator[None]:
    """A READ COMMITTED transaction in which an incomplete answer is an error.

    Row-level security raises instead of hiding rows; the role's own statement timeout does not cut a long COPY; a
    worker that freezes does not hold a snapshot for ever.
    """
    with source_errors(), conn.transaction():
        conn.execute(
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"
            + (", READ ONLY" if read_only else "")
            + "; SET LOCAL row_security = off; SET LOCAL statement_timeout = 0; SET LOCAL datestyle = 'ISO'"
            "; SET LOCAL idle_in_transaction_session_timeout = '300s'"
            f"; SET LOCAL lock_timeout = '{lock_timeout_s * 1000:.0f}ms'"
        )
        yield

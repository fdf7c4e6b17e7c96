"""Every error of psycopg becomes one of ours that says what to do; none carries a password."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import conninfo
from psycopg import errors as pg

from cachemig import errors
from cachemig.source.connect import mapped, source_errors

BY_SQLSTATE: dict[str, tuple[type[errors.CachemigError], int]] = {
    "25006": (errors.SourceReadOnly, 1),
    "42501": (errors.PrivilegeMissing, 1),
    "55P03": (errors.LockNotGranted, 1),
    "28P01": (errors.SourceAuthFailed, 2),
    "28000": (errors.SourceAuthFailed, 2),
    "42703": (errors.TableUnfit, 2),
    "42P01": (errors.TableUnfit, 2),
    "57P01": (errors.SourceUnavailable, 1),
    "57P02": (errors.SourceUnavailable, 1),
    "57P03": (errors.SourceUnavailable, 1),
    "25P03": (errors.SourceUnavailable, 1),
    "40P01": (errors.SourceUnavailable, 1),
    "40001": (errors.SourceUnavailable, 1),
}
EVERY_SQLSTATE = sorted(
    value.sqlstate
    for value in vars(pg).values()
    if isinstance(value, type) and issubclass(value, psycopg.Error) and value.sqlstate
)


@pytest.mark.parametrize("sqlstate", BY_SQLSTATE)
def test_by_sqlstate(sqlstate: str) -> None:
    expected, exit_code = BY_SQLSTATE[sqlstate]
    error = mapped(pg.lookup(sqlstate)("what the server said\nDETAIL:  more"))
    assert type(error) is expected
    assert error.exit_code == exit_code
    assert error.hint or expected is errors.SourceError
    assert "what the server said" in str(error)
    assert "DETAIL" not in str(error), "details quote values"


def test_every_other_sqlstate_is_a_plain_error_that_names_it() -> None:
    assert len(EVERY_SQLSTATE) > 200
    for sqlstate in EVERY_SQLSTATE:
        if sqlstate not in BY_SQLSTATE:
            error = mapped(pg.lookup(sqlstate)("what the server said"))
            if sqlstate.startswith("08"):  # connection exceptions, as poolers report them
                assert type(error) is errors.SourceUnavailable, sqlstate
                continue
            assert type(error) is errors.SourceError, sqlstate
            assert str(error) == f"Postgres: what the server said (SQLSTATE {sqlstate})"
            assert error.exit_code == 1


def test_hidden_rows_are_no_mere_lack_of_a_privilege() -> None:
    said = 'query would be affected by row-level security policy for table "therapy_sessions"'
    error = mapped(pg.InsufficientPrivilege(said))
    assert type(error) is errors.RowsHidden
    assert said in str(error)


@pytest.mark.parametrize(
    "error", [psycopg.Error, psycopg.InterfaceError, psycopg.DatabaseError, psycopg.DataError, psycopg.InternalError]
)
def test_the_drivers_own_errors(error: type[psycopg.Error]) -> None:
    assert type(mapped(error("something"))) is errors.SourceError
    assert str(mapped(error("something"))) == "Postgres: something"
    assert error.__name__ in str(mapped(error())), "an error without words still says what it is"


AT = 'connection to server at "db.example" (192.0.2.1), port 5432 failed: '
NOT_CONNECTED: list[tuple[str, type[errors.CachemigError], int, str]] = [
    (AT + 'FATAL:  password authentication failed for user "app"', errors.SourceAuthFailed, 2, "PGPASSWORD"),
    (AT + "fe_sendauth: no password supplied", errors.SourceAuthFailed, 2, "PGPASSWORD"),
    (
        AT + 'FATAL:  no pg_hba.conf entry for host "192.0.2.9", user "app", database "d", no encryption',
        errors.SourceAuthFailed,
        2,
        "PGPASSWORD",
    ),
    (AT + 'FATAL:  role "app" does not exist', errors.SourceAuthFailed, 2, "PGPASSWORD"),
    (AT + "SSL error: certificate verify failed", errors.SourceUnavailable, 1, "sslrootcert"),
    (
        AT + 'server certificate for "other" does not match host name "db.example"',
        errors.SourceUnavailable,
        1,
        "sslrootcert",
    ),
    (AT + "server does not support SSL, but SSL was required", errors.SourceUnavailable, 1, "sslmode"),
    (AT + 'FATAL:  database "nope" does not exist', errors.ConfigError, 2, "dbname"),
    (
        AT + "Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?",
        errors.SourceUnavailable,
        1,
        "doctor",
    ),
    (
        'connection to server on socket "/run/.s.PGSQL.5432" failed: No such file or directory\n'
        "\tIs the server running locally and accepting connections on that socket?",
        errors.SourceUnavailable,
        1,
        "doctor",
    ),
    ("failed to resolve host 'nope': [Errno -2] Name or service not known", errors.SourceUnavailable, 1, "doctor"),
    ("connection timeout expired", errors.SourceUnavailable, 1, "doctor"),
    (AT + "FATAL:  the database system is starting up", errors.SourceUnavailable, 1, "doctor"),
    (AT + "FATAL:  sorry, too many clients already", errors.SourceUnavailable, 1, "doctor"),
    ("the connection is closed", errors.SourceUnavailable, 1, "doctor"),
    ("", errors.SourceUnavailable, 1, "doctor"),
]


@pytest.mark.parametrize(("text", "expected", "exit_code", "hint"), NOT_CONNECTED, ids=lambda v: str(v)[-40:])
def test_libpq_says_it_in_words_alone(
    text: str, expected: type[errors.CachemigError], exit_code: int, hint: str
) -> None:
    error = mapped(psycopg.OperationalError(text))
    assert type(error) is expected
    assert error.exit_code == exit_code
    assert hint in (error.hint or "")
    assert "\n" not in str(error)
    assert len(str(error)) > 30


def test_of_many_hosts_the_last_counts() -> None:
    text = AT + "Connection refused\n" + AT.replace("db.example", "db2.example") + "Connection timed out"
    assert "db2.example" in str(mapped(psycopg.OperationalError(text)))


CAUSE_FIRST = [
    (
        AT + "Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?",
        "Connection refused",
    ),
    (
        "server closed the connection unexpectedly\n\tThis probably means the server terminated abnormally\n"
        "\tbefore or while processing the request.",
        "server closed the connection",
    ),
    (
        "consuming input failed: server closed the connection unexpectedly\n"
        "\tThis probably means the server terminated abnormally\n\tbefore or while processing the request.",
        "server closed the connection",
    ),
]


@pytest.mark.parametrize(("text", "cause"), CAUSE_FIRST, ids=["refused", "closed", "consuming"])
def test_the_cause_is_shown_and_not_the_advice_below_it(text: str, cause: str) -> None:
    assert cause in str(mapped(psycopg.OperationalError(text)))


def test_a_dsn_that_does_not_parse_is_a_wrong_setting() -> None:
    with pytest.raises(psycopg.ProgrammingError) as caught:
        conninfo.conninfo_to_dict("host=h nonsense")
    error = mapped(caught.value)
    assert type(error) is errors.ConfigError
    assert str(error).startswith("dsn: ")


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "dsn",
    [
        f"host=h password=my {SECRET}",
        f"host=h password='{SECRET}",
        f"postgresql://app:{SECRET}%zz@h/db",
        f"postgresql://app:{SECRET} more@h/db",
        f"postgresql://app:{SECRET}@[::1/db",
    ],
)
def test_a_dsn_that_does_not_parse_is_not_quoted(dsn: str) -> None:
    with pytest.raises(psycopg.ProgrammingError) as caught:
        conninfo.conninfo_to_dict(dsn)
    assert SECRET not in str(mapped(caught.value))


def test_errors_leave_the_block_mapped_with_their_cause() -> None:
    cause = pg.LockNotAvailable("canceling statement due to lock timeout")
    with pytest.raises(errors.LockNotGranted) as caught, source_errors():
        raise cause
    assert caught.value.__cause__ is cause
    with pytest.raises(ZeroDivisionError), source_errors():
        raise ZeroDivisionError
    with pytest.raises(errors.Refused), source_errors():
        raise errors.Refused

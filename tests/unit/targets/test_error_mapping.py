"""Every error of redis-py becomes one of ours that says what to do, however the server words it."""

from __future__ import annotations

import inspect

import pytest
from redis import exceptions as rx
from redis._parsers.base import BaseParser  # what makes exceptions of replies; the public name of it is none

from cachemig import errors
from cachemig.config import Settings
from cachemig.targets.faults import mapped, target_errors
from cachemig.targets.redis import Found, RedisTarget, _found

# What servers say, as it stands on the wire.
REPLIES: list[tuple[str, type[errors.TargetError]]] = [
    ("OOM command not allowed when used memory > 'maxmemory'.", errors.TargetFull),
    (
        "ERR Error running script (call to f_1): @user_script:17: @user_script: 17: "
        "-OOM command not allowed when used memory > 'maxmemory'.",
        errors.TargetFull,
    ),
    ("READONLY You can't write against a read only replica.", errors.TargetReadOnly),
    (
        "ERR Error running script (call to f_1): @user_script:17: @user_script: 17: "
        "-READONLY You can't write against a read only replica.",
        errors.TargetReadOnly,
    ),
    ("NOAUTH Authentication required.", errors.TargetAuthFailed),
    ("WRONGPASS invalid username-password pair or user is disabled.", errors.TargetAuthFailed),
    ("ERR invalid password", errors.TargetAuthFailed),
    ("ERR AUTH <password> called without any password configured for the default user. "
     "Are you sure your configuration is correct?", errors.TargetAuthFailed),
    ("NOPERM this user has no permissions to run the 'evalsha' command", errors.TargetForbidden),
    ("LOADING Redis is loading the dataset in memory", errors.TargetUnavailable),
    ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", errors.TargetUnavailable),
    ("CLUSTERDOWN The cluster is down", errors.TargetUnavailable),
    ("TRYAGAIN Multiple keys request during rehashing of slot", errors.TargetUnavailable),
    ("MISCONF Redis is configured to save RDB snapshots", errors.TargetUnavailable),
    ("NOREPLICAS Not enough good replicas to write.", errors.TargetUnavailable),
    ("BUSY Redis is busy running a script.", errors.TargetUnavailable),
    ("UNBLOCKED force unblock from blocking operation", errors.TargetUnavailable),
    ("ERR max number of clients reached", errors.TargetUnavailable),
    ("WRONGTYPE Operation against a key holding the wrong kind of value", errors.TargetError),
    ("ERR invalid expire time in 'set' command", errors.TargetError),
    ("NOSCRIPT No matching script. Please use EVAL.", errors.TargetError),
    ("MOVED 3999 127.0.0.1:6381", errors.TargetError),
]  # fmt: skip

EXIT = {
    errors.TargetError: 1,
    errors.TargetUnavailable: 1,
    errors.TargetAuthFailed: 2,
    errors.TargetFull: 1,
    errors.TargetReadOnly: 1,
    errors.TargetForbidden: 1,
}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        pytest.param(
            reply,
            expected,
            id=reply[:40],
        )
        for reply, expected in REPLIES
        for code in [reply.split()[0]]
    ],
)
def test_by_the_servers_words(reply: str, expected: type[errors.TargetError]) -> None:
    error = mapped(BaseParser.parse_error(reply))  # type: ignore[no-untyped-call]  # theirs
    assert type(error) is expected
    assert error.exit_code == EXIT[expected]
    assert error.hint or expected is errors.TargetError
    assert str(error)


LIBRARY: list[tuple[Exception, type[errors.TargetError], str]] = [
    (rx.ConnectionError("Error 111 connecting to h:6379. Connection refused."), errors.TargetUnavailable, "doctor"),
    (rx.ConnectionError("Connection closed by server."), errors.TargetUnavailable, "doctor"),
    (rx.TimeoutError("Timeout reading from localhost:6379"), errors.TargetUnavailable, "doctor"),
    (rx.BusyLoadingError("Redis is loading"), errors.TargetUnavailable, "doctor"),
    (
        rx.ConnectionError("Error 1 connecting to h:6379. [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed."),
        errors.TargetUnavailable,
        "ssl_ca_certs",
    ),
    (rx.AuthenticationError("invalid username-password pair"), errors.TargetAuthFailed, "REDISCLI_AUTH"),
    (rx.AuthenticationWrongNumberOfArgsError("wrong number"), errors.TargetAuthFailed, "REDISCLI_AUTH"),
    (rx.AuthorizationError("no"), errors.TargetAuthFailed, "REDISCLI_AUTH"),
    (rx.OutOfMemoryError("OOM"), errors.TargetFull, "maxmemory"),
    (rx.ReadOnlyError("replica"), errors.TargetReadOnly, "primary"),
    (rx.NoPermissionError("no permissions"), errors.TargetForbidden, "ACL"),
    (rx.ClusterDownError("The cluster is down"), errors.TargetUnavailable, "doctor"),
    (rx.MasterDownError("Link with MASTER is down"), errors.TargetUnavailable, "doctor"),
    (rx.ClusterError("no"), errors.TargetUnavailable, "doctor"),
    (rx.ResponseError("unknown"), errors.TargetError, ""),
    (rx.DataError("Invalid input"), errors.TargetError, ""),
]  # fmt: skip


@pytest.mark.parametrize(("cause", "expected", "hint"), LIBRARY, ids=lambda v: type(v).__name__)
def test_by_the_librarys_class(cause: Exception, expected: type[errors.TargetError], hint: str) -> None:
    error = mapped(cause)
    assert type(error) is expected
    assert hint in (error.hint or "")


def test_every_error_of_redis_py_leaves_the_block_as_one_of_ours() -> None:
    seen = 0
    for _, value in inspect.getmembers(rx, inspect.isclass):
        if not issubclass(value, rx.RedisError) or issubclass(value, rx.AskError):  # AskError wants "slot host:port"
            continue
        cause = value("said by the server")
        with pytest.raises(errors.TargetError) as caught, target_errors():
            raise cause
        assert caught.value.__cause__ is cause
        assert caught.value.exit_code in (1, 2)
        seen += 1
    assert seen > 20


def test_a_redirection_of_a_cluster() -> None:
    for cause in (rx.MovedError("3999 127.0.0.1:6381"), rx.AskError("3999 127.0.0.1:6381")):
        assert isinstance(mapped(cause), errors.TargetError)


def test_a_host_may_be_called_ssl() -> None:
    error = mapped(rx.ConnectionError("Error 111 connecting to redis-ssl.example:6379. Connection refused."))
    assert "TLS" not in str(error)


def test_other_errors_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), target_errors():
        raise ZeroDivisionError


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://app:{SECRET}@h:port/0",
        f"redis://app:{SECRET}@h/0?socket_timeout=soon",
        f"redis://:{SECRET}/x@h:6379/0",
        f"redis://:{SECRET}#x@h:6379",
        f"redis://:{SECRET}?x@h",
    ],
)
def test_a_url_that_cannot_be_read_is_a_wrong_setting_and_not_quoted(url: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        RedisTarget(Settings(redis_url=url), {})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ((None, None, -2), Found("k", None, None, None)),
        ((b"v", None, -1), Found("k", b"v", None, None)),
        ((b"v", b"7", 1500), Found("k", b"v", 7, 1500)),
        ((b"", b"0", 0), Found("k", b"", 0, 0)),
        ((None, b"1099511627777", -2), Found("k", None, 2**40 + 1, None)),
        ((b"v", b"x", -1), Found("k", b"v", None, None, "the version key holds no number")),
        ((rx.ResponseError("WRONGTYPE list"), None, -1), Found("k", None, None, None, "WRONGTYPE list")),
        ((b"v", rx.ResponseError("WRONGTYPE list"), -1), Found("k", None, None, None, "WRONGTYPE list")),
    ],
    ids=str,
)
def test_what_a_reply_says_of_a_key(replies: tuple[object, object, object], expected: Found) -> None:
    assert _found("k", *replies) == expected


@pytest.mark.parametrize(
    "reply", [rx.ResponseError("MISCONF x"), rx.ClusterDownError("down"), rx.AuthenticationError("no")], ids=repr
)
def test_what_a_reply_says_of_the_server_is_not_taken_for_an_absent_key(reply: Exception) -> None:
    with pytest.raises((errors.TargetUnavailable, errors.TargetAuthFailed)):
        _found("k", reply, None, -2)

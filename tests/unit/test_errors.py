"""The error tree: every class speaks for itself, with an exit code and, where one answer fits all cases, a hint."""

from __future__ import annotations

import inspect
import re
import signal

import pytest

from cachemig import errors
from cachemig.errors import CachemigError, Exit

# Exit code, and whether the class has a hint of its own (False: each place that raises it knows better).
TREE: dict[type[CachemigError], tuple[int, bool]] = {
    errors.CachemigError: (1, False),
    errors.UsageError: (2, True),
    errors.ConfigError: (2, True),
    errors.NotInitialised: (2, True),
    errors.SettingsDiffer: (2, False),
    errors.Refused: (3, False),
    errors.LimitUnknown: (1, False),
    errors.LeaseHeld: (5, True),
    errors.Interrupted: (130, True),
    errors.SourceError: (1, False),
    errors.SourceUnavailable: (1, True),
    errors.SourceAuthFailed: (2, True),
    errors.SourceReadOnly: (1, True),
    errors.SourceBehind: (1, True),
    errors.PrivilegeMissing: (1, True),
    errors.RowsHidden: (1, True),
    errors.LockNotGranted: (1, True),
    errors.TableUnfit: (2, False),
    errors.TargetError: (1, False),
    errors.TargetUnavailable: (1, True),
    errors.TargetAuthFailed: (2, True),
    errors.TargetFull: (1, True),
    errors.TargetReadOnly: (1, True),
    errors.TargetForbidden: (1, True),
    errors.TargetEpochPassed: (1, True),
}

each = pytest.mark.parametrize("error", TREE, ids=lambda error: error.__name__)


def defined() -> set[type[CachemigError]]:
    return {
        value
        for _, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, CachemigError) and value.__module__ == errors.__name__
    }


def test_every_error_is_written_down_here() -> None:
    assert set(TREE) == defined()


def test_exit_codes_are_those_of_the_design() -> None:
    assert {code.name: code.value for code in Exit} == {
        "FINE": 0,
        "ERROR": 1,
        "USAGE": 2,
        "REFUSED": 3,
        "CHANGES_PENDING": 4,
        "LEASE_HELD": 5,
        "INTERRUPTED": 130,
        "TERMINATED": 143,
    }


@each
def test_the_docstring_is_the_default_message(error: type[CachemigError]) -> None:
    assert "__doc__" in vars(error), "an inherited docstring says too little"
    assert error.__doc__
    assert error.__doc__.endswith(".")
    assert "\n" not in error.__doc__
    assert str(error()) == error.__doc__
    assert str(error("what happened")) == "what happened"


@each
def test_exit_code_and_hint(error: type[CachemigError]) -> None:
    exit_code, has_hint = TREE[error]
    raised = error("x")
    assert raised.exit_code == exit_code
    assert raised.exit_code != Exit.FINE
    assert bool(raised.hint) is has_hint


@each
def test_a_hint_given_counts_for_that_error_alone(error: type[CachemigError]) -> None:
    of_the_class = error.hint
    assert error("x", hint="do this").hint == "do this"
    assert error.hint == of_the_class
    assert error("x").hint == of_the_class


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.TERMINATED)], ids=str
)
def test_a_signal_gives_the_shells_exit_code(number: signal.Signals, code: Exit) -> None:
    assert errors.Interrupted(signal_number=number).exit_code == code == 128 + number


@pytest.mark.parametrize(
    ("group", "members"),
    [
        (errors.SourceError, re.compile(r"Source|Privilege|Rows|Lock|Table")),
        (errors.TargetError, re.compile(r"Target")),
    ],
)
def test_each_servers_errors_are_caught_by_one_name(group: type[CachemigError], members: re.Pattern[str]) -> None:
    assert {e for e in TREE if issubclass(e, group)} == {e for e in TREE if members.match(e.__name__)}


def test_hints_name_commands_that_exist() -> None:
    from cachemig.cli.app import app

    commands = {command.name for command in app.registered_commands}
    named = {name for error in TREE if error.hint for name in re.findall(r"\bcachemig ([a-z][a-z-]+)", error.hint)}
    assert named <= commands | {"needs"}  # "the ACL that cachemig needs"

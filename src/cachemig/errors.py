"""The error tree. Each error says what is wrong, hints at the next command to run, and has an exit code.

An exception here means "could not be done" or "could not tell"; a mismatch found by verify is data, not an exception.
No message carries a password or a cached value.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command line."""

    FINE = 0
    ERROR = 1
    USAGE = 2
    REFUSED = 3
    """A gate or a verification failed."""
    CHANGES_PENDING = 4
    LEASE_HELD = 5
    INTERRUPTED = 130
    TERMINATED = 143


class CachemigError(Exception):
    """Something could not be done."""

    exit_code = Exit.ERROR
    hint: str | None = None

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)
        if hint is not None:
            self.hint = hint


def did_you_mean(given: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean 'backfill'?` where one of the known words is near, else nothing: the end of a message."""
    import difflib

    near = difflib.get_close_matches(given, sorted(known), 1, cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


class UsageError(CachemigError):
    """The command line is none that cachemig has."""

    exit_code = Exit.USAGE
    hint = "cachemig --help"


class ConfigError(CachemigError):
    """A setting is missing or wrong."""

    exit_code = Exit.USAGE
    hint = "see where each value comes from: cachemig doctor --show-config"


class NotInitialised(CachemigError):
    """There is no migration in this database yet."""

    exit_code = Exit.USAGE
    hint = "cachemig init begins one; was one begun, cachemig doctor --show-config tells which database this is"


class SettingsDiffer(CachemigError):
    """The settings are not the ones that this migration was begun with."""

    exit_code = Exit.USAGE


class Refused(CachemigError):
    """A gate of the ladder is not met."""

    exit_code = Exit.REFUSED


class LimitUnknown(CachemigError):
    """Whether a limit that was set is kept cannot be told."""


class LeaseHeld(CachemigError):
    """Another run holds the lease."""

    exit_code = Exit.LEASE_HELD
    hint = "wait for it, or see who it is: cachemig status"


class Interrupted(CachemigError):
    """Stopped on request; what was done is saved."""

    exit_code = Exit.INTERRUPTED
    hint = "the same command goes on where it was; cachemig status says where that is"

    def __init__(self, message: str | None = None, *, hint: str | None = None, signal_number: int = 2) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = Exit.TERMINATED if signal_number == 15 else Exit.INTERRUPTED


# Postgres ---------------------------------------------------------------------------------------------------------


class SourceError(CachemigError):
    """Postgres refused a statement."""


class SourceUnavailable(SourceError):
    """Postgres cannot be reached, or closed the connection."""

    hint = "check the DSN or PG* variables, then: cachemig doctor"


class SourceAuthFailed(SourceError):
    """Postgres refused the login."""

    exit_code = Exit.USAGE
    hint = "set PGPASSWORD or ~/.pgpass for this user; cachemig doctor --show-config names the user and host in use"


class SourceReadOnly(SourceError):
    """Postgres is a read-only standby."""

    hint = "point the DSN at the primary"


class SourceBehind(SourceError):
    """The standby has not replayed yet what was committed before this run began."""

    hint = "look why it lags, or leave --read-dsn out: values are then read from the primary"


class PrivilegeMissing(SourceError):
    """The database role lacks a privilege."""

    hint = "sql/roles.sql grants each command what it needs; cachemig doctor lists what is missing"


class RowsHidden(SourceError):
    """Row-level security would hide rows from this role, so that a copy would silently be incomplete."""

    hint = "use the table's owner or a role with BYPASSRLS (sql/roles.sql)"


class LockNotGranted(SourceError):
    """A lock was not granted in time; nothing was changed."""

    hint = "a long transaction holds the table; try again when it has ended"


class TableUnfit(SourceError):
    """The table, its column or its key column is not what the settings say."""

    exit_code = Exit.USAGE


# Redis ------------------------------------------------------------------------------------------------------------


class TargetError(CachemigError):
    """Redis refused a command."""


class TargetUnavailable(TargetError):
    """Redis cannot be reached, or closed the connection."""

    hint = "check redis_url, then: cachemig doctor"


class TargetAuthFailed(TargetError):
    """Redis refused the login."""

    exit_code = Exit.USAGE
    hint = "set REDISCLI_AUTH, or CACHEMIG_REDIS_URL with the password in it"


class TargetFull(TargetError):
    """Redis is at its maxmemory and evicts nothing."""

    hint = "raise maxmemory; the run goes on by itself, or by running the same command again"


class TargetReadOnly(TargetError):
    """Redis is a read-only replica."""

    hint = "point redis_url at the primary"


class TargetEpochPassed(TargetError):
    """A later epoch has begun: what was read before is not to be delivered any more."""

    hint = "a run reads anew by itself; if it goes on: cachemig status, cachemig resync --all"


class TargetForbidden(TargetError):
    """The Redis user may not run a command that is needed."""

    hint = "docs/deploy.md lists the ACL that cachemig needs"

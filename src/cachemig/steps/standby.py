"""Reading values from a standby (`read_dsn`), so that the primary prints none of them.

A standby's snapshot is an older one of the primary's, with the versions as of then: what it shows is right to deliver
as soon as it has replayed the commit that switched capture on, since every write that it does not show has left a
change. Never for keys that several rows may share: PROTOCOL.md, "Traps".
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

from cachemig.config import Settings
from cachemig.entries.entry import Entry
from cachemig.errors import Refused, SourceBehind
from cachemig.source import control, queries
from cachemig.source.connect import Connection, source_errors
from cachemig.source.table import Table
from cachemig.steps.read_ahead import Read

_LEAVE_OUT = "leave --read-dsn out: values are then read from the primary"


@dataclass(frozen=True)
class Standby:
    """What a standby must have replayed before it is read."""

    lsn: str
    epoch: int
    marker: str | None

    @classmethod
    def of(cls, settings: Settings, conn: Connection, table: Table, migration: control.Migration) -> Standby | None:
        """None where no standby is to be read. On the primary, after capture is on.

        Raises Refused where keys may be shared.
        """
        if not settings.read_dsn:
            return None
        if not table.key_unique:
            raise Refused(
                f"no unique constraint covers {settings.key_column}: of rows that share one a standby may show another "
                "one as the newest",
                hint=_LEAVE_OUT,
            )
        with source_errors():
            row = conn.execute(queries.text("standby", "written_to")).fetchone()
        assert row is not None
        return cls(str(row[0]), migration.epoch, migration.redis_marker)

    def reading(self, read: Read[Entry]) -> Read[Entry]:
        """The same read, once it may be done."""
        return partial(self._read, read)

    def _read(self, read: Read[Entry], conn: Connection) -> Generator[Entry, None, None]:
        """Raises SourceBehind where it is to be waited for, Refused where it is none of this primary's."""
        with source_errors():
            row = conn.execute(queries.text("standby", "standing"), {"lsn": self.lsn}).fetchone()
            assert row is not None
            in_recovery, replayed = row
            if not in_recovery:
                raise Refused("read_dsn does not lead to a standby", hint=_LEAVE_OUT)
            if not replayed:
                raise SourceBehind
            row = conn.execute(
                queries.text("standby", "is_this_migration"), {"epoch": self.epoch, "marker": self.marker}
            ).fetchone()
        if row is None or not row[0]:
            raise Refused("read_dsn leads to a standby of another database, or to one that diverged", hint=_LEAVE_OUT)
        yield from read(conn)

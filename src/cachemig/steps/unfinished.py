"""The journal of what was begun and not ended: a command that changed something leaves its row all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cachemig.config import Settings
from cachemig.errors import CachemigError, SourceUnavailable
from cachemig.ladder import Phase
from cachemig.source import control
from cachemig.source.connect import connect


@contextmanager
def unfinished(
    settings: Settings, command: str, so_far: Callable[[], dict[str, Any]], *, phase_from: Phase | None = None
) -> Iterator[None]:
    """Where the block raises, `so_far` is journalled with the kind of the error: its text may name a key. Empty:
    nothing was changed, and nothing is written; nor where Postgres is away."""
    try:
        yield
    except SourceUnavailable:
        raise
    except BaseException as exc:
        if figures := so_far():
            with suppress(CachemigError), connect(settings) as conn:
                if control.find(conn) is not None:
                    row = {**figures, "unfinished": type(exc).__name__}
                    control.journal(conn, command, row, phase_from=phase_from)
        raise

"""One piece of work in a thread of its own, while this one goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Alongside:
    """Begins at once. Whoever begins it asks for its `result` before what it works with is given to others."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        # A daemon: an interpreter that is told to end at once waits for no server.
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True, name="cachemig alongside")
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as exc:  # noqa: BLE001  # raised where the result is asked for
            self._error = exc

    def wait(self) -> None:
        """Until it has ended, however."""
        self._thread.join()

    def result(self) -> None:
        """Waits for its end, and raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error

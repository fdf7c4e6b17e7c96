"""What can go wrong between this process and Redis. Internal: an application sees where an answer came from instead."""

from __future__ import annotations


class Unreachable(Exception):
    """Redis did not answer, or not as Redis does. `sent`: the request was on its way by then."""

    def __init__(self, why: str, *, sent: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.sent = sent


class Refused(Exception):
    """Redis answered with an error: full, read-only, a key of another type. Holds no value."""

"""Exact equality of JSON texts that differ in their bytes."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any

from cachemig.entries.entry import Buffer


class _Number(Decimal):
    """A JSON number, never passed through a float: 1.10 equals 1.1, 1e400 and 10,000 digits are exact.

    A type of its own so that a number never equals true or false (in Python 1 == True).
    """


class _Beyond(str):
    """A number whose exponent is beyond Decimal's: equal only to one written the same, and to no string."""


def _number(text: str) -> _Number | _Beyond:
    try:
        return _Number(text)
    except InvalidOperation:
        return _Beyond(text)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def same_json(left: Buffer, right: Buffer) -> bool:
    """True exactly when both are valid JSON of equal meaning: key order, white space, escapes and the way a number is
    written do not count; of a repeated member the last counts, as jsonb has it. False where either is not JSON.
    """
    try:
        return _equal(
            *(
                json.loads(
                    bytes(text).decode("utf-8"), parse_float=_number, parse_int=_number, parse_constant=_no_constant
                )
                for text in (left, right)
            )
        )
    except (ValueError, RecursionError):  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        return False


def is_json(text: Buffer) -> bool:
    """It is one JSON value, which some reader can take: 1e400 and half a surrogate pair are, NaN is not."""
    import orjson  # loaded only where a value is parsed

    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            json.loads(bytes(text).decode("utf-8"), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return False
    return True


def _equal(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(value, right[name]) for name, value in left.items())
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    return bool(left == right)

"""Shape checks: what makes a value corrupt. Each has a name, by which plan, backfill and verify count it.

The column's type guarantees valid JSON, so a look at the first byte tells the type. Only `shape = emg` parses values.
"""

from __future__ import annotations

from cachemig.config import Settings
from cachemig.entries.entry import Buffer

_TYPE_BY_FIRST_BYTE = {"[": "array", "t": "boolean", "f": "boolean", "n": "null", '"': "string"}

CORRUPT = {
    "double-encoded": "JSON inside a JSON string, where an object belongs",
    "not-an-object": "another JSON type, where an object belongs",
    "too-large": "more bytes than max_value_bytes",
    # shape = emg
    "unknown-shape": "an object, but none that the application writes; --shape object takes them all",
    "missing-field": "a field that the application always writes is not there",
    "wrong-type": "a field holds another type than the application writes",
    "number-as-string": "a string such as NaN or Infinity where a number belongs",
    "impossible-number": "a number that no analysis gives: a negative amplitude, half a contraction, 1e400",
    "negative-duration": "time that runs backwards",
    "count-mismatch": "a count that is not that of its list",
    "unknown-version": "of a version that is not known",
    "unparsable": "nested too deeply, or with half a surrogate pair: few readers take it",
}


def fault(text: Buffer, settings: Settings) -> str | None:
    """Why the value is corrupt, as `name: detail`, or None for a sound one. Never contains the value."""
    if len(text) > settings.max_value_bytes:
        return f"too-large: {len(text):,} bytes, max_value_bytes is {settings.max_value_bytes:,}"
    if settings.shape == "any":
        return None
    at = 0
    while at < len(text) and text[at] in b" \t\r\n":  # the json type keeps white space as it was written
        at += 1
    head = bytes(text[at : at + 64])
    first = chr(head[0]) if head else ""
    if first == "{":
        return _emg_fault(text) if settings.shape == "emg" else None
    if first == '"' and head[1:].lstrip(b'\\" ')[:1] in (b"{", b"["):  # or encoded more often than twice
        return f"double-encoded: {CORRUPT['double-encoded']}"
    return f"not-an-object: a JSON {_TYPE_BY_FIRST_BYTE.get(first, 'number')}"


def _emg_fault(text: Buffer) -> str | None:
    from cachemig.entries import emg_shape  # orjson is loaded where a value is parsed, and only there

    return emg_shape.fault(text)

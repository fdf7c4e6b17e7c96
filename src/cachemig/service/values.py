"""Between Python values, JSON text and the bytes in Redis. Pure."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import orjson

from cachemig.config import Settings, fields
from cachemig.entries.codec import encode
from cachemig.entries.entry import Buffer, jitter_ms
from cachemig.entries.shape import fault


def dumps(value: Any) -> bytes:
    """Compact JSON. Raises TypeError or ValueError for what has none."""
    try:
        return orjson.dumps(value)
    except TypeError:  # integers beyond 64 bits, keys that are not strings
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def loads(text: Buffer | str) -> Any:
    """The value of a JSON text. What orjson refuses (1e400, half a surrogate pair) is left to json.

    Raises ValueError where neither takes it.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            return json.loads(text if isinstance(text, str) else bytes(text))
        except RecursionError:
            raise ValueError("nested too deeply") from None
        except ValueError:
            raise ValueError("not JSON") from None  # the cause would hold a piece of the value


def is_empty(value: Any) -> bool:
    """NULL and the empty object are not entries: to write one is to remove what is there."""
    return value is None or (isinstance(value, dict) and not value)


def settings_of(identity: dict[str, Any]) -> Settings:
    """The settings of a migration as its control schema holds them; unknown names are left out."""
    known = {f.name for f in fields() if f.metadata["identity"]}
    on_corrupt = "copy" if identity.get("copies_corrupt") else "set-aside"
    return Settings(**{name: value for name, value in identity.items() if name in known}, on_corrupt=on_corrupt)


@dataclass(frozen=True, slots=True)
class State:
    """What Redis is to hold of a key. `stored` None: nothing."""

    stored: Buffer | None
    expires_at_ms: int | None = None


ABSENT = State(None)


def state_of(key: str, text: bytes | None, lifetime_from_ms: int | None, settings: Settings) -> State:
    """What belongs into Redis for this text of the column: what steps/delivery.py makes of it."""
    if text is None:
        return ABSENT
    why = fault(text, settings)
    if why is not None and (settings.corrupt != "copy" or why.startswith("too-large")):
        return ABSENT
    now_ms = int(time.time() * 1000)
    expires_at_ms = expiry(key, settings, lifetime_from_ms if lifetime_from_ms is not None else now_ms)
    if expires_at_ms is not None and expires_at_ms <= now_ms:
        return ABSENT
    return State(encode(settings.codec, text), expires_at_ms)


def expiry(key: str, settings: Settings, from_ms: int) -> int | None:
    """When a lifetime that begins then is over, in Unix milliseconds; None for never."""
    if not settings.ttl:
        return None
    ttl_ms = int(settings.ttl * 1000)
    return from_ms + ttl_ms + jitter_ms(key, ttl_ms, settings.ttl_jitter)

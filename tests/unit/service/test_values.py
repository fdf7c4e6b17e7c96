from __future__ import annotations

import json
import math
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.config import Settings
from cachemig.entries.entry import Entry
from cachemig.service.values import dumps, expiry, is_empty, loads, settings_of, state_of
from cachemig.steps.delivery import plan

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(JSON)
def test_there_and_back(value: Any) -> None:
    text = dumps(value)
    assert json.loads(text) == value
    if -(2**63) < _largest(value) < 2**63:
        assert loads(text) == value == loads(text.decode()) == loads(memoryview(text))


def _largest(value: Any) -> float:
    if isinstance(value, list | dict):
        return max((abs(_largest(v)) for v in (value.values() if isinstance(value, dict) else value)), default=0)
    return abs(value) if isinstance(value, int) else 0


def test_what_only_json_takes() -> None:
    assert loads("1e400") == math.inf
    assert loads(b'"\\ud800"') == "\ud800"
    assert dumps({1: 2**70}) == b'{"1":%d}' % 2**70


@pytest.mark.parametrize("text", ["{", "", "nan", "[" * 100_000 + "]" * 100_000, b"\xff"])
def test_what_nobody_takes(text: str | bytes) -> None:
    with pytest.raises(ValueError) as caught:
        loads(text)
    assert str(caught.value) in ("not JSON", "nested too deeply")
    assert caught.value.__cause__ is None


def test_what_has_no_json() -> None:
    values: list[Any] = [object(), {"a": Decimal(1)}, {1, 2}]
    for one in values:
        with pytest.raises(TypeError):
            dumps(one)


def test_empty() -> None:
    assert is_empty(None)
    assert is_empty({})
    some: list[Any] = [0, "", [], False, {"a": None}]
    assert not any(map(is_empty, some))


@given(
    text=st.sampled_from([None, b'{"a": 1}', b"[1]", b'"{}"', b'{"a":"' + b"x" * 3000 + b'"}', b'"{\\"a\\": 1}"']),
    ago_s=st.sampled_from([None, 0, 10, 86_400 * 29, 86_400 * 40]),
    key=st.text(min_size=1, max_size=5),
    changes=st.fixed_dictionaries(
        {
            "codec": st.sampled_from(["json", "gzip", "zstd"]),
            "shape": st.sampled_from(["any", "object", "emg"]),
            "ttl": st.sampled_from([0.0, 86_400 * 30.0]),
            "max_value_bytes": st.sampled_from([1000, 2**20]),
            "on_corrupt": st.sampled_from(["set-aside", "copy"]),
        }
    ),
)
def test_it_is_what_sync_and_backfill_deliver(
    text: bytes | None, ago_s: float | None, key: str, changes: dict[str, Any]
) -> None:
    """Equal versions must carry equal states, whoever delivers them."""
    settings = settings_of(json.loads(json.dumps(Settings(**changes).identity())) | {"from_a_later_release": 1})
    assert settings.fingerprint() == Settings(**changes).fingerprint()
    now_ms = int(time.time() * 1000)
    lifetime_from_ms = None if ago_s is None else int(now_ms - ago_s * 1000)
    state = state_of(key, text, lifetime_from_ms, settings)
    expires_at_ms = None if lifetime_from_ms is None else expiry(key, settings, lifetime_from_ms)
    _, write = plan(Entry(key, text, 7, expires_at_ms), Settings(**changes), now_ms)
    assert write is not None
    assert state.stored == write.value
    if write.value is not None:
        assert (state.expires_at_ms is None) == (write.expires_at_ms is None)
        assert abs((state.expires_at_ms or 0) - (write.expires_at_ms or 0)) < 2000

"""Shape checks: each fault by its name, and never a word of the value."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.config import Settings
from cachemig.entries.shape import CORRUPT, fault

OBJECT = Settings(shape="object")
ANY = replace(OBJECT, shape="any")

# The whole of what may be said: nothing of a value fits into it but its size.
SAID = re.compile(
    r"double-encoded: JSON inside a JSON string, where an object belongs"
    r"|not-an-object: a JSON (array|boolean|null|string|number)"
    r"|too-large: [0-9,]+ bytes, max_value_bytes is [0-9,]+"
)

CASES = {
    b"{}": None,
    b'{"a": 1}': None,
    b' \t\r\n{"a": 1}': None,
    b"[1]": "not-an-object: a JSON array",
    b"\n[]": "not-an-object: a JSON array",
    b"true": "not-an-object: a JSON boolean",
    b"false": "not-an-object: a JSON boolean",
    b"null": "not-an-object: a JSON null",
    b"0": "not-an-object: a JSON number",
    b"-1.5": "not-an-object: a JSON number",
    b'""': "not-an-object: a JSON string",
    b'"text"': "not-an-object: a JSON string",
    b'"{\\"a\\": 1}"': "double-encoded: JSON inside a JSON string, where an object belongs",
    b'"[1]"': "double-encoded: JSON inside a JSON string, where an object belongs",
    b'  " {}"': "double-encoded: JSON inside a JSON string, where an object belongs",
    b'"1"': "not-an-object: a JSON string",
}


@pytest.mark.parametrize(("text", "said"), CASES.items(), ids=lambda value: repr(value)[:30])
def test_every_type(text: bytes, said: str | None) -> None:
    assert fault(text, OBJECT) == said
    assert fault(memoryview(text), OBJECT) == said
    assert fault(text, ANY) is None


def test_size() -> None:
    settings = replace(OBJECT, max_value_bytes=1000)
    sound = b'{"a": "%s"}' % (b"x" * 992)
    assert len(sound) == 1001
    assert fault(sound, settings) == "too-large: 1,001 bytes, max_value_bytes is 1,000"
    assert fault(sound, replace(settings, shape="any")) == "too-large: 1,001 bytes, max_value_bytes is 1,000"
    assert fault(sound.replace(b"xx", b"x", 1), settings) is None


def test_every_name_is_explained() -> None:
    names = {said.partition(":")[0] for said in CASES.values() if said} | {"too-large"}
    assert names < set(CORRUPT)  # the others are those of shape = emg (test_emg_shape.py)
    assert all(CORRUPT.values())


def test_much_white_space() -> None:
    assert fault(b" " * 64 + b"{}", OBJECT) is None


MARK = "S3CR3T"
values = st.recursive(
    st.just(MARK) | st.integers() | st.booleans() | st.none() | st.just(json.dumps({MARK: MARK})),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just(MARK), inner, max_size=2),
    max_leaves=6,
)


@given(value=values, limit=st.integers(0, 50), space=st.text(" \n\t\r", max_size=5))
def test_nothing_of_the_value_is_said(value: object, limit: int, space: str) -> None:
    text = (space + json.dumps(value)).encode()
    for settings in (OBJECT, ANY, replace(OBJECT, max_value_bytes=limit)):
        said = fault(text, settings)
        assert said is None or SAID.fullmatch(said)


@given(value=values, space=st.text(" \n\t\r", max_size=5))
def test_sound_exactly_where_it_is_an_object(value: object, space: str) -> None:
    assert (fault((space + json.dumps(value)).encode(), OBJECT) is None) is isinstance(value, dict)

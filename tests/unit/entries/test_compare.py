"""Equality of JSON by meaning, with numbers exact."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.entries.compare import is_json, same_json

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=15,
    )


def reversed_members(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: reversed_members(value[name]) for name in reversed(value)}
    if isinstance(value, list):
        return [reversed_members(item) for item in value]
    return value


def dumped(value: Any, **options: Any) -> bytes:
    return json.dumps(value, **options).encode()


@given(value=nested(scalars), indent=st.none() | st.integers(0, 3), ascii_only=st.booleans())
def test_order_space_and_escapes_do_not_count(value: Any, indent: int | None, ascii_only: bool) -> None:
    other = dumped(reversed_members(value), indent=indent, ensure_ascii=ascii_only, separators=(" ,\t", " :\r\n"))
    assert same_json(dumped(value), other)
    assert same_json(memoryview(other), bytearray(dumped(value)))


few = nested(st.sampled_from([None, True, False, 0, 1, 10, "", "1", "true", "null"]))


@given(left=few, right=few)
def test_equal_exactly_where_the_sorted_texts_are(left: Any, right: Any) -> None:
    equal = json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
    assert same_json(dumped(left), dumped(right)) is equal
    assert same_json(dumped({"a": [left]}), dumped({"a": [right]})) is equal


EQUAL = [
    ("1.10", "1.1"),
    ("1e400", "10e399"),
    ("1E+2", "100"),
    ("1.0", "1"),
    ("-0", "0"),
    ("-0.0e5", "0"),
    ("0.1", "1e-1"),
    ("1" * 10_000, "1" * 10_000 + ".0"),
    ("0." + "1" * 10_000, "0." + "1" * 10_000 + "0"),
    ('"\\u00e9"', '"é"'),
    ('"\\ud83d\\ude00"', '"😀"'),
    ('"\\/"', '"/"'),
    ('{"a": 1, "a": 2}', '{"a": 2}'),
    ('{"a": {"b": 1, "b": [1.0]}, "c": null}', '{"c": null, "a": {"b": [1]}}'),
    (" \t\r\n[ ]", "[]"),
]
DIFFERENT = [
    ("1", "true"),
    ("0", "false"),
    ("1", '"1"'),
    ("null", "0"),
    ("null", "false"),
    ("null", '""'),
    ("null", "{}"),
    ("[]", "{}"),
    ("[1, 2]", "[2, 1]"),
    ("[1]", "[1, 1]"),
    ('{"a": null}', "{}"),
    ('{"a": 1}', '{"A": 1}'),
    ('{"a": 1, "a": 2}', '{"a": 1}'),
    ('"a"', '"a "'),
    ('"é"', '"e\u0301"'),  # jsonb does not normalise either
    ("0.1", "0.1000000000000000055511151231257827"),  # the same double
    ("9007199254740993", "9007199254740992"),  # the same double
    ("1e400", "1e401"),  # both infinite as doubles
    ("1e-400", "0"),
    ("1" * 10_000, "1" * 9_999 + "2"),
    ("1e9999999999999999999", "1e9999999999999999998"),  # beyond Decimal's exponent
]
NOT_JSON = [
    b"",
    b" ",
    b"{",
    b"[1,]",
    b"{'a': 1}",
    b'{"a": 1} x',
    b'{"a": 1}{"a": 1}',
    b"01",
    b"1.",
    b".5",
    b"+1",
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b'{"a": NaN}',
    b"True",
    b'"\xff"',
    b'"\xed\xa0\x80"',
    b'"a\nb"',
    b'"\\x"',
    b"\xef\xbb\xbf{}",
    '{"a": 1}'.encode("utf-16"),
    b"\x1f\x8b\x08",
]


@pytest.mark.parametrize(("left", "right"), EQUAL, ids=lambda text: text[:20])
def test_equal(left: str, right: str) -> None:
    assert same_json(left.encode(), right.encode())
    assert same_json(right.encode(), left.encode())


@pytest.mark.parametrize(("left", "right"), DIFFERENT, ids=lambda text: text[:20])
def test_different(left: str, right: str) -> None:
    assert not same_json(left.encode(), right.encode())
    assert not same_json(right.encode(), left.encode())
    assert not same_json(f'{{"a": [{left}]}}'.encode(), f'{{"a": [{right}]}}'.encode())


@pytest.mark.parametrize("text", NOT_JSON, ids=repr)
def test_what_is_not_json_equals_nothing_not_even_itself(text: bytes) -> None:
    assert not same_json(text, text)
    assert not same_json(text, b"null")
    assert not same_json(b"{}", text)


@given(text=st.binary(max_size=40))
def test_no_bytes_raise(text: bytes) -> None:
    same_json(text, b"{}")
    same_json(b"{}", text)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")], ids=["arrays", "objects"])
def test_nesting(opening: bytes, closing: bytes) -> None:
    shallow = [opening * 150 + leaf + closing * 150 for leaf in (b"1", b"1.0", b"2")]
    assert same_json(shallow[0], shallow[1])
    assert not same_json(shallow[0], shallow[2])
    deep = opening * 100_000 + b"1" + closing * 100_000
    assert not same_json(deep, deep), "too deep to tell: never equal, never a crash"
    assert not same_json(deep, b"{}")


def test_the_same_huge_exponent_equals_itself() -> None:
    assert same_json(b"1e9999999999999999999", b" 1e9999999999999999999")


def test_a_huge_exponent_equals_no_string() -> None:
    assert not same_json(b"1e9999999999999999999", b'"\\u00001e9999999999999999999"')


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (b'{"a": 1}', True),
        (b" [1e400] ", True),
        (b'"\\ud800"', True),
        (memoryview(b"null"), True),
        (b"", False),
        (b'{"a": 1', False),
        (b'{"a": NaN}', False),
        (b"{} {}", False),
        (b'"\xff"', False),
        (b"[" * 100_000, False),
    ],
)
def test_what_is_json(text: bytes, is_one: bool) -> None:
    assert is_json(text) is is_one

"""Digest and jitter: numbers that must not change from one release to the next."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.entries.entry import EPOCH, Entry, digest, jitter_ms

DAY_MS = 86_400_000


@given(text=st.binary(max_size=5000))
def test_digest_is_sha256(text: bytes) -> None:
    expected = hashlib.sha256(text).digest()
    assert digest(text) == digest(memoryview(text)) == digest(bytearray(text)) == expected


def test_digest_of_the_standards_example() -> None:
    # FIPS 180-2, appendix B.1
    assert digest(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(key=st.text(), ttl_ms=st.integers(0, 10 * 365 * DAY_MS), part=st.floats(0, 1))
def test_jitter_stays_within_its_part(key: str, ttl_ms: int, part: float) -> None:
    jitter = jitter_ms(key, ttl_ms, part)
    assert isinstance(jitter, int)
    assert 0 <= jitter <= part * ttl_ms
    assert jitter < part * ttl_ms or not jitter
    assert jitter_ms(key, ttl_ms, part) == jitter


def test_jitter_does_not_move_between_releases() -> None:
    """A repeated delivery by a newer release must not move an expiry: int(blake2b-64(key) / 2^64 * part * ttl)."""
    assert [jitter_ms(key, 30 * DAY_MS, 0.1) for key in ("", "a", "ab12", "schlüssel")] == [
        231_509_020,
        65_783_303,
        205_265_513,
        199_263_492,
    ]


def test_jitter_is_even_over_keys() -> None:
    keys = [hashlib.sha256(b"%d" % n).hexdigest() for n in range(5_000)] + [f"user:{n}" for n in range(5_000)]
    for chosen in (keys[:5_000], keys[5_000:]):
        tenths = Counter(jitter_ms(key, 30 * DAY_MS, 0.1) * 10 // (3 * DAY_MS) for key in chosen)
        assert set(tenths) == set(range(10))
        # 500 expected in each, standard deviation 21
        assert all(abs(count - 500) < 105 for count in tenths.values()), tenths


@pytest.mark.parametrize(("ttl_ms", "part"), [(0, 0.5), (DAY_MS, 0.0), (1, 0.5)])
def test_no_room_no_jitter(ttl_ms: int, part: float) -> None:
    assert {jitter_ms(f"{n}", ttl_ms, part) for n in range(50)} == {0}


def test_an_epoch_has_room_for_its_counts() -> None:
    assert EPOCH == 2**40
    assert 8191 * EPOCH + EPOCH - 1 < 2**53, "Lua's doubles hold every version exactly"
    assert Entry("k", None, 0).expires_at_ms is None

"""What becomes of an entry: its record in the ledger, and its write to Redis."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.config import Settings
from cachemig.entries.codec import decode
from cachemig.entries.entry import EPOCH, Entry, digest, jitter_ms
from cachemig.source.ledger import Record
from cachemig.steps.delivery import Tally, plan
from cachemig.targets.redis import Write

NOW = 1_700_000_000_000
LATER = NOW + 3_600_000
TEXT = b'{"a": 1}'
SHA = digest(TEXT)
SETTINGS = Settings(ttl=3600.0, shape="object")
ARRAY = b"[1]"
SAID = "not-an-object: a JSON array"

versions = pytest.mark.parametrize("version", [0, 1, 2**40 + 7])


def removal(version: int) -> Write | None:
    """Nothing is removed at version 0: nobody can have written the key before."""
    return Write("k", version, None) if version else None


@versions
def test_absent(version: int) -> None:
    assert plan(Entry("k", None, version, LATER), SETTINGS, NOW) == (Record("k", version, "removed"), removal(version))


@versions
def test_corrupt(version: int) -> None:
    record, write = plan(Entry("k", ARRAY, version, LATER), SETTINGS, NOW)
    assert record == Record("k", version, "set-aside", digest(ARRAY), 3, error=SAID)
    assert write == removal(version)


@versions
def test_corrupt_and_expired_is_corrupt(version: int) -> None:
    record, write = plan(Entry("k", ARRAY, version, NOW - 1), SETTINGS, NOW)
    assert (record.state, record.error, write) == ("set-aside", SAID, removal(version))


@versions
def test_too_large(version: int) -> None:
    record, write = plan(Entry("k", TEXT, version, LATER), replace(SETTINGS, max_value_bytes=7), NOW)
    assert record.state == "set-aside"
    assert (record.error or "").startswith("too-large: 8 bytes")
    assert write == removal(version)


@versions
@pytest.mark.parametrize("expires", [NOW, NOW - 1, 0])
def test_expired(version: int, expires: int) -> None:
    record, write = plan(Entry("k", TEXT, version, expires), SETTINGS, NOW)
    assert record == Record("k", version, "expired", SHA, 8, expires_at_ms=expires)
    assert write == removal(version)


@versions
def test_sound(version: int) -> None:
    record, write = plan(Entry("k", TEXT, version, LATER), SETTINGS, NOW)
    assert record == Record("k", version, "delivered", SHA, 8, expires_at_ms=LATER)
    assert write == Write("k", version, TEXT, LATER)


def test_sound_to_the_last_millisecond() -> None:
    record, write = plan(Entry("k", TEXT, 0, NOW + 1), SETTINGS, NOW)
    assert record.state == "delivered"
    assert write == Write("k", 0, TEXT, NOW + 1)


def test_any_json_where_any_is_taken() -> None:
    record, write = plan(Entry("k", ARRAY, 0, LATER), replace(SETTINGS, shape="any"), NOW)
    assert record.state == "delivered"
    assert write == Write("k", 0, ARRAY, LATER)


def test_a_lifetime_from_now_has_the_jitter_of_its_key() -> None:
    expires = NOW + 3_600_000 + jitter_ms("k", 3_600_000, SETTINGS.ttl_jitter)
    record, write = plan(Entry("k", TEXT, 1, None), SETTINGS, NOW)
    assert record.expires_at_ms == expires
    assert write == Write("k", 1, TEXT, expires)
    assert expires > NOW + 3_600_000


def test_no_lifetime() -> None:
    record, write = plan(Entry("k", TEXT, 1, None), replace(SETTINGS, ttl=0.0), NOW)
    assert record.expires_at_ms is None
    assert write == Write("k", 1, TEXT, None)


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_codec_is_recorded_by_the_digest_of_what_is_stored(codec: str) -> None:
    record, write = plan(Entry("k", TEXT, 1, LATER), replace(SETTINGS, codec=codec), NOW)
    assert write is not None
    assert write.value is not None
    assert decode(write.value) == TEXT
    assert record == Record("k", 1, "delivered", SHA, 8, digest(write.value), LATER)


@pytest.mark.parametrize("codec", ["json", "gzip", "zstd"])
def test_a_slice_of_the_drivers_buffer(codec: str) -> None:
    view = memoryview(b"xx" + TEXT + b"xx")[2:-2]
    record, write = plan(Entry("k", view, 1, LATER), replace(SETTINGS, codec=codec), NOW)
    assert record.sha256 == SHA
    assert write is not None
    if codec == "json":
        assert write.value is view, "sent from where it was read"
        assert record.stored_sha256 is None


@given(
    text=st.none() | st.sampled_from([TEXT, ARRAY]),
    version=st.integers(0, 2) | st.integers(EPOCH, EPOCH + 2),
    expires=st.none() | st.integers(NOW - 5, NOW + 5),
    ttl=st.sampled_from([0.0, 60.0]),
    codec=st.sampled_from(["json", "gzip", "zstd"]),
)
def test_what_holds_of_every_entry(
    text: bytes | None, version: int, expires: int | None, ttl: float, codec: str
) -> None:
    settings = replace(SETTINGS, ttl=ttl, codec=codec)
    record, write = plan(Entry("k", text, version, expires), settings, NOW)
    assert (record.key, record.version) == ("k", version)
    assert record.sha256 == (None if text is None else digest(text))
    assert (record.state == "set-aside") is (record.error is not None)
    if write is None:
        assert version == 0
        assert record.state != "delivered"
    else:
        assert (write.key, write.version) == ("k", version)
        assert (write.value is not None) is (record.state == "delivered")
        assert write.expires_at_ms == (record.expires_at_ms if write.value is not None else None)
        assert write.expires_at_ms is None or write.expires_at_ms > NOW
    tally = Tally()
    tally.add(record)
    assert tally.entries == 1
    assert tally.bytes == (record.nbytes if record.state == "delivered" else 0)


def test_a_tally_adds_up() -> None:
    one, other = Tally(), Tally()
    for state in ("delivered", "expired", "set-aside", "failed", "removed"):
        one.add(Record("k", 0, state, nbytes=5))
        other.add(Record("k", 0, state, nbytes=7))
    other.older = 3
    one.merge(other)
    assert one == Tally(delivered=2, expired=2, set_aside=2, failed=2, removed=2, older=3, bytes=12)
    assert one.entries == 10

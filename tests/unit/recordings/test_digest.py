"""A key that is a SHA-256 digest must be that of the bytes; any other key says nothing."""

from __future__ import annotations

import hashlib

import pytest

from cachemig.recordings import RecordingUnavailable, matches, require

DATA = b"C3D"
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize(
    ("key", "verdict"),
    [
        (DIGEST, True),
        (DIGEST.upper(), True),
        ("0" * 64, False),
        (DIGEST[:-1], None),
        (DIGEST + "0", None),
        (DIGEST + "\n", None),
        ("g" * 64, None),
        (hashlib.md5(DATA).hexdigest(), None),
        ("session-17", None),
        ("", None),
    ],
)
def test_a_key_vouches_denies_or_does_not_know(key: str, verdict: bool | None) -> None:
    assert matches(DATA, key) is verdict


def test_other_bytes_are_refused_and_an_unknown_key_is_not() -> None:
    assert require(DATA, DIGEST, "s3://b/{x}") is True
    assert require(DATA, "session-17", "s3://b/{x}") is False
    with pytest.raises(RecordingUnavailable, match=r"s3://b/\{x\}") as caught:
        require(DATA + b"!", DIGEST, "s3://b/{x}")
    assert caught.value.name == "wrong-digest"
    assert DIGEST not in str(caught.value)

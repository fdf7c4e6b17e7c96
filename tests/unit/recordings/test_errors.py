"""The one error: it keeps the rules of the error tree, and each status has one meaning."""

from __future__ import annotations

import pytest

from cachemig.errors import CachemigError, Exit
from cachemig.recordings import RecordingUnavailable
from cachemig.recordings.errors import NAMES, by_status
from cachemig.recordings.supabase import refusal
from cachemig.recordings.web import leaves_tls


def test_it_keeps_the_rules_of_the_tree() -> None:
    error = RecordingUnavailable("not-found", "there is none")
    assert isinstance(error, CachemigError)
    assert error.exit_code == Exit.ERROR
    assert (str(error), error.name, error.transient) == ("there is none", "not-found", False)
    assert "recordings_location" in (error.hint or "")
    assert RecordingUnavailable("timeout", "late").hint
    assert RecordingUnavailable("timeout", "late", hint="do this").hint == "do this"
    assert RecordingUnavailable.__doc__
    assert RecordingUnavailable.__doc__.endswith(".")
    assert "\n" not in RecordingUnavailable.__doc__
    assert len(set(NAMES)) == len(NAMES) == 12


@pytest.mark.parametrize(
    ("status", "name", "transient"),
    [
        (302, "refused", False),
        (400, "refused", False),
        (401, "forbidden", False),
        (403, "forbidden", False),
        (404, "not-found", False),
        (408, "unreachable", True),
        (410, "not-found", False),
        (416, "refused", False),
        (425, "unreachable", True),
        (429, "unreachable", True),
        (500, "unreachable", True),
        (503, "unreachable", True),
    ],
)
def test_each_status_has_one_meaning(status: int, name: str, transient: bool) -> None:
    assert (by_status(status).name, by_status(status).transient) == (name, transient)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"statusCode": "404", "error": "not_found", "message": "Object not found"}', "not-found"),
        (b'{"statusCode": 404, "error": "Bucket not found", "message": "Bucket not found"}', "not-found"),
        (b'{"statusCode": "403", "error": "Unauthorized", "message": "jwt expired"}', "forbidden"),
        (b'{"statusCode": "429", "error": "SlowDown", "message": "Too many requests"}', "unreachable"),
        (b'{"statusCode": "400", "error": "InvalidKey", "message": "Invalid key: x"}', "refused"),
        (b'{"message": "other"}', "refused"),
        (b"[]", "refused"),
        (b"null", "refused"),
        (b"<html>", "refused"),
        (b"\xff", "refused"),
    ],
)
def test_supabase_tells_the_status_in_the_body_of_a_400(body: bytes, name: str) -> None:
    assert refusal(400, body).name == name
    assert refusal(503, body).name == "unreachable"


@pytest.mark.parametrize(
    ("url", "location", "leaves"),
    [
        ("https://a/x", "http://a/x", True),
        ("https://a/x", "HTTP://b/x", True),
        ("https://a/x", "https://b/x", False),
        ("https://a/x", "/y", False),
        ("https://a/x", "//b/y", False),
        ("http://a/x", "http://b/y", False),
    ],
)
def test_a_redirect_does_not_leave_tls(url: str, location: str, leaves: bool) -> None:
    assert leaves_tls(url, location) is leaves

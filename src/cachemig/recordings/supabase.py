"""Supabase Storage's REST download: `GET /storage/v1/object/authenticated/<bucket>/<path>`.

The key goes into `Authorization: Bearer` and into `apikey`, as supabase-js sends it: the gateway wants the one, Storage
the other, and a new `sb_secret_…` key is allowed in `Authorization` only beside the same in `apikey`.

Sources: supabase.com/docs/guides/storage/serving/downloads, supabase.com/docs/guides/storage/debugging/error-codes, and
src/http/routes/object/getObject.ts and src/http/error-handler.ts of github.com/supabase/storage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from cachemig.recordings.errors import RecordingUnavailable, by_status
from cachemig.recordings.location import Location
from cachemig.recordings.web import Web

KEYS = ("SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SECRET_KEY", "SUPABASE_KEY")
"""Variables that may hold the key, the first that is set counts."""
DOWNLOAD = "/storage/v1/object/authenticated"
_LOOPBACK = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?")


def is_download(location: Location) -> bool:
    """Whether the location is Supabase's, by its scheme or by a path that nothing else has and that wants a key."""
    return location.scheme == "supabase" or (
        location.scheme in ("http", "https") and location.base.startswith(f"{DOWNLOAD}/")
    )


def store(location: Location, environment: Mapping[str, str]) -> Web:
    """Where the location leads. The key is sent to this host alone, and over TLS unless it is this machine.

    Raises `not-configured` without a key, or where it would go over the wire in the clear.
    """
    return Web(
        base=base(location),
        query=location.query,
        headers=_headers(location, environment),
        refusal=refusal,
    )


def base(location: Location) -> str:
    """The beginning of the URL: of a hosted project by its reference, of any other server by its host.

    A server on this machine is spoken to without TLS, as `supabase start` serves it.
    """
    host = location.authority
    loopback = _LOOPBACK.fullmatch(host) is not None
    if location.scheme != "supabase":
        if location.scheme == "http" and not loopback:
            raise location.error("not-configured", "a key is not sent without TLS; use https://")
        return f"{location.scheme}://{host}"
    if not re.match(r"/[^/]+/", location.base):
        raise location.error("not-configured", "a bucket must stand between the project and the first column")
    if loopback:
        return f"http://{host}{DOWNLOAD}"
    return f"https://{host if '.' in host or ':' in host else f'{host}.supabase.co'}{DOWNLOAD}"


def _headers(location: Location, environment: Mapping[str, str]) -> Mapping[str, str]:
    for variable in KEYS:
        key = environment.get(variable, "").strip()
        if not key:
            continue
        if not re.fullmatch(r"[!-~]+", key):
            raise location.error("not-configured", f"{variable} holds a character that no key has")
        return {"Authorization": f"Bearer {key}", "apikey": key}
    raise location.error("not-configured", f"Supabase Storage needs a key in {' or '.join(KEYS)}")


def refusal(status: int, body: bytes) -> RecordingUnavailable:
    """What Storage means. It answers 400 to most requests that it refuses; the status proper stands in the body, as
    text or as a number: `{"statusCode": "404", "error": "not_found", "message": "Object not found"}`."""
    if status == 400:
        try:
            answer = json.loads(body)
            status = int(answer["statusCode"])
        except (ValueError, KeyError, TypeError):
            status = 400
    return by_status(status)

"""Recordings on a web server, through fsspec's HTTP file system.

Without headers a redirect is followed, but not out of TLS. With headers, which hold a key, none is: aiohttp drops
`Authorization` on the way to another host, but not `apikey`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from cachemig.recordings.errors import RecordingUnavailable, by_status
from cachemig.recordings.store import Read, load

EXTRA = "'cachemig[recordings]'"
Refusal = Callable[[int, bytes], RecordingUnavailable]
_SHORT = 4096  # bytes of an answer that is looked at for the server's reason


def plain_refusal(status: int, _: bytes) -> RecordingUnavailable:
    return by_status(status)


def leaves_tls(url: str, location: str) -> bool:
    """Whether a redirect would fetch in the clear what was asked for over TLS."""
    return url.startswith("https:") and urlsplit(urljoin(url, location)).scheme != "https"


@dataclass(frozen=True)
class Web:
    """A Store of quoted paths on one server."""

    base: str
    """Scheme and host, and a path if every recording's begins with it."""
    query: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    refusal: Refusal = plain_refusal
    """What an answer other than 200 means, by its status and the beginning of its body."""

    @asynccontextmanager
    async def opened(self, path: str, stall: float) -> AsyncIterator[Read]:
        http = load("fsspec.implementations.http", EXTRA)
        aiohttp = load("aiohttp", EXTRA)
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(self._redirected)
        fs = http.HTTPFileSystem(
            asynchronous=True,
            skip_instance_cache=True,
            encoded=True,  # quoted by the template; dot segments and slashes stay as they are
            client_kwargs={
                "timeout": aiohttp.ClientTimeout(total=None, sock_connect=stall, sock_read=stall),
                "cookie_jar": aiohttp.DummyCookieJar(),
                # Of the session, for fsspec forgets what open_async is given.
                "headers": {"Accept-Encoding": "identity", **self.headers},
                "raise_for_status": self._judge,
                "trace_configs": [trace],
            },
        )
        try:
            session = await fs.set_session()
            try:
                file = await fs.open_async(
                    f"{self.base}{path}{'?' if self.query else ''}{self.query}",
                    size=0,  # unknown; without it a HEAD goes before, which Supabase refuses
                )
                try:
                    yield file.read
                finally:
                    await file.close()
            finally:
                await session.close()
        except (aiohttp.InvalidURL, aiohttp.TooManyRedirects):
            raise RecordingUnavailable("refused", "the server redirects without end, or to nowhere") from None
        except aiohttp.ClientSSLError:
            raise RecordingUnavailable("unreachable", "the server's TLS certificate is not trusted") from None
        except TimeoutError:
            raise RecordingUnavailable(
                "unreachable", f"the server was silent for {stall:.0f} s", transient=True
            ) from None
        except aiohttp.ClientPayloadError:
            raise RecordingUnavailable("unreachable", "the answer was cut short", transient=True) from None
        except (aiohttp.ClientError, OSError) as exc:
            raise RecordingUnavailable(
                "unreachable", f"no answer from the server ({type(exc).__name__})", transient=True
            ) from None

    async def _redirected(self, _: object, __: object, params: Any) -> None:
        """Before a redirect is followed."""
        response = params.response
        if self.headers or leaves_tls(str(response.url), response.headers.get("Location", "")):
            response.close()
            raise RecordingUnavailable("refused", f"the server redirects elsewhere (status {response.status})")

    async def _judge(self, response: Any) -> None:
        if response.status == 200:
            return
        body = b"" if response.status < 400 else await response.content.read(_SHORT)
        response.close()
        raise self.refusal(response.status, body)

"""redis_url: one server, a cluster, or a primary that sentinels know. The scheme says which; nothing is probed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")
_PORTS = {"cluster": 6379, "sentinel": 26379}
_OF_SENTINEL = ("sentinel_username", "sentinel_password")


class Node(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Address:
    """What a redis_url says."""

    kind: str
    """server, cluster or sentinel."""
    text: str
    """The whole of it."""
    scheme: str
    """redis, rediss or unix."""
    user: str = ""
    """`user:password` as it stands in the URL."""
    nodes: tuple[Node, ...] = ()
    """Of a cluster some of its nodes, else the sentinels to ask; none for one server."""
    service: str = ""
    """What the sentinels call the primary."""
    database: str = ""
    query: str = ""
    sentinel_login: tuple[tuple[str, str], ...] = ()
    """username and password of the sentinels themselves."""

    @property
    def has_password(self) -> bool:
        """Raises ValueError for the URL of one server that is none."""
        return urlsplit(self.text).password is not None if self.kind == "server" else ":" in self.user

    def url(self, node: Node) -> str:
        """The ordinary URL of one server of it."""
        user = f"{self.user}@" if self.user else ""
        query = f"?{self.query}" if self.query else ""
        return f"{self.scheme}://{user}{node}/{self.database}{query}"


def address_of(url: str) -> Address:
    """The parts of a redis_url. Raises ValueError; its text quotes nothing of the URL, which may hold a password."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ValueError(f"must begin with {', '.join(f'{s}://' for s in SCHEMES[:-1])} or {SCHEMES[-1]}://")
    scheme, _, kind = scheme.partition("+")
    if not kind:
        return Address("server", url, scheme)
    place, _, query = rest.partition("?")
    user, _, place = place.rpartition("@")
    hosts, _, path = place.partition("/")
    nodes = tuple(_node(text, _PORTS[kind]) for text in hosts.split(","))
    service, _, database = path.partition("/") if kind == "sentinel" else ("", "", path)
    if kind == "cluster" and database not in ("", "0"):
        raise ValueError("must not name a database: a cluster has 0 alone")
    if kind == "sentinel" and not service:
        raise ValueError("must name what the sentinels call the primary: redis+sentinel://HOST:26379/NAME/0")
    if database and not database.isdigit():
        raise ValueError("must have a number for the database")
    pairs = parse_qsl(query, keep_blank_values=True)
    return Address(
        kind,
        url,
        scheme,
        user=user,
        nodes=nodes,
        service=unquote(service),
        database=database,
        query=urlencode([pair for pair in pairs if pair[0] not in _OF_SENTINEL]),
        sentinel_login=tuple((name.removeprefix("sentinel_"), value) for name, value in pairs if name in _OF_SENTINEL),
    )


def _node(text: str, port: int) -> Node:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:@/?#\s]+))(?::(\d{1,5}))?", text)
    if match is None:
        raise ValueError("must name each host as HOST:PORT, with commas between them")
    return Node(match[1] or match[2], int(match[3] or port))

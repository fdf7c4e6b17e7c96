"""redis_url and the topology of a cluster: what is read from them, and that no secret is quoted."""

from __future__ import annotations

import pytest

from cachemig.config import load
from cachemig.errors import ConfigError
from cachemig.targets.address import Node, address_of
from cachemig.targets.keys import SLOTS, marker_of_slot, slot, tag
from cachemig.targets.topology import redirection, topology_of


def test_a_cluster() -> None:
    address = address_of("rediss+cluster://app:s%2Fx@a.example:7000,b.example,[::1]:7002/0?ssl_ca_certs=/ca.pem")
    assert (address.kind, address.has_password) == ("cluster", True)
    assert address.nodes == (Node("a.example", 7000), Node("b.example", 6379), Node("::1", 7002))
    assert [address.url(node) for node in address.nodes[1:]] == [
        "rediss://app:s%2Fx@b.example:6379/0?ssl_ca_certs=%2Fca.pem",
        "rediss://app:s%2Fx@[::1]:7002/0?ssl_ca_certs=%2Fca.pem",
    ]


def test_sentinels() -> None:
    address = address_of("redis+sentinel://app@a,b:26380/my%20cache/3?sentinel_password=x&socket_timeout=2")
    assert (address.kind, address.service, address.has_password) == ("sentinel", "my cache", False)
    assert address.nodes == (Node("a", 26379), Node("b", 26380))
    assert address.sentinel_login == (("password", "x"),)
    assert address.url(Node("10.0.0.1", 6379)) == "redis://app@10.0.0.1:6379/3?socket_timeout=2"


@pytest.mark.parametrize("url", ["redis://:p@h:1/2", "unix://u:p@/run/redis.sock?db=1", "rediss://h"])
def test_one_server_is_taken_as_it_is(url: str) -> None:
    address = address_of(url)
    assert (address.kind, address.text, address.has_password) == ("server", url, ":p@" in url)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+cluster://", "HOST:PORT"),
        ("redis+cluster://a,,b", "HOST:PORT"),
        ("redis+cluster://a:port", "HOST:PORT"),
        ("redis+cluster://a:1;b:2", "HOST:PORT"),
        ("redis+cluster://app:s3cr3t?x@a:1", "HOST:PORT"),
        ("redis+cluster://a:1/2", "0 alone"),
        ("redis+sentinel://a:1", "call the primary"),
        ("redis+sentinel://a:1/", "call the primary"),
        ("redis+sentinel://a:1/name/zero", "number for the database"),
        ("redis+cluster:a", "must begin with"),
        ("unix+cluster://a", "must begin with"),
    ],
)
def test_a_wrong_one_is_refused_at_once_and_not_quoted(url: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({}, {"CACHEMIG_REDIS_URL": url})
    assert why in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_the_reply_of_cluster_slots() -> None:
    reply = [
        [8192, 16383, [b"", 7001, b"id2"], [b"10.0.0.4", 7004, b"id4"]],
        [0, 99, [b"10.0.0.1", 7000, b"id1", [b"hostname", b"h"]]],
        [200, 8191, [b"?", 7000, b"id1"]],
    ]
    found = topology_of(reply, Node("10.0.0.1", 7005))
    first, second = Node("10.0.0.1", 7000), Node("10.0.0.1", 7001)
    assert [found.owners[n] for n in (0, 99, 100, 199, 200, 8191, 8192, 16383)] == [
        first, first, None, None, first, first, second, second,
    ]  # fmt: skip
    assert found.masters == [first, second]
    assert (found.slots[first][0], found.slots[first][-1], len(found.slots[second])) == (0, 8191, 8192)
    assert not found.covered
    assert len(found.owners) == SLOTS
    assert topology_of([[0, 16383, [None, 1, b"id"]]], Node("h", 2)).covered


def test_redirections() -> None:
    asked = Node("10.0.0.1", 7000)
    assert redirection("MOVED 3999 10.0.0.2:7001", asked) == (3999, Node("10.0.0.2", 7001), False)
    assert redirection("ASK 1 [fe80::1]:7001", asked) == (1, Node("fe80::1", 7001), True)
    assert redirection("ASK 1 fe80::1:7001", asked) == (1, Node("fe80::1", 7001), True)
    assert redirection("MOVED 3999 :7001", asked) == (3999, Node("10.0.0.1", 7001), False)
    assert redirection("ERR MOVED 3999 10.0.0.2:7001", asked) is None
    assert redirection("TRYAGAIN Multiple keys request during rehashing of slot", asked) is None


def test_a_marker_is_in_the_slot_that_it_is_for() -> None:
    for name in ("analysis:", "{fixed}:", "a}b{"):
        markers = [marker_of_slot(name, number) for number in range(0, SLOTS, 97)]
        assert [slot(marker.encode()) for marker in markers] == list(range(0, SLOTS, 97))
        assert len(set(markers)) == len(markers)
    assert max(len(tag(number)) for number in range(SLOTS)) <= 6

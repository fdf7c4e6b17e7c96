from __future__ import annotations

import json

from cachemig.service.stats import RING, Stats


def test_the_document() -> None:
    stats = Stats()
    document = stats.document(0)
    assert document == {
        "reads": {"redis": {"hit": 0, "miss": 0, "error": 0}, "column": {"hit": 0, "miss": 0, "error": 0}},
        "fallback": 0,
        "writes": {"ok": 0, "redis_failed": 0},
        "shadow": dict.fromkeys(("match", "equivalent", "race", "missing", "mismatch", "unreachable", "dropped"), 0),
        "loads": 0,
        "refused_fills": 0,
        "breaker_open": 0,
        "latency_ms": {"redis": {"n": 0}, "column": {"n": 0}},
    }
    for n in range(1, 101):
        stats.read("redis", "hit", n / 1000)
    stats.read("redis", "error", None, 3)
    document = stats.document(2)
    assert document["reads"]["redis"] == {"hit": 100, "miss": 0, "error": 3}
    assert document["latency_ms"]["redis"] == {"p50": 51.0, "p95": 96.0, "p99": 100.0, "n": 100}
    assert document["breaker_open"] == 2
    json.dumps(document)


def test_latencies_are_those_of_the_last_calls() -> None:
    stats = Stats()
    for _ in range(100):
        stats.read("column", "hit", 5.0)
    for _ in range(RING):
        stats.read("column", "hit", 0.001)
    assert stats.document(0)["latency_ms"]["column"] == {"p50": 1.0, "p95": 1.0, "p99": 1.0, "n": RING}

"""Redis Cluster as target: every step on three masters, while slots move, and with a master that is lost."""

from __future__ import annotations

import threading
import time

import pytest

from cachemig import errors
from cachemig.config import load
from cachemig.entries.entry import EPOCH
from cachemig.entries.verdicts import Verdict
from cachemig.steps import doctor, dual_write, epoch, measure
from cachemig.steps.clean import clean
from cachemig.steps.doctor import Level
from cachemig.steps.plan import plan
from cachemig.stop import Stop
from cachemig.targets.cluster import ClusterTarget
from cachemig.targets.keys import SLOTS, VERSION, companion, marker_of_slot, slot
from cachemig.targets.open import open_target
from cachemig.targets.redis import Write
from tests.integration.cluster import RedisCluster
from tests.integration.conftest import Migrating, finish


def target_of(case: Migrating) -> ClusterTarget:
    assert isinstance(case.target, ClusterTarget)
    return case.target


def findings(case: Migrating) -> dict[str, doctor.Finding]:
    return {found.name: found for found in doctor.examine(case.settings, case.target)}


# Steps ------------------------------------------------------------------------------------------------------------


def test_a_whole_migration(clustered: Migrating, redis_cluster: RedisCluster) -> None:
    values: dict[str, dict[str, object]] = {f"k{n}": {"n": n} for n in range(300)}
    values |= {"{braced}": {"b": 1}, "}odd{": {"b": 2}, "large": {"x": "y" * 20_000}, "huge": {"x": "y" * 2_000_000}}
    for key, value in values.items():
        clustered.put(key, value)
    assert [f for f in doctor.examine(clustered.settings, clustered.target) if f.level is Level.ERROR] == []
    assert plan(clustered.settings, clustered.target).redis_error is None
    clustered.begin()
    assert clustered.backfill().tally.delivered == len(values)
    measured = finish(measure.measure(clustered.settings, clustered.target, Stop(), keys=3, rounds=1))
    assert measured.hits == 3
    assert None not in (measured.redis_bytes, measured.bytes_per_key)
    assert {len(redis_cluster.clients[n].keys(f"{clustered.prefix}*")) > 50 for n in range(3)} == {True}
    clustered.execute("UPDATE sessions SET cache = cache || '{\"again\": 1}' WHERE file_hash <> 'k0'")
    clustered.execute("DELETE FROM sessions WHERE file_hash = 'k0'")
    assert clustered.sync().tally.removed == 1
    assert clustered.in_redis() == clustered.in_postgres()
    verified = clustered.verify()
    assert verified.outcome.passed
    assert verified.counts[Verdict.MATCH] == len(values) - 1
    finish(dual_write.switch(clustered.settings, clustered.target, enable=False))
    removed = finish(clean(clustered.settings, clustered.target, execute=True, values=True))
    assert (removed.own_keys, removed.values) == (len(values), len(values) - 1)
    assert [name for name in redis_cluster.names() if clustered.prefix in name] == []


def test_a_foreign_key_is_an_orphan_and_a_lost_value_is_missing(
    clustered: Migrating, redis_cluster: RedisCluster
) -> None:
    for number in range(20):
        clustered.put(f"k{number}", {"n": number})
    clustered.begin()
    clustered.backfill()
    for name in ("nobodys", "k7"):
        at = redis_cluster.owner_of(f"{clustered.prefix}{name}")
        command = ("SET", f"{clustered.prefix}{name}", "{}") if name == "nobodys" else ("DEL", f"{clustered.prefix}k7")
        redis_cluster.do(at, *command)
    counts = {verdict: count for verdict, count in clustered.verify().counts.items() if count}
    assert counts == {Verdict.MATCH: 19, Verdict.MISSING: 1, Verdict.ORPHAN: 1}


def test_an_old_state_is_refused_whatever_its_size(clustered: Migrating) -> None:
    keys = {"a": 10, "{b}": 10, "large": 20_000, "gone": 10}
    newest = [Write(key, 5, b"n" * size if key != "gone" else None) for key, size in keys.items()]
    assert all(r.written for r in clustered.target.deliver(newest))
    late = [Write(key, 4, b"o" * size) for key, size in keys.items()]
    assert not any(r.written for r in clustered.target.deliver(late))
    found = {found.key: found for found in clustered.target.fetch([*keys, "never"])}
    assert {key: (found[key].version, found[key].value) for key in keys} == {
        key: (5, b"n" * size if key != "gone" else None) for key, size in keys.items()
    }
    assert found["never"].version is None
    assert clustered.target.versions([*keys, "never"]) == [5, 5, 5, 5, 0]
    assert clustered.target.sizes(["large", "gone"]) == [20_000, 0]


def test_a_later_epoch_refuses_what_was_read_before_in_every_slot(clustered: Migrating) -> None:
    clustered.target.plant_marker(2)
    for key in ("a", "b", "c", "{d}"):
        with pytest.raises(errors.TargetEpochPassed):
            list(clustered.target.deliver([Write(key, EPOCH + 1, b"x")]))
    with pytest.raises(errors.TargetEpochPassed):
        list(clustered.target.deliver([Write("large", EPOCH + 1, b"x" * 20_000)]))
    assert clustered.target.write_alone("a", b"x", None, epoch=1, expected=0)[:2] == (2, 2)
    assert clustered.target.write_alone("a", b"x", None, epoch=2, expected=0)[0] == 1


def test_one_key_that_cannot_be_written_does_not_spoil_those_of_its_slot(clustered: Migrating) -> None:
    spoilt = "a{same}"
    clustered.redis.rpush(companion(VERSION, clustered.prefix + spoilt), "no number")
    writes = [Write(f"{letter}{{same}}", 3, b"x") for letter in "abc"]
    receipts = {r.write.key: r for r in clustered.target.deliver(writes)}
    assert {key: (r.written, r.error is None) for key, r in receipts.items()} == {
        "a{same}": (False, False), "b{same}": (True, True), "c{same}": (True, True),
    }  # fmt: skip


# Which cluster it is ----------------------------------------------------------------------------------------------


def test_the_marker_is_in_every_slot_and_part_of_the_identity(
    clustered: Migrating, redis_cluster: RedisCluster
) -> None:
    target = target_of(clustered)
    assert target.identity().marker is None
    target.plant_marker(3)
    planted = target.identity()
    assert (planted.epoch, len((planted.run or "").split())) == (3, 3)
    assert target.identity() == planted
    markers = [marker_of_slot(clustered.prefix, number) for number in range(SLOTS)]
    assert all(slot(name.encode()) == number for number, name in enumerate(markers))
    assert {reply.decode() for reply in target.ask([("GET", name) for name in markers])} == {planted.marker}
    # A master that was flushed, and one where planting broke off half way.
    redis_cluster.do(1, "DEL", markers[SLOTS // 3])
    assert target.identity().marker != planted.marker
    assert target.identity().epoch == 3
    redis_cluster.do(1, "SET", markers[SLOTS // 3], "9:other")
    assert target.identity().epoch == 9
    assert target.identity() != target.identity()  # it is nobody's, so that it can never be the recorded one
    target.remove_marker()
    assert target.identity().marker is None


def test_a_master_that_was_flushed_begins_an_epoch(clustered: Migrating, redis_cluster: RedisCluster) -> None:
    for number in range(60):
        clustered.put(f"k{number}", {"n": number})
    clustered.begin()
    clustered.backfill()
    for name in redis_cluster.clients[2].scan_iter(count=10_000):
        if clustered.prefix in name.decode():
            redis_cluster.clients[2].delete(name)
    with pytest.raises(errors.Refused, match="marker is gone"):
        clustered.verify()
    assert clustered.sync().epochs == 1
    clustered.backfill()
    assert clustered.verify().outcome.passed


def test_a_master_that_left_begins_none_and_one_that_is_new_does(clustered: Migrating) -> None:
    recorded = "a b c"
    assert epoch.runs("a c") <= epoch.runs(recorded)
    assert not epoch.runs("a b d") <= epoch.runs(recorded)
    clustered.begin()
    clustered.execute("UPDATE cachemig.migration SET redis_run = redis_run || ' gone'")
    assert epoch.ensure(clustered.conn, clustered.target) is None
    clustered.execute("UPDATE cachemig.migration SET redis_run = split_part(redis_run, ' ', 1)")
    begun = epoch.ensure(clustered.conn, clustered.target)
    assert begun is not None
    assert "failed over" in begun.reason


# Addresses --------------------------------------------------------------------------------------------------------


def test_the_url_of_one_server_leads_to_a_node_of_a_cluster(redis_cluster: RedisCluster) -> None:
    url = redis_cluster.servers[0].url
    with open_target(load({"redis_url": url}, {}), {}) as target, pytest.raises(errors.TargetError) as caught:
        target.check()
    assert "node of a Redis Cluster" in str(caught.value)
    assert "redis+cluster://" in str(caught.value.hint)


def test_the_url_of_a_cluster_leads_to_a_server_that_is_none(redis_cluster: RedisCluster, own_redis) -> None:  # type: ignore[no-untyped-def]
    url = f"redis+cluster://127.0.0.1:{own_redis(tcp=True).port}"
    with open_target(load({"redis_url": url}, {}), {}) as target, pytest.raises(errors.TargetError) as caught:
        target.check()
    assert "no node of a Redis Cluster" in str(caught.value)
    assert "redis://" in str(caught.value.hint)


def test_one_node_that_answers_is_enough(redis_cluster: RedisCluster) -> None:
    url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{redis_cluster.servers[4].port}"
    with open_target(load({"redis_url": url}, {}), {}) as target:
        target.check()
        assert sorted(server.name for server in target.servers()) == sorted(
            f"127.0.0.1:{server.port}" for server in redis_cluster.servers[:3]
        )
    nobody = open_target(load({"redis_url": "redis+cluster://127.0.0.1:1"}, {}), {})
    with nobody as target, pytest.raises(errors.TargetUnavailable):
        target.check()


# doctor and plan --------------------------------------------------------------------------------------------------


def test_what_doctor_says_of_a_cluster(clustered: Migrating, redis_cluster: RedisCluster) -> None:
    found = findings(clustered)
    assert [f for f in found.values() if f.level is Level.ERROR] == []
    assert "3 masters have all 16,384 slots, each with a replica" in found["redis-cluster"].what
    assert found["redis-cluster"].level is Level.OK
    assert found["redis-abilities"].level is Level.OK
    clustered.set(key_template=clustered.prefix + "{fixed}:{key}")
    assert "one master would have all" in findings(clustered)["redis-cluster"].what
    clustered.set(wait_replicas="2")
    assert "wait_replicas is 2" in findings(clustered)["redis-role"].what


def test_the_fullest_master_decides(clustered: Migrating, redis_cluster: RedisCluster) -> None:
    for number in range(30):
        clustered.put(f"k{number}", {"x": "y" * 100_000})
    worst = redis_cluster.clients[1]
    try:
        worst.config_set("maxmemory", worst.info("memory")["used_memory"] + 600_000)
        worst.config_set("maxmemory-policy", "allkeys-lru")
        found = findings(clustered)
        for name in ("redis-memory", "redis-eviction"):
            assert found[name].level in (Level.WARNING, Level.ERROR)
            assert found[name].what.startswith(f"127.0.0.1:{redis_cluster.servers[1].port} (one of 3 masters): ")
        free = plan(clustered.settings, clustered.target).redis_free_bytes
        assert free is not None
        assert 300_000 < free < 1_900_000  # three times what one master has free
    finally:
        worst.config_set("maxmemory", 0)
        worst.config_set("maxmemory-policy", "noeviction")


# Slots that move --------------------------------------------------------------------------------------------------


def test_delivery_and_reading_while_a_slot_is_half_way(clustered: Migrating, redis_cluster: RedisCluster) -> None:
    keys = ["a{x}", "b{x}", "c{x}", "d{x}"]
    number = slot(f"{clustered.prefix}a{{x}}".encode())
    target = clustered.target
    target.plant_marker(0)
    assert all(r.written for r in target.deliver(Write(key, 1, b"1") for key in keys[:3]))
    home = redis_cluster.owner(number)
    away = (home + 1) % 3
    source = redis_cluster.open_slot(number, away)
    try:
        redis_cluster.move_keys(number, source, away, most=3)  # some of their seven
        assert [f.value for f in target.fetch(keys)] == [b"1", b"1", b"1", None]
        assert target_of(clustered).moving() == [number]
        assert "left half way" in findings(clustered)["redis-cluster"].what
        seen = [name for names in target.scan(f"{clustered.prefix}*") for name in names]
        assert {f"{clustered.prefix}{key}" for key in keys[:3]} <= set(seen)

        def arrive() -> None:
            time.sleep(0.3)
            while redis_cluster.move_keys(number, source, away):
                pass
            redis_cluster.close_slot(number, source, away)

        moving = threading.Thread(target=arrive)
        moving.start()
        writes = [Write("elsewhere", 1, b"1"), *(Write(key, 2, b"2") for key in keys), Write("e{x}", 2, b"x" * 20_000)]
        receipts = list(target.deliver(writes))
        moving.join()
        assert sorted(r.write.key for r in receipts if r.written) == sorted(w.key for w in writes)
        assert [f.value for f in target.fetch(keys)] == [b"2"] * 4
        assert redis_cluster.owner(number) == away
    finally:
        while redis_cluster.owner(number) != home:
            redis_cluster.move_slot(number, home)
    # By a topology that is not true any more: MOVED.
    assert all(r.written for r in target.deliver([Write("a{x}", 3, b"3"), Write("f{x}", 3, b"y" * 20_000)]))
    assert target.identity().marker is not None


def test_what_waits_for_a_slot_is_told_in_the_end(clustered: Migrating, redis_cluster: RedisCluster) -> None:
    clustered.set(redis_timeout="500ms")
    number = slot(f"{clustered.prefix}a".encode())
    clustered.target.plant_marker(0)
    home = redis_cluster.owner(number)
    redis_cluster.open_slot(number, (home + 1) % 3)
    try:
        with pytest.raises(errors.TargetUnavailable, match=f"slot {number} among them"):
            list(clustered.target.deliver([Write("a", 1, b"1")]))
    finally:
        for server in (home, (home + 1) % 3):
            redis_cluster.do(server, "CLUSTER", "SETSLOT", number, "STABLE")
    assert [r.written for r in clustered.target.deliver([Write("a", 1, b"1")])] == [True]


def test_a_scan_sees_what_moves_behind_it(clustered: Migrating, redis_cluster: RedisCluster) -> None:
    """Keys of a master that is scanned late go to one that was scanned before."""
    wanted = {f"{clustered.prefix}k{n}{{s}}" for n in range(50)}
    number = slot(next(iter(wanted)).encode())
    home = redis_cluster.owner(number)
    for name in wanted:
        redis_cluster.do(home, "SET", name, "x")
    order = sorted(range(3), key=lambda n: ("127.0.0.1", redis_cluster.servers[n].port))
    first = order[0] if home != order[0] else order[1]
    if first == order[1]:  # the slot is the first one's already: have it scanned late
        redis_cluster.move_slot(number, order[2])
        first = order[0]
    seen: set[str] = set()
    try:
        batches = target_of(clustered).scan(f"{clustered.prefix}*")
        helper = f"{clustered.prefix}helper"
        while redis_cluster.owner_of(helper) != first:
            helper += "x"
        redis_cluster.do(first, "SET", helper, "x")
        seen |= set(next(batches))  # the first master has been scanned
        assert seen == {helper}
        redis_cluster.move_slot(number, first)
        for names in batches:
            seen |= set(names)
    finally:
        if redis_cluster.owner(number) != home:
            redis_cluster.move_slot(number, home)
    assert seen - {helper} == wanted


# Replicas ---------------------------------------------------------------------------------------------------------


def test_a_delivery_waits_for_replicas(clustered: Migrating) -> None:
    clustered.set(wait_replicas="1")
    writes = [Write(f"k{n}", 1, b"x" * (20_000 if n == 7 else 10)) for n in range(100)]
    assert sum(r.written for r in clustered.target.deliver(writes)) == 100
    clustered.set(wait_replicas="2", redis_timeout="500ms")
    with pytest.raises(errors.TargetUnavailable, match="only 1 of 2 replicas"):
        list(clustered.target.deliver([Write("k1", 2, b"x")]))

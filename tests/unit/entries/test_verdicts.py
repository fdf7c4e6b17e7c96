"""Verdicts, as docs and design say them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.entries.verdicts import REPAIRABLE, TABLE, Counts, Outcome, Verdict, counts_as, outcome

GOOD = {"match", "equivalent", "expired", "skipped"}
NEITHER = {"pending"}
BAD_UNLESS_ACCEPTED = {"set-aside", "orphan"}
BAD = {"missing", "stale", "mismatch", "corrupt", "resurrected", "failed", "newer"}  # newer: until there is redis-only

counts_of = st.dictionaries(st.sampled_from(Verdict), st.integers(0, 10**6))


def test_the_table_is_the_design() -> None:
    def that_count(as_: Counts) -> set[str]:
        return {verdict.value for verdict, meaning in TABLE.items() if meaning.counts is as_}

    assert that_count(Counts.GOOD) == GOOD
    assert that_count(Counts.NEITHER) == NEITHER
    assert that_count(Counts.BAD) == BAD
    assert that_count(Counts.BAD_UNLESS_ACCEPTED) == BAD_UNLESS_ACCEPTED


def test_every_verdict_is_in_the_table_with_its_meaning() -> None:
    assert list(TABLE) == list(Verdict)
    assert all(meaning.text for meaning in TABLE.values())
    assert len({meaning.text for meaning in TABLE.values()}) == len(TABLE)


def test_what_repair_can_heal() -> None:
    assert {v.value for v in REPAIRABLE} == {"missing", "stale", "mismatch", "corrupt", "resurrected", "failed"}
    # What may be somebody else's, what a person decided about, and what is all right, stay as they are.
    assert all(TABLE[verdict].counts is Counts.BAD for verdict in REPAIRABLE)


@pytest.mark.parametrize("verdict", Verdict)
def test_one_key_of_each(verdict: Verdict) -> None:
    passed = verdict.value in GOOD | NEITHER
    assert outcome({verdict: 1}).passed is passed
    assert outcome({Verdict.MATCH: 10**6, verdict: 1}).passed is passed
    assert outcome({verdict: 0}) == Outcome(0, 0, 0, 0)
    everything_accepted = outcome({verdict: 1}, accept_set_aside=99, ignore_orphans=True)
    assert everything_accepted.passed is (passed or verdict.value in BAD_UNLESS_ACCEPTED)


@pytest.mark.parametrize(
    ("count", "accepted", "passed"),
    [(0, 0, True), (1, 0, False), (3, 3, True), (2, 3, True), (4, 3, False)],
)
def test_set_aside_is_accepted_by_number(count: int, accepted: int, passed: bool) -> None:
    found = outcome({Verdict.SET_ASIDE: count, Verdict.MATCH: 5}, accept_set_aside=accepted)
    assert found == Outcome(good=5, bad=0 if passed else count, accepted=count if passed else 0, pending=0)
    assert found.passed is passed


def test_accepting_one_thing_does_not_accept_the_other() -> None:
    counts = {Verdict.SET_ASIDE: 2, Verdict.ORPHAN: 3}
    assert outcome(counts) == Outcome(0, 5, 0, 0)
    assert outcome(counts, accept_set_aside=2) == Outcome(0, 3, 2, 0)
    assert outcome(counts, accept_set_aside=99) == Outcome(0, 3, 2, 0)
    assert outcome(counts, ignore_orphans=True) == Outcome(0, 2, 3, 0)
    assert outcome(counts, accept_set_aside=2, ignore_orphans=True) == Outcome(0, 0, 5, 0)


def test_newer_is_good_where_redis_alone_is_written() -> None:
    assert outcome({Verdict.NEWER: 3}) == Outcome(0, 3, 0, 0)
    assert outcome({Verdict.NEWER: 3, Verdict.MISSING: 1}, frozen=True) == Outcome(3, 1, 0, 0)
    others = [verdict for verdict in Verdict if verdict is not Verdict.NEWER]
    assert all(counts_as(verdict, frozen=True) is TABLE[verdict].counts for verdict in others)


def test_pending_is_neither() -> None:
    assert outcome({Verdict.PENDING: 7}) == Outcome(0, 0, 0, 7)


@given(counts=counts_of, accept=st.integers(0, 10**6), ignore=st.booleans())
def test_every_key_counts_once(counts: dict[Verdict, int], accept: int, ignore: bool) -> None:
    found = outcome(counts, accept_set_aside=accept, ignore_orphans=ignore)
    assert found.good + found.bad + found.accepted + found.pending == sum(counts.values())
    assert found.passed is (found.bad == 0)
    assert found.bad >= sum(counts.get(verdict, 0) for verdict in REPAIRABLE)

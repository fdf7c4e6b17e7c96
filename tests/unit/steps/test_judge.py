"""The verdict on one key, case by case: every branch of judge, and every verdict that it can give."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemig.config import Settings
from cachemig.entries.codec import encode
from cachemig.entries.entry import EPOCH, Entry, digest
from cachemig.entries.verdicts import TABLE, Counts, Verdict
from cachemig.source.scan import Known
from cachemig.steps.judge import EXPIRY_TOLERANCE_MS, NOBODY, judge
from cachemig.targets.redis import Found

NOW = 1_700_000_000_000
LATER = NOW + 3_600_000
SETTINGS = Settings(max_lag=30.0, shape="object")
TEXT = b'{"a": 1, "b": [2]}'
SAME = b'{"b":[2.0],"a":1}'
OTHER = b'{"a": 2, "b": [2]}'


@dataclass(frozen=True)
class Case:
    """One key. By default all is well: delivered at version 3, to expire in an hour, and found so."""

    verdict: Verdict
    why: str = ""
    # Postgres
    text: bytes | None = TEXT
    version: int = 3
    row_expires: int | None = LATER
    pending_s: float | None = None
    # The ledger
    state: str | None = "delivered"
    ledger_version: int | None = 3
    ledger_expires: int | None = LATER
    sha256: bytes | None = digest(TEXT)
    error: str | None = None
    nbytes: int | None = None
    late_s: float | None = None
    by_ledger: bool = False
    alone: range = NOBODY
    # Redis
    value: bytes | None = TEXT
    held: int | None = 3
    ttl_ms: int | None = LATER - NOW
    fault: str | None = None

    def judged(self) -> tuple[Verdict, str]:
        entry = Entry("key", self.text, self.version, self.row_expires)
        known = Known(
            entry,
            self.pending_s,
            self.state,
            self.ledger_version,
            self.ledger_expires,
            self.sha256,
            self.error,
            self.nbytes,
            self.late_s,
            self.by_ledger,
        )
        found = Found("key", self.value, self.held, self.ttl_ms, self.fault)
        return judge(known, found, SETTINGS, NOW, self.alone)


V = Verdict
GONE = "its version key is gone"
MISSING = "evicted, deleted or never delivered"
CLEARED = "its row was cleared or deleted"
late = replace(Case(V.STALE), held=2, pending_s=31.0)

CASES = {
    # Equal versions, a value on both sides
    "the same": Case(V.MATCH),
    "the same, gzip": Case(V.MATCH, value=bytes(encode("gzip", TEXT))),
    "the same, zstd": Case(V.MATCH, value=bytes(encode("zstd", TEXT))),
    "the same, never changed": Case(V.MATCH, version=0, ledger_version=0, held=None),
    "the same, though marked again": Case(V.MATCH, pending_s=99.0),
    "by meaning": Case(V.EQUIVALENT, value=SAME),
    "by meaning, gzip": Case(V.EQUIVALENT, value=bytes(encode("gzip", SAME))),
    "other": Case(V.MISMATCH, "18 bytes in Redis, 18 in the column", value=OTHER),
    "other, in gzip": Case(V.MISMATCH, "18 bytes in Redis, 18 in the column", value=bytes(encode("gzip", OTHER))),
    "other, empty": Case(V.MISMATCH, "0 bytes in Redis, 18 in the column", value=b""),
    "not JSON": Case(V.MISMATCH, "4 bytes in Redis, 18 in the column", value=b"\xff\xff\xff\xff"),
    "a cut frame": Case(
        V.CORRUPT, "zstd frame is cut or followed by other bytes", value=bytes(encode("zstd", TEXT))[:-1]
    ),
    # Redis's side alone
    "unreadable": Case(V.CORRUPT, "WRONGTYPE", fault="WRONGTYPE", value=None, held=None),
    "unreadable beats pending": Case(V.CORRUPT, "WRONGTYPE", fault="WRONGTYPE", held=2, pending_s=0.1),
    "ahead": Case(V.CORRUPT, "its version key is ahead of Postgres: 4 after 3", held=4),
    "ahead, row gone": Case(V.CORRUPT, "its version key is ahead of Postgres: 4 after 3", held=4, text=None),
    # Expiry, where the ledger knows what was written
    "expires as written": Case(V.MATCH, ttl_ms=LATER - NOW + EXPIRY_TOLERANCE_MS),
    "expires as written, early": Case(V.MATCH, ttl_ms=LATER - NOW - EXPIRY_TOLERANCE_MS),
    "expires too late": Case(V.CORRUPT, "it expires 6 s later than it was to", ttl_ms=LATER - NOW + 6_000),
    "expires too early": Case(V.CORRUPT, "it expires 3,500 s earlier than it was to", ttl_ms=100_000),
    "just beyond the tolerance": Case(
        V.CORRUPT, "it expires 5 s later than it was to", ttl_ms=LATER - NOW + EXPIRY_TOLERANCE_MS + 1
    ),
    "never expires": Case(V.CORRUPT, "it never expires, and was to", ttl_ms=None),
    "expires, and was not to": Case(V.CORRUPT, "it expires, and was not to", ledger_expires=None),
    "never expires, as written": Case(V.MATCH, ledger_expires=None, ttl_ms=None),
    "by meaning, but never expires": Case(V.CORRUPT, "it never expires, and was to", value=SAME, ttl_ms=None),
    "other, and never expires": Case(V.MISMATCH, "18 bytes in Redis, 18 in the column", value=OTHER, ttl_ms=None),
    "the row's later expiry is not what was written": Case(V.MATCH, row_expires=LATER + 10**9),
    "an older ledger says nothing of expiry": Case(V.MATCH, ledger_version=2, ttl_ms=None, pending_s=0.1),
    "no ledger says nothing of expiry": Case(
        V.MATCH, state=None, ledger_version=None, ledger_expires=None, sha256=None, ttl_ms=5, pending_s=0.1
    ),
    # Nothing in Redis at the right version
    "past its time": Case(V.EXPIRED, value=None, ttl_ms=None, ledger_expires=NOW),
    "past its time when backfilled": Case(V.EXPIRED, value=None, ttl_ms=None, state="expired", ledger_expires=NOW - 1),
    "not yet past its time": Case(V.MISSING, MISSING, value=None, ttl_ms=None, ledger_expires=NOW + 1),
    "of no expiry": Case(V.MISSING, MISSING, value=None, ttl_ms=None, ledger_expires=None),
    "the ledger's time counts, not the row's": Case(
        V.MISSING, MISSING, value=None, ttl_ms=None, row_expires=NOW - 1, ledger_expires=LATER
    ),
    "never handled, past its time": Case(
        V.EXPIRED, value=None, ttl_ms=None, version=0, held=None, row_expires=NOW - 1,
        state=None, ledger_version=None, ledger_expires=None, sha256=None,
    ),
    "never handled": Case(
        V.MISSING, MISSING, value=None, ttl_ms=None, version=0, held=None,
        state=None, ledger_version=None, ledger_expires=None, sha256=None,
    ),
    "an older ledger, the row past its time": Case(
        V.EXPIRED, value=None, ttl_ms=None, ledger_version=2, row_expires=NOW - 1, pending_s=0.1
    ),
    # No value in the table
    "cleared": Case(V.SKIPPED, text=None, value=None, state="removed", sha256=None),
    "cleared, but there": Case(V.RESURRECTED, CLEARED, text=None, state="removed", sha256=None),
    "never there": Case(V.SKIPPED, text=None, value=None, version=0, held=None, state=None, ledger_version=None),
    # What the ledger says of this very state
    "changed behind the trigger": Case(
        V.CORRUPT, "the ledger's digest is not that of the column", text=OTHER, value=OTHER
    ),
    "an older digest does not count": Case(V.MATCH, text=OTHER, value=OTHER, ledger_version=2, pending_s=0.1),
    "another size": Case(V.CORRUPT, "the ledger's size is not that of the column", nbytes=17),
    "the right size": Case(V.MATCH, nbytes=18),
    "an older ledger, and nothing on its way": Case(
        V.CORRUPT, "version 2 in the ledger, 3 in Postgres", version=3, ledger_version=2
    ),
    "a ledger that is ahead": Case(V.CORRUPT, "version 4 in the ledger, 3 in Postgres", ledger_version=4),
    "not in the ledger": Case(V.CORRUPT, "the ledger does not know it", state=None, ledger_version=None),
    "called removed": Case(V.CORRUPT, "the ledger calls it removed, a row holds it", state="removed"),
    "called expired": Case(
        V.CORRUPT, "the ledger calls it expired, Redis holds it", state="expired", row_expires=NOW - 1
    ),
    "expired, used since, and filled by a read": Case(V.MATCH, state="expired"),
    "filled again by a read, after the row was used": Case(
        V.MATCH, row_expires=LATER + 9_000_000, ttl_ms=LATER - NOW + 5_000_000
    ),
    "later than any fill": Case(
        V.CORRUPT, "it expires 90 s later than it was to", row_expires=LATER + 10_000, ttl_ms=LATER - NOW + 100_000
    ),
    "cleared, and called delivered": Case(
        V.CORRUPT, "the ledger calls it delivered, no row holds it", text=None, value=None
    ),
    "a truncate on its way": Case(V.PENDING, "changed 0.4 s ago", text=None, state="removed", pending_s=0.4),
    "failed": Case(V.FAILED, "redis: no", state="failed", error="redis: no", value=None),
    "failed without a reason": Case(V.FAILED, "no reason recorded", state="failed", value=None),
    "failed before, delivered since": Case(
        V.MATCH, state="failed", error="redis: no", ledger_version=2, pending_s=0.1
    ),
    "set aside": Case(V.SET_ASIDE, "too-large: x", state="set-aside", error="too-large: x", value=None, ttl_ms=None),
    "set aside, never changed": Case(
        V.SET_ASIDE, "too-large: x", state="set-aside", error="too-large: x", value=None, version=0, held=None,
        ledger_version=0,
    ),
    "set aside, but there": Case(V.MISMATCH, "it was set aside", state="set-aside", error="too-large: x"),
    # Behind
    "on its way": Case(V.PENDING, "changed 0.4 s ago", held=2, pending_s=0.4),
    "on its way, to a new key": Case(V.PENDING, "changed 0.4 s ago", held=None, value=None, version=1, pending_s=0.4),
    "on its way, to be removed": Case(V.PENDING, "changed 0.4 s ago", held=2, text=None, pending_s=0.4),
    "on its way for as long as may be": Case(V.PENDING, "changed 30.0 s ago", held=2, pending_s=30.0),
    "late": Case(V.STALE, "version 2 in Redis, 3 in Postgres; its change is 31 s old and not delivered",
                 held=2, pending_s=31.0, value=OTHER),
    "late, and not there": Case(
        V.MISSING, f"{MISSING}; its change is 31 s old and not delivered", held=2, pending_s=31.0, value=None
    ),
    "late, and still there": Case(
        V.RESURRECTED, f"{CLEARED}; its change is 31 s old and not delivered", held=2, pending_s=31.0, text=None
    ),
    "late to say that nothing is there": Case(
        V.SKIPPED, held=2, pending_s=31.0, text=None, value=None, state=None, ledger_version=None
    ),
    "stale": Case(V.STALE, "version 2 in Redis, 3 in Postgres", held=2, value=OTHER),
    "stale by version though equal": Case(V.STALE, "version 2 in Redis, 3 in Postgres", held=2),
    "stale, of no version": Case(V.STALE, "version 0 in Redis, 3 in Postgres", held=None, value=OTHER),
    "stale, undecodable": Case(
        V.STALE, "version 0 in Redis, 3 in Postgres", held=None, value=bytes(encode("gzip", TEXT))[:-1]
    ),
    "its version evicted": Case(V.CORRUPT, GONE, held=None),
    "its version evicted, gzip": Case(V.CORRUPT, GONE, held=None, value=bytes(encode("gzip", TEXT))),
    "its version evicted, late": Case(
        V.CORRUPT, f"{GONE}; its change is 31 s old and not delivered", held=None, pending_s=31.0
    ),
    "evicted altogether": Case(V.MISSING, MISSING, held=None, value=None),
    "its tombstone evicted": Case(V.CORRUPT, GONE, held=None, value=None, text=None, state="removed"),
    "the tombstone of a set-aside evicted": Case(V.CORRUPT, GONE, held=None, value=None, state="set-aside"),
    "the tombstone of an expired evicted": Case(V.CORRUPT, GONE, held=None, value=None, state="expired"),
    "an older tombstone does not count": Case(
        V.MISSING, MISSING, held=None, value=None, state="removed", ledger_version=2
    ),
    "behind, and nothing anywhere": Case(
        V.SKIPPED, held=2, value=None, text=None, state=None, ledger_version=None
    ),
    "behind, and to be nothing": Case(V.RESURRECTED, CLEARED, held=2, text=None),
}  # fmt: skip

GIVEN_ELSEWHERE = {Verdict.NEWER, Verdict.ORPHAN}
"""newer needs redis-only, and whether a key was ever known is for the scan of Redis to say."""


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_verdict(case: Case) -> None:
    assert case.judged() == (case.verdict, case.why)


@pytest.mark.parametrize("epoch", [1, 2, 8191])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_later_epoch_changes_no_verdict(case: Case, epoch: int) -> None:
    """But for what was never changed: in a later epoch that has a version too."""

    def shifted(version: int | None) -> int | None:
        return None if version is None else epoch * EPOCH + version

    held = case.held if case.version or case.held is not None else 0  # version 0 has no version key, EPOCH has one
    moved = replace(
        case, version=epoch * EPOCH + case.version, ledger_version=shifted(case.ledger_version), held=shifted(held)
    )
    verdict, why = moved.judged()
    assert verdict is case.verdict
    if " in Postgres" not in why and "ahead" not in why:
        assert why == case.why


def test_a_value_of_the_epoch_before_is_stale() -> None:
    case = Case(Verdict.STALE, version=EPOCH, held=5, ledger_version=5)
    assert case.judged() == (Verdict.STALE, f"version 5 in Redis, {EPOCH} in Postgres")
    unversioned = replace(case, held=None, value=OTHER)
    assert unversioned.judged()[0] is Verdict.STALE


def test_every_verdict_has_its_case() -> None:
    assert {case.verdict for case in CASES.values()} | GIVEN_ELSEWHERE == set(Verdict)


def test_whatever_is_not_good_has_a_reason() -> None:
    for case in CASES.values():
        assert bool(case.why) is (TABLE[case.verdict].counts is not Counts.GOOD)


# The column is frozen, or gone

ALONE = range(EPOCH, 2 * EPOCH)
newer = replace(Case(V.NEWER), alone=ALONE, held=EPOCH + 1, value=OTHER)
gone = replace(Case(V.MATCH), alone=ALONE, by_ledger=True, text=None, nbytes=len(TEXT))

FROZEN = {
    "written to Redis alone": newer,
    "the last of that epoch": replace(newer, held=2 * EPOCH - 1),
    "removed there, or expired": replace(newer, value=None, ttl_ms=None),
    "without a row": replace(newer, text=None, state=None, ledger_version=None),
    "of a failed key": replace(newer, state="failed", error="no"),
    "of an epoch to come": replace(
        newer, verdict=V.CORRUPT, held=2 * EPOCH, why=f"its version key is ahead of Postgres: {2 * EPOCH} after 3"
    ),
    "while the column is in use": replace(
        newer, verdict=V.CORRUPT, alone=NOBODY, why=f"its version key is ahead of Postgres: {EPOCH + 1} after 3"
    ),
    "no JSON": replace(newer, verdict=V.CORRUPT, value=b"{x", why="written to Redis alone: it is not JSON"),
    "a late write on its way": replace(newer, verdict=V.PENDING, late_s=30.0, why="written to the column 30.0 s ago"),
    "a late write left behind": replace(
        newer, verdict=V.STALE, late_s=30.1, why="written to the column 30 s ago, and not delivered"
    ),
    "a late write replaces what was equal": replace(
        Case(V.PENDING), alone=ALONE, late_s=1.0, why="written to the column 1.0 s ago"
    ),
    "by the ledger": gone,
    "by the ledger another one": replace(
        gone, verdict=V.MISMATCH, value=OTHER,
        why=f"{len(OTHER)} bytes in Redis, {len(TEXT)} in the ledger, of another digest",
    ),
    "by the ledger another size": replace(
        gone, verdict=V.CORRUPT, nbytes=1, why="the ledger's size is not that of the value"
    ),
    "by the ledger missing": replace(gone, verdict=V.MISSING, value=None, ttl_ms=None, why=MISSING),
    "by the ledger expired": replace(
        gone, verdict=V.EXPIRED, value=None, ttl_ms=None, ledger_expires=NOW
    ),
    "by the ledger removed": replace(gone, verdict=V.SKIPPED, state="removed", value=None, ttl_ms=None),
    "by the ledger removed, and back": replace(gone, verdict=V.RESURRECTED, state="removed", why=CLEARED),
    "by the ledger unknown": replace(
        gone, verdict=V.RESURRECTED, state=None, ledger_version=None, version=0, held=None, why=CLEARED
    ),
    "by the ledger past its time, and filled again": replace(gone, state="expired"),
    "by the ledger past its time, and never to expire": replace(
        gone, verdict=V.CORRUPT, state="expired", ttl_ms=None, why="the ledger calls it expired, Redis holds it"
    ),
    "by the ledger newer": replace(gone, verdict=V.NEWER, held=EPOCH, value=OTHER),
}  # fmt: skip


@pytest.mark.parametrize("name", FROZEN)
def test_once_the_column_is_frozen(name: str) -> None:
    case = FROZEN[name]
    assert case.judged() == (case.verdict, case.why)


versions = st.integers(0, 3)
values = st.sampled_from([None, TEXT, SAME, OTHER, b"\x1f\x8bx"])


@given(
    text=values.filter(lambda value: value != b"\x1f\x8bx"),
    version=versions,
    pending_s=st.none() | st.sampled_from([0.0, 30.0, 30.1]),
    state=st.sampled_from([None, "delivered", "expired", "set-aside", "failed", "removed"]),
    ledger_version=versions,
    sha256=st.sampled_from([None, digest(TEXT), digest(OTHER)]),
    expires=st.sampled_from([None, NOW - 1, LATER]),
    value=values,
    held=st.none() | versions,
    ttl_ms=st.none() | st.sampled_from([0, LATER - NOW]),
)
def test_nothing_wrong_is_ever_called_good(
    text: bytes | None,
    version: int,
    pending_s: float | None,
    state: str | None,
    ledger_version: int,
    sha256: bytes | None,
    expires: int | None,
    value: bytes | None,
    held: int | None,
    ttl_ms: int | None,
) -> None:
    case = Case(
        Verdict.MATCH, text=text, version=version, row_expires=expires, pending_s=pending_s, state=state,
        ledger_version=ledger_version, ledger_expires=expires, sha256=sha256, value=value, held=held, ttl_ms=ttl_ms,
    )  # fmt: skip
    verdict, why = case.judged()
    if TABLE[verdict].counts is Counts.GOOD:
        assert not why
        if value is not None:
            assert text is not None
            assert json.loads(value) == json.loads(text)
            assert (held or 0) == version, "an old value that happens to be equal could be overwritten by an older one"
        elif text is not None:
            assert expires is not None
            assert expires <= NOW
    if verdict is Verdict.PENDING:
        assert pending_s is not None
        assert pending_s <= SETTINGS.max_lag

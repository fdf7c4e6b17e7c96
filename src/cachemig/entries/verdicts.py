"""Verdicts: what verify says of each key. Pure data and one pure function."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    MATCH = "match"
    EQUIVALENT = "equivalent"
    NEWER = "newer"
    EXPIRED = "expired"
    SKIPPED = "skipped"
    PENDING = "pending"
    SET_ASIDE = "set-aside"
    MISSING = "missing"
    STALE = "stale"
    MISMATCH = "mismatch"
    CORRUPT = "corrupt"
    RESURRECTED = "resurrected"
    ORPHAN = "orphan"
    FAILED = "failed"


class Counts(StrEnum):
    """What a verdict counts as."""

    GOOD = "good"
    NEITHER = "neither"
    BAD = "bad"
    BAD_UNLESS_ACCEPTED = "bad unless accepted"


@dataclass(frozen=True)
class Meaning:
    text: str
    counts: Counts


TABLE: dict[Verdict, Meaning] = {
    Verdict.MATCH: Meaning("same bytes as the column's text", Counts.GOOD),
    Verdict.EQUIVALENT: Meaning("other bytes, equal JSON", Counts.GOOD),
    Verdict.NEWER: Meaning("written or removed in Redis alone, after the column was frozen", Counts.BAD),  # counts_as()
    Verdict.EXPIRED: Meaning("not in Redis, and past its time", Counts.GOOD),
    Verdict.SKIPPED: Meaning("NULL or empty in the table, nothing in Redis", Counts.GOOD),
    Verdict.PENDING: Meaning("a change is still on its way", Counts.NEITHER),
    Verdict.SET_ASIDE: Meaning("corrupt in the table; reason in the ledger; not in Redis", Counts.BAD_UNLESS_ACCEPTED),
    Verdict.MISSING: Meaning("in the table, not in Redis", Counts.BAD),
    Verdict.STALE: Meaning("Redis holds an older version", Counts.BAD),
    Verdict.MISMATCH: Meaning("Redis holds something else", Counts.BAD),
    Verdict.CORRUPT: Meaning(
        "Redis holds bytes that cannot be decoded, or a version or expiry that nobody wrote", Counts.BAD
    ),
    Verdict.RESURRECTED: Meaning("in Redis, but the row was cleared or deleted", Counts.BAD),
    Verdict.ORPHAN: Meaning("under the prefix in Redis, no row ever known", Counts.BAD_UNLESS_ACCEPTED),
    Verdict.FAILED: Meaning("could not be read or written; reason in the ledger", Counts.BAD),
}

REPAIRABLE = frozenset(
    {Verdict.MISSING, Verdict.STALE, Verdict.MISMATCH, Verdict.CORRUPT, Verdict.RESURRECTED, Verdict.FAILED}
)
"""What marking the key changed heals. An orphan is not among them: it may be somebody else's."""


@dataclass(frozen=True)
class Outcome:
    """Whether a verification passed, and why not."""

    good: int
    bad: int
    accepted: int
    pending: int

    @property
    def passed(self) -> bool:
        return self.bad == 0


def counts_as(verdict: Verdict, *, frozen: bool) -> Counts:
    """What the verdict counts as. `frozen`: in a phase from redis-only on, where Redis alone is written."""
    return Counts.GOOD if frozen and verdict is Verdict.NEWER else TABLE[verdict].counts


def outcome(
    counts: dict[Verdict, int], *, accept_set_aside: int = 0, ignore_orphans: bool = False, frozen: bool = False
) -> Outcome:
    """Adds verdicts up. Set-aside rows are accepted only when there are at most as many as were accepted by number:
    one more than the reviewer has seen is news, and makes all of them bad. `frozen` as in counts_as."""
    good = bad = accepted = pending = 0
    for verdict, count in counts.items():
        match counts_as(verdict, frozen=frozen):
            case Counts.GOOD:
                good += count
            case Counts.NEITHER:
                pending += count
            case Counts.BAD:
                bad += count
            case Counts.BAD_UNLESS_ACCEPTED:
                is_accepted = ignore_orphans if verdict is Verdict.ORPHAN else count <= accept_set_aside
                accepted += count * is_accepted
                bad += count * (not is_accepted)
    return Outcome(good, bad, accepted, pending)

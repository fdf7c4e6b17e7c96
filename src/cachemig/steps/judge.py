"""The verdict on one key, from what Postgres, the ledger and Redis say of it. Pure."""

from __future__ import annotations

from cachemig.config import Settings
from cachemig.entries.codec import Undecodable, decode
from cachemig.entries.compare import is_json, same_json
from cachemig.entries.entry import Buffer, Entry, digest
from cachemig.entries.shape import fault
from cachemig.entries.verdicts import Verdict
from cachemig.source.scan import Known
from cachemig.targets.redis import Found

EXPIRY_TOLERANCE_MS = 5_000
NOBODY = range(0)
"""Versions of writes to Redis alone while the column is in use: none."""
ALONE = "written to Redis alone"


def judge(known: Known, found: Found, settings: Settings, now_ms: int, alone: range = NOBODY) -> tuple[Verdict, str]:
    """The verdict and, where it is not good, the reason in words. `now_ms` is Redis's clock; `alone` are the versions
    of writes to Redis alone, once the column is frozen.

    The two sides are not read at one instant, so a verdict that is not good is to be confirmed by reading again.
    """
    entry = known.entry
    held = found.version or 0
    if found.fault is not None:
        return Verdict.CORRUPT, found.fault
    if late := _late(known, settings):
        return late
    if held in alone:
        return _newer(found, settings)
    if held > entry.version:
        return Verdict.CORRUPT, f"its version key is ahead of Postgres: {held} after {entry.version}"
    if held < entry.version:
        return _behind(known, found, settings)
    if not known.holds:
        if found.value is None:
            why = _ledger_fault(known, found, now_ms)
            return (Verdict.CORRUPT, why) if why else (Verdict.SKIPPED, "")
        # Pending at an equal version: a TRUNCATE whose marks are still to come.
        return _pending(known, settings) or (Verdict.RESURRECTED, "its row was cleared or deleted")
    if why := _ledger_fault(known, found, now_ms):
        return Verdict.CORRUPT, why
    current = known.version == entry.version  # the ledger speaks of this very state
    if current and known.state == "failed":
        return Verdict.FAILED, known.error or "no reason recorded"
    if current and known.state == "set-aside":
        return (Verdict.SET_ASIDE, known.error or "") if found.value is None else (Verdict.MISMATCH, "it was set aside")
    expires_at_ms = known.expires_at_ms if current else entry.expires_at_ms
    if found.value is None:
        if expires_at_ms is not None and expires_at_ms <= now_ms:
            return Verdict.EXPIRED, ""
        return Verdict.MISSING, "evicted, deleted or never delivered"
    try:
        text = decode(found.value)
    except Undecodable as exc:
        return Verdict.CORRUPT, str(exc)
    verdict, why = _compared(known, text)
    if why:
        return verdict, why
    latest_ms = _latest_expiry(entry, settings, now_ms)
    if (
        current
        and known.state == "delivered"
        and (why := _wrong_expiry(expires_at_ms, latest_ms, found.ttl_ms, now_ms))
    ):
        return Verdict.CORRUPT, why
    return verdict, ""


def _late(known: Known, settings: Settings) -> tuple[Verdict, str] | None:
    """What was written to the frozen column and is to replace what Redis holds."""
    if known.late_s is None:
        return None
    if known.late_s <= settings.max_lag:
        return Verdict.PENDING, f"written to the column {known.late_s:.1f} s ago"
    return Verdict.STALE, f"written to the column {known.late_s:,.0f} s ago, and not delivered"


def _newer(found: Found, settings: Settings) -> tuple[Verdict, str]:
    """Nothing is known of what was written to Redis alone, but that readers must be able to take it. Where no value
    is, it was removed or has expired since."""
    if found.value is None:
        return Verdict.NEWER, ""
    try:
        text = decode(found.value)
    except Undecodable as exc:
        return Verdict.CORRUPT, f"{ALONE}: {exc}"
    if not is_json(text):
        return Verdict.CORRUPT, f"{ALONE}: it is not JSON"
    why = fault(text, settings)
    if why is not None and (settings.corrupt != "copy" or why.startswith("too-large")):
        return Verdict.CORRUPT, f"{ALONE}: {why}"
    return Verdict.NEWER, ""


def _compared(known: Known, text: Buffer) -> tuple[Verdict, str]:
    """With the column's text or, where that is gone, with its digest."""
    expected = known.entry.text
    if expected is None:
        if known.sha256 != digest(text):
            size = f"{known.bytes:,}" if known.bytes is not None else "no"
            return Verdict.MISMATCH, f"{len(text):,} bytes in Redis, {size} in the ledger, of another digest"
        if known.bytes is not None and known.bytes != len(text):
            return Verdict.CORRUPT, "the ledger's size is not that of the value"
        return Verdict.MATCH, ""
    if text == expected:
        return Verdict.MATCH, ""
    if same_json(text, expected):
        return Verdict.EQUIVALENT, ""
    return Verdict.MISMATCH, f"{len(text):,} bytes in Redis, {len(expected):,} in the column"


def _behind(known: Known, found: Found, settings: Settings) -> tuple[Verdict, str]:
    """Redis holds an older version than Postgres, or none."""
    entry = known.entry
    if pending := _pending(known, settings):
        return pending
    late = f"; its change is {known.pending_s:.0f} s old and not delivered" if known.pending_s is not None else ""
    if found.value is None:
        if known.version == entry.version and known.state in ("removed", "set-aside", "expired"):
            # Nothing is there, as it should be; but without its tombstone an old write would be accepted.
            return Verdict.CORRUPT, "its version key is gone"
        if not known.holds:
            return Verdict.SKIPPED, ""
        return Verdict.MISSING, f"evicted, deleted or never delivered{late}"
    if not known.holds:
        return Verdict.RESURRECTED, f"its row was cleared or deleted{late}"
    if found.version is None and _same(known, found):
        return Verdict.CORRUPT, f"its version key is gone{late}"
    return Verdict.STALE, f"version {found.version or 0} in Redis, {entry.version} in Postgres{late}"


def _ledger_fault(known: Known, found: Found, now_ms: int) -> str | None:
    """Why the ledger's row cannot be what was written when Redis was brought to this version; None: it can.

    A change is folded in the transaction that writes the ledger, so a key without a change on its way agrees with it.
    """
    entry = known.entry
    if known.version == entry.version:
        if not known.holds:
            return (
                None if known.state in ("removed", "failed") else f"the ledger calls it {known.state}, no row holds it"
            )
        if known.state == "removed":
            return "the ledger calls it removed, a row holds it"
        if known.state == "expired" and found.value is not None and _was_never_filled_again(entry, found, now_ms):
            return "the ledger calls it expired, Redis holds it"
        if entry.text is None:
            return None
        if known.sha256 is not None and known.sha256 != digest(entry.text):
            return "the ledger's digest is not that of the column"
        if known.bytes is not None and known.bytes != len(entry.text):
            return "the ledger's size is not that of the column"
        return None
    if known.pending_s is not None:
        return None
    if known.version is not None:
        return f"version {known.version} in the ledger, {entry.version} in Postgres"
    return "the ledger does not know it" if found.value is not None else None


def _pending(known: Known, settings: Settings) -> tuple[Verdict, str] | None:
    if known.pending_s is not None and known.pending_s <= settings.max_lag:
        return Verdict.PENDING, f"changed {known.pending_s:.1f} s ago"
    return None


def _same(known: Known, found: Found) -> bool:
    """The very bytes that are expected."""
    try:
        return found.value is not None and _compared(known, decode(found.value))[0] is Verdict.MATCH
    except Undecodable:
        return False


def _was_never_filled_again(entry: Entry, found: Found, now_ms: int) -> bool:
    """A read fills Redis again where the row was used since; what it writes expires."""
    return found.ttl_ms is None or (entry.expires_at_ms is not None and entry.expires_at_ms <= now_ms)


def _latest_expiry(entry: Entry, settings: Settings, now_ms: int) -> int | None:
    """What a read that filled Redis again may have given it: the row may have been used since its first delivery."""
    if not settings.ttl:
        return None
    return entry.expires_at_ms or now_ms + int(settings.ttl * 1000 * (1 + settings.ttl_jitter))


def _wrong_expiry(expires_at_ms: int | None, latest_ms: int | None, ttl_ms: int | None, now_ms: int) -> str | None:
    if expires_at_ms is None:
        return None if ttl_ms is None else "it expires, and was not to"
    if ttl_ms is None:
        return "it never expires, and was to"
    at_ms = now_ms + ttl_ms
    if at_ms < expires_at_ms - EXPIRY_TOLERANCE_MS:
        return f"it expires {(expires_at_ms - at_ms) / 1000:,.0f} s earlier than it was to"
    latest_ms = max(expires_at_ms, latest_ms or 0)
    if at_ms > latest_ms + EXPIRY_TOLERANCE_MS:
        return f"it expires {(at_ms - latest_ms) / 1000:,.0f} s later than it was to"
    return None

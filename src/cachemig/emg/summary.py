"""The short entry: names of the analysed muscles, and their mean compliance. No NumPy here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def summary_of(records: Mapping[str, Mapping[str, Any]], cached_at: datetime | None) -> dict[str, Any]:
    """The summary of these records by base name, in their order.

    A muscle without contractions, or of a profile without compliance rates, counts as 0, and so does a recording
    without muscles. `cached_at` None leaves the time out, as the application did in the end. ValueError: a time
    without a zone.
    """
    rates = [float(one.get("compliance_rate", 0.0)) for one in records.values()]
    summary: dict[str, Any] = {
        "total_channels": len(records),
        "overall_compliance": sum(rates) / len(rates) if rates else 0.0,
    }
    if cached_at is not None:
        if cached_at.tzinfo is None:
            raise ValueError("cached_at: a time zone is wanted")
        summary["cached_at"] = cached_at.astimezone(UTC).isoformat(timespec="microseconds")
    return {"channels": list(records), "summary": summary}

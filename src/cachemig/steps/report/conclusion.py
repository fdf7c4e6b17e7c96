"""The first line of the report: safe to drop or not yet; once dropped, proven equal or not. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cachemig.ladder import Phase
from cachemig.source import control
from cachemig.steps import clients
from cachemig.steps.report.document import Checked, Conclusion
from cachemig.steps.status import Status


def conclude(
    stands: Status,
    migration: control.Migration,
    checked: Checked | None,
    gates: Sequence[Mapping[str, Any]],
    not_told: str | None,
    server_changed: str | None,
) -> Conclusion:
    """Safe to drop, or not yet; once dropped: proven equal, or what is not. `not_told`: why something could not be
    looked at, which is never taken for good. `server_changed`: why Redis may have lost what was compared."""
    wrong = [f"the last verification found {c.keys:,} {c.verdict}" for c in checked.counts if c.counts == "bad"] if (
        checked is not None and not checked.passed
    ) else []  # fmt: skip
    tone = "bad" if wrong else "wait"
    if migration.phase is Phase.DROPPED:
        why = [*wrong]
        if not_told:
            why.append(not_told)
        if server_changed:
            why.append(server_changed)
        if checked is None or not checked.since_drop:
            why.append("no verification of all keys since the column was dropped: cachemig verify")
        elif checked.epoch != migration.epoch or not checked.same_settings:
            why.append("the last verification is of an earlier epoch, or of other settings: cachemig verify")
        if checked is not None and not checked.passed and not wrong:
            why.append("the last verification did not pass: cachemig verify")
        if stands.column_is_there:
            why.append("the table has a column of this name again")
        if why:
            return Conclusion(tone, "The column is dropped; that nothing was lost is not proven now.", why)
        assert checked is not None
        good = sum(c.keys for c in checked.counts if c.counts == "good")
        rest = [f"{c.keys:,} {c.verdict}: {c.means}" for c in checked.counts if c.counts in ("accepted", "neither")]
        return Conclusion(
            "good", f"Dropped, and proven equal: all {good:,} keys are what the ledger says was delivered.", rest
        )
    if migration.phase is not Phase.REDIS_ONLY:
        at = clients.stage(migration.phase, migration.percent)
        why = [*wrong, f"the phase is {at}: applications still use the column", f"next: {stands.next_command}"]
        return Conclusion(tone, "Not yet safe to drop: the column is in use.", [*why, *filter(None, [not_told])])
    unmet = [g for g in gates if not g["met"]]
    if not_told or not gates:
        return Conclusion(
            tone, "Not yet safe to drop: what it wants could not be looked at.", [*wrong, *filter(None, [not_told])]
        )
    if unmet:
        line = f"Not yet safe to drop: {len(unmet)} of {len(gates)} gates are not met."
        return Conclusion(
            tone, line, [f"{g['gate']}: {g['figure']} (wanted: {g['demands']}); {g['command']}" for g in unmet]
        )
    return Conclusion("good", "Safe to drop: every gate of drop-column is met.", [])

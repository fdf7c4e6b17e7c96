"""The documents that --json prints: what each is called, and how a result becomes one.

Every document names its schema (`cachemig/verify/1`), so that two of them are told apart wherever they lie. The schemas
themselves stand in docs/schemas, one file a command, and are generated from the classes named here.
"""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Any

VERSION = 1
"""Grows where something is taken out of a document or means something else; not where a command gains a kind."""
DRY_RUN = "cachemig.steps.dry_run:DryRun"
_MOVED = "cachemig.steps.cutover:Moved"
_MOVE = "cachemig.steps.cutover:Preview"
_WRITTEN = "cachemig.steps.files:Written"

# By command and kind of result; '' is what the command itself is for.
RESULTS: dict[str, dict[str, str]] = {
    "init": {"": "cachemig.steps.init:Initialised", "dry-run": DRY_RUN, "file": _WRITTEN},
    "doctor": {"": "cachemig.steps.doctor.finding:Findings", "config": "cachemig.cli.results:Configuration"},
    "plan": {"": "cachemig.steps.plan:Plan", "file": "cachemig.steps.apply:Made"},
    "apply": {"": "cachemig.steps.apply:Checked"},
    "dual-write": {"": "cachemig.steps.dual_write:Switched", "dry-run": DRY_RUN, "file": _WRITTEN},
    "backfill": {"": "cachemig.steps.backfill:Backfilled", "dry-run": "cachemig.steps.backfill:Outlook"},
    "sync": {"": "cachemig.steps.sync:Synced", "dry-run": DRY_RUN},
    "verify": {"": "cachemig.steps.verify:Verified"},
    "resync": {"": "cachemig.steps.resync:Resynced", "dry-run": DRY_RUN},
    "pause": {"": "cachemig.steps.orders:Given", "dry-run": DRY_RUN},
    "resume": {"": "cachemig.steps.orders:Given", "dry-run": DRY_RUN},
    "throttle": {"": "cachemig.steps.orders:Given", "dry-run": DRY_RUN},
    "recompute": {
        "": "cachemig.steps.recompute:Recomputed",
        "undo": "cachemig.steps.recompute:Undone",
        "compare": "cachemig.steps.compare:Compared",
        "plot": "cachemig.cli.results:Plotted",
    },
    "cutover": {"": _MOVED, "ramp": "cachemig.steps.cutover:Ramped", "dry-run": _MOVE},
    "rollback": {"": _MOVED, "dry-run": _MOVE},
    "stop-writes": {
        "": "cachemig.steps.stop_writes:Stopped",
        "dry-run": "cachemig.steps.stop_writes:Preview",
        "file": _WRITTEN,
    },
    "residue": {"": "cachemig.steps.residue:Residue"},
    "measure": {"": "cachemig.steps.measure:Measured"},
    "status": {"": "cachemig.steps.status:Status", "history": "cachemig.steps.status:History"},
    "archive": {
        "": "cachemig.steps.archive:Archived",
        "forget": "cachemig.steps.archive:Forgotten",
        "dry-run": DRY_RUN,
    },
    "drop-column": {
        "": "cachemig.steps.drop_column.run:Dropped",
        "outlook": "cachemig.steps.drop_column.gated:Outlook",
        "brownout": "cachemig.steps.drop_column.brownout:Browned",
        "brownout-ended": "cachemig.cli.results:BrownoutEnded",
        "dry-run": DRY_RUN,
        "file": _WRITTEN,
    },
    "reclaim": {"": "cachemig.steps.reclaim:Reclaimed", "dry-run": "cachemig.steps.reclaim:Outlook"},
    "restore": {"": "cachemig.steps.restore:Restored", "dry-run": "cachemig.steps.restore:Outlook"},
    "clean": {"": "cachemig.steps.clean:Rubbish"},
    "report": {"": "cachemig.steps.report.document:Report"},
    "rehearse": {"": "cachemig.rehearsal.record:Rehearsed"},
    "plan-file": {"": "cachemig.steps.apply:PlanFile"},
    "ci": {"": "cachemig.cli.results:DryRuns"},
    "error": {"": "cachemig.cli.results:ErrorDocument"},
}
FOREIGN = frozenset({"cachemig.steps.recompute:OfFile"})
"""Printed as they are, without a name: `recompute --file` prints what the application itself would store."""


def identifier(command: str, kind: str = "") -> str:
    """Of a document's schema: cachemig/cutover.dry-run/1."""
    return f"cachemig/{command}{f'.{kind}' if kind else ''}/{VERSION}"


def kind_of(command: str, result: object) -> str:
    """Which of the command's kinds this result is; '' too where nobody has named it here."""
    name = f"{type(result).__module__}:{type(result).__qualname__}"
    return next((kind for kind, of in RESULTS.get(command, {}).items() if of == name), "")


def document(command: str, result: Any) -> dict[str, Any]:
    """The result as JSON has it: names, lists, numbers and text."""
    if isinstance(result, dict) and "schema" in result:
        return result  # was made before, and saved
    body = result.document() if hasattr(result, "document") else plain(result)
    if f"{type(result).__module__}:{type(result).__qualname__}" in FOREIGN:
        return body  # type: ignore[no-any-return]
    assert "schema" not in body, "that is the document's own name"
    return {"schema": identifier(command, kind_of(command, result)), **body}


def plain(value: object) -> Any:
    """What json does not know, as it is printed."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value) if not isinstance(value, dict | list | int | float | str | type(None)) else value

"""drop-column: what stands in its way and goes with it, the SQL for it, and the step that cannot be taken back."""

from __future__ import annotations

from cachemig.steps.drop_column.inspect import Dependent, Effect, Inspection, inspection
from cachemig.steps.drop_column.migration import Files, Format, as_migration
from cachemig.steps.drop_column.run import Dropped, Preview, drop, origin, preview

__all__ = [
    "Dependent",
    "Dropped",
    "Effect",
    "Files",
    "Format",
    "Inspection",
    "Preview",
    "as_migration",
    "drop",
    "inspection",
    "origin",
    "preview",
]

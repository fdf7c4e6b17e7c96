"""drop-column: what stands in its way and goes with it, the SQL for it, and the step that cannot be taken back."""

from __future__ import annotations

from cachemig.steps.drop_column.gated import Outlook, command_for, execute, outlook
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
    "Outlook",
    "Preview",
    "as_migration",
    "command_for",
    "drop",
    "execute",
    "inspection",
    "origin",
    "outlook",
    "preview",
]

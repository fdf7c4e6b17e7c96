"""Measurements on throw-away servers, by name: `scripts/bench capture`. The tables go to stdout, talk to stderr."""

"""Postgres: connecting, the catalog, capture, reading entries, the control schema."""

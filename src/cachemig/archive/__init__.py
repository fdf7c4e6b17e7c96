"""The archive of a column: one compressed file that anybody can read, and that no damage goes unnoticed in. Pure of
Postgres. docs/archive.md describes the format."""

from cachemig.archive.frames import Damaged
from cachemig.archive.reader import Block, Found, Record, records, scan, summary
from cachemig.archive.records import Head, Manifest, RowHead
from cachemig.archive.writer import Writer

__all__ = ["Block", "Damaged", "Found", "Head", "Manifest", "Record", "RowHead", "Writer", "records", "scan", "summary"]

"""Where recordings are fetched from, so that a corrupt entry can be computed anew from the file it came from."""

from __future__ import annotations

from cachemig.recordings.digest import matches, require
from cachemig.recordings.errors import RecordingUnavailable
from cachemig.recordings.fetch import Fetched, Recordings, open_source
from cachemig.recordings.location import masked

__all__ = ["Fetched", "RecordingUnavailable", "Recordings", "masked", "matches", "open_source", "require"]

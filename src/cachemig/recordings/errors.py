"""The one error of this package, and the literal table of its names."""

from __future__ import annotations

from typing import Literal, get_args

from cachemig.errors import CachemigError

Name = Literal[
    "not-configured",
    "not-installed",
    "no-column",
    "not-named",
    "unsafe-name",
    "not-found",
    "forbidden",
    "refused",
    "too-large",
    "unreachable",
    "timeout",
    "wrong-digest",
]
NAMES: tuple[str, ...] = get_args(Name)

_HINTS: dict[str, str] = {
    "not-configured": "set recordings_location, for example s3://bucket/{file_path} or /srv/recordings/{file_path}",
    "not-installed": "pip install 'cachemig[recordings]', or 'cachemig[s3]'",
    "no-column": "name a column of the table in recordings_location",
    "not-named": "fill that column in the row; cachemig recompute --all-corrupt goes on with the others",
    "unsafe-name": "look at that row: no path is made of such a value",
    "not-found": "put the recording where recordings_location says, then the same command again",
    "forbidden": "give these credentials the right to read recordings: docs/emg.md",
    "refused": "check recordings_location: cachemig doctor --show-config",
    "unreachable": "the same command again, when the store answers",
    "wrong-digest": "the file is not the one that was analysed: look for the right one, or leave the key out",
    "too-large": "raise recordings_max_bytes if recordings may be that large",
    "timeout": "raise recordings_timeout, or try again",
}


class RecordingUnavailable(CachemigError):
    """A recording could not be fetched, so its entry is not computed anew."""

    # `name` is one of NAMES, for reports and tests; `detail` tells a person. Neither holds a key, the query of a URL,
    # or a path made from a row: paths carry patients' names, so the template stands for them.

    def __init__(self, name: Name, detail: str, *, hint: str | None = None, transient: bool = False) -> None:
        super().__init__(detail, hint=hint or _HINTS.get(name))
        self.name: Name = name
        self.detail = detail
        self.transient = transient
        """Waiting may mend it."""


def by_status(status: int) -> RecordingUnavailable:
    """What a server means by this status other than 200."""
    if status in (404, 410):
        return RecordingUnavailable("not-found", f"there is no such recording (status {status})")
    if status in (401, 403):
        return RecordingUnavailable("forbidden", f"access is refused (status {status})")
    if status in (408, 425, 429) or status >= 500:
        return RecordingUnavailable("unreachable", f"the server cannot answer now (status {status})", transient=True)
    if 300 <= status < 400:
        return RecordingUnavailable("refused", f"the server redirects elsewhere (status {status})")
    return RecordingUnavailable("refused", f"the server refuses the request (status {status})")

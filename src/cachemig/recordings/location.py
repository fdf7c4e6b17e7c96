"""The location of recordings: a template over the columns of a row. Pure.

    /srv/recordings/{file_path}                   a folder; file:/// too
    s3://bucket/{file_path}                       S3 or what speaks its protocol
    https://host/path/{file_path}                 http:// too, for a server on the same network
    supabase://project/bucket/{file_path}         Supabase Storage, with a key from the environment

What stands before the first column is the base. A row cannot lead out of it: a value may hold slashes, but neither dot
segments nor empty ones, and it is quoted in a URL. Server and bucket are never taken from a row. A symbolic link within
a folder is followed: who may put one there is the folder's affair.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Literal, NoReturn, cast
from urllib.parse import quote, unquote
from uuid import UUID

from cachemig.recordings.errors import Name, RecordingUnavailable

Scheme = Literal["file", "s3", "http", "https", "supabase"]

_COLUMN = re.compile(r"[^\W\d][\w$ -]*")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]*")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_IN_A_PATH = "/%~!$&'()*+,;=:@"  # RFC 3986, 3.3: what a path may hold unquoted


@dataclass(frozen=True)
class Location:
    """A template that was found good. `parts` are literal text and, after it, a column."""

    scheme: Scheme
    authority: str
    """The host of a URL, or the bucket of S3; empty for a folder."""
    parts: tuple[tuple[str, str | None], ...]
    query: str
    shown: str
    """The template as messages may have it."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a row must have, each once."""
        return tuple(dict.fromkeys(column for _, column in self.parts if column is not None))

    @property
    def base(self) -> str:
        """The folder or prefix that no row leads out of, as `path` has it; empty or with a slash at its end."""
        return self.parts[0][0][: self.parts[0][0].rfind("/") + 1]

    def path(self, row: Mapping[str, object]) -> str:
        """The path of this row's recording, quoted where it is part of a URL. It begins with the base, and stays there
        even if it is unquoted twice, as behind some proxies.

        Raises `no-column`, `not-named` for NULL or an empty value, or `unsafe-name`.
        """
        path = ""
        for literal, column in self.parts:
            path += literal
            if column is not None:
                value = self._value(row, column)
                path += value if self.scheme in ("file", "s3") else quote(value, safe="/")
        # Two values that are harmless alone may spell an escape together: % and 2e.
        if self.scheme not in ("file", "s3") and (_dotted(unquote(path)) or _dotted(unquote(unquote(path)))):
            raise self.error("unsafe-name", "the values of the row spell a . or .. as part of the path")
        return path

    def _value(self, row: Mapping[str, object], column: str) -> str:
        if column not in row:
            raise self.error("no-column", f"there is no column {column}")
        value = row[column]
        if value is None or value == "":
            raise self.error("not-named", f"the row names no recording: {column} is empty")
        if isinstance(value, bool) or not isinstance(value, str | int | UUID):
            raise self.error("unsafe-name", f"{column} is neither text, a whole number nor a UUID")
        if flaw := _flaw(str(value)):
            raise self.error("unsafe-name", f"the value of {column} {flaw}")
        return str(value)

    def error(self, name: Name, reason: str, *, transient: bool = False) -> RecordingUnavailable:
        """An error that shows the template, and never what a row made of it."""
        return RecordingUnavailable(name, f"{self.shown}: {reason}", transient=transient)


def _flaw(value: str) -> str | None:
    """Why this text may not become part of a path."""
    if not value.isprintable():  # NUL, newlines and lone surrogates among them
        return "holds a character that cannot be printed"
    if any(character in value for character in "?#\\"):
        return "holds a ?, # or backslash"
    if "" in value.split("/"):
        return "begins or ends with a slash, or holds two in a row"
    if _dotted(value):
        return "holds a . or .. as part of the path"
    if _SCHEME.match(value):
        return "begins like a URL"
    return None


def _dotted(path: str) -> bool:
    return any(segment in (".", "..") for segment in path.split("/"))


def parse(template: str) -> Location:
    """The template, taken apart. Raises `not-configured` if it is empty or no good; a template that may hold a secret
    is not shown."""
    if not template.strip():
        raise RecordingUnavailable("not-configured", "recordings_location is not set")
    if not template.isprintable():
        _unfit("holds a character that cannot be printed")
    scheme, authority, path, query = _split(template)
    if "#" in path + query and scheme != "file":
        _unfit("holds a #")
    if "{" in authority or "}" in authority:
        _unfit("takes the server or bucket from a row; only the path may come from it")
    if "{" in query or "}" in query:
        _unfit("takes the query from a row; only the path may come from it")
    parts = _parts(path)
    if all(column is None for _, column in parts):
        _unfit("names no column, so every row would have the same recording")
    literal = [text for text, _ in parts]
    fixed = path[literal[0].rfind("/") + 1 :] if scheme == "file" else path  # ../recordings/{file_path} is fine
    if _dotted(fixed) or (scheme not in ("file", "s3") and _dotted(unquote(fixed))):
        _unfit("holds a . or .. as part of the path")
    if scheme == "file":
        literal[0] = _folder(literal[0])
    elif scheme != "s3":
        literal = [quote(text, safe=_IN_A_PATH) for text in literal]
    return Location(
        scheme=scheme,
        authority=authority,
        parts=tuple((text, column) for text, (_, column) in zip(literal, parts, strict=True)),
        query=query,
        shown=masked(template),
    )


def masked(template: str) -> str:
    """The template as it may be shown: without user and password, and without the query, which may hold a token.

    >>> masked("https://me:secret@host/emg/{file_path}?token=secret")
    'https://***@host/emg/{file_path}?***'
    """
    scheme, separator, rest = template.partition("://")
    if not separator or _SCHEME.match(f"{scheme}:/") is None or scheme.lower() == "file":
        return template
    rest, question, _ = rest.partition("?")
    # A password may hold an unescaped slash: whatever stands before the last @ is taken for one.
    _, at, host = rest.rpartition("@")
    return f"{scheme}://{'***@' if at else ''}{host}{'?***' if question else ''}"


def _split(template: str) -> tuple[Scheme, str, str, str]:
    scheme, separator, rest = template.partition("://")
    if not separator:
        return "file", "", template, ""
    scheme = scheme.lower()
    if scheme == "file":
        if not rest.startswith("/"):
            _unfit("must have three slashes after file:")
        return "file", "", rest, ""
    if scheme not in ("s3", "http", "https", "supabase"):
        _unfit("must be a folder, or begin with s3://, https:// or supabase://")
    before, question, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    if "@" in authority:
        _unfit("must hold no user or password; keys come from the environment")
    if question and scheme in ("s3", "supabase"):
        _unfit("holds a ?")
    if not (_BUCKET if scheme == "s3" else _HOST).fullmatch(authority) and "{" not in authority:
        _unfit("names no server or bucket that could be one")
    return cast(Scheme, scheme), authority, path if scheme == "s3" else slash + path, query


def _parts(path: str) -> list[tuple[str, str | None]]:
    """Literal text and the column after it."""
    try:
        parsed = list(Formatter().parse(path))
    except ValueError:
        _unfit("has a brace without its partner")
    parts: list[tuple[str, str | None]] = []
    pending = ""  # the parser ends a piece at each doubled brace
    for literal, column, specification, conversion in parsed:
        pending += literal
        if column is None:
            continue
        if specification or conversion or not _COLUMN.fullmatch(column):
            _unfit("must hold nothing but the name of a column between braces")
        parts.append((pending, column))
        pending = ""
    if pending or not parts:
        parts.append((pending, None))
    return parts


def _folder(literal: str) -> str:
    """The literal text before the first column, made absolute."""
    folder, slash, rest = literal.rpartition("/")
    if not slash:
        _unfit("must begin with a folder, not with a column")
    return f"{Path(folder or '/').expanduser().absolute()}/".replace("//", "/") + rest


def _unfit(reason: str) -> NoReturn:
    raise RecordingUnavailable("not-configured", f"recordings_location {reason}")

"""The location of recordings: what is refused, what is shown, and that no row ever leads out of the base."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cachemig.recordings.errors import RecordingUnavailable
from cachemig.recordings.location import masked, parse

TEMPLATES = [
    "/srv/recordings/{a}",
    "/srv/recordings/p-{a}.c3d",
    "/srv/recordings/{a}/{b}",
    "/srv/recordings/{a}{b}",
    "file:///srv/recordings/{a}.{b}",
    "s3://bucket/{a}",
    "s3://bucket/emg/.{a}{b}",
    "https://example.com/emg/{a}",
    "https://example.com/emg/{a}{b}?token=x",
    "https://example.com/emg/%2{a}",
    "https://example.com/emg/%25{a}{b}",
    "supabase://project/bucket/{a}/{b}",
]


def refused(template: str, row: dict[str, object]) -> RecordingUnavailable:
    location = parse(template)
    with pytest.raises(RecordingUnavailable) as caught:
        location.path(row)
    return caught.value


pieces = st.sampled_from(
    [
        "/",
        ".",
        "..",
        "%",
        "2e",
        "%2e",
        "%2F",
        "%252e",
        "e",
        "\\",
        "?",
        "#",
        "\0",
        "//",
        "s3://",
        "file:/",
        "x",
        " ",
        "é",
    ]
)
values = st.one_of(st.text(), st.lists(pieces, max_size=6).map("".join))


@given(template=st.sampled_from(TEMPLATES), a=values, b=values)
@example(template="https://example.com/emg/{a}{b}?token=x", a="%", b="2e%2e")
@example(template="https://example.com/emg/%2{a}", a="e", b="x")
@example(template="https://example.com/emg/%25{a}{b}", a="2e%2", b="E")
@example(template="/srv/recordings/{a}", a="x/../../../etc/passwd", b="")
def test_no_value_leads_out_of_the_base(template: str, a: str, b: str) -> None:
    location = parse(template)
    try:
        path = location.path({"a": a, "b": b})
    except RecordingUnavailable as error:
        assert error.name in ("unsafe-name", "not-named")  # noqa: PT017
        return
    assert path.startswith(location.base)
    seen = [path] if location.scheme in ("file", "s3") else [path, unquote(path), unquote(unquote(path))]
    for text in seen:
        rest = text[len(location.base) :].split("/")
        assert "." not in rest
        assert ".." not in rest
    assert "" not in path[len(location.base) :].split("/")
    assert "\0" not in path
    if location.scheme not in ("file", "s3"):
        url = urlsplit(f"https://{location.authority}{path}")
        assert (url.netloc, url.path, url.query, url.fragment) == (location.authority, path, "", "")


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("value", ["x.c3d", "2024/Gehtest 1/x.c3d", "..x", "x..", "...", "100%.c3d", "müller/ä.c3d"])
def test_what_files_are_called_is_not_refused(template: str, value: str) -> None:
    assert parse(template).path({"a": value, "b": value})


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("/srv/emg/{file_path}", "/srv/emg/a b/ü#.c3d".replace("#", "%")),
        ("file:///srv/emg/{file_path}", "/srv/emg/a b/ü%.c3d"),
        ("s3://bucket/emg/{file_path}", "emg/a b/ü%.c3d"),
        ("https://example.com/emg x/{file_path}?sig=1", "/emg%20x/a%20b/%C3%BC%25.c3d"),
        ("supabase://project/bucket/{file_path}", "/bucket/a%20b/%C3%BC%25.c3d"),
        ("s3://bucket/{{x}}/{file_path}", "{x}/a b/ü%.c3d"),
    ],
)
def test_a_path_is_quoted_where_it_is_part_of_a_url(template: str, path: str) -> None:
    assert parse(template).path({"file_path": "a b/ü%.c3d"}) == path


def test_a_number_and_a_uuid_name_recordings_too() -> None:
    row = {"id": 17, "patient": UUID(int=1), "other": object()}
    assert parse("s3://b/{patient}/{id}.c3d").path(row) == "00000000-0000-0000-0000-000000000001/17.c3d"


def test_a_relative_folder_is_that_of_the_working_directory() -> None:
    assert parse("recordings/{x}").path({"x": "a"}) == str(Path("recordings/a").absolute())
    assert parse("~/recordings/{x}").path({"x": "a"}) == str(Path.home() / "recordings/a")
    assert parse("../recordings/{x}").path({"x": "a"}).endswith("/../recordings/a")


def test_columns_are_named_once_and_in_order() -> None:
    assert parse("s3://b/{patient}/{file path}-{patient}.c3d").columns == ("patient", "file path")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "not-named"),
        ("", "not-named"),
        ("../x", "unsafe-name"),
        ("a/../x", "unsafe-name"),
        ("./x", "unsafe-name"),
        ("/etc/passwd", "unsafe-name"),
        ("a//x", "unsafe-name"),
        ("a/", "unsafe-name"),
        ("a\\..\\x", "unsafe-name"),
        ("x?versionId=1", "unsafe-name"),
        ("x#y", "unsafe-name"),
        ("x\0", "unsafe-name"),
        ("x\n", "unsafe-name"),
        ("x\ud800", "unsafe-name"),
        ("https://elsewhere.example.com/x", "unsafe-name"),
        ("file:/etc/passwd", "unsafe-name"),
        (True, "unsafe-name"),
        (1.5, "unsafe-name"),
        (b"x", "unsafe-name"),
        (["x"], "unsafe-name"),
        (datetime.date(2024, 1, 2), "unsafe-name"),
    ],
)
@pytest.mark.parametrize("template", ["/srv/{x}", "s3://b/{x}", "https://h/{x}", "supabase://p/b/{x}"])
def test_a_value_that_could_escape_is_refused_by_name(template: str, value: object, name: str) -> None:
    error = refused(template, {"x": value})
    assert error.name == name
    assert template in str(error)


def test_a_missing_column_has_its_own_name() -> None:
    error = refused("s3://bucket/{file_path}", {"path": "x"})
    assert error.name == "no-column"
    assert str(error) == "s3://bucket/{file_path}: there is no column file_path"


def test_a_refusal_shows_the_template_and_not_the_patient() -> None:
    error = refused("https://example.com/{x}?token=secret", {"x": "Anna Schmidt/../x.c3d"})
    assert "Anna" not in str(error)
    assert "secret" not in str(error)
    assert "https://example.com/{x}?***" in str(error)


@pytest.mark.parametrize(
    "template",
    [
        "",
        "  ",
        "{file_path}",
        "s3://bucket/recording.c3d",
        "s3://{bucket}/{file_path}",
        "s3:///{file_path}",
        "https://{host}/{file_path}",
        "https://example.com{file_path}",
        "https:///x/{file_path}",
        "https://example.com/x?path={file_path}",
        "https://example.com/x#{file_path}",
        "https://me:secret@example.com/{file_path}",
        "https://me:sec/ret@example.com/{file_path}",
        "s3://AKIA:secret@bucket/{file_path}",
        "https://example.com:port/{file_path}",
        "ftp://example.com/{file_path}",
        "gs://bucket/{file_path}",
        "file://host/{file_path}",
        "s3://bucket/../{file_path}",
        "https://example.com/%2e%2e/{file_path}",
        "/srv/{file_path}/../x",
        "s3://bucket/{file_path}?versionId=1",
        "s3://bucket/{file_path!r}",
        "s3://bucket/{file_path:>9}",
        "s3://bucket/{file_path.x}",
        "s3://bucket/{row[x]}",
        "s3://bucket/{}",
        "s3://bucket/{0}",
        "s3://bucket/{file_path",
        "s3://bucket/file_path}",
        "s3://bucket/\0{file_path}",
    ],
)
def test_a_template_that_is_no_good_is_refused_without_showing_it(template: str) -> None:
    with pytest.raises(RecordingUnavailable) as caught:
        parse(template)
    assert caught.value.name == "not-configured"
    assert caught.value.hint
    assert "secret" not in str(caught.value)
    assert "sec" not in str(caught.value).split()


@pytest.mark.parametrize("template", ["https://me:secret@h/{x}", "supabase://key@p/b/{x}", "s3://AKIA:secret@b/{x}"])
def test_a_password_in_a_location_is_named_as_the_reason(template: str) -> None:
    with pytest.raises(RecordingUnavailable, match="must hold no user or password; keys come from the environment"):
        parse(template)


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("/srv/{x}", "/srv/{x}"),
        ("file:///srv/{x}", "file:///srv/{x}"),
        ("s3://bucket/{x}", "s3://bucket/{x}"),
        ("https://h/{x}?token=secret", "https://h/{x}?***"),
        ("https://me:secret@h/{x}", "https://***@h/{x}"),
        ("https://me:se/cr@et@h/{x}", "https://***@h/{x}"),
    ],
)
def test_a_location_is_shown_without_secrets(template: str, shown: str) -> None:
    assert masked(template) == shown


def test_importing_the_command_line_loads_no_library_of_a_store() -> None:
    code = (
        "import sys, cachemig.cli, cachemig.recordings as r;"
        "r.open_source('s3://b/{x}', environment={}); r.open_source('https://h/{x}', environment={});"
        "print({'fsspec', 'aiohttp', 's3fs', 'botocore', 'yarl'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

"""The file: what is read is what was written, and no byte of it can be another one unnoticed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cachemig.archive import (
    Block,
    Damaged,
    Found,
    Head,
    Manifest,
    Record,
    RowHead,
    Writer,
    reader,
    records,
    scan,
    summary,
)
from cachemig.archive.frames import PIECE, SEAL_BYTES
from cachemig.errors import LeaseHeld, Refused

HEAD = Head(
    database="clinic", table='"public"."sessions"', column="cache", type="jsonb", key_column="file_hash",
    row_key=("id",), row_types=("bigint",), fingerprint="f", epoch=1, timeline="00000001", begun="2026-01-01",
)  # fmt: skip
MANIFEST = Manifest(
    head=HEAD, ddl={"column": {"default": "'{}'::jsonb"}}, settings={}, phase="redis-only", frozen=True, rows=0,
    entries=0, bytes=0, blocks=0, sha256="", nulls=3, tool="0", began_at="", finished_at="",
)  # fmt: skip

Rows = list[tuple[str, str | None, bytes]]


def row(identity: str, key: str | None, text: bytes) -> tuple[RowHead, list[bytes]]:
    head = RowHead((identity,), key, 7, 6, None, key is not None, hashlib.sha256(text).digest(), len(text))
    return head, [text[at : at + 70_000] for at in range(0, len(text), 70_000)]


def write(path: Path, blocks: list[Rows], head: Head = HEAD) -> Path:
    with Writer(path, head, fresh=True) as writer:
        for number, rows in enumerate(blocks, 1):
            upper = None if number == len(blocks) else (str(number),)
            writer.block(upper, [row(*r) for r in rows])
        writer.finish(MANIFEST)
    return path


def read(data: bytes) -> tuple[Rows, Found]:
    found = Found()
    rows: Rows = []
    for item in records(io.BytesIO(data), found):
        if isinstance(item, Record):
            rows.append((item.head.row[0], item.head.key, b"".join(item.text())))
    return rows, found


SMALL: list[Rows] = [
    [("1", "a", b'{"x": 1}'), ("2", None, b"{}")],
    [],
    [("3", 'odd "key"\n\u00fc', '{"\u00fc": "\\n"}'.encode()), ("4", "a", b"null")],
]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    large = os.urandom(3 * PIECE + 17)  # no text, but the format does not care
    blocks: list[Rows] = [*SMALL, [("5", "b", large), ("6", "c", b"[" + b"0," * 700_000 + b"0]")]]
    data = write(tmp_path / "a", blocks).read_bytes()
    rows, found = read(data)
    assert rows == [r for block in blocks for r in block]
    assert found.head == HEAD
    assert found.manifest is not None
    assert found.manifest.rows == 6
    assert found.manifest.entries == 5
    assert found.manifest.bytes == sum(len(text) for _, _, text in rows)
    assert found.manifest.blocks == 4
    assert found.manifest.ddl == MANIFEST.ddl
    assert found.manifest.nulls == 3
    assert found.sha256 == hashlib.sha256(data).digest()
    assert found.size == len(data)
    assert [(b.lower, b.upper) for b in found.blocks] == [
        (None, ("1",)), (("1",), ("2",)), (("2",), ("3",)), (("3",), None),
    ]  # fmt: skip
    assert summary(io.BytesIO(data), len(data)) == found.manifest


ROW = st.tuples(st.text(max_size=5), st.none() | st.text(max_size=9), st.binary(max_size=99))


@given(st.lists(st.lists(ROW, max_size=5), min_size=1, max_size=4))
def test_any_rows(tmp_path_factory: pytest.TempPathFactory, blocks: list[Rows]) -> None:
    path = write(tmp_path_factory.mktemp("archive") / "a", blocks)
    rows, _ = read(path.read_bytes())
    assert rows == [r for block in blocks for r in block]


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    """Each byte of the file in turn, so every kind of place: lengths, magic numbers, frame headers, heads, texts,
    digests, manifest, seal."""
    data = write(tmp_path / "a", SMALL).read_bytes()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x40
        with pytest.raises(Damaged):
            scan(io.BytesIO(bytes(damaged)))


def test_every_cut_is_found(tmp_path: Path) -> None:
    data = write(tmp_path / "a", SMALL).read_bytes()
    for length in range(len(data)):
        with pytest.raises(Damaged):
            scan(io.BytesIO(data[:length]))
    with pytest.raises(Damaged, match="something follows"):
        scan(io.BytesIO(data + b"x"))


def test_a_value_that_fits_every_checksum_but_its_own(tmp_path: Path) -> None:
    """Written anew by somebody who keeps Zstandard's checksum, the lengths and the seal right."""
    path = tmp_path / "a"
    with Writer(path, HEAD) as writer:
        head, _ = row("1", "a", b'{"x": 1}')
        writer.block(None, [(head, [b'{"x": 2}'])])
        writer.finish(MANIFEST)
    with pytest.raises(Damaged, match="a value is not the one"):
        _scan(path)


def _scan(path: Path) -> Found:
    with path.open("rb") as file:
        return scan(file)


@pytest.mark.parametrize("change", ["rows", "sha256", "blocks", "entries", "bytes"])
def test_a_manifest_that_says_something_else(tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cachemig.archive import writer as module
    from cachemig.archive.records import manifest_line

    real = manifest_line

    def lying(manifest: Manifest) -> bytes:
        other: object = "00" * 32 if change == "sha256" else 99
        return real(replace(manifest, **{change: other}))  # type: ignore[arg-type]  # by name of the field

    monkeypatch.setattr(module, "manifest_line", lying)
    with pytest.raises(Damaged, match="its manifest does not fit"):
        _scan(write(tmp_path / "a", SMALL))


def test_blocks_that_are_not_the_whole_table(tmp_path: Path) -> None:
    with Writer(tmp_path / "a", HEAD) as writer:
        writer.block(("5",), [row("1", "a", b"{}")])
        assert not writer.whole
        writer.finish(MANIFEST)
    with pytest.raises(Damaged, match="not the whole table"):
        _scan(tmp_path / "a")


def test_another_format_says_so(tmp_path: Path) -> None:
    line = json.dumps({"cachemig_archive": 2, "head": {}}).encode() + b"\n"
    frame = zstandard.ZstdCompressor().compress(line)
    piece = b"\x50\x2a\x4d\x18\x04\x00\x00\x00" + len(frame).to_bytes(4, "little") + frame
    with pytest.raises(Damaged, match="another format than 1") as caught:
        scan(io.BytesIO(piece))
    assert caught.value.hint == "an archive of a later format wants a later cachemig"


def test_a_frame_that_would_fill_the_memory_is_not_unpacked() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(200 << 20))
    piece = b"\x50\x2a\x4d\x18\x04\x00\x00\x00" + len(bomb).to_bytes(4, "little") + bomb
    with pytest.raises(Damaged, match="larger than any that is written"):
        scan(io.BytesIO(piece))


@pytest.mark.skipif(shutil.which("zstd") is None, reason="no zstd")
def test_anybody_can_read_it(tmp_path: Path) -> None:
    """zstd -d, and then lines: no cachemig is needed."""
    path = write(tmp_path / "a.zst", SMALL)
    content = subprocess.run(["zstd", "-dc", str(path)], check=True, capture_output=True).stdout
    lines = content.split(b"\n")
    assert json.loads(lines[0])["cachemig_archive"] == 1
    head = json.loads(lines[2])
    assert head["row"] == ["1"]
    assert head["key"] == "a"
    assert lines[3] == b'{"x": 1}'
    assert head["sha256"] == hashlib.sha256(lines[3]).hexdigest()
    assert json.loads(lines[-2])["manifest"]["rows"] == 4


def test_the_file_is_its_owners_alone_from_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.umask(0)
    try:
        path = tmp_path / "a"
        seen = []
        real = os.fchmod

        def fchmod(descriptor: int, mode: int) -> None:
            seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
            real(descriptor, mode)

        monkeypatch.setattr(os, "fchmod", fchmod)
        with Writer(path, HEAD):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert seen == [0o600]  # before fchmod already
        path.chmod(0o644)
        with Writer(path, HEAD):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(old)


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "a").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        Writer(tmp_path / "a", HEAD)
    (tmp_path / "b").hardlink_to(tmp_path / "victim")
    with pytest.raises(Refused):
        Writer(tmp_path / "b", HEAD)
    assert (tmp_path / "victim").read_bytes() == b"mine"


def test_two_do_not_write_one_file(tmp_path: Path) -> None:
    with Writer(tmp_path / "a", HEAD), pytest.raises(LeaseHeld):
        Writer(tmp_path / "a", HEAD)
    Writer(tmp_path / "a", HEAD).file.close()


# Going on -----------------------------------------------------------------------------------------------------------


def test_cut_off_anywhere_it_goes_on_with_the_complete_blocks(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", SMALL).read_bytes()
    ends = [b.end for b in _scan(tmp_path / "whole").blocks]
    first = _scan(tmp_path / "whole").blocks[0].start
    path = tmp_path / "a"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with Writer(path, HEAD) as writer:
            assert writer.resumed == sum(end <= length for end in ends)
            assert (writer.began_anew is not None) == (0 < length < first)
            for number, rows in enumerate(SMALL[writer.resumed :], writer.resumed + 1):
                writer.block(None if number == len(SMALL) else (str(number),), [row(*r) for r in rows])
            assert writer.whole
            writer.finish(MANIFEST)
        assert read(path.read_bytes())[0] == [r for block in SMALL for r in block]


def test_what_is_damaged_is_written_again_and_what_follows_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a", SMALL)
    second = _scan(path).blocks[1]
    data = bytearray(path.read_bytes())
    data[second.start + 20] ^= 1
    path.write_bytes(data)
    with Writer(path, HEAD) as writer:
        assert writer.resumed == 1
        assert writer.upper == ("1",)
        assert path.stat().st_size == second.start


@pytest.mark.parametrize(
    ("name", "value"), [("epoch", 2), ("column", "other"), ("row_key", ("x",)), ("begun", "later")]
)
def test_a_file_of_something_else_is_begun_anew_and_says_why(tmp_path: Path, name: str, value: object) -> None:
    path = write(tmp_path / "a", SMALL)
    with Writer(path, replace(HEAD, **{name: value})) as writer:  # type: ignore[arg-type]  # by name of the field
        assert writer.resumed == 0
        assert writer.began_anew == f"what was there is of another {name}"


def test_a_block_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    class Gone(Exception):
        pass

    def rows() -> object:
        yield row("1", "a", os.urandom(2 * PIECE))
        raise Gone

    path = tmp_path / "a"
    with Writer(path, HEAD) as writer:
        writer.block(("1",), [row("0", "z", b"{}")])
        size = path.stat().st_size
        with pytest.raises(Gone):
            writer.block(None, rows())  # type: ignore[arg-type]  # a generator will do
        writer.file.flush()
        assert path.stat().st_size == size
        writer.block(None, [row("1", "a", b"[]")])
        writer.finish(MANIFEST)
    assert read(path.read_bytes())[0] == [("0", "z", b"{}"), ("1", "a", b"[]")]


def test_blocks_are_taken_over_as_they_are(tmp_path: Path) -> None:
    source = write(tmp_path / "a", SMALL)
    blocks = _scan(source).blocks
    with source.open("rb") as file, Writer(tmp_path / "b", HEAD) as writer:
        for block in blocks:
            if block.number == 3:
                writer.block(block.upper, [(r.head, r.text()) for r in _kept(file, block)])
            else:
                writer.copy(file, block)
        writer.finish(MANIFEST)
    assert read((tmp_path / "b").read_bytes())[0] == [*SMALL[0], *SMALL[1], SMALL[2][0]]


def _kept(file: io.BufferedReader, block: Block) -> list[Record]:
    """Only the first of them, its text not yet read."""
    return [next(reader.read_block(file, block))]


def test_the_seal_has_the_size_that_it_says(tmp_path: Path) -> None:
    data = write(tmp_path / "a", SMALL).read_bytes()
    assert int.from_bytes(data[-SEAL_BYTES + 4 : -SEAL_BYTES + 8], "little") == SEAL_BYTES - 8
    for cut in (b"", data[:-1], data[: SEAL_BYTES - 1]):
        with pytest.raises(Damaged):
            summary(io.BytesIO(cut), len(cut))

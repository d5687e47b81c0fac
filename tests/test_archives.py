"""Zip archives: one error for whatever could do harm, and the content for all others."""

from __future__ import annotations

import random
import stat
import struct
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_unet.errors import CheckpointError
from napari_unet.importers.archives import Archive

MOST = 1 << 20


def packed(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=9),
        st.binary(max_size=300),
        max_size=5,
    ),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)
def test_what_was_packed_is_read(
    tmp_path_factory: pytest.TempPathFactory, members: dict[str, bytes], compression: int
) -> None:
    folder = tmp_path_factory.mktemp("zip")
    archive = Archive(packed(folder / "a.zip", members, compression))
    assert archive.names == tuple(members)
    for name, content in members.items():
        assert archive.read(name, MOST) == content
        archive.extract(name, folder / "out", MOST)
        assert (folder / "out").read_bytes() == content


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../up", "a/../../up", "a\\..\\..\\up", "\\\\server\\x", "C:/x", "c:x", ".."],
)
def test_members_that_climb_out_are_refused(tmp_path: Path, name: str) -> None:
    path = packed(tmp_path / "a.zip", {"good": b"1", name: b"2"})
    with pytest.raises(CheckpointError, match=r"a\.zip holds a member that would be unpacked else"):
        Archive(path)


def test_links_and_members_named_twice_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    link = zipfile.ZipInfo("weights")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(CheckpointError, match="holds a link"):
        Archive(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", b"2")
    with pytest.raises(CheckpointError, match="a member twice"):
        Archive(path)


def test_unusual_packings_are_refused(tmp_path: Path) -> None:
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = packed(tmp_path / "a.zip", {"a": b"x" * 100}, compression)
        with pytest.raises(CheckpointError, match="packed in an unusual way"):
            Archive(path)
    path = packed(tmp_path / "a.zip", {"a": b"x" * 100})
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is encrypted"):
        Archive(path)


def test_bombs_do_not_go_off(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("zeros", "w", force_zip64=True) as member,
    ):
        for _ in range(80):
            member.write(bytes(MOST))
    start = time.process_time()
    with pytest.raises(CheckpointError, match="claims to unpack to 83886080 bytes"):
        Archive(path)
    assert time.process_time() - start < 1
    # One that lies about its length: no more than the claim is unpacked, and the sum is wrong.
    packed(path, {"zeros": bytes(8 * MOST)})
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<L", content, content.index(signature) + offset, 1000)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        Archive(path).read("zeros", MOST)


def test_limits(tmp_path: Path) -> None:
    archive = Archive(packed(tmp_path / "a.zip", {"a": b"12345"}))
    assert archive.read("a", 5) == b"12345"
    for call in (archive.read, lambda n, most: archive.extract(n, tmp_path / "out", most)):
        with pytest.raises(CheckpointError, match="claims 5 bytes for a, more than the 4"):
            call("a", 4)
        with pytest.raises(CheckpointError, match="holds no b"):
            call("b", 4)
    path = packed(tmp_path / "b.zip", {str(n): b"" for n in range(10_001)})
    with pytest.raises(CheckpointError, match="far too many members"):
        Archive(path)
    path = packed(tmp_path / "b.zip", {"n" * 60_000 + str(n): b"" for n in range(150)})
    with pytest.raises(CheckpointError, match="far too many members"):
        Archive(path)
    for content in (b"", b"PK\x03\x04", b"PK\x05\x06", b"PK\x05\x06" + bytes(18)[:-1]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="no complete zip"):
            Archive(path)


def test_damage_is_one_error_or_does_not_matter(tmp_path: Path) -> None:
    members = {"config.json": b'{"a": [1, 2, 3]}' * 9, "w": random.Random(1).randbytes(400)}
    good = packed(tmp_path / "a.zip", members).read_bytes()
    chance, path = random.Random(0), tmp_path / "b.zip"
    read = 0
    for _ in range(1500):
        content = bytearray(good)
        where = chance.randrange(len(content))
        if chance.random() < 0.2:
            del content[where : where + chance.choice([1, 7, 1000])]
        else:
            content[where] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        try:
            archive = Archive(path)
            for name in archive.names:
                assert archive.read(name, MOST) in members.values()
                read += 1
        except CheckpointError as error:
            assert str(error).startswith("b.zip ")  # noqa: PT017 (either outcome is right)
    assert read > 100

"""Zip archives of other programs, read without trusting what they say about themselves."""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from napari_unet.errors import CheckpointError

__all__ = ["Archive", "has_small_directory"]

_CHUNK = 1 << 20
_MOST_MEMBERS = 10_000
# An entry of the directory takes 46 bytes and its name.
_MOST_DIRECTORY = 8 << 20
# Weights hardly compress. Small archives may, so that only large claims are held to it.
_LARGE, _MOST_RATIO = 64 << 20, 100
_END = struct.Struct("<4s4H2LH")
# The 64-bit form of the end, and what says where that is.
_END_64 = struct.Struct("<4sQ2H2L4Q")
_WHERE_64 = struct.Struct("<4sLQL")
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    EOFError,
    OverflowError,
)


class Archive:
    """A zip file whose members can be read one at a time.

    Members are stored or deflated, not encrypted, no links, named once each and by paths that stay
    inside; the sum of each is checked when it is read. The file is open only while it is read.

    Parameters
    ----------
    path : Path
        The zip file.

    Raises
    ------
    CheckpointError
        If it is no such archive, is damaged, or claims to unpack to far more than its length.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened():
            pass

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all files inside, as ``folder/file``, in the order of the archive."""
        with self._opened() as file:
            return tuple(info.filename for info in file.infolist() if not info.is_dir())

    def read(self, name: str, most: int) -> bytes:
        """Return a member's content.

        Parameters
        ----------
        name : str
            One of `names`.
        most : int
            Bytes that such a member has at most.

        Raises
        ------
        CheckpointError
            If there is none, it is larger, or it is damaged.
        """
        return b"".join(self._pieces(name, most))

    def extract(self, name: str, target: Path, most: int) -> None:
        """Write a member's content into a file, piece by piece.

        Parameters
        ----------
        name : str
            One of `names`.
        target : Path
            The file to write, whatever the member is called.
        most : int
            Bytes that such a member has at most.

        Raises
        ------
        CheckpointError
            If there is none, it is larger, or it is damaged.
        OSError
            If the file cannot be written.
        """
        with target.open("wb") as file:
            for piece in self._pieces(name, most):
                file.write(piece)

    def _pieces(self, name: str, most: int) -> Iterator[bytes]:
        if name not in self.names:
            raise CheckpointError(f"{self.path.name} holds no {name}; get the file again.")
        with self._opened() as file:
            info = file.getinfo(name)
            if info.file_size > most:
                raise CheckpointError(
                    f"claims {info.file_size} bytes for {name}, more than the {most} that such a "
                    "part has at most; get the file again."
                )
            # The library stops at the claimed size, and compares the sum there.
            with file.open(info) as member:
                while piece := member.read(_CHUNK):
                    yield piece

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        """Open and check the archive; errors inside are predicates, its name is their subject."""
        try:
            with self.path.open("rb") as stream:
                if not has_small_directory(stream):
                    raise CheckpointError(
                        "is a zip archive of far too many members to be a checkpoint."
                    )
                with zipfile.ZipFile(stream) as file:
                    _check_members(file.infolist(), self.path.stat().st_size)
                    yield file
        except CheckpointError as error:
            raise CheckpointError(f"{self.path.name} {error}") from error
        except _DAMAGE as error:
            raise CheckpointError(
                f"{self.path.name} is a damaged zip archive ({error}); get the file again."
            ) from error


def has_small_directory(stream: BinaryIO) -> bool:
    """Whether the directory at the end of a zip file may be read, which a library does at once.

    Parameters
    ----------
    stream : binary file
        Left at its start.

    Raises
    ------
    BadZipFile
        If it has no such end.
    """
    length = stream.seek(0, 2)
    first = stream.seek(max(0, length - _END.size - (1 << 16)))
    tail = stream.read()
    # As the library looks for it: at the very end, or before a comment.
    where = len(tail) - _END.size
    if where < 0 or tail[where : where + 4] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        where = tail.rfind(b"PK\x05\x06")
    if where < 0 or len(tail) - where < _END.size:
        raise zipfile.BadZipFile("no complete zip directory")
    sizes: list[int] = [_END.unpack_from(tail, where)[5]]
    # Where there is a 64-bit form, it counts, whatever the short one says.
    place = first + where - _WHERE_64.size
    stream.seek(max(0, place))
    mark, _, told, _ = _WHERE_64.unpack(stream.read(_WHERE_64.size).ljust(_WHERE_64.size, b"\0"))
    if place >= 0 and mark == b"PK\x06\x07":
        for start in (place - _END_64.size, told):
            if 0 <= start <= place - _END_64.size:
                stream.seek(start)
                mark, *_, size, _ = _END_64.unpack(stream.read(_END_64.size))
                sizes += [size] if mark == b"PK\x06\x06" else []
    stream.seek(0)
    return max(sizes) <= _MOST_DIRECTORY


def _check_members(members: list[zipfile.ZipInfo], length: int) -> None:
    """See that the members can be read without harm."""
    names = [info.filename for info in members]
    if len(members) > _MOST_MEMBERS:
        raise CheckpointError("is a zip archive of far too many members to be a checkpoint.")
    if len(set(names)) != len(names):
        raise CheckpointError("names a member twice, so that programs would disagree about it.")
    for info in members:
        parts = re.split(r"[/\\]", info.filename)
        if not parts[0] or ":" in parts[0] or ".." in parts:
            raise CheckpointError(
                f"holds a member that would be unpacked elsewhere ({info.filename[:80]!r}); do "
                "not trust it."
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise CheckpointError(f"holds a link, {info.filename[:80]!r}; do not trust it.")
        if info.flag_bits & 0x1:
            raise CheckpointError("is encrypted; unpack it and give what is inside.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CheckpointError("is packed in an unusual way; pack it again as a plain zip.")
    claimed = sum(info.file_size for info in members)
    if claimed > _LARGE and claimed > _MOST_RATIO * length:
        raise CheckpointError(
            f"claims to unpack to {claimed} bytes, far more than weights compress; do not trust it."
        )

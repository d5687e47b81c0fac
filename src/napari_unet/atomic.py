"""Files that are there completely or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from napari_unet.errors import OutputError

__all__ = ["check_folder", "replacing_file", "replacing_folder"]


@contextmanager
def replacing_file(target: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `target` once it is complete.

    It is written under a temporary name in the same folder, brought to the disk and renamed.
    Whatever goes wrong, or stops it, before that leaves `target` as it was and removes the
    temporary file. A link stays, and what it leads to is replaced; who may read and write what was
    there may read and write the new file.

    Parameters
    ----------
    target : Path
        May exist.

    Yields
    ------
    BinaryIO
        To write to.

    Raises
    ------
    OutputError
        If the folder cannot be written to, or the disk is full.
    """
    place = _place(target)
    temporary = _temporary(place)
    with _explained(target):
        try:
            with temporary.open("x+b") as file:
                # Before anything is in it that others may not read.
                _copy_rights(place, temporary)
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(place)
            _sync(place.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Name a new folder that takes the place of `target` once it is complete.

    As `replacing_file`; an existing folder is moved aside first and put back if that fails.

    Yields
    ------
    Path
        Does not exist yet.
    """
    place = _place(target)
    temporary, aside = _temporary(place), _temporary(place)
    with _explained(target):
        try:
            yield temporary
            for path in temporary.rglob("*"):
                if path.is_file():
                    _sync(path)
            if place.exists():
                place.rename(aside)
            try:
                temporary.rename(place)
            except BaseException:
                if aside.exists():
                    aside.rename(place)
                raise
            _sync(place.parent)
        finally:
            for folder in (temporary, aside):
                shutil.rmtree(folder, ignore_errors=True)
                # A file that was replaced by a folder of its name.
                folder.unlink(missing_ok=True)


def check_folder(target: Path) -> None:
    """Make the folder of `target`, and see that a file can be written there.

    Raises
    ------
    OutputError
        If it cannot.
    """
    place = _place(target)
    with _explained(target):
        place.parent.mkdir(parents=True, exist_ok=True)
        probe = _temporary(place)
        try:
            probe.touch(exist_ok=False)
        finally:
            probe.unlink(missing_ok=True)


def _place(target: Path) -> Path:
    """What a link leads to, or the target itself: a file is replaced where it lies."""
    return Path(os.path.realpath(target)) if target.is_symlink() else target


def _copy_rights(old: Path, new: Path) -> None:
    if os.name == "nt":
        return  # rights come from the folder there
    # Some network file systems have no rights of their own.
    with suppress(OSError):
        new.chmod(old.stat().st_mode & 0o777)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name[:80]}.{secrets.token_hex(4)}.part")


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Turn what the system refuses into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise OutputError(
                f"The disk is full: {target} was not written; free some space or choose another "
                "folder."
            ) from error
        if error.errno in {errno.ENOTDIR, errno.EEXIST}:
            raise OutputError(
                f"{target.parent} is not a folder; choose another place for {target.name}."
            ) from error
        reason = error.strerror or str(error) or type(error).__name__
        raise OutputError(
            f"{target} cannot be written ({reason}); choose another folder."
        ) from error


def _sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk."""
    if os.name == "nt":
        return  # Windows has no handle for folders, and zarr has closed its files
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems have no fsync; a full disk says so here at the latest.
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
            raise
    finally:
        os.close(handle)

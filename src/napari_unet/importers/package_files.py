"""The files of a bioimage.io package, in a zip archive or a folder."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from napari_unet.errors import CheckpointError
from napari_unet.importers.archives import Archive
from napari_unet.importers.formats import DESCRIPTIONS

__all__ = ["PackageFiles"]

_MOST_WEIGHTS = 16 << 30


class PackageFiles:
    """Reads what a package holds, and nothing outside it.

    Parameters
    ----------
    path : Path
        A zip archive, or a folder.

    Raises
    ------
    CheckpointError
        If there is no description in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.archive = None if path.is_dir() else Archive(path)
        if self.archive is None:
            found = [name for name in DESCRIPTIONS if (path / name).is_file()]
        else:
            found = [n for n in self.archive.names if n.rpartition("/")[2] in DESCRIPTIONS]
            found.sort(key=lambda name: name.count("/"))
        if not found:
            raise CheckpointError("holds no rdf.yaml, so it is no bioimage.io package.")
        self.description = found[0]

    def read_description(self, most: int) -> bytes:
        """Return the description, of `most` bytes at most."""
        if self.archive is not None:
            return self.archive.read(self.description, most)
        with self._inside(self.description).open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise CheckpointError("has a description far longer than one of a model.")
        return content

    @contextmanager
    def opened(self, source: object, sha256: object) -> Iterator[Path]:
        """Give a file of the package a path, while it is read.

        Parameters
        ----------
        source : str
            Relative to the description.
        sha256 : str, optional
            What its content is known by.

        Raises
        ------
        CheckpointError
            If it is elsewhere, not there, or another file than the description says.
        """
        name = self._relative(source)
        if self.archive is None:
            path = self._inside(name)
            if not path.is_file():
                raise CheckpointError(f"lacks {name}, which holds its weights; get it again.")
            _check_sum(path, name, sha256)
            yield path
            return
        folder = self.description.rpartition("/")[0]
        member = f"{folder}/{name}" if folder else name
        with tempfile.TemporaryDirectory(prefix="valid-unet-") as temporary:
            # Of the name only what tells formats apart.
            suffix = re.sub(r"[^.a-z0-9]", "", PurePosixPath(name).suffix.lower())[:16]
            path = Path(temporary) / f"weights{suffix}"
            self.archive.extract(member, path, _MOST_WEIGHTS)
            _check_sum(path, name, sha256)
            yield path

    def _relative(self, source: object) -> str:
        if not isinstance(source, str) or not source:
            raise CheckpointError("does not say which file holds its weights.")
        if "://" in source or source.startswith("10."):
            raise CheckpointError(
                f"keeps its weights elsewhere ({source[:120]}); download the whole package."
            )
        parts = re.split(r"[/\\]", source)
        if ".." in parts or not parts[0] or ":" in source or "\0" in source:
            raise CheckpointError(
                f"names a file outside itself ({source[:80]!r}); do not trust it."
            )
        return "/".join(part for part in parts if part != ".")

    def _inside(self, name: str) -> Path:
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise CheckpointError(f"names a file outside itself ({name[:80]!r}); do not trust it.")
        return path


def _check_sum(path: Path, name: str, sha256: object) -> None:
    if sha256 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not isinstance(sha256, str) or found != sha256.lower():
        raise CheckpointError(
            f"holds another {name.rpartition('/')[2]} than it describes: the checksum differs; get "
            "it again."
        )

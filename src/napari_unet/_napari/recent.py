"""Checkpoints used of late: where they are, what they were, and what was said about them."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Recent", "RecentList"]

_MOST = 8


@dataclass(frozen=True)
class Recent:
    """One checkpoint as it was when it was last used.

    Parameters
    ----------
    model : str
        Name of a bundled model, or a path.
    sha256 : str
        Of the file, in hexadecimal; empty where it is not known.
    assume : mapping of str
        What a person said about the file that it does not say itself.
    """

    model: str
    sha256: str = ""
    assume: Mapping[str, str] = field(default_factory=dict)


class RecentList:
    """The list, the last used first, kept in a file that several windows may write.

    Parameters
    ----------
    path : Path, optional
        The file; without one, the list lives as long as this object.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._memory: tuple[Recent, ...] = ()

    @property
    def entries(self) -> tuple[Recent, ...]:
        """What was used of late, the last one first."""
        if self._path is None:
            return self._memory
        try:
            stored = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return self._memory
        found = map(_entry, stored if isinstance(stored, list) else [])
        return tuple(entry for entry in found if entry is not None)[:_MOST]

    def of(self, model: str) -> Recent | None:
        """Return the entry of a name or path."""
        return next((entry for entry in self.entries if entry.model == model), None)

    def same_file(self, sha256: str) -> Recent | None:
        """Return the entry of a content, wherever it lay."""
        return next((entry for entry in self.entries if sha256 and entry.sha256 == sha256), None)

    def put(self, entry: Recent) -> None:
        """Put an entry first; one of the same path goes."""
        others = (old for old in self.entries if old.model != entry.model)
        self._memory = (entry, *others)[:_MOST]
        if self._path is not None:
            # A folder that cannot be written costs the list of recent files, nothing else.
            with contextlib.suppress(OSError):
                _write(self._path, self._memory)


def _entry(stored: Any) -> Recent | None:
    """Read one entry; the first versions stored nothing but the path."""
    if isinstance(stored, str):
        return Recent(stored)
    if not isinstance(stored, dict) or not isinstance(stored.get("model"), str):
        return None
    sha256, assume = stored.get("sha256"), stored.get("assume")
    pairs = assume.items() if isinstance(assume, dict) else ()
    return Recent(
        stored["model"],
        sha256 if isinstance(sha256, str) else "",
        {key: value for key, value in pairs if isinstance(value, str)},
    )


def _write(path: Path, entries: Sequence[Recent]) -> None:
    """Replace the file once the new one is complete: two windows may write at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump([asdict(entry) for entry in entries], file)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)

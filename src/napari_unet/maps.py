"""Class probabilities of a frame, between the network and the objects: in memory, or in a file.

Where they are larger than their share of the memory they go to a temporary file without a name,
tile by tile as they come, and are read back box by box. It is read and written, not mapped: none
of it counts as this process' memory, and a full disk is an error and not a crash.
"""

from __future__ import annotations

import os
import sys
import tempfile
import weakref
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_unet.errors import MemoryLimitError
from napari_unet.tiling import Window

__all__ = ["ArrayMaps", "FileMaps", "Maps", "maps_for"]

Floats = NDArray[np.float32]
Box = tuple[slice, ...]


class Maps(Protocol):
    """Probabilities of K classes, of which tiles are written and boxes are read."""

    def write(self, window: Window, values: Floats) -> None:
        """Put the probabilities (K, ...) of a window in their place."""

    def read(self, window: Window) -> Floats:
        """Probabilities (K, ...) of a window; 0 where nothing was written."""


class ArrayMaps:
    """Maps in memory.

    Parameters
    ----------
    array : ndarray of float32, of shape (K, [Z,] Y, X)
        Where they are kept.
    """

    def __init__(self, array: Floats) -> None:
        self._array = array

    def write(self, window: Window, values: Floats) -> None:
        """Put the probabilities (K, ...) of a window in their place."""
        self._array[(slice(None), *window.slices)] = values

    def read(self, window: Window) -> Floats:
        """Probabilities (K, ...) of a window: a view."""
        return self._array[(slice(None), *window.slices)]


class FileMaps:
    """Maps in a temporary file, which is gone with this object.

    Each window is one stretch of the file, with its first axis in front of the classes, so that
    some of its lines are one stretch too.

    Parameters
    ----------
    classes : int
        K.
    folder : str, optional
        Where the file is made.
    """

    def __init__(self, classes: int, folder: str | None = None) -> None:
        self._classes = classes
        self._folder = folder or _folder()
        create = partial(tempfile.TemporaryFile, prefix="valid-unet-", dir=self._folder)
        self._file: IO[bytes] = self._guarded(partial(create, buffering=0))
        weakref.finalize(self, self._file.close)
        self._windows: list[Window] = []
        self._offsets: list[int] = []
        self._corners = np.zeros((0, 2, 0), np.int64)
        self._end = 0

    def write(self, window: Window, values: Floats) -> None:
        """Append the probabilities (K, ...) of a window."""
        ordered = np.ascontiguousarray(np.moveaxis(values, 0, 1), np.float32)
        lines = ordered.reshape(-1).view(np.uint8).data

        def append() -> None:
            self._file.seek(self._end)
            left = lines
            while left:
                left = left[self._file.write(left) :]

        if lines:
            self._guarded(append)
        self._windows.append(window)
        self._offsets.append(self._end)
        self._end += lines.nbytes

    def read(self, window: Window) -> Floats:
        """Probabilities (K, ...) of a window: an array of its own."""
        found = np.zeros((self._classes, *window.shape), np.float32)
        for number in self._overlapping(window):
            stored, offset = self._windows[number], self._offsets[number]
            start = tuple(map(max, stored.start, window.start))
            stop = tuple(map(min, stored.stop, window.stop))
            line = self._classes * prod(stored.shape[1:])
            part = np.empty((stop[0] - start[0]) * line, np.float32)
            at = offset + 4 * (start[0] - stored.start[0]) * line
            self._guarded(partial(self._fill, at, part))
            values = part.reshape(stop[0] - start[0], self._classes, *stored.shape[1:])
            inner = Window(start, stop).within((start[0], *stored.start[1:])).slices
            box = Window(start, stop).within(window.start).slices
            found[(slice(None), *box)] = np.moveaxis(values, 1, 0)[(slice(None), *inner)]
        return found

    def _overlapping(self, window: Window) -> list[int]:
        """Which of the windows have pixels of this one."""
        if not self._windows:
            return []
        if len(self._corners) < len(self._windows):
            self._corners = np.array([(stored.start, stored.stop) for stored in self._windows])
        start = np.maximum(self._corners[:, 0], window.start)
        stop = np.minimum(self._corners[:, 1], window.stop)
        numbers: list[int] = np.flatnonzero((start < stop).all(axis=1)).tolist()
        return numbers

    def _fill(self, at: int, part: Floats) -> None:
        self._file.seek(at)
        left = part.view(np.uint8).data
        while left:
            count = self._file.readinto(left)  # type: ignore[attr-defined]
            if not count:
                raise OSError("it ends too soon")
            left = left[count:]

    def _guarded(self, work: Any) -> Any:
        """Say what to do where the disk is full."""
        try:
            return work()
        except OSError as error:
            where = self._folder or tempfile.gettempdir()
            raise MemoryLimitError(
                f"Intermediate results do not fit into {where} ({error.strerror or error}); make "
                "room there, or point TMPDIR to another folder."
            ) from error


def maps_for(classes: int, shape: tuple[int, ...], limit: int) -> Maps:
    """Choose where the probabilities of a frame are kept.

    Parameters
    ----------
    classes : int
        K.
    shape : tuple of int
        [Z,] Y, X.
    limit : int
        Bytes up to which they stay in memory.
    """
    if 4 * classes * prod(shape) <= limit:
        return ArrayMaps(np.zeros((classes, *shape), np.float32))
    return FileMaps(classes)


def _folder() -> str | None:
    """Where large temporary files belong: on many a Linux /tmp is memory, and /var/tmp is not."""
    if sys.platform == "linux" and "TMPDIR" not in os.environ:
        return next((f for f in ("/var/tmp",) if Path(f).is_dir() and os.access(f, os.W_OK)), None)
    return None

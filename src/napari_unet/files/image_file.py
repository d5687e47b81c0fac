"""What was read from a file: pixels in the order (T)(Z)YX(C), and what the file says about them."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from math import isfinite, prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_unet.errors import ImageError

__all__ = ["ImageFile", "LazyArray", "Mapped", "arrange", "decoding", "spacing_of", "to_micrometre"]

Kind = Literal["ome", "imagej", "tiff", "picture", "npy", "zarr"]

_ORDER = "TZYXC"
_MICROMETRES = {
    "pm": 1e-6,
    "å": 1e-4,
    "angstrom": 1e-4,
    "nm": 1e-3,
    "um": 1.0,
    "micron": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "in": 25_400.0,
    "inch": 25_400.0,
    "m": 1e6,
}
_LONG_UNITS = {
    "picometer": "pm",
    "nanometer": "nm",
    "micrometer": "um",
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
}


@dataclass(frozen=True, eq=False)
class ImageFile:
    """One image, and what has to be kept when its labels are written.

    Parameters
    ----------
    path : Path
        Where it came from.
    data : ndarray or LazyArray
        Pixels in the order (T)(Z)YX(C); axes of one pixel are dropped, except Y and X.
    axes : str or None
        One letter per axis of `data`, such as ``"TZYXC"``; None where the file does not say what
        its axes are.
    spacing : tuple of float or None
        Micrometres per pixel: (y, x), or (z, y, x) where the image has planes and the file gives
        their distance.
    kind : {"ome", "imagej", "tiff", "picture", "npy", "zarr"}
        What kind of file it is.
    metadata : mapping
        To write back beside spacing: ``interval`` (seconds between time points), ``name``, and
        what only its own kind of file knows.
    remarks : tuple of str
        What a person should know about how it was read.
    """

    path: Path
    data: Any
    axes: str | None
    spacing: tuple[float, ...] | None
    kind: Kind
    metadata: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


class LazyArray:
    """An array that stays in its file until a part of it is asked for.

    Whole numbers, slices and `transpose` give another lazy array; `numpy.asarray` reads what is
    left, in one piece. A file that was changed or removed since it was opened is an error, not
    other pixels.

    Parameters
    ----------
    source : array-like
        Memory-mapped or zarr array.
    path : Path
        For messages.
    stamp : callable
        Gives something that changes when the file does.
    """

    def __init__(self, source: Any, path: Path, stamp: Callable[[], object]) -> None:
        self._source = source
        self._path = path
        self._stamp = stamp
        self._opened: object = stamp()
        # What is taken of each axis of the source, and which of them each axis here is.
        self._taken: tuple[int | range, ...] = tuple(range(int(n)) for n in source.shape)
        self._order = tuple(range(len(self._taken)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of each axis."""
        return tuple(len(self._range(axis)) for axis in self._order)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels."""
        dtype: np.dtype[Any] = np.dtype(self._source.dtype)
        return dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._order)

    @property
    def size(self) -> int:
        """Number of pixels."""
        return prod(self.shape)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Extent of what is stored in one piece, along each axis."""
        stored = getattr(self._source, "chunks", None) or (1,) * len(self._taken)
        return tuple(int(stored[axis]) for axis in self._order)

    def _range(self, axis: int) -> range:
        taken = self._taken[axis]
        assert isinstance(taken, range)
        return taken

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> LazyArray:
        keys = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            keys[at : at + 1] = [slice(None)] * (self.ndim - len(keys) + 1)
        if len(keys) > self.ndim:
            raise IndexError(f"{len(keys)} indices for an array of {self.ndim} axes")
        taken, order = list(self._taken), list(self._order)
        for axis, part in zip(self._order, keys, strict=False):
            if isinstance(part, slice):
                taken[axis] = self._range(axis)[part]
            else:
                taken[axis] = self._range(axis)[operator.index(part)]
                order.remove(axis)
        return self._with(tuple(taken), tuple(order))

    def transpose(self, order: Sequence[int]) -> LazyArray:
        """Reorder the axes, as numpy's."""
        return self._with(self._taken, tuple(self._order[i] for i in order))

    def _with(self, taken: tuple[int | range, ...], order: tuple[int, ...]) -> LazyArray:
        view = copy(self)
        view._taken, view._order = taken, order
        return view

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        self._check()
        key = tuple(
            slice(part.start, part.stop, part.step) if isinstance(part, range) else part
            for part in self._taken
        )
        with decoding(self._path):
            pixels = np.asarray(self._source[key], dtype=dtype)
        # zarr takes a chunk that is not there for an empty one, so look again.
        self._check()
        kept = [axis for axis, part in enumerate(self._taken) if isinstance(part, range)]
        return pixels.transpose([kept.index(axis) for axis in self._order])

    def _check(self) -> None:
        try:
            now = self._stamp()
        except OSError:
            now = None
        if now != self._opened:
            raise ImageError(
                f"{self._path.name} was changed or removed while it was being read; "
                "put it back and start again."
            )


class Mapped:
    """An array in a file, mapped into memory only while a part of it is copied.

    A map that stays open counts every pixel that was ever read as this process' memory.

    Parameters
    ----------
    array : memmap
        Tells where the pixels are.
    """

    def __init__(self, array: np.memmap[Any, Any]) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self._path, self._offset = Path(str(array.filename)), array.offset
        self._fortran = array.flags.f_contiguous and not array.flags.c_contiguous

    def __getitem__(self, key: Any) -> NDArray[Any]:
        order: Literal["F", "C"] = "F" if self._fortran else "C"
        mapped = np.memmap(self._path, self.dtype, "r", self._offset, self.shape, order)
        return np.array(mapped[key])


def file_stamp(path: Path) -> Callable[[], object]:
    """Return what tells whether a file is still the same."""

    def stamp() -> tuple[int, int, int]:
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns

    return stamp


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises over a bad file into one sentence.

    Raises
    ------
    ImageError
        In place of any other exception.
    """
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(
            f"{path.name} does not fit into memory; save it uncompressed or as OME-Zarr, which is "
            "read piece by piece."
        ) from error
    except OSError as error:
        if error.errno is None:
            raise ImageError(_damaged(path, error)) from error
        reason = os.strerror(error.errno)
        raise ImageError(f"{path} cannot be read ({reason}); check the path.") from error
    # Decoders raise whatever their code runs into: IndexError, struct.error, zlib.error, ...
    except Exception as error:
        if "imagecodecs" in str(error):
            raise ImageError(
                f"{path.name} is compressed in a way that needs another package; run: "
                "pip install imagecodecs"
            ) from error
        raise ImageError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else "no reason given"
    return f"{path.name} is damaged or cut short ({reason}); get the file again."


def arrange(array: Any, letters: str, given: str | None, path: Path) -> tuple[Any, str | None]:
    """Bring axes into the order (T)(Z)YX(C), without those of one pixel.

    Parameters
    ----------
    array : array-like
        With `transpose` and indexing, as numpy's.
    letters : str
        One per axis as the file names them; ``?`` where it does not.
    given : str, optional
        What a person says the axes are, in the file's order: all of them, or those of more than
        one pixel.
    path : Path
        For messages.

    Returns
    -------
    array : array-like
    axes : str or None
        None where an axis has no name.

    Raises
    ------
    ImageError
        If `given` does not fit, or there are more axes than (T)(Z)YX(C).
    """
    if given is not None:
        array, letters = _take_given(array, given.upper(), path)
    elif set(letters) == {"?"}:
        return array, None
    keep = [i for i, n in enumerate(array.shape) if n != 1 or letters[i] in "YX"]
    array = array[tuple(slice(None) if i in keep else 0 for i in range(len(letters)))]
    letters = _name_unknown("".join(letters[i] for i in keep), array.shape, path)
    order = sorted(range(len(letters)), key=lambda i: ("?" + _ORDER).index(letters[i]))
    if order != list(range(len(order))):
        array = array.transpose(order)
    return array, None if "?" in letters else "".join(letters[i] for i in order)


def _take_given(array: Any, given: str, path: Path) -> tuple[Any, str]:
    """Apply the names that a person gives."""
    if len(set(given)) < len(given) or set(given) - set(_ORDER) or not {"Y", "X"} <= set(given):
        raise ImageError(
            f"Axes {given!r} cannot be understood; give each letter of T, Z, Y, X, C at most once, "
            "Y and X among them."
        )
    if len(given) != array.ndim:
        array = array[tuple(0 if n == 1 else slice(None) for n in array.shape)]
    if len(given) != array.ndim:
        raise ImageError(
            f"Axes {given!r} name {len(given)} axes, but {path.name} has {array.ndim} "
            f"({_by(array.shape)}); give one letter for each."
        )
    return array, given


def _name_unknown(letters: str, shape: Sequence[int], path: Path) -> str:
    """Name an axis that the file leaves open, where only one name is left for it."""
    free = [letter for letter in "TZ" if letter not in letters]
    unknown = letters.count("?")
    if unknown > min(1, len(free)) or len(set(letters)) < len(letters):
        raise ImageError(
            f"{path.name} has {len(letters)} axes ({_by(shape)}), more than (T)(Z)YX(C); save one "
            "position or channel of it as a file of its own."
        )
    return letters.replace("?", free[0]) if len(free) == 1 else letters


def to_micrometre(value: Any, unit: str | None) -> float | None:
    """Convert a length; None where it is none, or its unit is no length."""
    if unit is None:
        return None
    # ImageJ writes the micro sign as an escape, others write the Greek letter.
    name = unit.strip().replace("\\u00B5", "µ").replace("\\u00b5", "µ").lower()
    name = name.replace("µ", "u").replace("μ", "u").replace("metre", "meter")
    name = name.removesuffix("s") if name not in _MICROMETRES else name
    factor = _MICROMETRES.get(_LONG_UNITS.get(name, name))
    try:
        length = float(value) * (factor or 0)
    except (TypeError, ValueError):
        return None
    return length if isfinite(length) and 1e-6 < length < 1e6 else None


def spacing_of(lengths: Mapping[str, float | None], axes: str | None) -> tuple[float, ...] | None:
    """Choose (z, y, x), (y, x) or nothing from what is known of each axis, in micrometres."""
    y, x = lengths.get("Y"), lengths.get("X")
    y, x = y or x, x or y
    if not y or not x:
        return None
    z = lengths.get("Z") if axes is not None and "Z" in axes else None
    return (z, y, x) if z else (y, x)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))

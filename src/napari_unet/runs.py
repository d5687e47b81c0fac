"""Label images as runs: maximal stretches of one value along the last axis.

An image of 2048 x 2048 pixels with 2000 nuclei has about 10^5 runs, so that what would be forty
passes over pixels (components, sizes, who touches whom, holes, new numbers) becomes arithmetic on
short arrays, and the image itself is read once and painted once::

    . A A . . B        bounds  0 1 3 5 | 6 7 8 10 11 | 12
    . A . B B .        values  0 A 0 B | 0 A 0 B  0  |

No step holds Python's global lock for longer than a few milliseconds per 10^6 runs, and all of
them can be stopped in between: a window stays alive beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_unet.errors import Cancelled, ImageError

__all__ = [
    "Runs",
    "bands",
    "compact",
    "components",
    "is_thread",
    "label_image",
    "poll",
    "portions",
    "runs_of",
    "spatial",
    "touching",
]

Ints = NDArray[np.int64]
ShouldStop = Callable[[], bool] | None

# Pixels handled in one go: small enough to stop at once, large enough to be worth a numpy call.
BAND = 1 << 20

# A piece with a bounding box of at most so many pixels may leave it as empty as it likes; of a
# larger one, this is the part that it fills at least if it is no thread.
_SMALL, _THREAD = 1 << 16, 1 / 16


def poll(should_stop: ShouldStop) -> None:
    """Raise `Cancelled` if `should_stop` says so.

    Raises
    ------
    Cancelled
        If `should_stop` is given and returns true.
    """
    if should_stop is not None and should_stop():
        raise Cancelled("Stopped before the objects were complete; run it again to get them.")


def bands(shape: tuple[int, ...], should_stop: ShouldStop = None) -> Iterator[slice]:
    """Cut the first axis into slabs of about `BAND` pixels.

    Parameters
    ----------
    shape : tuple of int
        Shape of an array.
    should_stop : callable, optional
        Asked before each slab.

    Yields
    ------
    slice
        Into the first axis; together they cover it once, in order.
    """
    per_row = max(1, int(np.prod(shape[1:], dtype=np.int64)))
    step = max(1, BAND // per_row)
    for start in range(0, shape[0], step):
        poll(should_stop)
        yield slice(start, min(start + step, shape[0]))


def is_thread(boxes: Any, pixels: Any) -> Any:
    """Whether pieces leave their bounding boxes nearly empty.

    There may be one for each row of an image, with a box as large as the image: work that is done
    by the box would cost the third power of its side.

    Parameters
    ----------
    boxes, pixels : int, or integer arrays of one shape
        Pixels of the boxes, and of the pieces in them.

    Returns
    -------
    bool, or array of bool
    """
    return (boxes > _SMALL) & (pixels < _THREAD * boxes)


@dataclass(frozen=True)
class Runs:
    """Where the runs of an array begin and end.

    Attributes
    ----------
    shape : tuple of int
        Shape of the array.
    bounds : int64 array of shape (n + 1,)
        Flat index (C order) of the first pixel of each run, then the number of pixels. A run
        never leaves its line, a line being all pixels along the last axis.
    """

    shape: tuple[int, ...]
    bounds: Ints

    @property
    def starts(self) -> Ints:
        """Flat index of the first pixel of each run."""
        return self.bounds[:-1]

    @property
    def lengths(self) -> Ints:
        """Pixels of each run."""
        return np.diff(self.bounds)

    def values(self, array: NDArray[Any]) -> NDArray[Any]:
        """Value of `array` (of this shape, constant on every run) on each run."""
        return np.asarray(array).reshape(-1)[self.starts]

    def paint(self, values: NDArray[Any], should_stop: ShouldStop = None) -> NDArray[Any]:
        """Array of this shape with one value for each run."""
        return _repeat(values, self.lengths, should_stop).reshape(self.shape)

    def at_edge(self, top: bool | None = None, bottom: bool | None = None) -> NDArray[np.bool_]:
        """Whether each run has a pixel on the image's edge.

        Parameters
        ----------
        top, bottom : bool, optional
            Whether the first and the last line (plane) are edges: those of a slab may not be. By
            default they are, but for a volume of one plane, or all of it would lie on them.
        """
        coordinates = np.unravel_index(self.starts, self.shape)
        lone = len(self.shape) == 3 and self.shape[0] == 1
        top, bottom = (not lone if end is None else end for end in (top, bottom))
        edge: NDArray[np.bool_] = (coordinates[0] == 0) & top
        edge |= (coordinates[0] == self.shape[0] - 1) & bottom
        for axis in range(1, len(self.shape)):
            at, size = coordinates[axis], self.shape[axis]
            reach = self.lengths if axis == len(self.shape) - 1 else 1
            edge |= (at == 0) | (at + reach == size)
        return edge


def _repeat(values: NDArray[Any], counts: Ints, should_stop: ShouldStop = None) -> NDArray[Any]:
    """Do `numpy.repeat`, which keeps Python's lock to itself, in pieces of some 10^6 elements."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if ends.size else 0
    repeated = np.empty(total, values.dtype)
    for low, high in portions(ends):
        poll(should_stop)
        first = int(ends[low] - counts[low])
        repeated[first : int(ends[high - 1])] = np.repeat(values[low:high], counts[low:high])
    return repeated


def portions(ends: Ints) -> Iterator[tuple[int, int]]:
    """Cut runs that end at `ends` (of one another's pixels) into groups of some 10^6 pixels."""
    total = int(ends[-1]) if ends.size else 0
    cuts = [*np.searchsorted(ends, np.arange(0, total, max(1, BAND // 4))).tolist(), ends.size]
    yield from ((low, high) for low, high in pairwise(cuts) if low < high)


def runs_of(*arrays: NDArray[Any], should_stop: ShouldStop = None) -> Runs:
    """Find the runs on which every array is constant.

    Parameters
    ----------
    *arrays : arrays of one shape, at least 1-D
        Label images, class images or masks.
    should_stop : callable, optional
        Asked before each band of the image.

    Returns
    -------
    Runs
        In C order.

    Raises
    ------
    Cancelled
        If `should_stop` returned true.
    """
    shape = arrays[0].shape
    size = arrays[0].size
    if size == 0:
        return Runs(shape, np.zeros(1, np.int64))
    lines = [np.ascontiguousarray(array).reshape(-1, shape[-1]) for array in arrays]
    found: list[Ints] = []
    for rows in bands(lines[0].shape, should_stop):
        first = np.zeros(lines[0][rows].shape, np.bool_)
        first[:, 0] = True
        for line in lines:
            first[:, 1:] |= line[rows, 1:] != line[rows, :-1]
        found.append(np.flatnonzero(first) + rows.start * shape[-1])
    return Runs(shape, np.concatenate([*found, [size]]))


def touching(runs: Runs, chosen: Ints, connectivity: int) -> tuple[Ints, Ints]:
    """Pairs of runs that have neighbouring pixels.

    Parameters
    ----------
    runs : Runs
        Of an image of any number of axes.
    chosen : int64 array
        The runs to look at, ascending.
    connectivity : int
        Pixels are neighbours if they differ by at most 1 along at most this many axes.

    Returns
    -------
    later, earlier : two int64 arrays of one length
        Indices of runs; each touching pair of chosen runs once, and the earlier run (in C order)
        second.
    """
    # One empty pixel behind every axis but the first: a step off the image then lands on pixels
    # that belong to no run, and no line or plane has to be told apart from the next.
    padded = (runs.shape[0], *(size + 1 for size in runs.shape[1:]))
    coordinates = np.unravel_index(runs.starts[chosen], runs.shape)
    start = np.asarray(np.ravel_multi_index(coordinates, padded), np.int64)
    stop = start + runs.lengths[chosen]

    beside = np.flatnonzero(stop[:-1] == start[1:])
    later, earlier = [beside + 1], [beside]
    for offset in product((-1, 0, 1), repeat=len(padded) - 1):
        steps = sum(map(abs, offset))
        if offset >= (0,) * len(offset) or steps > connectivity:
            continue
        shift = sum(d * int(np.prod(padded[i + 1 :])) for i, d in enumerate(offset))
        slack = 1 if steps < connectivity else 0  # diagonally along the line as well
        low = np.searchsorted(stop, start + (shift - slack), side="right")
        high = np.searchsorted(start, stop + (shift + slack), side="left")
        count = np.maximum(high - low, 0)
        last = np.cumsum(count)
        later.append(_repeat(np.arange(start.size), count))
        within = np.arange(later[-1].size) - _repeat(last - count, count)
        earlier.append(_repeat(low, count) + within)
    return chosen[np.concatenate(later)], chosen[np.concatenate(earlier)]


def components(n: int, a: Ints, b: Ints, should_stop: ShouldStop = None) -> Ints:
    """Connected components of a graph, each named by its smallest node.

    Every root with a smaller neighbour is hooked onto the smallest one, chains are shortened,
    edges inside one tree are dropped, until none is left (after Shiloach & Vishkin 1982,
    doi:10.1016/0196-6774(82)90008-6). Each step is one call on whole arrays.

    Parameters
    ----------
    n : int
        Number of nodes.
    a, b : int64 arrays of one length
        The nodes that each edge joins.
    should_stop : callable, optional
        Asked before each round; there are some five of them.

    Returns
    -------
    int64 array of shape (n,)
        For each node, the smallest node of its component.

    Raises
    ------
    Cancelled
        If `should_stop` returned true.
    """
    root = np.arange(n)
    while a.size:
        poll(should_stop)
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while True:
            shorter = root[root]
            if np.array_equal(shorter, root):
                break
            root = shorter
        a, b = root[a], root[b]
        apart = a != b
        a, b = a[apart], b[apart]
    return root


def compact(values: NDArray[Any]) -> tuple[NDArray[Any], Ints]:
    """Replace labels by 1..n in ascending order, whatever their range.

    Parameters
    ----------
    values : integer or boolean array of shape (m,)
        Label of each run, 0 for the background.

    Returns
    -------
    labels : array of shape (n,)
        The labels that occur, ascending, without 0.
    rank : int64 array of shape (m,)
        1 + position in `labels`, or 0 for the background.
    """
    labels, rank = np.unique(values, return_inverse=True)
    if labels.size and labels[0] == 0:
        return labels[1:], rank.astype(np.int64)
    return labels, rank.astype(np.int64) + 1


def label_image(array: ArrayLike, name: str) -> NDArray[Any]:
    """Check that something is a label image.

    Parameters
    ----------
    array : integer or boolean array of shape (Y, X) or (Z, Y, X)
        0 is the background.
    name : str
        What to call it in an error.

    Returns
    -------
    array of the same shape and type

    Raises
    ------
    ImageError
        If there are other than 2 or 3 axes, or other values than whole numbers from 0.
    """
    image = np.asarray(array)
    spatial(image, name)
    if image.dtype.kind not in "biu":
        raise ImageError(f"{name} has type {image.dtype}; give a label image of integers.")
    if image.size and image.min() < 0:
        raise ImageError(f"{name} has negative values; give 0 for background and ids from 1.")
    return image


def spatial(image: NDArray[Any], name: str) -> None:
    """Raise `ImageError` if there are other than 2 or 3 axes."""
    if image.ndim not in (2, 3):
        raise ImageError(
            f"{name} has shape {image.shape}; give 2 or 3 spatial axes, (Y, X) or (Z, Y, X)."
        )

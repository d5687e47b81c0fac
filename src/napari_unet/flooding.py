"""Objects from seeds: a watershed that is done in pieces and can be stopped between and in them.

Every pixel is background, seed, or rim: what lies around the seeds and goes to the one whose flood
comes first. A flood only moves through rim pixels, so that rims which do not touch each other are
independent: each connected rim is its own small problem, and a rim that touches fewer than two
seeds is none at all::

    . . r r r . . . .       one seed:        the rim is part of it
    . r r s r r . r .       two seeds:       the watershed decides (~ 20 % of the pixels of nuclei
    . r s s r s r r .                        that touch, where a plain watershed queues them all)
    . . r r r r r . .       no seed:         the rim is an object

Seeds and rims get numbers slab by slab, in the image itself; who touches whom, across the seams
too, is arithmetic on those numbers. So the memory beside the image is that of a slab, of a few
numbers for each piece, and of the largest window that is flooded.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from napari_unet.runs import (
    Ints,
    Runs,
    ShouldStop,
    bands,
    components,
    is_thread,
    poll,
    runs_of,
    touching,
)
from napari_unet.seams import Seams

__all__ = ["LARGE", "RIM", "SEED", "Floats", "Labels", "Objects", "Readable", "flood_seeds"]

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]

RIM, SEED = 1, 2

# Side of the cells, in pixels, by which rims are flooded together, for 2 and 3 axes.
CELL = {2: 256, 3: 40}

LARGE = 6 << 20
"""Pixels of a bounding box beyond which a rim is not flooded as a whole: fifty bytes for each."""

# Side of the cells, in pixels, in which large rims are flooded, and what is seen around them.
PLOT, AROUND = {2: 1536, 3: 160}, {2: 256, 3: 32}

# How often a flood under way is looked after, in seconds.
_PATIENCE = 0.05

Box = tuple[slice, ...]


class Readable(Protocol):
    """An array, or something that reads parts of one."""

    def __getitem__(self, key: Any, /) -> Floats:
        """Pixels of a box."""


@dataclass(frozen=True)
class Objects:
    """What the codes in an image stand for: code c, or -c, is object ``owner[c]``.

    Parameters
    ----------
    owner : int64 array
        The object of each code, by the number of one of its pieces; 0 is the background's.
    area : int64 array of the same length
        Pixels of each object, at its number.
    first : int64 array of the same length
        Flat index of its first pixel in C order.
    """

    owner: Ints
    area: Ints
    first: Ints


def flood_seeds(
    image: Labels,
    foreground: Readable,
    connectivity: int,
    should_stop: ShouldStop = None,
) -> Objects:
    """Give every rim pixel to a seed, in the order of falling `foreground`.

    Parameters
    ----------
    image : int32 array of shape (Y, X) or (Z, Y, X)
        0, `RIM` or `SEED`; a component of seed pixels is one seed. It is filled with codes.
    foreground : float32 array of the same shape, or what reads boxes of it
        Positive on seeds.
    connectivity : int
        Pixels are neighbours if they differ by 1 along at most this many axes.
    should_stop : callable, optional
        Asked between the pieces and, by a second thread, within each flood.

    Returns
    -------
    Objects
        What the codes mean: one object for each seed with its rim, and for each rim that touches
        no seed.

    Raises
    ------
    Cancelled
        If `should_stop` returned true. A flood under way then ends by itself, unheeded.

    Notes
    -----
    Where all values differ, the result is that of `skimage.segmentation.watershed` over the whole
    image. Of equal pixels a seed's go first, in raster order, then those that were reached first;
    scikit-image leaves the order of equal seed pixels to its queue.

    A contested rim whose bounding box holds more than `LARGE` pixels, or nearly no rim
    (`runs.is_thread`), is flooded plot by plot on a fixed grid together with the others of its
    kind, each plot with its surroundings in view: time and memory would outgrow the image.
    """
    pieces = _Pieces(image, connectivity)
    for rows in bands(image.shape, should_stop):
        pieces.add(rows, should_stop)
    floods = pieces.resolve(should_stop)
    if should_stop is None:
        for task in floods.tasks():
            floods.finish(task, _flood(*floods.setting(task, foreground)))
        return floods.objects
    # A flood cannot be stopped from inside, but it leaves Python's lock alone: it runs beside.
    pool = ThreadPoolExecutor(1, thread_name_prefix="flood")
    try:
        for task in floods.tasks():
            poll(should_stop)
            flood = pool.submit(_flood, *floods.setting(task, foreground))
            while not wait([flood], _PATIENCE).done:
                poll(should_stop)
            floods.finish(task, flood.result())
    finally:
        pool.shutdown(wait=False)
    return floods.objects


class _Pieces:
    """Connected pieces of seed and of rim, numbered from 1 in the order they are met."""

    def __init__(self, image: Labels, connectivity: int) -> None:
        self._image, self._connectivity = image, connectivity
        self._seams = Seams(connectivity)
        self._count = 0
        none = np.zeros(0, np.int64)
        self._touches: list[tuple[Ints, Ints]] = [(none, none)]  # rim, seed
        ndim = image.ndim
        # The first entry of each is that of the background.
        self._is_rim = [np.zeros(1, np.bool_)]
        self._area, self._first = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
        self._low = [np.zeros((ndim, 1), np.int64)]
        self._high = [np.zeros((ndim, 1), np.int64)]

    def add(self, rows: slice, should_stop: ShouldStop) -> None:
        """Replace the classes of a slab by codes: a piece's number, negative for a rim."""
        part = self._image[rows]
        runs = runs_of(part)
        kind = runs.values(part)
        a, b = touching(runs, np.flatnonzero(kind), self._connectivity)
        alike = kind[a] == kind[b]
        root = components(kind.size, a[alike], b[alike], should_stop)
        chosen, everyone = kind > 0, np.arange(kind.size)
        number = np.cumsum(chosen & (root == everyone))
        count = int(number[-1]) if number.size else 0
        number = number[root]
        is_rim = kind == RIM

        rim, seed = np.where(is_rim[a], (a, b), (b, a))[:, ~alike]
        met = np.unique(number[rim] * (count + 1) + number[seed])
        self._touches.append((met // (count + 1) + self._count, met % (count + 1) + self._count))
        code = np.where(chosen, number + self._count, 0)
        self._describe(runs, number - 1, (chosen, is_rim, chosen & (root == everyone)), rows.start)
        self._count += count
        part[...] = runs.paint(np.where(is_rim, -code, code).astype(np.int32), should_stop)
        self._seams.add(part[0], part[-1])

    def _describe(
        self,
        runs: Runs,
        piece: Ints,
        kinds: tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]],
        start: int,
    ) -> None:
        """Size, first pixel and, of rims, bounding box of each new piece."""
        chosen, is_rim, is_head = kinds
        lengths, at, head = runs.lengths, np.flatnonzero(chosen), np.flatnonzero(is_head)
        count = head.size
        self._area.append(np.bincount(piece[at], lengths[at], count).astype(np.int64))
        self._is_rim.append(is_rim[head])
        row_pixels = int(np.prod(runs.shape[1:]))
        self._first.append(runs.starts[head] + start * row_pixels)
        low = np.repeat(np.array(self._image.shape)[:, None], count, axis=1)
        high = np.zeros_like(low)
        at = np.flatnonzero(is_rim)
        begin = np.array(np.unravel_index(runs.starts[at], runs.shape))
        begin[0] += start
        end = begin + 1
        end[-1] += lengths[at] - 1
        for axis in range(low.shape[0]):
            np.minimum.at(low[axis], piece[at], begin[axis])
            np.maximum.at(high[axis], piece[at], end[axis])
        self._low.append(low)
        self._high.append(high)

    def resolve(self, should_stop: ShouldStop) -> _Floods:
        """Join the pieces across seams, and find out which rims are contested."""
        is_rim = np.concatenate(self._is_rim)
        upper, lower = self._seams.pairs()
        alike = (upper < 0) == (lower < 0)
        rims, seeds = np.minimum(upper, lower)[~alike], np.maximum(upper, lower)[~alike]
        a, b = np.abs(upper[alike]), np.abs(lower[alike])
        root = components(is_rim.size, a, b, should_stop)
        rim = root[np.concatenate([*(pair[0] for pair in self._touches), -rims])]
        seed = root[np.concatenate([*(pair[1] for pair in self._touches), seeds])]
        # The lowest and highest seed that each rim touches: none, one and the same, or several.
        lowest = np.full(is_rim.size, is_rim.size)
        highest = np.full(is_rim.size, -1)
        np.minimum.at(lowest, rim, seed)
        np.maximum.at(highest, rim, seed)
        owner = np.where(lowest == highest, lowest, np.arange(is_rim.size))[root]
        contested = np.flatnonzero((lowest < highest)[root] & is_rim)
        area = np.zeros(is_rim.size, np.int64)
        first = np.full(is_rim.size, np.iinfo(np.int64).max)
        settled = np.ones(is_rim.size, np.bool_)
        settled[contested] = False
        settled[0] = False
        np.add.at(area, owner[settled], np.concatenate(self._area)[settled])
        np.minimum.at(first, owner[settled], np.concatenate(self._first)[settled])
        low = np.concatenate(self._low, axis=1)[:, contested]
        high = np.concatenate(self._high, axis=1)[:, contested]
        pieces = contested, np.concatenate(self._area)[contested], low, high
        return _Floods(self._image, Objects(owner, area, first), self._connectivity, *pieces)


@dataclass(frozen=True)
class _Task:
    """A window to flood.

    Parameters
    ----------
    group : int
        Which rims.
    window : tuple of slice
        Pixels that are looked at.
    inner : tuple of slice
        Pixels, counted from there, whose answer is kept.
    """

    group: int
    window: Box
    inner: Box


class _Floods:
    """The contested rims, grouped into windows."""

    def __init__(
        self,
        image: Labels,
        objects: Objects,
        connectivity: int,
        contested: Ints,
        areas: Ints,
        low: Ints,
        high: Ints,
    ) -> None:
        self.objects = objects
        self._image, self._connectivity = image, connectivity
        # Codes beyond those of the pieces: rims of several plots that were flooded already.
        self._beyond = objects.owner.size
        roots, which = np.unique(objects.owner[contested], return_inverse=True)
        start = np.repeat(np.array(image.shape)[:, None], roots.size, axis=1)
        stop = np.zeros_like(start)
        for axis in range(image.ndim):
            np.minimum.at(start[axis], which, low[axis])
            np.maximum.at(stop[axis], which, high[axis])
        # What a code is in a window: the object it belongs to, or ~ the group that contests it.
        self._meaning = objects.owner.astype(np.int32)
        self._windows: list[Box] = []
        boxes, pixels = (stop - start).prod(axis=0), np.bincount(which, areas, roots.size)
        large = (boxes > LARGE) | is_thread(boxes, pixels)
        group = self._group(start, stop, large)
        self._meaning[contested] = ~group[which]

    def _group(self, start: Ints, stop: Ints, large: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Group rims by place, so that each group is flooded in a small window; 0 is for the large.

        Rims are independent, so that any grouping gives one result. Those much larger than a cell
        have a window each.
        """
        shape = self._image.shape
        group = np.zeros(start.shape[1], np.int32)
        self._plots = [
            tuple(slice(int(i), int(j)) for i, j in zip(start[:, at], stop[:, at], strict=True))
            for at in np.flatnonzero(large)
        ]
        cell = CELL[len(shape)]
        key = np.ravel_multi_index(tuple(start // cell), tuple(s // cell + 1 for s in shape))
        wide = (stop - start > 2 * cell).any(axis=0)
        key[wide] = -1 - np.arange(np.count_nonzero(wide))
        small = np.flatnonzero(~large)
        order = small[np.argsort(key[small], kind="stable")]
        cuts = np.flatnonzero(np.diff(key[order])) + 1
        for at in np.split(order, cuts) if order.size else ():
            begin = np.maximum(start[:, at].min(axis=1) - 1, 0)
            end = np.minimum(stop[:, at].max(axis=1) + 1, shape)
            self._windows.append(
                tuple(slice(int(i), int(j)) for i, j in zip(begin, end, strict=True))
            )
            group[at] = len(self._windows)
        return group

    def tasks(self) -> Iterator[_Task]:
        """Windows to flood, one after the other."""
        for group, window in enumerate(self._windows, start=1):
            yield _Task(group, window, (slice(None),) * len(window))
        shape = self._image.shape
        plot, around = PLOT[len(shape)], AROUND[len(shape)]
        plots = set[tuple[int, ...]]()
        for box in self._plots:
            ranges = (range(part.start // plot, -(-part.stop // plot)) for part in box)
            plots.update(product(*ranges))
        for index in sorted(plots):
            start = [max(i * plot - around, 0) for i in index]
            stop = [min((i + 1) * plot + around, n) for i, n in zip(index, shape, strict=True)]
            window = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
            inner = tuple(
                slice(i * plot - a, min((i + 1) * plot, n) - a)
                for i, a, n in zip(index, start, shape, strict=True)
            )
            yield _Task(0, window, inner)

    def setting(
        self, task: _Task, foreground: Readable
    ) -> tuple[Labels, NDArray[np.bool_], Floats, int]:
        """Labels of the sources, rims to flood, and their foreground."""
        codes = np.abs(self._image[task.window])
        flooded = codes >= self._beyond
        codes[flooded] = 0
        labels = self._meaning[codes]
        rim = (labels == ~task.group) | (flooded & (task.group == 0))
        relief = np.asarray(foreground[task.window], np.float32)
        return labels, rim, relief, self._connectivity

    def finish(self, task: _Task, given: tuple[NDArray[np.bool_], Labels]) -> None:
        """Write what a flood gave to each of its rim pixels."""
        rim, flooded = given[0][task.inner], given[1][task.inner]
        part = self._image[task.window][task.inner]
        found = flooded[rim]
        # Far from every seed that is in view, the rim of a plot is an object of its own.
        found = np.where(found > 0, found, self.objects.owner[np.abs(part[rim])])
        part[rim] = found + (self._beyond if task.group == 0 else 0)
        start = [w.start + (i.start or 0) for w, i in zip(task.window, task.inner, strict=True)]
        pixels = (p + s for p, s in zip(np.nonzero(rim), start, strict=True))
        flat = np.ravel_multi_index(tuple(pixels), self._image.shape)
        ids, head, count = np.unique(found, return_index=True, return_counts=True)
        self.objects.area[ids] += count
        self.objects.first[ids] = np.minimum(self.objects.first[ids], flat[head])


def _flood(
    labels: Labels, rim: NDArray[np.bool_], fg: Floats, connectivity: int
) -> tuple[NDArray[np.bool_], Labels]:
    """Share out rim pixels by a watershed from the labels (above 0) around them."""
    footprint = ndimage.generate_binary_structure(labels.ndim, connectivity)
    # Seeds only matter where they touch the rim, and the queue is what costs time.
    source = ndimage.binary_dilation(rim, footprint) & (labels > 0)
    source &= ~rim
    relief = -fg.astype(np.float64)
    # Raster order among equal seed pixels, by steps too small to reach the next float32.
    count = np.count_nonzero(source)
    relief[source] *= 1 + np.arange(count, 0, -1) * 2.0**-52
    flooded: Labels = watershed(
        relief, np.where(source, labels, 0), connectivity=connectivity, mask=rim | source
    )
    return rim, flooded

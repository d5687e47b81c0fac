"""Tidy label images: ids follow the raster, holes close.

Each works on runs of equal pixels (see `runs`), so that it costs what the objects' outlines cost,
and slab by slab (see `seams`), so that it needs the memory of a slab beside the image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_unet.errors import OptionError
from napari_unet.runs import (
    Ints,
    Runs,
    ShouldStop,
    bands,
    compact,
    components,
    label_image,
    poll,
    portions,
    runs_of,
    touching,
)
from napari_unet.seams import Seams

__all__ = [
    "fill_object_holes",
    "raster_order",
    "replace",
]

Labels = NDArray[np.int32]


def fill_object_holes(labels: ArrayLike) -> NDArray[Any]:
    """Fill the holes of every object.

    A hole is a face-connected piece of background that touches one object only and not the
    image's edge; a piece between two objects, or around an object inside another, stays.

    Parameters
    ----------
    labels : integer array of shape (Y, X) or (Z, Y, X)
        0 is the background.

    Returns
    -------
    array of the shape and type of `labels`

    Raises
    ------
    ImageError
        If `labels` is no label image.
    """
    image = label_image(labels, "labels")
    runs = runs_of(image)
    ids, rank = compact(runs.values(image))
    filled = runs.paint(rank.astype(np.int32))
    replace(filled, np.arange(ids.size + 1, dtype=np.int32), fill_holes=True)
    table = np.concatenate([np.zeros(1, image.dtype), ids.astype(image.dtype)])
    labels_of: NDArray[Any] = table[filled]
    return labels_of


def raster_order(first: Ints, chosen: NDArray[np.bool_]) -> Labels:
    """Ids 1..n of the chosen objects by their first pixels; 0 for the others."""
    ids = np.zeros(first.size, np.int32)
    objects = np.flatnonzero(chosen)
    ids[objects[np.argsort(first[objects])]] = np.arange(1, objects.size + 1)
    return ids


def replace(
    image: Labels, ids: Labels, *, fill_holes: bool = False, should_stop: ShouldStop = None
) -> None:
    """Put ids in the place of codes, and then close the holes of the objects.

    Parameters
    ----------
    image : int32 array of shape (Y, X) or (Z, Y, X)
        Codes; changed. Code c, or -c, or c + the number of ids, is an object.
    ids : int32 array
        Of each code; 0 for background.
    fill_holes : bool
        Fill the holes of each object, as `fill_object_holes` does.
    should_stop : callable, optional
        Asked several times for each slab.

    Raises
    ------
    Cancelled
        If `should_stop` returned true.
    """
    holes = _Holes(image)
    for rows in bands(image.shape, should_stop):
        part = image[rows]
        runs = runs_of(part)
        codes = np.abs(runs.values(part))
        codes[codes >= ids.size] -= ids.size
        runs, values = _merged(runs, ids[codes])
        if fill_holes:
            values = holes.fill(runs, values, rows, should_stop)
        part[...] = runs.paint(values, should_stop)
    if fill_holes:
        holes.finish(should_stop)


def _merged(runs: Runs, values: Labels) -> tuple[Runs, Labels]:
    """Join neighbouring runs of one line that got the same value."""
    if not values.size:
        return runs, values
    head = runs.starts % runs.shape[-1] == 0
    head[1:] |= values[1:] != values[:-1]
    bounds = np.append(runs.starts[head], runs.bounds[-1])
    return Runs(runs.shape, bounds), values[head]


class _Holes:
    """Background that may be a hole, from the first slab to the last.

    Pieces that lie inside a slab are settled there. Those that reach a seam are kept, with their
    runs while they still may be holes.
    """

    def __init__(self, image: Labels) -> None:
        self._image = image
        self._seams = Seams(1)
        # Of each piece that reaches a seam: the lowest and highest object it touches.
        none = np.zeros(0, np.int64)
        self._lowest, self._highest = [none], [none]
        self._runs = [(none, none, none)]  # start, length, piece
        self._count = 0

    def fill(self, runs: Runs, values: Labels, rows: slice, should_stop: ShouldStop) -> Labels:
        """Close the holes of a slab, given the id of each of its runs."""
        a, b = touching(runs, np.arange(values.size), 1)
        empty = values == 0
        both = empty[a] & empty[b]
        piece = components(values.size, a[both], b[both], should_stop)
        one = empty[a] != empty[b]
        hole = piece[np.where(empty[a], a, b)[one]]
        owner = values[np.where(empty[a], b, a)[one]]
        lowest = np.full(values.size, np.iinfo(np.int32).max, np.int64)
        highest = np.zeros(values.size, np.int64)
        np.minimum.at(lowest, hole, owner)
        np.maximum.at(highest, hole, owner)
        top, bottom = rows.start == 0, rows.stop == self._image.shape[0]
        lone = self._image.ndim == 3 and self._image.shape[0] == 1
        at_edge = runs.at_edge(top and not lone, bottom and not lone)
        # An image's edge counts as another object: what touches it is no hole.
        lowest[piece[empty & at_edge]] = 0
        highest[piece[empty & at_edge]] = np.iinfo(np.int32).max

        plane = int(np.prod(runs.shape[1:]))
        above, below = runs.starts < plane, runs.starts >= runs.bounds[-1] - plane
        is_open = np.zeros(values.size, np.bool_)
        reaches = (above & (not top)) | (below & (not bottom))
        is_open[piece[empty & reaches]] = True
        fill = empty & ((lowest == highest) & ~is_open)[piece]
        values = values.copy()
        values[fill] = lowest[piece[fill]]
        number = self._keep(runs, piece, is_open, (lowest, highest), rows.start * plane)
        # Above 0 an object, below a piece of background.
        codes = np.where(values > 0, values, -number[piece]).astype(np.int32)
        first, last = (
            np.repeat(codes[line], runs.lengths[line]).reshape(runs.shape[1:])
            for line in (above, below)
        )
        self._seams.add(first, last)
        return values

    def _keep(
        self,
        runs: Runs,
        piece: Ints,
        is_open: NDArray[np.bool_],
        touched: tuple[Ints, Ints],
        start: int,
    ) -> Ints:
        """Number the open pieces from 1 on; 0 for others."""
        lowest, highest = touched
        roots = np.flatnonzero(is_open)
        number = np.zeros(piece.size, np.int64)
        number[roots] = np.arange(1, roots.size + 1) + self._count
        self._count += roots.size
        self._lowest.append(lowest[roots])
        self._highest.append(highest[roots])
        at = np.flatnonzero((is_open & (lowest >= highest))[piece])
        self._runs.append((runs.starts[at] + start, runs.lengths[at], number[piece[at]]))
        return number

    def finish(self, should_stop: ShouldStop) -> None:
        """Close the holes that reach over seams."""
        lowest, highest = (
            np.concatenate([np.zeros(1, np.int64), *part]) for part in (self._lowest, self._highest)
        )
        upper, lower = self._seams.pairs()
        both = (upper < 0) & (lower < 0)
        piece = components(lowest.size, -upper[both], -lower[both], should_stop)
        one = (upper < 0) != (lower < 0)
        hole = -np.minimum(upper, lower)[one]
        owner = np.maximum(upper, lower)[one]
        np.minimum.at(lowest, hole, owner)
        np.maximum.at(highest, hole, owner)
        np.minimum.at(lowest, piece, lowest.copy())
        np.maximum.at(highest, piece, highest.copy())
        starts, lengths, number = (np.concatenate(part) for part in zip(*self._runs, strict=True))
        root = piece[number]
        fill = lowest[root] == highest[root]
        starts, lengths, ids = starts[fill], lengths[fill], lowest[root[fill]]
        for low, high in portions(np.cumsum(lengths)):
            poll(should_stop)
            length = lengths[low:high]
            before = np.cumsum(length) - length
            flat = np.arange(int(length.sum()))
            flat += np.repeat(starts[low:high] - before, length)
            place = np.unravel_index(flat, self._image.shape)
            self._image[place] = np.repeat(ids[low:high], length)


def check_pixels(name: str, value: float) -> None:
    if not 0 <= value < np.inf:
        raise OptionError(f"{name} is {value}; give a number of pixels, 0 or more.")

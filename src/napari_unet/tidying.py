"""Tidy label images: small objects go, holes close, ids follow the raster.

Each works on runs of equal pixels (see `runs`), so that it costs what the objects' outlines cost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_unet.errors import OptionError
from napari_unet.runs import Runs, ShouldStop, compact, components, label_image, runs_of, touching

__all__ = [
    "fill_object_holes",
    "raster_order",
    "relabel_raster",
    "remove_small",
    "without_holes",
    "without_small",
]

Labels = NDArray[np.int32]


def remove_small(labels: ArrayLike, min_size: int) -> NDArray[Any]:
    """Remove objects with fewer than `min_size` pixels; other ids stay.

    Parameters
    ----------
    labels : integer array of shape (Y, X) or (Z, Y, X)
        0 is the background.
    min_size : int
        In pixels, not negative.

    Returns
    -------
    array of the shape and type of `labels`

    Raises
    ------
    ImageError
        If `labels` is no label image.
    OptionError
        If `min_size` is negative.
    """
    image = label_image(labels, "labels")
    check_pixels("min_size", min_size)
    runs = runs_of(image)
    return runs.paint(without_small(runs, runs.values(image), min_size))


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
    return runs.paint(without_holes(runs, runs.values(image)))


def relabel_raster(labels: ArrayLike) -> Labels:
    """Number the objects 1..n by their first pixel in C order.

    Parameters
    ----------
    labels : integer array of shape (Y, X) or (Z, Y, X)
        0 is the background; ids of any size.

    Returns
    -------
    int32 array of the shape of `labels`

    Raises
    ------
    ImageError
        If `labels` is no label image.
    """
    image = label_image(labels, "labels")
    runs = runs_of(image)
    return runs.paint(raster_order(runs.values(image)))


def without_small(runs: Runs, values: NDArray[Any], min_size: int) -> NDArray[Any]:
    """`remove_small` on the values (id) of runs."""
    if min_size <= 1:
        return values
    _, rank = compact(values)
    small = np.bincount(rank, runs.lengths) < min_size
    return np.where(small[rank], values.dtype.type(0), values)


def without_holes(runs: Runs, values: NDArray[Any], should_stop: ShouldStop = None) -> NDArray[Any]:
    """`fill_object_holes` on the values (id) of runs."""
    a, b = touching(runs, np.arange(values.size), 1)
    empty = values == 0
    both = empty[a] & empty[b]
    piece = components(values.size, a[both], b[both], should_stop)
    one = empty[a] != empty[b]
    hole = piece[np.where(empty[a], a, b)[one]]
    labels, rank = compact(values)
    owner = rank[np.where(empty[a], b, a)[one]]
    lowest = np.full(values.size, labels.size + 1)
    highest = np.zeros(values.size, np.int64)
    np.minimum.at(lowest, hole, owner)
    np.maximum.at(highest, hole, owner)
    closed = lowest == highest
    closed[piece[empty & runs.at_edge()]] = False
    fill = empty & closed[piece]
    filled = values.copy()
    filled[fill] = labels[lowest[piece[fill]] - 1]
    return filled


def raster_order(values: NDArray[Any]) -> Labels:
    """`relabel_raster` on the values (id) of runs."""
    labels, first, rank = np.unique(values, return_index=True, return_inverse=True)
    ids = np.zeros(labels.size, np.int32)
    objects = np.flatnonzero(labels)
    ids[objects[np.argsort(first[objects])]] = np.arange(1, objects.size + 1)
    return ids[rank]


def check_pixels(name: str, value: float) -> None:
    if not 0 <= value < np.inf:
        raise OptionError(f"{name} is {value}; give a number of pixels, 0 or more.")

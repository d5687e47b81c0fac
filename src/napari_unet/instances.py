"""From class probabilities to objects, and a score for each object.

Everything here works on 2 or 3 spatial axes, needs no torch, and depends on the arrays alone: the
same probabilities give the same ids on every machine, in whatever pieces the work is done.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_unet.errors import ImageError, OptionError
from napari_unet.flooding import RIM, SEED, Floats, Labels, Readable, flood_seeds
from napari_unet.runs import (
    ShouldStop,
    bands,
    compact,
    label_image,
    poll,
    runs_of,
    spatial,
)
from napari_unet.tidying import check_pixels, raster_order, replace
from napari_unet.waists import cut_waists

__all__ = [
    "Scores",
    "as_probabilities",
    "classes_from",
    "find_objects",
    "label_instances",
    "normalised_entropy",
    "object_scores",
    "seeds_and_rims",
]

# Softmax in half precision may leave [0, 1] by this much.
_TOLERANCE = 1e-3


def label_instances(
    foreground: ArrayLike,
    contour: ArrayLike | None = None,
    *,
    threshold: float = 0.5,
    min_size: int = 0,
    fill_holes: bool = True,
    waist: float = 0,
    connectivity: int = 1,
    should_stop: ShouldStop = None,
) -> Labels:
    """Label the objects that class probabilities show.

    Without `contour`, the objects are the connected components of ``foreground > threshold``.
    With it, objects that touch are told apart: seeds are the components of ``foreground >
    threshold`` and ``foreground > contour``; a watershed of ``-foreground`` from the seeds shares
    out all of ``foreground + contour > threshold``; a component of that without a seed is one
    object. Then small objects go, holes close, and ids are given in raster order.

    Parameters
    ----------
    foreground, contour : float arrays of shape (Y, X) or (Z, Y, X)
        Probabilities in [0, 1], compared as float32.
    threshold : float
        In [0, 1).
    min_size : int
        Objects with fewer pixels are removed, counted before holes are filled.
    fill_holes : bool
        Fill the holes of each object, as `fill_object_holes` does.
    waist : float
        Cut seeds where they narrow by more than this many pixels of radius; 0 cuts none.
    connectivity : int
        Pixels are neighbours if they differ by 1 along at most this many axes: 1 is faces only.
    should_stop : callable, optional
        Asked every few milliseconds on images of usual size.

    Returns
    -------
    int32 array of the shape of `foreground`
        0 for the background; ids 1..n ordered by the first pixel of each object in C order.

    Raises
    ------
    ImageError
        If an array is not 2-D or 3-D, not numbers in [0, 1], or the shapes differ.
    OptionError
        If `threshold`, `min_size` or `connectivity` is out of range.
    Cancelled
        If `should_stop` returned true.
    """
    fg = as_probabilities(foreground, "foreground")
    edge = None if contour is None else as_probabilities(contour, "contour")
    spatial(fg, "foreground")
    if edge is not None:
        _same_shape(edge.shape, fg.shape, "contour", "foreground")
    _check_threshold(threshold)
    labels = np.zeros(fg.shape, np.int32)
    for rows in bands(fg.shape, should_stop):
        labels[rows] = seeds_and_rims(fg[rows], None if edge is None else edge[rows], threshold)
    find_objects(
        labels,
        fg,
        min_size=min_size,
        fill_holes=fill_holes,
        waist=waist,
        connectivity=connectivity,
        should_stop=should_stop,
    )
    return labels


def seeds_and_rims(
    foreground: Floats, contour: Floats | None, threshold: float
) -> NDArray[np.uint8]:
    """Tell seeds, rims and background apart, pixel by pixel: the first step to objects.

    Parameters
    ----------
    foreground, contour : float32 arrays of one shape
        Probabilities; a whole image, or any part of one.
    threshold : float
        As for `label_instances`.

    Returns
    -------
    uint8 array of the same shape
        `flooding.SEED`, `flooding.RIM` or 0.
    """
    inside = foreground > threshold
    if contour is None:
        return inside * np.uint8(SEED)
    classes: NDArray[np.uint8] = np.uint8(RIM) * (foreground + contour > threshold)
    classes[inside & (foreground > contour)] = SEED
    return classes


def find_objects(
    image: Labels,
    foreground: Readable,
    *,
    min_size: int = 0,
    fill_holes: bool = True,
    waist: float = 0,
    connectivity: int = 1,
    should_stop: ShouldStop = None,
) -> int:
    """Turn seeds and rims into objects, in place; all but the first step of `label_instances`.

    Parameters
    ----------
    image : int32 array of shape (Y, X) or (Z, Y, X)
        What `seeds_and_rims` gave; becomes the labels.
    foreground : float32 array of the same shape, or what reads boxes of it
        Read only where rims are shared out.
    min_size, fill_holes, waist, connectivity, should_stop
        As for `label_instances`.

    Returns
    -------
    int
        The number of objects.

    Notes
    -----
    The image is worked on slab by slab, and the result is that of the whole. Beside the image this
    takes the memory of a slab, of some numbers per object, and of the largest box around a seed
    that is cut or a rim that is shared out (at most `flooding.LARGE` pixels).
    """
    check_pixels("min_size", min_size)
    check_pixels("waist", waist)
    if not 1 <= connectivity <= image.ndim:
        raise OptionError(
            f"connectivity is {connectivity}; give 1 to {image.ndim} for {image.ndim} spatial axes."
        )
    if waist:
        cut_waists(image, waist, connectivity, should_stop)
    objects = flood_seeds(image, foreground, connectivity, should_stop)
    poll(should_stop)
    ids = raster_order(objects.first, objects.area >= max(min_size, 1))
    replace(image, ids[objects.owner], fill_holes=fill_holes, should_stop=should_stop)
    return int(ids.max(initial=0))


def classes_from(probabilities: ArrayLike, threshold: float | None = None) -> NDArray[Any]:
    """Class of each pixel.

    Parameters
    ----------
    probabilities : float array of shape (K, Y, X) or (K, Z, Y, X)
        Class 0 is the background, K at least 2.
    threshold : float, optional
        Without it, the most probable class. With it, the most probable class but the background
        where its probability exceeds the threshold, and 0 elsewhere. Of equal probabilities the
        lowest class wins.

    Returns
    -------
    uint8 (or int32, beyond 256 classes) array of shape (Y, X) or (Z, Y, X)

    Raises
    ------
    ImageError
        If the array has another number of axes, fewer than 2 classes or no probabilities.
    OptionError
        If `threshold` is outside [0, 1).
    """
    p = as_probabilities(probabilities, "probabilities")
    _class_stack(p)
    if threshold is not None:
        _check_threshold(threshold)
    dtype = np.uint8 if len(p) <= 256 else np.int32
    classes = np.zeros(p.shape[1:], dtype)
    for rows in bands(classes.shape):
        # Class by class: the classes of one pixel lie far apart in memory.
        best = p[0, rows].copy() if threshold is None else np.full_like(p[0, rows], threshold)
        for k in range(1, len(p)):
            np.copyto(classes[rows], k, where=p[k, rows] > best)
            np.maximum(best, p[k, rows], out=best)
    return classes


def normalised_entropy(probabilities: ArrayLike) -> Floats:
    """Doubt of each pixel: entropy of its classes over that of a coin toss between all of them.

    Parameters
    ----------
    probabilities : float array of shape (K, Y, X) or (K, Z, Y, X)
        K at least 2.

    Returns
    -------
    float32 array of shape (Y, X) or (Z, Y, X)
        0 (sure) to 1 (all classes alike).

    Raises
    ------
    ImageError
        If the array has another number of axes, fewer than 2 classes or no probabilities.
    """
    p = as_probabilities(probabilities, "probabilities")
    _class_stack(p)
    doubt = np.empty(p.shape[1:], np.float32)
    for rows in bands(doubt.shape):
        doubt[rows] = _entropy(p[:, rows])
    return doubt


def _entropy(p: Floats | list[Floats]) -> Floats:
    """Entropy of classes (K, ...) over the largest there can be."""
    tiny = np.finfo(np.float32).tiny
    doubt = np.zeros(p[0].shape, np.float32)
    for of_class in p:
        # p log p -> 0 with p, and so does p log tiny.
        part = np.maximum(of_class, tiny)
        np.log(part, out=part)
        part *= of_class
        doubt -= part
    doubt *= np.float32(1 / np.log(len(p)))
    return np.clip(doubt, 0, 1, out=doubt)


def object_scores(
    labels: ArrayLike, foreground: ArrayLike, doubt: ArrayLike
) -> dict[str, NDArray[Any]]:
    """Score every object, one row each, for the table beside a Labels layer.

    Parameters
    ----------
    labels : integer array of shape (Y, X) or (Z, Y, X)
        0 is the background; ids need not be consecutive.
    foreground : float array of the same shape
        Probability of not being background.
    doubt : float array of the same shape, or of shape (K, ...)
        Doubt of each pixel in [0, 1], or the class probabilities to take it from with
        `normalised_entropy`.

    Returns
    -------
    dict of columns of one length
        ``index`` (id, ascending, int64), ``area`` (pixels, int64), ``foreground_probability`` and
        ``doubt`` (means over the object, float64), ``touches_edge`` (of the image, bool).

    Raises
    ------
    ImageError
        If an array is not what is said above.
    """
    image = label_image(labels, "labels")
    fg = as_probabilities(foreground, "foreground")
    _same_shape(fg.shape, image.shape, "foreground", "labels")
    if np.ndim(doubt) == image.ndim + 1:
        doubt = normalised_entropy(doubt)
    unsure = as_probabilities(doubt, "doubt")
    _same_shape(unsure.shape, image.shape, "doubt", "labels")

    runs = runs_of(image)
    ids, rank = compact(runs.values(image))
    dense = runs.paint(rank.astype(np.int32))
    scores = Scores(ids.size, image.shape)
    for rows in bands(image.shape):
        scores.add(rows, dense[rows], fg[rows], unsure[rows])
    return scores.table() | {"index": ids.astype(np.int64)}


class Scores:
    """Scores of objects that are met slab by slab.

    Parameters
    ----------
    count : int
        Number of objects; their ids are 1 to `count`.
    shape : tuple of int
        Of the whole label image.
    """

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._area = np.zeros(count + 1)
        self._at_edge = np.zeros(count + 1, np.bool_)
        self._sums = np.zeros((2, count + 1))

    def add(self, rows: slice, labels: Labels, foreground: Floats, doubt: Floats) -> None:
        """Take in a slab.

        Parameters
        ----------
        rows : slice
            Where it lies on the first axis.
        labels : int32 array
            Its part of the label image.
        foreground : float32 array of the same shape
            Probability of not being background; taken into [0, 1].
        doubt : float32 array of the same shape, or of shape (K, ...)
            Doubt of each pixel, or the class probabilities that it is taken from.
        """
        runs = runs_of(labels)
        ids = runs.values(labels)
        lone = len(self._shape) == 3 and self._shape[0] == 1
        ends = (rows.start == 0 and not lone, rows.stop == self._shape[0] and not lone)
        self._at_edge[ids[runs.at_edge(*ends)]] = True
        chosen = np.flatnonzero(ids)
        if not chosen.size:
            return
        ids, lengths = ids[chosen], runs.lengths[chosen]
        inside = labels > 0
        if doubt.ndim > labels.ndim:
            unsure = _entropy([of_class[inside] for of_class in doubt])
        else:
            unsure = doubt[inside]
        # One number for each run first: there are few of them.
        begin = np.cumsum(lengths) - lengths
        n = self._area.size
        self._area += np.bincount(ids, lengths, n)
        for row, pixels in zip(self._sums, (foreground[inside], unsure), strict=True):
            clipped = np.clip(pixels, 0, 1)
            row += np.bincount(ids, np.add.reduceat(clipped, begin, dtype=np.float64), n)

    def table(self) -> dict[str, NDArray[Any]]:
        """Columns as `object_scores` gives them."""
        area = self._area[1:]
        with np.errstate(invalid="ignore"):
            foreground, doubt = self._sums[:, 1:] / area
        return {
            "index": np.arange(1, self._area.size),
            "area": area.astype(np.int64),
            "foreground_probability": np.clip(foreground, 0, 1),
            "doubt": np.clip(doubt, 0, 1),
            "touches_edge": self._at_edge[1:].copy(),
        }


def as_probabilities(array: ArrayLike, name: str) -> Floats:
    """Check that something holds probabilities, and return it as contiguous float32.

    Raises
    ------
    ImageError
        If there are other values than numbers from 0 to 1.
    """
    given = np.asarray(array)
    if given.dtype.kind not in "fbiu":
        raise ImageError(f"{name} has type {given.dtype}; give probabilities as real numbers.")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, an error below
        p = np.ascontiguousarray(given, np.float32)
    if p.size:
        low, high = float(p.min()), float(p.max())
        if np.isnan(low):
            raise ImageError(f"{name} has NaN values; replace them before looking for objects.")
        if low < -_TOLERANCE or high > 1 + _TOLERANCE:
            raise ImageError(
                f"{name} goes from {low:g} to {high:g}; give probabilities between 0 and 1."
            )
    return p


def _class_stack(p: Floats) -> None:
    if p.ndim not in (3, 4) or len(p) < 2:
        raise ImageError(
            f"probabilities has shape {p.shape}; give at least 2 classes on the first axis, "
            "then (Y, X) or (Z, Y, X)."
        )


def _same_shape(shape: tuple[int, ...], expected: tuple[int, ...], name: str, other: str) -> None:
    if shape != expected:
        raise ImageError(f"{name} has shape {shape} but {other} has {expected}; give both alike.")


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold < 1:
        raise OptionError(f"threshold is {threshold}; give a number from 0 to below 1.")

"""From class probabilities to objects, and a score for each object.

Everything here works on 2 or 3 spatial axes, needs no torch, and depends on the arrays alone: the
same probabilities give the same ids on every machine, in whatever pieces the work is done.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_unet.errors import ImageError, OptionError
from napari_unet.flooding import RIM, SEED, Floats, Labels, flood_seeds
from napari_unet.runs import (
    ShouldStop,
    bands,
    compact,
    label_image,
    poll,
    runs_of,
    spatial,
)
from napari_unet.tidying import check_pixels, raster_order, without_holes, without_small
from napari_unet.waists import cut_waists

__all__ = [
    "classes_from",
    "label_instances",
    "normalised_entropy",
    "object_scores",
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
    fg = _probabilities(foreground, "foreground")
    edge = None if contour is None else _probabilities(contour, "contour")
    spatial(fg, "foreground")
    if edge is not None:
        _same_shape(edge.shape, fg.shape, "contour", "foreground")
    _check_threshold(threshold)
    check_pixels("min_size", min_size)
    check_pixels("waist", waist)
    if not 1 <= connectivity <= fg.ndim:
        raise OptionError(
            f"connectivity is {connectivity}; give 1 to {fg.ndim} for {fg.ndim} spatial axes."
        )
    classes = _pixel_classes(fg, edge, threshold, should_stop)
    if waist:
        cut_waists(classes, waist, connectivity, should_stop)
    labels = flood_seeds(classes, fg, connectivity, should_stop)
    runs = runs_of(labels, should_stop=should_stop)
    values = without_small(runs, runs.values(labels), min_size)
    if fill_holes:
        values = without_holes(runs, values, should_stop)
    poll(should_stop)
    return runs.paint(raster_order(values), should_stop)


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
    p = _probabilities(probabilities, "probabilities")
    _class_stack(p)
    if threshold is not None:
        _check_threshold(threshold)
    dtype = np.uint8 if len(p) <= 256 else np.int32
    classes = np.zeros(p.shape[1:], dtype)
    for rows in bands(classes.shape):
        # Class by class: the classes of one pixel lie far apart in memory.
        best = p[0, rows].copy() if threshold is None else np.full_like(p[0, rows], threshold)
        for k in range(1, len(p)):
            better = p[k, rows] > best
            best[better] = p[k, rows][better]
            classes[rows][better] = k
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
    p = _probabilities(probabilities, "probabilities")
    _class_stack(p)
    doubt = np.zeros(p.shape[1:], np.float32)
    tiny = np.finfo(np.float32).tiny
    for rows in bands(doubt.shape):
        for of_class in p:
            # p log p -> 0 with p, and so does p log tiny.
            doubt[rows] -= of_class[rows] * np.log(np.maximum(of_class[rows], tiny))
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
    fg = _probabilities(foreground, "foreground")
    _same_shape(fg.shape, image.shape, "foreground", "labels")
    if np.ndim(doubt) == image.ndim + 1:
        doubt = normalised_entropy(doubt)
    unsure = _probabilities(doubt, "doubt")
    _same_shape(unsure.shape, image.shape, "doubt", "labels")

    runs = runs_of(image)
    ids, rank = compact(runs.values(image))
    n = ids.size + 1
    area = np.bincount(rank, runs.lengths, minlength=n)[1:]
    at_edge = np.bincount(rank[runs.at_edge()], minlength=n)[1:] > 0
    dense = runs.paint(rank)
    sums = np.zeros((2, n))
    for rows in bands(image.shape):
        objects = dense[rows].ravel()
        for row, scores in zip(sums, (fg, unsure), strict=True):
            row += np.bincount(objects, scores[rows].ravel(), minlength=n)
    return {
        "index": ids.astype(np.int64),
        "area": area.astype(np.int64),
        "foreground_probability": np.clip(sums[0, 1:] / area, 0, 1),
        "doubt": np.clip(sums[1, 1:] / area, 0, 1),
        "touches_edge": at_edge,
    }


def _pixel_classes(
    fg: Floats, contour: Floats | None, threshold: float, should_stop: ShouldStop
) -> NDArray[np.uint8]:
    classes = np.zeros(fg.shape, np.uint8)
    for rows in bands(fg.shape, should_stop):
        inside = fg[rows] > threshold
        if contour is None:
            classes[rows] = inside * np.uint8(SEED)
        else:
            classes[rows] = np.uint8(RIM) * (fg[rows] + contour[rows] > threshold)
            classes[rows][inside & (fg[rows] > contour[rows])] = SEED
    return classes


def _probabilities(array: ArrayLike, name: str) -> Floats:
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

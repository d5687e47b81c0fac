"""From class probabilities to objects.

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
    poll,
    spatial,
)
from napari_unet.tidying import check_pixels, raster_order, replace
from napari_unet.waists import cut_waists

__all__ = [
    "as_probabilities",
    "class_stack",
    "classes_from",
    "find_objects",
    "label_instances",
    "same_shape",
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
        same_shape(edge.shape, fg.shape, "contour", "foreground")
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
    class_stack(p)
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


def class_stack(p: Floats) -> None:
    """Raise `ImageError` if an array is no stack of classes (K, [Z,] Y, X)."""
    if p.ndim not in (3, 4) or len(p) < 2:
        raise ImageError(
            f"probabilities has shape {p.shape}; give at least 2 classes on the first axis, "
            "then (Y, X) or (Z, Y, X)."
        )


def same_shape(shape: tuple[int, ...], expected: tuple[int, ...], name: str, other: str) -> None:
    """Raise `ImageError` if two shapes differ."""
    if shape != expected:
        raise ImageError(f"{name} has shape {shape} but {other} has {expected}; give both alike.")


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold < 1:
        raise OptionError(f"threshold is {threshold}; give a number from 0 to below 1.")

"""A score for each object: its size, and how sure the network is of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_unet.flooding import Floats, Labels
from napari_unet.instances import as_probabilities, class_stack, same_shape
from napari_unet.runs import bands, compact, label_image, runs_of

__all__ = ["Scores", "normalised_entropy", "object_scores"]


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
    class_stack(p)
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
    same_shape(fg.shape, image.shape, "foreground", "labels")
    if np.ndim(doubt) == image.ndim + 1:
        doubt = normalised_entropy(doubt)
    unsure = as_probabilities(doubt, "doubt")
    same_shape(unsure.shape, image.shape, "doubt", "labels")

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

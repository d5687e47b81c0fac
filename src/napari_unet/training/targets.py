"""What the network shall answer: class numbers made of the labels that people have.

Labels are instances (a number for each object) or classes (a number for each class). They may be
sparse: then 0 means that nobody has looked there, unless a mask says that somebody has.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_unet.errors import ImageError, OptionError
from napari_unet.runs import compact

__all__ = ["MARGIN", "UNKNOWN", "Targets", "instance_classes", "known_pixels", "renumbered"]

UNKNOWN = -1
"""Class of a pixel that nobody has labelled; it takes no part in the loss."""

MARGIN = 4
"""Pixels around a tile that decide about its outermost classes."""

Kind = Literal["instances", "classes"]


@dataclass(frozen=True)
class Targets:
    """How labels become classes.

    Parameters
    ----------
    kind : {"instances", "classes"}
        What the labels number.
    n_classes : int
        Outputs of the network; for instances 1 (a sigmoid) or 2 (background, foreground) or 3
        (with contour).
    values : tuple of int
        For classes: the label of each class; 0, 1, 2 ... if left out.
    contour : tuple of float
        For instances: width of the contour over the square root of an object's area, the least
        and the most width, in pixels.
    touching : int
        Pixels to another object within which a pixel is contour, whatever its depth inside.

    Raises
    ------
    OptionError
        If the numbers do not go together.
    """

    kind: Kind = "instances"
    n_classes: int = 3
    values: tuple[int, ...] = ()
    contour: tuple[float, float, float] = (0.08, 1.0, 2.5)
    touching: int = 0

    def __post_init__(self) -> None:
        count = max(self.n_classes, 2)
        if self.kind == "instances" and count > 3:
            raise OptionError(
                f"Objects are learned as background, foreground and contour, not as {count} "
                "classes; say what the labels' numbers mean (classes)."
            )
        object.__setattr__(self, "values", tuple(self.values) or tuple(range(count)))
        if len(set(self.values)) != count:
            raise OptionError(f"{count} classes need {count} different labels, not {self.values}.")
        if self.contour[2] >= 1 + sqrt(2) + 0.5 or not 0 <= self.touching <= MARGIN - 1:
            raise OptionError(
                f"A contour is at most 2.5 px wide, or {MARGIN - 1} px between objects."
            )

    def index(self, labels: NDArray[Any], known: NDArray[np.bool_] | None) -> NDArray[np.int32]:
        """Bring labels into the form that tiles are cut from.

        Parameters
        ----------
        labels : integer ndarray
            As in the file.
        known : ndarray of bool, optional
            Where labels count; everywhere if left out.

        Returns
        -------
        ndarray of int32
            Object numbers or classes; `UNKNOWN` where labels do not count.

        Raises
        ------
        ImageError
            If a class label is none of `values`.
        """
        if self.kind == "instances":
            found = renumbered(labels).astype(np.int32)
        else:
            if int(labels.max(initial=0)) > 1 << 16:
                raise ImageError("These labels number objects, not classes; choose others.")
            table = np.full(max(int(labels.max(initial=0)), *self.values) + 1, -2, np.int32)
            table[list(self.values)] = np.arange(len(self.values))
            found = table[labels]
            strange = found == -2 if known is None else (found == -2) & known
            if strange.any():
                names = ", ".join(map(str, self.values))
                raise ImageError(
                    f"The labels hold the number {int(labels[strange][0])}, which is none of the "
                    f"classes ({names}); name it among the classes or correct the labels."
                )
        return found if known is None else np.where(known, found, UNKNOWN).astype(np.int32)

    def classes(self, labels: NDArray[np.int32]) -> NDArray[np.int64]:
        """Classes of a piece of `index`'s array: 0 to n_classes - 1, or `UNKNOWN`."""
        if self.kind == "classes":
            return labels.astype(np.int64)
        if self.n_classes < 3:
            return np.sign(labels).astype(np.int64)
        return instance_classes(labels, self.contour, self.touching)


def renumbered(labels: NDArray[Any]) -> NDArray[Any]:
    """Let numbers of objects be small: tables are made that are as long as the largest."""
    if not labels.size or labels.max() <= np.iinfo(np.uint16).max:
        return labels
    return compact(labels.ravel())[1].reshape(labels.shape)


def instance_classes(
    labels: NDArray[np.int32],
    contour: tuple[float, float, float] = (0.08, 1.0, 2.5),
    touching: int = 0,
) -> NDArray[np.int64]:
    """Classes of instances: 0 background, 1 foreground, 2 contour, `UNKNOWN` below 0.

    The contour is the rim of each object, inside it, so that foreground and contour together are
    the object: the pixels with another label beside them, and those whose distance to such a
    pixel is below the width less one. It is 1 px wide on small objects and up to 2.5 px on large
    ones, and wider where another object is less than `touching` pixels away.

    Parameters
    ----------
    labels : ndarray of int32
        Object numbers, 2-D or 3-D.
    contour, touching
        As for `Targets`.
    """
    rim = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        low, high = _ends(labels.ndim, axis)
        differs = labels[low] != labels[high]
        rim[low] |= differs
        rim[high] |= differs
    object_number = np.maximum(labels, 0)
    # Square root of the area also for volumes: contours are a matter of pixels, not of objects.
    area = np.bincount(object_number.ravel())
    share, least, most = contour
    width = np.clip(share * np.sqrt(area), least, most).astype(np.float32)[object_number]
    inside = rim & (width >= 1)
    # Distances below 1.5 are those to a rim pixel among the neighbours.
    for step in itertools.product((-1, 0, 1), repeat=labels.ndim):
        distance = sqrt(sum(s * s for s in step))
        if 0 < distance <= most - 1:
            inside |= _shifted(rim, step) & (width >= 1 + distance)
    if touching:
        inside |= _near_others(labels, touching)
    classes = np.where(labels > 0, np.where(inside, 2, 1), labels)
    return classes.astype(np.int64)


def _near_others(labels: NDArray[np.int32], reach: int) -> NDArray[np.bool_]:
    """Whether another object lies in the box of `reach` pixels around a pixel."""
    highest, lowest = np.maximum(labels, 0), np.where(labels > 0, labels, np.iinfo(np.int32).max)
    for axis in range(labels.ndim):
        highest, lowest = _running(highest, axis, reach), -_running(-lowest, axis, reach)
    near: NDArray[np.bool_] = (highest > labels) | (lowest < labels)
    return near


def _running(values: NDArray[np.int32], axis: int, reach: int) -> NDArray[np.int32]:
    """Maximum over ``2 reach + 1`` pixels along an axis."""
    found = values.copy()
    for step in range(1, reach + 1):
        low, high = _ends(values.ndim, axis, step)
        np.maximum(found[low], values[high], out=found[low])
        np.maximum(found[high], values[low], out=found[high])
    return found


def _ends(ndim: int, axis: int, step: int = 1) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """All but the last, and all but the first, `step` pixels of an axis."""
    low, high = [slice(None)] * ndim, [slice(None)] * ndim
    low[axis], high[axis] = slice(None, -step), slice(step, None)
    return tuple(low), tuple(high)


def _shifted(mask: NDArray[np.bool_], step: Sequence[int]) -> NDArray[np.bool_]:
    """`mask` moved by one pixel along some axes; nothing comes in from outside."""
    out = np.zeros_like(mask)
    to = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(step, mask.shape, strict=True))
    of = tuple(slice(max(-s, 0), n + min(-s, 0)) for s, n in zip(step, mask.shape, strict=True))
    out[to] = mask[of]
    return out


def known_pixels(
    labels: NDArray[Any], *, sparse: bool, reviewed: NDArray[np.bool_] | None
) -> NDArray[np.bool_] | None:
    """Where labels count.

    Parameters
    ----------
    labels : integer ndarray
        As in the file.
    sparse : bool
        Whether 0 means that nobody has looked there.
    reviewed : ndarray of bool, optional
        Where somebody has looked: there 0 is background. Given without `sparse`, labels outside
        do not count at all.

    Returns
    -------
    ndarray of bool, or None for everywhere
    """
    if reviewed is not None and reviewed.shape != labels.shape:
        raise ImageError(
            f"The reviewed region has shape {reviewed.shape}, the labels {labels.shape}; draw it "
            "on the same image."
        )
    if not sparse:
        return reviewed
    return labels > 0 if reviewed is None else (labels > 0) | reviewed

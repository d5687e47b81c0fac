"""The part of an annotated picture that networks are tried on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.axes import ImageAxes
from napari_unet.errors import ImageError
from napari_unet.resample import Grid
from napari_unet.tiling import Window

__all__ = ["Patch", "are_instances", "check_labels", "choose_patches", "object_size"]

_CELLS = 4  # a window is so many cells wide; windows start at cells
_RIM = 2  # pixels from the border of an object that count as its contour


@dataclass(frozen=True, eq=False)
class Patch:
    """A window of one frame, and what is annotated in it.

    Parameters
    ----------
    index : tuple of int
        The frame's place on the leading axes.
    window : Window
        On the network's grid.
    truth : ndarray of int8
        1 object, 0 background, -1 unknown.
    rim : ndarray of bool
        Object pixels close to another object or to background.
    blocks : ndarray of int
        Number of the block that each pixel lies in; blocks are at least as large as objects.
    """

    index: tuple[int, ...]
    window: Window
    truth: NDArray[np.int8]
    rim: NDArray[np.bool_]
    blocks: NDArray[np.intp]


def check_labels(labels: Any, axes: ImageAxes) -> NDArray[Any]:
    """Return the labels as an array of whole numbers, of the image's shape.

    Raises
    ------
    ImageError
        If they are no labels of this image, or annotate nothing.
    """
    found = np.asarray(labels)
    if found.dtype.kind not in "bui":
        raise ImageError(
            f"Labels of type {found.dtype} are none; give whole numbers, 0 for background."
        )
    if found.shape != axes.labels_shape:
        raise ImageError(
            f"The labels have shape {found.shape} but the image {axes.labels_shape}; give the "
            "labels of this image."
        )
    if not (found > 0).any() or not (found == 0).any():
        raise ImageError(
            "The labels hold no objects or no background; annotate some objects in a part of the "
            "image."
        )
    # A mask has no sign to take; as numbers, it is one class.
    return found.astype(np.uint8) if found.dtype.kind == "b" else found


def object_size(labels: NDArray[Any]) -> float:
    """Diameter of a typical object in pixels: that in which half of all object pixels lie."""
    from scipy import ndimage

    inside = labels > 0
    if int(labels.max()) > 1:
        areas = np.bincount(labels[inside].astype(np.int64) if _small(labels) else _ranks(labels))
    else:
        areas = np.bincount(ndimage.label(inside)[0].ravel())[1:]
    areas = np.sort(areas[areas > 0])
    half = np.searchsorted(np.cumsum(areas), areas.sum() / 2)
    return float(areas[half] ** (1 / labels.ndim))


def _small(labels: NDArray[Any]) -> bool:
    return int(labels.max()) < 1 << 24


def _ranks(labels: NDArray[Any]) -> NDArray[np.intp]:
    """Consecutive numbers for objects whose ids are too large to count with."""
    ranks: NDArray[np.intp] = np.unique(labels[labels > 0], return_inverse=True)[1]
    return ranks


def are_instances(labels: NDArray[Any]) -> bool:
    """Whether labels are ids of objects, not classes: nearly every number is one piece."""
    from scipy import ndimage

    ids = np.unique(labels[labels > 0])
    if ids.size < 3:
        return False
    checked = ids[:: max(1, ids.size // 32)]
    single = sum(int(ndimage.label(labels == number)[1] == 1) for number in checked)
    return single >= 0.8 * checked.size


def choose_patches(
    labels: NDArray[Any],
    axes: ImageAxes,
    grid: Grid,
    stride: Sequence[int],
    *,
    extent: Sequence[int],
    most: int,
    block: Sequence[int],
) -> tuple[Patch, ...]:
    """Choose windows in which objects and background are both annotated.

    Parameters
    ----------
    labels : ndarray
        Of the image's shape without channels.
    axes : ImageAxes
        Of the image.
    grid : Grid
        The image's pixels and the network's.
    stride : sequence of int
        The network's pooling grid, which windows keep to.
    extent : sequence of int
        Wanted size of a window along each axis, in the network's pixels.
    most : int
        Windows to return, at most; those with the most of the rarer of both come first.
    block : sequence of int
        Extent of the blocks whose pixels are not independent.
    """
    cell = [max(1, ceil(e / _CELLS / s)) * s for e, s in zip(extent, stride, strict=True)]
    found: list[tuple[int, tuple[int, ...], Window]] = []
    for index in np.ndindex(axes.labels_shape[: axes.lead]):
        truth = np.sign(_on_grid(labels[index], grid, Window((0,) * len(cell), grid.network)))
        found += [(rarer, index, window) for rarer, window in _windows(truth, cell, most)]
    found.sort(key=lambda entry: -entry[0])
    # Scraps at the edges cost as much as they tell little.
    worth = [entry for entry in found[:most] if 4 * entry[0] >= found[0][0]]
    return tuple(_patch(labels[index], grid, index, window, block) for _, index, window in worth)


def _on_grid(labels: NDArray[Any], grid: Grid, window: Window) -> NDArray[Any]:
    """Labels of a window of the network's grid, by the nearest pixel."""
    if grid.same:
        return labels[window.slices]
    # The same rule the other way round: here the network's pixels ask for the image's.
    return Grid(grid.network, grid.image).labels_to_image(labels, (0,) * labels.ndim, window)


def _windows(truth: NDArray[Any], cell: Sequence[int], most: int) -> Iterator[tuple[int, Window]]:
    """Yield the best windows of one frame that do not overlap, with the count of the rarer kind."""
    counts = np.stack([_by_cell(truth > 0, cell), _by_cell(truth == 0, cell)])
    for _ in range(most):
        sums = counts
        for axis in range(1, counts.ndim):
            width = min(_CELLS, counts.shape[axis])
            sums = np.lib.stride_tricks.sliding_window_view(sums, width, axis).sum(-1)
        rarer = sums.min(0)
        if not rarer.max():
            return
        first = np.unravel_index(int(rarer.argmax()), rarer.shape)
        start = tuple(int(f) * c for f, c in zip(first, cell, strict=True))
        stop = tuple(
            min(s + _CELLS * c, n) for s, c, n in zip(start, cell, truth.shape, strict=True)
        )
        yield int(rarer.max()), Window(start, stop)
        counts[(slice(None), *(slice(f, f + _CELLS) for f in first))] = 0


def _by_cell(mask: NDArray[np.bool_], cell: Sequence[int]) -> NDArray[np.int64]:
    """Count pixels cell by cell."""
    counts: NDArray[np.int64] = mask.astype(np.int64)
    for axis, extent in enumerate(cell):
        counts = np.add.reduceat(counts, np.arange(0, mask.shape[axis], extent), axis)
    return counts


def _patch(
    labels: NDArray[Any], grid: Grid, index: tuple[int, ...], window: Window, block: Sequence[int]
) -> Patch:
    part = _on_grid(labels, grid, window)
    truth = np.sign(part.astype(np.int64)).astype(np.int8)
    blocks: NDArray[np.intp] = np.zeros(part.shape, np.intp)
    for axis, (extent, size) in enumerate(zip(part.shape, block, strict=True)):
        # Blocks of even size: a narrow one at the end would count like the others.
        count = max(1, extent // size)
        place = np.arange(extent) * count // extent
        blocks = blocks * count + np.expand_dims(
            place, tuple(other for other in range(part.ndim) if other != axis)
        )
    return Patch(index, window, truth, _rim(part) & (truth > 0), blocks)


def _rim(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels that differ from one at most `_RIM` pixels away along an axis."""
    rim = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        for shift in range(1, min(_RIM, labels.shape[axis] - 1) + 1):
            ahead: list[slice] = [slice(None)] * labels.ndim
            behind = list(ahead)
            ahead[axis], behind[axis] = slice(shift, None), slice(None, -shift)
            differs = labels[tuple(ahead)] != labels[tuple(behind)]
            rim[tuple(ahead)] |= differs
            rim[tuple(behind)] |= differs
    return rim

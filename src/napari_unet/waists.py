"""Cut seeds at their waists: two nuclei whose contour the network missed look like an eight.

Inside a seed the distance to its rim has a maximum in each lobe. Where a path between two maxima
has to come down from the lower one by more than a chosen depth, there is a waist, and the watershed
line of the distance is where it is cut (Soille, Morphological Image Analysis, 2003, chapter 9).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import pi, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from napari_unet.flooding import RIM, SEED
from napari_unet.runs import ShouldStop, bands, is_thread, poll
from napari_unet.seams import Seams, joined

__all__ = ["LARGEST", "cut_waists"]

# Distances are smoothed by this much, in pixels: the pixel grid makes small maxima of its own.
_SMOOTH = 1.0
_REACH = int(4 * _SMOOTH + 0.5)
_BELL = np.exp(-0.5 * (np.arange(-_REACH, _REACH + 1) / _SMOOTH) ** 2)
_BELL /= _BELL.sum()

# Content of a disc and a ball of radius 1; a seed hardly larger than its largest one has no waist.
_ROUND = {2: pi, 3: 4 * pi / 3}
_ROUNDISH = 1.15

# Far above the rounding of a smoothed distance, far below a depth that matters.
_TINY = 1e-6

LARGEST = 1 << 22
"""Pixels of a bounding box beyond which a seed is not looked at: some hundred bytes for each."""

# More tops than this are looked at by the full method.
_MANY = 32

Box = tuple[slice, ...]


def cut_waists(
    classes: NDArray[Any], depth: float, connectivity: int, should_stop: ShouldStop = None
) -> None:
    """Turn seed pixels into rim where a seed has a waist, in place.

    Parameters
    ----------
    classes : integer array of shape (Y, X) or (Z, Y, X)
        `RIM`, `SEED` or 0; changed.
    depth : float
        In pixels: how much narrower (in radius) a waist is than the smaller of its lobes.
    connectivity : int
        Pixels are neighbours if they differ by 1 along at most this many axes.
    should_stop : callable, optional
        Asked before each seed, and several times within large ones.

    Raises
    ------
    Cancelled
        If `should_stop` returned true.

    Notes
    -----
    Seeds are left as they are whose bounding box holds more than `LARGEST` pixels, or is that of a
    thread (`runs.is_thread`): the work is that of the boxes.
    """
    neighbours = ndimage.generate_binary_structure(classes.ndim, connectivity)
    reaching = _Open(Seams(connectivity))
    for rows in bands(classes.shape, should_stop):
        numbers, count = ndimage.label(classes[rows] == SEED, neighbours)
        boxes = ndimage.find_objects(numbers)
        is_open = np.zeros(count + 1, np.bool_)
        is_open[numbers[0]] |= rows.start > 0
        is_open[numbers[-1]] |= rows.stop < classes.shape[0]
        is_open[0] = False
        for number, box in enumerate(boxes, start=1):
            if not is_open[number] and _may_narrow(box, depth):
                poll(should_stop)
                _cut(classes[rows][box], numbers[box] == number, depth, connectivity, should_stop)
        reaching.add(numbers, boxes, is_open, rows.start)
    for box, first in reaching.seeds(should_stop):
        poll(should_stop)
        if _may_narrow(box, depth):
            numbers, _ = ndimage.label(classes[box] == SEED, neighbours)
            _cut(classes[box], numbers == numbers[first], depth, connectivity, should_stop)


def _may_narrow(box: Box, depth: float) -> bool:
    """Whether a seed in this box can have a waist, and is not too large to look for it."""
    sides = [part.stop - part.start for part in box]
    # No pixel is farther from the rim than half the shortest side.
    return bool((min(sides) + 1) // 2 > depth) and prod(sides) <= LARGEST


@dataclass
class _Open:
    """Seeds that reach a seam."""

    seams: Seams
    low: list[list[int]] = field(default_factory=list)
    high: list[list[int]] = field(default_factory=list)
    first: list[tuple[int, ...]] = field(default_factory=list)

    def add(
        self, numbers: NDArray[np.int32], boxes: list[Box], is_open: NDArray[np.bool_], start: int
    ) -> None:
        """Take in the open seeds of a slab that begins at `start`."""
        code = np.zeros(is_open.size, np.int64)
        for number in np.flatnonzero(is_open).tolist():
            box = boxes[number - 1]
            line = numbers[box][0] == number
            at = np.unravel_index(int(np.argmax(line)), line.shape)
            low = [box[0].start + start, *(part.start for part in box[1:])]
            self.low.append(low)
            self.high.append([box[0].stop + start, *(part.stop for part in box[1:])])
            self.first.append((low[0], *(a + int(i) for a, i in zip(low[1:], at, strict=True))))
            code[number] = len(self.low)
        self.seams.add(code[numbers[0]], code[numbers[-1]])

    def seeds(self, should_stop: ShouldStop) -> list[tuple[Box, tuple[int, ...]]]:
        """Bounding box of each whole seed, and one of its pixels, counted from there."""
        upper, lower = self.seams.pairs()
        low, high = np.array(self.low), np.array(self.high)
        found = []
        for members in joined(len(self.low), upper - 1, lower - 1, should_stop):
            start, stop = low[members].min(0).tolist(), high[members].max(0).tolist()
            box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
            at = self.first[int(members[0])]
            found.append((box, tuple(i - a for i, a in zip(at, start, strict=True))))
        return found


def _cut(
    classes: NDArray[Any],
    part: NDArray[np.bool_],
    depth: float,
    connectivity: int,
    should_stop: ShouldStop,
) -> None:
    """Cut one seed, `part` of its bounding box."""
    if is_thread(part.size, np.count_nonzero(part)):
        return
    # The rim of background around it is where distances start.
    inner = (slice(1, -1),) * part.ndim
    padded = np.zeros([n + 2 for n in part.shape], np.bool_)
    padded[inner] = part
    line = _waists(padded, depth, connectivity, should_stop)
    if line is not None:
        classes[line[inner]] = RIM


def _waists(
    part: NDArray[np.bool_], depth: float, connectivity: int, should_stop: ShouldStop
) -> NDArray[np.bool_] | None:
    """Pixels to cut in one seed; None where it has no waist."""
    distance = ndimage.distance_transform_edt(part)
    largest = distance.max()
    # Too narrow for a waist anywhere, or hardly larger than its largest disc.
    roundish = _ROUNDISH * _ROUND[part.ndim] * largest**part.ndim
    if largest <= depth or np.count_nonzero(part) < roundish:
        return None
    smooth = distance
    for axis in range(part.ndim):  # a Gaussian filter, without its preparations
        smooth = ndimage.correlate1d(smooth, _BELL, axis)
    smooth[~part] = 0
    poll(should_stop)
    if _one_lobe(smooth, depth):
        return None
    # The maxima that are left once every one is lowered by `depth` (h-maxima).
    peaks = local_maxima(reconstruction(smooth - depth, smooth))
    markers, count = ndimage.label(peaks & part, np.ones((3,) * part.ndim))
    if count < 2:
        return None
    poll(should_stop)
    lobes = watershed(-smooth, markers, connectivity=connectivity, mask=part, watershed_line=True)
    cut: NDArray[np.bool_] = part & (lobes == 0)
    return cut


def _one_lobe(smooth: NDArray[np.float64], depth: float) -> bool:
    """Whether it is plain to see that there is no waist.

    That is so where the straight way from every top to the highest one nowhere comes down by
    `depth`: no way has to, then. Most seeds are like this, and this is ten times as fast as to look
    for the best way.
    """
    core = smooth[(slice(1, -1),) * smooth.ndim]
    best = smooth
    for axis in range(smooth.ndim):
        ahead, here, behind = (
            best[(slice(None),) * axis + (slice(a, best.shape[axis] - 2 + a),)] for a in (2, 1, 0)
        )
        best = np.maximum(np.maximum(ahead, here), behind)
    tops = np.argwhere((core >= best) & (core > 0)) + 1
    if not 1 <= len(tops) <= _MANY:
        return False
    heights = smooth[tuple(tops.T)]
    highest = int(heights.argmax())
    if len(tops) == 1 or heights[highest] <= depth:
        return bool(heights[highest] > depth)
    steps = np.abs(tops - tops[highest]).max(1)
    parts = np.linspace(0, 1, int(steps.max()) + 1)
    # Rounded alike along every axis, each step is to a pixel or one of its neighbours.
    ways = np.rint(tops + parts[:, None, None] * (tops[highest] - tops)).astype(np.intp)
    lowest = smooth[tuple(np.moveaxis(ways, -1, 0))].min(0)
    return bool((lowest > heights - depth + _TINY).all())

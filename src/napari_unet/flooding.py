"""Objects from seeds: a watershed that is done in pieces and can be stopped between and in them.

Every pixel is background, seed, or rim: what lies around the seeds and goes to the one whose flood
comes first. A flood only moves through rim pixels, so that rims which do not touch each other are
independent: each connected rim is its own small problem, and a rim that touches fewer than two
seeds is none at all::

    . . r r r . . . .       one seed:        the rim is part of it
    . r r s r r . r .       two seeds:       the watershed decides (~ 20 % of the pixels of nuclei
    . r s s r s r r .                        that touch, where a plain watershed queues them all)
    . . r r r r r . .       no seed:         the rim is an object
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from napari_unet.runs import Ints, Runs, ShouldStop, components, poll, runs_of, touching

__all__ = ["RIM", "SEED", "flood_seeds"]

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]

RIM, SEED = 1, 2

# Side of the cells, in pixels, by which rims are flooded together, for 2 and 3 axes.
CELL = {2: 256, 3: 40}

# How often a flood under way is looked after, in seconds.
_PATIENCE = 0.05


def flood_seeds(
    classes: NDArray[np.uint8],
    foreground: Floats,
    connectivity: int,
    should_stop: ShouldStop = None,
) -> Labels:
    """Give every rim pixel to a seed, in the order of falling `foreground`.

    Parameters
    ----------
    classes : uint8 array of shape (Y, X) or (Z, Y, X)
        0, `RIM` or `SEED`. A component of seed pixels is one seed.
    foreground : float32 array of the same shape
        Positive on seeds.
    connectivity : int
        Pixels are neighbours if they differ by 1 along at most this many axes.
    should_stop : callable, optional
        Asked between the pieces and, by a second thread, within each flood.

    Returns
    -------
    int32 array of the shape of `classes`
        0 for the background; one positive id for each seed with its rim, and for each rim that
        touches no seed; in no particular order.

    Raises
    ------
    Cancelled
        If `should_stop` returned true. A flood under way then ends by itself, unheeded.

    Notes
    -----
    Where all values differ, the result is that of `skimage.segmentation.watershed` over the whole
    image. Of equal pixels a seed's go first, in raster order, then those that were reached first;
    scikit-image leaves the order of equal seed pixels to its queue.
    """
    runs = runs_of(classes, should_stop=should_stop)
    kind = runs.values(classes)
    a, b = touching(runs, np.flatnonzero(kind), connectivity)
    alike = kind[a] == kind[b]
    piece = components(kind.size, a[alike], b[alike], should_stop)

    # The lowest and highest seed that each rim touches: none, one and the same, or several.
    a, b = a[~alike], b[~alike]
    is_rim = kind[a] == RIM
    rim, seed = piece[np.where(is_rim, a, b)], piece[np.where(is_rim, b, a)]
    lowest = np.full(kind.size, kind.size)
    highest = np.full(kind.size, -1)
    np.minimum.at(lowest, rim, seed)
    np.maximum.at(highest, rim, seed)
    one, several = (lowest == highest)[piece], (lowest < highest)[piece]

    # Ids are 1 + a piece; ~piece, which is negative, marks the rims that several seeds share.
    values = np.where(one, lowest[piece], piece) + 1
    values[several] = ~piece[several]
    values[kind == 0] = 0
    labels: Labels = runs.paint(values.astype(np.int32), should_stop)
    windows, group = _windows(runs, piece, several)
    if should_stop is None:
        for number, window in enumerate(windows):
            _flood(labels[window], foreground[window], group, number, connectivity)
        return labels
    # A flood cannot be stopped from inside, but it leaves Python's lock alone: it runs beside.
    pool = ThreadPoolExecutor(1, thread_name_prefix="flood")
    try:
        for number, window in enumerate(windows):
            poll(should_stop)
            flood = pool.submit(
                _flood, labels[window], foreground[window], group, number, connectivity
            )
            while not wait([flood], _PATIENCE).done:
                poll(should_stop)
            flood.result()
    finally:
        pool.shutdown(wait=False)
    return labels


def _windows(
    runs: Runs, piece: Ints, contested: NDArray[np.bool_]
) -> tuple[list[tuple[slice, ...]], Ints]:
    """Group contested rims by place, so that each group is flooded in a small window.

    Rims are independent, so that any grouping gives one result. Those much larger than a cell
    share one window: windows of their own could each be as large as the image.

    Returns
    -------
    windows : list of tuples of slices
        The bounding box of each group and one pixel around it.
    group : int64 array of shape (number of runs,)
        The group of each piece that is contested, -1 for others.
    """
    group = np.full(piece.size, -1)
    members = np.flatnonzero(contested)
    if not members.size:
        return [], group
    pieces, which = np.unique(piece[members], return_inverse=True)
    first = np.array(np.unravel_index(runs.starts[members], runs.shape))
    last = first.copy()
    last[-1] += runs.lengths[members] - 1
    low = np.repeat(np.array(runs.shape)[:, None], pieces.size, axis=1)
    high = np.zeros_like(low)
    for axis in range(len(runs.shape)):
        np.minimum.at(low[axis], which, first[axis])
        np.maximum.at(high[axis], which, last[axis] + 1)

    cell = CELL[len(runs.shape)]
    key = np.ravel_multi_index(tuple(low // cell), tuple(s // cell + 1 for s in runs.shape))
    key = np.where((high - low > 2 * cell).any(axis=0), -1, key)
    order = np.argsort(key, kind="stable")
    cuts = np.flatnonzero(np.diff(key[order])) + 1
    windows = []
    for number, at in enumerate(np.split(order, cuts)):
        begin = np.maximum(low[:, at].min(axis=1) - 1, 0)
        end = high[:, at].max(axis=1) + 1
        group[pieces[at]] = number
        windows.append(tuple(slice(int(i), int(j)) for i, j in zip(begin, end, strict=True)))
    return windows, group


def _flood(labels: Labels, fg: Floats, group: Ints, number: int, connectivity: int) -> None:
    """Share out the rims of one group, in place, by a watershed from the seeds around them."""
    # ~label is the piece; a label that is none becomes piece 0, and is masked out again.
    rim = (group[~np.minimum(labels, -1)] == number) & (labels < 0)
    footprint = ndimage.generate_binary_structure(labels.ndim, connectivity)
    # Seeds only matter where they touch the rim, and the queue is what costs time.
    source = ndimage.binary_dilation(rim, footprint) & (labels > 0)
    relief = -fg.astype(np.float64)
    # Raster order among equal seed pixels, by steps too small to reach the next float32.
    count = np.count_nonzero(source)
    relief[source] *= 1 + np.arange(count, 0, -1) * 2.0**-52
    flooded: Labels = watershed(
        relief, np.where(source, labels, 0), connectivity=connectivity, mask=rim | source
    )
    labels[rim] = flooded[rim]

"""Work on a label image slab by slab, and know what belongs together across the seams.

An image of many gigapixels is looked at one slab (some rows, or planes, of full width) after the
other. What lies inside a slab is settled there; what reaches a seam is *open*: it gets a number,
the numbers on both sides of each seam are joined, and what belongs together is settled at the end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_unet.runs import Ints, ShouldStop, components, runs_of, touching

__all__ = ["Seams", "across", "joined"]


def across(
    above: NDArray[np.integer], below: NDArray[np.integer], connectivity: int
) -> tuple[Ints, Ints]:
    """Pairs of codes that touch across a seam.

    Parameters
    ----------
    above, below : integer arrays of shape (X,) or (Y, X)
        The last line (plane) of a slab and the first of the next; 0 is nothing.
    connectivity : int
        Pixels are neighbours if they differ by at most 1 along at most this many axes.

    Returns
    -------
    upper, lower : int64 arrays of one length
        Codes above and below the seam.
    """
    both = np.stack([above, below])
    runs = runs_of(both)
    values = runs.values(both).astype(np.int64)
    later, earlier = touching(runs, np.flatnonzero(values), connectivity)
    cross = (runs.starts[earlier] < above.size) & (runs.starts[later] >= above.size)
    return values[earlier[cross]], values[later[cross]]


class Seams:
    """Collects the pairs that touch across the seams of an image, from its first slab to its last.

    Parameters
    ----------
    connectivity : int
        Pixels are neighbours if they differ by at most 1 along at most this many axes.
    """

    def __init__(self, connectivity: int) -> None:
        self._connectivity = connectivity
        self._last: NDArray[np.integer] | None = None
        self._pairs: list[tuple[Ints, Ints]] = []

    def add(self, first: NDArray[np.integer], last: NDArray[np.integer]) -> None:
        """Take in the next slab: codes of its first and of its last line (plane)."""
        if self._last is not None:
            pair = across(self._last, first, self._connectivity)
            if pair[0].size:
                self._pairs.append(pair)
        self._last = last.copy()

    def pairs(self) -> tuple[Ints, Ints]:
        """All pairs so far, the code above the seam first."""
        if not self._pairs:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        upper, lower = zip(*self._pairs, strict=True)
        return np.concatenate(upper), np.concatenate(lower)


def joined(count: int, a: Ints, b: Ints, should_stop: ShouldStop = None) -> list[Ints]:
    """Group the numbers 0 to `count` - 1 by the pairs that join them.

    Returns
    -------
    list of int64 arrays
        The members of each group, ascending; groups by their smallest member.
    """
    if not count:
        return []
    root = components(count, a, b, should_stop)
    order = np.argsort(root, kind="stable")
    cuts = np.flatnonzero(np.diff(root[order])) + 1
    return np.split(order, cuts)

"""How well membranes part an image: the scores of the ISBI 2012 challenge.

The challenge thinned the membranes that were proposed, by a watershed from the regions between
them, and compared the regions with those of the truth on the truth's foreground alone (Arganda-
Carreras et al. 2015). With p_ij the part of that foreground in region i of the truth and region j
of the proposal, s_i and t_j their sums::

    V_Rand = sum p_ij^2 / (1/2 sum s_i^2 + 1/2 sum t_j^2)
    V_Info = I(S; T) / (1/2 H(S) + 1/2 H(T))

Pixels of a thinned membrane that lie on the truth's foreground count as regions of one pixel each.
Both are 1 for a perfect result, and the best of several thresholds is reported.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from napari_unet.errors import ImageError

__all__ = ["THRESHOLDS", "evaluate_membranes", "region_scores", "thinned_regions"]

THRESHOLDS = tuple(step / 10 for step in range(10))
"""Of the challenge's script: 0.0, 0.1 ... 0.9."""


def evaluate_membranes(
    interior: ArrayLike, truth: ArrayLike, thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, float]:
    """Score a stack of slices.

    Parameters
    ----------
    interior : array-like of float, of shape (Z, Y, X) or (Y, X)
        Probability of being no membrane, from 0 to 1.
    truth : array-like of the same shape
        1 inside cells, 0 on membranes.
    thresholds : sequence of float
        Tried on `interior`.

    Returns
    -------
    dict
        ``rand``, ``info``: highest mean over the slices of V_Rand and V_Info after thinning;
        ``rand_threshold``, ``info_threshold``: where that was; ``pixel_error``: lowest part of the
        pixels on the wrong side, and ``pixel_threshold``.

    Raises
    ------
    ImageError
        If the shapes differ or a slice of the truth has no cell.
    """
    found, there = np.asarray(interior, np.float32), np.asarray(truth) > 0
    if found.shape != there.shape or found.ndim not in (2, 3):
        raise ImageError(
            f"The proposal has shape {found.shape} and the truth {there.shape}; give slices "
            "(Z, Y, X) or (Y, X) of the same image."
        )
    if found.ndim == 2:
        found, there = found[None], there[None]
    if not there.any(axis=(1, 2)).all():
        raise ImageError("A slice of the truth has no cell at all; leave it out.")
    cells = [ndimage.label(plane)[0] for plane in there]
    table = np.array(
        [
            [region_scores(thinned_regions(p > t), c) for p, c in zip(found, cells, strict=True)]
            for t in thresholds
        ]
    ).mean(axis=1)
    errors = [float(((found > t) != there).mean()) for t in thresholds]
    rand, info = (int(k) for k in table.argmax(axis=0))
    pixel = int(np.argmin(errors))
    return {
        "rand": float(table[rand, 0]),
        "rand_threshold": float(thresholds[rand]),
        "info": float(table[info, 1]),
        "info_threshold": float(thresholds[info]),
        "pixel_error": errors[pixel],
        "pixel_threshold": float(thresholds[pixel]),
    }


def thinned_regions(interior: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Regions between membranes that were thinned to one pixel.

    Parameters
    ----------
    interior : ndarray of bool, of shape (Y, X)
        True where there is no membrane.

    Returns
    -------
    ndarray of int32
        Number of each region (4-connected); 0 on what is left of the membranes.
    """
    seeds = ndimage.label(interior, output=np.int32)[0]
    flooded: NDArray[np.int32] = watershed(
        (~interior).astype(np.uint8), seeds, connectivity=1, watershed_line=True
    )
    return flooded.astype(np.int32)


def region_scores(regions: NDArray[np.int32], cells: NDArray[np.int32]) -> tuple[float, float]:
    """V_Rand and V_Info of one slice, on the foreground of the truth.

    Parameters
    ----------
    regions : ndarray of int32
        Of the proposal; 0 on its membranes.
    cells : ndarray of int32
        Of the truth; 0 on its membranes, which do not count.
    """
    inside = cells > 0
    cell, region = cells[inside].astype(np.int64), regions[inside].astype(np.int64)
    n = cell.size
    # Each pixel of a membrane is a region of its own.
    alone = int((region == 0).sum())
    pair = cell * (int(region.max(initial=0)) + 1) + region
    shared = np.unique(pair[region > 0], return_counts=True)[1] / n
    true_parts = np.bincount(cell)[1:] / n
    parts = np.bincount(region)[1:] / n
    squares = [float(np.square(p).sum()) for p in (shared, true_parts, parts)]
    rand = (squares[0] + alone / n**2) / (0.5 * squares[1] + 0.5 * (squares[2] + alone / n**2))
    singles = alone / n * np.log(n)
    h_true, h_both, h_found = (
        _entropy(true_parts), _entropy(shared) + singles, _entropy(parts) + singles
    )  # fmt: skip
    if not h_true or not h_found:
        # One region only: as the challenge's script has it, unless both agree.
        return rand, 1.0 if h_true == h_found else 0.0
    return rand, 2 * (h_true + h_found - h_both) / (h_true + h_found)


def _entropy(parts: NDArray[np.float64]) -> float:
    there = parts[parts > 0]
    return float(-(there * np.log(there)).sum())

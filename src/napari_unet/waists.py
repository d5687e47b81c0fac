"""Cut seeds at their waists: two nuclei whose contour the network missed look like an eight.

Inside a seed the distance to its rim has a maximum in each lobe. Where a path between two maxima
has to come down from the lower one by more than a chosen depth, there is a waist, and the watershed
line of the distance is where it is cut (Soille, Morphological Image Analysis, 2003, chapter 9).
"""

from __future__ import annotations

from math import pi

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from napari_unet.flooding import RIM, SEED
from napari_unet.runs import ShouldStop, poll

__all__ = ["cut_waists"]

# Distances are smoothed by this much, in pixels: the pixel grid makes small maxima of its own.
_SMOOTH = 1.0

# Content of a disc and a ball of radius 1; a seed hardly larger than its largest one has no waist.
_ROUND = {2: pi, 3: 4 * pi / 3}
_ROUNDISH = 1.15


def cut_waists(
    classes: NDArray[np.uint8], depth: float, connectivity: int, should_stop: ShouldStop = None
) -> None:
    """Turn seed pixels into rim where a seed has a waist, in place.

    Parameters
    ----------
    classes : uint8 array of shape (Y, X) or (Z, Y, X)
        `RIM`, `SEED` or 0; changed.
    depth : float
        In pixels: how much narrower (in radius) a waist is than the smaller of its lobes.
    connectivity : int
        Pixels are neighbours if they differ by 1 along at most this many axes.
    should_stop : callable, optional
        Asked before each seed.

    Raises
    ------
    Cancelled
        If `should_stop` returned true.
    """
    neighbours = ndimage.generate_binary_structure(classes.ndim, connectivity)
    labels, _ = ndimage.label(classes == SEED, neighbours)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        poll(should_stop)
        # The rim of background around it is where distances start.
        part = np.pad(labels[box] == number, 1)
        line = _waists(part, depth, connectivity)
        if line is not None:
            inner = line[(slice(1, -1),) * part.ndim]
            classes[box][inner] = RIM


def _waists(part: NDArray[np.bool_], depth: float, connectivity: int) -> NDArray[np.bool_] | None:
    """Pixels to cut in one seed; None where it has no waist."""
    distance = ndimage.distance_transform_edt(part)
    if np.count_nonzero(part) < _ROUNDISH * _ROUND[part.ndim] * distance.max() ** part.ndim:
        return None
    smooth = ndimage.gaussian_filter(distance, _SMOOTH)
    smooth[~part] = 0
    # The maxima that are left once every one is lowered by `depth` (h-maxima).
    peaks = local_maxima(reconstruction(smooth - depth, smooth))
    markers, count = ndimage.label(peaks & part, np.ones((3,) * part.ndim))
    if count < 2:
        return None
    lobes = watershed(-smooth, markers, connectivity=connectivity, mask=part, watershed_line=True)
    cut: NDArray[np.bool_] = part & (lobes == 0)
    return cut

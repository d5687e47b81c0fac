"""Measure what a classical pipeline reaches where the bundled models are measured.

    python scripts/baselines.py DATA_FOLDER

Thresholds of Otsu (1979) on a smoothed image, objects apart by a watershed of the distance to the
rim: what scikit-image's and Fiji's handbooks begin with. The few numbers were chosen on rows with
split ``train``; scores are those of the model cards, on rows with split ``test``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from data_sets import pairs_of
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import rgb2hed
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_multiotsu, threshold_otsu
from skimage.morphology import remove_small_objects
from skimage.segmentation import watershed

from napari_unet.evaluate import aggregate, evaluate
from napari_unet.training.validation import class_scores


def _apart(mask: NDArray[np.bool_], between: int, least: int) -> NDArray[np.int32]:
    """Objects of a mask, cut where the distance to the rim has two maxima."""
    mask = ndimage.binary_fill_holes(remove_small_objects(mask, max_size=least))
    distance = gaussian(ndimage.distance_transform_edt(mask), 1)
    peaks = peak_local_max(distance, min_distance=between, labels=ndimage.label(mask)[0])
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    found: NDArray[np.int32] = watershed(-distance, seeds, mask=mask).astype(np.int32)
    return found


def nuclei(image: NDArray[Any]) -> NDArray[np.int32]:
    """Fluorescence: bright on dark."""
    smooth = gaussian(image.astype(float), 1)
    return _apart(smooth > threshold_otsu(smooth), 5, 30)


def histology(image: NDArray[Any]) -> NDArray[np.int32]:
    """Stained tissue: haematoxylin by colour deconvolution (Ruifrok and Johnston 2001)."""
    stain = gaussian(rgb2hed(image.astype(np.uint8))[..., 0], 1)
    return _apart(stain > threshold_otsu(stain), 5, 30)


def phase(image: NDArray[Any]) -> NDArray[np.int32]:
    """Phase contrast: cells are where neighbouring pixels differ."""
    pixels = image.astype(float)
    spread = np.sqrt(np.maximum(gaussian(pixels**2, 4) - gaussian(pixels, 4) ** 2, 0))
    spread = np.log(spread + 1)
    return _apart(spread > threshold_otsu(spread), 15, 150)


def axon_myelin(image: NDArray[Any]) -> NDArray[np.int32]:
    """SEM: myelin is bright, axons are what it encloses."""
    smooth = gaussian(image.astype(float), 2)
    myelin = smooth > threshold_multiotsu(smooth, 3)[1]
    inside = ndimage.binary_fill_holes(myelin) & ~myelin
    return np.where(myelin, 1, np.where(inside, 2, 0)).astype(np.int32)


WAYS: dict[str, Callable[[NDArray[Any]], NDArray[np.int32]]] = {
    "nuclei_dsb2018": nuclei,
    "nuclei_dsb2018_large": nuclei,
    "histology_dsb2018_rgb": histology,
    "phase_t98g_usiigaci": phase,
    "sem_axon_myelin": axon_myelin,
}


def main() -> None:
    """Print one line for each data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder that holds the data sets")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    for folder, way in WAYS.items():
        rows = []
        for pair in pairs_of(options.data / folder, options.split):
            found = way(pair.image)
            if way is axon_myelin:
                rows.append(class_scores(found, pair.labels, 3))
            else:
                rows.append(evaluate(found, pair.labels))
        mean = aggregate(rows)
        keys = [k for k in mean if k in ("f1_50", "mean_ap", "iou", "mean_iou") or k[:4] == "iou_"]
        print(f"{folder} {options.split}:", ", ".join(f"{k} {mean[k]:.3f}" for k in keys))


if __name__ == "__main__":
    main()

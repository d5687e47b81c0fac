from __future__ import annotations

import time

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import regionprops

from napari_unet.sample import sample_nuclei


def test_it_is_what_it_says():
    image, spacing = sample_nuclei()
    assert image.shape == (600, 800)
    assert image.dtype == np.uint16
    assert spacing == (0.65, 0.65)
    assert 50 < image.min() < image.max() < 4095


def test_the_same_seed_gives_the_same_picture():
    first, again, other = sample_nuclei()[0], sample_nuclei()[0], sample_nuclei(seed=8)[0]
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_it_shows_nuclei_of_which_some_touch():
    image, _ = sample_nuclei()
    smooth = ndimage.gaussian_filter(image.astype(float), 1)
    labels, count = ndimage.label(smooth > threshold_otsu(smooth))
    objects = [o for o in regionprops(labels) if o.area > 100]
    assert 60 < len(objects) <= count
    single = [o for o in objects if o.solidity > 0.95 and 0 not in o.bbox[:2]]
    widths = [o.equivalent_diameter_area for o in single]
    assert 18 < np.median(widths) < 40
    assert sum(o.solidity < 0.9 for o in objects) >= 5  # clumps
    assert 0.1 < (labels > 0).mean() < 0.4


def test_it_is_quick():
    sample_nuclei()
    start = time.process_time()
    sample_nuclei()
    assert time.process_time() - start < 0.5

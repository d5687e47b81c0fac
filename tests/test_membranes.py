"""Scores of membranes against a statement pixel by pixel, and on cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from napari_unet.errors import ImageError
from napari_unet.membranes import evaluate_membranes, region_scores, thinned_regions


def plain_scores(regions: np.ndarray, cells: np.ndarray) -> tuple[float, float]:
    """V_Rand over all pairs of pixels, V_Info from counted labels; membranes are singletons."""
    a, b = [], []
    fresh = 1_000_000
    for cell, region in zip(cells.ravel().tolist(), regions.ravel().tolist(), strict=True):
        if cell:
            fresh += 1
            a.append(cell)
            b.append(region or fresh)
    n = len(a)
    pairs = [(i, j) for i in range(n) for j in range(n)]
    same_a = [a[i] == a[j] for i, j in pairs]
    same_b = [b[i] == b[j] for i, j in pairs]
    both = sum(x and y for x, y in zip(same_a, same_b, strict=True))
    rand = both / (0.5 * sum(same_a) + 0.5 * sum(same_b))

    def entropy(values: list) -> float:
        return -sum(values.count(v) / n * math.log(values.count(v) / n) for v in set(values))

    ha, hb, hab = entropy(a), entropy(b), entropy(list(zip(a, b, strict=True)))
    if ha == 0 or hb == 0:
        return rand, float(ha == hb)
    return rand, 2 * (ha + hb - hab) / (ha + hb)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4))
def test_scores_are_those_of_all_pairs_of_pixels(seed, cells, regions):
    random = np.random.default_rng(seed)
    truth = random.integers(0, cells + 1, (5, 6)).astype(np.int32)
    truth[0, 0] = 1
    found = random.integers(0, regions + 1, (5, 6)).astype(np.int32)
    assert region_scores(found, truth) == pytest.approx(plain_scores(found, truth))


def grid(shape=(40, 60), every=20) -> np.ndarray:
    """Square cells parted by membranes of one pixel."""
    interior = np.ones(shape, bool)
    interior[every - 1 :: every] = False
    interior[:, every - 1 :: every] = False
    return interior


def test_the_truth_is_perfect_however_thick_its_membranes_are_proposed():
    truth = grid()
    for rounds in (0, 1, 3):
        thick = (
            ndimage.binary_erosion(truth, iterations=rounds, border_value=1) if rounds else truth
        )
        scores = evaluate_membranes(thick.astype(float), truth)
        assert scores["rand"] == pytest.approx(1, abs=0.02)
        assert scores["info"] == pytest.approx(1, abs=0.02)
    assert evaluate_membranes(truth.astype(float), truth)["pixel_error"] == 0
    regions = thinned_regions(ndimage.binary_erosion(truth, iterations=3, border_value=1))
    # Thinned to one pixel: nothing but a membrane lies between two regions.
    wide = ndimage.minimum_filter(regions == 0, (2, 2))
    assert wide.sum() <= 4


def test_a_hole_in_a_membrane_merges_and_costs():
    truth, leaky = grid(), grid()
    leaky[10, 19] = True
    scores = evaluate_membranes(leaky.astype(float), truth)
    whole = evaluate_membranes(truth.astype(float), truth)
    assert scores["rand"] < whole["rand"] - 0.05
    assert scores["info"] < whole["info"] - 0.03
    assert scores["pixel_error"] == pytest.approx(1 / truth.size)


def test_the_best_threshold_is_found_over_all_slices():
    truth = np.stack([grid()] * 2)
    # Below 0.45 the membranes leak.
    interior = np.where(truth, 0.8, 0.2)
    interior[:, 10, 19] = 0.45
    scores = evaluate_membranes(interior, truth)
    assert 0.45 <= scores["rand_threshold"] < 0.8
    assert scores["rand"] == pytest.approx(evaluate_membranes(truth[0], truth[0])["rand"])


def test_what_cannot_be_compared_is_one_sentence():
    with pytest.raises(ImageError, match="give slices"):
        evaluate_membranes(np.ones((3, 4)), np.ones((4, 3)))
    with pytest.raises(ImageError, match="no cell at all"):
        evaluate_membranes(np.ones((3, 4)), np.zeros((3, 4)))

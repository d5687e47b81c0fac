from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_unet.errors import ImageError
from napari_unet.evaluate import aggregate, evaluate

SCORES = ("f1_50", "mean_ap", "precision_50", "recall_50", "iou")


@st.composite
def pairs(draw):
    """Two label images of blocks that mostly agree, in 2-D or 3-D, with odd ids."""
    shape = tuple(draw(st.lists(st.integers(1, 8), min_size=2, max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    truth = np.kron(rng.integers(0, 4, shape), np.ones((3,) * len(shape), int)) * 1000
    labels = np.where(rng.random(truth.shape) < draw(st.sampled_from([0, 0.1, 0.4, 1])), 7, truth)
    labels[rng.random(truth.shape) < draw(st.sampled_from([0, 0.1, 1]))] = 0
    return labels, truth


def naive(labels, truth):
    found = [labels == i for i in np.unique(labels) if i]
    there = [truth == j for j in np.unique(truth) if j]

    def matches(threshold):
        return sum(
            Fraction(int((a & b).sum()), int((a | b).sum())) > threshold
            for a in found
            for b in there
        )

    n, m = len(found), len(there)
    if not n and not m:
        return {**dict.fromkeys(SCORES, 1.0), "pixel_error": 0.0, "objects": 0, "truth_objects": 0}
    precisions = []
    for k in range(10, 20):
        tp = matches(Fraction(k, 20))
        precisions.append(tp / (tp + (n - tp) + (m - tp)))
    tp = matches(Fraction(1, 2))
    a, b = labels > 0, truth > 0
    return {
        "f1_50": 2 * tp / (n + m),
        "mean_ap": sum(precisions) / 10,
        "precision_50": tp / n if n else 0,
        "recall_50": tp / m if m else 0,
        "iou": (a & b).sum() / (a | b).sum(),
        "pixel_error": (a != b).mean(),
        "objects": n,
        "truth_objects": m,
    }


@given(pairs())
def test_against_every_pair_of_objects(pair):
    assert evaluate(*pair) == pytest.approx(naive(*pair))


@given(pairs())
def test_swapping_the_images_swaps_precision_and_recall(pair):
    labels, truth = pair
    there, back = evaluate(labels, truth), evaluate(truth, labels)
    assert there["precision_50"] == back["recall_50"]
    assert there["objects"] == back["truth_objects"]
    for key in ("f1_50", "mean_ap", "iou", "pixel_error"):
        assert there[key] == back[key]


@given(pairs())
def test_a_perfect_answer(pair):
    _, truth = pair
    scores = evaluate(truth.astype(np.uint16) * 3, truth)
    assert [scores[key] for key in SCORES] == [1] * 5
    assert scores["pixel_error"] == 0
    assert type(scores["objects"]) is int


@pytest.mark.parametrize(("width", "above"), [(10, 0), (12, 2), (20, 10)])
def test_an_iou_on_the_threshold_is_no_match(width, above):
    labels, truth = np.zeros((2, 1, 20), int)
    labels[0, :width], truth[0] = 1, 1
    # 10/20, 12/20 and 20/20; 12/20 is found at 0.50 and 0.55 and just not at 0.60.
    assert evaluate(labels, truth)["mean_ap"] == pytest.approx(above / 10)
    assert evaluate(labels, truth)["f1_50"] == (above > 0)


def test_images_without_objects():
    empty, one = np.zeros((2, 4, 4), int)
    one[0, 0] = 1
    assert [evaluate(empty, empty)[key] for key in SCORES] == [1] * 5
    for labels, truth in ((empty, one), (one, empty)):
        assert [evaluate(labels, truth)[key] for key in SCORES] == [0] * 5
        assert evaluate(labels, truth)["pixel_error"] == 1 / 16


def test_ids_of_any_size_and_type():
    truth = np.array([[1, 1, 0, 2]], np.uint8)
    labels = np.array([[2**63, 2**63, 0, 2**62]], np.uint64)
    assert evaluate(labels, truth)["mean_ap"] == 1
    assert evaluate(labels > 0, truth)["iou"] == 1


def test_no_pixels():
    scores = evaluate(np.zeros((0, 5), int), np.zeros((0, 5), int))
    assert scores["f1_50"] == 1
    assert scores["pixel_error"] == 0


def test_images_whose_rows_lie_apart_in_memory():
    image = np.random.default_rng(0).integers(0, 5, (6, 8, 10))
    assert evaluate(image.T, image.T.copy())["mean_ap"] == 1
    assert evaluate(image[:, ::2], image[:, ::2].copy())["pixel_error"] == 0


def test_a_data_set_weighs_its_images_alike():
    truth = np.ones((2, 2), int)
    total = aggregate([evaluate(truth, truth), evaluate(truth * 0, truth)])
    assert total["f1_50"] == total["mean_ap"] == total["pixel_error"] == 0.5
    assert (total["objects"], total["truth_objects"], total["images"]) == (1, 2, 2)


@pytest.mark.parametrize(
    ("labels", "truth", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"\(2, 3\).*truth has \(3, 2\)"),
        (np.zeros(3, int), np.zeros(3, int), "labels has shape .* 2 or 3 spatial axes"),
        (np.zeros((2, 2), int), np.zeros((1, 1, 2, 2), int), "truth has shape"),
        (np.zeros((2, 2)), np.zeros((2, 2), int), "labels has type float64"),
        (np.zeros((2, 2), int), np.full((2, 2), -1), "truth has negative"),
    ],
)
def test_what_is_no_label_image(labels, truth, message):
    with pytest.raises(ImageError, match=message):
        evaluate(labels, truth)


def test_no_scores():
    with pytest.raises(ImageError, match="at least one image"):
        aggregate([])

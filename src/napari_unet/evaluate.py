"""How well a label image agrees with the truth: the scores of the 2018 Data Science Bowl.

An object is found if it and an object of the truth share more than a part `t` of their union
(intersection over union, IoU). For t >= 1/2 each object has at most one such partner, so that
nothing has to be assigned: counting the pairs is the matching.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from napari_unet.errors import ImageError
from napari_unet.runs import compact, label_image, runs_of

__all__ = ["aggregate", "evaluate"]

# IoU thresholds 0.50, 0.55 ... 0.95 in twentieths: whole numbers compare exactly.
_TWENTIETHS = np.arange(10, 20)

_COUNTS = ("objects", "truth_objects")


def evaluate(labels: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """Compare the objects of two label images.

    Parameters
    ----------
    labels, truth : integer arrays of shape (Y, X) or (Z, Y, X)
        What was found and what is there; 0 is the background, ids need not be consecutive.

    Returns
    -------
    dict
        ``f1_50``: 2 TP / (2 TP + FP + FN) at IoU > 0.5; ``mean_ap``: TP / (TP + FP + FN), mean
        over IoU > 0.50, 0.55 ... 0.95; ``precision_50``, ``recall_50``; ``iou`` of all foreground;
        ``pixel_error``: part of the pixels that are foreground in one image only; ``objects``,
        ``truth_objects``: how many (int). Where neither image has an object, all but
        ``pixel_error`` and the counts are 1; where one has none, precision and recall are 0.

    Raises
    ------
    ImageError
        If an array is no label image of 2 or 3 axes, or the shapes differ.

    References
    ----------
    .. [1] J. C. Caicedo et al., "Nucleus segmentation across imaging experiments: the 2018 Data
       Science Bowl", Nature Methods 16 (2019), 1247-1253. doi:10.1038/s41592-019-0612-7

    Examples
    --------
    >>> scores = evaluate([[1, 1, 0, 2]], [[5, 5, 0, 0]])
    >>> scores["precision_50"], scores["recall_50"], scores["pixel_error"]
    (0.5, 1.0, 0.25)
    """
    found, there = label_image(labels, "labels"), label_image(truth, "truth")
    if found.shape != there.shape:
        raise ImageError(
            f"labels has shape {found.shape} but truth has {there.shape}; compare images alike."
        )
    runs = runs_of(found, there)
    lengths = runs.lengths
    found_ids, f = compact(runs.values(found))
    there_ids, t = compact(runs.values(there))
    n, m = found_ids.size, there_ids.size

    pair, which = np.unique(f * (m + 1) + t, return_inverse=True)
    shared = np.bincount(which, lengths).astype(np.int64)
    area = np.bincount(f, lengths, n + 1).astype(np.int64)
    true_area = np.bincount(t, lengths, m + 1).astype(np.int64)
    i, j = np.divmod(pair, m + 1)
    objects = (i > 0) & (j > 0)
    i, j, shared = i[objects], j[objects], shared[objects]
    union = area[i] + true_area[j] - shared
    matches = (20 * shared > _TWENTIETHS[:, None] * union).sum(axis=1)

    tp = int(matches[0])
    both = int(shared.sum())
    either = int(area[1:].sum() + true_area[1:].sum()) - both
    none = n == m == 0
    return {
        "f1_50": _ratio(2 * tp, n + m, none),
        "mean_ap": float(np.mean([_ratio(int(k), n + m - int(k), none) for k in matches])),
        "precision_50": _ratio(tp, n, none),
        "recall_50": _ratio(tp, m, none),
        "iou": _ratio(both, either, none),
        "pixel_error": (either - both) / max(found.size, 1),
        "objects": n,
        "truth_objects": m,
    }


def aggregate(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Score of a data set: each score's mean over the images, and the sums of the counts.

    Parameters
    ----------
    scores : iterable of dict
        What `evaluate` gave for each image.

    Returns
    -------
    dict
        The same keys, and ``images``: how many there were (int).

    Raises
    ------
    ImageError
        If there is no image.
    """
    rows = list(scores)
    if not rows:
        raise ImageError("There are no scores to average; evaluate at least one image.")
    total: dict[str, float] = {
        key: sum(row[key] for row in rows)
        if key in _COUNTS
        # A sum of many floats that does not depend on their order.
        else math.fsum(row[key] for row in rows) / len(rows)
        for key in rows[0]
    }
    return {**total, "images": len(rows)}


def _ratio(part: int, whole: int, nothing: bool) -> float:
    if nothing:
        return 1.0
    return part / whole if whole else 0.0

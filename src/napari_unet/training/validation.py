"""Honest figures: images that the training never sees, segmented as a person would segment them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.checkpoint import Model
from napari_unet.errors import Cancelled
from napari_unet.evaluate import aggregate, evaluate
from napari_unet.segmentation import Options, segment_steps
from napari_unet.training.targets import Targets

__all__ = ["Held", "Validation", "class_scores", "is_better", "validate"]

_SHOWN = 4


@dataclass(frozen=True, eq=False)
class Held:
    """An image that was held out.

    Parameters
    ----------
    name : str
        For the report.
    image : ndarray of shape ([Z,] Y, X) or with channels behind
        Pixels as in the file.
    axes : str
        Of `image`.
    labels : integer ndarray of shape ([Z,] Y, X)
        The truth, as in the file.
    known : ndarray of bool, optional
        Where it counts.
    spacing : tuple of float, optional
        Micrometres per pixel.
    """

    name: str
    image: NDArray[Any]
    axes: str
    labels: NDArray[Any]
    known: NDArray[np.bool_] | None = None
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Validation:
    """Scores on the held-out images.

    Parameters
    ----------
    rows : tuple of dict
        Of each image: ``name`` and its scores.
    mean : dict
        Their means, and sums of counts.
    labels : dict of ndarray
        What was found on the first image and on the worst, by name.
    """

    rows: tuple[dict[str, Any], ...]
    mean: Mapping[str, float]
    labels: Mapping[str, NDArray[np.int32]] = field(default_factory=dict, compare=False)

    @property
    def main(self) -> str:
        """Name of the score that decides."""
        return "mean_iou" if "mean_iou" in self.mean else "mean_ap"

    @property
    def score(self) -> float:
        """The score that decides: mean average precision of objects, mean IoU of classes."""
        return float(self.mean[self.main])


def is_better(new: Validation, old: Validation | None) -> bool:
    """Whether `new` has the higher score; the IoU decides between equals."""
    if old is None:
        return True
    second = "pixel_error" if new.main == "mean_iou" else "iou"
    sign = -1 if second == "pixel_error" else 1
    ranks = [(v.score, sign * v.mean[second]) for v in (new, old)]
    return ranks[0] > ranks[1]


def validate(
    model: Model,
    held: Sequence[Held],
    targets: Targets,
    *,
    device: str = "auto",
    precision: str = "auto",
    should_stop: Callable[[], bool] | None = None,
) -> Validation:
    """Segment the held-out images with a model and compare with the truth.

    Parameters
    ----------
    model : Model
        Its card's settings are in force, as for any image.
    held : sequence of Held
        At least one.
    targets : Targets
        What the labels mean.
    device, precision : str
        As for `Options`.
    should_stop : callable, optional
        Asked inside tiles.

    Raises
    ------
    Cancelled
        If `should_stop` said yes.
    """
    rows: list[dict[str, Any]] = []
    found: dict[str, NDArray[np.int32]] = {}
    for one in held:
        options = Options(
            output=targets.kind,
            axes=one.axes,
            spacing=one.spacing,
            device=device,
            precision=precision,
        )
        labels = _run(one, model, options, should_stop)
        rows.append({"name": one.name, **_scores(labels, one, targets)})
        found[one.name] = labels
    mean = aggregate([{k: v for k, v in row.items() if k != "name"} for row in rows])
    result = Validation(tuple(rows), mean)
    worst = sorted(rows, key=lambda row: float(row[result.main]))[:_SHOWN]
    kept = {held[0].name, *(row["name"] for row in worst)}
    return Validation(result.rows, mean, {k: v for k, v in found.items() if k in kept})


def _run(
    one: Held, model: Model, options: Options, should_stop: Callable[[], bool] | None
) -> NDArray[np.int32]:
    """Labels of an image."""
    steps = segment_steps(one.image, model, options, should_stop=should_stop)
    while True:
        if should_stop is not None and should_stop():
            steps.close()
            raise Cancelled("Stopped.")
        try:
            next(steps)
        except StopIteration as stop:
            labels: NDArray[np.int32] = stop.value.labels
            return labels


def _scores(labels: NDArray[np.int32], one: Held, targets: Targets) -> dict[str, float]:
    """Scores of an image, where its truth counts."""
    if targets.kind == "classes":
        truth = targets.index(one.labels, one.known)
        return class_scores(labels, truth, max(targets.n_classes, 2))
    if one.known is None:
        return evaluate(labels, one.labels)
    return evaluate(np.where(one.known, labels, 0), np.where(one.known, one.labels, 0))


def class_scores(
    classes: NDArray[np.integer[Any]], truth: NDArray[np.integer[Any]], n_classes: int
) -> dict[str, float]:
    """Compare class images.

    Parameters
    ----------
    classes, truth : integer ndarray
        Class of each pixel; pixels whose truth is below 0 do not count.
    n_classes : int
        With the background, class 0.

    Returns
    -------
    dict
        ``iou_1``, ``iou_2`` ...: intersection over union of each class but the background (1
        where it is in neither image); ``mean_iou``: their mean; ``pixel_error``: part of the
        pixels whose class is wrong.
    """
    counts = truth >= 0
    pair = n_classes * truth[counts].astype(np.int64) + classes[counts]
    table = np.bincount(pair, minlength=n_classes**2).reshape(n_classes, n_classes)
    same = np.diag(table)
    either = table.sum(axis=0) + table.sum(axis=1) - same
    ious = [float(s / e) if e else 1.0 for s, e in zip(same[1:], either[1:], strict=True)]
    error = 1 - float(same.sum() / max(int(table.sum()), 1))
    named = {f"iou_{number}": value for number, value in enumerate(ious, start=1)}
    return {**named, "mean_iou": math.fsum(ious) / len(ious), "pixel_error": error}

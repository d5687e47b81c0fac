"""What a training tells the window, from its thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet._napari.layers import Placement
from napari_unet._napari.train_order import Order
from napari_unet.checkpoint import Card

if TYPE_CHECKING:
    from napari_unet.training.loop import Trained
    from napari_unet.training.plan import TrainingPlan

__all__ = ["MEASURES", "Done", "Shown", "TrainUpdate"]

MEASURES = {
    "mean_ap": "mean AP",
    "f1_50": "F1@0.5",
    "iou": "IoU",
    "mean_iou": "mean IoU",
    "pixel_error": "pixel error",
}


@dataclass(frozen=True, eq=False)
class Shown:
    """The held-out image that the preview is of.

    Parameters
    ----------
    key : str
        Its name among those that are held out.
    name : str
        Of the image that it is, or is a part of.
    image : ndarray
        Its pixels.
    axes : str
        Of `image`.
    truth : integer ndarray
        Its labels.
    placement : Placement, optional
        Where its first pixel lies; None where it comes from a file.
    """

    key: str
    name: str
    image: NDArray[Any]
    axes: str
    truth: NDArray[Any]
    placement: Placement | None

    def lifted(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Labels with as many dimensions as the place they go to."""
        ndim = labels.ndim if self.placement is None else len(self.placement.scale)
        return labels.reshape((1,) * (ndim - labels.ndim) + labels.shape)


@dataclass(frozen=True, eq=False)
class TrainUpdate:
    """What happened since the last one.

    Parameters
    ----------
    words : str
        Step, loss, score, time left.
    step, total : int
        Steps done, and in all; 0 where nobody knows yet.
    loss, scores : tuple of (step, value)
        New points of the curves.
    measure : str
        Name of the score.
    shown : Shown, optional
        Held-out image; it comes once.
    labels : ndarray of int32, optional
        What is found on it by now.
    notes : tuple of str
        What the plan says; they come once.
    card : Card, optional
        With `shown`, where labels are classes: their colours.
    """

    words: str
    step: int = 0
    total: int = 0
    loss: tuple[tuple[int, float], ...] = ()
    scores: tuple[tuple[int, float], ...] = ()
    measure: str = ""
    shown: Shown | None = None
    labels: NDArray[np.int32] | None = None
    notes: tuple[str, ...] = ()
    card: Card | None = None


@dataclass(frozen=True, eq=False)
class Done:
    """A training that gave a model.

    Parameters
    ----------
    order : Order
        What was asked for.
    plan : TrainingPlan
        What became of it.
    trained : Trained
        What came out.
    card : Card
        Of the new model.
    saved : bool
        Whether it is on the disk.
    problem : str
        Why it could not be written; empty else.
    shown : Shown, optional
        Held-out image.
    old, new : ndarray of int32, optional
        What both models find on it.
    """

    order: Order
    plan: TrainingPlan
    trained: Trained
    card: Card
    saved: bool
    problem: str
    shown: Shown | None
    old: NDArray[np.int32] | None
    new: NDArray[np.int32] | None

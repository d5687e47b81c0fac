"""How much each pixel counts: the weight maps of the U-Net papers.

Ronneberger, Fischer and Brox (2015), equation 2::

    w(x) = wc(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)),    w0 = 10, sigma = 5

where ``wc`` balances the classes and d1, d2 are the distances to the nearest and second nearest
object. The authors' later variant (Falk et al., Nature Methods 2019, and their Fiji plugin) weighs
the background by itself::

    w(x) = 1 on objects, and on the background
    w(x) = v + (1 - v) exp(-d1^2 / (2 sigma1^2)) + lambda exp(-(d1 + d2)^2 / (2 sigma2^2))

with v = 0.1 (foregroundBackgroundRatio), sigma1 = 10 px (sigma1Px), lambda = 50
(borderWeightFactor) and sigma2 = 6 px (borderWeightSigmaPx); each class of objects adds its own
terms. In both, the distance terms are those of background pixels. Today's recipe here keeps the
gaps and lets the classes count alike: w0 = 4, sigma = 4, wc = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_unet.errors import OptionError
from napari_unet.training.targets import Targets

__all__ = ["Weighting", "class_balance", "nearest_two", "weight_map"]

Kind = Literal["gaps", "paper", "later", "none"]

_REACH = 5.5  # sigmas beyond which a weight is below 3e-7 of its height


@dataclass(frozen=True)
class Weighting:
    """A weight map.

    Parameters
    ----------
    kind : {"gaps", "paper", "later", "none"}
        Today's, equation 2 of 2015, the authors' variant of 2019, or classes alone.
    border, sigma : float
        Height (w0, lambda) and reach in pixels (sigma, sigma2) of the weight between objects; the
        publication's if left out.
    classes : tuple of float
        Weight of each class, except for ``"later"``. If left out, ``"paper"`` balances them and
        others count them alike.
    ratio, near : float
        For ``"later"``: weight v of background far from any object, and sigma1 in pixels.

    Raises
    ------
    OptionError
        If a number is negative, or a sigma zero.
    """

    kind: Kind = "gaps"
    border: float | None = None
    sigma: float | None = None
    classes: tuple[float, ...] = ()
    ratio: float = 0.1
    near: float = 10.0

    def __post_init__(self) -> None:
        numbers = (self.height, self.reach, *self.classes, self.ratio, self.near)
        if min(numbers) < 0 or self.reach == 0 or self.near == 0 or not all(map(_finite, numbers)):
            raise OptionError("Weights and their reach must be numbers above 0.")

    @property
    def height(self) -> float:
        """Of the weight between objects."""
        usual = {"gaps": 4.0, "paper": 10.0, "later": 50.0, "none": 0.0}[self.kind]
        return usual if self.border is None else self.border

    @property
    def reach(self) -> float:
        """Sigma of the weight between objects, in pixels."""
        usual = {"gaps": 4.0, "paper": 5.0, "later": 6.0, "none": 5.0}[self.kind]
        return usual if self.sigma is None else self.sigma

    def base(self, counts: NDArray[np.int64]) -> NDArray[np.float32]:
        """Weight of each class by itself.

        Parameters
        ----------
        counts : ndarray of int, of shape (n_classes,)
            Labelled pixels of each class in all training images.
        """
        if self.kind == "later":
            return np.array([self.ratio, *[1.0] * (len(counts) - 1)], np.float32)
        if not self.classes:
            return (
                class_balance(counts) if self.kind == "paper" else np.ones_like(counts, np.float32)
            )
        if len(self.classes) != len(counts):
            raise OptionError(f"{len(counts)} classes need {len(counts)} weights.")
        return np.array(self.classes, np.float32)

    def extra(self, labels: NDArray[np.int32], targets: Targets) -> NDArray[np.float32]:
        """Additional weight of background pixels (what it is elsewhere is not used).

        Parameters
        ----------
        labels : ndarray of int32
            `Targets.index` of a whole image.
        targets : Targets
            What the numbers mean. Of classes, the connected parts are the objects.
        """
        total = np.zeros(labels.shape, np.float32)
        if not self.height and self.kind != "later":
            return total
        for objects in _objects(labels, targets):
            reach = ceil(_REACH * max(self.reach, self.near if self.kind == "later" else 0))
            first, second = nearest_two(objects, reach)
            total += self.height * np.exp(-np.square(first + second) / (2 * self.reach**2))
            if self.kind == "later":
                total += (1 - self.ratio) * np.exp(-np.square(first) / (2 * self.near**2))
        return total


def class_balance(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Weights that make every class count as much in total, with mean 1 over the pixels."""
    there = counts > 0
    weights = np.zeros(len(counts), np.float32)
    weights[there] = counts.sum() / (there.sum() * counts[there])
    return weights


def nearest_two(
    labels: NDArray[np.int32], reach: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distances to the nearest and the second nearest object.

    Parameters
    ----------
    labels : ndarray of int32
        Object numbers; 0 and below are no object.
    reach : int, optional
        Each object is looked at in a box of so many pixels around it; what is farther away may
        count as infinitely far. Without a limit, every object goes over the whole image.

    Returns
    -------
    first, second : ndarray of float32
        In pixels; infinite where there is no such object.
    """
    first = np.full(labels.shape, np.inf, np.float32)
    second = first.copy()
    for value, box in enumerate(ndimage.find_objects(np.maximum(labels, 0)), start=1):
        if box is None:
            continue
        window = (
            (...,)
            if reach is None
            else tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        )
        distance = ndimage.distance_transform_edt(labels[window] != value).astype(np.float32)
        nearer = first[window]
        second[window] = np.minimum(second[window], np.maximum(nearer, distance))
        first[window] = np.minimum(nearer, distance)
    return first, second


def weight_map(
    classes: NDArray[np.int64], base: NDArray[np.float32], extra: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Weight of each pixel: its class's, more on the background, none where nobody looked.

    Parameters
    ----------
    classes : ndarray of int64
        -1 where nobody looked.
    base : ndarray of shape (n_classes,)
        `Weighting.base`.
    extra : ndarray of float32, of the shape of `classes`
        `Weighting.extra`, cut as the classes are.
    """
    weights = np.append(base, np.float32(0))[classes]
    return np.where(classes == 0, weights + extra, weights).astype(np.float32)


def _objects(labels: NDArray[np.int32], targets: Targets) -> list[NDArray[np.int32]]:
    """Objects of each class."""
    if targets.kind == "instances":
        return [labels]
    parts: Sequence[int] = range(1, max(targets.n_classes, 2))
    return [ndimage.label(labels == part, output=np.int32)[0] for part in parts]


def _finite(value: float) -> bool:
    return bool(np.isfinite(value))

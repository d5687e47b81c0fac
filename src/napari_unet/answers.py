"""What is made of a network's logits on the device that computed them.

Classes are a byte per pixel where probabilities are four for each class: over the bus to a GPU, and
through everything that comes after, that is most of what a segmentation moves besides its image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Answer", "classes", "is_no_number", "logits", "probabilities"]

Answer = Callable[[Tensor], Tensor]

# What stands for the class of a pixel whose logits are NaN: a byte, or as a negative number.
_NO_NUMBER = 255


def logits(found: Tensor) -> Tensor:
    """Logits as they are: float32 of shape (B, K, [Z,] Y, X)."""
    return found.float()


def probabilities(found: Tensor) -> Tensor:
    """Softmax over the classes; a single output is a sigmoid and gives two classes.

    Parameters
    ----------
    found : Tensor of shape (B, K, [Z,] Y, X)
        Logits.

    Returns
    -------
    Tensor of float32, of shape (B, max(K, 2), [Z,] Y, X)
    """
    if found.shape[1] == 1:
        one = torch.sigmoid(found.float())
        return torch.cat([1 - one, one], dim=1)
    return torch.softmax(found.float(), dim=1)


def classes(threshold: float | None = None) -> Answer:
    """Choose the class of each pixel as `instances.classes_from` does.

    Parameters
    ----------
    threshold : float, optional
        Without it, the most probable class; with it, the most probable one but the background
        where its probability exceeds the threshold, and 0 elsewhere.

    Returns
    -------
    callable
        Logits (B, K, [Z,] Y, X) -> uint8 of shape (B, 1, [Z,] Y, X), or int32 where there are more
        than 255 classes; see `is_no_number` for logits that are NaN.
    """
    return partial(_classes, threshold=threshold)


def is_no_number(chosen: NDArray[Any]) -> NDArray[np.bool_]:
    """Where `classes` met logits that are NaN."""
    none = _NO_NUMBER if chosen.dtype == np.uint8 else -_NO_NUMBER
    found: NDArray[np.bool_] = chosen == none
    return found


def _classes(found: Tensor, threshold: float | None) -> Tensor:
    if threshold is None:
        # The softmax changes no order.
        maps = torch.cat([torch.zeros_like(found), found], 1) if found.shape[1] == 1 else found
        best = maps[:, :1]
    else:
        maps = probabilities(found)
        best = torch.full_like(maps[:, :1], threshold)
    chosen = torch.zeros(
        best.shape,
        dtype=torch.uint8 if maps.shape[1] <= _NO_NUMBER else torch.int32,
        device=found.device,
    )
    # Class by class, as torch's own argmax takes fifteen times as long on a processor.
    for number in range(1, maps.shape[1]):
        one = maps[:, number : number + 1]
        chosen.masked_fill_(one > best, number)
        best = torch.maximum(one, best)
    # A maximum with NaN is NaN.
    none = _NO_NUMBER if chosen.dtype == torch.uint8 else -_NO_NUMBER
    return chosen.masked_fill_(torch.isnan(best), none)

"""The pixel-weighted cross-entropy, over valid outputs only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

__all__ = ["valid_part", "weighted_cross_entropy"]


def valid_part(logits: Tensor, trim: Sequence[int]) -> Tensor:
    """Cut off the outputs that padding or interpolation spoilt at a tile's edge.

    Parameters
    ----------
    logits : Tensor of shape (B, K, [Z,] Y, X)
        Of a tile.
    trim : sequence of int
        `Geometry.trim`: pixels per side; 0 for the paper's network.
    """
    inside = (slice(t, n - t) for t, n in zip(trim, logits.shape[2:], strict=True))
    return logits[(slice(None), slice(None), *inside)]


def weighted_cross_entropy(logits: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the cross-entropy.

    Parameters
    ----------
    logits : Tensor of shape (B, K, [Z,] Y, X)
        With K = 1 the logit of class 1 against class 0 (a sigmoid).
    classes : Tensor of int64, of shape (B, [Z,] Y, X)
        0 to K - 1 (0 or 1 if K is 1); below 0 where nobody has looked.
    weights : Tensor of float32, of the shape of `classes`
        Zero where nobody has looked.

    Returns
    -------
    Tensor
        sum(w * -log p(class)) / sum(w); zero where no pixel has a weight.
    """
    known = classes.clamp(min=0)
    if logits.shape[1] == 1:
        each = functional.binary_cross_entropy_with_logits(
            logits[:, 0].float(), known.float(), reduction="none"
        )
    else:
        each = functional.cross_entropy(logits.float(), known, reduction="none")
    weights = weights * (classes >= 0)
    return (each * weights).sum() / weights.sum().clamp(min=1e-12)

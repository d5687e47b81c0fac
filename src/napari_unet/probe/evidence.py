"""How well a foreground probability agrees with an annotation, and how sure that is.

The score is 1 - 4 x the mean squared error (Brier score) of the probability, where object pixels
and background pixels weigh alike: no threshold enters, yet a network that is fed wrong grey levels
and is wrongly sure of itself pays for it, which it would not in a mere ranking of pixels.

Neighbouring pixels are right or wrong together. So errors are summed over blocks at least as large
as objects, and the uncertainty is that of the blocks: the linearised form of leaving out one after
the other (delete-one jackknife), which equals the bootstrap of blocks for many of them and needs no
random numbers. Two combinations are compared block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from napari_unet.probe.patches import Patch

__all__ = ["Blocks", "contrast", "errors_of"]

_CONFIDENCE = 0.995  # one side: intervals of 99 %
_FEWEST = 4  # blocks of either kind, to say anything


@dataclass(frozen=True, eq=False)
class Blocks:
    """What is annotated, block by block.

    Parameters
    ----------
    counts : ndarray of shape (2, blocks)
        Pixels of background and of objects.
    """

    counts: NDArray[np.float64]

    @classmethod
    def of(cls, patches: Sequence[Patch]) -> Blocks:
        """Count the pixels of patches."""
        counts = [_by_block(patch, np.ones(patch.truth.shape)) for patch in patches]
        return cls(np.concatenate(counts, axis=1))

    @property
    def enough(self) -> bool:
        """Whether there are blocks enough to tell chance from merit."""
        return int((self.counts > 0).sum(1).min()) >= _FEWEST

    @cached_property
    def quantile(self) -> float:
        """Student's, for as many blocks as hold the rarer kind."""
        from scipy import stats

        freedom = max(int((self.counts > 0).sum(1).min()) - 1, 1)
        return float(stats.t.ppf(_CONFIDENCE, freedom))

    def score(self, errors: NDArray[np.float64]) -> float:
        """1 for no error, 0 for a coin toss.

        Parameters
        ----------
        errors : ndarray of shape (2, blocks)
            What `errors_of` gave.
        """
        return float(1 - 2 * (errors.sum(1) / self.counts.sum(1)).sum())

    def influence(self, errors: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much each block moves the score; the sum is 0."""
        total = self.counts.sum(1, keepdims=True)
        mean = errors.sum(1, keepdims=True) / total
        moved: NDArray[np.float64] = -2 * ((errors - mean * self.counts) / total).sum(0)
        return moved

    def reach(self, influence: NDArray[np.float64]) -> float:
        """Half the width of the confidence interval of a score, or of a difference of scores."""
        used = self.counts.sum(0) > 0
        blocks = int(used.sum())
        spread = np.sqrt(np.square(influence[used]).sum() * blocks / max(blocks - 1, 1))
        return float(self.quantile * spread)


def errors_of(patch: Patch, foreground: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared errors of a probability, summed by truth and block: (2, blocks)."""
    return _by_block(patch, np.square(foreground - (patch.truth > 0)))


def _by_block(patch: Patch, values: NDArray[np.floating]) -> NDArray[np.float64]:
    count = int(patch.blocks.max()) + 1
    known = patch.truth >= 0
    place = patch.blocks[known] + count * patch.truth[known]
    return np.bincount(place, values[known], 2 * count).astype(np.float64).reshape(2, count)


def contrast(patches: Sequence[Patch], probabilities: Sequence[NDArray[np.float32]]) -> float:
    """How much higher a probability is at the rims of objects than in their cores, at least.

    Parameters
    ----------
    patches : sequence of Patch
        Where.
    probabilities : sequence of ndarray
        Of one class, for each patch.

    Returns
    -------
    float
        The lower end of the confidence interval.
    """
    inner = [Patch(p.index, p.window, _split(p), p.rim, p.blocks) for p in patches]
    counted = Blocks.of(inner)
    if not counted.enough:
        return -1.0
    pairs = zip(inner, probabilities, strict=True)
    sums = np.concatenate([_by_block(patch, values) for patch, values in pairs], axis=1)
    total = counted.counts.sum(1, keepdims=True)
    mean = sums.sum(1, keepdims=True) / total
    moved = (sums - mean * counted.counts) / total
    return float(mean[1, 0] - mean[0, 0] - counted.reach(moved[1] - moved[0]))


def _split(patch: Patch) -> NDArray[np.int8]:
    """1 at the rims of objects, 0 in their cores, -1 elsewhere."""
    return np.where(patch.truth > 0, patch.rim.astype(np.int8), np.int8(-1)).astype(np.int8)

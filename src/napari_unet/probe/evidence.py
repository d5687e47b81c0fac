"""How well a foreground probability agrees with an annotation, and how sure that is.

Two measures, both free of a threshold:

- the *score*, the Brier skill: 1 - mean squared error of the probability / that of a constant
  which knows how much foreground there is. A network that is fed wrong grey levels and is wrongly
  sure of itself pays for it. Classes are not balanced: networks learn probabilities as frequent
  as objects are, and weights would favour those that draw too generously.
- the *ranking*, the area under the ROC curve: how often a pixel of an object comes before one of
  the background, however sure the network is.

Neighbouring pixels are right or wrong together. So errors are summed over blocks at least as large
as objects, and the uncertainty is that of the blocks: the linearised form of leaving out one after
the other (delete-one jackknife), which equals the bootstrap of blocks for many of them and needs no
random numbers. For the ranking this is the variance of DeLong with blocks for patients. Two
combinations are compared block by block.
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
_LEVELS = 4096


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

    def score(self, squared: NDArray[np.float64]) -> float:
        """1 for no error, 0 for what a constant achieves.

        Parameters
        ----------
        squared : ndarray of shape (2, blocks)
            Squared errors, of background and of objects.
        """
        return float(1 - squared.sum() * (1 / self.counts.sum(1)).sum())

    def score_influence(self, squared: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much each block moves the score; the sum is 0."""
        total = self.counts.sum(1, keepdims=True)
        norm = (self.counts / total**2).sum(0)
        moved: NDArray[np.float64] = squared.sum() * norm - squared.sum(0) * (1 / total).sum()
        return moved

    def ranking(self, wrong: NDArray[np.float64]) -> float:
        """Area under the ROC curve; `wrong` is the second of what `errors_of` gives."""
        return float(1 - (wrong.sum(1) / self.counts.sum(1)).mean())

    def ranking_influence(self, wrong: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much each block moves the ranking; the sum is 0."""
        total = self.counts.sum(1, keepdims=True)
        mean = wrong.sum(1, keepdims=True) / total
        moved: NDArray[np.float64] = -((wrong - mean * self.counts) / total).sum(0)
        return moved

    def reach(self, influence: NDArray[np.float64]) -> float:
        """Half the width of the confidence interval of a score, or of a difference of scores."""
        used = self.counts.sum(0) > 0
        blocks = int(used.sum())
        spread = np.sqrt(np.square(influence[used]).sum() * blocks / max(blocks - 1, 1))
        return float(self.quantile * spread)


def errors_of(
    patches: Sequence[Patch], foreground: Sequence[NDArray[np.float32]]
) -> NDArray[np.float64]:
    """Sum the errors of a probability by truth and block.

    Parameters
    ----------
    patches : sequence of Patch
        Where.
    foreground : sequence of ndarray
        The probability, for each patch.

    Returns
    -------
    ndarray of shape (2, 2, blocks)
        Squared errors, and for each pixel the part of the other kind that it ranks wrongly with.
    """
    squared = [
        _by_block(patch, np.square(values - (patch.truth > 0)))
        for patch, values in zip(patches, foreground, strict=True)
    ]
    levels = [_level(values) for values in foreground]
    counts: NDArray[np.float64] = np.zeros((2, _LEVELS))
    for patch, level in zip(patches, levels, strict=True):
        for kind in (0, 1):
            counts[kind] += np.bincount(level[patch.truth == kind], minlength=_LEVELS)
    share = counts / counts.sum(1, keepdims=True)
    below = np.cumsum(share, axis=1) - share / 2  # ties count half
    wrong = np.stack([below[1], 1 - below[0]])
    ranked = [
        _by_block(patch, np.where(patch.truth > 0, wrong[1][level], wrong[0][level]))
        for patch, level in zip(patches, levels, strict=True)
    ]
    return np.stack([np.concatenate(squared, axis=1), np.concatenate(ranked, axis=1)])


def _level(values: NDArray[np.float32]) -> NDArray[np.intp]:
    """Bins of log-odds, fine enough for ranks far out in the tails."""
    clipped = np.clip(values, 1e-7, 1 - 1e-7)
    odds = np.log(clipped / (1 - clipped))
    level: NDArray[np.intp] = ((odds + 17) * (_LEVELS / 34)).astype(np.intp)
    return level


def _by_block(patch: Patch, values: NDArray[np.floating]) -> NDArray[np.float64]:
    count = int(patch.blocks.max()) + 1
    known = patch.truth >= 0
    # The truth is one byte wide: widen it before it is multiplied.
    place = patch.blocks[known] + count * patch.truth[known].astype(np.intp)
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

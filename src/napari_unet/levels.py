"""What happens on each level of a network: extents of its maps, and what can be computed at once.

Everything here is integers; nothing imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from napari_unet.config import UNetConfig

__all__ = ["Level", "Shape", "levels", "merges"]

Shape = tuple[int, ...]

# What a merged convolution has to save to be worth another layout of its result.
_SAVES = 0.95


@dataclass(frozen=True)
class Level:
    """Extents of the maps of one level, in its pixels.

    Parameters
    ----------
    entry, first, second : tuple of int
        Into the level on the way down, after one convolution, and after both.
    risen, third, fourth : tuple of int
        After the up-sampling into the level, and after one and two convolutions on the way up;
        at the bottleneck all three are `second`.
    """

    entry: Shape
    first: Shape
    second: Shape
    risen: Shape
    third: Shape
    fourth: Shape

    @property
    def crop(self) -> Shape:
        """What is cut from each side of `second` before it meets `risen`."""
        return tuple((a - b) // 2 for a, b in zip(self.second, self.risen, strict=True))


def levels(config: UNetConfig, shape: Sequence[int]) -> tuple[Level, ...]:
    """Extents of all maps for an admissible input.

    Raises
    ------
    GeometryError
        If the input is not admissible.
    """
    config.geometry.output(shape)
    down: list[tuple[Shape, Shape, Shape]] = []
    size = tuple(shape)
    for level in range(config.depth + 1):
        first = _after(size, config, level)
        down.append((size, first, _after(first, config, level)))
        if level < config.depth:
            size = tuple(s // p for s, p in zip(down[-1][2], config.pools[level], strict=True))
    bottom = down[-1][2]
    found = [Level(*down[-1], bottom, bottom, bottom)]
    for level in reversed(range(config.depth)):
        below = found[-1].fourth
        risen = tuple(s * p for s, p in zip(below, config.pools[level], strict=True))
        third = _after(risen, config, level)
        fourth = _after(third, config, level)
        found.append(Level(*down[level], risen, third, fourth))
    return tuple(reversed(found))


def merges(config: UNetConfig, level: int) -> bool:
    """Whether the up-convolution into a level is best done with the convolution that follows it.

    Nothing stands between the two but the sum with the skip, so that together they are one
    convolution of the coarse map, which gives all pixels of a block at once. For blocks of 2 x 2,
    kernels of 3 x 3 and half as many channels on the finer level it takes 8 products where the two
    take 11, and the map between them is never made.
    """
    pools, kernels = set(config.pools[level]), set(config.kernels[level])
    if len(pools) > 1 or len(kernels) > 1 or config.padding == "same":
        return False
    if config.up != "upconv" or config.up_activation or config.up_norm:
        return False
    pool, kernel = pools.pop(), kernels.pop()
    if pool == 1 or (kernel - 1) % pool:
        return False
    source, up, width = config.widths[level + 1], config.up_widths[level], config.widths[level]
    one = prod([(kernel - 1) // pool + 1] * config.ndim) * source * width
    return one <= _SAVES * (source * up + prod(config.kernels[level]) * up * width)


def _after(size: Shape, config: UNetConfig, level: int) -> Shape:
    """Extent after one convolution; padded ones keep it."""
    if config.padding == "same":
        return size
    return tuple(s - k + 1 for s, k in zip(size, config.kernels[level], strict=True))

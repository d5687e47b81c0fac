"""Sizes of a valid-convolution U-Net, in integers and without any framework.

A level is two unpadded convolutions; between levels stands a pooling, on the way up an
up-sampling by the same factor, after which the encoder map of the level is centre-cropped and
concatenated (Ronneberger, Fischer and Brox 2015, Fig. 1). Everything that tiling needs follows::

    input        |<------------------ size ------------------>|
    output                 |<------- size - loss ------->|
    halo         |<-loss/2>|                             |<-->|

Along one axis with kernels ``k[level]`` and pooling factors ``p[level]``, one pixel of level ``l``
spans ``P[l] = p[0] * ... * p[l - 1]`` input pixels, and

- ``stride = P[depth]``: the pooling grid, on which every tile has to start;
- an admissible input is ``stride * n + sum(2 * (k[l] - 1) * P[l] for l < depth)``;
- the loss per side is ``sum(2 * (k[l] - 1) * P[l] for l < depth) + (k[depth] - 1) * stride``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

from napari_unet.errors import GeometryError

__all__ = ["AxisGeometry", "Geometry"]


@dataclass(frozen=True)
class AxisGeometry:
    """Sizes along one axis.

    Parameters
    ----------
    kernels : tuple of int, one for each level
        Odd extents of the convolutions, in pixels of that level; level 0 is the input's.
    pools : tuple of int, one for each pooling
        Factors between level ``l`` and ``l + 1``; 1 leaves the axis as it is.
    linear_up : bool
        Whether up-sampling interpolates linearly. Interpolation looks past a tile's edge, where
        it can only repeat the last pixel: the outermost outputs then differ from those of the
        whole image, and the halo grows by that many pixels (`trim`).
    same : bool
        Whether convolutions are padded, so that the output is as large as the input. Its
        outermost pixels have seen the padding; they are not kept either, which makes the rest as
        exact as that of a valid network.
    """

    kernels: tuple[int, ...]
    pools: tuple[int, ...]
    linear_up: bool = False
    same: bool = False

    @property
    def depth(self) -> int:
        """Number of poolings."""
        return len(self.pools)

    def span(self, level: int) -> int:
        """Input pixels that one pixel of `level` stands for."""
        return prod(self.pools[:level])

    @cached_property
    def stride(self) -> int:
        """The pooling grid in input pixels: tiles start on its multiples."""
        return self.span(self.depth)

    @cached_property
    def _encoder_loss(self) -> int:
        return sum(2 * (self.kernels[level] - 1) * self.span(level) for level in range(self.depth))

    @cached_property
    def loss(self) -> int:
        """Pixels between input and output size (184 for the paper's network)."""
        if self.same:
            return 0
        bottleneck = 2 * (self.kernels[self.depth] - 1) * self.stride
        return 2 * self._encoder_loss + bottleneck

    @cached_property
    def trim(self) -> int:
        """Outputs per side that padding or linear up-sampling spoils at a tile's edge."""
        if self.same:
            # Whole strides: reads then start on the pooling grid of the image itself.
            return ceil(self._padded_reach / self.stride) * self.stride
        spoilt = 0
        if self.linear_up:
            for pool in reversed(self.pools):
                spoilt = spoilt * pool + pool // 2
        return spoilt

    @cached_property
    def _padded_reach(self) -> int:
        """Outputs per side that depend on what padded convolutions find beyond the edge."""
        reach = self.kernels[0] - 1
        levels = [reach]
        for level, pool in enumerate(self.pools, start=1):
            reach = ceil(reach / pool) + self.kernels[level] - 1
            levels.append(reach)
        for level in reversed(range(self.depth)):
            pool = self.pools[level]
            reach = reach * pool + (pool // 2 if self.linear_up else 0)
            reach = max(reach, levels[level]) + self.kernels[level] - 1
        return reach

    @cached_property
    def halo(self) -> int:
        """Pixels per side that are read but not written (92 for the paper's network)."""
        return self.loss // 2 + self.trim

    @cached_property
    def field_of_view(self) -> int:
        """Input pixels that one output pixel can see, at most."""
        return self.loss + self.stride + 2 * self.trim

    @cached_property
    def smallest(self) -> int:
        """The smallest admissible input (188 for the paper's network)."""
        if self.same:
            return 2 * self.trim + self.stride
        # The decoder loses as much again as the encoder, and one pixel has to be left to write.
        needed = self._encoder_loss + 1 + 2 * self.trim
        first = 2 * (self.kernels[self.depth] - 1) + ceil(needed / self.stride)
        return self.stride * first + self._encoder_loss

    def admits(self, size: int) -> bool:
        """Whether an input of `size` pixels passes every pooling and crop without a remainder."""
        return size >= self.smallest and (size - self.smallest) % self.stride == 0

    def below(self, size: int) -> int | None:
        """Largest admissible size <= `size`; None where there is none."""
        if size < self.smallest:
            return None
        return size - (size - self.smallest) % self.stride

    def above(self, size: int) -> int:
        """Smallest admissible size >= `size`."""
        return max(self.smallest, size + (self.smallest - size) % self.stride)

    def output(self, size: int) -> int:
        """Output size for an admissible input `size`.

        Raises
        ------
        GeometryError
            If `size` is not admissible.
        """
        if not self.admits(size):
            raise GeometryError(f"{size} px is not an admissible size; {self.nearest(size)}.")
        return size - self.loss

    def step(self, size: int) -> int:
        """Pixels that a tile of `size` may write: its exact output, down to the pooling grid.

        0 where the output is smaller than one stride: such a tile cannot continue a row.
        """
        return (self.output(size) - 2 * self.trim) // self.stride * self.stride

    def size_for(self, step: int) -> int:
        """Smallest admissible input that writes at least `step` pixels."""
        return self.above(step + 2 * self.halo)

    def nearest(self, size: int) -> str:
        """Nearest admissible sizes, in words for an error message."""
        below = self.below(size)
        if below is None:
            return f"the smallest that works is {self.smallest}"
        return f"the nearest that work are {below} and {self.above(size)}"


@dataclass(frozen=True)
class Geometry:
    """Sizes of a network with two or three spatial axes, [Z,] Y, X.

    Parameters
    ----------
    axes : tuple of AxisGeometry
        One for each spatial axis.
    """

    axes: tuple[AxisGeometry, ...]

    @classmethod
    def of(
        cls,
        kernels: Sequence[Sequence[int]],
        pools: Sequence[Sequence[int]],
        *,
        linear_up: bool = False,
        same: bool = False,
    ) -> Geometry:
        """Build from kernels per level and axis and poolings per level and axis."""
        axes = zip(*kernels, strict=True)
        factors = list(zip(*pools, strict=True)) or [()] * len(kernels[0])
        return cls(
            tuple(
                AxisGeometry(tuple(k), tuple(p), linear_up, same)
                for k, p in zip(axes, factors, strict=True)
            )
        )

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.axes)

    @property
    def stride(self) -> tuple[int, ...]:
        """The pooling grid along each axis, in input pixels."""
        return tuple(axis.stride for axis in self.axes)

    @property
    def halo(self) -> tuple[int, ...]:
        """Pixels lost per side along each axis."""
        return tuple(axis.halo for axis in self.axes)

    @property
    def trim(self) -> tuple[int, ...]:
        """Outputs per side that are not kept along each axis."""
        return tuple(axis.trim for axis in self.axes)

    @property
    def smallest(self) -> tuple[int, ...]:
        """The smallest admissible input."""
        return tuple(axis.smallest for axis in self.axes)

    def size_for(self, step: Sequence[int]) -> tuple[int, ...]:
        """Smallest admissible input that writes at least `step` pixels along each axis."""
        return tuple(axis.size_for(s) for axis, s in zip(self.axes, step, strict=True))

    def step(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Pixels a tile of `shape` may write along each axis."""
        return tuple(axis.step(s) for axis, s in zip(self.axes, shape, strict=True))

    def output(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Output shape for an input `shape`.

        Raises
        ------
        GeometryError
            If a size is not admissible; the message names the nearest that are.
        """
        if len(shape) != self.ndim:
            raise GeometryError(
                f"The network has {self.ndim} spatial axes, the input has {len(shape)}; "
                f"give an input of shape (B, C, {'Z, ' if self.ndim == 3 else ''}Y, X)."
            )
        wrong = [
            f"{name} = {size} ({axis.nearest(size)})"
            for name, axis, size in zip("ZYX"[-self.ndim :], self.axes, shape, strict=True)
            if not axis.admits(size)
        ]
        if wrong:
            raise GeometryError(
                "Poolings and crops do not come out even for an input of "
                f"{' x '.join(map(str, shape))}: {', '.join(wrong)}."
            )
        return tuple(axis.output(size) for axis, size in zip(self.axes, shape, strict=True))

"""The account of a network: size and channels after every layer, and what breaks at which size.

A valid-convolution U-Net shrinks at each convolution, and its skip connections meet a decoder map
that is smaller than they are. The ledger follows an input size through every layer, so that a
person can see where 572 x 572 becomes 388 x 388, how much each skip is cropped, and why 573 does
not work although most frameworks let it run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from napari_unet.config import UNetConfig
from napari_unet.errors import GeometryError

__all__ = ["Ledger", "Row", "account"]

Layer = Literal[
    "input", "conv", "bottleneck conv", "pool", "upconv", "upsample", "crop", "concat", "head"
]


@dataclass(frozen=True)
class Row:
    """One layer.

    Parameters
    ----------
    layer : str
        What it does: ``input``, ``conv``, ``pool``, ``bottleneck conv``, ``upconv`` (or
        ``upsample``), ``crop``, ``concat``, ``head``.
    level : int
        0 is the input's; one pixel of level ``l`` spans the product of the first ``l`` poolings.
    size : tuple of int
        Extent of its output along each spatial axis, in pixels of the level.
    channels : int
        Of its output.
    factor : tuple of int
        Extent of the kernel, or of the pooling; ones where the layer has neither.
    cropped : tuple of int
        Pixels cut off per side along each axis; zeros where nothing is cropped.
    parts : tuple of int
        Channels of what is concatenated, in that order; else empty.
    """

    layer: Layer
    level: int
    size: tuple[int, ...]
    channels: int
    factor: tuple[int, ...]
    cropped: tuple[int, ...]
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ledger:
    """All layers of a network for one input size.

    Parameters
    ----------
    config : UNetConfig
        The network.
    size : tuple of int
        Input extent along each spatial axis, in pixels.
    rows : tuple of Row
        In the order in which they are computed; up to what breaks where the size is inadmissible.
    problem : str
        What breaks, and where; empty where the size works.
    silent : str
        What a framework that rounds the odd poolings down would run into later: where such a
        network still gives an output, this is where it is misplaced.
    below, above : tuple of int, or None
        Nearest sizes that work, along each axis; `size` itself where it works. `below` is None
        where an axis has none.
    """

    config: UNetConfig
    size: tuple[int, ...]
    rows: tuple[Row, ...]
    problem: str
    silent: str
    below: tuple[int, ...] | None
    above: tuple[int, ...]

    @property
    def admissible(self) -> bool:
        """Whether the network takes this size."""
        return not self.problem

    @property
    def output(self) -> tuple[int, ...] | None:
        """Extent of the logits; None where the size does not work."""
        return self.rows[-1].size if self.admissible else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        geometry = self.config.geometry
        return {
            "size": list(self.size),
            "output": list(self.output) if self.output else None,
            "admissible": self.admissible,
            "problem": self.problem or None,
            "rounded_down": self.silent or None,
            "nearest_below": list(self.below) if self.below else None,
            "nearest_above": list(self.above),
            "depth": self.config.depth,
            "base_features": self.config.widths[0],
            "stride": list(geometry.stride),
            "halo": list(geometry.halo),
            "parameters": self.config.n_parameters,
            "rows": [asdict(row) for row in self.rows],
        }


def account(config: UNetConfig, size: int | Sequence[int]) -> Ledger:
    """Follow an input size through every layer of a network.

    Parameters
    ----------
    config : UNetConfig
        The network.
    size : int or sequence of int
        Input extent in pixels along each spatial axis, or one for all of them. A size that does
        not work gives a ledger that says why.

    Returns
    -------
    Ledger

    Raises
    ------
    GeometryError
        If the number of sizes is not the network's number of spatial axes.

    Examples
    --------
    >>> from napari_unet.config import UNetConfig
    >>> account(UNetConfig(), 572).output
    (388, 388)
    >>> account(UNetConfig(), 573).problem
    'the pooling from level 0 to level 1 would have to halve an odd map, 569 x 569 px'
    """
    sizes = (size,) * config.ndim if isinstance(size, int) else tuple(size)
    geometry = config.geometry
    if len(sizes) != geometry.ndim:
        raise GeometryError(
            f"The network has {geometry.ndim} spatial axes, {len(sizes)} sizes were given; "
            "give one size per axis."
        )
    walk = _Walk(config, sizes)
    problem = walk.run()
    axes = list(zip(geometry.axes, sizes, strict=True))
    if not problem and not all(axis.admits(n) for axis, n in axes):
        # Only a linear up-sampling gets here: what it spoils at the edge is more than is left.
        trim = max(geometry.trim)
        problem = (
            f"the output of {_by(walk.rows[-1].size)} px is nothing but edge: linear up-sampling "
            f"spoils {trim} px per side of every tile"
        )
    lower = [axis.below(n) for axis, n in axes]
    below = tuple(n for n in lower if n is not None)
    return Ledger(
        config,
        sizes,
        tuple(walk.rows),
        problem,
        _Walk(config, sizes, rounds_down=True).run() if problem else "",
        below if len(below) == len(lower) else None,
        tuple(axis.above(n) for axis, n in axes),
    )


class _Walk:
    """Computes the layers one after the other, as the network does."""

    def __init__(
        self, config: UNetConfig, size: tuple[int, ...], *, rounds_down: bool = False
    ) -> None:
        self.config = config
        self.rounds_down = rounds_down
        ones, zeros = (1,) * len(size), (0,) * len(size)
        self.rows = [Row("input", 0, size, config.in_channels, ones, zeros)]

    def run(self) -> str:
        """Fill `rows`; return what breaks, or nothing."""
        config = self.config
        if min(self.rows[0].size) < 1:
            return f"an input of {_by(self.rows[0].size)} px has no pixels"
        skips: list[Row] = []
        for level in range(config.depth):
            if problem := self._block(level, "conv"):
                return problem
            skips.append(self.rows[-1])
            if problem := self._pool(level):
                return problem
        if problem := self._block(config.depth, "bottleneck conv" if config.depth else "conv"):
            return problem
        for level in reversed(range(config.depth)):
            problem = self._merge(level, skips[level]) or self._block(level, "conv")
            if problem:
                return problem
        self._add("head", 0, self.rows[-1].size, config.n_classes)
        return ""

    def _add(
        self,
        layer: Layer,
        level: int,
        size: tuple[int, ...],
        channels: int,
        *,
        factor: tuple[int, ...] | None = None,
        cropped: tuple[int, ...] | None = None,
        parts: tuple[int, ...] = (),
    ) -> None:
        factor = factor or (1,) * len(size)
        cropped = cropped or (0,) * len(size)
        self.rows.append(Row(layer, level, size, channels, factor, cropped, parts))

    def _block(self, level: int, layer: Layer) -> str:
        """Two unpadded convolutions."""
        kernel = self.config.kernels[level]
        for _ in range(2):
            have = self.rows[-1].size
            size = tuple(n - k + 1 for n, k in zip(have, kernel, strict=True))
            if min(size) < 1:
                return (
                    f"nothing is left at level {level}: a {_by(kernel)} convolution meets a map "
                    f"of {_by(have)} px"
                )
            self._add(layer, level, size, self.config.widths[level], factor=kernel)
        return ""

    def _pool(self, level: int) -> str:
        """Pool from `level` to the next."""
        pool = self.config.pools[level]
        have = self.rows[-1].size
        if not self.rounds_down and any(n % p for n, p in zip(have, pool, strict=True)):
            halves = all(p == 2 for n, p in zip(have, pool, strict=True) if n % p)
            what = "halve an odd map" if halves else f"divide a map evenly by {_by(pool)}"
            return (
                f"the pooling from level {level} to level {level + 1} would have to {what}, "
                f"{_by(have)} px"
            )
        size = tuple(n // p for n, p in zip(have, pool, strict=True))
        self._add("pool", level + 1, size, self.rows[-1].channels, factor=pool)
        return ""

    def _merge(self, level: int, skip: Row) -> str:
        """Up-sample to `level`, crop the skip connection, concatenate both."""
        config = self.config
        pool, width = config.pools[level], config.up_widths[level]
        size = tuple(n * p for n, p in zip(self.rows[-1].size, pool, strict=True))
        layer: Layer = "upconv" if config.up == "upconv" else "upsample"
        self._add(layer, level, size, width, factor=pool)
        extra = tuple(have - want for have, want in zip(skip.size, size, strict=True))
        if any(n < 0 or n % 2 for n in extra):
            return (
                f"the skip connection of level {level} cannot be centre-cropped from "
                f"{_by(skip.size)} to {_by(size)} px"
            )
        self._add("crop", level, size, skip.channels, cropped=tuple(n // 2 for n in extra))
        parts = (skip.channels, width) if config.concat == "skip-up" else (width, skip.channels)
        self._add("concat", level, size, sum(parts), parts=parts)
        return ""


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))

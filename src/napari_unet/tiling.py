"""Overlap-tile: which pixels each tile reads and which it writes, planned before anything runs.

Along one axis, with ``halo`` pixels lost per side (Ronneberger et al. 2015, Fig. 2)::

    image                 |0                                       extent|
    tile 0   |<-- read ------------------->|
                          |<-- write ->|
    tile 1                |<-- read ------------------->|
                                       |<-- write ->|
    tile 2                             |<-- read ------------------->|
                                                    |<---- write --->|

Reads reach beyond the image, where pixels are mirrored without repeating the edge. Every write
starts on the pooling grid, counted from the image's first pixel: then each pixel meets the same
poolings whatever the tiles are, and tiled equals whole. The last tile keeps to the grid as well;
it is never moved back to the edge.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.errors import GeometryError, ImageError
from napari_unet.geometry import AxisGeometry, Geometry

__all__ = ["Tile", "TilePlan", "Window", "plan_tiles", "read_mirrored"]


@dataclass(frozen=True)
class Window:
    """A box of pixels, [Z,] Y, X; it may reach outside the image.

    Parameters
    ----------
    start, stop : tuple of int
        First pixel, and one past the last, along each axis.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent along each axis, in pixels."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, ...]:
        """Index of a window that lies inside an array."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def within(self, origin: Sequence[int]) -> Window:
        """Return the same pixels, counted from `origin`."""
        return Window(
            tuple(a - o for a, o in zip(self.start, origin, strict=True)),
            tuple(b - o for b, o in zip(self.stop, origin, strict=True)),
        )


@dataclass(frozen=True)
class Tile:
    """One call of the network.

    Parameters
    ----------
    read : Window
        Pixels that are fed, in image coordinates; may reach outside, where pixels are mirrored.
    write : Window
        Pixels whose result is kept, inside the image.
    """

    read: Window
    write: Window


@dataclass(frozen=True)
class TilePlan:
    """All tiles of one image, in raster order, or outward from a place (`outward`).

    Parameters
    ----------
    region : Window
        Pixels that are written, each exactly once.
    tile_shape : tuple of int
        The network's input, one shape for all tiles.
    step : tuple of int
        Advance from tile to tile in pixels, a multiple of the stride.
    halo, trim : tuple of int
        Pixels per side that are read but not written; outputs per side that are not kept.
    counts : tuple of int
        Tiles along each axis.
    origin : tuple of int
        Where the first tile would write if it were not cut off at the region.
    stride : tuple of int
        The pooling grid, on which every write starts.
    focus : Window, optional
        Where the order begins.
    """

    region: Window
    tile_shape: tuple[int, ...]
    step: tuple[int, ...]
    halo: tuple[int, ...]
    trim: tuple[int, ...]
    counts: tuple[int, ...]
    origin: tuple[int, ...]
    stride: tuple[int, ...]
    focus: Window | None = None

    def __len__(self) -> int:
        return prod(self.counts)

    def __iter__(self) -> Iterator[Tile]:
        if self.focus is None:
            return self._raster()
        return iter(sorted(self._raster(), key=self._distance))

    def outward(self, focus: Window) -> TilePlan:
        """Return the same tiles, those with pixels of `focus` first and then ever farther ones."""
        return replace(self, focus=focus)

    def _distance(self, tile: Tile) -> tuple[int, int]:
        """How far a tile is from the focus, and from its centre."""
        assert self.focus is not None
        pairs = zip(
            tile.write.start, tile.write.stop, self.focus.start, self.focus.stop, strict=True
        )
        gaps, apart = zip(
            *((max(c - b, a - d, 0), a + b - c - d) for a, b, c, d in pairs), strict=True
        )
        return max(gaps), sum(d * d for d in apart)

    def _raster(self) -> Iterator[Tile]:
        for index in itertools.product(*map(range, self.counts)):
            first = tuple(o + i * s for o, i, s in zip(self.origin, index, self.step, strict=True))
            read = tuple(f - h for f, h in zip(first, self.halo, strict=True))
            start = tuple(max(f, a) for f, a in zip(first, self.region.start, strict=True))
            stop = tuple(
                min(f + s, b) for f, s, b in zip(first, self.step, self.region.stop, strict=True)
            )
            end = tuple(r + t for r, t in zip(read, self.tile_shape, strict=True))
            yield Tile(Window(read, end), Window(start, stop))

    @cached_property
    def loss(self) -> tuple[int, ...]:
        """Pixels per side between the network's input and output."""
        return tuple(h - t for h, t in zip(self.halo, self.trim, strict=True))

    def divided(self, window: Window, step: tuple[int, ...]) -> TilePlan:
        """Plan a part of the region with smaller tiles; the result there is the same.

        Parameters
        ----------
        window : Window
            Inside the region.
        step : tuple of int
            What a tile writes at most, in multiples of the stride.
        """
        origin = tuple(a // s * s for a, s in zip(window.start, self.stride, strict=True))
        extents = tuple(b - a for a, b in zip(origin, window.stop, strict=True))
        step = tuple(
            min(n, ceil(e / s) * s) for n, e, s in zip(step, extents, self.stride, strict=True)
        )
        sizes = zip(self.tile_shape, self.step, step, strict=True)
        tile_shape = tuple(tile - before + now for tile, before, now in sizes)
        counts = tuple(ceil(e / n) for e, n in zip(extents, step, strict=True))
        return replace(
            self, region=window, tile_shape=tile_shape, step=step, counts=counts, origin=origin
        )

    def keep(self, tile: Tile) -> tuple[slice, ...]:
        """Index of a tile's written pixels in the network's output."""
        origin = tuple(r + n for r, n in zip(tile.read.start, self.loss, strict=True))
        return tile.write.within(origin).slices


def plan_tiles(
    shape: Sequence[int],
    geometry: Geometry,
    tile_size: int | Sequence[int],
    region: Window | None = None,
    *,
    exact: bool = True,
) -> TilePlan:
    """Cover an image with tiles that write each pixel exactly once.

    Parameters
    ----------
    shape : sequence of int
        Extent of the image, [Z,] Y, X, in pixels.
    geometry : Geometry
        Of the network.
    tile_size : int or sequence of int
        Largest input of the network, in pixels along each axis. It is taken down to an
        admissible size, and to what the image needs.
    region : Window, optional
        Part of the image to write; the result there is that of the whole image.
    exact : bool
        Keep the tile as large as asked for; else spread the image evenly over as many tiles,
        which then are smaller and read less beyond the image.

    Returns
    -------
    TilePlan

    Raises
    ------
    ImageError
        If the image or the region is empty.
    GeometryError
        If the tile is too small to write anything; the message names the smallest that works.
    """
    region = region or Window((0,) * len(shape), tuple(shape))
    if min(region.shape) < 1 or min(region.start) < 0:
        raise ImageError(f"There are no pixels in {_by(region.shape)}; choose a larger region.")
    if len(shape) != geometry.ndim:
        raise ImageError(f"{_by(shape)} px needs {geometry.ndim} spatial axes for this network.")
    sizes = (tile_size,) * len(shape) if isinstance(tile_size, int) else tuple(tile_size)
    axes = [
        _plan_axis(axis, start, stop, size, exact)
        for axis, start, stop, size in zip(
            geometry.axes, region.start, region.stop, sizes, strict=True
        )
    ]
    tile_shape, step, origin, counts = zip(*axes, strict=True)
    return TilePlan(
        region, tile_shape, step, geometry.halo, geometry.trim, counts, origin, geometry.stride
    )


def _plan_axis(
    axis: AxisGeometry, start: int, stop: int, size: int, exact: bool
) -> tuple[int, int, int, int]:
    """Tile extent, step, first write and number of tiles along one axis."""
    # The pooling grid is the image's, so that a region gets what the whole image would.
    origin = start // axis.stride * axis.stride
    extent = stop - origin
    needed = ceil(extent / axis.stride) * axis.stride
    fitting = axis.below(size)
    smallest = axis.size_for(axis.stride)
    if fitting is None or axis.step(fitting) == 0:
        raise GeometryError(
            f"A tile of {size} px is too small for this network: the smallest is {smallest} px "
            f"({axis.halo} px per side are read but not written)."
        )
    step = min(axis.step(fitting), needed)
    count = ceil(extent / step)
    if not exact:
        step = ceil(ceil(extent / count) / axis.stride) * axis.stride
        count = ceil(extent / step)
    tile = axis.size_for(step) if (count == 1 or not exact) else fitting
    return tile, step, origin, count


def read_mirrored(image: Any, window: Window) -> NDArray[Any]:
    """Read a window that may reach outside the image.

    Parameters
    ----------
    image : array-like of shape (Z, Y, X), (Y, X), or with a channel axis behind
        numpy, dask or zarr array; only the pixels needed are read, in one piece.
    window : Window
        Over the first axes of `image`.

    Returns
    -------
    ndarray of shape ``window.shape`` + the remaining axes
    """
    source, pads, cut = [], [], []
    for start, stop, extent in zip(window.start, window.stop, image.shape, strict=False):
        before, after = max(-start, 0), max(stop - extent, 0)
        # What the mirror at an edge shows may lie beside the window.
        low = 0 if before else max(min(start, extent - 1 - after), 0)
        high = extent if after else min(max(stop, before + 1), extent)
        source.append(slice(low, high))
        pads.append((before, after))
        cut.append(slice(start - low + before, stop - low + before))
    pixels = np.asarray(image[tuple(source)])
    if any(map(any, pads)):
        pads += [(0, 0)] * (pixels.ndim - len(pads))
        pixels = np.pad(pixels, pads, mode="reflect")[tuple(cut)]
    return pixels


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))

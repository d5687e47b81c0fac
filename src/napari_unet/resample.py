"""Rescaling to the spacing a network was trained at, tile by tile and exact across tiles.

Each output pixel depends on its place in the whole image alone, never on the tile that asks for
it: weights come from global coordinates, so that tiled equals whole here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from napari_unet.tiling import Window

__all__ = ["Grid", "interpolate", "mirror_index", "resize_linear"]


@dataclass(frozen=True)
class Grid:
    """The image's grid and the network's, which spans the same extent with other pixels.

    Parameters
    ----------
    image, network : tuple of int
        Extent in pixels of each, [Z,] Y, X. They are equal where nothing is rescaled.
    """

    image: tuple[int, ...]
    network: tuple[int, ...]

    @classmethod
    def fit(
        cls, shape: Sequence[int], spacing: Sequence[float] | None, wanted: Sequence[float] | None
    ) -> Grid:
        """Choose the network's grid: as many pixels as give `wanted` micrometres each.

        The grid stays the image's where either spacing is unknown or they agree within 2 %.
        """
        image = tuple(shape)
        if spacing is None or wanted is None:
            return cls(image, image)
        factors = [have / want for have, want in zip(spacing, wanted, strict=True)]
        if all(abs(factor - 1) <= 0.02 for factor in factors):
            return cls(image, image)
        scaled = (max(1, round(n * f)) for n, f in zip(image, factors, strict=True))
        return cls(image, tuple(scaled))

    @property
    def same(self) -> bool:
        """Whether nothing is rescaled."""
        return self.image == self.network

    @property
    def volume_ratio(self) -> float:
        """Network pixels per image pixel."""
        return float(np.prod(self.network, dtype=float) / np.prod(self.image, dtype=float))

    def to_network(self, window: Window) -> Window:
        """Smallest window of the network's grid that holds a window of the image's."""
        pairs = list(zip(self.image, self.network, strict=True))
        start = tuple(a * m // n for a, (n, m) in zip(window.start, pairs, strict=True))
        stop = tuple(-(-b * m // n) for b, (n, m) in zip(window.stop, pairs, strict=True))
        return Window(start, stop)

    def to_image(self, window: Window, region: Window) -> Window:
        """Image pixels of `region` whose centres lie in a window of the network's grid."""
        if self.same:
            return Window(
                tuple(map(max, window.start, region.start)),
                tuple(map(min, window.stop, region.stop)),
            )
        start, stop = [], []
        for axis, (n, m) in enumerate(zip(self.image, self.network, strict=True)):
            source = _nearest(np.arange(region.start[axis], region.stop[axis]), n, m)
            ends = np.searchsorted(source, [window.start[axis], window.stop[axis]])
            start.append(region.start[axis] + int(ends[0]))
            stop.append(region.start[axis] + int(ends[1]))
        return Window(tuple(start), tuple(stop))

    def centres(self, window: Window) -> Window:
        """Smallest window of the network's grid under the centres of an image window's pixels."""
        start, stop = [], []
        for a, b, n, m in zip(window.start, window.stop, self.image, self.network, strict=True):
            ends = _nearest(np.array([a, b - 1]), n, m)
            start.append(int(ends[0]))
            stop.append(int(ends[1]) + 1)
        return Window(tuple(start), tuple(stop))

    def labels_to_image(
        self, labels: NDArray[Any], origin: Sequence[int], window: Window
    ) -> NDArray[Any]:
        """Bring labels onto the image's grid by the nearest pixel.

        Parameters
        ----------
        labels : ndarray
            On the network's grid, its first pixel at `origin`.
        origin : sequence of int
            Where `labels` starts on the network's grid.
        window : Window
            Image pixels wanted.
        """
        if self.same:
            return labels[window.within(origin).slices]
        index = [
            _nearest(np.arange(a, b), n, m) - o
            for a, b, n, m, o in zip(
                window.start, window.stop, self.image, self.network, origin, strict=True
            )
        ]
        return labels[np.ix_(*index)]


def interpolate(
    read: Callable[[Window], NDArray[np.float32]], grid: Grid, window: Window
) -> NDArray[np.float32]:
    """Read a window of an image as if it had been resized to the network's grid.

    Linear interpolation; where the image shrinks the triangle widens to the ratio, which is what
    keeps fine texture from aliasing. Beyond the resized image its pixels are mirrored.

    Parameters
    ----------
    read : callable
        Gives the pixels (C, [Z,] Y, X) of a window inside the image; only those needed are asked
        for.
    grid : Grid
        Both grids.
    window : Window
        In pixels of the network's grid; may reach outside.

    Returns
    -------
    ndarray of float32, of shape (C,) + ``window.shape``
    """
    matrices, start, stop = [], [], []
    for a, b, have, want in zip(window.start, window.stop, grid.image, grid.network, strict=True):
        pixels, weights = _triangle(mirror_index(np.arange(a, b), want), have, want)
        start.append(int(pixels.min()))
        stop.append(int(pixels.max()) + 1)
        matrices.append(_matrix(pixels - start[-1], weights, stop[-1] - start[-1]))
    return _apply(matrices, read(Window(tuple(start), tuple(stop))))


def mirror_index(index: NDArray[np.intp], extent: int) -> NDArray[np.intp]:
    """Map indices outside an axis to mirrored pixels inside it.

    The edge pixel is not repeated (as `numpy.pad` with ``mode="reflect"``), and the reflection
    bounces between both edges as often as it has to, down to an axis of one pixel.

    Parameters
    ----------
    index : ndarray of int
        Any pixel numbers, negative ones included.
    extent : int
        Length of the axis, at least 1.

    Returns
    -------
    ndarray of int
        Values in [0, extent).

    Examples
    --------
    >>> import numpy as np
    >>> mirror_index(np.arange(-4, 7), 3)
    array([0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2])
    """
    if extent == 1:
        return np.zeros_like(index)
    period = 2 * (extent - 1)
    folded = np.mod(index, period)
    mirrored: NDArray[np.intp] = np.minimum(folded, period - folded)
    return mirrored


def resize_linear(
    values: NDArray[np.float32], origin: Sequence[int], grid: Grid, window: Window
) -> NDArray[np.float32]:
    """Bring values (K, [Z,] Y, X) from the network's grid onto the image's, linearly.

    Parameters
    ----------
    values : ndarray of float32
        Its first pixel at `origin` on the network's grid.
    origin : sequence of int
        Where `values` starts.
    grid : Grid
        Both grids.
    window : Window
        Image pixels wanted.
    """
    matrices = []
    for axis, (n, m) in enumerate(zip(grid.image, grid.network, strict=True)):
        extent = values.shape[axis + 1]
        pixels, weights = _triangle(np.arange(window.start[axis], window.stop[axis]), m, n)
        # What lies outside `values` was not computed; the nearest computed pixel stands in.
        matrices.append(_matrix(np.clip(pixels - origin[axis], 0, extent - 1), weights, extent))
    return _apply(matrices, values)


def _apply(matrices: list[Any], values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply each spatial axis of (C, [Z,] Y, X) by its matrix (out, in)."""
    for axis, matrix in enumerate(matrices, start=1):
        front = np.moveaxis(values, axis, 0)
        made = matrix @ np.ascontiguousarray(front).reshape(len(front), -1)
        values = np.moveaxis(made.reshape(-1, *front.shape[1:]), 0, axis)
    return np.ascontiguousarray(values)


def _nearest(pixels: NDArray[np.intp], have: int, want: int) -> NDArray[np.intp]:
    """Pixel of an axis with `want` pixels under the centre of each pixel of one with `have`."""
    return (2 * pixels + 1) * want // (2 * have)


def _triangle(
    rows: NDArray[np.intp], have: int, want: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Source pixels, and what each counts, for rows of `want` pixels made of `have`.

    Both are of shape (len(rows), taps). Beyond the axis nothing counts.
    """
    ratio = have / want
    reach = max(ratio, 1.0)
    centre = ((rows + 0.5) * ratio - 0.5)[:, None]
    pixels = np.ceil(centre - reach).astype(np.intp) + np.arange(int(2 * reach) + 1)
    weight = np.clip(1 - np.abs(pixels - centre) / reach, 0, None)
    weight[(pixels < 0) | (pixels >= have)] = 0
    weight /= weight.sum(1, keepdims=True)
    return np.clip(pixels, 0, have - 1), weight.astype(np.float32)


def _matrix(pixels: NDArray[np.intp], weights: NDArray[np.float32], extent: int) -> Any:
    """Sparse (len(pixels), extent): each row adds so many of its pixels, always in their order."""
    rows, taps = pixels.shape
    ends = np.arange(0, rows * taps + 1, taps)
    return sparse.csr_array((weights.ravel(), pixels.ravel(), ends), shape=(rows, extent))

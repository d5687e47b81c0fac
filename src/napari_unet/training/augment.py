"""Other views of the same tissue: rotated, mirrored, scaled, bent, brighter, noisier.

All of the geometry is one map from the pixels of a tile to places in the image, so that each tile
is interpolated once, whatever is done to it. The elastic part is that of the paper: random
displacements on a coarse grid, from a Gaussian of 10 px, and cubic splines between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from napari_unet.errors import OptionError
from napari_unet.tiling import Window, read_mirrored

__all__ = ["NO_AUGMENTATION", "Augmentation", "bend", "places", "sample", "shade"]


@dataclass(frozen=True)
class Augmentation:
    """How much tiles are changed; 0 turns a change off.

    Parameters
    ----------
    rotate, mirror : bool
        Turn by any angle (volumes in their planes), and flip each axis half of the time.
    scale : float
        Most change of size, as a logarithm: 0.3 is from 0.74 to 1.35.
    elastic : float
        Standard deviation of the displacements, in pixels.
    knots : int
        Displacements along each axis of a tile, at least 2.
    gamma, contrast, brightness : float
        Most change of the exponent (as a logarithm), of the contrast and of the brightness, of
        normalised grey levels.
    blur, noise : float
        Most blur (standard deviation in pixels) and noise (of normalised grey levels).

    Raises
    ------
    OptionError
        If a number is out of range.
    """

    rotate: bool = True
    mirror: bool = True
    scale: float = 0.3
    elastic: float = 10.0
    knots: int = 3
    gamma: float = 0.5
    contrast: float = 0.3
    brightness: float = 0.1
    blur: float = 1.5
    noise: float = 0.1

    def __post_init__(self) -> None:
        amounts = ("scale", "elastic", "gamma", "contrast", "brightness", "blur", "noise")
        for name in amounts:
            if not 0 <= getattr(self, name) < 1000:
                raise OptionError(f"{name} must be a number from 0 up, not {getattr(self, name)}.")
        if self.knots < 2:
            raise OptionError(f"knots must be at least 2, not {self.knots}.")


NO_AUGMENTATION = Augmentation(False, False, 0, 0, 2, 0, 0, 0, 0, 0)


def places(
    shape: Sequence[int], augmentation: Augmentation, random: np.random.Generator
) -> NDArray[np.float32]:
    """Where each pixel of a tile comes from, counted from the tile's centre.

    Parameters
    ----------
    shape : sequence of int
        Of the tile.
    augmentation : Augmentation
        What is done to it.
    random : Generator
        Source of random numbers.

    Returns
    -------
    ndarray of float32, of shape (ndim,) + `shape`
        In image pixels.
    """
    ndim = len(shape)
    grid = np.indices(shape, np.float32)
    for axis, extent in enumerate(shape):
        # A whole number: a tile that is not bent shall not be blurred either.
        grid[axis] -= extent // 2
    if augmentation.elastic:
        coarse = random.normal(0, augmentation.elastic, (ndim, *[augmentation.knots] * ndim))
        grid += bend(coarse.astype(np.float32), shape)
    size = float(np.exp(random.uniform(-augmentation.scale, augmentation.scale)))
    matrix = np.eye(ndim, dtype=np.float32) * size
    if augmentation.rotate:
        angle = random.uniform(0, 2 * np.pi)
        cos, sin = np.cos(angle), np.sin(angle)
        matrix[-2:, -2:] = size * np.array([[cos, -sin], [sin, cos]])
    if augmentation.mirror:
        matrix = matrix * np.where(random.random(ndim) < 0.5, -1, 1).astype(np.float32)
    if np.array_equal(matrix, np.eye(ndim)):
        return grid
    # Not by a library of linear algebra, whose threads would only be in the network's way.
    turned: NDArray[np.float32] = np.einsum("ij,j...->i...", matrix.astype(np.float32), grid)
    return turned


def bend(coarse: NDArray[np.float32], shape: Sequence[int]) -> NDArray[np.float32]:
    """Spread displacements of a coarse grid over a tile by cubic splines.

    Parameters
    ----------
    coarse : ndarray of shape (ndim, knots, ...)
        Displacements; the outermost knots are the tile's outermost pixels.
    shape : sequence of int
        Of the tile.

    Returns
    -------
    ndarray of float32, of shape (ndim,) + `shape`
    """
    field = coarse
    for axis, extent in enumerate(shape, start=1):
        spread = _splines(extent, coarse.shape[axis])
        along = np.einsum("sk,...k->...s", spread, np.moveaxis(field, axis, -1))
        field = np.moveaxis(along, -1, axis)
    return np.ascontiguousarray(field)


@lru_cache(maxsize=32)
def _splines(size: int, knots: int) -> NDArray[np.float32]:
    """Matrix (size, knots) that spreads values at evenly spaced knots by cubic splines."""
    matrix: NDArray[np.float32]
    one = np.eye(knots, dtype=np.float64)
    matrix = ndimage.zoom(one, (size / knots, 1), order=3, mode="mirror").astype(np.float32)
    return matrix


def sample(
    image: Any, where: NDArray[np.float32], *, nearest: bool = False
) -> NDArray[np.float32] | NDArray[np.int32]:
    """Read an image at places between its pixels, mirrored beyond its edges.

    Parameters
    ----------
    image : ndarray of shape (C, [Z,] Y, X), or ([Z,] Y, X) if `nearest`
        What is read; only the part that is needed.
    where : ndarray of float32, of shape (ndim, ...)
        Places in pixels.
    nearest : bool
        Take the nearest pixel, for labels; else interpolate linearly.

    Returns
    -------
    ndarray
        Of shape (C, ...) and float32, or for `nearest` of shape (...) and the image's dtype.
    """
    ndim = len(where)
    flat = where.reshape(ndim, -1)
    start = [int(low) for low in np.floor(flat.min(axis=1))]
    # At least two pixels along each axis, to interpolate between.
    ends = np.ceil(flat.max(axis=1)) + 1
    stop = [max(int(end), a + 2) for end, a in zip(ends, start, strict=True)]
    window = Window(tuple(start), tuple(stop))
    local = where - np.array(start, np.float32).reshape(-1, *[1] * (where.ndim - 1))
    if nearest:
        part = read_mirrored(image, window)
        index = np.zeros(where.shape[1:], np.int64)
        for axis, extent in enumerate(window.shape):
            index *= extent
            index += np.rint(local[axis]).astype(np.int64)
        found: NDArray[np.int32] = part.ravel()[index]
        return found
    part = np.stack([read_mirrored(channel, window) for channel in image])
    last = np.array(window.shape, np.float32).reshape(-1, *[1] * (where.ndim - 1)) - 1
    # torch counts from -1 to 1, the last axis first.
    unit = np.moveaxis(local * (2 / last) - 1, 0, -1)[..., ::-1]
    given = torch.from_numpy(part[None].astype(np.float32, copy=False))
    at = torch.from_numpy(np.ascontiguousarray(unit)[None])
    with torch.no_grad():
        read = functional.grid_sample(
            given, at, mode="bilinear", padding_mode="border", align_corners=True
        )
    values: NDArray[np.float32] = read[0].numpy()
    return values


def shade(
    image: NDArray[np.float32], augmentation: Augmentation, random: np.random.Generator
) -> NDArray[np.float32]:
    """Change gamma, blur, contrast, brightness and noise as microscopes do.

    Parameters
    ----------
    image : ndarray of float32, of shape (C, [Z,] Y, X)
        Normalised grey levels.
    augmentation : Augmentation
        How much.
    random : Generator
        Source of random numbers.
    """
    a = augmentation
    if a.gamma and random.random() < 0.5:
        # Levels below 0 stay: of a normalisation around 0 they are half of the image.
        power = np.float32(np.exp(random.uniform(-a.gamma, a.gamma)))
        image = np.sign(image) * np.abs(image) ** power
    if a.blur and random.random() < 0.2:
        width = random.uniform(0.2, 1) * a.blur
        blurred: NDArray[np.float32]
        blurred = ndimage.gaussian_filter(image, (0, *[width] * (image.ndim - 1)))
        image = blurred
    if a.contrast or a.brightness:
        # Channels change together and a little by themselves, as stains do.
        channels = (len(image), *[1] * (image.ndim - 1))
        own = 0.5 if len(image) > 1 else 0.0
        factor = random.uniform(-a.contrast, a.contrast) * np.ones(channels)
        factor += own * random.uniform(-a.contrast, a.contrast, channels)
        offset = random.uniform(-a.brightness, a.brightness, channels if own else None)
        image = (image * (1 + factor) + offset).astype(np.float32)
    if a.noise and random.random() < 0.4:
        noise = random.standard_normal(image.shape, np.float32)
        image = image + np.float32(random.uniform(0.1, 1) * a.noise) * noise
    return image.astype(np.float32, copy=False)

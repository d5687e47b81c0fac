"""From a layer to an array with axes and spacing, and from a result back to a layer in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.errors import ImageError

if TYPE_CHECKING:
    import pint
    from napari.layers import Image

__all__ = ["ImageInfo", "Placement", "Source", "describe", "read"]

# What people write as axis labels, and the letter it stands for.
_LETTERS = {
    "t": "T", "time": "T", "frame": "T",
    "z": "Z", "depth": "Z", "plane": "Z",
    "y": "Y", "x": "X",
    "c": "C", "ch": "C", "channel": "C", "channels": "C",
}  # fmt: skip


@dataclass(frozen=True)
class ImageInfo:
    """What can be told about an image layer without reading a pixel.

    Parameters
    ----------
    name : str
        Of the layer.
    shape : tuple of int
        Of the array at `level`, with the colour axis of an RGB image.
    dtype : str
        Of the pixels.
    letters : str, optional
        One of ``TZYXC`` per axis of the array, where the layer's axis labels say so.
    rgb : bool
        Whether the last axis is colour (it is not one of the layer's dimensions).
    spacing : tuple of (float or None)
        Micrometres per pixel for each dimension of the layer; None where the unit is no length.
    levels : tuple of tuple of int
        Shapes of a multiscale image, the finest first; a single one otherwise.
    level : int
        Which of them is meant.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    letters: str | None
    rgb: bool
    spacing: tuple[float | None, ...]
    levels: tuple[tuple[int, ...], ...]
    level: int = 0

    def brief(self) -> str:
        """Shape and dtype in short: ``1024x1360 u16``."""
        dtype = np.dtype(self.dtype)
        kind = f"{dtype.kind}{8 * dtype.itemsize}" if dtype.kind in "uifc" else str(dtype)
        return f"{'x'.join(map(str, self.shape))} {kind}"


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the pixels of a layer lie in the world; a copy, so the layer may change or go.

    Parameters
    ----------
    scale, translate : ndarray of shape (N,)
        World units per pixel, and the world position of the first pixel's centre.
    rotate, shear : ndarray of shape (N, N)
        Applied after the scale (shear first).
    affine : ndarray of shape (N + 1, N + 1)
        Applied last.
    units : tuple of str
        Of the world, per dimension.
    axis_labels : tuple of str
        Per dimension.
    """

    scale: NDArray[np.float64]
    translate: NDArray[np.float64]
    rotate: NDArray[np.float64]
    shear: NDArray[np.float64]
    affine: NDArray[np.float64]
    units: tuple[str, ...]
    axis_labels: tuple[str, ...]

    @classmethod
    def of(cls, layer: Image, level: int = 0) -> Placement:
        """Read it from a layer; the pixels are those of `level` of a multiscale image."""
        # napari draws the first pixel of every level around the same point.
        factors = np.asarray(layer.downsample_factors[level], dtype=float)
        return cls(
            scale=np.array(layer.scale, dtype=float) * factors,
            translate=np.array(layer.translate, dtype=float),
            rotate=np.array(layer.rotate, dtype=float),
            shear=_full_shear(np.array(layer.shear, dtype=float), layer.ndim),
            affine=np.array(layer.affine.affine_matrix, dtype=float),
            units=tuple(str(unit) for unit in layer.units),
            axis_labels=tuple(layer.axis_labels),
        )

    def keeping(self, axes: Sequence[int]) -> Placement:
        """Drop all dimensions but `axes` (a channel axis has no place in the labels)."""
        kept = list(axes)
        square = np.ix_(kept, kept)
        homogeneous = [*kept, len(self.scale)]
        return Placement(
            scale=self.scale[kept],
            translate=self.translate[kept],
            rotate=self.rotate[square],
            shear=self.shear[square],
            affine=self.affine[np.ix_(homogeneous, homogeneous)],
            units=tuple(self.units[axis] for axis in kept),
            axis_labels=tuple(self.axis_labels[axis] for axis in kept),
        )

    def starting_at(self, origin: Sequence[int]) -> Placement:
        """Move the first pixel to where pixel `origin` is now."""
        linear = self.rotate @ self.shear @ np.diag(self.scale)
        moved = self.translate + linear @ np.asarray(origin, dtype=float)
        return Placement(
            self.scale, moved, self.rotate, self.shear, self.affine, self.units, self.axis_labels
        )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments that put a new layer there."""
        return {
            "scale": self.scale,
            "translate": self.translate,
            "rotate": self.rotate,
            "shear": self.shear,
            "affine": self.affine,
            "units": self.units,
            "axis_labels": self.axis_labels,
        }


@dataclass(frozen=True, eq=False)
class Source:
    """An image as the core takes it.

    Parameters
    ----------
    array : array-like
        Axes (T)(Z)YX(C); numpy, or read piece by piece.
    axes : str, optional
        One letter per axis of `array`; None leaves it to the core.
    kept : tuple of int
        Dimensions of the layer that the labels have, in order.
    """

    array: Any
    axes: str | None
    kept: tuple[int, ...]


def describe(layer: Image, level: int = 0) -> ImageInfo:
    """Tell what a layer is.

    Parameters
    ----------
    layer : Image
        A layer of the viewer.
    level : int
        Of a multiscale image; 0 is the finest.
    """
    arrays = list(layer.data) if layer.multiscale else [layer.data]
    level = min(level, len(arrays) - 1)
    factors = layer.downsample_factors[level]
    spacing = (
        _micrometres(float(scale) * float(factor), unit)
        for scale, factor, unit in zip(layer.scale, factors, layer.units, strict=True)
    )
    return ImageInfo(
        name=layer.name,
        shape=tuple(int(extent) for extent in arrays[level].shape),
        dtype=str(np.dtype(arrays[level].dtype)),
        letters=_letters(layer.axis_labels, rgb=bool(layer.rgb)),
        rgb=bool(layer.rgb),
        spacing=tuple(spacing),
        levels=tuple(tuple(int(extent) for extent in array.shape) for array in arrays),
        level=level,
    )


def channel_axis(info: ImageInfo, ndim: int, channels: int) -> int | None:
    """Axis of the array that holds channels, if one does.

    Said by the colour axis of an RGB image or an axis label; or, for a network that takes several
    channels, the axis of that extent behind or in front of the spatial axes.
    """
    last = len(info.shape) - 1
    if info.rgb:
        return last
    if info.letters is not None:
        return info.letters.index("C") if "C" in info.letters else None
    if channels > 1 and last >= ndim:
        for axis in (last, last - ndim):
            if info.shape[axis] == channels:
                return axis
    return None


def axes_of(info: ImageInfo, ndim: int, channels: int) -> tuple[str | None, tuple[int, ...]]:
    """Letters of the array that `read` gives, and its axes in the order of the layer's array."""
    order = list(range(len(info.shape)))
    channel = channel_axis(info, ndim, channels)
    if channel is not None:
        order.append(order.pop(channel))
    letters = info.letters
    if letters is not None:
        return "".join(letters[axis] for axis in order), tuple(order)
    if channel is None:
        return None, tuple(order)
    # The core's own reading of a bare stack, with the channels that it cannot see.
    lead = {0: "", 1: "T", 2: "TZ"}.get(len(order) - 1 - ndim)
    return (None if lead is None else f"{lead}{'ZYX'[-ndim:]}C"), tuple(order)


def read(layer: Image, info: ImageInfo, ndim: int, channels: int) -> Source:
    """Take the array of a layer for a network.

    Parameters
    ----------
    layer : Image
        The layer.
    info : ImageInfo
        What `describe` said about it.
    ndim, channels : int
        Spatial axes and input channels of the network.

    Returns
    -------
    Source
        Channels last; an alpha channel is dropped for a network that takes three.
    """
    array = layer.data[info.level] if layer.multiscale else layer.data
    axes, order = axes_of(info, ndim, channels)
    if order != tuple(range(len(order))):
        array = _lazy(array).transpose(order)
    if info.rgb and info.shape[-1] == 4 and channels == 3:
        array = _lazy(array)[..., :3]
    channel = channel_axis(info, ndim, channels)
    return Source(array, axes, tuple(axis for axis in range(layer.ndim) if axis != channel))


def fed_shape(info: ImageInfo, order: Sequence[int], channels: int) -> tuple[int, ...]:
    """Shape of the array that `read` gives."""
    shape = tuple(info.shape[axis] for axis in order)
    return (*shape[:-1], 3) if info.rgb and shape[-1] == 4 and channels == 3 else shape


def network_spacing(info: ImageInfo, kept: Sequence[int], ndim: int) -> tuple[float, ...] | None:
    """Micrometres per pixel along the network's spatial axes, if all are known."""
    spacing = [info.spacing[axis] for axis in kept[-ndim:]]
    known = tuple(value for value in spacing if value is not None)
    return known if len(known) == len(spacing) else None


def _letters(axis_labels: Sequence[str], *, rgb: bool) -> str | None:
    letters = [_LETTERS.get(label.strip().lower(), "") for label in axis_labels]
    if "" in letters or len(set(letters)) < len(letters):
        return None
    return "".join(letters) + "C" * rgb


def _micrometres(value: float, unit: pint.Unit) -> float | None:
    if not unit.is_compatible_with("micrometer"):
        return None
    length = abs(float((value * unit).to("micrometer").magnitude))
    return length if length > 0 else None


def _full_shear(shear: NDArray[np.float64], ndim: int) -> NDArray[np.float64]:
    """As a matrix: napari gives the upper triangle alone where nothing is below it."""
    if shear.ndim == 2:
        return shear
    full = np.eye(ndim)
    full[np.triu_indices(ndim, 1)] = shear
    return full


def _lazy(array: Any) -> Any:
    """Let an array be sliced and transposed without reading it."""
    if hasattr(array, "transpose"):
        return array
    try:
        from dask.array import from_array
    except ImportError as error:
        raise ImageError(
            "The channels of this image come first; give it with channels last, or install dask."
        ) from error
    return from_array(array)

"""Axes of an image, (T)(Z)YX(C), and the frames that the network sees one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_unet.errors import ImageError

__all__ = ["ImageAxes", "resolve_axes"]

_ORDER = "TZYXC"
_RGB = (3, 4)


@dataclass(frozen=True)
class ImageAxes:
    """How an image's axes meet a network's.

    Parameters
    ----------
    axes : str
        One letter per axis, in the order of ``TZYXC``.
    shape : tuple of int
        Extents in that order.
    ndim : int
        Spatial axes of the network. With 2, the planes of a volume are frames of their own.
    """

    axes: str
    shape: tuple[int, ...]
    ndim: int

    @property
    def has_channels(self) -> bool:
        """Whether the last axis is channels."""
        return self.axes.endswith("C")

    @property
    def labels_shape(self) -> tuple[int, ...]:
        """Shape without the channel axis: that of the labels."""
        return self.shape[: len(self.axes) - self.has_channels]

    @property
    def lead(self) -> int:
        """Number of axes in front of the network's spatial axes."""
        return len(self.labels_shape) - self.ndim

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Extent along the network's spatial axes, [Z,] Y, X."""
        return self.labels_shape[self.lead :]

    def frames(self, region: Sequence[slice]) -> Iterator[tuple[int, ...]]:
        """Index on the leading axes of every frame in a region, in raster order."""
        ranges = (range(*s.indices(n)) for s, n in zip(region, self.shape, strict=False))
        return itertools.product(*itertools.islice(ranges, self.lead))

    def fit_index(self, frame: tuple[int, ...]) -> tuple[int, ...]:
        """Index of the image whose statistics normalise a frame.

        Time points (and planes of which nothing says that they are a volume) are normalised one
        by one; the planes of a volume together, or an empty plane would be stretched to noise.
        """
        return frame[: self.axes[: self.lead].count("T")]


def resolve_axes(
    shape: Sequence[int], dtype: Any, axes: str | None, ndim: int, channels: int
) -> ImageAxes:
    """Name the axes of an image for a network.

    Parameters
    ----------
    shape : sequence of int
        Of the image.
    dtype : dtype-like
        Of the image; booleans, integers and floats can be segmented.
    axes : str, optional
        One letter per axis, in the order of ``TZYXC``. If left out, the last axes are the
        network's, an axis of its number of channels is expected behind them where it has more
        than one, and what stands in front is time, or time and planes.
    ndim, channels : int
        Spatial axes and input channels of the network.

    Returns
    -------
    ImageAxes

    Raises
    ------
    ImageError
        If the image does not fit the network; the message says what to change.
    """
    shape = tuple(int(extent) for extent in shape)
    if np.dtype(dtype).kind not in "buif":
        raise ImageError(
            f"Pixels of type {np.dtype(dtype)} cannot be segmented; convert the image to integers "
            "or floats (for complex pixels: take the magnitude)."
        )
    if 0 in shape or not shape:
        raise ImageError(f"The image of shape {shape} has no pixels; choose another.")
    axes = _guess(shape, ndim, channels) if axes is None else axes.upper()
    wrong_order = [letter for letter in _ORDER if letter in axes] != list(axes)
    if len(axes) != len(shape) or wrong_order or not axes.rstrip("C").endswith("YX"):
        raise ImageError(
            f"Axes {axes!r} do not name the {len(shape)} axes of the image; give letters in the "
            "order TZYXC, at least YX."
        )
    if ndim == 3 and "Z" not in axes:
        raise ImageError(
            f"This model needs a volume (Z, Y, X), the image has the axes {axes}; choose a 2-D "
            "model, or say that its first axis is Z."
        )
    found = shape[-1] if axes.endswith("C") else 1
    if found != channels:
        raise ImageError(
            f"The image has {found} channel{'s' * (found != 1)}, the model takes {channels}; "
            + (
                "split the channels and choose one, or take a model for this kind of image."
                if found > channels
                else "choose an image with that many channels, or another model."
            )
        )
    return ImageAxes(axes, shape, ndim)


def _guess(shape: tuple[int, ...], ndim: int, channels: int) -> str:
    """Axes of an image that came without names."""
    spatial = "ZYX"[-ndim:]
    # Of several pictures, too: else each row would be taken for a picture of three columns.
    coloured = shape[-1] in _RGB and min(shape[-3:-1]) > max(_RGB)
    rgb = channels == 1 and len(shape) > ndim and coloured
    channel = "C" if channels > 1 or rgb else ""
    lead = len(shape) - ndim - len(channel)
    if lead < 0:
        needs = f"{'several channels and ' if channel else ''}{ndim} spatial axes"
        raise ImageError(
            f"An image of shape {shape} has too few axes: the model needs {needs} "
            f"({spatial}{channel}); choose another image or model."
        )
    # A bare stack for a 2-D network may be time or planes; each is taken by itself.
    known = {0: "", 1: "T", 2: "TZ"}
    if lead not in known or (ndim == 3 and lead == 2):
        raise ImageError(
            f"An image with {len(shape)} axes is more than (T)(Z)YX(C); take one position or "
            "channel of it."
        )
    return known[lead] + spatial + channel

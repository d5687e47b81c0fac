"""Which part of an image is meant: all of it, the slice on screen, or what is in view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_unet.errors import ImageError

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

__all__ = ["REGIONS", "SLICE", "VISIBLE", "WHOLE", "View", "look", "resolve_region"]

WHOLE, SLICE, VISIBLE = "whole image", "current slice", "visible region"
REGIONS = (WHOLE, SLICE, VISIBLE)


@dataclass(frozen=True)
class View:
    """What a viewer shows of a layer, in pixels of the layer's array.

    Parameters
    ----------
    displayed : tuple of int
        Dimensions of the layer that are on screen.
    index : tuple of int
        Where the sliders stand along each dimension; may lie outside the image.
    corners : tuple of (int, int)
        First pixel in view, and one past the last, along each dimension.
    """

    displayed: tuple[int, ...]
    index: tuple[int, ...]
    corners: tuple[tuple[int, int], ...]


def look(viewer: ViewerModel, layer: Image, level: int = 0) -> View:
    """Read what the viewer shows of `layer`, in pixels of `level` of a multiscale image."""
    dims, ndim = viewer.dims, layer.ndim
    displayed = (axis - (dims.ndim - ndim) for axis in dims.displayed)
    factors = np.asarray(layer.downsample_factors[level], dtype=float)
    index = layer.world_to_data(_point(viewer, layer)) / factors
    # napari counts them in pixels of the level that is on screen.
    to_level = np.asarray(layer.downsample_factors[layer.data_level], dtype=float) / factors
    first, last = np.asarray(layer.corner_pixels, dtype=float)
    corners = zip(np.floor(first * to_level), np.ceil((last + 1) * to_level), strict=True)
    return View(
        displayed=tuple(axis for axis in displayed if axis >= 0),
        index=tuple(int(value) for value in np.round(index)),
        corners=tuple((int(start), int(stop)) for start, stop in corners),
    )


def resolve_region(
    kind: str, view: View, kept: Sequence[int], shape: Sequence[int], ndim: int
) -> tuple[slice, ...] | None:
    """Turn a kind of region into slices of the labels.

    Leading axes (time, and planes for a 2-D network) that are not on screen are taken where the
    sliders stand. The network's own axes are whole, or as far as they are in view; those that are
    not on screen are always whole, as the network needs them.

    Parameters
    ----------
    kind : str
        One of `REGIONS`.
    view : View
        What is shown.
    kept : sequence of int
        Dimensions of the layer that the labels have.
    shape : sequence of int
        Of the labels of the whole image.
    ndim : int
        Spatial axes of the network.

    Returns
    -------
    tuple of slice, or None for the whole image
        Every axis is there: a slice is one pixel thick along the leading axes.

    Raises
    ------
    ImageError
        If the sliders stand outside the image, or no pixel is in view.
    """
    if kind == WHOLE:
        return None
    region = []
    for position, (axis, extent) in enumerate(zip(kept, shape, strict=True)):
        shown = axis in view.displayed
        if not shown and position < len(kept) - ndim:
            index = view.index[axis]
            if not 0 <= index < extent:
                raise ImageError(
                    "The current slice lies outside this image; move the sliders, or choose the "
                    "whole image."
                )
            region.append(slice(index, index + 1))
        elif shown and kind == VISIBLE:
            start, stop = (min(max(value, 0), extent) for value in view.corners[axis])
            # napari moves a box that misses the image to its edge: nothing, or the last pixel.
            if stop - start <= 1 < extent:
                raise ImageError(
                    "No part of the image is in view; move the camera (press Home), or choose the "
                    "whole image."
                )
            region.append(slice(start, stop))
        else:
            region.append(slice(0, extent))
    return tuple(region)


def _point(viewer: ViewerModel, layer: Image) -> tuple[float, ...]:
    """Position of the sliders in the layer's own units."""
    point: tuple[float, ...] = viewer.dims.point[-layer.ndim :]
    shared = viewer.dims.units
    if shared is None or len(shared) < layer.ndim:
        return point
    pairs = zip(point, shared[-layer.ndim :], layer.units, strict=True)
    return tuple(float((value * have).to(want).magnitude) for value, have, want in pairs)

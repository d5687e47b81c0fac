"""The region that a person has looked at: what is in view, or shapes drawn around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet._napari.region import VISIBLE, look, resolve_region
from napari_unet.errors import ImageError

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Shapes

__all__ = ["inside_shapes", "inside_view"]

_CLOSED = ("rectangle", "ellipse", "polygon")
_CORNERS = 180  # of the polygon that stands for an ellipse


def inside_view(
    viewer: ViewerModel,
    layer: Image,
    level: int,
    kept: tuple[int, ...],
    shape: tuple[int, ...],
    ndim: int,
) -> NDArray[np.bool_]:
    """Pixels of an image that are on screen; parameters as of `look` and `resolve_region`."""
    view = look(viewer, layer, level)
    region = resolve_region(VISIBLE, view, kept, shape, ndim)
    mask = np.zeros(shape, bool)
    mask[region] = True
    return mask


def inside_shapes(
    shapes: Shapes, layer: Image, level: int, kept: tuple[int, ...], shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Pixels of an image whose centres lie inside the closed shapes of a layer.

    Parameters
    ----------
    shapes : Shapes
        Rectangles, ellipses and polygons count, lines and paths do not. With fewer dimensions
        than the image they go for every plane, with as many for the planes that they lie in.
    layer : Image
        Where both lie in the world is respected.
    level : int
        Of a multiscale image.
    kept : tuple of int
        Dimensions of the layer that the mask has.
    shape : tuple of int
        Of the mask.

    Raises
    ------
    ImageError
        If no pixel is inside.
    """
    from skimage.draw import polygon

    mask = np.zeros(shape, bool)
    factors = np.asarray(layer.downsample_factors[level], float)
    for vertices, kind in zip(shapes.data, shapes.shape_type, strict=True):
        if kind not in _CLOSED:
            continue
        corners = _ellipse(vertices) if kind == "ellipse" else np.asarray(vertices, float)
        places, known = _in_image(corners, shapes, layer)
        places, known = (places / factors)[:, list(kept)], known[list(kept)]
        rows, columns = polygon(places[:, -2], places[:, -1], shape[-2:])
        plane: list[Any] = []
        for axis, extent in enumerate(shape[:-2]):
            at = round(float(places[:, axis].mean()))
            plane.append(slice(None) if not known[axis] else at if 0 <= at < extent else slice(0))
        flat = np.zeros(shape[-2:], bool)
        flat[rows, columns] = True
        mask[tuple(plane)] |= flat
    if not mask.any():
        raise ImageError(
            f"No pixel of {layer.name} lies inside a closed shape of {shapes.name}; draw a "
            "rectangle, an ellipse or a polygon around what you looked at."
        )
    return mask


def _ellipse(box: NDArray[Any]) -> NDArray[np.float64]:
    """Corners of a polygon in place of an ellipse, of which napari keeps the box around it."""
    box = np.asarray(box, float)
    turn = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)[:, None]
    # A polygon inside the ellipse would lose its rim; this one has the same area.
    swell = np.sqrt(2 * np.pi / _CORNERS / np.sin(2 * np.pi / _CORNERS))
    half = (box[1] - box[0]) / 2, (box[3] - box[0]) / 2
    return np.asarray(
        box.mean(axis=0) + swell * (np.cos(turn) * half[0] + np.sin(turn) * half[1]), float
    )


def _in_image(
    points: NDArray[np.float64], shapes: Shapes, layer: Image
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Points of a shapes layer in data coordinates of an image, and which of them are known."""
    world = np.array([shapes.data_to_world(point) for point in points], float)
    common = min(shapes.ndim, layer.ndim)
    moved = np.zeros((len(points), layer.ndim))
    units = zip(shapes.units[-common:], layer.units[-common:], strict=True)
    for axis, (have, want) in enumerate(units, start=-common):
        factor = (1 * have).to(want).magnitude if have.is_compatible_with(want) else 1.0
        moved[:, axis] = world[:, axis] * float(factor)
    known = np.arange(layer.ndim) >= layer.ndim - common
    return np.array([layer.world_to_data(point) for point in moved], float), known

"""Pairs of an image and its labels: which layers belong together, and copies of what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet._napari.layers import ImageInfo, Placement, describe, network_spacing
from napari_unet._napari.results import METADATA_KEY
from napari_unet._napari.train_region import inside_shapes
from napari_unet.errors import ImageError
from napari_unet.training.pairs import Pair, PairFiles
from napari_unet.training.targets import renumbered

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Labels, Shapes

__all__ = [
    "Collected",
    "Fit",
    "LayerPair",
    "SavedPair",
    "collect",
    "count_objects",
    "find_fit",
    "fitting_labels",
]

_MOST_CHANNELS = 8  # that a bare array is taken to have
_MOST_COUNTED = 1 << 22  # the largest number for which a table of counts is made


@dataclass(frozen=True)
class Fit:
    """How labels lie on an image.

    Parameters
    ----------
    info : ImageInfo
        The image at the level whose pixels the labels have.
    channel : int, optional
        Axis of the array that holds channels.
    kept : tuple of int
        The other axes.
    """

    info: ImageInfo
    channel: int | None
    kept: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class LayerPair:
    """Two layers, read when a training begins.

    Parameters
    ----------
    image, labels : Image, Labels
        May have left the viewer since.
    reviewed : Shapes, or ndarray of bool of the labels' shape, optional
        What a person has looked at.
    """

    image: Image
    labels: Labels
    reviewed: Shapes | NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class SavedPair:
    """Files of a pair, read when a training begins.

    Parameters
    ----------
    files : PairFiles
        Where they are.
    shape : tuple of int
        Of the labels.
    objects : int
        Different labels but 0.
    """

    files: PairFiles
    shape: tuple[int, ...]
    objects: int


@dataclass(frozen=True, eq=False)
class Collected:
    """A pair, and where its pixels lie in the viewer.

    Parameters
    ----------
    pair : Pair
        Copies.
    placement : Placement
        Of its first pixel; with the dimensions of the labels layer.
    name : str
        Of the image layer.
    """

    pair: Pair
    placement: Placement
    name: str


def find_fit(image: Image, shape: tuple[int, ...]) -> Fit | None:
    """Find out how labels of a shape lie on an image; None if they do not."""
    levels = len(image.data) if image.multiscale else 1
    for level in range(levels):
        info = describe(image, level)
        axes = range(len(info.shape))
        for channel in _channel_axes(info, len(shape)):
            kept = tuple(axis for axis in axes if axis != channel)
            if tuple(info.shape[axis] for axis in kept) == shape:
                return Fit(info, channel, kept)
    return None


def _channel_axes(info: ImageInfo, ndim: int) -> Sequence[int | None]:
    """Axes that may hold channels, the likeliest first."""
    last = len(info.shape) - 1
    if info.rgb:
        return (last,)
    if info.letters is not None:
        return (info.letters.index("C") if "C" in info.letters else None,)
    if len(info.shape) == ndim:
        return (None,)
    # Of a bare array the labels tell: what they lack is the channels, unless it is a long stack.
    return [axis for axis in (last, *range(last)) if info.shape[axis] <= _MOST_CHANNELS]


def fitting_labels(viewer: ViewerModel, image: Image) -> list[Labels]:
    """Labels layers that lie on an image, the newest first.

    Those that were made from another image come behind, and comparisons of models last.
    """
    from napari.layers import Labels

    found = [
        layer
        for layer in reversed(viewer.layers)
        if isinstance(layer, Labels)
        and not layer.multiscale
        and find_fit(image, layer.data.shape) is not None
    ]

    def rank(layer: Labels) -> tuple[bool, bool]:
        about = layer.metadata.get(METADATA_KEY, {})
        return "training" in about, about.get("image", image.name) != image.name

    return sorted(found, key=rank)


def count_objects(labels: NDArray[Any]) -> int:
    """Count the different labels but 0."""
    flat = np.asarray(labels).ravel()
    if flat.size and flat.min() >= 0 and flat.max() < _MOST_COUNTED:
        return int(np.count_nonzero(np.bincount(flat)[1:]))
    found = np.unique(flat)
    return len(found) - int(0 in found)


def collect(chosen: LayerPair, ndim: int) -> list[Collected]:
    """Copy what two layers hold now.

    Parameters
    ----------
    chosen : LayerPair
        The layers.
    ndim : int
        Spatial axes of the network. With 2, every plane of a stack is a pair of its own; planes
        without a label, of which no region was reviewed, are left out: nobody has been there.

    Raises
    ------
    ImageError
        If they do not go together, or nothing is labelled.
    """
    image, labels = chosen.image, chosen.labels
    if labels.multiscale:
        raise ImageError(f"{labels.name} is multiscale; give labels of one resolution.")
    fit = find_fit(image, labels.data.shape)
    if fit is None:
        shown = " x ".join(map(str, describe(image).shape))
        have = " x ".join(map(str, labels.data.shape))
        raise ImageError(
            f"{image.name} has {shown} pixels but {labels.name} has {have}; choose labels that "
            "were made on this image."
        )
    if len(fit.kept) < ndim:
        raise ImageError(
            f"{image.name} is flat, and this network needs volumes (Z, Y, X); take a 2-D model, or "
            "a stack."
        )
    numbers = np.array(labels.data)
    if numbers.size and numbers.min() < 0:
        raise ImageError(f"{labels.name} holds negative numbers; labels count from 0.")
    numbers = renumbered(numbers)
    found = list(_planes(chosen, fit, numbers, _mask(chosen, fit, numbers.shape), ndim))
    if not found:
        raise ImageError(f"{labels.name} holds nothing but 0; label some objects first.")
    return found


def _mask(chosen: LayerPair, fit: Fit, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """What was reviewed, on the grid of the labels."""
    if chosen.reviewed is None or isinstance(chosen.reviewed, np.ndarray):
        return chosen.reviewed
    return inside_shapes(chosen.reviewed, chosen.image, fit.info.level, fit.kept, shape)


def _planes(
    chosen: LayerPair,
    fit: Fit,
    numbers: NDArray[Any],
    mask: NDArray[np.bool_] | None,
    ndim: int,
) -> Iterator[Collected]:
    image, info = chosen.image, fit.info
    array = image.data[info.level] if image.multiscale else image.data
    spacing = network_spacing(info, fit.kept, ndim)
    place = Placement.of(image, info.level).keeping(fit.kept)
    lead = numbers.ndim - ndim
    for index in np.ndindex(*numbers.shape[:lead]):
        part = None if mask is None else mask[index].copy()
        if lead and not numbers[index].any() and (part is None or not part.any()):
            continue
        where: list[Any] = [slice(None)] * len(info.shape)
        for axis, at in zip(fit.kept, index, strict=False):
            where[axis] = at
        pixels = np.array(array[tuple(where)])
        letters = "ZYX"[-ndim:]
        if fit.channel is not None:
            before = sum(axis < fit.channel for axis in fit.kept[lead:])
            pixels, letters = np.moveaxis(pixels, before, -1), f"{letters}C"
            if info.rgb and pixels.shape[-1] == 4:
                pixels = pixels[..., :3]
        name = image.name + "".join(f"[{at}]" for at in index)
        pixels, own = np.ascontiguousarray(pixels), numbers[index].copy()
        stack = image.name if index else ""
        pair = Pair(name, pixels, letters, own, part, spacing, stack)
        yield Collected(pair, place.starting_at((*index, *[0] * ndim)), image.name)

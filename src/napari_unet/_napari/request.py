"""What the controls say, resolved by pure functions into one frozen request for the worker."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from napari_unet._napari.layers import (
    ImageInfo,
    Placement,
    Source,
    axes_of,
    channel_axis,
    fed_shape,
    network_spacing,
)
from napari_unet._napari.region import VISIBLE, WHOLE, View, resolve_region
from napari_unet.axes import ImageAxes, resolve_axes
from napari_unet.checkpoint import Card, Model
from napari_unet.errors import ImageError
from napari_unet.options import Options, Output

__all__ = ["Choices", "Notice", "Request", "check", "resolve"]

# Two spacings that agree within this are the same; the core rescales nothing then.
_SAME = 0.02
# The number and its sign stay on one line.
_PERCENT = "\u00a0%"


@dataclass(frozen=True)
class Choices:
    """State of the controls.

    Parameters
    ----------
    output : {"instances", "classes"}
        Objects one by one, or one label per class.
    keep_probabilities : bool
        Whether probabilities are shown as well.
    region : str
        One of `napari_unet._napari.region.REGIONS`.
    device, precision, engine : str
        As the core takes them.
    memory : float
        GiB; 0 leaves it to the core.
    tile_size : int
        Pixels; 0 leaves it to the core.
    threshold : float, optional
        Probability; None is the model's.
    min_size : int, optional
        Pixels; None is the model's.
    fill_holes, rescale : bool
        As the core takes them.
    keep_tiles : bool
        Whether finished tiles stay after a cancel.
    """

    output: Output = "instances"
    keep_probabilities: bool = False
    region: str = WHOLE
    device: str = "auto"
    precision: str = "auto"
    engine: str = "auto"
    memory: float = 0.0
    tile_size: int = 0
    threshold: float | None = None
    min_size: int | None = None
    fill_holes: bool = True
    rescale: bool = True
    keep_tiles: bool = False


@dataclass(frozen=True)
class Notice:
    """One line about how an image and a model fit.

    Parameters
    ----------
    text : str
        For people.
    kind : {"stop", "warning", "note"}
        Whether it cannot run, runs in a way that a person should know of, or is worth saying.
    """

    text: str
    kind: str


@dataclass(frozen=True, eq=False)
class Request:
    """One run, complete: nothing of it changes when the viewer does.

    Parameters
    ----------
    array : array-like
        The image, axes (T)(Z)YX(C).
    model : Path or Model
        The checkpoint, or what was loaded of it.
    card : Card
        What it is.
    options : Options
        How.
    image : str
        Name of the image, for messages.
    name : str
        Of the result.
    placement : Placement
        Of the result.
    origin, shape : tuple of int
        First pixel and extent of the result on the image's grid, without channels.
    focus : tuple of slice, optional
        What is on screen of the image, over its axes without channels: it comes first.
    """

    array: Any
    model: Path | Model
    card: Card
    options: Options
    image: str
    name: str
    placement: Placement
    origin: tuple[int, ...]
    shape: tuple[int, ...]
    focus: tuple[slice, ...] | None = None


def match(info: ImageInfo, card: Card) -> ImageAxes:
    """Name the axes of an image for a model.

    Raises
    ------
    ImageError
        If the two do not fit; the message says what to change.
    """
    ndim, channels = card.config.ndim, card.config.in_channels
    letters, order = axes_of(info, ndim, channels)
    return resolve_axes(fed_shape(info, order, channels), info.dtype, letters, ndim, channels)


def kept_axes(info: ImageInfo, card: Card) -> tuple[int, ...]:
    """Dimensions of the layer that its labels have: all but channels."""
    channel = channel_axis(info, card.config.ndim, card.config.in_channels)
    return tuple(axis for axis in range(len(info.spacing)) if axis != channel)


def check(info: ImageInfo, card: Card, choices: Choices) -> tuple[Notice, ...]:
    """Tell where an image does not fit a model, and what follows from it.

    Parameters
    ----------
    info : ImageInfo
        The image.
    card : Card
        The model.
    choices : Choices
        The controls.
    """
    try:
        axes = match(info, card)
    except ImageError as error:
        return (Notice(str(error), "stop"),)
    notices = list(_about_spacing(info, card, choices))
    frames = prod(axes.labels_shape[: axes.lead])
    if frames > 1 and choices.region == WHOLE:
        letters = axes.axes[: axes.lead]
        # A bare stack is called time; nobody said so.
        known = info.letters is not None and len(letters) == 1
        what = {"Z": "planes", "T": "time points"}[letters] if known else "slices"
        notices.append(
            Notice(
                f"{card.config.ndim}-D model: {frames} {what}, each by itself; objects are not "
                "linked",
                "note",
            )
        )
    return tuple(notices)


def resolve(
    choices: Choices,
    info: ImageInfo,
    source: Source,
    placement: Placement,
    view: View,
    model: Path | Model,
    card: Card,
) -> Request:
    """Resolve everything that was chosen into one request.

    Parameters
    ----------
    choices : Choices
        The controls.
    info, source, placement : ImageInfo, Source, Placement
        The image.
    view : View
        What the viewer shows of it.
    model : Path or Model
        The checkpoint, or what was loaded of it.
    card : Card
        What it is.

    Raises
    ------
    ImageError, OptionError
        If image, model, region and settings do not fit together.
    """
    axes, ndim = match(info, card), card.config.ndim
    region = resolve_region(choices.region, view, source.kept, axes.labels_shape, ndim)
    origin = tuple(part.start for part in region) if region else (0,) * len(axes.labels_shape)
    shape = tuple(p.stop - p.start for p in region) if region else axes.labels_shape
    options = Options(
        output=choices.output,
        axes=source.axes,
        spacing=network_spacing(info, source.kept, ndim),
        region=region,
        tile_size=choices.tile_size or None,
        device=choices.device,
        precision=choices.precision,
        engine=choices.engine,
        memory=round(choices.memory * 2**30) or None,
        threshold=choices.threshold,
        min_size=choices.min_size,
        fill_holes=choices.fill_holes,
        rescale=choices.rescale,
        keep_probabilities=choices.keep_probabilities,
        keep_finished=choices.keep_tiles,
    )
    return Request(
        array=source.array,
        model=model,
        card=card,
        options=options,
        image=info.name,
        name=f"{info.name} {card.name}",
        placement=placement.keeping(source.kept).starting_at(origin),
        origin=origin,
        shape=shape,
        focus=_focus(view, source.kept, axes.labels_shape, ndim),
    )


def _focus(
    view: View, kept: tuple[int, ...], shape: tuple[int, ...], ndim: int
) -> tuple[slice, ...] | None:
    """What is on screen; None where that is nothing."""
    try:
        return resolve_region(VISIBLE, view, kept, shape, ndim)
    except ImageError:
        return None


def _about_spacing(info: ImageInfo, card: Card, choices: Choices) -> list[Notice]:
    wanted = card.spacing
    if wanted is None:
        return []
    have = network_spacing(info, kept_axes(info, card), card.config.ndim)
    if have is None:
        text = f"pixel size unknown: runs as if it were {_by(wanted)} µm/px"
        return [Notice(text, "note")]
    factors = [h / w for h, w in zip(have, wanted, strict=True)]
    if all(abs(factor - 1) <= _SAME for factor in factors):
        return []
    if not choices.rescale:
        return [Notice(f"image is {_by(have)} µm/px: runs without rescaling", "warning")]
    return [Notice(f"image is {_by(have)} µm/px: runs at {_size(factors)}", "warning")]


def _size(factors: list[float]) -> str:
    percent = [round(100 * factor) for factor in factors]
    if len(set(percent)) > 1:
        return f"{' x '.join(f'{value}{_PERCENT}' for value in percent)} of its size"
    words = {50: "half size", 25: "a quarter of its size", 200: "twice its size"}
    return words.get(percent[0], f"{percent[0]}{_PERCENT} of its size")


def _by(spacing: tuple[float, ...]) -> str:
    same = len(set(spacing)) == 1
    return f"{spacing[0]:.3g}" if same else " x ".join(f"{value:.3g}" for value in spacing)

"""What a person can choose about a segmentation, as one frozen value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from napari_unet.errors import OptionError

__all__ = ["DEVICES", "ENGINES", "PRECISIONS", "Method", "Options", "Output"]

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "tf32", "bfloat16", "float16")
ENGINES = ("auto", "torch", "openvino", "ncnn")

Output = Literal["instances", "classes", "probabilities"]
Method = Literal["auto", "watershed", "components"]


@dataclass(frozen=True)
class Options:
    """Settings of one segmentation; the defaults are what a first click uses.

    Parameters
    ----------
    output : {"instances", "classes", "probabilities"}
        Objects with ids, one class per pixel, or the classes' probabilities as well as classes.
    axes : str, optional
        One letter per axis of the image, in the order of ``TZYXC``; guessed if left out.
    spacing : sequence of float, optional
        Micrometres per pixel along the network's spatial axes.
    level : int
        Of a multiscale image, 0 being the finest.
    region : tuple of slice, optional
        Part of the image to segment, over its axes without the channels.
    tile_size : int, optional
        Largest input of the network along each axis, in pixels; chosen if left out.
    memory : int, optional
        Bytes that a segmentation may take beyond what the process has already: of the GPU where
        there is one, else of RAM; a safe share of what is free if left out.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
    precision : str
        ``auto``, ``float32``, ``tf32`` (on NVIDIA GPUs: float32 whose products are rounded),
        ``bfloat16`` or ``float16``.
    engine : str
        Who computes: ``torch``, ``openvino`` or ``ncnn`` (on the processor, where they are
        installed), or for ``auto`` whoever is done first.
    threshold : float, optional
        Probability above which a pixel is foreground, in [0, 1); the model's own, or 0.5 for
        instances and the most probable class for classes, if left out.
    min_size : int, optional
        Objects of fewer pixels are dropped; the model's own, or 0, if left out.
    waist : float, optional
        Objects are cut where they narrow by more than this many pixels of radius, 0 for never;
        the model's own, or 0, if left out.
    fill_holes : bool
        Close holes inside objects.
    method : {"auto", "watershed", "components"}
        How objects are told apart; by watershed where the model has a contour class.
    rescale : bool
        Bring the image to the spacing the model was trained at, where both are known.
    keep_probabilities : bool
        Return the probabilities too.
    keep_finished : bool
        If stopped halfway, return what was finished instead of nothing.

    Raises
    ------
    OptionError
        If a value is outside its range.
    """

    output: Output = "instances"
    axes: str | None = None
    spacing: Sequence[float] | None = None
    level: int = 0
    region: tuple[slice, ...] | None = None
    tile_size: int | None = None
    memory: int | None = None
    device: str = "auto"
    precision: str = "auto"
    engine: str = "auto"
    threshold: float | None = None
    min_size: int | None = None
    waist: float | None = None
    fill_holes: bool = True
    method: Method = "auto"
    rescale: bool = True
    keep_probabilities: bool = False
    keep_finished: bool = False

    def __post_init__(self) -> None:
        for name, choices in (
            ("output", get_args(Output)),
            ("method", get_args(Method)),
            ("precision", PRECISIONS),
            ("engine", ENGINES),
        ):
            if getattr(self, name) not in choices:
                raise OptionError(
                    f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}."
                )
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise OptionError(f"threshold must be from 0 up to 1, not {self.threshold!r}.")
        if self.waist is not None and not 0 <= self.waist < float("inf"):
            raise OptionError(f"waist must be a number of pixels from 0 up, not {self.waist!r}.")
        for name, least in (("min_size", 0), ("tile_size", 1), ("memory", 1), ("level", 0)):
            value: Any = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise OptionError(f"{name} must be a whole number from {least} up, not {value!r}.")
        if self.spacing is not None:
            object.__setattr__(self, "spacing", tuple(self.spacing))
            if not all(0 < value < float("inf") for value in self.spacing):
                raise OptionError(
                    f"spacing must be lengths above 0 in micrometres, not {self.spacing!r}."
                )

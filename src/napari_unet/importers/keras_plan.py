"""A U-Net as the graph of a Keras model says it."""

from __future__ import annotations

from dataclasses import dataclass

from napari_unet.importers.keras_config import Node
from napari_unet.importers.keras_layers import Crop

__all__ = ["Plan", "Step", "Up"]


@dataclass(frozen=True)
class Step:
    """A convolution and what follows it.

    Parameters
    ----------
    layer : str
        The convolution.
    kernel : tuple of int
        Its extent along each axis.
    padding : {"valid", "same"}
        Of the convolution.
    norm : Node, optional
        The batch norm behind it.
    norm_order : {"norm-act", "act-norm"}, optional
        Where there are norm and activation.
    slope : float, optional
        Of the activation below zero; None where there is none.
    """

    layer: str
    kernel: tuple[int, ...]
    padding: str
    norm: Node | None = None
    norm_order: str | None = None
    slope: float | None = None


@dataclass(frozen=True)
class Up:
    """An up-sampling: a transposed convolution, or an interpolation with or without one of 1 px.

    Parameters
    ----------
    step : Step
        The convolution; where there is none, of the up-sampling's own name.
    factor : tuple of int
        Along each axis.
    how : {"upconv", "nearest", "linear"}
        Transposed, or interpolated.
    is_bare : bool
        Whether there is no convolution: channels stay what they are.
    """

    step: Step
    factor: tuple[int, ...]
    how: str
    is_bare: bool = False


@dataclass(frozen=True)
class Plan:
    """A U-Net as a graph says it; levels begin with the input's.

    Parameters
    ----------
    ndim : int
        Spatial axes.
    channels_first : bool
        Order of the image's axes.
    size : tuple of int or None
        Declared input extent along each spatial axis.
    down, merge : tuple of tuple of Step
        Blocks of the encoder, bottleneck last, and of the decoder.
    pools : tuple of tuple of int
        Factors between the levels.
    ups : tuple of Up
        Into each level.
    crops : tuple of tuple of Crop
        What happens to each encoder's map on its way over.
    order : str
        Of the concatenation: ``"skip-up"``, ``"up-skip"``; empty where there is none.
    head : Step
        The last convolution.
    final : str
        Behind it: linear, softmax or sigmoid.
    rescaling : tuple of float, optional
        Scale and offset of the image before the first convolution.
    """

    ndim: int
    channels_first: bool
    size: tuple[int | None, ...]
    down: tuple[tuple[Step, ...], ...]
    merge: tuple[tuple[Step, ...], ...]
    pools: tuple[tuple[int, ...], ...]
    ups: tuple[Up, ...]
    crops: tuple[tuple[Crop, ...], ...]
    order: str
    head: Step
    final: str
    rescaling: tuple[float, float] | None

    @property
    def units(self) -> tuple[Step, ...]:
        """All convolutions but the last."""
        blocks = (step for block in (*self.down, *self.merge) for step in block)
        return (*blocks, *(up.step for up in self.ups))

"""Sizes that an exported network takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from napari_unet.config import UNetConfig

__all__ = ["AxisSizes", "axis_sizes", "network_arguments"]


@dataclass(frozen=True)
class AxisSizes:
    """Sizes along one spatial axis of the exported network, in pixels.

    Parameters
    ----------
    smallest, step : int
        Inputs are ``smallest + n * step``.
    offset : int
        Output minus input.
    halo : int
        Outputs per side that a program which tiles has to cut off.
    before, after, spoilt : int
        What the wrapper mirrors in front and behind, and leaves out in front.
    """

    smallest: int
    step: int
    offset: int = 0
    halo: int = 0
    before: int = 0
    after: int = 0
    spoilt: int = 0


def axis_sizes(config: UNetConfig, *, tileable: bool) -> tuple[AxisSizes, ...]:
    """Describe each spatial axis, [Z,] Y, X.

    Parameters
    ----------
    config : UNetConfig
        The network.
    tileable : bool
        Pad a valid network so that its output is as large as its input. Padded networks are so
        already.

    Notes
    -----
    Inputs of the tileable variant are multiples of the stride, as is its halo: a program that
    starts its tiles at the first pixel then meets the pooling grid that the whole image has.
    """
    found: list[AxisSizes] = []
    for axis in config.geometry.axes:
        stride = axis.stride
        if axis.same:
            found.append(AxisSizes(axis.smallest, stride, halo=axis.halo))
        elif not tileable:
            found.append(AxisSizes(axis.smallest, stride, offset=-axis.loss))
        else:
            halo = -(-axis.halo // stride) * stride
            smallest = 2 * halo + stride
            behind = axis.size_for(smallest) - smallest - axis.halo
            found.append(
                AxisSizes(
                    smallest, stride, 0, halo, before=axis.halo, after=behind, spoilt=axis.trim
                )
            )
    return tuple(found)


def network_arguments(config: UNetConfig, *, tileable: bool) -> tuple[str, dict[str, Any]]:
    """Name the class of ``unet.py`` that makes the network, and its arguments."""
    arguments = config.to_dict()
    if not tileable or config.padding == "same":
        return "UNet", arguments
    axes = axis_sizes(config, tileable=True)
    names = ("before", "after", "spoilt")
    return "SameSizeUNet", arguments | {
        name: [getattr(axis, name) for axis in axes] for name in names
    }

"""What a valid U-Net is made of: a frozen description that needs no framework to be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Literal, get_args

from napari_unet.errors import OptionError
from napari_unet.geometry import Geometry

__all__ = ["UNetConfig"]

Norm = Literal["none", "batch"]
NormOrder = Literal["norm-act", "act-norm"]
Up = Literal["upconv", "nearest", "linear"]
Concat = Literal["skip-up", "up-skip"]
Padding = Literal["valid", "same"]

# Larger than any network in use; a file that asks for more is broken or hostile.
_MOST_CHANNELS = 1 << 16
_MOST_LEVELS = 12
_LARGEST_KERNEL = 31
_LARGEST_POOL = 16


@dataclass(frozen=True)
class UNetConfig:
    """Configuration of a valid-convolution U-Net.

    The default is the network of Ronneberger, Fischer and Brox (2015, Fig. 1): one channel, two
    classes, 31,030,658 parameters, 572 x 572 -> 388 x 388.

    Parameters
    ----------
    in_channels, n_classes : int
        Channels of the image, and of the logits.
    widths : tuple of int
        Channels at each level, level 0 first; there are ``len(widths) - 1`` poolings.
    ndim : int
        Spatial axes: 2 (Y, X) or 3 (Z, Y, X).
    kernels : tuple of tuple of int
        Odd extent of the convolutions per level and axis; 3 everywhere if left out. A volume with
        coarse planes takes ``(1, 3, 3)`` at its upper levels.
    pools : tuple of tuple of int
        Factor per pooling and axis; 2 everywhere if left out. ``(1, 2, 2)`` keeps the planes.
    norm : {"none", "batch"}
        Normalisation after each 3x3 convolution.
    norm_order : {"norm-act", "act-norm"}
        Whether it comes before or after the activation.
    slope : float
        Slope of the activation below zero: 0 is a ReLU, else a leaky ReLU.
    up : {"upconv", "nearest", "linear"}
        A transposed convolution of the pooling's factor, or interpolation and a 1x1 convolution.
    up_activation : bool
        Whether the up-convolution is followed by the activation.
    up_norm : bool
        Whether the up-convolution is followed by the norm, too, in the same order as elsewhere.
    up_widths : tuple of int
        Channels after each up-sampling, level 0 first; `widths` of the level if left out.
    concat : {"skip-up", "up-skip"}
        Which comes first when encoder and decoder maps are concatenated.
    dropout : float
        Share of the channels' values dropped, while training, after the last two encoder levels.
    padding : {"valid", "same"}
        Whether convolutions are padded with zeros to keep the size. Only other people's
        checkpoints are ``"same"``.

    Raises
    ------
    OptionError
        If a value is outside what a network can be built from.
    """

    in_channels: int = 1
    n_classes: int = 2
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    ndim: int = 2
    kernels: tuple[tuple[int, ...], ...] = field(default=())
    pools: tuple[tuple[int, ...], ...] = field(default=())
    norm: Norm = "none"
    norm_order: NormOrder = "norm-act"
    slope: float = 0.0
    up: Up = "upconv"
    up_activation: bool = False
    up_norm: bool = False
    up_widths: tuple[int, ...] = field(default=())
    concat: Concat = "skip-up"
    dropout: float = 0.0
    padding: Padding = "valid"

    def __post_init__(self) -> None:
        _check_integer("ndim", self.ndim, 2, 3)
        _check_integer("in_channels", self.in_channels, 1, _MOST_CHANNELS)
        _check_integer("n_classes", self.n_classes, 1, _MOST_CHANNELS)
        if not 1 <= len(self.widths) <= _MOST_LEVELS:
            raise OptionError(f"widths must name 1 to {_MOST_LEVELS} levels, not {self.widths!r}.")
        # Lists come from JSON and from people; tuples keep the configuration hashable.
        put = object.__setattr__
        put(self, "widths", tuple(self.widths))
        put(self, "kernels", _table(self.kernels) or ((3,) * self.ndim,) * len(self.widths))
        put(self, "pools", _table(self.pools) or ((2,) * self.ndim,) * self.depth)
        put(self, "up_widths", tuple(self.up_widths) or self.widths[:-1])
        self._check_levels()
        for name, kinds in (("norm", Norm), ("norm_order", NormOrder), ("up", Up)):
            _check_choice(name, getattr(self, name), get_args(kinds))
        _check_choice("concat", self.concat, get_args(Concat))
        _check_choice("padding", self.padding, get_args(Padding))
        for name in ("slope", "dropout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise OptionError(f"{name} must be a number from 0 up to 1, not {value!r}.")
        for name in ("up_activation", "up_norm"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} must be true or false, not {getattr(self, name)!r}.")
        if self.up_norm and self.norm == "none":
            raise OptionError("up_norm needs a norm; choose norm='batch'.")

    def _check_levels(self) -> None:
        for width in (*self.widths, *self.up_widths):
            _check_integer("a width", width, 1, _MOST_CHANNELS)
        lengths = (
            ("kernels", self.kernels, self.depth + 1),
            ("pools", self.pools, self.depth),
        )
        for name, table, length in lengths:
            if len(table) != length or any(len(row) != self.ndim for row in table):
                raise OptionError(f"{name} must be {length} rows of {self.ndim}, not {table!r}.")
        if len(self.up_widths) != self.depth:
            raise OptionError(f"up_widths must be {self.depth} numbers, not {self.up_widths!r}.")
        for kernel in (k for row in self.kernels for k in row):
            _check_integer("a kernel", kernel, 1, _LARGEST_KERNEL)
            if kernel % 2 == 0:
                raise OptionError(f"a kernel must be odd to have a centre, not {kernel}.")
        for pool in (p for row in self.pools for p in row):
            _check_integer("a pooling factor", pool, 1, _LARGEST_POOL)

    @property
    def depth(self) -> int:
        """Number of poolings."""
        return len(self.widths) - 1

    @cached_property
    def geometry(self) -> Geometry:
        """Stride, halo and admissible sizes."""
        return Geometry.of(
            self.kernels, self.pools, linear_up=self.up == "linear", same=self.padding == "same"
        )

    @cached_property
    def n_parameters(self) -> int:
        """Trainable parameters (batch norm's running statistics are not counted)."""

        def block(inputs: int, width: int, level: int) -> int:
            kernel = prod(self.kernels[level])
            norm = 4 * width if self.norm == "batch" else 0
            return (inputs + width) * width * kernel + 2 * width + norm

        widths = (self.in_channels, *self.widths)
        total = sum(
            block(widths[level], widths[level + 1], level) for level in range(len(widths) - 1)
        )
        for level in range(self.depth):
            up = self.up_widths[level]
            kernel = prod(self.pools[level]) if self.up == "upconv" else 1
            total += self.widths[level + 1] * up * kernel + up + 2 * up * self.up_norm
            total += block(self.widths[level] + up, self.widths[level], level)
        return total + (self.widths[0] + 1) * self.n_classes

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types; `from_dict` reads them back."""
        return {
            name: [list(row) if isinstance(row, tuple) else row for row in value]
            if isinstance(value, tuple)
            else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UNetConfig:
        """Read `to_dict`'s form; every value is checked.

        Raises
        ------
        OptionError
            If a field is unknown, of the wrong type or out of range.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - names):
            raise OptionError(f"unknown network settings: {', '.join(unknown)}.")
        try:
            return cls(**values)
        except TypeError as error:
            raise OptionError(f"network settings of a wrong type: {error}.") from error


def _table(rows: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in rows)


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise OptionError(f"{name} must be a whole number from {low} to {high}, not {value!r}.")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")

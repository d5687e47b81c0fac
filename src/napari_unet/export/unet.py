# Copyright (c) 2026, napari-valid-unet contributors
# SPDX-License-Identifier: BSD-3-Clause
"""A U-Net of valid convolutions (Ronneberger, Fischer and Brox 2015, Fig. 1), in one file.

It needs PyTorch and nothing else. `UNet` computes logits of the central pixels of its input;
`SameSizeUNet` pads the input first, so that there are as many outputs as pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# The classes for two and for three dimensions take tuples of their own length.
CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
UPCONV: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POOL: dict[int, Any] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
BATCH_NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def crop(skip: Tensor, like: Tensor) -> Tensor:
    """Centre-crop the encoder's features, (B, C, [Z,] Y, X), to the size of the decoder's."""
    index = [slice(None), slice(None)]
    for have, want in zip(skip.shape[2:], like.shape[2:], strict=True):
        if have < want or (have - want) % 2:
            raise ValueError(
                f"{have} px cannot be centre-cropped to {want} px: the size of the input does not "
                "fit the poolings; choose one that the description of the model allows."
            )
        index.append(slice((have - want) // 2, (have + want) // 2))
    return skip[tuple(index)]


class UNet(nn.Module):
    """U-Net: (B, C, [Z,] Y, X) -> logits (B, K, [Z',] Y', X').

    Parameters
    ----------
    in_channels, n_classes : int
        Channels of the image (C), and of the logits (K).
    widths : sequence of int
        Channels at each level, level 0 first; there are ``len(widths) - 1`` poolings.
    ndim : int
        Spatial axes, 2 or 3.
    kernels : sequence of sequence of int
        Extent of the convolutions, per level and axis.
    pools : sequence of sequence of int
        Factor per pooling and axis.
    norm : {"none", "batch"}
        Normalisation at each convolution of the blocks.
    norm_order : {"norm-act", "act-norm"}
        Whether it comes before or after the activation.
    slope : float
        Slope of the activation below zero: 0 is a ReLU, else a leaky ReLU.
    up : {"upconv", "nearest", "linear"}
        A transposed convolution, or interpolation and a 1x1 convolution.
    up_activation, up_norm : bool
        Whether up-sampling is followed by the activation, and by the norm.
    up_widths : sequence of int
        Channels after each up-sampling, level 0 first.
    concat : {"skip-up", "up-skip"}
        Which comes first when encoder and decoder maps are concatenated.
    dropout : float
        Share of values dropped, while training, after the last two encoder levels.
    padding : {"valid", "same"}
        Whether convolutions are padded with zeros to keep the size.
    """

    def __init__(
        self,
        in_channels: int,
        n_classes: int,
        widths: Sequence[int],
        ndim: int,
        kernels: Sequence[Sequence[int]],
        pools: Sequence[Sequence[int]],
        norm: str,
        norm_order: str,
        slope: float,
        up: str,
        up_activation: bool,
        up_norm: bool,
        up_widths: Sequence[int],
        concat: str,
        dropout: float,
        padding: str,
    ) -> None:
        super().__init__()
        depth = len(widths) - 1
        inputs = [in_channels, *widths]

        def tail(width: int, activation: bool, with_norm: bool) -> list[nn.Module]:
            """What follows a convolution."""
            modules: list[nn.Module] = []
            if activation:
                modules.append(nn.LeakyReLU(slope, True) if slope else nn.ReLU(True))
            if with_norm:
                where = 0 if norm_order == "norm-act" else len(modules)
                modules.insert(where, BATCH_NORM[ndim](width))
            return modules

        def block(channels: int, level: int) -> nn.Sequential:
            """Two convolutions."""
            width, kernel = widths[level], tuple(kernels[level])
            around = tuple(k // 2 for k in kernel) if padding == "same" else 0
            modules: list[nn.Module] = []
            for before in (channels, width):
                modules.append(CONV[ndim](before, width, kernel, padding=around))
                modules += tail(width, True, norm == "batch")
            return nn.Sequential(*modules)

        def raised(level: int) -> nn.Sequential:
            """Up-sampling from ``level + 1`` to `level`."""
            below, width, factor = widths[level + 1], up_widths[level], tuple(pools[level])
            modules: list[nn.Module]
            if up == "upconv":
                modules = [UPCONV[ndim](below, width, factor, stride=factor)]
            else:
                scale = tuple(float(f) for f in factor)
                linear = {2: "bilinear", 3: "trilinear"}[ndim]
                modules = [
                    nn.Upsample(scale_factor=scale, mode="nearest")
                    if up == "nearest"
                    else nn.Upsample(scale_factor=scale, mode=linear, align_corners=False),
                    CONV[ndim](below, width, 1),
                ]
            return nn.Sequential(*modules, *tail(width, up_activation, up_norm))

        self.depth, self.skip_first = depth, concat == "skip-up"
        self.down = nn.ModuleList(block(inputs[level], level) for level in range(depth + 1))
        self.pool = nn.ModuleList(POOL[ndim](tuple(factor)) for factor in pools)
        self.up = nn.ModuleList(raised(level) for level in range(depth))
        self.merge = nn.ModuleList(
            block(widths[level] + up_widths[level], level) for level in range(depth)
        )
        self.head = CONV[ndim](widths[0], n_classes, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits of the central pixels."""
        skips = []
        features = image
        for level in range(self.depth):
            features = self.down[level](features)
            features = self.dropout(features) if level == self.depth - 1 else features
            skips.append(features)
            features = self.pool[level](features)
        features = self.dropout(self.down[self.depth](features))
        for level in reversed(range(self.depth)):
            features = self.up[level](features)
            skip = crop(skips.pop(), features)
            pair = [skip, features] if self.skip_first else [features, skip]
            features = self.merge[level](torch.cat(pair, dim=1))
        logits: Tensor = self.head(features)
        return logits


class SameSizeUNet(UNet):
    """The same network, with as many outputs as pixels, for programs that tile images themselves.

    The input is mirrored at its edges first. The outermost outputs have seen mirrored pixels
    instead of the image's own: programs that tile have to cut off the halo that the description
    of the model names.

    Parameters
    ----------
    before, after : sequence of int
        Pixels mirrored in front of and behind each spatial axis.
    spoilt : sequence of int
        Outputs per axis that are left out in front.
    **settings
        Of `UNet`.
    """

    def __init__(
        self,
        before: Sequence[int],
        after: Sequence[int],
        spoilt: Sequence[int],
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.around = [pixels for pair in zip(before, after, strict=True) for pixels in pair]
        self.spoilt = list(spoilt)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits of all pixels."""
        # PyTorch counts axes from the last one.
        pairs = [self.around[i : i + 2] for i in range(0, len(self.around), 2)]
        padding = [pixels for pair in reversed(pairs) for pixels in pair]
        logits = super().forward(functional.pad(image, padding, mode="reflect"))
        for axis, first in enumerate(self.spoilt, start=2):
            logits = logits.narrow(axis, first, image.shape[axis])
        return logits

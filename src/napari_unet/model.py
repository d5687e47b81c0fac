"""The valid-convolution U-Net, in one file (Ronneberger, Fischer and Brox 2015, Fig. 1)."""

from __future__ import annotations

import copy
import os
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from napari_unet.config import UNetConfig
from napari_unet.errors import GeometryError

__all__ = ["UNet", "crop_skip", "fold_batch_norm", "he_initialise"]

# Read by torch when it first makes a tensor: on Linux, maps then come in large pages, which the
# system hands out several times as fast.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Read when a GPU is first used: its memory then grows in pages, and what torch takes is less than
# 10 % above what maps need, instead of up to half as much again.
if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

# The two classes of each take tuples of their own length, which types cannot tell apart.
_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_UPCONV: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def crop_skip(skip: Tensor, like: Tensor) -> Tensor:
    """Centre-crop encoder features to the decoder's size.

    Parameters
    ----------
    skip, like : Tensor of shape (B, C, [Z,] Y, X) and (B, C', [Z',] Y', X')
        Features of one level.

    Returns
    -------
    Tensor of shape (B, C, [Z',] Y', X')
        A view of `skip`.

    Raises
    ------
    GeometryError
        If a difference is odd or negative: no pixel-exact centre exists.
    """
    index: list[slice] = [slice(None), slice(None)]
    for have, want in zip(skip.shape[2:], like.shape[2:], strict=True):
        extra = have - want
        if extra < 0 or extra % 2:
            raise GeometryError(
                f"{have} px cannot be centre-cropped to {want} px: the difference must be even "
                "and not negative; choose an admissible input size."
            )
        index.append(slice(extra // 2, extra // 2 + want))
    return skip[tuple(index)]


class _Block(nn.Sequential):
    """Two convolutions (unpadded if valid), each with its activation and normalisation."""

    def __init__(self, config: UNetConfig, inputs: int, level: int) -> None:
        width, kernel = config.widths[level], config.kernels[level]
        layers: list[nn.Module] = []
        for channels in (inputs, width):
            padding = tuple(k // 2 for k in kernel) if config.padding == "same" else 0
            layers.append(_CONV[config.ndim](channels, width, kernel, padding=padding))
            layers += _tail(config, width, activation=True, norm=config.norm == "batch")
        super().__init__(*layers)


def _tail(config: UNetConfig, width: int, *, activation: bool, norm: bool) -> list[nn.Module]:
    """What follows a convolution, in the configuration's order."""
    tail: list[nn.Module] = [_activation(config)] if activation else []
    if norm:
        where = 0 if config.norm_order == "norm-act" else len(tail)
        tail.insert(where, _BATCH_NORM[config.ndim](width))
    return tail


def _activation(config: UNetConfig) -> nn.Module:
    return nn.LeakyReLU(config.slope, inplace=True) if config.slope else nn.ReLU(inplace=True)


def _up(config: UNetConfig, level: int) -> nn.Sequential:
    """Up-sampling from ``level + 1`` to `level`."""
    inputs, width, factor = config.widths[level + 1], config.up_widths[level], config.pools[level]
    layers: list[nn.Module]
    if config.up == "upconv":
        layers = [_UPCONV[config.ndim](inputs, width, factor, stride=factor)]
    else:
        linear = "bilinear" if config.ndim == 2 else "trilinear"
        scale = tuple(float(f) for f in factor)
        # A 1x1 convolution and an interpolation commute; this order is that of public U-Nets.
        layers = [
            nn.Upsample(scale_factor=scale, mode="nearest")
            if config.up == "nearest"
            else nn.Upsample(scale_factor=scale, mode=linear, align_corners=False),
            _CONV[config.ndim](inputs, width, 1),
        ]
    tail = _tail(config, width, activation=config.up_activation, norm=config.up_norm)
    return nn.Sequential(*layers, *tail)


class UNet(nn.Module):
    """Valid-convolution U-Net: (B, C, [Z,] Y, X) -> logits (B, K, [Z',] Y', X').

    Parameters
    ----------
    config : UNetConfig
        The paper's network if left out.

    Examples
    --------
    >>> import torch
    >>> from napari_unet import UNet, UNetConfig
    >>> network = UNet(UNetConfig(widths=(4, 8)))
    >>> network(torch.zeros(1, 1, 20, 24)).shape
    torch.Size([1, 2, 4, 8])
    """

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UNetConfig()
        inputs = (config.in_channels, *config.widths)
        self.down = nn.ModuleList(
            _Block(config, inputs[level], level) for level in range(config.depth + 1)
        )
        self.pool = nn.ModuleList(_POOL[config.ndim](factor) for factor in config.pools)
        self.up = nn.ModuleList(_up(config, level) for level in range(config.depth))
        self.merge = nn.ModuleList(
            _Block(config, config.widths[level] + config.up_widths[level], level)
            for level in range(config.depth)
        )
        self.head = _CONV[config.ndim](config.widths[0], config.n_classes, 1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits.

        Parameters
        ----------
        image : Tensor of shape (B, C, [Z,] Y, X)
            Normalised pixels, of an admissible size.

        Returns
        -------
        Tensor of shape (B, K, [Z',] Y', X')
            Logits of the central pixels: each side is smaller by the loss of
            `UNetConfig.geometry`.

        Raises
        ------
        GeometryError
            If the size is not admissible; the message names the nearest that are.
        """
        self.config.geometry.output(image.shape[2:])
        depth = self.config.depth
        skips: list[Tensor] = []
        features = image
        for level in range(depth):
            features = self._drop(self.down[level](features), level)
            skips.append(features)
            features = self.pool[level](features)
        features = self._drop(self.down[depth](features), depth)
        for level in reversed(range(depth)):
            features = self.up[level](features)
            skip = crop_skip(skips.pop(), features)
            pair = [skip, features] if self.config.concat == "skip-up" else [features, skip]
            # The names let go of both maps before the block allocates its own.
            del skip, features
            joined = torch.cat(pair, dim=1)
            pair.clear()
            features = self.merge[level](joined)
            del joined
        logits: Tensor = self.head(features)
        return logits

    def _drop(self, features: Tensor, level: int) -> Tensor:
        """Drop values at the end of the contracting path (section 3 of the paper)."""
        return self.dropout(features) if level >= self.config.depth - 1 else features


def he_initialise(network: UNet, generator: torch.Generator | None = None) -> None:
    """Draw weights with variance 2 / fan-in (He et al. 2015; section 3 of the paper).

    Parameters
    ----------
    network : UNet
        Changed in place; biases become zero.
    generator : torch.Generator, optional
        Source of random numbers, for a reproducible start.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=network.config.slope, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def fold_batch_norm(network: UNet) -> UNet:
    """Return a copy whose batch norms are part of the convolutions before them.

    The copy computes the same logits (up to rounding) with fewer passes over memory. A batch norm
    that follows the activation cannot be folded and stays.

    Parameters
    ----------
    network : UNet
        Left as it is; its running statistics are used, as in evaluation mode.
    """
    config = network.config
    foldable = config.norm == "batch" and config.norm_order == "norm-act"
    with torch.device("meta"):
        folded = UNet(replace(config, norm="none", up_norm=False) if foldable else config)
    if not foldable:
        weights = {key: value.detach().clone() for key, value in network.state_dict().items()}
        folded.load_state_dict(weights, assign=True)
        return folded.train(network.training)
    pairs = zip([*network.down, *network.merge], [*folded.down, *folded.merge], strict=True)
    for block, plain in pairs:
        # Convolution, norm, activation, twice; without the norm: convolution, activation, twice.
        settled = copy.deepcopy(block).eval()
        for source, target in ((0, 0), (3, 2)):
            plain[target] = fuse_conv_bn_eval(settled[source], settled[source + 1])
    for up, plain in zip(network.up, folded.up, strict=True):
        _fold_up(copy.deepcopy(up).eval(), plain, config)
    head = {key: value.detach().clone() for key, value in network.head.state_dict().items()}
    folded.head.load_state_dict(head, assign=True)
    return folded.eval()


def _fold_up(up: Any, plain: Any, config: UNetConfig) -> None:
    """Move one up-sampling's weights, and its batch norm if it has one, into `plain`."""
    where = 0 if config.up == "upconv" else 1  # interpolation has no weights
    if config.up_norm:
        plain[where] = fuse_conv_bn_eval(up[where], up[where + 1], transpose=where == 0)
    else:
        plain.load_state_dict(up.state_dict(), assign=True)

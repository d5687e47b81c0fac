"""The U-Net on an NVIDIA GPU: bias, activation and addition inside the convolutions' own kernels.

On such a GPU a convolution of 64 channels takes hardly longer than reading and writing its map
once more, so that every step of its own for a bias, an activation or a sum costs half as much
again. Here cuDNN does them on the way, and biases that no activation follows are moved to where
one does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_unet.footprint import GROUP
from napari_unet.model import UNet
from napari_unet.predictors.lean import LeanUNet

__all__ = ["FusedUNet"]

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class FusedUNet(LeanUNet):
    """A `LeanUNet` for CUDA.

    Parameters
    ----------
    network : UNet
        Left as it is.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__(network)
        config = self.config
        self._sums = not config.slope and config.norm == "none"
        self._channels = -(-config.in_channels // GROUP) * GROUP
        _widen(self.down[0][0], self._channels)
        self.down = nn.ModuleList(_fused(layers) for layers in self.down)
        if self._sums:
            pairs = zip(self.from_skip, self.from_below, self.up, strict=True)
            sums = (_SumReLU(*pair, valid=config.padding == "valid") for pair in pairs)
            self.from_below = nn.ModuleList(sums)
        # The activation after a sum is part of the sum.
        self.rest = nn.ModuleList(_fused(list(layers)[self._sums :]) for layers in self.rest)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits, as `LeanUNet` does."""
        size = (image.shape[0], self._channels, *image.shape[2:])
        layout = torch.channels_last if image.ndim == 4 else torch.channels_last_3d
        wide = torch.empty(size, dtype=image.dtype, device=image.device, memory_format=layout)
        wide[:, : image.shape[1]] = image
        wide[:, image.shape[1] :] = 0
        return super().forward(wide)

    def _joined(self, level: int, kept: Tensor, features: Tensor) -> Tensor:
        if not self._sums:
            return super()._joined(level, kept, features)
        joined: Tensor = self.from_below[level](features, kept)
        return joined

    def _pooled(self, features: Tensor, factor: Sequence[int]) -> Tensor:
        """Maximum over boxes, in one pass over maps whose channels lie together."""
        behind = features.movedim(1, -1)
        boxes: list[int] = []
        for n, f in zip(features.shape[2:], factor, strict=True):
            boxes += [n // f, f]
        across = tuple(range(2, 2 + len(boxes), 2))
        return behind.reshape(len(behind), *boxes, -1).amax(across).movedim(-1, 1)


class _ConvReLU(nn.Module):
    """A convolution and the activation behind it."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, features: Tensor) -> Tensor:
        """Compute both in one pass."""
        conv = self.conv
        return torch.cudnn_convolution_relu(features, conv.weight, conv.bias, *_geometry(conv))


class _SumReLU(nn.Module):
    """A convolution of the map from below, what the skip became, and the activation of their sum.

    Parameters
    ----------
    skip, below : convolution
        Halves of one convolution; `skip` loses its bias to the sum.
    up : sequence of modules
        What makes the map from below. If it is nothing but a convolution, and `valid`, its bias
        is a constant behind the next convolution as well, and moves into the sum.
    """

    def __init__(self, skip: Any, below: Any, up: Any, *, valid: bool) -> None:
        super().__init__()
        self.conv, bias = below, skip.bias.detach()
        skip.bias = None
        if valid and isinstance(up[-1], _CONVOLUTIONS):
            last: Any = up[-1]
            bias = bias + below.weight.detach().flatten(2).sum(2) @ last.bias.detach()
            last.bias = None
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, features: Tensor, kept: Tensor) -> Tensor:
        """Compute all in one pass."""
        conv = self.conv
        return torch.cudnn_convolution_add_relu(
            features, conv.weight, kept, 1.0, self.bias, *_geometry(conv)
        )


def _geometry(conv: Any) -> tuple[Any, ...]:
    return conv.stride, conv.padding, conv.dilation, conv.groups


def _widen(conv: Any, channels: int) -> None:
    """Let a convolution take more channels, which it ignores."""
    extra = channels - conv.weight.shape[1]
    pads = (0, 0) * (conv.weight.ndim - 2) + (0, extra)
    conv.weight = nn.Parameter(functional.pad(conv.weight.detach(), pads), requires_grad=False)


def _fused(layers: Iterable[nn.Module]) -> nn.ModuleList:
    """Put each convolution and a ReLU that follows it together."""
    found: list[nn.Module] = []
    for layer in layers:
        behind = found and isinstance(found[-1], (nn.Conv2d, nn.Conv3d))
        if behind and isinstance(layer, nn.ReLU):
            found[-1] = _ConvReLU(found[-1])
        else:
            found.append(layer)
    return nn.ModuleList(found)

"""The U-Net rewritten for inference: the same logits from less memory and fewer passes over it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from napari_unet.levels import levels
from napari_unet.model import UNet, fold_batch_norm

__all__ = ["LeanUNet", "merged"]


class LeanUNet(nn.Module):
    """A `UNet` for inference only.

    Batch norm is folded into the convolutions. The convolution that follows a concatenation is
    taken apart: one convolution of the cropped skip, done on the way down and kept in its place,
    and one of the map from below, added to it. Nothing is concatenated, and the uncropped skip is
    let go of at once.

    Parameters
    ----------
    network : UNet
        Left as it is. Weights that need no change are shared with it, and only ever read.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        folded = _shared(network) if network.config.norm == "none" else fold_batch_norm(network)
        folded = folded.eval().requires_grad_(False)
        self.config = folded.config
        # Lists of sequences of layers, which torch's types cannot tell.
        self.down: Any = folded.down
        self.up: Any = folded.up
        self.head = folded.head
        merge: Any = folded.merge
        pairs = [_apart(block[0], self.config, level) for level, block in enumerate(merge)]
        self.from_skip = nn.ModuleList(skip for skip, _ in pairs)
        self.from_below = nn.ModuleList(below for _, below in pairs)
        self.rest: Any = nn.ModuleList(nn.Sequential(*list(block)[1:]) for block in merge)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits: (B, C, [Z,] Y, X) -> (B, K, [Z',] Y', X'), of an admissible size."""
        depth, sizes = self.config.depth, levels(self.config, image.shape[2:])
        kept: list[Tensor] = []
        features = image
        for level in range(depth + 1):
            # Each name is let go of before the next map is made: that is what memory is about.
            for layer in self.down[level]:
                features = layer(features)
            if level == depth:
                break
            at = sizes[level]
            crop = zip(at.crop, at.risen, strict=True)
            window = (slice(None), slice(None), *(slice(c, c + r) for c, r in crop))
            skip = features[window].clone()
            features = self._pooled(features, self.config.pools[level])
            kept.append(self.from_skip[level](skip))
            del skip
        for level in reversed(range(depth)):
            for layer in self.up[level]:
                features = layer(features)
            features = self._joined(level, kept.pop(), features)
            for layer in self.rest[level]:
                features = layer(features)
        logits: Tensor = self.head(features)
        return logits

    def _joined(self, level: int, kept: Tensor, features: Tensor) -> Tensor:
        """Add the convolution of the map from below to that of the skip."""
        return kept.add_(self.from_below[level](features))

    def _pooled(self, features: Tensor, factor: Sequence[int]) -> Tensor:
        """Maximum over boxes; torch's own pooling makes 8 bytes of indices for each number, too."""
        found: Tensor | None = None
        for offsets in itertools.product(*map(range, factor)):
            every = tuple(slice(o, None, f) for o, f in zip(offsets, factor, strict=True))
            part = features[(slice(None), slice(None), *every)]
            # The layout of the maps is kept: a clone of a view with steps is dense.
            found = part.clone() if found is None else torch.maximum(found, part, out=found)
        assert found is not None
        return found


def _shared(network: UNet) -> UNet:
    """Return another network with the same tensors: weights are held once."""
    with torch.device("meta"):
        other = UNet(network.config)
    weights = {key: value.detach() for key, value in network.state_dict().items()}
    other.load_state_dict(weights, assign=True)
    return other


def _apart(conv: Any, config: Any, level: int) -> tuple[nn.Module, nn.Module]:
    """Split a convolution of concatenated maps into that of the skip and that of the other."""
    skip = config.widths[level]
    parts = conv.weight.split(
        [skip, config.up_widths[level]]
        if config.concat == "skip-up"
        else [config.up_widths[level], skip],
        dim=1,
    )
    ordered = parts if config.concat == "skip-up" else parts[::-1]
    made = []
    for part, bias in zip(ordered, (conv.bias, None), strict=True):
        with torch.device("meta"):
            one = type(conv)(
                part.shape[1],
                part.shape[0],
                conv.kernel_size,
                padding=conv.padding,
                bias=bias is not None,
            )
        one.weight = nn.Parameter(part.contiguous(), requires_grad=False)
        if bias is not None:
            one.bias = nn.Parameter(bias.detach(), requires_grad=False)
        made.append(one)
    return made[0], made[1]


def merged(rise: Any, conv: Any) -> tuple[Tensor, Tensor | None]:
    """One convolution of the coarse map for an up-convolution and the convolution of its result.

    Fine pixel ``p j + r`` of the result reads fine pixels ``p j + r + k``, which the up-convolution
    makes of coarse pixel ``j + (r + k) // p`` with its weight ``(r + k) % p``.

    Parameters
    ----------
    rise : nn.ConvTranspose2d or nn.ConvTranspose3d
        Stride and kernel of p along every axis.
    conv : nn.Conv2d or nn.Conv3d
        Without bias and padding; see `levels.merges` for its kernel.

    Returns
    -------
    weight : Tensor of float32, of shape (p ** ndim * K, C, ...)
        For each fine pixel of a block in turn, the K channels of the result.
    bias : Tensor of float32, of shape (p ** ndim * K,), optional
    """
    up, weight = rise.weight, conv.weight
    ndim, block, (outputs, _, kernel) = weight.dim() - 2, rise.stride[0], weight.shape[:3]
    extent = (kernel - 1) // block + 1
    blocks = list(itertools.product(range(block), repeat=ndim))
    made = weight.new_zeros(len(blocks), outputs, up.shape[0], *[extent] * ndim)
    for place, corner in enumerate(blocks):
        for at in itertools.product(range(kernel), repeat=ndim):
            fine = [r + k for r, k in zip(corner, at, strict=True)]
            coarse = (..., *(f // block for f in fine))
            share = up[(..., *(f % block for f in fine))]
            made[place][coarse] += weight[(..., *at)] @ share.T
    bias = None
    if rise.bias is not None:
        bias = (weight.flatten(2).sum(2) @ rise.bias).repeat(len(blocks))
    return made.flatten(0, 1), bias

"""A network written down for ncnn: layers as lines of text, weights as a stream of numbers.

Written from `LeanUNet`, layer by layer, for images of any size: what is cropped from a skip does
not depend on the size. The format is that of https://github.com/Tencent/ncnn/wiki (param and model
file structure, operators).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_unet.levels import levels
from napari_unet.predictors.lean import LeanUNet

__all__ = ["NcnnGraph", "write_graph"]

_MAGIC = 7767517
_SAME = -233  # a crop's "up to the margin given"


@dataclass(frozen=True)
class NcnnGraph:
    """A network in ncnn's own words.

    Parameters
    ----------
    text : str
        The layers; the input is called ``image``.
    weights : tuple of ndarray
        What the layers read, in their order.
    steps : tuple of str
        Names of the maps in the order in which they are to be computed; the last holds the logits.
        In another order more of them would be held at once.
    """

    text: str
    weights: tuple[NDArray[Any], ...]
    steps: tuple[str, ...]


def write_graph(network: LeanUNet) -> NcnnGraph:
    """Write a 2-D network down.

    Parameters
    ----------
    network : LeanUNet
        float32, on the processor.
    """
    writer = _Writer()
    writer.unet(network)
    head = f"{_MAGIC}\n{len(writer.lines)} {writer.maps}\n"
    return NcnnGraph(
        head + "\n".join(writer.lines) + "\n", tuple(writer.weights), tuple(writer.steps)
    )


class _Writer:
    """Writes layers one after the other, each under a map of its own."""

    def __init__(self) -> None:
        self.lines = ["Input image 0 1 image"]
        self.maps = 1
        self.weights: list[NDArray[Any]] = []
        self.steps: list[str] = []

    def unet(self, net: LeanUNet) -> None:
        """Follow the forward pass, as `LeanUNet` does."""
        config = net.config
        sizes = levels(config, config.geometry.smallest)
        features, kept = "image", []
        for level in range(config.depth + 1):
            features = self.layers(features, net.down[level])
            if level == config.depth:
                break
            skip, pooled = self.split(features)
            skip = self.crop(skip, sizes[level].second, sizes[level].risen)
            height, width = config.pools[level]
            features = self.add(
                "Pooling", [pooled], {1: width, 11: height, 2: width, 12: height, 5: 1}
            )
            kept.append(self.conv(skip, net.from_skip[level]))
        for level in reversed(range(config.depth)):
            features = self.layers(features, net.up[level])
            below = self.conv(features, net.from_below[level])
            features = self.add("BinaryOp", [kept.pop(), below], {0: 0})
            features = self.layers(features, net.rest[level])
        self.conv(features, net.head)

    def layers(self, features: str, modules: Any) -> str:
        """One module after the other."""
        for module in modules:
            write = getattr(self, f"_{type(module).__name__.rstrip('2d').lower()}")
            features = write(features, module)
        return features

    def add(self, kind: str, inputs: Sequence[str], settings: Mapping[int, float]) -> str:
        """Add a layer that makes one map; returns its name."""
        name = f"map{self.maps}"
        numbers = " ".join(f"{key}={value}" for key, value in settings.items())
        self.lines.append(
            f"{kind} layer{len(self.lines)} {len(inputs)} 1 {' '.join(inputs)} {name} {numbers}"
        )
        self.maps += 1
        self.steps.append(name)
        return name

    def split(self, features: str) -> tuple[str, str]:
        """Two names for one map; nothing is copied."""
        names = f"map{self.maps}", f"map{self.maps + 1}"
        self.lines.append(f"Split layer{len(self.lines)} 1 2 {features} {' '.join(names)}")
        self.maps += 2
        return names

    def crop(self, features: str, size: Sequence[int], wanted: Sequence[int]) -> str:
        """Cut the margin off that a map of `size` has around one that is `wanted`."""
        margins = [a - b for a, b in zip(size, wanted, strict=True)]
        if not any(margins):
            return features
        top, left = (margin // 2 for margin in margins)
        bottom, right = margins[0] - top, margins[1] - left
        # fmt: off
        settings = {0: left, 1: top, 2: 0, 3: _SAME, 4: _SAME, 5: _SAME, 6: right, 7: bottom, 8: 0}
        # fmt: on
        return self.add("Crop", [features], settings)

    def conv(self, features: str, module: Any) -> str:
        """Convolution, padded with zeros as much as the module says."""
        return self._conv(features, module)

    def _conv(self, features: str, module: Any) -> str:
        weight = module.weight.detach()
        outputs, _, height, width = weight.shape
        settings = {0: outputs, 1: width, 11: height, 4: module.padding[1], 14: module.padding[0]}
        return self._weighted("Convolution", features, settings, weight, module.bias)

    def _convtranspose(self, features: str, module: Any) -> str:
        weight = module.weight.detach().transpose(0, 1)
        outputs, _, height, width = weight.shape
        rows, columns = module.stride
        settings = {0: outputs, 1: width, 11: height, 3: columns, 13: rows}
        return self._weighted("Deconvolution", features, settings, weight, module.bias)

    def _weighted(
        self,
        kind: str,
        features: str,
        settings: Mapping[int, float],
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> str:
        # Before weights stands in which format they are: zero is float32.
        self.weights += [np.zeros(1, np.int32), _array(weight)]
        if bias is not None:
            self.weights.append(_array(bias))
        shape = {5: int(bias is not None), 6: weight.numel()}
        return self.add(kind, [features], {**settings, **shape})

    def _relu(self, features: str, _module: Any) -> str:
        return self._activated(features, " 9=1") or self.add("ReLU", [features], {})

    def _leakyrelu(self, features: str, module: Any) -> str:
        slope = module.negative_slope
        fused = self._activated(features, f" 9=2 -23310=1,{slope}")
        return fused or self.add("ReLU", [features], {0: slope})

    def _activated(self, features: str, settings: str) -> str:
        """Let the convolution that has just been written activate its own map, if it was one."""
        if not self.lines[-1].startswith(("Convolution", "Deconvolution")):
            return ""
        self.lines[-1] += settings
        return features

    def _batchnorm(self, features: str, module: Any) -> str:
        # One that follows its activation: it stays, as a scale and a shift.
        scale = module.weight / torch.sqrt(module.running_var + module.eps)
        self.weights += [_array(scale), _array(module.bias - module.running_mean * scale)]
        return self.add("Scale", [features], {0: scale.numel(), 1: 1})

    def _upsample(self, features: str, module: Any) -> str:
        height, width = map(int, module.scale_factor)
        kind = 1 if module.mode == "nearest" else 2
        return self.add("Interp", [features], {0: kind, 1: float(height), 2: float(width)})


def _array(values: torch.Tensor) -> NDArray[np.float32]:
    """A tensor's numbers in their order, without a copy where they have it already."""
    found: NDArray[np.float32] = values.detach().contiguous().numpy()
    return found

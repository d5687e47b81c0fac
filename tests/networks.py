"""Small networks with weights that make a difference, shared by the tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from napari_unet.checkpoint import Card, Model
from napari_unet.config import UNetConfig
from napari_unet.model import UNet, he_initialise


def random_network(config: UNetConfig, seed: int = 0) -> UNet:
    """He weights, random biases and batch-norm statistics: logits of the order of 1."""
    generator = torch.Generator().manual_seed(seed)
    network = UNet(config)
    he_initialise(network, generator)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.5, 0.5),
            ):
                assert tensor is not None
                tensor.uniform_(low, high, generator=generator)
        elif getattr(module, "bias", None) is not None:
            nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
    return network.eval()


def random_model(seed: int = 0, **settings: Any) -> Model:
    """A model that was never saved."""
    config = UNetConfig(**{"n_classes": 3, "widths": (4, 8, 8), **settings})
    return Model(Card("random", config), random_network(config, seed))

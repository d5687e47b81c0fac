"""Checkpoints for the tests of the dock: networks whose answer is known beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from families import Jvanvugt, Milesial, randomised

from napari_unet.checkpoint import Card, save_model
from napari_unet.config import UNetConfig
from napari_unet.intensity import Normalisation
from napari_unet.model import UNet


def bright_model(
    folder: Path, name: str = "bright", *, steep: float = 40.0, depth: int = 0, **card: Any
) -> Path:
    """Write a model whose foreground is where the (unscaled) image is above one half.

    The convolutions hand the image through; the head's foreground logit is ``steep * (x - 0.5)``.
    With a `depth` the network has poolings too, whose features the head leaves out: it costs what
    a real one costs and answers the same.
    """
    widths = {0: (2,), 1: (4, 4), 2: (8, 16, 32), 3: (16, 32, 64, 128)}[depth]
    config = UNetConfig(n_classes=card.pop("n_classes", 2), widths=widths, **card.pop("config", {}))
    network = UNet(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for block in (network.down[0], *([network.merge[0]] if depth else [])):
            for layer in (block[0], block[2]):
                middle = tuple(extent // 2 for extent in layer.weight.shape[2:])
                layer.weight[(0, 0, *middle)] = 1.0
        network.head.weight[1, 0] = steep
        network.head.bias[1] = -steep / 2
    path = folder / f"{name}.safetensors"
    about = {"normalisation": Normalisation("none"), **card}
    return save_model(path, network, Card(name, config, **about))


def foreign_model(
    folder: Path, name: str = "foreign", *, family: str = "valid", seed: int = 0
) -> Path:
    """Write what another program's training leaves: a state dict with random weights."""
    network = Milesial(depth=2) if family == "padded" else Jvanvugt(depth=2, wf=2)
    path = folder / f"{name}.pt"
    torch.save(randomised(network, seed).state_dict(), path)
    return path

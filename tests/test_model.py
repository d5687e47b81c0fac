"""The network and its configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import random_network
from torch import nn
from torch.nn import functional

from napari_unet.config import UNetConfig
from napari_unet.errors import GeometryError, OptionError
from napari_unet.model import UNet, crop_skip, fold_batch_norm, he_initialise

CONFIGS: list[dict[str, Any]] = [
    {},
    {"norm": "batch"},
    {"norm": "batch", "norm_order": "act-norm"},
    {"slope": 0.1, "up_activation": True, "concat": "up-skip"},
    {"up": "nearest"},
    {"norm": "batch", "up_norm": True, "up_activation": True},
    {"norm": "batch", "up_norm": True, "up_activation": True, "norm_order": "act-norm"},
    {"norm": "batch", "up_norm": True, "up": "linear", "ndim": 3, "widths": (4, 6)},
    {"up": "linear", "dropout": 0.5},
    {"widths": (4, 12, 6), "up_widths": (3, 5), "in_channels": 3, "n_classes": 1},
    {"ndim": 3, "widths": (4, 8)},
    {"ndim": 3, "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)), "pools": ((1, 2, 2), (2, 2, 2))},
    {"widths": (4,)},
]


def config_of(settings: dict[str, Any]) -> UNetConfig:
    return UNetConfig(**{"widths": (4, 8, 8), **settings})


def test_the_papers_network() -> None:
    """Figure 1: 31,030,658 parameters, 572 -> 388."""
    with torch.device("meta"):
        network = UNet()
        shape = network(torch.empty(1, 1, 572, 572)).shape
    assert shape == (1, 2, 388, 388)
    assert sum(p.numel() for p in network.parameters()) == 31_030_658
    assert UNetConfig().n_parameters == 31_030_658


@pytest.mark.parametrize("settings", CONFIGS)
def test_parameters_and_shapes_are_those_of_the_config(settings: dict[str, Any]) -> None:
    config = config_of(settings)
    network = random_network(config)
    assert sum(p.numel() for p in network.parameters()) == config.n_parameters
    size = config.geometry.size_for(config.geometry.stride)
    with torch.inference_mode():
        logits = network(torch.rand(2, config.in_channels, *size))
    assert logits.shape == (2, config.n_classes, *config.geometry.output(size))
    assert UNetConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("settings", CONFIGS)
def test_folding_batch_norm_leaves_the_logits(settings: dict[str, Any]) -> None:
    network = random_network(config_of(settings))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fold_batch_norm(network)
    size = network.config.geometry.size_for(network.config.geometry.stride)
    image = torch.rand(1, network.config.in_channels, *size)
    with torch.inference_mode():
        torch.testing.assert_close(folded(image), network(image), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    if network.config.norm == "batch" and network.config.norm_order == "norm-act":
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_the_forward_pass_is_the_papers_written_out() -> None:
    """Depth 1, with nothing but `torch.nn.functional`."""
    network = random_network(UNetConfig(widths=(3, 5)))
    w = network.state_dict()

    def conv(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.relu(functional.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"]))

    image = torch.rand(1, 1, 20, 22)
    skip = conv(conv(image, "down.0.0"), "down.0.2")
    bottom = conv(conv(functional.max_pool2d(skip, 2), "down.1.0"), "down.1.2")
    up = functional.conv_transpose2d(bottom, w["up.0.0.weight"], w["up.0.0.bias"], stride=2)
    joined = torch.cat([skip[:, :, 4:-4, 4:-4], up], 1)
    out = conv(conv(joined, "merge.0.0"), "merge.0.2")
    expected = functional.conv2d(out, w["head.weight"], w["head.bias"])
    with torch.inference_mode():
        torch.testing.assert_close(network(image), expected)


def test_concatenation_order_and_activations_matter() -> None:
    image = torch.rand(1, 1, 44, 44)
    outputs = []
    for settings in ({}, {"concat": "up-skip"}, {"up_activation": True}, {"slope": 0.2}):
        network = UNet(UNetConfig(widths=(4, 8, 8), **settings))
        network.load_state_dict(random_network(UNetConfig(widths=(4, 8, 8))).state_dict())
        with torch.inference_mode():
            outputs.append(network(image))
    for index, one in enumerate(outputs):
        assert all(not torch.allclose(one, other) for other in outputs[index + 1 :])


def test_dropout_acts_in_training_only() -> None:
    network = random_network(UNetConfig(widths=(4, 8), dropout=0.5))
    image = torch.rand(1, 1, 20, 20)
    with torch.inference_mode():
        assert torch.equal(network(image), network(image))
        network.train()
        assert not torch.equal(network(image), network(image))


def test_crop_skip_is_centred_or_an_error() -> None:
    skip = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert torch.equal(crop_skip(skip, torch.empty(1, 2, 4, 6)), skip[:, :, 2:6, 1:7])
    for size in (5, 10):
        with pytest.raises(GeometryError, match=f"8 px cannot be centre-cropped to {size} px"):
            crop_skip(skip, torch.empty(1, 1, size, size))


def test_he_initialisation_keeps_the_variance() -> None:
    network = UNet(UNetConfig(widths=(64, 128)))
    he_initialise(network, torch.Generator().manual_seed(0))
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"in_channels": 0}, "in_channels must be a whole number from 1"),
        ({"n_classes": 2.0}, "n_classes must be a whole number"),
        ({"widths": ()}, "widths must name"),
        ({"widths": (4, -1)}, "a width must be"),
        ({"widths": (1 << 20, 4)}, "a width must be"),
        ({"widths": (4,) * 40}, "widths must name"),
        ({"ndim": 4}, "ndim must be"),
        ({"kernels": ((3, 3),)}, "kernels must be 3 rows of 2"),
        ({"kernels": ((3, 3), (2, 3), (3, 3))}, "must be odd"),
        ({"pools": ((2, 2), (0, 2))}, "a pooling factor must be"),
        ({"up_widths": (4,)}, "up_widths must be 2 numbers"),
        ({"norm": "layer"}, "norm must be one of none, batch"),
        ({"concat": "sum"}, "concat must be one of"),
        ({"slope": float("nan")}, "slope must be"),
        ({"dropout": True}, "dropout must be"),
        ({"up_activation": 1}, "up_activation must be true or false"),
        ({"colour": 1}, "unknown network settings: colour"),
        ({"widths": 5}, "wrong type"),
        ({"kernels": 3}, "wrong type"),
    ],
)
def test_impossible_configurations_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        UNetConfig.from_dict({"widths": (4, 8, 8), **settings})

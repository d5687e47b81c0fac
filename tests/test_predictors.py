"""Predictors: whoever computes, in whatever precision, it is the same network."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from networks import random_network
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from napari_unet.config import UNetConfig
from napari_unet.errors import Cancelled
from napari_unet.levels import merges
from napari_unet.model import UNet
from napari_unet.predictors import Predictor
from napari_unet.predictors.fused import FusedUNet
from napari_unet.predictors.lean import LeanUNet, merged
from napari_unet.predictors.ncnn_predictor import NcnnPredictor
from napari_unet.predictors.openvino_predictor import OpenVinoPredictor, _Running
from napari_unet.predictors.torch_predictor import TorchPredictor

CPU = torch.device("cpu")
CONFIGS: list[dict[str, Any]] = [
    {},
    {"norm": "batch", "concat": "up-skip"},
    {"norm": "batch", "norm_order": "act-norm", "slope": 0.1},
    {"norm": "batch", "up_norm": True, "up_activation": True, "norm_order": "act-norm"},
    {"up": "nearest", "pools": ((3, 2), (2, 4))},
    {"padding": "same", "norm": "batch", "norm_order": "act-norm"},
    {"padding": "same", "ndim": 3, "widths": (4, 6), "concat": "up-skip"},
    {"up": "linear", "kernels": ((5, 3), (3, 1), (3, 3)), "pools": ((3, 2), (2, 4))},
    {"widths": (4, 12, 6), "up_widths": (3, 5), "in_channels": 3, "n_classes": 1},
    {"widths": (4,)},
    {"ndim": 3, "widths": (4, 6), "up": "linear", "norm": "batch", "up_norm": True},
    {"ndim": 3, "widths": (4, 6), "up": "nearest"},
    {"ndim": 3, "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)), "pools": ((1, 2, 2), (2, 2, 2))},
]


def network_of(settings: dict[str, Any]) -> UNet:
    return random_network(UNetConfig(**{"widths": (4, 8, 8), "n_classes": 3, **settings}))


def pixels_for(config: UNetConfig, batch: int = 2) -> NDArray[np.float32]:
    size = config.geometry.size_for([2 * stride for stride in config.geometry.stride])
    shape = (batch, config.in_channels, *size)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def predictor_of(name: str, network: UNet, *, half: bool) -> Predictor:
    lean = LeanUNet(network)
    if name == "openvino":
        return OpenVinoPredictor(lean, half=half)
    if name == "ncnn":
        return NcnnPredictor(lean)
    dtype = torch.bfloat16 if half else torch.float32
    return TorchPredictor(lean.to(dtype=dtype), CPU, dtype)


@pytest.mark.parametrize(
    ("name", "half"),
    [("torch", False), ("torch", True), ("openvino", False), ("openvino", True), ("ncnn", False)],
)
@pytest.mark.parametrize("settings", CONFIGS)
def test_every_predictor_computes_the_readable_network(
    settings: dict[str, Any], name: str, half: bool
) -> None:
    pytest.importorskip(name)
    if name == "ncnn" and settings.get("ndim") == 3:
        pytest.skip("ncnn is for planes")
    network = network_of(settings)
    pixels = pixels_for(network.config)
    with torch.inference_mode():
        wanted = network(torch.from_numpy(pixels)).numpy()
    predictor = predictor_of(name, network, half=half)
    found = predictor.start(pixels).result(None)
    scale = np.abs(wanted).max()
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() <= (0.05 if half else 1e-5) * scale
    predictor.rest()
    # The next call writes neither into this result nor anything else than the same numbers.
    again = predictor.start(pixels).result(lambda: False)
    assert np.array_equal(found, again)
    assert not np.shares_memory(found, again)
    shifted = pixels[:1, :, *[slice(stride, None) for stride in network.config.geometry.stride]]
    other = predictor.start(np.ascontiguousarray(shifted)).result(None)
    assert other.shape[1] == wanted.shape[1]


@pytest.mark.parametrize("name", ["torch", "openvino", "ncnn"])
def test_stopping_ends_a_tile_and_leaves_the_predictor_fit(name: str) -> None:
    pytest.importorskip(name)
    network = random_network(UNetConfig(widths=(24, 32)))
    pixels = np.zeros((1, 1, 1020, 1020), np.float32)
    predictor = predictor_of(name, network, half=False)
    whole = predictor.start(pixels).result(None)
    asked = itertools.count()
    with pytest.raises(Cancelled):
        predictor.start(pixels).result(lambda: next(asked) >= 1)
    predictor.start(pixels).drop()
    assert np.array_equal(predictor.start(pixels).result(None), whole)


def test_an_interrupted_tile_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its end the program waits for the layer that runs, not for a tile of a minute."""
    pytest.importorskip("openvino")
    from napari_unet.predictors import openvino_predictor

    monkeypatch.setattr(openvino_predictor, "_ending", ending := [])
    predictor = predictor_of("openvino", random_network(UNetConfig(widths=(24, 32))), half=False)
    pending = predictor.start(np.zeros((1, 1, 1020, 1020), np.float32))

    def interrupt() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pending.result(interrupt)
    (thread,) = ending
    thread.join(20)
    assert not thread.is_alive()
    assert predictor.start(np.zeros((1, 1, 44, 44), np.float32)).result(None).shape == (
        1,
        2,
        28,
        28,
    )


_SIGNAL = """
import os, signal
import numpy as np
from networks import random_network
from napari_unet.config import UNetConfig
from napari_unet.predictors import openvino_predictor
from napari_unet.predictors.lean import LeanUNet

heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
predictor = openvino_predictor.OpenVinoPredictor(LeanUNet(random_network(UNetConfig())))
for side in (2, 4):
    shape = UNetConfig().geometry.size_for((200 * side, 200 * side))
    predictor.start(np.zeros((1, 1, *shape), np.float32)).result(None)
    predictor.rest()
    for thread in openvino_predictor._ending:
        thread.join()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert len(heard) == side // 2
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no such signals")
def test_the_program_hears_signals_after_memory_went_back_in_a_thread() -> None:
    pytest.importorskip("openvino")
    paths = os.pathsep.join(sys.path)
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", _SIGNAL],
        env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_memory_may_run_out_at_any_piece_that_ncnn_takes() -> None:
    ncnn = pytest.importorskip("ncnn")

    class Short(ncnn.PoolAllocator):  # type: ignore[misc]
        """Memory for so many pieces and no more."""

        def __init__(self, left: int) -> None:
            super().__init__()
            self.left = left

        def fastMalloc(self, size: int) -> Any:
            self.left -= 1
            return super().fastMalloc(size) if self.left >= 0 else None

    network = network_of({"widths": (16, 32, 32)})
    pixels = pixels_for(network.config)
    predictor = NcnnPredictor(LeanUNet(network))
    wanted = predictor.start(pixels).result(None)
    option = predictor._net.opt
    for place in range(2):
        for left in itertools.count():
            pools = list(predictor._pools)
            pools[place] = Short(left)
            option.blob_allocator, option.workspace_allocator = pools
            try:
                found = predictor.start(pixels).result(None)
            except MemoryError:
                continue
            finally:
                option.blob_allocator, option.workspace_allocator = predictor._pools
            assert np.array_equal(found, wanted)
            assert left > 20
            break
        assert np.array_equal(predictor.start(pixels).result(None), wanted)


def test_nobody_waits_for_the_layer_that_runs_but_the_next_tile() -> None:
    pytest.importorskip("openvino")
    layer_ends, ended = threading.Event(), []

    class Request:
        """One whose layer takes long."""

        def wait_for(self, _: int) -> bool:
            return False

        def cancel(self) -> None:
            """Only after the layer."""

        def wait(self) -> None:
            ended.append(layer_ends.wait(60))
            raise RuntimeError("Infer Request was canceled")

    network = network_of({})
    pixels = pixels_for(network.config)
    with pytest.raises(Cancelled):
        _Running(Request(), pixels).result(lambda: True)
    assert not ended
    timer = threading.Timer(0.1, layer_ends.set)
    timer.start()
    pending = predictor_of("openvino", network, half=False).start(pixels)
    assert ended == [True]
    pending.result(None)
    timer.join()


def test_a_request_that_never_ends_holds_up_no_other_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openvino")
    never = threading.Event()
    where = "napari_unet.predictors.openvino_predictor"
    monkeypatch.setattr(f"{where}._LAST_LAYER", 0.1)
    thread = threading.Thread(target=never.wait)
    thread.start()
    monkeypatch.setattr(f"{where}._ending", [thread])
    network = network_of({})
    predictor_of("openvino", network, half=False).start(pixels_for(network.config)).result(None)
    assert thread.is_alive()
    never.set()
    thread.join()


def test_the_lean_network_leaves_the_models_own() -> None:
    """Whatever its copy is brought to; without batch norm, weights are held once."""
    for settings in ({}, {"norm": "batch"}):
        network = network_of(settings)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        lean = LeanUNet(network)
        shared = lean.head.weight.data_ptr() == network.head.weight.data_ptr()
        assert shared == (not settings)
        lean.to(dtype=torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
        after = network.state_dict()
        assert all(torch.equal(before[key], value) for key, value in after.items())
        assert all(value.dtype == before[key].dtype for key, value in after.items())


@pytest.mark.parametrize("settings", CONFIGS, ids=str)
def test_fused_for_a_gpu_it_is_the_same_network(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cuDNN would compute in one pass, by its definition."""
    calls: list[str] = []

    def relu(given: Tensor, weight: Tensor, bias: Any, *geometry: Any) -> Tensor:
        calls.append("relu")
        conv = functional.conv2d if given.ndim == 4 else functional.conv3d
        return conv(given, weight, bias, *geometry).relu()

    def add_relu(
        given: Tensor, weight: Tensor, other: Tensor, alpha: float, bias: Any, *geometry: Any
    ) -> Tensor:
        calls.append("add")
        conv = functional.conv2d if given.ndim == 4 else functional.conv3d
        return (conv(given, weight, bias, *geometry) + alpha * other).relu()

    monkeypatch.setattr(torch, "cudnn_convolution_relu", relu)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", add_relu)
    network = network_of(settings)
    given = torch.from_numpy(pixels_for(network.config))
    with torch.inference_mode():
        fused = FusedUNet(network)(given)
        torch.testing.assert_close(fused, network(given), rtol=1e-4, atol=1e-5)
    config = network.config
    if not config.slope and config.norm == "none":
        # Of each level two convolutions on the way down and two on the way up, one of which adds.
        assert (calls.count("relu"), calls.count("add")) == (3 * config.depth + 2, config.depth)


@pytest.mark.parametrize(("ndim", "block", "kernel"), [(2, 2, 3), (3, 2, 3), (2, 2, 5), (2, 3, 4)])
def test_an_up_convolution_and_the_next_are_one(ndim: int, block: int, kernel: int) -> None:
    layers = (nn.Conv2d, nn.ConvTranspose2d) if ndim == 2 else (nn.Conv3d, nn.ConvTranspose3d)
    torch.manual_seed(0)
    rise, conv = layers[1](6, 3, block, block), layers[0](3, 4, kernel, bias=False)
    coarse = torch.randn(2, 6, *range(5, 5 + ndim))
    with torch.inference_mode():
        wanted = conv(rise(coarse))
        weight, bias = merged(rise, conv)
        found = getattr(functional, f"conv{ndim}d")(coarse, weight, bias)
    # Channels of each pixel of a block in turn -> pixels.
    grid = found.unflatten(1, (*[block] * ndim, 4)).movedim(1 + ndim, 1)
    axes = [axis for n in range(ndim) for axis in (2 + ndim + n, 2 + n)]
    shape = (2, 4, *(block * size for size in found.shape[2:]))
    assert torch.allclose(grid.permute(0, 1, *axes).reshape(shape), wanted, atol=1e-5)


def test_what_is_merged_is_what_gains() -> None:
    classic = UNetConfig()
    assert all(merges(classic, level) for level in range(classic.depth))
    for settings in (
        {"up_activation": True},
        {"up": "linear"},
        {"padding": "same"},
        {"pools": ((3, 3), (3, 3), (3, 3), (3, 3))},
        {"up_widths": (16, 32, 64, 128)},
    ):
        config = UNetConfig(**settings)
        assert not any(merges(config, level) for level in range(config.depth)), settings

"""The account of a tile: held against what processes of the real thing measure."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from napari_unet.config import UNetConfig
from napari_unet.footprint import footprint
from napari_unet.levels import levels
from napari_unet.model import UNet

_MEASURE = """
import gc, json, os, sys
from pathlib import Path
import numpy as np, torch
from napari_unet.config import UNetConfig
from napari_unet.model import UNet
from napari_unet.predictors.lean import LeanUNet
from napari_unet.predictors.ncnn_predictor import NcnnPredictor
from napari_unet.predictors.openvino_predictor import OpenVinoPredictor
from napari_unet.predictors.torch_predictor import TorchPredictor

name, cases = json.loads(sys.argv[1])
if name != "torch":
    __import__(name)

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

def run(half, config, shape):
    network = UNet(config).eval()
    gc.collect()
    base = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    lean = LeanUNet(network)
    if name == "openvino":
        predictor = OpenVinoPredictor(lean, half=half)
    elif name == "ncnn":
        predictor = NcnnPredictor(lean)
        del lean
    else:
        dtype = torch.bfloat16 if half else torch.float32
        layout = torch.channels_last if config.ndim == 2 else torch.channels_last_3d
        lean = lean.to(dtype=dtype, memory_format=layout)
        predictor = TorchPredictor(lean, torch.device("cpu"), dtype)
    for _ in range(2):  # tile after tile, as in a large image: nothing may pile up
        predictor.start(np.ones((1, config.in_channels, *shape), np.float32)).result(None)
    return status("VmHWM") - base

for half, settings, shape in cases:
    # A process each, forked before any thread is there: memory is as fresh as at a first run.
    child = os.fork()
    if not child:
        torch.set_num_threads(2)
        run(half, UNetConfig(widths=(4, 4)), (64, 64))  # what libraries load once is no tile's
        print(run(half, UNetConfig(**settings), shape), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("a measurement failed")
"""

NETWORKS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({}, (476, 508)),
    ({"widths": (64, 128, 256)}, (700, 900)),
    ({"widths": (16, 32, 64, 128), "n_classes": 3, "norm": "batch"}, (1500, 1500)),
    (
        {"widths": (24, 48, 96), "up_widths": (16, 32), "n_classes": 3, "norm": "batch"},
        (1400, 1400),
    ),
    ({"widths": (48, 96)}, (800, 800)),
    ({"widths": (32, 64), "up": "linear"}, (700, 1000)),
    ({"widths": (16, 32, 64), "ndim": 3}, (80, 160, 160)),
]


def admissible(case: tuple[dict[str, Any], tuple[int, ...]]) -> tuple[Any, tuple[int, ...]]:
    settings, shape = case
    axes = UNetConfig(**settings).geometry.axes
    return settings, tuple(axis.above(size) for axis, size in zip(axes, shape, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="measured with Linux' /proc")
@pytest.mark.parametrize("name", ["torch", "openvino", "ncnn"])
def test_the_peak_is_what_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The measurements run on two threads, whatever the machine has.
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    footprint.cache_clear()
    pytest.importorskip(name)
    cases = [(half, *network) for half in (False, True) for network in map(admissible, NETWORKS)]
    if name == "ncnn":  # 2-D and float32
        cases = [case for case in cases if not case[0] and case[1].get("ndim") != 3]
    command = [sys.executable, "-c", _MEASURE, json.dumps([name, cases])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    for (half, settings, size), measured in zip(cases, done.stdout.split(), strict=True):
        modelled = footprint(UNetConfig(**settings), size, predictor=name, half=half).peak
        assert 0.87 <= modelled / int(measured) <= 1.15, (half, settings, size)
    footprint.cache_clear()


@pytest.mark.parametrize(("settings", "shape"), NETWORKS)
def test_the_arithmetic_is_what_torch_counts(
    settings: dict[str, Any], shape: tuple[int, ...]
) -> None:
    config, size = UNetConfig(**settings), admissible((settings, shape))[1]
    with torch.device("meta"):
        network = UNet(config)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, config.in_channels, *size))
    counted = counter.get_total_flops()
    for name in ("torch", "openvino", "ncnn"):
        assert footprint(config, size, predictor=name).flops == pytest.approx(counted, rel=1e-3)


def test_the_papers_sizes() -> None:
    """Figure 1: what each level reads and writes, and how much its skip is cropped."""
    found = levels(UNetConfig(), (572, 572))
    assert [(at.entry[0], at.second[0]) for at in found] == [
        (572, 568), (284, 280), (140, 136), (68, 64), (32, 28),
    ]  # fmt: skip
    assert [(at.risen[0], at.fourth[0]) for at in found[:-1]] == [
        (392, 388), (200, 196), (104, 100), (56, 52),
    ]  # fmt: skip
    assert [at.crop[0] for at in found[:-1]] == [88, 40, 16, 4]

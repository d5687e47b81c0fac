"""What the machine could do: OpenVINO's own figure for the network, a convolution, a product."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from napari_unet.checkpoint import Model
from napari_unet.footprint import footprint
from napari_unet.model import fold_batch_norm

__all__ = ["convolution", "matrix_product", "openvino_request", "openvino_tool"]

# Converted graphs by model and tile; to convert one, torch runs it once.
_graphs: dict[tuple[str, tuple[int, ...]], Any] = {}


def _rate(call: Callable[[], Any], flops: float, seconds: float, device: torch.device) -> float:
    """Operations a second: the median of as many calls as fit into some seconds."""
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return flops / median(times)


@torch.inference_mode()
def convolution(dtype: torch.dtype, device: str, seconds: float) -> float:
    """FLOP/s of a 3x3 convolution, 256 -> 256 channels, channels last."""
    where = torch.device(device)
    side = 512 if where.type == "cuda" else 128
    layer = torch.nn.Conv2d(256, 256, 3).to(where, dtype)
    layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    given = torch.rand(1, 256, side, side, dtype=torch.float32).to(where, dtype)
    given = given.contiguous(memory_format=torch.channels_last)
    flops = 2 * 9 * 256 * 256 * (side - 2) ** 2
    return _rate(lambda: layer(given), flops, seconds, where)


@torch.inference_mode()
def matrix_product(dtype: torch.dtype, device: str, seconds: float) -> float:
    """FLOP/s of a square matrix product."""
    where = torch.device(device)
    side = 8192 if where.type == "cuda" else 2048
    a, b = (torch.rand(side, side).to(where, dtype) for _ in range(2))
    return _rate(lambda: a @ b, 2 * side**3, seconds, where)


def _graph(model: Model, tile: tuple[int, ...]) -> Any:
    """The network as OpenVINO itself converts it from torch."""
    import openvino

    key = model.card.name, tile
    if key not in _graphs:
        network = fold_batch_norm(model.network).eval()
        example = torch.zeros(1, model.config.in_channels, *tile)
        with warnings.catch_warnings():
            # Sizes are fixed here: what tracing may not generalise to does not matter.
            warnings.simplefilter("ignore")
            _graphs[key] = openvino.convert_model(
                network, example_input=example, input=[list(example.shape)]
            )
    return _graphs[key]


def openvino_request(model: Model, tile: tuple[int, ...], precision: str) -> Callable[[], Any]:
    """Compile the graph for this process; each call computes one tile of noise."""
    import openvino

    hints = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(_graph(model, tile), "CPU", hints)
    request = compiled.create_infer_request()
    given = np.random.default_rng(0).random((1, model.config.in_channels, *tile), np.float32)
    return lambda: request.infer([given])


def openvino_tool(
    model: Model, tile: tuple[int, ...], precision: str, seconds: float
) -> dict[str, float] | None:
    """FLOP/s by OpenVINO's own `benchmark_app`; None where it is not installed."""
    import openvino

    tool = shutil.which("benchmark_app", path=str(Path(sys.executable).parent))
    if tool is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.xml"
        openvino.save_model(_graph(model, tile), path, compress_to_fp16=False)
        command = [tool, "-m", str(path), "-hint", "latency", "-t", str(max(1, round(seconds)))]
        command += ["-infer_precision", {"float32": "f32", "bfloat16": "bf16"}[precision]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Median:\s+([\d.]+) ms", done.stdout)
    if done.returncode or found is None:
        return None
    took = float(found[1]) / 1e3
    flops = footprint(model.config, tile).flops
    return {"flops_per_second": flops / took, "tile_seconds": took}

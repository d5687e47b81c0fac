"""How the network itself runs fastest on a GPU: ``python benchmarks/gpu_variants.py``.

One tile that is there already goes through the paper's network, and a small one through `nuclei`:
rewritten in plain torch (`lean`), with cuDNN's combined kernels (`fused`), compiled by torch, and
as a recorded CUDA graph. Medians of events on the GPU; what precedes the first result counts too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import environment
from torch import Tensor
from ways import network_of

from napari_unet.checkpoint import Model
from napari_unet.devices import arithmetic
from napari_unet.footprint import footprint
from napari_unet.predictors.fused import FusedUNet
from napari_unet.predictors.lean import LeanUNet

HERE = Path(__file__).resolve().parent
# Network and tile: one that fills a GPU, and some that hardly do.
TILES = (("paper", 2236), ("paper", 572), ("nuclei", 1084), ("nuclei", 348))
PRECISIONS: dict[str, tuple[torch.dtype, bool]] = {
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
    "tf32": (torch.float32, True),
    "float32": (torch.float32, False),
}


def recorded(network: Callable[[Tensor], Tensor], given: Tensor) -> Callable[[Tensor], Tensor]:
    """Record a CUDA graph of one call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        network(given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = network(given)

    def replay(_: Tensor) -> Tensor:
        graph.replay()
        return found

    return replay


def seconds_of(call: Callable[[], Any], runs: int) -> float:
    """Median on the GPU."""
    found: list[float] = []
    for _ in range(runs):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(stop) / 1e3)
    return median(found)


def variants(model: Model, precision: str) -> Iterator[tuple[str, Callable[[Tensor], Any]]]:
    """Name, and what prepares a variant for a tile."""
    dtype, _ = PRECISIONS[precision]

    def built(kind: type[LeanUNet]) -> Any:
        return kind(model.network).to(device="cuda", dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    yield "lean", lambda _: built(LeanUNet)
    yield "fused", lambda _: built(FusedUNet)
    if precision == "bfloat16":
        yield "compiled", lambda _: torch.compile(built(LeanUNet))
        yield "fused, graph", lambda given: recorded(built(FusedUNet), given)


@torch.inference_mode()
def measure(name: str, side: int, precision: str, runs: int) -> Iterator[dict[str, Any]]:
    """Rows of one network and tile."""
    model = network_of(name)
    dtype, tf32 = PRECISIONS[precision]
    given = torch.rand(1, model.config.in_channels, side, side, device="cuda").to(dtype)
    given = given.contiguous(memory_format=torch.channels_last)
    flops = footprint(model.config, (side, side)).flops
    for variant, prepare in variants(model, precision):
        with arithmetic(torch.device("cuda"), tf32=tf32):
            began = time.perf_counter()
            network = prepare(given)
            network(given)
            torch.cuda.synchronize()
            first = time.perf_counter() - began
            took = seconds_of(lambda call=network: call(given), runs)  # type: ignore[misc]
        yield {
            "network": name, "tile": side, "precision": precision, "variant": variant,
            "first_seconds": first, "seconds": took, "flops_per_second": flops / took,
        }  # fmt: skip


def main() -> None:
    """Measure all, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--name", default="cuda-variants")
    given = parser.parse_args()
    rows = []
    for name, side in TILES:
        for precision in PRECISIONS:
            for row in measure(name, side, precision, given.runs):
                rows.append(row)
                print(json.dumps(row), flush=True)
    document = {"environment": environment("cuda"), "rows": rows}
    (HERE / "results" / f"{given.name}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

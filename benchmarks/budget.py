"""Whether the budget holds for images and jobs of other kinds than those that `run.py` times.

Each job runs in a process of its own, after a small one that loads what libraries load once. What
counts is the most memory of the process's own above what it had before, less the result: labels,
and probabilities where they are asked for. Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Peak, environment, in_subprocess
from ways import network_of

from napari_unet.card import default_classes
from napari_unet.checkpoint import Card, Model, load_model
from napari_unet.config import UNetConfig
from napari_unet.intensity import Normalisation
from napari_unet.model import UNet, he_initialise
from napari_unet.options import Options
from napari_unet.predictors import kept
from napari_unet.sample import sample_nuclei
from napari_unet.segmentation import segment

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Kind:
    """A job: an image, a model, and how it is run."""

    image: Callable[[Path], Any]
    model: Callable[[], Model] = lambda: load_model("nuclei")
    options: dict[str, Any] = field(default_factory=dict)


def tiled(*shape: int, dtype: Any = np.uint16, chunks: int = 0) -> Callable[[Path], Any]:
    """The sample, side by side, over the two axes of a plane; chunked on disk if asked for."""

    def make(folder: Path) -> Any:
        sample, _ = sample_nuclei()
        colours = shape[-1] == 3
        size = shape[:2] if colours else shape[-2:]
        times = [-(-n // m) for n, m in zip(size, sample.shape, strict=True)]
        plane = np.tile(sample, times)[: size[0], : size[1]].astype(dtype)
        whole = np.repeat(plane[..., None], 3, -1) if colours else np.broadcast_to(plane, shape)
        image = np.ascontiguousarray(whole)
        if not chunks:
            return image
        import zarr

        stored = zarr.create_array(
            folder / "image.zarr", shape=shape, chunks=(chunks, chunks), dtype=image.dtype
        )
        stored[:] = image
        return stored

    return make


def random_model(**config: Any) -> Model:
    """A network with weights of chance."""
    made = UNetConfig(**config)
    network = UNet(made)
    he_initialise(network, torch.Generator().manual_seed(0))
    return Model(Card("random", made), network.eval())


def drawn(kind: str, side: int) -> Callable[[Path], Any]:
    """What is hard on the search for objects: a channel for the foreground, one for contours."""

    def make(_: Path) -> Any:
        image = np.zeros((side, side, 2), np.uint8)
        down, across = np.ogrid[:side, :side]
        if kind == "noise":
            image[..., 0] = np.random.default_rng(0).integers(0, 2, (side, side))
        elif kind == "grid":
            image[..., 0] = (down % 64 < 10) | (across % 64 < 10)
        elif kind == "fibres":
            image[..., 0] = (down + across) % 28 < 23
            image[(down + across) % 28 // 3 == 3] = (0, 1)
        else:  # cells that fill all
            image[..., 0] = 1
            image[(down % 24 < 4) | (across % 24 < 4)] = (0, 1)
        return image

    return make


def passing() -> Model:
    """A network that hands its two channels on as foreground and contour."""
    config = UNetConfig(in_channels=2, n_classes=3, widths=(2, 2))
    network = UNet(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for block in (network.down[0], network.merge[0]):
            for layer in block.children():
                if isinstance(layer, torch.nn.Conv2d):
                    layer.weight[[0, 1], [0, 1], 1, 1] = 1
        network.head.weight[[1, 2], [0, 1], 0, 0] = 20
        network.head.bias[1:] = -10
    card = Card("passing", config, Normalisation("none"), default_classes(3))
    return Model(card, network.eval())


def seeing(spacing: float) -> Callable[[], Model]:
    """`nuclei`, as if trained at so many micrometres a pixel."""

    def make() -> Model:
        model = load_model("nuclei")
        return Model(replace(model.card, spacing=(spacing, spacing)), model.network)

    return make


KINDS = {
    "16 bits": Kind(tiled(4096, 4096)),
    "floats of 64 bits": Kind(tiled(4096, 4096, dtype=np.float64)),
    "colours": Kind(
        tiled(4096, 4096, 3, dtype=np.uint8),
        lambda: load_model("nuclei-histology"),
        {"axes": "YXC"},
    ),
    "time series": Kind(tiled(6, 2048, 2048), options={"axes": "TYX"}),
    "planes of a volume": Kind(tiled(10, 1500, 1500), options={"axes": "ZYX"}),
    "volume": Kind(
        tiled(40, 600, 600),
        lambda: random_model(ndim=3, n_classes=2, widths=(16, 32, 64)),
        {"axes": "ZYX", "output": "classes"},
    ),
    "enlarged four times": Kind(tiled(1024, 1024), seeing(0.25), {"spacing": (1.0, 1.0)}),
    "shrunk to a half": Kind(tiled(8192, 8192), seeing(1.0), {"spacing": (0.5, 0.5)}),
    "zarr": Kind(tiled(4096, 4096, chunks=2000)),
    "probabilities": Kind(tiled(4096, 4096), options={"keep_probabilities": True}),
    "forty classes": Kind(
        tiled(3000, 3000),
        lambda: random_model(n_classes=40, widths=(16, 32, 64)),
        {"output": "classes"},
    ),
    "one large tile": Kind(tiled(1500, 1500)),
    "the paper's network": Kind(
        tiled(1500, 1500),
        lambda: network_of("paper"),
        {"output": "classes"},
    ),
    # With waists, as `nuclei` has them.
    "objects of noise": Kind(drawn("noise", 2048), passing, {"axes": "YXC", "waist": 2.0}),
    "one object, a grid": Kind(drawn("grid", 4000), passing, {"axes": "YXC", "waist": 2.0}),
    "fibres": Kind(drawn("fibres", 4000), passing, {"axes": "YXC", "waist": 2.0}),
    "confluent cells": Kind(drawn("confluent", 4000), passing, {"axes": "YXC", "waist": 2.0}),
}


def measure(name: str, memory: int, precision: str) -> dict[str, Any]:
    """Be the process of one job."""
    kind, model = KINDS[name], KINDS[name].model()
    options = Options(memory=memory, precision=precision, **kind.options)
    with tempfile.TemporaryDirectory(prefix="valid-unet-bench-") as folder:
        image = kind.image(Path(folder))
        corner = tuple(slice(0, 48 if n > 3 else n) for n in image.shape)
        segment(np.asarray(image[corner]), model, options)
        kept.clear()
        with Peak() as peak:
            result = segment(image, model, options)
        report = result.report
    maps = result.probabilities
    given = result.labels.nbytes + (0 if maps is None else maps.nbytes)
    return {
        "job": name,
        "shape": list(image.shape),
        "memory": memory,
        "peak_bytes": peak.most["own"],
        "result_bytes": given,
        "share": (peak.most["own"] - given) / memory,
        "tile": list(report.tile_size),
        "tiles": report.tiles,
        "engine": report.engine,
        "precision": report.precision,
        "remarks": list(report.remarks),
    }


def main() -> int:
    """Run the jobs one after the other, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--memory", type=int, default=512, help="MiB (default: %(default)s)")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--name", default="budget", help="of the result, results/NAME.json")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.jobs[0], given.memory << 20, given.precision)))
        return 0
    rows = []
    for job in given.jobs:
        how = ("--memory", str(given.memory), "--precision", given.precision)
        row = in_subprocess(__file__, "--child", "--jobs", job, *how)
        if "error" in row:
            print(f"{job}: {row['error']}", file=sys.stderr)
            return 1
        rows.append(row)
        held = "holds" if rows[-1]["share"] <= 1 else "FAILS"
        print(f"{held} | {job}: {rows[-1]['share']:.3f} of {given.memory} MiB", flush=True)
    document = {"environment": environment("cpu"), "rows": rows}
    output = HERE / "results" / f"{given.name}.json"
    output.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

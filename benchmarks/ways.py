"""The ways of segmenting an image that are compared, each as one call on a whole image.

Every way takes the same normalised pixels or the same file through a network of the same widths
and gives one class per pixel, so that what differs is how.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from ceiling import openvino_request
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_unet.checkpoint import Card, Model, load_model
from napari_unet.config import UNetConfig
from napari_unet.footprint import footprint
from napari_unet.model import UNet, fold_batch_norm, he_initialise
from napari_unet.options import Options
from napari_unet.plan import Job, plan_job
from napari_unet.predictors.torch_predictor import TorchPredictor
from napari_unet.prepared import Prepared
from napari_unet.segmentation import Progress, segment_steps

__all__ = ["BARE", "ONLY_GPU", "WAYS", "Outcome", "is_own", "network_of", "run_way"]

ROI, OVERLAP = 512, 0.25


@dataclass
class Outcome:
    """What one run gave.

    Attributes
    ----------
    classes : ndarray of int
        One class (or object) per pixel.
    details : dict
        What only some ways know: tile, precision, seconds of each stage.
    """

    classes: NDArray[Any]
    details: dict[str, Any]


def network_of(name: str) -> Model:
    """``paper``: Ronneberger et al. 2015, 64 to 1024 features; or a bundled model."""
    if name != "paper":
        return load_model(name)
    config = UNetConfig(n_classes=2, widths=(64, 128, 256, 512, 1024))
    network = UNet(config)
    he_initialise(network, torch.Generator().manual_seed(0))
    return Model(Card("paper", config), network.eval())


class SamePadded(nn.Module):
    """A U-Net of the same widths with padded convolutions: what sliding windows are run with."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        widths = config.widths
        norm = config.norm == "batch"

        def block(inputs: int, outputs: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for n in (inputs, outputs):
                layers.append(nn.Conv2d(n, outputs, 3, padding=1, bias=not norm))
                layers += [nn.BatchNorm2d(outputs)] * norm + [nn.ReLU(inplace=True)]
            return nn.Sequential(*layers)

        pairs = list(zip((config.in_channels, *widths), widths, strict=False))
        self.down = nn.ModuleList(block(a, b) for a, b in pairs)
        above = list(pairwise(widths))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in above)
        self.merge = nn.ModuleList(block(2 * a, a) for a, _ in above)
        self.head = nn.Conv2d(widths[0], config.n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits of the input's size."""
        skips = []
        for level, block in enumerate(self.down):
            x = block(x)
            if level < len(self.up):
                skips.append(x)
                x = nn.functional.max_pool2d(x, 2)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        logits: Tensor = self.head(x)
        return logits


def normalised(image: Any) -> NDArray[np.float32]:
    """Pixels from 0 to 1 by two percentiles, as everyone does it: over the whole array."""
    pixels = np.asarray(image)
    low, high = np.percentile(pixels, (1.0, 99.8))
    scaled: NDArray[np.float32] = ((pixels - low) / max(high - low, 1e-9)).astype(np.float32)
    return scaled


@torch.inference_mode()
def tutorial(image: Any, model: Model, device: torch.device, **_: Any) -> Outcome:
    """(a) 572 -> 388 tiles stepped by 388, float32, torch's default layout, one at a time.

    For a network of other depth: the tile that writes about as much.
    """
    axis = model.config.geometry.axes[0]
    size = axis.below(572)
    assert size is not None
    step = axis.output(size)
    pixels = normalised(image)
    rows, columns = (-(-n // step) * step - n for n in pixels.shape)
    loss = axis.loss // 2
    # A copy, as the model is shared by all ways, and parameters moved here would be of this mode.
    network = copy.deepcopy(model.network).to(device)
    padded = np.pad(pixels, ((loss, loss + rows), (loss, loss + columns)), "reflect")
    classes = np.zeros((pixels.shape[0] + rows, pixels.shape[1] + columns), np.uint8)
    for y in range(0, pixels.shape[0], step):
        for x in range(0, pixels.shape[1], step):
            tile = torch.from_numpy(padded[y : y + size, x : x + size])[None, None].to(device)
            classes[y : y + step, x : x + step] = network(tile)[0].argmax(0).cpu().numpy()
    return Outcome(classes[: pixels.shape[0], : pixels.shape[1]], {"tile": [size, size]})


@torch.inference_mode()
def monai(image: Any, model: Model, device: torch.device, **_: Any) -> Outcome:
    """(b) MONAI's sliding windows over a same-padded network of the same widths."""
    from monai.inferers.utils import sliding_window_inference

    network = SamePadded(model.config).eval().to(device)
    pixels = torch.from_numpy(normalised(image))[None, None]
    logits = sliding_window_inference(
        pixels,
        (ROI, ROI),
        1,
        network,
        overlap=OVERLAP,
        mode="gaussian",
        sw_device=device,
        device="cpu",
    )
    assert isinstance(logits, Tensor)
    return Outcome(logits[0].argmax(0).to(torch.uint8).numpy(), {"tile": [ROI, ROI]})


@torch.inference_mode()
def whole(image: Any, model: Model, device: torch.device, **_: Any) -> Outcome:
    """(c) One pass over the whole image, whatever memory it takes: folded, channels last."""
    axis = model.config.geometry.axes[0]
    pixels = normalised(image)
    sizes = [axis.above(n + axis.loss) for n in pixels.shape]
    loss = axis.loss // 2
    pads = [(loss, s - n - loss) for n, s in zip(pixels.shape, sizes, strict=True)]
    given = torch.from_numpy(np.pad(pixels, pads, "reflect"))[None, None].to(device)
    network = fold_batch_norm(model.network).eval().to(device)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    logits = network(given.contiguous(memory_format=torch.channels_last))
    classes = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
    return Outcome(classes[: pixels.shape[0], : pixels.shape[1]], {"tile": sizes})


def product(
    image: Any,
    model: Model,
    device: torch.device,
    *,
    precision: str = "float32",
    output: str = "classes",
    memory: int | None = None,
    **more: Any,
) -> Outcome:
    """(d) This package, from the array or the file to classes or objects."""
    wanted = {
        "output": output,
        "precision": precision,
        "device": str(device),
        "memory": memory,
        **more,
    }
    known = {field.name for field in fields(Options)}
    options = Options(**{k: v for k, v in wanted.items() if k in known and v is not None})
    steps = segment_steps(image, model, options)
    stages = {"first": 0.0, "network": 0.0}
    while True:
        try:
            step: Progress = next(steps)
        except StopIteration as stop:
            result = stop.value
            break
        if step.stage == "objects":
            stages["network"] = step.seconds
        elif step.done == 1:
            stages["first"] = step.seconds
    report = result.report
    details = {
        "tile": list(report.tile_size),
        "tiles": report.tiles,
        "flops": report.tiles * footprint(model.config, report.tile_size).flops,
        "precision": report.precision,
        "engine": getattr(report, "engine", "torch"),
        "first_tile_seconds": stages["first"],
        "network_seconds": stages["network"],
        "objects_seconds": report.seconds - stages["network"],
        "objects": report.objects,
    }
    return Outcome(result.labels, details)


def _product(**settings: Any) -> Callable[..., Outcome]:
    def run(image: Any, model: Model, device: torch.device, **more: Any) -> Outcome:
        return product(image, model, device, **(more | settings))

    return run


def _bare(
    prepare: Callable[[Model, Job], Callable[[], Any]], **settings: Any
) -> Callable[..., Outcome]:
    """(e) A network alone, on as many tiles of noise as the product computes of the image."""

    def run(
        image: Any, model: Model, device: torch.device, *, memory: int | None = None
    ) -> Outcome:
        options = Options(output="classes", memory=memory, device=str(device), **settings)
        job = plan_job(image, model, options)
        tile, tiles = job.plan.tile_shape, len(job.plan)
        compute = prepare(model, job)
        compute()
        _wait(device)
        start = time.perf_counter()
        for _ in range(tiles):
            compute()
        _wait(device)
        details = {
            "seconds": time.perf_counter() - start,
            "tile": list(tile),
            "tiles": tiles,
            "flops": tiles * footprint(model.config, tile).flops,
            "precision": job.runtime.precision,
        }
        return Outcome(np.zeros((0, 0), np.uint8), details)

    return run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _openvino(model: Model, job: Job) -> Callable[[], Any]:
    """OpenVINO's own graph."""
    return openvino_request(model, job.plan.tile_shape, job.runtime.precision)


def _network(model: Model, job: Job) -> Callable[[], Any]:
    """The product's network on a GPU, its pixels there already."""
    predictor = Prepared(model.network, job.runtime).predictor
    assert isinstance(predictor, TorchPredictor)
    shape = (1, model.config.in_channels, *job.plan.tile_shape)
    given = torch.rand(shape, device=job.runtime.device)
    return lambda: predictor.forward(given)


# What computes no image: it is timed beside the others, and nothing else is asked of it.
BARE: dict[str, dict[str, Callable[..., Outcome]]] = {
    "cpu": {
        f"openvino {precision}": _bare(_openvino, engine="openvino", precision=precision)
        for precision in ("float32", "auto")
    },
    "cuda": {
        f"network {precision}": _bare(_network, precision=precision)
        for precision in ("tf32", "auto")
    },
}
ONLY_GPU = ("product tf32",)
WAYS: dict[str, Callable[..., Outcome]] = {
    "tutorial": tutorial,
    "monai": monai,
    "whole": whole,
    "product float32": _product(precision="float32"),
    "product auto": _product(precision="auto"),
    "product torch": _product(precision="float32", engine="torch"),
    "product openvino": _product(precision="float32", engine="openvino"),
    "product tf32": _product(precision="tf32"),
    "whole product float32": _product(precision="float32", tile_size=1 << 20, memory=1 << 50),
    "whole product auto": _product(precision="auto", tile_size=1 << 20, memory=1 << 50),
    "instances float32": _product(precision="float32", output="instances"),
    "instances auto": _product(precision="auto", output="instances"),
}


def is_own(way: str) -> bool:
    """Whether a way is of this package, which keeps a network ready for the next image."""
    return way.startswith(("product", "whole product", "instances"))


def run_way(name: str, image: Any, model: Model, device: str, memory: int | None) -> Outcome:
    """Run one of `WAYS` or `BARE`; only the product's heed a memory budget."""
    where = torch.device(device)
    return (WAYS | BARE.get(where.type, {}))[name](image, model, where, memory=memory)

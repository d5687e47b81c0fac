"""Train the bundled `nuclei` checkpoint: fluorescence nuclei, instances by foreground and contour.

    python scripts/train_nuclei.py DATA OUT.safetensors [--also FOLDER ...] [--seed 0]

DATA is a folder with ``index.csv`` (columns id, split), ``images/ID.tif`` and ``masks/ID.tif``
(instance labels): the corrected 2018 Data Science Bowl stage-1 images (CC0), of which only rows
with split ``train`` are used. A twentieth of them is held out to watch the training. About an hour
on two CPU cores; the state is saved every 250 steps and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import find_boundaries
from torch.nn import functional

from napari_unet.card import Card
from napari_unet.checkpoint import Model, save_model
from napari_unet.config import UNetConfig
from napari_unet.evaluate import aggregate, evaluate
from napari_unet.intensity import Normalisation, fit_intensity
from napari_unet.model import UNet, he_initialise
from napari_unet.segmentation import segment

CONFIG = UNetConfig(n_classes=3, widths=(16, 32, 64, 128), norm="batch")
NORMALISATION = Normalisation("percentile", 1.0, 99.8)
WRITE = 240  # output pixels of a training tile, per side
BATCH = 4
SIGMA = 4.0  # reach of the weight of the gaps between objects, in pixels
AVERAGE = 0.998  # decay of the running mean of the weights, which is what is kept


@dataclass(frozen=True)
class Phase:
    """A stretch of the training.

    Parameters
    ----------
    last : int
        Its last step.
    rate : float
        Highest learning rate of its one-cycle schedule.
    gap, contour : float
        Weights of the narrowest gaps, and of the contour class.
    touching : int
        Width of the contour where an object touches another, in pixels.
    """

    last: int
    rate: float
    gap: float
    contour: float
    touching: int


# First what a nucleus is, then what keeps two of them apart.
PHASES = (Phase(5000, 3e-3, 4.0, 1.5, 0), Phase(7000, 1.5e-3, 8.0, 3.0, 2))


@dataclass(frozen=True)
class Sample:
    """One annotated image, normalised as a whole."""

    image: NDArray[np.float32]
    labels: NDArray[np.int32]
    gaps: NDArray[np.float32]


def load(folder: Path, split: str) -> list[Sample]:
    """Read the pairs of one split."""
    samples = []
    for image, labels in pairs(folder, split):
        scaled = fit_intensity(image, NORMALISATION).apply(image[None])[0]
        samples.append(Sample(scaled, labels, gap_weight(labels)))
    return samples


def pairs(folder: Path, split: str) -> Iterator[tuple[NDArray[Any], NDArray[np.int32]]]:
    """Images and instance labels of one split."""
    with (folder / "index.csv").open() as file:
        ids = [row["id"] for row in csv.DictReader(file) if row["split"] == split]
    for name in ids:
        image = tifffile.imread(folder / "images" / f"{name}.tif")
        labels = tifffile.imread(folder / "masks" / f"{name}.tif").astype(np.int32)
        yield image, labels


def gap_weight(labels: NDArray[np.int32]) -> NDArray[np.float32]:
    """exp(-(d1 + d2)^2 / 2 sigma^2) on the background (Ronneberger et al. 2015, eq. 2).

    d1 and d2 are the distances to the nearest and second nearest object; each object is looked
    at in a window a few sigma around it, where alone the weight differs from zero.
    """
    nearest = np.full(labels.shape, np.inf, np.float32)
    second = nearest.copy()
    reach = int(4 * SIGMA)
    for value, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        window = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        distance = ndimage.distance_transform_edt(labels[window] != value).astype(np.float32)
        first = nearest[window]
        second[window] = np.minimum(second[window], np.maximum(first, distance))
        nearest[window] = np.minimum(first, distance)
    weight = np.exp(-np.square(nearest + second) / (2 * SIGMA**2))
    return np.where(labels == 0, weight, 0).astype(np.float32)


def targets(labels: NDArray[np.int32], touching: int) -> NDArray[np.int64]:
    """Classes: 0 background, 1 foreground, 2 contour.

    The contour is the rim of each object, inside it, so that foreground and contour together are
    the object; it is 1 px wide on small objects and up to 2.5 px on large ones, and wider where
    another object is less than `touching` pixels away.
    """
    rim = find_boundaries(labels, connectivity=1, mode="inner")
    inside = ndimage.distance_transform_edt(~rim)
    area = np.bincount(labels.ravel())
    width = np.clip(0.08 * np.sqrt(area), 1.0, 2.5)[labels]
    contour = inside + 1 <= width
    if touching:
        reach = 2 * touching + 1
        others = np.where(labels == 0, np.iinfo(np.int32).max, labels)
        contour |= ndimage.maximum_filter(labels, reach) > labels
        contour |= ndimage.minimum_filter(others, reach) < labels
    return np.where(labels == 0, 0, np.where(contour, 2, 1)).astype(np.int64)


def crop(
    sample: Sample, phase: Phase, size: int, halo: int, random: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Cut one augmented training tile: rotation, scale, mirror, elastic field, grey levels."""
    angle, scale = random.uniform(0, 2 * np.pi), float(np.exp(random.uniform(-0.45, 0.45)))
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if random.random() < 0.5:
        matrix[:, 0] *= -1
    centre = [random.uniform(0, extent) for extent in sample.image.shape]
    grid = np.indices((size, size), np.float32) - size / 2
    spline = splines(size, size // 40 + 3)
    grid += spline @ random.normal(0, 2.0, (2, spline.shape[1], spline.shape[1])) @ spline.T
    where = np.tensordot(matrix, grid, 1) + np.array(centre)[:, None, None]
    image = ndimage.map_coordinates(sample.image, where, order=1, mode="mirror")
    core = where[:, halo:-halo, halo:-halo]
    labels = ndimage.map_coordinates(sample.labels, core, order=0, mode="mirror")
    gaps = ndimage.map_coordinates(sample.gaps, core, order=1, mode="mirror")
    return grey(image, random), targets(labels, phase.touching), 1 + phase.gap * gaps


@cache
def splines(size: int, knots: int) -> NDArray[np.float32]:
    """Matrix (size, knots) that spreads values at evenly spaced knots by cubic splines."""
    matrix: NDArray[np.float32]
    matrix = ndimage.zoom(np.eye(knots, dtype=np.float32), (size / knots, 1), order=3)
    return matrix


def grey(image: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Change brightness, contrast, gamma, blur and noise as microscopes do."""
    if random.random() < 0.5:
        positive = np.clip(image, 0, None)
        image = positive ** float(np.exp(random.uniform(-0.5, 0.5)))
    if random.random() < 0.2:
        image = ndimage.gaussian_filter(image, random.uniform(0.3, 1.5))
    image = image * random.uniform(0.7, 1.3) + random.uniform(-0.1, 0.1)
    if random.random() < 0.4:
        noise = random.normal(0, random.uniform(0.01, 0.1), image.shape)
        image = image + noise.astype(np.float32)
    return image.astype(np.float32)


class Batches(torch.utils.data.IterableDataset[Any]):
    """Endless training tiles, drawn by image area so that large fields count for what they hold."""

    def __init__(self, samples: list[Sample], phase: Phase, seed: int, skip: int) -> None:
        self.samples, self.phase, self.seed, self.skip = samples, phase, seed, skip

    def __iter__(self) -> Any:
        area = np.sqrt([sample.image.size for sample in self.samples])
        halo, size = CONFIG.geometry.halo[0], CONFIG.geometry.size_for((WRITE, WRITE))[0]
        step = self.skip
        while True:
            random = np.random.default_rng((self.seed, step))
            chosen = random.choice(len(area), BATCH, p=area / area.sum())
            tiles = [crop(self.samples[i], self.phase, size, halo, random) for i in chosen]
            images, classes, weights = (np.stack(part) for part in zip(*tiles, strict=True))
            yield images[:, None], classes, weights
            step += 1


def loss_of(network: UNet, batch: Any, phase: Phase) -> torch.Tensor:
    """Pixel-weighted cross-entropy over the valid outputs."""
    images, classes, weights = (torch.as_tensor(part) for part in batch)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images.contiguous(memory_format=torch.channels_last))
    each = functional.cross_entropy(
        logits.float(), classes, reduction="none", weight=torch.tensor([1.0, 1.0, phase.contour])
    )
    return (each * weights).sum() / weights.sum()


def train(samples: list[Sample], held: list[Sample], out: Path, seed: int) -> UNet:
    """Run the phases, each from the averaged network of the one before; returns the last."""
    network = UNet(CONFIG)
    he_initialise(network, torch.Generator().manual_seed(seed))
    first = 0
    for number, phase in enumerate(PHASES, start=1):
        state = out.with_suffix(f".phase{number}")
        network = run_phase(network, phase, first, samples, held, state, seed)
        first = phase.last
    return network


def run_phase(
    network: UNet,
    phase: Phase,
    first: int,
    samples: list[Sample],
    held: list[Sample],
    state: Path,
    seed: int,
) -> UNet:
    """AdamW with a one-cycle schedule; goes on from `state` if it is there."""
    torch.manual_seed(seed)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE), use_buffers=True
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=phase.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, phase.rate, total_steps=phase.last - first, pct_start=0.1
    )
    parts: dict[str, Any] = {
        "network": network,
        "mean": mean,
        "optimiser": optimiser,
        "schedule": schedule,
    }
    if state.exists():
        saved = torch.load(state, weights_only=True)
        first = saved["step"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    batches = torch.utils.data.DataLoader(
        Batches(samples, phase, seed, first), batch_size=None, num_workers=1, prefetch_factor=4
    )
    averaged = mean.module
    assert isinstance(averaged, UNet)
    started, losses = time.monotonic(), []
    for step, batch in zip(range(first + 1, phase.last + 1), batches, strict=False):
        network.train()
        loss = loss_of(network, batch, phase)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        mean.update_parameters(network)
        losses.append(loss.item())
        if step % 250 == 0:
            torch.save(
                {"step": step, **{name: part.state_dict() for name, part in parts.items()}},
                state.with_suffix(".new"),
            )
            state.with_suffix(".new").replace(state)
            print(
                f"step {step} of {phase.last}, loss {np.mean(losses):.4f}, held out "
                f"{validate(averaged, held, phase, seed):.4f}, {time.monotonic() - started:.0f} s",
                flush=True,
            )
            losses = []
    return averaged


@torch.inference_mode()
def validate(network: UNet, held: list[Sample], phase: Phase, seed: int) -> float:
    """Mean loss on fixed tiles of the images that were held out."""
    network.eval()
    batches = iter(Batches(held, phase, seed + 1, 0))
    return float(np.mean([loss_of(network, next(batches), phase).item() for _ in range(8)]))


def figures(model: Model, folder: Path) -> dict[str, float]:
    """Scores on the ``test`` rows of a folder, pooled over all objects as well as per image."""
    scores = []
    for image, truth in pairs(folder, "test"):
        scores.append(evaluate(segment(image, model).labels, truth))
    return aggregate(scores)


def card_of(recipe: str, found: dict[str, str]) -> Card:
    """What the checkpoint says about itself."""
    return Card(
        "nuclei",
        CONFIG,
        NORMALISATION,
        # Chosen on the images held out of the training.
        settings={"threshold": 0.6, "min_size": 30, "waist": 2.0},
        provenance={
            "data": "2018 Data Science Bowl, stage 1, corrected masks (BBBC038v1): fluorescence "
            "nuclei, 440 training images. Caicedo et al., Nat Methods 16, 1247-1253 (2019), "
            "doi:10.1038/s41592-019-0612-7.",
            "licence": "Data and weights: CC0 1.0.",
            "recipe": recipe,
            "figures": "; ".join(f"{name}: {text}" for name, text in found.items()),
        },
    )


def main() -> None:
    """Train, measure on images never seen, and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="more folders to score")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    samples = load(options.data, "train")
    order = np.random.default_rng(options.seed).permutation(len(samples))
    held = [samples[index] for index in order[: len(samples) // 20]]
    train_on = [samples[index] for index in order[len(samples) // 20 :]]
    network = train(train_on, held, options.out, options.seed).eval()
    recipe = (
        f"scripts/train_nuclei.py, {PHASES[-1].last} steps of {BATCH} tiles of {WRITE} px, AdamW "
        f"with a one-cycle schedule, weighted cross-entropy, seed {options.seed}."
    )
    found = {}
    for folder in (options.data, *options.also):
        score = figures(Model(card_of(recipe, {}), network), folder)
        found[f"{folder.name} test"] = (
            f"F1@0.5 {score['f1_50']:.3f}, mean AP {score['mean_ap']:.3f}, IoU {score['iou']:.3f}"
        )
        print(f"{folder.name}: {score}", flush=True)
    save_model(options.out, network, card_of(recipe, found))


if __name__ == "__main__":
    main()

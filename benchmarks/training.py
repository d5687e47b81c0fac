"""Training throughput beside a plain PyTorch loop: same network, tiles and data.

    python benchmarks/training.py [--steps 40] [--widths 16,32,64,128] [--write 240] [--batch 4]

The plain loop is what a tutorial has: default memory layout, float32, tiles cut in the main thread
between the steps. Both take turns, so that what else the machine does hits both alike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy import ndimage

from napari_unet.card import Card
from napari_unet.config import UNetConfig
from napari_unet.training.dataset import to_samples
from napari_unet.training.loss import weighted_cross_entropy
from napari_unet.training.pairs import Pair
from napari_unet.training.recipe import Recipe
from napari_unet.training.run import Run
from napari_unet.training.tiles import Batch, Cutter, class_counts, prefetch
from napari_unet.training.transfer import new_model


def made_up(count: int, size: int) -> list[Pair]:
    """Images of blobs."""
    pairs = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        field = ndimage.gaussian_filter(random.random((size, size)), 6)
        labels = ndimage.label(field > np.quantile(field, 0.7))[0].astype(np.int32)
        image = (60 + 90 * (labels > 0) + random.normal(0, 12, labels.shape)).clip(0, 255)
        pairs.append(Pair(str(seed), image.astype(np.uint8), "YX", labels))
    return pairs


def plain_cutter(cutter: Cutter, step: int) -> Batch:
    """Cut the same tiles, with SciPy."""

    def by_scipy(image: Any, where: Any, *, nearest: bool = False) -> Any:
        order = 0 if nearest else 1
        if nearest:
            return ndimage.map_coordinates(image, where, order=order, mode="mirror")
        return np.stack(
            [ndimage.map_coordinates(c, where, order=order, mode="mirror") for c in image]
        )

    with patch("napari_unet.training.tiles.sample", by_scipy):
        return cutter(step)


def plain_loop(recipe: Recipe, model: Any, cutter: Cutter) -> Iterator[tuple[float, float]]:
    """Yield the seconds of each step, and of its part in the network."""
    network = new_model(model.card, 0).network.train()
    optimiser = torch.optim.AdamW(network.parameters(), recipe.optimisation.rate)
    step = 0
    while True:
        step += 1
        began = time.perf_counter()
        batch = plain_cutter(cutter, step)
        cut = time.perf_counter()
        loss = weighted_cross_entropy(network(batch.images), batch.classes, batch.weights)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        loss.item()
        yield time.perf_counter() - began, time.perf_counter() - cut


def our_loop(recipe: Recipe, model: Any, cutter: Cutter) -> Iterator[tuple[float, float]]:
    """Yield the same of this package's loop."""
    run = Run(model.network, recipe, 10_000)
    batches = prefetch(cutter, 1, workers=recipe.workers)
    step = 0
    while True:
        step += 1
        began = time.perf_counter()
        batch = next(batches)
        got = time.perf_counter()
        run.step(batch, step)
        yield time.perf_counter() - began, time.perf_counter() - got


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run both loops in turns."""
    widths = tuple(int(part) for part in options.widths.split(","))
    recipe = Recipe(
        steps=1, write=options.write, batch=options.batch, device="cpu", workers=options.workers
    )
    card = Card("benchmark", UNetConfig(n_classes=3, widths=widths, norm="batch"))
    model = new_model(card, 0)
    samples = tuple(to_samples(made_up(8, options.size), card, recipe, sparse=False))
    base = recipe.weighting.base(class_counts(samples, recipe.targets))
    cutter = Cutter(
        samples, card.config.geometry, recipe.write, recipe.batch, recipe.targets, base,
        recipe.augmentation,
    )  # fmt: skip
    loops: dict[str, Callable[[], Iterator[tuple[float, float]]]] = {
        "plain": lambda: plain_loop(recipe, model, cutter),
        "auto": lambda: our_loop(recipe, model, cutter),
        "float32": lambda: our_loop(replace(recipe, precision="float32"), model, cutter),
    }
    running = {name: make() for name, make in loops.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for step in range(options.steps + 2):
        for name, loop in running.items():
            found = next(loop)
            if step >= 2:  # the first ones allocate
                times[name].append(found)
    for loop in running.values():
        loop.close()  # type: ignore[attr-defined]
    plain = float(np.median([whole for whole, _ in times["plain"]]))
    return {
        name: {
            "seconds_per_step": round(float(np.median([whole for whole, _ in rows])), 4),
            "in_network": round(sum(part for _, part in rows) / sum(w for w, _ in rows), 4),
            "times_plain": round(plain / float(np.median([whole for whole, _ in rows])), 3),
        }
        for name, rows in times.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--widths", default="16,32,64,128")
    parser.add_argument("--write", type=int, default=240)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--workers", type=int, default=1)
    print(json.dumps(measure(parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()

"""Small labelled pictures and trainings of a second, shared by the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from napari_unet.card import Card
from napari_unet.checkpoint import Model
from napari_unet.config import UNetConfig
from napari_unet.training.augment import Augmentation
from napari_unet.training.dataset import to_held, to_samples
from napari_unet.training.pairs import Pair
from napari_unet.training.recipe import Recipe
from napari_unet.training.targets import Targets
from napari_unet.training.transfer import new_model


def discs(seed: int, shape: tuple[int, ...] = (48, 52)) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs (or balls) on noise, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint16)
    grid = np.indices(shape)
    for number in range(1, 9):
        centre = np.array([random.uniform(min(4, n / 3), n - min(4, n / 3)) for n in shape])
        apart = np.sqrt(((grid - centre.reshape(-1, *[1] * len(shape))) ** 2).sum(axis=0))
        labels[(apart < random.uniform(3, 6)) & (labels == 0)] = number
    image = 40 + 120 * (labels > 0) + random.normal(0, 8, shape)
    return image.clip(0, 255).astype(np.uint8), labels


def pairs_of(count: int, shape: tuple[int, ...] = (48, 52)) -> list[Pair]:
    axes = "ZYX"[-len(shape) :]
    made = [discs(seed, shape) for seed in range(count)]
    return [Pair(f"{i}.tif", im, axes, lab) for i, (im, lab) in enumerate(made)]


def write_pairs(folder: Path, count: int) -> tuple[Path, Path]:
    """Folders of images and labels."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for pair in pairs_of(count):
        tifffile.imwrite(folder / "images" / pair.name, pair.image)
        tifffile.imwrite(folder / "labels" / pair.name, pair.labels)
    return folder / "images", folder / "labels"


def small_recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "steps": 8,
        "write": 16,
        "batch": 2,
        "every": 4,
        "augmentation": Augmentation(elastic=2),
        "device": "cpu",
        "targets": Targets(n_classes=3),
    }
    return Recipe(**{**settings, **changes})


def small_training(recipe: Recipe, **network: Any) -> dict[str, Any]:
    """What `train_steps` takes, for a small network and four pictures."""
    ndim = network.get("ndim", 2)
    pairs = pairs_of(4, (48, 52) if ndim == 2 else (14, 24, 26))
    settings = {"widths": (3, 4), "n_classes": recipe.targets.n_classes, "norm": "batch"}
    model = new_model(Card("small", UNetConfig(**{**settings, **network})), seed=0)
    assert isinstance(model, Model)
    return {
        "model": model,
        "samples": to_samples(pairs[:3], model.card, recipe, sparse=False),
        "held": to_held(pairs[3:], sparse=False),
        "recipe": recipe,
    }

"""What the training scripts share: folders with an ``index.csv``, scores on ``test``, the card."""

from __future__ import annotations

import argparse
import copy
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_unet.card import ClassInfo
from napari_unet.checkpoint import Model, load_model, save_model
from napari_unet.config import UNetConfig
from napari_unet.model import UNet
from napari_unet.steps import walk
from napari_unet.training.loop import Progress, Trained, train_steps
from napari_unet.training.pairs import Pair, PairFiles, load_pair
from napari_unet.training.plan import TrainingPlan, finished_card, plan_training
from napari_unet.training.recipe import Recipe
from napari_unet.training.report import write_report
from napari_unet.training.state import state_path
from napari_unet.training.validation import Validation, validate


@dataclass(frozen=True)
class Task:
    """A model in the box.

    Parameters
    ----------
    name : str
        Of the model.
    config : UNetConfig
        Its network.
    recipes : sequence of Recipe
        Run one after the other, each from the network of the one before.
    settings : mapping
        Of its card.
    provenance : mapping
        Data, licence and attribution.
    classes : pair of tuples, optional
        Where labels are classes.
    grey : bool
        Whether colours are averaged.
    blend : bool
        Whether the last recipe's network is averaged with the one that it began with: two ways
        into the same valley, whose middle is often better than both (Izmailov et al. 2018,
        arXiv:1803.05407).
    """

    name: str
    config: UNetConfig
    recipes: Sequence[Recipe]
    settings: Mapping[str, float]
    provenance: Mapping[str, str]
    classes: tuple[tuple[ClassInfo, ...], tuple[int, ...]] | None = None
    grey: bool = False
    blend: bool = False


def pairs_of(folder: Path, split: str, *, grey: bool = False) -> list[Pair]:
    """Images and labels of one split of ``index.csv`` (columns id, split)."""
    with (folder / "index.csv").open() as file:
        ids = [row["id"] for row in csv.DictReader(file) if row["split"] == split]
    found: list[Pair] = []
    for name in ids:
        files = PairFiles(folder / "images" / f"{name}.tif", folder / "masks" / f"{name}.tif")
        found += load_pair(files, 2)
    return [_grey(pair) for pair in found] if grey else found


def _grey(pair: Pair) -> Pair:
    """The mean of all channels."""
    if not pair.axes.endswith("C"):
        return pair
    return replace(pair, image=pair.image.mean(axis=-1).astype(np.float32), axes=pair.axes[:-1])


def parser_of(text: str | None) -> argparse.ArgumentParser:
    """Arguments that all scripts have."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with index.csv, images/ and masks/")
    parser.add_argument("out", type=Path, help="checkpoint to write")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="more folders to score")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1, help="of the number of steps")
    parser.add_argument("--from", dest="start", help="model; only the last recipe is run, from it")
    parser.add_argument(
        "--finish", action="store_true", help="end an interrupted training with its best network"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that cut tiles")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    return parser


def train_task(task: Task, options: argparse.Namespace, *, val: float = 0.05) -> Model:
    """Train, measure on ``test``, write checkpoint and report; goes on where it was interrupted."""
    pairs = pairs_of(options.data, "train", grey=task.grey)
    start = load_model(options.start) if options.start else None
    recipes = task.recipes[-1:] if start else task.recipes
    for number, recipe in enumerate(recipes, start=1):
        plan = _planned(task, pairs, recipe, options, start, val)
        state = state_path(options.out).with_suffix(f".training{number}")
        trained = _run(plan, state, finish=options.finish and state.exists())
        if task.blend and start is not None:
            trained = replace(trained, network=_middle(start.network, trained.network))
        start = Model(replace(plan.model.card, settings=task.settings), trained.network)
    assert start is not None
    card = finished_card(plan, trained, None)
    figures = dict(_figures(start, plan, task, options))
    card = replace(
        card,
        settings=task.settings,
        provenance={
            **task.provenance,
            "recipe": card.provenance["recipe"],
            "figures": "; ".join(f"{name}: {text}" for name, text in figures.items()),
        },
    )
    save_model(options.out, trained.network, card, half=True)
    write_report(options.out.with_suffix(".html"), card, trained, plan.held)
    return Model(card, trained.network)


def _middle(one: UNet, other: UNet) -> UNet:
    """The mean of two networks' weights and statistics."""
    middle, theirs = copy.deepcopy(one), other.state_dict()
    state = middle.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = (tensor + theirs[name]) / 2
    middle.load_state_dict(state)
    return middle.eval()


def _planned(
    task: Task,
    pairs: list[Pair],
    recipe: Recipe,
    options: argparse.Namespace,
    start: Model | None,
    val: float,
) -> TrainingPlan:
    steps = max(round((recipe.steps or 1) * options.scale), 1)
    recipe = replace(
        recipe,
        steps=steps,
        seed=options.seed,
        workers=options.workers,
        device=options.device,
        precision=options.precision,
    )
    plan = plan_training(
        pairs,
        recipe,
        name=task.name,
        start=start,
        config=task.config,
        classes=task.classes,
        val=val,
    )
    card = replace(plan.model.card, settings=task.settings, spacing=None)
    return replace(plan, model=replace(plan.model, card=card))


def _run(plan: TrainingPlan, state: Path, *, finish: bool) -> Trained:
    """Walk through a training, with a line for each look at the held-out images."""

    def tell(progress: Progress) -> None:
        if progress.validation is not None:
            print(
                f"step {progress.step} of {progress.total}, loss {progress.loss:.4f}, "
                f"{progress.validation.main} {progress.validation.score:.4f}, "
                f"{progress.left / 60:.0f} min left, {progress.busy:.1%} in the network",
                flush=True,
            )

    steps = train_steps(
        plan.model,
        plan.samples,
        plan.held,
        plan.recipe,
        state=state,
        resume=state.exists(),
        should_stop=(lambda: True) if finish else None,
    )
    return walk(steps, tell)


def _figures(
    model: Model, plan: TrainingPlan, task: Task, options: argparse.Namespace
) -> Iterator[tuple[str, str]]:
    """Scores on the ``test`` rows of the data sets."""
    from napari_unet.training.dataset import to_held

    for folder in (options.data, *options.also):
        held = to_held(pairs_of(folder, "test", grey=task.grey), sparse=False)
        scores: Validation = validate(model, held, plan.recipe.targets, device=options.device)
        text = ", ".join(f"{k} {v:.3f}" for k, v in _told(scores.mean).items())
        print(f"{folder.name} test: {text}", flush=True)
        yield f"{folder.name} test", text


def _told(mean: Mapping[str, Any]) -> dict[str, float]:
    keys = ("f1_50", "mean_ap", "iou", "mean_iou", "pixel_error")
    return {k: float(v) for k, v in mean.items() if k in keys or k.startswith("iou_")}
